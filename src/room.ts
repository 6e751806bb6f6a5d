/** Whether there is room; and the line that would make some on a full backup disk, for the hint of NO_SPACE, where pruning would really do it. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { archivesIn, baseOf, isPlainGood, readCopies } from './catalog.js';
import type { Failure } from './outcome.js';
import type { Copy } from './records.js';
import { decide } from './retention.js';
import type { Config, Policy } from './settings/load.js';
import { nearest, sizeOf } from './system/files.js';
import { fileSystem, shellWord } from './system/processes.js';
import { stateDirOf } from './workspace.js';

/** What goes to a place, or to where that will be made. */
export interface Need {
  readonly path: string;
  readonly bytes: number;
}

/** Of a place, or of where it will be made; null: it cannot be seen. */
export function deviceOf(path: string): number | null {
  try {
    return statSync(nearest(path)).dev;
  } catch {
    return null;
  }
}

/** NO_SPACE of the first file system that has less than all that goes there takes together, named by the first place on it. Null: none, as far as is known. */
export function roomProblem(needs: readonly Need[]): Failure | null {
  const placed = needs.map((need) => ({ ...need, dev: deviceOf(need.path) }));
  for (const dev of new Set(placed.map((need) => need.dev))) {
    const here = placed.filter((need) => dev !== null && need.dev === dev);
    const neededBytes = here.reduce((sum, need) => sum + need.bytes, 0);
    const [first] = here;
    const freeBytes = first ? fileSystem(nearest(first.path))?.freeBytes : undefined;
    if (!first || freeBytes === undefined || freeBytes >= neededBytes) continue;
    return { code: 'NO_SPACE', path: first.path, neededBytes, freeBytes, prune: '' };
  }
  return null;
}

/** Copies that should stay where nobody knows how much room is missing. */
const KEPT = 3;
/** A run writes more than its copy: manifest, history, log. Bytes. */
const RECORDS = 128_000;

const lastAlone = (last: number): Policy => ({ last, withinMs: null, daily: null, weekly: null, monthly: null, yearly: null });

/**
 * How many of the newest good copies may stay so that pruning makes that room; null where it cannot, or waits.
 * @param copies all of the name, newest first
 * @param bytesOf what the removal of one gives back
 * @param missingBytes null: not known; then half of them stay, and at most three
 */
export function spareable(copies: readonly Copy[], bytesOf: (file: string) => number, missingBytes: number | null, now: number): number | null {
  const good = copies.filter(isPlainGood).length;
  const freedBy = (keep: number): readonly string[] => decide(copies, lastAlone(keep), now).remove.map(({ file }) => file);
  if (missingBytes === null) {
    const keep = Math.max(1, Math.min(KEPT, Math.floor(good / 2)));
    return freedBy(keep).length > 0 ? keep : null;
  }
  const enough = (keep: number): boolean => freedBy(keep).reduce((sum, file) => sum + bytesOf(file), 0) >= missingBytes;
  // The more stay, the less room there is: between one that is enough and one that is not, halve.
  let [yes, no] = [1, good + 1];
  if (good === 0 || !enough(yes)) return null;
  while (no - yes > 1) {
    const middle = Math.floor((yes + no) / 2);
    if (enough(middle)) yes = middle;
    else no = middle;
  }
  return yes;
}

/** All that decides is said, whatever a profile or the environment has: other rules are switched off, or they would keep what is in the way. */
function pruneLine(config: Pick<Config, 'to' | 'stateDir' | 'profile' | 'policy'>, name: string, keep: number): string {
  const others = (['daily', 'weekly', 'monthly', 'yearly'] as const).filter((rule) => config.policy[rule] !== null);
  return [
    'dbbackup prune',
    ...(config.profile === null ? [] : [`-P ${shellWord(config.profile)}`]),
    `--to ${shellWord(config.to)} --name ${shellWord(name)}`,
    ...(config.stateDir === stateDirOf(config.to) ? [] : [`--state-dir ${shellWord(config.stateDir)}`]),
    `--keep-last ${keep}`,
    ...(config.policy.withinMs === null ? [] : ['--keep-within 1s']),
    ...others.map((rule) => `--keep-${rule} 0`),
  ].join(' ');
}

/** The failure, with that line where there is one. Not with --from: its copies are not what is read. Reads the copies. */
export function withRoomLine(failure: Failure, config: Config, name: string, now: Date): Failure {
  if (failure.code !== 'NO_SPACE' || config.from) return failure;
  const { neededBytes, freeBytes } = failure;
  const missingBytes = neededBytes === null || freeBytes === null ? null : neededBytes - freeBytes + RECORDS;
  try {
    // Fewer copies would not help on another disk.
    if (statSync(nearest(failure.path)).dev !== statSync(config.to).dev) return failure;
    const archives = archivesIn(config.to, name);
    const bytesOf = (file: string): number =>
      [file, archives.get(baseOf(file))].reduce((sum, one) => sum + (one === undefined ? 0 : sizeOf(join(config.to, one))), 0);
    const keep = spareable(readCopies(config.to, name), bytesOf, missingBytes, now.getTime());
    return keep === null ? failure : { ...failure, prune: pruneLine(config, name, keep) };
  } catch {
    // It is the failure that is to be told.
    return failure;
  }
}
