/** What became of a message that nobody took: the reason, and whether it is worth trying again as it is. */
import type { Failure } from '../outcome.js';
import { describe, Failed, failureOf } from '../outcome.js';

/** NOTIFY_FAILED, with what the outbox has to know. The reason is one printable line without secrets. */
export class Undelivered extends Failed {
  /** The server was there and said no to this very message; false: it could not be reached, or has trouble of its own. */
  readonly refused: boolean;
  /** Milliseconds for which the server asked to be left alone; null: it did not. */
  readonly retryAfterMs: number | null;

  constructor(reason: string, refused: boolean, retryAfterMs: number | null = null) {
    // No cause: what libraries hang on their errors may hold what was sent, a password among it.
    super({ code: 'NOTIFY_FAILED', reason, kept: false });
    this.refused = refused;
    this.retryAfterMs = retryAfterMs;
  }
}

export type NotifyFailure = Extract<Failure, { code: 'NOTIFY_FAILED' }>;

/** Anything thrown while telling, as NOTIFY_FAILED. */
export function notifyFailure(error: unknown): NotifyFailure {
  const failure = failureOf(error);
  return failure.code === 'NOTIFY_FAILED' ? failure : { code: 'NOTIFY_FAILED', reason: describe(failure).message, kept: false };
}
