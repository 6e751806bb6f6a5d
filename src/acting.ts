/**
 * The frame around every acting command: time limit, lock, history, log, messages, clean-up, exit code. The command
 * itself is the body, a straight list of stages. Whatever the body does, what follows it here happens.
 */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { isFailure } from './artifacts.js';
import type { Context } from './context.js';
import { asKilled, History } from './history.js';
import { RunLog } from './log.js';
import type { ExitCode, Failure, StageName } from './outcome.js';
import { describe, errnoWords, exitCodeOf, Failed, failureOf, targetFailure, warning } from './outcome.js';
import { pruneLine } from './plan.js';
import type { Verdict } from './recorder.js';
import { Recorder } from './recorder.js';
import type { CommandName, RunRecord } from './records.js';
import { recover } from './recover.js';
import { redactValue } from './redact.js';
import type { Config } from './settings/load.js';
import { inspectTarget } from './stages/inspect.js';
import { composeFor, deliver, eventOf, keep, sendNow } from './stages/report.js';
import { lstatOrNull, makeDirectories, makePrivateDirectory, removeTree } from './system/files.js';
import type { Lock } from './system/lock.js';
import { acquireLock } from './system/lock.js';
import { WorkerPool } from './system/workers.js';
import type { Workspace } from './workspace.js';
import { tempRoot, workspace } from './workspace.js';

/** What a body works with. */
export interface Acting {
  readonly ctx: Context;
  readonly config: Config;
  readonly name: string;
  readonly recorder: Recorder;
  readonly pool: WorkerPool;
  readonly workspace: Workspace;
  /** Aborts at a signal and at the time limit, with the failure as its reason. */
  readonly signal: AbortSignal;
  /** The line that would make room, for hints. */
  readonly prune: string;
  /** Takes the lock, puts right what a killed run left, makes the workspace, writes the first record. Before it, nothing is changed. */
  begin(): Promise<void>;
}

/** What the body came to. `skip`: nothing was to be done, and why. */
export type BodyResult = { readonly skip: string } | { readonly failure: Failure | null; readonly stage: StageName | null };

export async function act(ctx: Context, config: Config, command: CommandName, name: string, body: (acting: Acting) => Promise<BodyResult>): Promise<ExitCode> {
  const runId = randomUUID();
  const log = new RunLog({ runId, name, command }, () => ctx.clock.now(), ctx.output.redact);
  const recorder = new Recorder(ctx, log, runId, { command, name, profile: config.profile, dryRun: false });
  const limit = new AbortController();
  const timer = setTimeout(
    () => limit.abort(new Failed({ code: 'TIMEOUT', afterMs: config.timeoutMs, published: null })),
    Math.min(config.timeoutMs, 0x7fffffff),
  );
  const signal = AbortSignal.any([ctx.signal, limit.signal]);
  const state = new State(ctx, config, name, recorder, log);
  const acting: Acting = {
    ctx,
    config,
    name,
    recorder,
    signal,
    pool: new WorkerPool(ctx.childEnv, signal, ctx.earlyWorker),
    workspace: workspace(config.to, name, runId),
    prune: pruneLine(config, name),
    begin: () => state.begin(signal, acting.workspace),
  };
  log.write('info', `${command} begins`, { tool: ctx.tool, pid: process.pid });
  let verdict: Verdict;
  try {
    signal.throwIfAborted();
    verdict = judge(ctx, await body(acting), recorder);
  } catch (error) {
    verdict = judge(ctx, { failure: failureOf(error), stage: recorder.current }, recorder);
  } finally {
    clearTimeout(timer);
    await acting.pool.close();
    removeQuietly(acting.workspace.directory);
  }
  return await state.finish(verdict, acting.pool.resources());
}

function removeQuietly(directory: string): void {
  try {
    removeTree(directory);
  } catch {
    // The next run sweeps it.
  }
}

function judge(ctx: Context, result: BodyResult, recorder: Recorder): Verdict {
  if ('skip' in result) {
    ctx.output.info(`nothing to do: ${result.skip}`);
    return { status: 'skipped', exitCode: 0, failure: null, failedStage: null };
  }
  const published = recorder.copy?.status === 'good' ? recorder.copy.file : null;
  const failure = withCopy(result.failure, published);
  if (!failure) return { status: 'ok', exitCode: 0, failure: null, failedStage: null };
  const exitCode = exitCodeOf(failure, published !== null);
  const status = failure.code === 'INTERRUPTED' ? 'interrupted' : exitCode === 3 ? 'incomplete' : 'failed';
  return { status, exitCode, failure, failedStage: result.stage };
}

