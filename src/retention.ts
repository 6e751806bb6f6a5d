/**
 * Which copies stay: pure, restic's meaning. Rules are OR-ed; `keep-daily 7` keeps the newest copy of each of the last
 * 7 days that have one; `keep-within` counts back from the newest copy; days are UTC, weeks ISO. Every copy comes back
 * with its reasons.
 */
import { isAhead, isPlainGood } from './catalog.js';
import type { Copy, Kept, Pruned } from './records.js';
import type { Policy } from './settings/load.js';

const DAY = 86_400_000;
/** Copies made by restore and guard before they act. */
const TAGGED_LIFE = 30 * DAY;
/** So long a run leaves the copies before and after a loss to whoever has yet to hear of it. */
const LOSS_LIFE = 7 * DAY;
/** Suspect copies kept for a rescue. */
const SUSPECTS_KEPT = 3;

export interface Decision {
  readonly keep: readonly Kept[];
  readonly remove: readonly Pruned[];
  /** Why pruning waits: a copy ahead of the clock, or a suspect newest copy. */
  readonly hold: { readonly code: 'CLOCK' | 'SUSPECT'; readonly file: string } | null;
}

/** Whether a copy lacks what the one before it had, by their files. */
export type IsLoss = (newer: string, older: string) => boolean;

/** `2026-W47`, ISO 8601: the week belongs to the year of its Thursday. */
function isoWeek(at: Date): string {
  const thursday = new Date(Date.UTC(at.getUTCFullYear(), at.getUTCMonth(), at.getUTCDate() + 4 - (at.getUTCDay() || 7)));
  const week = Math.ceil(((thursday.getTime() - Date.UTC(thursday.getUTCFullYear(), 0, 1)) / DAY + 1) / 7);
  return `${thursday.getUTCFullYear()}-W${String(week).padStart(2, '0')}`;
}

interface Rule {
  readonly label: string;
  readonly count: number | null;
  /** The bucket a copy falls into; the newest of each bucket is kept. */
  readonly bucket: (at: Date, position: number) => string;
}

const rulesOf = (policy: Policy): readonly Rule[] => [
  { label: 'last', count: policy.last, bucket: (_, position) => `#${position + 1}` },
  { label: 'daily', count: policy.daily, bucket: (at) => at.toISOString().slice(0, 10) },
  { label: 'weekly', count: policy.weekly, bucket: isoWeek },
  { label: 'monthly', count: policy.monthly, bucket: (at) => at.toISOString().slice(0, 7) },
  { label: 'yearly', count: policy.yearly, bucket: (at) => at.toISOString().slice(0, 4) },
];

/**
 * @param copies all copies of one name, newest first
 * @param now milliseconds since the epoch
 * @param made the file this very run has made: never removed by it, even when another is dated a little ahead of the clock
 * @param isLoss of a run: what it tells a person to bring back it does not remove itself; `prune` applies the policy
 */
