/**
 * The proof of a stored copy from its bytes alone. SQLite never opens it where it lies, since a planted `-wal` would be
 * read (traps, 24): its bytes are streamed into a private file while they are hashed, and that file is opened. What it
 * must be is what its manifest says.
 */
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { PassThrough } from 'node:stream';
import type { Content } from '../artifacts.js';
import { baseOf, contentOf, readManifestText, sizesProblem, withSecrets } from '../catalog.js';
import type { CheckedFile } from '../checks.js';
import { checkFile, rowsOf } from '../checks.js';
import { DestinationError } from '../destinations/destination.js';
import type { Failure } from '../outcome.js';
import { diskFull, errnoOf, errnoWords, Failed, targetFailure } from '../outcome.js';
import type { Identity } from '../packing.js';
import { isPlain, openText, packedAs, unpack, WriteFailed, WrongIdentity } from '../packing.js';
import type { RemoteCopies } from '../place.js';
import type { FilesArtifact, Manifest } from '../records.js';
import type { FileId } from '../system/files.js';
import { copyHashed, IS_THE_FILES, lstatOrNull, ReadFailed, removeTree } from '../system/files.js';
import type { Tools } from '../system/programs.js';
import { ProgramFailed } from '../system/programs.js';
import type { WorkerPool } from '../system/workers.js';
import { ChildDied, MissingProgram, RequestFailed } from '../system/workers.js';

export interface ProveInput {
  readonly to: string;
  /** The name of the copy's data file. */
  readonly file: string;
  /** The private file to make; it is left there, whatever comes out. */
  readonly target: string;
  readonly pool: WorkerPool;
  readonly tools: Tools;
  /** What opens a sealed copy; without it only its bytes can be proven. */
  readonly identity: Identity | null;
  readonly signal: AbortSignal;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
  /** A destination's bytes, where the copy is not in the directory. */
  readonly open: RemoteCopies['open'] | null;
  /** `prove` the archive of included files as well, or pass it over. */
  readonly files: 'prove' | 'pass over';
  /** What the run that made the copy still knows of it: then its own plain file is proven, and no key is needed. */
  readonly known?: Known;
  /**
   * When SQLite checked this very content before, by our own records and not by what lies beside the copy: then its bytes are
   * hashed and that is not done again. Null, always: it is to be done.
   */
  readonly checkedBefore: (content: Content) => string | null;
}

export interface Known {
  readonly manifest: Manifest;
  /** The plain file. */
  readonly plain: string;
}

/** `manifest` null: it could not be read. No problems: the copy is proven, and `target` holds its plain bytes, not synced yet. */
export interface Proof {
  readonly manifest: Manifest | null;
  /** The text of the manifest is the one that was written. */
  readonly manifestWhole: boolean;
  readonly problems: readonly string[];
  /** `bytes`: sealed, and no key opens it; then `target` was not made. */
  readonly proved: 'full' | 'bytes';
  /** The private file that holds the proven bytes. */
  readonly proven: FileId;
  /** The data is not there any more: pruned meanwhile, or never there. */
  readonly gone: boolean;
  /** What is wrong lies beside the copy: it proves out itself. */
  readonly onlyBeside: boolean;
  /** The stored bytes were read to their end, and are not the recorded ones. Of a copy that could not be read that far: false. */
  readonly otherBytes: boolean;
  /** The content that SQLite found whole, now or before; null: it was not asked, or found damage. */
  readonly content: Content | null;
  /** The content in which it found damage now, although the bytes are the recorded ones. */
  readonly refuted: Content | null;
  /** When SQLite had checked it, RFC 3339; null: just now, if at all. */
  readonly checkedAt: string | null;
}

const NONE: FileId = { dev: 0, ino: 0 };
const NOTHING = {
  manifest: null,
  manifestWhole: false,
  problems: [] as readonly string[],
  proved: 'full',
  proven: NONE,
  gone: false,
  onlyBeside: false,
  otherBytes: false,
  content: null,
  refuted: null,
  checkedAt: null,
} as const satisfies Proof;

