/** Settings that do not parse: said, recorded where the directory is known, and told on every channel whose own settings parse. */
import { randomUUID } from 'node:crypto';
import { profileNames } from '../all-profiles.js';
import type { Context } from '../context.js';
import { table } from '../format.js';
import { History, historyWarning } from '../history.js';
import { makeLateState } from '../late-state.js';
import { RunLog } from '../log.js';
import { tell } from '../notifiers/delivery.js';
import { RunPings } from '../notifiers/ping.js';
import type { ExitCode, Failure } from '../outcome.js';
import { critical, describe, exitCodeOf, warning } from '../outcome.js';
import { Recorder } from '../recorder.js';
import type { CommandName, RunRecord } from '../records.js';
import { SCHEMA_VERSION } from '../records.js';
import { redactRecord } from '../redact.js';
import type { Loaded } from '../settings/load.js';
import { profileDirectories } from '../settings/load.js';
import { lettersFor } from '../stages/report.js';
import { lstatOrNull } from '../system/files.js';

const ACTING: readonly CommandName[] = ['run', 'verify', 'restore', 'guard', 'prune'];

/** Says, records and tells settings that do not parse, and returns 78. */
export async function reportSettings(ctx: Context, command: CommandName, loaded: Loaded, dryRun: boolean): Promise<ExitCode> {
  const hint = hintFor(ctx, command, loaded);
  const failure: Failure = { code: 'SETTINGS', problems: loaded.problems, ...(hint !== null && { hint }) };
  const exitCode = exitCodeOf(failure, false);
  ctx.output.error(failure, null);
  const { name, profile } = loaded.partial;
  const recorder = new Recorder(ctx, new RunLog({}, () => ctx.clock.now(), ctx.output.redact), randomUUID(), { command, name, profile, dryRun });
  if (command === 'check') {
    ctx.output.data(
      table(
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
    ...(command === 'check'
      ? { ok: false, settings: loaded.shown, problems: loaded.problems.map((p) => critical('SETTINGS', `${p.message} (${p.origin})`)) }
      : {}),
  });
  return exitCode;
}

/** Where `check` would say no more than this very command. */
function hintFor(ctx: Context, command: CommandName, { problems }: Loaded): string | null {
  const settings = problems.map((p) => p.setting);
  if (settings.includes('profile')) {
    const names = profilesThere(ctx);
    return names.length === 0
      ? 'no profile can be seen: a profile NAME is a file NAME.env in one of these directories'
      : `the profiles that are there: ${names.join(', ')}`;
  }
  if (settings.includes('env-file')) return 'run as the user whom the backups belong to, or let that user read the file, and nobody else';
  return command === 'check' ? 'change what is named here; every setting and where it comes from is listed with it' : null;
}

function profilesThere(ctx: Context): string[] {
  try {
    return profileNames(profileDirectories(ctx.childEnv));
  } catch {
    // They may not be for this user.
    return [];
  }
}

async function recordAndTell(ctx: Context, loaded: Loaded, recorder: Recorder, record: RunRecord): Promise<void> {
  const { to, stateDir, toIsSetUp, telling, name, database } = loaded.partial;
  const warn = recorder.warn.bind(recorder);
  let state: string | null = null;
  if (to !== null && stateDir !== null && (toIsSetUp || lstatOrNull(stateDir))) {
    try {
      if (makeLateState(ctx, { command: record.command, to, stateDir, database })) state = stateDir;
    } catch (error) {
      warn(historyWarning(stateDir, 'written', error));
    }
  }
  if (to !== null && state !== null) {
    try {
      const history = History.openToWrite(state, to);
      history.save(redactRecord(record, ctx.output.redact));
      history.trim(record.name);
      history.close();
    } catch (error) {
      warn(historyWarning(state, 'written', error));
    }
  }
  const letters = lettersFor(ctx, telling, record, { events: ['failure'], news: null }, { to, stateDir, database, logLines: [] });
  const { failure } = letters.length === 0 ? { failure: null } : await tell(ctx, telling, { stateDir: state, name }, letters, warn, ctx.signal);
  if (failure) warn(warning('NOTIFY_FAILED', describe(failure).message));
  if (record.command !== 'run' || !telling.ping || ctx.signal.aborted) return;
  const { error } = record;
  const pings = new RunPings(telling.ping, record.runId, () => ctx.clock.now());
  const { end } = await pings.end('fail', error ? [`${error.code}: ${ctx.output.redact(error.message)}`] : [], ctx.signal);
  if (end) warn(warning('NOTIFY_FAILED', describe(end.failure).message));
}
