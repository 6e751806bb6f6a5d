/**
 * The SQLite child: every statement on a source or a copy runs here, so that it can be killed in the middle of one.
 * It opens what it is told, works, closes, answers. It holds no policy: the parent decides what a finding means.
 */

import { createHash } from 'node:crypto';
import type { Stats } from 'node:fs';
import { closeSync, constants, openSync, readdirSync, readlinkSync, readSync, realpathSync, rmSync, statSync } from 'node:fs';
import { setPriority } from 'node:os';
import { createInterface } from 'node:readline';
import Database from 'better-sqlite3';
import type { Check } from '../records.js';
import { writeAnswer } from './answers.js';
import { constraintQuery } from './check-constraints.js';
import { anonBytesOf } from './memory.js';
import type { Answers, Findings, Properties, Reply, Request, SchemaObject } from './worker-protocol.js';
import { ACCOUNTING } from './worker-protocol.js';

/** As much as SQLite maps at most (traps, 39). */
const MMAP_BYTES = 2_147_418_112;
/** For each of two children, within the 200 MB that all our processes may use. */
const PROVING_CACHE_KB = 48_000;
/** SQLite's own default limit of findings. */
const LIMIT = 100;
const NO_LIMIT = 1_000_000_000;

type Db = Database.Database;

function open(file: string, options: { readonly: boolean; busyMs: number; mmap: boolean }): Db {
  const db = new Database(file, { readonly: options.readonly, fileMustExist: true, timeout: options.busyMs });
  // A schema is data of unknown origin here: nothing in it may call out. The cells of what a run has just made are not
  // checked at every use (cell_size_check), which would double the cost: the checks do so anyway.
  db.pragma('trusted_schema = OFF');
  db.pragma(`mmap_size = ${options.mmap ? MMAP_BYTES : 0}`);
  return db;
}

function using<T>(db: Db, work: (db: Db) => T): T {
  try {
    return work(db);
  } finally {
    db.close();
  }
}

/** SHA-256 of the schema, hex. Root pages are left out: a VACUUM changes them. */
function hashSchema(db: Db): string {
  const hash = createHash('sha256');
  for (const row of db.prepare('SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name, tbl_name, sql').raw().iterate()) {
    hash.update(`${JSON.stringify(row)}\n`);
  }
  return hash.digest('hex');
}

/**
 * The file that SQLite has open must be the one that was looked at: a name can be exchanged, and exchanged back, between a
 * look before and a look after.
 */
function requireFile(dev: number, ino: number): Stats {
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      const stats = statSync(`/proc/self/fd/${fd}`);
      if (stats.dev === dev && stats.ino === ino) return stats;
    } catch {
      // The descriptor of this very listing is closed again.
    }
  }
  throw Object.assign(new Error('another file stands under the name of the database'), { code: 'REPLACED' });
}

function number(db: Db, pragma: string): number {
  const value = db.pragma(pragma, { simple: true });
  return typeof value === 'number' ? value : 0;
}

const readProperties = (db: Db): Properties => ({
  pageSize: number(db, 'page_size'),
  encoding: String(db.pragma('encoding', { simple: true })),
  autoVacuum: number(db, 'auto_vacuum'),
  userVersion: number(db, 'user_version'),
  applicationId: number(db, 'application_id'),
});

/** The schema needs something that only the application has, so that a statement cannot even be prepared (traps, 16). */
const needsTheApplication = (error: unknown): error is Error =>
  error instanceof Database.SqliteError &&
  (error.code === 'SQLITE_ERROR' || error.code === 'SQLITE_ERROR_MISSING_COLLSEQ') &&
  // A missing table would be a mistake of ours, or of the schema: never an excuse for leaving a check out.
  !error.message.startsWith('no such table');

async function snapshot(r: Extract<Request, { op: 'snapshot' }>): Promise<Answers['snapshot']> {
  const db = open(r.source, { readonly: true, busyMs: r.busyMs, mmap: r.mmap });
  try {
    const schemaBefore = hashSchema(db);
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
    // VACUUM writes "CREATE TABLE" in its own way; where somebody has edited the schema, the copy's would not be the source's.
    if (why === null && ![schemaBefore, hashSchema(db)].includes(schemaOf(r.target))) why = 'its text would not stay as it is';
    if (why !== null) {
      discard(r.target);
      createPrivate(r.target);
      await copyPages(db, r.target);
    }
    const { v } = db.prepare<[], { v: string }>('SELECT sqlite_version() AS v').get() ?? { v: '' };
    return { method: why === null ? 'vacuum-into' : 'page-copy', why, schemaBefore, schemaAfter: hashSchema(db), properties, journalMode, sqlite: v };
  } finally {
    db.close();
  }
}

