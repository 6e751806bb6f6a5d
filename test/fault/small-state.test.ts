/**
 * A state directory on a file system of its own, which is smaller than the database: what cannot be set aside there is refused before
 * anything is done, and what comes up later costs nobody his database.
 */
import { appendFileSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync, statfsSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type Scene, scene, sceneWithCopy } from '../e2e/scene.js';
import { cannot, dbbackup, EXECUTABLE, leaveSidecars, makeDatabase, query, type Result, readJson } from '../support/cli.js';
import { type StandingStill, standStill } from '../support/standstill.js';
import { mountTmpfs } from './mounts.js';
import { sha256 } from './proof.js';

const noMount = cannot('root', 'mount');
const noStrace = cannot('root', 'mount', 'strace');
if (noStrace) process.stderr.write(`not run here: state on a small disk: ${noStrace}\n`);

const MB = 1_000_000;

/** A state directory on a disk of this size. */
function stateOf(bytes: number): string {
  const state = join(mountTmpfs(bytes), 'state');
  mkdirSync(state, { mode: 0o700 });
  return state;
}

/** Takes all that is free; undone by removing that file. */
function fillUp(state: string): string {
  const path = join(dirname(state), 'filler');
  const { bavail, bsize } = statfsSync(state);
  writeFileSync(path, Buffer.alloc(bavail * bsize, 1));
  return path;
}

/** Every file beside the database, itself included, but for the -shm, which is an index: how many names it has, and what is in it. */
const beside = (source: string): string[] =>
  readdirSync(dirname(source))
    .filter((name) => !name.endsWith('-shm'))
    .map((name) => {
      const path = join(dirname(source), name);
      const { nlink, mode, size } = lstatSync(path);
      return [name, nlink, mode, size, lstatSync(path).isDirectory() ? '' : sha256(path)].join(' ');
    });

const asides = (state: string): string[] =>
  existsSync(join(state, 'aside'))
    ? readdirSync(join(state, 'aside'), { recursive: true })
        .map(String)
        .map((name) => basename(name))
        .sort()
    : [];
const noteIn = (state: string): unknown => {
  const [directory = ''] = readdirSync(join(state, 'aside'));
  return readJson(join(state, 'aside', directory, 'restore.json'));
};

const DAMAGE = (source: string): string => `dd if=/dev/zero of=${source} bs=4096 count=3 conv=notrunc 2>/dev/null`;

describe.skipIf(noMount)('a guarded command', () => {
  const guard = (s: Scene, state: string, script: string, ...more: string[]): Promise<Result> =>
    s.ask('guard', ['--database', s.source, '--state-dir', state, '--json', ...more, '--', 'sh', '-c', script]);

  test('is not run where what it may leave could not be set aside, which a dry run foresees', async () => {
    const s = scene({ journal: 'delete', bytes: 8 * MB });
    const state = stateOf(3 * MB);
    const before = beside(s.source);
    const script = `touch ${s.home}/ran; ${DAMAGE(s.source)}`;
    const [dry, run] = [await guard(s, state, script, '--dry-run'), await guard(s, state, script)];
    for (const refused of [dry, run]) {
      expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([1, 'NO_SPACE']);
      expect(refused.json.error?.message).toContain(state);
    }
    expect([existsSync(join(s.home, 'ran')), beside(s.source), asides(state)]).toEqual([false, before, []]);
  });

  test('that makes more of it than can be set aside is rolled back, and what it left is kept beside the database', async () => {
    const s = scene({ journal: 'delete', bytes: MB });
    const state = stateOf(4 * MB);
    const before = query(s.source, 'SELECT count(*), sum(cents) FROM invoice');
    const { mode, uid } = lstatSync(s.source);
    const grow = `sqlite3 ${s.source} 'CREATE TABLE big AS SELECT randomblob(8000000)'`;
    const run = await guard(s, state, `${grow}; ${DAMAGE(s.source)}; sha256sum < ${s.source} > ${s.home}/sum`);
    expect([run.code, run.json.status], run.stderr).toEqual([1, 'rolled_back']);
    expect(query(s.source, 'SELECT count(*), sum(cents) FROM invoice')).toEqual(before);
    const { setAside } = run.json;
    if (!setAside) throw new Error('nothing was set aside');
    expect(readdirSync(dirname(s.source)).sort()).toEqual(['app.db', basename(setAside)]);
    expect(readFileSync(join(s.home, 'sum'), 'utf8')).toContain(sha256(setAside));
    expect(run.json.warnings?.filter(({ message }) => message.includes(setAside)).map(({ code, severity }) => [code, severity])).toEqual([
      ['NO_SPACE', 'critical'],
    ]);
    expect([lstatSync(s.source).mode, lstatSync(s.source).uid, lstatSync(s.source).nlink, lstatSync(setAside).nlink]).toEqual([mode, uid, 1, 1]);
    const next = await s.run(['--state-dir', state, '--json']);
    expect([next.code, next.stderr.includes('HEAL')], next.stderr).toEqual([0, false]);
  });

  test('that fills the disk of the state to its last byte, too', async () => {
    const s = scene({ journal: 'delete', bytes: MB });
    const state = stateOf(4 * MB);
    const before = query(s.source, 'SELECT count(*), sum(cents) FROM invoice');
    const run = await guard(s, state, `${DAMAGE(s.source)}; cat /dev/zero > ${dirname(state)}/filler`);
    expect([run.code, run.json.status], run.stderr).toEqual([1, 'rolled_back']);
    expect(query(s.source, 'SELECT count(*), sum(cents) FROM invoice')).toEqual(before);
    expect(readdirSync(dirname(s.source)).sort()).toEqual(['app.db', basename(run.json.setAside ?? '')]);
    rmSync(join(dirname(state), 'filler'));
    const next = await s.run(['--state-dir', state, '--json']);
    expect([next.code, next.stderr.includes('HEAL')], next.stderr).toEqual([0, false]);
  });
});

