/** The half of a destination's child that speaks with the parent (child-protocol.ts). */

import { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { writeAnswer } from '../system/answers.js';
import { onLines } from '../system/lines.js';
import { leaveSignalsToParent } from '../system/signals.js';
import type { Numbered, Reply, Request, Trouble } from './child-protocol.js';
import { DestinationError, tooLong } from './destination.js';

const BYTES_FD = 4;

/** In words, for errors: `storing "app.db"`. */
export const doing = (request: Request): string => ('name' in request ? `${DOING[request.op]} "${request.name}"` : DOING[request.op]);

const DOING: { readonly [O in Request['op']]: string } = {
  list: 'listing it',
  put: 'storing',
  get: 'reading',
  bytes: 'reading',
  read: 'reading',
  remove: 'removing',
  unfinished: 'looking for unfinished uploads',
  abort: 'clearing away an unfinished upload of',
};

/** Answers requests as they come, until the parent closes its end. `explain`: what an error of the place means. */
export function serve<T>(answer: (target: T, request: Request) => Promise<unknown>, explain: (error: unknown, target: T, request: Request) => Trouble): void {
  // The parent may have died before the kernel was asked to kill us with it (traps, 41).
  if (process.ppid !== Number(process.argv[2])) return;
  leaveSignalsToParent();
  onLines(process.stdin, (line) => {
    const { number, target, ...request } = JSON.parse(line) as Numbered<T>;
    answer(target, request as Request).then(
      (value) => reply({ number, ok: true, value }),
      (error: unknown) => reply({ number, ok: false, trouble: explain(error, target, request as Request) }),
    );
  });
}

const reply = (r: Reply): void => writeAnswer(r);

/** An error as it is told. */
export const inWords = ({ kind, message, transient }: DestinationError): Trouble => ({ kind, message, transient });

/** What is said of an object whose bytes are handed on. `cut`: the error for one that ended after so many of them. */
export interface Handed {
  /** `PLACE: "NAME"`. */
  readonly what: string;
  readonly sizeBytes: number;
  readonly cut: (seenBytes: number) => DestinationError;
}

/** The bytes of an opened object, out on their descriptor. */
export async function sendBytes(body: Readable, { sizeBytes, cut }: Handed): Promise<null> {
  let seen = 0;
  body.on('data', (chunk: Buffer) => {
    seen += chunk.length;
  });
  try {
    await pipeline(body, new Socket({ fd: BYTES_FD, readable: false, writable: true }));
  } catch {
    throw cut(seen);
  }
  if (seen !== sizeBytes) throw cut(seen);
  return null;
}

/** All of a small object. */
export async function collect(body: Readable, maxBytes: number, { what, sizeBytes, cut }: Handed): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let seen = 0;
  try {
    // What it claims to be is enough to leave it alone.
    if (sizeBytes > maxBytes) throw tooLong(what, maxBytes);
    for await (const chunk of body as AsyncIterable<Buffer>) {
      seen += chunk.length;
      if (seen > maxBytes) throw tooLong(what, maxBytes);
      chunks.push(chunk);
    }
  } catch (error) {
    throw error instanceof DestinationError ? error : cut(seen);
  } finally {
    body.on('error', () => undefined).destroy();
  }
  if (seen !== sizeBytes) throw cut(seen);
  return Buffer.concat(chunks);
}
