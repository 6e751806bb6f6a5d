/**
 * Where a run works: `<to>/.dbbackup/tmp/NAME-RUNID/`, always below the backup directory, since link(2) needs one file
 * system. The data and manifest of a copy are staged there before they appear under their final names.
 */
import { readdirSync, rmdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Packed } from './packing.js';
import { emptyFiles, lstatOrNull, makePrivateDirectory, remove, removeTree } from './system/files.js';
import type { Lock } from './system/lock.js';
import { acquireLock, takeLock } from './system/lock.js';

const RUN_ID = /^(.+)-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$/u;

export interface Workspace {
  readonly directory: string;
  /** The snapshot, plain. */
  readonly data: string;
  /** The archive of included files, plain. */
  readonly files: string;
  readonly manifest: string;
}

/** Where state lies unless `state-dir` says otherwise. */
export const stateDirOf = (to: string): string => join(to, '.dbbackup');

/** Where unfinished work lies. */
export const tempRoot = (to: string): string => join(stateDirOf(to), 'tmp');

/** The workspace of a run. */
export function workspace(to: string, name: string, runId: string): Workspace {
  const directory = join(tempRoot(to), `${name}-${runId}`);
  return {
    directory,
    data: join(directory, 'data.db'),
    files: join(directory, 'files.tar'),
    manifest: join(directory, 'manifest.json'),
  };
}

/** What packing makes of a private file: compressed, then sealed. */
export const packedPath = (plain: string): string => `${plain}.packed`;
export const sealedPath = (plain: string): string => `${plain}.age`;

/** What an attempt at a copy makes on the way: the snapshot with what SQLite puts beside it, the archive, and what packing makes of both. */
export const privateFiles = ({ data, files }: Workspace): string[] => [
  ...[data, files].flatMap((plain) => [plain, packedPath(plain), sealedPath(plain)]),
  ...['-wal', '-shm', '-journal'].map((suffix) => data + suffix),
];

/** Lets go of the large files of a run that was ended; the directory is then removed. */
export function giveUp(place: Workspace): void {
  const is = lstatOrNull(place.directory);
  if (is) emptyFiles(place.directory, is, [...privateFiles(place).map((path) => basename(path)), PROVEN]);
}

/** Where a copy is proven that goes into a live database. */
const PROVEN = 'restore.db';
export const provenPath = ({ directory }: Workspace): string => join(directory, PROVEN);

/** Where the file lies that is published of a private one. */
export const finishedPath = (plain: string, { compress, encrypted }: Packed): string =>
  encrypted ? sealedPath(plain) : compress === 'none' ? plain : packedPath(plain);

/** Whose workspace a directory below `tmp/` is; null for what is not ours. */
export function parseWorkspace(entry: string): { name: string; runId: string } | null {
  const [, name, runId] = RUN_ID.exec(entry) ?? [];
  return name === undefined || runId === undefined ? null : { name, runId };
}

/** Held as long as the process lives that made the directory without holding the lock of the name. The first file in there, and the last. */
const ALIVE = 'alive.lock.db';
const ATTEMPTS = 10;

/**
 * A private directory that a sweep leaves alone while this process lives. A sweep may take it away before its lock is held: then it
 * is made again.
 */
export async function makeLivingDirectory(directory: string, signal: AbortSignal): Promise<Lock> {
  for (let attempt = 1; ; attempt++) {
    try {
      makePrivateDirectory(directory);
      const lock = await acquireLock(join(directory, ALIVE), 0, signal);
      // A sweep removes the file while it holds the lock itself. So either it is there, and ours, or it never will be.
      if (lock && lstatOrNull(join(directory, ALIVE))) return lock;
      lock?.release();
    } catch (error) {
      if (attempt === ATTEMPTS || lstatOrNull(directory)) throw error;
    }
    if (attempt === ATTEMPTS) throw Object.assign(new Error(`${directory} is removed again and again`), { code: 'EBUSY' });
  }
}

/**
 * Whether a directory may be of a process that is at work without the lock of the name. One that has a file in there has held its own
 * lock since before: where that is gone, so is the process.
 */
export const isLiving = (directory: string): boolean =>
  !readdirSync(directory).some((entry) => entry !== ALIVE) || lstatOrNull(join(directory, ALIVE)) !== null;

/**
 * Removes a directory, unless a process is still at work in it that made it with `makeLivingDirectory`, or is just making it. What
 * cannot be removed, or is just being removed by somebody else, is left to the next sweep.
 */
export function sweepDirectory(directory: string): void {
  try {
    // An empty one only as long as it is: its process may be about to make the lock.
    if (!isLiving(directory)) removeTree(directory);
    else if (emptyLiving(directory)) rmdirSync(directory);
  } catch {
    // As said.
  }
}

/** Takes all out of it, the lock at last: whoever waits for that one finds that it is gone, and makes the directory again. */
function emptyLiving(directory: string): boolean {
  const path = join(directory, ALIVE);
  if (!lstatOrNull(path)) return true;
  const lock = takeLock(path);
  if (!lock) return false;
  try {
    for (const entry of readdirSync(directory)) if (entry !== ALIVE) removeTree(join(directory, entry));
    return remove(path);
  } finally {
    lock.release();
  }
}

/** Removes one's own. What is left of it, as by a kill meanwhile, is swept. */
export function removeQuietly(directory: string): void {
  try {
    removeTree(directory);
  } catch {
    // As said.
  }
}
