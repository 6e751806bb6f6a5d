/**
 * The archive of the files beside a database: uploads and the like, as they are while the application goes on writing.
 *
 * A plain POSIX (pax) tar file, which Debian's tar reads. Each file has a size in its header before its content is read, so the
 * content is made to fit: cut where the file grew, filled with zeros where it shrank, and the file is named as changed. The tree
 * is walked through open directories, each opened without following a link and compared with what lstat said: a directory
 * exchanged for a link while we walk leads nowhere.
 *
 * tar-stream does the format; its stream is drained after every step, so that memory holds one piece of one file, and a disk
 * that is full is met where the entry is written.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  read as readCallback,
  readdir as readdirCallback,
  readlinkSync,
  realpathSync,
  unlinkSync,
} from 'node:fs';
import { promisify } from 'node:util';
import type { Pack } from 'tar-stream';
import { errnoOf } from '../outcome.js';
import { ReadFailed, writeAll } from '../system/files.js';
import { ArchiveError, type ByteName, bytesOf, inside, kindOf, reasonOf, shown, textOf } from './common.js';

/** What came of archiving. Paths are absolute, bytes that are not UTF-8 in them as `\xE9`; at most 100 of each kind are kept. */
export interface Archived {
  /** Entries of regular files. */
  readonly count: number;
  /** Bytes of their content, as archived. */
  readonly fileBytes: number;
  /** Were listed, and gone when they were to be read. */
  readonly vanished: readonly string[];
  /** Are in the archive, and were written to while they were read: their content may be of no one moment. */
  readonly changed: readonly string[];
  /** `path: reason`. Not in the archive, or, where the reason says so, in part. */
  readonly unreadable: readonly string[];
  /** `path: reason`. Left out on purpose: sockets, FIFOs, devices, other file systems, names that tar-stream cannot spell. */
  readonly skipped: readonly string[];
  readonly totals: { readonly vanished: number; readonly changed: number; readonly unreadable: number; readonly skipped: number };
}

export interface ArchiveInput {
  /** Absolute paths of files or directories. One that lies in another one is walked once. */
  readonly roots: readonly string[];
  /** The archive: a new file. */
  readonly target: string;
  readonly signal: AbortSignal;
  /** True for what is left out without a word, a directory with all below it: the backup directory, say. The target always is. */
  readonly exclude?: (dev: number, ino: number) => boolean;
  /** Absolute paths that are left out in the same way, and not even looked at: a mount whose server is gone does not answer. */
  readonly leftOut?: readonly string[];
  /** Told of each path before it is opened (0), and of the bytes of a file read so far. */
  readonly progress?: (path: string, doneBytes: number) => void;
}

export interface ArchiveFile extends Archived {
  readonly sizeBytes: number;
  readonly sha256: string;
  /** The real path of each root, in the order given: entries are named by it, without the leading slash. */
  readonly roots: readonly { readonly given: string; readonly real: string }[];
}

const KEPT_NAMES = 100;
const PIECE = 256 * 1024;
const BLOCK = 1024 * 1024;
/** How often a path is looked at again that is another file when it is opened than when it was looked at. */
const ATTEMPTS = 3;
/** The size from which the header of tar has no room and tar-stream writes binary, which POSIX does not know. */
const LARGE = 8n << 30n;
const OPEN_FILE = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
const OPEN_DIRECTORY = OPEN_FILE | constants.O_DIRECTORY;

type HeaderArgument = Parameters<Pack['entry']>[0];

const readAt = promisify(readCallback);
const readdir = promisify<string, { encoding: 'latin1' }, string[]>(readdirCallback);

/**
 * Writes the archive of these paths to a new file (O_EXCL, 0600), synced, hashed while it is written (SHA-256, hex). Entries come
 * in the order of their bytes, a directory before what is in it. Throws `ArchiveError` (ROOT_UNUSABLE) before anything is written
 * for a root that is missing or cannot be opened, the system's error for the target, and the signal's reason; no target is left then.
 * A file system that is mounted below a root is not entered, unless it is a root itself. A change within the same tick of the file
 * system's clock (about 4 ms) as one before the file was opened, that leaves the size alone, cannot be seen.
 */
export async function writeArchive(input: ArchiveInput): Promise<ArchiveFile> {
  input.signal.throwIfAborted();
  const roots = input.roots.map(rootOf);
  const { pack } = await import('../libraries/tar.js');
  const fd = openSync(input.target, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600);
  try {
    const output = new Output(fd);
    // Room for a piece and its header: a push is never told to wait, since it is `drain` that waits for the disk.
    const tar = new TarWriter(pack({ highWaterMark: 4 * PIECE }), output);
    const walk = new Walk(input, tar, fstatSync(fd, { bigint: true }), roots);
    await walk.all();
    await tar.end();
    const sha256 = await output.end();
    return { ...walk.result(), sizeBytes: output.sizeBytes, sha256, roots: roots.map(({ given, path }) => ({ given, real: shown(path) })) };
  } catch (error) {
    withdraw(input.target);
    throw error;
  } finally {
    closeSync(fd);
  }
}

