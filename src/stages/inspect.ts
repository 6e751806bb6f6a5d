/**
 * Stage 1: facts, without SQLite and without a trace. Opening a WAL database through SQLite can create files beside it
 * (traps, 1), so this looks with lstat, header bytes, statfs and directory listings alone; a dry run ends after it.
 */

import type { Stats } from 'node:fs';
import { accessSync, closeSync, constants, fstatSync, lstatSync, openSync, readSync, realpathSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Facts, SourceState, TargetState } from '../artifacts.js';
import { HEADER_BYTES, textEncoding } from '../artifacts.js';
import { newestGood, newestManifest, readCopies } from '../catalog.js';
import { ownerOf } from '../look-failure.js';
import type { Failure } from '../outcome.js';
import { errnoOf, errnoWords, Failed } from '../outcome.js';
import type { CommandName } from '../records.js';
import { ancestors, beginningOf, listing, lstatOrNull, nearest } from '../system/files.js';
import { rescueOf } from '../system/holders.js';
import type { Identity } from '../system/processes.js';
import { fileSystem, kernelsOwn, mayBeLocked, mayReadWrite, shellWord, userName } from '../system/processes.js';
import { isStateElsewhere, stateDirOf, tempRoot } from '../workspace.js';

const SQLITE_MAGIC = Buffer.from('SQLite format 3\0');

type IsLeftByUs = (ino: number, realPath: string) => boolean;

/**
 * The live database from outside, or why it cannot be backed up.
 * @param isLeftByUs whether the file with this inode has its second name from a killed restore, which recovery takes away
 */
export function inspectSource(path: string, identity: Identity, isLeftByUs: IsLeftByUs = () => false): SourceState | Failure {
  try {
    return lookAtSource(path, identity, isLeftByUs);
  } catch (error) {
    if (error instanceof Failed) return error.failure;
    switch (errnoOf(error)) {
      case 'ENOENT':
      case 'ENOTDIR':
        return { code: 'SOURCE_MISSING', path, rescue: rescueOf(path) };
      case 'EIO':
        return { code: 'IO_ERROR', path, reason: errnoWords(error) };
      default:
        return { code: 'SOURCE_UNREADABLE', path, reason: errnoWords(error), owner: ownerOf(path, identity.uid) };
    }
  }
}

function kindOf(stats: Stats): string {
  if (stats.isSymbolicLink()) return 'a symbolic link';
  if (stats.isDirectory()) return 'a directory';
  if (stats.isFIFO()) return 'a FIFO';
  if (stats.isSocket()) return 'a socket';
  if (stats.isCharacterDevice() || stats.isBlockDevice()) return 'a device';
  return 'something else';
}

