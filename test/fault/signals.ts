/** SIGHUP, SIGINT, SIGTERM and the time limit in every phase: over within 2 s, nothing half-done, and said so. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { dbbackup, killGroup, makeDatabase, type Result, removeDirectory, signalTo, start, tempDirectory, wrap } from '../support/cli.js';
import { counted, type Failure, mustEndCleanly, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { listing, must, mustBeWhole, processesAt, sourceState } from './proof.js';
import { type Calibration, calibrate } from './trace.js';

const SOURCE_BYTES = 8_000_000;
const EXITS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;
type SignalName = keyof typeof EXITS;
const SIGNALS: readonly SignalName[] = ['SIGHUP', 'SIGINT', 'SIGTERM'];
const INJECTED = { SIGHUP: 'HUP', SIGINT: 'INT', SIGTERM: 'TERM' } as const;
const DECISIVE = ['link', 'linkat', 'rename', 'unlink', 'unlinkat', 'rmdir', 'fsync', 'fdatasync', 'mkdir', 'openat', 'ftruncate', 'pwrite64'];

interface Stage {
  readonly home: string;
  readonly source: string;
  readonly to: string;
  readonly args: readonly string[];
  readonly usual: number;
  readonly calibration: Calibration;
}

async function play(request: Request): Promise<Failure[]> {
  const home = tempDirectory('signals');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  const args = ['run', source, '--to', to, '--keep-last', '2', '--json'];
  makeDatabase(source, { bytes: SOURCE_BYTES });
  let usual = 0;
  // Two, so that the next one has something to prune.
  for (let i = 0; i < 2; i++) {
    const run = await dbbackup(args);
    must(run.code === 0, () => `a run without any fault failed: ${told(run)}`);
    usual = run.durationMs;
  }
  const stage = { home, source, to, args, usual, calibration: await calibrate(home, join(tempDirectory('trace'), 'log'), args) };
  const seen = new Map<string, number>();
  const failures = await rounds('signals', request, (round) => one(stage, round, seen));
  removeDirectory(home);
  request.note?.(counted(seen));
  return failures;
}

async function one(stage: Stage, round: Round, seen: Map<string, number>): Promise<void> {
  const { to, source, home } = stage;
  mustBeWhole(to, 'before');
  const before = listing(to);
  const untouched = sourceState(source);
  const { how, run, expected, tookMs } = await disturb(stage, round);
  round.say(told(run));
  must(!run.hung && tookMs < 2000, () => `took ${Math.round(tookMs)} ms to end`);
  must(processesAt(home).length === 0, () => `survivors: ${processesAt(home).join('; ')}`);
  must(sourceState(source) === untouched, 'the source or its -wal was written to');
  const found = mustBeWhole(to, 'right after the end');
  const same = listing(to) === before;
  const history = await dbbackup(['history', '--to', to, '--json', '--limit', '4']);
  const records = history.json.runs ?? [];
  must(history.code === 0 && records.every((r) => r.status !== 'running'), () => `the history shows a running run: ${told(history)}`);
  const count = (what: string): void => {
    seen.set(what, (seen.get(what) ?? 0) + 1);
  };

  if (run.signal !== null) {
    // Node had no handler yet, or none any more: before anything was done, or when all was.
    must(run.signal === expected, () => `died of ${run.signal}`);
    must(
      same || (records[0]?.status === 'ok' && found.pairs.has(records[0].copy?.file ?? '')),
      () => `died in the middle of it: ${JSON.stringify(records[0])}`,
    );
    return count(same ? 'before it began' : 'after it ended');
  }
  // strace counts the calls of every process: it may have been a child's N-th call, and the child alone got the signal.
  if (expected !== 'TIMEOUT' && run.code === 1) {
    must(how === 'call', () => `failed: ${told(run)}`);
    mustEndCleanly(run);
    must(same, 'a child was ended, and the directory changed');
    return count('a child alone');
  }
  const { copy, status, error } = run.json;
  const [mustCode, mustStatus, mustError] =
    run.code === 0
      ? [0, 'ok', undefined]
      : expected === 'TIMEOUT'
        ? [copy ? 3 : 1, copy ? 'incomplete' : 'failed', 'TIMEOUT']
        : [EXITS[expected], 'interrupted', 'INTERRUPTED'];
  must(run.isJson && run.code === mustCode && status === mustStatus && error?.code === mustError, () => `not what was to be: ${told(run)} ${status}`);
  if (copy) must(found.pairs.has(copy.file), () => `${copy.file} is named and not there`);
  else must(same, () => `no copy is named, and the directory changed from\n${before}\nto\n${listing(to)}`);
  const record = records.find((r) => r.runId === run.json.runId);
  must(record?.status === status && record?.exitCode === run.code, () => `the record says ${record?.status} ${record?.exitCode}`);
  count(run.code === 0 ? 'after it ended' : `${expected === 'TIMEOUT' ? 'timeout in ' : ''}${error?.stage ?? 'no stage'}`);
}

/** Ends a run early in one of four ways. */
async function disturb(stage: Stage, round: Round): Promise<{ how: string; run: Result; expected: SignalName | 'TIMEOUT'; tookMs: number }> {
  const { random, say, directory } = round;
  const { args, usual, calibration } = stage;
  const signal = random.pick(SIGNALS);
  const how = random.pick(['parent', 'parent', 'group', 'call', 'timeout'] as const);
  if (how === 'timeout') {
    const ms = Math.ceil(random.between(1, usual));
    say(`timeout ${ms} of ${Math.round(usual)} ms`);
    const run = await dbbackup([...args, '--timeout', `${ms}ms`]);
    return { how, run, expected: 'TIMEOUT', tookMs: run.durationMs - ms };
  }
  if (how === 'call') {
    const { call, when } = calibration.pick(random, DECISIVE);
    say(`${signal} at ${call} ${when}`);
    mkdirSync(join(directory, 'trace'));
    const run = await dbbackup(args, { through: wrap.fault(join(directory, 'trace/log'), [{ calls: call, signal: INJECTED[signal], when }]) });
    // strace slows everything down: the time is measured in the other ways.
    return { how, run, expected: signal, tookMs: 0 };
  }
  const delay = random.between(0, usual * 1.02);
  say(`${signal} to ${how} after ${Math.round(delay)} of ${Math.round(usual)} ms`);
  const running = start(args);
  await new Promise((r) => setTimeout(r, delay));
  const began = performance.now();
  if (how === 'group') killGroup(running.pid, signal);
  else signalTo(running.pid, signal);
  const run = await running.result;
  return { how, run, expected: signal, tookMs: performance.now() - began };
}

export const signals: Scenario = {
  name: 'signals',
  promise: 'a signal or the time limit ends a run within 2 s in every phase and leaves nothing half-done',
  ci: 7,
  soak: 600,
  needs: ['strace'],
  play,
};