/**
 * Proves one copy. Throws `Failed` for what is no fault of the copy: a full disk, a signal, a child that cannot be started. What is amiss with one
 * that is not there any more says only that it was pruned meanwhile: pruning takes the data first.
 */
export async function prove(input: ProveInput): Promise<Proof> {
  const proof = await proveWhole(input);
  if (input.known || proof.gone || proof.problems.length === 0 || lstatOrNull(join(input.to, input.file))) return proof;
  return { ...NOTHING, problems: [NOT_THERE], gone: true };
}

const NOT_THERE = 'the data file is not there';

async function proveWhole(input: ProveInput): Promise<Proof> {
  const { to, file, known } = input;
  if (known) {
    const { problems, made, otherBytes } = await provePlain(input, known.plain, known.manifest);
    const contents = problems.length === 0 ? await proveContent(input, known.manifest) : { ...UNPROVEN, problems };
    return { ...NOTHING, ...contents, manifest: known.manifest, manifestWhole: true, proven: made, otherBytes };
  }
  const data = join(to, file);
  if (!lstatOrNull(data)) return { ...NOTHING, problems: [NOT_THERE], gone: true };
  const read = readManifestText(to, baseOf(file));
  if ('unreadable' in read) return { ...NOTHING, problems: [read.unreadable] };
  if (read.manifest.file !== file) return { ...NOTHING, problems: [`its manifest is one of ${read.manifest.file}`] };
  const manifestWhole = read.whole();
  const problems = manifestWhole ? [] : ['the manifest is not as it was written: its own SHA-256 differs'];
  const beside = ['-wal', '-journal']
    .filter((suffix) => lstatOrNull(data + suffix))
    .map((suffix) => `${file}${suffix} lies beside it: dbbackup makes none, and SQLite would read it with the copy; remove it`);
  const impossible = manifestWhole ? sizesProblem(read.manifest) : null;
  if (impossible !== null) problems.push(impossible);
  const unsealed = await unseal(read.manifest, input.identity);
  if ('problem' in unsealed) problems.push(unsealed.problem);
  const manifest = 'problem' in unsealed ? read.manifest : unsealed.manifest;
  const locked = 'locked' in unsealed;
  // What such a manifest says of sizes could let a small file unpack until the disk is full; the verdict stands anyway.
  const asItIs = locked || ((!manifestWhole || impossible !== null) && !isPlain(packedAs(file)));
  const copied = asItIs
    ? await proveSealed(input, data, manifest)
    : isPlain(packedAs(file)) && !input.open
      ? await provePlain(input, data, manifest)
      : await provePacked(input, data, manifest);
  problems.push(...copied.problems);
  const contents = problems.length === 0 && !asItIs ? await proveContent(input, manifest) : UNPROVEN;
  problems.push(...contents.problems);
  if (manifest.files && input.files === 'prove')
    problems.push(...(await proveArchive(input, manifest.files, asItIs)).map((p) => `${manifest.files?.file}: ${p}`));
  const { made: proven, otherBytes } = copied;
  const onlyBeside = problems.length === 0 && beside.length > 0;
  const proved = asItIs ? 'bytes' : 'full';
  return { ...contents, manifest: read.manifest, manifestWhole, problems: [...beside, ...problems], proved, gone: false, onlyBeside, proven, otherBytes };
}

/** The manifest with what is sealed in it; `locked`: no key opens it. */
export async function unseal(
  manifest: Manifest,
  identity: Identity | null,
): Promise<{ manifest: Manifest } | { manifest: Manifest; locked: true } | { problem: string }> {
  if (manifest.sealed === null || manifest.sealed === undefined) return { manifest };
  if (!identity) return { manifest, locked: true };
  try {
    return { manifest: withSecrets(manifest, await openText(manifest.sealed, identity)) };
  } catch (error) {
    if (error instanceof WrongIdentity) return { manifest, locked: true };
    return { problem: `the sealed part of its manifest cannot be opened: ${error instanceof Error ? error.message : String(error)}` };
  }
}

