/**
 * The guarded command: run without a shell, with its own standard input, output and error, in our process group, so that a
 * terminal stays its terminal. `setpriv --pdeathsig KILL` ends it when we are killed (traps, 41). What ends it early is
 * passed to it first, and KILL follows for all that it started.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import type { Warning } from '../outcome.js';
import { Failed, warning } from '../outcome.js';
import type { ChildResult } from '../records.js';
import { ProcessTree, passSignals } from '../system/process-tree.js';
import { findSetpriv } from '../system/start-worker.js';

export interface CommandInput {
  readonly words: readonly string[];
  /** Without our secrets. */
  readonly env: NodeJS.ProcessEnv;
  /** The file mode mask that we were started with. */
  readonly umask: number;
  /** With --json our standard output carries one document and nothing else. */
  readonly stdoutTo: 'stdout' | 'stderr';
  /** Milliseconds. */
  readonly timeoutMs: number | null;
  /** Bytes. */
  readonly memoryLimitBytes: number | null;
  /** Aborts at a signal and at the time limit of the whole run. */
  readonly signal: AbortSignal;
  readonly runId: string;
  readonly monotonic: () => number;
  readonly warn: (w: Warning) => void;
}

export interface CommandEnd {
  readonly child: ChildResult;
  /** `exited with 1`; null: it exited with 0 and was not made to. */
  readonly how: string | null;
  readonly tree: ProcessTree;
}

/** By this variable processes of the command are known that no longer descend from it. */
const MARKER = 'GUARDED_RUN';
const SAMPLE_MS = 100;
/** Between TERM and KILL. */
const GRACE_MS = 5000;
/** The same after a signal to us, which ends within 2 s (DESIGN, "Exit codes"): what the command leaves half done is rolled back. */
const SIGNAL_GRACE_MS = 1000;
/** The machine may not have five seconds left. */
const MEMORY_GRACE_MS = 1000;

/** Runs the command to its end. Throws only where it could not be started. */
export async function runCommand(input: CommandInput): Promise<CommandEnd> {
  const began = input.monotonic();
  const child = start(input);
  const ended = new Promise<{ exitCode: number | null; signal: NodeJS.Signals | null }>((done, fail) => {
    child.once('error', fail);
    child.once('exit', (exitCode, signal) => done({ exitCode, signal }));
  });
  const tree = new ProcessTree(child.pid ?? 0, `${MARKER}=${input.runId}`);
  const watch = new Watch(input, tree);
  // To all of them, as a terminal does: a shell that waits for its child hears nothing.
  const stopPassing = passSignals((signal) => {
    tree.signal(signal);
    watch.killLater(SIGNAL_GRACE_MS);
  });
  try {
    const { exitCode, signal } = await ended;
    const durationMs = Math.round(input.monotonic() - began);
    const how = watch.reason ?? (signal ? `was ended by ${signal}` : exitCode === 0 ? null : `exited with ${exitCode}`);
    return { child: { exitCode, signal, durationMs, peakAnonBytes: watch.peakAnonBytes }, how, tree };
  } finally {
    stopPassing();
    watch.stop();
  }
}

function start(input: CommandInput): ChildProcess {
  const setpriv = findSetpriv();
  if (setpriv === null) throw new Failed({ code: 'IO_ERROR', path: 'setpriv', reason: 'it is not installed (package util-linux)' });
  const ours = process.umask(input.umask);
  try {
    return spawn(setpriv, ['--pdeathsig', 'KILL', '--', ...input.words], {
      env: { ...input.env, [MARKER]: input.runId },
      stdio: ['inherit', input.stdoutTo === 'stdout' ? 'inherit' : 2, 'inherit'],
    });
  } finally {
    process.umask(ours);
  }
}

/** What ends a command early: its own time limit, ours, its memory limit, a signal. */
class Watch {
  readonly #input: CommandInput;
  readonly #tree: ProcessTree;
  readonly #sampler: NodeJS.Timeout;
  readonly #limit: NodeJS.Timeout | null;
  readonly #onAbort: () => void;
  #killer: NodeJS.Timeout | null = null;
  #warned = false;
  #peakAnonBytes = 0;
  #reason: string | null = null;

  constructor(input: CommandInput, tree: ProcessTree) {
    this.#input = input;
    this.#tree = tree;
    this.#sampler = setInterval(() => this.#sample(), SAMPLE_MS);
    const { timeoutMs, signal } = input;
    this.#limit =
      timeoutMs === null
        ? null
        : setTimeout(() => this.#end(`ran longer than ${timeoutMs / 1000} s (--command-timeout) and was ended`, GRACE_MS), Math.min(timeoutMs, 0x7fffffff));
    this.#onAbort = () => {
      const why: unknown = signal.reason;
      // Signals are passed on as they come; this is for the time limit of the run.
      if (why instanceof Failed && why.failure.code === 'INTERRUPTED') this.#reason ??= `was ended by ${why.failure.signal}`;
      else this.#end('was ended, because the time limit of the run (--timeout) had passed', GRACE_MS);
    };
    if (signal.aborted) this.#end('was ended before it could begin', GRACE_MS);
    else signal.addEventListener('abort', this.#onAbort, { once: true });
    this.#sample();
  }

  get peakAnonBytes(): number {
    return this.#peakAnonBytes;
  }

  /** Why it was ended; null: it ended by itself. */
  get reason(): string | null {
    return this.#reason;
  }

  stop(): void {
    clearInterval(this.#sampler);
    if (this.#limit) clearTimeout(this.#limit);
    if (this.#killer) clearTimeout(this.#killer);
    this.#input.signal.removeEventListener('abort', this.#onAbort);
  }

  killLater(graceMs: number): void {
    this.#killer ??= setTimeout(() => this.#tree.signal('SIGKILL', true), graceMs);
  }

  #end(reason: string, graceMs: number): void {
    if (this.#reason !== null) return;
    this.#reason = reason;
    this.#tree.signal('SIGTERM');
    this.killLater(graceMs);
  }

  #sample(): void {
    const now = this.#tree.anonBytes();
    this.#peakAnonBytes = Math.max(this.#peakAnonBytes, now);
    const limit = this.#input.memoryLimitBytes;
    if (limit === null) return;
    const mb = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
    if (now > limit) this.#end(`used ${mb(now)} of memory, more than ${mb(limit)} (--memory-limit), and was ended`, MEMORY_GRACE_MS);
    else if (now > 0.8 * limit && !this.#warned) {
      this.#warned = true;
      this.#input.warn(warning('MEMORY_HIGH', `the command uses ${mb(now)} of memory; at ${mb(limit)} it is ended (--memory-limit)`));
    }
  }
}
