/**
 * The proof of a stored copy from its bytes alone. SQLite never opens it where it lies, since a planted `-wal` would be
 * read (traps, 24): its bytes are streamed into a private file while they are hashed, and that file is opened. What it
 * must be is what its manifest says.
 */
import { join } from 'node:path';
import { readManifestText } from '../catalog.js';
import type { CheckedFile } from '../checks.js';
import { checkFile, rowsOf } from '../checks.js';
import { errnoOf, errnoWords, Failed, targetFailure } from '../outcome.js';
import type { Manifest } from '../records.js';
import type { FileId } from '../system/files.js';
import { copyHashed, lstatOrNull, ReadFailed, removeTree } from '../system/files.js';
import type { WorkerPool } from '../system/workers.js';
import { ChildDied, RequestFailed } from '../system/workers.js';

export interface ProveInput {
  readonly to: string;
  /** The base name of the copy's two files. */
  readonly base: string;
  /** The private file to make; it is left there, whatever comes out. */
  readonly target: string;
  readonly pool: WorkerPool;
  readonly signal: AbortSignal;
  readonly prune: string;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
}

/** `manifest` null: it could not be read. No problems: the copy is proven, and `target` holds its bytes, not synced yet. */
export interface Proof {
  readonly manifest: Manifest | null;
  /** The text of the manifest is the one that was written. */
  readonly manifestWhole: boolean;
  readonly problems: readonly string[];
  /** The private file that holds the proven bytes. */
  readonly proven: FileId;
  /** The data is not there any more: pruned meanwhile, or never there. */
  readonly gone: boolean;
}

/** Proves one copy. Throws `Failed` for what is no fault of the copy: a full disk, a signal, a child that cannot be started. */
export async function prove(input: ProveInput): Promise<Proof> {
  const read = readManifestText(input.to, input.base);
  const data = join(input.to, `${input.base}.db`);
  if (!lstatOrNull(data)) return { manifest: null, manifestWhole: false, problems: ['the data file is not there'], gone: true, proven: NONE };
  if ('unreadable' in read) return { manifest: null, manifestWhole: false, problems: [read.unreadable], gone: false, proven: NONE };
  const { manifest } = read;
  const manifestWhole = read.whole();
  const problems = manifestWhole ? [] : ['the manifest is not as it was written: its own SHA-256 differs'];
  for (const suffix of ['-wal', '-journal']) {
    if (lstatOrNull(data + suffix))
      problems.push(`${manifest.file}${suffix} lies beside it: dbbackup makes none, and SQLite would read it with the copy; remove it`);
  }
  const copied = await proveBytes(input, data, manifest);
  problems.push(...copied.problems);
  if (problems.length === 0) problems.push(...(await proveContent(input, manifest)));
  return { manifest, manifestWhole, problems, gone: false, proven: copied.made };
}

const NONE: FileId = { dev: 0, ino: 0 };

async function proveBytes(input: ProveInput, data: string, manifest: Manifest): Promise<{ problems: string[]; made: FileId }> {
  removeTree(input.target);
  const there = lstatOrNull(data);
  if (there?.isFile() && there.size !== manifest.sizeBytes) return { problems: [`it has ${there.size} bytes, not ${manifest.sizeBytes}`], made: NONE };
  try {
    const { sha256, sizeBytes, made } = await copyHashed(data, input.target, input.signal, (done) => input.progress(done, manifest.sizeBytes));
    const problems = [
      ...(sizeBytes === manifest.sizeBytes ? [] : [`it has ${sizeBytes} bytes, not ${manifest.sizeBytes}`]),
      ...(sha256 === manifest.sha256 ? [] : [`its SHA-256 is ${sha256}, not ${manifest.sha256}`]),
    ];
    return { problems, made };
  } catch (error) {
    // Too many open files, a stale handle and the like say nothing of the copy.
    if (error instanceof ReadFailed && !['EIO', 'ENOENT', 'ELOOP', 'EINVAL'].includes(errnoOf(error))) {
      throw new Failed({ code: 'IO_ERROR', path: data, reason: errnoWords(error.cause) }, { cause: error });
    }
    if (error instanceof ReadFailed) {
      return { problems: [`it cannot be read: ${errnoOf(error) === 'EINVAL' ? 'it is not a regular file' : errnoWords(error.cause)}`], made: NONE };
    }
    throw new Failed(targetFailure(error, input.target, input.prune), { cause: error });
  }
}

async function proveContent(input: ProveInput, manifest: Manifest): Promise<string[]> {
  let checked: CheckedFile;
  try {
    checked = await checkFile({ file: input.target, mmap: true, cellSizeCheck: true, pool: input.pool });
  } catch (error) {
    input.signal.throwIfAborted();
    await input.pool.killAll();
    if (error instanceof RequestFailed && /^SQLITE_(CORRUPT|NOTADB|ERROR)/.test(error.detail.code)) return [error.detail.message];
    if (error instanceof RequestFailed && error.detail.code === 'SQLITE_FULL') {
      throw new Failed({ code: 'NO_SPACE', path: input.target, neededBytes: null, freeBytes: null, prune: input.prune }, { cause: error });
    }
    if (error instanceof RequestFailed || error instanceof ChildDied)
      throw new Failed({ code: 'IO_ERROR', path: input.target, reason: error.message }, { cause: error });
    throw error;
  }
  return [...checked.findings.structural, ...contradictions(manifest, checked)];
}

/** Where content and manifest do not agree. A manifest without rows had too many tables to list. */
function contradictions(manifest: Manifest, { described }: CheckedFile): string[] {
  const { properties } = described;
  const rows = rowsOf(described);
  const said = manifest.rows ?? {};
  const differing = Object.keys({ ...said, ...rows }).filter((table) => said[table] !== rows[table]);
  const facts: [string, unknown, unknown][] = [
    ['page size', properties.pageSize, manifest.pageSize],
    ['number of pages', described.pageCount, manifest.pageCount],
    ['user_version', properties.userVersion, manifest.userVersion],
    ['application_id', properties.applicationId, manifest.applicationId],
    ['schema', described.schemaHash, manifest.schemaHash],
    ['plain size', manifest.sizeBytes, manifest.plainSizeBytes],
    ['plain SHA-256', manifest.sha256, manifest.plainSha256],
  ];
  return [
    ...facts.filter(([, is, recorded]) => is !== recorded).map(([what, is, recorded]) => `its ${what} is ${String(is)}, not ${String(recorded)}`),
    ...(Object.keys(said).length === 0 ? [] : differing.slice(0, 5).map((t) => `table ${t} has ${rows[t] ?? 'no'} rows, not ${said[t] ?? 'none'}`)),
  ];
}
