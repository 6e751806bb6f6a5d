/** The files that settings name and that hold keys of age: public ones to seal copies for, secret ones to open them. */
import { errnoWords } from '../outcome.js';
import type { Identity } from '../packing.js';
import { keyProblem, recipientProblem } from '../packing.js';
import { readSmall } from '../system/files.js';
import { shutToOthers } from '../system/processes.js';
import type { RecipientSource } from './values.js';

const KEYS_MAX = 1 << 20;

const linesOf = (bytes: Buffer): string[] =>
  bytes
    .toString('utf8')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));

/** Public keys from what was given. Throws an Error that completes "encrypt-to ...". */
export async function readRecipients(sources: readonly RecipientSource[], uid: number): Promise<string[]> {
  const found: string[] = [];
  for (const source of sources) {
    const keys = 'key' in source ? [source.key] : recipientsIn(source.file, uid);
    for (const key of keys) {
      const problem = /^AGE-SECRET-KEY-/i.test(key) ? 'holds a secret key: give the public one, age1...' : await recipientProblem(key);
      if (problem !== null) throw new Error('key' in source ? `"${key}" ${problem}` : `${source.file} ${problem}`);
    }
    found.push(...keys);
  }
  return [...new Set(found)];
}

/** Whoever can change this file can read all copies from then on. */
function recipientsIn(path: string, uid: number): string[] {
  const { bytes, stats } = readOrSay(path);
  if (stats.uid !== 0 && stats.uid !== uid) throw new Error(`${path} belongs to uid ${stats.uid}, not to root or this user`);
  if (stats.mode & 0o002) throw new Error(`${path} can be written by others: chmod o-w ${path}`);
  const lines = linesOf(bytes);
  if (lines.length === 0) throw new Error(`${path} holds no recipient`);
  return lines;
}

/** Secret keys of a file as age-keygen writes it. Throws an Error that completes "identity-file ..." and holds no key. */
export async function readIdentity(path: string, uid: number): Promise<Identity> {
  const { bytes, stats } = readOrSay(path);
  if (stats.uid !== 0 && stats.uid !== uid) throw new Error(`${path} belongs to uid ${stats.uid}, not to root or this user`);
  if (stats.mode & 0o006) throw new Error(`${path} can be read or written by others: ${shutToOthers(path, stats.uid, uid)}`);
  const text = bytes.toString('latin1');
  if (text.startsWith('age-encryption.org/') || text.startsWith('-----BEGIN AGE')) {
    throw new Error(`${path} is itself sealed with a passphrase, for which nobody is there at night: give the plain identity`);
  }
  const keys = linesOf(bytes);
  if (keys.length === 0) throw new Error(`${path} holds no secret key`);
  for (const key of keys) {
    const problem = await keyProblem(key);
    if (problem !== null) throw new Error(`${path} ${problem} (AGE-SECRET-KEY-1..., as age-keygen writes it)`);
  }
  return { path, keys };
}

function readOrSay(path: string): ReturnType<typeof readSmall> {
  try {
    return readSmall(path, KEYS_MAX, 'follow');
  } catch (error) {
    throw new Error(`${path}: ${errnoWords(error)}`);
  }
}
