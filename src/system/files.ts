/**
 * The careful way with files. Everything that dbbackup publishes goes through `publish` or `replace`: written and
 * synced under a private name, then linked or renamed, then the directory synced, because SQLite's own VACUUM INTO and
 * a plain rename both leave a window in which a power cut takes the file away again (traps, 12).
 */

import { createHash } from 'node:crypto';
import type { Stats } from 'node:fs';
import {
  accessSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsync,
  fsyncSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  read as readCallback,
  readdirSync,
  readlinkSync,
  readSync,
  realpathSync,
  renameSync,
  rmdirSync,
  statSync,
  unlinkSync,
  write as writeCallback,
  writeSync,
} from 'node:fs';
import { basename, dirname, join, parse, resolve, sep } from 'node:path';
import { promisify } from 'node:util';
import { errnoOf } from '../outcome.js';

/** Told when the file system cannot sync a directory or change a mode: a remark, not a failure (DESIGN, "Files"). */
export type Unsupported = (what: string) => void;

const UNSUPPORTED = new Set(['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EBADF']);

/** lstat, or null when nothing is there (or a parent is no directory). Other errors throw. */
export function lstatOrNull(path: string): Stats | null {
  try {
    return lstatSync(path);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(errnoOf(error))) return null;
    throw error;
  }
}

/** The path itself, or the nearest one above it that is there. */
export function nearest(path: string): string {
  let at = path;
  while (!lstatOrNull(at)) at = dirname(at);
  return at;
}

export function isReadable(path: string): boolean {
  try {
    accessSync(path, constants.R_OK);
    return true;
  } catch {
    return false;
  }
}

/** Where a path leads, links followed, also to what is not there any more; the path itself where that may not be seen. */
export function realOrSame(path: string): string {
  for (const real of [() => realpathSync(path), () => resolve(dirname(path), readlinkSync(path)), () => join(realpathSync(dirname(path)), basename(path))]) {
    try {
      return real();
    } catch {
      // It is gone, or no link, or its directory is gone as well.
    }
  }
  return path;
}

/** The size of a file in bytes, 0 when it is not there or cannot be seen. */
export function sizeOf(path: string): number {
  try {
    return statSync(path).size;
  } catch {
    return 0;
  }
}

/** What is in a directory; nothing where there is none. Throws what the system says. */
export function listing(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

/** Two names of one file, or two ways to one directory; false where one is not there. Links are not followed. */
export function isSameFile(a: string, b: string): boolean {
  const [first, second] = [lstatOrNull(a), lstatOrNull(b)];
  return first !== null && second !== null && first.ino === second.ino && first.dev === second.dev;
}

/** The first bytes of a regular file, at most so many. Throws `ReadFailed`, and what the system says. */
export function beginningOf(path: string, maxBytes: number): Buffer {
  const fd = openToCopy(path);
  try {
    const bytes = Buffer.alloc(maxBytes);
    let filled = 0;
    for (let n = -1; n !== 0 && filled < maxBytes; filled += n) n = readSync(fd, bytes, filled, maxBytes - filled, filled);
    return bytes.subarray(0, filled);
  } finally {
    closeSync(fd);
  }
}

/**
 * Syncs every directory above one, as far as they are of its file system and may be read: whoever made them may have been killed before
 * he did. Throws what the system says.
 */
export function syncWayTo(path: string, unsupported: Unsupported): void {
  const { dev } = statSync(path);
  for (let at = dirname(realpathSync(path)); statSync(at).dev === dev; at = dirname(at)) {
    try {
      syncDirectory(at, unsupported);
    } catch (error) {
      // Who may not read it cannot sync it; and then it is none that we have made.
      if (!['EACCES', 'EPERM'].includes(errnoOf(error))) throw error;
    }
    if (at === dirname(at)) return;
  }
}

/** Syncs a directory's entries to the disk. EIO and the like throw; "not supported here" is only told. */
export function syncDirectory(path: string, unsupported: Unsupported): void {
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(fd);
  } catch (error) {
    if (!UNSUPPORTED.has(errnoOf(error))) throw error;
    unsupported(`syncing the directory ${path}`);
  } finally {
    closeSync(fd);
  }
}

/** Syncs a file's bytes: a small one's, or in a process that can be left behind. Otherwise `syncLarge` (syncing.ts). */
export async function syncFile(path: string): Promise<void> {
  const fd = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
  try {
    await new Promise<void>((done, fail) => fsync(fd, (error) => (error ? fail(error) : done())));
  } finally {
    closeSync(fd);
  }
}

