/** The parts of `guard` that stand around its straight path: who has the database open, the checks, the backwards way. */
import { closeSync, constants, fchmodSync, fchownSync, fstatSync, lstatSync, mkdirSync, openSync, realpathSync, renameSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Acting } from './acting.js';
import type { SourceState } from './artifacts.js';
import { isFailure, SOURCE_BUSY_MS } from './artifacts.js';
import { asideRoot } from './aside.js';
import { stampOf } from './catalog.js';
import type { GuardFlags } from './cli.js';
import { modeOf, plural } from './format.js';
import type { Failure } from './outcome.js';
import { critical, describe, errnoOf, errnoWords, Failed, unsupportedBy, warning } from './outcome.js';
import type { Check, Manifest, TableRows } from './records.js';
import { lookAtTarget, plainBytesOf, putBack } from './restoring.js';
import type { Need } from './room.js';
import { deviceOf, roomProblem } from './room.js';
import { inspectSource } from './stages/inspect.js';
import { copyHashed, giveLook, lstatOrNull, makeDirectories, makePrivateDirectory, openDirectory, sizeOf, syncDirectory } from './system/files.js';
import { holdersOf, nameHolders } from './system/holders.js';
import { syncLargeFile } from './system/syncing.js';
import type { CheckedLive } from './system/worker-protocol.js';
import { ChildDied, RequestFailed } from './system/workers.js';
import type { Window } from './window.js';
import { removeQuietly } from './workspace.js';

/** A guard that was asked for, parsed. */
export interface Guarding {
  readonly database: string;
  readonly flags: GuardFlags;
  /** The user's checks, one statement each. */
  readonly queries: readonly string[];
  readonly window: Window | null;
}

/** What is looked at before COMMAND, for the way back. */
export interface Original {
  readonly source: SourceState;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly directory: { readonly mode: number; readonly uid: number; readonly gid: number };
}

/** The look of a database and its directory, before anything happens to them. */
export function originalOf(source: SourceState): Original {
  const { mode, uid, gid } = lstatSync(source.realPath);
  const directory = lstatSync(dirname(source.realPath));
  return { source, mode: mode & 0o7777, uid, gid, directory: { mode: directory.mode & 0o7777, uid: directory.uid, gid: directory.gid } };
}

/** IN_USE while anybody else has the database open, unless that is meant. */
export function holderProblem(source: SourceState, shared: boolean): Failure | null {
  const holders = shared ? [] : holdersOf(source.realPath);
  return holders.length > 0 ? { code: 'IN_USE', path: source.path, holders: nameHolders(holders), shareable: true } : null;
}

/** The same, thrown. */
export function refuseHolders(source: SourceState, shared: boolean): void {
  const held = holderProblem(source, shared);
  if (held) throw new Failed(held);
}

/** What a check is called in a message: the user's is its own text. */
const called = (name: string): string => (/^\w+$/.test(name) ? name : `the check "${name.replace(/\s+/g, ' ').slice(0, 200)}"`);

/**
 * All checks of a database. `file`: what SQLite opens; `shown`: what a person knows it as. The results are in the record
 * also when one fails, which throws CHECK_FAILED. Throws USAGE for a check that would write.
 */
export async function checkDatabase(
  acting: Acting,
  input: { file: string; shown: string; queries: readonly string[]; when: 'before' | 'after' },
): Promise<CheckedLive> {
  const { file, shown, queries, when } = input;
  const checked = await look(acting, file, shown, queries, when);
  if (checked.notASelect !== null) throw notASelect(checked.notASelect);
  acting.recorder.add({ checks: checked.checks });
  const failed = checked.checks.find((c) => !c.ok);
  if (failed) throw new Failed({ code: 'CHECK_FAILED', path: shown, when, check: called(failed.name), message: failed.message, rolledBack: false });
  return checked;
}

/** The usage error for a check that is no SELECT, or one that would write. */
export const notASelect = (sql: string): Failed =>
  new Failed({
    code: 'USAGE',
    message: `a check must be a SELECT that only reads, and this is none: ${sql.replace(/\s+/g, ' ').slice(0, 200)}`,
    hint: 'give a SELECT that returns the rows that must not be there',
  });

