/**
 * The SQLite child: every statement on a source or a copy runs here, so that it can be killed in the middle of one.
 * It opens what it is told, works, closes, answers. It holds no policy: the parent decides what a finding means.
 */
import { closeSync, constants, openSync, unlinkSync } from 'node:fs';
import { setPriority } from 'node:os';
import { writeAnswer } from './answers.js';
import { constraintQuery } from './check-constraints.js';
import { systemClock } from './clock.js';
import { linesOf } from './lines.js';
import { anonBytesOf } from './memory.js';
import { leaveSignalsToParent } from './signals.js';
import type { Db } from './sqlite.js';
import { countRows, hashSchema, isSayable, listTables, needsTheApplication, number, open, openPlainly, readProperties, requireFile, using } from './sqlite.js';
import { brokenConstraints, checkAll, checkOne, checkPrivate, checkQuickly, foreignKeyViolations, LIMIT } from './sqlite-checks.js';
import { checkLive, checkPut, putInto, settle } from './sqlite-live.js';
import { cutShort, isAsVacuumLeavesIt, pagesGoneAstray } from './sqlite-pages.js';
import type { Answers, Reply, Request } from './worker-protocol.js';
import { NOTHING_FOUND } from './worker-protocol.js';

const STDIN_FD = 0;
/** For each of two children, within the 200 MB that all our processes may use. */
const PROVING_CACHE_KB = 48_000;

async function snapshot(r: Extract<Request, { op: 'snapshot' }>): Promise<Answers['snapshot']> {
  const db = open(r.source, { readonly: true, busyMs: r.busyMs, mmap: r.mmap });
  try {
    // The first reading, which waits for who holds the source.
    const schemaBefore = hashSchema(db);
    const takenAt = systemClock.now().getTime();
    requireFile(r.dev, r.ino);
    const properties = readProperties(db);
    const journalMode = String(db.pragma('journal_mode', { simple: true }));
    // The copy is synced by us, file and directory, before it is published; SQLite's own syncs would only be slower.
    db.pragma('synchronous = OFF');
    // A cache that stays in the processor's own: pages are written once, in order, and hardly read again.
    db.pragma('cache_size = -4000');
    createPrivate(r.target);
    let why: string | null = null;
    try {
      db.prepare('VACUUM INTO ?').run(r.target);
    } catch (error) {
      if (!needsTheApplication(error)) throw error;
      why = error.message;
    }
    let schemaAfter = hashSchema(db);
    // VACUUM writes "CREATE TABLE" in its own way; where somebody has edited the schema, the copy's would not be the source's.
    if (why === null && ![schemaBefore, schemaAfter].includes(schemaOf(r.target))) why = 'its text would not stay as it is';
    if (why !== null) {
      discard(r.target);
      createPrivate(r.target);
      schemaAfter = await copyPages(db, r.target);
    }
    const { v } = db.prepare<[], { v: string }>('SELECT sqlite_version() AS v').get() ?? { v: '' };
    return {
      method: why === null ? 'vacuum-into' : 'page-copy',
      takenAt,
      why,
      schemaBefore,
      schemaAfter,
      properties,
      journalMode,
      sqlite: v,
    };
  } finally {
    db.close();
  }
}

const schemaOf = (file: string): string => using(open(file, { readonly: true, busyMs: 0, mmap: false }), hashSchema);

/** SQLite takes an empty file as a target: made first, 0600 and never through a link (traps, 18). */
function createPrivate(file: string): void {
  closeSync(openSync(file, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600));
}

/** Not with `rmSync`, see biome.jsonc; nor with `remove` of files.ts, which would be much to load for a process that is to start quickly. */
function discard(file: string): void {
  for (const suffix of ['', '-journal', '-wal', '-shm']) {
    try {
      unlinkSync(file + suffix);
    } catch (error) {
      if (errorOf(error).code !== 'ENOENT') throw error;
    }
  }
}

/**
 * One step for all pages: more steps start again at every foreign write. Trap 17: "success" without a page is a lock-out. Returns the
 * schema of that very state: one transaction reads both, since an application may change it all the time.
 */
async function copyPages(db: Db, target: string): Promise<string> {
  db.exec('BEGIN');
  const schema = hashSchema(db);
  const { totalPages, remainingPages } = await db.backup(target, { progress: () => 0x7fffffff });
  db.exec('COMMIT');
  if (totalPages === 0 || remainingPages !== 0) {
    throw Object.assign(new Error('the page copy was locked out'), { code: 'SQLITE_BUSY' });
  }
  using(openPlainly(target), (copy) => {
    // The copy carries the source's WAL mode; a finished copy is one file.
    copy.pragma('journal_mode = DELETE');
    if (number(copy, 'page_count') !== totalPages) throw Object.assign(new Error('the page copy is short'), { code: 'SQLITE_IOERR_SHORT_READ' });
  });
  return schema;
}

function describe(db: Db): Answers['describe'] {
  const indexes = db.prepare<[string], number>('SELECT count(*) FROM temp.pragma_index_list(?)').pluck();
  const foreignKeys = db.prepare<[string], number>('SELECT count(*) FROM temp.pragma_foreign_key_list(?)').pluck();
  const tables = listTables(db);
  return {
    schemaHash: hashSchema(db),
    properties: readProperties(db),
    pageCount: number(db, 'page_count'),
    byTable: tables.every(({ name }) => isSayable(name)),
    tables: tables.map(({ name, type }) => {
      const rows = type === 'virtual' ? null : countRows(db, name);
      return {
        name,
        rows,
        cost: (rows ?? 0) * (1 + (indexes.get(name) ?? 0)),
        foreignKeys: type === 'table' && (foreignKeys.get(name) ?? 0) > 0,
        apart: type === 'table' && constraintQuery(db, name) !== null,
      };
    }),
  };
}