/** Takes an unfinished archive away. Where that fails too, the reason for which it is unfinished is the one to tell. */
function withdraw(target: string): void {
  try {
    unlinkSync(target);
  } catch {}
}

interface Root {
  readonly given: string;
  readonly path: ByteName;
  readonly device: bigint;
}

/** Follows a root to what it really is, since the operator named it, and opens it once: a wrong path is told before all the work. */
function rootOf(given: string): Root {
  const unusable = (what: string, cause?: unknown): ArchiveError =>
    new ArchiveError('ROOT_UNUSABLE', `cannot archive ${given}: ${what}`, 'check the path, its permissions, and that its file system is mounted', {
      cause,
      root: { path: given, reason: what },
    });
  if (!given.startsWith('/')) throw unusable('it is no absolute path');
  let fd: number;
  let path: ByteName;
  let stats: BigIntStats;
  try {
    // Not the version written in JavaScript, which decodes every link as UTF-8.
    path = realpathSync.native(given, 'latin1');
    stats = lstatSync(bytesOf(path), { bigint: true });
    // A device is not opened for a look: that alone can act.
    if (!stats.isFile() && !stats.isDirectory()) throw unusable(`it is ${kindOf(stats)}, not a file or directory`);
    fd = openSync(bytesOf(path), OPEN_FILE);
  } catch (error) {
    if (error instanceof ArchiveError) throw error;
    throw unusable(reasonOf(error), error);
  }
  closeSync(fd);
  if (textOf(path) === null) throw unusable('its name is not valid UTF-8');
  return { given, path, device: stats.dev };
}

/** Names for people, the first of them kept and all of them counted. */
class Names {
  readonly kept: string[] = [];
  total = 0;
  add(name: string): void {
    this.total++;
    if (this.kept.length < KEPT_NAMES) this.kept.push(name);
  }
}

class Walk {
  readonly #input: ArchiveInput;
  readonly #tar: TarWriter;
  readonly #target: BigIntStats;
  readonly #roots: readonly Root[];
  /** Paths of roots that the walk has not come to yet. */
  readonly #waiting: Set<ByteName>;
  readonly #leftOut: ReadonlySet<ByteName>;
  readonly #vanished = new Names();
  readonly #changed = new Names();
  readonly #unreadable = new Names();
  readonly #skipped = new Names();
  #count = 0;
  #fileBytes = 0;

  constructor(input: ArchiveInput, tar: TarWriter, target: BigIntStats, roots: readonly Root[]) {
    this.#input = input;
    this.#tar = tar;
    this.#target = target;
    this.#roots = [...roots].sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
    this.#waiting = new Set(roots.map(({ path }) => path));
    this.#leftOut = new Set(input.leftOut?.map((path) => Buffer.from(path).toString('latin1')));
  }

  result(): Archived {
    return {
      count: this.#count,
      fileBytes: this.#fileBytes,
      vanished: this.#vanished.kept,
      changed: this.#changed.kept,
      unreadable: this.#unreadable.kept,
      skipped: this.#skipped.kept,
      totals: {
        vanished: this.#vanished.total,
        changed: this.#changed.total,
        unreadable: this.#unreadable.total,
        skipped: this.#skipped.total,
      },
    };
  }

