import { lstatSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Acting } from './acting.js';
import type { Content, SourceState } from './artifacts.js';
import { HEADER_BYTES, isFailure, SOURCE_BUSY_MS, textEncoding } from './artifacts.js';
import { Aside, asideNeed, isLeftByUs } from './aside.js';
import { baseOf } from './catalog.js';
import { bytes } from './format.js';
import { mark } from './marking.js';
import type { Failure, WayBack } from './outcome.js';
import { critical, describe, errnoOf, errnoWords, Failed, failureOf, hintForKilled, unsupportedBy, warning } from './outcome.js';
import { isPlain, packedAs } from './packing.js';
import { placeOf } from './place.js';
import { noteProven, whenProven } from './proven.js';
import type { Manifest } from './records.js';
import { roomProblem } from './room.js';
import type { Config } from './settings/load.js';
import { inspectSource } from './stages/inspect.js';
import { prove } from './stages/prove.js';
import { isStaged, makeStaging, STAGED, sweepStaging } from './staging.js';
import type { FileId } from './system/files.js';
import { beginningOf, directoryProblem, giveLook, lstatOrNull, realOrSame, syncDirectory } from './system/files.js';
import { holdersOf, nameHolders, rescueOf } from './system/holders.js';
import { shellWord, userName } from './system/processes.js';
import { syncLargeFile } from './system/syncing.js';
import { RequestFailed, WorkerPool } from './system/workers.js';
import { provenPath, whereabouts } from './workspace.js';

export interface PutBackInput {
  readonly manifest: Manifest;
  /** The database, an absolute path. */
  readonly target: string;
  /** A check has found it damaged: SQLite is not asked to write into it. */
  readonly damaged?: boolean;
  /** The copy was proven into the workspace (`provenFile`) already. */
  readonly proven?: boolean;
  /** The state that the safety copy has (`outerState`): what is committed after it is in neither. */
  readonly seen?: string;
  /** What is there has failed: where `aside/` cannot take it, it is kept beside, and the copy comes in its place all the same. */
  readonly isWayBack?: boolean;
}

export interface PutBack {
  readonly how: 'live' | 'offline';
  /** Absolute paths of the old files, below `aside/`; on a way back perhaps beside the database. */
  readonly setAside: readonly string[];
}

/** What stands at the target, and so how a copy gets there. `offline`: why not live. */
export type Target =
  | { readonly how: 'live'; readonly state: SourceState }
  | { readonly how: 'offline'; readonly why: string; readonly state: SourceState | null };

type Offline = Extract<Target, { how: 'offline' }>;

const DAMAGED: Offline = { how: 'offline', why: 'it is damaged', state: null };

/**
 * Looks at the target without SQLite. Throws `Failed` for what is never replaced: links, directories, FIFOs, devices,
 * hard links, a database that cannot be opened as this user.
 */
export function lookAtTarget(acting: Pick<Acting, 'ctx' | 'config'>, target: string, copyPageSize: number): Target {
  const there = lstatOrNull(target);
  if (there?.isSymbolicLink()) throw new Failed({ code: 'SOURCE_NOT_A_FILE', path: target, kind: 'a symbolic link', leadsTo: realOrSame(target) });
  if (!there) {
    const reason = directoryProblem(dirname(target));
    if (reason !== null)
      throw new Failed({
        code: 'RESTORE_FAILED',
        path: target,
        reason,
        state: 'nothing was changed; make the directory, or mend the path',
      });
    return { how: 'offline', why: 'there is no database', state: null };
  }
  const state = inspectSource(target, acting.ctx.identity, (ino, path) => isLeftByUs(acting.config.stateDir, ino) || isStaged(path, ino));
  if (!isFailure(state)) {
    return state.pageSize === copyPageSize
      ? { how: 'live', state }
      : { how: 'offline', why: `its page size is ${state.pageSize}, the copy's ${copyPageSize}`, state };
  }
  if (!['NOT_A_DATABASE', 'SOURCE_EMPTY', 'SOURCE_CORRUPT'].includes(state.code)) throw new Failed(state);
  return DAMAGED;
}

