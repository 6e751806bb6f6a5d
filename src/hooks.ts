/**
 * Commands of the operator around a run: `before`, `after`, `on-failure`. Words without a shell; the record as JSON on standard
 * input, a few facts in the environment, none of our secrets. What they print goes into the log, through the redactor.
 */
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { spawn } from 'node:child_process';
import type { Acting } from './acting.js';
import type { Failure } from './outcome.js';
import { describe, errnoWords, Failed, warning } from './outcome.js';
import type { RunRecord } from './records.js';
import { redactValue } from './redact.js';
import { ProcessTree } from './system/process-tree.js';
import { findSetpriv } from './system/start-worker.js';

export type HookName = 'before' | 'after' | 'on-failure';

/** A hook that takes longer is ended: it must not keep the lock for ever. */
export const HOOK_LIMIT_MS = 300_000;
/** Characters of its output that are kept. */
const OUTPUT_MAX = 10_000;

/** Runs `before`; throws `Failed` with HOOK_FAILED when it fails, and with the signal's reason. */
export async function runBefore(acting: Acting): Promise<void> {
  acting.signal.throwIfAborted();
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

/** What a hook is told about and by which its processes are known, also those that no longer descend from it. */
const RUN_ID = 'DBB_RUN_ID';

function run(acting: Acting, words: readonly string[], record: RunRecord, signal: AbortSignal): Promise<{ how: string | null; output: string }> {
  const { ctx, name, recorder } = acting;
  const { redact } = ctx.output;
  const setpriv = findSetpriv();
  if (setpriv === null) return Promise.resolve({ how: 'cannot be started: setpriv (package util-linux) is not installed', output: '' });
  const env = { ...ctx.childEnv, [RUN_ID]: recorder.runId, DBB_NAME: name, DBB_STATUS: record.status };
  const unstarted = (error: unknown): string => `cannot be started: ${errnoWords(error)}`;
  let child: ChildProcessWithoutNullStreams;
  try {
    child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', ...words], { env, cwd: ctx.cwd, stdio: ['pipe', 'pipe', 'pipe'], detached: true });
  } catch (error) {
    // Node tells some errors by "error", and throws others: that memory has run out (ENOMEM), an environment that is too large (E2BIG).
    return Promise.resolve({ how: unstarted(error), output: '' });
  }
  return new Promise((done) => {
    const tree = new ProcessTree(child.pid ?? 0, `${RUN_ID}=${recorder.runId}`);
    let output = '';
    // Twice what is shown: what the cut makes of a secret at its edge, no redactor would know any more.
    const keep = (text: string): void => {
      output = (output + text).slice(-2 * OUTPUT_MAX);
    };
    const said = (): string => (output.length < 2 * OUTPUT_MAX ? redact(output) : redact(output).replace(/^.*\n?/, '')).slice(-OUTPUT_MAX);
    // All that it started: a shell that is killed leaves its children at work, in a session of their own perhaps.
    const kill = (): void => tree.signal('SIGKILL', true);
    signal.addEventListener('abort', kill, { once: true });
    if (signal.aborted) kill();
    // Where descriptors have run out there are none of these, and "error" says why.
    const [stdin, stdout, stderr] = (child.stdio as Partial<typeof child.stdio> | undefined) ?? [];
    stdout?.setEncoding('utf8').on('data', keep);
    stderr?.setEncoding('utf8').on('data', keep);
    // A hook need not read it.
    stdin?.on('error', () => undefined);
    stdin?.end(`${JSON.stringify(redactValue(record, redact))}\n`);
    const end = (how: string | null): void => {
      signal.removeEventListener('abort', kill);
      // What it left behind holds its output open, and must not hold us.
      stdout?.destroy();
      stderr?.destroy();
      done({ how, output: said() });
    };
    child.once('error', (error) => end(unstarted(error)));
    child.once('exit', (code, by) =>
      setImmediate(() =>
        end(by ? `was ended by ${by}` : code === 0 ? null : code === 127 ? 'could not be started, or exited with 127' : `exited with ${code}`),
      ),
    );
  });
}
