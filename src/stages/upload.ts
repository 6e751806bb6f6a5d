/**
 * Stage 7: copies go where a fire or a thief does not reach them with the machine. Tonight's first, then those that a
 * destination never confirmed, newest first, while time lasts. Of each copy the manifest goes last, so that what has one is
 * whole. Each destination has its own result; what failed is made good by the next run.
 */
import { lstatSync } from 'node:fs';
import { join } from 'node:path';
import type { Ledger } from '../artifacts.js';
import { baseOf, copyOf, MANIFEST_MAX, parseCopyFile, parseManifest, readCopies, readManifest } from '../catalog.js';
import type { Destination, Proved, RemoteObject } from '../destinations/destination.js';
import { DestinationError } from '../destinations/destination.js';
import type { DestinationUrl } from '../destinations/url.js';
import { plural } from '../format.js';
import type { Failure, Warning } from '../outcome.js';
import { errnoWords, Failed, failureOf, warning } from '../outcome.js';
import { withoutName } from '../place.js';
import type { Copy, Manifest, Pruned, UploadResult } from '../records.js';
import { readManifests } from '../remote.js';
import { decide } from '../retention.js';
import type { Policy, UploadSettings } from '../settings/load.js';
import { hashFile } from '../system/files.js';

export interface UploadInput {
  readonly to: string;
  readonly name: string;
  readonly policy: Policy;
  readonly upload: UploadSettings;
  /** The copy that this run has just made. */
  readonly made: string;
  /** Remembers what arrived; null: state cannot be written, and only tonight's copy goes. */
  readonly ledger: Ledger | null;
  readonly startedAt: Date;
  readonly now: () => Date;
  readonly open: (url: DestinationUrl) => Destination;
  /** A signal, or that `upload-timeout` is over. */
  readonly signal: AbortSignal;
  readonly warn: (w: Warning) => void;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
}

export interface Uploaded {
  readonly results: readonly UploadResult[];
  /** UPLOAD_FAILED, where a destination lacks something. */
  readonly failure: Failure | null;
}

/** Uploads to all destinations, one after the other. Throws the signal's reason alone; what else goes wrong is in the results. */
export async function upload(input: UploadInput): Promise<Uploaded> {
  const results: UploadResult[] = [];
  for (const url of input.upload.to) results.push(await toOne(input, url));
  const failed = results.flatMap((r) => (r.error ? [`${r.destination}: ${r.error.message}`] : []));
  return { results, failure: failed.length === 0 ? null : { code: 'UPLOAD_FAILED', failed } };
}

async function toOne(input: UploadInput, url: DestinationUrl): Promise<UploadResult> {
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
    missing = lackedBy(input, url);
    there = input.open(url);
    const present = await presentAt(there, input.signal);
    await sweep(input, there);
    const bytes = missing.map((c) => c.sizeBytes);
    const sum = (of: readonly number[]): number => of.reduce((a, b) => a + b, 0);
    for (const [n, copy] of missing.entries()) {
      input.progress(sum(bytes.slice(0, n)), sum(bytes));
      const proved = await putCopy(input, there, copy, present);
      if (proved === null) continue;
      uploaded.push({ file: copy.file, proved });
      input.ledger?.noteUploaded(url.shown, copy.file, input.now());
    }
    if (input.upload.prune) pruned = await pruneThere(input, there);
    return result(null);
  } catch (error) {
    return result(errorOf(error, input, url.shown));
  } finally {
    await there?.close();
  }
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

/** The time limit is one failure among others; a signal ends the run, and what is missing is told by the next one. */
function errorOf(error: unknown, { signal }: UploadInput, shown: string): NonNullable<UploadResult['error']> {
  if (signal.aborted) {
    const ended = failureOf(signal.reason);
    if (ended.code === 'INTERRUPTED') throw signal.reason;
    return { code: 'TIMEOUT', message: 'upload-timeout is over' };
  }
  if (error instanceof DestinationError) return { code: `UPLOAD_${error.kind.toUpperCase().replaceAll('-', '_')}`, message: withoutName(error.message, shown) };
  if (error instanceof Failed) throw error;
  return { code: 'IO_ERROR', message: errnoWords(error) };
}

/** Tonight's copy, then what was made since the destination was set and never arrived there, newest first. */
function lackedBy({ to, name, made, ledger, startedAt }: UploadInput, url: DestinationUrl): Copy[] {
  const whole = readCopies(to, name).filter((c) => c.manifest !== null && c.tags.length === 0 && (c.status === 'good' || c.status === 'suspect'));
  const tonight = whole.filter((c) => c.file === made);
  if (!ledger) return tonight;
  // Since this run began: its own copy was made after that, however long it took. Names tell time to the second.
  const since = Math.floor(ledger.destinationSince(url.shown, name, startedAt).getTime() / 1000) * 1000;
  const others = whole.filter((c) => c.file !== made && Date.parse(c.createdAt) >= since && !ledger.hasUploaded(url.shown, c.file));
  return [...tonight, ...others];
}

/** Objects by their names; none where credentials may not list. */
async function presentAt(there: Destination, signal: AbortSignal): Promise<Map<string, RemoteObject>> {
  try {
    return new Map((await there.list(signal)).map((o) => [o.name, o]));
  } catch (error) {
    if (error instanceof DestinationError && error.kind === 'denied' && !signal.aborted) return new Map();
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
async function putCopy({ to, signal }: UploadInput, there: Destination, copy: Copy, present: ReadonlyMap<string, RemoteObject>): Promise<Proved | null> {
  const manifest = readManifest(to, baseOf(copy.file));
  if ('unreadable' in manifest) return null;
  await refuseForeign(there, present.get(manifest.manifest ?? ''), manifest, signal);
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
  const { name, policy, made, signal, ledger } = input;
  const removed: Pruned[] = [];
  if (!ledger) return removed;
  try {
    const objects = await there.list(signal);
    const all = await copiesOf(there, objects, name, signal);
    const copies = all.filter((c) => ledger.hasUploaded(there.shown, c.copy.file));
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
    );
    if (decision.hold?.code === 'CLOCK')
      input.warn(warning('UPLOAD_PRUNE', `old copies at ${there.shown} were not removed: ${decision.hold.file} is dated more than an hour ahead of the clock`));
    for (const one of decision.remove) {
      const manifest = copies.find((c) => c.copy.file === one.file)?.manifest;
      if (!manifest) continue;
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