test.skipIf(noStrace)('a way back that is killed when it keeps the failed state beside the database: the next command takes that away again', async () => {
  const s = scene({ journal: 'delete', bytes: MB });
  const state = stateOf(4 * MB);
  const script = `sqlite3 ${s.source} 'CREATE TABLE big AS SELECT randomblob(8000000)'; ${DAMAGE(s.source)}`;
  const words = ['guard', '--database', s.source, '--to', s.to, '--state-dir', state, '--json', '--', 'sh', '-c', script];
  await (await standStill([EXECUTABLE, ...words], { call: 'link', path: s.source })).kill();
  expect([beside(s.source).length, lstatSync(s.source).nlink]).toEqual([3, 2]);
  const failed = sha256(s.source);
  const next = await s.ask('prune', ['--state-dir', state, '--keep-last', 'all', '--json', '--name', 'app']);
  expect([next.code, next.json.warnings?.map(({ code }) => code)], next.stderr).toEqual([0, expect.arrayContaining(['HEALED'])]);
  const left = readdirSync(dirname(s.source)).filter((name) => name.startsWith('app.db'));
  expect([left, lstatSync(s.source).nlink, sha256(s.source)]).toEqual([['app.db'], 1, failed]);
});

test.skipIf(noMount)('a failed state that the disk of the copies has no room for is set aside all the same, where the state has it', async () => {
  const s = scene({ journal: 'delete', bytes: MB });
  const to = join(mountTmpfs(6 * MB), 'to');
  mkdirSync(to, { mode: 0o700 });
  const state = join(s.home, 'state');
  mkdirSync(state, { mode: 0o700 });
  const script = `sqlite3 ${s.source} 'CREATE TABLE big AS SELECT randomblob(8000000)'; exit 1`;
  const run = await dbbackup(['guard', '--database', s.source, '--to', to, '--state-dir', state, '--json', '--', 'sh', '-c', script]);
  expect([run.code, run.json.status, run.json.warnings?.map(({ code }) => code)], run.stderr).toEqual([1, 'rolled_back', []]);
  expect(lstatSync(join(run.json.setAside ?? '', 'app.db')).size).toBeGreaterThan(8 * MB);
});

describe('a guarded command is rolled back where nothing can be set aside', () => {
  test.each([
    ['live', (source: string): string => `sqlite3 ${source} 'DELETE FROM invoice'; exit 1`],
    ['offline', (source: string): string => DAMAGE(source)],
    ['and a directory stands in its place', (source: string): string => `rm ${source}; mkdir ${source}`],
  ])('%s', async (_, script) => {
    const s = scene({ journal: 'delete', bytes: 100_000 });
    const before = query(s.source, 'SELECT count(*), sum(cents) FROM invoice');
    expect((await s.run()).code).toBe(0);
    writeFileSync(join(s.state, 'aside'), 'in the way');
    const run = await s.ask('guard', ['--database', s.source, '--json', '--', 'sh', '-c', script(s.source)]);
    expect([run.code, run.json.status], run.stderr).toEqual([1, 'rolled_back']);
    expect(query(s.source, 'SELECT count(*), sum(cents) FROM invoice')).toEqual(before);
    expect(run.json.warnings?.some(({ severity, message }) => severity === 'critical' && message.includes('ENOTDIR'))).toBe(true);
  });
});

