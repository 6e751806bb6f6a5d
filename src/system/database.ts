/** SQLite in this process: for the history and for locks, never for a database of the operator's. */
import Database from 'better-sqlite3';
import { errnoOf, Failed } from '../outcome.js';

export type { Database } from 'better-sqlite3';

/** Opens a database. Throws what SQLite says, with its `code`; `Failed` where there is no SQLite, as after Node was upgraded. */
export function openDatabase(path: string, options: Database.Options): Database.Database {
  try {
    return new Database(path, options);
  } catch (error) {
    if (!(error instanceof Error) || !['ERR_DLOPEN_FAILED', 'MODULE_NOT_FOUND'].includes(errnoOf(error))) throw error;
    const reason = error.message.replace(/\s*\n\s*/g, ' ').replace(/\.+$/, '');
    const message = `the compiled part of better-sqlite3 cannot be loaded: ${reason}`;
    const remedy = `install dbbackup again with this Node (${process.version}) and npm's --allow-scripts=better-sqlite3: it is missing, or was built for another one`;
    throw new Failed({ code: 'INTERNAL', message, stack: error.stack ?? '', remedy }, { cause: error });
  }
}
