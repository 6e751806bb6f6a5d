/**
 * 400 nights of one database, played through the rules and through what decides on messages: who is set for failures,
 * recoveries and warnings hears exactly this, and could live with it.
 */
import { expect, test } from 'vitest';
import { occasionOf } from '../../src/notifiers/news.js';
import { type Warning, warning } from '../../src/outcome.js';
import type { Manifest, RunRecord } from '../../src/records.js';
import { rules } from '../../src/rules.js';
import { manifestOf } from '../support/manifest.js';
import { recordOf } from '../support/records.js';

const DAY = 86_400_000;
const FIRST = Date.parse('2026-01-01T03:17:00Z');
const NIGHTS = 400;
const GB = 1e9;

const within = (night: number, from: number, to: number): boolean => night >= from && night <= to;

/** What happens in which night. */
const story = {
  /** The weekly timer of `verify` is set up late. */
  verified: (night: number): boolean => night >= 45 && night % 7 === 0,
  /** A bucket whose key was revoked. */
  destinationDown: (night: number): boolean => within(night, 60, 64),
  /** A migration drops a table and empties another. */
  tables: (night: number): Record<string, number> =>
    night < 100 ? { orders: 50_000 + night, old: 300, queue: 4000 } : { orders: 50_000 + night, queue: night < 120 ? 4000 : 0 },
  /** An import that forgot a column. */
  violated: (night: number): boolean => within(night, 150, 165),
  /** An application that holds its database at night. */
  locked: (night: number): boolean => within(night, 200, 203),
  /** Another program fills the disk from night 280 on, until somebody clears it up. */
  freeBytes: (night: number): number => (night < 280 ? 500 * GB : night < 310 ? 500 * GB - (night - 280) * 12 * GB : 900 * GB),
  /** The host copies its disks in that night. */
  durationMs: (night: number): number => (night === 350 ? 600_000 : 20_000 + (night % 5) * 1000),
};

interface Past {
  readonly records: RunRecord[];
  good: Manifest | null;
  provenAt: number | null;
  arrivedAt: number | null;
}

function play(night: number, past: Past): RunRecord {
  const now = FIRST + night * DAY;
  const failed = story.locked(night);
  const down = story.destinationDown(night);
  const base = `app-${new Date(now).toISOString().slice(0, 19).replace(/[-:]/g, '')}Z`;
  const made = { ...manifestOf(base, 'x'), plainSizeBytes: GB + night * 1e6, sizeBytes: GB + night * 1e6, rows: story.tables(night) } as Manifest;
  const warnings: Warning[] = story.violated(night) && !failed ? [warning('ROWS_VIOLATE', `${night} rows`)] : [];
  if (!failed) {
    const found = rules({
      now,
      made,
      before: past.good,
      durationMs: story.durationMs(night),
      warnAfterMs: null,
      source: { sizeBytes: GB, walGrewBytes: 0 },
      freeBytes: story.freeBytes(night),
      runs: past.records.toReversed().slice(0, 30),
      provenAt: past.provenAt,
      sinceAt: past.records[0] ? Date.parse(past.records[0].startedAt) : null,
      behind: down ? [{ destination: 's3://bucket/app', newestAt: past.arrivedAt }] : [],
      kept: null,
      maxAgeMs: 26 * 3_600_000,
    });
    warnings.push(...found);
    past.good = made;
    if (!down) past.arrivedAt = now;
    if (story.verified(night)) past.provenAt = now;
  }
  const status = failed ? 'failed' : down ? 'incomplete' : 'ok';
  return recordOf({
    runId: `night ${night}`,
    status,
    startedAt: new Date(now).toISOString(),
    durationMs: story.durationMs(night),
    exitCode: failed ? 1 : down ? 3 : 0,
    warnings,
    ...(failed ? {} : { freeBytes: story.freeBytes(night) }),
  });
}

test('what an operator hears in 400 nights', () => {
  const past: Past = { records: [], good: null, provenAt: null, arrivedAt: null };
  const heard: string[] = [];
  for (let night = 0; night < NIGHTS; night++) {
    const record = play(night, past);
    past.records.push(record);
    const { events, news } = occasionOf(record, { since: () => past.records.toReversed() });
    const [event] = events;
    if (event === undefined || event === 'success') continue;
    const of = (sign: string, warnings: readonly Warning[]): string[] => warnings.map((w) => `${sign}${w.code}`);
    heard.push(
      [`${night}: ${event}`, ...of('+', news?.appeared ?? []), ...of('still ', news?.still.map((s) => s.warning) ?? []), ...of('-', news?.ended ?? [])].join(
        ' ',
      ),
    );
  }
  expect(heard).toEqual([
    // Nobody has proven a stored copy yet; once a week, until somebody does.
    '31: warning +NOT_VERIFIED',
    '38: warning still NOT_VERIFIED',
    '45: warning still NOT_VERIFIED',
    '50: warning -NOT_VERIFIED',
    // Each night that leaves something undone is told.
    '60: failure',
    '61: failure',
    '62: failure',
    '63: failure',
    '64: failure',
    '65: recovery -DESTINATION_BEHIND',
    // What happened once is told once.
    '100: warning +TABLE_GONE',
    '120: warning +TABLE_EMPTY',
    '150: warning +ROWS_VIOLATE',
    '157: warning still ROWS_VIOLATE',
    '164: warning still ROWS_VIOLATE',
    '166: warning -ROWS_VIOLATE',
    '200: failure',
    '201: failure',
    '202: failure',
    '203: failure',
    '204: recovery',
    // Thirteen days before the end, not the week in which it began.
    '308: warning +SPACE_TREND',
    '310: warning -SPACE_TREND',
    '350: warning +SLOW_RUN',
  ]);
});
