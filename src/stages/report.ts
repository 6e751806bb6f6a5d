/**
 * The last stage, always: people are told. Which message a finished run calls for is decided from its record and the
 * history; a message goes into the outbox before it is sent, so that a kill in the middle loses nothing, and comes out
 * when the server has taken it.
 */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { newestGood } from '../catalog.js';
import type { Context } from '../context.js';
import type { History } from '../history.js';
import type { Message, MessageFacts } from '../notifiers/message.js';
import { composeRun } from '../notifiers/message.js';
import { delivered, enqueue, noteAttempt, pending } from '../notifiers/outbox.js';
import type { Failure, Warning } from '../outcome.js';
import { describe, errnoWords, failureOf, warning } from '../outcome.js';
import type { RunRecord } from '../records.js';
import type { MailSettings, NotifyEvent } from '../settings/load.js';
import { acquireLock } from '../system/lock.js';
import { shellWord } from '../system/processes.js';

/** Which event a finished run is, or null: a dry or skipped run, one that lost the race for the lock, an unremarkable success. */
export function eventOf(record: RunRecord, history: History | null): NotifyEvent | null {
  if (record.dryRun || record.status === 'skipped' || record.exitCode === 75) return null;
  if (record.status !== 'ok') return 'failure';
  if (record.command !== 'run' || !history) return null;
  for (const earlier of history.since(record.name)) {
    if (earlier.runId === record.runId || earlier.status === 'skipped' || earlier.status === 'running' || earlier.exitCode === 75) continue;
    // What became of a migration or a restore says nothing about backups.
    if (earlier.command === 'guard' || earlier.command === 'restore') continue;
    // One that could only not tell people has queued its own message, and its recovery is the delivery of that.
    if (earlier.status !== 'ok' && earlier.error?.code !== 'NOTIFY_FAILED') return 'recovery';
    if (earlier.command === 'run') return null;
  }
  return null;
}

/** What a message says besides the record. */
export function messageFacts(ctx: Context, to: string | null, name: string | null, logLines: readonly string[]): MessageFacts {
  const now = ctx.clock.now();
  return {
    id: randomUUID(),
    now,
    host: ctx.host,
    newestGood: to === null || name === null ? null : newestOf(to, name, now),
    logLines,
    // Relative paths in it count from there.
    retry: `cd ${shellWord(ctx.cwd)} && ${ctx.invocation.map(shellWord).join(' ')}`,
    directory: to,
    redact: ctx.output.redact,
  };
}

function newestOf(to: string, name: string, now: Date): MessageFacts['newestGood'] {
  try {
    const copy = newestGood(to, name, now.getTime());
    return copy && { file: copy.file, ageSeconds: Math.max(0, Math.round((now.getTime() - Date.parse(copy.createdAt)) / 1000)) };
  } catch {
    return null;
  }
}

/** Where messages wait. */
export const outboxPath = (stateDir: string): string => join(stateDir, 'outbox');

/** The message about a finished run. */
export const composeFor = (ctx: Context, record: RunRecord, event: NotifyEvent, to: string | null, logLines: readonly string[]): Message =>
  composeRun(record, event, messageFacts(ctx, to, record.name, logLines));

/** Puts a message where a later run finds it. Null, and a remark, when that cannot be written. */
export function keep(stateDir: string | null, message: Message, warn: (w: Warning) => void): string | null {
  if (stateDir === null) return null;
  try {
    return enqueue(outboxPath(stateDir), message, () => undefined);
  } catch (error) {
    warn(warning('STATE_UNWRITABLE', `the outbox ${outboxPath(stateDir)} cannot be written: ${errnoWords(error)}`));
    return null;
  }
}

/** What came of sending: nobody got it, or some did not. */
export type Sent = { readonly delivered: boolean; readonly failure: Failure | null };

/** Sends one message; never throws. */
export async function sendNow(message: Message, mail: MailSettings, ctx: Context, signal: AbortSignal): Promise<Sent> {
  try {
    const { sendMail } = await import('../notifiers/mail.js');
    const { refused } = await sendMail(message, mail, { signal, env: ctx.childEnv });
    // Sent again it would reach those who have it already: it counts as delivered, and the refusal is told.
    return { delivered: true, failure: refused === null ? null : { code: 'NOTIFY_FAILED', reason: refused, kept: false } };
  } catch (error) {
    const failure = failureOf(error);
    const reason = failure.code === 'NOTIFY_FAILED' ? failure.reason : describe(failure).message;
    return { delivered: false, failure: { code: 'NOTIFY_FAILED', reason, kept: false } };
  }
}

/** Longer than one message can take: whoever holds the outbox is about to send ours as well. */
const OUTBOX_WAIT_MS = 40_000;
/** A server that refuses one message may take the next; one that cannot be reached would cost this much for each. */
const GIVE_UP_AFTER_MS = 10_000;

/**
 * Sends what waits for this name, and what has none, oldest first. The outbox has a lock of its own, since
 * `status --notify` sends without holding the lock of the name.
 * @returns the first failure, or null when all was delivered. Throws when the outbox itself cannot be read, locked or written.
 */
export async function deliver(stateDir: string, name: string | null, mail: MailSettings, ctx: Context, signal: AbortSignal): Promise<Failure | null> {
  const outbox = outboxPath(stateDir);
  if (pending(outbox, name).length === 0) return null;
  const lock = await acquireLock(join(outbox, 'lock.db'), OUTBOX_WAIT_MS, signal);
  if (!lock) return { code: 'NOTIFY_FAILED', reason: 'another process is sending and does not come to an end', kept: true };
  let first: Failure | null = null;
  const began = ctx.clock.monotonic();
  try {
    for (const waiting of pending(outbox, name)) {
      const sent = await sendNow(waiting.message, mail, ctx, signal);
      if (sent.delivered) delivered(waiting.path);
      else noteAttempt(waiting.path);
      if (sent.failure?.code === 'NOTIFY_FAILED') first ??= { ...sent.failure, kept: !sent.delivered };
      if (!sent.delivered && (signal.aborted || ctx.clock.monotonic() - began > GIVE_UP_AFTER_MS)) break;
    }
    return first;
  } finally {
    lock.release();
  }
}
