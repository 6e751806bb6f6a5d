/**
 * Which copies go: the one decision that cannot be taken back. Properties over many directories, a second and slower
 * implementation to compare with, and the nights that calendars are known for.
 */
import { mkdirSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { readCopies, rfc3339 } from '../../src/catalog.js';
import type { Copy, CopyStatus } from '../../src/records.js';
import type { Decision } from '../../src/retention.js';
import { decide } from '../../src/retention.js';
import { spareable } from '../../src/room.js';
import type { Policy } from '../../src/settings/load.js';
import { tempDirectory } from '../support/cli.js';
import { plantCopy } from '../support/manifest.js';

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const NOTHING: Policy = { last: null, withinMs: null, daily: null, weekly: null, monthly: null, yearly: null };
const keep = (rules: Partial<Policy>): Policy => ({ ...NOTHING, ...rules });

interface Made {
  readonly at: number;
  readonly status?: CopyStatus;
  readonly tags?: readonly string[];
}

/** Copies as the catalog returns them: newest first, a second one within a second as `-2`. */
function copiesOf(made: readonly Made[]): Copy[] {
  const taken = new Map<string, number>();
  const inOrder = made.map((m, i) => ({ ...m, i })).sort((a, b) => Math.floor(a.at / 1000) - Math.floor(b.at / 1000) || a.i - b.i);
  const copies = inOrder.map((m): Copy => {
    const first = `app-${rfc3339(m.at).replace(/[-:]/g, '')}`;
    const n = (taken.get(first) ?? 0) + 1;
    taken.set(first, n);
    const base = n === 1 ? first : `${first}-${n}`;
    const verified = m.status !== 'unverified';
    return {
      file: `${base}.db`,
      manifest: verified ? `${base}.json` : null,
      name: 'app',
      createdAt: rfc3339(m.at),
      sizeBytes: 4096,
      sha256: verified ? 'a'.repeat(64) : null,
      status: m.status ?? 'good',
      verifiedAt: verified ? rfc3339(m.at) : null,
      method: verified ? 'vacuum-into' : null,
      source: verified ? '/srv/app.db' : null,
      tags: m.tags ?? [],
    };
  });
  return copies.reverse();
}

const at = (...times: string[]): Copy[] => copiesOf(times.map((t) => ({ at: Date.parse(t) })));
const removed = (d: Decision): string[] => d.remove.map((r) => r.file);
const kept = (d: Decision): string[] => d.keep.map((k) => k.file);
const reasonsOf = (d: Decision): Record<string, readonly string[]> => Object.fromEntries(d.keep.map((k) => [k.file.replace(/^app-|\.db$/g, ''), k.reasons]));
const isPlain = (c: Copy): boolean => c.status === 'good' && c.tags.length === 0;

// -------------------------------------------------------------------------------------------------------- generators

const NOW = Date.parse('2026-11-21T03:17:00Z');

/** Mostly nightly copies, with bursts within seconds and gaps of months: whatever a crontab and a person can produce. */
const age = fc.oneof(
  { weight: 5, arbitrary: fc.integer({ min: 0, max: 60 }).map((days) => days * DAY) },
  { weight: 3, arbitrary: fc.integer({ min: 0, max: 90 * 24 * 60 }).map((minutes) => minutes * 60_000) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: 5 }).map((seconds) => 2 * DAY + seconds * 1000) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: 5 * 366 * 24 }).map((hours) => hours * HOUR) },
);
const status = fc.oneof(
  { weight: 12, arbitrary: fc.constant<CopyStatus>('good') },
  { weight: 3, arbitrary: fc.constant<CopyStatus>('suspect') },
  { weight: 1, arbitrary: fc.constantFrom<CopyStatus>('bad', 'unverified') },
);
const tags = fc.oneof({ weight: 7, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: fc.constantFrom(['before-restore'], ['before-guard']) });
const made = (statuses: fc.Arbitrary<CopyStatus>): fc.Arbitrary<Made> =>
  fc.record({ age, status: statuses, tags }).map((m) => ({ at: NOW - m.age, status: m.status, tags: m.status === 'unverified' ? [] : m.tags }));
