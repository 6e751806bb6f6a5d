import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, fstatSync, mkdirSync, openSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  cannot,
  damage,
  dbbackup,
  holdExclusively,
  makeDatabase,
  type Running,
  signalTo,
  start,
  tempDirectory,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { testScenario } from './in-vitest.js';
import { descendants, listing, mustBeWhole, processesAt, tempEntries } from './proof.js';
import { signals } from './signals.js';

testScenario(signals);

/** The words of a process, with a NUL behind each; nothing when it is gone. */
function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
}

interface Place {
  readonly home: string;
  readonly source: string;
  readonly to: string;
  readonly run: (...more: string[]) => string[];
}

function place(bytes?: number): Place {
  const home = tempDirectory('lock');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'delete', ...(bytes === undefined ? {} : { bytes }) });
  return { home, source, to, run: (...more) => ['run', source, '--to', to, '--json', ...more] };
}

/** A run is under way, and holds the lock, as soon as the history shows it. */
async function underWay(to: string, running: Running): Promise<void> {
  await until('the run to be under way', async () => {
    if (!running.isRunning()) throw new Error(`it ended: ${(await running.result).stdout}`);
    const history = await dbbackup(['history', '--to', to, '--json']);
    return history.json.runs?.[0]?.status === 'running';
  });
}

/** A run that holds the lock until it is let go, however long that takes: its `before` waits for somebody to open a pipe. */
async function heldRun({ home, to, run }: Place): Promise<{ running: Running; letGo: () => void }> {
  const pipe = join(home, 'pipe');
  spawnSync('mkfifo', [pipe]);
  const running = start(run(), { env: { DBBACKUP_BEFORE: `cat ${pipe}` } });
  await underWay(to, running);
  return { running, letGo: () => writeFileSync(pipe, '') };
}

async function endsAtOnce(running: Running, pid: number, signal: NodeJS.Signals, code: number): Promise<void> {
  const began = performance.now();
  expect(signalTo(pid, signal)).toBe(true);
  const result = await running.result;
  expect(performance.now() - began).toBeLessThan(2000);
  expect([result.code, result.json.error?.code, result.json.status, result.json.copy]).toEqual([code, 'INTERRUPTED', 'interrupted', null]);
}

