/** Why something of ours cannot be looked at, as a failure: mostly it is for its owner alone. */
import { statSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Failure } from './outcome.js';
import { errnoOf, errnoWords, Failed } from './outcome.js';
import { lstatOrNull } from './system/files.js';
import { identity, userName } from './system/processes.js';

/** The code of the error for a file of ours that somebody else has written into. */
export const SPOILT = 'SPOILT';

/** Whether a database of ours stays unusable until somebody moves it away. */
export const isSpoilt = (error: unknown): boolean => errnoOf(error) === SPOILT || /^SQLITE_(NOTADB|CORRUPT)/.test(errnoOf(error));

/** Why a directory of ours cannot be looked into: that it is for others is no sign of a dying disk. */
export function lookFailure(path: string, error: unknown): Failure {
  if (error instanceof Failed) return error.failure;
  if (isSpoilt(error)) {
    return { code: 'IO_ERROR', path, reason: errnoWords(error), remedy: `move ${path} away, and the next run makes a new one` };
  }
  if (errnoOf(error) === 'ENOTDIR') return { code: 'COPY_NOT_FOUND', path, reason: 'it is no directory', to: path, missing: true };
  // Our own word for what lies there and is somebody else's, or no file.
  if (errnoOf(error) === 'EPERM' && error instanceof Error && !('syscall' in error)) {
    return {
      code: 'TARGET_OWNER',
      path,
      reason: error.message,
      remedy: `find out how it came there; then move it away, or chown ${statSync(dirname(path)).uid} it (as root)`,
    };
  }
  if (errnoOf(error) !== 'EACCES' && !errnoOf(error).startsWith('SQLITE_CANTOPEN')) return { code: 'IO_ERROR', path, reason: errnoWords(error) };
  // What is shut is mostly a directory above, which can be looked at from outside.
  let shut = path;
  while (!canBeSeen(shut) && shut !== dirname(shut)) shut = dirname(shut);
  const owner = ownerOf(shut, identity().uid);
  return {
    code: 'TARGET_OWNER',
    path,
    reason: `this user may not look into it: ${errnoWords(error)}`,
    remedy: owner ? `run as its owner: sudo -u ${owner} dbbackup ...` : 'check its permissions and those of the directories on the way to it',
  };
}

function canBeSeen(path: string): boolean {
  try {
    return lstatOrNull(path) !== null;
  } catch {
    return false;
  }
}

/** Whose it is, when it is somebody else's. */
export function ownerOf(path: string, uid: number): string | null {
  try {
    const owner = statSync(path).uid;
    return owner === uid ? null : userName(owner);
  } catch {
    return null;
  }
}