const directory = fc.array(made(status), { maxLength: 60, size: 'max' }).map(copiesOf);
const healthy = fc.array(made(fc.constant<CopyStatus>('good')), { maxLength: 60, size: 'max' }).map(copiesOf);
const count = fc.oneof(fc.constant(null), fc.integer({ min: 0, max: 12 }), fc.constant(Number.POSITIVE_INFINITY));
const few = fc.oneof(fc.constant(null), fc.integer({ min: 0, max: 6 }));
const within = fc.oneof(
  fc.constant(null),
  fc.integer({ min: 1, max: 100 * 24 }).map((h) => h * HOUR),
);
const policyOf = (n: fc.Arbitrary<number | null>): fc.Arbitrary<Policy> => fc.record({ last: n, withinMs: within, daily: n, weekly: n, monthly: n, yearly: n });
const policy = policyOf(count);
/** Without `all`, so that something is removed in most cases. */
const smallPolicy = policyOf(few);

const holds = <T>(arbitrary: fc.Arbitrary<T>, check: (value: T) => void): void => fc.assert(fc.property(arbitrary, check), { numRuns: 100 });

// ------------------------------------------------------------------------------------------------------- the oracle

/** A week by counting Thursdays, not by the formula that the code uses: `2026-W53`. */
function weekOf(time: number): string {
  const day = new Date(time);
  const monday = time - ((day.getUTCDay() + 6) % 7) * DAY;
  const year = new Date(monday + 3 * DAY).getUTCFullYear();
  let week = 0;
  for (let t = monday + 3 * DAY; new Date(t).getUTCFullYear() === year; t -= 7 * DAY) week++;
  return `${year}-W${String(week).padStart(2, '0')}`;
}

/** What the six rules keep of good, untagged copies, each rule by itself and as plainly as it can be said. */
function oracle(good: readonly Copy[], p: Policy): Set<string> {
  const time = (c: Copy): number => Date.parse(c.createdAt);
  const newestOfEach = (bucket: (c: Copy) => string, n: number | null): Copy[] => {
    const groups = new Map<string, Copy>();
    for (const c of [...good].reverse()) groups.set(bucket(c), c);
    const newest = [...groups.values()].reverse();
    return newest.slice(0, n ?? 0);
  };
  const days = (c: Copy): string => c.createdAt.slice(0, 10);
  const newestTime = good[0] ? time(good[0]) : 0;
  return new Set(
    [
      ...good.slice(0, 1),
      ...good.slice(0, p.last ?? 0),
      ...newestOfEach(days, p.daily),
      ...newestOfEach((c) => weekOf(time(c)), p.weekly),
      ...newestOfEach((c) => days(c).slice(0, 7), p.monthly),
      ...newestOfEach((c) => days(c).slice(0, 4), p.yearly),
      ...good.filter((c) => p.withinMs !== null && newestTime - time(c) <= p.withinMs),
    ].map((c) => c.file),
  );
}

