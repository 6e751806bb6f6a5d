/**
 * Stage 7: copies go where a fire or a thief does not reach them with the machine. Tonight's first, then those that a
 * destination never confirmed or does not have any more, newest first, while time lasts. Of each copy the manifest goes last, so that what has one is
 * whole. Each destination has its own result; what failed is made good by the next run.
 */
import { lstatSync } from 'node:fs';
import { join } from 'node:path';
import type { Ledger } from '../artifacts.js';
import { archivesIn, baseOf, copyOf, MANIFEST_MAX, parseCopyFile, parseManifest, readCopies, readManifest } from '../catalog.js';
import type { Destination, Proved, RemoteObject } from '../destinations/destination.js';
import { DestinationError } from '../destinations/destination.js';
import type { DestinationUrl, DirectoryUrl } from '../destinations/url.js';
import { plural } from '../format.js';
import type { Failure, Warning } from '../outcome.js';
import { critical, errnoWords, Failed, failureOf, warning } from '../outcome.js';
import { withoutName } from '../place.js';
import type { Copy, Manifest, Pruned, UploadResult } from '../records.js';
import { readManifests } from '../remote.js';
import { decide } from '../retention.js';
import { losses } from '../rules.js';
import type { Policy, UploadSettings } from '../settings/load.js';
import { hashFile, removeTree, sizeOf, writeNew } from '../system/files.js';
import { shellWord } from '../system/processes.js';

export interface UploadInput {
  readonly to: string;
  readonly name: string;
  readonly policy: Policy;
  readonly upload: UploadSettings;
  /** The copy that this run has just made. */
  readonly made: string;
  /** A private directory of this run. */
  readonly scratch: string;
  /** Remembers what arrived. */
  readonly books: Books;
  readonly startedAt: Date;
  readonly now: () => Date;
  readonly open: (url: DestinationUrl) => Destination;
  /** A signal. */
  readonly signal: AbortSignal;
  /** Aborts when `upload-timeout` is over for this destination, which begins to count when it is first asked for. */
  readonly limit: (url: DestinationUrl) => AbortSignal;
  /** Told of each destination as soon as it is done with, also of the one that a signal came to. */
  readonly done: (result: UploadResult) => void;
  readonly warn: (w: Warning) => void;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
}

/**
 * The history, as far as it knows of uploads. Once it cannot be read or written it is as if there were none, and only tonight's copy goes: state that
 * fails is no fault of a destination's.
 */
export class Books {
  #ledger: Ledger | null;
  readonly #unwritable: (error: unknown) => void;

  constructor(ledger: Ledger | null, unwritable: (error: unknown) => void) {
    this.#ledger = ledger;
    this.#unwritable = unwritable;
  }

  get areLost(): boolean {
    return this.#ledger === null;
  }

  /** What `work` finds or writes; null: there are no books any more. */
  try<T>(work: (ledger: Ledger) => T): T | null {
    try {
      return this.#ledger && work(this.#ledger);
    } catch (error) {
      this.#ledger = null;
      this.#unwritable(error);
      return null;
    }
  }
}

export interface Uploaded {
  readonly results: readonly UploadResult[];
  /** UPLOAD_FAILED, where a destination lacks something. */
  readonly failure: Failure | null;
}

/** Uploads to all destinations, one after the other. Throws what ends the run (a signal, a directory here that cannot be read); what goes wrong there is in the results. */
export async function upload(input: UploadInput): Promise<Uploaded> {
  const results: UploadResult[] = [];
  for (const url of input.upload.to) {
    const result = await toOne({ ...input, signal: AbortSignal.any([input.signal, input.limit(url)]) }, url);
    results.push(result);
    input.done(result);
    if (result.error?.code === 'INTERRUPTED') throw input.signal.reason;
  }
  return { results, failure: uploadFailure(results) };
}

/** UPLOAD_FAILED with the reason of each destination that lacks something, or null. */
export function uploadFailure(results: readonly UploadResult[]): Failure | null {
  const failed = results.flatMap((r) => (r.error ? [`${r.destination}: ${r.error.message}`] : []));
  return failed.length === 0 ? null : { code: 'UPLOAD_FAILED', failed };
}

/** What a destination holds, by names; null: credentials may not list it. */
type Listed = ReadonlyMap<string, RemoteObject> | null;