interface Copied extends Pick<Proof, 'otherBytes'> {
  readonly problems: string[];
  readonly made: FileId;
}

/** Not read, or not to the end. */
const unread = (problems: string[]): Copied => ({ problems, made: NONE, otherBytes: false });

const sizeProblems = (is: number, recorded: number): string[] => (is === recorded ? [] : [`it has ${is} bytes, not ${recorded}`]);
const sumProblems = (is: string, recorded: string | null): string[] => (is === recorded ? [] : [`its SHA-256 is ${is}, not ${String(recorded)}`]);

/** A file of another size is not read: it may be sparse and endless. */
const sizeBefore = (data: string, manifest: Manifest): string[] => {
  const there = lstatOrNull(data);
  return there?.isFile() ? sizeProblems(there.size, manifest.sizeBytes) : [];
};

async function provePlain(input: ProveInput, data: string, manifest: Manifest): Promise<Copied> {
  removeTree(input.target);
  const plain = { sizeBytes: manifest.plainSizeBytes, sha256: manifest.plainSha256 };
  // In an unpacked copy both are the same, and `inconsistencies` sees to that.
  const recorded = input.known ? plain : manifest;
  const before = input.known ? [] : sizeBefore(data, manifest);
  if (before.length > 0) return unread(before);
  try {
    const { sha256, sizeBytes, made } = await copyHashed(data, input.target, input.signal, (done) => input.progress(done, recorded.sizeBytes));
    const problems = [...sizeProblems(sizeBytes, recorded.sizeBytes), ...sumProblems(sha256, recorded.sha256)];
    return { problems, made, otherBytes: sha256 !== recorded.sha256 };
  } catch (error) {
    return unreadable(input, data, error);
  }
}

/** Unpacked into the private file, hashed on both sides. */
async function provePacked(input: ProveInput, data: string, manifest: Manifest): Promise<Copied> {
  removeTree(input.target);
  const before = sizeBefore(data, manifest);
  if (before.length > 0) return unread(before);
  const { identity, tools, target } = input;
  const progress = (done: number): void => input.progress(done, manifest.sizeBytes);
  try {
    const u = await unpack({
      from: await bytesOf(input, input.file),
      packedBytes: manifest.sizeBytes,
      packed: packedAs(input.file),
      identity,
      to: target,
      limit: manifest.plainSizeBytes,
      tools,
      progress,
    });
    const plain = [
      ...(u.plainSizeBytes === manifest.plainSizeBytes ? [] : [`it unpacks to ${u.plainSizeBytes} bytes, not ${manifest.plainSizeBytes}`]),
      ...(u.plainSha256 === manifest.plainSha256 ? [] : [`the SHA-256 of what it unpacks to is ${u.plainSha256}, not ${String(manifest.plainSha256)}`]),
    ];
    const stored = [...sizeProblems(u.sizeBytes, manifest.sizeBytes), ...sumProblems(u.sha256, manifest.sha256)];
    return { problems: [...stored, ...plain], made: u.made ?? NONE, otherBytes: u.sha256 !== manifest.sha256 };
  } catch (error) {
    return unread(faultsOf(input, data, error));
  }
}

/** Why bytes could not be unpacked, where that is the fault of the copy. Throws `Failed` where it is not. */
function faultsOf(input: ProveInput, path: string, error: unknown): string[] {
  if (error instanceof WriteFailed) throw new Failed(targetFailure(error.cause, input.target), { cause: error });
  if (error instanceof Failed || input.signal.aborted) throw error;
  // What this machine lacks is no fault of the copy: it must not be marked as bad for that.
  if (error instanceof MissingProgram) throw new Failed(unreadableHere(input.file, error.message), { cause: error });
  if (error instanceof ProgramFailed && error.innocent) throw new Failed({ code: 'IO_ERROR', path, reason: error.message }, { cause: error });
  if (error instanceof ReadFailed) return unreadable(input, path, error).problems;
  return [`it cannot be unpacked: ${error instanceof Error ? error.message : String(error)}`];
}

