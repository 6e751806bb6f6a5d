/** `dbbackup check`: everything a run needs, looked at as a dry run does, and what could not be seen. */

import { dirname } from 'node:path';
import { rootProblem } from '../archive/roots.js';
import { isFailure } from '../artifacts.js';
import type { Context } from '../context.js';
import { foreseeFailures, foreseeWarnings } from '../foresight.js';
import { bytes, modeOf, plural, table } from '../format.js';
import { History, historyWarning } from '../history.js';
import { measureIncluded } from '../including.js';
import type { ExitCode, Warning } from '../outcome.js';
import { critical, describe, errnoWords, Failed, warning } from '../outcome.js';
import { withoutName } from '../place.js';
import { foresee, hasProblems, isSkip, planPrune } from '../plan.js';
import { SCHEMA_VERSION } from '../records.js';
import { withRoomLine } from '../room.js';
import { inspect } from '../run.js';
import type { Config, ShownSetting } from '../settings/load.js';
import { holdWarning } from '../stages/prune.js';
import { lstatOrNull } from '../system/files.js';
import { canStart } from '../system/programs.js';
import { findSetpriv } from '../system/start-worker.js';
import { checkTelling } from './check-telling.js';

/** Looks, prints the settings and every problem. Exit 1 when one of them is critical. */
export async function check(ctx: Context, config: Config, shown: readonly ShownSetting[], options: { sendTest: boolean }): Promise<ExitCode> {
  const { output } = ctx;
  const { database, name } = config;
  if (database === null || name === null) throw new Failed({ code: 'USAGE', message: 'no database was given', hint: 'dbbackup check FILE --to DIR' });
  const problems: Warning[] = [];
  const facts = { ...inspect(ctx, config, database, name, 'every'), included: await measureIncluded(config, database, ctx.signal) };
  const also = isFailure(facts.target) ? [] : foreseeFailures(ctx, config, name);
  const plan = foresee({ ...config, ifOlderThanMs: null }, name, facts, ctx.clock.now(), also);
  if (hasProblems(plan)) {
    for (const p of plan.problems) {
      const { message, hint } = describe(withRoomLine(p, config, name, ctx.clock.now()));
      problems.push(critical(p.code, `${message}. Hint: ${hint}`));
    }
  } else if (!isSkip(plan)) for (const w of plan.warnings) problems.push(w);
  // A run can begin all the same: it is pruning that waits.
  holdWarning(planPrune(config, facts.copies, null, ctx.clock.now()).hold, ({ code, message }) => problems.push(warning(code, message)));
  if (findSetpriv() === null) problems.push(critical('SNAPSHOT_FAILED', 'setpriv (package util-linux) is not installed, and a run needs it'));
  for (const path of config.include) {
    const reason = rootProblem(path);
    if (reason !== null) problems.push(critical('INCLUDE_FAILED', `${path}: ${reason} (include)`));
  }
  if (config.metricsFile !== null && !lstatOrNull(dirname(config.metricsFile)))
    problems.push(warning('STATE_UNWRITABLE', `${dirname(config.metricsFile)} is not there, so the metrics file cannot be written (metrics-file)`));
  for (const [hook, words] of Object.entries(config.hooks)) {
    const [program] = words ?? [];
    // Without `before` a run fails before it begins: that is among its failures. The others would only be missed.
    if (hook === 'before' || program === undefined || canStart(program, ctx.cwd, ctx.childEnv)) continue;
    problems.push(warning('HOOK_FAILED', `${program} is not there, or is no program (${hook})`));
  }
  const destinations = await checkDestinations(ctx, config, problems);
  await checkTelling(ctx, config, name, options.sendTest, problems);
  problems.push(warning('NOT_SEEN', 'only opening the database shows whether another process holds it exclusively, or its pages are damaged'));

  try {
    History.openToRead(config.stateDir, config.to)?.close();
    if (!isFailure(facts.target)) problems.push(...foreseeWarnings(ctx, config, name));
  } catch (error) {
    problems.push(historyWarning(config.stateDir, 'read', error));
  }

  const ok = problems.every((p) => p.severity !== 'critical');
  output.document({ schemaVersion: SCHEMA_VERSION, command: 'check', ok, settings: shown, problems });
  // Under cron silence has to mean that all is well.
  if (output.options.quiet) {
    if (!ok) output.data([...problems.map((p) => `${p.severity} ${p.code}: ${p.message}`), 'NOT OK']);
    return ok ? 0 : 1;
  }
  output.data(
    table(
      ['SETTING', 'VALUE', 'FROM'],
      shown.map((s) => [s.name, s.value, s.origin]),
    ),
  );
  output.data('');
  if (!isFailure(facts.source))
    output.data(`source: ${facts.source.realPath}, ${bytes(facts.source.sizeBytes)}, ${modeOf(facts.source.journalMode)}, owner ${facts.source.owner}`);
  if (!isFailure(facts.target)) {
    output.data(
      `directory: ${config.to}${facts.target.exists ? '' : ' (will be made)'}${facts.target.freeBytes === null ? '' : `, ${bytes(facts.target.freeBytes)} free`}`,
    );
  }
  output.data(destinations);
  for (const p of problems) output.data(`${p.severity} ${p.code}: ${p.message}`);
  output.data(ok ? 'ok: a run can begin' : 'NOT OK');
  return ok ? 0 : 1;
}

/** Longer than this nobody waits at a terminal. */
const DESTINATION_MS = 30_000;

/** Lists each destination, as the upload will have to. That it may be written to is only seen by writing. */
async function checkDestinations(ctx: Context, config: Config, problems: Warning[]): Promise<string[]> {
  const lines: string[] = [];
  if (config.upload.to.length === 0) return lines;
  const { openDestination } = await import('../destinations/open.js');
  for (const url of config.upload.to) {
    const there = openDestination(url, { ...ctx.childEnv, ...config.upload.env }, { apartFrom: [config.to] });
    const limit = AbortSignal.timeout(DESTINATION_MS);
    try {
      const objects = await there.list(AbortSignal.any([ctx.signal, limit]));
      lines.push(`destination: ${there.shown}, ${plural(objects.filter((o) => o.name.endsWith('.json')).length, 'copy', 'copies')}`);
    } catch (error) {
      ctx.signal.throwIfAborted();
      const reason = limit.aborted ? `no answer within ${DESTINATION_MS / 1000} s` : withoutName(errnoWords(error), there.shown);
      problems.push(critical('UPLOAD_FAILED', `${there.shown}: ${reason}`));
    } finally {
      await there.close();
    }
  }
  return lines;
}