/** Proves the copy and puts it in place of the database. Needs the lock of the name. Throws `Failed`. */
export async function putBack(acting: Acting, input: PutBackInput): Promise<PutBack> {
  const { recorder } = acting;
  const seen = lookAtTarget(acting, input.target, input.manifest.pageSize);
  let offline: Offline = seen.how !== 'offline' ? DAMAGED : input.damaged === true ? { ...seen, state: null } : seen;
  if (seen.how === 'live' && input.damaged !== true) {
    sweepStaging(dirname(seen.state.realPath));
    const file = provenFile(acting);
    if (!input.proven) await proveInto(acting, input.manifest, file);
    const encoding = textEncoding(beginningOf(file, HEADER_BYTES));
    if (encoding === null || seen.state.encoding === null || encoding === seen.state.encoding) {
      const put = await recorder.stage(
        'restore',
        () => putLive(acting, input, seen.state, file),
        (p) => (p ? `${input.manifest.file} into ${input.target}, ${p.how}` : 'the database is too damaged to be written into: going on offline'),
      );
      if (put) return put;
    } else {
      // A connection that has it open keeps to the encoding that it has read, and fails at every statement.
      offline = { how: 'offline', why: `its text is ${seen.state.encoding}, the copy's ${encoding}`, state: seen.state };
    }
  }
  const staging = await makeStaging(dirname(input.target), acting.signal, input.target);
  try {
    const file = join(staging.directory, STAGED);
    const proven = await proveInto(acting, input.manifest, file);
    return await recorder.stage(
      'restore',
      () => putOffline(acting, input, offline, file, proven),
      (p) => `${input.manifest.file} to ${input.target}, ${p.how}: ${offline.why}`,
    );
  } finally {
    staging.remove();
  }
}

/** Where a copy is proven that goes into a live database. */
export const provenFile = (acting: Acting): string => provenPath(acting.workspace);

/** The stage `verify` of a restore: the copy's proven bytes in a private file. Throws `Failed` with COPY_BAD. */
export async function proveInto(acting: Acting, manifest: Manifest, file: string): Promise<FileId> {
  const { ctx, config, pool, signal, recorder } = acting;
  const { proven } = await recorder.stage(
    'verify',
    async () => {
      const progress = (done: number, total: number): void => ctx.output.progress('verify', done, total);
      // What this run made itself lies here, wherever the others are.
      const from = manifest.runId === recorder.runId ? null : config.from;
      const where = {
        to: from?.directory ?? config.to,
        open: from?.open ?? null,
        file: manifest.file,
        files: 'pass over',
        ...acting.known(manifest.file),
      } as const;
      const checkedBefore = (content: Content): string | null => whenProven(acting, content);
      const proof = await prove({ ...where, target: file, pool, tools: acting.tools, identity: config.identity, signal, progress, checkedBefore });
      if (proof.gone)
        throw new Failed({ code: 'COPY_NOT_FOUND', path: `${placeOf(config)}/${manifest.file}`, reason: 'there is no such copy', to: placeOf(config) });
      // Or it would be the newest good one to all others, and pruning would keep it and remove those that are. Only for bytes that were read to
      // their end and are others: not what a read error or the disk of the target did, nor what this run made itself and may have to go back to.
      const stored = from === null && proof.manifest !== null && manifest.runId !== recorder.runId && !acting.known(manifest.file);
      if (stored && proof.otherBytes) await mark(acting, proof, baseOf(manifest.file), 'bad');
      if (proof.problems.length > 0)
        throw new Failed({
          code: 'COPY_BAD',
          onlyBeside: proof.onlyBeside,
          file: manifest.file,
          problems: proof.problems,
          to: placeOf(config),
          others: manifest.name,
        });
      if (proof.proved === 'bytes') throw new Failed({ code: 'IDENTITY_MISSING', file: manifest.file, identity: config.identity?.path ?? null });
      if (proof.content && proof.checkedAt === null) noteProven(acting, proof.content);
      return proof;
    },
    ({ checkedAt }) =>
      `${manifest.file} proven: ${bytes(manifest.sizeBytes)}${checkedAt === null ? '' : `, the bytes that SQLite checked at ${ctx.output.time(checkedAt)}`}`,
  );
  return proven;
}

