/**
 * A place besides the backup directory where copies go. What counts as stored was proven: by checksums that the server computed over
 * what arrived, or by reading everything back. Implementations hold no policy: which copies go there is not their concern.
 */
import type { Readable } from 'node:stream';
import { printable, UNPRINTABLE } from '../settings/values.js';

export interface RemoteObject {
  /** Bare: without the prefix, without a slash. */
  readonly name: string;
  readonly sizeBytes: number;
}

/** How it is known that the bytes arrived. */
export type Proved = 'server-checksum' | 'read-back';

/** What a file must be. */
export interface Expected {
  readonly sizeBytes: number;
  /** Hex. */
  readonly sha256: string;
}

/**
 * One destination; asked one thing at a time, but for `read`. Every method rejects with a DestinationError, or with the signal's reason within two
 * seconds of its abort, and leaves no process behind. Names are bare: see `bareName`.
 */
export interface Destination {
  /** Canonical, without secrets: for messages, and to remember by. */
  readonly shown: string;
  /** Objects directly below the prefix. A prefix that nothing was ever stored under is empty; a directory that is not there is an error. */
  list(signal: AbortSignal): Promise<readonly RemoteObject[]>;
  /**
   * Stores a local file, streamed, in bounded memory, and proves that it arrived. An object of that name is replaced. Rejects unless
   * proven; an object that was seen to be wrong is removed again where possible. One that could not be judged (the connection went, it
   * was aborted) may be there, whole or in part: only a resolved `put` says that something is stored.
   */
  put(file: string, name: string, expected: Expected, signal: AbortSignal): Promise<Proved>;
  /**
   * The bytes of an object. Rejects with kind `missing` when it is not there. The stream errors when it is cut short of the object's
   * size. It is to be read without long pauses, since a server hangs up on an idle reader; destroying it ends the transfer.
   */
  get(name: string, signal: AbortSignal): Promise<Readable>;
  /**
   * A small object as a whole. Rejects as `get` does, and with kind `wrong-bytes` where it has more than `maxBytes`. Several may be
   * asked for at once.
   */
  read(name: string, maxBytes: number, signal: AbortSignal): Promise<Buffer>;
  /** Removes an object; one that is not there is no error. */
  remove(name: string, signal: AbortSignal): Promise<void>;
  /**
   * Clears away what broken-off uploads left that no listing shows (multipart uploads, temporary files) of objects for which
   * `ours(name)` is true, begun before `before`; returns how many. 0 where there is no such thing.
   */
  sweep(ours: (name: string) => boolean, before: Date, signal: AbortSignal): Promise<number>;
  /** Ends the processes of this destination. */
  close(): Promise<void>;
}

/**
 * denied: credentials or rights. missing: the object, or the bucket. full: no space, or a quota. wrong-bytes: what is there (or the
 * local file) is not what was expected. unreachable: no answer, or nothing mounted. program: a program is not installed.
 */
export type DestinationErrorKind = 'denied' | 'missing' | 'full' | 'wrong-bytes' | 'unreachable' | 'program' | 'other';

/** Why something did not work, on what, and what to do next; without secrets, on one line. */
export class DestinationError extends Error {
  readonly kind: DestinationErrorKind;
  /** The same thing may work a little later. */
  readonly transient: boolean;

  constructor(kind: DestinationErrorKind, message: string, transient: boolean) {
    super(printable(message));
    this.name = 'DestinationError';
    this.kind = kind;
    this.transient = transient;
  }
}

/** For an object that has more bytes than it may have. `what`: `PLACE: "NAME"`. */
export const tooLong = (what: string, maxBytes: number): DestinationError =>
  new DestinationError('wrong-bytes', `${what} has more than ${maxBytes} bytes: it is not what was stored there`, false);

/** How long a silent other side is waited for, milliseconds. */
export interface Patience {
  readonly connectMs: number;
  readonly idleMs: number;
}

export const PATIENCE: Patience = { connectMs: 15_000, idleMs: 60_000 };

/** The longest name that a file system takes, bytes. */
const NAME_MAX_BYTES = 255;

/** Lets through what may stand for an object: one path segment, printable, at most 255 bytes. Throws a DestinationError. */
export function bareName(name: string): string {
  if (name === '' || name === '.' || name === '..' || name.includes('/') || UNPRINTABLE.test(name) || Buffer.byteLength(name) > NAME_MAX_BYTES) {
    throw new DestinationError('other', `"${name}" is no name for an object: it must be one path segment of at most ${NAME_MAX_BYTES} bytes`, false);
  }
  return name;
}
