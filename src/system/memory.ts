/** What a process uses. Anonymous memory: mapped pages of a file do not count against the machine (traps, 39). */
import { readFileSync } from 'node:fs';

/** RssAnon in bytes, 0 when the process is gone. */
export function anonBytesOf(pid: number | 'self'): number {
  try {
    const kb = /^RssAnon:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    return Number(kb ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** Linux counts CPU time in hundredths of a second towards programs, on every machine (proc(5), USER_HZ). */
const TICK_MS = 10;

/** User and system time of a process, milliseconds; 0 when it is gone. */
export function cpuMsOf(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The command's name may hold blanks and parentheses: fields count from the last one; 14 and 15 are wanted.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) * TICK_MS;
  } catch {
    return 0;
  }
}
