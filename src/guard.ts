/**
 * `guard` on one screen: checks, backup point, COMMAND, checks. From the start of COMMAND on there are two ends: all is
 * good and stays, or the database is put back to what it was.
 */
import type { Acting, BodyResult } from './acting.js';
import { act, deaf } from './acting.js';
import type { SourceState } from './artifacts.js';
import { asideNeed } from './aside.js';
import { commandInput, endCommand, keepsPlace, requireProgram } from './commanding.js';
import { contentState } from './content-state.js';
import type { Context } from './context.js';
import { bytes, duration, modeOf } from './format.js';
import type { Guarding, Original } from './guarding.js';
import { checkDatabase, checksNote, holderProblem, originalOf, putOriginalBack, refuseHolders, tablesOf } from './guarding.js';
import type { WayBack as Back, ExitCode, Failure, StageName } from './outcome.js';
import { critical, describe, Failed, failureOf, restoreLine, warning } from './outcome.js';
import { hasProblems, isSkip, planRun } from './plan.js';
import type { Manifest } from './records.js';
import { roomProblem } from './room.js';
import { inspect } from './run.js';
import type { Config } from './settings/load.js';
import { runCommand } from './stages/command.js';
import { askYes } from './system/ask.js';
import type { CheckedLive } from './system/worker-protocol.js';
import { WorkerPool } from './system/workers.js';
import { makeTaggedCopy } from './tagged.js';
import { isOpen, nextOpening } from './window.js';
import { whereabouts } from './workspace.js';

/** Runs COMMAND behind a backup point and returns the exit code. */
export const guardCommand = (ctx: Context, config: Config, name: string, guarding: Guarding): Promise<ExitCode> =>
  act(ctx, config, 'guard', name, async (acting) => {
    const { recorder, signal } = acting;
    const { queries, flags } = guarding;
    const source = await beginGuard(acting, guarding);
    const database = { file: source.realPath, shown: source.path, queries } as const;
    const before = await recorder.stage('check', () => checkDatabase(acting, { ...database, when: 'before' }), checksNote);
    const seen = contentState(source.realPath);
    const { copy, manifest } = await makeTaggedCopy(acting, source, 'before-guard');
    if (copy.status !== 'good') {
      // Damage that integrity_check did not see: it would come back with every roll-back.
      throw new Failed({ code: 'SOURCE_CORRUPT', path: source.path, findings: ['the backup point is suspect; the command was not run'], keptAs: copy.file });
    }
    recorder.add({ backupPoint: copy.file });
    // Whoever came since then would lose what it commits, if this is rolled back; also who has gone again.
    refuseHolders(source, flags.shared);
    if (!flags.shared && contentState(source.realPath) !== seen) throw new Failed({ code: 'IN_USE', path: source.path, holders: [], shareable: true });
    const original = originalOf(source);
    acting.note();
    signal.throwIfAborted();
    try {
      await recorder.stage(
        'command',
        () => command(acting, guarding, source),
        (d) => `exited with 0 after ${duration(d)}`,
      );
      const after = await recorder.stage('check', () => checkAfter(acting, guarding, source), checksNote);
      keep(acting, before, after);
      return { failure: null, stage: null };
    } catch (error) {
      return await rollBack(acting, { guarding, original, manifest, before }, failureOf(error), recorder.current);
    }
  });

/** Everything before the first check, for a guard and for its rehearsal: window, looks, lock, holders. Throws `Failed`. */
export async function beginGuard(acting: Acting, guarding: Guarding): Promise<SourceState> {
  const { recorder } = acting;
  recorder.add({ backupPoint: null, child: null, checks: [], tables: [], rolledBack: false, setAside: null });
  const closed = windowProblem(acting.ctx, guarding);
  if (closed) throw new Failed(closed);
  await recorder.stage(
    'inspect',
    () => lookBeforehand(acting, guarding),
    (s) => `${s.path}: ${bytes(s.sizeBytes)}, ${modeOf(s.journalMode)}`,
  );
  await acting.begin();
  // Under the lock once more: another guard may have been at work.
  const source = lookBeforehand(acting, guarding);
  refuseHolders(source, guarding.flags.shared);
  return source;
}