const unreadableHere = (file: string, reason: string): Failure => ({
  code: 'SETTINGS',
  problems: [{ setting: 'compress', message: `${file} cannot be unpacked here: ${reason}`, origin: 'PATH' }],
});

/** Sealed, and no key, or a manifest that is not to be believed: what can be said is whether these are the bytes that were written. */
async function proveSealed(input: ProveInput, data: string, manifest: Manifest): Promise<Copied> {
  const before = sizeBefore(data, manifest);
  if (before.length > 0) return unread(before);
  try {
    const u = await unpack({
      ...AS_IT_IS,
      from: await bytesOf(input, input.file),
      packedBytes: manifest.sizeBytes,
      tools: input.tools,
      progress: (done) => input.progress(done, manifest.sizeBytes),
    });
    const problems = [...sizeProblems(u.sizeBytes, manifest.sizeBytes), ...sumProblems(u.sha256, manifest.sha256)];
    return { problems, made: NONE, otherBytes: u.sha256 !== manifest.sha256 };
  } catch (error) {
    return unread(faultsOf(input, data, error));
  }
}

const AS_IT_IS = { packed: { compress: 'none', encrypted: false }, identity: null, to: null, limit: Number.POSITIVE_INFINITY } as const;

/** The path of a file of the copy, or its bytes from elsewhere. */
async function bytesOf({ to, open, signal }: ProveInput, file: string): Promise<string | Readable> {
  return open ? await open(file, signal) : join(to, file);
}

/** The archive beside the data: its bytes, and where they can be unpacked, that it is one, with as many files in it. */
async function proveArchive(input: ProveInput, files: FilesArtifact, locked: boolean): Promise<string[]> {
  const path = join(input.to, files.file);
  const there = lstatOrNull(path);
  if (!there?.isFile()) return ['it is not there'];
  if (there.size !== files.sizeBytes) return sizeProblems(there.size, files.sizeBytes);
  const { tools, identity } = input;
  const progress = (): void => undefined;
  try {
    const from = await bytesOf(input, files.file);
    if (locked) {
      const { sha256, sizeBytes } = await unpack({ ...AS_IT_IS, from, packedBytes: files.sizeBytes, tools, progress });
      return [...sizeProblems(sizeBytes, files.sizeBytes), ...sumProblems(sha256, files.sha256)];
    }
    const also = new PassThrough({ highWaterMark: 1 << 20 });
    const { inspectArchive } = await import('../archive/unpack.js');
    const counting = inspectArchive(also, input.signal).catch((error: unknown) => {
      also.destroy();
      return error instanceof Error ? error.message : String(error);
    });
    const sizes = { packedBytes: files.sizeBytes, limit: files.plainSizeBytes };
    const u = await unpack({ from, packed: packedAs(files.file), identity, to: null, also, ...sizes, tools, progress });
    const counted = await counting;
    return [
      ...sizeProblems(u.sizeBytes, files.sizeBytes),
      ...sumProblems(u.sha256, files.sha256),
      ...(u.plainSha256 === files.plainSha256 ? [] : [`the SHA-256 of what it unpacks to is ${u.plainSha256}, not ${String(files.plainSha256)}`]),
      ...(typeof counted === 'string' ? [counted] : counted.count === files.count ? [] : [`it holds ${counted.count} files, not ${files.count}`]),
    ];
  } catch (error) {
    return faultsOf(input, path, error);
  }
}

function unreadable(input: ProveInput, data: string, error: unknown): Copied {
  // A connection that went says nothing of the copy.
  if (error instanceof ReadFailed && error.cause instanceof DestinationError) {
    throw new Failed({ code: 'REMOTE_FAILED', shown: data.slice(input.to.length + 1), reason: error.cause.message }, { cause: error });
  }
  // Too many open files, a stale handle and the like say nothing of the copy.
  if (error instanceof ReadFailed && !IS_THE_FILES.has(errnoOf(error))) {
    throw new Failed({ code: 'IO_ERROR', path: data, reason: errnoWords(error.cause) }, { cause: error });
  }
  if (error instanceof ReadFailed) {
    return unread([`it cannot be read: ${errnoOf(error) === 'EINVAL' ? 'it is not a regular file' : errnoWords(error.cause)}`]);
  }
  throw new Failed(targetFailure(error, input.target), { cause: error });
}