describe('the lock of a name', () => {
  test('a second run of the same name ends with 75 at once, leaves no message, and another name is not held up', { timeout: 60_000 }, async () => {
    const there = place();
    const { home, to, run } = there;
    const { running: first, letGo } = await heldRun(there);

    const second = await dbbackup(run());
    expect([second.code, second.json.error?.code, second.json.status]).toEqual([75, 'LOCKED', 'failed']);
    expect(second.json.error?.hint).toMatch(/lock-wait/);
    expect(second.stderr).toMatch(/LOCKED/);

    const prune = await dbbackup(['prune', '--name', 'app', '--to', to, '--json']);
    expect([prune.code, prune.json.error?.code]).toEqual([75, 'LOCKED']);
    const dry = await dbbackup(run('--dry-run'));
    expect([dry.code, dry.json.dryRun]).toEqual([0, true]);
    for (const reader of [['list'], ['status', '--name', 'app'], ['history']]) {
      const seen = await dbbackup([...reader, '--to', to, '--json']);
      expect(seen.code, `${reader[0]}: ${seen.stderr}`).toBe(reader[0] === 'status' ? 1 : 0);
    }

    const other = join(home, 'other.db');
    makeDatabase(other);
    const third = await dbbackup(['run', other, '--to', to, '--json']);
    expect([third.code, third.json.name]).toEqual([0, 'other']);
    expect(first.isRunning()).toBe(true);

    letGo();
    const done = await first.result;
    expect([done.code, done.json.status]).toEqual([0, 'ok']);
    mustBeWhole(to, 'at the end');
  });

  test('--lock-wait waits for the other run and then does its own', { timeout: 60_000 }, async () => {
    const there = place();
    const { to, run } = there;
    const { running: first, letGo } = await heldRun(there);
    const second = start(run('--lock-wait', '30s'));
    const third = await dbbackup(run('--lock-wait', '300ms'));
    expect([third.code, third.json.error?.code]).toEqual([75, 'LOCKED']);
    expect(third.durationMs).toBeGreaterThan(300);
    expect(second.isRunning()).toBe(true);
    letGo();
    const [a, b] = await Promise.all([first.result, second.result]);
    expect([a.code, b.code]).toEqual([0, 0]);
    expect(mustBeWhole(to, 'at the end').pairs.size).toBe(2);
  });

  test.each(['verify', 'restore'])(
    'a bad copy that %s found is told, also where a signal ends the wait for the lock that marking it takes',
    { timeout: 60_000 },
    async (command) => {
      const { home, to, run } = place();
      const { file = '' } = (await dbbackup(run())).json.copy ?? {};
      damage(join(to, file), 5000, Buffer.from('not what was there'));
      const lock = await useDatabase(join(to, '.dbbackup/app.lock.db'), ['BEGIN IMMEDIATE']);
      const traces = join(home, 'trace');
      mkdirSync(traces);
      const words = command === 'verify' ? [] : ['-o', join(home, 'restored.db')];
      const waiting = start([command, '--to', to, '--json', ...words], { through: wrap.trace(join(traces, 'log'), 'openat') });
      await until('it to try the lock', () => readdirSync(traces).some((n) => readFileSync(join(traces, n), 'utf8').includes('app.lock.db')));
      expect(signalTo(descendants(waiting.pid)[0] ?? 0, 'SIGTERM')).toBe(true);
      const ended = await waiting.result;
      await lock.stop();
      const said = `${ended.stdout} ${ended.stderr}`;
      expect([ended.code, ended.json.error?.code], said).toEqual([1, 'COPY_BAD']);
      expect(ended.json.warnings?.map(({ code }) => code)).toEqual(['INTERRUPTED']);
      expect(existsSync(join(home, 'restored.db'))).toBe(false);
    },
  );

  test.each([
    ['SIGTERM', 143],
    ['SIGINT', 130],
    ['SIGHUP', 129],
  ] as const)('%s while waiting for the lock or for the source ends the run with %i within 2 s', { timeout: 60_000 }, async (signal, code) => {
    const { home, source, to, run } = place();
    const holder = await holdExclusively(source);
    const atSource = start(run());
    await underWay(to, atSource);
    await endsAtOnce(atSource, atSource.pid, signal, code);
    await holder.stop();

    const lock = await useDatabase(join(to, '.dbbackup/app.lock.db'), ['BEGIN IMMEDIATE']);
    // It has nothing to show while it waits: strace shows that it tries the lock.
    const traces = join(home, 'trace');
    mkdirSync(traces);
    const atLock = start(run('--lock-wait', '1m'), { through: wrap.trace(join(traces, 'log'), 'openat') });
    await until('the run to try the lock', () => readdirSync(traces).some((n) => readFileSync(join(traces, n), 'utf8').includes('app.lock.db')));
    await endsAtOnce(atLock, descendants(atLock.pid)[0] ?? 0, signal, code);
    await lock.stop();

    expect(processesAt(home)).toEqual([]);
    mustBeWhole(to, 'after the signals');
    expect(listing(to)).toBe('');
    const next = await dbbackup(run());
    expect(next.code).toBe(0);
  });
});

describe('a slow disk', () => {
  // The kernel does not let go of who waits for a disk, not even for SIGKILL.
  test.each([
    ['run', 130],
    ['restore', 130],
  ] as const)('that is still at work on the file does not keep a %s from ending within 2 s', { timeout: 60_000 }, async (command, code) => {
    const { home, source, to } = place(3_000_000);
    expect((await dbbackup(['run', source, '--to', to])).code).toBe(0);
    const before = listing(to);
    const out = join(home, 'out.db');
    const words = command === 'run' ? ['run', source, '--to', to, '--json'] : ['restore', '-o', out, '--to', to, '--json'];
    const slow = start(words, { through: wrap.slow('fsync', 3_500_000, 1) });
    const atWork = (): boolean => descendants(slow.pid).some((pid) => commandOf(pid).endsWith('sync\0/proc/self/fd/3\0'));
    await until('the file to be synced', atWork, 30_000);
    const [ours = 0] = descendants(slow.pid);
    expect(signalTo(ours, 'SIGINT')).toBe(true);
    // strace itself waits for what it has delayed.
    await until('the end', () => commandOf(ours) === '', 2000);
    const { json, ...result } = await slow.result;
    expect([result.code, json.error?.code, json.status, json.copy]).toEqual([code, 'INTERRUPTED', 'interrupted', null]);
    expect(processesAt(home)).toEqual([]);
    expect(listing(to)).toBe(before);
    expect(mustBeWhole(to, 'after the signal').pairs.size).toBe(1);
    expect(readdirSync(home).sort()).toEqual(['app.db', 'backups']);
  });
});

