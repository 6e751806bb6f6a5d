/**
 * From a message to somebody who has it. It goes into the outbox first, once for each channel, so that a kill in the middle
 * loses nothing, and comes out when the server has taken it. No channel waits for another, or fails with it.
 */
import type { Context } from '../context.js';
import type { Warning } from '../outcome.js';
import { critical, errnoWords, warning } from '../outcome.js';
import type { Channel, MailSettings, Telling } from '../settings/load.js';
import { CHANNELS } from '../settings/values.js';
import { lstatOrNull } from '../system/files.js';
import { acquireLock } from '../system/lock.js';
import type { Taken } from './mail.js';
import type { Audience, Letter, Pending } from './outbox.js';
import { enqueue, forget, keepWithout, noteAttempt, outboxLock, outboxPath, pending, sweepUnfinished } from './outbox.js';
import { slackBody } from './slack.js';
import type { NotifyFailure } from './undelivered.js';
import { notifyFailure, Undelivered } from './undelivered.js';
import { webhookBody } from './webhook.js';

/** Puts a message where a later run finds it. False, and a remark, when that cannot be written. */
export function keep(stateDir: string | null, letter: Letter, warn: (w: Warning) => void): boolean {
  if (stateDir === null) return false;
  try {
    enqueue(outboxPath(stateDir), letter, () => undefined);
    return true;
  } catch (error) {
    warn(warning('STATE_UNWRITABLE', `the outbox ${outboxPath(stateDir)} cannot be written: ${errnoWords(error)}`));
    return false;
  }
}

/** Takes out of the outbox again what has not gone out by now. Throws what the system says. */
export function takeOut(stateDir: string | null, name: string, letters: readonly Letter[]): void {
  if (stateDir === null || letters.length === 0) return;
  const ids = new Set(letters.map((letter) => letter.message.id));
  for (const letter of pending(outboxPath(stateDir), name)) if (ids.has(letter.message.id)) forget(letter.path);
}

/** Whether there is a channel for messages. A ping tells no words. */
export const hasChannel = (telling: Telling): boolean => CHANNELS.some((channel) => telling[channel] !== null);

/** The same, or something waits that was queued when there was one: it has to come to an end as well. */
export function hasWork(telling: Telling, stateDir: string | null): boolean {
  if (hasChannel(telling) || stateDir === null) return hasChannel(telling);
  try {
    return lstatOrNull(outboxPath(stateDir)) !== null;
  } catch {
    // It cannot be looked at: whoever opens it says so.
    return true;
  }
}

/** What came of sending one message on one channel. `failure` beside `delivered`: some did not get it. */
export interface Sent {
  readonly channel: Channel;
  readonly id: string;
  readonly delivered: boolean;
  readonly failure: NotifyFailure | null;
  /** Of a mail that was delivered: those who were put off, and all others of its recipients. */
  readonly later: readonly string[];
  readonly settled: readonly string[];
  /** The server said no to this very message. */
  readonly refused: boolean;
  /** Milliseconds for which it asked to be left alone. */
  readonly retryAfterMs: number | null;
}

/** Sends one message; never throws. */
export async function sendNow(letter: Letter, telling: Telling, ctx: Context, signal: AbortSignal): Promise<Sent> {
  const { channel, message } = letter;
  const about = { channel, id: message.id, refused: false, retryAfterMs: null, later: [], settled: [] };
  try {
    const { refused, later, settled } = await transmit(letter, telling, ctx, signal);
    // Sent again to all it would reach those who have it already: it counts as delivered, and the refusal is told.
    return { ...about, delivered: true, later, settled, failure: refused === null ? null : { code: 'NOTIFY_FAILED', reason: refused, kept: false } };
  } catch (error) {
    const { refused, retryAfterMs } = error instanceof Undelivered ? error : about;
    return { ...about, delivered: false, failure: notifyFailure(error), refused, retryAfterMs };
  }
}

type Transmitted = Taken & Pick<Sent, 'settled'>;

async function transmit({ channel, audience, message, without }: Letter, telling: Telling, ctx: Context, signal: AbortSignal): Promise<Transmitted> {
  const all = { refused: null, later: [], settled: [] };
  const settings = telling[channel];
  if (!settings) throw new Undelivered(`${channel} is not set`, false);
  if ('route' in settings) {
    const { sendMail } = await import('./mail.js');
    // Whom the settings name by now: who was wrong there when it was queued may be right in the meantime.
    const to = recipients(settings, audience).filter((address) => !without?.includes(address));
    if (to.length === 0) return all;
    const taken = await sendMail(message, { ...settings, to }, { signal, env: ctx.childEnv });
    return { ...taken, settled: to.filter((address) => !taken.later.includes(address)) };
  }
  const { post } = await import('./http.js');
  const body = channel === 'slack' ? slackBody(message) : webhookBody(message);
  await post(CHANNEL_WORDS[channel], settings.url, { type: 'application/json; charset=utf-8', body }, { signal, now: ctx.clock.now() });
  return all;
}

/** As messages name them, before the host. */
export const CHANNEL_WORDS: Record<Channel, string> = { mail: 'mail', slack: 'Slack webhook', webhook: 'webhook' };