/** A run that ends after publication says which copy it made. */
const withCopy = (failure: Failure | null, published: string | null): Failure | null =>
  failure && (failure.code === 'TIMEOUT' || failure.code === 'INTERRUPTED') ? { ...failure, published } : failure;

/** Lock, history, log and outbox of one run: opened when it is time, and closed in the right order. */
class State {
  readonly #ctx: Context;
  readonly #config: Config;
  readonly #name: string;
  readonly #recorder: Recorder;
  readonly #log: RunLog;
  #lock: Lock | null = null;
  #history: History | null = null;
  #logOpening: Promise<void> = Promise.resolve();
  #stateDir: string | null = null;

  constructor(ctx: Context, config: Config, name: string, recorder: Recorder, log: RunLog) {
    this.#ctx = ctx;
    this.#config = config;
    this.#name = name;
    this.#recorder = recorder;
    this.#log = log;
  }

  async begin(signal: AbortSignal, place: Workspace): Promise<void> {
    const { to, stateDir, lockWaitMs } = this.#config;
    const unsupported = (what: string): void => this.#recorder.warn(warning('SYNC_UNSUPPORTED', `${what} is not supported by this file system`));
    try {
      makeDirectories(to, unsupported);
      makeDirectories(stateDir, unsupported);
      makePrivateDirectory(join(to, '.dbbackup'));
      makePrivateDirectory(tempRoot(to));
      this.#lock = await acquireLock(join(stateDir, `${this.#name}.lock.db`), lockWaitMs, signal);
    } catch (error) {
      if (error instanceof Failed) throw error;
      const failure = targetFailure(error, stateDir, pruneLine(this.#config, this.#name));
      // SQLite's own errors have codes that are no errno: a lock that cannot be made is a directory that cannot be used.
      throw new Failed(
        failure.code === 'IO_ERROR' || failure.code === 'INTERNAL' ? { code: 'TARGET_UNWRITABLE', path: stateDir, reason: errnoWords(error) } : failure,
        { cause: error },
      );
    }
    this.#openState();
    // Not awaited: loading winston goes on beside the snapshot.
    this.#logOpening = this.#log.open(this.#config.logDir, this.#config.logKeepMs, this.#ctx.identity.uid);
    if (!this.#lock) throw new Failed({ code: 'LOCKED', name: this.#name, holder: this.#holder() });
    try {
      const { runs } = await recover(to, this.#name, signal, (w) => this.#recorder.warn(w));
      this.#buryDead(runs);
      this.#save(this.#recorder.record(null, { cpuMs: 0, peakAnonBytes: 0 }));
      makePrivateDirectory(place.directory);
    } catch (error) {
      throw new Failed(targetFailure(error, to, pruneLine(this.#config, this.#name)), { cause: error });
    }
  }

  /** Writes the record, tells people, closes everything, says the last word. */
  async finish(verdict: Verdict, resources: RunRecord['resources']): Promise<ExitCode> {
    const { output } = this.#ctx;
    if (!this.#history && verdict.failure?.code !== 'LOCKED') this.#openLate();
    if (verdict.failure) {
      output.error(verdict.failure, verdict.failedStage);
      const written = this.#recorder.record(verdict, resources).error;
      this.#log.write('error', written?.message ?? '', {
        code: verdict.failure.code,
        hint: written?.hint,
        stack: verdict.failure.code === 'INTERNAL' ? verdict.failure.stack : undefined,
      });
    }
    this.#log.write('info', `ends: ${verdict.status}, exit ${verdict.exitCode}`, { durationMs: this.#recorder.elapsedMs(), ...resources });
    const record = this.#recorder.record(verdict, resources);
    // Telling can take half a minute: what came of the run is written down before.
    if (this.#config.mail) this.#save(record);
    const untold = await this.#recorder.report(() => this.#tell(record));
    await this.#logOpening;
    const logProblem = await this.#log.close();
    if (logProblem !== null) this.#recorder.warn(warning('STATE_UNWRITABLE', `the log in ${this.#config.logDir} is incomplete: ${logProblem}`));
    const final = this.#finalVerdict(verdict, untold);
    const told = this.#recorder.record(final, resources);
    this.#save(told);
    this.#history?.close();
    this.#lock?.release();
    // Once more, since saving itself may have added a remark.
    output.document({ ...told, warnings: this.#recorder.warnings });
    return final.exitCode;
  }

  /** A message that could not be delivered turns 0 into 3, nothing else; a signal while it was sent still ends the run. */
  #finalVerdict(verdict: Verdict, untold: Failure | null): Verdict {
    const { output, signal } = this.#ctx;
    if (signal.aborted && verdict.failure === null) {
      return judge(this.#ctx, { failure: failureOf(signal.reason), stage: 'report' }, this.#recorder);
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
    this.#stateDir = this.#config.stateDir;
    try {
      this.#history = History.openToWrite(this.#config.stateDir);
    } catch (error) {
      this.#unwritable(error);
    }
  }

  /** A run that failed before its lock still leaves a record, where the directory is there and ours. Nothing is made for it but state. */
  #openLate(): void {
    const { to, stateDir } = this.#config;
    if (!lstatOrNull(to) || isFailure(inspectTarget(to, stateDir, this.#ctx.identity, this.#ctx.invocation))) return;
    try {
      makeDirectories(stateDir, () => undefined);
    } catch (error) {
      this.#unwritable(error);
      return;
    }
    this.#openState();
    this.#logOpening = this.#log.open(this.#config.logDir, this.#config.logKeepMs, this.#ctx.identity.uid);
  }

  #unwritable(error: unknown): void {
    this.#recorder.warn(warning('STATE_UNWRITABLE', `the history in ${this.#config.stateDir} cannot be written: ${errnoWords(error)}`));
  }

  #save(record: RunRecord): void {
    try {
      this.#history?.save(redactValue(record, this.#ctx.output.redact));
      if (record.finishedAt !== null) this.#history?.trim(this.#name);
    } catch (error) {
      this.#unwritable(error);
    }
  }

  /** We hold the lock, so whatever still says "running" is dead: recorded, and told by this run. */
  #buryDead(completed: ReadonlyMap<string, string | null>): void {
    const { mail, to } = this.#config;
    try {
      for (const dead of this.#history?.unfinished(this.#name, 'held') ?? []) {
        const record = asKilled(dead, completed.get(dead.runId) ?? null);
        this.#history?.save(record);
        this.#log.write('warn', `run ${dead.runId} of ${dead.startedAt} was killed`);
        if (!mail?.on.has('failure') || this.#history?.wasTold(`run ${dead.runId}`)) continue;
        keep(this.#stateDir, composeFor(this.#ctx, record, 'failure', to, []), (w) => this.#recorder.warn(w));
      }
    } catch (error) {
      this.#unwritable(error);
    }
  }

  #holder(): string | null {
    try {
      const running = this.#history?.runs(this.#name, 5).find((r) => r.status === 'running');
      return running ? `${running.command} since ${running.startedAt}` : null;
    } catch {
      return null;
    }
  }

  /** Sends what this run calls for, after what earlier ones could not send. Null: nothing is left to tell. */
  async #tell(record: RunRecord): Promise<Failure | null> {
    const { mail, to } = this.#config;
    if (!mail || record.exitCode === 75) return null;
    const event = this.#eventOf(record);
    const message = event && mail.on.has(event) ? composeFor(this.#ctx, record, event, to, this.#log.tail()) : null;
    const kept = message ? keep(this.#stateDir, message, (w) => this.#recorder.warn(w)) : null;
    // A signal leaves two seconds: the next run sends it.
    if (this.#ctx.signal.aborted) return null;
    if (message && kept === null) {
      const failure = await sendNow(message, mail, this.#ctx);
      if (failure) return failure;
    }
    if (this.#stateDir === null) return null;
    const failure = await deliver(this.#stateDir, this.#name, mail, this.#ctx);
    if (!failure && event === 'failure') this.#noteTold(record);
    return failure;
  }

  #eventOf(record: RunRecord): ReturnType<typeof eventOf> {
    try {
      return eventOf(record, this.#history);
    } catch (error) {
      this.#unwritable(error);
      return eventOf(record, null);
    }
  }

  #noteTold(record: RunRecord): void {
    try {
      this.#history?.noteTold(`run ${record.runId}`, this.#ctx.clock.now());
    } catch (error) {
      this.#unwritable(error);
    }
  }
}
