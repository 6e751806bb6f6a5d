/**
 * Programs of others that bytes are piped through: zstd, age. Found in PATH and started without a shell, at nice 10, in a
 * group of their own; like the SQLite children they end with us, also at kill -9 (traps, 41).
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import { setPriority } from 'node:os';
import { join, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { PassThrough } from 'node:stream';
import { findSetpriv } from './start-worker.js';
import { MissingProgram } from './workers.js';

/** What a program is started with. */
export interface Tools {
  /** Without our secrets. */
  readonly env: NodeJS.ProcessEnv;
  /** When it aborts, the program is killed. */
  readonly signal: AbortSignal;
  /** Counts the resources of a process. */
  readonly watch: (pid: number) => void;
}

/** A program ended with an error, or was killed. */
export class ProgramFailed extends Error {
  /** It was killed or could not be started: that says nothing of the bytes it was given. */
  readonly innocent: boolean;
  constructor(program: string, how: string, stderr: string, innocent: boolean) {
    super(`${program} ${how}${stderr.trim() === '' ? '' : `: ${stderr.trim().split('\n').slice(-3).join('; ').slice(-500)}`}`);
    this.name = 'ProgramFailed';
    this.innocent = innocent;
  }
}

/** The absolute path of a program in PATH, or null. Relative directories in PATH are passed over. */
export function findProgram(name: string, env: Readonly<Record<string, string | undefined>>): string | null {
  for (const directory of (env['PATH'] ?? '').split(':')) {
    const path = join(directory, name);
    if (path.startsWith('/') && isExecutable(path)) return path;
  }
  return null;
}

/** Whether the words of an operator name a program that can be started from there, relative directories in PATH included. */
export function canStart(program: string, cwd: string, env: Readonly<Record<string, string | undefined>>): boolean {
  if (program.includes('/')) return isExecutable(resolve(cwd, program));
  // Without PATH it is the C library that knows where to look.
  return env['PATH'] === undefined || env['PATH'].split(':').some((directory) => isExecutable(join(resolve(cwd, directory), program)));
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

function start(program: string, args: readonly string[], stdio: [number | 'pipe', number | 'pipe', 'pipe'], tools: Tools): ChildProcess {
  tools.signal.throwIfAborted();
  const setpriv = findSetpriv();
  if (setpriv === null) throw new MissingProgram('setpriv (package util-linux) is not installed; without it a program could outlive a killed run');
  const child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', program, ...args], { env: tools.env, stdio, detached: true, cwd: '/' });
  const abort = (): void => kill(child);
  tools.signal.addEventListener('abort', abort, { once: true });
  child.once('close', () => tools.signal.removeEventListener('abort', abort));
  if (child.pid !== undefined) {
    tools.watch(child.pid);
    try {
      setPriority(child.pid, 10);
    } catch {
      // It is gone already: its end says why.
    }
  }
  return child;
}

/** With its whole group: what is found in PATH may be a script, whose own children would keep the pipes open. */
function kill(child: ChildProcess): void {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  try {
    process.kill(-child.pid, 'SIGKILL');
  } catch {
    // It has not come as far as a group of its own, or is gone.
    child.kill('SIGKILL');
  }
}

/** setpriv's own, when it cannot start the program. */
const NOT_STARTED = [126, 127];

/** Waits for the end of a program. Rejects with `ProgramFailed`, or with the signal's reason. */
function endOf(child: ChildProcess, program: string, tools: Tools): Promise<void> {
  let stderr = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-4000);
  });
  return new Promise((done, fail) => {
    child.once('error', fail);
    child.once('close', (code, signal) => {
      if (code === 0) done();
      else if (tools.signal.aborted) fail(tools.signal.reason);
      else fail(new ProgramFailed(program, signal ? `was ended by ${signal}` : `ended with ${code}`, stderr, code === null || NOT_STARTED.includes(code)));
    });
  });
}

/** Runs a program from one open file into another. The descriptors stay the caller's. */
export async function runFiltering(program: string, args: readonly string[], from: number, to: number, tools: Tools): Promise<void> {
  await endOf(start(program, args, [from, to, 'pipe'], tools), program, tools);
}

/**
 * What a program makes of a stream. The result fails with the error of the input where that failed, since the program sees
 * such an end as a plain one, and with `ProgramFailed` where the program did. Destroying it ends the program.
 */
export function filtered(input: Readable, program: string, args: readonly string[], tools: Tools): Readable {
  const child = start(program, args, ['pipe', 'pipe', 'pipe'], tools);
  const output = new PassThrough({ highWaterMark: 1 << 20 });
  const { stdin, stdout } = child;
  if (!stdin || !stdout) throw new Error('no pipes to the program');
  let failed: Error | null = null;
  input.on('error', (error) => {
    failed = error;
    kill(child);
  });
  // A program that stops reading says by its own end why: the input has not failed.
  stdin.on('error', () => input.destroy());
  stdin.on('close', () => input.destroy());
  input.pipe(stdin);
  stdout.pipe(output, { end: false });
  output.once('close', () => kill(child));
  endOf(child, program, tools).then(
    () => (failed ? output.destroy(failed) : output.end()),
    (error: Error) => output.destroy(failed ?? error),
  );
  return output;
}
