/** What /proc says of processes. One that has ended, or is not to be looked at, says nothing. */
import { readFileSync } from 'node:fs';

/** A file of the system, whole; empty where it is not there (its process has ended, in /proc) or may not be read. */
export function readOrEmpty(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch {
    return Buffer.alloc(0);
  }
}

/**
 * Field `n` of /proc/PID/stat, counted from 1 as in proc(5); empty when the process has ended. The second one, the command's name, may
 * hold blanks and parentheses: the others are counted from its end.
 */
export function statOf(pid: number): (n: number) => string {
  const stat = readOrEmpty(`/proc/${pid}/stat`).toString('latin1');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (n) => fields[n - 3] ?? '';
}
