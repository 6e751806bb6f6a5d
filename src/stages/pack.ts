/**
 * Stage 4: the verified snapshot, and the files beside the database, made smaller and sealed, as the settings say. Both are
 * compressed while the snapshot is verified, and what comes of that is unpacked again: only when it gives the same bytes is it
 * taken. Sealing comes after the proof, since a machine that seals cannot open again; sealed bytes are read back by their hash.
 */
import { lstatSync, statSync } from 'node:fs';
import { ArchiveError } from '../archive/common.js';
import type { Archived } from '../archive/pack.js';
import { rootProblem } from '../archive/roots.js';
import type { Artifact, FilesPart, Snapshot, VerifiedSnapshot } from '../artifacts.js';
import type { Warning } from '../outcome.js';
import { diskFull, Failed, targetFailure, warning } from '../outcome.js';
import type { Compression, Unpacked } from '../packing.js';
import { compressFile, isFormat, sealedProblem, sealFile, sealText, TooLong, unpack, WriteFailed } from '../packing.js';
import type { Sealed } from '../records.js';
import { hashFile, lstatOrNull, remove } from '../system/files.js';
import type { Tools } from '../system/programs.js';
import { ProgramFailed } from '../system/programs.js';
import { syncLargeFile } from '../system/syncing.js';
import { MissingProgram } from '../system/workers.js';
import type { Workspace } from '../workspace.js';
import { packedPath, sealedPath } from '../workspace.js';

export interface PackInput {
  readonly packing: { readonly compress: Compression; readonly recipients: readonly string[] };
  /** What is archived with the database, absolute paths. */
  readonly include: readonly string[];
  /** The backup directory and that of the state: never archived, or each copy would hold all earlier ones. */
  readonly own: readonly string[];
  /** Directories that copies are uploaded to: left out for the same reason. */
  readonly destinations: readonly string[];
  readonly workspace: Workspace;
  readonly tools: Tools;
  readonly warn: (w: Warning) => void;
}

/** A private file, and what became of it so far: null where it is not compressed. */
interface Part {
  readonly plain: string;
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly compressed: Unpacked | null;
}

/** What is ready before the snapshot is proven. */
export interface Prepared {
  /** The snapshot, compressed and unpacked again; null where nothing is to be compressed. */
  readonly data: Unpacked | null;
  /** The archive of the included files; null: nothing is included. */
  readonly files: (Part & { readonly archived: Archived }) | null;
  /** Included paths that could not be read, with reasons: at most 100, and how many in all. */
  readonly unreadable: { readonly what: readonly string[]; readonly total: number };
}

/** Compresses a snapshot that is not proven yet, and archives the files: database first, files second. Throws `Failed`. */
export async function prepare(input: PackInput, snapshot: Snapshot): Promise<Prepared> {
  const [data, archive] = await Promise.all([compress(input, snapshot.path), collect(input, snapshot)]);
  return { data, ...archive };
}

async function compress(input: PackInput, plain: string): Promise<Unpacked | null> {
  const { packing, tools } = input;
  if (packing.compress === 'none') return null;
  const path = packedPath(plain);
  try {
    await compressFile(plain, path, packing.compress, tools);
    if (!isFormat(path, packing.compress)) throw new Failed({ code: 'PACK_FAILED', reason: `what came out is no ${packing.compress} file` });
    const packed = { compress: packing.compress, encrypted: false };
    const sizes = { packedBytes: lstatSync(path).size, limit: lstatSync(plain).size };
    // Side by side, since the one waits for the disk and the other for the processors: what the disk has lost, the sync is told.
    const [unpacked] = await Promise.all([
      unpack({ from: path, packed, identity: null, to: null, ...sizes, tools, progress: () => undefined }),
      syncLargeFile(path, tools.signal),
    ]);
    return unpacked;
  } catch (error) {
    throw asFailed(error, input, path);
  }
}

