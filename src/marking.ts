/** The verdict on a stored copy, in its manifest: what a proof has found must not be forgotten by who looks at the manifests alone. */
import { join } from 'node:path';
import type { Acting } from './acting.js';
import { readManifestText, renderManifest } from './catalog.js';
import type { Failure } from './outcome.js';
import { errnoWords, Failed, targetFailure, unsupportedBy, warning } from './outcome.js';
import { packedAs } from './packing.js';
import type { CopyStatus, Manifest } from './records.js';
import type { Proof } from './stages/prove.js';
import { lstatOrNull, makePrivateDirectory, replace } from './system/files.js';

/**
 * Writes the verdict back, under the lock of the name, into the manifest that was proven and no other. Where that cannot be
 * written it says so and returns why: the copies after it have a right to their verdicts.
 */
export async function mark(acting: Acting, proof: Proof, base: string, status: CopyStatus): Promise<Failure | null> {
  const { ctx, config, recorder, workspace } = acting;
  const path = join(config.to, `${base}.json`);
  const unsupported = unsupportedBy((w) => recorder.warn(w));
  const write = (): boolean => {
    const now = readManifestText(config.to, base);
    // Pruned, or another copy of that name since: then there is nothing to mark.
    if ('unreadable' in now || now.manifest.runId !== proof.manifest?.runId) return true;
    const { selfSha256: _, ...rest } = now.manifest;
    // A restore into a file has none so far; the end of the run removes it.
    if (!lstatOrNull(workspace.directory)) makePrivateDirectory(workspace.directory);
    const marked = { ...rest, status, verifiedAt: ctx.clock.now().toISOString(), checks: checksWith(now.manifest, proof.problems) };
    // Not where the manifest of a copy that this run makes would be staged: killed here, it has made none.
    replace(path, renderManifest(marked, now.whole() ? 'whole' : 'broken'), unsupported, join(workspace.directory, 'marked.json'));
    return true;
  };
  try {
    if ((await acting.locked(write)) === null) {
      recorder.warn(warning('LOCKED', `the verdict of ${base} could not be written into its manifest: another run holds the lock of ${acting.name}`));
    }
    return null;
  } catch (error) {
    if (acting.signal.aborted) {
      // What was found is told all the same, which waiting for the lock must not prevent.
      recorder.warn(warning('INTERRUPTED', `the verdict of ${base} could not be written into its manifest: the run was ended while it waited for the lock`));
      return null;
    }
    const failure = targetFailure(error, path);
    if (!['TARGET_UNWRITABLE', 'NO_SPACE', 'IO_ERROR'].includes(failure.code)) throw new Failed(failure, { cause: error });
    recorder.warn(warning(failure.code, `the verdict of ${base} could not be written into its manifest: ${errnoWords(error)}`));
    return failure;
  }
}

const checksWith = (manifest: Manifest, problems: readonly string[]): Manifest['checks'] => [
  ...(Array.isArray(manifest.checks) ? manifest.checks : []).filter((c) => c.name !== 'verify'),
  // What is wrong inside a sealed copy may name its tables.
  {
    name: 'verify',
    ok: problems.length === 0,
    message: problems.length === 0 ? 'ok' : packedAs(manifest.file).encrypted ? 'sealed' : problems.slice(0, 10).join('; '),
  },
];
