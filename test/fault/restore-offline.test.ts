/**
 * A restore that has to exchange the files of a database, and is disturbed while it does: the old database with all that lies beside it is
 * where it was, whatever comes in between, and who was told so can rely on it.
 */
import { lstatSync, readdirSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type Copied, type Scene, sceneWithCopy } from '../e2e/scene.js';
import {
  cannot,
  dbbackup,
  directoryOf,
  EXECUTABLE,
  executableFor,
  giveDatabase,
  leaveSidecars,
  makeDatabase,
  openTempDirectory,
  query,
  type Result,
  readJson,
  tempDirectory,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { differences } from '../support/rows.js';
import { type StandingStill, standStill } from '../support/standstill.js';
import { mustBeWhole, sha256 } from './proof.js';
import { readTrace } from './trace.js';

const noStrace = cannot('strace');
if (noStrace) process.stderr.write(`not run here: a restore that is disturbed while it exchanges files: ${noStrace}\n`);

/** The application's user, where another one is at work. */
const APP = 4001;

/** A copy, and in the place of its database one that is cut short, with the -wal and -shm of an application that was killed. */
async function damagedWithWal(): Promise<Copied> {
  const copied = await sceneWithCopy({ journal: 'wal', bytes: 100_000 });
  await leaveSidecars(copied.s.source);
  truncateSync(copied.s.source, 5000);
  return copied;
}

/** A copy, and in the place of its database a whole one of another page size, which nobody has open. */
async function ofAnotherPageSize(): Promise<Copied> {
  const copied = await sceneWithCopy({ journal: 'wal', bytes: 100_000 });
  rmSync(copied.s.source);
  makeDatabase(copied.s.source, { journal: 'delete', pageSize: 512 });
  return copied;
}

/** Every file beside the database, itself included: which file, how many names it has, and what is in it, but for the -shm, which is an index. */
const beside = (s: Scene): string[] =>
  readdirSync(dirname(s.source)).map((name) => {
    const path = join(dirname(s.source), name);
    const { ino, nlink, mode, uid } = lstatSync(path);
    return [name, ino, nlink, mode, uid, name.endsWith('-shm') || lstatSync(path).isDirectory() ? '' : sha256(path)].join(' ');
  });

const WORDS = (s: Scene): string[] => ['restore', '--into', s.source, '--yes', '--to', s.to, '--json'];

/**
 * The same restore twice: once to its end, to see which of its renames is the one that gives the new file its name; then, on the same files
 * again, with EIO in that one, or from that one on.
 */
async function disturbed(from: 'once' | 'from then on'): Promise<{ s: Scene; before: string[]; failed: Result; file: string }> {
  const log = join(tempDirectory('trace'), 'log');
  const clean = await dbbackup(WORDS((await damagedWithWal()).s), { through: wrap.trace(log, 'rename') });
  expect(clean.code, clean.stderr).toBe(0);
  const { s, file } = await damagedWithWal();
  const before = beside(s);
  const { when } = readTrace(log).find(({ line }) => line.includes(`, "${s.source}")`)) ?? {};
  if (when === undefined) throw new Error('no rename to the database');
  const at = `${when}${from === 'once' ? '' : '+'}`;
  const through = ['strace', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=rename', '-e', `inject=rename:error=EIO:when=${at}`, '--'];
  return { s, file, before, failed: await dbbackup(WORDS(s), { through }) };
}

const setAside = (s: Scene): string => {
  const [name = '', ...others] = readdirSync(join(s.state, 'aside'));
  expect(others).toEqual([]);
  return join(s.state, 'aside', name);
};

/** As it is on record, and so as the next one who looks is told. */
const onRecord = async (s: Scene): Promise<unknown[]> => {
  const [last] = (await s.ask('history', ['--json'])).json.runs ?? [];
  return [last?.command, last?.status, last?.exitCode, last?.error?.code];
};

describe.skipIf(noStrace)('an exchange of files that fails midway', () => {
  test('is taken back: the old database is where it was, with its -wal and -shm', async () => {
    // The -wal and the -shm have left, and the new file cannot take the name.
    const { s, file, before, failed } = await disturbed('once');
    expect([failed.code, failed.json.error?.code, failed.json.restored?.setAside], failed.stderr).toEqual([1, 'RESTORE_FAILED', []]);
    expect(failed.json.error?.hint).toContain('the database is as it was');
    expect(beside(s)).toEqual(before);
    // Nothing of it has stayed where it was set aside but the note, which says so.
    expect([readdirSync(setAside(s)), readJson(join(setAside(s), 'restore.json'))]).toEqual([['restore.json'], expect.objectContaining({ state: 'undone' })]);
    expect(await onRecord(s)).toEqual(['restore', 'failed', 1, 'RESTORE_FAILED']);
    // And there is nothing to be put right by the next one.
    const again = await dbbackup(WORDS(s));
    expect([again.code, again.stderr.includes('HEAL'), differences(join(s.to, file), s.source)], again.stderr).toEqual([0, false, []]);
  });

  test('and cannot be taken back either: a person is called, and the next command puts it right', async () => {
    const { s, before, failed } = await disturbed('from then on');
    expect([failed.code, failed.json.error?.code], failed.stderr).toEqual([4, 'ROLLBACK_FAILED']);
    // The -wal is nowhere but there: whoever opens the database now would miss what it holds.
    expect(beside(s)).not.toEqual(before);
    expect(failed.json.error?.message + (failed.json.error?.hint ?? '')).toContain(setAside(s));
    expect(readdirSync(setAside(s))).toContain(`${basename(s.source)}-wal`);
    expect(await onRecord(s)).toEqual(['restore', 'failed', 4, 'ROLLBACK_FAILED']);
    const next = await s.ask('prune', ['--json']);
    expect([next.code, next.json.warnings?.filter(({ code }) => code === 'HEALED').length], next.stderr).toEqual([0, 1]);
    expect([beside(s), readdirSync(setAside(s))]).toEqual([before, ['restore.json']]);
  });
});

describe.skipIf(noStrace)('between its last look and the exchange', () => {
  /** The old database has got its second name, and nothing else has been done to it. */
  const atTheLastMoment = (s: Scene): Promise<StandingStill> => standStill([EXECUTABLE, ...WORDS(s)], { call: 'link', path: s.source });

  test('somebody opens the database: he is named, and keeps the file that he has open', async () => {
    const { s } = await ofAnotherPageSize();
    const before = beside(s);
    const restore = await atTheLastMoment(s);
    const app = await useDatabase(s.source, ['SELECT count(*) FROM customer'], { loop: "INSERT INTO beat (at) VALUES ('x')", beatMs: 5 });
    const refused = await restore.goOn();
    expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([1, 'IN_USE']);
    expect(refused.json.error?.message).toContain(String(app.pid));
    const { done, failed } = await app.stop();
    expect([done > 0, failed, query(s.source, 'SELECT count(*) FROM beat')]).toEqual([true, 0, done]);
    const inodes = (lines: readonly string[]): unknown[] => lines.map((line) => line.split(' ').slice(0, 3));
    expect([inodes(beside(s)), readdirSync(setAside(s))]).toEqual([inodes(before), ['restore.json']]);
  });

  test('somebody exchanges the proven file: what was not proven does not become the database', async () => {
    const { s } = await ofAnotherPageSize();
    const before = beside(s);
    const restore = await atTheLastMoment(s);
    const [staging = ''] = readdirSync(dirname(s.source)).filter((name) => name.startsWith('.dbbackup-'));
    const other = join(tempDirectory('other'), 'other.db');
    writeFileSync(other, 'not proven');
    renameSync(other, join(dirname(s.source), staging, 'restore.db'));
    const refused = await restore.goOn();
    expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([1, 'RESTORE_FAILED']);
    expect(refused.json.error?.message).toContain('the proven file was exchanged');
    expect([beside(s), readdirSync(setAside(s))]).toEqual([before, ['restore.json']]);
    mustBeWhole(s.to, 'after the restore');
  });
});

const noMount = cannot('root', 'setpriv', 'mount');
if (noMount) process.stderr.write(`not run here: somebody who cannot be seen: ${noMount}\n`);

/** Of processes of other users /proc may show nothing, and then the list of those that have the database open is empty. */
test.skipIf(noMount)('somebody who cannot be seen is in the middle of something: SQLite says so, and nothing is replaced', async () => {
  const home = openTempDirectory('unseen');
  const data = directoryOf(join(home, 'data'), APP);
  const to = directoryOf(join(home, 'backups'), APP, APP, 0o700);
  const source = join(data, 'app.db');
  const options = { through: wrap.unseeing(APP), executable: executableFor(APP) };
  makeDatabase(source, { journal: 'delete' });
  giveDatabase(source, APP);
  expect((await dbbackup(['run', source, '--to', to], options)).code).toBe(0);
  rmSync(source);
  makeDatabase(source, { journal: 'delete', pageSize: 512 });
  giveDatabase(source, APP);
  const before = [lstatSync(source).ino, sha256(source)];
  const app = await useDatabase(source, ['BEGIN', 'SELECT count(*) FROM customer']);
  const words = ['restore', '--into', source, '--yes', '--to', to, '--json'];
  const refused = await dbbackup(words, options);
  expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([1, 'IN_USE']);
  expect(refused.json.error?.message).toContain('a process that cannot be seen from here');
  expect([readdirSync(data), lstatSync(source).ino, sha256(source)]).toEqual([['app.db'], ...before]);
  await app.stop();
  expect((await dbbackup(words, options)).code).toBe(0);
});
