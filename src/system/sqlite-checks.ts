/** SQLite's own checks, and what it says in them, sorted: damage, rows that break a rule, what could not be checked. */
import Database from 'better-sqlite3';
import { constraintQuery } from './check-constraints.js';
import type { Db } from './sqlite.js';
import { isSayable, listTables, needsTheApplication, number, quoted, tableNames } from './sqlite.js';
import { pagesGoneAstray } from './sqlite-pages.js';
import type { Answers, Findings } from './worker-protocol.js';
import { ACCOUNTING } from './worker-protocol.js';

/** SQLite's own default limit of findings. */
export const LIMIT = 100;
const NO_LIMIT = 1_000_000_000;

/** One finding may be several lines under a heading that says nothing. */
const linesOf = (message: string): string[] =>
  message
    .split('\n')
    .filter((line) => !line.startsWith('*** in database '))
    .slice(0, 5);

/**
 * What is said of the index of a full-text table (FTS3, 4) whose words lie elsewhere, or are compressed: it is the application's to keep, and without its
 * functions or its other table SQLite cannot compare them. The table's name, where it is such a one and its index can be read from end to end.
 */
function ofTheApplication(db: Db, message: string): string | null {
  const [, table] = /^(?:unable to validate the|malformed) inverted index for FTS[34] table (?:main\.)?(.*?)(?:: SQL logic error)?$/.exec(message) ?? [];
  if (table === undefined) return null;
  const sql = db.prepare<[string], string>("SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?").pluck().get(table) ?? '';
  const told = message.startsWith('malformed') ? /\bcontent\s*=/i : /\b(content|compress|uncompress)\s*=/i;
  return told.test(sql) && hasWholeIndex(db, table) ? table : null;
}

/** fts4aux reads all of the index, and nothing of the words (https://sqlite.org/fts3.html, "Fts4aux"). */
function hasWholeIndex(db: Db, table: string): boolean {
  const queryOnly = number(db, 'query_only');
  try {
    // It keeps from temporary tables as well; nothing else is made here.
    db.pragma('query_only = OFF');
    db.exec(`CREATE VIRTUAL TABLE temp.dbbackup_terms USING fts4aux(main, ${quoted(table)})`);
    try {
      db.prepare('SELECT count(*) FROM temp.dbbackup_terms').get();
      return true;
    } finally {
      db.exec('DROP TABLE temp.dbbackup_terms');
    }
  } catch (error) {
    if (error instanceof Database.SqliteError) return false;
    throw error;
  } finally {
    db.pragma(`query_only = ${queryOnly}`);
  }
}

interface Sorted extends Findings {
  readonly seen: number;
  /** What ended the check before it was done: what it had said until then counts all the same. */
  readonly ended: Error | null;
}

/** Sorts what quick_check or integrity_check says. At most 50 structural findings are kept; the rest is counted into the last. */
function sort(db: Db, messages: Iterable<string>): Sorted {
  const structural: string[] = [];
  const unchecked: string[] = [];
  let more = 0;
  let notNull = 0;
  let check = 0;
  let seen = 0;
  const fullText: string[] = [];
  let ended: Error | null = null;
  try {
    for (const message of messages) {
      if (message === 'ok') continue;
      seen++;
      if (message.startsWith('NULL value in ')) notNull++;
      else if (message.startsWith('CHECK constraint failed in ')) check++;
      // Looked at below: nothing else can be asked while the check is under way.
      else if (message.includes(' inverted index for FTS')) fullText.push(message);
      else if (structural.length < 50) structural.push(...linesOf(message));
      else more++;
    }
  } catch (error) {
    if (!needsTheApplication(error)) throw error;
    ended = error;
  }
  for (const message of fullText) {
    const table = ofTheApplication(db, message);
    if (table === null) structural.push(...linesOf(message));
    else unchecked.push(`${table}: ${message}`);
  }
  if (more > 0) structural.push(`and ${more} more`);
  return { structural, notNull, check, unchecked, seen, ended };
}

/**
 * Runs a checking pragma on everything, up to a number of findings, or on one table. The table-valued form binds a table's
 * name, and takes "100" for one as well: a limit goes into the text.
 */
function* findings(db: Db, pragma: 'quick_check' | 'integrity_check', of: number | string): IterableIterator<string> {
  if (typeof of === 'number') yield* db.prepare<[], string>(`PRAGMA ${pragma}(${of})`).pluck().iterate();
  else yield* db.prepare<[string], string>(`SELECT * FROM temp.pragma_${pragma}(?)`).pluck().iterate(of);
}

/**
 * Checks a whole database. Rows that break a rule can use up the limit of findings and hide damage behind them, so a
 * full list without damage is asked for again without a limit.
 */
export function checkAll(db: Db, pragma: 'quick_check' | 'integrity_check'): Findings & { readonly byTable: boolean } {
  const first = sort(db, findings(db, pragma, LIMIT));
  const isAll = first.ended !== null || first.seen < LIMIT || first.structural.length > 0;
  const found = isAll ? first : sort(db, findings(db, pragma, NO_LIMIT));
  if (!found.ended) return { ...found, byTable: false };
  const each = checkEach(db, pragma);
  return { ...each, structural: both(found.structural, each.structural), byTable: true };
}

const both = (some: readonly string[], others: readonly string[]): string[] => [...new Set([...some, ...others])];

/** The same of a private file. Table by table, SQLite leaves the accounting of pages out. */
export function checkPrivate(db: Db, pragma: 'quick_check' | 'integrity_check', file: string): Findings {
  const found = checkAll(db, pragma);
  const astray = found.byTable ? pagesGoneAstray(db, file) : null;
  return astray === null ? found : { ...found, structural: [...found.structural, `${ACCOUNTING}${astray}`] };
}