describe('for every directory and every policy', () => {
  test('each copy is kept or removed, never both, never neither, and in its place', () => {
    holds(fc.tuple(directory, policy), ([copies, p]) => {
      const d = decide(copies, p, NOW);
      expect([...kept(d), ...removed(d)].toSorted()).toEqual(copies.map((c) => c.file).toSorted());
      const order = copies.map((c) => c.file);
      expect(kept(d)).toEqual(order.filter((f) => kept(d).includes(f)));
      expect(removed(d)).toEqual(order.filter((f) => removed(d).includes(f)));
    });
  });

  test('each comes with its reasons', () => {
    holds(fc.tuple(directory, policy), ([copies, p]) => {
      const d = decide(copies, p, NOW);
      for (const { reasons } of d.keep) {
        expect(reasons.length).toBeGreaterThan(0);
        for (const r of reasons) expect(r).toMatch(/\S/);
        expect(new Set(reasons).size).toBe(reasons.length);
      }
      for (const { reason } of d.remove) expect(reason).toMatch(/\S/);
    });
  });

  test('the newest good copy is never removed', () => {
    holds(fc.tuple(directory, smallPolicy), ([copies, p]) => {
      const newest = copies.find(isPlain);
      if (newest) expect(removed(decide(copies, p, NOW))).not.toContain(newest.file);
    });
  });

  test('the rules keep what a second implementation keeps', () => {
    let went = 0;
    holds(fc.tuple(healthy, smallPolicy), ([copies, p]) => {
      const good = copies.filter(isPlain);
      const d = decide(copies, p, NOW);
      const goodKept = kept(d).filter((f) => good.some((c) => c.file === f));
      expect(goodKept).toEqual(good.map((c) => c.file).filter((f) => oracle(good, p).has(f)));
      went += d.remove.length;
    });
    // The generator makes cases in which something goes.
    expect(went).toBeGreaterThan(500);
  });

  test('another rule, or a larger one, never removes more', () => {
    const more = fc.record({
      rule: fc.constantFrom('last', 'daily', 'weekly', 'monthly', 'yearly', 'withinMs'),
      by: fc.integer({ min: 1, max: 20 }),
    });
    holds(fc.tuple(directory, smallPolicy, more), ([copies, p, { rule, by }]) => {
      const key = rule as keyof Policy;
      const raised = { ...p, [key]: (p[key] ?? 0) + (key === 'withinMs' ? by * DAY : by) };
      const before = new Set(removed(decide(copies, p, NOW)));
      for (const file of removed(decide(copies, raised, NOW))) expect(before).toContain(file);
    });
  });

  test('keep-last all removes nothing at all', () => {
    holds(fc.tuple(directory, policy), ([copies, p]) => {
      expect(decide(copies, { ...p, last: Number.POSITIVE_INFINITY }, NOW).remove).toEqual([]);
    });
  });

  test('deciding again after removing removes nothing more', () => {
    holds(fc.tuple(directory, smallPolicy), ([copies, p]) => {
      const first = decide(copies, p, NOW);
      const left = copies.filter((c) => kept(first).includes(c.file));
      const second = decide(left, p, NOW);
      expect(second.remove).toEqual([]);
      expect(second.hold).toEqual(first.hold);
    });
  });

  test('bad and unverified copies are never removed', () => {
    holds(fc.tuple(directory, smallPolicy), ([copies, p]) => {
      const gone = removed(decide(copies, p, NOW));
      for (const c of copies) if (c.status === 'bad' || c.status === 'unverified') expect(gone).not.toContain(c.file);
    });
  });

  test('while the newest copy is suspect only suspects beyond the newest three go', () => {
    let held = 0;
    holds(fc.tuple(directory, smallPolicy), ([copies, p]) => {
      const d = decide(copies, p, NOW);
      const newest = copies.find((c) => c.tags.length === 0 && (c.status === 'good' || c.status === 'suspect'));
      expect(d.hold?.code === 'SUSPECT').toBe(newest?.status === 'suspect');
      if (newest?.status !== 'suspect') return;
      held++;
      const suspects = copies.filter((c) => c.status === 'suspect' && c.tags.length === 0).map((c) => c.file);
      expect(removed(d)).toEqual(suspects.slice(3));
      expect(d.hold).toEqual({ code: 'SUSPECT', file: newest.file });
    });
    expect(held).toBeGreaterThan(3);
  });

  test('the newest three suspects stay under every policy', () => {
    holds(fc.tuple(directory, smallPolicy), ([copies, p]) => {
      const three = copies.filter((c) => c.status === 'suspect' && c.tags.length === 0).slice(0, 3);
      const gone = removed(decide(copies, p, NOW));
      for (const c of three) expect(gone).not.toContain(c.file);
    });
  });

  test('nothing goes while a copy is dated more than an hour ahead of the clock', () => {
    const future = fc.record({ ms: fc.integer({ min: HOUR + 1000, max: 400 * DAY }), status, tags });
    holds(fc.tuple(fc.array(made(status), { maxLength: 30 }), future, smallPolicy), ([before, f, p]) => {
      const copies = copiesOf([...before, { at: NOW + f.ms, status: f.status, tags: f.tags }]);
      const d = decide(copies, p, NOW);
      expect(d.remove).toEqual([]);
      expect(kept(d)).toEqual(copies.map((c) => c.file));
      expect(d.hold).toEqual({ code: 'CLOCK', file: copies[0]?.file });
      for (const { reasons, by } of d.keep) expect([reasons.join(), by]).toEqual([expect.stringContaining(copies[0]?.file ?? ''), 'hold']);
    });
  });

  test('tagged copies live 30 days, and count for nothing', () => {
    let old = 0;
    holds(fc.tuple(directory, smallPolicy), ([copies, p]) => {
      const d = decide(copies, p, NOW);
      const untagged = copies.filter((c) => c.tags.length === 0);
      // What happens to the others is the same without them.
      const alone = decide(untagged, p, NOW);
      expect(d.keep.filter((k) => untagged.some((c) => c.file === k.file))).toEqual(alone.keep);
      expect(d.remove.filter((r) => untagged.some((c) => c.file === r.file))).toEqual(alone.remove);
      if (d.hold) return;
      const newest = untagged.find((c) => c.status === 'good');
      const last = newest ? undefined : copies.find((c) => c.status === 'good');
      const hasJumped = newest !== undefined && NOW - Date.parse(newest.createdAt) > 30 * DAY;
      for (const c of copies.filter((t) => t.tags.length > 0 && t.status !== 'bad')) {
        const expired = NOW - Date.parse(c.createdAt) >= 30 * DAY && c !== last && !hasJumped;
        if (expired) old++;
        expect(removed(d).includes(c.file)).toBe(expired);
      }
    });
    expect(old).toBeGreaterThan(20);
  });
});

