import { appendFileSync, copyFileSync, mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cannot, damage, dbbackup, EXECUTABLE, makeDatabase, type Result, tempDirectory, wrap } from '../support/cli.js';
import { standStill } from '../support/standstill.js';
import { testScenario } from './in-vitest.js';
import { inject } from './inject.js';
import { mustBeWhole } from './proof.js';
import { type Call, readTrace } from './trace.js';

testScenario(inject);

const reason = cannot('strace');
if (reason) process.stderr.write(`not run here: a mapping that dies: ${reason}\n`);

/** A read error on a mapped file is a SIGBUS (traps, 39): the second look does not map, and so meets none. */
test.skipIf(reason)('a child that dies of its mapping is no damage: the source is read once more without', async () => {
  const home = tempDirectory('bus');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'delete', bytes: 200_000 });
  const log = join(home, 'trace');
  const through = ['strace', '-ff', '-qq', '-o', log, '-P', source, '-e', 'trace=mmap', '-e', 'inject=mmap:signal=BUS:when=1', '--'];
  const run = await dbbackup(['run', source, '--to', to, '--json'], { through });
  expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
  mustBeWhole(to, 'after the run');
  const traces = readdirSync(home).filter((file) => file.startsWith('trace.'));
  expect(traces.map((file) => readFileSync(join(home, file), 'utf8')).join()).toContain('killed by SIGBUS');
});

/** Neither synced nor withdrawn: what is at a final name must be healed by the next command, and not lie there for ever. */
test.skipIf(reason)('a publication that can neither be finished nor taken back is left to the next command', { timeout: 60_000 }, async () => {
  const home = tempDirectory('withdraw');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'delete', bytes: 200_000 });
  const args = ['run', source, '--to', to, '--json'];
  expect((await dbbackup(args)).code).toBe(0);
  const clean = await dbbackup(args, { through: wrap.trace(join(home, 'clean'), 'link,unlink') });
  expect(clean.code, clean.stderr).toBe(0);
  const calls = readTrace(join(home, 'clean'));
  const given = calls.filter(({ call }) => call === 'link');
  expect(given).toHaveLength(2);
  const before = calls.slice(0, calls.indexOf(given[0] as Call)).filter(({ call, tracee }) => call === 'unlink' && tracee === given[0]?.tracee);
  // The data has its name, the manifest gets none, and the data cannot be removed again.
  const through = wrap.fault(join(home, 'trace'), [
    { calls: 'link', error: 'EIO', when: 2 },
    { calls: 'unlink', error: 'EIO', when: before.length + 1 },
  ]);
  const there = readdirSync(to);
  const run = await dbbackup(args, { through });
  expect([run.code, run.json.copy, run.json.error?.code], run.stderr).toEqual([1, null, 'IO_ERROR']);
  expect(run.json.warnings?.map(({ code }) => code)).toContain('HEAL_FAILED');
  const left = readdirSync(to).filter((file) => !there.includes(file));
  expect(left).toEqual([expect.stringMatching(/\.db$/)]);
  const next = await dbbackup(args);
  expect([next.code, next.json.warnings?.map(({ code }) => code)], next.stderr).toEqual([0, expect.arrayContaining(['HEALED'])]);
  expect([...mustBeWhole(to, 'after the next run').pairs.keys()]).toContain(left[0]);
});

test.skipIf(reason)('verify, too, first heals what a run left that was killed between its two names', { timeout: 60_000 }, async () => {
  const home = tempDirectory('half');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'delete', bytes: 200_000 });
  expect((await dbbackup(['run', source, '--to', to])).code).toBe(0);
  const killed = await dbbackup(['run', source, '--to', to], { through: wrap.fault(join(home, 'trace'), [{ calls: 'link', signal: 'KILL', when: 2 }]) });
  expect(killed.code).toBe(null);
  const verify = await dbbackup(['verify', '--all', '--to', to, '--json']);
  expect([verify.code, verify.json.results?.map((r) => r.status), verify.json.warnings?.map((w) => w.code)], verify.stderr).toEqual([
    0,
    ['good', 'good'],
    ['HEALED'],
  ]);
  expect(mustBeWhole(to, 'after verify').pairs.size).toBe(2);
});

