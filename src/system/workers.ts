/** Asks and ends SQLite children. Their start is in start-worker.ts. */
import type { ChildProcess } from 'node:child_process';
import { Readable } from 'node:stream';
import { lastWords, onLines } from './lines.js';
import { anonBytesOf, cpuMsOf } from './memory.js';
import type { StartedWorker } from './start-worker.js';
import { startWorker } from './start-worker.js';
import type { Answers, Reply, Request, WorkerError } from './worker-protocol.js';

/** The request could be answered, and the answer is an error of SQLite or the system. */
export class RequestFailed extends Error {
  readonly detail: WorkerError;
  constructor(detail: WorkerError) {
    super(detail.message);
    this.name = 'RequestFailed';
    this.detail = detail;
  }
}

/** The child ended without an answer. */
export class ChildDied extends Error {
  readonly signal: NodeJS.Signals | null;
  constructor(signal: NodeJS.Signals | null, code: number | null, stderr: string) {
    // Who is killed says nothing; who aborts says why.
    const said = signal && stderr.trim() !== '' ? `: ${lastWords(stderr)}` : '';
    super(signal ? `the SQLite process was ended by ${signal}${said}` : `the SQLite process ended with ${code}: ${lastWords(stderr)}`);
    this.name = 'ChildDied';
    this.signal = signal;
  }
}

/** A program that a run needs is not there. */
export class MissingProgram extends Error {}

/** One child process; answers requests in the order they come. */
export class Worker {
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;
  readonly #waiting: { done: (value: unknown) => void; fail: (error: Error) => void }[] = [];
  #told: () => void = () => undefined;
  #cpuMs = 0;
  #anonBytes = 0;
  #death: Error | null = null;

  constructor({ child, ended }: StartedWorker) {
    this.#child = child;
    child.stdin?.on('error', () => undefined);
    // Where descriptors or processes have run out there is nothing of it, and "ended" says why.
    const [, , , answers] = (child.stdio as ChildProcess['stdio'] | undefined) ?? [];
    if (answers instanceof Readable) onLines(answers, (line) => this.#receive(line));
    else if (child.pid !== undefined) throw new Error('no channel to the SQLite process');
    this.#ended = ended.then(({ error, signal, code, said }) => this.#fail(error ?? new ChildDied(signal, code, said)));
  }

  get pid(): number | null {
    return this.#child.pid ?? null;
  }

  /** CPU so far, milliseconds, as of its last answer. */
  get cpuMs(): number {
    return this.#cpuMs;
  }

  /** Anonymous memory, bytes: now, or as of its last answer when the child is gone. */
  anonBytes(): number {
    return (this.pid === null ? 0 : anonBytesOf(this.pid)) || this.#anonBytes;
  }

  /** Calls back after each answer. */
  onAnswer(told: () => void): void {
    this.#told = told;
  }

  /** Sends a request. Rejects with RequestFailed, or with ChildDied when the child was killed. */
  async ask<O extends Request['op']>(request: Extract<Request, { op: O }>): Promise<Answers[O]> {
    const value = await new Promise<unknown>((done, fail) => {
      if (this.#death) {
        fail(this.#death);
        return;
      }
      this.#waiting.push({ done, fail });
      this.#child.stdin?.write(`${JSON.stringify(request)}\n`);
    });
    return value as Answers[O];
  }

  /** Ends the child at once, also in the middle of a statement, and waits until it is gone. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }

  #receive(line: string): void {
    const reply = JSON.parse(line) as Reply;
    this.#cpuMs = reply.cpuMs;
    this.#anonBytes = reply.anonBytes;
    this.#told();
    const waiting = this.#waiting.shift();
    if (reply.ok) waiting?.done(reply.value);
    else waiting?.fail(new RequestFailed(reply.error));
  }

  #fail(error: Error): void {
    this.#death ??= error;
    for (const { fail } of this.#waiting.splice(0)) fail(error);
  }
}

/**
 * The children of one run: started when asked for, counted (CPU milliseconds; the peak of anonymous memory over all our
 * processes, bytes), all killed at the end or when the signal aborts.
 */
export class WorkerPool {
  readonly #env: NodeJS.ProcessEnv;
  readonly #signal: AbortSignal;
  readonly #live = new Set<Worker>();
  readonly #numbered = new Map<0 | 1, Worker>();
  readonly #sampler: NodeJS.Timeout;
  /** Programs of others: CPU milliseconds by process, as last seen. */
  readonly #watched = new Map<number, number>();
  #goneCpuMs = 0;
  #peakAnonBytes = 0;

  /**
   * @param signal when it aborts, all children are killed, and what waits for them rejects
   * @param early a child that was started before the pool, to save its start-up time
   */
  constructor(env: NodeJS.ProcessEnv, signal: AbortSignal, early: StartedWorker | null) {
    this.#env = env;
    this.#signal = signal;
    if (early) this.#adopt(0, early);
    signal.addEventListener('abort', () => void this.killAll(), { once: true });
    this.#sampler = setInterval(() => this.#sample(), 100);
    this.#sampler.unref();
  }

  /** Child number `n` of this run, started when it is not there. */
  worker(n: 0 | 1): Worker {
    this.#signal.throwIfAborted();
    const there = this.#numbered.get(n);
    if (there) return there;
    const started = startWorker(this.#env);
    if (!started) throw new MissingProgram('setpriv (package util-linux) is not installed; without it a SQLite process could outlive a killed run');
    return this.#adopt(n, started);
  }

  #adopt(n: 0 | 1, started: StartedWorker): Worker {
    const worker = new Worker(started);
    worker.onAnswer(() => this.#sample());
    this.#numbered.set(n, worker);
    this.#live.add(worker);
    return worker;
  }

  /** Ends all children and waits until they are gone; the next `worker` starts fresh ones. */
  async killAll(): Promise<void> {
    const live = [...this.#live];
    this.#goneCpuMs += live.reduce((sum, w) => sum + w.cpuMs, 0);
    this.#numbered.clear();
    this.#live.clear();
    await Promise.all(live.map((w) => w.kill()));
  }

  async close(): Promise<void> {
    clearInterval(this.#sampler);
    await this.killAll();
  }

  /** Counts a process that is not one of these children. */
  watch(pid: number): void {
    this.#watched.set(pid, 0);
  }

  /** CPU of parent and children so far, and the peak of anonymous memory. */
  resources(): { cpuMs: number; peakAnonBytes: number } {
    this.#sample();
    const { user, system } = process.cpuUsage();
    const programs = [...this.#watched.values()].reduce((sum, ms) => sum + ms, 0);
    const children = [...this.#live].reduce((sum, w) => sum + w.cpuMs, this.#goneCpuMs) + programs;
    return { cpuMs: Math.round((user + system) / 1000) + children, peakAnonBytes: this.#peakAnonBytes };
  }

  #sample(): void {
    let sum = [...this.#live].reduce((total, w) => total + w.anonBytes(), anonBytesOf('self'));
    for (const [pid, seen] of this.#watched) {
      sum += anonBytesOf(pid);
      this.#watched.set(pid, Math.max(seen, cpuMsOf(pid)));
    }
    this.#peakAnonBytes = Math.max(this.#peakAnonBytes, sum);
  }
}