const schemaOf = (file: string): string => using(open(file, { readonly: true, busyMs: 0, mmap: false }), hashSchema);

/** SQLite takes an empty file as a target: made first, 0600 and never through a link (traps, 18). */
function createPrivate(file: string): void {
  closeSync(openSync(file, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600));
}

function discard(file: string): void {
  for (const suffix of ['', '-journal', '-wal', '-shm']) rmSync(file + suffix, { force: true });
}

/** One step for all pages: more steps start again at every foreign write. Trap 17: "success" without a page is a lock-out. */
async function copyPages(db: Db, target: string): Promise<void> {
  const { totalPages, remainingPages } = await db.backup(target, { progress: () => 0x7fffffff });
  if (totalPages === 0 || remainingPages !== 0) {
    throw Object.assign(new Error('the page copy was locked out'), { code: 'SQLITE_BUSY' });
  }
  using(new Database(target, { fileMustExist: true }), (copy) => {
    // The copy carries the source's WAL mode; a finished copy is one file.
    copy.pragma('journal_mode = DELETE');
    if (number(copy, 'page_count') !== totalPages) throw Object.assign(new Error('the page copy is short'), { code: 'SQLITE_IOERR_SHORT_READ' });
  });
}

/** One finding may be several lines under a heading that says nothing. */
const linesOf = (message: string): string[] =>
  message
    .split('\n')
    .filter((line) => !line.startsWith('*** in database '))
    .slice(0, 5);

/** Sorts what quick_check or integrity_check says. At most 50 structural findings are kept; the rest is counted into the last. */
function sort(messages: Iterable<string>): Findings & { readonly seen: number } {
  const structural: string[] = [];
  let more = 0;
  let notNull = 0;
  let check = 0;
  let seen = 0;
  for (const message of messages) {
    if (message === 'ok') continue;
    seen++;
    if (message.startsWith('NULL value in ')) notNull++;
    else if (message.startsWith('CHECK constraint failed in ')) check++;
    else if (structural.length < 50) structural.push(...linesOf(message));
    else more++;
  }
  if (more > 0) structural.push(`and ${more} more`);
  return { structural, notNull, check, unchecked: [], seen };
}

/**
 * Runs a checking pragma on everything, up to a number of findings, or on one table. The table-valued form binds a table's
 * name, and takes "100" for one as well: a limit goes into the text.
 */
function* findings(db: Db, pragma: 'quick_check' | 'integrity_check', of: number | string): IterableIterator<string> {
  if (typeof of === 'number') yield* db.prepare<[], string>(`PRAGMA ${pragma}(${of})`).pluck().iterate();
  else yield* db.prepare<[string], string>(`SELECT * FROM pragma_${pragma}(?)`).pluck().iterate(of);
}

/**
 * Checks a whole database. Rows that break a rule can use up the limit of findings and hide damage behind them, so a
 * full list without damage is asked for again without a limit.
 */
function checkAll(db: Db, pragma: 'quick_check' | 'integrity_check'): Findings & { readonly byTable: boolean } {
  try {
    const first = sort(findings(db, pragma, LIMIT));
    if (first.seen < LIMIT || first.structural.length > 0) return { ...first, byTable: false };
    return { ...sort(findings(db, pragma, NO_LIMIT)), byTable: false };
  } catch (error) {
    if (!needsTheApplication(error)) throw error;
    return { ...checkEach(db, pragma), byTable: true };
  }
}

/** The same of a private file. Table by table, SQLite leaves the accounting of pages out. */
function checkPrivate(db: Db, pragma: 'quick_check' | 'integrity_check', file: string): Findings {
  const found = checkAll(db, pragma);
  const astray = found.byTable ? pagesGoneAstray(db, file) : null;
  return astray === null ? found : { ...found, structural: [...found.structural, `${ACCOUNTING}${astray}`] };
}

