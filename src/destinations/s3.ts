/**
 * S3 as a destination, the parent's half. The client runs in a child of its own: the AWS SDK takes its credentials from the environment
 * of its process, and AWS_* of the env file are for the upload alone. It also is the one thing that can be ended in the middle of anything.
 */
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import type { Destination, Expected, Patience, Proved, RemoteObject } from './destination.js';
import { bareName, DestinationError } from './destination.js';
import { judged, Leashed, onAbort, reasonOf } from './leash.js';
import type { Answers, Reply, Request, Target } from './s3-protocol.js';
import type { S3Url } from './url.js';

const FROM_SOURCE = import.meta.url.endsWith('.ts');
const CHILD = fileURLToPath(new URL(FROM_SOURCE ? './s3-child.ts' : './s3-child.js', import.meta.url));

/** Node itself, with a loader for TypeScript where this file has not been compiled (development, tests). */
const NODE = [process.execPath, ...(FROM_SOURCE ? ['--import', createRequire(import.meta.url).resolve('tsx')] : [])];

export class S3Destination implements Destination {
  readonly shown: string;
  readonly #target: Target;
  readonly #env: NodeJS.ProcessEnv;
  /** Children that are not known to be gone. */
  readonly #live = new Set<S3Child>();
  #child: S3Child | null = null;

  constructor(url: S3Url, env: NodeJS.ProcessEnv, patience: Patience) {
    this.shown = url.shown;
    this.#env = env;
    this.#target = {
      bucket: url.bucket,
      prefix: url.prefix === '' ? '' : `${url.prefix}/`,
      endpoint: url.endpoint,
      region: url.region,
      storageClass: url.storageClass,
      // A server of one's own rarely has a DNS name for each bucket.
      forcePathStyle: [url.endpoint, env['AWS_ENDPOINT_URL_S3'], env['AWS_ENDPOINT_URL']].some(Boolean),
      shown: url.shown,
      connectMs: patience.connectMs,
      idleMs: patience.idleMs,
    };
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
      const { sizeBytes } = await askOf(child, this.#target, { op: 'get', name: bareName(name) }, signal);
      const verdict = child.ask(this.#target, { op: 'bytes' });
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

  async remove(name: string, signal: AbortSignal): Promise<void> {
    await this.#ask({ op: 'remove', name: bareName(name) }, signal);
  }

  async sweep(ours: (name: string) => boolean, before: Date, signal: AbortSignal): Promise<number> {
    let swept = 0;
    for (const { name, uploadId, begunAt } of await this.#ask({ op: 'unfinished' }, signal)) {
      if (!(Date.parse(begunAt) < before.getTime()) || !ours(name)) continue;
      if (await this.#ask({ op: 'abort', name, uploadId }, signal)) swept++;
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
      await this.#end(this.#child);
      this.#child = null;
    }
    this.#child ??= this.#start('answers');
    return await askOf(this.#child, this.#target, request, signal);
  }

  #start(gives: 'answers' | 'bytes'): S3Child {
    const child = new S3Child(this.#env, gives);
    this.#live.add(child);
    return child;
  }

  async #end(child: S3Child): Promise<void> {
    await child.kill();
    this.#live.delete(child);
  }
}

/** Asks, and ends the child at once when the signal aborts: the request cannot be called off otherwise. */
async function askOf<O extends Request['op']>(child: S3Child, target: Target, request: Extract<Request, { op: O }>, signal: AbortSignal): Promise<Answers[O]> {
  const takeBack = onAbort(signal, () => void child.kill());
  try {
    return await child.ask(target, request);
  } catch (error) {
    if (!signal.aborted) throw error;
    await child.kill();
    throw reasonOf(signal);
  } finally {
    takeBack();
  }
}

/** One child; answers requests in the order they come. */
class S3Child {
  readonly #process: Leashed;
  readonly #waiting: { done: (value: unknown) => void; fail: (error: Error) => void }[] = [];
  #death: Error | null = null;

  constructor(env: NodeJS.ProcessEnv, gives: 'answers' | 'bytes') {
    this.#process = new Leashed(
      [...NODE, CHILD, String(process.pid)],
      // Otherwise the SDK says at every start that Node 20 is old.
      { ...env, AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true' },
      ['pipe', 'ignore', 'pipe', 'pipe', ...(gives === 'bytes' ? (['pipe'] as const) : [])],
    );
    createInterface({ input: readable(this.#process.child.stdio[3]) }).on('line', (line) => this.#receive(line));
    void this.#process.closed.then(({ signal, code }) => {
      const how = signal ? `was ended by ${signal}` : `ended with ${code}: ${this.#process.stderr.trim().slice(-500)}`;
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

  async ask<O extends Request['op']>(target: Target, request: Extract<Request, { op: O }>): Promise<Answers[O]> {
    const value = await new Promise<unknown>((done, fail) => {
      if (this.#death) {
        fail(this.#death);
        return;
      }
      this.#waiting.push({ done, fail });
      this.#process.child.stdin?.write(`${JSON.stringify({ ...request, target })}\n`);
    });
    return value as Answers[O];
  }

  async kill(): Promise<void> {
    await this.#process.kill();
    this.#fail(new DestinationError('other', 'the upload process was ended', true));
  }

  #receive(line: string): void {
    const reply = JSON.parse(line) as Reply;
    const waiting = this.#waiting.shift();
    if (reply.ok) waiting?.done(reply.value);
    else waiting?.fail(new DestinationError(reply.trouble.kind, reply.trouble.message, reply.trouble.transient));
  }

  #fail(error: Error): void {
    this.#death ??= error;
    for (const { fail } of this.#waiting.splice(0)) fail(error);
  }
}

function readable(stream: unknown): Readable {
  if (stream instanceof Readable) return stream;
  throw new Error('no channel to the upload process');
}
