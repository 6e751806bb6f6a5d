/**
 * The lock of a name: BEGIN IMMEDIATE on a database of its own, held by the kernel, so free after kill -9 (traps, 27).
 * Nothing else in this process may open that file: closing another descriptor would drop the lock (traps, 8).
 */
import type { Stats } from 'node:fs';
import { accessSync, constants } from 'node:fs';
import { errnoOf } from '../outcome.js';
import { pause } from './clock.js';
import type { Database } from './database.js';
import { openDatabase } from './database.js';
import { lstatOrNull } from './files.js';

/** A held lock. */
export interface Lock {
  release(): void;
}

const EVERY_MS = 100;

/** The code of the error for a file that has the name of a lock and was not made by us. */
export const NOT_A_LOCK = 'NOT_A_LOCK';

/**
 * Nothing is ever written into a lock. Beside a database that holds something SQLite reads a journal that lies there, and rolls it
 * back: one that somebody has laid there can name any file, which is then removed, or be a FIFO, at which it waits for ever.
 */
const isLock = ({ size, uid }: Stats): boolean => size === 0 && (uid === 0 || uid === process.geteuid?.());

function requireLock(path: string): void {
  const there = lstatOrNull(path);
  if (there && !there.isFile()) throw Object.assign(new Error(`${path} is not a regular file`), { code: 'EPERM' });
  if (there && !isLock(there)) throw Object.assign(new Error(`${path} is no lock of ours: find out how it came there, and move it away`), { code: NOT_A_LOCK });
}

/** Why the lock could not be taken, as far as that can be seen without opening it; null: it could, or another one holds it. */
export function lookAtLock(path: string): unknown {
  try {
    requireLock(path);
    if (lstatOrNull(path)) accessSync(path, constants.R_OK | constants.W_OK);
    return null;
  } catch (error) {
    return error;
  }
}

/**
 * Takes the lock, waiting up to `waitMs` for another holder; null when it stays held. The wait is ours, not SQLite's:
 * its own would block the event loop, and signals with it. Throws the system's error when the file cannot be made.
 */
export async function acquireLock(path: string, waitMs: number, signal: AbortSignal): Promise<Lock | null> {
  requireLock(path);
  for (let waited = 0; ; waited += EVERY_MS) {
    signal.throwIfAborted();
    const db = open(path);
    try {
      return hold(db);
    } catch (error) {
      db.close();
      if (!errnoOf(error).startsWith('SQLITE_BUSY')) throw error;
      if (waited >= waitMs) return null;
    }
    await pause(Math.min(EVERY_MS, Math.max(1, waitMs - waited)), signal);
  }
}

/**
 * Takes the lock of a file that is there, at once; null where somebody holds it, in this process or another one, where the file is
 * gone or none of ours, or where it cannot be known. Of a name that is never made twice.
 */
export function takeLock(path: string): Lock | null {
  const there = lstatOrNull(path);
  if (!there?.isFile() || !isLock(there)) return null;
  let db: Database;
  try {
    db = openDatabase(path, { timeout: 0, fileMustExist: true });
  } catch {
    return null;
  }
  try {
    const lock = hold(db);
    // The lock of a file that somebody has removed meanwhile is nobody's.
    if (lstatOrNull(path)) return lock;
  } catch {
    // Held.
  }
  db.close();
  return null;
}

/** Throws what SQLite says; the database is then for the caller to close. */
function hold(db: Database): Lock {
  // No journal file: the lock must be had on a full disk too, or prune could not make room.
  db.pragma('journal_mode = MEMORY');
  db.exec('BEGIN IMMEDIATE');
  // Of a file that may only be read it locks nothing and says so only to who writes. What is written here is never brought to the file.
  db.exec('PRAGMA user_version = 1');
  return { release: () => db.close() };
}

/** better-sqlite3 looks at the directory itself, and calls whatever it cannot see a mistake of its caller. */
function open(path: string): Database {
  try {
    return openDatabase(path, { timeout: 0 });
  } catch (error) {
    if (error instanceof TypeError) throw Object.assign(new Error(error.message, { cause: error }), { code: 'ENOENT' });
    throw error;
  }
}