/** Writes a new file (0600, or `mode` whatever the umask), whole and synced. Throws EEXIST rather than touch what is there, links included. */
export function writeNew(path: string, bytes: string | Buffer, mode = 0o600): void {
  const fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600);
  try {
    if (mode !== 0o600) fchmodSync(fd, mode);
    const buffer = typeof bytes === 'string' ? Buffer.from(bytes) : bytes;
    for (let done = 0; done < buffer.length; ) done += writeSync(fd, buffer, done);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * Gives a staged, synced file its final name. link(2) never clobbers: EEXIST throws. Where the file system has no hard
 * links (FAT, some network file systems), rename does it after a look; the caller holds the lock of the name, so nobody
 * of us can come between. The directory is not synced yet: the caller does, and withdraws the name if that fails.
 */
export function publish(staged: string, final: string): void {
  try {
    linkSync(staged, final);
  } catch (error) {
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(errnoOf(error))) throw error;
    if (lstatOrNull(final)) throw Object.assign(new Error(`${final} exists`), { code: 'EEXIST' });
    renameSync(staged, final);
  }
}

/** Replaces a small file as a whole: a reader sees the old bytes or the new ones. `staged`: where it is written first, on the same file system. */
export function replace(path: string, bytes: string, unsupported: Unsupported, staged = `${path}.new`): void {
  remove(staged);
  try {
    writeNew(staged, bytes);
    renameSync(staged, path);
  } catch (error) {
    // On a full disk the name would stay, with nothing in it.
    try {
      remove(staged);
    } catch {
      // The first error says more.
    }
    throw error;
  }
  syncDirectory(dirname(path), unsupported);
}

/** Removes a name; true if it was there. */
export function remove(path: string): boolean {
  try {
    unlinkSync(path);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}

/**
 * Reads a small regular file. Symbolic links, FIFOs, devices and files over `maxBytes` throw: a hostile directory must
 * not make us block, follow or swallow (O_NONBLOCK opens a FIFO without waiting for its writer).
 */
export function readSmall(path: string, maxBytes: number, follow: 'follow' | 'nofollow' = 'nofollow'): { bytes: Buffer; stats: Stats } {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | (follow === 'nofollow' ? constants.O_NOFOLLOW : 0);
  const fd = openSync(path, flags);
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) throw Object.assign(new Error('not a regular file'), { code: 'EINVAL' });
    if (stats.size > maxBytes) throw Object.assign(new Error(`larger than ${maxBytes} bytes`), { code: 'EFBIG' });
    const bytes = Buffer.allocUnsafe(stats.size);
    let filled = 0;
    while (filled < stats.size) {
      const n = readSync(fd, bytes, filled, stats.size - filled, filled);
      if (n === 0) break;
      filled += n;
    }
    return { bytes: bytes.subarray(0, filled), stats };
  } finally {
    closeSync(fd);
  }
}

/** Why a path is no directory that is written into, or null. Links are not followed, since who may change one leads us elsewhere. */
export function directoryProblem(path: string): string | null {
  const stats = lstatOrNull(path);
  if (stats?.isDirectory()) return null;
  if (!stats?.isSymbolicLink()) return `there is no directory ${path}`;
  let real: string | null = null;
  try {
    real = realpathSync(path);
  } catch {
    // It leads nowhere.
  }
  return `${path} is a symbolic link, ${real === null ? 'to nothing that is there' : `and is not followed: name what it leads to, ${real}`}`;
}

/** A directory made by us, 0700 whatever the umask; false if it was there. Its parent must exist. */
export function makePrivateDirectory(path: string): boolean {
  try {
    mkdirSync(path, { mode: 0o700 });
    return true;
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error;
    if (!lstatSync(path).isDirectory()) throw Object.assign(new Error('is not a directory'), { code: 'ENOTDIR' });
    return false;
  }
}

/**
 * Makes a directory and what is missing above it, each 0700, and syncs the parents so that they survive a power cut.
 * Walks the path itself: `mkdir` with `recursive` never returns on a path like /proc/nope (traps, 43).
 */
export function makeDirectories(path: string, unsupported: Unsupported): void {
  const missing: string[] = [];
  for (let at = path; !lstatOrNull(at); at = dirname(at)) missing.unshift(at);
  for (const directory of missing) {
    if (makePrivateDirectory(directory)) syncDirectory(dirname(directory), unsupported);
  }
}

/** `/`, `/var`, `/var/backups`, ...: every directory on the way to `path`, itself included. */
export function ancestors(path: string): string[] {
  const { root } = parse(path);
  const parts = path.slice(root.length).split(sep).filter(Boolean);
  return [root, ...parts.map((_, i) => join(root, ...parts.slice(0, i + 1)))];
}

const PIECE = 1 << 20;

/**
 * Tries to write a scratch file of this size, in bytes, into a private directory: the system's error, or null when all of it can be
 * written or the signal aborts. Leaves nothing.
 */