describe('the time zone of the machine', () => {
  const home = process.env['TZ'];
  afterEach(() => {
    if (home === undefined) delete process.env['TZ'];
    else process.env['TZ'] = home;
  });
  const ZONES = ['Pacific/Kiritimati', 'Pacific/Marquesas', 'America/New_York', 'Europe/Berlin', 'Asia/Kolkata'];

  test('changes nothing', () => {
    // That setting TZ takes effect in this process is what makes the rest a test.
    process.env['TZ'] = 'Pacific/Kiritimati';
    expect(new Date(NOW).getHours()).toBe(17);
    process.env['TZ'] = 'Pacific/Marquesas';
    expect(new Date(NOW).getMinutes()).toBe(47);
    holds(fc.tuple(directory, smallPolicy, fc.constantFrom(...ZONES)), ([copies, p, zone]) => {
      process.env['TZ'] = 'UTC';
      const here = decide(copies, p, NOW);
      process.env['TZ'] = zone;
      expect(decide(copies, p, NOW)).toEqual(here);
    });
  });

  test('nor does a night with 23 or 25 hours', () => {
    process.env['TZ'] = 'Europe/Berlin';
    // 2026-10-25, 03:00 back to 02:00; 2026-03-29, 02:00 on to 03:00.
    const autumn = at('2026-10-25T23:30:00Z', '2026-10-25T01:30:00Z', '2026-10-25T00:30:00Z', '2026-10-24T23:30:00Z', '2026-10-24T21:30:00Z');
    expect(kept(decide(autumn, keep({ daily: 2 }), Date.parse('2026-10-26T00:00:00Z')))).toEqual(['app-20261025T233000Z.db', 'app-20261024T233000Z.db']);
    const spring = at('2026-03-30T00:30:00Z', '2026-03-29T22:30:00Z', '2026-03-29T00:59:59Z', '2026-03-28T23:30:00Z');
    expect(kept(decide(spring, keep({ daily: 3 }), Date.parse('2026-03-30T01:00:00Z')))).toEqual([
      'app-20260330T003000Z.db',
      'app-20260329T223000Z.db',
      'app-20260328T233000Z.db',
    ]);
  });
});