/** A path that is not there must not cost the copy of the database: it is told as one that cannot be read. */
async function collect(
  input: PackInput,
  snapshot: Snapshot,
  unusable: ReadonlyMap<string, string> = new Map(),
): Promise<Pick<Prepared, 'files' | 'unreadable'>> {
  const { workspace, tools } = input;
  const problemOf = new Map(input.include.map((path) => [path, unusable.get(path) ?? rootProblem(path)]));
  const missing = input.include.flatMap((path) => {
    const reason = problemOf.get(path) ?? null;
    return reason === null ? [] : [`${path}: ${reason}`];
  });
  const roots = input.include.filter((path) => problemOf.get(path) === null);
  if (roots.length === 0) return { files: null, unreadable: { what: missing, total: missing.length } };
  try {
    const { writeArchive } = await import('../archive/pack.js');
    const { sizeBytes, sha256, ...archived } = await writeArchive({
      roots,
      target: workspace.files,
      signal: tools.signal,
      exclude: ours(snapshot, input),
      // By name as well: an application makes its journal anew while the archive grows.
      leftOut: [...input.destinations, ...['', '-wal', '-shm', '-journal'].map((suffix) => snapshot.source.realPath + suffix)],
    });
    await syncLargeFile(workspace.files, tools.signal);
    const compressed = await compress(input, workspace.files);
    const unreadable = { what: [...missing, ...archived.unreadable], total: missing.length + archived.totals.unreadable };
    return { files: { plain: workspace.files, sizeBytes, sha256, compressed, archived }, unreadable };
  } catch (error) {
    // It went, or became another, between the two looks.
    const root = error instanceof ArchiveError ? error.root : null;
    if (root && !unusable.has(root.path)) return await collect(input, snapshot, new Map([...unusable, [root.path, root.reason]]));
    throw asFailed(error, input, workspace.files);
  }
}

/** The live database, which a plain copy of its files would tear, the copies, and the directory in which the archive grows. */
function ours({ source }: Snapshot, { own, workspace }: PackInput): (dev: number, ino: number) => boolean {
  const places = [workspace.directory, ...own].map((path) => statSync(path));
  const sidecars = ['-wal', '-shm', '-journal'].flatMap((suffix) => lstatOrNull(source.realPath + suffix) ?? []);
  const left = [source, ...places, ...sidecars].map(({ dev, ino }) => `${dev}:${ino}`);
  return (dev, ino) => left.includes(`${dev}:${ino}`);
}

/** Makes of a verified snapshot what is published. Throws `Failed`. */
export async function pack(input: PackInput, verified: VerifiedSnapshot, prepared: Prepared): Promise<Artifact> {
  const { packing, workspace, warn } = input;
  const encrypted = packing.recipients.length > 0;
  const packed = { compress: packing.compress, encrypted };
  const data = await finish(input, { plain: workspace.data, sizeBytes: verified.sizeBytes, sha256: verified.sha256, compressed: prepared.data });
  const files = prepared.files && (await filesPart(input, prepared.files));
  if (prepared.files) remark(prepared.files.archived, warn);
  const sealed = encrypted ? await sealText(JSON.stringify(secretOf(verified, prepared.files?.sha256 ?? null)), packing.recipients) : null;
  const { what, total } = prepared.unreadable;
  return { verified, ...data, packed, sealed, files, unread: total > 0 ? { code: 'INCLUDE_FAILED', what, total } : null };
}

async function filesPart(input: PackInput, files: NonNullable<Prepared['files']>): Promise<FilesPart> {
  const { path, sizeBytes, sha256 } = await finish(input, files);
  const { count, fileBytes, totals } = files.archived;
  return { path, facts: { sizeBytes, sha256, plainSizeBytes: files.sizeBytes, plainSha256: files.sha256, count, fileBytes, ...totals } };
}