export async function probeWrite(directory: string, size: number, signal: AbortSignal): Promise<Error | null> {
  const path = join(directory, 'probe');
  let fd: number | null = null;
  try {
    fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
    const piece = Buffer.alloc(PIECE, 1);
    for (let done = 0; done < size && !signal.aborted; done += PIECE) await writeAll(fd, piece.subarray(0, size - done), done);
    if (!signal.aborted) await promisify(fsync)(fd);
    return null;
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  } finally {
    if (fd !== null) closeSync(fd);
    remove(path);
  }
}

/** open(2); Node has no name for it. */
const O_PATH = 0o10000000;

/**
 * Opens a directory, to work below `/proc/self/fd/N`: the one of that very path, no link on the way to it, and whatever becomes of the names
 * meanwhile. Throws EEXIST where the path leads elsewhere, and what the system says.
 */
export function openDirectory(realPath: string): number {
  const fd = openSync(realPath, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  if (readlinkSync(`/proc/self/fd/${fd}`) === realPath) return fd;
  closeSync(fd);
  throw Object.assign(new Error(`${realPath} leads to another directory now`), { code: 'EEXIST' });
}

/**
 * Removes a file, or a directory of ours with all in it. Each directory is held by its descriptor meanwhile: beside a file of another user its
 * name can be exchanged at any moment, for a link to anywhere or for a directory of his. Throws EPERM for one that is not ours, and what the
 * system says; what is not there is no error.
 */
export function removeTree(path: string): void {
  if (!lstatOrNull(path)?.isDirectory()) {
    remove(path);
    return;
  }
  const within = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    if (fstatSync(within).uid !== process.geteuid?.()) throw Object.assign(new Error(`${path} is a directory of somebody else`), { code: 'EPERM' });
    emptyWithin(within);
  } finally {
    closeSync(within);
  }
  rmdirSync(path);
}

/** Takes all out of an open directory, whose private place nobody else can write in. */
function emptyWithin(directory: number): void {
  const here = `/proc/self/fd/${directory}`;
  for (const entry of readdirSync(here, { withFileTypes: true })) {
    const path = join(here, entry.name);
    if (!entry.isDirectory()) {
      remove(path);
      continue;
    }
    const within = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    try {
      emptyWithin(within);
    } finally {
      closeSync(within);
    }
    rmdirSync(path);
  }
}

/**
 * Empties what lies under these names in a private temp directory, as far as it has no other name: what of it is not on its way to
 * the disk yet need not get there, and what has to be written down now does not wait for it. `is`: the directory it must be, since
 * beside a file of another user its name can be exchanged for a link to anywhere. What cannot be emptied is left.
 */
export function emptyFiles(directory: string, is: FileId, names: readonly string[]): void {
  let within: number;
  try {
    within = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  } catch {
    return;
  }
  try {
    const now = fstatSync(within);
    if (now.dev !== is.dev || now.ino !== is.ino) return;
    for (const name of names) emptyFile(`/proc/self/fd/${within}/${name}`);
  } finally {
    closeSync(within);
  }
}

function emptyFile(path: string): void {
  try {
    const fd = openSync(path, constants.O_WRONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      const stats = fstatSync(fd);
      if (stats.isFile() && stats.nlink === 1 && stats.uid === process.geteuid?.()) ftruncateSync(fd, 0);
    } finally {
      closeSync(fd);
    }
  } catch {
    // It is not there, or on a disk that fails: it is removed as it is.
  }
}

const readAt = promisify(readCallback);
const CHUNK = 1 << 20;

/** SHA-256 of a file, hex, streamed; ends early with the signal's reason. */
export async function hashFile(path: string, signal: AbortSignal, progress: (doneBytes: number) => void): Promise<string> {
  const hash = createHash('sha256');
  const buffer = Buffer.allocUnsafe(CHUNK);
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    for (let done = 0; ; ) {
      signal.throwIfAborted();
      const { bytesRead } = await readAt(fd, buffer, 0, CHUNK, done);
      if (bytesRead === 0) return hash.digest('hex');
      hash.update(buffer.subarray(0, bytesRead));
      done += bytesRead;
      progress(done);
    }
  } finally {
    closeSync(fd);
  }
}

/** A file copied whole into a new one with its mode and, where we may, its owner; synced. */
export function copySync(from: string, to: string): void {
  const input = openToCopy(from);
  try {
    const output = openSync(to, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600);
    try {
      const buffer = Buffer.allocUnsafe(CHUNK);
      for (let n = readSync(input, buffer); n > 0; n = readSync(input, buffer)) {
        for (let done = 0; done < n; ) done += writeSync(output, buffer, done, n - done);
      }
      const { uid, gid, mode } = fstatSync(input);
      fchmodSync(output, mode & 0o7777);
      if (uid !== process.geteuid?.()) fchownSync(output, uid, gid);
      fsyncSync(output);
    } finally {
      closeSync(output);
    }
  } finally {
    closeSync(input);
  }
}