async function toOne(input: UploadInput, url: DestinationUrl): Promise<UploadResult> {
  const { books } = input;
  const uploaded: { file: string; proved: Proved }[] = [];
  let missing: readonly Copy[] = [];
  let pruned: readonly Pruned[] = [];
  const result = (error: UploadResult['error']): UploadResult => ({
    destination: url.shown,
    status: error ? 'failed' : 'ok',
    uploaded,
    missing: missing.filter((c) => !uploaded.some((u) => u.file === c.file)).map((c) => c.file),
    pruned,
    error,
  });
  let there: Destination | null = null;
  try {
    const home = copiesHere(input);
    missing = lackedBy(input, url, home, []);
    there = input.open(url);
    const listed = await listedAt(there, input.signal);
    if (!books.areLost && listed) {
      if (url.kind === 'directory') requireDisk(books, url, listed);
      missing = lackedBy(input, url, home, vanished(input, url, home, listed));
    }
    await sweep(input, there);
    const bytes = missing.map((c) => c.sizeBytes);
    const sum = (of: readonly number[]): number => of.reduce((a, b) => a + b, 0);
    for (const [n, copy] of missing.entries()) {
      input.progress(sum(bytes.slice(0, n)), sum(bytes));
      const proved = await putCopy(input, there, copy, listed);
      if (proved === null) {
        // Pruned here meanwhile: nobody owes it any more.
        missing = missing.filter((c) => c !== copy);
        continue;
      }
      uploaded.push({ file: copy.file, proved });
      books.try((ledger) => ledger.noteUploaded(url.shown, copy.file, input.now()));
    }
    if (url.kind === 'directory' && listed && !listed.has(MARKER)) await mark(input, there);
    if (input.upload.prune) pruned = await pruneThere(input, there);
    return result(null);
  } catch (error) {
    return result(errorOf(error, input, url.shown));
  } finally {
    await there?.close();
  }
}

/** Tells a directory in which copies are stored from the empty one that is seen while its disk is not mounted. */
const MARKER = '.dbbackup-destination';
const MARKER_TEXT = 'dbbackup stores copies in this directory. One without copies and without this file it takes for a disk that is not mounted.\n';

/** What would be stored in an empty mount point would fill the disk that it is to be safe from, and everybody would think that it is safe. */
function requireDisk(books: Books, url: DirectoryUrl, listed: NonNullable<Listed>): void {
  const stored = books.try((ledger) => ledger.uploadedFiles(url.shown, null)) ?? [];
  if (stored.length === 0 || listed.has(MARKER) || stored.some((file) => listed.has(file))) return;
  const what = `nothing of what was stored in ${url.path} is there (${plural(stored.length, 'copy', 'copies')}): is the disk mounted?`;
  throw new DestinationError('unreachable', `${what} If it is a new one: touch ${shellWord(join(url.path, MARKER))}`, true);
}

async function mark({ scratch, signal }: UploadInput, there: Destination): Promise<void> {
  const file = join(scratch, 'destination');
  removeTree(file);
  writeNew(file, MARKER_TEXT);
  const sha256 = await hashFile(file, signal, () => undefined);
  await there.put(file, MARKER, { sizeBytes: MARKER_TEXT.length, sha256 }, signal);
}

/** What broken-off uploads left. Credentials that may store and nothing else are good ones: this is not worth a failure. */
async function sweep({ name, startedAt, signal, warn }: UploadInput, there: Destination): Promise<void> {
  try {
    await there.sweep((file) => parseCopyFile(file)?.name === name, startedAt, signal);
  } catch (error) {
    if (!(error instanceof DestinationError) || error.kind === 'unreachable') throw error;
    warn(warning('UPLOAD_PRUNE', `what broken-off uploads left at ${there.shown} was not cleared away: ${withoutName(error.message, there.shown)}`));
  }
}

/** The time limit is one failure among others; at a signal the run ends, and what is missing is told by the next one. */
function errorOf(error: unknown, { signal }: UploadInput, shown: string): NonNullable<UploadResult['error']> {
  if (signal.aborted) {
    const ended = failureOf(signal.reason);
    if (ended.code === 'INTERRUPTED') return { code: 'INTERRUPTED', message: `ended by ${ended.signal}` };
    return { code: 'TIMEOUT', message: 'upload-timeout is over' };
  }
  if (error instanceof DestinationError) return { code: `UPLOAD_${error.kind.toUpperCase().replaceAll('-', '_')}`, message: withoutName(error.message, shown) };
  if (error instanceof Failed) throw error;
  return { code: 'IO_ERROR', message: errnoWords(error) };
}