/**
 * quick_check, which does not look into indexes, since a damaged one shows in its copy. But VACUUM would mend two kinds in
 * silence: it sorts an index anew where a collation is not BINARY, and where two indexes of a table are alike it fills both from
 * one. Their tables are checked in full.
 */
function checkQuickly(db: Db): Findings {
  const quick = checkAll(db, 'quick_check');
  const mended = db
    .prepare<[], string>(
      `WITH part AS (SELECT t.name AS tbl, i.name AS idx, x.* FROM pragma_table_list t, pragma_index_list(t.name) i, pragma_index_xinfo(i.name) x
         WHERE t.schema = 'main' AND t.type IN ('table', 'shadow')),
       whole AS (SELECT tbl, group_concat(cid || ' ' || desc || ' ' || coll || ' ' || key) AS parts FROM part GROUP BY tbl, idx)
       SELECT tbl FROM part WHERE key AND coll <> 'BINARY' COLLATE NOCASE
       UNION SELECT tbl FROM whole GROUP BY tbl, parts HAVING count(*) > 1`,
    )
    .pluck()
    .all();
  const full = mended.map((table) => checkOne(db, 'integrity_check', table));
  return {
    ...quick,
    structural: [...new Set([...quick.structural, ...full.flatMap((f) => f.structural)])],
    unchecked: [...new Set([...quick.unchecked, ...full.flatMap((f) => f.unchecked)])],
  };
}

/**
 * Which page a file lacks at its end, in words, or null. SQLite reads what is missing there as zeros, and no more than a full
 * check of some schemas finds that strange: the copy would have the zeros, and be called good.
 * @param look at the very file that is open
 */
function cutShort(db: Db, file: string, look: () => Stats): string | null {
  // What a checkpoint leaves out, since the database has shrunk meanwhile, is missing for a moment; what was cut off is missing again.
  let said: string | null = null;
  for (let n = 0; n < LOOKS; n++) {
    said = cutInThisState(db, file, look);
    if (said === null) return null;
  }
  return said;
}

/** How often a file must prove to be cut. */
const LOOKS = 5;

function cutInThisState(db: Db, file: string, look: () => Stats): string | null {
  // SQLite keeps the -wal beside the file itself, wherever a link to it lies.
  const real = realpathSync(file);
  // As long as this reads, nobody empties the -wal. What was brought home before the look at the size is in the size.
  db.exec('BEGIN');
  const [pages, pageSize, home] = [number(db, 'page_count'), number(db, 'page_size'), framesBroughtHome(real)];
  const { size } = look();
  const inWal = size < pages * pageSize ? pagesInWal(`${real}-wal`, home) : new Set<number>();
  db.exec('COMMIT');
  const lockPage = LOCK_BYTE / pageSize + 1;
  for (let page = Math.floor(size / pageSize) + 1; page <= pages; page++) {
    if (page !== lockPage && !inWal.has(page)) return `the file ends before its page ${page} does, ${pages * pageSize - size} bytes too early`;
  }
  return null;
}

/**
 * How many frames of the -wal are in the database file already: readers take those pages from the file.
 * https://www.sqlite.org/walformat.html, "The WAL-Index File Format": nBackfill, at byte 96, in the machine's own order.
 */
function framesBroughtHome(real: string): number {
  const value = new Uint32Array(1);
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    // Never opened anew: closing that descriptor would drop the locks that SQLite holds on the -shm.
    if (linkOf(fd) === `${real}-shm`) readSync(fd, value, 0, 4, 96);
  }
  return value[0] ?? 0;
}

function linkOf(fd: number): string | null {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    // The descriptor of the listing is closed again.
    return null;
  }
}

/** The pages that a -wal holds after so many frames, up to the end of those that belong together by their salt (same page, "The WAL File Format"). */
function pagesInWal(path: string, after: number): Set<number> {
  const pages = new Set<number>();
  // Not there: no pages. SQLite holds no locks on it.
  if (!statSync(path, { throwIfNoEntry: false })?.size) return pages;
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const header = Buffer.alloc(32);
    readSync(fd, header, 0, 32, 0);
    const step = 24 + header.readUInt32BE(8);
    const frame = Buffer.alloc(24);
    for (let n = 0; readSync(fd, frame, 0, 24, 32 + n * step) === 24; n++) {
      if (!frame.subarray(8, 16).equals(header.subarray(16, 24))) break;
      if (n >= after) pages.add(frame.readUInt32BE(0));
    }
    return pages;
  } finally {
    closeSync(fd);
  }
}

