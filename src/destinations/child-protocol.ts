/**
 * What the parent asks of a destination's child and what it answers: one JSON document a line, requests on the child's standard input,
 * answers on its descriptor 3, each with the number of its request, in any order. The bytes of an object go out on descriptor 4.
 */
import type { DestinationErrorKind, Expected, Patience, Proved, RemoteObject } from './destination.js';

/** Which bucket, and how to speak to it. Comes with every request: nothing of it is in argv. */
export interface S3Target extends Patience {
  readonly bucket: string;
  /** Empty, or with a slash at its end. */
  readonly prefix: string;
  readonly endpoint: string | null;
  readonly region: string | null;
  readonly storageClass: string | null;
  readonly forcePathStyle: boolean;
  readonly shown: string;
}

export interface DirectoryTarget {
  /** Absolute. */
  readonly path: string;
  /** Absolute paths of directories that it must not be, nor lie in. */
  readonly apartFrom: readonly string[];
  readonly shown: string;
}

/** What a broken-off upload left. `id`: how it is named to `abort`; `begunAt`: RFC 3339. */
export interface Unfinished {
  readonly name: string;
  readonly id: string;
  readonly begunAt: string;
}

export type Request =
  | { op: 'list' }
  | { op: 'put'; file: string; name: string; expected: Expected }
  /** Opens an object: its size. Its bytes wait for `bytes`. */
  | { op: 'get'; name: string }
  /** Sends the bytes of the object that was opened, closes descriptor 4, and says whether they were all. */
  | { op: 'bytes' }
  /** A small object as a whole, base64. Several of these may be asked for at once. */
  | { op: 'read'; name: string; maxBytes: number }
  | { op: 'remove'; name: string }
  | { op: 'unfinished' }
  /** Takes away what a broken-off upload left. */
  | { op: 'abort'; name: string; id: string };

export interface Answers {
  list: readonly RemoteObject[];
  put: Proved;
  get: { readonly sizeBytes: number };
  bytes: null;
  read: string;
  remove: null;
  unfinished: readonly Unfinished[];
  /** false: it was gone already. */
  abort: boolean;
}

export interface Trouble {
  readonly kind: DestinationErrorKind;
  readonly message: string;
  readonly transient: boolean;
}

/** A request on its way. */
export type Numbered<T> = Request & { readonly number: number; readonly target: T };
export type Reply = { readonly number: number } & ({ ok: true; value: unknown } | { ok: false; trouble: Trouble });

/** Asks a child to clear up what it is at and to end. SIGHUP, SIGINT and SIGTERM it ignores: the parent decides. */
export const END_SIGNAL = 'SIGUSR2';
