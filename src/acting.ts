/**
 * The frame around every acting command: time limit, lock, history, log, messages, clean-up, exit code. The command
 * itself is the body, a straight list of stages. Whatever the body does, what follows it here happens.
 */
import { randomUUID } from 'node:crypto';
import { dirname, join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import type { Ledger } from './artifacts.js';
import { isFailure } from './artifacts.js';
import { copyOfRun } from './catalog.js';
import type { Context } from './context.js';
import { asKilled, asUnrecorded, History, historyWarning } from './history.js';
import { makeLateState } from './late-state.js';
import { lockFailure, lockPaths, lockWarning } from './lock-failure.js';
import { RunLog } from './log.js';
import { writeMetrics } from './metrics.js';
import { keep, takeOut } from './notifiers/delivery.js';
import type { ExitCode, Failure, StageName } from './outcome.js';
import { critical, describe, exitCodeOf, Failed, failureOf, targetFailure, unsupportedBy, warning } from './outcome.js';
import type { Verdict } from './recorder.js';
import { Recorder } from './recorder.js';
import type { CommandName, Copy, RunRecord } from './records.js';
import { recover } from './recover.js';
import { redactRecord } from './redact.js';
import { withRoomLine } from './room.js';
import type { Config } from './settings/load.js';
import { inspectTarget } from './stages/inspect.js';
import type { Known } from './stages/prove.js';
import { lettersFor } from './stages/report.js';
import { sweepStaging } from './staging.js';
import { isSameFile, listing, lstatOrNull, makeDirectories, makePrivateDirectory, syncDirectory, syncWayTo } from './system/files.js';
import type { Lock } from './system/lock.js';
import { acquireLock } from './system/lock.js';
import type { Tools } from './system/programs.js';
import { WorkerPool } from './system/workers.js';
import type { ToldFrom } from './telling.js';
import { Teller } from './telling.js';
import type { Workspace } from './workspace.js';
import {
  clearQuietly,
  giveUp,
  isLiving,
  isStateElsewhere,
  makeLivingDirectory,
  parseWorkspace,
  removeQuietly,
  tempRoot,
  whereabouts,
  workspace,
} from './workspace.js';

/** What a body works with. */
export interface Acting {
  readonly ctx: Context;
  readonly config: Config;
  readonly name: string;
  readonly recorder: Recorder;
  readonly pool: WorkerPool;
  /** For programs of others; their signal aborts as well when the run ends early. */
  readonly tools: Tools;
  readonly workspace: Workspace;
  /** Aborts at a signal and at the time limit, with the failure as its reason. */
  readonly signal: AbortSignal;
  /**
   * Takes the lock, puts right what a killed run left, makes the workspace if one is needed, writes the first record. Before
   * it, nothing is changed. Without `lock` the workspace has a lock of its own, and nothing that belongs to the name may be touched.
   */
  begin(options?: { readonly workspace?: boolean; readonly lock?: boolean }): Promise<void>;
  /** For a run without the lock: holds it while `work` is done, waiting for it up to `lock-wait` and at least 10 s. Null: it stays held by another. */
  locked<T>(work: () => T): Promise<T | null>;
  /** Writes down what the record says by now, for the case that this run is killed. Needs `begin`. */
  note(): void;
  /** Keeps what is known of a sealed copy that this run made: without it, it could not go back to it. */
  remember(known: Known): void;
  /** What was kept of a copy. */
  known(file: string): { readonly known: Known } | undefined;
  /** What arrived where; null: the history cannot be written. Needs `begin`. */
  ledger(): Ledger | null;
  /** The workspace is not removed at the end: what is in it belongs to the next command, which heals. */
  readonly leaveWorkspace: () => void;
  /** From here on `timeout` does not end the run: what follows has a limit of its own. */
  stopClock(): void;
  /** A line of the log. */
  log(level: 'info' | 'warn', message: string, more: object): void;
  /** What --json prints in place of the record. */
  setDocument(make: (record: RunRecord) => object): void;
}

/** For what must be done to its end: the signal and the time limit were heard, and nothing in it hears them any more. */
export function deaf(acting: Acting, pool: WorkerPool): Acting {
  const { signal } = new AbortController();
  return { ...acting, pool, signal, tools: { ...acting.tools, signal } };
}

/** What the body came to. `skip`: nothing was to be done, and why. */
export type BodyResult = { readonly skip: string } | { readonly failure: Failure | null; readonly stage: StageName | null };

/** Runs one acting command from its first look to its exit code. */
export async function act(ctx: Context, config: Config, command: CommandName, name: string, body: (acting: Acting) => Promise<BodyResult>): Promise<ExitCode> {
  const runId = randomUUID();
  const log = new RunLog({ runId, name, command }, () => ctx.clock.now(), ctx.output.redact);
  const recorder = new Recorder(ctx, log, runId, { command, name: name || null, profile: config.profile, dryRun: false });
  const limit = new AbortController();
  const timer = setTimeout(
    () => limit.abort(new Failed({ code: 'TIMEOUT', afterMs: config.timeoutMs, published: null })),
    Math.min(config.timeoutMs, 0x7fffffff),
  );
  // What it limits keeps the process alive by itself; should there be nothing of that kind, nobody must wait for hours.
  timer.unref();
  const signal = AbortSignal.any([ctx.signal, limit.signal]);
  const ended = new AbortController();
  const made = new Map<string, Known>();
  let isLeft = false;
  const pool = new WorkerPool(ctx.childEnv, signal, ctx.earlyWorker);
  const state = new State(ctx, config, name, recorder, log);
  const acting: Acting = {
    ctx,
    config,
    name,
    recorder,
    signal,
    pool,
    tools: { env: ctx.childEnv, signal: AbortSignal.any([signal, ended.signal]), watch: (pid) => pool.watch(pid) },
    workspace: workspace(config.to, name, runId),
    begin: (options) => state.begin(signal, options?.workspace === false ? null : acting.workspace, options?.lock ?? true),
    locked: (work) => state.locked(signal, work),
    note: () => state.note(),
    remember: (known) => void made.set(known.manifest.file, known),
    known: (file) => {
      const known = made.get(file);
      return known && { known };
    },
    ledger: () => state.ledger(),
    log: (level, message, more) => log.write(level, message, { ...more }),
    leaveWorkspace: () => {
      isLeft = true;
    },
    stopClock: () => clearTimeout(timer),
    setDocument: (make) => state.setDocument(make),
  };
  log.write('info', `${command} begins`, { tool: ctx.tool, pid: process.pid });
  let verdict: Verdict;
  try {
    signal.throwIfAborted();
    verdict = judge(ctx, await body(acting), recorder);
  } catch (error) {
    verdict = judge(ctx, { failure: failureOf(error), stage: recorder.current }, recorder);
  } finally {
    ended.abort(new Error('the run has ended'));
    await acting.pool.close();
    // Once something was published, it may be the very file.
    if (signal.aborted && !recorder.has('publish')) giveUp(acting.workspace);
    if (!isLeft) (state.isLocked ? clearQuietly : removeQuietly)(acting.workspace.directory);
  }
  // A full disk is met in many places; what would help is looked for once. Not for a restore, which would
  // lose the copy that it needs, nor for verify, whose doubt is about those that would stay, nor for who prunes already.
  if (verdict.failure && !['restore', 'verify', 'prune'].includes(command)) {
    verdict = { ...verdict, failure: withRoomLine(verdict.failure, config, name, ctx.clock.now()) };
  }
  // Also where the run failed before it began: a database that is missing is what on-failure is there for.
  if (command === 'run' && verdict.exitCode !== 75 && verdict.status !== 'skipped' && Object.values(config.hooks).some((words) => words !== null)) {
    // They may take minutes: should it be killed meanwhile, its copy is known.
    state.note();
    try {
      const { runAfter } = await import('./hooks.js');
      await runAfter(acting, recorder.record(verdict, acting.pool.resources()));
    } catch (error) {
      // How the run ended is still to be written down and told.
      recorder.warn(warning('HOOK_FAILED', describe(failureOf(error)).message));
    }
  }
  // Telling people belongs to the run: the limit holds for it, unless it has passed already.
  try {
    return await state.finish(verdict, acting.pool.resources(), limit.signal.aborted ? ctx.signal : signal, () => {
      if (!isLeft) removeQuietly(acting.workspace.directory);
    });
  } finally {
    clearTimeout(timer);
  }
}

function judge(ctx: Context, result: BodyResult, recorder: Recorder): Verdict {
  if ('skip' in result) {
    ctx.output.info(`nothing to do: ${result.skip}`);
    return { status: 'skipped', exitCode: 0, failure: null, failedStage: null };
  }
  // Only `run` is there for its copy: what restore and guard make on the way does not turn their failure into something less.
  const published = recorder.command === 'run' && recorder.copy?.status === 'good' ? recorder.copy.file : null;
  const failure = withCopy(result.failure, published);
  if (!failure) return { status: 'ok', exitCode: 0, failure: null, failedStage: null };
  const exitCode = exitCodeOf(failure, published !== null);
  const status = recorder.rolledBack ? 'rolled_back' : failure.code === 'INTERRUPTED' ? 'interrupted' : exitCode === 3 ? 'incomplete' : 'failed';
  return { status, exitCode, failure, failedStage: result.stage };
}

/** A run that ends after publication says which copy it made. */
const withCopy = (failure: Failure | null, published: string | null): Failure | null =>
  failure && (failure.code === 'TIMEOUT' || failure.code === 'INTERRUPTED') ? { ...failure, published: published ?? failure.published } : failure;

/** A run that was ended while it told of itself has done its work: nobody must think that it is to be done again. */
function afterAll(failure: Failure, recorder: Recorder): Failure {
  if (failure.code !== 'INTERRUPTED' && failure.code !== 'TIMEOUT') return failure;
  const next = 'its work is done; what was still to be told is told by the next command';
  const { command, restored } = recorder;
  if (command === 'restore' && restored) return { ...failure, published: `${restored.file} into ${restored.target}`, next };
  return command === 'guard' ? { ...failure, rolledBack: false, next } : { ...failure, next };
}

/** The error of a directory below the backup directory is that of the backup directory. */
function makeUsable(directory: string, unsupported: (what: string) => void): void {
  try {
    makeDirectories(directory, unsupported);
  } catch (error) {
    throw new Failed(targetFailure(error, directory), { cause: error });
  }
}

/** A verdict is marked in milliseconds: who meets that is not at the lock of another run. */
const LOCK_WAIT_MS = 300;
/** How long marking a verdict waits for a run of the same name: it may be at work for long, and the verdict is worth a little patience. */
const MARK_WAIT_MS = 10_000;

/** Lock, history, log and outbox of one run: opened when it is time, and closed in the right order. */
class State implements ToldFrom {
  readonly #ctx: Context;
  readonly #config: Config;
  readonly #name: string;
  readonly #recorder: Recorder;
  readonly #log: RunLog;
  readonly #locks: Lock[] = [];
  #alive: Lock | null = null;
  #opened = false;
  #hasWaited = false;
  #history: History | null = null;
  #logOpening: Promise<void> = Promise.resolve();
  #stateDir: string | null = null;
  #document: ((record: RunRecord) => object) | null = null;
  readonly #teller: Teller;

  constructor(ctx: Context, config: Config, name: string, recorder: Recorder, log: RunLog) {
    this.#ctx = ctx;
    this.#config = config;
    this.#name = name;
    this.#recorder = recorder;
    this.#log = log;
    this.#teller = new Teller(ctx, config, name, recorder, log, this);
  }

  get directory(): string | null {
    return this.#stateDir;
  }

  /** It holds the lock of the name, so that nobody else clears up after it. */
  get isLocked(): boolean {
    return this.#locks.length > 0;
  }

  get history(): History | null {
    return this.#history;
  }

  note(): void {
    this.#save(this.#recorder.record(null, { cpuMs: 0, peakAnonBytes: 0 }));
  }

  ledger(): Ledger | null {
    return this.#history;
  }

  setDocument(make: (record: RunRecord) => object): void {
    this.#document = make;
  }

  async locked<T>(signal: AbortSignal, work: () => T): Promise<T | null> {
    if (this.#locks.length > 0) return work();
    await this.#acquire(signal, this.#hasWaited ? 0 : Math.max(this.#config.lockWaitMs, MARK_WAIT_MS));
    // Once, and not for each of a hundred copies.
    this.#hasWaited = this.#locks.length === 0;
    if (this.#locks.length === 0) return null;
    try {
      return work();
    } finally {
      for (const lock of this.#locks.splice(0)) lock.release();
    }
  }

  async begin(signal: AbortSignal, place: Workspace | null, lock: boolean): Promise<void> {
    const { to, stateDir, lockWaitMs } = this.#config;
    const unsupported = unsupportedBy((w) => this.#recorder.warn(w));
    const isThere = lstatOrNull(to) !== null;
    try {
      makeUsable(to, unsupported);
      makeDirectories(stateDir, unsupported);
      makeUsable(tempRoot(to), unsupported);
      // In a directory that others may add to, somebody may have been faster: look at what is there now.
      const target = inspectTarget(to, stateDir, this.#ctx.identity, this.#ctx.again);
      if (isFailure(target)) throw new Failed(target);
      if (lock) await this.#acquire(signal, Math.max(lockWaitMs, LOCK_WAIT_MS));
    } catch (error) {
      throw new Failed(lockFailure(this.#config, this.#name, this.#ctx.identity, error), { cause: error });
    }
    this.#openState();
    // Not awaited, and not before the first stage has put its child to work: winston is loaded while that is busy.
    this.#logOpening = setImmediate().then(() => this.#log.open(this.#config.logDir, this.#config.logKeepMs, this.#ctx.identity.uid));
    if (lock && this.#locks.length === 0) throw new Failed({ code: 'LOCKED', name: this.#name, holder: this.#holder() });
    // Not before the lock: a run that only finds another one at work neither begins nor ends anything.
    this.#teller.begin(signal);
    // Who works without the lock heals as well, where there is something to heal: the lock is had for that long, or not at all.
    if (!lock && this.#hasDead()) await this.#lookForDead(signal);
    try {
      // Before the first copy: whoever made the directory may have been killed before its name was on the disk.
      if (isThere && listing(to).every((file) => file.startsWith('.'))) syncWayTo(to, unsupported);
      if (lock) await this.#heal(signal);
      if (place) {
        // Before the record: without it, one that says "running" is that of a run which came to its end. Killed between the two, it has
        // done nothing, and nothing is said of it.
        if (lock) makePrivateDirectory(place.directory);
        else this.#alive = await makeLivingDirectory(place.directory, signal);
        syncDirectory(tempRoot(to), unsupported);
      }
    } catch (error) {
      throw new Failed(targetFailure(error, to), { cause: error });
    }
    this.note();
  }

  /**
   * The lock of the name lies in the state directory. Where that is elsewhere, a second one beside the temp directory keeps
   * two runs with different state directories from sweeping each other's work; a file system that cannot lock does not stop us.
   */
  async #acquire(signal: AbortSignal, lockWaitMs: number): Promise<void> {
    const { main, beside } = lockPaths(this.#config, this.#name);
    const until = this.#ctx.clock.monotonic() + lockWaitMs;
    const lock = await acquireLock(main, lockWaitMs, signal);
    if (!lock) return;
    this.#locks.push(lock);
    // The same directory, also over another way: a second lock on the same file would shut us out for ever.
    if (beside === null || isSameFile(dirname(main), dirname(beside))) return;
    try {
      const second = await acquireLock(beside, Math.max(0, until - this.#ctx.clock.monotonic()), signal);
      if (second) this.#locks.push(second);
      else for (const held of this.#locks.splice(0)) held.release();
    } catch (error) {
      if (error instanceof Failed) throw error;
      this.#recorder.warn(lockWarning(beside, error));
    }
  }

  /** Writes the record, tells people, closes everything, says the last word. */
  async finish(verdict: Verdict, resources: RunRecord['resources'], signal: AbortSignal, ended: () => void): Promise<ExitCode> {
    const { output } = this.#ctx;
    const isRefused = !this.#opened;
    if (isRefused) await this.#openLate(signal);
    if (verdict.failure) {
      output.error(verdict.failure, verdict.failedStage);
      const written = this.#recorder.record(verdict, resources).error;
      this.#log.write('error', written?.message ?? '', {
        code: verdict.failure.code,
        hint: written?.hint,
        stack: verdict.failure.code === 'INTERNAL' ? verdict.failure.stack : undefined,
      });
    }
    const record = this.#recorder.record(verdict, resources);
    // Of one that never began there is no record yet.
    if (isRefused) this.#save(record);
    // Telling can take half a minute: what came of the run is written down before, and not before its messages are queued. Killed in
    // between, it is told twice; the other way round nobody would hear of it.
    const untold = await this.#recorder.report(() => this.#teller.tell(record, signal, () => this.#save(record)));
    const final = this.#finalVerdict(verdict, untold, signal);
    if (final.failure !== verdict.failure && (final.failure?.code === 'INTERRUPTED' || final.failure?.code === 'TIMEOUT')) {
      this.#teller.takeBack(this.#recorder.record(final, resources));
    }
    this.#log.write('info', `ends: ${final.status}, exit ${final.exitCode}`, { durationMs: this.#recorder.elapsedMs(), ...resources });
    await this.#logOpening;
    const logProblem = await this.#log.close();
    if (logProblem !== null) this.#recorder.warn(warning('STATE_UNWRITABLE', `the log in ${this.#config.logDir} is incomplete: ${logProblem}`));
    const told = this.#recorder.record(final, resources);
    this.#save(told);
    this.#measure(told);
    this.#history?.close();
    // Last, and under the lock: also where no record could be written it says that this was no kill.
    ended();
    for (const lock of this.#locks) lock.release();
    this.#alive?.release();
    // Once more, since saving itself may have added a remark.
    const last = { ...told, warnings: this.#recorder.warnings };
    output.document(this.#document ? this.#document(last) : last);
    return final.exitCode;
  }

  /** A message that could not be delivered turns 0 into 3, nothing else; a signal while it was sent still ends the run. */
  #finalVerdict(verdict: Verdict, untold: Failure | null, signal: AbortSignal): Verdict {
    const { output } = this.#ctx;
    // Of what only came short after publication, the signal is told first: it says why nothing more was tried.
    if (signal.aborted && (verdict.failure === null || (verdict.exitCode === 3 && this.#ctx.signal.aborted))) {
      if (verdict.failure) this.#recorder.warn(critical(verdict.failure.code, describe(verdict.failure).message));
      const failure = verdict.failure === null ? afterAll(failureOf(signal.reason), this.#recorder) : failureOf(signal.reason);
      const ended = judge(this.#ctx, { failure, stage: 'report' }, this.#recorder);
      if (ended.failure) output.error(ended.failure, 'report');
      // The work itself was done, in time: what is incomplete is that nobody may have heard of it.
      return ended.exitCode === 1 ? { ...ended, status: 'incomplete', exitCode: 3 } : ended;
    }
    if (!untold) return verdict;
    if (verdict.exitCode === 0) {
      output.error(untold, 'report');
      return { status: 'incomplete', exitCode: 3, failure: untold, failedStage: 'report' };
    }
    this.#recorder.warn(warning('NOTIFY_FAILED', describe(untold).message));
    return verdict;
  }

  /** History and outbox; what cannot be written is remarked on once and then done without. */
  #openState(): void {
    this.#opened = true;
    this.#stateDir = this.#config.stateDir;
    try {
      this.#history = History.openToWrite(this.#config.stateDir, this.#config.to);
    } catch (error) {
      this.unwritable(error);
    }
  }

  /** A run that failed before its lock still leaves a record, where the directory is ours or can be made. */
  async #openLate(signal: AbortSignal): Promise<void> {
    try {
      if (!makeLateState(this.#ctx, { ...this.#config, command: this.#recorder.command })) return;
    } catch (error) {
      this.unwritable(error);
      return;
    }
    this.#openState();
    this.#logOpening = this.#log.open(this.#config.logDir, this.#config.logKeepMs, this.#ctx.identity.uid);
    await this.#lookForDead(signal);
  }

  /** Whether a killed run of this name has left a workspace. */
  #hasDead(): boolean {
    const root = tempRoot(this.#config.to);
    return listing(root).some((entry) => parseWorkspace(entry)?.name === this.#name && !isLiving(join(root, entry)));
  }

  /** That an earlier run was killed is told also by one that fails before its lock, where nobody holds that. */
  async #lookForDead(signal: AbortSignal): Promise<void> {
    if (this.#name === '') return;
    try {
      await this.#acquire(signal, 0);
      if (this.#locks.length > 0) await this.#heal(signal);
    } catch {
      // What is in its way, the next one meets that gets as far.
    } finally {
      for (const held of this.#locks.splice(0)) held.release();
    }
  }

  /** After the record is saved, since it counts there; a file that cannot be written is in the record all the same. */
  #measure(told: RunRecord): void {
    const found = { record: told, problems: [], history: this.#history };
    const unwritten = writeMetrics(this.#config, this.#name, found, this.#ctx.clock.now());
    if (!unwritten) return;
    this.#recorder.warn(unwritten);
    this.#save({ ...told, warnings: this.#recorder.warnings });
  }

  unwritable(error: unknown): void {
    this.#recorder.warn(historyWarning(this.#config.stateDir, 'written', error));
  }

  #save(record: RunRecord): void {
    try {
      this.#history?.save(redactRecord(record, this.#ctx.output.redact));
      if (record.finishedAt !== null) this.#history?.trim(this.#name);
    } catch (error) {
      this.unwritable(error);
    }
  }

  /** What killed runs of this name left is put right and told; what says that they were killed goes last. */
  async #heal(signal: AbortSignal): Promise<void> {
    const { to, stateDir } = this.#config;
    const { runs, clear } = await recover(to, stateDir, this.#name, signal, (w) => this.#recorder.warn(w));
    // What another state directory may have on record is only emptied: that it is there says that the run was killed.
    const isElsewhere = isStateElsewhere(to, stateDir);
    if (this.#buryDead(runs)) clear((runId) => !isElsewhere || this.#history?.knows(runId) === true);
  }

  /** We hold the lock, so whatever still says "running" is dead: recorded, and told by this run. False where that could not be written down. */
  #buryDead(left: ReadonlyMap<string, Copy | null>): boolean {
    const { stateDir } = this.#config;
    try {
      const unsettled = this.#history?.unsettled(this.#name) ?? [];
      for (const { record: dead, to: theirs, hasEnded } of this.#history?.unfinished(this.#name, 'held') ?? []) {
        if (hasEnded) {
          this.#history?.save(asUnrecorded(dead, copyOfRun(theirs, this.#name, dead.runId)));
          continue;
        }
        const record = redactRecord(
          asKilled(dead, left.get(dead.runId) ?? copyOfRun(theirs, this.#name, dead.runId), whereabouts(theirs, stateDir), unsettled),
          this.#ctx.output.redact,
        );
        // What a killed restore was making beside its database: a run sweeps beside its own alone, and may not come so far.
        const beside = record.command === 'restore' ? (record.restored?.target ?? record.source?.path) : undefined;
        if (beside !== undefined) sweepStaging(dirname(beside));
        this.#saveAndTell(record, theirs);
        this.#log.write('warn', `run ${dead.runId} of ${dead.startedAt} was killed`);
        // A killed run has left nothing that matters; what these left is for a person to look at, now.
        if (record.command === 'restore' || record.command === 'guard') {
          this.#recorder.warn(critical('LAST_RUN_DIED', `${record.error?.message ?? ''} (${record.startedAt}): ${record.error?.hint ?? ''}`));
        }
      }
      return this.#history !== null;
    } catch (error) {
      this.unwritable(error);
      return false;
    }
  }

  /**
   * A killed run, and the message about it: into the outbox, or, where that cannot be, beside what this run tells of itself. Queued before it
   * is on record, since from then on nobody asks again whether it was told; where that cannot be written, the next run tells it.
   */
  #saveAndTell(dead: RunRecord, to: string): void {
    const { telling, stateDir, database } = this.#config;
    const about = { ...whereabouts(to, stateDir), database, logLines: [], again: 'nothing' } as const;
    const isTold = this.#history?.wasTold(`run ${dead.runId}`) === true;
    const letters = isTold ? [] : lettersFor(this.#ctx, telling, dead, { events: ['failure'], news: null }, about);
    const kept = letters.filter((letter) => keep(this.#stateDir, letter, (w) => this.#recorder.warn(w)));
    try {
      this.#history?.save(dead);
    } catch (error) {
      takeOut(this.#stateDir, this.#name, kept);
      throw error;
    }
    if (kept.length > 0) this.#teller.noteTold(dead);
    this.#teller.owe(
      dead,
      letters.filter((letter) => !kept.includes(letter)),
    );
  }

  #holder(): string | null {
    try {
      const running = this.#history?.runs(this.#name, 5).find((r) => r.status === 'running');
      return running ? `${running.command} since ${running.startedAt}` : null;
    } catch {
      return null;
    }
  }
}