/** Table by table, where one table's needs keep the whole check from being prepared. */
function checkEach(db: Db, pragma: 'quick_check' | 'integrity_check'): Findings {
  const sum = { structural: [] as string[], notNull: 0, check: 0, unchecked: [] as string[] };
  for (const table of tableNames(db)) {
    const f = checkOne(db, pragma, table);
    sum.structural.push(...f.structural);
    sum.unchecked.push(...f.unchecked);
    // Of one table SQLite tells no more than this.
    if (f.seen >= LIMIT) sum.unchecked.push(`${table}: what is behind its first ${LIMIT} findings`);
    sum.notNull += f.notNull;
    sum.check += f.check;
  }
  return sum;
}

function checkOne(db: Db, pragma: 'quick_check' | 'integrity_check', table: string): Findings & { readonly seen: number } {
  try {
    const found = sort(findings(db, pragma, table));
    const missing = missingModule(db, table);
    return missing === null ? found : { ...found, unchecked: [`${table}: ${missing}`] };
  } catch (error) {
    if (!needsTheApplication(error)) throw error;
    const nothing = { ...NOTHING_FOUND, seen: 0 };
    // A check may say no more than "SQL logic error"; a use of the table says why.
    const why = [
      error,
      errorOfRunning(db, `SELECT 1 FROM ${quoted(table)}`),
      errorOfRunning(db, `SELECT 1 FROM ${quoted(table)} WHERE ${quoted(table)} MATCH 'a'`),
    ].find((e) => e && saysWhatIsMissing(e) && !(NO_COLUMN.test(e.message) && isVirtual(db, table)));
    if (why) return { ...nothing, unchecked: [`${table}: ${why.message}`] };
    // Any other error is that of a module which is there and cannot make sense of its tables.
    return { ...nothing, structural: [`${table}: ${error.message}`], seen: 1 };
  }
}

const NOTHING_FOUND: Findings = { structural: [], notNull: 0, check: 0, unchecked: [] };

/** How many rows break a CHECK; null where a query cannot say so: then integrity_check meets the reason. */
function brokenConstraints(db: Db, table: string): number | null {
  try {
    const query = constraintQuery(db, table);
    return query === null ? null : (db.prepare<[], number>(query).pluck().get() ?? 0);
  } catch (error) {
    if (error instanceof Database.SqliteError) return null;
    throw error;
  }
}

function errorOfRunning(db: Db, sql: string): Error | null {
  try {
    db.prepare(sql).get();
    return null;
  } catch (error) {
    return needsTheApplication(error) ? error : null;
  }
}

/** A text in double quotes to this build (traps, 16). From the module of a virtual table it means that a table of its own is damaged. */
const NO_COLUMN = /no such column/;

const isVirtual = (db: Db, table: string): boolean => listTables(db).some(({ name, type }) => name === table && type === 'virtual');

const saysWhatIsMissing = (error: Error): boolean =>
  ('code' in error && error.code === 'SQLITE_ERROR_MISSING_COLLSEQ') ||
  /no such (function|column|module|tokenizer|collation)|unknown (function|tokenizer)|tokenizer constructor|unsafe use of/.test(error.message);

/** A check passes over a virtual table whose module is not there; any use of it would tell (traps, 16). */
function missingModule(db: Db, table: string): string | null {
  const error = errorOfRunning(db, `SELECT 1 FROM ${quoted(table)}`);
  return error?.message.startsWith('no such module') ? error.message : null;
}

/** https://www.sqlite.org/fileformat2.html, "The Lock-Byte Page": the page at this offset belongs to nothing. */
const LOCK_BYTE = 0x4000_0000;

/** Whether a file is as VACUUM leaves it: no free pages, no pointer map. Then the accounting of its pages says as much as a quick_check of all. */
const isAsVacuumLeavesIt = (db: Db): boolean => number(db, 'freelist_count') === 0 && number(db, 'auto_vacuum') === 0;