describe('the time limit', () => {
  test('ends a run that waits for its source: 1 TIMEOUT, recorded, nothing left', { timeout: 60_000 }, async () => {
    const { source, to, run } = place();
    const holder = await holdExclusively(source);
    const result = await dbbackup(run('--timeout', '1s'));
    await holder.stop();
    expect([result.code, result.json.error?.code, result.json.status]).toEqual([1, 'TIMEOUT', 'failed']);
    expect(result.stderr).toMatch(/TIMEOUT/);
    expect(result.durationMs).toBeGreaterThan(1000);
    expect(result.durationMs).toBeLessThan(3000);
    mustBeWhole(to, 'after the time limit');
    expect(listing(to)).toBe('');
    const history = await dbbackup(['history', '--to', to, '--json']);
    expect(history.json.runs?.map((r) => [r.status, r.error?.code])).toEqual([['failed', 'TIMEOUT']]);
  });

  test('covers the wait for the lock', { timeout: 60_000 }, async () => {
    const there = place();
    const { to, run } = there;
    const { running: first, letGo } = await heldRun(there);
    const second = await dbbackup(run('--lock-wait', '1m', '--timeout', '500ms'));
    expect([second.code, second.json.error?.code]).toEqual([1, 'TIMEOUT']);
    letGo();
    expect((await first.result).code).toBe(0);
    expect(existsSync(join(to, '.dbbackup/tmp')) && mustBeWhole(to, 'at the end').pairs.size).toBe(1);
  });
});

describe('a bug of ours in the middle of a run', () => {
  test('is told, recorded and queued as any other end; the work is cleared away', { timeout: 60_000 }, async () => {
    const { home, source, to, run } = place();
    const bug = join(home, 'bug.cjs');
    writeFileSync(bug, "process.on('SIGUSR2', () => { throw new Error('nobody has thought of this'); });");
    const holder = await holdExclusively(source);
    const env = { NODE_OPTIONS: `--require=${bug}`, DBBACKUP_MAIL_TO: 'ops@example.org', DBBACKUP_SMTP_URL: 'smtp://127.0.0.1:9' };
    const running = start(run(), { env });
    await underWay(to, running);
    expect(signalTo(running.pid, 'SIGUSR2')).toBe(true);
    const result = await running.result;
    await holder.stop();
    expect([result.code, result.json.error?.code, result.json.status]).toEqual([70, 'INTERNAL', 'failed']);
    expect(result.stderr).toContain('nobody has thought of this');
    const history = await dbbackup(['history', '--to', to, '--json']);
    expect(history.json.runs?.map((r) => [r.status, r.exitCode, r.error?.code])).toEqual([['failed', 70, 'INTERNAL']]);
    expect(readdirSync(join(to, '.dbbackup/outbox'))).toHaveLength(1);
    expect([readdirSync(join(to, '.dbbackup/tmp')), processesAt(home)]).toEqual([[], []]);
  });
});

const noStrace = cannot('strace');
if (noStrace) process.stderr.write(`not run here: a run that gives its space back: ${noStrace}\n`);

/** What has to be written down now would otherwise wait for gigabytes that nobody needs any more; and their space would stay taken. */
test.skipIf(noStrace)('a run that is ended gives its space back, also where somebody else has its files open', { timeout: 60_000 }, async () => {
  const p = place(3_000_000);
  // Some 750 pages, 5 ms each.
  const running = start(p.run(), { through: wrap.slow('pwrite64', 5000) });
  const path = (): string => join(p.to, '.dbbackup/tmp', tempEntries(p.to).find((file) => file.endsWith('data.db')) ?? 'none');
  await until('the snapshot to grow', () => existsSync(path()) && statSync(path()).size > 0);
  const fd = openSync(path(), 'r');
  try {
    signalTo(descendants(running.pid)[0] ?? 0, 'SIGTERM');
    const ended = await running.result;
    expect([ended.code, ended.json.error?.code, tempEntries(p.to)], ended.stderr).toEqual([143, 'INTERRUPTED', []]);
    const { nlink, size } = fstatSync(fd);
    expect({ nlink, size }).toEqual({ nlink: 0, size: 0 });
  } finally {
    closeSync(fd);
  }
});
