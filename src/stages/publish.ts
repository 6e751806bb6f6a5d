/**
 * Stage 5: the copy appears, whole, at its final name. The manifest is staged and synced before the data is linked, so
 * that whatever is killed in between can be completed or withdrawn by the next run (see recover.ts); the manifest is
 * linked last, so that a data file with a manifest is always a whole copy. All of this is synchronous on purpose: no
 * signal or timeout comes between the links.
 */
import { randomBytes } from 'node:crypto';
import { lstatSync, readdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import type { Artifact, Publication } from '../artifacts.js';
import { copyOf, freeBase, MANIFEST_MAX, parseManifest, renderManifest, rfc3339, withoutSecrets } from '../catalog.js';
import type { Warning } from '../outcome.js';
import { critical, errnoOf, errnoWords, Failed, targetFailure, unsupportedBy } from '../outcome.js';
import { suffixOf } from '../packing.js';
import type { Manifest } from '../records.js';
import { SCHEMA_VERSION } from '../records.js';
import { publish as giveName, lstatOrNull, remove, syncDirectory, writeNew } from '../system/files.js';
import type { Workspace } from '../workspace.js';

export interface PublishInput {
  readonly artifact: Artifact;
  readonly to: string;
  readonly name: string;
  readonly workspace: Workspace;
  readonly runId: string;
  readonly tool: string;
  readonly now: Date;
  /** Milliseconds since the run began. */
  readonly durationMs: number;
  readonly tags: readonly string[];
  readonly warn: (w: Warning) => void;
  /** Something stayed at a final name although the publication failed: the workspace must stay as well, with what is needed to heal it. */
  readonly leave: () => void;
}

/** Publishes a verified snapshot. Throws `Failed`, and then nothing of it is at a final name, unless it called `leave` and said so. */
export function publish(input: PublishInput): Publication {
  try {
    for (let turn = 0; turn < 100; turn++) {
      const publication = tryPublish(input);
      if (publication) return publication;
    }
    throw Object.assign(new Error('every name for the copy is taken'), { code: 'EEXIST' });
  } catch (error) {
    throw new Failed(targetFailure(error, input.to), { cause: error });
  }
}

/** Null: somebody took the name since it was chosen, so choose again. */
function tryPublish(input: PublishInput): Publication | null {
  const { to, workspace, warn } = input;
  const base = freeBase(input.name, input.artifact.verified.snapshot.takenAt, readdirSync(to));
  const { manifest, open, json: rendered } = renderChecked(input, base);
  const unsupported = unsupportedBy(warn);

  remove(workspace.manifest);
  writeNew(workspace.manifest, rendered);
  syncDirectory(workspace.directory, unsupported);

  const data = join(to, manifest.file);
  const json = join(to, `${base}.json`);
  const { files } = input.artifact;
  const inode = lstatSync(input.artifact.path).ino;
  const given: Given[] = [];
  const give = (staged: string, final: string): void => {
    giveName(staged, final);
    given.push({ staged, final });
  };
  try {
    // The data last of the two: until it is there, nothing looks like a copy.
    if (files && manifest.files) give(files.path, join(to, manifest.files.file));
    give(input.artifact.path, data);
    give(workspace.manifest, json);
    syncDirectory(to, unsupported);
    const stats = lstatSync(data);
    if (stats.ino !== inode || stats.size !== manifest.sizeBytes) throw Object.assign(new Error('the published file is not the verified one'), { code: 'EIO' });
  } catch (error) {
    // Not known to be on the disk: then it must not look like a copy. The manifest goes first, so that the data is never a copy without it.
    for (const name of given.reverse()) withdraw(name, input);
    if (errnoOf(error) === 'EEXIST') return null;
    throw error;
  }
  return { copy: copyOf(open, open.status), manifest };
}

interface Given {
  readonly staged: string;
  readonly final: string;
}

/** Withdraws a name; what keeps that from being done must not hide why it is done. */
function withdraw({ staged, final }: Given, { warn, leave }: PublishInput): void {
  try {
    // Where there are no hard links, it is the only name that the file has.
    if (lstatOrNull(staged)) remove(final);
    else renameSync(final, staged);
  } catch (error) {
    // The next command finds the staged manifest, hashes the data, and completes or withdraws it.
    leave();
    warn(critical('HEAL_FAILED', `${final} could not be withdrawn: ${errnoWords(error)}; the next command of this name completes it or withdraws it`));
  }
}

/** What cannot be read back must not be published: the copy would be there, and nobody would see it. */
function renderChecked(input: PublishInput, base: string): { manifest: Manifest; open: Manifest; json: string } {
  const full = manifestOf(input, base);
  const { sealed } = input.artifact;
  const whole = sealed === null ? full : withoutSecrets(full, sealed, randomBytes(16).toString('hex'));
  const fits = (json: string): boolean => Buffer.byteLength(json) <= MANIFEST_MAX;
  let json = renderManifest(whole);
  // Table names are the schema's, and may be huge: rather no row counts than no manifest.
  if (!fits(json)) json = renderManifest({ ...whole, rows: {}, checks: whole.checks.map((c) => ({ ...c, message: c.message.slice(0, 1000) })) });
  const open = fits(json) ? parseManifest(Buffer.from(json), base) : null;
  if (!open) throw new Error(`the manifest of ${base} could not be read back`);
  return { manifest: { ...full, selfSha256: open.selfSha256 }, open, json };
}

function manifestOf(input: PublishInput, base: string): Omit<Manifest, 'selfSha256'> {
  const { artifact, now } = input;
  const { verified } = artifact;
  const { snapshot, properties } = verified;
  const { source } = snapshot;
  return {
    schemaVersion: SCHEMA_VERSION,
    file: `${base}.db${suffixOf(artifact.packed)}`,
    manifest: `${base}.json`,
    name: input.name,
    createdAt: rfc3339(snapshot.takenAt.getTime()),
    sizeBytes: artifact.sizeBytes,
    sha256: artifact.sha256,
    status: verified.verdict,
    verifiedAt: now.toISOString(),
    method: snapshot.method,
    source: source.path,
    tags: input.tags,
    runId: input.runId,
    tool: input.tool,
    sqlite: snapshot.sqlite,
    configuredPath: source.path,
    realPath: source.realPath,
    journalMode: snapshot.journalMode,
    pageSize: properties.pageSize,
    pageCount: verified.pageCount,
    userVersion: properties.userVersion,
    applicationId: properties.applicationId,
    schemaHash: verified.schemaHash,
    rows: verified.rows,
    plainSizeBytes: verified.sizeBytes,
    plainSha256: verified.sha256,
    compress: artifact.packed.compress,
    encrypted: artifact.packed.encrypted,
    sealed: artifact.sealed,
    pathProof: null,
    files: artifact.files && { file: `${base}.files.tar${suffixOf(artifact.packed)}`, ...artifact.files.facts },
    checks: verified.checks,
    violations: verified.violations,
    durationMs: input.durationMs,
  };
}
