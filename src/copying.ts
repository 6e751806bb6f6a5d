/**
 * The stages that make a copy, as a run records them: `run` makes one under the name, `restore` and `guard` one under a tag,
 * a rehearsal one that is never published. Each takes what the one before produced; all need the lock of the name. Each
 * throws `Failed`.
 */
import type { Acting } from './acting.js';
import type { Artifact, Publication, Snapshot, SourceState, VerifiedSnapshot } from './artifacts.js';
import { contentOf } from './catalog.js';
import { bytes, plural } from './format.js';
import { noteProven } from './proven.js';
import type { PackInput, Prepared } from './stages/pack.js';
import { pack, prepare } from './stages/pack.js';
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
  const { ctx, config, recorder, pool, workspace, signal } = acting;
  const input = { source, target: workspace.data, pool, uid: ctx.identity.uid, signal, clock: ctx.clock };
  return recorder.stage('snapshot', () => takeSnapshot({ ...config, ...input, progress: progressOf(acting, 'snapshot') }), note);
}

/** The proof of that file. */
export function verifyStage(acting: Acting, snapshot: Snapshot, note: Note<VerifiedSnapshot>): Promise<VerifiedSnapshot> {
  const { config, recorder, pool, signal } = acting;
  const input = { snapshot, pool, signal, warn: recorder.warn.bind(recorder) };
  return recorder.stage('verify', () => verify({ ...config, ...input, progress: progressOf(acting, 'verify') }), note);
}

/** Destinations that are directories of this machine. */
export const directoriesOf = ({ upload }: Acting['config']): string[] => upload.to.flatMap((url) => (url.kind === 'directory' ? [url.path] : []));

const packInput = ({ config, workspace, tools, recorder }: Acting, include: readonly string[]): PackInput => ({
  packing: config.packing,
  include,
  own: [config.to, config.stateDir],
  destinations: directoriesOf(config),
  workspace,
  tools,
  warn: recorder.warn.bind(recorder),
});

/** Begins to compress the snapshot and to archive files, beside the proof; `packStage` waits for it. */
export function preparing(acting: Acting, snapshot: Snapshot, include: readonly string[]): Promise<Prepared> {
  const begun = prepare(packInput(acting, include), snapshot);
  // The proof may fail first: then nobody waits for it any more.
  begun.catch(() => undefined);
  return begun;
}

/** What is published: the proven file itself, or what packing makes of it. */
export function packStage(acting: Acting, verified: VerifiedSnapshot, prepared: Promise<Prepared>): Promise<Artifact> {
  const { packing } = acting.config;
  const work = async (): Promise<Artifact> => pack(packInput(acting, []), verified, await prepared);
  const how = [...(packing.compress === 'none' ? [] : [packing.compress]), ...(packing.recipients.length === 0 ? [] : ['age'])].join(', ');
  const { include } = acting.config;
  return how === '' && include.length === 0
    ? work()
    : acting.recorder.stage('pack', work, (a) =>
        [
          ...(how === '' ? [] : [`${how}: ${bytes(verified.sizeBytes)} to ${bytes(a.sizeBytes)}`]),
          ...(a.files ? [`${plural(a.files.facts.count, 'file')}, ${bytes(a.files.facts.fileBytes)}`] : []),
          ...(include.length > 0 && !a.files ? ['no files'] : []),
        ].join('; '),
      );
}

/** The copy in the directory, whole. */
export function publishStage(acting: Acting, artifact: Artifact, tags: readonly string[], note: Note<Publication>): Promise<Publication> {
  const { ctx, config, name, recorder, workspace, signal } = acting;
  signal.throwIfAborted();
  const input = {
    artifact,
    to: config.to,
    name,
    workspace,
    runId: recorder.runId,
    tool: ctx.tool,
    tags,
    warn: recorder.warn.bind(recorder),
    leave: acting.leaveWorkspace,
  };
  const work = (): Publication => {
    const publication = publish({ ...input, now: ctx.clock.now(), durationMs: recorder.elapsedMs() });
    const content = contentOf(publication.manifest);
    if (content) noteProven(acting, content);
    if (artifact.packed.encrypted) acting.remember({ manifest: publication.manifest, plain: artifact.verified.snapshot.path });
    return publication;
  };
  return recorder.stage('publish', work, note);
}
