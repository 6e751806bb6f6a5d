/**
 * What a run will do, decided from settings and facts alone: no effect, no clock of its own. `--dry-run` prints this
 * and stops; a real run does exactly this and nothing else.
 */
import type { Facts, SourceState } from './artifacts.js';
import { isFailure } from './artifacts.js';
import { freeBase, isCopyOf } from './catalog.js';
import type { Failure, Warning } from './outcome.js';
import { warning } from './outcome.js';
import { packedAs, suffixOf } from './packing.js';
import type { Copy, Manifest } from './records.js';
import type { Decision, IsLoss } from './retention.js';
import { decide } from './retention.js';
import type { Config } from './settings/load.js';

export interface RunPlan {
  readonly source: SourceState;
  /** The file name the copy would get now, for the dry run; publishing takes the one that is free by then. */
  readonly file: string;
  readonly neededBytes: number;
  readonly warnings: readonly Warning[];
}

export type Problems = { readonly problems: readonly [Failure, ...Failure[]] };
/** Nothing is to be done, and why. */
export type Skip = { readonly skip: string };
export type Planned = RunPlan | Skip | Problems;

export const hasProblems = (plan: Planned): plan is Problems => 'problems' in plan;

export const isSkip = (plan: Planned): plan is Skip => 'skip' in plan;

/** A run's plan, or every problem that can be seen beforehand: the directory's first, since without it nothing else matters. */
export function planRun(config: Config, name: string, facts: Facts, now: Date): Planned {
  const { source, target } = facts;
  const problems: Failure[] = [];
  if (isFailure(target)) problems.push(target);
  if (!isFailure(source)) {
    const other = facts.newestManifest;
    // Both paths must differ: a symbolic link may be re-pointed, a mount may move (DESIGN, "Files").
    if (other && !config.acceptMoved && !isCopyOf(other, source.path, source.realPath)) {
      problems.push({ code: 'NAME_TAKEN', name, source: source.path, other: other.configuredPath ?? 'another database (its path is sealed)' });
    }
  }
  // Not before that: young copies of another database would keep this one from ever being backed up, without a word.
  const skip = skipReason(config, facts.newestGood, now);
  if (skip !== null && problems.length === 0) return { skip };
  if (isFailure(source)) problems.push(source);
  if (!isFailure(target) && target.network) {
    const message = `the state directory ${config.stateDir} lies on ${target.network}, where locks are unreliable: give a local one`;
    problems.push({ code: 'SETTINGS', problems: [{ setting: 'state-dir', message, origin: '--state-dir' }] });
  }
  const neededBytes = isFailure(source) ? 0 : spaceFor(config, plainSize(source, facts.newestManifest), facts.included, facts.newestManifest);
  if (!isFailure(target) && target.freeBytes !== null && target.freeBytes < neededBytes) {
    problems.push({ code: 'NO_SPACE', path: target.path, neededBytes, freeBytes: target.freeBytes, prune: '' });
  }
  const [first, ...others] = problems;
  if (first) return { problems: [first, ...others] };
  if (isFailure(source) || isFailure(target)) throw new Error('a failure that is no problem');

  const warnings: Warning[] = [];
  if (source.journalMode !== 'wal') {
    warnings.push(
      warning(
        'SOURCE_ROLLBACK_MODE',
        `${source.path} is not in WAL mode: its writers wait while the snapshot is taken; to change that once and for all: PRAGMA journal_mode=WAL`,
      ),
    );
  }
  if (source.network) warnings.push(warning('SOURCE_NETWORK_FS', `${source.path} lies on ${source.network}, where file locks are unreliable`));
  return {
    source,
    file: `${freeBase(
      name,
      now,
      facts.copies.map((c) => c.file),
    )}.db${suffixOf({ compress: config.packing.compress, encrypted: config.packing.recipients.length > 0 })}`,
    neededBytes,
    warnings,
  };
}

/**
 * The same for who only looks: with what a run would meet only when it reads the source, as far as it shows now. A run itself tries all
 * the same, since it may get a suspect copy, which is more than none, and SQLite's word on a journal is what counts.
 * @param also what ends a run before its first stage
 */
export function foresee(config: Config, name: string, facts: Facts, now: Date, also: readonly Failure[]): Planned {
  const plan = planRun(config, name, facts, now);
  const { source } = facts;
  if (isSkip(plan)) return plan;
  const seen: Failure[] = [...also];
  if (!isFailure(source)) {
    const { path, missingBytes, hotJournal } = source;
    if (hotJournal) seen.push({ code: 'SOURCE_HOT_JOURNAL', path });
    if (missingBytes > 0)
      seen.push({ code: 'SOURCE_CORRUPT', path, findings: [`the file is ${missingBytes} bytes shorter than its header says`], keptAs: null });
  }
  const [first, ...others] = [...(hasProblems(plan) ? plan.problems : []), ...seen];
  return first ? { problems: [first, ...others] } : plan;
}

/** What the snapshot takes, bytes. Pages are copied with the free ones among them, and what had to be copied so the last time will be again. */
const plainSize = ({ sizeBytes, usedBytes, walBytes }: SourceState, newest: Manifest | null): number =>
  (newest?.method === 'page-copy' ? sizeBytes : usedBytes) + walBytes;

/** The snapshot and the archive, and what packing makes of both in turn, as far as the newest copy tells how small that is. Bytes. */
function spaceFor({ packing }: Config, plainBytes: number, included: readonly number[], newest: Manifest | null): number {
  const archiveBytes = included.reduce((sum, bytes) => sum + bytes, 0);
  const encrypted = packing.recipients.length > 0;
  if (packing.compress === 'none' && !encrypted) return plainBytes + archiveBytes;
  const alike = newest && packing.compress !== 'none' && packedAs(newest.file).compress === packing.compress ? newest : null;
  const ratioOf = (part: { readonly sizeBytes: number; readonly plainSizeBytes: number } | null | undefined): number =>
    part && part.plainSizeBytes > 0 ? Math.min(1, (1.1 * part.sizeBytes) / part.plainSizeBytes) : 1;
  const times = (packing.compress === 'none' ? 0 : 1) + (encrypted ? 1 : 0);
  return Math.ceil(plainBytes * (1 + times * ratioOf(alike)) + archiveBytes * (1 + times * ratioOf(alike?.files)));
}

function skipReason(config: Config, newest: Copy | null, now: Date): string | null {
  if (config.ifOlderThanMs === null || !newest) return null;
  const age = now.getTime() - Date.parse(newest.createdAt);
  return age < config.ifOlderThanMs ? `${newest.file} is younger than --if-older-than` : null;
}

/** What pruning would do once the planned copy is there: it counts, but is not listed, as it does not exist. */
export function planPrune(config: Config, copies: readonly Copy[], planned: Copy | null, now: Date, isLoss?: IsLoss): Decision {
  // In its place, as the run will find it: with a clock that is behind it is not the newest.
  const older = planned ? copies.findIndex((c) => c.createdAt <= planned.createdAt) : -1;
  const at = older === -1 ? copies.length : older;
  const all = planned ? [...copies.slice(0, at), planned, ...copies.slice(at)] : copies;
  const decision = decide(all, config.policy, now.getTime(), planned?.file ?? null, isLoss);
  return { ...decision, keep: decision.keep.filter((k) => k.file !== planned?.file) };
}
