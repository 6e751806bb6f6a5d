/** A command that stands still at a chosen system call, so that a test can do something at that very moment. Needs strace. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { descendants } from '../fault/proof.js';
import { atEnd, type Options, type Result, signalTo, startCommand, tempDirectory, until } from './cli.js';

export interface StandingStill {
  /** Lets it go on, to its end. `hearing`: this signal waits for it. */
  readonly goOn: (hearing?: NodeJS.Signals) => Promise<Result>;
  /** Kills it, and all that it has started. */
  readonly kill: () => Promise<Result>;
}

export interface Where {
  /** As strace names it. The call itself is made. */
  readonly call: string;
  /** Only calls on this file count. */
  readonly path?: string;
  /** The N-th such call of a thread. */
  readonly when?: number;
}

/** Resolves when the command stands still; throws where it ends without having come so far. */
export async function standStill(words: readonly string[], { call, path, when = 1 }: Where, options: Options = {}): Promise<StandingStill> {
  const log = join(tempDirectory('standstill'), 'log');
  const only = path === undefined ? [] : ['-P', path];
  const strace = ['strace', '-f', '-qq', '-o', log, ...only, '-e', `trace=${call}`, '-e', `inject=${call}:signal=STOP:when=${when}`, '--'];
  const running = startCommand([...strace, ...words], options);
  await until(`${call} ${when}, to stand still at`, async () => {
    if (!running.isRunning()) throw new Error(`it ended without ${call} ${when}: ${(await running.result).stderr}`);
    return existsSync(log) && readFileSync(log, 'utf8').includes('stopped by SIGSTOP');
  });
  const pids = descendants(running.pid);
  let stands = true;
  // strace is ended with the test, and would leave them behind as they are.
  atEnd(() => {
    if (stands) for (const pid of pids) signalTo(pid, 'SIGKILL');
  });
  return {
    goOn: (hearing) => {
      stands = false;
      const [command] = pids;
      if (hearing && command !== undefined) signalTo(command, hearing);
      for (const pid of pids) signalTo(pid, 'SIGCONT');
      return running.result;
    },
    kill: () => {
      stands = false;
      for (const pid of pids) signalTo(pid, 'SIGKILL');
      return running.result;
    },
  };
}
