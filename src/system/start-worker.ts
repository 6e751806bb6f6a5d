/** The start of a SQLite child, apart from all else: `main.ts` does it before it loads the rest. What is said to it: workers.ts. */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { wordsFor } from '../own-files.js';

const SETPRIV = ['/usr/bin/setpriv', '/bin/setpriv', '/usr/local/bin/setpriv', '/run/current-system/sw/bin/setpriv'];

/** The path of setpriv (util-linux), or null. */
export const findSetpriv = (): string | null => SETPRIV.find((p) => existsSync(p)) ?? null;

/** How a child came to its end; `error`: it could not be started; `said`: the end of what it wrote to stderr. */
export interface End {
  readonly error: Error | null;
  readonly said: string;
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A child, and its end, which may have come before anybody asks. */
export interface StartedWorker {
  readonly child: ChildProcess;
  readonly ended: Promise<End>;
}

/**
 * Starts a child; null where setpriv is missing. No child outlives its parent: `setpriv --pdeathsig KILL` makes the kernel see to
 * that even at kill -9 (traps, 41).
 */
export function startWorker(env: NodeJS.ProcessEnv): StartedWorker | null {
  const setpriv = findSetpriv();
  if (setpriv === null) return null;
  // With this, Node 20 reads all certificates of the system at every start, which takes twice as long as the start. SQLite needs none.
  const { NODE_EXTRA_CA_CERTS: _, ...rest } = env;
  const child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', ...wordsFor('sqlite-worker'), String(process.pid)], {
    env: rest,
    stdio: ['pipe', 'ignore', 'pipe', 'pipe'],
    // A group of its own: Ctrl-C and a terminal that hangs up reach the parent, which decides.
    detached: true,
  });
  // Read from the beginning: what a child that cannot run says is there before anybody asks it.
  let said = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-4000);
  });
  const ended = new Promise<End>((done) => {
    child.once('error', (error) => done({ error, said, code: null, signal: null }));
    // 'close' comes after the last answer was read, 'exit' may come before.
    child.once('close', (code, signal) => done({ error: null, said, code, signal }));
  });
  return { child, ended };
}
