/** A backup directory that somebody tampered with, and clocks that were set wrong. */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  existsSync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, useDatabase, wrap } from '../support/cli.js';
import { type Place, place } from './bad-input.js';
import { contentOf, examine, mustBeWhole, sha256 } from './proof.js';

// ---------------------------------------------------------------------------------------------- a hostile directory

describe('a backup directory with strange things in it', () => {
  /** Two good copies, and what a hostile hand makes of the older one's manifest. */
  async function copies(): Promise<Place & { old: string; manifest: string; victim: string }> {
    const p = place();
    makeDatabase(p.source);
    for (const offset of ['-3d', '-1d']) {
      const run = await dbbackup(['run', p.source, '--to', p.to], { through: wrap.clock(offset) });
      if (run.code !== 0) throw new Error(run.stderr);
    }
    const old = [...examine(p.to).pairs.keys()].sort()[0] ?? '';
    const victim = join(p.home, 'victim.db');
    writeFileSync(victim, 'precious');
    return { ...p, old, manifest: join(p.to, old.replace(/\.db$/, '.json')), victim };
  }

  const HOSTILE: readonly [what: string, spoil: (manifest: string, p: Place) => void, status: string][] = [
    [
      'a manifest that points out of the directory',
      (manifest) => {
        const m = JSON.parse(readFileSync(manifest, 'utf8')) as Record<string, unknown>;
        writeFileSync(manifest, JSON.stringify({ ...m, file: '../victim.db' }));
      },
      'unverified',
    ],
    [
      'a FIFO in place of a manifest',
      (manifest) => {
        rmSync(manifest);
        execFileSync('mkfifo', [manifest]);
      },
      'unverified',
    ],
    [
      'a manifest of 1 GB',
      (manifest) => {
        const fd = openSync(manifest, 'r+');
        ftruncateSync(fd, 1 << 30);
        closeSync(fd);
      },
      'unverified',
    ],
    [
      'a link in place of a manifest',
      (manifest, p) => {
        const elsewhere = join(p.home, 'elsewhere.json');
        renameSync(manifest, elsewhere);
        symlinkSync(elsewhere, manifest);
      },
      'unverified',
    ],
    ['a manifest of garbage', (manifest) => writeFileSync(manifest, '{"file": '), 'unverified'],
    ['a manifest that is null', (manifest) => writeFileSync(manifest, 'null'), 'unverified'],
    [
      'a manifest of another copy',
      (manifest) => {
        const m = JSON.parse(readFileSync(manifest, 'utf8')) as Record<string, unknown>;
        writeFileSync(manifest, JSON.stringify({ ...m, name: 'other', file: 'other-20200101T000000Z.db' }));
      },
      'unverified',
    ],
    [
      'a directory in place of a manifest',
      (manifest) => {
        rmSync(manifest);
        mkdirSync(manifest);
      },
      'unverified',
    ],
    ['data that is shorter than its manifest says', (manifest) => truncateSync(manifest.replace(/\.json$/, '.db'), 5000), 'bad'],
  ];
  const noClock = cannot('faketime');
  if (noClock) process.stderr.write(`not run here: a hostile manifest: ${noClock}\n`);
  test.skipIf(noClock).each(HOSTILE)('%s: nobody hangs, follows or deletes', { timeout: 60_000 }, async (_, spoil, status) => {
    const p = await copies();
    spoil(p.manifest, p);
    const list = await dbbackup(['list', '--to', p.to, '--json'], { deadlineMs: 10_000 });
    expect([list.code, list.hung, list.durationMs < 3000], list.stderr).toEqual([0, false, true]);
    expect(list.json.copies?.map((c) => c.status)).toEqual(['good', status]);
    expect(list.json.copies?.map((c) => c.file)).toContain(p.old);
    const prune = await dbbackup(['prune', '--to', p.to, '--keep-last', '1', '--json'], { deadlineMs: 10_000 });
    expect([prune.code, prune.json.pruned], prune.stderr).toEqual([0, []]);
    const run = await dbbackup(['run', p.source, '--to', p.to, '--keep-last', '1', '--json'], { deadlineMs: 20_000 });
    expect([run.code, run.hung], run.stderr).toEqual([0, false]);
    expect(existsSync(join(p.to, p.old))).toBe(true);
    expect(lstatSync(p.manifest)).toBeTruthy();
    expect(readFileSync(p.victim, 'utf8')).toBe('precious');
  });

  const noMount = cannot('root', 'mount', 'faketime');
  if (noMount) process.stderr.write(`not run here: a copy that cannot be removed: ${noMount}\n`);
  test.skipIf(noMount)('a copy that cannot be removed is named, and is among those that are kept', { timeout: 60_000 }, async () => {
    const p = await copies();
    const file = join(p.to, p.old);
    execFileSync('mount', ['--bind', file, file]);
    try {
      const prune = await dbbackup(['prune', '--to', p.to, '--keep-last', '1', '--json']);
      expect([prune.code, prune.json.error?.code, prune.json.pruned]).toEqual([1, 'IO_ERROR', []]);
      expect(prune.json.error?.message).toMatch(new RegExp(`${p.old}: cannot be removed: `));
      expect(prune.json.kept?.find((k) => k.file === p.old)?.reasons).toEqual([expect.stringContaining('was to be removed')]);
    } finally {
      execFileSync('umount', [file]);
    }
    const again = await dbbackup(['prune', '--to', p.to, '--keep-last', '1', '--json']);
    expect([again.code, again.json.pruned?.map((one) => one.file)]).toEqual([0, [p.old]]);
  });

  test('a -wal planted beside a copy is never read, and the copy stays what it was', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    const run = await dbbackup(['run', p.source, '--to', p.to, '--json']);
    const file = join(p.to, run.json.copy?.file ?? '');
    const before = await dbbackup(['list', '--to', p.to, '--json']);
    // A WAL that really would be replayed: made by a writer on a copy of the very same bytes, which is then killed.
    const double = join(p.home, 'double.db');
    copyFileSync(file, double);
    const writer = await useDatabase(double, ['PRAGMA journal_mode = wal', 'PRAGMA wal_autocheckpoint = 0', 'DELETE FROM invoice', 'DELETE FROM setting']);
    await writer.crash();
    copyFileSync(`${double}-wal`, `${file}-wal`);
    const sum = sha256(file);
    const after = await dbbackup(['list', '--to', p.to, '--json']);
    expect(after.json.copies).toEqual(before.json.copies);
    const status = await dbbackup(['status', '--name', 'app', '--to', p.to, '--json']);
    expect([status.code, status.json.healthy]).toEqual([0, true]);
    const next = await dbbackup(['run', p.source, '--to', p.to, '--json']);
    expect(next.code, next.stderr).toBe(0);
    expect(sha256(file)).toBe(sum);
    expect(contentOf(file)).toBe(contentOf(p.source));
  });

  test('files of other names are left alone', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    const foreign = [
      'app.db',
      'app-20261121.db',
      'app-20261341T031700Z.db',
      'notes.txt',
      'app-20200101T000000Z.db.bak',
      'app-20200101T000000Z.sql',
      'xapp-20200101T000000Z.db',
    ];
    for (const name of foreign) writeFileSync(join(p.to, name), 'mine');
    const old = new Date('2020-01-01T00:00:00Z');
    for (const name of foreign) utimesSync(join(p.to, name), old, old);
    const run = await dbbackup(['run', p.source, '--to', p.to, '--keep-last', '1', '--json']);
    expect(run.code, run.stderr).toBe(0);
    for (const name of foreign) expect(readFileSync(join(p.to, name), 'utf8')).toBe('mine');
  });
});

