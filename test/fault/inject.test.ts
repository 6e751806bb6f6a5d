import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, tempDirectory, wrap } from '../support/cli.js';
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