/**
 * quick_check, which does not look into indexes, since a damaged one shows in its copy. But VACUUM would mend two kinds in
 * silence: it sorts an index anew where a collation is not BINARY, and where two indexes of a table are alike it fills both from
 * one. Their tables are checked in full.
 */
export function checkQuickly(db: Db): Findings {
  const quick = checkAll(db, 'quick_check');
  const mended = db
    .prepare<[], string>(
      `WITH part AS (SELECT t.name AS tbl, i.name AS idx, x.* FROM temp.pragma_table_list t, temp.pragma_index_list(t.name) i, temp.pragma_index_xinfo(i.name) x
         WHERE t.schema = 'main' AND t.type IN ('table', 'shadow')),
       whole AS (SELECT tbl, group_concat(cid || ' ' || desc || ' ' || coll || ' ' || key) AS parts FROM part GROUP BY tbl, idx)
       SELECT tbl FROM part WHERE key AND coll <> 'BINARY' COLLATE NOCASE
       UNION SELECT tbl FROM whole GROUP BY tbl, parts HAVING count(*) > 1`,
    )
    .pluck()
    .all();
  const full = mended.every(isSayable) ? mended.map((table) => checkOne(db, 'integrity_check', table)) : [checkAll(db, 'integrity_check')];
  return {
    ...quick,
    structural: [...new Set([...quick.structural, ...full.flatMap((f) => f.structural)])],
    unchecked: [...new Set([...quick.unchecked, ...full.flatMap((f) => f.unchecked)])],
  };
}

/** Table by table, where one table's needs keep the whole check from being prepared. */
function checkEach(db: Db, pragma: 'quick_check' | 'integrity_check'): Findings {
  const sum = { structural: [] as string[], notNull: 0, check: 0, unchecked: [] as string[] };
  for (const table of tableNames(db)) {
    if (!isSayable(table)) {
      sum.unchecked.push(`${table}: its name is not UTF-8`);
      continue;
    }
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

export function checkOne(db: Db, pragma: 'quick_check' | 'integrity_check', table: string): Findings & { readonly seen: number } {
  const found = sort(db, findings(db, pragma, table));
  const error = found.ended;
  if (!error) {
    const missing = missingModule(db, table);
    return missing === null ? found : { ...found, unchecked: [...found.unchecked, `${table}: ${missing}`] };
  }
  const virtual = isVirtual(db, table);
  // A CHECK that cannot be evaluated, for want of a function or at a row of its own, says nothing against checking all the rest.
  const rest = virtual ? null : withoutConstraints(db, pragma, table);
  const structural = both(found.structural, rest?.structural ?? []);
  if (rest && !rest.ended) return { ...rest, structural, unchecked: [...rest.unchecked, `${table}: CHECK constraints: ${error.message}`] };
  // A check may say no more than "SQL logic error"; a use of the table says why.
  const why = [
    error,
    errorOfRunning(db, `SELECT 1 FROM ${quoted(table)}`),
    virtual ? errorOfRunning(db, `SELECT 1 FROM ${quoted(table)} WHERE ${quoted(table)} MATCH 'a'`) : null,
  ].find((e) => e && saysWhatIsMissing(e) && !(NO_COLUMN.test(e.message) && virtual));
  // A generated column may be one that cannot be evaluated for a row: what was found until then is damage all the same.
  if (why || !virtual) return { ...found, structural, unchecked: [...found.unchecked, `${table}: ${(why ?? error).message}`] };
  // Any other error is that of a module which is there and cannot make sense of its tables.
  return { ...found, structural: [...found.structural, `${table}: ${error.message}`], seen: found.seen + 1 };
}

/** The same check with CHECK constraints left out; null where they were. */
function withoutConstraints(db: Db, pragma: 'quick_check' | 'integrity_check', table: string): Sorted | null {
  if (number(db, 'ignore_check_constraints') !== 0) return null;
  db.pragma('ignore_check_constraints = ON');
  try {
    return sort(db, findings(db, pragma, table));
  } finally {
    db.pragma('ignore_check_constraints = OFF');
  }
}

/** How many rows break a CHECK; null where a query cannot say so: then integrity_check meets the reason. */
export function brokenConstraints(db: Db, table: string): number | null {
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
  /no such (function|column|module|tokenizer|collation)|unknown (function|tokenizer)|tokenizer constructor|unsafe use of|unrecognized (option|parameter)/.test(
    error.message,
  );

/** A check passes over a virtual table whose module is not there; any use of it would tell (traps, 16). */
function missingModule(db: Db, table: string): string | null {
  const error = errorOfRunning(db, `SELECT 1 FROM ${quoted(table)}`);
  return error?.message.startsWith('no such module') ? error.message : null;
}

/** For each row without a parent the table that it is in. @param table null: of all of them, until one cannot be checked */
export function orphans(db: Db, table: string | null): IterableIterator<string> {
  const rows = 'SELECT "table" FROM temp.pragma_foreign_key_check';
  return table === null ? db.prepare<[], string>(rows).pluck().iterate() : db.prepare<[string], string>(`${rows}(?)`).pluck().iterate(table);
}

/** @param table null: all of them */
export function foreignKeyViolations(db: Db, table: string | null): Answers['check-foreign-keys'] {
  try {
    let rows = 0;
    for (const _ of orphans(db, table)) rows++;
    return { rows, unchecked: null };
  } catch (error) {
    if (!needsTheApplication(error)) throw error;
    return { rows: 0, unchecked: `${table ?? 'all tables'}: ${error.message}` };
  }
}
