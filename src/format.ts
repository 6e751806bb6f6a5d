/** Numbers, times and tables as people read them. */

const SIZES = ['B', 'kB', 'MB', 'GB', 'TB'] as const;

/** `20.9 MB`: decimal units, as disks are sold and df -H shows. */
export function bytes(n: number): string {
  let value = n;
  let unit = 0;
  while (value >= 999.95 && unit < SIZES.length - 1) {
    value /= 1000;
    unit++;
  }
  return unit === 0 ? `${n} B` : `${value.toFixed(1)} ${SIZES[unit]}`;
}

/** A journal mode as it is talked of: all but WAL are one to us. */
export const modeOf = (journalMode: string): string => (journalMode === 'wal' ? 'wal mode' : 'rollback mode');

/** A duration in its two largest units: `1.2 s`, `3 m 20 s`, `2 d 4 h`. Milliseconds in. */
export function duration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  const m = Math.floor(s / 60);
  if (m < 60) return `${m} m ${s % 60} s`;
  const h = Math.floor(m / 60);
  if (h < 48) return `${h} h ${m % 60} m`;
  return `${Math.floor(h / 24)} d ${h % 24} h`;
}

/** Local time with its offset: `2026-11-21 04:17:00 +01:00`. */
export function localTime(rfc3339: string): string {
  const at = new Date(rfc3339);
  const minutes = -at.getTimezoneOffset();
  const two = (n: number): string => String(Math.floor(n)).padStart(2, '0');
  const offset = `${minutes < 0 ? '-' : '+'}${two(Math.abs(minutes) / 60)}:${two(Math.abs(minutes) % 60)}`;
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())} ${offset}`;
}

/** The lines of a table: columns padded to their widest cell; `>` in `align` aligns a column right. */
export function table(header: readonly string[], rows: readonly (readonly string[])[], align = ''): string[] {
  const all = [header, ...rows];
  const widths = header.map((_, i) => all.reduce((widest, row) => Math.max(widest, (row[i] ?? '').length), 0));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (align[i] === '>' ? cell.padStart(widths[i] ?? 0) : i === row.length - 1 ? cell : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd();
  return all.map(line);
}

/** `1 table`, `3 tables`. */
export const plural = (n: number, what: string, many = `${what}s`): string => `${n} ${n === 1 ? what : many}`;