/**
 * The accounting of pages of a private file: each belongs to exactly one b-tree, or is free, or a page of the pointer map. In
 * words what is wrong, or null. The trees themselves are checked table by table. A third of what quick_check costs, and it needs
 * nothing of the application.
 */
function pagesGoneAstray(db: Db, file: string): string | null {
  const pages = number(db, 'page_count');
  const pageSize = number(db, 'page_size');
  const seen = new Uint8Array(pages + 1);
  let wrong: string | null = null;
  const use = (page: number): void => {
    if (seen[page] === 0 && page > 0) seen[page] = 1;
    else wrong ??= page > 0 && page <= pages ? `page ${page} is used twice` : `page ${page} of ${pages} is used`;
  };
  const lockPage = LOCK_BYTE / pageSize + 1;
  if (lockPage <= pages) use(lockPage);
  try {
    for (const page of db.prepare<[], number>('SELECT pageno FROM dbstat').pluck().iterate()) use(page);
  } catch (error) {
    if (error instanceof Database.SqliteError) return `its pages cannot be accounted for: ${error.message}`;
    throw error;
  }
  const fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    // https://www.sqlite.org/fileformat2.html, "The Database Header", "Pointer Map or Ptrmap Pages", "The Freelist"
    const page = Buffer.alloc(pageSize);
    readSync(fd, page, 0, pageSize, 0);
    const usable = pageSize - (page[20] ?? 0);
    if (number(db, 'auto_vacuum') !== 0) for (let at = 2; at <= pages; at += Math.floor(usable / 5) + 1) use(at === lockPage ? at + 1 : at);
    let trunk = page.readUInt32BE(32);
    while (trunk !== 0 && wrong === null) {
      use(trunk);
      readSync(fd, page, 0, pageSize, (trunk - 1) * pageSize);
      const leaves = page.readUInt32BE(4);
      if (leaves > usable / 4 - 2) wrong ??= `the list of free pages on page ${trunk} is longer than a page`;
      for (let n = 0; n < leaves && wrong === null; n++) use(page.readUInt32BE(8 + 4 * n));
      trunk = page.readUInt32BE(0);
    }
  } finally {
    closeSync(fd);
  }
  const never = seen.indexOf(0, 1);
  return wrong ?? (never > 0 ? `page ${never} is never used` : null);
}

interface TableInfo {
  readonly name: string;
  readonly type: string;
}

/** Ordinary and shadow tables and SQLite's own; virtual ones check themselves with the modules that this build has. */
const listTables = (db: Db): TableInfo[] =>
  db
    .prepare<[], TableInfo>("SELECT name, type FROM pragma_table_list WHERE schema = 'main' AND type <> 'view' AND name <> 'sqlite_schema' ORDER BY name")
    .all();

const tableNames = (db: Db): string[] => listTables(db).map((t) => t.name);

/** An identifier cannot be bound. */
const quoted = (identifier: string): string => `"${identifier.replaceAll('"', '""')}"`;

