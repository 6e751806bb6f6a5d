/** The ends that scenarios put to a command, kill -9 and a power cut, and what must be so after either. */
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Result, type Running, signalTo, start, until, wrap } from '../support/cli.js';
import type { Random, Round } from './harness.js';
import type { PowerSwitch } from './mounts.js';
import { descendants, must, processesAt } from './proof.js';
import type { Call } from './trace.js';

export type Victims = 'parent' | 'child' | 'both';

const shuffled = <T>(items: readonly T[], random: Random): T[] =>
  items
    .map((item) => ({ item, at: random.next() }))
    .sort((a, b) => a.at - b.at)
    .map((x) => x.item);

/** kill -9 of a process, of one of its descendants, or of all in any order; the process itself where it has none. Returns how many of how many. */
export function kill9({ pid }: Running, who: Victims, random: Random): string {
  const below = descendants(pid);
  const victims = who === 'parent' || below.length === 0 ? [pid] : who === 'child' ? [random.pick(below)] : shuffled([pid, ...below], random);
  for (const victim of victims) signalTo(victim, 'SIGKILL');
  return `${victims.length} of ${below.length + 1} processes`;
}

/** The kernel takes a moment to end them. */
export async function mustLeaveNobody(directory: string, withinMs = 3000): Promise<void> {
  await until('nobody to survive', () => processesAt(directory).length === 0, withinMs).catch(() => {
    must(false, `survivors: ${processesAt(directory).join('; ')}`);
  });
}

const anyStopped = (directory: string): boolean =>
  readdirSync(directory).some((n) => readFileSync(join(directory, n), 'utf8').includes('--- stopped by SIGSTOP ---'));

/** Stopped at a chosen call, the power is cut; then the command goes on against a dead disk. */
export async function cutAtCall(args: readonly string[], { call, when }: Call, power: PowerSwitch, point: string, { directory }: Round): Promise<Result> {
  const traces = join(directory, 'trace');
  mkdirSync(traces);
  const run = start(args, { deadlineMs: 30_000, through: wrap.fault(join(traces, 'log'), [{ calls: call, signal: 'STOP', when }]) });
  await until('the chosen call', () => !run.isRunning() || anyStopped(traces), 20_000);
  await power.cut(point);
  // Each process that reaches its own N-th call stops there; all go on.
  while (run.isRunning()) {
    for (const pid of descendants(run.pid)) signalTo(pid, 'SIGCONT');
    await new Promise((r) => setTimeout(r, 20));
  }
  return await run.result;
}

/** Cut so many milliseconds after the start. */
export async function cutAfter(args: readonly string[], delayMs: number, power: PowerSwitch, point: string): Promise<Result> {
  const run = start(args, { deadlineMs: 30_000 });
  await new Promise((r) => setTimeout(r, delayMs));
  await power.cut(point);
  return await run.result;
}
