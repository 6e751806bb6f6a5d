/**
 * Where a run works: `<to>/.dbbackup/tmp/NAME-RUNID/`, always below the backup directory, since link(2) needs one file
 * system. The data and manifest of a copy are staged there before they appear under their final names.
 */
import { randomUUID } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readdirSync, rmdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Whereabouts } from './outcome.js';
import { errnoOf } from './outcome.js';
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

/** `state-dir` was given, and is another. */
export const isStateElsewhere = (to: string, stateDir: string): boolean => stateDir !== stateDirOf(to);

/** As a command line has to say it: state in its usual place goes without saying. */
export const whereabouts = (to: string, stateDir: string): Whereabouts => ({ to, stateDir: isStateElsewhere(to, stateDir) ? stateDir : null });

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

/** Lets go of the large files of a run that was ended; the directory is then removed. Never throws. */
export function giveUp(place: Workspace): void {
  try {
    const is = lstatOrNull(place.directory);
    if (is) emptyFiles(place.directory, is, [...privateFiles(place).map((path) => basename(path)), PROVEN]);
  } catch {
    // It may not be looked at any more, or the disk fails: the next command sweeps it.
  }
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

/** A lock in a directory that its process made without holding the lock of the name: held as long as that lives. No such name is made twice. */
const isAlive = (entry: string): boolean => /^alive-.*\.lock\.db$/.test(entry);
const ATTEMPTS = 10;
/** A sweep holds such a lock for moments. */
const LOCK_WAIT_MS = 2000;

/**
 * A private directory that a sweep leaves alone while this process lives. A sweep may take it away before its lock is held: then it
 * is made again. Throws what the system says, and leaves nothing then.
 */
export async function makeLivingDirectory(directory: string, signal: AbortSignal): Promise<Lock> {
  for (let attempt = 1; ; attempt++) {
    const path = join(directory, `alive-${randomUUID()}.lock.db`);
    try {
      makePrivateDirectory(directory);
      const lock = await acquireLock(path, LOCK_WAIT_MS, signal);
      if (!lock) throw Object.assign(new Error(`${path} cannot be locked: does the file system support locks?`), { code: 'ENOLCK' });
      // A sweep removes the file while it holds the lock itself. So either it is there, and ours, or it never will be.
      if (lstatOrNull(path)) return lock;
      lock.release();
      if (attempt === ATTEMPTS) throw Object.assign(new Error(`${directory} is removed again and again`), { code: 'EBUSY' });
    } catch (error) {
      if (attempt < ATTEMPTS && !lstatOrNull(directory)) continue;
      try {
        remove(path);
        rmdirSync(directory);
      } catch {
        // The next sweep takes it.
      }
      throw error;
    }
  }
}

/**
 * Whether a directory may be of a process that is at work without the lock of the name. One that has a file in there has held its own
 * lock since before: where that is gone, so is the process. False for what is no directory, or not there any more.
 */
export function isLiving(directory: string): boolean {
  try {
    const entries = readdirSync(directory);
    return entries.length === 0 || entries.some(isAlive);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return false;
    throw error;
  }
}

/**
 * Removes a directory of ours, unless a process is still at work in it that made it with `makeLivingDirectory`, or is just making it. What
 * cannot be removed, or is just being removed by somebody else, is left to the next sweep.
 * @param isMade whether an entry is one that we make there: a directory with any other in it only has such a name
 */
export function sweepDirectory(directory: string, isMade: (entry: string) => boolean = () => true): void {
  let within: number | null = null;
  try {
    // By its descriptor: beside a file of another user its name can be exchanged for a link to anywhere.
    within = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    if (fstatSync(within).uid !== process.geteuid?.() || !emptyDead(`/proc/self/fd/${within}`, isMade)) return;
    // Only while it is empty: its process may be about to make the lock.
    rmdirSync(directory);
  } catch {
    // As said.
  } finally {
    if (within !== null) closeSync(within);
  }
}

/** Takes all out of it that was there when its locks could be had, these at last: who waits for one makes the directory again. */
function emptyDead(directory: string, isMade: (entry: string) => boolean): boolean {
  const entries = readdirSync(directory);
  if (!entries.every((entry) => isAlive(entry.replace(/-journal$/, '')) || isMade(entry))) return false;
  const paths = entries.filter(isAlive).map((entry) => join(directory, entry));
  const locks: Lock[] = [];
  try {
    for (const path of paths) {
      const lock = takeLock(path);
      if (!lock) return false;
      locks.push(lock);
    }
    for (const entry of entries) if (!isAlive(entry)) removeTree(join(directory, entry));
    for (const path of paths) remove(path);
    return true;
  } finally {
    for (const lock of locks) lock.release();
  }
}

/** Takes all out of a workspace: that it is there says that its run has not come to its end. Throws what the system says. */
export function clearDirectory(directory: string): void {
  // What is none has such a name only, and goes: through a link this would empty a directory elsewhere.
  if (!lstatOrNull(directory)?.isDirectory()) removeTree(directory);
  else for (const entry of readdirSync(directory)) removeTree(join(directory, entry));
}

/** The same of one's own. */
export function clearQuietly(directory: string): void {
  try {
    clearDirectory(directory);
  } catch {
    // As said below.
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