/** Settings may have changed since it was queued: somebody gets it in any case. */
function recipients({ to, critical }: MailSettings, audience: Audience): string[] {
  const all = [...new Set([...to, ...critical])];
  const meant = audience === 'everyone' ? all : audience === 'regular' ? to : critical;
  return meant.length > 0 ? [...meant] : all;
}

/** As if these channels alone were set. */
export const onlyOn = (telling: Telling, channels: ReadonlySet<Channel>): Telling => ({
  mail: channels.has('mail') ? telling.mail : null,
  slack: channels.has('slack') ? telling.slack : null,
  webhook: channels.has('webhook') ? telling.webhook : null,
  ping: null,
});

/** What came of telling. */
export interface Told {
  /** Of all channels, as one; null: nothing is left to tell. */
  readonly failure: NotifyFailure | null;
  /** Ids of the messages that at least one channel took now. */
  readonly heard: ReadonlySet<string>;
  /** Whether all of the new ones could be queued. */
  readonly kept: boolean;
  /** The same one by one. */
  readonly failures: readonly { readonly channel: Channel; readonly failure: NotifyFailure }[];
  /** Channels whose server could not be reached, or had trouble of its own: what waits there may go the next time. */
  readonly unreachable: ReadonlySet<Channel>;
}

/** Where messages wait (null: nowhere), and whose: null is those of runs whose name is not known. */
export interface Box {
  readonly stateDir: string | null;
  readonly name: string | null;
}

/**
 * Queues these messages and sends what waits, theirs and older ones, oldest first, each channel apart. What cannot be queued
 * is sent at once. Never throws; what was not sent because a signal came stays queued.
 * @param queued called when all that can be is queued, before anything is sent
 */
export async function tell(
  ctx: Context,
  telling: Telling,
  box: Box,
  letters: readonly Letter[],
  warn: (w: Warning) => void,
  signal: AbortSignal,
  queued: () => void = () => undefined,
): Promise<Told> {
  const kept = letters.filter((letter) => keep(box.stateDir, letter, warn));
  queued();
  const sent: Sent[] = [];
  // A signal leaves two seconds: the next run sends it.
  if (signal.aborted) return told(sent, kept.length === letters.length);
  const direct = async (those: readonly Letter[]): Promise<void> => {
    sent.push(...(await Promise.all(those.map((letter) => sendNow(letter, telling, ctx, signal)))));
  };
  await direct(letters.filter((letter) => !kept.includes(letter)));
  if (box.stateDir === null) return told(sent, kept.length === letters.length);
  try {
    await deliver(ctx, telling, { stateDir: box.stateDir, name: box.name }, warn, signal, (one) => sent.push(one));
  } catch (error) {
    if (signal.aborted) return told(sent, kept.length === letters.length);
    warn(warning('STATE_UNWRITABLE', `the outbox in ${box.stateDir} cannot be used: ${errnoWords(error)}`));
    // They could be queued and not be sent from there: then at once.
    await direct(kept.filter(({ channel, message }) => !sent.some((s) => s.channel === channel && s.id === message.id)));
  }
  return told(sent, kept.length === letters.length);
}

function told(sent: readonly Sent[], kept: boolean): Told {
  const mayPass = sent.filter((s) => s.id !== '' && !s.delivered && !s.refused && s.retryAfterMs === null);
  return {
    kept,
    failures: sent.flatMap(({ channel, failure }) => (failure ? [{ channel, failure }] : [])),
    failure: together(sent.flatMap((s) => s.failure ?? [])),
    heard: new Set(sent.filter((s) => s.delivered).map((s) => s.id)),
    unreachable: new Set(mayPass.map((s) => s.channel)),
  };
}

/** Several failures as one: a run has one verdict. */
export function together(failures: readonly NotifyFailure[]): NotifyFailure | null {
  const [first] = failures;
  if (!first) return null;
  const kept = failures.every((f) => f.kept);
  const reasons = failures.map((f) => (f.kept && !kept ? `${f.reason} (kept for a later run)` : f.reason));
  return { code: 'NOTIFY_FAILED', reason: [...new Set(reasons)].join('; '), kept };
}

/** Longer than one message can take: whoever holds the outbox is about to send ours as well. */
const OUTBOX_WAIT_MS = 40_000;
/** A server that refuses one message may take the next; one that cannot be reached would cost this much for each. */
const GIVE_UP_AFTER_MS = 10_000;
/** A message that a server says no to so often, and for so long, will never be taken. One that cannot be reached refuses nothing. */
const MOST_REFUSALS = 10;
const REFUSED_MS = 3 * 86_400_000;
/** Older than this, a message is no news. */
const OLDEST_MS = 14 * 86_400_000;
/** No server asks for more; a clock that was wrong may. */
const LONGEST_PAUSE_MS = 86_400_000;

/**
 * Sends what waits for this name, and what has none. The outbox has a lock of its own, since `status --notify` sends without
 * holding the lock of the name. Throws when the outbox itself cannot be read, locked or written.
 */