/** Null: SQLite says that the target is damaged, and has not changed it. */
async function putLive(acting: Acting, input: PutBackInput, state: SourceState, file: string): Promise<PutBack | null> {
  const { pool } = acting;
  const { target } = input;
  // In rollback mode a commit waits for readers: given them longer than a source's holders.
  const busyMs = state.journalMode === 'wal' ? SOURCE_BUSY_MS : 6 * SOURCE_BUSY_MS;
  const before = { dev: state.dev, ino: state.ino };
  let isLost = false;
  try {
    isLost = (await pool.worker(0).ask({ op: 'put-into', file, target: state.realPath, ...before, busyMs, seen: input.seen ?? null })).isLost;
  } catch (error) {
    await pool.killAll();
    await rollHotJournalBack(acting, state);
    if (acting.signal.aborted) throw new Failed(endedMidway(acting, input), { cause: error });
    if (error instanceof RequestFailed && /^SQLITE_(CORRUPT|NOTADB)/.test(error.detail.code)) return null;
    throw new Failed(putFailure(error, target, busyMs), { cause: error });
  }
  if (isLost) {
    const lost = `${target} was written to between the safety copy and the restore: what was committed then is in neither of them`;
    acting.recorder.warn(critical('COMMITS_LOST', lost));
  }
  await checkPut(acting, input, state, busyMs);
  return { how: 'live', setAside: [] };
}

/** The child that was to answer is gone: whether it had committed it did not live to say. */
function endedMidway({ signal, recorder, config, name }: Acting, { target }: PutBackInput): Failure {
  const ended = failureOf(signal.reason);
  if (ended.code !== 'INTERRUPTED' && ended.code !== 'TIMEOUT') return ended;
  const copy = recorder.restored?.safetyCopy ?? null;
  const back = copy === null ? null : { ...whereabouts(config.to, config.stateDir), copy, target, name, profile: config.profile };
  return { ...ended, midway: target, next: hintForKilled({ command: 'restore', target, back }) };
}

/** From here on the copy is in the database, whatever comes: no error may say otherwise. */
async function checkPut(acting: Acting, input: PutBackInput, state: SourceState, busyMs: number): Promise<void> {
  const { pool } = acting;
  const { target, manifest } = input;
  try {
    const after = await pool.worker(0).ask({ op: 'check-put', target: state.realPath, dev: state.dev, ino: state.ino, busyMs });
    const lostWal = state.journalMode === 'wal' && after.journalMode !== 'wal' ? `its journal mode is ${after.journalMode}, and was wal` : null;
    const reason = after.findings.structural[0] ?? lostWal;
    if (reason !== null) throw new Failed({ code: 'ROLLBACK_FAILED', path: target, reason, back: wayBack(acting, input), setAside: null });
    await syncLive(acting, state.realPath);
    if (manifest.schemaHash !== null && after.schemaHash !== manifest.schemaHash) {
      acting.recorder.warn(warning('SOURCE_REPLACED', `the schema of ${target} was changed by another process right after the copy was put into it`));
    }
  } catch (error) {
    const ended = acting.signal.aborted ? failureOf(acting.signal.reason) : null;
    if (error instanceof Failed && error !== acting.signal.reason) throw error;
    await pool.killAll();
    if (ended?.code === 'INTERRUPTED' || ended?.code === 'TIMEOUT')
      throw new Failed({ ...ended, published: `${manifest.file} into ${target}` }, { cause: error });
    const reason = error instanceof Error ? error.message : String(error);
    const said = `${manifest.file} is in the database, but that could not be checked or synced: sqlite3 ${shellWord(target)} 'PRAGMA quick_check'`;
    throw new Failed({ code: 'RESTORE_FAILED', path: target, reason, state: said }, { cause: error });
  }
}

/** Ended in the middle, in rollback mode, the old state is in the journal: opened once, SQLite puts it back. Not by the ended pool. */
async function rollHotJournalBack(acting: Acting, state: SourceState): Promise<void> {
  if (!lstatOrNull(`${state.realPath}-journal`)) return;
  const pool = new WorkerPool(acting.ctx.childEnv, new AbortController().signal, null);
  try {
    await pool.worker(0).ask({ op: 'settle', file: state.realPath, dev: state.dev, ino: state.ino, busyMs: 1000 });
  } catch (error) {
    // Somebody has it locked: the journal is his, or he is the one to roll it back.
    if (error instanceof RequestFailed && error.detail.code.startsWith('SQLITE_BUSY')) return;
    const reason = error instanceof Error ? error.message : String(error);
    acting.recorder.warn(
      critical('SOURCE_HOT_JOURNAL', `${state.path} has a hot journal that could not be rolled back (${reason}): whoever opens it next for writing does that`),
    );
  } finally {
    await pool.close();
  }
}

/**
 * SQLite syncs a `-wal` when it checkpoints, which somebody who still reads the old state puts off; and it never syncs the
 * removal of a `-journal`. Nobody of us has the database open any more, so no lock of SQLite's is lost by this (traps, 8).
 */
