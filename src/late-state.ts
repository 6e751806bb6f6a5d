/** State for the record of a run that failed before it could begin. */
import { isFailure } from './artifacts.js';
import type { Context } from './context.js';
import type { CommandName } from './records.js';
import { inspectTarget, mayMake } from './stages/inspect.js';
import { lstatOrNull, makeDirectories } from './system/files.js';

/** What is known of a run that failed. `database`: as configured, absolute. */
export interface Refused {
  readonly command: CommandName;
  readonly to: string;
  readonly stateDir: string;
  readonly database: string | null;
}

/**
 * Whether its record can be written: the directory is ours, or may be made. Nothing is made but what state needs: without it nobody would be told
 * later what could not be told now, nor that all is well again. Throws what the system says where it cannot be made.
 */
export function makeLateState({ identity, again }: Context, { command, to, stateDir, database }: Refused): boolean {
  const target = inspectTarget(to, stateDir, identity, again);
  if (isFailure(target)) return false;
  // State on a network file system is what it may have been refused for.
  const isThere = target.network === null && (target.exists || lstatOrNull(stateDir) !== null);
  if (!isThere && !mayMake(target, command, database, identity)) return false;
  makeDirectories(stateDir, () => undefined);
  // In a directory that others may add to, somebody may have been faster.
  return isThere || !isFailure(inspectTarget(to, stateDir, identity, again));
}
