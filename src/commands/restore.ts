/** `dbbackup restore`: usage, the question, the dry run; the work is in restore.ts. */
import { randomUUID } from 'node:crypto';
import { isFailure } from '../artifacts.js';
import { asideRoot } from '../aside.js';
import { rfc3339 } from '../catalog.js';
import { chooseByTime, chooseCopies, passedOverWarning } from '../choose.js';
import type { RestoreFlags } from '../cli.js';
import type { Context } from '../context.js';
import { bytes, plural } from '../format.js';
import { RunLog } from '../log.js';
import type { ExitCode } from '../outcome.js';
import { exitCodeOf, Failed, failureOf } from '../outcome.js';
import { Recorder } from '../recorder.js';
import type { Copy } from '../records.js';
import type { Restoring } from '../restore.js';
import { inspectRestore, restoreInto, restoreToFile, suspectWarning } from '../restore.js';
import type { Target } from '../restoring.js';
import { lookAtTarget, spaceProblem } from '../restoring.js';
import type { Config } from '../settings/load.js';
import { path as parsePath } from '../settings/values.js';
import { inspectTarget } from '../stages/inspect.js';
import { askYes } from '../system/ask.js';
import { lstatOrNull } from '../system/files.js';
import { holdersOf, nameHolders, rescueOf } from '../system/holders.js';
import { saveDryRun } from './dry-run.js';

/** Brings a copy back, or with `dryRun` says what would be replaced by what. */
export async function restore(ctx: Context, config: Config, flags: RestoreFlags, options: { dryRun: boolean }): Promise<ExitCode> {
  const way = wayOf(flags);
  const target = pathOf(ctx, way === 'output' ? '--output' : '--into', (way === 'output' ? flags.output : flags.into) ?? '');
  const directory = inspectTarget(config.to, config.stateDir, ctx.identity, ctx.again);
  if (isFailure(directory)) throw new Failed(directory);
  const now = ctx.clock.now().getTime();
  const chosen =
    flags.timestamp === null ? chooseCopies(config, flags.copy === null ? [] : [flags.copy], ctx.cwd, now) : chooseByTime(config, flags.timestamp, now);
  const filesTo = flags.filesTo === null ? null : pathOf(ctx, '--files-to', flags.filesTo);
  const input: Restoring = { chosen, target, force: flags.force, filesTo };
  if (options.dryRun) return dryRun(ctx, config, way, input);
  if (way === 'output') return await restoreToFile(ctx, config, input);
  if (!flags.yes) await ask(ctx, config, input);
  return await restoreInto(ctx, config, input);
}

function wayOf(flags: RestoreFlags): 'output' | 'into' {
  const usage = (message: string): Failed => new Failed({ code: 'USAGE', message, hint: 'dbbackup restore [COPY] -o FILE, or --into DATABASE' });
  if (flags.output !== null && flags.into !== null) throw usage('-o and --into exclude one another');
  if (flags.copy !== null && flags.timestamp !== null) throw usage('a copy and --timestamp exclude one another');
  if (flags.output !== null) return 'output';
  if (flags.into !== null) return 'into';
  throw usage('where to? -o FILE or --into DATABASE is required');
}

function pathOf(ctx: Context, flag: string, raw: string): string {
  try {
    return parsePath(raw, ctx.cwd);
  } catch (error) {
    throw new Failed(
      { code: 'USAGE', message: `${flag} "${raw}" ${error instanceof Error ? error.message : ''}`, hint: 'name another path' },
      { cause: error },
    );
  }
}

async function ask(ctx: Context, config: Config, input: Restoring): Promise<void> {
  const { copy } = inspectRestore(ctx, config, 'into', input);
  const remark = passedOverWarning(input.chosen);
  if (remark) ctx.output.warning(remark);
  const yes = await askYes(`Replace ${describeTarget(ctx, input.target)} by ${describeCopy(ctx, copy)}?`, ctx.signal);
  if (yes === true) return;
  throw new Failed({
    code: 'USAGE',
    message: yes === null ? `--into replaces ${input.target}: say --yes, there is no terminal to ask at` : 'not confirmed: nothing was changed',
    hint: 'look first: --dry-run; then --yes',
  });
}

const describeCopy = (ctx: Context, copy: Copy): string =>
  `${copy.file} (made ${ctx.output.time(copy.createdAt)}, ${bytes(copy.sizeBytes)}, of ${copy.source ?? '?'})`;

function describeTarget(ctx: Context, target: string): string {
  const stats = lstatOrNull(target);
  // What is committed goes into the -wal, and into the file later.
  const writtenMs = Math.max(stats?.mtimeMs ?? 0, lstatOrNull(`${target}-wal`)?.mtimeMs ?? 0);
  return stats ? `${target} (${bytes(stats.size)}, written ${ctx.output.time(rfc3339(writtenMs))})` : `${target} (not there)`;
}

function dryRun(ctx: Context, config: Config, way: 'output' | 'into', input: Restoring): ExitCode {
  const recorder = new Recorder(ctx, new RunLog({}, () => ctx.clock.now(), ctx.output.redact), randomUUID(), {
    command: 'restore',
    name: input.chosen.name,
    profile: config.profile,
    dryRun: true,
  });
  recorder.add({ restored: null });
  try {
    const { copy, manifest } = inspectRestore(ctx, config, way, input);
    if (copy.status === 'suspect') recorder.warn(suspectWarning(copy));
    const remark = passedOverWarning(input.chosen);
    if (remark) recorder.warn(remark);
    recorder.setCopy(copy);
    recorder.add({ restored: { file: copy.file, target: input.target, safetyCopy: null, setAside: [] } });
    ctx.output.result(`would prove ${describeCopy(ctx, copy)}`);
    let target: Target | null = null;
    if (way === 'output') ctx.output.result(`would ${lstatOrNull(input.target) ? 'replace' : 'make'} ${describeTarget(ctx, input.target)}`);
    else {
      target = lookAtTarget({ ctx, config }, input.target, manifest.pageSize);
      const holders = holdersOf(input.target);
      if (target.how === 'offline' && holders.length > 0)
        throw new Failed({ code: 'IN_USE', path: input.target, holders: nameHolders(holders), rescue: rescueOf(input.target) });
      if (target.how === 'live') ctx.output.result(`would make a safety copy of ${describeTarget(ctx, input.target)}, tagged before-restore`);
      else if (lstatOrNull(input.target)) ctx.output.result(`would set ${describeTarget(ctx, input.target)} aside in ${asideRoot(config.stateDir)}`);
      ctx.output.result(
        target.how === 'live'
          ? `would write it into ${input.target} in one transaction, while ${holders.length === 0 ? 'nobody has it open' : `${nameHolders(holders).join(', ')} may go on`}; should it prove damaged: offline, without a safety copy, and only if nobody has it open`
          : `would put it at ${input.target} offline: ${target.why}`,
      );
    }
    if (input.filesTo !== null && manifest.files)
      ctx.output.result(`would unpack ${plural(manifest.files.count, 'file')} (${bytes(manifest.files.fileBytes)}) into ${input.filesTo}`);
    const problem = spaceProblem(config, manifest, input.target, target, input.filesTo);
    if (problem) throw new Failed(problem);
    return saveDryRun(ctx, config, recorder, { status: 'ok', exitCode: 0, failure: null, failedStage: null });
  } catch (error) {
    const failure = failureOf(error);
    ctx.output.error(failure, 'inspect');
    return saveDryRun(ctx, config, recorder, { status: 'failed', exitCode: exitCodeOf(failure, false), failure, failedStage: 'inspect' });
  }
}
