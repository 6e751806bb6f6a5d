/**
 * Processes of a destination. The kernel ends them with us even at kill -9 (`setpriv --pdeathsig KILL`), they are a group of their own,
 * so that the whole of it can be ended, and what they say on standard error is kept within bounds and without secrets.
 */
import type { ChildProcess, StdioOptions } from 'node:child_process';
import { spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
import { Transform } from 'node:stream';
import { setTimeout } from 'node:timers/promises';
import { redactor } from '../redact.js';
import { findSetpriv } from '../system/start-worker.js';
import { DestinationError, tooLong } from './destination.js';

const STDERR_MAX = 4000;
const GROUP_TRIES = 40;
const GROUP_WAIT_MS = 5;
/** A killed process that hangs in the kernel, on a dead disk say, may stay for ever: longer than this nobody waits for it. */
const GONE_MS = 700;

export interface End {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** The values of an environment that no message may hold: credentials of AWS and of rclone. */
export function secretsOf(env: NodeJS.ProcessEnv): string[] {
  return Object.entries(env).flatMap(([name, value]) =>
    /^(AWS|RCLONE)_/.test(name) && /PASS|SECRET|TOKEN|KEY|CREDENTIAL|AUTH|BEARER|COOKIE|HEADER|SAS/.test(name) && value ? [value] : [],
  );
}

/** One process and what it started. */
export class Leashed {
  readonly child: ChildProcess;
  /** Resolves when the process is gone and its output was read, or when it was left behind; never rejects. */
  readonly closed: Promise<End>;
  readonly #gone: Promise<void>;
  #leave: () => void = () => undefined;
  #left = false;
  readonly #redact: (text: string) => string;
  #stderr = '';

  /**
   * @param words the program and its arguments, by absolute path. No secrets: argv can be read by everybody
   * @param stdio as for spawn; standard error is always kept here
   */
  constructor(words: readonly string[], env: NodeJS.ProcessEnv, stdio: readonly ('pipe' | 'ignore')[]) {
    const setpriv = findSetpriv();
    if (setpriv === null) {
      throw new DestinationError(
        'program',
        'setpriv (package util-linux) is not installed; without it an upload could outlive a killed run: install it',
        false,
      );
    }
    this.#redact = redactor(secretsOf(env));
    const options: StdioOptions = [...stdio];
    this.child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', ...words], { env, stdio: options, detached: true });
    for (const stream of this.child.stdio) stream?.on('error', () => undefined);
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_MAX);
    });
    this.#gone = new Promise((done) => {
      this.child.once('error', () => done());
      this.child.once('exit', () => done());
    });
    this.closed = new Promise((done) => {
      this.child.once('error', () => done({ code: 127, signal: null }));
      this.child.once('close', (code, signal) => done({ code, signal }));
      this.#leave = () => done({ code: null, signal: 'SIGKILL' });
    });
  }

  /** The end of what it said on standard error, without secrets. */
  get stderr(): string {
    return this.#redact(this.#stderr);
  }

  /** Sends it a signal that it knows how to end at, and waits until it is gone, or so long. */
  async ask(signal: NodeJS.Signals, waitMs: number): Promise<void> {
    if (this.#left) return;
    this.child.kill(signal);
    await within(this.#gone, waitMs);
  }

  /**
   * Ends it and all of its group at once, and waits until it is gone. Nothing when it has ended by itself. One that cannot go,
   * since it hangs in the kernel, is left behind: it does not keep us from ending.
   */
  async kill(): Promise<void> {
    const { pid, exitCode, signalCode } = this.child;
    const running = pid !== undefined && exitCode === null && signalCode === null;
    if (running) signalGroup(pid, 'SIGKILL');
    // What nobody reads any more would keep 'close' from coming.
    for (const stream of this.child.stdio) stream?.destroy();
    if (this.#left || !(await within(this.#gone, GONE_MS))) {
      this.#left = true;
      this.child.unref();
      this.#leave();
      return;
    }
    // What it had started was killed with it and may take a moment longer; as a zombie that nobody collects it stays in the group.
    for (let tries = 0; running && tries < GROUP_TRIES && signalGroup(pid, 0); tries++) await setTimeout(GROUP_WAIT_MS);
  }
}

/** Whether it resolved in time. */
async function within(promise: Promise<void>, ms: number): Promise<boolean> {
  const over = new AbortController();
  const late = setTimeout(ms, false, { signal: over.signal }).catch(() => false);
  try {
    return await Promise.race([promise.then(() => true), late]);
  } finally {
    over.abort();
  }
}

/** false: nobody is in that group any more. */
function signalGroup(leader: number, signal: 'SIGKILL' | 0): boolean {
  try {
    return process.kill(-leader, signal);
  } catch {
    return false;
  }
}

/** The signal's reason as an Error to reject with. */
export const reasonOf = (signal: AbortSignal): Error => (signal.reason instanceof Error ? signal.reason : new Error('aborted', { cause: signal.reason }));

/** Calls `stop` when the signal aborts; returns what takes that back. */
export function onAbort(signal: AbortSignal, stop: () => void): () => void {
  signal.addEventListener('abort', stop, { once: true });
  return () => signal.removeEventListener('abort', stop);
}

/**
 * The bytes of `source` as a stream that ends well only when they were `sizeBytes` (null: not known) and `verdict` resolves. Destroying
 * it, by whoever or by the signal, calls `end` and waits for it.
 */
export function judged(
  source: Readable,
  sizeBytes: number | null,
  what: string,
  verdict: () => Promise<void>,
  end: () => Promise<void>,
  signal: AbortSignal,
): Readable {
  let seen = 0;
  const stream = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      seen += chunk.length;
      if (sizeBytes === null || seen <= sizeBytes) done(null, chunk);
      else done(tooLong(what, sizeBytes));
    },
    flush(done) {
      verdict().then(
        () => {
          if (sizeBytes === null || seen === sizeBytes) done();
          else done(cutShort(what, seen, sizeBytes));
        },
        (error: Error) => done(error),
      );
    },
    destroy(error, done) {
      takeBack();
      source.destroy();
      end().then(
        () => done(error),
        () => done(error),
      );
    },
  });
  // An abort before somebody reads must not end the process; who reads hears it all the same.
  stream.on('error', () => undefined);
  source.once('error', (error) => stream.destroy(error));
  const takeBack = onAbort(signal, () => stream.destroy(reasonOf(signal)));
  return source.pipe(stream);
}

export const cutShort = (what: string, seenBytes: number, sizeBytes: number): DestinationError =>
  new DestinationError('unreachable', `${what} was cut short: ${seenBytes} of ${sizeBytes} bytes came; try again`, true);
