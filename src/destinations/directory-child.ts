/**
 * The child that works in a directory. The directory is never created, since one made in an empty mount point would fill the disk that
 * the copies are to be safe from.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, constants, createReadStream, fstatSync, lstatSync, openSync, readdirSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { errnoOf } from '../outcome.js';
import { copyHashed, hashFile, lstatOrNull, publish, ReadFailed, remove, syncDirectory, syncFile } from '../system/files.js';
import { requireApart } from './apart.js';
import type { Answers, Request, DirectoryTarget as Target, Trouble, Unfinished } from './child-protocol.js';
import { END_SIGNAL } from './child-protocol.js';
import type { Handed } from './child-serve.js';
import { collect, doing, inWords, sendBytes, serve } from './child-serve.js';
import type { Expected, Proved, RemoteObject } from './destination.js';
import { bareName, DestinationError } from './destination.js';

/** An unfinished file: `.part-`, eight hex digits, `-`, the name. Short enough for the longest name of a copy. */
const PART = /^\.part-[0-9a-f]{8}-(.+)$/u;

/** The object that `get` opened, until `bytes` sends it. */
let opened: { readonly body: Readable; readonly handed: Handed } | null = null;
/** The unfinished file that is being written. */
let writing: string | null = null;
const never = new AbortController().signal;

async function answer(target: Target, r: Request): Promise<Answers[Request['op']]> {
  mustBeThere(target);
  requireApart(target);
  switch (r.op) {
    case 'list':
      return list(target);
    case 'put':
      return await put(target, r.file, objectName(r.name), r.expected);
    case 'get':
      opened = open(target, objectName(r.name));
      return { sizeBytes: opened.handed.sizeBytes };
    case 'bytes':
      return await bytes();
    case 'read': {
      const { body, handed } = open(target, objectName(r.name));
      return (await collect(body, r.maxBytes, handed)).toString('base64');
    }
    case 'remove':
      if (remove(join(target.path, objectName(r.name)))) syncDirectory(target.path, () => undefined);
      return null;
    case 'unfinished':
      return unfinished(target);
    case 'abort':
      return PART.test(r.id) && remove(join(target.path, bareName(r.id)));
  }
}

function list({ path }: Target): RemoteObject[] {
  return readdirSync(path)
    .filter((name) => !PART.test(name))
    .flatMap((name) => {
      const stats = lstatOrNull(join(path, name));
      return stats?.isFile() ? [{ name, sizeBytes: stats.size }] : [];
    });
}

async function put({ path, shown }: Target, file: string, name: string, expected: Expected): Promise<Proved> {
  const final = join(path, name);
  const part = join(path, `.part-${randomBytes(4).toString('hex')}-${name}`);
  writing = part;
  try {
    const copied = await copyHashed(file, part, never, () => undefined);
    if (copied.sizeBytes !== expected.sizeBytes || copied.sha256 !== expected.sha256) {
      throw new DestinationError('wrong-bytes', `${file} is not what it was when it was proven: verify it`, false);
    }
    await syncFile(part);
    // Read back before it gets its name: an object that is there is always a proven one.
    if ((await hashFile(part, never, () => undefined)) !== expected.sha256) {
      throw new DestinationError('wrong-bytes', `${shown}: "${name}" reads back otherwise than it was written: check that disk`, false);
    }
    giveName(part, final);
    try {
      syncDirectory(path, () => undefined);
    } catch (error) {
      remove(final);
      throw error;
    }
    return 'read-back';
  } catch (error) {
    removeQuietly(part);
    throw error instanceof ReadFailed ? new DestinationError('other', `cannot read ${file} (${errnoOf(error)})`, false) : error;
  } finally {
    writing = null;
  }
}

/** Gives the proven file its name. `publish` never overwrites; where something is to be replaced, one rename does it. */
function giveName(part: string, final: string): void {
  try {
    publish(part, final);
    remove(part);
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error;
    renameSync(part, final);
  }
}

function open({ path, shown }: Target, name: string): { body: Readable; handed: Handed } {
  const what = `${shown}: "${name}"`;
  const fd = openSync(join(path, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  const stats = fstatSync(fd);
  if (!stats.isFile()) {
    closeSync(fd);
    throw new DestinationError('other', `${what} is not a regular file`, false);
  }
  const cut = (seen: number): DestinationError =>
    new DestinationError('unreachable', `${what} was cut short: ${seen} of ${stats.size} bytes came; check that disk`, true);
  return { body: createReadStream('', { fd, highWaterMark: 1 << 20 }), handed: { what, sizeBytes: stats.size, cut } };
}

async function bytes(): Promise<Answers['bytes']> {
  if (opened === null) throw new Error('no object was opened');
  const { body, handed } = opened;
  opened = null;
  return await sendBytes(body, handed);
}

function unfinished({ path }: Target): Unfinished[] {
  return readdirSync(path).flatMap((id) => {
    const name = PART.exec(id)?.[1];
    const stats = name === undefined ? null : lstatOrNull(join(path, id));
    return name !== undefined && stats?.isFile() ? [{ name, id, begunAt: stats.mtime.toISOString() }] : [];
  });
}

/** A name that looks like an unfinished file would be swept, and never listed. */
function objectName(name: string): string {
  if (PART.test(name)) throw new DestinationError('other', `"${name}" is no name for an object: ours for unfinished files look like that`, false);
  return bareName(name);
}

/** Throws where there is no directory. */
function mustBeThere({ path }: Target): void {
  if (!statSync(path).isDirectory()) throw new DestinationError('other', `${path} is not a directory: correct the setting upload`, false);
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

function explain(error: unknown, { path, shown }: Target, request: Request): Trouble {
  if (error instanceof DestinationError) return inWords(error);
  const code = errnoOf(error);
  const said = `${shown}: ${doing(request)} failed (${code || String(error)})`;
  switch (code) {
    case 'ENOENT':
    case 'ENOTDIR':
      return isDirectory(path)
        ? { kind: 'missing', message: `${said}: there is no such file`, transient: false }
        : {
            kind: 'unreachable',
            message: `${path} is not there. Is the disk mounted? It is never created: mount the disk, or make the directory`,
            transient: false,
          };
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return { kind: 'full', message: `${said}: make room there, or keep fewer copies`, transient: false };
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return { kind: 'denied', message: `${said}: give the user who runs dbbackup the right to write there`, transient: false };
    case 'EIO':
    case 'ESTALE':
    case 'ETIMEDOUT':
    case 'EHOSTDOWN':
    case 'ENOTCONN':
    case 'ENODEV':
    case 'ENXIO':
      return { kind: 'unreachable', message: `${said}: check the disk and whether it is still mounted`, transient: true };
    default:
      return { kind: 'other', message: said, transient: false };
  }
}

process.on(END_SIGNAL, () => {
  if (writing !== null) removeQuietly(writing);
  process.kill(process.pid, 'SIGKILL');
});
serve(answer, explain);