// ------------------------------------------------------------------------------------------------------------- clock

describe('a clock that was set wrong', () => {
  const needsClock = cannot('faketime');
  if (needsClock) process.stderr.write(`not run here: a clock that was set wrong: ${needsClock}\n`);

  test.skipIf(needsClock)('set back: a copy from the future is neither newest nor fresh, pruning waits, and all say CLOCK', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    const future = await dbbackup(['run', p.source, '--to', p.to, '--json'], { through: wrap.clock('+2d') });
    expect(future.code, future.stderr).toBe(0);
    const alone = await dbbackup(['status', '--name', 'app', '--to', p.to, '--json']);
    expect([alone.code, alone.json.newestGood], alone.stdout).toEqual([1, null]);
    expect(alone.json.problems?.map((x) => x.code)).toContain('CLOCK');

    for (let i = 0; i < 3; i++) {
      const run = await dbbackup(['run', p.source, '--to', p.to, '--keep-last', '1', '--json']);
      expect([run.code, run.json.pruned], run.stderr).toEqual([0, []]);
      expect(run.json.warnings?.map((w) => w.code)).toContain('CLOCK');
    }
    expect(mustBeWhole(p.to, 'after the runs').pairs.size).toBe(4);
    const prune = await dbbackup(['prune', '--name', 'app', '--to', p.to, '--keep-last', '1', '--json']);
    expect(prune.json.pruned).toEqual([]);
    expect(prune.json.warnings?.map((w) => w.code)).toContain('CLOCK');
    const status = await dbbackup(['status', '--name', 'app', '--to', p.to, '--json']);
    expect(status.json.newestGood?.file).not.toBe(future.json.copy?.file);
    expect(status.json.problems?.map((x) => x.code)).toContain('CLOCK');
  });

  test.skipIf(needsClock)('half an hour ahead is no problem', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    expect((await dbbackup(['run', p.source, '--to', p.to], { through: wrap.clock('+30m') })).code).toBe(0);
    const run = await dbbackup(['run', p.source, '--to', p.to, '--keep-last', '1', '--json']);
    expect(run.code, run.stderr).toBe(0);
    expect(run.json.warnings?.map((w) => w.code)).not.toContain('CLOCK');
    // The copy just made is dated before the other one: exit 0 promises all the same that it is there.
    expect([...mustBeWhole(p.to, 'after the runs').pairs.keys()]).toContain(run.json.copy?.file);
  });

  test.skipIf(needsClock)('ten years ahead: the run is good, and nothing but what the policy says is pruned', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    for (const offset of ['-2d', '-1d', '+3650d']) {
      const run = await dbbackup(['run', p.source, '--to', p.to, '--json'], { through: wrap.clock(offset) });
      expect([run.code, run.json.pruned], run.stderr).toEqual([0, []]);
    }
    expect(mustBeWhole(p.to, 'after the runs').pairs.size).toBe(3);
  });
});
