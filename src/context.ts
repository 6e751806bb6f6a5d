/** What the composition root hands to a command: every way to the outside world that is not a setting. */

import type { Output } from './output.js';
import type { Clock } from './system/clock.js';
import type { Identity } from './system/processes.js';
import type { StartedWorker } from './system/start-worker.js';

export interface Context {
  readonly clock: Clock;
  /** Aborts with a `Failed` (INTERRUPTED) when a signal arrives. */
  readonly signal: AbortSignal;
  readonly output: Output;
  readonly identity: Identity;
  readonly host: string;
  /** `dbbackup 0.1.0`. */
  readonly tool: string;
  /** The working directory, absolute: what relative paths on the command line count from. */
  readonly cwd: string;
  /** The command line as words, for hints that can be pasted: `dbbackup`, `run`, ... */
  readonly invocation: readonly string[];
  /** The same with the settings of the environment in front, but for secrets: for whoever has another one. */
  readonly again: readonly string[];
  /** The file mode mask that we were started with: a guarded command gets it back. */
  readonly umask: number;
  /** The environment for our own children: without our secrets. */
  readonly childEnv: NodeJS.ProcessEnv;
  /** A SQLite child started before anything else was loaded; null when none was. */
  readonly earlyWorker: StartedWorker | null;
}
