/** `dbbackup prune`: applies the retention policy now, or with --dry-run says what it would do. */
import { randomUUID } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { act } from '../acting.js';
import { isFailure } from '../artifacts.js';
import { hasFilesOf, readCopies, scan } from '../catalog.js';
import type { Context } from '../context.js';
import { foreseeLock, foreseeWarnings } from '../foresight.js';
import { RunLog } from '../log.js';
import { resolveName } from '../names.js';
import type { ExitCode } from '../outcome.js';
import { exitCodeOf, Failed } from '../outcome.js';
import { planPrune } from '../plan.js';
import { Recorder } from '../recorder.js';
import type { Config } from '../settings/load.js';
import { inspectTarget } from '../stages/inspect.js';
import { holdWarning, prune as removeCopies } from '../stages/prune.js';
import { lstatOrNull } from '../system/files.js';
import { parseWorkspace, tempRoot } from '../workspace.js';
import { printDecision, saveDryRun } from './dry-run.js';

/** Applies the policy, or with `dryRun` prints what it would do. */
export async function prune(ctx: Context, config: Config, options: { dryRun: boolean }): Promise<ExitCode> {
  const target = inspectTarget(config.to, config.stateDir, ctx.identity, ctx.again);
  const there = !isFailure(target) && lstatOrNull(config.to) !== null;
  const name = isFailure(target) ? config.name : resolveName(config);
  if (!isFailure(target) && (!there || name === null)) {
    throw new Failed({
      code: 'COPY_NOT_FOUND',
      path: config.to,
      reason: there ? 'it holds no copies' : 'there is no such directory',
      to: config.to,
      missing: !there,
    });
  }
  if (there && config.nameGiven && config.profile === null && name !== null && isMistaken(config, name)) {
    throw new Failed({ code: 'COPY_NOT_FOUND', path: config.to, reason: `it holds no copies of ${name}`, to: config.to });
  }
  if (options.dryRun) return await dryRun(ctx, config, name ?? '');
  return await act(ctx, config, 'prune', name ?? '', async ({ recorder, signal, begin }) => {
    if (isFailure(target)) throw new Failed(target);
    await begin({ workspace: false });
    const result = await recorder.stage(
      'prune',
      () => removeCopies({ ...config, name: name ?? '', made: null, isLoss: null, now: ctx.clock.now(), signal, warn: (w) => recorder.warn(w) }),
      (p) => `${p.kept.length} kept, ${p.pruned.length} removed`,
    );
    recorder.setPruned(result);
    for (const { file, reason } of result.pruned) ctx.output.result(`removed ${file}: ${reason}`);
    return { failure: result.failure, stage: 'prune' };
  });
}

/** A name of which nothing is there, not even what a killed first run left, where there are copies of others. */
function isMistaken(config: Config, name: string): boolean {
  if (hasFilesOf(config.to, name)) return false;
  const isLeft = (entry: string): boolean => parseWorkspace(entry)?.name === name;
  return scan(config.to).length > 0 && !(lstatOrNull(tempRoot(config.to)) && readdirSync(tempRoot(config.to)).some(isLeft));
}

async function dryRun(ctx: Context, config: Config, name: string): Promise<ExitCode> {
  const recorder = new Recorder(ctx, new RunLog({}, () => ctx.clock.now(), ctx.output.redact), randomUUID(), {
    command: 'prune',
    name: name || null,
    profile: config.profile,
    dryRun: true,
  });
  const target = inspectTarget(config.to, config.stateDir, ctx.identity, ctx.again);
  const failure = isFailure(target) ? target : (foreseeLock(ctx, config, name)[0] ?? null);
  if (failure) {
    ctx.output.error(failure, 'inspect');
    return saveDryRun(ctx, config, recorder, { status: 'failed', exitCode: exitCodeOf(failure, false), failure, failedStage: 'inspect' });
  }
  for (const w of foreseeWarnings(ctx, config, name)) recorder.warn(w);
  const decision = planPrune(config, readCopies(config.to, name), null, ctx.clock.now());
  holdWarning(decision.hold, (w) => recorder.warn(w));
  recorder.setPruned({ kept: decision.keep, pruned: decision.remove });
  printDecision(ctx.output, decision);
  return saveDryRun(ctx, config, recorder, { status: 'ok', exitCode: 0, failure: null, failedStage: null });
}
