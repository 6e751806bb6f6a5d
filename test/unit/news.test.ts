/** What finished runs have to tell, from records alone: whole months of nights. */
import { describe, expect, test } from 'vitest';
import { isCritical, type Occasion, occasionOf } from '../../src/notifiers/news.js';
import { critical, type Warning, warning } from '../../src/outcome.js';
import type { RunRecord } from '../../src/records.js';
import { recordOf } from '../support/records.js';

const DAY = 86_400_000;
const FIRST = Date.parse('2026-01-01T03:00:00Z');

const record = (night: number, more: Partial<RunRecord> = {}): RunRecord =>
  recordOf({ runId: `run ${night} ${more.command ?? ''}`, startedAt: new Date(FIRST + night * DAY + (night % 7) * 1000).toISOString(), ...more });

/** Plays nights through; each sees those before it, and itself as it was saved when it began to tell. */
function nights(records: readonly RunRecord[]): { night: string; occasion: Occasion }[] {
  return records.map((r, i) => ({
    night: r.runId,
    occasion: occasionOf(r, { since: () => records.slice(0, i + 1).toReversed() }),
  }));
}
const brief = ({ events, news }: Occasion): string =>
  [
    events[0] ?? '-',
    ...(news ? [`+${news.appeared.map((w) => w.code)}`, `=${news.still.map((s) => s.warning.code)}`, `-${news.ended.map((w) => w.code)}`] : []),
  ].join(' ');
const told = (records: readonly RunRecord[]): string[] =>
  nights(records).flatMap(({ occasion }, night) => (occasion.events[0] === 'success' ? [] : [`${night}: ${brief(occasion)}`]));

const rows = (n: number): Warning => warning('ROWS_VIOLATE', `${n} rows`);
const FAILED = { status: 'failed', exitCode: 1 } as const;

describe('a warning', () => {
  test('is told when it appears, once a week while it lasts, and when it ends, whatever its figures are', () => {
    const all = Array.from({ length: 30 }, (_, night) => record(night, night >= 3 && night < 25 ? { warnings: [rows(night)] } : {}));
    expect(told(all)).toEqual([
      '3: warning +ROWS_VIOLATE = -',
      '10: warning + =ROWS_VIOLATE -',
      '17: warning + =ROWS_VIOLATE -',
      '24: warning + =ROWS_VIOLATE -',
      '25: warning + = -ROWS_VIOLATE',
    ]);
    const still = nights(all)[10]?.occasion.news?.still[0];
    expect(still).toEqual({ warning: rows(10), since: all[3]?.startedAt });
  });

  test('is told again when it becomes critical, and not when it becomes milder', () => {
    const grave = critical('ROWS_VIOLATE', 'all rows');
    const all = [[rows(1)], [rows(1), grave], [grave], [rows(1)], []].map((warnings, night) => record(night, { warnings }));
    expect(told(all)).toEqual(['0: warning +ROWS_VIOLATE = -', '1: warning +ROWS_VIOLATE = -', '4: warning + = -ROWS_VIOLATE']);
    expect(nights(all).map(({ occasion }) => occasion.news && isCritical(occasion.news))).toEqual([false, true, null, null, false]);
  });

  test('that happened at a moment does not end, and what tells of telling is none', () => {
    const healed = warning('HEALED', 'cleared away');
    const untold = warning('NOTIFY_FAILED', 'refused');
    expect(told([[], [healed], [], [untold], []].map((warnings, night) => record(night, { warnings })))).toEqual(['1: warning +HEALED = -']);
  });

  test('is the same one after a night that failed, in another command or a dry run in between', () => {
    const with1 = { warnings: [rows(1)] };
    const all = [
      record(0, with1),
      record(1, FAILED),
      record(2, with1),
      record(3, { dryRun: true }),
      record(3, { command: 'prune' }),
      record(4, { status: 'skipped' }),
      record(5, with1),
      record(6, { ...with1, status: 'incomplete', exitCode: 3 }),
      record(7),
    ];
    expect(nights(all).map(({ occasion }) => brief(occasion))).toEqual([
      'warning +ROWS_VIOLATE = -',
      'failure',
      'recovery',
      '-',
      '-',
      '-',
      'success',
      'failure',
      'recovery + = -ROWS_VIOLATE',
    ]);
  });

  test('that comes with a recovery is offered after it', () => {
    const [, last] = nights([record(0, FAILED), record(1, { warnings: [rows(1)] })]);
    expect(last?.occasion.events).toEqual(['recovery', 'warning', 'success']);
  });
});

test('without a history nothing is known to be new, and what is critical is told all the same', () => {
  const gone = critical('TABLE_GONE', 'orders');
  expect(occasionOf(record(0, { warnings: [rows(1), gone] }), null)).toEqual({
    events: ['warning', 'success'],
    news: { appeared: [gone], still: [], ended: [] },
  });
  expect(occasionOf(record(0, { warnings: [rows(1)] }), null)).toEqual({ events: ['success'], news: null });
  expect(occasionOf(record(0, FAILED), null)).toEqual({ events: ['failure'], news: null });
});

test('no event: a dry run, a skipped one, one that lost the race for the lock, another command that went well', () => {
  for (const more of [{ dryRun: true }, { status: 'skipped' }, { status: 'failed', exitCode: 75 }, { command: 'verify' }] as const) {
    expect(occasionOf(record(0, more), { since: () => [] }).events).toEqual([]);
  }
  expect(occasionOf(record(0, { ...FAILED, command: 'verify' }), { since: () => [] }).events).toEqual(['failure']);
});

test('the history is let go of as soon as it has said enough', () => {
  let open = 0;
  function* since(): Generator<RunRecord> {
    open++;
    try {
      for (let night = 9; night >= 0; night--) yield record(night, { warnings: [rows(1)] });
    } finally {
      open--;
    }
  }
  expect(occasionOf(record(10, { warnings: [rows(1)] }), { since }).events).toEqual(['success']);
  expect(open).toBe(0);
});
