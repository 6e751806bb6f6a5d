/** Keeps a run's record while it grows: stages with their times, remarks, and what came of it. Alone writes to it. */
import type { SourceState } from './artifacts.js';
import type { Context } from './context.js';
import type { RunLog } from './log.js';
import type { ExitCode, Failure, StageName, Warning } from './outcome.js';
import { describe, failureOf } from './outcome.js';
import type { CommandName, Copy, Kept, Pruned, Restored, RunRecord, RunStatus, SourceFacts, StageRecord, UploadResult } from './records.js';
import { SCHEMA_VERSION } from './records.js';

export interface Verdict {
  readonly status: RunStatus;
  readonly exitCode: ExitCode;
  readonly failure: Failure | null;
  readonly failedStage: StageName | null;
}

/** The growing record of one run. */
export class Recorder {
  readonly runId: string;
  readonly startedAt: Date;
  readonly #ctx: Context;
  readonly #log: RunLog;
  readonly #began: number;
  readonly #about: { readonly command: CommandName; readonly name: string | null; readonly profile: string | null; readonly dryRun: boolean };
  readonly #stages: StageRecord[] = [];
  readonly #warnings: Warning[] = [];
  #current: StageName | null = null;
  #source: SourceFacts | null = null;
  #copy: Copy | null = null;
  #kept: readonly Kept[] = [];
  #pruned: readonly Pruned[] = [];
  #plan: RunRecord['plan'];
  #more: Partial<RunRecord> = {};
  #attempts = 1;

  constructor(ctx: Context, log: RunLog, runId: string, about: { command: CommandName; name: string | null; profile: string | null; dryRun: boolean }) {
    this.#ctx = ctx;
    this.#log = log;
    this.#about = about;
    this.runId = runId;
    this.startedAt = ctx.clock.now();
    this.#began = ctx.clock.monotonic();
  }