async function deliver(
  ctx: Context,
  telling: Telling,
  box: { readonly stateDir: string; readonly name: string | null },
  warn: (w: Warning) => void,
  signal: AbortSignal,
  came: (sent: Sent) => void,
): Promise<void> {
  const outbox = outboxPath(box.stateDir);
  if (pending(outbox, box.name).length === 0) return;
  const lock = await acquireLock(outboxLock(box.stateDir), OUTBOX_WAIT_MS, signal);
  if (!lock) {
    const failure: NotifyFailure = { code: 'NOTIFY_FAILED', reason: 'another process is sending and does not come to an end', kept: true };
    const [channel] = CHANNELS.filter((one) => telling[one] !== null);
    if (channel) came({ channel, id: '', delivered: false, failure, refused: false, retryAfterMs: null, later: [], settled: [] });
    return;
  }
  try {
    sweepUnfinished(outbox, ctx.clock.now());
    const waiting = pending(outbox, box.name);
    const channels = CHANNELS.map((channel) => {
      const queue = waiting.filter((letter) => letter.channel === channel);
      return telling[channel] ? deliverOn(ctx, telling, queue, warn, signal, came) : forgetOld(ctx, queue, warn);
    });
    // All of them to their end before the lock goes, whatever becomes of one.
    for (const ended of await Promise.allSettled(channels)) if (ended.status === 'rejected') throw ended.reason;
  } finally {
    lock.release();
  }
}

/** One channel, oldest first. Its first failure is told; the others would say the same. */
async function deliverOn(
  ctx: Context,
  telling: Telling,
  queue: readonly Pending[],
  warn: (w: Warning) => void,
  signal: AbortSignal,
  came: (sent: Sent) => void,
): Promise<void> {
  const now = ctx.clock.now();
  const pause = queue.find(({ notBefore }) => {
    const leftMs = notBefore === null ? 0 : Date.parse(notBefore) - now.getTime();
    return leftMs > 0 && leftMs <= LONGEST_PAUSE_MS;
  });
  if (pause) {
    const failure: NotifyFailure = {
      code: 'NOTIFY_FAILED',
      reason: `${CHANNEL_WORDS[pause.channel]}: it asked to be left alone until ${pause.notBefore}`,
      kept: true,
    };
    came({ channel: pause.channel, id: '', delivered: false, failure, refused: false, retryAfterMs: null, later: [], settled: [] });
    return;
  }
  const began = ctx.clock.monotonic();
  let isFirst = true;
  for (const letter of queue) {
    const sent = await sendNow(letter, telling, ctx, signal);
    const isGivenUp = !sent.delivered && !signal.aborted && settle(letter, sent, now, warn);
    const isLeft = sent.delivered ? sent.later.length > 0 : !isGivenUp;
    const failure = sent.failure && isFirst ? { ...sent.failure, kept: isLeft } : null;
    if (failure) isFirst = false;
    // First: whatever becomes of its file, it is not to be sent once more by this run.
    came({ ...sent, failure });
    if (sent.delivered && !isLeft) forget(letter.path);
    if (sent.delivered && isLeft) putOff(letter, sent.settled, now, warn);
    if (!sent.delivered && (signal.aborted || sent.retryAfterMs !== null || ctx.clock.monotonic() - began > GIVE_UP_AFTER_MS)) return;
  }
}

/** Some have it, and some may get it the next time: greylisting lets nobody wait for days. */
function putOff(letter: Pending, settled: readonly string[], now: Date, warn: (w: Warning) => void): void {
  if (isOld(letter, now)) giveUp(letter, OLD, warn);
  else keepWithout(letter.path, settled);
}

/** After an attempt that failed: counted, or given up; true when given up. */
function settle(letter: Pending, sent: Sent, now: Date, warn: (w: Warning) => void): boolean {
  const refusals = letter.refusals + (sent.refused ? 1 : 0);
  if (refusals >= MOST_REFUSALS && ageOf(letter, now) > REFUSED_MS) giveUp(letter, `it was refused ${refusals} times`, warn);
  else if (isOld(letter, now)) giveUp(letter, OLD, warn);
  else {
    const notBefore = sent.retryAfterMs === null ? null : new Date(now.getTime() + sent.retryAfterMs).toISOString();
    noteAttempt(letter.path, { refused: sent.refused, notBefore });
    return false;
  }
  return true;
}

const OLD = 'it is older than 14 days';
const ageOf = (letter: Pending, now: Date): number => now.getTime() - Date.parse(letter.message.createdAt);
const isOld = (letter: Pending, now: Date): boolean => ageOf(letter, now) > OLDEST_MS;

function giveUp(letter: Pending, why: string, warn: (w: Warning) => void): void {
  forget(letter.path);
  const { subject, createdAt } = letter.message;
  warn(critical('NOTIFY_FAILED', `the message "${subject}" of ${createdAt} (${letter.channel}) is given up, since ${why}`));
}

/** Of a channel that is not set any more: it may be set again. */
async function forgetOld(ctx: Context, queue: readonly Pending[], warn: (w: Warning) => void): Promise<void> {
  for (const letter of queue) if (isOld(letter, ctx.clock.now())) giveUp(letter, OLD, warn);
}