/** OUTSIDE_WINDOW, or null. */
export function windowProblem(ctx: Context, { window, flags }: Guarding): Failure | null {
  const now = ctx.clock.now();
  if (window === null || isOpen(window, now)) return null;
  return { code: 'OUTSIDE_WINDOW', window: flags.window ?? '', next: nextOpening(window, now)?.toISOString().replace('.000Z', 'Z') ?? null };
}

/** What can be refused without touching anything. Throws `Failed`. */
function lookBeforehand(acting: Acting, guarding: Guarding): SourceState {
  const { ctx, config, name, recorder } = acting;
  requireProgram(ctx, guarding.flags.words);
  const facts = inspect(ctx, config, guarding.database, name, 'newest');
  // How old the newest copy is does not matter here.
  const plan = planRun({ ...config, ifOlderThanMs: null }, name, facts, ctx.clock.now());
  if (isSkip(plan)) throw new Error('a guard has nothing to skip');
  if (hasProblems(plan)) throw new Failed(plan.problems[0]);
  recorder.setSource(plan.source);
  if (plan.source.realPath !== plan.source.path) recorder.add({ guarded: plan.source.realPath });
  for (const w of plan.warnings) if (w.code !== 'SOURCE_ROLLBACK_MODE') recorder.warn(w);
  const room = guarding.flags.rehearse ? null : wayBackProblem(plan.source, plan.neededBytes, config);
  if (room) throw new Failed(room);
  return plan.source;
}

/**
 * It is too late to find out on the way back that there is no room for it: a private copy is proven below the backup
 * directory, and what goes into the database takes its size once more there (in the -wal, or as a new file); what failed is set aside.
 */
export function wayBackProblem(source: SourceState, neededBytes: number, config: Config): Failure | null {
  return roomProblem([{ path: config.to, bytes: 2 * neededBytes }, { path: source.realPath, bytes: neededBytes }, asideNeed(config.stateDir, source.realPath)]);
}

/** Milliseconds that it took. Throws COMMAND_FAILED, and the reason of the signal. */
async function command(acting: Acting, guarding: Guarding, source: SourceState): Promise<number> {
  const before = contentState(source.realPath);
  const end = await runCommand(commandInput(acting, guarding.flags, source.realPath));
  acting.recorder.add({ child: end.child });
  const how = await endCommand(end, source.realPath);
  acting.signal.throwIfAborted();
  if (how !== null) throw new Failed({ code: 'COMMAND_FAILED', how, rolledBack: false });
  if (contentState(source.realPath) === before) nothingChanged(acting, guarding, source);
  return end.child.durationMs;
}

/** A migration with nothing to do is no mistake; one that was rehearsed with `{}` in a script and now works elsewhere is. */
function nothingChanged({ recorder, ctx }: Acting, { flags }: Guarding, source: SourceState): void {
  const said = `the command changed nothing in ${source.path}`;
  if (!keepsPlace(flags, source.realPath)) ctx.output.info(said);
  else recorder.warn(warning('USAGE', `${said}; a {} inside a longer word is only replaced in a rehearsal: use --set-env for both`));
}

/** A tool may put a rebuilt file in the place of the database; while others have the old one open, they would write into nothing. */
async function checkAfter(acting: Acting, { queries, database, flags }: Guarding, source: SourceState): Promise<CheckedLive> {
  const checked = await checkDatabase(acting, { file: database, shown: database, queries, when: 'after' });
  const replaced = inspect(acting.ctx, acting.config, database, acting.name, 'newest').source;
  if (flags.shared && (!('ino' in replaced) || replaced.ino !== source.ino || replaced.dev !== source.dev)) {
    const message = 'the command put another file in its place, while others may have the old one open (--shared)';
    throw new Failed({ code: 'CHECK_FAILED', path: database, when: 'after', check: 'the file', message, rolledBack: false });
  }
  return checked;
}

