/** A destination that is the backup directory, or lies in it on the same disk, would be counted as a second copy, and is none. */
import { realpathSync, statSync } from 'node:fs';
import { ancestors } from '../system/files.js';
import type { DirectoryTarget } from './child-protocol.js';
import { DestinationError } from './destination.js';

/** Throws a DestinationError. What is not there is told by who uses the directory. */
export function requireApart({ path, apartFrom }: DirectoryTarget): void {
  const place = statOrNull(path);
  if (!place) return;
  for (const own of apartFrom) {
    const home = statOrNull(own);
    // A disk that is mounted below it is another one.
    if (!home || place.dev !== home.dev) continue;
    // By what they are, not by their names: links and bind mounts lead to the same place.
    const within = ancestors(realpathSync(path)).some((above) => {
      const stats = statOrNull(above);
      return stats !== null && stats.dev === home.dev && stats.ino === home.ino;
    });
    if (within) throw new DestinationError('other', `${path} is ${own} or lies in it, which is no second copy: name another disk`, false);
  }
}

function statOrNull(path: string): { dev: number; ino: number } | null {
  try {
    return statSync(path);
  } catch {
    return null;
  }
}