type OfFile = Extract<Request, { cellSizeCheck: boolean }>;

/** The private file that was asked about last, still open: a schema of thousands of tables is read once, and not for each of them. */
let held: { readonly of: string; readonly db: Db } | null = null;

function letGo(): void {
  const was = held;
  held = null;
  was?.db.close();
}

function readWrite<T>(r: OfFile, work: (db: Db) => T): T {
  const of = JSON.stringify([r.file, r.mmap, r.cellSizeCheck]);
  if (held?.of !== of) {
    letGo();
    held = { of, db: openPrivate(r) };
  }
  const { db } = held;
  try {
    db.pragma('ignore_check_constraints = OFF');
    return work(db);
  } catch (error) {
    // What it has seen of the file counts for nothing any more.
    letGo();
    throw error;
  }
}

function openPrivate(r: OfFile): Db {
  // Cells are checked whenever a page comes into the cache: a mapped page does so at every use, a cached one once.
  const db = open(r.file, { readonly: false, busyMs: 0, mmap: r.mmap && !r.cellSizeCheck });
  if (r.cellSizeCheck) {
    db.pragma('cell_size_check = ON');
    db.pragma(`cache_size = -${PROVING_CACHE_KB}`);
  }
  return db;
}

async function answer(r: Request): Promise<Answers[Request['op']]> {
  if (!('cellSizeCheck' in r)) letGo();
  switch (r.op) {
    case 'let-go':
      return {};
    case 'snapshot':
      return await snapshot(r);
    case 'check-source':
      return using(open(r.source, { readonly: true, busyMs: r.busyMs, mmap: r.mmap }), (db) => {
        const cut = cutShort(db, r.source, () => requireFile(r.dev, r.ino));
        if (cut !== null) return { ...NOTHING_FOUND, structural: [cut] };
        // One state for all of it: an application may change its schema all the time, and SQLite gives up after some tries. In rollback
        // mode its writers would have to wait for all of it.
        if (db.pragma('journal_mode', { simple: true }) === 'wal') db.exec('BEGIN');
        return r.mode === 'full' ? checkAll(db, 'integrity_check') : checkQuickly(db);
      });
    case 'describe':
      return readWrite(r, describe);
    case 'check-structure':
      return readWrite(r, (db) => {
        if (r.how === 'accounting') {
          const schema = checkOne(db, 'integrity_check', 'sqlite_schema');
          if (schema.structural.length === 0 && isAsVacuumLeavesIt(db) && pagesGoneAstray(db, r.file) === null) return schema;
        }
        // Constraints are counted table by table; here they would be evaluated a second time.
        db.pragma('ignore_check_constraints = ON');
        return checkPrivate(db, 'quick_check', r.file);
      });
    case 'check-table':
      return readWrite(r, (db) => {
        const counted = r.part === 'constraints' ? brokenConstraints(db, r.table) : null;
        if (counted !== null) return { ...NOTHING_FOUND, check: counted, limited: false };
        if (r.part === 'without constraints') db.pragma('ignore_check_constraints = ON');
        const f = checkOne(db, 'integrity_check', r.table);
        return { ...f, notNull: r.part === 'constraints' ? 0 : f.notNull, limited: f.seen >= LIMIT };
      });
    case 'check-all':
      return readWrite(r, (db) => checkPrivate(db, 'integrity_check', r.file));
    case 'settle':
      return settle(r);
    case 'set-rollback':
      return using(open(r.file, { readonly: false, busyMs: 0, mmap: false }), (db) => {
        db.pragma('journal_mode = DELETE');
        return {};
      });
    case 'set-wal':
      return using(open(r.file, { readonly: false, busyMs: 0, mmap: false }), (db) => {
        db.pragma('journal_mode = WAL');
        return {};
      });
    case 'put-into':
      return await putInto(r);
    case 'check-put':
      return checkPut(r);
    case 'check-live':
      return checkLive(r);
    case 'check-foreign-keys':
      return readWrite(r, (db) => foreignKeyViolations(db, r.table));
  }
}

const reply = (r: Reply): void => writeAnswer(r);

function errorOf(error: unknown): { code: string; message: string } {
  const e = error instanceof Error ? error : new Error(String(error));
  return { code: 'code' in e && typeof e.code === 'string' ? e.code : '', message: e.message };
}

async function serve(line: string): Promise<void> {
  const request = JSON.parse(line) as Request;
  const usage = (): { cpuMs: number; anonBytes: number } => {
    const { user, system } = process.cpuUsage();
    return { cpuMs: Math.round((user + system) / 1000), anonBytes: anonBytesOf('self') };
  };
  try {
    const value = await answer(request);
    reply({ ok: true, value, ...usage() });
  } catch (error) {
    reply({ ok: false, error: errorOf(error), ...usage() });
  }
}

/** What the parent asks, one after the other, until it closes its end or is gone. */
async function serveAll(): Promise<void> {
  for (const line of linesOf(STDIN_FD)) await serve(line);
}

// The parent may have died before the kernel was asked to kill us with it (traps, 41).
if (process.ppid === Number(process.argv[2])) {
  leaveSignalsToParent();
  setPriority(10);
  void serveAll();
}
