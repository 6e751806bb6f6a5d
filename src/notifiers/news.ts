/**
 * What finished runs have to tell, from records alone: pure, so that years of nights can be played through. A warning is told
 * when it appears, when it ends, and once a week in between, not every night.
 */
import type { Warning } from '../outcome.js';
import type { RunRecord } from '../records.js';
import { isFinishedRun } from '../records.js';
import type { NotifyEvent } from '../settings/values.js';

/** Records of a name, newest first, and of runs that failed before their name was known. */
export interface Past {
  since(name: string | null): Iterable<RunRecord>;
}

/** Which warnings are worth a message: new or graver ones, those a week older since they were told, and those that have ended. */
export interface WarningNews {
  readonly appeared: readonly Warning[];
  readonly still: readonly { readonly warning: Warning; readonly since: string }[];
  readonly ended: readonly Warning[];
}

/** What may be told of a run, the most important first: each channel tells the first that it is set for. */
export interface Occasion {
  readonly events: readonly NotifyEvent[];
  readonly news: WarningNews | null;
}

const WEEK_MS = 7 * 86_400_000;
/** What tells of telling: it is over as soon as it is told. */
const SILENT: ReadonlySet<Warning['code']> = new Set(['NOTIFY_FAILED', 'NOBODY_HEARS', 'UNDELIVERED']);
/** What happens at a moment does not end. */
const MOMENTARY: ReadonlySet<Warning['code']> = new Set([
  'HEALED',
  'FILES_CHANGED',
  'LAST_RUN_DIED',
  'MEMORY_HIGH',
  // The next night compares with this one.
  'COPY_SHRANK',
  'TABLE_GONE',
  'TABLE_EMPTY',
  'COPIES_GONE',
  'SLOW_RUN',
  'WAL_GREW',
  // An attempt that failed, before one that did not.
  'SOURCE_LOCKED',
  'SOURCE_REPLACED',
  'IO_ERROR',
  'UPLOAD_FAILED',
  // Mostly found after people were told: the next night has not found it yet when it tells.
  'STATE_UNWRITABLE',
]);

/** Nothing for a dry run, and for one that lost the race for the lock. `past` null: not known. */
export function occasionOf(record: RunRecord, past: Past | null): Occasion {
  const nothing = { events: [], news: null };
  if (record.dryRun || record.status === 'skipped' || record.exitCode === 75) return nothing;
  if (record.status !== 'ok') return { events: ['failure'], news: null };
  if (record.command !== 'run') return nothing;
  const news = past === null ? graveNews(record) : newsOf(record, past);
  return { events: [...(past !== null && isRecovery(record, past) ? (['recovery'] as const) : []), ...(news ? (['warning'] as const) : []), 'success'], news };
}

/** Whether the warnings that a message tells of are, or were, critical. */
export const isCritical = (news: WarningNews): boolean =>
  [...news.appeared, ...news.still.map((s) => s.warning), ...news.ended].some((w) => w.severity === 'critical');

function isRecovery(record: RunRecord, past: Past): boolean {
  for (const earlier of past.since(record.name)) {
    if (earlier.runId === record.runId || earlier.status === 'skipped' || earlier.status === 'running' || earlier.exitCode === 75) continue;
    // What became of a migration or a restore says nothing about backups.
    if (earlier.command === 'guard' || earlier.command === 'restore') continue;
    // It had made its copy, and could only not write that down.
    if (earlier.error?.code === 'STATE_UNWRITABLE' && earlier.copy?.status === 'good') return false;
    // One that could only not tell people has queued its own message, and its recovery is the delivery of that.
    if (earlier.status !== 'ok' && earlier.error?.code !== 'NOTIFY_FAILED') return true;
    if (earlier.command === 'run') return false;
  }
  return false;
}

/** Where it is not known what was told, what is critical is told every night: better than never. */
function graveNews(record: RunRecord): WarningNews | null {
  const appeared = [...worstOf(record).values()].filter((w) => w.severity === 'critical');
  return appeared.length === 0 ? null : { appeared, still: [], ended: [] };
}

/** A warning is the same one as long as its code is: the figures in its words change from night to night. */
function newsOf(record: RunRecord, past: Past): WarningNews | null {
  const now = worstOf(record);
  const last = firstOf(finishedRuns(record, past));
  const before = last ? worstOf(last) : new Map<Warning['code'], Warning>();
  const isGraver = (w: Warning): boolean => w.severity === 'critical' && before.get(w.code)?.severity === 'warning';
  const appeared = [...now.values()].filter((w) => !before.has(w.code) || isGraver(w));
  const going = [...now.values()].filter((w) => !appeared.includes(w));
  const still = last && going.length > 0 ? weeksOld(record, going, last, finishedRuns(record, past)) : [];
  const ended = [...before.values()].filter((w) => !now.has(w.code) && !MOMENTARY.has(w.code));
  return appeared.length + still.length + ended.length === 0 ? null : { appeared, still, ended };
}

/** Left at once, since the history can do nothing else while it is read. */
function firstOf(runs: Iterable<RunRecord>): RunRecord | null {
  for (const run of runs) return run;
  return null;
}

/** Those whose age in whole weeks has grown since the last run. */
function weeksOld(record: RunRecord, going: readonly Warning[], last: RunRecord, runs: Iterable<RunRecord>): WarningNews['still'] {
  const since = new Map(going.map((w) => [w.code, last.startedAt]));
  const open = new Set<Warning['code']>(since.keys());
  for (const run of runs) {
    const had = worstOf(run);
    for (const code of open) {
      if (had.has(code)) since.set(code, run.startedAt);
      else open.delete(code);
    }
    if (open.size === 0) break;
  }
  const weeks = (from: string, to: string): number => Math.floor((Date.parse(to) - Date.parse(from)) / WEEK_MS);
  return going.flatMap((warning) => {
    const from = since.get(warning.code) ?? record.startedAt;
    return weeks(from, record.startedAt) > weeks(from, last.startedAt) ? [{ warning, since: from }] : [];
  });
}

/** Earlier runs that came as far as this one. */
function* finishedRuns(record: RunRecord, past: Past): Generator<RunRecord> {
  for (const run of past.since(record.name)) {
    if (run.runId !== record.runId && isFinishedRun(run)) yield run;
  }
}

/** One for each code, the gravest. */
function worstOf(record: RunRecord): Map<Warning['code'], Warning> {
  const worst = new Map<Warning['code'], Warning>();
  for (const w of record.warnings) {
    const known = worst.get(w.code);
    if (!SILENT.has(w.code) && (!known || (known.severity === 'warning' && w.severity === 'critical'))) worst.set(w.code, w);
  }
  return worst;
}