function lookAtSource(path: string, identity: Identity, isLeftByUs: IsLeftByUs): SourceState {
  const realPath = realpathSync(path);
  const named = lstatSync(realPath);
  if (!named.isFile()) throw new Failed({ code: 'SOURCE_NOT_A_FILE', path, kind: kindOf(named) });
  const header = Buffer.alloc(HEADER_BYTES);
  // O_NONBLOCK: had a FIFO been put there since the lstat, a plain open would hang.
  const fd = openSync(realPath, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
  let stats: Stats;
  let headerBytes: number;
  let missing: number;
  try {
    stats = fstatSync(fd);
    if (!stats.isFile()) throw new Failed({ code: 'SOURCE_NOT_A_FILE', path, kind: kindOf(stats) });
    headerBytes = readSync(fd, header, 0, HEADER_BYTES, 0);
    missing = headerBytes < HEADER_BYTES ? 0 : missingBytes(fd, realPath);
  } finally {
    closeSync(fd);
  }
  if (stats.size === 0) throw new Failed({ code: 'SOURCE_EMPTY', path });
  if (stats.nlink > 1 && !(stats.nlink === 2 && isLeftByUs(stats.ino, realPath))) throw new Failed({ code: 'SOURCE_HARD_LINKED', path, links: stats.nlink });
  if (!header.subarray(0, SQLITE_MAGIC.length).equals(SQLITE_MAGIC)) {
    throw new Failed({ code: 'NOT_A_DATABASE', path, reason: 'it does not begin with the SQLite header' });
  }
  if (headerBytes < HEADER_BYTES) throw new Failed({ code: 'SOURCE_CORRUPT', path, findings: ['the file ends inside its header'], keptAs: null });

  // https://www.sqlite.org/fileformat2.html, "The Database Header"
  const pageSize = pageSizeIn(header);
  if (pageSize < 512 || (pageSize & (pageSize - 1)) !== 0) {
    throw new Failed({ code: 'SOURCE_CORRUPT', path, findings: [`the header names an impossible page size, ${pageSize}`], keptAs: null });
  }
  const wal = header[18] === 2 || header[19] === 2;
  const freePages = header.readUInt32BE(36);
  const pages = Math.ceil(stats.size / pageSize);
  const walFile = lstatOrNull(`${realPath}-wal`);
  const shmFile = lstatOrNull(`${realPath}-shm`);
  const owner = userName(stats.uid);
  for (const suffix of ['-journal', '-wal', '-shm']) {
    const beside = lstatOrNull(realPath + suffix);
    // SQLite would wait for ever at a FIFO there.
    if (beside && !beside.isFile()) throw new Failed({ code: 'SOURCE_NOT_A_FILE', path: realPath + suffix, kind: kindOf(beside), beside: true });
  }
  if (wal && !(walFile && shmFile)) {
    // SQLite will create what is missing, in our name.
    const directory = dirname(realPath);
    const refused = writeRefusal(directory);
    if (refused !== null)
      throw new Failed({ code: 'SOURCE_READONLY_DIRECTORY', path, directory, owner, isOurs: stats.uid === identity.uid, readOnly: refused === 'EROFS' });
    // With the mode of the database, and the group of its directory or of ours (os_unix.c, findCreateFileMode; chmod(1), "setgid").
    const { mode, gid } = statSync(directory);
    const made = { uid: identity.uid, gid: mode & 0o2000 ? gid : (process.getegid?.() ?? -1), mode: stats.mode };
    if (!identity.canChown && !mayReadWrite(stats.uid, made)) throw new Failed({ code: 'SIDECAR_OWNER', path, owner, left: [] });
  }
  return {
    path,
    realPath,
    sizeBytes: stats.size,
    walBytes: wal ? (walFile?.size ?? 0) : 0,
    // As SQLite calls it for who opens it anew.
    journalMode: wal ? 'wal' : 'delete',
    pageSize,
    dev: stats.dev,
    ino: stats.ino,
    links: stats.nlink,
    ownerUid: stats.uid,
    owner,
    encoding: textEncoding(header),
    usedBytes: Math.max(1, pages - (freePages < pages ? freePages : 0)) * pageSize,
    network: fileSystem(realPath)?.network ?? null,
    missingBytes: missing,
    hotJournal: looksHot(realPath, stats.ino),
  };
}

/** SQLite's RESERVED byte (file format, "Locking"; os.h): a writer holds it for as long as its journal is there. */
const RESERVED_BYTE = 0x40000001;

/**
 * Whether a crash left a journal that must be rolled back: SQLite calls it hot when it does not begin with a zero and nobody holds the
 * RESERVED lock (pager.c, hasHotJournal). A writer whose locks cannot be seen here is told by a journal that changes.
 */
function looksHot(realPath: string, ino: number): boolean {
  let before = '';
  for (let look = 1; look <= LOOKS; look++) {
    if (look > 1) pause();
    const journal = lstatOrNull(`${realPath}-journal`);
    if (!journal || journal.size === 0 || firstByteOf(`${realPath}-journal`) === 0 || mayBeLocked(ino, RESERVED_BYTE)) return false;
    const now = `${journal.ino} ${journal.size} ${journal.mtimeMs}`;
    if (look > 1 && now !== before) return false;
    before = now;
  }
  return true;
}

/** 0 as well where it cannot be read. */
function firstByteOf(path: string): number {
  try {
    return beginningOf(path, 1)[0] ?? 0;
  } catch {
    return 0;
  }
}

const pause = (): void => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, LOOKS_APART_MS);

const isEmpty = (realPath: string, suffix: string): boolean => (lstatOrNull(realPath + suffix)?.size ?? 0) === 0;

/** How often a file must look cut off, or a journal hot, and the pause between: an application may be writing at this very moment. */
const LOOKS = 5;
const LOOKS_APART_MS = 20;

