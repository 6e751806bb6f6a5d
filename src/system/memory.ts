/** Anonymous memory of a process: mapped pages of a file do not count against the machine (traps, 39). */
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
