/**
 * Copies at a destination, as if they lay in a directory: the manifests are fetched into a private one, and in place of each
 * data file stands an empty file of its size. So listings, names, times and refusals are the same code as at home. The bytes
 * are streamed from the destination when they are asked for, and are proven like all others.
 */
import { accessSync, closeSync, constants, ftruncateSync, openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isFailure } from './artifacts.js';
import type { CopyFile } from './catalog.js';
import { MANIFEST_MAX, parseCopyFile } from './catalog.js';
import type { Invocation } from './cli.js';
import type { Context } from './context.js';
import type { Destination, RemoteObject } from './destinations/destination.js';
import { DestinationError, tooLong } from './destinations/destination.js';
import { destination } from './destinations/url.js';
import { plural } from './format.js';
import type { ExitCode } from './outcome.js';
import { errnoWords, Failed, warning } from './outcome.js';
import { withoutName } from './place.js';
import type { Config } from './settings/load.js';
import { inspectTarget } from './stages/inspect.js';
import { makeStaging } from './staging.js';
import { lstatOrNull, writeNew } from './system/files.js';
import { stateDirOf } from './workspace.js';

/** Runs a command on the copies of the destination that --from names. Throws `Failed`. */
export async function withRemote(ctx: Context, config: Config, invocation: Invocation, work: (config: Config) => Promise<ExitCode>): Promise<ExitCode> {
  const url = parse(invocation.from ?? '');
  requirePlace(config, invocation);
  // Not below the backup directory: there may be none, and a listing changes nothing there.
  const staging = await makeStaging(requireTemporary(tmpdir()), ctx.signal);
  const { openDestination } = await import('./destinations/open.js');
  const there = openDestination(url, { ...ctx.childEnv, ...config.upload.env });
  try {
    const unread = await fetchManifests(there, staging.directory, config.nameGiven ? config.name : null, ctx.signal).catch((error: unknown) => {
      throw asFailed(error, there);
    });
    const [first] = unread;
    if (first !== undefined) {
      const message = `${plural(unread.length, 'manifest')} at ${there.shown} could not be read, and the copies count as unverified: ${first}`;
      ctx.output.warning(warning('REMOTE_FAILED', message));
    }
    const open = async (file: string, signal: AbortSignal): ReturnType<Destination['get']> => {
      try {
        return await there.get(file, signal);
      } catch (error) {
        throw asFailed(error, there);
      }
    };
    const from = { shown: there.shown, directory: staging.directory, open };
    const isPlace = config.to !== '' && (replaces(invocation) || !isFailure(inspectTarget(config.to, config.stateDir, ctx.identity, ctx.again)));
    return await work(isPlace ? { ...config, from } : { ...config, from, ...stateIn(staging.directory) });
  } finally {
    await there.close();
    staging.remove();
  }
}

/** Says which directory is meant, and how to name another one. */
function requireTemporary(directory: string): string {
  let reason: string | null = lstatOrNull(directory) ? null : 'it is not there';
  try {
    if (reason === null) accessSync(directory, constants.W_OK | constants.X_OK);
  } catch (error) {
    reason = errnoWords(error);
  }
  if (reason === null) return directory;
  const message = `the temporary directory ${directory} cannot be used: ${reason}`;
  const hint = 'manifests and copies of a destination pass through it: name another one, TMPDIR=/somewhere/large dbbackup ...';
  throw new Failed({ code: 'SETTINGS', problems: [{ setting: 'TMPDIR', message, origin: 'TMPDIR' }], hint });
}

function parse(raw: string): ReturnType<typeof destination> {
  try {
    return destination(raw);
  } catch (error) {
    throw new Failed({ code: 'USAGE', message: `--from ${error instanceof Error ? error.message : ''}`, hint: 'as in --upload' }, { cause: error });
  }
}

/** A restore that needs a place for what it replaces. */
const replaces = ({ command, restore }: Invocation): boolean => command === 'restore' && restore.into !== null;

/** On a machine that has nothing yet, or on a disk that can only be read, the state of the command goes when it ends. */
const stateIn = (directory: string): Pick<Config, 'to' | 'stateDir' | 'logDir'> => ({
  to: directory,
  stateDir: stateDirOf(directory),
  logDir: join(stateDirOf(directory), 'log'),
});