/** Made by a run that was killed at once, or by hand a moment ago: its name may be known to nobody but the memory. */
test.skipIf(reason)('a directory that was there already is on the disk when its first copy is', { timeout: 60_000 }, async () => {
  const home = tempDirectory('way');
  const source = join(home, 'app.db');
  const to = join(home, 'made/by/hand');
  makeDatabase(source, { journal: 'delete', bytes: 200_000 });
  mkdirSync(to, { recursive: true, mode: 0o700 });
  const synced = async (turn: string): Promise<string[]> => {
    const run = await dbbackup(['run', source, '--to', to], { through: wrap.trace(join(home, turn), 'fsync') });
    expect(run.code, run.stderr).toBe(0);
    return readTrace(join(home, turn)).map(({ line }) => /<(.*)>\) *= 0$/.exec(line)?.[1] ?? '');
  };
  expect(await synced('first')).toEqual(expect.arrayContaining([to, join(home, 'made/by'), join(home, 'made'), home]));
  expect(await synced('second')).not.toContain(home);
});

/** Three runs: the last is killed when its manifest is about to get its name, or at the sync that follows. What is killed at a call has not made it. */
async function killedAt(label: string, at: 'link' | 'fsync'): Promise<{ home: string; to: string; args: string[] }> {
  const home = tempDirectory(label);
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'wal', bytes: 200_000 });
  const args = ['run', source, '--to', to, '--json'];
  expect((await dbbackup(args)).code).toBe(0);
  const clean = await dbbackup(args, { through: wrap.trace(join(home, 'clean'), 'link,fsync') });
  expect(clean.code, clean.stderr).toBe(0);
  const calls = readTrace(join(home, 'clean'));
  const named = calls.findIndex(({ call, line }) => call === 'link' && line.includes('.json'));
  const { when } = calls.slice(named).find(({ call, tracee }) => call === at && tracee === calls[named]?.tracee) ?? {};
  if (when === undefined) throw new Error(`no ${at} of a manifest`);
  const killed = await dbbackup(args, { through: wrap.fault(join(home, 'killed'), [{ calls: at, signal: 'KILL', when }]) });
  expect(killed.code).toBe(null);
  return { home, to, args };
}

const jsonIn = (directory: string): string[] => (readdirSync(directory, { recursive: true }) as string[]).filter((file) => file.endsWith('.json'));

/** Both names are there, and perhaps in memory only: who takes that for done and goes on would lose the copy with the power. */
test.skipIf(reason)('a copy of a run that was killed after its last link is on the disk before the next one goes on', { timeout: 60_000 }, async () => {
  const { home, to, args } = await killedAt('synced', 'fsync');
  expect(readdirSync(to).filter((file) => file.endsWith('.json'))).toHaveLength(3);
  const next = await dbbackup(args, { through: wrap.trace(join(home, 'next'), 'fsync,link,rmdir') });
  expect([next.code, next.json.warnings], next.stderr).toEqual([0, []]);
  const calls = readTrace(join(home, 'next'));
  const cleared = calls.findIndex(({ call }) => call === 'rmdir');
  const before = calls.slice(0, cleared).filter(({ tracee }) => tracee === calls[cleared]?.tracee);
  expect(before.map(({ line }) => line)).toContainEqual(expect.stringMatching(new RegExp(`<${to}>\\) *= 0$`)));
  expect(mustBeWhole(to, 'after the next run').pairs.size).toBe(4);
});

