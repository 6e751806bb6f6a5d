/**
 * A destination that a child process works at, the parent's half. A child is the one thing that can be ended in the middle of anything,
 * also of a call that hangs in the kernel, as every look at a dead NFS mount does; and the AWS SDK takes its credentials from the
 * environment of its process, which is the upload's alone.
 */
import { resolve } from 'node:path';
import { Readable } from 'node:stream';
import type { Script } from '../own-files.js';
import { wordsFor } from '../own-files.js';
import { lastWords, onLines } from '../system/lines.js';
import type { Answers, Numbered, Reply, Request } from './child-protocol.js';
import { END_SIGNAL } from './child-protocol.js';
import type { Destination, Expected, Proved, RemoteObject } from './destination.js';
import { bareName, DestinationError } from './destination.js';
import { judged, Leashed, onAbort, reasonOf } from './leash.js';

/** How long a child may take to clear up after itself, milliseconds. */
const CLEAR_UP_MS = 300;

export class ChildDestination<T extends { readonly shown: string }> implements Destination {
  readonly shown: string;
  readonly #script: Script;
  readonly #target: T;
  readonly #env: NodeJS.ProcessEnv;
  /** Children that are not known to be gone. */
  readonly #live = new Set<Child<T>>();
  #child: Child<T> | null = null;

  /**
   * @param script what the child runs
   * @param target what the child needs to know of the place; goes to it with every request
   */
  constructor(script: Script, target: T, env: NodeJS.ProcessEnv) {
    this.shown = target.shown;
    this.#script = script;
    this.#target = target;
    this.#env = env;
  }

  list(signal: AbortSignal): Promise<readonly RemoteObject[]> {
    return this.#ask({ op: 'list' }, signal);
  }

  async put(file: string, name: string, { sizeBytes, sha256 }: Expected, signal: AbortSignal): Promise<Proved> {
    // These two alone, since a caller's object may carry more, and all of a request goes through a pipe.
    return await this.#ask({ op: 'put', file: resolve(file), name: bareName(name), expected: { sizeBytes, sha256 } }, signal);
  }

  async get(name: string, signal: AbortSignal): Promise<Readable> {
    signal.throwIfAborted();
    // A child of its own: the reader may take its time, and ends it by destroying the stream.
    const child = this.#start('bytes');
    try {
      const { sizeBytes } = await askOf(child, { op: 'get', name: bareName(name) }, signal);
      const verdict = child.ask({ op: 'bytes' });
      verdict.catch(() => undefined);
      const whole = async (): Promise<void> => {
        await verdict;
      };
      return judged(child.bytes, sizeBytes, `${this.shown}: "${name}"`, whole, () => this.#end(child), signal);
    } catch (error) {
      await this.#end(child);
      throw error;
    }
  }

  async read(name: string, maxBytes: number, signal: AbortSignal): Promise<Buffer> {
    return Buffer.from(await this.#ask({ op: 'read', name: bareName(name), maxBytes }, signal), 'base64');
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    await this.#ask({ op: 'remove', name: bareName(name) }, signal);
  }

  async sweep(ours: (name: string) => boolean, before: Date, signal: AbortSignal): Promise<number> {
    let swept = 0;
    for (const { name, id, begunAt } of await this.#ask({ op: 'unfinished' }, signal)) {
      if (!(Date.parse(begunAt) < before.getTime()) || !ours(name)) continue;
      if (await this.#ask({ op: 'abort', name, id }, signal)) swept++;
    }
    return swept;
  }

  async close(): Promise<void> {
    this.#child = null;
    await Promise.all([...this.#live].map((child) => this.#end(child)));
  }

  async #ask<O extends Request['op']>(request: Extract<Request, { op: O }>, signal: AbortSignal): Promise<Answers[O]> {
    signal.throwIfAborted();
    if (this.#child?.dead) {
      const gone = this.#child;
      this.#child = null;
      await this.#end(gone);
    }
    this.#child ??= this.#start('answers');
    return await askOf(this.#child, request, signal);
  }

  #start(gives: 'answers' | 'bytes'): Child<T> {
    const child = new Child(this.#script, this.#target, this.#env, gives);
    this.#live.add(child);
    return child;
  }

  async #end(child: Child<T>): Promise<void> {
    await child.kill();
    this.#live.delete(child);
  }
}

/** Asks, and ends the child when the signal aborts: the request cannot be called off otherwise. */
async function askOf<T, O extends Request['op']>(child: Child<T>, request: Extract<Request, { op: O }>, signal: AbortSignal): Promise<Answers[O]> {
  const takeBack = onAbort(signal, () => void child.end());
  try {
    return await child.ask(request);
  } catch (error) {
    if (!signal.aborted) throw error;
    await child.end();
    throw reasonOf(signal);
  } finally {
    takeBack();
  }
}

/** One child. */
class Child<T> {
  readonly #target: T;
  readonly #process: Leashed;
  readonly #waiting = new Map<number, { done: (value: unknown) => void; fail: (error: Error) => void }>();
  #asked = 0;
  #death: Error | null = null;

  constructor(script: Script, target: T, env: NodeJS.ProcessEnv, gives: 'answers' | 'bytes') {
    this.#target = target;
    this.#process = new Leashed(
      [...wordsFor(script), String(process.pid)],
      // Otherwise the AWS SDK says at every start that Node 20 is old.
      { ...env, AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true' },
      ['pipe', 'ignore', 'pipe', 'pipe', ...(gives === 'bytes' ? (['pipe'] as const) : [])],
    );
    onLines(readable(this.#process.child.stdio[3]), (line) => this.#receive(line));
    void this.#process.closed.then(({ signal, code }) => {
      const how = signal ? `was ended by ${signal}` : `ended with ${code}: ${lastWords(this.#process.stderr)}`;
      this.#fail(new DestinationError('other', `the upload process ${how}`, true));
    });
  }

  get dead(): boolean {
    return this.#death !== null;
  }

  /** The bytes of an object, descriptor 4. */
  get bytes(): Readable {
    return readable(this.#process.child.stdio[4]);
  }

  async ask<O extends Request['op']>(request: Extract<Request, { op: O }>): Promise<Answers[O]> {
    const value = await new Promise<unknown>((done, fail) => {
      if (this.#death) {
        fail(this.#death);
        return;
      }
      const numbered: Numbered<T> = { ...request, number: ++this.#asked, target: this.#target };
      this.#waiting.set(numbered.number, { done, fail });
      this.#process.child.stdin?.write(`${JSON.stringify(numbered)}\n`);
    });
    return value as Answers[O];
  }

  /** Lets it clear up what it is at, for a moment, and ends it. */
  async end(): Promise<void> {
    await this.#process.ask(END_SIGNAL, CLEAR_UP_MS);
    await this.kill();
  }

  async kill(): Promise<void> {
    await this.#process.kill();
    this.#fail(new DestinationError('other', 'the upload process was ended', true));
  }

  #receive(line: string): void {
    const reply = JSON.parse(line) as Reply;
    const waiting = this.#waiting.get(reply.number);
    this.#waiting.delete(reply.number);
    if (reply.ok) waiting?.done(reply.value);
    else waiting?.fail(new DestinationError(reply.trouble.kind, reply.trouble.message, reply.trouble.transient));
  }

  #fail(error: Error): void {
    this.#death ??= error;
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { fail } of waiting) fail(error);
  }
}

function readable(stream: unknown): Readable {
  if (stream instanceof Readable) return stream;
  throw new Error('no channel to the upload process');
}
