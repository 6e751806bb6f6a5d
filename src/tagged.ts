/** A copy made on the way to something dangerous: the pipeline of a run without its prune, published under a tag. */
import type { Acting } from './acting.js';
import type { Publication, SourceState } from './artifacts.js';
import { packStage, preparing, publishStage, snapshotStage, verifyStage } from './copying.js';
import { bytes } from './format.js';

/**
 * Snapshot, proof and publication of the database as it is now. Needs the lock of the name and the workspace of the run.
 * Throws `Failed`: then there is no such copy.
 */
export async function makeTaggedCopy(acting: Acting, source: SourceState, tag: 'before-restore' | 'before-guard'): Promise<Publication> {
  const snapshot = await snapshotStage(acting, source, (s) => `${s.method}, the state before`);
  const prepared = preparing(acting, snapshot, []);
  const verified = await verifyStage(acting, snapshot, (v) => `${v.verdict}: ${bytes(v.sizeBytes)}`);
  const artifact = await packStage(acting, verified, prepared);
  return await publishStage(acting, artifact, [tag], (p) => `${p.copy.file} (${tag})`);
}
