/**
 * Rules that look at more than one run: what no stage can see, since each night by itself was well. Pure: (facts) → remarks. They
 * never change a run's exit code (DESIGN, "Telling").
 */
import { wholeSize } from './catalog.js';
import { bytes, duration, plural } from './format.js';
import type { Warning } from './outcome.js';
import { critical, warning } from './outcome.js';
import type { Manifest, RunRecord } from './records.js';

/** What looks at more than one night. Such a warning holds until a later night does not find it any more. */
export const RULES: ReadonlySet<string> = new Set<Warning['code']>([
  'COPIES_GONE',
  'COPY_SHRANK',
  'TABLE_GONE',
  'TABLE_EMPTY',
  'DESTINATION_BEHIND',
  'SLOW_RUN',
  'WAL_GREW',
  'SPACE_LOW',
  'SPACE_TREND',
  'NOT_VERIFIED',
  // Not one of them, but as lasting: it is met every night until a person has looked.
  'HEAL_FAILED',
]);

const MINUTE = 60_000;
const DAY = 86_400_000;

/** Rows of a table from which on it does not become empty by itself. */
const THOUSANDS = 1000;
/** Good runs that say how long a run takes, and how fast the disk fills. */
const LOOKED_BACK = 10;
export const TREND_RUNS = 30;

/** What is known when a run has made its copy. Sizes in bytes, times in milliseconds. */
export interface RuleFacts {
  readonly now: number;
  /** The copy just made, with what is sealed. */
  readonly made: Manifest;
  /** The good copy before it; null: there was none. Of a sealed one tables and rows are not known. */
  readonly before: Manifest | null;
  /** What the last run, or prune, had kept, newest first, and which of it is not there any more; null: it is not known. */
  readonly kept: { readonly files: readonly string[]; readonly gone: readonly string[]; readonly since: string } | null;
  readonly durationMs: number;
  readonly warnAfterMs: number | null;
  readonly source: { readonly sizeBytes: number; readonly walGrewBytes: number };
  readonly freeBytes: number | null;
  /** Runs of this name, newest first, without this one: good ones with their time and the space that was free then. */
  readonly runs: readonly Pick<RunRecord, 'status' | 'startedAt' | 'durationMs' | 'freeBytes'>[];
  /** When stored copies were last proven in full by `verify`; null: never. When the name began to be backed up. */
  readonly provenAt: number | null;
  readonly sinceAt: number | null;
  /** Destinations that lack something, with the time of the newest copy that arrived; null: none ever. */
  readonly behind: readonly { readonly destination: string; readonly newestAt: number | null }[];
  readonly maxAgeMs: number;
}

/** All rules, gravest first. */
export const rules = (f: RuleFacts): Warning[] =>
  [...gone(f), ...losses(f), ...behind(f), ...slow(f), ...walGrew(f), ...space(f), ...unproven(f)].sort(
    (a, b) => Number(b.severity === 'critical') - Number(a.severity === 'critical'),
  );

/** Somebody who clears up by hand begins with the oldest; the newest goes with a disk, or with all of them. */
function gone({ kept }: RuleFacts): Warning[] {
  const [newest] = kept?.files ?? [];
  if (!kept || newest === undefined || kept.gone.length === 0) return [];
  const isAll = kept.gone.length === kept.files.length;
  const names = kept.gone.slice(0, 5).join(', ') + (kept.gone.length > 5 ? ', ...' : '');
  const what = `${isAll ? 'all copies' : plural(kept.gone.length, 'copy', 'copies')} that the run of ${kept.since} had kept ${isAll || kept.gone.length > 1 ? 'are' : 'is'} gone`;
  const from = `dbbackup has not removed ${kept.gone.length === 1 ? 'it' : 'them'}: look who or what did, and whether this is the disk that it should be`;
  return [(kept.gone.includes(newest) ? critical : warning)('COPIES_GONE', `${what} (${names}); ${from}`)];
}

/** What to do about a loss: there is time until that copy is pruned, and no longer. */
const IF_NOT_MEANT = '; if that was not meant: stop the application, and restore that copy before it is pruned';

/** What one copy lacks that the one before it had. */
export const losses = (two: Pick<RuleFacts, 'made' | 'before'>): Warning[] => [...shrank(two), ...tables(two)];

/** Plain sizes: how well the bytes compress says nothing. */
function shrank({ made, before }: Pick<RuleFacts, 'made' | 'before'>): Warning[] {
  if (!before || made.plainSizeBytes * 2 > before.plainSizeBytes) return [];
  return [
    critical('COPY_SHRANK', `the copy has ${bytes(made.plainSizeBytes)}, the one before (${before.file}) had ${bytes(before.plainSizeBytes)}${IF_NOT_MEANT}`),
  ];
}

