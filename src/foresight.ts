/**
 * What a run would meet beside its source and its directory: the lock of its name, its hook, the state that it could not write. For who
 * only looks: nothing is opened through SQLite, and nothing is made.
 */
import { accessSync, constants } from 'node:fs';
import type { Context } from './context.js';
import { historyPath } from './history.js';
import { lockFailure, lockPaths, lockWarning } from './lock-failure.js';
import { logProblem } from './log.js';
import { outboxPath } from './notifiers/outbox.js';
import type { Failure, Warning } from './outcome.js';
import { errnoWords, warning } from './outcome.js';
import type { Config } from './settings/load.js';
import { unusableReason } from './stages/inspect.js';
import { lstatOrNull, nearest } from './system/files.js';
import { lookAtLock } from './system/lock.js';
import { canStart } from './system/programs.js';

/** What would keep the lock of the name from being had; that another run holds it is seen by taking it alone. */
export function foreseeLock({ identity }: Context, config: Config, name: string): Failure[] {
  const error = lookAtLock(lockPaths(config, name).main);
  return error === null ? [] : [lockFailure(config, name, identity, error)];
}

/** What would end a run before its first stage. */
export function foreseeFailures(ctx: Context, config: Config, name: string): Failure[] {
  const found = foreseeLock(ctx, config, name);
  const [program] = config.hooks.before ?? [];
  if (program === undefined || canStart(program, ctx.cwd, ctx.childEnv)) return found;
  return [...found, { code: 'HOOK_FAILED', hook: 'before', how: `cannot be started: ${program} is not there, or is no program`, output: '' }];
}

/** What a run would have to do without. */
export function foreseeWarnings({ identity, clock }: Context, config: Config, name: string): Warning[] {
  const { beside } = lockPaths(config, name);
  const unlocked = beside === null ? null : lookAtLock(beside);
  const state: readonly (readonly [what: string, problem: string | null])[] = [
    [`the history in ${config.stateDir}`, fileProblem(historyPath(config.stateDir))],
    [`the outbox ${outboxPath(config.stateDir)}`, directoryProblem(outboxPath(config.stateDir))],
    [`the log in ${config.logDir}`, logProblem(config.logDir, identity.uid, clock.now()) ?? directoryProblem(config.logDir)],
  ];
  return [
    ...(beside === null || unlocked === null ? [] : [lockWarning(beside, unlocked)]),
    ...state.flatMap(([what, problem]) => (problem === null ? [] : [warning('STATE_UNWRITABLE', `${what} cannot be written: ${problem}`)])),
  ];
}

/** Null also where there is none yet: the directory was looked at. */
function fileProblem(path: string): string | null {
  return problemOf(() => {
    const stats = lstatOrNull(path);
    if (stats && !stats.isFile()) throw new Error(`${path} is not a regular file`);
    if (stats) accessSync(path, constants.R_OK | constants.W_OK);
  });
}

const directoryProblem = (path: string): string | null =>
  problemOf(() => {
    const there = nearest(path);
    const reason = unusableReason(there);
    if (reason !== null) throw new Error(reason);
    accessSync(there, constants.R_OK | constants.W_OK | constants.X_OK);
  });

function problemOf(look: () => void): string | null {
  try {
    look();
    return null;
  } catch (error) {
    return errnoWords(error);
  }
}
