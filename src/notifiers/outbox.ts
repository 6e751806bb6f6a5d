/**
 * Messages on their way: one file each, `<outbox>/<stamp>-<id>.json`. A message is queued first, then sent, then removed,
 * so a kill in the middle loses nothing; at worst it arrives twice, under one Message-ID. Runs of several names share
 * the directory, and each touches only messages of its own name while it holds that name's lock.
 */
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { errnoOf } from '../outcome.js';
import { SCHEMA_VERSION } from '../records.js';
import { UNPRINTABLE } from '../settings/values.js';
import type { Unsupported } from '../system/files.js';
import { makePrivateDirectory, readSmall, remove, replace, syncDirectory } from '../system/files.js';
import type { Message } from './message.js';

/** A message that waits. `attempts`: how often it was tried and not delivered. */
export interface Pending {
  readonly path: string;
  readonly message: Message;
  readonly attempts: number;
}

const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;
const FILE = /^\d{8}T\d{6}Z-[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json$/;
const MAX_BYTES = 1 << 20;
const KINDS: readonly string[] = ['failure', 'recovery', 'status', 'test'] satisfies Message['kind'][];

/** A directory sync that is not supported was already told when the message was queued. */
const toldBefore: Unsupported = () => undefined;

/**
 * Queues a message durably and returns its path; the same message again takes the same place. Makes the directory (0700),
 * but not its parent: a state directory that is missing must not be made on a mount point that is not mounted. Errors of
 * the file system throw as they come.
 */
export function enqueue(dir: string, message: Message, unsupported: Unsupported): string {
  if (!ID.test(message.id)) throw new Error(`not a message id: ${message.id}`);
  if (makePrivateDirectory(dir)) syncDirectory(dirname(dir), unsupported);
  const stamp = `${message.createdAt.slice(0, 19).replace(/[-:]/g, '')}Z`;
  const path = join(dir, `${stamp}-${message.id}.json`);
  replace(path, render(message, 0), unsupported);
  return path;
}

/**
 * The messages of one name and those without any (settings that did not parse), oldest first; none when there is no outbox yet. Files that are not
 * ours (links, FIFOs, other names, more than 1 MB, another shape) are left alone and not mentioned.
 */
export function pending(dir: string, name: string | null): Pending[] {
  const found = list(dir)
    .filter((file) => FILE.test(file))
    .flatMap((file) => read(join(dir, file)) ?? []);
  return found
    .filter((p) => p.message.name === name || p.message.name === null)
    .sort((a, b) => order(a.message.createdAt, b.message.createdAt) || order(a.path, b.path));
}

/** Forgets a message that was delivered; synced, so that a power cut does not send it again. */
export function delivered(path: string): void {
  if (remove(path)) syncDirectory(dirname(path), toldBefore);
}

/** Counts one more attempt that failed. Nothing happens when the message is gone or no longer readable. */
export function noteAttempt(path: string): void {
  const found = read(path);
  if (found) replace(path, render(found.message, found.attempts + 1), toldBefore);
}

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function list(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

const render = (message: Message, attempts: number): string => `${JSON.stringify({ schemaVersion: SCHEMA_VERSION, attempts, message }, null, 2)}\n`;

function read(path: string): Pending | null {
  try {
    const stored: unknown = JSON.parse(readSmall(path, MAX_BYTES).bytes.toString('utf8'));
    if (!isObject(stored) || !isMessage(stored['message'])) return null;
    const attempts = stored['attempts'];
    return { path, message: stored['message'], attempts: typeof attempts === 'number' && attempts >= 0 ? Math.floor(attempts) : 0 };
  } catch {
    return null;
  }
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;
const isString = (value: unknown): value is string => typeof value === 'string';

function isMessage(value: unknown): value is Message {
  if (!isObject(value)) return false;
  const { id, createdAt, kind, name, runId, subject, text, html } = value;
  return (
    isString(id) &&
    ID.test(id) &&
    isString(createdAt) &&
    /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/.test(createdAt) &&
    !Number.isNaN(Date.parse(createdAt)) &&
    isString(kind) &&
    KINDS.includes(kind) &&
    (name === null || isString(name)) &&
    (runId === null || isString(runId)) &&
    isString(subject) &&
    !UNPRINTABLE.test(subject) &&
    isString(text) &&
    isString(html)
  );
}