describe('by example', () => {
  const rows: { name: string; copies: Copy[]; policy: Policy; reasons: Record<string, readonly string[]>; gone: string[]; now?: string }[] = [
    {
      name: 'no copies',
      copies: [],
      policy: keep({ last: 3 }),
      reasons: {},
      gone: [],
    },
    {
      name: 'keep-last counts copies, not days',
      copies: at('2026-11-20T03:00:00Z', '2026-11-20T02:00:00Z', '2026-11-20T01:00:00Z', '2026-11-19T01:00:00Z'),
      policy: keep({ last: 2 }),
      reasons: { '20261120T030000Z': ['newest good copy', 'last #1'], '20261120T020000Z': ['last #2'] },
      gone: ['app-20261120T010000Z.db', 'app-20261119T010000Z.db'],
    },
    {
      name: 'keep-daily counts days that have a copy, not days of the calendar',
      copies: at('2026-11-20T03:00:00Z', '2026-11-20T02:00:00Z', '2026-08-01T05:00:00Z', '2026-08-01T04:00:00Z', '2025-01-01T00:00:00Z'),
      policy: keep({ daily: 2 }),
      reasons: { '20261120T030000Z': ['newest good copy', 'daily 2026-11-20'], '20260801T050000Z': ['daily 2026-08-01'] },
      gone: ['app-20261120T020000Z.db', 'app-20260801T040000Z.db', 'app-20250101T000000Z.db'],
    },
    {
      name: 'rules are OR-ed, and a copy has all its reasons',
      copies: at('2026-11-20T03:00:00Z', '2026-11-19T03:00:00Z', '2026-10-31T03:00:00Z', '2025-12-31T03:00:00Z', '2025-12-30T03:00:00Z'),
      policy: keep({ last: 1, daily: 2, monthly: 2, yearly: 2 }),
      reasons: {
        '20261120T030000Z': ['newest good copy', 'last #1', 'daily 2026-11-20', 'monthly 2026-11', 'yearly 2026'],
        '20261119T030000Z': ['daily 2026-11-19'],
        '20261031T030000Z': ['monthly 2026-10'],
        '20251231T030000Z': ['yearly 2025'],
      },
      gone: ['app-20251230T030000Z.db'],
    },
    {
      name: 'keep-within counts back from the newest copy, not from now; its edge is kept',
      copies: at('2026-06-10T12:00:00Z', '2026-06-09T12:00:00Z', '2026-06-08T12:00:00Z', '2026-06-08T11:59:59Z'),
      policy: keep({ withinMs: 48 * HOUR }),
      reasons: { '20260610T120000Z': ['newest good copy', 'within'], '20260609T120000Z': ['within'], '20260608T120000Z': ['within'] },
      gone: ['app-20260608T115959Z.db'],
    },
    {
      name: 'ISO weeks: Monday 2024-12-30 belongs to 2025, the Sunday before it to 2024',
      copies: at('2025-01-06T00:00:00Z', '2025-01-05T23:59:59Z', '2024-12-30T00:00:00Z', '2024-12-29T23:59:59Z', '2024-12-23T00:00:00Z'),
      policy: keep({ weekly: 3 }),
      reasons: {
        '20250106T000000Z': ['newest good copy', 'weekly 2025-W02'],
        '20250105T235959Z': ['weekly 2025-W01'],
        '20241229T235959Z': ['weekly 2024-W52'],
      },
      gone: ['app-20241230T000000Z.db', 'app-20241223T000000Z.db'],
    },
    {
      name: 'ISO weeks: 2026 has 53, and New Year falls into the last of them',
      copies: at('2027-01-04T00:00:00Z', '2027-01-03T23:59:59Z', '2027-01-01T00:00:00Z', '2026-12-28T00:00:00Z', '2026-12-27T23:00:00Z'),
      policy: keep({ weekly: 9 }),
      reasons: {
        '20270104T000000Z': ['newest good copy', 'weekly 2027-W01'],
        '20270103T235959Z': ['weekly 2026-W53'],
        '20261227T230000Z': ['weekly 2026-W52'],
      },
      gone: ['app-20270101T000000Z.db', 'app-20261228T000000Z.db'],
      now: '2027-01-05T00:00:00Z',
    },
    {
      name: 'ISO weeks: the first days of 2022 still belong to 2021',
      copies: at('2022-01-03T00:00:00Z', '2022-01-02T12:00:00Z', '2021-12-27T12:00:00Z'),
      policy: keep({ weekly: 2 }),
      reasons: { '20220103T000000Z': ['newest good copy', 'weekly 2022-W01'], '20220102T120000Z': ['weekly 2021-W52'] },
      gone: ['app-20211227T120000Z.db'],
    },
    {
      name: 'the last second of a year and the first of the next',
      copies: at('2026-01-01T00:00:00Z', '2025-12-31T23:59:59Z', '2025-12-31T23:59:58Z'),
      policy: keep({ daily: 5, yearly: 5 }),
      reasons: {
        '20260101T000000Z': ['newest good copy', 'daily 2026-01-01', 'yearly 2026'],
        '20251231T235959Z': ['daily 2025-12-31', 'yearly 2025'],
      },
      gone: ['app-20251231T235958Z.db'],
    },
    {
      name: 'a leap day is a day of its own, and of February',
      copies: at('2028-03-01T00:00:00Z', '2028-02-29T23:59:59Z', '2028-02-29T00:00:00Z', '2028-02-28T12:00:00Z', '2027-02-28T12:00:00Z'),
      policy: keep({ daily: 3, monthly: 2 }),
      reasons: {
        '20280301T000000Z': ['newest good copy', 'daily 2028-03-01', 'monthly 2028-03'],
        '20280229T235959Z': ['daily 2028-02-29', 'monthly 2028-02'],
        '20280228T120000Z': ['daily 2028-02-28'],
      },
      gone: ['app-20280229T000000Z.db', 'app-20270228T120000Z.db'],
      now: '2028-03-02T00:00:00Z',
    },
    {
      name: 'a policy of zeros keeps the newest good copy all the same',
      copies: at('2026-11-20T03:00:00Z', '2026-11-19T03:00:00Z'),
      policy: keep({ last: 0, daily: 0 }),
      reasons: { '20261120T030000Z': ['newest good copy'] },
      gone: ['app-20261119T030000Z.db'],
    },
    {
      name: 'keep-daily all keeps one copy of every day for ever',
      copies: at('2026-11-20T03:00:00Z', '2026-11-20T02:00:00Z', '2001-01-01T00:00:00Z'),
      policy: keep({ daily: Number.POSITIVE_INFINITY }),
      reasons: { '20261120T030000Z': ['newest good copy', 'daily 2026-11-20'], '20010101T000000Z': ['daily 2001-01-01'] },
      gone: ['app-20261120T020000Z.db'],
    },
    {
      name: 'a tagged copy lives 30 days to the second, whatever the rules say',
      copies: copiesOf([
        { at: Date.parse('2026-11-20T03:00:00Z') },
        { at: NOW - 30 * DAY + 1000, tags: ['before-restore'] },
        { at: NOW - 30 * DAY, tags: ['before-guard'] },
        { at: NOW - 31 * DAY },
      ]),
      policy: keep({ last: 2 }),
      reasons: {
        '20261120T030000Z': ['newest good copy', 'last #1'],
        '20261022T031701Z': ['before-restore: kept 30 days'],
        '20261021T031700Z': ['last #2'],
      },
      gone: ['app-20261022T031700Z.db'],
    },
    {
      name: 'where all good copies are tagged the newest of them is all that there is',
      copies: copiesOf([
        { at: NOW - 40 * DAY, tags: ['before-restore'] },
        { at: NOW - 41 * DAY, tags: ['before-guard'] },
      ]),
      policy: keep({ last: 5 }),
      reasons: { '20261012T031700Z': ['newest good copy'] },
      gone: ['app-20261011T031700Z.db'],
    },
    {
      name: 'a clock that has run far ahead since the last copy ends no life of a tagged one',
      copies: copiesOf([{ at: NOW - 31 * DAY }, { at: NOW - 32 * DAY, tags: ['before-restore'] }]),
      policy: keep({ last: 1 }),
      reasons: {
        '20261021T031700Z': ['newest good copy', 'last #1'],
        '20261020T031700Z': ['before-restore: kept, since the copy before this run is older than 30 days: the clock may be wrong'],
      },
      gone: [],
    },
    {
      name: 'a tagged suspect is held with the rest',
      copies: copiesOf([{ at: NOW - DAY, status: 'suspect' }, { at: NOW - 2 * DAY }, { at: NOW - 50 * DAY, status: 'suspect', tags: ['before-restore'] }]),
      policy: keep({ last: 1 }),
      reasons: {
        '20261120T031700Z': ['suspect: the newest 3 are kept for a rescue'],
        '20261119T031700Z': ['newest good copy', 'last #1', 'pruning waits: the newest copy, app-20261120T031700Z.db, is suspect'],
        '20261002T031700Z': ['pruning waits: the newest copy, app-20261120T031700Z.db, is suspect'],
      },
      gone: [],
    },
    {
      name: 'an older suspect does not hold: rules apply, three suspects stay',
      copies: copiesOf([
        { at: NOW - DAY },
        { at: NOW - 2 * DAY, status: 'suspect' },
        { at: NOW - 3 * DAY, status: 'suspect' },
        { at: NOW - 4 * DAY, status: 'suspect' },
        { at: NOW - 5 * DAY, status: 'suspect' },
        { at: NOW - 6 * DAY },
      ]),
      policy: keep({ last: 1 }),
      reasons: {
        '20261120T031700Z': ['newest good copy', 'last #1'],
        '20261119T031700Z': ['suspect: the newest 3 are kept for a rescue'],
        '20261118T031700Z': ['suspect: the newest 3 are kept for a rescue'],
        '20261117T031700Z': ['suspect: the newest 3 are kept for a rescue'],
      },
      gone: ['app-20261116T031700Z.db', 'app-20261115T031700Z.db'],
    },
    {
      name: 'a suspect copy does not fill a place of the rules',
      copies: copiesOf([{ at: NOW - DAY }, { at: NOW - 2 * DAY, status: 'suspect' }, { at: NOW - 3 * DAY }, { at: NOW - 4 * DAY }]),
      policy: keep({ last: 2, daily: 2 }),
      reasons: {
        '20261120T031700Z': ['newest good copy', 'last #1', 'daily 2026-11-20'],
        '20261119T031700Z': ['suspect: the newest 3 are kept for a rescue'],
        '20261118T031700Z': ['last #2', 'daily 2026-11-18'],
      },
      gone: ['app-20261117T031700Z.db'],
    },
    {
      name: 'an hour ahead to the second is a clock that is a little off',
      copies: copiesOf([{ at: NOW + HOUR }, { at: NOW - DAY }]),
      policy: keep({ last: 1 }),
      reasons: { '20261121T041700Z': ['newest good copy', 'last #1'] },
      gone: ['app-20261120T031700Z.db'],
    },
  ];

  test.each(rows)('$name', ({ copies, policy: p, reasons, gone, now }) => {
    const d = decide(copies, p, now === undefined ? NOW : Date.parse(now));
    expect(reasonsOf(d)).toEqual(reasons);
    expect(removed(d)).toEqual(gone);
  });

  test('the copy that this run has made stays, even behind one dated a little ahead of the clock', () => {
    const copies = copiesOf([{ at: NOW + HOUR / 2 }, { at: NOW }, { at: NOW - DAY }]);
    const d = decide(copies, keep({ last: 1 }), NOW, 'app-20261121T031700Z.db');
    expect(reasonsOf(d)).toEqual({ '20261121T034700Z': ['newest good copy', 'last #1'], '20261121T031700Z': ['made by this run'] });
    expect(removed(d)).toEqual(['app-20261120T031700Z.db']);
    expect(removed(decide(copies, keep({ last: 1 }), NOW))).toEqual(['app-20261121T031700Z.db', 'app-20261120T031700Z.db']);
  });

  test('the copies before and after a loss are left by runs for 7 days, of several losses the first and the latest; by no prune', () => {
    const name = (at: number): string => `app-${rfc3339(at).replace(/[-:]/g, '')}.db`;
    const old = [NOW - DAY, NOW - 2 * DAY, NOW - 3 * DAY, NOW - 10 * DAY, NOW - 11 * DAY];
    const copies = copiesOf([NOW, ...old].map((at) => ({ at })));
    const afterRun = (...lost: readonly number[]): string[] =>
      removed(decide(copies, keep({ last: 1 }), NOW, name(NOW), (_, older) => lost.some((at) => older === name(at))));
    const allBut = (...at: readonly number[]): string[] => old.filter((one) => !at.includes(one)).map(name);
    expect(afterRun()).toEqual(allBut());
    expect(afterRun(NOW - DAY)).toEqual(allBut(NOW - DAY));
    expect(afterRun(NOW - 2 * DAY)).toEqual(allBut(NOW - DAY, NOW - 2 * DAY));
    expect(afterRun(NOW - DAY, NOW - 3 * DAY)).toEqual(allBut(NOW - DAY, NOW - 2 * DAY, NOW - 3 * DAY));
    expect(afterRun(NOW - 10 * DAY)).toEqual(allBut(NOW - 3 * DAY, NOW - 10 * DAY));
    expect(afterRun(NOW - 11 * DAY)).toEqual(allBut());
    const late = copiesOf([{ at: NOW }, { at: NOW - 10 * DAY }]);
    expect(decide(late, keep({ last: 1 }), NOW, name(NOW), () => true).keep.map(({ reasons }) => reasons)).toEqual([
      ['newest good copy', 'last #1', 'lacks much of what app-20261111T031700Z.db, the one before, has'],
      ['app-20261121T031700Z.db, the next one, lacks much of what it has'],
    ]);
    expect(removed(decide(late, keep({ last: 1 }), NOW))).toHaveLength(1);
  });

  test('the copy that this run has made says nothing of whether the clock has run ahead', () => {
    const copies = copiesOf([{ at: NOW }, { at: NOW - 365 * DAY }, { at: NOW - 366 * DAY, tags: ['before-guard'] }]);
    const made = 'app-20261121T031700Z.db';
    expect(removed(decide(copies, keep({ last: 2 }), NOW, made))).toEqual([]);
    expect(removed(decide(copies, keep({ last: 2 }), NOW))).toEqual(['app-20251120T031700Z.db']);
    // Of a first copy there is none before it.
    expect(removed(decide(copiesOf([{ at: NOW }, { at: NOW - 366 * DAY, tags: ['before-guard'] }]), keep({ last: 2 }), NOW, made))).toHaveLength(1);
  });

  test('a file without a manifest that is dated ahead makes pruning wait as well: it may be a copy', () => {
    const d = decide(copiesOf([{ at: NOW + DAY, status: 'unverified' }, { at: NOW - DAY }, { at: NOW - 2 * DAY }]), keep({ last: 1 }), NOW);
    expect([d.hold?.code, removed(d)]).toEqual(['CLOCK', []]);
  });

  test('what is removed says why', () => {
    const d = decide(
      copiesOf([
        { at: NOW - DAY },
        { at: NOW - 2 * DAY },
        ...[3, 4, 5, 6].map((n) => ({ at: NOW - n * DAY, status: 'suspect' as const })),
        { at: NOW - 40 * DAY, tags: ['before-guard'] },
      ]),
      keep({ last: 1 }),
      NOW,
    );
    expect(d.remove.map((r) => r.reason)).toEqual(['no keep rule asks for it', 'suspect, beyond the newest 3', 'before-guard: older than 30 days']);
  });
});

