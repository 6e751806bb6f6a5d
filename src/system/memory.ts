/** What a process uses. Anonymous memory: mapped pages of a file do not count against the machine (traps, 39). */
import { readOrEmpty, statOf } from './proc.js';

/** RssAnon in bytes, 0 when the process is gone. */
export function anonBytesOf(pid: number | 'self'): number {
  const kb = /^RssAnon:\s+(\d+) kB/m.exec(readOrEmpty(`/proc/${pid}/status`).toString('latin1'))?.[1];
  return Number(kb ?? 0) * 1024;
}

/** Linux counts CPU time in hundredths of a second towards programs, on every machine (proc(5), USER_HZ). */
const TICK_MS = 10;

/** User and system time of a process, milliseconds; 0 when it is gone. */
export function cpuMsOf(pid: number): number {
  const field = statOf(pid);
  return (Number(field(14)) + Number(field(15))) * TICK_MS;
}
