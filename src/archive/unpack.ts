/**
 * Reads an archive that nobody vouches for. What is accepted is little: regular files, directories, symbolic links, under names
 * that stay below the directory. Anything else ends the work with an error that names the entry.
 *
 * Nothing is ever written through a link, whether the archive made it a moment ago or somebody slipped it in: each directory on
 * the way to an entry is opened by itself, without following, within the one before; files are made with O_EXCL. So a link may
 * point anywhere, and a name that was there before is never taken again.
 *
 * tar-stream takes the format apart. What it lets pass is looked at around it (`Framing`): an archive that is cut off between two
 * entries, or goes on after its end mark.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  fsync as fsyncCallback,
  futimesSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readdirSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs';
import { dirname, resolve } from 'node:path';
import { addAbortSignal, type Readable } from 'node:stream';
import { promisify } from 'node:util';
import type { Extract, Header } from 'tar-stream';
import { errnoOf } from '../outcome.js';
import { writeAll } from '../system/files.js';
import { syncLarge } from '../system/syncing.js';
import { ArchiveError, inside, reasonOf, textOf } from './common.js';

/** Entries of regular files, and bytes of their content. */
export interface Counted {
  readonly count: number;
  readonly fileBytes: number;
}

const fsync = promisify(fsyncCallback);
const OPEN_DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/**
 * Reads a whole archive, and says how many files and bytes are in it. Throws `ArchiveError`: NOT_AN_ARCHIVE when it is damaged,
 * cut off or goes on after its end, ENTRY_REFUSED for an entry that `extractArchive` would refuse by its name or kind; the
 * stream's own error; the signal's reason. The stream is read to its end, or destroyed. Memory is bounded.
 */
export const inspectArchive = (stream: Readable, signal: AbortSignal): Promise<Counted> =>
  readEntries(stream, signal, async (_entry, content) => {
    for await (const _piece of content);
  });

/**
 * Unpacks an archive into a directory that does not exist (made 0700, its parent must be there) or is an empty one of the caller.
 * Mode (without setuid, setgid and sticky) and time are as in the archive, the owner is the caller; directories that no entry
 * speaks of are 0700. Files are synced as they are closed, directories in the end. Throws `ArchiveError` (every code but
 * ROOT_UNUSABLE), the stream's own error and the signal's reason. What was unpacked before an error stays in the directory,
 * except a file that is not whole; nothing outside it is ever touched. Memory grows with the number of directories alone.
 */
export async function extractArchive(stream: Readable, directory: string, signal: AbortSignal): Promise<Counted> {
  // Nobody else reads the stream from here on, also where the directory will not do: then it is closed unread.
  let tree: Tree;
  try {
    signal.throwIfAborted();
    tree = new Tree(openTarget(resolve(directory)));
  } catch (error) {
    discard(stream);
    throw error;
  }
  try {
    const counted = await readEntries(stream, signal, (entry, content) => unpack(tree, entry, content, signal));
    await tree.finish(signal);
    return counted;
  } catch (error) {
    if (!(error instanceof ArchiveError)) throw error;
    const hint = `${error.hint}; what was unpacked before stays in ${directory}: remove it before you try again`;
    throw new ArchiveError(error.code, error.message, hint, { cause: error.cause ?? error });
  } finally {
    tree.close();
  }
}

// ------------------------------------------------------------------------------------------------------------ entries

type Kind = 'file' | 'directory' | 'symlink';

/** An entry that was looked at. `segments`: its path below the directory, at least one; `mtime`: seconds. */
interface Entry {
  readonly name: string;
  readonly segments: readonly string[];
  readonly kind: Kind;
  readonly size: number;
  readonly mode: number;
  readonly mtime: number;
  readonly linkTarget: string;
}

const REFUSED_HINT = 'the archive was not made by dbbackup, or was tampered with: look at it with tar -tvf, and trust nothing in it';
const DAMAGED_HINT = 'the archive is damaged or not whole: take another copy';

const refuse = (name: string, why: string): ArchiveError =>
  new ArchiveError('ENTRY_REFUSED', `the entry ${JSON.stringify(name)} is refused: ${why}`, REFUSED_HINT);

const noArchive = (what: string, cause?: unknown): ArchiveError =>
  new ArchiveError('NOT_AN_ARCHIVE', `this is no whole tar archive: ${what}`, DAMAGED_HINT, { cause });

