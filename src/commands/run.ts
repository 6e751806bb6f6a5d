/** `dbbackup run`: the main job, or with --dry-run its plan. */

import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { rootProblem } from '../archive/roots.js';
import { isFailure } from '../artifacts.js';
import { rfc3339 } from '../catalog.js';
import type { Context } from '../context.js';
import { foreseeFailures, foreseeWarnings } from '../foresight.js';
import { bytes } from '../format.js';
import { measureIncluded } from '../including.js';
import { RunLog } from '../log.js';
import { lossesIn } from '../looking-back.js';
import type { ExitCode } from '../outcome.js';
import { critical, describe, exitCodeOf, Failed } from '../outcome.js';
import { foresee, hasProblems, isSkip, planPrune } from '../plan.js';
import type { Verdict } from '../recorder.js';
import { Recorder } from '../recorder.js';
import type { Copy } from '../records.js';
import { withRoomLine } from '../room.js';
import { inspect, runBackup } from '../run.js';
import type { Config } from '../settings/load.js';
import { holdWarning } from '../stages/prune.js';
import { printDecision, saveDryRun } from './dry-run.js';

/** Makes a copy, or with `dryRun` prints what it would do. */
export async function run(ctx: Context, config: Config, options: { dryRun: boolean }): Promise<ExitCode> {
  const { database, name } = config;
  if (database === null || name === null) throw new Failed({ code: 'USAGE', message: 'no database was given', hint: 'dbbackup run FILE --to DIR' });
  return options.dryRun ? await dryRun(ctx, config, database, name) : await runBackup(ctx, config, database, name);
}

async function dryRun(ctx: Context, config: Config, database: string, name: string): Promise<ExitCode> {
  const { output } = ctx;
  const recorder = new Recorder(ctx, new RunLog({}, () => ctx.clock.now(), output.redact), randomUUID(), {
    command: 'run',
    name,
    profile: config.profile,
    dryRun: true,
  });
  const now = ctx.clock.now();
  const facts = await recorder.stage(
    'inspect',
    async () => ({ ...inspect(ctx, config, database, name, 'every'), included: await measureIncluded(config, database, ctx.signal) }),
    () => 'looked, without opening anything',
  );
  const { source, target } = facts;
  if (!isFailure(source)) recorder.setSource(source);
  const plan = foresee(config, name, facts, now, isFailure(target) ? [] : foreseeFailures(ctx, config, name));
  if (isSkip(plan)) {
    output.result(`would do nothing: ${plan.skip}`);
    return saveDryRun(ctx, config, recorder, { status: 'skipped', exitCode: 0, failure: null, failedStage: null });
  }
  if (hasProblems(plan)) {
    const [met, ...others] = plan.problems;
    const first = withRoomLine(met, config, name, now);
    output.error(first, 'inspect');
    for (const problem of others) recorder.warn(critical(problem.code, describe(problem).message));
    const exitCode = exitCodeOf(first, false);
    return saveDryRun(ctx, config, recorder, { status: 'failed', exitCode, failure: first, failedStage: 'inspect' });
  }
  for (const w of [...plan.warnings, ...foreseeWarnings(ctx, config, name)]) recorder.warn(w);
  const decision = planPrune(config, facts.copies, plannedCopy(plan.file, name, now), now, lossesIn(config.to));
  holdWarning(decision.hold, (w) => recorder.warn(w));
  recorder.setPruned({ kept: decision.keep, pruned: decision.remove });
  const freeBytes = isFailure(target) ? null : target.freeBytes;
  recorder.setPlan({ file: plan.file, neededBytes: plan.neededBytes, freeBytes });
  output.result(`would make ${join(config.to, plan.file)} (up to ${bytes(plan.neededBytes)}${freeBytes === null ? '' : `; ${bytes(freeBytes)} free`})`);
  for (const [n, path] of config.include.entries()) {
    if (rootProblem(path) === null) output.result(`would archive ${path} with it (${bytes(facts.included[n] ?? 0)})`);
  }
  for (const url of config.upload.to) output.result(`would upload it to ${url.shown}`);
  printDecision(output, decision);
  const missing = config.include.flatMap((path) => {
    const reason = rootProblem(path);
    return reason === null ? [] : [`${path}: ${reason}`];
  });
  if (missing.length > 0) {
    const failure = { code: 'INCLUDE_FAILED', what: missing, total: missing.length } as const;
    output.error(failure, 'pack');
    return saveDryRun(ctx, config, recorder, { status: 'incomplete', exitCode: exitCodeOf(failure, true), failure, failedStage: 'pack' });
  }
  const verdict: Verdict = { status: 'ok', exitCode: 0, failure: null, failedStage: null };
  return saveDryRun(ctx, config, recorder, verdict);
}

/** What the keep rules would see if the run succeeded. */
const plannedCopy = (file: string, name: string, now: Date): Copy => ({
  file,
  manifest: null,
  name,
  createdAt: rfc3339(now.getTime()),
  sizeBytes: 0,
  sha256: null,
  status: 'good',
  verifiedAt: null,
  method: null,
  source: null,
  tags: [],
});
