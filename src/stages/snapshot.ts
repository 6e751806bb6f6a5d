/**
 * Stage 2: one point-in-time state of the source, made by SQLite itself in a private temp file, and a check of the
 * source beside it. A child does the work and can be killed in the middle; the parent watches the disk and the clock.
 */
import { statSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Snapshot, SourceState } from '../artifacts.js';
import { SOURCE_BUSY_MS, TWO_CHILDREN_BYTES } from '../artifacts.js';
import { ownerOf } from '../look-failure.js';
import type { Failure } from '../outcome.js';
import { diskFull, errnoOf, Failed, failureOf, targetFailure } from '../outcome.js';
import type { Clock } from '../system/clock.js';
import { isReadable, lstatOrNull, probeWrite, removeTree, sizeOf } from '../system/files.js';
import { rescueOf } from '../system/holders.js';
import { fileSystem, mayReadWrite } from '../system/processes.js';
import { isEndSignal } from '../system/signals.js';
import { SyncInPieces } from '../system/syncing.js';
import type { WorkerPool } from '../system/workers.js';
import { ChildDied, MissingProgram, RequestFailed } from '../system/workers.js';

const WATCH_MS = 50;
/** How far a snapshot may outgrow twice its source before that is called damage. */
const RUNAWAY_BYTES = 64_000_000;

export interface SnapshotInput {
  readonly source: SourceState;
  readonly sourceCheck: 'quick' | 'full';
  /** Where to put it: a private directory of this run. */
  readonly target: string;
  readonly pool: WorkerPool;
  /** Effective user. */
  readonly uid: number;
  readonly signal: AbortSignal;
  readonly clock: Clock;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
}

/**
 * Takes the snapshot. A read error looks like damage to SQLite, and kills the child where the file is mapped (traps, 19
 * and 39): before a database is called damaged, all of it is done once more, in fresh processes and without mapping.
 */
export async function takeSnapshot(input: SnapshotInput): Promise<Snapshot> {
  const first = await attempt(input, true).catch((error: unknown) => {
    if (!mayBeReadError(error) && !mayBeAMoment(error, input.source)) throw error;
    return null;
  });
  if (first && first.sourceFindings.structural.length === 0) return first;
  input.signal.throwIfAborted();
  await input.pool.killAll();
  try {
    for (const suffix of ['', '-journal', '-wal', '-shm']) removeTree(input.target + suffix);
  } catch (error) {
    throw new Failed(targetFailure(error, input.target), { cause: error });
  }
  return await attempt(input, false);
}

const mayBeReadError = (error: unknown): boolean =>
  (error instanceof Failed && (error.failure.code === 'SOURCE_CORRUPT' || error.failure.code === 'IO_ERROR')) ||
  (error instanceof Failed && error.cause instanceof ChildDied && error.cause.signal === 'SIGBUS');

/** Who may only read meets a database whose application is just opening it as one that is idle; with both files beside it that passes. */
const mayBeAMoment = (error: unknown, { realPath }: SourceState): boolean =>
  error instanceof Failed && error.failure.code === 'SOURCE_READONLY_DIRECTORY' && SIDECARS.every((suffix) => lstatOrNull(realPath + suffix) !== null);

async function attempt(input: SnapshotInput, mmap: boolean): Promise<Snapshot> {
  const { source, target, pool } = input;
  const walBefore = sizeOf(`${source.realPath}-wal`);
  const sidecars = sidecarInodes(source);
  const pieces = new SyncInPieces(target, input.signal);
  const watch = watchDisk(input, walBefore, (bytes) => pieces.grown(bytes));
  try {
    const request = { source: source.realPath, dev: source.dev, ino: source.ino, busyMs: SOURCE_BUSY_MS, mmap } as const;
    const first = pool.worker(0);
    const second = pool.worker(source.sizeBytes + source.walBytes >= TWO_CHILDREN_BYTES ? 1 : 0);
    const [made, sourceFindings] = await Promise.all([
      first.ask({ op: 'snapshot', target, ...request }),
      second.ask({ op: 'check-source', mode: input.sourceCheck, ...request }),
    ]);
    watch.stop();
    await pieces.end();
    checkStillThere(source);
    const takenAt = new Date(made.takenAt);
    return { path: target, source, sourceFindings, walGrewBytes: Math.max(0, sizeOf(`${source.realPath}-wal`) - walBefore), ...made, takenAt };
  } catch (error) {
    await pool.killAll();
    input.signal.throwIfAborted();
    if (watch.tripped) throw new Failed(watch.tripped);
    throw new Failed(await snapshotFailure(error, input), { cause: error });
  } finally {
    watch.stop();
    await pieces.end().catch(() => undefined);
    // A signal leaves no time for another word; the next run looks again.
    if (!input.signal.aborted) checkSidecars(source, sidecars, input.uid);
  }
}