/** What it says is not known just now: who took it for nothing would leave its data without a manifest for ever. */
test.skipIf(reason)('a staged manifest that cannot be read is kept for a better day', { timeout: 60_000 }, async () => {
  const { home, to, args } = await killedAt('unread', 'link');
  const staged = jsonIn(join(to, '.dbbackup/tmp'));
  expect(staged).toHaveLength(1);
  const path = join(to, '.dbbackup/tmp', staged[0] ?? '');
  const through = ['strace', '-f', '-qq', '-o', join(home, 'unread'), '-P', path, '-e', 'trace=read,pread64', '-e', 'inject=read,pread64:error=EIO', '--'];
  const run = await dbbackup(args, { through });
  expect([run.code, run.json.warnings?.map(({ code }) => code)], run.stderr).toEqual([0, ['HEAL_FAILED']]);
  expect(readFileSync(join(home, 'unread'), 'utf8')).toContain('INJECTED');
  const next = await dbbackup(args);
  expect([next.code, next.json.warnings?.map(({ code }) => code)], next.stderr).toEqual([0, ['HEALED']]);
  expect(mustBeWhole(to, 'after the next run').pairs.size).toBe(5);
});

/** Between its last link and its last look a run stands still: whatever stands under the name then is what everybody will take for the copy. */
test.skipIf(reason).each([
  ['another file of its size', (path: string, other: string) => renameSync(other, path)],
  ['the same file, but longer', (path: string) => appendFileSync(path, 'more')],
])('what has the name of the copy is not what was verified: %s; there is no copy then', { timeout: 60_000 }, async (_, disturb) => {
  const home = tempDirectory('exchanged');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'delete', bytes: 200_000 });
  const args = ['run', source, '--to', to, '--json'];
  expect((await dbbackup(args)).code).toBe(0);
  const before = readdirSync(to);
  const run = await standStill([EXECUTABLE, ...args], { call: 'link', when: 2 });
  const [data = '', ...others] = readdirSync(to).filter((file) => file.endsWith('.db') && !before.includes(file));
  expect([data === '', others]).toEqual([false, []]);
  const other = join(home, 'other.db');
  copyFileSync(join(to, data), other);
  damage(other, 5000, Buffer.from([1, 2, 3]));
  disturb(join(to, data), other);
  const ended = await run.goOn();
  expect([ended.code, ended.json.copy, ended.json.error?.code], ended.stderr).toEqual([1, null, 'IO_ERROR']);
  expect(readdirSync(to)).toEqual(before);
  mustBeWhole(to, 'after the run');
});

test.skipIf(reason)('a directory that its file system cannot sync is a remark; one that could not be synced is a failure', { timeout: 60_000 }, async () => {
  const home = tempDirectory('unsynced');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'wal', bytes: 200_000 });
  const args = ['run', source, '--to', to, '--json'];
  expect((await dbbackup(args)).code).toBe(0);
  const run = (error: string): Promise<Result> =>
    dbbackup(args, { through: ['strace', '-f', '-qq', '-o', '/dev/null', '-P', to, '-e', 'trace=fsync', '-e', `inject=fsync:error=${error}`, '--'] });
  for (const error of ['EINVAL', 'EOPNOTSUPP', 'ENOSYS']) {
    const { code, json, stderr } = await run(error);
    const remark = {
      code: 'SYNC_UNSUPPORTED',
      severity: 'warning',
      message: expect.stringContaining(`syncing the directory ${to} is not supported`) as string,
    };
    expect([code, json.status, json.copy?.status, json.warnings], stderr).toEqual([0, 'ok', 'good', [remark]]);
  }
  const found = mustBeWhole(to, 'after the runs').pairs;
  expect(found.size).toBe(4);
  const failed = await run('EIO');
  expect([failed.code, failed.json.copy, failed.json.error?.code], failed.stderr).toEqual([1, null, 'IO_ERROR']);
  expect(mustBeWhole(to, 'after the failure').pairs).toEqual(found);
});
