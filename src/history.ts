/**
 * The record of every run, all names in one SQLite file of its own, so that it can be read while a run holds its lock.
 * Rollback-journal mode: a reader of another user then leaves nothing behind.
 */
import { closeSync, constants, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import type { Content } from './artifacts.js';
import { isFuture } from './catalog.js';
import { isSpoilt, ownerOf, SPOILT } from './look-failure.js';
import type { Failure, Killed, Warning, Whereabouts } from './outcome.js';
import { critical, describe, errnoOf, errnoWords, Failed, warning } from './outcome.js';
import type { CommandName, Copy, RunRecord } from './records.js';
import { isFinishedRun, isRunRecord } from './records.js';
import type { Database } from './system/database.js';
import { openDatabase } from './system/database.js';
import { lstatOrNull } from './system/files.js';
import type { ProcessId } from './system/processes.js';
import { identity, isGone, ownProcessId } from './system/processes.js';
import { isStateElsewhere, whereabouts, workspace } from './workspace.js';

/** Runs kept per name; older ones go. A run a minute fills this in a week, a nightly one in 27 years. */
const KEPT_PER_NAME = 10_000;
/** And of these beyond that number. */
const KEPT_SELDOM = 1000;
const SELDOM = "record ->> '$.command' IN ('restore', 'guard', 'verify')";
/** Proofs kept, of all names. One that is gone is only made anew. */
const KEPT_PROOFS = 10_000;
/** Short, since it blocks the event loop and signals must be heard within 2 s. */
const BUSY_MS = 1000;

/** Commands that hold the lock of the name from beginning to end, whatever their flags. */
const HOLD_THE_LOCK: ReadonlySet<CommandName> = new Set(['run', 'prune', 'guard']);

/** Not one that another run kept from starting: it did nothing, and nobody is told of it. */
const COUNTED = "dry_run = 0 AND status <> 'running' AND coalesce(record ->> '$.exitCode', 0) <> 75";
const TRIMMED_TOO = 'UNION ALL SELECT command, status, runs FROM trimmed WHERE name = :name';

/** Runs of one command that ended in one way. */
export interface RunCount {
  readonly command: string;
  readonly status: string;
  readonly runs: number;
}

/** All that a history holds. A statement that is changed here makes another table of those that are there. */
const SCHEMA = [
  'CREATE TABLE runs(seq INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, name TEXT, status TEXT NOT NULL, dry_run INTEGER NOT NULL, process TEXT NOT NULL, record TEXT NOT NULL)',
  'CREATE INDEX runs_by_name ON runs(name, seq)',
  'CREATE TABLE told(key TEXT PRIMARY KEY, at TEXT NOT NULL)',
  'CREATE TABLE destinations(destination TEXT NOT NULL, name TEXT NOT NULL, since TEXT NOT NULL, PRIMARY KEY(destination, name))',
  'CREATE TABLE uploads(destination TEXT NOT NULL, file TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY(destination, file))',
  'CREATE TABLE removals(destination TEXT NOT NULL, file TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY(destination, file))',
  'CREATE TABLE proofs(seq INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, claims TEXT NOT NULL, tool TEXT NOT NULL, sqlite TEXT NOT NULL, at TEXT NOT NULL, UNIQUE(sha256, claims, tool, sqlite))',
  'CREATE TABLE trimmed(name TEXT NOT NULL, command TEXT NOT NULL, status TEXT NOT NULL, runs INTEGER NOT NULL, PRIMARY KEY(name, command, status))',
] as const;

interface Row {
  readonly record: string;
  readonly process: string;
}

/** The column `process`: who writes the record, and into which backup directory it works. Older versions did not say that. */
interface Writer extends ProcessId {
  readonly to?: string;
}

/** A record that still says "running" though nobody is at work any more. */
export interface Unfinished {
  readonly record: RunRecord;
  /** Its own backup directory. */
  readonly to: string;
  /** The run came to its end, and could only not write that down. */
  readonly hasEnded: boolean;
}

export const historyPath = (stateDir: string): string => join(stateDir, 'history.db');

/** That the history cannot be read or written. One that is damaged stays so until somebody moves it away: no night may be silent about that. */
export function historyWarning(stateDir: string, what: 'read' | 'written', error: unknown): Warning {
  const message = `the history in ${stateDir} cannot be ${what}: ${errnoWords(error)}`;
  if (isSpoilt(error)) {
    return critical('STATE_UNWRITABLE', `${message}; move ${historyPath(stateDir)} away, and the next run makes a new one`);
  }
  const owner =
    errnoOf(error).startsWith('SQLITE_CANTOPEN') || errnoOf(error).startsWith('SQLITE_READONLY') ? ownerOf(historyPath(stateDir), identity().uid) : null;
  if (owner !== null) return warning('STATE_UNWRITABLE', `${message}: it belongs to ${owner}`);
  // Without SQLite no run can make a copy.
  return error instanceof Failed ? critical('STATE_UNWRITABLE', message) : warning('STATE_UNWRITABLE', message);
}

/** The history of one state directory. Every method may throw what SQLite says. */
export class History {
  readonly #db: Database;
  readonly #stateDir: string;
  readonly #to: string;

  private constructor(db: Database, stateDir: string, to: string) {
    this.#db = db;
    this.#stateDir = stateDir;
    this.#to = to;
  }

  /**
   * Opens for writing, creating it where it is missing. The state directory must exist. Throws what the system says.
   * @param to the backup directory
   */
  static openToWrite(stateDir: string, to: string): History {
    const path = historyPath(stateDir);
    const there = lstatOrNull(path);
    if (there && !there.isFile()) throw Object.assign(new Error(`${path} is not a regular file`), { code: 'EPERM' });
    refuseForeign(stateDir, path);
    const db = openDatabase(path, { timeout: BUSY_MS });
    try {
      db.pragma('trusted_schema = OFF');
      const isNew = db.pragma('user_version', { simple: true }) !== 1;
      if (isNew || db.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'proofs'").get() === undefined) {
        db.exec(
          `BEGIN IMMEDIATE; ${SCHEMA.map((sql) => sql.replace(/^CREATE (TABLE|INDEX) /, 'CREATE $1 IF NOT EXISTS ')).join('; ')}; PRAGMA user_version = 1; COMMIT`,
        );
      }
      refuseHostile(db);
      return new History(db, stateDir, to);
    } catch (error) {
      db.close();
      throw error;
    }
  }

  /** As `openToWrite`, but what is there, and read-only; null when there is none. */
  static openToRead(stateDir: string, to: string): History | null {
    const path = historyPath(stateDir);
    const there = lstatOrNull(path);
    const directory = lstatOrNull(stateDir);
    if (directory && !directory.isDirectory()) throw Object.assign(new Error(`${stateDir} is not a directory`), { code: 'EPERM' });
    if (!there) return null;
    refuseForeign(stateDir, path);
    if (there.size === 0) return null;
    const open = (readonly: boolean): History | null => {
      const db = openDatabase(path, { readonly, fileMustExist: true, timeout: BUSY_MS });
      try {
        db.pragma('trusted_schema = OFF');
        if (db.pragma('user_version', { simple: true }) === 1) {
          refuseHostile(db);
          return new History(db, stateDir, to);
        }
      } catch (error) {
        db.close();
        throw error;
      }
      db.close();
      return null;
    };
    try {
      return open(true);
    } catch (error) {
      // A run was killed while it wrote: only a writer can roll its journal back.
      if (!errnoOf(error).startsWith('SQLITE_READONLY')) throw error;
      return open(false);
    }
  }

  /** Writes a record, new or changed, with the process that writes it. */
  save(record: RunRecord): void {
    this.#db
      .prepare(
        `INSERT INTO runs(run_id, name, status, dry_run, process, record) VALUES (:runId, :name, :status, :dryRun, :process, :record)
         ON CONFLICT(run_id) DO UPDATE SET status = :status, record = :record`,
      )
      .run({
        runId: record.runId,
        name: record.name,
        status: record.status,
        dryRun: record.dryRun ? 1 : 0,
        process: JSON.stringify({ ...ownProcessId(), to: this.#to } satisfies Writer),
        record: JSON.stringify(record),
      });
  }

  /**
   * Removes what is beyond the kept number of one name, or of none; their numbers stay, since a counter must not go back. The first record
   * stays, since it says when all began, and of what is seldom done more: that a copy was proven, and what a person still has to settle.
   */
  trim(name: string | null): void {
    const nth = (more: string, of: { readonly n: number; readonly last?: number }): number =>
      this.#db
        .prepare<unknown[], number>(`SELECT seq FROM runs WHERE name IS :name ${more} ORDER BY seq DESC LIMIT 1 OFFSET :n`)
        .pluck()
        .get({ name, ...of }) ?? 0;
    const last = nth('', { n: KEPT_PER_NAME });
    if (last === 0) return;
    const lastSeldom = nth(`AND seq <= :last AND ${SELDOM}`, { n: KEPT_SELDOM, last });
    const gone = `name IS :name AND seq <= :last AND seq > (SELECT min(seq) FROM runs WHERE name IS :name) AND (seq <= :lastSeldom OR NOT ${SELDOM})`;
    this.#db.transaction(() => {
      this.#db
        .prepare(
          `INSERT INTO trimmed(name, command, status, runs)
           SELECT name, record ->> '$.command', status, count(*) FROM runs WHERE name = :name AND ${gone} AND ${COUNTED} GROUP BY 2, 3
           ON CONFLICT(name, command, status) DO UPDATE SET runs = runs + excluded.runs`,
        )
        .run({ name, last, lastSeldom });
      this.#db.prepare(`DELETE FROM runs WHERE ${gone}`).run({ name, last, lastSeldom });
    })();
  }

  /** How many runs of a name have ended in which way since its history began: neither dry nor still running ones. */
  counts(name: string): RunCount[] {
    const before = this.#db.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'trimmed'").get() === undefined ? '' : TRIMMED_TOO;
    return this.#db
      .prepare<unknown[], RunCount>(
        `SELECT command, status, sum(runs) AS runs
         FROM (SELECT record ->> '$.command' AS command, status, count(*) AS runs FROM runs WHERE name = :name AND ${COUNTED} GROUP BY 1, 2 ${before})
         GROUP BY 1, 2 ORDER BY 1, 2`,
      )
      .all({ name });
  }

  /**
   * Records, newest first, of one name or all; `limit` null: all of them. One whose process is certainly gone is shown
   * as interrupted, whoever looks.
   */
  runs(name: string | null, limit: number | null): RunRecord[] {
    const rows = this.#db
      .prepare<unknown[], Row>('SELECT record, process FROM runs WHERE :name IS NULL OR name = :name ORDER BY seq DESC LIMIT :limit')
      .all({ name, limit: limit ?? -1 });
    return rows.map((row) => this.#asSeen(row));
  }

  /** Whether a run is on record. */
  knows(runId: string): boolean {
    return this.#db.prepare('SELECT 1 FROM runs WHERE run_id = ?').get(runId) !== undefined;
  }

  /** As `runs`, one by one, and with the runs that failed before their name was known. `here`: those alone that worked in this backup directory. */
  *since(name: string | null, where: 'anywhere' | 'here' = 'anywhere'): IterableIterator<RunRecord> {
    const rows = this.#db
      .prepare<unknown[], Row>('SELECT record, process FROM runs WHERE (name IS :name OR name IS NULL) AND dry_run = 0 ORDER BY seq DESC')
      .iterate({ name });
    for (const row of rows) if (where === 'anywhere' || this.#toOf(row) === this.#to) yield this.#asSeen(row);
  }

  /**
   * Each `restore` or `guard` that left a database to be looked at by a person, oldest first: its roll-back failed, or it was killed
   * with the database in its hands. One that went well on the same database since then has settled it.
   */
  unsettled(name: string): RunRecord[] {
    const rows = this.#db
      .prepare<unknown[], Row>(
        "SELECT record, process FROM runs WHERE name = :name AND dry_run = 0 AND record ->> '$.command' IN ('restore', 'guard') ORDER BY seq DESC LIMIT 500",
      )
      .iterate({ name });
    const settled = new Set<string>();
    const found: RunRecord[] = [];
    for (const row of rows) {
      const record = this.#asSeen(row);
      const target = touchedBy(record);
      if (target === null || settled.has(target)) continue;
      // One that could only not tell people went well.
      if (record.status === 'ok' || record.status === 'incomplete') settled.add(target);
      else if (record.exitCode === 4 || (record.status === 'interrupted' && record.exitCode === null)) found.unshift(record);
    }
    return found;
  }

  /** The backup directory of a run. */
  #toOf({ process }: Row): string {
    return parse<Writer>(process).to ?? this.#to;
  }

  /**
   * Whether a run whose record still says "running", and whose process is gone, came to its end all the same: it has a workspace from its first
   * record until after its last. Where that is not known, as of another backup directory, or with state elsewhere: no.
   */
  #hasEnded({ command, name, runId }: RunRecord, to: string): boolean {
    if (to !== this.#to || isStateElsewhere(to, this.#stateDir) || name === null || command !== 'run') return false;
    try {
      return !lstatOrNull(workspace(to, name, runId).directory);
    } catch {
      // Who only reads may not look in there.
      return false;
    }
  }

  #asSeen(row: Row): RunRecord {
    const record = recordIn(row.record);
    if (record.status !== 'running' || !isGone(parse<Writer>(row.process))) return record;
    const to = this.#toOf(row);
    return this.#hasEnded(record, to) ? asUnrecorded(record, null) : asKilled(record, null, whereabouts(to, this.#stateDir));
  }

  /** When the oldest record of a name began, milliseconds since the epoch; null: there is none. */
  beganAt(name: string): number | null {
    const at = this.#db
      .prepare<unknown[], string>("SELECT record ->> '$.startedAt' FROM runs WHERE name = ? AND dry_run = 0 ORDER BY seq LIMIT 1")
      .pluck()
      .get(name);
    return at === undefined ? null : Date.parse(at);
  }

  /** When the last `verify` began that proved a stored copy of a name in full, milliseconds since the epoch; null: none did, by a clock that was not ahead of `now`. */
  provenAt(name: string, now: number): number | null {
    const rows = this.#db
      .prepare<unknown[], string>("SELECT record FROM runs WHERE name = ? AND dry_run = 0 AND record ->> '$.command' = 'verify' ORDER BY seq DESC")
      .pluck()
      .iterate(name);
    for (const row of rows) {
      const { results, startedAt } = recordIn(row);
      const at = Date.parse(startedAt);
      if (!isFuture(at, now) && results?.some((r) => r.proved === 'full' && r.problems.length === 0)) return at;
    }
    return null;
  }

  /** The last `run` of a name that was not dry, and is such a one. */
  lastRun(name: string, isOne: (record: RunRecord) => boolean = () => true): RunRecord | null {
    for (const record of this.since(name)) {
      if (record.command === 'run' && record.name === name && isOne(record)) return record;
    }
    return null;
  }

  /** The names that have runs other than dry ones, in alphabetical order. */
  names(): string[] {
    return this.#db.prepare<[], string>('SELECT DISTINCT name FROM runs WHERE name IS NOT NULL AND dry_run = 0 ORDER BY name').pluck().all();
  }

  /** The last of a name that `isFinishedRun`. */
  lastFinished(name: string): RunRecord | null {
    for (const record of this.since(name)) {
      if (record.name === name && isFinishedRun(record)) return record;
    }
    return null;
  }

  /**
   * Records of a name that still say "running". `held`: the caller holds the lock of the name, so whoever needs it is
   * dead; of the others only those whose process is certainly gone are returned, and that did not come to their end.
   */
  unfinished(name: string, held: 'held' | 'not held'): Unfinished[] {
    return this.#db
      .prepare<unknown[], Row>("SELECT record, process FROM runs WHERE name = :name AND status = 'running' ORDER BY seq")
      .all({ name })
      .map((row) => {
        const record = recordIn(row.record);
        const to = this.#toOf(row);
        return { record, to, isGone: isGone(parse<Writer>(row.process)), hasEnded: this.#hasEnded(record, to) };
      })
      .filter((one) => (held === 'held' && HOLD_THE_LOCK.has(one.record.command)) || (one.isGone && !one.hasEnded));
  }

  /** Since when a name has this destination; from `now` on, if it is new. */
  destinationSince(destination: string, name: string, now: Date): Date {
    const since = this.#db.prepare<unknown[], string>('SELECT since FROM destinations WHERE destination = ? AND name = ?').pluck().get(destination, name);
    if (since !== undefined) return new Date(since);
    this.#db.prepare('INSERT OR IGNORE INTO destinations(destination, name, since) VALUES (?, ?, ?)').run(destination, name, now.toISOString());
    return now;
  }

  /** Whether a copy was proven to have arrived. */
  hasUploaded(destination: string, file: string): boolean {
    return this.#db.prepare('SELECT 1 FROM uploads WHERE destination = ? AND file = ?').get(destination, file) !== undefined;
  }

  /** The files of a name, or of all, that were proven to have arrived and were not removed there by us. */
  uploadedFiles(destination: string, name: string | null): string[] {
    const prefix = name === null ? '' : `${name}-`;
    return this.#db
      .prepare<unknown[], string>(
        `SELECT file FROM uploads WHERE destination = :destination AND substr(file, 1, length(:prefix)) = :prefix
         AND NOT EXISTS (SELECT 1 FROM removals r WHERE r.destination = uploads.destination AND r.file = uploads.file) ORDER BY file DESC`,
      )
      .pluck()
      .all({ destination, prefix });
  }

  noteRemoved(destination: string, file: string, at: Date): void {
    this.#db.prepare('INSERT OR REPLACE INTO removals(destination, file, at) VALUES (?, ?, ?)').run(destination, file, at.toISOString());
  }

  noteUploaded(destination: string, file: string, at: Date): void {
    this.#db.prepare('INSERT OR REPLACE INTO uploads(destination, file, at) VALUES (?, ?, ?)').run(destination, file, at.toISOString());
  }

  /** Writes down that this content was proven in full. `by`: which version of ours did, beside the build of SQLite. */
  noteProven({ sha256, claims }: Content, by: string, at: Date): void {
    this.#db.transaction(() => {
      const { lastInsertRowid } = this.#db
        .prepare('INSERT OR REPLACE INTO proofs(sha256, claims, tool, sqlite, at) VALUES (?, ?, ?, sqlite_source_id(), ?)')
        .run(sha256, claims, by, at.toISOString());
      this.#db.prepare('DELETE FROM proofs WHERE seq <= ?').run(Number(lastInsertRowid) - KEPT_PROOFS);
    })();
  }

  /** When this content was last proven in full by the same version and build, RFC 3339; null: never, as far as is known. */
  contentProvenAt({ sha256, claims }: Content, by: string): string | null {
    const at = this.#db
      .prepare<unknown[], string>('SELECT at FROM proofs WHERE sha256 = ? AND claims = ? AND tool = ? AND sqlite = sqlite_source_id()')
      .pluck()
      .get(sha256, claims, by);
    return at === undefined || Number.isNaN(Date.parse(at)) ? null : at;
  }

  forgetProven(sha256: string): void {
    this.#db.prepare('DELETE FROM proofs WHERE sha256 = ?').run(sha256);
  }

  /** When people were told of this, milliseconds since the epoch; null: they were not. */
  toldAt(key: string): number | null {
    const at = this.#db.prepare<unknown[], string>('SELECT at FROM told WHERE key = ?').pluck().get(key);
    return at === undefined ? null : Date.parse(at);
  }

  /** Whether people were told of this already. */
  wasTold(key: string): boolean {
    return this.#db.prepare('SELECT 1 FROM told WHERE key = ?').get(key) !== undefined;
  }

  noteTold(key: string, at: Date): void {
    this.#db.prepare('INSERT OR REPLACE INTO told(key, at) VALUES (?, ?)').run(key, at.toISOString());
  }

  close(): void {
    this.#db.close();
  }
}

