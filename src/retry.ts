/** Trying again what may only have been in the way for a moment: a source that was held, a read error seen once, a destination that did not answer. */
import type { Acting } from './acting.js';
import { duration } from './format.js';
import type { Failure } from './outcome.js';
import { describe, failureOf, warning } from './outcome.js';
import type { Retries } from './settings/load.js';
import { pause } from './system/clock.js';
import { removeTree } from './system/files.js';
import { privateFiles } from './workspace.js';

/** However long it grows, nobody waits longer than this between two attempts. */
const LONGEST_MS = 300_000;

/** Milliseconds before the attempt that follows number `attempt` (1 is the first). */
export function waitBefore({ waitMs, backoff }: Retries, attempt: number): number {
  const factor = backoff === 'fixed' ? 1 : backoff === 'linear' ? attempt : 2 ** (attempt - 1);
  return Math.min(LONGEST_MS, waitMs * factor);
}

/** What may be gone the next time. Never damage, a full disk, or a setting. */
const isTransient = (f: Failure): boolean => f.code === 'SOURCE_LOCKED' || f.code === 'IO_ERROR' || f.code === 'SOURCE_REPLACED';

/**
 * Does `work` (told which attempt of the run it is, 1 is the first), and again as often as the settings say while what it fails with is
 * transient; each failed attempt is a remark in the record and in the log. A signal and the run's time limit end the wait at
 * once. Throws the last failure.
 */
export async function withRetries<T>(acting: Acting, work: (attempt: number) => Promise<T>): Promise<T> {
  const { recorder, config, signal } = acting;
  for (;;) {
    const attempt = recorder.attempts;
    try {
      return await work(attempt);
    } catch (error) {
      const failure = failureOf(error);
      if (signal.aborted || attempt > config.retries.count || !isTransient(failure)) throw error;
      await again(acting, attempt, failure);
      // Whatever the attempt left: the next one begins as the first did.
      await acting.pool.killAll();
      for (const path of privateFiles(acting.workspace)) removeTree(path);
      recorder.nextAttempt();
    }
  }
}

/** Says what failed and when it goes on, and waits for that. Throws the signal's reason. */
export async function again({ recorder, config, signal }: Pick<Acting, 'recorder' | 'config' | 'signal'>, attempt: number, failure: Failure): Promise<void> {
  const ms = waitBefore(config.retries, attempt);
  const of = `attempt ${attempt} of ${config.retries.count + 1}`;
  recorder.warn(warning(failure.code, `${of} failed: ${describe(failure).message}; again in ${duration(ms)}`));
  await pause(ms, signal);
}
