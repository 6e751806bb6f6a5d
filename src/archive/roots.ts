/** Whether what is to be archived can be: looked at without being opened, for plans and for runs. */

import { isUtf8 } from 'node:buffer';
import { accessSync, constants, realpathSync, statSync } from 'node:fs';
import { kindOf, reasonOf } from './common.js';

/** Why this path cannot be archived, in words, or null. Links are followed. */
export function rootProblem(path: string): string | null {
  try {
    if (!isUtf8(realpathSync.native(path, 'buffer'))) return 'its name is not valid UTF-8';
    const stats = statSync(path);
    if (!stats.isFile() && !stats.isDirectory()) return `it is ${kindOf(stats)}, not a file or directory`;
    accessSync(path, stats.isDirectory() ? constants.R_OK | constants.X_OK : constants.R_OK);
    return null;
  } catch (error) {
    return reasonOf(error);
  }
}