/**
 * What is cut off of a file. The size in its header counts where the header's two counters agree (file format, 1.3.7), and where nothing
 * beside it may hold the rest of it, or take something back.
 */
function missingBytes(fd: number, realPath: string): number {
  let missing = 0;
  for (let look = 1; look <= LOOKS; look++) {
    if (look > 1) pause();
    const header = headerOf(fd);
    const alone = isEmpty(realPath, '-wal') && isEmpty(realPath, '-journal');
    missing = header.readUInt32BE(28) * pageSizeIn(header) - fstatSync(fd).size;
    if (missing <= 0 || !alone || header.readUInt32BE(24) !== header.readUInt32BE(92) || !headerOf(fd).equals(header)) return 0;
  }
  return missing;
}

function pageSizeIn(header: Buffer): number {
  const raw = header.readUInt16BE(16);
  return raw === 1 ? 65536 : raw;
}

function headerOf(fd: number): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  readSync(fd, header, 0, HEADER_BYTES, 0);
  return header;
}

/** The errno for which a directory cannot be written, or null. */
function writeRefusal(path: string): string | null {
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
    return null;
  } catch (error) {
    return errnoOf(error);
  }
}

/**
 * The backup directory: whose it is, and whether anybody else could put another in its place.
 * @param invocation the command line, for the exact `sudo -u` line
 */
export function inspectTarget(path: string, stateDir: string, identity: Identity, invocation: readonly string[]): TargetState | Failure {
  const unusable = (error: unknown, blamed: string, state: boolean): Failure =>
    error instanceof Failed ? error.failure : { code: 'TARGET_UNWRITABLE', path: blamed, reason: errnoWords(error), state };
  let target: Omit<TargetState, 'network'>;
  try {
    target = lookAtTarget(path, identity, invocation);
  } catch (error) {
    return unusable(error, path, false);
  }
  const elsewhere = isStateElsewhere(path, stateDir);
  try {
    return { ...target, network: lookAtState(path, stateDir, identity, invocation) };
  } catch (error) {
    return unusable(error, elsewhere ? stateDir : path, elsewhere);
  }
}

/**
 * Whether a run that failed may make the backup directory for its record. One made by the wrong user would keep the right one out: whose
 * the database is, or the place where it should be, may make it.
 */
export function mayMake(target: TargetState, command: CommandName, database: string | null, { uid }: Identity): boolean {
  if (command !== 'run' || database === null || target.network) return false;
  // What cannot be looked at is the reason why the run fails: that is to be told, and not replaced.
  const uidOf = (path: string): number | null => {
    try {
      return lstatOrNull(path)?.uid ?? null;
    } catch {
      return null;
    }
  };
  return (
    ancestors(database)
      .map(uidOf)
      .findLast((owner) => owner !== null) === uid
  );
}

const ALL_OF_IT = constants.R_OK | constants.W_OK | constants.X_OK;

function lookAtTarget(path: string, identity: Identity, invocation: readonly string[]): Omit<TargetState, 'network'> {
  const unwritable = (reason: string): Failed => new Failed({ code: 'TARGET_UNWRITABLE', path, reason });
  const named = lstatOrNull(path);
  if (named?.isSymbolicLink()) throw unwritable('it is a symbolic link; name the directory itself');
  if (named && !named.isDirectory()) throw unwritable('it is not a directory');
  const there = nearest(path);
  const real = realpathSync(there);
  const reason = unusableReason(there);
  if (reason !== null) throw unwritable(reason);
  checkOwners(path, identity, invocation);
  try {
    accessSync(real, ALL_OF_IT);
  } catch (error) {
    throw new Failed({ code: 'TARGET_UNWRITABLE', path, reason: `${errnoWords(error)} at ${real}`, there: named !== null });
  }
  return { path, exists: named !== null, freeBytes: fileSystem(real)?.freeBytes ?? null };
}

/** Why nothing can be made below it, whatever its permissions, or null. Throws what the system says. */
export function unusableReason(there: string): string | null {
  if (!statSync(there).isDirectory()) return `${there} is not a directory`;
  const kernels = kernelsOwn(there);
  return kernels === null ? null : `${there} is on ${kernels}, which belongs to the kernel`;
}

