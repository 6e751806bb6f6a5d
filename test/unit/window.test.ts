/** When guard may begin: wall-clock times of a zone, over midnight, over weekends, over changes of clocks. */
import { describe, expect, test } from 'vitest';
import { isOpen, nextOpening, parseWindow } from '../../src/window.js';

const open = (window: string, at: string): boolean => isOpen(parseWindow(window), new Date(at));
const next = (window: string, at: string): string | undefined => nextOpening(parseWindow(window), new Date(at))?.toISOString();

describe('isOpen', () => {
  test.each([
    // The end is no part of it.
    ['02:00-04:00', '2026-11-21T01:59:59Z', false],
    ['02:00-04:00', '2026-11-21T02:00:00Z', true],
    ['02:00-04:00', '2026-11-21T03:59:59Z', true],
    ['02:00-04:00', '2026-11-21T04:00:00Z', false],
    ['00:00-24:00', '2026-11-21T23:59:59Z', true],
    // 2026-11-21 is a Saturday; in Tokyo it is Sunday from 15:00 UTC on.
    ['02:00-04:00 Sun,Wed Asia/Tokyo', '2026-11-21T17:30:00Z', true],
    ['02:00-04:00 Sun,Wed Asia/Tokyo', '2026-11-22T17:30:00Z', false],
    ['02:00-04:00 Sun,Wed Asia/Tokyo', '2026-11-24T18:59:00Z', true],
    ['02:00-04:00 Sun,Wed', '2026-11-22T02:30:00Z', true],
    ['02:00-04:00 Asia/Kolkata', '2026-11-21T20:30:00Z', true],
    ['02:00-04:00 Asia/Kolkata', '2026-11-21T20:29:00Z', false],
    // Over midnight: the day is the one on which it begins.
    ['22:00-02:00 Fri', '2026-11-20T23:00:00Z', true],
    ['22:00-02:00 Fri', '2026-11-21T01:59:00Z', true],
    ['22:00-02:00 Fri', '2026-11-21T02:00:00Z', false],
    ['22:00-02:00 Fri', '2026-11-21T23:00:00Z', false],
    ['22:00-02:00 Fri', '2026-11-20T01:00:00Z', false],
    ['12:00-13:00 mon-fri', '2026-11-20T12:30:00Z', true],
    ['12:00-13:00 Mon-Fri', '2026-11-21T12:30:00Z', false],
    ['12:00-13:00 Sat-Mon,Wed', '2026-11-22T12:30:00Z', true],
    ['12:00-13:00 Sat-Mon,Wed', '2026-11-24T12:30:00Z', false],
  ])('%s at %s: %s', (window, at, expected) => expect(open(window, at)).toBe(expected));

  test('clocks that go back open it twice, clocks that go forward can take it away', () => {
    // Berlin, 2026-10-25: 02:00 to 03:00 comes twice. 2026-03-29: it does not come.
    for (const at of ['2026-10-25T00:30:00Z', '2026-10-25T01:30:00Z']) expect(open('02:00-03:00 Europe/Berlin', at)).toBe(true);
    const shut = Array.from({ length: 24 * 4 }, (_, i) => new Date(Date.UTC(2026, 2, 28, 23, 15 * i)).toISOString());
    expect(shut.slice(0, 23 * 4).filter((at) => open('02:00-03:00 Sun Europe/Berlin', at))).toEqual([]);
  });
});

describe('nextOpening', () => {
  test.each([
    ['02:00-04:00', '2026-11-21T04:00:00Z', '2026-11-22T02:00:00.000Z'],
    ['02:00-04:00', '2026-11-21T01:59:59.999Z', '2026-11-21T02:00:00.000Z'],
    ['02:00-04:00 Sun,Wed Asia/Tokyo', '2026-11-21T19:00:00Z', '2026-11-24T17:00:00.000Z'],
    ['22:00-02:00 Fri', '2026-11-21T02:00:00Z', '2026-11-27T22:00:00.000Z'],
    // The only window of the week falls into the hour that is left out: the next week's.
    ['02:00-03:00 Sun Europe/Berlin', '2026-03-28T12:00:00Z', '2026-04-05T00:00:00.000Z'],
  ])('%s after %s: %s', (window, at, expected) => expect(next(window, at)).toBe(expected));
});

test.each([
  '',
  '2-4',
  '02:00',
  '02:00-04:60',
  '25:00-26:00',
  '24:00-02:00',
  '02:00-02:00',
  '02:00-04:00 Foo',
  '02:00-04:00 Foo Sun',
  '02:00-04:00 Sun Mars/Base',
  '02:00-04:00 Sun UTC more',
  '02:00-04:00 Sun-',
])('"%s" is refused', (text) => expect(() => parseWindow(text)).toThrow(/must be like|begins|has no time|names/));
