/**
 * The stages that make a copy, as a run records them: `run` makes one under the name, `restore` and `guard` one under a tag,
 * a rehearsal one that is never published. Each takes what the one before produced; all need the lock of the name. Each
 * throws `Failed`.
 */
import type { Acting } from './acting.js';
import type { Publication, Snapshot, SourceState, VerifiedSnapshot } from './artifacts.js';
import { publish } from './stages/publish.js';
import { takeSnapshot } from './stages/snapshot.js';
import { verify } from './stages/verify.js';

type Note<T> = (made: T) => string;

const progressOf =
  ({ ctx }: Acting, stage: 'snapshot' | 'verify') =>
  (done: number, total: number): void =>
    ctx.output.progress(stage, done, total);

/** The state of the source, in the private file of the workspace. */
export function snapshotStage(acting: Acting, source: SourceState, note: Note<Snapshot>): Promise<Snapshot> {
  const { ctx, config, recorder, pool, workspace, signal, prune } = acting;
  const input = { source, target: workspace.data, pool, uid: ctx.identity.uid, signal, now: () => ctx.clock.now(), prune };
  return recorder.stage('snapshot', () => takeSnapshot({ ...config, ...input, progress: progressOf(acting, 'snapshot') }), note);
}

/** The proof of that file. */
export function verifyStage(acting: Acting, snapshot: Snapshot, note: Note<VerifiedSnapshot>): Promise<VerifiedSnapshot> {
  const { config, recorder, pool, signal, prune } = acting;
  const input = { snapshot, pool, signal, warn: recorder.warn.bind(recorder), prune };
  return recorder.stage('verify', () => verify({ ...config, ...input, progress: progressOf(acting, 'verify') }), note);
}

/** The copy in the directory, whole. */
export function publishStage(acting: Acting, verified: VerifiedSnapshot, tags: readonly string[], note: Note<Publication>): Promise<Publication> {
  const { ctx, config, name, recorder, workspace, signal, prune } = acting;
  signal.throwIfAborted();
  const input = { verified, to: config.to, name, workspace, runId: recorder.runId, tool: ctx.tool, tags, warn: recorder.warn.bind(recorder), prune };
  return recorder.stage('publish', () => publish({ ...input, now: ctx.clock.now(), durationMs: recorder.elapsedMs() }), note);
}