/** The copies here that may go anywhere, newest first. */
const copiesHere = ({ to, name }: UploadInput): Copy[] =>
  readCopies(to, name).filter((c) => c.manifest !== null && c.tags.length === 0 && (c.status === 'good' || c.status === 'suspect'));

/** Tonight's copy, then what was made since the destination was set and never arrived there or is gone, newest first. */
function lackedBy({ name, made, books, startedAt }: UploadInput, url: DestinationUrl, home: readonly Copy[], gone: readonly Copy[]): Copy[] {
  const tonight = home.filter((c) => c.file === made);
  const setAt = books.try((ledger) => ledger.destinationSince(url.shown, name, startedAt));
  if (!setAt) return tonight;
  // Since this run began: its own copy was made after that, however long it took. Names tell time to the second.
  const since = Math.floor(setAt.getTime() / 1000) * 1000;
  const never = (c: Copy): boolean => Date.parse(c.createdAt) >= since && books.try((ledger) => ledger.hasUploaded(url.shown, c.file)) === false;
  return [...tonight, ...home.filter((c) => c.file !== made && (never(c) || gone.includes(c)))];
}

/**
 * Copies here that had arrived there, were not removed by us, and are not there now, or in another size. Manifests are only
 * missed: `verify` writes its verdict into those here.
 */
function vanished({ to, name, books, warn }: UploadInput, url: DestinationUrl, home: readonly Copy[], listed: NonNullable<Listed>): Copy[] {
  const stored = new Set(books.try((ledger) => ledger.uploadedFiles(url.shown, name)));
  const archives = archivesIn(to, name);
  const isWhole = (c: Copy): boolean => {
    const archive = archives.get(baseOf(c.file));
    return (
      listed.get(c.file)?.sizeBytes === c.sizeBytes &&
      listed.has(c.manifest ?? '') &&
      (archive === undefined || listed.get(archive)?.sizeBytes === sizeOf(join(to, archive)))
    );
  };
  const arrived = home.filter((c) => stored.has(c.file));
  const gone = arrived.filter((c) => !isWhole(c));
  if (gone.length > 0) {
    const some = `${gone
      .slice(0, 3)
      .map((c) => c.file)
      .join(', ')}${gone.length > 3 ? ', ...' : ''}`;
    const what = `${plural(gone.length, 'copy', 'copies')} of ${arrived.length} that had arrived at ${url.shown} ${gone.length === 1 ? 'is' : 'are'} gone or changed, and uploaded again: ${some}`;
    warn((gone.length === arrived.length ? critical : warning)('COPIES_VANISHED', what));
  }
  return gone;
}

async function listedAt(there: Destination, signal: AbortSignal): Promise<Listed> {
  try {
    return new Map((await there.list(signal)).map((o) => [o.name, o]));
  } catch (error) {
    if (error instanceof DestinationError && error.kind === 'denied' && !signal.aborted) return null;
    throw error;
  }
}

/** A copy of another run is never replaced: two machines with one prefix and one name would take each other's. */
async function refuseForeign(there: Destination, object: RemoteObject | undefined, manifest: Manifest, signal: AbortSignal): Promise<void> {
  if (!object) return;
  const other = parseManifest(await there.read(object.name, MANIFEST_MAX, signal), baseOf(manifest.file));
  if (!other || other.runId === manifest.runId) return;
  const what = `${object.name} is there already, and of another run: if another machine uploads to this place, give each one of its own`;
  throw new DestinationError('other', what, false);
}

/** Null: it was pruned here meanwhile. The weakest proof of its files counts. */
async function putCopy({ to, signal }: UploadInput, there: Destination, copy: Copy, listed: Listed): Promise<Proved | null> {
  const manifest = readManifest(to, baseOf(copy.file));
  if ('unreadable' in manifest) return null;
  await refuseForeign(there, listed?.get(manifest.manifest ?? ''), manifest, signal);
  const json = join(to, manifest.manifest ?? '');
  const parts = [
    ...(manifest.files ? [manifest.files] : []),
    { file: manifest.file, sizeBytes: manifest.sizeBytes, sha256: manifest.sha256 ?? '' },
    { file: manifest.manifest ?? '', sizeBytes: lstatSync(json).size, sha256: await hashFile(json, signal, () => undefined) },
  ];
  const proofs: Proved[] = [];
  for (const { file, sizeBytes, sha256 } of parts) proofs.push(await there.put(join(to, file), file, { sizeBytes, sha256 }, signal));
  return proofs.includes('read-back') ? 'read-back' : 'server-checksum';
}

