/** Where the locks of a name lie, and what it means that one cannot be had. */
import { dirname, join } from 'node:path';
import { ownerOf } from './look-failure.js';
import type { Failure, Warning } from './outcome.js';
import { diskFull, errnoOf, errnoWords, Failed, targetFailure, warning } from './outcome.js';
import type { Config } from './settings/load.js';
import { NOT_A_LOCK } from './system/lock.js';
import type { Identity } from './system/processes.js';
import { shellWord, userName } from './system/processes.js';
import { isStateElsewhere, stateDirOf } from './workspace.js';

/** The lock that counts, and where state lies elsewhere the one beside the temp directory. */
export function lockPaths({ to, stateDir }: Pick<Config, 'to' | 'stateDir'>, name: string): { main: string; beside: string | null } {
  const file = `${name}.lock.db`;
  return { main: join(stateDir, file), beside: isStateElsewhere(to, stateDir) ? join(stateDirOf(to), file) : null };
}

/** SQLite's own errors have codes that are no errno: a lock that cannot be made is a directory that cannot be used. */
export function lockFailure({ to, stateDir }: Pick<Config, 'to' | 'stateDir'>, name: string, identity: Identity, error: unknown): Failure {
  if (error instanceof Failed) return error.failure;
  const code = errnoOf(error);
  if (code === 'SQLITE_FULL') return diskFull(stateDir);
  const lock = lockPaths({ to, stateDir }, name).main;
  const owner = ownerOf(lock, identity.uid);
  if ((code.startsWith('SQLITE_') || code === NOT_A_LOCK) && owner !== null) {
    const remedy = `if the backups are yours: chown ${userName(identity.uid)} ${shellWord(lock)} (as root); else run as ${owner}`;
    return { code: 'TARGET_OWNER', path: stateDir, reason: `the lock ${lock} belongs to ${owner}`, remedy };
  }
  const state = isStateElsewhere(to, stateDir);
  const unwritable = (reason: string): Failure => ({ code: 'TARGET_UNWRITABLE', path: stateDir, reason, state });
  if (code.startsWith('SQLITE_READONLY')) return unwritable(`the lock ${lock} cannot be written`);
  if (code.startsWith('SQLITE_') || code === NOT_A_LOCK || code === 'EIO') return unwritable(errnoWords(error));
  const failure = targetFailure(error, stateDir);
  return failure.code === 'TARGET_UNWRITABLE' ? unwritable(failure.reason) : failure;
}

/** Without the lock beside the temp directory a run goes on: it only keeps out those whose state lies somewhere else. */
export const lockWarning = (beside: string, error: unknown): Warning =>
  warning('TARGET_NETWORK_FS', `${dirname(beside)} cannot be locked: ${errnoWords(error)}`);
