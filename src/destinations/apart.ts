/** A destination that is the backup directory, or lies in it on the same disk, would be counted as a second copy, and is none. */
import { realpathSync, statSync } from 'node:fs';
import { ancestors } from '../system/files.js';
import { DestinationError } from './destination.js';
import type { DestinationUrl } from './url.js';

/** Throws a DestinationError. `to`: the backup directory. What is not there is told by who opens the destination. */
export function requireApart(url: DestinationUrl, to: string): void {
  if (url.kind !== 'directory') return;
  const home = statOrNull(to);
  const place = statOrNull(url.path);
  // A disk that is mounted below the backup directory is another one.
  if (!home || !place || place.dev !== home.dev) return;
  // By what they are, not by their names: links and bind mounts lead to the same place.
  const within = ancestors(realpathSync(url.path)).some((path) => {
    const stats = statOrNull(path);
    return stats !== null && stats.dev === home.dev && stats.ino === home.ino;
  });
  if (within) throw new DestinationError('other', `${url.path} is the backup directory or lies in it, which is no second copy: name another disk`, false);
}

function statOrNull(path: string): { dev: number; ino: number } | null {
  try {
    return statSync(path);
  } catch {
    return null;
  }
}
