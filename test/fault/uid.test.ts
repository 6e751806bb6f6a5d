/**
 * Who runs it, with which rights, on a database in which state: whatever dbbackup answers, the application (another
 * user) can open its database and write to it afterwards, and one that was running never had a failed write (traps, 1).
 */
import { spawnSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, lstatSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import {
  cannot,
  dbbackup,
  directoryOf,
  executableFor,
  giveDatabase,
  killGroup,
  leaveSidecars,
  makeDatabase,
  openTempDirectory,
  openWriter,
  type Result,
  signalTo,
  start,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { startHttp } from '../support/http.js';
import { standStill } from '../support/standstill.js';
import { mustBeWhole, mustHaveNoTemp, sha256 } from './proof.js';

/** The application's user and group. */
const APP = 4001;
/** Somebody else, in the application's group or not. */
const OTHER = 4002;

interface Runner {
  readonly uid: number;
  readonly through: readonly string[];
}

const RUNNERS = {
  owner: { uid: APP, through: wrap.as(APP) },
  'other, in the group': { uid: OTHER, through: wrap.as(OTHER, OTHER, [APP]) },
  'other, no group': { uid: OTHER, through: wrap.as(OTHER) },
  root: { uid: 0, through: [] },
  'root without CAP_CHOWN': { uid: 0, through: wrap.without('chown') },
  'root without CAP_DAC_OVERRIDE': { uid: 0, through: wrap.without('dac_override', 'dac_read_search') },
  'root without both': { uid: 0, through: wrap.without('chown', 'dac_override', 'dac_read_search') },
} as const satisfies Record<string, Runner>;

type State = 'idle' | 'running' | 'crashed' | 'rollback mode';

/** Directory and file as the application made them. */
const RIGHTS = {
  private: [0o700, 0o600],
  group: [0o750, 0o640],
  'group may write': [0o770, 0o660],
  'group may write, setgid': [0o2770, 0o660],
  public: [0o755, 0o644],
} as const;

type Row = readonly [runner: keyof typeof RUNNERS, rights: keyof typeof RIGHTS, state: State, expected: readonly (0 | string)[]];

const WORKS = [0] as const;
const UNREADABLE = ['SOURCE_UNREADABLE'] as const;
const READONLY = ['SOURCE_READONLY_DIRECTORY'] as const;
const SIDECAR = ['SIDECAR_OWNER'] as const;
/** SQLite can read a left-over WAL with a private index where it may not write: both are right answers. */
const WORKS_OR_READONLY = [0, 'SOURCE_READONLY_DIRECTORY'] as const;

const MATRIX: readonly Row[] = [
  ['owner', 'private', 'idle', WORKS],
  ['owner', 'private', 'running', WORKS],
  ['owner', 'private', 'crashed', WORKS],
  ['owner', 'private', 'rollback mode', WORKS],
  ['root', 'private', 'idle', WORKS],
  ['root', 'private', 'running', WORKS],
  ['root', 'private', 'crashed', WORKS],
  ['root', 'private', 'rollback mode', WORKS],
  ['root without CAP_CHOWN', 'private', 'idle', SIDECAR],
  ['root without CAP_CHOWN', 'public', 'idle', SIDECAR],
  ['root without CAP_CHOWN', 'private', 'running', WORKS],
  ['root without CAP_CHOWN', 'private', 'crashed', WORKS],
  ['root without CAP_CHOWN', 'private', 'rollback mode', WORKS],
  ['root without CAP_DAC_OVERRIDE', 'private', 'idle', UNREADABLE],
  ['root without CAP_DAC_OVERRIDE', 'private', 'running', UNREADABLE],
  ['root without CAP_DAC_OVERRIDE', 'public', 'idle', READONLY],
  ['root without CAP_DAC_OVERRIDE', 'public', 'running', WORKS],
  ['root without CAP_DAC_OVERRIDE', 'public', 'crashed', WORKS_OR_READONLY],
  ['root without CAP_DAC_OVERRIDE', 'public', 'rollback mode', WORKS],
  ['root without both', 'private', 'idle', UNREADABLE],
  ['root without both', 'public', 'idle', ['SOURCE_READONLY_DIRECTORY', 'SIDECAR_OWNER']],
  ['root without both', 'public', 'running', WORKS],
  ['root without both', 'public', 'rollback mode', WORKS],
  ['other, no group', 'private', 'idle', UNREADABLE],
  ['other, no group', 'group', 'running', UNREADABLE],
  ['other, no group', 'public', 'idle', READONLY],
  ['other, no group', 'public', 'running', WORKS],
  ['other, no group', 'public', 'crashed', WORKS_OR_READONLY],
  ['other, no group', 'public', 'rollback mode', WORKS],
  ['other, in the group', 'group', 'idle', READONLY],
  ['other, in the group', 'group', 'running', WORKS],
  ['other, in the group', 'group', 'crashed', WORKS_OR_READONLY],
  ['other, in the group', 'group', 'rollback mode', WORKS],
  ['other, in the group', 'group may write', 'idle', SIDECAR],
  ['other, in the group', 'group may write', 'running', WORKS],
  ['other, in the group', 'group may write', 'crashed', WORKS],
  // The sidecars would belong to the group, and the owner is in it: to refuse is careful, to work is right too.
  ['other, in the group', 'group may write, setgid', 'idle', [0, 'SIDECAR_OWNER']],
  ['other, in the group', 'group may write, setgid', 'running', WORKS],
];

const reason = cannot('root', 'setpriv');
if (reason) process.stderr.write(`not run here: the uid and capability matrix: ${reason}\n`);

test.skipIf(reason).each(MATRIX)('%s, files %s, %s: %j, and the application can write', { timeout: 60_000 }, async (runner, rights, state, expected) => {
  const home = openTempDirectory('uid');
  const [directoryMode, fileMode] = RIGHTS[rights];
  const data = directoryOf(join(home, 'data'), APP, APP, directoryMode);
  const source = join(data, 'app.db');
  const { uid, through } = RUNNERS[runner];
  const to = directoryOf(join(home, 'backups'), uid, uid, 0o700);
  makeDatabase(source, { journal: state === 'rollback mode' ? 'delete' : 'wal', bytes: 50_000 });
  giveDatabase(source, APP, APP, fileMode);
  const asApp = wrap.as(APP);
  const beat = { through: asApp, loop: "INSERT INTO beat (at) VALUES ('running')", beatMs: 5 };
  const app = state === 'running' ? await openWriter(source, beat) : null;
  if (state === 'crashed') await leaveSidecars(source, { through: asApp });
  const before = state === 'running' ? '' : sha256(source);

  for (const round of [1, 2]) {
    const run = await dbbackup(['run', source, '--to', to, '--json'], { through, executable: executableFor(uid) });
    const outcome = run.code === 0 ? 0 : (run.json.error?.code ?? `exit ${run.code}`);
    expect(expected, `run ${round}: ${run.stderr}`).toContain(outcome);
    expect(run.code, run.stderr).toBe(outcome === 0 ? 0 : 1);
    if (outcome === 'SIDECAR_OWNER' || outcome === 'SOURCE_READONLY_DIRECTORY' || outcome === 'SOURCE_UNREADABLE') {
      expect(`${run.json.error?.hint} ${run.json.error?.message}`).toMatch(/owner|ReadWritePaths|permissions/);
    }
    // A sidecar that is there now must be one that the application can write.
    for (const sidecar of [`${source}-wal`, `${source}-shm`]) {
      if (!existsSync(sidecar)) continue;
      const s = statSync(sidecar);
      expect(s.uid === APP || (s.gid === APP && (s.mode & 0o060) === 0o060), `${sidecar} belongs to ${s.uid}:${s.gid}, ${(s.mode & 0o777).toString(8)}`).toBe(
        true,
      );
    }
  }

  const found = mustBeWhole(to, 'after the runs');
  mustHaveNoTemp(to, 'after the runs');
  for (const file of found.pairs.keys()) {
    const s = lstatSync(join(to, file));
    expect([s.uid, s.mode & 0o777]).toEqual([uid, 0o600]);
  }
  if (before) expect(sha256(source)).toBe(before);
  if (app) {
    const { done, failed, first } = await app.stop();
    expect([failed, first, done > 5]).toEqual([0, '', true]);
  }
  const later = await useDatabase(source, ['PRAGMA busy_timeout = 1000'], { through: asApp, loop: "INSERT INTO beat (at) VALUES ('afterwards')", beatMs: 1 });
  const { done, failed, first } = await later.stop();
  expect([failed, first, done > 0]).toEqual([0, '', true]);
});

/** Users of every Debian, in its own files: whose groups are known. */
const DAEMON = 1;
const BIN = 2;

test.skipIf(reason).each([
  ['in a directory of a group that the owner is in', 0o2770, 0o660, 0],
  ['in one that gives the group of who writes', 0o770, 0o660, 'SIDECAR_OWNER'],
  ['that all may write, by whatever mistake', 0o777, 0o666, 0],
] as const)('an idle database %s: sidecars that its owner can write are no reason to refuse', async (_, directoryMode, fileMode, expected) => {
  const home = openTempDirectory('shared');
  const data = directoryOf(join(home, 'data'), DAEMON, DAEMON, directoryMode);
  const source = join(data, 'app.db');
  const to = directoryOf(join(home, 'backups'), BIN, BIN, 0o700);
  makeDatabase(source, { journal: 'wal', bytes: 50_000 });
  giveDatabase(source, DAEMON, DAEMON, fileMode);
  const options = { through: wrap.as(BIN, BIN, [DAEMON]), executable: executableFor(BIN) };
  const run = await dbbackup(['run', source, '--to', to, '--json'], options);
  expect(run.code === 0 ? 0 : run.json.error?.code, run.stderr).toBe(expected);
  const app = await useDatabase(source, ['PRAGMA busy_timeout = 1000'], {
    through: wrap.as(DAEMON),
    loop: "INSERT INTO beat (at) VALUES ('afterwards')",
    beatMs: 1,
  });
  const { done, failed } = await app.stop();
  expect([failed, done > 0]).toEqual([0, true]);
});

test.skipIf(reason)('a database whose directory was opened to all by mistake is still copied for its owner', { timeout: 60_000 }, async () => {
  const home = openTempDirectory('uid');
  const data = directoryOf(join(home, 'data'), APP, APP, 0o777);
  const source = join(data, 'app.db');
  makeDatabase(source);
  giveDatabase(source, APP, APP, 0o644);
  chmodSync(data, 0o777);
  chownSync(data, APP, APP);
  const to = directoryOf(join(home, 'backups'), APP, APP, 0o700);
  const run = await dbbackup(['run', source, '--to', to, '--json'], { through: wrap.as(APP), executable: executableFor(APP) });
  expect(run.code, run.stderr).toBe(0);
});

test.skipIf(reason)('who may not look into the directory is told whose it is, and not that there is no copy', { timeout: 60_000 }, async () => {
  const home = openTempDirectory('uid');
  const data = directoryOf(join(home, 'data'), APP, APP, 0o755);
  const source = join(data, 'app.db');
  makeDatabase(source, { journal: 'delete' });
  giveDatabase(source, APP, APP, 0o644);
  const to = directoryOf(join(home, 'backups'), APP, APP, 0o700);
  const owner = { through: wrap.as(APP), executable: executableFor(APP) };
  expect((await dbbackup(['run', source, '--to', to, '--json'], owner)).code).toBe(0);
  for (const command of [['status'], ['status', '--name', 'app'], ['list'], ['history']]) {
    const asked = await dbbackup([...command, '--to', to, '--json'], { through: wrap.as(OTHER), executable: executableFor(OTHER) });
    expect([asked.code, asked.json.error?.code], command.join(' ')).toEqual([78, 'TARGET_OWNER']);
    expect(asked.json.error?.hint).toContain('run as its owner');
  }
  // A history that somebody else's has become is named with him, and not put down to the disk.
  chownSync(join(to, '.dbbackup/history.db'), OTHER, OTHER);
  const history = await dbbackup(['history', '--to', to, '--json'], owner);
  expect([history.code, history.json.error?.message]).toEqual([78, expect.stringContaining(`history.db belongs to uid ${OTHER}`)]);
  expect(history.json.error?.hint).toContain(`chown ${APP}`);
  const run = await dbbackup(['run', source, '--to', to, '--json'], owner);
  expect(run.code, run.stderr).toBe(0);
  expect(run.json.warnings?.find((w) => w.code === 'STATE_UNWRITABLE')?.message).toContain(`history.db belongs to uid ${OTHER}`);
});

// SQLite lets a transaction begin on a file that may only be read, and locks nothing.
test.skipIf(reason)('a lock that cannot be written is none: nobody works beside a run, or instead of one', { timeout: 60_000 }, async () => {
  const home = openTempDirectory('uid');
  const source = join(directoryOf(join(home, 'data'), APP, APP, 0o755), 'app.db');
  makeDatabase(source, { journal: 'delete' });
  giveDatabase(source, APP, APP, 0o644);
  const to = directoryOf(join(home, 'backups'), APP, APP, 0o700);
  const owner = { through: wrap.as(APP), executable: executableFor(APP) };
  expect((await dbbackup(['run', source, '--to', to], owner)).code).toBe(0);
  const lock = join(to, '.dbbackup/app.lock.db');
  const work = directoryOf(join(to, '.dbbackup/tmp/app-00000000-0000-4000-8000-000000000000'), APP, APP, 0o700);
  for (const [uid, mode] of [
    [APP, 0o444],
    [0, 0o644],
  ] as const) {
    chownSync(lock, uid, uid);
    chmodSync(lock, mode);
    for (const command of [
      ['run', source],
      ['prune', '--name', 'app', '--keep-last', '1'],
    ]) {
      const refused = await dbbackup([...command, '--to', to, '--json'], owner);
      expect([refused.code, refused.json.error?.code], refused.stderr).toEqual(uid === APP ? [1, 'TARGET_UNWRITABLE'] : [78, 'TARGET_OWNER']);
    }
    expect(existsSync(work)).toBe(true);
  }
});

/** Root may look everywhere, whatever the mode. */
test.skipIf(reason)('a run that is ended when its workspace may not be looked at any more ends as ever', { timeout: 60_000 }, async () => {
  const home = openTempDirectory('closed');
  const source = join(directoryOf(join(home, 'data'), OTHER), 'app.db');
  makeDatabase(source, { journal: 'wal' });
  giveDatabase(source, OTHER);
  const to = directoryOf(join(home, 'backups'), OTHER, OTHER, 0o700);
  const temp = join(to, '.dbbackup/tmp');
  const dbb = { through: wrap.as(OTHER), executable: executableFor(OTHER) };
  const server = await startHttp();
  const env = { DBBACKUP_WEBHOOK: server.url, DBBACKUP_BEFORE: `sh -c 'chmod 000 ${temp}; exec sleep 600'` };
  const running = start(['run', source, '--to', to, '--json'], { ...dbb, env });
  await until('the hook to have closed it', () => existsSync(temp) && (statSync(temp).mode & 0o777) === 0);
  signalTo(running.pid, 'SIGTERM');
  const ended = await running.result;
  expect([ended.code, ended.json.status, ended.json.error?.code], ended.stderr).toEqual([143, 'interrupted', 'INTERRUPTED']);
  const [last] = (await dbbackup(['history', '--to', to, '--json'])).json.runs ?? [];
  expect([last?.runId, last?.exitCode]).toEqual([ended.json.runId, 143]);
  chmodSync(temp, 0o700);
  const next = await dbbackup(['run', source, '--to', to, '--json'], { ...dbb, env: { DBBACKUP_WEBHOOK: server.url } });
  await server.close();
  expect([next.code, readdirSync(temp)], next.stderr).toEqual([0, []]);
  expect(server.taken.map((p) => (JSON.parse(p.body) as { subject: string }).subject.replace(/ on .*/, ''))).toEqual([
    'dbbackup: app INTERRUPTED',
    'dbbackup: app RECOVERED',
  ]);
});

const untraced = cannot('root', 'setpriv', 'strace');
if (untraced) process.stderr.write(`not run here: an application that is just opening its database: ${untraced}\n`);

/**
 * An application that starts again after a crash has the index of its WAL (-shm) open for a moment before it fills it anew: who may only read
 * is then told to leave that to somebody else (SQLITE_READONLY_RECOVERY).
 */
test.skipIf(untraced).each([
  ['by then it has done that', true, 0],
  ['it does not come to that', false, 'SOURCE_READONLY_DIRECTORY'],
] as const)('an application that is just opening its database is looked at once more, and %s', { timeout: 60_000 }, async (_, goesOn, outcome) => {
  const home = openTempDirectory('moment');
  const data = directoryOf(join(home, 'data'), APP, APP, RIGHTS.group[0]);
  const source = join(data, 'app.db');
  const to = directoryOf(join(home, 'backups'), OTHER, OTHER, 0o700);
  makeDatabase(source, { journal: 'wal', bytes: 50_000 });
  giveDatabase(source, APP, APP, RIGHTS.group[1]);
  await leaveSidecars(source, { through: wrap.as(APP) });
  // Of its locks on the index the third call makes sure that it has it open; with the next one it would begin to fill it.
  const log = join(home, 'log');
  const through = ['strace', '-f', '-qq', '-o', log, '-P', `${source}-shm`, '-e', 'trace=fcntl', '-e', 'inject=fcntl:signal=STOP:when=3', '--'];
  const opening = useDatabase(source, ['SELECT count(*) FROM beat'], { through: [...through, ...wrap.as(APP)] });
  const stopped = (): string | undefined => (existsSync(log) ? /^(\d+) .*stopped by SIGSTOP/m.exec(readFileSync(log, 'utf8'))?.[1] : undefined);
  await until('the application to stand still', () => stopped() !== undefined);
  expect(readFileSync(log, 'utf8')).toMatch(/F_RDLCK.*l_start=128/);
  const goOn = (): boolean => signalTo(Number(stopped()), 'SIGCONT');
  try {
    const words = [...RUNNERS['other, in the group'].through, executableFor(OTHER), 'run', source, '--to', to, '--json'];
    // The first attempt has failed, and its child is ended.
    const run = await standStill(words, { call: 'kill' });
    if (goesOn && goOn()) await opening;
    const ended = await run.goOn();
    expect(ended.json.error?.code ?? ended.code, ended.stderr).toBe(outcome);
  } finally {
    goOn();
  }
  expect((await (await opening).stop()).failed).toBe(0);
  expect(mustBeWhole(to, 'after the run').pairs.size).toBe(goesOn ? 1 : 0);
});

const noMount = cannot('root', 'setpriv', 'mount');
if (noMount) process.stderr.write(`not run here: a run that cannot be seen: ${noMount}\n`);

/** A monitor of another user, who was let into the directory, on a machine that shows nobody the processes of others. */
test.skipIf(noMount)('a run that cannot be seen is not said to be dead', { timeout: 60_000 }, async () => {
  const home = openTempDirectory('unseen');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'wal' });
  expect((await dbbackup(['run', source, '--to', to])).code).toBe(0);
  for (const path of [to, join(to, '.dbbackup')]) chmodSync(path, 0o755);
  for (const file of readdirSync(to).filter((name) => name.startsWith('app-'))) chmodSync(join(to, file), 0o644);
  chmodSync(join(to, '.dbbackup/history.db'), 0o644);
  const pipe = join(home, 'pipe');
  spawnSync('mkfifo', [pipe]);
  const running = start(['run', source, '--to', to], { env: { DBBACKUP_BEFORE: `cat ${pipe}` } });
  const ask = (command: string, through: readonly string[] = []): Promise<Result> =>
    dbbackup([command, '--to', to, '--name', 'app', '--json'], { through, executable: executableFor(OTHER) });
  const newest = async (through: readonly string[] = []): Promise<unknown> => (await ask('history', through)).json.runs?.[0]?.status;
  await until('the run to be under way', async () => (await newest()) === 'running');
  const seen = [await newest(wrap.as(OTHER)), await newest(wrap.unseeing(OTHER)), (await ask('status', wrap.unseeing(OTHER))).json.problems];
  writeFileSync(pipe, '');
  expect((await running.result).code).toBe(0);
  expect(seen).toEqual(['running', 'running', []]);
  // One that was killed is seen to be gone all the same.
  const killed = start(['run', source, '--to', to], { env: { DBBACKUP_BEFORE: `cat ${pipe}` } });
  await until('the next one to be under way', async () => (await newest()) === 'running');
  killGroup(killed.pid, 'SIGKILL');
  await killed.result;
  expect(await newest(wrap.unseeing(OTHER))).toBe('interrupted');
});
