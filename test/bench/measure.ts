/** The stop-watch of the benchmark: processes timed from spawn to exit, memory over a whole process tree, the machine by name. */
import { execFileSync, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, release } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

/** A program and its arguments. */
export type Command = readonly [string, ...string[]];

export interface Timed {
  readonly ms: number;
  /** Highest sum of RssAnon over all processes at one moment, bytes; 0 when it was not sampled. */
  readonly peakAnonBytes: number;
}

const SAMPLE_MS = 20;

/** Runs a command to its end. Throws with what it said on stderr when it does not exit 0. */
export async function time(command: Command, cwd: string, sample = false): Promise<Timed> {
  const [program, ...args] = command;
  const began = performance.now();
  // Its own session, by which its processes are found even when their parent has gone.
  const child = spawn(program, args, { cwd, env: scrubbedEnvironment(), stdio: ['ignore', 'ignore', 'pipe'], detached: true });
  let said = '';
  child.stderr.on('data', (data: Buffer) => {
    said += data;
  });
  let peakAnonBytes = 0;
  let ended = false;
  const exit = new Promise<number>((done, fail) => {
    child.once('error', fail);
    child.once('exit', () => {
      ended = true;
    });
    child.once('close', (code, signal) => (signal ? fail(new Error(`${program} was ended by ${signal}`)) : done(code ?? -1)));
  });
  if (sample) {
    while (!ended) {
      peakAnonBytes = Math.max(peakAnonBytes, anonBytes(child.pid ?? -1));
      await sleep(SAMPLE_MS);
    }
  }
  const exitCode = await exit;
  const ms = performance.now() - began;
  if (exitCode !== 0) throw new Error(`${command.join(' ')} exited ${exitCode}: ${said.trim()}`);
  return { ms, peakAnonBytes };
}

/** The environment without this project's settings, so that the operator's own do not steer the measurement. */
function scrubbedEnvironment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !/^(DBBACKUP_|NODE_OPTIONS$|npm_)/.test(name));
  return Object.fromEntries(kept);
}

/** RssAnon summed over a process, its session and its descendants. Bytes. */
function anonBytes(root: number): number {
  const processes: { pid: number; parent: number; session: number }[] = [];
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    // A process may end between the listing and the look.
    const stat = readProc(`/proc/${entry}/stat`);
    // The program's name stands in parentheses and may hold anything: count from the last one.
    const [, parent, , session] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    processes.push({ pid: Number(entry), parent: Number(parent), session: Number(session) });
  }
  const ours = new Set(processes.filter((p) => p.pid === root || p.session === root).map((p) => p.pid));
  for (let before = -1; before !== ours.size; ) {
    before = ours.size;
    for (const p of processes) if (ours.has(p.parent)) ours.add(p.pid);
  }
  let sum = 0;
  for (const pid of ours) sum += 1024 * Number(/^RssAnon:\s+(\d+) kB/m.exec(readProc(`/proc/${pid}/status`))?.[1] ?? 0);
  return sum;
}

function readProc(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** A B A B ...: each pair meets the same machine. The first pair warms the caches and is not counted. */
export async function alternate(rounds: number, a: () => Promise<number>, b: () => Promise<number>): Promise<[number[], number[]]> {
  const as: number[] = [];
  const bs: number[] = [];
  for (let round = 0; round <= rounds; round++) {
    const [x, y] = [await a(), await b()];
    if (round === 0) continue;
    as.push(x);
    bs.push(y);
  }
  return [as, bs];
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((x, y) => x - y);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
}

export const median = (values: readonly number[]): number => quantile(values, 0.5);

/** The first line that a program prints, or null when it cannot be started. */
export function ask(program: string, ...args: string[]): string | null {
  try {
    return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).split('\n')[0] ?? '';
  } catch {
    return null;
  }
}

export const machine = (directory: string): string =>
  `${availableParallelism()} × ${cpus()[0]?.model.trim() ?? 'unknown processor'}, Linux ${release()}, ${ask('findmnt', '-no', 'FSTYPE', '-T', directory) ?? 'unknown file system'}`;
