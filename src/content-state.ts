/** Whether the content of a database has changed between two looks, without SQLite and without reading all of it. */
import { closeSync, constants, lstatSync, openSync, readSync } from 'node:fs';

/** The change counter, https://www.sqlite.org/fileformat2.html, "The Database Header"; and the salts of a WAL, "The WAL File". */
const HEADER_BYTES = 32;

/**
 * Whatever changes when the content of a database does: file, size, time, change counter; of the -wal the same, and an
 * empty or missing one is alike, since opening and closing alone make and remove it.
 */
export const contentState = (path: string): string => stateOf(path, headerOf);

/**
 * The same without opening a file, for a process that has the database open through SQLite: it would drop SQLite's locks on closing
 * (traps, 8). A change within the same tick of the file system's clock goes unseen.
 */
export const outerState = (path: string): string => stateOf(path, () => '');

/**
 * Of the main file alone: another one when somebody has written into it, though he has closed it and left nothing beside it. Without the number of
 * its device, which may be another after a restart of the machine. Null: there is none. Throws what the system says.
 */
export function fileState(path: string): string | null {
  try {
    const { ino, size, mtimeNs } = lstatSync(path, { bigint: true });
    return [ino, size, mtimeNs, headerOf(path)].join(' ');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null;
    throw error;
  }
}

function stateOf(path: string, header: (file: string) => string): string {
  const parts = [path, `${path}-wal`].map((file) => {
    try {
      const { dev, ino, size, mtimeNs } = lstatSync(file, { bigint: true });
      if (file !== path && size === 0n) return 'none';
      return [dev, ino, size, mtimeNs, header(file)].join(' ');
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? String(error.code) : '';
      return code === 'ENOENT' ? 'none' : code;
    }
  });
  return parts.join('\n');
}

function headerOf(file: string): string {
  const fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const header = Buffer.alloc(HEADER_BYTES);
    readSync(fd, header, 0, HEADER_BYTES, 0);
    return header.toString('hex');
  } finally {
    closeSync(fd);
  }
}