async function syncLive(acting: Acting, path: string): Promise<void> {
  try {
    await syncLargeFile(`${path}-wal`, acting.signal);
  } catch (error) {
    // Rollback mode; or the last one to have it open has brought all of it home.
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
  syncParent(acting, path);
}

const wayBack = ({ config, name }: Acting, { manifest, target }: PutBackInput): WayBack => ({
  ...whereabouts(config.to, config.stateDir),
  copy: manifest.file,
  target,
  name,
  profile: config.profile,
});

function putFailure(error: unknown, target: string, waitedMs: number): Failure {
  const state = 'the database is as it was: the change was one transaction, and it was not committed';
  if (error instanceof RequestFailed) {
    const { code, message } = error.detail;
    if (code === 'REPLACED') return { code: 'SOURCE_REPLACED', path: target };
    if (code.startsWith('SQLITE_BUSY') || code.startsWith('SQLITE_LOCKED')) return { code: 'SOURCE_LOCKED', path: target, waitedMs };
    return { code: 'RESTORE_FAILED', path: target, reason: `${message} (${code})`, state };
  }
  if (errnoOf(error) === '') return { code: 'RESTORE_FAILED', path: target, reason: error instanceof Error ? error.message : String(error), state };
  return failureOf(error);
}

/** Refuses while anybody else has the database open. */
export function refuseHolders(target: string): void {
  const holders = holdersOf(target);
  if (holders.length > 0) throw new Failed({ code: 'IN_USE', path: target, holders: nameHolders(holders), rescue: rescueOf(target) });
}

async function putOffline(acting: Acting, input: PutBackInput, target: Offline, file: string, proven: FileId): Promise<PutBack> {
  const { pool, config, name, recorder, ctx } = acting;
  const path = input.target;
  refuseHolders(path);
  const noRoom = roomProblem([asideNeed(config.stateDir, path)]);
  if (noRoom && !input.isWayBack) throw new Failed(noRoom);
  try {
    if (target.state) await settle(acting, target.state);
  } catch (error) {
    // A way back does without: all of it is set aside as it is.
    acting.signal.throwIfAborted();
    const code = error instanceof Failed ? error.failure.code : '';
    if (!input.isWayBack || code === 'IN_USE' || code === 'SOURCE_REPLACED') throw error;
  }
  const old = lstatOrNull(path);
  const wal = target.state ? target.state.journalMode === 'wal' : input.manifest.journalMode === 'wal';
  if (wal) {
    await pool
      .worker(0)
      .ask({ op: 'set-wal', file })
      .catch((error: unknown) => {
        acting.signal.throwIfAborted();
        const reason = error instanceof Error ? error.message : String(error);
        throw new Failed({ code: 'RESTORE_FAILED', path, reason, state: UNCHANGED }, { cause: error });
      });
  }
  await pool.killAll();
  // Gigabytes are synced here, where signals are heard; what follows only adds owner and mode.
  await syncLargeFile(file, acting.signal);
  try {
    giveLook(file, old ?? lstatSync(file), proven);
  } catch (error) {
    const { uid, gid, mode } = old ?? lstatSync(file);
    const like = `owner ${uid}, group ${gid}, mode ${(mode & 0o7777).toString(8)}`;
    const state = `${UNCHANGED}, or as root`;
    throw new Failed(
      { code: 'RESTORE_FAILED', path, reason: `the new file cannot be made like the old one (${like}): ${errnoWords(error)}`, state },
      { cause: error },
    );
  }
  const unsupported = unsupportedBy((w) => recorder.warn(w));
  const now = ctx.clock.now();
  let why = noRoom && describe(noRoom).message;
  const exchange = async (beside: boolean): Promise<Aside> => {
    const aside = new Aside({ stateDir: config.stateDir, name, runId: recorder.runId, target: path, now, unsupported, beside });
    try {
      await aside.keepMain(acting.signal);
      // From here to the new name nothing waits and nothing is heard.
      refuseHolders(path);
      requireSame(lstatSync(file), proven, path);
      aside.moveSidecars(file);
      aside.replace(file);
      return aside;
    } catch (error) {
      const undone = aside.undo();
      if (error instanceof Failed) throw error;
      const isTaken = errnoOf(error) === 'EEXIST';
      if (undone && input.isWayBack && !beside && !isTaken) {
        why = errnoWords(error);
        return await exchange(true);
      }
      const reason = isTaken ? 'another process made a database there meanwhile' : errnoWords(error);
      throw new Failed(
        undone
          ? { code: 'RESTORE_FAILED', path, reason, state: UNCHANGED }
          : {
              code: 'ROLLBACK_FAILED',
              path,
              reason,
              back: wayBack(acting, input),
              setAside: beside ? (aside.files[0] ?? null) : aside.files.length > 0 ? aside.directory : null,
            },
        { cause: error },
      );
    }
  };
  const aside = await exchange(noRoom !== null);
  try {
    aside.finish();
  } catch (error) {
    recorder.warn(warning('STATE_UNWRITABLE', `${aside.directory} could not be completed: ${errnoWords(error)}`));
  }
  const [kept] = aside.files;
  if (why !== null && kept !== undefined)
    recorder.warn(critical(noRoom ? 'NO_SPACE' : 'STATE_UNWRITABLE', `the failed state is kept beside the database, as ${kept}: ${why}`));
  const parent = lstatSync(dirname(path));
  if (!old && (parent.uid !== ctx.identity.uid || (parent.mode & GROUP_MAY_WRITE) !== 0)) {
    recorder.warn(
      warning(
        'SIDECAR_OWNER',
        `${path} belongs to ${userName(ctx.identity.uid)} alone (0600), since there was no file to take owner and mode from: if the application is another user: chown --reference=${shellWord(dirname(path))} ${shellWord(path)}, and chmod 660 if it is of that group`,
      ),
    );
  }
  return { how: 'offline', setAside: aside.files };
}

/** Then the application may be anybody of that group. */
const GROUP_MAY_WRITE = 0o020;

const UNCHANGED = 'the database is as it was; mend that and run again';

function requireSame(now: FileId, proven: FileId, target: string): void {
  if (now.dev === proven.dev && now.ino === proven.ino) return;
  throw new Failed({ code: 'RESTORE_FAILED', path: target, reason: 'the proven file was exchanged for another one', state: UNCHANGED });
}

/** A whole database of another page size or encoding: closed by SQLite itself, so that all of it is in one file. */
async function settle(acting: Acting, state: SourceState): Promise<void> {
  try {
    await acting.pool.worker(0).ask({ op: 'settle', file: state.realPath, dev: state.dev, ino: state.ino, busyMs: 0 });
  } catch (error) {
    await acting.pool.killAll();
    acting.signal.throwIfAborted();
    if (error instanceof RequestFailed && error.detail.code.startsWith('SQLITE_BUSY')) {
      throw new Failed({ code: 'IN_USE', path: state.path, holders: ['a process that cannot be seen from here'] }, { cause: error });
    }
    if (error instanceof RequestFailed && /^SQLITE_(CORRUPT|NOTADB)/.test(error.detail.code)) return;
    throw new Failed(putFailure(error, state.path, 0), { cause: error });
  }
}

/** What a copy unpacks to; of a plain one the size that its file has, too. */
export const plainBytesOf = (m: Manifest): number => (isPlain(packedAs(m.file)) ? m.sizeBytes : m.plainSizeBytes);

/**
 * Free space for a restore, before anything is done: a failure, or null. `target`: what stands at the path; null: a new file is to be made.
 * `filesTo`: where the included files go; null: nowhere.
 */
export function spaceProblem(
  config: Pick<Config, 'to' | 'stateDir'>,
  manifest: Manifest,
  path: string,
  target: Target | null,
  filesTo: string | null,
): Failure | null {
  const state = target?.state ?? null;
  // Live: the -wal grows by the whole copy, and may be brought home only later. Offline: the staged file.
  const besideBytes = plainBytesOf(manifest);
  const files = filesTo === null ? null : manifest.files;
  return roomProblem([
    { path: config.to, bytes: state ? besideBytes + state.usedBytes + state.walBytes : 0 },
    { path: dirname(path), bytes: besideBytes },
    // The plain archive and the files out of it are there at once.
    ...(filesTo !== null && files ? [{ path: dirname(filesTo), bytes: files.plainSizeBytes + files.fileBytes }] : []),
    ...(target?.how === 'offline' ? [asideNeed(config.stateDir, path)] : []),
  ]);
}

/** Makes names durable; what a file system cannot do is only remarked. */
export const syncParent = (acting: Acting, path: string): void =>
  syncDirectory(
    dirname(path),
    unsupportedBy((w) => acting.recorder.warn(w)),
  );
