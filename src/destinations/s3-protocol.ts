/**
 * What the parent asks of an S3 child and what it answers: one JSON document a line, requests on the child's standard input, answers in
 * the same order on its descriptor 3. The bytes of an object go out on descriptor 4.
 */
import type { DestinationErrorKind, Expected, Patience, Proved, RemoteObject } from './destination.js';

/** Which bucket, and how to speak to it. Comes with every request: nothing of it is in argv. */
export interface Target extends Patience {
  readonly bucket: string;
  /** Empty, or with a slash at its end. */
  readonly prefix: string;
  readonly endpoint: string | null;
  readonly region: string | null;
  readonly storageClass: string | null;
  readonly forcePathStyle: boolean;
  readonly shown: string;
}

/** A multipart upload that was begun and neither completed nor aborted. `begunAt`: RFC 3339. */
export interface Unfinished {
  readonly name: string;
  readonly uploadId: string;
  readonly begunAt: string;
}

export type Request =
  | { op: 'list' }
  | { op: 'put'; file: string; name: string; expected: Expected }
  /** Opens an object: its size. Its bytes wait for `bytes`. */
  | { op: 'get'; name: string }
  /** Sends the bytes of the object that was opened, closes descriptor 4, and says whether they were all. */
  | { op: 'bytes' }
  | { op: 'remove'; name: string }
  | { op: 'unfinished' }
  /** Aborts a multipart upload. */
  | { op: 'abort'; name: string; uploadId: string };

export interface Answers {
  list: readonly RemoteObject[];
  put: Proved;
  get: { readonly sizeBytes: number };
  bytes: null;
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

export type Reply = { ok: true; value: unknown } | { ok: false; trouble: Trouble };