function tables({ made, before }: Pick<RuleFacts, 'made' | 'before'>): Warning[] {
  // Nothing to compare: sealed, or too many tables to list.
  if (!before || Object.keys(before.rows).length === 0 || Object.keys(made.rows).length === 0) return [];
  const gone = Object.keys(before.rows).filter((table) => !Object.hasOwn(made.rows, table));
  const empty = Object.entries(before.rows).filter(([table, rows]) => rows >= THOUSANDS && made.rows[table] === 0);
  const list = (names: readonly string[]): string => names.slice(0, 5).join(', ') + (names.length > 5 ? ', ...' : '');
  return [
    ...(gone.length === 0
      ? []
      : [critical('TABLE_GONE', `${plural(gone.length, 'table')} of ${before.file} ${gone.length === 1 ? 'is' : 'are'} gone: ${list(gone)}${IF_NOT_MEANT}`)]),
    ...(empty.length === 0
      ? []
      : [
          warning(
            'TABLE_EMPTY',
            `now empty, with thousands of rows in ${before.file}: ${list(empty.map(([table, rows]) => `${table} (${rows})`))}${IF_NOT_MEANT}`,
          ),
        ]),
  ];
}

function behind({ behind: destinations, now, maxAgeMs }: RuleFacts): Warning[] {
  return destinations.map(({ destination, newestAt }) => {
    const late = newestAt === null || now - newestAt > maxAgeMs;
    const since = newestAt === null ? 'nothing has ever arrived there' : `its newest copy is ${duration(now - newestAt)} old`;
    return (late ? critical : warning)('DESTINATION_BEHIND', `${destination} is behind: ${since}`);
  });
}

function slow({ durationMs, warnAfterMs, runs }: RuleFacts): Warning[] {
  if (warnAfterMs !== null && durationMs > warnAfterMs)
    return [warning('SLOW_RUN', `the run took ${duration(durationMs)}; warn-after is ${duration(warnAfterMs)}`)];
  const good = runs
    .filter((r) => r.status === 'ok')
    .flatMap((r) => r.durationMs ?? [])
    .slice(0, LOOKED_BACK);
  const sorted = good.toSorted((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  // Both: three times nothing is nothing, and a run of an hour may take a minute more.
  if (good.length < LOOKED_BACK || median === undefined || durationMs <= 3 * median + MINUTE) return [];
  return [warning('SLOW_RUN', `the run took ${duration(durationMs)}; half of the last ${LOOKED_BACK} good ones took no more than ${duration(median)}`)];
}

function walGrew({ source }: RuleFacts): Warning[] {
  if (source.walGrewBytes <= source.sizeBytes) return [];
  return [
    warning(
      'WAL_GREW',
      `the WAL grew by ${bytes(source.walGrewBytes)} during the snapshot, more than the database (${bytes(source.sizeBytes)}): run when it writes less`,
    ),
  ];
}

/** @param one what a copy takes, bytes */
export function spaceLow(freeBytes: number, one: number): Warning | null {
  if (freeBytes >= 3 * one) return null;
  const room = plural(Math.floor(freeBytes / Math.max(1, one)), 'more copy', 'more copies');
  return warning('SPACE_LOW', `${bytes(freeBytes)} are free in the backup directory: room for ${room} of ${bytes(one)}; keep fewer (keep-*), or make room`);
}

function space({ freeBytes, made, runs, now }: RuleFacts): Warning[] {
  if (freeBytes === null) return [];
  const low = spaceLow(freeBytes, wholeSize(made));
  if (low) return [low];
  const points = [
    { at: now, free: freeBytes },
    ...runs
      .slice(0, TREND_RUNS)
      .flatMap((r) => (r.freeBytes === undefined || r.freeBytes === null ? [] : [{ at: Date.parse(r.startedAt), free: r.freeBytes }])),
  ];
  const days = daysLeft(points);
  return days === null || days > 14
    ? []
    : [
        warning(
          'SPACE_TREND',
          `at the present trend the backup directory is full in ${plural(Math.max(0, Math.floor(days)), 'day')} (${bytes(freeBytes)} free now)`,
        ),
      ];
}

/** By the line of least squares through what was free; null: too little is known, or it does not fall. */
function daysLeft(points: readonly { readonly at: number; readonly free: number }[]): number | null {
  const [newest] = points;
  const oldest = points.at(-1);
  if (!newest || !oldest || points.length < 5 || newest.at - oldest.at < 3 * DAY) return null;
  const mean = (of: readonly number[]): number => of.reduce((a, b) => a + b, 0) / of.length;
  const at = mean(points.map((p) => p.at));
  const free = mean(points.map((p) => p.free));
  const slope = points.reduce((sum, p) => sum + (p.at - at) * (p.free - free), 0) / points.reduce((sum, p) => sum + (p.at - at) ** 2, 0);
  return slope < 0 ? newest.free / -slope / DAY : null;
}

function unproven({ now, provenAt, sinceAt }: RuleFacts): Warning[] {
  const since = provenAt ?? sinceAt;
  if (since === null || now - since <= 30 * DAY) return [];
  return [
    warning(
      'NOT_VERIFIED',
      `no stored copy was proven in full for ${plural(Math.floor((now - since) / DAY), 'day')}: dbbackup verify --all, on a weekly timer (deploy/)`,
    ),
  ];
}
