/**
 * Commands of the operator around a run: `before`, `after`, `on-failure`. Words without a shell; the record as JSON on standard
 * input, a few facts in the environment, none of our secrets. What they print goes into the log, through the redactor.
 */
import { spawn } from 'node:child_process';
import type { Acting } from './acting.js';
import type { Failure } from './outcome.js';
import { describe, errnoWords, Failed, warning } from './outcome.js';
import type { RunRecord } from './records.js';
import { findSetpriv } from './system/workers.js';

export type HookName = 'before' | 'after' | 'on-failure';

/** A hook that takes longer is ended: it must not keep the lock for ever. */
export const HOOK_LIMIT_MS = 300_000;
/** Characters of its output that are kept. */
const OUTPUT_MAX = 10_000;

/** Runs `before`; throws `Failed` with HOOK_FAILED when it fails, and with the signal's reason. */
export async function runBefore(acting: Acting): Promise<void> {
  const failure = await runHook(acting, 'before', acting.recorder.record(null, { cpuMs: 0, peakAnonBytes: 0 }));
  acting.signal.throwIfAborted();
  if (failure) throw new Failed(failure);
}

/** Runs what comes after a run: `after` when a copy was made, `on-failure` when something failed; both for an incomplete one. What fails is a remark. */
export async function runAfter(acting: Acting, record: RunRecord): Promise<void> {
  const { status } = record;
  const hooks: HookName[] = [
    ...(status === 'ok' || status === 'incomplete' ? (['after'] as const) : []),
    ...(status === 'ok' ? [] : (['on-failure'] as const)),
  ];
  for (const hook of hooks) {
    if (acting.ctx.signal.aborted) return;
    const failure = await runHook(acting, hook, record);
    if (failure) acting.recorder.warn(warning(failure.code, describe(failure).message));
  }
}

async function runHook(acting: Acting, hook: HookName, record: RunRecord): Promise<Failure | null> {
  const words = acting.config.hooks[hook];
  if (words === null) return null;
  const limit = AbortSignal.timeout(HOOK_LIMIT_MS);
  // After its time limit a run still tells what came of it; a signal leaves no time for that.
  const signal = AbortSignal.any([hook === 'before' ? acting.signal : acting.ctx.signal, limit]);
  const { how, output } = await run(acting, words, record, signal);
  acting.log(how === null ? 'info' : 'warn', `hook ${hook} ${how ?? 'exited with 0'}`, { hook, output });
  if (how === null) return null;
  return {
    code: 'HOOK_FAILED',
    hook,
    how: limit.aborted ? `took longer than ${HOOK_LIMIT_MS / 60_000} minutes` : how,
    output: output.trim().split('\n').at(-1) ?? '',
  };
}

function run(acting: Acting, words: readonly string[], record: RunRecord, signal: AbortSignal): Promise<{ how: string | null; output: string }> {
  const { ctx, name, recorder } = acting;
  const setpriv = findSetpriv();
  if (setpriv === null) return Promise.resolve({ how: 'cannot be started: setpriv (package util-linux) is not installed', output: '' });
  const env = { ...ctx.childEnv, DBB_RUN_ID: recorder.runId, DBB_NAME: name, DBB_STATUS: record.status };
  return new Promise((done) => {
    const child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', ...words], { env, cwd: ctx.cwd, stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    let output = '';
    const keep = (text: string): void => {
      output = (output + text).slice(-OUTPUT_MAX);
    };
    const kill = (): void => {
      try {
        process.kill(-(child.pid ?? 0), 'SIGKILL');
      } catch {
        // It has ended already.
      }
    };
    signal.addEventListener('abort', kill, { once: true });
    child.stdout.setEncoding('utf8').on('data', keep);
    child.stderr.setEncoding('utf8').on('data', keep);
    // A hook need not read it.
    child.stdin.on('error', () => undefined);
    child.stdin.end(`${JSON.stringify(record)}\n`);
    const end = (how: string | null): void => {
      signal.removeEventListener('abort', kill);
      // What it left behind holds its output open, and must not hold us.
      child.stdout.destroy();
      child.stderr.destroy();
      done({ how, output });
    };
    child.once('error', (error) => end(`cannot be started: ${errnoWords(error)}`));
    child.once('exit', (code, by) =>
      setImmediate(() => end(by ? `was ended by ${by}` : code === 0 ? null : code === 127 ? 'could not be started' : `exited with ${code}`)),
    );
  });
}