describe.skipIf(noStrace)('an offline restore', () => {
  const WORDS = (s: Scene, state: string): string[] => ['restore', '--into', s.source, '--yes', '--to', s.to, '--state-dir', state, '--json'];

  /** A copy, and in the place of its database a larger one of another page size. */
  async function ofAnotherPageSize(bytes: number): Promise<Scene> {
    const { s } = await sceneWithCopy({ journal: 'wal', bytes: 100_000 });
    rmSync(s.source);
    makeDatabase(s.source, { journal: 'delete', pageSize: 512, bytes });
    return s;
  }

  /** The same with one that is cut short, and a -wal. */
  async function damagedWithWal(): Promise<Scene> {
    const { s } = await sceneWithCopy({ journal: 'wal', bytes: 100_000 });
    await leaveSidecars(s.source);
    rmSync(`${s.source}-shm`);
    truncateSync(s.source, 5000);
    return s;
  }

  /** The old database is to get its second name, which there is none of across file systems. */
  const beforeCopying = (s: Scene, state: string): Promise<StandingStill> => standStill([EXECUTABLE, ...WORDS(s, state)], { call: 'link', path: s.source });
  /** It has been copied, and its -wal is to follow. */
  const beforeTheWal = (s: Scene, state: string): Promise<StandingStill> =>
    standStill([EXECUTABLE, ...WORDS(s, state)], { call: 'rename', path: `${s.source}-wal` });

  test('is refused where the old files have no room, which a dry run foresees', async () => {
    const s = await ofAnotherPageSize(8 * MB);
    const state = stateOf(3 * MB);
    const before = beside(s.source);
    for (const refused of [await dbbackup([...WORDS(s, state), '--dry-run']), await dbbackup(WORDS(s, state))]) {
      expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([1, 'NO_SPACE']);
      expect(refused.json.error?.message).toContain(state);
    }
    expect([beside(s.source), asides(state)]).toEqual([before, []]);
  });

  test.each([
    ['the database', (): Promise<Scene> => ofAnotherPageSize(2 * MB), beforeCopying],
    ['its -wal', damagedWithWal, beforeTheWal],
  ])('that finds no room any more for %s leaves all as it was, and nothing there', async (_, make, moment) => {
    const s = await make();
    const state = stateOf(8 * MB);
    const before = beside(s.source);
    const restore = await moment(s, state);
    const filler = fillUp(state);
    const failed = await restore.goOn();
    expect([failed.code, failed.json.error?.code], failed.stderr).toEqual([1, 'RESTORE_FAILED']);
    expect(failed.json.error?.hint).toContain('the database is as it was');
    expect([beside(s.source), asides(state).filter((name) => name.startsWith('app.db'))]).toEqual([before, []]);
    rmSync(filler);
    const again = await dbbackup(WORDS(s, state));
    expect([again.code, again.stderr.includes('HEAL')], again.stderr).toEqual([0, false]);
  });

  test('that is ended while the old database is copied leaves nothing of it', async () => {
    const s = await ofAnotherPageSize(20 * MB);
    const state = stateOf(40 * MB);
    const before = beside(s.source);
    const ended = await (await beforeCopying(s, state)).goOn('SIGTERM');
    expect([ended.code, beside(s.source)], ended.stderr).toEqual([143, before]);
    expect([asides(state).filter((name) => name.startsWith('app.db')), noteIn(state)]).toEqual([[], expect.objectContaining({ state: 'undone' })]);
  });

  test('that is killed while the old database is copied leaves nothing of it once the next command was there', async () => {
    const s = await ofAnotherPageSize(MB);
    const state = stateOf(8 * MB);
    const before = beside(s.source).filter((line) => line.startsWith('app.db'));
    await (await beforeCopying(s, state)).kill();
    const [directory = ''] = readdirSync(join(state, 'aside'));
    writeFileSync(join(state, 'aside', directory, 'app.db.part'), 'as far as it had come');
    const next = await s.run(['--state-dir', state, '--json']);
    expect([next.code, next.json.warnings?.map(({ code }) => code)], next.stderr).toEqual([0, expect.arrayContaining(['HEALED'])]);
    expect([beside(s.source), asides(state)]).toEqual([before, [directory, 'restore.json']]);
  });

  test('that is killed behind the copy leaves it only where the database is another one since', async () => {
    for (const isUsed of [false, true]) {
      const s = await damagedWithWal();
      const state = stateOf(8 * MB);
      const old = sha256(s.source);
      await (await beforeTheWal(s, state)).kill();
      const [directory = ''] = readdirSync(join(state, 'aside'));
      expect(sha256(join(state, 'aside', directory, 'app.db'))).toBe(old);
      if (isUsed) appendFileSync(s.source, 'written since');
      const next = await s.ask('prune', ['--state-dir', state, '--json', '--keep-last', 'all']);
      expect([next.code, next.json.warnings?.map(({ code }) => code)], next.stderr).toEqual([0, expect.arrayContaining(['HEALED'])]);
      expect(asides(state)).toEqual([directory, ...(isUsed ? ['app.db'] : []), 'restore.json'].sort());
      expect([sha256(s.source) === old, existsSync(`${s.source}-wal`)]).toEqual([!isUsed, true]);
    }
  });
});
