/** Private directories beside a file that is to be made: `.dbbackup-UUID`, each with a lock that tells a living one from a leftover. */
import { randomUUID } from 'node:crypto';
import { lstatSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { errnoWords, Failed } from './outcome.js';
import { emptyFiles, lstatOrNull } from './system/files.js';
import { makeLivingDirectory, removeQuietly, sweepDirectory } from './workspace.js';

const STAGING = /^\.dbbackup-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Takes away what killed restores, of whatever way, have left beside a database. What cannot be removed, or not be seen, is left. */
export function sweepStaging(beside: string): void {
  for (const entry of list(beside)) {
    if (STAGING.test(entry)) sweepDirectory(join(beside, entry), isMade);
  }
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    // Where one may write and not read, a restore works all the same.
    return [];
  }
}

/**
 * A private directory beside a file that is to be made, since link and rename need one file system; those of killed runs are swept.
 * @param of what is to be made, for who is told that it cannot be
 */
export async function makeStaging(beside: string, signal: AbortSignal, of = beside): Promise<{ readonly directory: string; remove(): void }> {
  try {
    sweepStaging(beside);
    const directory = join(beside, `.dbbackup-${randomUUID()}`);
    const lock = await makeLivingDirectory(directory, signal);
    const is = lstatSync(directory);
    return {
      directory,
      remove: () => {
        lock.release();
        if (signal.aborted) emptyFiles(directory, is, [STAGED]);
        removeQuietly(directory);
      },
    };
  } catch (error) {
    if (error instanceof Failed) throw error;
    throw new Failed(
      { code: 'RESTORE_FAILED', path: of, reason: `${beside}: ${errnoWords(error)}`, state: 'nothing was changed; it must be possible to write there' },
      { cause: error },
    );
  }
}

/** Whether a file has its second name in such a directory: a restore was killed between giving it its name and taking the staged one away. */
export function isStaged(path: string, ino: number): boolean {
  const beside = dirname(path);
  return readdirSync(beside).some((entry) => STAGING.test(entry) && lstatOrNull(join(beside, entry, STAGED))?.ino === ino);
}

/** What the new file is called in there. */
export const STAGED = 'restore.db';

/** What restores make there: that file with what SQLite puts beside it, an archive, and what packing makes of both. */
const isMade = (entry: string): boolean => /^(restore\.db|files\.tar)/.test(entry);