/** Tells a file from whatever else may come to stand under its name. */
export interface FileId {
  readonly dev: number;
  readonly ino: number;
}

/**
 * Gives a regular file mode and owner of another one and syncs it, through a descriptor: in a directory of another user the
 * name can be exchanged for a link at any moment, and chmod and chown follow links. `is`: the file that it must be.
 * Throws EEXIST when it is another one, ELOOP for a link, and the system's errors.
 */
export function giveLook(path: string, look: Pick<Stats, 'uid' | 'gid' | 'mode'>, is: FileId | null): void {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const now = fstatSync(fd);
    if (!now.isFile() || (is && (now.dev !== is.dev || now.ino !== is.ino)))
      throw Object.assign(new Error(`${path} was exchanged for another file`), { code: 'EEXIST' });
    if (now.uid !== look.uid || now.gid !== look.gid) fchownSync(fd, look.uid, look.gid);
    if ((now.mode & 0o7777) !== (look.mode & 0o7777)) fchmodSync(fd, look.mode & 0o7777);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Errors that say that a file itself cannot be had, and not that we could not read just now. 117 is EUCLEAN, for which Node has no name. */
export const IS_THE_FILES: ReadonlySet<string> = new Set(['EIO', 'EBADMSG', 'Unknown system error -117', 'ENOENT', 'ELOOP', 'EINVAL']);

/** An error of reading the first file of a copy, so that it is not taken for one of writing the second. */
export class ReadFailed extends Error {}

/**
 * Copies a file into a new one (0600) while hashing what is read: SHA-256, hex, and bytes. Links are not followed, and
 * nothing but a regular file is read. Throws `ReadFailed` for the first file and the system's error for the second; not synced.
 */
export async function copyHashed(
  from: string,
  to: string,
  signal: AbortSignal,
  progress: (doneBytes: number) => void,
): Promise<{ sha256: string; sizeBytes: number; made: FileId }> {
  const hash = createHash('sha256');
  const input = openToCopy(from);
  // One is read into, one is hashed and written, one may still be on its way out.
  const buffers = Array.from({ length: 3 }, () => Buffer.allocUnsafe(CHUNK));
  const bufferOf = (turn: number): Buffer => buffers[turn % buffers.length] ?? Buffer.allocUnsafe(CHUNK);
  let output: number | null = null;
  let reading: Promise<number> = Promise.resolve(0);
  let writing: Promise<void> = Promise.resolve();
  try {
    output = openSync(to, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600);
    reading = readOrFail(input, bufferOf(0), 0);
    for (let done = 0, turn = 0; ; turn++) {
      signal.throwIfAborted();
      const bytesRead = await reading;
      await writing;
      if (bytesRead === 0) return { sha256: hash.digest('hex'), sizeBytes: done, made: fstatSync(output) };
      const chunk = bufferOf(turn).subarray(0, bytesRead);
      // Both while this one is hashed; what they meet is seen in the next turn.
      writing = writeAll(output, chunk, done);
      reading = readOrFail(input, bufferOf(turn + 1), done + bytesRead);
      writing.catch(() => undefined);
      reading.catch(() => undefined);
      hash.update(chunk);
      done += bytesRead;
      progress(done);
    }
  } finally {
    // What is still under way would otherwise go to whatever gets the number of these descriptors next.
    await Promise.allSettled([reading, writing]);
    closeSync(input);
    if (output !== null) closeSync(output);
  }
}

/** A regular file, opened for reading without following links or waiting. Throws `ReadFailed`. */
export function openToCopy(path: string): number {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw Object.assign(new ReadFailed(String(error), { cause: error }), { code: errnoOf(error) });
  }
  if (fstatSync(fd).isFile()) return fd;
  closeSync(fd);
  throw Object.assign(new ReadFailed('not a regular file'), { code: 'EINVAL' });
}

async function readOrFail(fd: number, buffer: Buffer, position: number): Promise<number> {
  try {
    return (await readAt(fd, buffer, 0, CHUNK, position)).bytesRead;
  } catch (error) {
    throw Object.assign(new ReadFailed(String(error), { cause: error }), { code: errnoOf(error) });
  }
}

const writeAt = promisify(writeCallback);

/** Writes all of it at a position. */
export async function writeAll(fd: number, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) done += (await writeAt(fd, bytes, done, bytes.length - done, position + done)).bytesWritten;
}