/** Where state and unfinished work lie. Returns the network file system that the state is on, or null. */
function lookAtState(path: string, stateDir: string, identity: Identity, invocation: readonly string[]): string | null {
  const elsewhere = isStateElsewhere(path, stateDir);
  for (const directory of new Set([stateDir, stateDirOf(path), tempRoot(path)])) {
    const state = elsewhere && directory === stateDir;
    const unwritable = (reason: string): Failed =>
      new Failed({ code: 'TARGET_UNWRITABLE', path: state ? directory : path, reason: state ? reason : `${directory}: ${reason}`, state });
    const stats = lstatOrNull(directory);
    if (!stats) continue;
    if (!stats.isDirectory()) throw unwritable(stats.isSymbolicLink() ? 'it is a symbolic link; name the directory itself' : 'it is not a directory');
    if (stats.uid !== identity.uid) {
      throw new Failed({
        code: 'TARGET_OWNER',
        path,
        reason: `${directory} belongs to ${userName(stats.uid)}`,
        remedy: `find out who made it; if it was you: chown -R ${userName(identity.uid)} ${shellWord(directory)}`,
      });
    }
    try {
      accessSync(directory, ALL_OF_IT);
    } catch (error) {
      throw unwritable(errnoWords(error));
    }
  }
  // Whose it is itself was asked above: within a directory that is ours the way out is to take it over, and not to run as somebody else.
  checkOwners(stateDir, identity, invocation);
  const there = nearest(stateDir);
  // It is to be made: in the backup directory that was looked at, where it has its usual place.
  if (elsewhere && there !== stateDir) {
    const reason = unusableReason(there);
    if (reason !== null) throw new Failed({ code: 'TARGET_UNWRITABLE', path: stateDir, reason, state: true });
    accessSync(realpathSync(there), ALL_OF_IT);
  }
  return fileSystem(there)?.network ?? null;
}

function isEmptyDirectory(path: string): boolean {
  try {
    return listing(path).length === 0;
  } catch {
    return false;
  }
}

const sudoLine = (uid: number, invocation: readonly string[]): string => `run as its owner: sudo -u ${userName(uid)} ${invocation.map(shellWord).join(' ')}`;

/**
 * Nobody but root and us may be able to put something else in the place of a directory that we write in: neither on the
 * way that was configured, symbolic links included, nor on the way that it leads to.
 */
function checkOwners(path: string, identity: Identity, invocation: readonly string[]): void {
  const refuse = (reason: string, remedy: string): Failed => new Failed({ code: 'TARGET_OWNER', path, reason, remedy });
  const there = nearest(path);
  const real = realpathSync(there);
  for (const step of new Set([...ancestors(there), ...ancestors(real)])) {
    const stats = lstatSync(step);
    const itself = step === path;
    if (stats.uid !== identity.uid && (itself || stats.uid !== 0)) {
      const what = itself ? 'it belongs' : `${step}, on the way to it, belongs`;
      const remedy = sudoLine(stats.uid, invocation);
      const isBare = itself && stats.uid === 0 && isEmptyDirectory(step);
      const asked = isBare ? `it is empty: if a disk should be mounted there, mount it; if not, ${remedy}` : remedy;
      throw refuse(`${what} to ${userName(stats.uid)}, not to ${userName(identity.uid)}, who runs this`, asked);
    }
    // In a sticky directory others may add names, but not move or remove ours.
    if (!stats.isSymbolicLink() && stats.mode & 0o002 && !(stats.mode & 0o1000)) {
      const what = itself ? 'it' : `${step}, on the way to it,`;
      throw refuse(`${what} can be written by others, who could put another directory in its place`, `chmod o-w ${shellWord(step)}`);
    }
  }
}

/** What is already in the directory under this name. `every`: read all manifests, not only the newest ones. */
export function inspectCopies(directory: string, name: string, now: Date, every: 'every' | 'newest'): Pick<Facts, 'copies' | 'newestGood' | 'newestManifest'> {
  return {
    copies: every === 'every' ? readCopies(directory, name) : [],
    newestGood: newestGood(directory, name, now.getTime()),
    newestManifest: newestManifest(directory, name),
  };
}
