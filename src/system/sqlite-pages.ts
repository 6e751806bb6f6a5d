/** What SQLite's checks do not say, read from the file itself: pages that are missing at its end, and pages that are in no tree or in two. */
import type { Stats } from 'node:fs';
import { closeSync, constants, openSync, readdirSync, readlinkSync, readSync, realpathSync, statSync } from 'node:fs';
import Database from 'better-sqlite3';
import type { Db } from './sqlite.js';
import { number } from './sqlite.js';

/**
 * Which page a file lacks at its end, in words, or null. SQLite reads what is missing there as zeros, and no more than a full
 * check of some schemas finds that strange: the copy would have the zeros, and be called good.
 * @param look at the very file that is open
 */
export function cutShort(db: Db, file: string, look: () => Stats): string | null {
  // What a checkpoint leaves out, since the database has shrunk meanwhile, is missing for a moment; what was cut off is missing again.
  let said: string | null = null;
  for (let n = 0; n < LOOKS; n++) {
    said = cutInThisState(db, file, look);
    if (said === null) return null;
  }
  return said;
}

/** How often a file must prove to be cut. */
const LOOKS = 5;

function cutInThisState(db: Db, file: string, look: () => Stats): string | null {
  // SQLite keeps the -wal beside the file itself, wherever a link to it lies.
  const real = realpathSync(file);
  // As long as this reads, nobody empties the -wal. What was brought home before the look at the size is in the size.
  db.exec('BEGIN');
  const [pages, pageSize, home] = [number(db, 'page_count'), number(db, 'page_size'), framesBroughtHome(real)];
  const { size } = look();
  const inWal = size < pages * pageSize ? pagesInWal(`${real}-wal`, home) : new Set<number>();
  db.exec('COMMIT');
  const lockPage = LOCK_BYTE / pageSize + 1;
  for (let page = Math.floor(size / pageSize) + 1; page <= pages; page++) {
    if (page !== lockPage && !inWal.has(page)) return `the file ends before its page ${page} does, ${pages * pageSize - size} bytes too early`;
  }
  return null;
}

/**
 * How many frames of the -wal are in the database file already: readers take those pages from the file.
 * https://www.sqlite.org/walformat.html, "The WAL-Index File Format": nBackfill, at byte 96, in the machine's own order.
 */
function framesBroughtHome(real: string): number {
  const value = new Uint32Array(1);
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    // Never opened anew: closing that descriptor would drop the locks that SQLite holds on the -shm.
    if (linkOf(fd) === `${real}-shm`) readSync(fd, value, 0, 4, 96);
  }
  return value[0] ?? 0;
}

function linkOf(fd: number): string | null {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    // The descriptor of the listing is closed again.
    return null;
  }
}

/** The pages that a -wal holds after so many frames, up to the end of those that belong together by their salt (same page, "The WAL File Format"). */
function pagesInWal(path: string, after: number): Set<number> {
  const pages = new Set<number>();
  // Not there: no pages. SQLite holds no locks on it.
  if (!statSync(path, { throwIfNoEntry: false })?.size) return pages;
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const header = Buffer.alloc(32);
    readSync(fd, header, 0, 32, 0);
    const step = 24 + header.readUInt32BE(8);
    const frame = Buffer.alloc(24);
    for (let n = 0; readSync(fd, frame, 0, 24, 32 + n * step) === 24; n++) {
      if (!frame.subarray(8, 16).equals(header.subarray(16, 24))) break;
      if (n >= after) pages.add(frame.readUInt32BE(0));
    }
    return pages;
  } finally {
    closeSync(fd);
  }
}

/** https://www.sqlite.org/fileformat2.html, "The Lock-Byte Page": the page at this offset belongs to nothing. */
const LOCK_BYTE = 0x4000_0000;

/** Whether a file is as VACUUM leaves it: no free pages, no pointer map. Then the accounting of its pages says as much as a quick_check of all. */
export const isAsVacuumLeavesIt = (db: Db): boolean => number(db, 'freelist_count') === 0 && number(db, 'auto_vacuum') === 0;

/**
 * The accounting of pages of a private file: each belongs to exactly one b-tree, or is free, or a page of the pointer map. In
 * words what is wrong, or null. The trees themselves are checked table by table. A third of what quick_check costs, and it needs
 * nothing of the application.
 */
export function pagesGoneAstray(db: Db, file: string): string | null {
  const pages = number(db, 'page_count');
  const pageSize = number(db, 'page_size');
  const seen = new Uint8Array(pages + 1);
  let wrong: string | null = null;
  const use = (page: number): void => {
    if (seen[page] === 0 && page > 0) seen[page] = 1;
    else wrong ??= page > 0 && page <= pages ? `page ${page} is used twice` : `page ${page} of ${pages} is used`;
  };
  const lockPage = LOCK_BYTE / pageSize + 1;
  if (lockPage <= pages) use(lockPage);
  try {
    for (const page of db.prepare<[], number>('SELECT pageno FROM temp.dbstat').pluck().iterate()) use(page);
  } catch (error) {
    if (error instanceof Database.SqliteError) return `its pages cannot be accounted for: ${error.message}`;
    throw error;
  }
  const fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    // https://www.sqlite.org/fileformat2.html, "The Database Header", "Pointer Map or Ptrmap Pages", "The Freelist"
    const page = Buffer.alloc(pageSize);
    readSync(fd, page, 0, pageSize, 0);
    const usable = pageSize - (page[20] ?? 0);
    if (number(db, 'auto_vacuum') !== 0) for (let at = 2; at <= pages; at += Math.floor(usable / 5) + 1) use(at === lockPage ? at + 1 : at);
    let trunk = page.readUInt32BE(32);
    while (trunk !== 0 && wrong === null) {
      use(trunk);
      readSync(fd, page, 0, pageSize, (trunk - 1) * pageSize);
      const leaves = page.readUInt32BE(4);
      if (leaves > usable / 4 - 2) wrong ??= `the list of free pages on page ${trunk} is longer than a page`;
      for (let n = 0; n < leaves && wrong === null; n++) use(page.readUInt32BE(8 + 4 * n));
      trunk = page.readUInt32BE(0);
    }
  } finally {
    closeSync(fd);
  }
  const never = seen.indexOf(0, 1);
  return wrong ?? (never > 0 ? `page ${never} is never used` : null);
}