const KINDS: Record<string, string> = {
  link: 'it is a hard link',
  'character-device': 'it is a device',
  'block-device': 'it is a device',
  fifo: 'it is a FIFO',
};

/** Seconds from 1970, either way: some 30,000 years, and a number that the system's calls take. */
const LATEST = 1e12;

/** The records of the pax headers that belong to an entry. */
function paxOf(header: Header): ReadonlyMap<string, string> {
  const { pax } = header;
  if (typeof pax !== 'object' || pax === null) return new Map();
  return new Map(Object.entries(pax).filter((record): record is [string, string] => typeof record[1] === 'string'));
}

/** What a header says, or why it is refused. A header with an empty path ("./") gives no segments. */
function entryOf(header: Header): Entry {
  const pax = paxOf(header);
  // Plain headers are read as latin1 (`readEntries`), so that what is not UTF-8 is seen; tar-stream reads pax headers as UTF-8.
  const text = (fromPax: string | undefined, plain: string | null): string => {
    if (fromPax) return fromPax;
    const name = textOf(plain ?? '');
    if (name === null) throw refuse(plain ?? '', 'its name or target is not valid UTF-8');
    return name;
  };
  const name = text(pax.get('path'), header.name);
  const kind = header.type;
  if (kind !== 'file' && kind !== 'directory' && kind !== 'symlink') throw refuse(name, KINDS[kind] ?? 'it is neither file, directory nor symbolic link');
  for (const key of pax.keys()) {
    if (key.startsWith('GNU.sparse.')) throw refuse(name, 'it is a sparse file, whose content would be read wrongly');
    if (key === 'hdrcharset') throw refuse(name, 'its name is in another encoding than UTF-8');
  }
  const linkTarget = kind === 'symlink' ? text(pax.get('linkpath'), header.linkname) : '';
  if (kind === 'symlink' && (linkTarget === '' || linkTarget.includes('\0'))) throw refuse(name, 'its target is empty, or holds a NUL');
  const size = pax.get('size');
  if ((size !== undefined && !/^\d{1,15}$/.test(size)) || !Number.isSafeInteger(header.size)) throw refuse(name, 'its size is no number');
  if (kind !== 'file' && header.size !== 0) throw refuse(name, `it is a ${kind} with content`);
  if (!Number.isSafeInteger(header.mode)) throw refuse(name, 'its mode is no number');
  const mtime = Number(pax.get('mtime') ?? header.mtime.getTime() / 1000);
  if (!(Math.abs(mtime) < LATEST)) throw refuse(name, 'its time is no time');
  return { name, segments: segmentsOf(name, kind), kind, size: header.size, mode: header.mode & 0o777, mtime, linkTarget };
}

function segmentsOf(name: string, kind: Kind): string[] {
  if (name.includes('\0')) throw refuse(name, 'its name holds a NUL');
  if (name.startsWith('/')) throw refuse(name, 'its name is absolute');
  // As `tar -c .` writes them. A dot in the middle is nobody's habit.
  if (kind === 'directory' && (name === '.' || name === './')) return [];
  const plain = name.startsWith('./') ? name.slice(2) : name;
  const below = kind === 'directory' && plain.endsWith('/') ? plain.slice(0, -1) : plain;
  const segments = below.split('/');
  for (const segment of segments) {
    if (segment === '..') throw refuse(name, 'it would leave the directory');
    if (segment === '' || segment === '.') throw refuse(name, 'its name is no plain path');
  }
  return segments;
}

/** `filenameEncoding` is an option of tar-stream's that its types do not know. */
const READER = { highWaterMark: 64 * 1024, filenameEncoding: 'latin1' };

