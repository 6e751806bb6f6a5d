import { mkdirSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { atEnd, cannot, dbbackup, holdExclusively, makeDatabase, type Need, openWriter, wrap } from '../support/cli.js';
import { args, type Place, place, type Setup } from './bad-input.js';
import { Random } from './harness.js';
import { bindReadOnly, mountTmpfs } from './mounts.js';
import { examine, listing, mustBeWhole } from './proof.js';

// ------------------------------------------------------------------------------------------------------------ output

describe('an output that takes nothing', () => {
  test.each([
    ['stdout closed', wrap.stdoutClosed],
    ['stdout full', wrap.stdoutFull],
    ['stderr full', wrap.stderrFull],
  ])('%s: exit code and history are what they would have been', { timeout: 60_000 }, async (_, through) => {
    const p = place();
    makeDatabase(p.source);
    for (const more of [['--json'], ['--verbose'], []]) {
      const run = await dbbackup(['run', p.source, '--to', p.to, ...more], { through });
      expect([run.code, run.signal], run.stderr).toEqual([0, null]);
    }
    const missing = await dbbackup(['run', join(p.home, 'none.db'), '--to', p.to, '--json'], { through });
    expect([missing.code, missing.signal], missing.stderr).toEqual([1, null]);
    for (const reader of [['list'], ['history'], ['status', '--name', 'app']]) {
      const r = await dbbackup([...reader, '--to', p.to], { through });
      expect([r.code, r.signal], `${reader[0]}: ${r.stderr}`).toEqual([0, null]);
    }
    const history = await dbbackup(['history', '--to', p.to, '--json']);
    expect(history.json.runs?.map((r) => [r.status, r.exitCode])).toEqual([
      ['failed', 1],
      ['ok', 0],
      ['ok', 0],
      ['ok', 0],
    ]);
    expect(mustBeWhole(p.to, 'after the runs').pairs.size).toBe(3);
  });

  test('a full disk behind stdout is told on stderr, once', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    expect((await dbbackup(['run', p.source, '--to', p.to])).code).toBe(0);
    for (const words of [['list'], ['list', '--json'], ['history'], ['check', p.source, '--json']]) {
      const look = await dbbackup([...words, '--to', p.to], { through: wrap.stdoutFull });
      expect([look.code, look.stderr], words.join(' ')).toEqual([
        0,
        expect.stringMatching(/^dbbackup: warning IO_ERROR: what was printed is not whole: .*ENOSPC.* Hint: make room there, and run it again\n$/),
      ]);
    }
  });

  test('a reader that goes away (| head -1)', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    for (let i = 0; i < 3; i++) await dbbackup(['run', p.source, '--to', p.to]);
    const run = await dbbackup(['history', '--to', p.to, '--json'], {
      through: ['bash', '-c', 'set -o pipefail; "$0" "$@" | head -c 1 >/dev/null; exit $PIPESTATUS'],
    });
    expect([run.code, run.stderr]).toEqual([0, '']);
  });
});

// ------------------------------------------------------------------------------------------------------------- state

describe('state that cannot be written', () => {
  const STATE: readonly [what: string, spoil: (p: Place) => Setup, needs: Need[]][] = [
    [
      'a history that is a directory',
      (p) => {
        mkdirSync(join(p.to, '.dbbackup/history.db'), { recursive: true });
        return {};
      },
      [],
    ],
    [
      'a history of garbage',
      (p) => {
        mkdirSync(join(p.to, '.dbbackup'), { recursive: true });
        writeFileSync(join(p.to, '.dbbackup/history.db'), new Random(3).bytes(5000));
        return {};
      },
      [],
    ],
    [
      'a log directory that is a file',
      (p) => {
        writeFileSync(join(p.home, 'log'), 'x');
        return { more: ['--log-dir', join(p.home, 'log')] };
      },
      [],
    ],
    ['a log directory on a read-only mount', (p) => ({ more: ['--log-dir', join(bindReadOnly(p.home), 'log')] }), ['root', 'mount']],
    [
      'a log directory on a full disk',
      () => {
        const point = mountTmpfs(64 << 10);
        const s = statfsSync(point);
        writeFileSync(join(point, 'filler'), Buffer.alloc(s.bavail * s.bsize));
        return { more: ['--log-dir', point] };
      },
      ['root', 'mount'],
    ],
    [
      'a history held by another process',
      (p) => {
        mkdirSync(join(p.to, '.dbbackup'), { recursive: true, mode: 0o700 });
        return {};
      },
      [],
    ],
  ];
  test.each(STATE)('%s: the copy is made, the code stands, STATE_UNWRITABLE is said', { timeout: 60_000 }, async (what, spoil, needs) => {
    const reason = cannot(...needs);
    if (reason) {
      process.stderr.write(`not run here: ${what}: ${reason}\n`);
      return;
    }
    const p = place();
    makeDatabase(p.source);
    const setup = spoil(p);
    if (what.includes('held')) {
      await dbbackup(['run', p.source, '--to', p.to]);
      const holder = await holdExclusively(join(p.to, '.dbbackup/history.db'));
      atEnd(() => void holder.crash());
    }
    const run = await dbbackup([...args(p, setup), '--json']);
    expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
    expect(run.json.warnings?.map((w) => w.code)).toContain('STATE_UNWRITABLE');
    expect(run.stderr).toMatch(/STATE_UNWRITABLE/);
    const missing = await dbbackup(['run', join(p.home, 'none.db'), '--to', p.to, '--json', ...(setup.more ?? [])]);
    expect([missing.code, missing.json.error?.code], missing.stderr).toEqual([1, 'SOURCE_MISSING']);
    const list = await dbbackup(['list', '--to', p.to, '--json']);
    expect([list.code, list.json.copies?.[0]?.status]).toEqual([0, 'good']);
    expect(examine(p.to).bad).toEqual([]);
  });

  test('a state directory that cannot be written at all has no lock: 1 TARGET_UNWRITABLE', { timeout: 60_000 }, async () => {
    const reason = cannot('root', 'mount');
    if (reason) {
      process.stderr.write(`not run here: ${reason}\n`);
      return;
    }
    const p = place();
    makeDatabase(p.source);
    const state = join(p.home, 'state');
    mkdirSync(state);
    const run = await dbbackup(['run', p.source, '--to', p.to, '--state-dir', bindReadOnly(state), '--json']);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'TARGET_UNWRITABLE']);
    expect(listing(p.to)).toBe('');
  });

  test('a source on a full disk is copied, or refused in plain words, and nothing is left beside it', { timeout: 60_000 }, async () => {
    const reason = cannot('root', 'mount');
    if (reason) {
      process.stderr.write(`not run here: ${reason}\n`);
      return;
    }
    const p = place();
    const point = mountTmpfs(2 << 20);
    const source = join(point, 'app.db');
    makeDatabase(source, { bytes: 100_000 });
    const s = statfsSync(point);
    writeFileSync(join(point, 'filler'), Buffer.alloc(s.bavail * s.bsize));
    const run = await dbbackup(['run', source, '--to', p.to, '--json']);
    expect(run.code, run.stderr).not.toBe(70);
    if (run.code === 0) expect(run.json.copy?.status).toBe('good');
    else expect([run.code, run.json.error?.hint ?? ''], run.stderr).toEqual([1, expect.stringMatching(/\S/)]);
    rmSync(join(point, 'filler'));
    const app = await openWriter(source);
    expect((await app.stop()).failed).toBe(0);
    expect(readdirSync(point)).toEqual([basename(source)]);
  });
});
