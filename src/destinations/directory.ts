/**
 * A directory of this machine as a destination: a mounted disk. It is never created, since a directory made in an empty mount point
 * would fill the disk that the copies are to be safe from.
 */
import { randomBytes } from 'node:crypto';
import { constants, createReadStream, lstatSync, readdirSync, renameSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { errnoOf } from '../outcome.js';
import { copyHashed, hashFile, lstatOrNull, publish, ReadFailed, remove, syncDirectory, syncFile } from '../system/files.js';
import type { Destination, Expected, Proved, RemoteObject } from './destination.js';
import { bareName, DestinationError } from './destination.js';
import { judged, onAbort, reasonOf } from './leash.js';
import type { DirectoryUrl } from './url.js';

/** An unfinished file: `.part-`, eight hex digits, `-`, the name. Short enough for the longest name of a copy. */
const PART = /^\.part-[0-9a-f]{8}-(.+)$/u;

export class DirectoryDestination implements Destination {
  readonly shown: string;
  readonly #path: string;

  constructor(url: DirectoryUrl) {
    this.shown = url.shown;
    this.#path = url.path;
  }

  async list(signal: AbortSignal): Promise<readonly RemoteObject[]> {
    signal.throwIfAborted();
    return this.#entries()
      .filter((name) => !PART.test(name))
      .flatMap((name) => {
        const stats = lstatOrNull(join(this.#path, name));
        return stats?.isFile() ? [{ name, sizeBytes: stats.size }] : [];
      });
  }

  async put(file: string, name: string, expected: Expected, signal: AbortSignal): Promise<Proved> {
    signal.throwIfAborted();
    const final = join(this.#path, this.#name(name));
    this.#mustBeThere();
    const part = join(this.#path, `.part-${randomBytes(4).toString('hex')}-${name}`);
    try {
      const copied = await copyHashed(file, part, signal, () => undefined);
      if (copied.sizeBytes !== expected.sizeBytes || copied.sha256 !== expected.sha256) {
        throw new DestinationError('wrong-bytes', `${file} is not what it was when it was proven: verify it`, false);
      }
      await unlessAborted(syncFile(part), signal);
      // Read back before it gets its name: an object that is there is always a proven one.
      if ((await hashFile(part, signal, () => undefined)) !== expected.sha256) {
        throw new DestinationError('wrong-bytes', `${this.shown}: "${name}" reads back otherwise than it was written: check that disk`, false);
      }
      signal.throwIfAborted();
      put(part, final);
      try {
        syncDirectory(this.#path, () => undefined);
      } catch (error) {
        remove(final);
        throw error;
      }
      return 'read-back';
    } catch (error) {
      removeQuietly(part);
      if (signal.aborted) throw reasonOf(signal);
      throw error instanceof ReadFailed
        ? new DestinationError('other', `cannot read ${file} (${errnoOf(error)})`, false)
        : this.#error(error, `storing "${name}"`);
    }
  }

  async get(name: string, signal: AbortSignal): Promise<Readable> {
    signal.throwIfAborted();
    this.#name(name);
    this.#mustBeThere();
    try {
      const handle = await open(join(this.#path, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
      const stats = await handle.stat();
      if (!stats.isFile()) {
        await handle.close();
        throw new DestinationError('other', `${this.shown}: "${name}" is not a regular file`, false);
      }
      const source = createReadStream('', { fd: handle, highWaterMark: 1 << 20 });
      const fine = (): Promise<void> => Promise.resolve();
      return judged(source, stats.size, `${this.shown}: "${name}"`, fine, fine, signal);
    } catch (error) {
      throw this.#error(error, `reading "${name}"`);
    }
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    this.#name(name);
    this.#mustBeThere();
    try {
      if (remove(join(this.#path, name))) syncDirectory(this.#path, () => undefined);
    } catch (error) {
      throw this.#error(error, `removing "${name}"`);
    }
  }

  async sweep(ours: (name: string) => boolean, before: Date, signal: AbortSignal): Promise<number> {
    signal.throwIfAborted();
    let swept = 0;
    for (const entry of this.#entries()) {
      const name = PART.exec(entry)?.[1];
      if (name === undefined || !ours(name)) continue;
      const stats = lstatOrNull(join(this.#path, entry));
      if (!stats?.isFile() || stats.mtimeMs >= before.getTime()) continue;
      try {
        if (remove(join(this.#path, entry))) swept++;
      } catch (error) {
        throw this.#error(error, `removing "${entry}"`);
      }
    }
    return swept;
  }

  async close(): Promise<void> {}

  #entries(): string[] {
    this.#mustBeThere();
    try {
      return readdirSync(this.#path);
    } catch (error) {
      throw this.#error(error, 'listing it');
    }
  }

  /** A name that looks like an unfinished file would be swept, and never listed. */
  #name(name: string): string {
    if (PART.test(name)) throw new DestinationError('other', `"${name}" is no name for an object: ours for unfinished files look like that`, false);
    return bareName(name);
  }

  #mustBeThere(): void {
    try {
      if (statSync(this.#path).isDirectory()) return;
    } catch (error) {
      throw this.#error(error, 'looking at it');
    }
    throw new DestinationError('other', `${this.#path} is not a directory: correct the setting upload`, false);
  }

  #error(error: unknown, doing: string): DestinationError {
    if (error instanceof DestinationError) return error;
    const code = errnoOf(error);
    const said = `${this.shown}: ${doing} failed (${code || String(error)})`;
    switch (code) {
      case 'ENOENT':
      case 'ENOTDIR':
        return isDirectory(this.#path)
          ? new DestinationError('missing', `${said}: there is no such file`, false)
          : new DestinationError(
              'unreachable',
              `${this.#path} is not there. Is the disk mounted? It is never created: mount the disk, or make the directory`,
              false,
            );
      case 'ENOSPC':
      case 'EDQUOT':
      case 'EFBIG':
        return new DestinationError('full', `${said}: make room there, or keep fewer copies`, false);
      case 'EACCES':
      case 'EPERM':
      case 'EROFS':
        return new DestinationError('denied', `${said}: give the user who runs dbbackup the right to write there`, false);
      case 'EIO':
      case 'ESTALE':
      case 'ETIMEDOUT':
      case 'EHOSTDOWN':
      case 'ENOTCONN':
      case 'ENODEV':
      case 'ENXIO':
        return new DestinationError('unreachable', `${said}: check the disk and whether it is still mounted`, true);
      default:
        return new DestinationError('other', said, false);
    }
  }
}

/** Gives the proven file its name. `publish` never overwrites; where something is to be replaced, one rename does it. */
function put(part: string, final: string): void {
  try {
    publish(part, final);
    remove(part);
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error;
    renameSync(part, final);
  }
}

function isDirectory(path: string): boolean {
  try {
    return lstatSync(path).isDirectory() || statSync(path).isDirectory();
  } catch {
    return false;
  }
}

function removeQuietly(path: string): void {
  try {
    remove(path);
  } catch {
    // The first error is the one to tell; the next sweep tries again.
  }
}

/** A sync cannot be called off and takes as long as the disk likes: at an abort it is left to itself. */
async function unlessAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  let takeBack = (): void => undefined;
  const aborted = new Promise<never>((_, fail) => {
    takeBack = onAbort(signal, () => fail(reasonOf(signal)));
  });
  try {
    await Promise.race([work, aborted]);
  } finally {
    takeBack();
    work.catch(() => undefined);
  }
}