/** Has each entry of an archive looked at and visited, in order. */
async function readEntries(
  stream: Readable,
  signal: AbortSignal,
  visit: (entry: Entry, content: AsyncIterable<Uint8Array>) => Promise<void>,
): Promise<Counted> {
  const { extract } = await import('../libraries/tar.js');
  const framing = new Framing();
  const parser = extract(READER);
  // Before a byte is fed: it is the iterator that listens to the parser's errors.
  const entries = parser[Symbol.asyncIterator]();
  const fate: Fate = { failure: null };
  const feeding = feed(addAbortSignal(signal, stream), framing, parser, fate);
  // It may fail while an entry is still being written; it is awaited below.
  feeding.catch(() => undefined);
  let count = 0;
  let fileBytes = 0;
  try {
    for (;;) {
      const step = await nextOf(entries);
      if (step.done) break;
      signal.throwIfAborted();
      const source = step.value;
      const entry = entryOf(source.header);
      framing.entry(source.offset, entry);
      if (entry.segments.length === 0) continue;
      const content = new Content(source, entry.size);
      await visit(entry, content.pieces());
      content.mustBeWhole();
      if (entry.kind === 'file') {
        count++;
        fileBytes += entry.size;
      }
    }
    await feeding;
    framing.end();
    return { count, fileBytes };
  } catch (error) {
    // Looked at before the stream is ended from here, which fails it once more. The parser is ended first, so that the feeder is
    // not left waiting for it.
    const { failure } = fate;
    parser.destroy();
    discard(stream);
    await feeding.catch(() => undefined);
    signal.throwIfAborted();
    // When the parser tells that it was ended, the stream that feeds it knows why.
    throw error instanceof ParserEnded ? (failure?.reason ?? noArchive(error.message, error)) : error;
  }
}

/** Ends a stream that is of no more use, and whose later errors (it may not even be open yet) say nothing any more. */
function discard(stream: Readable): void {
  stream.on('error', () => undefined);
  stream.destroy();
}

/** An error of tar-stream's, or of the stream that feeds it. */
class ParserEnded extends Error {}

async function nextOf<T>(entries: AsyncIterator<T>): Promise<IteratorResult<T>> {
  try {
    return await entries.next();
  } catch (error) {
    throw new ParserEnded(error instanceof Error ? error.message : String(error), { cause: error });
  }
}

/** The content of an entry, which must be read to its end before the next entry comes. */
class Content {
  readonly #source: AsyncIterable<unknown>;
  readonly #size: number;
  #read = 0;

  constructor(source: AsyncIterable<unknown>, size: number) {
    this.#source = source;
    this.#size = size;
  }

  async *pieces(): AsyncGenerator<Uint8Array> {
    const iterator = this.#source[Symbol.asyncIterator]();
    for (;;) {
      const step = await nextOf(iterator);
      if (step.done) return;
      if (!(step.value instanceof Uint8Array)) throw new Error('tar-stream gave something else than bytes');
      this.#read += step.value.length;
      yield step.value;
    }
  }

  mustBeWhole(): void {
    if (this.#read !== this.#size) throw new ParserEnded(`an entry has ${this.#read} bytes of ${this.#size}`);
  }
}

/** What ended the stream before its time. */
interface Fate {
  failure: { readonly reason: unknown } | null;
}

async function feed(stream: Readable, framing: Framing, parser: Extract, fate: Fate): Promise<void> {
  try {
    for await (const blocks of framing.blocks(stream)) {
      if (parser.destroying) return;
      if (!parser.write(blocks)) await drained(parser);
    }
    parser.end(null);
  } catch (error) {
    fate.failure = { reason: error };
    parser.destroy(error instanceof Error ? error : new Error(String(error)));
    throw error;
  }
}

/** Until the parser wants more, or wants no more. */
async function drained(parser: Extract): Promise<void> {
  if (parser.destroyed) return;
  await new Promise<void>((done) => {
    const go = (): void => {
      parser.off('drain', go);
      parser.off('close', go);
      done();
    };
    parser.on('drain', go);
    parser.on('close', go);
  });
}

// ------------------------------------------------------------------------------------------------------------ framing

const BLOCK = 512;
const NOTHING = Buffer.alloc(BLOCK);

/**
 * Watches the blocks of 512 bytes go by and compares them with where entries are. tar-stream reads on after the two empty blocks
 * that end an archive, and does not miss them when the stream ends where an entry does (`_final` in its extract.js).
 */
class Framing {
  #length = 0;
  /** Where the last entry that was told of ends. */
  #entryEnd = 0;
  /** Where the last block that is not empty begins, from the end of that entry on. */
  #lastUsed = -1;
  /** Runs of empty blocks, [begin, end), not before that end. The parser lags by one chunk, so there are few. */
  #empty: { begin: number; end: number }[] = [];