/**
 * The same policy over there, data first, for what went there from here alone: what somebody else put there, another machine
 * or an intruder, is neither removed nor counted, since enough newer copies of his would have all of ours removed.
 * Credentials that may not delete are only remarked on.
 */
async function pruneThere(input: UploadInput, there: Destination): Promise<Pruned[]> {
  const { name, policy, made, signal, books } = input;
  const removed: Pruned[] = [];
  if (books.areLost) return removed;
  try {
    const objects = await there.list(signal);
    const all = await copiesOf(there, objects, name, signal);
    const copies = all.filter((c) => books.try((ledger) => ledger.hasUploaded(there.shown, c.copy.file)));
    if (books.areLost) return removed;
    const foreign = all.filter((c) => !copies.includes(c)).map((c) => c.copy.file);
    if (foreign.length > 0) {
      const some = `${foreign.slice(0, 3).join(', ')}${foreign.length > 3 ? ', ...' : ''}`;
      input.warn(
        warning(
          'UPLOAD_PRUNE',
          `left alone at ${there.shown}, since nothing here knows of their upload: ${plural(foreign.length, 'copy', 'copies')} (${some})`,
        ),
      );
    }
    const decision = decide(
      copies.map((c) => c.copy),
      policy,
      input.now().getTime(),
      made,
      (newer, older) => {
        const [now, before] = [newer, older].map((file) => copies.find((c) => c.copy.file === file)?.manifest);
        return !!now && !!before && losses({ made: now, before }).length > 0;
      },
    );
    if (decision.hold?.code === 'CLOCK')
      input.warn(warning('UPLOAD_PRUNE', `old copies at ${there.shown} were not removed: ${decision.hold.file} is dated more than an hour ahead of the clock`));
    for (const one of decision.remove) {
      const manifest = copies.find((c) => c.copy.file === one.file)?.manifest;
      if (!manifest) continue;
      // Before it goes: what we have removed must never look as if it had vanished.
      books.try((ledger) => ledger.noteRemoved(there.shown, one.file, input.now()));
      if (books.areLost) return removed;
      await there.remove(manifest.file, signal);
      if (manifest.files) await there.remove(manifest.files.file, signal);
      if (manifest.manifest !== null) await there.remove(manifest.manifest, signal);
      removed.push(one);
    }
  } catch (error) {
    if (!(error instanceof DestinationError)) throw error;
    input.warn(warning('UPLOAD_PRUNE', `old copies at ${there.shown} were not removed: ${withoutName(error.message, there.shown)}`));
  }
  return removed;
}

/** Newest first, as at home: good where the data is there in the size that the manifest says. */
async function copiesOf(
  there: Destination,
  objects: readonly RemoteObject[],
  name: string,
  signal: AbortSignal,
): Promise<{ copy: Copy; manifest: Manifest }[]> {
  const sizes = new Map(objects.map((o) => [o.name, o.sizeBytes]));
  const found: { copy: Copy; manifest: Manifest }[] = [];
  const ours = objects.filter((object) => {
    const parsed = parseCopyFile(object.name);
    return parsed?.kind === 'manifest' && parsed.name === name;
  });
  await readManifests(there, ours, signal, (object, read) => {
    if (read instanceof DestinationError) throw read;
    const manifest = parseManifest(read, baseOf(object.name));
    if (!manifest || !sizes.has(manifest.file)) return;
    const whole = sizes.get(manifest.file) === manifest.sizeBytes && (!manifest.files || sizes.get(manifest.files.file) === manifest.files.sizeBytes);
    found.push({ copy: copyOf(manifest, whole ? manifest.status : 'bad'), manifest });
  });
  const sequence = (c: { copy: Copy }): number => parseCopyFile(c.copy.file)?.sequence ?? 0;
  return found.sort((a, b) => Date.parse(b.copy.createdAt) - Date.parse(a.copy.createdAt) || sequence(b) - sequence(a));
}
