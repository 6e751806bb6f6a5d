/** Each rule fires where it should, and is silent right beside that. */
import { describe, expect, test } from 'vitest';
import type { Manifest } from '../../src/records.js';
import { type RuleFacts, rules } from '../../src/rules.js';
import { manifestOf } from '../support/manifest.js';

const NOW = Date.parse('2026-11-21T03:17:00Z');
const DAY = 86_400_000;
const HOUR = 3_600_000;
const manifest = (more: Partial<Manifest> = {}): Manifest =>
  ({ ...manifestOf('app-20261121T031700Z', 'x'), plainSizeBytes: 1_000_000, sizeBytes: 1_000_000, rows: { a: 5000, b: 10 }, ...more }) as Manifest;

const night = (days: number, more: Partial<RuleFacts['runs'][number]> = {}): RuleFacts['runs'][number] => ({
  status: 'ok',
  startedAt: new Date(NOW - days * DAY).toISOString(),
  durationMs: 10_000,
  freeBytes: 1e12,
  ...more,
});
const nights = (count: number, more: (days: number) => Partial<RuleFacts['runs'][number]> = () => ({})): RuleFacts['runs'] =>
  Array.from({ length: count }, (_, i) => night(i + 1, more(i + 1)));

/** A night on which all is well. */
const well: RuleFacts = {
  now: NOW,
  made: manifest(),
  before: manifest({ file: 'app-20261120T031700Z.db' }),
  kept: { files: ['app-2.db', 'app-1.db'], gone: [], since: '2026-11-20T03:17:00Z' },
  durationMs: 10_000,
  warnAfterMs: null,
  source: { sizeBytes: 1_000_000, walGrewBytes: 0 },
  freeBytes: 1e12,
  runs: nights(30),
  provenAt: NOW - 5 * DAY,
  sinceAt: NOW - 400 * DAY,
  behind: [],
  maxAgeMs: 26 * HOUR,
};
const said = (more: Partial<RuleFacts>): string[] => rules({ ...well, ...more }).map((w) => `${w.severity} ${w.code}`);

test('a night on which all is well says nothing, nor does the first night of all', () => {
  expect(said({})).toEqual([]);
  expect(said({ before: null, kept: null, runs: [], provenAt: null, sinceAt: null, freeBytes: null })).toEqual([]);
});

const keptBut = (...gone: string[]): RuleFacts['kept'] => ({ files: ['app-2.db', 'app-1.db'], gone, since: '2026-11-20T03:17:00Z' });
const s3 = { destination: 's3://b/p', newestAt: NOW - 10 * HOUR };
describe.each<readonly [string, Partial<RuleFacts>, Partial<RuleFacts>]>([
  ['critical COPIES_GONE', { kept: keptBut('app-2.db', 'app-1.db') }, { kept: keptBut() }],
  ['critical COPIES_GONE', { kept: keptBut('app-2.db') }, { kept: keptBut() }],
  ['warning COPIES_GONE', { kept: keptBut('app-1.db') }, { kept: keptBut() }],
  ['critical COPY_SHRANK', { made: manifest({ plainSizeBytes: 500_000 }) }, { made: manifest({ plainSizeBytes: 500_001 }) }],
  ['critical TABLE_GONE', { made: manifest({ rows: { a: 5000 } }) }, { made: manifest({ rows: { a: 5000, b: 10, c: 1 } }) }],
  // Not every name is free in an object of JavaScript.
  [
    'critical TABLE_GONE',
    { before: manifest({ rows: { constructor: 1, a: 5000 } }), made: manifest({ rows: { a: 5000 } }) },
    { before: manifest({ rows: { constructor: 1 } }), made: manifest({ rows: { constructor: 1 } }) },
  ],
  ['warning TABLE_EMPTY', { made: manifest({ rows: { a: 0, b: 10 } }) }, { made: manifest({ rows: { a: 1, b: 0 } }) }],
  ['warning DESTINATION_BEHIND', { behind: [s3] }, { behind: [] }],
  ['critical DESTINATION_BEHIND', { behind: [{ ...s3, newestAt: NOW - 27 * HOUR }] }, { behind: [] }],
  ['critical DESTINATION_BEHIND', { behind: [{ ...s3, newestAt: null }] }, { behind: [] }],
  ['warning SLOW_RUN', { durationMs: 90_001 }, { durationMs: 90_000 }],
  ['warning SLOW_RUN', { durationMs: 60_001, warnAfterMs: 60_000 }, { durationMs: 60_000, warnAfterMs: 60_000 }],
  ['warning WAL_GREW', { source: { sizeBytes: 1_000_000, walGrewBytes: 1_000_001 } }, { source: { sizeBytes: 1_000_000, walGrewBytes: 1_000_000 } }],
  ['warning SPACE_LOW', { freeBytes: 2_999_999 }, { freeBytes: 3_000_000, runs: [] }],
  [
    'warning SPACE_TREND',
    { freeBytes: 13e9, runs: nights(20, (d) => ({ freeBytes: 13e9 + d * 1e9 })) },
    { freeBytes: 15e9, runs: nights(20, (d) => ({ freeBytes: 15e9 + d * 1e9 })) },
  ],
  ['warning NOT_VERIFIED', { provenAt: NOW - 30 * DAY - 1 }, { provenAt: NOW - 30 * DAY }],
  ['warning NOT_VERIFIED', { provenAt: null, sinceAt: NOW - 31 * DAY }, { provenAt: null, sinceAt: NOW - 29 * DAY }],
])('%s', (code, fires, silent) => {
  test('fires', () => {
    expect(said(fires)).toEqual([code]);
  });
  test('is silent right beside that', () => {
    expect(said(silent)).toEqual([]);
  });
});

test.each<readonly [string, Partial<RuleFacts>]>([
  ['a growing copy', { made: manifest({ plainSizeBytes: 9e9, rows: { a: 9e6, b: 10 } }) }],
  ['sealed copies, whose tables nobody knows', { before: manifest({ rows: {} }), made: manifest({ rows: {} }) }],
  ['nine good runs, which say little of how long one takes', { durationMs: 900_000, runs: nights(9) }],
  ['failed runs, which say nothing of it', { durationMs: 900_000, runs: nights(30, () => ({ status: 'failed' })) }],
  ['free space that grows', { freeBytes: 13e9, runs: nights(20, (d) => ({ freeBytes: 13e9 - d * 1e8 })) }],
  ['two days, which are no trend', { freeBytes: 13e9, runs: nights(2, (d) => ({ freeBytes: 13e9 + d * 5e9 })) }],
  ['records that do not know what was free', { freeBytes: 13e9, runs: nights(20, () => ({ freeBytes: null })) }],
])('%s: silent', (_, facts) => {
  expect(said(facts)).toEqual([]);
});

test('the gravest comes first', () => {
  expect(said({ durationMs: 90_001, made: manifest({ plainSizeBytes: 1, rows: { b: 1 } }) })).toEqual([
    'critical COPY_SHRANK',
    'critical TABLE_GONE',
    'warning SLOW_RUN',
  ]);
});
