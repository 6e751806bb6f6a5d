/**
 * Guards that are killed at any moment: afterwards the database is what it was or what the command committed, never
 * neither. What the command broke is at its place or in aside/, and the backup point that the next command names brings
 * the old state back.
 */
import { cpSync, existsSync, lstatSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import {
  dbbackup,
  EXECUTABLE,
  leaveSidecars,
  makeDatabase,
  type Result,
  readJson,
  removeDirectory,
  start,
  startCommand,
  tempDirectory,
  until,
  wrap,
} from '../support/cli.js';
import { digestRows } from '../support/rows.js';
import { kill9, mustLeaveNobody, type Victims } from './ends.js';
import { counted, type Failure, mustEndCleanly, type Random, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { inPrivate, must, mustBeWhole, mustHoldNoBadCopy, sha256 } from './proof.js';
import { bytesAt, DECISIVE, elsewhere, grow, keep, OURS, type Place, rowsAt, setAsides, staged } from './restore-kill.js';
import { Calibration, type Call, readTrace } from './trace.js';

const SIZE = 400_000;

// -------------------------------------------------------------------------------------------------------------- commands

/** One transaction, so that old and new are the only right states; it spills into the file before it ends. */
const MIGRATION = `
  BEGIN IMMEDIATE;
  ALTER TABLE customer ADD COLUMN name TEXT NOT NULL DEFAULT '';
  UPDATE invoice SET note = note || ' of ' || customer;
  CREATE TABLE total (customer INTEGER PRIMARY KEY, cents INTEGER NOT NULL);
  INSERT INTO total SELECT customer, sum(cents) FROM invoice GROUP BY customer;
  DROP INDEX invoice_customer;
  CREATE INDEX invoice_of ON invoice (customer, note);
  PRAGMA user_version = 8;
  COMMIT;`;

const DRIVER = createRequire(import.meta.url).resolve('better-sqlite3');

/**
 * Plain JavaScript for `node -e`: the migration, then what `ending` says. Marks say how far it came: each is there before anybody can
 * see what it announces (`started`, `breaking.json`), or only after it is so (`committed`, `broken`).
 */
const COMMAND = `
const fs = require('node:fs');
const [driver, sql, ending, marks, path] = process.argv.slice(1);
const mark = (name, text = '') => { fs.writeFileSync(marks + '/new', text); fs.renameSync(marks + '/new', marks + '/' + name); };
mark('started');
const open = () => new (require(driver))(path);
let db = open();
db.pragma('cache_size = 5');
db.exec(sql);
mark('committed');
if (ending === 'repage') { db.pragma('journal_mode = delete'); db.pragma('page_size = 1024'); db.exec('VACUUM'); db.pragma('journal_mode = wal'); }
db.pragma('wal_checkpoint(TRUNCATE)');
const root = db.prepare("SELECT rootpage FROM sqlite_schema WHERE name = 'invoice'").pluck().get();
db.close();
const breakIt = (whole, how) => {
  mark('breaking.json', JSON.stringify(whole === null ? null : require('node:crypto').createHash('sha256').update(whole).digest('hex')));
  how();
  mark('broken');
};
const overwrite = (at) => {
  const whole = fs.readFileSync(path);
  const page = Buffer.alloc(4096, 7);
  page.copy(whole, at);
  breakIt(whole, () => { const fd = fs.openSync(path, 'r+'); fs.writeSync(fd, page, 0, 4096, at); fs.closeSync(fd); });
};
if (ending === 'header') overwrite(0);
if (ending === 'within') overwrite((root - 1) * 4096);
if (ending === 'truncate') breakIt(fs.readFileSync(path).subarray(0, 5000), () => fs.truncateSync(path, 5000));
if (ending === 'delete') breakIt(null, () => fs.rmSync(path));
process.stderr.write('the command ends\\n');
process.exit(ending === 'succeed' || ending === 'check' || ending === 'header' || ending === 'within' ? 0 : 1);
`;

interface Shape {
  readonly name: string;
  readonly journal: 'wal' | 'rollback';
  /** What the command does when it has committed. */
  readonly ending: 'succeed' | 'fail' | 'check' | 'header' | 'within' | 'truncate' | 'delete' | 'repage';
}

const SHAPES: readonly Shape[] = [
  { name: 'succeeds', journal: 'wal', ending: 'succeed' },
  { name: 'damages-header', journal: 'wal', ending: 'header' },
  { name: 'fails', journal: 'wal', ending: 'fail' },
  { name: 'deletes', journal: 'wal', ending: 'delete' },
  { name: 'fails-rollback-mode', journal: 'rollback', ending: 'fail' },
  { name: 'damages-within', journal: 'wal', ending: 'within' },
  { name: 'check-fails', journal: 'wal', ending: 'check' },
  { name: 'other-pages', journal: 'wal', ending: 'repage' },
  { name: 'succeeds-rollback-mode', journal: 'rollback', ending: 'succeed' },
  { name: 'truncates', journal: 'wal', ending: 'truncate' },
];

// ----------------------------------------------------------------------------------------------------------------- stage

interface Learnt {
  /** Milliseconds that each phase takes. */
  readonly spans: ReadonlyMap<string, number>;
  calibration: Calibration | null;
}

interface Stage {
  readonly place: Place;
  readonly templates: string;
  /** Journal mode → digest of the rows, before the command and after its commit. */
  readonly old: ReadonlyMap<string, string>;
  readonly fresh: ReadonlyMap<string, string>;
  /** By kind of shape; the same for all stages. */
  readonly learnt: Map<string, Learnt>;
}

const marksOf = ({ root }: Place): string => join(root, 'marks');

async function setStage(root: string, to: string, learnt: Map<string, Learnt>): Promise<Stage> {
  const place: Place = { root, target: join(root, 'db/app.db'), to };
  const templates = tempDirectory('guards');
  const old = new Map<string, string>();
  const fresh = new Map<string, string>();
  rmSync(root, { recursive: true, force: true });
  mkdirSync(join(root, 'db'), { recursive: true, mode: 0o700 });
  makeDatabase(place.target, { bytes: SIZE });
  // A copy of an older state: nobody may take it for the backup point.
  const run = await dbbackup(['run', place.target, '--to', place.to, '--json']);
  must(run.code === 0, () => `no copy beforehand: ${told(run)}`);
  cpSync(place.to, join(templates, 'backups'), { recursive: true });
  for (const journal of ['wal', 'rollback'] as const) {
    const directory = join(templates, journal);
    const path = join(directory, 'app.db');
    mkdirSync(directory, { mode: 0o700 });
    makeDatabase(path, { bytes: SIZE, journal: journal === 'wal' ? 'wal' : 'delete' });
    grow(path);
    if (journal === 'wal') await leaveSidecars(path);
    rmSync(`${path}-shm`, { force: true });
    old.set(journal, rowsAt(directory));
    const migrated = tempDirectory('migrated');
    cpSync(directory, migrated, { recursive: true });
    const { code, stderr } = await startCommand([...commandOf('fail', migrated).slice(0, -1), join(migrated, 'app.db')]).result;
    must(code === 1 && stderr.includes('the command ends'), () => `the migration does not work: ${stderr}`);
    fresh.set(journal, rowsAt(migrated));
    removeDirectory(migrated);
  }
  return { place, templates, old, fresh, learnt };
}

const commandOf = (ending: Shape['ending'], marks: string): string[] => [process.execPath, '-e', COMMAND, DRIVER, MIGRATION, ending, marks, '{}'];

const argsOf = ({ place }: Stage, ending: Shape['ending']): string[] => [
  'guard',
  '--database',
  place.target,
  '--to',
  place.to,
  '--json',
  ...(ending === 'check' ? ['--check', "SELECT 1 FROM invoice WHERE note LIKE '% of %'"] : []),
  '--',
  ...commandOf(ending, marksOf(place)),
];

function lay({ place, templates }: Stage, { journal }: Shape): void {
  for (const path of [place.root, place.to]) rmSync(path, { recursive: true, force: true });
  mkdirSync(place.root, { mode: 0o700 });
  mkdirSync(marksOf(place));
  cpSync(join(templates, journal), join(place.root, 'db'), { recursive: true });
  cpSync(join(templates, 'backups'), place.to, { recursive: true });
}

/** Where each phase begins in what a guard says; the last one is the check afterwards and the way back. */
const PHASES: readonly { readonly name: string; readonly begins: RegExp }[] = [
  { name: 'before', begins: /^/ },
  { name: 'backup', begins: /^check /m },
  { name: 'command', begins: /^publish /m },
  { name: 'after', begins: /^the command ends$/m },
];

/** Shapes that go the same way are learnt from one of them. */
function kindOf({ ending, journal }: Shape): string {
  if (ending === 'succeed' || ending === 'repage') return `${ending} ${journal}`;
  return `${ending === 'fail' || ending === 'check' ? 'live' : 'offline'} ${journal}`;
}

async function learn(stage: Stage, shape: Shape): Promise<Learnt> {
  const known = stage.learnt.get(kindOf(shape));
  if (known) return known;
  lay(stage, shape);
  const began = performance.now();
  const run = start(argsOf(stage, shape.ending));
  const times: number[] = [];
  for (const { name, begins } of PHASES) {
    await until(name, () => begins.test(run.stderr()) || !run.isRunning(), 20_000, 1);
    times.push(performance.now() - began);
  }
  mustHaveEndedWell(stage, shape, await run.result);
  times.push(performance.now() - began);
  const spans = new Map(PHASES.map(({ name }, i) => [name, (times[i + 1] ?? 0) - (times[i] ?? 0)]));
  const learnt: Learnt = { spans, calibration: null };
  stage.learnt.set(kindOf(shape), learnt);
  return learnt;
}

async function trace(stage: Stage, shape: Shape, learnt: Learnt): Promise<Calibration> {
  if (learnt.calibration) return learnt.calibration;
  lay(stage, shape);
  const directory = tempDirectory('trace');
  const run = await dbbackup(argsOf(stage, shape.ending), { through: wrap.trace(join(directory, 'log'), DECISIVE.join()) });
  mustHaveEndedWell(stage, shape, run);
  learnt.calibration = new Calibration(readTrace(join(directory, 'log')).filter((c) => c.line.includes(OURS)));
  must(learnt.calibration.size > 50, `the trace of ${shape.name} shows only ${learnt.calibration.size} calls`);
  removeDirectory(directory);
  return learnt.calibration;
}

/** What every shape comes to when nobody kills anything. */
function mustHaveEndedWell(stage: Stage, shape: Shape, run: Result): void {
  const good = shape.ending === 'succeed';
  must(run.code === (good ? 0 : 1) && (run.json.rolledBack ?? false) === !good, () => `${shape.name}: without any fault: ${told(run)}`);
  const state = judge(stage, shape, `${shape.name}, without any fault`);
  must(state === (good ? 'new' : 'old'), `${shape.name}: without any fault the database is ${state}`);
}

/** Calls that the guard makes itself, on its way back. */
const SWAP = ['link', 'rename', 'unlink', 'rmdir', 'mkdir', 'fsync', 'chmod', 'chown'];

/** Mostly a call of the moments that count: in aside/ and at the name of the database, or on the database and beside it. */
function pickCall(calibration: Calibration, random: Random): Call {
  const swap = calibration.only((c) => SWAP.includes(c.call) && /\/aside\b|"[^"]*\/work\/db\b/.test(c.line) && !c.line.includes('/marks'));
  if (swap.size > 0 && random.chance(0.5)) return swap.pick(random);
  const near = calibration.only((c) => /\/aside\b|\/work\/db\b/.test(c.line));
  return (random.chance(0.6) ? near : calibration).pick(random, DECISIVE);
}

// ----------------------------------------------------------------------------------------------------------------- judge

type State = 'old' | 'new' | 'broken';

interface Marks {
  readonly started: boolean;
  readonly committed: boolean;
  /** The digest of the file as the command meant to leave it; null: no file. Undefined: it did not come that far. */
  readonly breaking: string | null | undefined;
  readonly broken: boolean;
}

function readMarks({ place }: Stage): Marks {
  const has = (name: string): boolean => existsSync(join(marksOf(place), name));
  return {
    started: has('started'),
    committed: has('committed'),
    breaking: has('breaking.json') ? (readJson(join(marksOf(place), 'breaking.json')) as string | null) : undefined,
    broken: has('broken'),
  };
}

/** What it was, what the command committed, or what it made of that: anything else throws. */
function judge(stage: Stage, shape: Shape, when: string): State {
  const { place } = stage;
  const marks = readMarks(stage);
  const there = existsSync(place.target) ? sha256(place.target) : null;
  if (marks.breaking !== undefined && there === marks.breaking) return 'broken';
  // The way back had not reached the name yet: what the command left is in aside/.
  if (there === null && marks.breaking !== undefined && isKeptBroken(place, marks)) return 'broken';
  must(there !== null, `${when}: there is no database`);
  const rows = (() => {
    try {
      return rowsAt(join(place.root, 'db'));
    } catch (error) {
      must(false, `${when}: neither the old state nor the new one: ${String(error)}`);
    }
  })();
  if (rows === stage.fresh.get(shape.journal)) {
    must(marks.started, `${when}: the new state, and the command was never started`);
    must(!marks.broken, `${when}: what the command broke is whole again, and not the old state`);
    return 'new';
  }
  must(rows === stage.old.get(shape.journal), `${when}: a database that is neither the old one nor what the command committed`);
  mustBeKept(stage, shape, marks, when);
  return 'old';
}

const isKeptBroken = (place: Place, { breaking }: Marks): boolean => setAsides(place).some(({ directory }) => bytesAt(directory).get('') === breaking);

/** The old state is there again: what the command had made of it is not lost. */
function mustBeKept(stage: Stage, shape: Shape, marks: Marks, when: string): void {
  const { place } = stage;
  if (marks.broken) {
    must(marks.breaking === null || isKeptBroken(place, marks), `${when}: what the command broke is neither at its place nor in aside/`);
    return;
  }
  // Killed between the deletion that it had announced and its mark: what it had committed, it has deleted itself.
  if (!marks.committed || marks.breaking === null) return;
  const fresh = stage.fresh.get(shape.journal);
  const asides = setAsides(place).some(({ directory }) => {
    if (marks.breaking !== undefined && bytesAt(directory).get('') === marks.breaking) return true;
    try {
      return existsSync(join(directory, 'app.db')) && rowsAt(directory) === fresh;
    } catch {
      return false;
    }
  });
  const copies = (): boolean => readdirSync(place.to).some((n) => n.endsWith('.db') && inPrivate(join(place.to, n), digestRows) === fresh);
  must(asides || copies(), `${when}: what the command committed is nowhere`);
}

/** All backup points hold the old state, whatever else there is. */
function mustHoldOldStates(stage: Stage, shape: Shape, when: string): string[] {
  const { place } = stage;
  const points = [...mustHoldNoBadCopy(place.to, when).pairs].filter(([, { tags }]) => tags.includes('before-guard')).map(([file]) => file);
  for (const file of points) {
    const rows = inPrivate(join(place.to, file), digestRows);
    must(rows === stage.old.get(shape.journal), `${when}: the backup point ${file} does not hold the old state`);
  }
  return points;
}

// ------------------------------------------------------------------------------------------------------------ afterwards

type Seen = Record<State | 'started' | 'inCommand' | 'ended' | 'rolledBack' | 'exit4' | 'pending' | 'hotJournal' | 'staged' | 'inAsideOnly', number>;

const nothingSeen = (): Seen => ({
  old: 0,
  new: 0,
  broken: 0,
  started: 0,
  inCommand: 0,
  ended: 0,
  rolledBack: 0,
  exit4: 0,
  pending: 0,
  hotJournal: 0,
  staged: 0,
  inAsideOnly: 0,
});

/** As the application does when it starts; the rows stay what they are. */
function useOnce(path: string): void {
  const db = new Database(path, { fileMustExist: true, timeout: 1000 });
  db.exec("INSERT INTO beat (at) VALUES ('used once'); DELETE FROM beat WHERE at = 'used once'");
  db.close();
}

/** The line to paste, as a text names it. */
const lineIn = (text: string | undefined): string | null => /dbbackup restore [^;]*? --yes/.exec(text ?? '')?.[0] ?? null;

/** What holds once the dust has settled. `result`: null where the guard itself was killed. */
async function mustHeal(stage: Stage, shape: Shape, result: Result | null, { random, say }: Round, seen: Seen): Promise<void> {
  const { place } = stage;
  const marks = readMarks(stage);
  const state = judge(stage, shape, 'afterwards');
  const pending = setAsides(place).some((a) => a.pending);
  const hot = existsSync(`${place.target}-journal`) && lstatSync(`${place.target}-journal`).size > 0;
  say(`then: ${state}${marks.started ? ', started' : ''}${pending ? ', aside pending' : ''}${hot ? ', hot journal' : ''}, staged ${staged(place).length}`);
  seen[state]++;
  if (marks.started) seen.started++;
  if (marks.started && !marks.committed) seen.inCommand++;
  if (pending) seen.pending++;
  if (hot) seen.hotJournal++;
  if (staged(place).length > 0) seen.staged++;
  if (state === 'broken' && marks.breaking !== null && !existsSync(place.target)) seen.inAsideOnly++;
  const points = mustHoldOldStates(stage, shape, 'afterwards');
  must(!marks.started || points.length === 1, `the command was started, and there are ${points.length} backup points`);

  const wayBack = await theWayBack(stage, state, result, marks, points);
  const next = random.pick(['prune', 'restore'] as const);
  say(`next: ${next}`);
  if (next === 'prune' || wayBack === null) {
    const prune = await dbbackup(['prune', '--to', place.to, '--json']);
    must(prune.code === 0, () => `prune: ${told(prune)}`);
    if (wayBack?.died) {
      const said = (prune.json.warnings ?? []).filter((w) => w.code === 'LAST_RUN_DIED').map((w) => w.message);
      must(
        said.some((m) => lineIn(m) === wayBack.line),
        () => `the prune does not name the way back: ${JSON.stringify(prune.json.warnings)}`,
      );
    }
    const then = judge(stage, shape, 'after the prune');
    must(then === state, `${state} before the prune, ${then} after it`);
  }
  // A hot journal is rolled back by whoever opens the database to write (traps, 3): the application.
  if (hot && state !== 'broken') useOnce(place.target);
  if (wayBack !== null) {
    const back = await startCommand(['sh', '-c', `"$0" ${wayBack.line.replace(/^dbbackup /, '')} --json`, EXECUTABLE]).result;
    must(back.code === 0, () => `${wayBack.line}: ${told(back)}`);
    must(judge(stage, shape, 'after the way back') === 'old', `${wayBack.line}: it did not bring back the old state`);
    if (marks.breaking !== undefined && state === 'broken') {
      must(marks.breaking === null || isKeptBroken(place, marks), 'after the way back: what the command broke is not in aside/');
    }
    must(staged(place).length === 0, () => `left beside the database: ${staged(place).join(', ')}`);
    must(!setAsides(place).some((a) => a.pending), 'something is still pending in aside/');
  } else must(state === 'old', `no way back is named, and the database is ${state}`);
  await nextMustWork(stage, shape);
}

interface WayBack {
  readonly line: string;
  /** The guard could not say so itself: the next command does. */
  readonly died: boolean;
}

/** The line that brings the old state back, as it is said; null where there is nothing to bring back. */
async function theWayBack({ place }: Stage, state: State, result: Result | null, { started }: Marks, points: readonly string[]): Promise<WayBack | null> {
  const history = await dbbackup(['history', '--to', place.to, '--json']);
  must(history.code === 0, () => `history: ${told(history)}`);
  const record = history.json.runs?.find((r) => r.command === 'guard');
  if (!started) return null;
  must(record?.backupPoint === points[0], () => `the history names ${record?.backupPoint} as backup point, and it is ${points[0]}`);
  const died = result === null && record?.status === 'interrupted';
  if (died || result?.code === 4) {
    const hint = result?.json.error?.hint ?? record?.error?.hint;
    const line = lineIn(hint);
    must(line !== null, () => `no way back is named: ${hint}`);
    must(line.includes(points[0] ?? ''), () => `the way back is named wrongly: ${hint}`);
    return { line, died };
  }
  // Killed when all was done and written down: then what is written is so.
  const expected = record?.status === 'ok' ? 'new' : record?.status === 'rolled_back' ? 'old' : null;
  must(state === expected, () => `the history calls the guard ${record?.status}, and the database is ${state}`);
  return { line: `dbbackup restore ${points[0]} --into ${place.target} --to ${place.to} --yes`, died };
}

/** The old state is there: the same migration once more, and this time nobody kills it. */
async function nextMustWork(stage: Stage, shape: Shape): Promise<void> {
  const { place } = stage;
  rmSync(marksOf(place), { recursive: true });
  mkdirSync(marksOf(place));
  const next = await dbbackup(argsOf(stage, 'succeed'));
  must(next.code === 0, () => `the next guard: ${told(next)}`);
  must(judge(stage, shape, 'after the next guard') === 'new', 'the next guard changed nothing');
  mustHoldOldStates(stage, shape, 'after the next guard');
  must(staged(place).length === 0, () => `left beside the database: ${staged(place).join(', ')}`);
  mustBeWhole(place.to, 'after the next guard');
  useOnce(place.target);
}

// ----------------------------------------------------------------------------------------------------------------- kills

type Way = Victims | 'call';

async function playKills(request: Request): Promise<Failure[]> {
  const home = tempDirectory('guard-kill');
  const work = join(home, 'work');
  const apart = elsewhere();
  const learnt = new Map<string, Learnt>();
  const stages = [await setStage(work, join(work, 'backups'), learnt), await setStage(work, join(apart, 'backups'), learnt)] as const;
  const seen = { ...nothingSeen(), parent: 0, child: 0, both: 0, call: 0 };
  const failures = await rounds('guard-kill', request, async (round) => {
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

async function oneKill(stage: Stage, round: Round, seen: Seen & Record<Way, number>): Promise<void> {
  const { random, say } = round;
  const shape = shapeOf(round.index);
  const learnt = await learn(stage, shape);
  const how = random.pick<Way>(['parent', 'parent', 'child', 'both', 'call', 'call', 'call']);
  seen[how]++;
  const where = `${shape.name}${isApart(round) ? ', backups apart' : ''}`;
  const result = how === 'call' ? await atCall(stage, shape, learnt, round, where) : await atRandom(stage, shape, learnt, round, where, how);
  const killed = result.signal === 'SIGKILL' || result.code === 137;
  if (killed) say('killed');
  else mustEnd(result, say, seen);
  await mustLeaveNobody(stage.place.root);
  if (!killed) mustBeAsSaid(stage, shape, result);
  await mustHeal(stage, shape, killed ? null : result, round, seen);
}

/** strace kills whoever comes to a chosen system call first: the guard, its workers, or the command. */
async function atCall(stage: Stage, shape: Shape, learnt: Learnt, { random, say, directory }: Round, where: string): Promise<Result> {
  const { call, when } = pickCall(await trace(stage, shape, learnt), random);
  say(`${where}: kill -9 at ${call} ${when}`);
  lay(stage, shape);
  mkdirSync(join(directory, 'trace'));
  return await dbbackup(argsOf(stage, shape.ending), { through: wrap.fault(join(directory, 'trace/log'), [{ calls: call, signal: 'KILL', when }]) });
}

/** Mostly from the start of the command on: where it fails, the way back is the longest. */
function pickPhase({ ending }: Shape, random: Random): (typeof PHASES)[number] {
  const [command, after] = [PHASES.slice(2), PHASES.slice(3)];
  return random.pick(ending === 'succeed' ? [...PHASES, ...command] : [...PHASES, ...command, ...command, ...after, ...after]);
}

async function atRandom(stage: Stage, shape: Shape, learnt: Learnt, { random, say }: Round, where: string, how: Victims): Promise<Result> {
  const phase = pickPhase(shape, random);
  const span = learnt.spans.get(phase.name) ?? 0;
  const delay = random.between(0, span * 1.05);
  lay(stage, shape);
  const run = start(argsOf(stage, shape.ending));
  await until(phase.name, () => phase.begins.test(run.stderr()) || !run.isRunning(), 20_000, 1);
  await new Promise((r) => setTimeout(r, delay));
  const killed = kill9(run, how, random);
  say(`${where}: kill -9 of ${how} in phase ${phase.name} after ${Math.round(delay)} of ${Math.round(span)} ms (${killed})`);
  return await run.result;
}

/** A guard that lost a child ends by itself: 0, 1, or 4 where a person is needed. */
function mustEnd(result: Result, say: (text: string) => void, seen: Seen): void {
  say(told(result));
  seen.ended++;
  if (result.code === 4) {
    must(result.json.error?.code === 'ROLLBACK_FAILED', () => `exit 4: ${told(result)}`);
    seen.exit4++;
  } else mustEndCleanly(result);
  if (result.json.rolledBack) seen.rolledBack++;
}

/** It could still speak: then what it said is so. */
function mustBeAsSaid(stage: Stage, shape: Shape, { code, json }: Result): void {
  const state = judge(stage, shape, `after exit ${code}`);
  if (code === 0) must(state === 'new', `exit 0, and the database is ${state}`);
  if (code === 1) must(state === 'old', `exit 1 with ${json.error?.code}, and the database is ${state}`);
  if (code === 1 && readMarks(stage).started) must(json.rolledBack === true, 'exit 1 after the command, and no roll-back is recorded');
}

export const guardKill: Scenario = {
  name: 'guard-kill',
  promise: 'a guard that is killed leaves the old state or what its command made, nothing is lost, and the way back that is named works',
  ci: 10,
  soak: 1000,
  needs: ['strace'],
  play: playKills,
};
