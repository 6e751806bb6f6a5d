/** Whether what we write goes to systemd's journal, which reads the priority of a line from its beginning. */
import { fstatSync } from 'node:fs';

/**
 * `stream`: $JOURNAL_STREAM, the device and inode of the journal's socket in decimal (systemd.exec(5)). Who was started by a unit
 * inherits the variable also where its standard error was led elsewhere: then they differ, and it is not the journal.
 */
export function isJournal(stream: string | undefined, fd: number): boolean {
  if (!stream) return false;
  try {
    const { dev, ino } = fstatSync(fd, { bigint: true });
    return stream === `${dev}:${ino}`;
  } catch {
    // Closed: nobody reads it.
    return false;
  }
}