/** Takes what was compressed, if it unpacked to the plain bytes, and seals it. */
async function finish(input: PackInput, part: Part): Promise<{ path: string; sizeBytes: number; sha256: string }> {
  const { packing, tools } = input;
  const { plain, compressed } = part;
  if (compressed && (compressed.plainSha256 !== part.sha256 || compressed.plainSizeBytes !== part.sizeBytes)) {
    throw new Failed({ code: 'VERIFY_FAILED', findings: [`what ${packing.compress} made of the copy does not unpack to it again`] });
  }
  const unsealed = compressed
    ? { path: packedPath(plain), sizeBytes: compressed.sizeBytes, sha256: compressed.sha256 }
    : { path: plain, sizeBytes: part.sizeBytes, sha256: part.sha256 };
  if (packing.recipients.length === 0) return unsealed;
  const path = sealedPath(plain);
  try {
    const written = await sealFile(unsealed.path, path, packing.recipients, tools);
    await syncLargeFile(path, tools.signal);
    const { size } = lstatSync(path);
    const odd = sealedProblem(path, size, unsealed.sizeBytes, packing.recipients.length);
    if (odd !== null) throw new Failed({ code: 'PACK_FAILED', reason: `what came out is not what age makes of it: ${odd}` });
    const sha256 = await hashFile(path, tools.signal, () => undefined);
    if (sha256 !== written) throw new Failed({ code: 'VERIFY_FAILED', findings: ['the sealed file does not read back as it was written'] });
    if (compressed) remove(unsealed.path);
    return { path, sizeBytes: size, sha256 };
  } catch (error) {
    throw asFailed(error, input, path);
  }
}

function remark({ changed, vanished, skipped, totals }: Archived, warn: (w: Warning) => void): void {
  const say = (total: number, what: string, names: readonly string[]): void => {
    if (total > 0)
      warn(
        warning('FILES_CHANGED', `${total} included ${total === 1 ? 'file' : 'files'} ${what}: ${names.slice(0, 10).join(', ')}${total > 10 ? ', ...' : ''}`),
      );
  };
  say(totals.changed, 'changed while being read', changed);
  say(totals.vanished, 'vanished before being read', vanished);
  say(totals.skipped, 'left out', skipped);
}

/** Bytes; with more of them the manifest would be too large to be read (see publish.ts). */
const SECRET_MAX = 8_000_000;

function secretOf({ snapshot, schemaHash, rows, sha256, checks }: VerifiedSnapshot, filesPlainSha256: string | null): Sealed {
  const { source } = snapshot;
  const paths = { source: source.path, configuredPath: source.path, realPath: source.realPath };
  const secret = { ...paths, schemaHash, rows, plainSha256: sha256, filesPlainSha256, checks };
  if (Buffer.byteLength(JSON.stringify(secret)) <= SECRET_MAX) return secret;
  // Table names may be huge: rather no row counts than no manifest.
  return { ...secret, rows: {}, checks: checks.map((c) => ({ ...c, message: c.message.slice(0, 1000) })) };
}

/** A program says in words what the system said to it. */
function asFailed(error: unknown, { packing, tools }: PackInput, path: string): unknown {
  // A stream that is ended in the middle says no more than that it was ended.
  if (tools.signal.aborted) return tools.signal.reason;
  if (error instanceof Failed) return error;
  if (error instanceof TooLong) {
    return new Failed({ code: 'VERIFY_FAILED', findings: [`what ${packing.compress} made of the copy unpacks to more than it`] }, { cause: error });
  }
  if (error instanceof MissingProgram) return new Failed({ code: 'PACK_FAILED', reason: error.message }, { cause: error });
  if (error instanceof ProgramFailed && /no space left|disk quota|file too large|SIGXFSZ/i.test(error.message)) {
    return new Failed(diskFull(path), { cause: error });
  }
  if (error instanceof ProgramFailed) return new Failed({ code: 'PACK_FAILED', reason: error.message }, { cause: error });
  return new Failed(targetFailure(error instanceof WriteFailed ? error.cause : error, path), { cause: error });
}