/** What a restore replaces must be kept where it is found again. */
function requirePlace(config: Config, { command, restore }: Invocation): void {
  if (config.to !== '' || command !== 'restore' || restore.into === null || !lstatOrNull(restore.into)) return;
  throw new Failed({
    code: 'USAGE',
    message: `${restore.into} is there already: its present state has to be kept before it is replaced`,
    hint: 'say where: --to DIR; or restore into a new file: -o FILE',
  });
}

/** Bytes, of all manifests together: what somebody else fills must not fill the temporary directory. */
const MANIFESTS_MAX = 1 << 30;
/** A file's name in bytes, on all file systems of Linux. */
const NAME_MAX = 255;
/** After so many that could not be read, with a refusal among them, and before one that could, credentials may read none. */
const DENIED_MAX = 3;

/** One that cannot be read does not stand in the way of the others. Returns what is wrong with those. */
async function fetchManifests(there: Destination, directory: string, name: string | null, signal: AbortSignal): Promise<string[]> {
  const objects = new Map<string, RemoteObject & { kind: CopyFile['kind'] }>();
  for (const object of await there.list(signal)) {
    const parsed = Buffer.byteLength(object.name) <= NAME_MAX ? parseCopyFile(object.name) : null;
    if (parsed && (name === null || parsed.name === name)) objects.set(object.name, { ...object, kind: parsed.kind });
  }
  const unread: string[] = [];
  let refused: DestinationError | null = null;
  let read = 0;
  let bytes = 0;
  const manifests = [...objects.values()].filter((o) => o.kind === 'manifest');
  for (const object of objects.values()) if (object.kind !== 'manifest') placeHolder(join(directory, object.name), object.sizeBytes);
  await readManifests(there, manifests, signal, ({ name: file }, found) => {
    if (found instanceof DestinationError) {
      unread.push(withoutName(found.message, there.shown));
      if (found.kind === 'denied') refused ??= found;
      if (refused && read === 0 && unread.length >= DENIED_MAX) throw refused;
      return;
    }
    read++;
    bytes += found.length;
    if (bytes > MANIFESTS_MAX)
      throw new Failed({ code: 'REMOTE_FAILED', shown: there.shown, reason: 'its manifests have more than 1 GiB: say which copies, --name' });
    writeNew(join(directory, file), found);
  });
  return unread;
}

/** Manifests asked for at once, and up to which size, bytes: of larger ones memory holds one at a time. */
const AT_ONCE = 8;
const SMALL = 1 << 20;

/**
 * Reads manifests, in no certain order; each is taken as its bytes, or as why that one cannot be had. Rejects where the place itself
 * does not answer, and with what `take` throws; nothing is taken after that.
 */
export async function readManifests<O extends RemoteObject>(
  there: Destination,
  objects: readonly O[],
  signal: AbortSignal,
  take: (object: O, found: Buffer | DestinationError) => void,
): Promise<void> {
  let failed = false;
  const work = async (queue: O[]): Promise<void> => {
    for (let object = queue.shift(); object && !failed; object = queue.shift()) {
      try {
        const found = await readManifest(there, object, signal);
        if (!failed) take(object, found);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  const small = objects.filter((o) => o.sizeBytes <= SMALL);
  const done = await Promise.allSettled(Array.from({ length: AT_ONCE }, () => work(small)));
  for (const one of done) if (one.status === 'rejected') throw one.reason;
  await work(objects.filter((o) => o.sizeBytes > SMALL));
}

async function readManifest(there: Destination, object: RemoteObject, signal: AbortSignal): Promise<Buffer | DestinationError> {
  try {
    if (object.sizeBytes > MANIFEST_MAX) throw tooLong(object.name, MANIFEST_MAX);
    return await there.read(object.name, MANIFEST_MAX, signal);
  } catch (error) {
    if (!(error instanceof DestinationError) || error.transient || ['unreachable', 'program'].includes(error.kind)) throw error;
    return error;
  }
}

/** Takes no room: a listing looks at its size alone, and nobody opens it. */
function placeHolder(path: string, sizeBytes: number): void {
  const fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
  try {
    ftruncateSync(fd, sizeBytes);
  } catch {
    // No file can be as large as it claims to be: then its size does not agree with any manifest.
  } finally {
    closeSync(fd);
  }
}

const asFailed = (error: unknown, there: Destination): unknown =>
  error instanceof DestinationError
    ? new Failed({ code: 'REMOTE_FAILED', shown: there.shown, reason: withoutName(error.message, there.shown) }, { cause: error })
    : error;