type Contents = Pick<Proof, 'content' | 'refuted' | 'checkedAt' | 'problems'>;

const UNPROVEN: Contents = { content: null, refuted: null, checkedAt: null, problems: [] };

/** The private file, whose bytes have the recorded hash, by SQLite's own checks and against what its manifest says of it. */
async function proveContent(input: ProveInput, manifest: Manifest): Promise<Contents> {
  const unlike = inconsistencies(manifest);
  if (unlike.length > 0) return { ...UNPROVEN, problems: unlike };
  const content = contentOf(manifest);
  const checkedAt = content && input.checkedBefore(content);
  if (checkedAt !== null) return { ...UNPROVEN, content, checkedAt };
  const problems = await checkContent(input, manifest);
  return problems.length === 0 ? { ...UNPROVEN, content } : { ...UNPROVEN, refuted: content, problems };
}

/** Of an unpacked copy the plain file is the stored one. */
function inconsistencies({ file, sizeBytes, plainSizeBytes, sha256, plainSha256 }: Manifest): string[] {
  if (!isPlain(packedAs(file))) return [];
  return [
    ...(sizeBytes === plainSizeBytes ? [] : [`its plain size is ${sizeBytes}, not ${plainSizeBytes}`]),
    ...(sha256 === plainSha256 ? [] : [`its plain SHA-256 is ${String(sha256)}, not ${String(plainSha256)}`]),
  ];
}

async function checkContent(input: ProveInput, manifest: Manifest): Promise<string[]> {
  let checked: CheckedFile;
  try {
    checked = await checkFile({ file: input.target, mmap: true, cellSizeCheck: true, pool: input.pool });
  } catch (error) {
    input.signal.throwIfAborted();
    await input.pool.killAll();
    if (error instanceof RequestFailed && /^SQLITE_(CORRUPT|NOTADB|ERROR)/.test(error.detail.code)) return [error.detail.message];
    if (error instanceof RequestFailed && error.detail.code === 'SQLITE_FULL') {
      throw new Failed(diskFull(input.target), { cause: error });
    }
    if (error instanceof RequestFailed || error instanceof ChildDied)
      throw new Failed({ code: 'IO_ERROR', path: input.target, reason: error.message }, { cause: error });
    throw error;
  }
  return [...checked.findings.structural, ...contradictions(manifest, checked)];
}

/** Where content and manifest do not agree: of all this `contentOf` (catalog.ts) makes its claims. A manifest without rows had too many tables to list. */
function contradictions(manifest: Manifest, { described }: CheckedFile): string[] {
  const { properties } = described;
  const rows = rowsOf(described);
  const said = manifest.rows ?? {};
  const differing = Object.keys({ ...said, ...rows }).filter((table) => said[table] !== rows[table]);
  const facts: (readonly [string, unknown, unknown])[] = [
    ['page size', properties.pageSize, manifest.pageSize],
    ['number of pages', described.pageCount, manifest.pageCount],
    ['user_version', properties.userVersion, manifest.userVersion],
    ['application_id', properties.applicationId, manifest.applicationId],
    ['schema', described.schemaHash, manifest.schemaHash],
  ];
  return [
    ...facts.filter(([, is, recorded]) => is !== recorded).map(([what, is, recorded]) => `its ${what} is ${String(is)}, not ${String(recorded)}`),
    ...(Object.keys(said).length === 0 ? [] : differing.slice(0, 5).map((t) => `table ${t} has ${rows[t] ?? 'no'} rows, not ${said[t] ?? 'none'}`)),
  ];
}