async function look(acting: Acting, file: string, shown: string, queries: readonly string[], when: 'before' | 'after'): Promise<CheckedLive> {
  try {
    const state = inspectSource(file, acting.ctx.identity);
    if (isFailure(state)) return nothing(describe(state).message);
    return await acting.pool.worker(0).ask({ op: 'check-live', file, queries, busyMs: SOURCE_BUSY_MS });
  } catch (error) {
    acting.signal.throwIfAborted();
    if (error instanceof RequestFailed) {
      const { code, message } = error.detail;
      if (when === 'before' && /^SQLITE_(BUSY|LOCKED)/.test(code)) {
        throw new Failed({ code: 'SOURCE_LOCKED', path: shown, waitedMs: SOURCE_BUSY_MS }, { cause: error });
      }
      return nothing(`${message} (${code})`);
    }
    if (error instanceof ChildDied) return nothing(error.message);
    throw error;
  }
}

const nothing = (message: string): CheckedLive => ({
  checks: [{ name: 'integrity_check', ok: false, message }] satisfies Check[],
  notASelect: null,
  tables: [],
  schema: [],
});

/** Rows per table, of all tables that are there before or after. */
export function tablesOf(before: CheckedLive['tables'], after: CheckedLive['tables']): TableRows[] {
  const rows = (tables: CheckedLive['tables'], name: string): number | null => tables.find((t) => t.name === name)?.rows ?? null;
  return [...new Set([...before, ...after].map((t) => t.name))].sort().map((name) => ({ name, rowsBefore: rows(before, name), rowsAfter: rows(after, name) }));
}

/** One line for a stage. */
export const checksNote = ({ checks }: CheckedLive): string => `${plural(checks.length, 'check')} passed`;

/**
 * The database as it was: the failed state is set aside, the backup point put in its place, verified; its mode, owner and
 * journal mode as they were. Returns where the failed state is. `acting` must not listen to the signal any more.
 * Throws `Failed`; `setAside` is told before that.
 */
export async function putOriginalBack(
  acting: Acting,
  original: Original,
  manifest: Manifest,
  damaged: boolean,
  tell: (setAside: string) => void,
): Promise<string> {
  const { source } = original;
  const target = source.realPath;
  mendDirectory(original);
  requireDirectory(original);
  mendMode(acting, original);
  const aside = join(asideRoot(acting.config.stateDir), `${acting.name}-${stampOf(acting.ctx.clock.now())}-${acting.recorder.runId}-failed`);
  // Offline it moves the old files aside itself.
  const isCopied =
    !moveOddities(acting, target, aside, tell) &&
    !damaged &&
    lookAtTarget(acting, target, manifest.pageSize).how === 'live' &&
    (await copyAside(acting, target, aside, plainBytesOf(manifest)));
  if (isCopied) tell(aside);
  const put = await putBack(acting, { manifest, target, damaged, isWayBack: true });
  const [kept] = put.setAside;
  if (kept !== undefined) tell(isIn(acting, kept) ? dirname(kept) : kept);
  mendMode(acting, original);
  await mendJournal(acting, original);
  if (realOrNull(source.path) !== target) {
    throw new Failed({
      code: 'RESTORE_FAILED',
      path: source.path,
      reason: `${target} is as it was, but ${source.path} does not lead there any more`,
      state: 'put the symbolic link back',
    });
  }
  return put.how;
}

const isIn = ({ config }: Acting, kept: string): boolean => kept.startsWith(`${asideRoot(config.stateDir)}/`);

function realOrNull(path: string): string | null {
  try {
    return realpathSync(path);
  } catch {
    return null;
  }
}