/** Another file under the same name means that the copy is of something else (traps, 9). */
function checkStillThere(source: SourceState): void {
  const now = lstatOrNull(source.realPath);
  if (!now || now.dev !== source.dev || now.ino !== source.ino) throw new Failed({ code: 'SOURCE_REPLACED', path: source.path });
}

const SIDECARS = ['-wal', '-shm'] as const;
const sidecarInodes = (source: SourceState): (number | null)[] => SIDECARS.map((s) => lstatOrNull(source.realPath + s)?.ino ?? null);

/** The application may have closed, and taken its sidecars with it, just before we opened: then SQLite made new ones, ours. */
function checkSidecars(source: SourceState, before: readonly (number | null)[], uid: number): void {
  const left = SIDECARS.map((s) => source.realPath + s).filter((path, i) => {
    const stats = lstatOrNull(path);
    return stats !== null && stats.ino !== before[i] && stats.uid === uid && !mayReadWrite(source.ownerUid, stats);
  });
  if (left.length > 0) throw new Failed({ code: 'SIDECAR_OWNER', path: source.path, owner: source.owner, left });
}

/**
 * While our read transaction lasts, the WAL cannot be reset and grows by all that is written (traps, 6): end the snapshot
 * before that fills the application's disk. What our own copy still needs there is counted as gone already.
 */
function watchDisk(input: SnapshotInput, walBefore: number, grown: (bytes: number) => void): { tripped: Failure | null; stop: () => void } {
  const { source, target, pool } = input;
  const wal = `${source.realPath}-wal`;
  const sameDisk = source.dev === statSync(dirname(target)).dev;
  const total = source.usedBytes + source.walBytes;
  const began = input.clock.monotonic();
  const state: { tripped: Failure | null; stop: () => void } = { tripped: null, stop: () => clearInterval(timer) };
  const timer = setInterval(() => {
    const done = sizeOf(target);
    grown(done);
    input.progress(done, total);
    const walBytes = sizeOf(wal);
    const grewBytes = walBytes - walBefore;
    if (state.tripped) return;
    // A database whose damaged pages claim to be far more than the file holds would fill the backup disk.
    // A healthy one may itself have grown since it was looked at.
    const expected = Math.max(total + Math.max(0, grewBytes), sizeOf(source.realPath) + walBytes);
    if (done > expected + total + RUNAWAY_BYTES) {
      state.tripped = {
        code: 'SOURCE_CORRUPT',
        path: source.path,
        findings: [`the snapshot grew to ${done} bytes where ${expected} were to be expected`],
        keptAs: null,
      };
      void pool.killAll();
      return;
    }
    if (grewBytes <= 0) return;
    const fs = fileSystem(source.realPath);
    if (!fs) return;
    const freeBytes = fs.freeBytes - (sameDisk ? Math.max(0, total - done) : 0);
    const elapsedMs = input.clock.monotonic() - began;
    const perMs = grewBytes / Math.max(250, elapsedMs);
    const leftMs = done > 0 ? (elapsedMs * Math.max(0, total - done)) / done : Number.POSITIVE_INFINITY;
    // Room for what is written until the snapshot is likely done, or for two seconds to react in; and never less than
    // 5 % of the disk or 64 MB, whichever is smaller.
    const reserve = Math.max(perMs * Math.min(2000, 300 + 1.5 * leftMs), Math.min(64e6, 0.05 * fs.sizeBytes));
    if (freeBytes < reserve) {
      state.tripped = { code: 'WAL_PRESSURE', path: source.path, freeBytes: fs.freeBytes, walBytes };
      void pool.killAll();
    }
  }, WATCH_MS);
  return state;
}

