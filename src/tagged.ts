/** A copy made on the way to something dangerous: the pipeline of a run without its prune, published under a tag. */
import type { Acting } from './acting.js';
import type { Publication, SourceState } from './artifacts.js';
import { bytes } from './format.js';
import { publish } from './stages/publish.js';
import { takeSnapshot } from './stages/snapshot.js';
import { verify } from './stages/verify.js';

/**
 * Snapshot, proof and publication of the database as it is now. Needs the lock of the name and the workspace of the run.
 * Throws `Failed`: then there is no such copy.
 */
export async function makeTaggedCopy(acting: Acting, source: SourceState, tag: 'before-restore' | 'before-guard'): Promise<Publication> {
  const { ctx, config, name, recorder, pool, workspace, signal, prune } = acting;
  const now = (): Date => ctx.clock.now();
  const warn = recorder.warn.bind(recorder);
  const progress = (stage: 'snapshot' | 'verify') => (done: number, total: number) => ctx.output.progress(stage, done, total);
  const snapshot = await recorder.stage(
    'snapshot',
    () => takeSnapshot({ ...config, source, target: workspace.data, pool, uid: ctx.identity.uid, signal, now, prune, progress: progress('snapshot') }),
    (s) => `${s.method}, the state before`,
  );
  const verified = await recorder.stage(
    'verify',
    () => verify({ ...config, snapshot, pool, signal, warn, prune, progress: progress('verify') }),
    (v) => `${v.verdict}: ${bytes(v.sizeBytes)}`,
  );
  signal.throwIfAborted();
  return await recorder.stage(
    'publish',
    () =>
      publish({
        verified,
        to: config.to,
        name,
        workspace,
        runId: recorder.runId,
        tool: ctx.tool,
        now: now(),
        durationMs: recorder.elapsedMs(),
        tags: [tag],
        warn,
        prune,
      }),
    (p) => `${p.copy.file} (${tag})`,
  );
}
