/**
 * Messages on their way: one file for each channel, `<outbox>/<stamp>-<id>.<channel>.json`, so that a channel that is down keeps
 * none of the others waiting. A message is queued first, then sent, then removed, so a kill in the middle loses nothing; at
 * worst it arrives twice, as mail under one Message-ID. Runs of several names share the directory; each touches only messages of
 * its own name and those without one, one process at a time (`outboxLock`).
 */
import { lstatSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { errnoOf } from '../outcome.js';
import { SCHEMA_VERSION } from '../records.js';
import type { Channel } from '../settings/values.js';
import { CHANNELS, UNPRINTABLE } from '../settings/values.js';
import type { Unsupported } from '../system/files.js';
import { makePrivateDirectory, readSmall, remove, replace, syncDirectory } from '../system/files.js';
import type { Message } from './message.js';

/** Who of a channel gets a message. Only mail tells them apart: `regular` is mail-to, `critical` is mail-to-critical. */
export type Audience = 'everyone' | 'regular' | 'critical';

/** A message and the way it goes. */
export interface Letter {
  readonly channel: Channel;
  readonly audience: Audience;
  readonly message: Message;
  /** Who of the audience has it already, or gets another one of the same run. Absent: nobody. */
  readonly without?: readonly string[] | undefined;
}

/** A message that waits. */
export interface Pending extends Letter {
  readonly path: string;
  /** How often it was tried and not delivered. */
  readonly attempts: number;
  /** How often of these the server was there and said no to it. */
  readonly refusals: number;
  /** RFC 3339; the server asked to be left alone until then. */
  readonly notBefore: string | null;
}

const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;
const FILE = /^\d{8}T\d{6}Z-[A-Za-z0-9][A-Za-z0-9._-]{0,109}\.json$/;
const UNFINISHED = /^(\d{8}T\d{6}Z)-[A-Za-z0-9][A-Za-z0-9._-]{0,109}\.json\.new$/;
const MAX_BYTES = 4 << 20;
const KINDS: readonly string[] = ['failure', 'recovery', 'warning', 'success', 'status', 'test'] satisfies Message['kind'][];
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/;

/** A directory sync that is not supported was already told when the message was queued. */
const toldBefore: Unsupported = () => undefined;

/** Where messages wait. */
export const outboxPath = (stateDir: string): string => join(stateDir, 'outbox');

/** The lock of whoever sends: beside the outbox, where there is nothing but messages. No name of a database begins with a dot. */
export const outboxLock = (stateDir: string): string => join(stateDir, '.outbox.lock.db');

/**
 * Queues a message durably for one channel and returns its path; the same again takes the same place. Makes the directory (0700),
 * but not its parent: a state directory that is missing must not be made on a mount point that is not mounted. Errors of
 * the file system throw as they come.
 */
export function enqueue(dir: string, letter: Letter, unsupported: Unsupported): string {
  const { message, channel } = letter;
  if (!ID.test(message.id)) throw new Error(`not a message id: ${message.id}`);
  if (makePrivateDirectory(dir)) syncDirectory(dirname(dir), unsupported);
  if (!isOurs(dir, lstatSync(dir).uid)) throw Object.assign(new Error(`${dir} belongs to another user`), { code: 'EPERM' });
  const stamp = `${message.createdAt.slice(0, 19).replace(/[-:]/g, '')}Z`;
  const path = join(dir, `${stamp}-${message.id}.${channel}.json`);
  replace(path, render({ ...letter, path, attempts: 0, refusals: 0, notBefore: null }), unsupported);
  return path;
}

/**
 * The messages of one name and those without any (settings that did not parse), oldest first; none when there is no outbox yet. Files that are not
 * ours (links, FIFOs, other names, more than 4 MB, another shape) are left alone and not mentioned.
 */
export function pending(dir: string, name: string | null): Pending[] {
  const found = list(dir)
    .filter((file) => FILE.test(file))
    .flatMap((file) => read(join(dir, file)) ?? []);
  return found
    .filter((p) => p.message.name === name || p.message.name === null)
    .sort((a, b) => order(a.message.createdAt, b.message.createdAt) || order(a.path, b.path));
}

/** A message is written in a moment; so long after it was made nobody is at it any more, milliseconds. */
const UNFINISHED_MS = 3_600_000;

/** Removes what a run that was killed while it queued a message has left of it: that it was killed is told instead. */
export function sweepUnfinished(dir: string, now: Date): void {
  for (const file of list(dir)) {
    const [, stamp] = UNFINISHED.exec(file) ?? [];
    const madeAt = stamp?.replace(/^(....)(..)(..)T(..)(..)(..)Z$/, '$1-$2-$3T$4:$5:$6Z');
    if (madeAt !== undefined && now.getTime() - Date.parse(madeAt) > UNFINISHED_MS) remove(join(dir, file));
  }
}

/** Forgets a message that was delivered or given up; synced, so that a power cut does not send it again. */
export function forget(path: string): void {
  if (remove(path)) syncDirectory(dirname(path), toldBefore);
}

/** Counts one more attempt that failed. Nothing happens when the message is gone or no longer readable. */
export function noteAttempt(path: string, came: { readonly refused: boolean; readonly notBefore: string | null }): void {
  const found = read(path);
  if (!found) return;
  const { attempts, refusals } = found;
  replace(path, render({ ...found, attempts: attempts + 1, refusals: refusals + (came.refused ? 1 : 0), notBefore: came.notBefore }), toldBefore);
}

/** In a sticky state directory others may put files: what they say is not sent in our name. */
const isOurs = (dir: string, uid: number): boolean => uid === 0 || uid === process.geteuid?.() || uid === lstatSync(dirname(dir)).uid;

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function list(dir: string): string[] {
  try {
    return isOurs(dir, lstatSync(dir).uid) ? readdirSync(dir) : [];
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

/** Keeps a message that some have got, for the others. */
export function keepWithout(path: string, those: readonly string[]): void {
  const found = read(path);
  if (found) replace(path, render({ ...found, without: [...(found.without ?? []), ...those], attempts: found.attempts + 1 }), toldBefore);
}

function render({ channel, audience, without, attempts, refusals, notBefore, message }: Pending): string {
  // Only the JSON webhook sends the record on.
  const kept = channel === 'webhook' ? message : { ...message, record: undefined };
  return `${JSON.stringify({ schemaVersion: SCHEMA_VERSION, channel, audience, without, attempts, refusals, notBefore, message: kept }, null, 2)}\n`;
}

function read(path: string): Pending | null {
  try {
    const { bytes, stats } = readSmall(path, MAX_BYTES);
    const stored: unknown = JSON.parse(bytes.toString('utf8'));
    if (!isObject(stored) || !isOurs(dirname(path), stats.uid)) return null;
    const { message, notBefore } = stored;
    // What was queued before there were other channels is mail for everybody.
    const channel = CHANNELS.find((c) => c === (stored['channel'] ?? 'mail'));
    if (!isMessage(message) || channel === undefined) return null;
    return {
      path,
      channel,
      audience: AUDIENCES.find((a) => a === stored['audience']) ?? 'everyone',
      message,
      ...(isTexts(stored['without']) ? { without: stored['without'] } : {}),
      attempts: countOf(stored['attempts']),
      refusals: countOf(stored['refusals']),
      notBefore: isTime(notBefore) ? notBefore : null,
    };
  } catch {
    return null;
  }
}

const AUDIENCES: readonly Audience[] = ['everyone', 'regular', 'critical'];
const countOf = (value: unknown): number => (typeof value === 'number' && value >= 0 ? Math.floor(value) : 0);
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;
const isString = (value: unknown): value is string => typeof value === 'string';
const isTexts = (value: unknown): value is string[] => Array.isArray(value) && value.every(isString);
const isTime = (value: unknown): value is string => isString(value) && TIME.test(value) && !Number.isNaN(Date.parse(value));

function isMessage(value: unknown): value is Message {
  if (!isObject(value)) return false;
  const { id, createdAt, kind, name, runId, subject, text, html, host, record } = value;
  return (
    isString(id) &&
    ID.test(id) &&
    isTime(createdAt) &&
    isString(kind) &&
    KINDS.includes(kind) &&
    (name === null || isString(name)) &&
    (runId === null || isString(runId)) &&
    isString(subject) &&
    !UNPRINTABLE.test(subject) &&
    isString(text) &&
    isString(html) &&
    (host === undefined || isString(host)) &&
    (record === undefined || record === null || isObject(record))
  );
}