/** Only the last directory: more than that was not ours to guard. */
function mendDirectory({ source, directory }: Original): void {
  const path = dirname(source.realPath);
  if (lstatOrNull(path) || !lstatOrNull(dirname(path))) return;
  const above = openDirectory(dirname(path));
  try {
    const made = `/proc/self/fd/${above}/${basename(path)}`;
    mkdirSync(made, { mode: 0o700 });
    const within = openSync(made, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    try {
      fchownSync(within, directory.uid, directory.gid);
      fchmodSync(within, directory.mode);
    } finally {
      closeSync(within);
    }
  } finally {
    closeSync(above);
  }
}

/**
 * Who owns a directory on the way can put a link in its place while the command is at work: what lies elsewhere is not the database that was
 * guarded, and nothing there may be written over, or given to its owner. Throws RESTORE_FAILED.
 */
function requireDirectory({ source, directory }: Original): void {
  const path = dirname(source.realPath);
  try {
    const within = openDirectory(path);
    const { uid } = fstatSync(within);
    closeSync(within);
    if (uid === directory.uid) return;
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST' && errnoOf(error) !== 'ELOOP' && errnoOf(error) !== 'ENOTDIR') throw error;
  }
  throw new Failed({
    code: 'RESTORE_FAILED',
    path: source.path,
    reason: `${path} is not the directory any more that it was before the command`,
    state: 'nothing was changed there; put the old directory back',
  });
}

function mendMode(acting: Acting, { source, mode, uid, gid }: Original): void {
  const path = source.realPath;
  let within: number | null = null;
  try {
    within = openDirectory(dirname(path));
    const file = `/proc/self/fd/${within}/${basename(path)}`;
    const now = lstatOrNull(file);
    if (now?.isFile()) giveLook(file, { uid, gid, mode }, now);
  } catch (error) {
    acting.recorder.warn(warning('SIDECAR_OWNER', `${path} does not have the owner and mode that it had before: ${errnoWords(error)}`));
  } finally {
    if (within !== null) closeSync(within);
  }
}

/** A copy carries the journal mode of the file that it goes into; the command may have changed that one's. */
async function mendJournal(acting: Acting, { source }: Original): Promise<void> {
  const now = inspectSource(source.realPath, acting.ctx.identity);
  if (isFailure(now)) throw new Failed(now);
  if (now.journalMode === source.journalMode) return;
  try {
    await acting.pool.worker(0).ask({ op: source.journalMode === 'wal' ? 'set-wal' : 'set-rollback', file: source.realPath });
  } catch (error) {
    if (!(error instanceof RequestFailed)) throw error;
    acting.recorder.warn(warning('IN_USE', `${source.path} is no longer in ${modeOf(source.journalMode)}, and could not be set back: ${error.message}`));
  }
}

const SUFFIXES = ['', '-wal', '-shm', '-journal'] as const;

/**
 * What nobody can restore into: a directory, a link or a FIFO under a name of the database, or a second name for it. It
 * leaves by a rename, into `aside` where that can be made and is on the same file system, else beside.
 */
function moveOddities(acting: Acting, target: string, aside: string, tell: (setAside: string) => void): boolean {
  const odd = SUFFIXES.map((suffix) => target + suffix).filter((path) => {
    const stats = lstatOrNull(path);
    return stats !== null && (!stats.isFile() || stats.nlink > 1);
  });
  if (odd.length === 0) return false;
  const isMade = madeAside(acting, aside);
  let isThere = false;
  for (const path of odd) {
    try {
      renameSync(path, join(aside, basename(path)));
      isThere = true;
    } catch (error) {
      if (isMade && errnoOf(error) !== 'EXDEV') throw error;
      const beside = `${path}.failed-${acting.recorder.runId}`;
      renameSync(path, beside);
      acting.recorder.warn(warning('IN_USE', `what stood at ${path} is now ${beside}`));
    }
  }
  syncDirectory(dirname(target), () => undefined);
  if (isMade) syncDirectory(aside, () => undefined);
  if (isThere) tell(aside);
  return true;
}

function madeAside(acting: Acting, aside: string): boolean {
  try {
    makeAside(acting, aside);
    return true;
  } catch (error) {
    acting.recorder.warn(critical('STATE_UNWRITABLE', `${aside} could not be made: ${errnoWords(error)}`));
    return false;
  }
}

function makeAside(acting: Acting, aside: string): void {
  const unsupported = unsupportedBy((w) => acting.recorder.warn(w));
  makeDirectories(asideRoot(acting.config.stateDir), unsupported);
  makePrivateDirectory(aside);
  syncDirectory(asideRoot(acting.config.stateDir), unsupported);
}

/** The files as they are. Without room for that the way back is worth more than what failed: said, and gone on. */
async function copyAside(acting: Acting, target: string, aside: string, neededBytes: number): Promise<boolean> {
  try {
    const files = [target, `${target}-wal`, `${target}-journal`].filter(lstatOrNull);
    const bytes = files.reduce((sum, path) => sum + sizeOf(path), 0);
    const here: Need = { path: asideRoot(acting.config.stateDir), bytes };
    // The way back has to prove its copy below the backup directory, and to bring it into the database.
    const others = [acting.config.to, dirname(target)].filter((path) => deviceOf(path) === deviceOf(here.path));
    if (roomProblem([here, ...others.map((path) => ({ path, bytes: neededBytes }))]))
      throw Object.assign(new Error('not enough space beside what the way back needs'), { code: 'NO_SPACE' });
    makeAside(acting, aside);
    for (const path of files) {
      const kept = join(aside, basename(path));
      await copyHashed(path, kept, acting.signal, () => undefined);
      await syncLargeFile(kept, acting.signal);
    }
    syncDirectory(aside, () => undefined);
    return true;
  } catch (error) {
    acting.recorder.warn(critical('NO_SPACE', `the failed state of ${target} could not be set aside: ${errnoWords(error)}`));
    removeQuietly(aside);
    return false;
  }
}
