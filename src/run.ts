/** The main job, on one screen: each stage takes what the one before produced. */

import { dirname, join } from 'node:path';
import type { BodyResult } from './acting.js';
import { act } from './acting.js';
import type { Facts, Snapshot, VerifiedSnapshot } from './artifacts.js';
import { isFailure } from './artifacts.js';
import { isLeftByUs } from './aside.js';
import type { Context } from './context.js';
import { packStage, preparing, publishStage, snapshotStage, verifyStage } from './copying.js';
import { bytes, modeOf, plural } from './format.js';
import { runBefore } from './hooks.js';
import { includesOwn, measureIncluded } from './including.js';
import { lookBack, lossesIn, stateBefore } from './looking-back.js';
import type { ExitCode, Failure, StageName, Warning } from './outcome.js';
import { critical, describe, errnoWords, Failed, remedyFor } from './outcome.js';
import type { RunPlan, Skip } from './plan.js';
import { hasProblems, isSkip, planRun } from './plan.js';
import { withRetries } from './retry.js';
import type { Config } from './settings/load.js';
import { inspectCopies, inspectSource, inspectTarget } from './stages/inspect.js';
import { prune } from './stages/prune.js';
import { isStaged, sweepStaging } from './staging.js';
import { oweUploads, uploadStage } from './uploading.js';

/** All that can be known without SQLite and without a trace; of included files nothing. */
export function inspect(ctx: Context, config: Config, database: string, name: string, copies: 'every' | 'newest'): Facts {
  const source = inspectSource(database, ctx.identity, (ino, path) => isLeftByUs(config.stateDir, ino) || isStaged(path, ino));
  const target = inspectTarget(config.to, config.stateDir, ctx.identity, ctx.again);
  const none = { copies: [], newestGood: null, newestManifest: null, included: [] };
  if (isFailure(target)) return { source, target, ...none };
  const own = includesOwn(config);
  if (own) return { source, target: own, ...none };
  try {
    return { source, target, included: [], ...inspectCopies(config.to, name, ctx.clock.now(), copies) };
  } catch (error) {
    return { source, target: { code: 'IO_ERROR', path: config.to, reason: errnoWords(error), ...remedyFor(error) }, ...none };
  }
}

/** Runs the whole job for one database and returns the exit code. */
export const runBackup = (ctx: Context, config: Config, database: string, name: string): Promise<ExitCode> =>
  act(ctx, config, 'run', name, async (acting) => {
    const { recorder, signal } = acting;
    const now = (): Date => ctx.clock.now();
    const warn = recorder.warn.bind(recorder);
    let included: readonly number[] = [];
    const look = (): RunPlan | Skip => {
      const facts = { ...inspect(ctx, config, database, name, 'newest'), included };
      if (!isFailure(facts.source)) recorder.setSource(facts.source);
      const plan = planRun(config, name, facts, now());
      if (hasProblems(plan)) throw new Failed(plan.problems[0]);
      return plan;
    };

    const lookFirst = async (): Promise<RunPlan | Skip> => {
      const first = look();
      // Nothing is measured where there is nothing to do.
      if (isSkip(first) || config.include.length === 0) return first;
      included = await measureIncluded(config, database, signal);
      return look();
    };

    const seen = await withRetries(acting, () =>
      recorder.stage('inspect', lookFirst, (p) => (isSkip(p) ? p.skip : `${p.source.path}: ${bytes(p.source.sizeBytes)}, ${modeOf(p.source.journalMode)}`)),
    );
    if (isSkip(seen)) return seen;
    await acting.begin();
    oweUploads(acting);
    // Under the lock once more: another run may have made a copy, or taken the name, while we waited.
    const lookAgain = (): Promise<RunPlan | Skip> => withRetries(acting, () => recorder.within('inspect', look));
    const locked = await lookAgain();
    if (isSkip(locked)) return locked;
    // What killed restores left beside it: a whole database perhaps, or a second name, which goes before SQLite sees the file.
    sweepStaging(dirname(locked.source.realPath));

    if (config.hooks.before) await runBefore(acting);
    // And after the hook, which may have loaded much into the database, or made room.
    const plan = config.hooks.before ? await lookAgain() : locked;
    if (isSkip(plan)) return plan;
    for (const w of plan.warnings) warn(w);
    const artifact = await withRetries(acting, async (attempt) => {
      // What stood in the way may have been that the file was exchanged: then another one lies there now.
      const now = attempt === 1 ? plan : look();
      const { source } = isSkip(now) ? plan : now;
      const snapshot = await snapshotStage(acting, source, snapshotNote);
      const prepared = preparing(acting, snapshot, config.include);
      try {
        return await packStage(acting, await verifyStage(acting, snapshot, verifiedNote), prepared);
      } finally {
        // Another attempt must not meet what is still being written.
        if (config.retries.count > 0) await prepared.catch(() => undefined);
      }
    });
    const { verified } = artifact;
    const { snapshot } = verified;
    const before = stateBefore(acting);
    const { copy, manifest } = await publishStage(acting, artifact, [], (p) => p.copy.file);
    recorder.setCopy(copy);
    const pruned = await recorder.stage(
      'prune',
      () => prune({ ...config, name, made: copy.file, isLoss: lossesIn(config.to), now: now(), signal, warn }),
      (p) => `${p.kept.length} kept, ${p.pruned.length} removed`,
    );
    recorder.setPruned(pruned);
    for (const c of verified.checks) ctx.output.detail(`check ${c.name}: ${c.message}`);
    for (const k of pruned.kept) ctx.output.detail(`kept ${k.file}: ${k.reasons.join('; ')}`);
    for (const p of pruned.pruned) ctx.output.detail(`removed ${p.file}: ${p.reason}`);
    ctx.output.result(join(config.to, copy.file));
    const uploads = await uploadStage(acting, copy.file);
    lookBack(acting, manifest, before, snapshot.walGrewBytes);
    const damaged: Failure | null =
      copy.status === 'suspect' ? { code: 'SOURCE_CORRUPT', path: plan.source.path, findings: snapshot.sourceFindings.structural, keptAs: copy.file } : null;
    return worstOf(warn, [
      { failure: damaged, stage: 'snapshot' },
      { failure: artifact.unread, stage: 'pack' },
      { failure: pruned.failure, stage: 'prune' },
      { failure: uploads, stage: 'upload' },
    ]);
  });

/** A run ends with the first of these that failed; the others are critical remarks in its record. */
function worstOf(warn: (w: Warning) => void, ends: readonly { readonly failure: Failure | null; readonly stage: StageName }[]): BodyResult {
  const [first, ...others] = ends.filter(({ failure }) => failure !== null);
  for (const { failure } of others) if (failure) warn(critical(failure.code, describe(failure).message));
  return first ?? { failure: null, stage: null };
}

const snapshotNote = (s: Snapshot): string =>
  `${s.method}, source ${s.sourceFindings.structural.length === 0 ? 'ok' : 'DAMAGED'}${s.walGrewBytes > 0 ? `, WAL grew by ${bytes(s.walGrewBytes)}` : ''}`;

const verifiedNote = (v: VerifiedSnapshot): string =>
  `${v.verdict}: ${bytes(v.sizeBytes)}, ${plural(Object.keys(v.rows).length, 'table')}, sha256 ${v.sha256.slice(0, 12)}`;
