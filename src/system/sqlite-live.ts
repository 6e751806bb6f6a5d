/** What `restore` and `guard` do with a database that an application may have open. */

import { statSync } from 'node:fs';
import Database from 'better-sqlite3';
import { outerState } from '../content-state.js';
import type { Check } from '../records.js';
import { systemClock } from './clock.js';
import type { Db } from './sqlite.js';
import { countRows, hashSchema, isSayable, listTables, number, open, requireFile, using, usingAsync } from './sqlite.js';
import { checkAll, orphans } from './sqlite-checks.js';
import { cutShort } from './sqlite-pages.js';
import type { Answers, Request, SchemaObject } from './worker-protocol.js';

/** BEGIN EXCLUSIVE says whether somebody else is in the middle of something; closing the last connection checkpoints. */
export function settle(r: Extract<Request, { op: 'settle' }>): Answers['settle'] {
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
 * (traps, 37). Locked out it does nothing and says nothing (traps, 17): it is asked again until `busyMs` have passed. What others commit while
 * we wait is looked for with the target locked, before its first page is written: the first step takes the lock, and no page.
 */
export async function putInto(r: Extract<Request, { op: 'put-into' }>): Promise<Answers['put-into']> {
  return await usingAsync(open(r.file, { readonly: true, busyMs: 0, mmap: true }), async (db) => {
    const began = systemClock.monotonic();
    for (;;) {
      let isLost = false;
      const { totalPages } = await db.backup(r.target, {
        progress: () => {
          requireFile(r.dev, r.ino);
          isLost = r.seen !== null && outerState(r.target) !== r.seen;
          if (systemClock.monotonic() - began > r.busyMs) throw busy();
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, AGAIN_MS);
          return 0x7fffffff;
        },
      });
      if (totalPages > 0) return { isLost };
      if (systemClock.monotonic() - began > r.busyMs) throw busy();
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, AGAIN_MS);
    }
  });
}

export function checkPut(r: Extract<Request, { op: 'check-put' }>): Answers['check-put'] {
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

/** How many rows of a failing check are counted. */
const COUNTED = 1000;

/**
 * The checks of `guard`. Opened read-write, because a read-only integrity_check skips CHECK constraints (traps, 22), and
 * because the last connection to close then takes `-wal` and `-shm` away; `query_only` keeps statements from writing.
 */
export function checkLive(r: Extract<Request, { op: 'check-live' }>): Answers['check-live'] {
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
    if (found.notNull > 0) wrong.push(`${found.notNull} ${found.notNull === 1 ? 'row breaks' : 'rows break'} NOT NULL`);
    if (found.check > 0) wrong.push(`${found.check} ${found.check === 1 ? 'row breaks' : 'rows break'} a CHECK`);
    const except = found.unchecked.length > 0 ? `ok, except ${found.unchecked.join('; ')}` : 'ok';
    return { name, ok: wrong.length === 0, message: wrong.length === 0 ? except : wrong.slice(0, 10).join('; ') };
  } catch (error) {
    return { name, ok: false, message: messageOf(error) };
  }
}

/** Not `foreignKeyViolations`, which leaves out what it cannot check: a parent that lost its key is damage here. */
function foreignKeys(db: Db): Check {
  const name = 'foreign_key_check';
  const found = new Map<string, number>();
  const unchecked: string[] = [];
  try {
    const tables = listTables(db).filter(({ type }) => type === 'table');
    // Where one cannot be asked for, all are asked for at once.
    for (const table of tables.every((t) => isSayable(t.name)) ? tables.map((t) => t.name) : [null]) {
      try {
        for (const of of orphans(db, table)) found.set(of, (found.get(of) ?? 0) + 1);
      } catch (error) {
        if (!(error instanceof Database.SqliteError) || !/^no such (function|module|collation)/.test(error.message)) throw error;
        unchecked.push(`${table ?? 'all tables'}: ${error.message}`);
      }
    }
  } catch (error) {
    return { name, ok: false, message: messageOf(error) };
  }
  if (found.size > 0) {
    const rows = [...found].map(([table, n]) => `${n} of ${table}`).join(', ');
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