/** State of a third user is not believed: it could make us wait for ever, or lie. A FIFO for a journal would make SQLite hang. */
function refuseForeign(stateDir: string, path: string): void {
  const owner = lstatOrNull(stateDir)?.uid;
  for (const file of [path, `${path}-journal`, `${path}-wal`, `${path}-shm`]) {
    const stats = lstatOrNull(file);
    if (!stats) continue;
    if (!stats.isFile()) throw Object.assign(new Error(`${file} is not a regular file`), { code: 'EPERM' });
    if (stats.uid !== owner && stats.uid !== 0 && stats.uid !== process.geteuid?.())
      throw Object.assign(new Error(`${file} belongs to uid ${stats.uid}`), { code: 'EPERM' });
  }
  if (namesAnother(`${path}-journal`)) throw Object.assign(new Error(`${path}-journal is none of ours: it names another file`), { code: 'EPERM' });
}

/** What stands at the end of a journal that names a super-journal (https://sqlite.org/fileformat2.html, "The Rollback Journal"). */
const SUPER = Buffer.from('d9d505f920a163d7', 'hex');

/**
 * Rolling back such a journal removes the file that it names. A transaction over several databases makes one, and ours has a single one.
 * Also where it cannot be read: then SQLite must not either.
 */
function namesAnother(journal: string): boolean {
  const size = lstatOrNull(journal)?.size ?? 0;
  if (size < SUPER.length) return false;
  const fd = openSync(journal, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
  try {
    const end = Buffer.alloc(SUPER.length);
    return readSync(fd, end, 0, end.length, size - end.length) !== end.length || end.equals(SUPER);
  } finally {
    closeSync(fd);
  }
}

const notOurs = (why: string): Error => Object.assign(new Error(why), { code: SPOILT });

/** Blanks and line breaks apart. */
const wordsOf = (sql: string): string => sql.replace(/\s+/g, '').replace(/^CREATE(TABLE|INDEX)IFNOTEXISTS/, 'CREATE$1');
const OURS: ReadonlySet<string> = new Set(SCHEMA.map(wordsOf));

/** A view, a trigger, a constraint that is not ours is somebody's program: it would be run here, for as long as it likes. */
function refuseHostile(db: Database): void {
  const all = db.prepare<[], { name: string; sql: string | null }>("SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'").all();
  const foreign = all.find(({ sql }) => sql === null || !OURS.has(wordsOf(sql)));
  if (foreign) throw notOurs(`it holds ${foreign.name}, which dbbackup did not make`);
}

/** JSON that only this file writes, into a database that belongs to us. */
const parse = <T>(json: string): T => JSON.parse(json) as T;

/** A record that somebody else has written, or an older version that we do not know: nobody must fall over it later. */
function recordIn(json: string): RunRecord {
  const found: unknown = JSON.parse(json);
  if (isRunRecord(found)) return found;
  throw notOurs('it holds a record that dbbackup did not write');
}

/** The record of a run that came to its end, but could not write that down: its workspace is gone. */
export function asUnrecorded(record: RunRecord, copy: Copy | null): RunRecord {
  const message = `the ${record.command} came to its end, and could not write down how: the history could not be written`;
  const hint = 'the message that it sent says how it ended, or what it printed; see that the disk of the history is not full';
  return { ...record, copy: copy ?? record.copy, status: 'interrupted', error: { code: 'STATE_UNWRITABLE', stage: null, message, hint } };
}

/** The database that a restore or a guard had in its hands; null: it had not come so far. */
function touchedBy({ command, restored, backupPoint, guarded, source }: RunRecord): string | null {
  if (command === 'restore') return restored?.target ?? null;
  // Through a symbolic link nothing is restored.
  return command === 'guard' && backupPoint ? (guarded ?? source?.path ?? null) : null;
}

/**
 * The record of a run that could not finish it itself.
 * @param copy the copy it had published, or that the next run completed for it
 * @param unsettled what else is to be looked at, oldest first: the state before the first of them is the one to go back to
 */
export function asKilled(record: RunRecord, copy: Copy | null, at: Whereabouts, unsettled: readonly RunRecord[] = []): RunRecord {
  const failure: Failure = {
    code: 'INTERRUPTED',
    signal: 'SIGKILL',
    published: record.command === 'run' ? ((copy ?? record.copy)?.file ?? null) : null,
    ...killedAt(record, at, unsettled),
  };
  return { ...record, copy: copy ?? record.copy, status: 'interrupted', error: { code: failure.code, stage: null, ...describe(failure) } };
}

function killedAt(record: RunRecord, at: Whereabouts, unsettled: readonly RunRecord[]): { killed?: Killed } {
  const { command, source } = record;
  if (command === 'restore' && !record.restored) return { killed: { command, target: null, back: null, untouched: source?.path } };
  if (command !== 'restore' && (command !== 'guard' || !source)) return {};
  const target = touchedBy(record) ?? record.guarded ?? source?.path ?? '';
  const first = unsettled.find((earlier) => touchedBy(earlier) === target);
  const isFirst = first === undefined || first.runId === record.runId || touchedBy(record) === null;
  const from = isFirst ? record : first;
  const copy = from.command === 'restore' ? from.restored?.safetyCopy : from.backupPoint;
  const back = copy ? { ...at, copy, target, name: record.name, profile: record.profile } : null;
  return { killed: { command, target, back, isUnknown: command === 'restore' && source === null, ...(isFirst ? {} : { since: first.startedAt }) } };
}
