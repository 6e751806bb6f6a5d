/**
 * When `guard` may begin: `HH:MM-HH:MM [DAYS] [ZONE]`, like "02:00-04:00 Sun,Wed Asia/Tokyo". Pure: text and time in, answers out.
 * Times are wall-clock times of the zone (UTC unless one is named). A window that passes midnight belongs to the day on which
 * it begins. When clocks go forward over a window, it does not open that day; when they go back over it, it opens twice.
 */

export interface Window {
  /** Minutes after midnight; `end` is not part of the window, and smaller than `start` where it passes midnight. */
  readonly start: number;
  readonly end: number;
  /** 0 is Sunday. */
  readonly days: ReadonlySet<number>;
  readonly zone: string;
}

const DAY_MINUTES = 24 * 60;
const MINUTE_MS = 60_000;
const DAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'] as const;
const EXPECTED = 'must be like "02:00-04:00", "22:00-02:00 Mon-Fri" or "02:00-04:00 Sun,Wed Asia/Tokyo"';

/** Parses a window. Throws an Error that says what was expected. */
export function parseWindow(text: string): Window {
  const [times = '', ...rest] = text.trim().split(/\s+/);
  const m = /^(\d\d):(\d\d)-(\d\d):(\d\d)$/.exec(times);
  if (!m || rest.length > 2) throw new Error(EXPECTED);
  const start = minuteOf(m[1], m[2]);
  const end = minuteOf(m[3], m[4]);
  if (start === DAY_MINUTES) throw new Error('begins at 24:00: write 00:00');
  if (start === end) throw new Error('begins when it ends: for a whole day write 00:00-24:00');
  const [first, second] = rest;
  const days = first === undefined ? null : parseDays(first);
  if (second !== undefined && days === null) throw new Error(EXPECTED);
  const zone = second ?? (days === null ? first : undefined) ?? 'UTC';
  try {
    partsOf(zone);
  } catch {
    throw new Error(`names "${zone}", which is neither days (Mon-Fri, Sun,Wed) nor a time zone (Europe/Berlin)`);
  }
  return { start, end, days: new Set(days ?? DAYS.keys()), zone };
}

function minuteOf(hours = '', minutes = ''): number {
  const minute = Number(hours) * 60 + Number(minutes);
  if (Number(minutes) > 59 || minute > DAY_MINUTES) throw new Error(`has no time ${hours}:${minutes}: 00:00 to 24:00`);
  return minute;
}

/** `Sun,Wed`, `Mon-Fri`, `Fri-Mon`; null when it names no days at all. */
function parseDays(text: string): number[] | null {
  const days: number[] = [];
  for (const part of text.split(',')) {
    const ends = part.split('-').map(dayOf);
    const [from, to = from] = ends;
    if (ends.length > 2 || from === undefined || to === undefined || from < 0 || to < 0) return null;
    for (let day = from; ; day = (day + 1) % 7) {
      days.push(day);
      if (day === to) break;
    }
  }
  return days;
}

const dayOf = (text: string): number => DAYS.findIndex((day) => day.toLowerCase() === text.toLowerCase());

const partsOf = (zone: string): Intl.DateTimeFormat =>
  new Intl.DateTimeFormat('en-US', { timeZone: zone, weekday: 'short', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });

/** Whether the window is open at that time. */
export const isOpen = (window: Window, at: Date): boolean => isOpenWith(window, partsOf(window.zone), at);

function isOpenWith({ start, end, days }: Window, format: Intl.DateTimeFormat, at: Date): boolean {
  const parts = new Map(format.formatToParts(at).map((p) => [p.type, p.value]));
  const minute = Number(parts.get('hour')) * 60 + Number(parts.get('minute'));
  const day = dayOf(parts.get('weekday') ?? '');
  if (start < end) return days.has(day) && minute >= start && minute < end;
  return (days.has(day) && minute >= start) || (days.has((day + 6) % 7) && minute < end);
}

/** Two weeks: a change of clocks may take one week's only window away. */
const LOOK_AHEAD_MINUTES = 15 * DAY_MINUTES;

/** The first full minute after `at` at which the window is open; null when there is none within two weeks. */
export function nextOpening(window: Window, at: Date): Date | null {
  const format = partsOf(window.zone);
  const first = (Math.floor(at.getTime() / MINUTE_MS) + 1) * MINUTE_MS;
  for (let minute = 0; minute < LOOK_AHEAD_MINUTES; minute++) {
    const then = new Date(first + minute * MINUTE_MS);
    if (isOpenWith(window, format, then)) return then;
  }
  return null;
}