  async all(): Promise<void> {
    for (const { path, device } of this.#roots) {
      // Not by its path alone: what lies in another root may be mounted there, and the walk of that one did not enter it.
      if (this.#waiting.has(path)) await this.#visit(bytesOf(path), path, device);
    }
  }

  /** Archives what is at a path. `at`: how it is reached; `device`: the file system that is not left. */
  async #visit(at: Buffer, path: ByteName, device: bigint): Promise<void> {
    if (this.#leftOut.has(path)) return;
    try {
      for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
        this.#input.signal.throwIfAborted();
        const seen = reading(() => lstatSync(at, { bigint: true }));
        if (this.#isLeftOut(seen, path, device)) return;
        this.#waiting.delete(path);
        this.#input.progress?.(shown(path), 0);
        if (await this.#archive(at, path, seen, device)) return;
      }
      this.#unreadable.add(`${shown(path)}: was exchanged for another file each time it was to be opened`);
    } catch (error) {
      if (!(error instanceof ReadFailed)) throw error;
      if (errnoOf(error) === 'ENOENT') this.#vanished.add(shown(path));
      else this.#unreadable.add(`${shown(path)}: ${reasonOf(error.cause)}`);
    }
  }

  #isLeftOut(seen: BigIntStats, path: ByteName, device: bigint): boolean {
    if (isSame(seen, this.#target) || this.#input.exclude?.(Number(seen.dev), Number(seen.ino))) return true;
    const reason =
      textOf(path) === null
        ? `its name is not valid UTF-8${seen.isDirectory() ? ' (left out with all below it)' : ''}`
        : seen.dev !== device
          ? 'another file system'
          : seen.isFile() || seen.isDirectory() || seen.isSymbolicLink()
            ? null
            : kindOf(seen);
    if (reason === null) return false;
    // A root on a file system of its own has its turn later.
    if (!this.#waiting.has(path)) this.#skipped.add(`${shown(path)}: ${reason}`);
    return true;
  }

  /** False when another file stands there by now than was seen. */
  async #archive(at: Buffer, path: ByteName, seen: BigIntStats, device: bigint): Promise<boolean> {
    if (seen.isSymbolicLink()) return await this.#link(at, path, seen);
    const fd = openSeen(at, seen);
    if (fd === null) return false;
    try {
      if (seen.isDirectory()) await this.#directory(fd, path, device);
      else await this.#file(fd, path);
      return true;
    } finally {
      closeSync(fd);
    }
  }

  async #link(at: Buffer, path: ByteName, seen: BigIntStats): Promise<boolean> {
    let target: ByteName;
    try {
      target = readlinkSync(at, 'latin1');
    } catch (error) {
      if (errnoOf(error) === 'EINVAL') return false;
      throw readFailed(error);
    }
    const linkname = textOf(target);
    if (linkname === null) this.#skipped.add(`${shown(path)}: the link's target is not valid UTF-8`);
    else await this.#tar.entry({ ...headerOf(path, seen), type: 'symlink', linkname });
    return true;
  }

  async #directory(fd: number, path: ByteName, device: bigint): Promise<void> {
    const header = headerOf(
      path,
      reading(() => fstatSync(fd, { bigint: true })),
    );
    // The root of all file systems has no name in an archive.
    if (path !== '/') await this.#tar.entry({ ...header, name: `${header.name}/`, type: 'directory' });
    let names: ByteName[];
    try {
      names = await readdir(`/proc/self/fd/${fd}`, { encoding: 'latin1' });
    } catch (error) {
      throw readFailed(error);
    }
    for (const name of names.sort()) await this.#visit(inside(fd, name), path === '/' ? `/${name}` : `${path}/${name}`, device);
  }

  async #file(fd: number, path: ByteName): Promise<void> {
    const before = reading(() => fstatSync(fd, { bigint: true }));
    const size = Number(before.size);
    let cut = false;
    let broken: ReadFailed | null = null;
    await this.#tar.entry({ ...headerOf(path, before), type: 'file', size }, async (write) => {
      for (let done = 0; done < size; ) {
        this.#input.signal.throwIfAborted();
        // A new one each time: tar-stream keeps what it is given until it is drained.
        const piece = Buffer.allocUnsafe(Math.min(PIECE, size - done));
        let filled = 0;
        if (!cut) {
          try {
            filled = (await readAt(fd, piece, 0, piece.length, done)).bytesRead;
          } catch (error) {
            broken = readFailed(error);
          }
          cut = filled === 0;
          if (cut && broken) this.#unreadable.add(`${shown(path)}: ${reasonOf(broken.cause)}; archived with zeros from byte ${done} on`);
        }
        // The header has promised so many bytes: what can no longer be read is zeros.
        if (cut) filled = piece.fill(0).length;
        await write(piece.subarray(0, filled));
        done += filled;
        this.#input.progress?.(shown(path), done);
      }
    });
    this.#count++;
    this.#fileBytes += size;
    if (broken) return;
    const after = reading(() => fstatSync(fd, { bigint: true }));
    if (cut || after.size !== before.size || after.mtimeNs !== before.mtimeNs) this.#changed.add(shown(path));
  }
}

/** Opens what was seen, without following a link or waiting for a FIFO's writer; null when it is something else by now. */
function openSeen(at: Buffer, seen: BigIntStats): number | null {
  let fd: number;
  try {
    fd = openSync(at, seen.isDirectory() ? OPEN_DIRECTORY : OPEN_FILE);
  } catch (error) {
    if (['ELOOP', 'ENOTDIR', 'ENXIO'].includes(errnoOf(error))) return null;
    throw readFailed(error);
  }
  try {
    const now = fstatSync(fd, { bigint: true });
    if (isSame(now, seen) && now.isFile() === seen.isFile()) return fd;
  } catch (error) {
    closeSync(fd);
    throw readFailed(error);
  }
  closeSync(fd);
  return null;
}

