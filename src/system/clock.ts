/** The clock: the only place besides main.ts that asks for the time, so that everything else takes it as an argument. */
import { setTimeout as after } from 'node:timers/promises';

export interface Clock {
  /** Wall-clock time: for names, records and ages. */
  now(): Date;
  /** Milliseconds that only go forward: for durations. */
  monotonic(): number;
}

/** `performance` would have Node load what measures it, at every start. */
export const systemClock: Clock = { now: () => new Date(), monotonic: () => Number(process.hrtime.bigint()) / 1e6 };

/** Waits; rejects with the signal's reason as soon as it aborts. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await after(ms, undefined, { signal });
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
}
