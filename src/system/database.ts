/**
 * SQLite in this process: for the history and for locks, never for a database of the operator's. It is loaded at its first use,
 * since that takes as long as all the rest of a command that needs none.
 */
import { createRequire } from 'node:module';
import type Database from 'better-sqlite3';

export type { Database } from 'better-sqlite3';

const require = createRequire(import.meta.filename);

/** Opens a database. Throws what SQLite says, with its `code`. */
export function openDatabase(path: string, options: Database.Options): Database.Database {
  const Driver = require('better-sqlite3') as typeof Database;
  return new Driver(path, options);
}
