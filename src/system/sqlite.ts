/** What every statement on a source or a copy stands on: how a database is opened, and the questions that are asked of all of them. */
import { createHash } from 'node:crypto';
import type { Stats } from 'node:fs';
import { readdirSync, statSync } from 'node:fs';
import Database from 'better-sqlite3';
import type { Properties } from './worker-protocol.js';

/** As much as SQLite maps at most (traps, 39). */
const MMAP_BYTES = 2_147_418_112;

export type Db = Database.Database;

/**
 * Without the defensive mode in which better-sqlite3 opens: that calls a schema malformed which SQLite itself takes, with a trigger on the tables
 * behind a full-text index, as sqlite-utils makes it (https://sqlite.org/c3ref/c_dbconfig_defensive.html). Nothing is written here that it would keep.
 */
export function openPlainly(file: string, options: { readonly readonly?: boolean; readonly timeout?: number } = {}): Db {
  return new Database(file, { ...options, fileMustExist: true }).unsafeMode(true);
}

export function open(file: string, options: { readonly: boolean; busyMs: number; mmap: boolean }): Db {
  const db = openPlainly(file, { readonly: options.readonly, timeout: options.busyMs });
  // A schema is data of unknown origin here: nothing in it may call out. The cells of what a run has just made are not
  // checked at every use (cell_size_check), which would double the cost: the checks do so anyway.
  db.pragma('trusted_schema = OFF');
  db.pragma(`mmap_size = ${options.mmap ? MMAP_BYTES : 0}`);
  return db;
}

export function using<T>(db: Db, work: (db: Db) => T): T {
  try {
    return work(db);
  } finally {
    db.close();
  }
}

/** SHA-256 of the schema, hex. Root pages are left out: a VACUUM changes them. */
export function hashSchema(db: Db): string {
  // Within a transaction SQLite that finds another schema than the one it knew reads again and still has the same state before it.
  if (!db.inTransaction) return db.transaction(hashSchema)(db);
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
export function requireFile(dev: number, ino: number): Stats {
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

export function number(db: Db, pragma: string): number {
  const value = db.pragma(pragma, { simple: true });
  return typeof value === 'number' ? value : 0;
}

export const readProperties = (db: Db): Properties => ({
  pageSize: number(db, 'page_size'),
  encoding: String(db.pragma('encoding', { simple: true })),
  autoVacuum: number(db, 'auto_vacuum'),
  userVersion: number(db, 'user_version'),
  applicationId: number(db, 'application_id'),
});

/** The schema needs something that only the application has, so that a statement cannot even be prepared (traps, 16). */
export const needsTheApplication = (error: unknown): error is Error =>
  error instanceof Database.SqliteError &&
  (error.code === 'SQLITE_ERROR' || error.code === 'SQLITE_ERROR_MISSING_COLLSEQ') &&
  // A missing table would be a mistake of ours, or of the schema: never an excuse for leaving a check out.
  !error.message.startsWith('no such table');

export interface TableInfo {
  readonly name: string;
  readonly type: string;
}

/**
 * Here and everywhere `temp.pragma_...`: a table of the database with such a name would otherwise answer in SQLite's place.
 * Ordinary and shadow tables and SQLite's own; virtual ones check themselves with the modules that this build has.
 */
export const listTables = (db: Db): TableInfo[] =>
  db
    .prepare<[], TableInfo>("SELECT name, type FROM temp.pragma_table_list WHERE schema = 'main' AND type <> 'view' AND name <> 'sqlite_schema' ORDER BY name")
    .all();

export const tableNames = (db: Db): string[] => listTables(db).map((t) => t.name);

/** An identifier cannot be bound. */
export const quoted = (identifier: string): string => `"${identifier.replaceAll('"', '""')}"`;

/** A name that is not UTF-8 arrives with U+FFFD in it, and its table cannot be asked for. */
export const isSayable = (name: string): boolean => !name.includes('\ufffd');

/** Null where the table cannot be read without its application, or asked for at all. */
export function countRows(db: Db, table: string): number | null {
  if (!isSayable(table)) return null;
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

export async function usingAsync<T>(db: Db, work: (db: Db) => Promise<T>): Promise<T> {
  try {
    return await work(db);
  } finally {
    db.close();
  }
}