function keep({ recorder, ctx }: Acting, before: CheckedLive, after: CheckedLive): void {
  const tables = tablesOf(before.tables, after.tables);
  recorder.add({ tables });
  for (const t of tables) {
    if (t.rowsBefore !== t.rowsAfter)
      ctx.output.info(`${t.name}: ${t.rowsBefore ?? 'not there'} → ${t.rowsAfter ?? 'not there'}${t.rowsAfter === null ? '' : ' rows'}`);
  }
}

interface WayBack {
  readonly guarding: Guarding;
  readonly original: Original;
  readonly manifest: Manifest;
  readonly before: CheckedLive;
}

/** Puts the database back, where that is allowed. The failure stays what it was, unless the way back fails too. */
async function rollBack(acting: Acting, way: WayBack, failure: Failure, stage: StageName | null): Promise<BodyResult> {
  const { recorder, ctx } = acting;
  const { manifest, original, guarding } = way;
  const { path, realPath } = original.source;
  const { to, stateDir, profile } = acting.config;
  const back = { ...whereabouts(to, stateDir), copy: manifest.file, target: realPath, name: acting.name, profile };
  const refused = await refusal(acting, guarding, original.source);
  if (refused !== null) {
    recorder.warn(
      critical(failure.code, `${path} was not rolled back: ${refused}. It is as the command left it. To go back to the state before: ${restoreLine(back)}`),
    );
    return { failure: withEnd(failure, { rolledBack: false, back }), stage };
  }
  // The signal and the time limit have been heard: what comes now must not be cut short.
  const pool = new WorkerPool(ctx.childEnv, new AbortController().signal, null);
  // Others would go on with the file that was moved away from under them: then only SQLite itself may write into it.
  const damaged = failure.code === 'CHECK_FAILED' && failure.check === 'integrity_check' && !holderProblem(original.source, false);
  let setAside: string | null = null;
  const tell = (at: string): void => {
    setAside = at;
    recorder.add({ setAside });
  };
  try {
    await recorder.stage(
      'rollback',
      () => putOriginalBack(deaf(acting, pool), original, manifest, damaged, tell),
      (how) => `${path} is what it was before the command (${how})${setAside === null ? '' : `; the failed state is kept in ${setAside}`}`,
    );
  } catch (error) {
    const why = failureOf(error);
    recorder.warn(critical(failure.code, describe(withEnd(failure, { rolledBack: false })).message));
    const reason = 'reason' in why ? why.reason : describe(why).message;
    return { failure: { code: 'ROLLBACK_FAILED', path: realPath, reason, back, setAside }, stage: 'rollback' };
  } finally {
    await pool.close();
  }
  recorder.add({ rolledBack: true, tables: tablesOf(way.before.tables, way.before.tables) });
  return { failure: withEnd(failure, { rolledBack: true }), stage };
}

/** The failure, knowing what became of the database. */
function withEnd(failure: Failure, end: { readonly rolledBack: boolean; readonly back?: Back }): Failure {
  switch (failure.code) {
    case 'CHECK_FAILED':
    case 'COMMAND_FAILED':
    case 'TIMEOUT':
    case 'INTERRUPTED':
      return { ...failure, ...end };
    default:
      return failure;
  }
}

/** Why there is no roll-back: it would drop what others committed, and nobody agreed to that. Null: there is one. */
async function refusal(acting: Acting, { flags }: Guarding, source: SourceState): Promise<string | null> {
  if (flags.yes) return null;
  const held = holderProblem(source, false);
  if (!flags.shared && !held) return null;
  const others = held?.code === 'IN_USE' ? `others have it open (${held.holders.join(', ')})` : 'others may have used it (--shared)';
  const lost = `${others}, and what they committed since would be lost`;
  const answer = acting.signal.aborted ? null : await askYes(`${source.path}: the command failed. Roll back? ${lost}.`, acting.signal).catch(() => null);
  return answer === true ? null : `${lost}; ${answer === null ? 'neither --yes nor a person agreed to that' : 'the answer was no'}`;
}
