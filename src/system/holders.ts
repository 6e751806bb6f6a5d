/** Who has a database open: Linux tells through /proc. Processes of other users are seen by root alone. */
import { readdirSync, readlinkSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import type { Rescue } from '../outcome.js';
import { lstatOrNull, realOrSame } from './files.js';
import { readOrEmpty } from './proc.js';
import { shellWord } from './processes.js';

export interface Holder {
  readonly pid: number;
  /** The program's name as the kernel has it, at most 15 characters; of Node's newer versions, which call their first thread so, the first word. */
  readonly program: string;
}

const SUFFIXES = ['', '-wal', '-shm', '-journal'] as const;

/**
 * Other processes that have the database, its `-wal`, `-shm` or `-journal` open; ourselves and our children excluded. A
 * connection that never read has only the main file open, and no lock that could be asked for (traps, 38).
 */
export function holdersOf(path: string): readonly Holder[] {
  const files = new Set<string>();
  for (const suffix of SUFFIXES) {
    const stats = lstatOrNull(path + suffix);
    if (stats) files.add(`${stats.dev}:${stats.ino}`);
  }
  // A file that was removed or replaced while it was open keeps its old name here.
  const gone = new Set(SUFFIXES.map((suffix) => `${realOrSame(path)}${suffix} (deleted)`));
  return pids()
    .filter((pid) => !isOurs(pid) && hasOpen(pid, files, gone))
    .map((pid) => ({ pid, program: programOf(pid) }));
}

/** How what was deleted can be saved as long as somebody has it open. Null where nobody whom this user may see has a deleted database of that path open. */
export function rescueOf(path: string): Rescue | null {
  const real = realOrSame(path);
  for (const pid of pids()) {
    const found = new Map(openLinks(pid).map((link) => [readlinkOrEmpty(link), link]));
    const main = found.get(`${real} (deleted)`);
    if (main === undefined || isOurs(pid)) continue;
    const saved = `${real}.saved`;
    // With the journal of a transaction that is half written the main file alone would be torn.
    const beside = ['-wal', '-journal'].flatMap((suffix) => {
      const link = found.get(`${real}${suffix} (deleted)`);
      return link === undefined ? [] : [`cp ${link} ${shellWord(saved + suffix)}`];
    });
    return { holder: `${pid} (${programOf(pid)})`, pid, lines: [`kill -STOP ${pid}`, `cp ${main} ${shellWord(saved)}`, ...beside] };
  }
  return null;
}

function openLinks(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map((fd) => `/proc/${pid}/fd/${fd}`);
  } catch {
    // It has ended, or is another user's.
    return [];
  }
}

function readlinkOrEmpty(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return '';
  }
}

function programOf(pid: number): string {
  const name = readOrEmpty(`/proc/${pid}/comm`).toString('utf8').trim();
  if (name !== 'MainThread') return name;
  const [first = ''] = readOrEmpty(`/proc/${pid}/cmdline`).toString('utf8').split('\0');
  return basename(first) || name;
}

/** `123 (app), 124 (app)`. */
export const nameHolders = (holders: readonly Holder[]): string[] => holders.map(({ pid, program }) => `${pid} (${program})`);

const pids = (): number[] =>
  readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number);

function isOurs(pid: number): boolean {
  for (let at = pid, depth = 0; at > 1 && depth < 64; depth++) {
    if (at === process.pid) return true;
    at = Number(/^PPid:\s*(\d+)/m.exec(readOrEmpty(`/proc/${at}/status`).toString('utf8'))?.[1] ?? 0);
  }
  return false;
}

function hasOpen(pid: number, files: ReadonlySet<string>, gone: ReadonlySet<string>): boolean {
  return openLinks(pid).some((link) => {
    try {
      const stats = statSync(link);
      return files.has(`${stats.dev}:${stats.ino}`) || (stats.nlink === 0 && gone.has(readlinkSync(link)));
    } catch {
      return false;
    }
  });
}