/** What SQLite's words mean for the operator. The header was seen to be SQLite's, so NOTADB here is damage. */
async function snapshotFailure(error: unknown, input: SnapshotInput): Promise<Failure> {
  const { path, realPath, owner } = input.source;
  const directory = dirname(realPath);
  if (error instanceof Failed) return error.failure;
  if (error instanceof ChildDied) {
    if (isEndSignal(error.signal)) return { code: 'INTERRUPTED', signal: error.signal, published: null };
    return error.signal === 'SIGBUS'
      ? { code: 'IO_ERROR', path, reason: 'a page could not be read from the disk (SIGBUS)' }
      : { code: 'SNAPSHOT_FAILED', path, reason: error.message };
  }
  if (error instanceof MissingProgram) return { code: 'SNAPSHOT_FAILED', path, reason: error.message };
  if (!(error instanceof RequestFailed)) return errnoOf(error) === '' ? failureOf(error) : targetFailure(error, input.target);
  const { code, message } = error.detail;
  if (code === 'REPLACED') return { code: 'SOURCE_REPLACED', path };
  const corrupt: Failure = { code: 'SOURCE_CORRUPT', path, findings: [message], keptAs: null };
  if (!code.startsWith('SQLITE_')) return targetFailure(Object.assign(new Error(message), { code }), input.target);
  if (code.startsWith('SQLITE_BUSY') || code.startsWith('SQLITE_LOCKED')) return { code: 'SOURCE_LOCKED', path, waitedMs: SOURCE_BUSY_MS };
  if (code === 'SQLITE_READONLY_ROLLBACK') return { code: 'SOURCE_HOT_JOURNAL', path };
  // READONLY_RECOVERY: the WAL is to be recovered first, by somebody who may write: its application, which is just doing so, or was killed.
  const mayNotWrite = ['SQLITE_READONLY_DIRECTORY', 'SQLITE_READONLY_CANTINIT', 'SQLITE_READONLY_RECOVERY'].includes(code);
  if (mayNotWrite || code.startsWith('SQLITE_CANTOPEN')) {
    if (!lstatOrNull(realPath)) return { code: 'SOURCE_MISSING', path, rescue: rescueOf(path) };
    const shut = SIDECARS.map((suffix) => realPath + suffix).find((sidecar) => lstatOrNull(sidecar) && !isReadable(sidecar));
    if (shut !== undefined) return { code: 'SOURCE_UNREADABLE', path: shut, reason: message, owner: ownerOf(shut, process.geteuid?.() ?? 0) };
    return input.source.journalMode === 'wal'
      ? { code: 'SOURCE_READONLY_DIRECTORY', path, directory, owner, isOurs: input.source.ownerUid === process.geteuid?.() }
      : { code: 'SOURCE_UNREADABLE', path, reason: message, owner };
  }
  // A schema format that SQLite never wrote.
  if (code.startsWith('SQLITE_CORRUPT') || code === 'SQLITE_NOTADB' || message === 'unsupported file format') return corrupt;
  if (code === 'SQLITE_FULL') return diskFull(input.target);
  if (/^SQLITE_IOERR_(WRITE|FSYNC|TRUNCATE|DELETE|CLOSE|DIR_FSYNC)/.test(code)) {
    // EDQUOT and EFBIG arrive like a broken disk (traps, 19), and SQLite has taken back what it had written: we write as much to be told.
    const refused = await probeWrite(dirname(input.target), input.source.usedBytes + input.source.walBytes, input.signal);
    input.signal.throwIfAborted();
    if (refused) return targetFailure(refused, input.target);
    return { code: 'IO_ERROR', path: input.target, reason: `${message} (${code})` };
  }
  if (code.startsWith('SQLITE_IOERR')) return { code: 'IO_ERROR', path, reason: `${message} (${code})` };
  return { code: 'SNAPSHOT_FAILED', path, reason: `${message} (${code})` };
}