  /** Milliseconds since the run began. */
  elapsedMs(): number {
    return Math.round(this.#ctx.clock.monotonic() - this.#began);
  }

  /** The stage at work, which is the one that failed when something is thrown. */
  get current(): StageName | null {
    return this.#current;
  }

  get uploads(): readonly UploadResult[] {
    return this.#more.uploads ?? [];
  }

  /** What was put where; null: nothing was. */
  get restored(): Restored | null {
    return this.#more.restored ?? null;
  }

  /** The size of the database, bytes. */
  get sourceBytes(): number {
    return this.#source?.sizeBytes ?? 0;
  }

  get command(): CommandName {
    return this.#about.command;
  }

  /** Whether such a stage has ended, in whatever way. */
  has(name: StageName): boolean {
    return this.#stages.some((s) => s.name === name);
  }

  get rolledBack(): boolean {
    return this.#more.rolledBack === true;
  }

  get copy(): Copy | null {
    return this.#copy;
  }

  get warnings(): readonly Warning[] {
    return this.#warnings;
  }

  /** Runs a stage, times it, and says one line about it. */
  async stage<T>(name: StageName, work: () => T | Promise<T>, note: (result: T) => string): Promise<T> {
    const began = this.#ctx.clock.monotonic();
    this.#current = name;
    const done = (status: StageRecord['status']): number => {
      const durationMs = Math.round(this.#ctx.clock.monotonic() - began);
      this.#stages.push({ name, status, durationMs });
      return durationMs;
    };
    try {
      const result = await work();
      const durationMs = done('ok');
      const said = note(result);
      this.#ctx.output.stage(name, durationMs, said);
      this.#log.write('info', said, { stage: name, durationMs });
      this.#current = null;
      return result;
    } catch (error) {
      const durationMs = done('failed');
      this.#log.write('error', `${name} failed: ${failureOf(error).code}`, { stage: name, durationMs });
      throw error;
    }
  }

  /** More of a stage that has its line and its time already: what is thrown there is that stage's failure. */
  async within<T>(name: StageName, work: () => T | Promise<T>): Promise<T> {
    this.#current = name;
    const result = await work();
    this.#current = null;
    return result;
  }

  /** The last stage: returns what could not be told, and says nothing itself. */
  async report(tell: () => Promise<Failure | null>): Promise<Failure | null> {
    const began = this.#ctx.clock.monotonic();
    const untold = await tell();
    this.#stages.push({ name: 'report', status: untold ? 'failed' : 'ok', durationMs: Math.round(this.#ctx.clock.monotonic() - began) });
    return untold;
  }

  /** For a stage that reports its failure as a value. */
  #markFailed(name: StageName): void {
    const last = this.#stages.findLastIndex((s) => s.name === name);
    const stage = this.#stages[last];
    if (stage) this.#stages[last] = { ...stage, status: 'failed' };
  }

  /** The same remark is made once. */
  warn(w: Warning): void {
    if (this.#warnings.some((known) => known.code === w.code && known.message === w.message)) return;
    this.#warnings.push(w);
    this.#ctx.output.warning(w);
    this.#log.write('warn', w.message, { code: w.code, severity: w.severity });
  }

  /** The number of the attempt under way; 1 is the first. */
  get attempts(): number {
    return this.#attempts;
  }

  nextAttempt(): void {
    this.#attempts++;
  }

  setSource(s: SourceState): void {
    this.#source = { path: s.path, sizeBytes: s.sizeBytes, walBytes: s.walBytes, journalMode: s.journalMode, pageSize: s.pageSize };
  }

  setCopy(copy: Copy): void {
    this.#copy = copy;
  }

  setPruned(result: { readonly kept: readonly Kept[]; readonly pruned: readonly Pruned[]; readonly failure?: Failure | null }): void {
    this.#kept = result.kept;
    this.#pruned = result.pruned;
    if (result.failure) this.#markFailed('prune');
  }

  setUploads(uploads: readonly UploadResult[], failure: Failure | null): void {
    this.add({ uploads });
    if (failure) this.#markFailed('upload');
  }

  setPlan(plan: NonNullable<RunRecord['plan']>): void {
    this.#plan = plan;
  }

  /** What only some commands have to say. Later values replace earlier ones. */
  add(
    more: Pick<
      RunRecord,
      'uploads' | 'freeBytes' | 'results' | 'restored' | 'guarded' | 'backupPoint' | 'child' | 'checks' | 'tables' | 'rolledBack' | 'setAside'
    >,
  ): void {
    this.#more = { ...this.#more, ...more };
  }

  /** Adds to what was restored. */
  addRestored(more: Partial<Restored>): void {
    const nothing: Restored = { file: '', target: '', safetyCopy: null, setAside: [] };
    this.add({ restored: { ...nothing, ...this.#more.restored, ...more } });
  }

  /** The record as it stands; with a verdict it is finished. */
  record(verdict: Verdict | null, resources: RunRecord['resources']): RunRecord {
    const { failure, failedStage } = verdict ?? { failure: null, failedStage: null };
    return {
      schemaVersion: SCHEMA_VERSION,
      command: this.#about.command,
      runId: this.runId,
      name: this.#about.name,
      profile: this.#about.profile,
      status: verdict?.status ?? 'running',
      dryRun: this.#about.dryRun,
      startedAt: this.startedAt.toISOString(),
      finishedAt: verdict ? this.#ctx.clock.now().toISOString() : null,
      durationMs: verdict ? this.elapsedMs() : null,
      exitCode: verdict?.exitCode ?? null,
      attempts: this.#attempts,
      source: this.#source,
      copy: this.#copy,
      stages: [...this.#stages],
      kept: this.#kept,
      pruned: this.#pruned,
      warnings: [...this.#warnings],
      error: failure ? { code: failure.code, stage: failedStage, ...describe(failure) } : null,
      resources,
      ...(this.#plan ? { plan: this.#plan } : {}),
      ...this.#more,
    };
  }
}