// ---------------------------------------------------------------------------------------------------- on real files

describe('a directory', () => {
  test('copies within one second follow one another by number, not by letter', () => {
    const to = tempDirectory('retention');
    const bases = ['app-20261120T031700Z', ...Array.from({ length: 10 }, (_, i) => `app-20261120T031700Z-${i + 2}`)];
    for (const base of bases.toSorted()) plantCopy(to, base, 'data');
    const d = decide(readCopies(to, 'app'), keep({ last: 2, daily: 3 }), NOW);
    expect(reasonsOf(d)).toEqual({ '20261120T031700Z-11': ['newest good copy', 'last #1', 'daily 2026-11-20'], '20261120T031700Z-10': ['last #2'] });
    expect(removed(d)).toEqual([9, 8, 7, 6, 5, 4, 3, 2].map((n) => `app-20261120T031700Z-${n}.db`).concat('app-20261120T031700Z.db'));
  });

  test('times of files change nothing: age comes from the name', () => {
    const to = tempDirectory('retention');
    mkdirSync(join(to, 'sub'));
    const stamps = ['20261120T031700Z', '20261119T031700Z', '20261118T031700Z', '20261001T031700Z', '20250101T031700Z'];
    for (const s of stamps) plantCopy(to, `app-${s}`, 'data');
    const p = keep({ daily: 2, yearly: 2, withinMs: DAY });
    const before = decide(readCopies(to, 'app'), p, NOW);
    expect(removed(before)).toEqual(['app-20261118T031700Z.db', 'app-20261001T031700Z.db']);
    for (const [i, s] of stamps.entries()) {
      // The oldest by name becomes the newest by mtime, and some lie in the future.
      const mtime = NOW / 1000 + (i - 2) * 86_400 * 30;
      utimesSync(join(to, `app-${s}.db`), mtime, mtime);
      utimesSync(join(to, `app-${s}.json`), mtime + 1, mtime + 1);
    }
    expect(decide(readCopies(to, 'app'), p, NOW)).toEqual(before);
  });
});