function describe(db: Db): Answers['describe'] {
  const indexes = db.prepare<[string], number>('SELECT count(*) FROM pragma_index_list(?)').pluck();
  const foreignKeys = db.prepare<[string], number>('SELECT count(*) FROM pragma_foreign_key_list(?)').pluck();
  return {
    schemaHash: hashSchema(db),
    properties: readProperties(db),
    pageCount: number(db, 'page_count'),
    tables: listTables(db).map(({ name, type }) => {
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

/** Null where the table cannot be read without its application. */
function countRows(db: Db, table: string): number | null {
  // SQLite counts along the smallest index, if it knows the index's collation.
  for (const how of ['', ' NOT INDEXED']) {
    try {
      return (
        db
          .prepare<[], number>(`SELECT count(*) FROM ${quoted(table)}${how}`)
          .pluck()
          .get() ?? 0
      );
    } catch (error) {
      if (!needsTheApplication(error)) throw error;
    }
  }
  return null;
}

function foreignKeyViolations(db: Db, table: string): Answers['check-foreign-keys'] {
  try {
    let rows = 0;
    for (const _ of db.prepare<[string]>('SELECT 1 FROM pragma_foreign_key_check(?)').iterate(table)) rows++;
    return { rows, unchecked: null };
  } catch (error) {
    if (!needsTheApplication(error)) throw error;
    return { rows: 0, unchecked: `${table}: ${error.message}` };
  }
}

function readWrite<T>(r: { file: string; mmap: boolean; cellSizeCheck: boolean }, work: (db: Db) => T): T {
  // Cells are checked whenever a page comes into the cache: a mapped page does so at every use, a cached one once.
  return using(open(r.file, { readonly: false, busyMs: 0, mmap: r.mmap && !r.cellSizeCheck }), (db) => {
    if (r.cellSizeCheck) {
      db.pragma('cell_size_check = ON');
      db.pragma(`cache_size = -${PROVING_CACHE_KB}`);
    }
    return work(db);
  });
}

/** BEGIN EXCLUSIVE says whether somebody else is in the middle of something; closing the last connection checkpoints. */
function settle(r: Extract<Request, { op: 'settle' }>): Answers['settle'] {
  return using(open(r.file, { readonly: false, busyMs: r.busyMs, mmap: false }), (db) => {
    db.prepare('SELECT count(*) FROM sqlite_schema').get();
    requireFile(r.dev, r.ino);
    db.exec('BEGIN EXCLUSIVE; COMMIT');
    return {};
  });
}

/** Between two tries while another process has the target locked. */
const AGAIN_MS = 20;

/**
 * SQLite's backup API writes all pages in one transaction: whoever has the target open sees the old state or the new one
 * (traps, 37). Locked out it does nothing and says nothing (traps, 17): it is asked again until `busyMs` have passed.
 */
async function putInto(r: Extract<Request, { op: 'put-into' }>): Promise<Answers['put-into']> {
  return await usingAsync(open(r.file, { readonly: true, busyMs: 0, mmap: true }), async (db) => {
    const began = performance.now();
    for (;;) {
      const { totalPages } = await db.backup(r.target, {
        progress: () => {
          requireFile(r.dev, r.ino);
          if (performance.now() - began > r.busyMs) throw busy();
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, AGAIN_MS);
          return 0x7fffffff;
        },
      });
      if (totalPages > 0) return {};
      if (performance.now() - began > r.busyMs) throw busy();
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, AGAIN_MS);
    }
  });
}

function checkPut(r: Extract<Request, { op: 'check-put' }>): Answers['check-put'] {
  return using(open(r.target, { readonly: false, busyMs: r.busyMs, mmap: false }), (db) => {
    // One read transaction: what is compared and checked is one state.
    db.exec('BEGIN');
    const schemaHash = hashSchema(db);
    requireFile(r.dev, r.ino);
    const journalMode = String(db.pragma('journal_mode', { simple: true }));
    const quick = checkAll(db, 'quick_check');
    // A file that was emptied passes every check (traps, 13).
    const findings = number(db, 'page_count') === 0 ? { ...quick, structural: ['it is empty'] } : quick;
    db.exec('COMMIT');
    // The copy went through the -wal: bring it home as far as readers let us.
    if (journalMode === 'wal') db.pragma('wal_checkpoint(PASSIVE)');
    return { findings, schemaHash, journalMode };
  });
}

const busy = (): Error => Object.assign(new Error('the database is locked by another process'), { code: 'SQLITE_BUSY' });

async function usingAsync<T>(db: Db, work: (db: Db) => Promise<T>): Promise<T> {
  try {
    return await work(db);
  } finally {
    db.close();
  }
}

/** How many rows of a failing check are counted. */
const COUNTED = 1000;

/**
 * The checks of `guard`. Opened read-write, because a read-only integrity_check skips CHECK constraints (traps, 22), and
 * because the last connection to close then takes `-wal` and `-shm` away; `query_only` keeps statements from writing.
 */
function checkLive(r: Extract<Request, { op: 'check-live' }>): Answers['check-live'] {
  return using(open(r.file, { readonly: false, busyMs: r.busyMs, mmap: false }), (db) => {
    db.pragma('query_only = ON');
    const notASelect = r.queries.find((sql) => !isSelect(db, sql)) ?? null;
    if (notASelect !== null) return { checks: [], notASelect, tables: [], schema: [] };
    const checks: Check[] = [integrity(db, r.file), foreignKeys(db), ...r.queries.map((sql) => mustReturnNothing(db, sql))];
    // A damaged database may not even be countable.
    if (checks[0]?.ok === false) return { checks, notASelect, tables: [], schema: [] };
    const tables = listTables(db).flatMap(({ name, type }) => {
      const rows = type === 'virtual' || name.startsWith('sqlite_') ? null : countRows(db, name);
      return rows === null ? [] : [{ name, rows }];
    });
    const schema = db.prepare<[], SchemaObject>('SELECT type, name, sql FROM sqlite_schema ORDER BY type DESC, name').all();
    return { checks, notASelect, tables, schema };
  });
}

/** What cannot be prepared is a check that fails, not a wrong command line: its table may be missing. */
function isSelect(db: Db, sql: string): boolean {
  try {
    const statement = db.prepare(sql);
    return statement.reader && statement.readonly;
  } catch (error) {
    if (error instanceof Database.SqliteError) return true;
    throw error;
  }
}

function integrity(db: Db, file: string): Check {
  const name = 'integrity_check';
  try {
    const cut = cutShort(db, file, () => statSync(file));
    if (cut !== null) return { name, ok: false, message: cut };
    const found = checkAll(db, name);
    const wrong = [...found.structural];
    if (found.notNull > 0) wrong.push(`${found.notNull} rows break NOT NULL`);
    if (found.check > 0) wrong.push(`${found.check} rows break a CHECK`);
    const except = found.unchecked.length > 0 ? `ok, except ${found.unchecked.join('; ')}` : 'ok';
    return { name, ok: wrong.length === 0, message: wrong.length === 0 ? except : wrong.slice(0, 10).join('; ') };
  } catch (error) {
    return { name, ok: false, message: messageOf(error) };
  }
}

/** Not `foreignKeyViolations`, which leaves out what it cannot check: a parent that lost its key is damage here. */
function foreignKeys(db: Db): Check {
  const name = 'foreign_key_check';
  const orphans = new Map<string, number>();
  const unchecked: string[] = [];
  try {
    for (const { name: table, type } of listTables(db)) {
      if (type !== 'table') continue;
      try {
        let rows = 0;
        for (const _ of db.prepare<[string]>('SELECT 1 FROM pragma_foreign_key_check(?)').iterate(table)) rows++;
        if (rows > 0) orphans.set(table, rows);
      } catch (error) {
        if (!(error instanceof Database.SqliteError) || !/^no such (function|module|collation)/.test(error.message)) throw error;
        unchecked.push(`${table}: ${error.message}`);
      }
    }
  } catch (error) {
    return { name, ok: false, message: messageOf(error) };
  }
  if (orphans.size > 0) {
    const rows = [...orphans].map(([table, n]) => `${n} of ${table}`).join(', ');
    return { name, ok: false, message: `rows without a parent: ${rows}` };
  }
  return { name, ok: true, message: unchecked.length > 0 ? `ok, except ${unchecked.join('; ')}` : 'ok' };
}

/** Only how many rows, never their content: it would go into logs and mails. */
function mustReturnNothing(db: Db, sql: string): Check {
  const name = sql;
  try {
    let rows = 0;
    for (const _ of db.prepare(sql).raw().iterate()) if (++rows === COUNTED) break;
    if (rows === 0) return { name, ok: true, message: 'ok' };
    return {
      name,
      ok: false,
      message: `it returned ${rows === COUNTED ? `${COUNTED} rows or more` : rows === 1 ? '1 row' : `${rows} rows`}, and must return none`,
    };
  } catch (error) {
    return { name, ok: false, message: messageOf(error) };
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

async function answer(r: Request): Promise<Answers[Request['op']]> {
  switch (r.op) {
    case 'snapshot':
      return await snapshot(r);
    case 'check-source':
      return using(open(r.source, { readonly: true, busyMs: r.busyMs, mmap: r.mmap }), (db) => {
        const cut = cutShort(db, r.source, () => requireFile(r.dev, r.ino));
        if (cut !== null) return { ...NOTHING_FOUND, structural: [cut] };
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

// The parent may have died before the kernel was asked to kill us with it (traps, 41).
if (process.ppid === Number(process.argv[2])) {
  // Sent to all of us at once (a terminal that hangs up, a service manager): the parent decides, and ends us with KILL.
  for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) process.on(signal, () => undefined);
  setPriority(10);
  let last: Promise<void> = Promise.resolve();
  createInterface({ input: process.stdin }).on('line', (line) => {
    last = last.then(() => serve(line));
  });
}