  /** The stream's bytes in whole blocks. */
  async *blocks(stream: AsyncIterable<unknown>): AsyncGenerator<Buffer> {
    let rest: Buffer = Buffer.alloc(0);
    for await (const chunk of stream) {
      if (!Buffer.isBuffer(chunk)) throw new Error('an archive is read from a stream of bytes');
      const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      const whole = bytes.length - (bytes.length % BLOCK);
      for (let at = 0; at < whole; at += BLOCK) this.#look(bytes, at);
      rest = bytes.subarray(whole);
      if (whole > 0) yield bytes.subarray(0, whole);
    }
    if (rest.length > 0) throw noArchive(`${this.#length + rest.length} bytes, which is no multiple of 512`);
  }

  #look(bytes: Buffer, at: number): void {
    const begin = this.#length;
    this.#length += BLOCK;
    if (begin < this.#entryEnd) return;
    if (bytes[at] !== 0 || NOTHING.compare(bytes, at, at + BLOCK) !== 0) {
      this.#lastUsed = begin;
      return;
    }
    const run = this.#empty.at(-1);
    if (run?.end === begin) run.end += BLOCK;
    else this.#empty.push({ begin, end: begin + BLOCK });
  }

  /** The parser has come to an entry whose header begins here. */
  entry(header: number, { size }: Entry): void {
    const before = this.#entryEnd;
    if (this.#empty.some(({ begin, end }) => begin <= before && before < end)) throw noArchive('it goes on after its end mark');
    this.#entryEnd = header + BLOCK + Math.ceil(size / BLOCK) * BLOCK;
    this.#empty = this.#empty.filter(({ end }) => end > this.#entryEnd);
  }

  /** The stream has ended. */
  end(): void {
    if (this.#lastUsed >= this.#entryEnd) throw noArchive('something follows its last entry that is none');
    if (this.#length - this.#entryEnd < 2 * BLOCK) throw noArchive(this.#length === 0 ? 'it is empty' : 'it has no end mark, so it was cut off');
  }
}

// ---------------------------------------------------------------------------------------------------------- unpacking

const unusable = (directory: string, what: string, cause?: unknown): ArchiveError =>
  new ArchiveError('DIRECTORY_UNUSABLE', `cannot unpack into ${directory}: ${what}`, 'name a directory that does not exist yet, or an empty one of your own', {
    cause,
  });

interface Target {
  readonly fd: number;
  /** Where a new directory was made, which must be synced for it to last. */
  readonly parent: string | null;
}

function openTarget(directory: string): Target {
  let made = true;
  let fd: number;
  try {
    mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw unusable(directory, reasonOf(error), error);
    made = false;
  }
  try {
    fd = openSync(directory, OPEN_DIRECTORY);
  } catch (error) {
    throw unusable(directory, ['ENOTDIR', 'ELOOP'].includes(errnoOf(error)) ? 'it is not a directory' : reasonOf(error), error);
  }
  try {
    if (fstatSync(fd).uid !== process.geteuid?.()) throw unusable(directory, 'it belongs to somebody else');
    if (readdirSync(`/proc/self/fd/${fd}`).length > 0) throw unusable(directory, 'it is not empty');
    return { fd, parent: made ? dirname(directory) : null };
  } catch (error) {
    closeSync(fd);
    throw error instanceof ArchiveError ? error : unusable(directory, reasonOf(error), error);
  }
}

/** What the archive says of a directory; null where it says nothing. */
type Look = Pick<Entry, 'name' | 'mode' | 'mtime'> | null;

/** The directory that is unpacked into, and the way into it that is open at the moment. */
class Tree {
  readonly #target: Target;
  readonly #way: { readonly name: string; readonly fd: number }[] = [];
  /** Every directory made, by its path. */
  readonly #made = new Map<string, Look>();

  constructor(target: Target) {
    this.#target = target;
  }

  /** The descriptor of a directory, good until the next call. What is missing on the way is made, 0700, where an entry asks for it. */
  directory(segments: readonly string[], entry: string): number {
    let same = 0;
    while (same < segments.length && this.#way[same]?.name === segments[same]) same++;
    this.#leave(same);
    for (const [i, name] of segments.slice(same).entries()) {
      const parent = this.#way.at(-1)?.fd ?? this.#target.fd;
      const path = segments.slice(0, same + i + 1).join('/');
      if (makeDirectory(parent, name)) this.#made.set(path, null);
      this.#way.push({ name, fd: openBelow(parent, name, path, entry) });
    }
    return this.#way.at(-1)?.fd ?? this.#target.fd;
  }

  /** Makes the directory of an entry. Its mode and time come last: with them there might be no way in. */
  add({ name, segments, mode, mtime }: Entry): void {
    this.directory(segments, name);
    const path = segments.join('/');
    if (this.#made.get(path)) throw refuse(name, 'the archive has it twice');
    this.#made.set(path, { name, mode, mtime });
  }

  /** Gives the directories their mode and time, the inner ones first, and syncs them. */
  async finish(signal: AbortSignal): Promise<void> {
    const paths = [...this.#made.keys()].sort().reverse();
    for (const path of paths) {
      signal.throwIfAborted();
      const look = this.#made.get(path) ?? null;
      await unpacking(look?.name ?? path, async () => {
        const fd = this.directory(path.split('/'), path);
        if (look) {
          futimesSync(fd, look.mtime, look.mtime);
          fchmodSync(fd, look.mode);
        }
        await syncDirectory(fd);
      });
    }
    await unpacking('.', async () => {
      await syncDirectory(this.#target.fd);
      if (this.#target.parent === null) return;
      const fd = openSync(this.#target.parent, constants.O_RDONLY | constants.O_DIRECTORY);
      try {
        await syncDirectory(fd);
      } finally {
        closeSync(fd);
      }
    });
  }

  close(): void {
    this.#leave(0);
    closeSync(this.#target.fd);
  }

  #leave(depth: number): void {
    for (const { fd } of this.#way.splice(depth)) closeSync(fd);
  }
}

/** False when something is there already, whatever it is. */
function makeDirectory(parent: number, name: string): boolean {
  try {
    mkdirSync(below(parent, name), { mode: 0o700 });
    return true;
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false;
    throw error;
  }
}

function openBelow(parent: number, name: string, path: string, entry: string): number {
  try {
    return openSync(below(parent, name), OPEN_DIRECTORY);
  } catch (error) {
    // A symbolic link is ENOTDIR with these flags (open(2)).
    if (['ENOTDIR', 'ELOOP'].includes(errnoOf(error))) throw refuse(entry, `the archive has ${JSON.stringify(path)} as something else than a directory`);
    throw error;
  }
}

const below = (parent: number, name: string): Buffer => inside(parent, Buffer.from(name).toString('latin1'));

/** Syncs a directory's entries. "Not supported here" is no failure: nothing better can be done on such a file system. */
async function syncDirectory(fd: number): Promise<void> {
  try {
    await fsync(fd);
  } catch (error) {
    if (!['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EBADF'].includes(errnoOf(error))) throw error;
  }
}

/** Gives an error of the system the name of the entry instead of a path below /proc. */
async function unpacking(name: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (error instanceof Error && 'syscall' in error && errnoOf(error) !== '') {
      throw new ArchiveError('UNPACK_FAILED', `cannot unpack ${JSON.stringify(name)}: ${reasonOf(error)}`, 'mend that', { cause: error });
    }
    throw error;
  }
}

async function unpack(tree: Tree, entry: Entry, content: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
  await unpacking(entry.name, async () => {
    if (entry.kind === 'directory') {
      tree.add(entry);
      return;
    }
    const parent = tree.directory(entry.segments.slice(0, -1), entry.name);
    const at = below(parent, entry.segments.at(-1) ?? '');
    try {
      if (entry.kind === 'symlink') link(entry, at);
      else await writeFile(entry, at, content, signal);
    } catch (error) {
      if (errnoOf(error) === 'EEXIST') throw refuse(entry.name, 'the archive has that name twice');
      throw error;
    }
  });
}

function link({ linkTarget, mtime }: Entry, at: Buffer): void {
  symlinkSync(Buffer.from(linkTarget), at);
  lutimesSync(at, mtime, mtime);
}

async function writeFile({ mode, mtime, size }: Entry, at: Buffer, content: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
  const fd = openSync(at, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600);
  let done = 0;
  let whole = false;
  try {
    for await (const piece of content) {
      signal.throwIfAborted();
      await writeAll(fd, piece, done);
      done += piece.length;
    }
    await syncLarge(fd, signal);
    futimesSync(fd, mtime, mtime);
    fchmodSync(fd, mode);
    await fsync(fd);
    whole = done === size;
  } finally {
    closeSync(fd);
    // Half a file under its own name would pass for the file.
    if (!whole) unlinkSync(at);
  }
}
