/** The last stage of a run: who is told of it, on which channel, how often it is tried. What is to be told, `stages/report` composes. */
import type { Context } from './context.js';
import type { History } from './history.js';
import type { RunLog } from './log.js';
import { hasWork, keep, onlyOn, takeOut, tell, together } from './notifiers/delivery.js';
import type { Occasion } from './notifiers/news.js';
import { occasionOf } from './notifiers/news.js';
import type { Letter } from './notifiers/outbox.js';
import { RunPings } from './notifiers/ping.js';
import type { NotifyFailure } from './notifiers/undelivered.js';
import type { Failure, Warning } from './outcome.js';
import { describe, warning } from './outcome.js';
import type { Recorder } from './recorder.js';
import type { RunRecord } from './records.js';
import { again, waitBefore } from './retry.js';
import type { Config } from './settings/load.js';
import { lettersFor } from './stages/report.js';

/** What is known of the state directory by now: null where it cannot be written. */
export interface ToldFrom {
  readonly directory: string | null;
  readonly history: History | null;
  /** Remarks that state could not be written. */
  unwritable(error: unknown): void;
}

/** Tells of one run. */
export class Teller {
  readonly #ctx: Context;
  readonly #config: Config;
  readonly #name: string;
  readonly #recorder: Recorder;
  readonly #log: RunLog;
  readonly #state: ToldFrom;
  #letters: readonly Letter[] = [];
  /** Of killed runs, and nowhere queued. */
  #owed: readonly { readonly record: RunRecord; readonly letters: readonly Letter[] }[] = [];
  /** Only `run` is awaited by somebody who would miss it. */
  readonly #pings: RunPings | null;

  constructor(ctx: Context, config: Config, name: string, recorder: Recorder, log: RunLog, state: ToldFrom) {
    this.#ctx = ctx;
    this.#config = config;
    this.#name = name;
    this.#recorder = recorder;
    this.#log = log;
    this.#state = state;
    const { ping } = config.telling;
    this.#pings = ping && recorder.command === 'run' ? new RunPings(ping, recorder.runId, () => ctx.clock.now()) : null;
  }

  /** Says that the run begins, where somebody waits for that. */
  begin(signal: AbortSignal): void {
    this.#pings?.start(this.#log.tail(), signal);
  }

  /** Messages about an earlier run that could not be queued: they go with what this one tells of itself. */
  owe(record: RunRecord, letters: readonly Letter[]): void {
    if (letters.length > 0) this.#owed = [...this.#owed, { record, letters }];
  }

  /**
   * Sends what this run calls for, after what earlier ones could not send; then pings. Null: nothing is left to tell. Never throws.
   * @param queued called before anything is sent
   */
  async tell(record: RunRecord, signal: AbortSignal, queued: () => void): Promise<Failure | null> {
    const { telling } = this.#config;
    if (record.exitCode === 75) return null;
    const mayTell = hasWork(telling, this.#state.directory);
    if (!mayTell && this.#pings) queued();
    const failure = mayTell ? await this.#tellAll(record, signal, queued) : null;
    // After the others, since what they could not tell is a failure as well. The time limit may have ended them, and so the run.
    const unpinged = await this.#ping(record.exitCode === 0 && failure === null && !signal.aborted ? 'success' : 'fail', this.#ctx.signal);
    return together([failure, unpinged].filter((f) => f !== null));
  }

  async #tellAll(record: RunRecord, signal: AbortSignal, queued: () => void): Promise<NotifyFailure | null> {
    const { telling, to, stateDir, database } = this.#config;
    const occasion = this.#occasionOf(record);
    const letters = lettersFor(this.#ctx, telling, record, occasion, { to, stateDir, database, logLines: this.#log.tail() });
    this.#letters = letters;
    const box = { stateDir: this.#state.directory, name: this.#name };
    const warn = (w: Warning): void => this.#recorder.warn(w);
    const owed = this.#owed.flatMap((of) => of.letters);
    const first = await tell(this.#ctx, telling, box, [...owed, ...letters], warn, signal, queued);
    const told = [first];
    // What was queued is in the outbox: another attempt sends what waits there, on the channels that were not to be reached.
    for (let attempt = 1, last = first; last.unreachable.size > 0 && last.failure?.kept; attempt++) {
      if (!(await this.#again(attempt, last.failure, signal))) break;
      last = await tell(this.#ctx, onlyOn(telling, last.unreachable), box, [], warn, signal);
      told.push(last);
    }
    const isTold = (those: readonly Letter[]): boolean =>
      those.length > 0 && (first.kept || those.some((letter) => told.some(({ heard }) => heard.has(letter.message.id))));
    if (occasion.events.includes('failure') && isTold(letters)) this.noteTold(record);
    for (const of of this.#owed) if (isTold(of.letters)) this.noteTold(of.record);
    // A channel that said no the first time has not been asked again.
    const others = first.failures.filter((f) => !first.unreachable.has(f.channel));
    return told.length === 1 ? first.failure : together([...others.map((f) => f.failure), ...(told.at(-1)?.failures ?? []).map((f) => f.failure)]);
  }

  /** Says how the run ended, where somebody waits for that. A signal leaves no time for it; that no ping comes then is the message. */
  async #ping(event: 'success' | 'fail', signal: AbortSignal): Promise<NotifyFailure | null> {
    if (!this.#pings || signal.aborted) return null;
    for (let attempt = 1; ; attempt++) {
      const { start, end } = await this.#pings.end(event, this.#log.tail(), signal);
      if (end?.mayPass && (await this.#again(attempt, end.failure, signal))) continue;
      // Whoever waits needs the end alone; and what failed on both ways is told once.
      if (start && !end) this.#recorder.warn(warning('NOTIFY_FAILED', describe(start.failure).message));
      return end?.failure ?? null;
    }
  }

  /** Waits for another attempt to tell; false when there is none: `retries` are used up, `timeout` would pass, or a signal came. */
  async #again(attempt: number, failure: NotifyFailure, signal: AbortSignal): Promise<boolean> {
    const { retries, timeoutMs } = this.#config;
    if (signal.aborted || attempt > retries.count || this.#recorder.elapsedMs() + waitBefore(retries, attempt) > timeoutMs) return false;
    try {
      await again({ recorder: this.#recorder, config: this.#config, signal }, attempt, failure);
      this.#recorder.nextAttempt();
      return true;
    } catch {
      // The signal, or the time limit: what was not sent waits for the next run.
      return false;
    }
  }

  /** The run was ended while it told of itself: what of that has not gone out never will, and the next run tells what became of it. */
  takeBack(record: RunRecord): void {
    const { directory } = this.#state;
    if (directory === null) return;
    try {
      takeOut(directory, this.#name, this.#letters);
    } catch (error) {
      this.#state.unwritable(error);
    }
    const { telling, to, stateDir, database } = this.#config;
    const letters = lettersFor(this.#ctx, telling, record, { events: ['failure'], news: null }, { to, stateDir, database, logLines: this.#log.tail() });
    const kept = letters.filter((letter) => keep(directory, letter, (w) => this.#recorder.warn(w)));
    if (kept.length > 0) this.noteTold(record);
  }

  noteTold(record: RunRecord): void {
    try {
      this.#state.history?.noteTold(`run ${record.runId}`, this.#ctx.clock.now());
    } catch (error) {
      this.#state.unwritable(error);
    }
  }

  #occasionOf(record: RunRecord): Occasion {
    try {
      return occasionOf(record, this.#state.history);
    } catch (error) {
      this.#state.unwritable(error);
      return occasionOf(record, null);
    }
  }
}