const isSame = (a: BigIntStats, b: BigIntStats): boolean => a.dev === b.dev && a.ino === b.ino;

/** An error of a file that is read is one line of the report; one of the archive that is written ends the work. */
const readFailed = (error: unknown): ReadFailed => Object.assign(new ReadFailed(String(error), { cause: error }), { code: errnoOf(error) });

function reading<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw readFailed(error);
  }
}

/**
 * Name, mode, owner and time. What the fields of a tar header cannot hold (long names, numbers of users above 262143, parts of a
 * second, times outside 1970 to 2038, sizes from 8 GiB on) stands in a pax header, whose word counts; tar-stream writes name and
 * target of a link there by itself as soon as there is one.
 */
function headerOf(path: ByteName, stats: BigIntStats): HeaderArgument & { name: string } {
  const name = textOf(path.slice(1));
  if (name === null) throw new Error('a name that is not UTF-8 got past the walk');
  const seconds = stats.mtimeNs / 1_000_000_000n;
  return {
    name,
    // With the bits of the kind: tar-stream takes a mode of 0 for a missing one, and a file for nobody would become one for all.
    mode: Number(stats.mode),
    uid: Number(stats.uid),
    gid: Number(stats.gid),
    mtime: new Date(Math.min(Math.max(Number(seconds), 0), 0x7fff_ffff) * 1000),
    pax: {
      mtime: decimal(stats.mtimeNs),
      uid: String(stats.uid),
      gid: String(stats.gid),
      ...(stats.isFile() && stats.size >= LARGE ? { size: String(stats.size) } : {}),
    },
  };
}

/** Seconds with nine places, from nanoseconds. */
function decimal(ns: bigint): string {
  const absolute = ns < 0n ? -ns : ns;
  return `${ns < 0n ? '-' : ''}${absolute / 1_000_000_000n}.${String(absolute % 1_000_000_000n).padStart(9, '0')}`;
}

/** tar-stream's writer, one entry after the other, drained into the file after each step. */
class TarWriter {
  readonly #pack: Pack;
  readonly #output: Output;

  constructor(pack: Pack, output: Output) {
    this.#pack = pack;
    this.#output = output;
  }

  /**
   * An entry, with the content that `fill` writes, exactly as many bytes as the header says. When that throws, the archive is of no
   * more use; the streams hold nothing but memory and are left to go with it, since destroying them would emit errors at nobody.
   */
  async entry(header: HeaderArgument, fill?: (write: (piece: Buffer) => Promise<void>) => Promise<void>): Promise<void> {
    let done: () => void = () => undefined;
    let fail: (error: Error) => void = () => undefined;
    const ended = new Promise<void>((resolve, reject) => {
      done = resolve;
      fail = reject;
    });
    const sink = this.#pack.entry(header, (error) => (error ? fail(error) : done()));
    if (fill) {
      await fill(async (piece) => {
        if (!sink.write(piece)) await once(sink, 'drain');
        await this.#drain();
      });
      sink.end(null);
    }
    await ended;
    await this.#drain();
  }

  async end(): Promise<void> {
    this.#pack.finalize();
    // To the stream's own end, which waits; a stream that nothing was read from yet gives nothing at once.
    for await (const piece of this.#pack) await this.#add(piece);
  }

  async #drain(): Promise<void> {
    for (let piece = this.#pack.read(); piece !== null; piece = this.#pack.read()) await this.#add(piece);
  }

  async #add(piece: unknown): Promise<void> {
    if (!(piece instanceof Uint8Array)) throw new Error('tar-stream gave something else than bytes');
    await this.#output.add(piece);
  }
}

/** The file of the archive: gathers the many small pieces of a tar stream into large writes, and hashes them. */
class Output {
  sizeBytes = 0;
  readonly #fd: number;
  readonly #hash = createHash('sha256');
  readonly #block = Buffer.allocUnsafe(BLOCK);
  #filled = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  async add(piece: Uint8Array): Promise<void> {
    for (let taken = 0; taken < piece.length; ) {
      const part = piece.subarray(taken, taken + BLOCK - this.#filled);
      this.#block.set(part, this.#filled);
      this.#filled += part.length;
      taken += part.length;
      if (this.#filled === BLOCK) await this.#flush();
    }
  }

  /** Writes what is left, and gives the SHA-256 of all. */
  async end(): Promise<string> {
    await this.#flush();
    return this.#hash.digest('hex');
  }

  async #flush(): Promise<void> {
    const bytes = this.#block.subarray(0, this.#filled);
    const writing = writeAll(this.#fd, bytes, this.sizeBytes);
    // Hashed while it is written.
    this.#hash.update(bytes);
    await writing;
    this.sizeBytes += bytes.length;
    this.#filled = 0;
  }
}
