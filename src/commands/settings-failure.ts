/** Settings that do not parse: said, recorded where the directory is known, and mailed when the mail settings alone parse. */
import { randomUUID } from 'node:crypto';
import { isFailure } from '../artifacts.js';
import type { Context } from '../context.js';
import { table } from '../format.js';
import { History } from '../history.js';
import { RunLog } from '../log.js';
import type { Message } from '../notifiers/message.js';
import type { ExitCode, Failure } from '../outcome.js';
import { describe, errnoWords, exitCodeOf, warning } from '../outcome.js';
import { Recorder } from '../recorder.js';
import type { CommandName, RunRecord } from '../records.js';
import { SCHEMA_VERSION } from '../records.js';
import { redactValue } from '../redact.js';
import type { Loaded, MailSettings } from '../settings/load.js';
import { inspectTarget } from '../stages/inspect.js';
import { composeFor, deliver, keep, sendNow } from '../stages/report.js';
import { lstatOrNull } from '../system/files.js';

const ACTING: readonly CommandName[] = ['run', 'verify', 'restore', 'guard', 'prune'];

/** Tells, records and mails settings that do not parse, and returns 78. */
export async function reportSettings(ctx: Context, command: CommandName, loaded: Loaded, dryRun: boolean): Promise<ExitCode> {
  const failure: Failure = { code: 'SETTINGS', problems: loaded.problems };
  const exitCode = exitCodeOf(failure, false);
  ctx.output.error(failure, null);
  const { name, profile } = loaded.partial;
  const recorder = new Recorder(ctx, new RunLog({}, () => ctx.clock.now(), ctx.output.redact), randomUUID(), { command, name, profile, dryRun });
  if (command === 'check') {
    ctx.output.data(
      ...table(
        ['SETTING', 'VALUE', 'FROM'],
        loaded.shown.map((shown) => [shown.name, shown.value, shown.origin]),
      ),
    );
  }
  const record = recorder.record({ status: 'failed', exitCode, failure, failedStage: null }, { cpuMs: 0, peakAnonBytes: 0 });
  if (ACTING.includes(command) && !dryRun) await recordAndTell(ctx, loaded, recorder, record);
  ctx.output.document({
    schemaVersion: SCHEMA_VERSION,
    command,
    exitCode,
    error: { code: failure.code, stage: null, ...describe(failure), problems: loaded.problems },
    ...(command === 'check' ? { ok: false, settings: loaded.shown } : {}),
  });
  return exitCode;
}

async function recordAndTell(ctx: Context, loaded: Loaded, recorder: Recorder, record: RunRecord): Promise<void> {
  const { to, stateDir, mail, name } = loaded.partial;
  let state: string | null = null;
  // Nothing is made for a run that cannot be: only state that is there already, and ours, is written to.
  if (to !== null && stateDir !== null && lstatOrNull(stateDir) && !isFailure(inspectTarget(to, stateDir, ctx.identity, ctx.invocation))) {
    state = stateDir;
    try {
      const history = History.openToWrite(stateDir);
      history.save(redactValue(record, ctx.output.redact));
      history.close();
    } catch (error) {
      recorder.warn(warning('STATE_UNWRITABLE', `the history in ${stateDir} cannot be written: ${errnoWords(error)}`));
    }
  }
  if (!mail?.on.has('failure')) return;
  const message = composeFor(ctx, record, 'failure', to, []);
  const kept = keep(state, message, (w) => recorder.warn(w));
  const untold = kept !== null && state !== null ? await fromOutbox(ctx, state, name, mail, message) : (await sendNow(message, mail, ctx, ctx.signal)).failure;
  if (untold) recorder.warn(warning('NOTIFY_FAILED', describe(untold).message));
}

/** An outbox that cannot be used must not keep the message from being sent. */
async function fromOutbox(ctx: Context, state: string, name: string | null, mail: MailSettings, message: Message): Promise<Failure | null> {
  try {
    return await deliver(state, name, mail, ctx, ctx.signal);
  } catch {
    return (await sendNow(message, mail, ctx, ctx.signal)).failure;
  }
}
