/**
 * Restores that are killed, or lose their power, at any moment: afterwards the database is the old one or the new one,
 * never neither; what was set aside is found; the next command says what happened, and the restore can be repeated.
 */
import { copyFileSync, cpSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import {
  atEnd,
  damage,
  dbbackup,
  leaveSidecars,
  makeDatabase,
  type Result,
  removeDirectory,
  start,
  tempDirectory,
  type UserOfDatabase,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { digestRows } from '../support/rows.js';
import { cutAfter, cutAtCall, kill9, mustLeaveNobody } from './ends.js';
import { counted, type Failure, mustEndCleanly, type Random, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { type Ext4, mountExt4, PowerSwitch } from './mounts.js';
import { inPrivate, must, mustBeWhole, mustHoldNoBadCopy, sha256 } from './proof.js';
import { type Calibration, type Call, calibrate } from './trace.js';

/** Calls of which a restore makes few and which decide. */
export const DECISIVE = [
  'link',
  'linkat',
  'rename',
  'unlink',
  'unlinkat',
  'rmdir',
  'fsync',
  'fdatasync',
  'mkdir',
  'openat',
  'ftruncate',
  'pwrite64',
  'chmod',
  'chown',
];
const SIDECARS = ['-wal', '-journal'] as const;

// -------------------------------------------------------------------------------------------------------------- targets

interface Shape {
  readonly name: string;
  /** Makes what is to be replaced. */
  readonly make: (path: string) => void | Promise<void>;
  /** How the old one is known again: by its rows, by its bytes (no database any more), or by not being there. */
  readonly old: 'rows' | 'bytes' | 'none';
  readonly way: 'into' | 'output';
  /** Somebody reads it all the while, an old state of it. */
  readonly reader?: true;
}

const OLD_BYTES = 400_000;

/** Rows that the copy does not have. */
export function grow(path: string): void {
  const db = new Database(path);
  db.exec("UPDATE invoice SET note = note || 'later' WHERE id % 3 = 0; INSERT INTO beat (at) VALUES ('later')");
  db.close();
}

const SHAPES: readonly Shape[] = [
  {
    name: 'live-wal',
    old: 'rows',
    way: 'into',
    make: async (path) => {
      makeDatabase(path, { bytes: OLD_BYTES });
      grow(path);
      await leaveSidecars(path);
    },
  },
  {
    name: 'live-read',
    old: 'rows',
    way: 'into',
    reader: true,
    make: (path) => {
      makeDatabase(path, { bytes: OLD_BYTES });
      grow(path);
    },
  },
  {
    name: 'live-rollback',
    old: 'rows',
    way: 'into',
    make: (path) => {
      makeDatabase(path, { journal: 'delete', bytes: OLD_BYTES });
      grow(path);
    },
  },
  {
    name: 'other-pages',
    old: 'rows',
    way: 'into',
    make: async (path) => {
      makeDatabase(path, { pageSize: 1024, bytes: OLD_BYTES });
      grow(path);
      await leaveSidecars(path);
    },
  },
  {
    name: 'damaged',
    old: 'bytes',
    way: 'into',
    make: async (path) => {
      makeDatabase(path, { bytes: OLD_BYTES });
      await leaveSidecars(path);
      damage(path, 0, new Uint8Array(4096).fill(7));
    },
  },
  {
    // Found out only by the check: the header is whole.
    name: 'damaged-within',
    old: 'bytes',
    way: 'into',
    make: (path) => {
      makeDatabase(path, { bytes: OLD_BYTES });
      for (let page = 3; page < 40; page++) damage(path, page * 4096, new Uint8Array(4096).fill(page));
    },
  },
  { name: 'missing', old: 'none', way: 'into', make: () => undefined },
  {
    name: 'missing-with-wal',
    old: 'none',
    way: 'into',
    make: async (path) => {
      makeDatabase(path, { bytes: 50_000 });
      await leaveSidecars(path);
      rmSync(path);
    },
  },
  { name: 'output', old: 'none', way: 'output', make: () => undefined },
];

// ---------------------------------------------------------------------------------------------------------------- stage

/** Where the rounds are played: always at the same paths, laid out anew for each. */
export interface Place {
  readonly root: string;
  readonly target: string;
  readonly to: string;
}

/** `to` apart: the backups on another file system, where no link or rename reaches. */
const placeAt = (root: string, to: string): Place => ({ root, target: join(root, 'db/app.db'), to });

/** On another file system than /tmp, where there is one. */
export function elsewhere(): string {
  const path = mkdtempSync('/dev/shm/dbbackup-apart-');
  atEnd(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** In the path of every directory that is made here, and of no file of the tool. */
export const OURS = '/dbbackup-';

interface Stage {
  readonly place: Place;
  readonly templates: string;
  /** The copy that is restored, and the digest of its rows. */
  readonly file: string;
  readonly fresh: string;
  readonly shapes: ReadonlyMap<string, Old>;
  /** By shape. */
  readonly learnt: Map<string, Learnt>;
}

interface Old {
  readonly shape: Shape;
  /** The digest of its rows; empty where there are none. */
  readonly rows: string;
  /** Suffix of each file → SHA-256 of its bytes. */
  readonly bytes: ReadonlyMap<string, string>;
}

async function setStage(root: string, to: string): Promise<Stage> {
  const place = placeAt(root, to);
  const templates = tempDirectory('restores');
  // The copy is made of the database at its place, which then makes way for whatever a round needs there.
  rmSync(root, { recursive: true, force: true });
  mkdirSync(join(root, 'db'), { recursive: true, mode: 0o700 });
  makeDatabase(place.target, { bytes: OLD_BYTES });
  const db = new Database(place.target);
  db.exec("UPDATE customer SET born = 1966; INSERT INTO beat (at) VALUES ('as it was copied')");
  db.close();
  const run = await dbbackup(['run', place.target, '--to', place.to, '--json']);
  must(run.code === 0, () => `no copy to restore: ${told(run)}`);
  const file = run.json.copy?.file ?? '';
  cpSync(place.to, join(templates, 'backups'), { recursive: true });
  const shapes = new Map<string, Old>();
  for (const shape of SHAPES) {
    const directory = join(templates, shape.name);
    mkdirSync(directory, { mode: 0o700 });
    await shape.make(join(directory, 'app.db'));
    rmSync(join(directory, 'app.db-shm'), { force: true });
    shapes.set(shape.name, { shape, rows: shape.old === 'rows' ? rowsAt(directory) : '', bytes: bytesAt(directory) });
  }
  return { place, templates, file, fresh: inPrivate(join(place.to, file), digestRows), shapes, learnt: new Map() };
}

const argsOf = ({ place, file }: Stage, { way }: Shape): string[] =>
  way === 'output'
    ? ['restore', file, '-o', place.target, '--to', place.to, '--json']
    : ['restore', file, '--into', place.target, '--yes', '--to', place.to, '--json'];

function lay({ place, templates }: Stage, { name }: Shape): void {
  for (const path of [place.root, place.to]) rmSync(path, { recursive: true, force: true });
  mkdirSync(place.root, { mode: 0o700 });
  cpSync(join(templates, name), join(place.root, 'db'), { recursive: true });
  cpSync(join(templates, 'backups'), place.to, { recursive: true });
}

/** Digest of the rows that SQLite finds in a directory's `app.db`, with what lies beside it; throws when it is damaged. */
export function rowsAt(directory: string): string {
  const look = tempDirectory('rows');
  for (const suffix of ['', ...SIDECARS]) {
    const from = join(directory, `app.db${suffix}`);
    if (existsSync(from)) copyFileSync(from, join(look, `app.db${suffix}`));
  }
  const db = new Database(join(look, 'app.db'), { fileMustExist: true });
  try {
    const findings = db.pragma('integrity_check', { simple: true });
    must(findings === 'ok', () => `integrity_check: ${String(findings)}`);
    return digestRows(db);
  } finally {
    db.close();
    removeDirectory(look);
  }
}

/** Empty sidecars hold nothing and count as none. */
export const bytesAt = (directory: string): ReadonlyMap<string, string> =>
  new Map(
    ['', ...SIDECARS].flatMap((suffix): [string, string][] => {
      const path = join(directory, `app.db${suffix}`);
      return existsSync(path) && lstatSync(path).size > 0 ? [[suffix, sha256(path)]] : [];
    }),
  );

/** What is learnt of a shape, when somebody asks for the first time. */
interface Learnt {
  /** How long a restore takes, milliseconds. */
  usual?: number;
  calibration?: Calibration;
}

function learntOf({ learnt }: Stage, { name }: Shape): Learnt {
  const there = learnt.get(name) ?? {};
  learnt.set(name, there);
  return there;
}

async function usualOf(stage: Stage, shape: Shape): Promise<number> {
  const learnt = learntOf(stage, shape);
  if (learnt.usual !== undefined) return learnt.usual;
  lay(stage, shape);
  const run = await dbbackup(argsOf(stage, shape));
  must(run.code === 0, () => `${shape.name}: a restore without any fault failed: ${told(run)}`);
  mustHaveRestored(stage, shape);
  learnt.usual = run.durationMs;
  return run.durationMs;
}

async function callsOf(stage: Stage, shape: Shape): Promise<Calibration> {
  const learnt = learntOf(stage, shape);
  if (learnt.calibration) return learnt.calibration;
  lay(stage, shape);
  learnt.calibration = await calibrate(OURS, join(tempDirectory('trace'), 'log'), argsOf(stage, shape));
  mustHaveRestored(stage, shape);
  return learnt.calibration;
}

const mustHaveRestored = (stage: Stage, shape: Shape): void =>
  must(judge(stage, shape, 'after a restore without any fault') === 'new', `${shape.name}: a restore without any fault restored nothing`);

/** Mostly a call of the moments that count: on the database, beside it, in aside/. */
function pickCall(calibration: Calibration, random: Random): Call {
  const near = calibration.only((c) => /\/aside\b|\/work\/db\b/.test(c.line));
  return (random.chance(0.7) ? near : calibration).pick(random, DECISIVE);
}

// ---------------------------------------------------------------------------------------------------------------- judge

/** The old database or the new one: anything else throws. */
function judge(stage: Stage, shape: Shape, when: string): 'old' | 'new' {
  const { place, fresh } = stage;
  const old = oldOf(stage, shape);
  const directory = join(place.root, 'db');
  const bytes = bytesAt(directory);
  if (shape.old !== 'rows') {
    const same = shape.old === 'none' ? !existsSync(place.target) : bytes.get('') === old.bytes.get('');
    if (same) {
      mustBeFound(stage, old, bytes, when);
      return 'old';
    }
  }
  must(existsSync(place.target), `${when}: there is no database`);
  const rows = (() => {
    try {
      return rowsAt(directory);
    } catch (error) {
      must(false, `${when}: neither the old database nor the new one: ${String(error)}`);
    }
  })();
  if (rows === fresh) {
    mustBeKept(stage, old, when);
    return 'new';
  }
  must(shape.old === 'rows' && rows === old.rows, `${when}: a database that is neither the old one nor the new one`);
  return 'old';
}

function oldOf(stage: Stage, shape: Shape): Old {
  const old = stage.shapes.get(shape.name);
  if (!old) throw new Error(`no shape ${shape.name}`);
  return old;
}

export interface SetAside {
  readonly directory: string;
  readonly pending: boolean;
}

export function setAsides({ to }: Place): SetAside[] {
  const root = join(to, '.dbbackup/aside');
  if (!existsSync(root)) return [];
  return readdirSync(root).map((entry) => {
    const directory = join(root, entry);
    const note = join(directory, 'restore.json');
    // Killed before its first note, it holds nothing.
    const state = existsSync(note) ? (JSON.parse(readFileSync(note, 'utf8')) as { state?: string }).state : 'undone';
    return { directory, pending: state !== 'done' && state !== 'undone' };
  });
}

/** Each file of the old one is where it was, or in aside/. */
function mustBeFound({ place }: Stage, old: Old, there: ReadonlyMap<string, string>, when: string): void {
  for (const [suffix, sum] of old.bytes) {
    const kept = setAsides(place).some(({ directory }) => {
      const path = join(directory, `app.db${suffix}`);
      return existsSync(path) && sha256(path) === sum;
    });
    must(kept || there.get(suffix) === sum, `${when}: app.db${suffix} of the old database is neither at its place nor in aside/`);
  }
}

/** The new one is there: then the old one is in aside/, or, where it could be copied, in a copy made before. */
function mustBeKept(stage: Stage, old: Old, when: string): void {
  const { place, file } = stage;
  if (old.shape.old !== 'rows') {
    mustBeFound(stage, old, new Map(), when);
    return;
  }
  const copies = readdirSync(place.to)
    .filter((n) => n.endsWith('.db') && n !== file)
    .map((n) => join(place.to, n));
  const asides = setAsides(place).map(({ directory }) => join(directory, 'app.db'));
  const kept = [...copies, ...asides].some((path) => existsSync(path) && inPrivate(path, digestRows) === old.rows);
  must(kept, `${when}: the new database is there, and the old one is nowhere`);
}

function mustHoldNoCopyOfNeither(stage: Stage, old: Old, when: string): void {
  const found = mustHoldNoBadCopy(stage.place.to, when);
  must(found.pairs.get(stage.file)?.status === 'good', `${when}: the copy that was to be restored is gone`);
  for (const [file, { tags }] of found.pairs) {
    if (!tags.includes('before-restore')) continue;
    const rows = inPrivate(join(stage.place.to, file), digestRows);
    must(rows === old.rows || rows === stage.fresh, `${when}: the safety copy ${file} holds neither the old state nor the new one`);
  }
}

export const staged = ({ root }: Place): string[] => readdirSync(join(root, 'db')).filter((n) => n.startsWith('.dbbackup'));

// ------------------------------------------------------------------------------------------------------------ afterwards

type Seen = Record<'old' | 'new' | 'completed' | 'pending' | 'hotJournal' | 'staged', number>;

const nothingSeen = (): Seen => ({ old: 0, new: 0, completed: 0, pending: 0, hotJournal: 0, staged: 0 });

/** What holds once the dust has settled, whatever was done to the restore. */
async function mustHeal(stage: Stage, shape: Shape, { random, say }: Round, seen: Seen): Promise<void> {
  const { place } = stage;
  const old = oldOf(stage, shape);
  const state = judge(stage, shape, 'afterwards');
  const pending = setAsides(place).some((a) => a.pending);
  const hot = existsSync(`${place.target}-journal`) && lstatSync(`${place.target}-journal`).size > 0;
  say(`then: ${state}${pending ? ', aside pending' : ''}${hot ? ', hot journal' : ''}, staged ${staged(place).length}`);
  seen[state]++;
  if (pending) seen.pending++;
  if (hot) seen.hotJournal++;
  if (staged(place).length > 0) seen.staged++;
  mustHoldNoCopyOfNeither(stage, old, 'afterwards');

  const next = random.pick(['prune', 'prune, run', 'run', 'restore'] as const);
  say(`next: ${next}`);
  if (next.startsWith('prune')) {
    const prune = await dbbackup(['prune', '--to', place.to, '--json']);
    must(prune.code === 0, () => `prune: ${told(prune)}`);
    mustSayWhatHappened(prune, pending);
    must(judge(stage, shape, 'after the prune') === state, 'the prune made another database of it');
    if (shape.old === 'bytes' && state === 'old') mustBeAsItWas(place, old, 'after the prune');
  }
  // A hot journal is rolled back by whoever opens the database to write (traps, 3): the application.
  if (hot) open(place.target);
  const ran = next.endsWith('run') && (state === 'new' || shape.old === 'rows');
  if (ran) {
    const nightly = await dbbackup(['run', place.target, '--to', place.to, '--json']);
    must(nightly.code === 0, () => `the nightly run: ${told(nightly)}`);
    if (next === 'run') mustSayWhatHappened(nightly, pending);
    must(judge(stage, shape, 'after the nightly run') === state, 'the nightly run made another database of it');
  }
  const args = argsOf(stage, shape);
  const again = await dbbackup(shape.way === 'output' && state === 'new' ? [...args, '--force'] : args);
  must(again.code === 0, () => `the repeated restore: ${told(again)}`);
  if (!next.startsWith('prune') && !ran) mustSayWhatHappened(again, pending);
  must(judge(stage, shape, 'after the repeated restore') === 'new', 'the repeated restore restored nothing');
  must(staged(place).length === 0, () => `left beside the database: ${staged(place).join(', ')}`);
  for (const path of again.json.restored?.setAside ?? []) must(existsSync(path), `${path} is said to be set aside, and is not there`);
  must(!setAsides(place).some((a) => a.pending), 'something is still pending in aside/');
  mustBeWhole(place.to, 'after the repeated restore');
  open(place.target);
}

function mustSayWhatHappened(run: Result, pending: boolean): void {
  const healed = (run.json.warnings ?? []).filter((w) => w.code === 'HEALED').map((w) => w.message);
  must(!pending || healed.some((m) => m.includes('restore')), () => `nothing was said of the killed restore: ${JSON.stringify(run.json.warnings)}`);
}

/** All bytes are back where they were. */
function mustBeAsItWas({ root }: Place, old: Old, when: string): void {
  const now = bytesAt(join(root, 'db'));
  for (const [suffix, sum] of old.bytes) must(now.get(suffix) === sum, `${when}: app.db${suffix} is not back where it was`);
}

/** As the application does when it starts. */
function open(path: string): void {
  const db = new Database(path, { fileMustExist: true, timeout: 1000 });
  db.exec("INSERT INTO beat (at) VALUES ('opened'); DELETE FROM beat WHERE at = 'opened'");
  db.close();
}

const holdOldState = (path: string): Promise<UserOfDatabase> => useDatabase(path, ['BEGIN', 'SELECT count(*) FROM invoice']);

// ----------------------------------------------------------------------------------------------------------------- kills

/** Evidence of a round that failed. */
export function keep({ root, to }: Place, directory: string): void {
  for (const [from, name] of [
    [root, 'work'],
    [to, 'backups'],
  ] as const) {
    try {
      cpSync(from, join(directory, name), { recursive: true });
    } catch {
      // The file system is still cut off: nothing can be read from it.
    }
  }
}

async function playKills(request: Request): Promise<Failure[]> {
  const home = tempDirectory('restore-kill');
  const work = join(home, 'work');
  const apart = elsewhere();
  const stages = [await setStage(work, join(work, 'backups')), await setStage(work, join(apart, 'backups'))] as const;
  const seen = { ...nothingSeen(), parent: 0, child: 0, both: 0, call: 0 };
  const failures = await rounds('restore-kill', request, async (round) => {
    const stage = stages[isApart(round) ? 1 : 0];
    try {
      await oneKill(stage, round, seen);
    } catch (error) {
      keep(stage.place, round.directory);
      throw error;
    }
  });
  removeDirectory(home);
  removeDirectory(apart);
  for (const { templates } of stages) removeDirectory(templates);
  request.note?.(counted(seen));
  return failures;
}

/** Each shape in turn on one file system, then each in turn on two. */
const isApart = ({ index }: Round): boolean => Math.floor(index / SHAPES.length) % 2 === 1;

function shapeOf(index: number): Shape {
  const shape = SHAPES[index % SHAPES.length];
  if (!shape) throw new Error('no shapes');
  return shape;
}

async function oneKill(stage: Stage, round: Round, seen: Seen & Record<'parent' | 'child' | 'both' | 'call', number>): Promise<void> {
  const { random, say } = round;
  const shape = shapeOf(round.index);
  const how = random.pick(['parent', 'child', 'both', 'call', 'call', 'call', 'call'] as const);
  seen[how]++;
  // Now, before the place is laid out: to learn takes a restore.
  await (how === 'call' ? callsOf : usualOf)(stage, shape);
  lay(stage, shape);
  const args = argsOf(stage, shape);
  const reader = shape.reader ? await holdOldState(stage.place.target) : null;
  const where = `${shape.name}${isApart(round) ? ', backups apart' : ''}`;
  let result: Result;
  if (how === 'call') {
    const { call, when } = pickCall(await callsOf(stage, shape), random);
    say(`${where}: kill -9 at ${call} ${when}`);
    mkdirSync(join(round.directory, 'trace'));
    result = await dbbackup(args, { through: wrap.fault(join(round.directory, 'trace/log'), [{ calls: call, signal: 'KILL', when }]) });
  } else {
    const usual = await usualOf(stage, shape);
    const delay = random.between(usual * 0.3, usual * 1.05);
    const run = start(args);
    await new Promise((r) => setTimeout(r, delay));
    const killed = kill9(run, how, random);
    say(`${where}: kill -9 of ${how} after ${Math.round(delay)} of ${Math.round(usual)} ms (${killed})`);
    result = await run.result;
  }
  if (result.signal === 'SIGKILL' || result.code === 137) say('killed');
  else mustEnd(result, say, seen);
  await reader?.crash();
  await mustLeaveNobody(stage.place.root);
  if (result.code === 0) must(judge(stage, shape, 'after exit 0') === 'new', 'exit 0, and the old database is there');
  await mustHeal(stage, shape, round, seen);
}

/** A restore that lost a child, or its disk, ends by itself: 0, 1, or 4 where a person is needed. */
function mustEnd(result: Result, say: (text: string) => void, seen: Seen): void {
  say(told(result));
  if (result.code === 4) must(result.json.error?.code === 'ROLLBACK_FAILED', () => `exit 4: ${told(result)}`);
  else mustEndCleanly(result);
  if (result.code === 0) seen.completed++;
}

export const restoreKill: Scenario = {
  name: 'restore-kill',
  promise: 'a restore that is killed leaves the old database or the new one, what was set aside is found, and it can be repeated',
  ci: 22,
  soak: 1000,
  needs: ['strace'],
  play: playKills,
};

// ------------------------------------------------------------------------------------------------------------ power cuts

/** Rounds on one file system before a new one is made. */
const AGE = 40;

interface Bench {
  readonly disk: Ext4;
  readonly stage: Stage;
}

async function playCuts(request: Request): Promise<Failure[]> {
  const power = new PowerSwitch();
  await until('the power switch', () => power.ready());
  let bench: Bench | null = null;
  let age = 0;
  let apart = false;
  const seen = { ...nothingSeen(), afterExit: 0, atRandom: 0, atCall: 0 };
  const failures = await rounds('restore-power', request, async (round) => {
    if (bench === null || age >= AGE || apart !== isApart(round)) {
      bench?.disk.unmount();
      const disk = mountExt4(96 << 20);
      apart = isApart(round);
      const work = join(disk.point, 'work');
      bench = { disk, stage: await setStage(work, apart ? join(tempDirectory('apart'), 'backups') : join(work, 'backups')) };
      age = 0;
    }
    age++;
    try {
      await oneCut(bench, power, round, seen);
    } catch (error) {
      keep(bench.stage.place, round.directory);
      // Whatever state it is in, it is unmounted at the end.
      bench = null;
      throw error;
    }
  });
  power.off();
  request.note?.(counted(seen));
  return failures;
}

async function oneCut(
  { disk, stage }: Bench,
  power: PowerSwitch,
  round: Round,
  seen: Seen & Record<'afterExit' | 'atRandom' | 'atCall', number>,
): Promise<void> {
  const { random, say } = round;
  const shape = shapeOf(round.index);
  const how = random.pick(['afterExit', 'atRandom', 'atCall', 'atCall'] as const);
  seen[how]++;
  // Now, before the place is laid out: to learn takes a restore.
  if (how === 'atRandom') await usualOf(stage, shape);
  if (how === 'atCall') await callsOf(stage, shape);
  lay(stage, shape);
  // What is there before the restore has been there for long.
  disk.unmount();
  disk.mount();
  const reader = shape.reader ? await holdOldState(stage.place.target) : null;
  const where = `${shape.name}${isApart(round) ? ', backups apart' : ''}`;
  const args = argsOf(stage, shape);
  let result: Result;
  if (how === 'afterExit') {
    say(`${where}: cut right after the end`);
    result = await dbbackup(args);
    await power.cut(disk.point);
    must(result.code === 0, () => `a restore without any fault failed: ${told(result)}`);
  } else if (how === 'atRandom') {
    const usual = await usualOf(stage, shape);
    const delay = random.between(usual * 0.3, usual * 1.05);
    say(`${where}: cut after ${Math.round(delay)} of ${Math.round(usual)} ms`);
    result = await cutAfter(args, delay, power, disk.point);
  } else {
    const call = pickCall(await callsOf(stage, shape), random);
    say(`${where}: cut at ${call.call} ${call.when}`);
    result = await cutAtCall(args, call, power, disk.point, round);
  }
  mustEnd(result, say, seen);
  await reader?.crash();
  await mustLeaveNobody(disk.point, 5000);
  disk.unmount();
  disk.mount();
  if (result.code === 0) must(judge(stage, shape, 'after exit 0') === 'new', 'exit 0, and after the power cut the old database is there');
  await mustHeal(stage, shape, round, seen);
}

export const restorePower: Scenario = {
  name: 'restore-power',
  promise: 'a power cut leaves the old database or the new one, and after exit 0 the new one',
  ci: 8,
  soak: 1000,
  needs: ['root', 'loop', 'mount', 'strace', 'python3'],
  play: playCuts,
};