export function decide(copies: readonly Copy[], policy: Policy, now: number, made: string | null = null, isLoss: IsLoss = () => false): Decision {
  const ahead = copies.find((c) => isAhead(c, now));
  if (ahead) {
    const reasons = [`pruning waits: ${ahead.file} is dated ahead of the clock`];
    return { keep: copies.map((c) => ({ file: c.file, reasons, by: 'hold' })), remove: [], hold: { code: 'CLOCK', file: ahead.file } };
  }
  const newest = copies.find((c) => c.tags.length === 0 && (c.status === 'good' || c.status === 'suspect'));
  const suspectHold = newest?.status === 'suspect' ? newest : null;

  const reasons = new Map<string, string[]>(copies.map((c) => [c.file, []]));
  const because = (copy: Copy, reason: string): void => {
    reasons.get(copy.file)?.push(reason);
  };

  const good = copies.filter(isPlainGood);
  applyRules(good, policy, because);
  const isKept = (c: Copy): boolean => (reasons.get(c.file) ?? []).length > 0;
  const losses = good.flatMap((older, i) => {
    const newer = good[i - 1];
    if (!newer || (isKept(newer) && isKept(older)) || now - Date.parse(newer.createdAt) >= LOSS_LIFE) return [];
    return isLoss(newer.file, older.file) ? [{ newer, older }] : [];
  });
  // The first and the latest: what is emptied every hour must not keep everything. Both copies, since without the one the other tells nothing.
  for (const { newer, older } of new Set([losses[0], losses.at(-1)].filter((loss) => loss !== undefined))) {
    because(older, `${newer.file}, the next one, lacks much of what it has`);
    because(newer, `lacks much of what ${older.file}, the one before, has`);
  }
  // The floor where there is no such copy: then one that restore or guard has made is all that there is to go back to.
  const last = good.length > 0 ? undefined : copies.find((c) => c.status === 'good');
  if (last) because(last, 'newest good copy');
  // A clock that has run ahead would end all their lives at once: before this run it had not been so late.
  const before = good.find((c) => c.file !== made);
  const hasJumped = before !== undefined && now - Date.parse(before.createdAt) > TAGGED_LIFE;

  const suspects = copies.filter((c) => c.status === 'suspect' && c.tags.length === 0);
  for (const copy of suspects.slice(0, SUSPECTS_KEPT)) because(copy, `suspect: the newest ${SUSPECTS_KEPT} are kept for a rescue`);
  for (const copy of copies) {
    if (copy.file === made && (reasons.get(copy.file) ?? []).length === 0) because(copy, 'made by this run');
    if (copy.status === 'bad') because(copy, 'bad: left for a person to look at');
    if (copy.status === 'unverified') because(copy, 'unverified: not provably made by dbbackup');
    if (copy.tags.length > 0 && copy.status !== 'bad') {
      if (now - Date.parse(copy.createdAt) < TAGGED_LIFE) because(copy, `${copy.tags.join(', ')}: kept 30 days`);
      else if (hasJumped) because(copy, `${copy.tags.join(', ')}: kept, since the copy before this run is older than 30 days: the clock may be wrong`);
    }
    if (suspectHold && (copy.status !== 'suspect' || copy.tags.length > 0)) because(copy, `pruning waits: the newest copy, ${suspectHold.file}, is suspect`);
  }

  const keep: Kept[] = [];
  const remove: Pruned[] = [];
  for (const copy of copies) {
    const why = reasons.get(copy.file) ?? [];
    const isForAPerson = ['bad', 'unverified'].includes(copy.status) || (copy.status === 'suspect' && copy.tags.length === 0);
    const by = isForAPerson ? 'person' : suspectHold ? 'hold' : 'policy';
    if (why.length > 0) keep.push({ file: copy.file, reasons: why, by });
    // Not even what the rules do not look at (DESIGN, "Retention").
    else if (policy.last === Number.POSITIVE_INFINITY) keep.push({ file: copy.file, reasons: ['last all: never pruned'], by });
    else remove.push({ file: copy.file, reason: reasonToRemove(copy) });
  }
  return { keep, remove, hold: suspectHold ? { code: 'SUSPECT', file: suspectHold.file } : null };
}

function applyRules(good: readonly Copy[], policy: Policy, because: (copy: Copy, reason: string) => void): void {
  const [first] = good;
  if (!first) return;
  // The floor under every policy: the newest good copy is never removed.
  because(first, 'newest good copy');
  for (const rule of rulesOf(policy)) {
    let left = rule.count ?? 0;
    let previous: string | null = null;
    for (const [position, copy] of good.entries()) {
      if (left <= 0) break;
      const bucket = rule.bucket(new Date(copy.createdAt), position);
      if (bucket === previous) continue;
      previous = bucket;
      left--;
      because(copy, `${rule.label} ${bucket}`);
    }
  }
  if (policy.withinMs !== null) {
    const since = Date.parse(first.createdAt) - policy.withinMs;
    for (const copy of good) {
      if (Date.parse(copy.createdAt) >= since) because(copy, 'within');
    }
  }
}

function reasonToRemove(copy: Copy): string {
  if (copy.tags.length > 0) return `${copy.tags.join(', ')}: older than 30 days`;
  if (copy.status === 'suspect') return `suspect, beyond the newest ${SUSPECTS_KEPT}`;
  return 'no keep rule asks for it';
}
