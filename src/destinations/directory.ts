/**
 * A directory of this machine as a destination: a mounted disk. Its child (directory-child.ts) does all that touches it, since a mount
 * whose server is gone does not answer and cannot be called off.
 */
import { ChildDestination } from './child.js';
import type { DirectoryTarget } from './child-protocol.js';
import type { Destination } from './destination.js';
import type { DirectoryUrl } from './url.js';

/** Nothing is started or looked at yet. `apartFrom`: directories that it must not be, nor lie in. */
export function directoryDestination(url: DirectoryUrl, env: NodeJS.ProcessEnv, apartFrom: readonly string[]): Destination {
  const target: DirectoryTarget = { path: url.path, apartFrom, shown: url.shown };
  return new ChildDestination('directory-child', target, env);
}
