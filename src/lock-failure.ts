/** Where the locks of a name lie, and what it means that one cannot be had. */
import { join } from 'node:path';
import { ownerOf } from './look-failure.js';
import type { Failure } from './outcome.js';
import { diskFull, errnoOf, errnoWords, Failed, targetFailure } from './outcome.js';
import type { Config } from './settings/load.js';
import { NOT_A_LOCK } from './system/lock.js';
import type { Identity } from './system/processes.js';
import { shellWord, userName } from './system/processes.js';
import { isStateElsewhere, stateDirOf } from './workspace.js';

/** The lock that counts, and where state lies elsewhere the one beside the temp directory. */
export const lockPaths = ({ to, stateDir }: Pick<Config, 'to' | 'stateDir'>, name: string): string[] =>
  [...new Set([stateDir, stateDirOf(to)])].map((directory) => join(directory, `${name}.lock.db`));

/** SQLite's own errors have codes that are no errno: a lock that cannot be made is a directory that cannot be used. */
export function lockFailure({ to, stateDir }: Pick<Config, 'to' | 'stateDir'>, name: string, identity: Identity, error: unknown): Failure {
  if (error instanceof Failed) return error.failure;
  const code = errnoOf(error);
  if (code === 'SQLITE_FULL') return diskFull(stateDir);
  const lock = join(stateDir, `${name}.lock.db`);
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