describe('how many copies may stay so that there is room', () => {
  const now = Date.parse('2026-11-28T00:00:00Z');
  const nights = (count: number, more: Partial<Made> = {}): Made[] => Array.from({ length: count }, (_, i) => ({ at: now - (i + 1) * DAY, ...more }));
  const ofTen = (): number => 10;

  test.each([
    ['one would do', nights(5), 10, 4],
    ['one and a bit: two', nights(5), 11, 3],
    ['all but the newest', nights(5), 40, 1],
    ['more than there is: no advice that costs copies and does not help', nights(5), 41, null],
    ['there is one alone', nights(1), 1, null],
    ['none', [], 1, null],
    ['how much is not known: half', nights(4), null, 2],
    ['how much is not known: three', nights(40), null, 3],
    ['how much is not known, one alone', nights(1), null, null],
    ['only what nobody may remove', [{ at: now - DAY }, ...nights(4, { tags: ['before-guard'] })], null, null],
    ['what is old and tagged goes anyway', [{ at: now - DAY }, { at: now - 40 * DAY, tags: ['before-guard'] }], 10, 1],
    ['bad and unverified ones stay', [{ at: now - DAY }, ...nights(3, { status: 'bad' }), ...nights(3, { status: 'unverified' })], 1, null],
    ['one is ahead of the clock: pruning waits', [...nights(5), { at: now + 2 * DAY }], 10, null],
    ['the newest is suspect: pruning waits', [{ at: now - HOUR, status: 'suspect' } as const, ...nights(5)], 10, null],
  ])('%s', (_, made, missing, expected) => {
    expect(spareable(copiesOf(made), ofTen, missing, now)).toBe(expected);
  });

  test('as many as can be', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(20), { maxLength: 12 }), fc.integer({ min: 1, max: 120 }), (sizes, missing) => {
        const copies = copiesOf(nights(sizes.length));
        const bytesOf = (file: string): number => sizes[copies.findIndex((c) => c.file === file)] ?? 0;
        const freed = (count: number): number => sizes.slice(count).reduce((sum, size) => sum + size, 0);
        const possible = sizes.map((_, i) => i + 1).filter((count) => freed(count) >= missing);
        expect(spareable(copies, bytesOf, missing, now)).toBe(possible.at(-1) ?? null);
      }),
    );
  });
});
