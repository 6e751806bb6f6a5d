/**
 * Stage 4: the verified snapshot made smaller and sealed, as the settings say. It is compressed while it is verified, and what
 * comes of that is unpacked again: only when it gives the verified bytes is it taken. Sealing comes after the proof, since a
 * machine that seals cannot open again; the sealed bytes are read back by their hash.
 */
import { lstatSync } from 'node:fs';
import type { Artifact, Snapshot, VerifiedSnapshot } from '../artifacts.js';
import { Failed, targetFailure } from '../outcome.js';
import type { Compression, Unpacked } from '../packing.js';
import { compressFile, sealFile, sealText, unpack, WriteFailed } from '../packing.js';
import type { Sealed } from '../records.js';
import { hashFile, remove, syncFile } from '../system/files.js';
import type { Tools } from '../system/programs.js';
import { ProgramFailed } from '../system/programs.js';
import type { Workspace } from '../workspace.js';

export interface PackInput {
  readonly packing: { readonly compress: Compression; readonly recipients: readonly string[] };
  readonly workspace: Workspace;
  readonly tools: Tools;
  readonly prune: string;
}

/** A compressed file, synced and unpacked again. */
export type Compressed = Unpacked;

/** Compresses a snapshot that is not proven yet; null where nothing is to be compressed. Throws `Failed`. */
export async function compress(input: PackInput, snapshot: Snapshot): Promise<Compressed | null> {
  const { packing, workspace, tools } = input;
  if (packing.compress === 'none') return null;
  try {
    await compressFile(snapshot.path, workspace.packed, packing.compress, tools);
    await syncFile(workspace.packed);
    const packed = { compress: packing.compress, encrypted: false };
    return await unpack({ from: workspace.packed, packed, identity: null, to: null, limit: lstatSync(snapshot.path).size, tools, progress: () => undefined });
  } catch (error) {
    throw asFailed(error, input, workspace.packed);
  }
}

/** Makes of a verified snapshot what is published. Throws `Failed`. */
export async function pack(input: PackInput, verified: VerifiedSnapshot, compressed: Compressed | null): Promise<Artifact> {
  const { packing, workspace, tools } = input;
  if (compressed && (compressed.plainSha256 !== verified.sha256 || compressed.plainSizeBytes !== verified.sizeBytes)) {
    throw new Failed({ code: 'VERIFY_FAILED', findings: [`what ${packing.compress} made of the copy does not unpack to it again`] });
  }
  const { compress } = packing;
  const plain = compressed ? { ...compressed, path: workspace.packed } : { path: workspace.data, sizeBytes: verified.sizeBytes, sha256: verified.sha256 };
  const unsealed = { verified, path: plain.path, sizeBytes: plain.sizeBytes, sha256: plain.sha256, packed: { compress, encrypted: false }, sealed: null };
  if (packing.recipients.length === 0) return unsealed;
  try {
    const written = await sealFile(plain.path, workspace.sealed, packing.recipients, tools);
    await syncFile(workspace.sealed);
    const sha256 = await hashFile(workspace.sealed, tools.signal, () => undefined);
    if (sha256 !== written) throw new Failed({ code: 'VERIFY_FAILED', findings: ['the sealed file does not read back as it was written'] });
    if (compressed) remove(workspace.packed);
    const sealed = await sealText(JSON.stringify(secretOf(verified)), packing.recipients);
    return { verified, path: workspace.sealed, sizeBytes: lstatSync(workspace.sealed).size, sha256, packed: { compress, encrypted: true }, sealed };
  } catch (error) {
    throw asFailed(error, input, workspace.sealed);
  }
}

/** Characters; with more of them the manifest would be too large to be read (see publish.ts). */
const SECRET_MAX = 8_000_000;

function secretOf({ snapshot, schemaHash, rows, sha256, checks }: VerifiedSnapshot): Sealed {
  const { source } = snapshot;
  const secret = { source: source.path, configuredPath: source.path, realPath: source.realPath, schemaHash, rows, plainSha256: sha256, checks };
  if (JSON.stringify(secret).length <= SECRET_MAX) return secret;
  // Table names may be huge: rather no row counts than no manifest.
  return { ...secret, rows: {}, checks: checks.map((c) => ({ ...c, message: c.message.slice(0, 1000) })) };
}

/** A program says in words what the system said to it. */
function asFailed(error: unknown, { prune, tools }: PackInput, path: string): unknown {
  if (tools.signal.aborted || error instanceof Failed) return error;
  if (error instanceof ProgramFailed && /no space left|disk quota|file too large/i.test(error.message)) {
    return new Failed({ code: 'NO_SPACE', path, neededBytes: null, freeBytes: null, prune }, { cause: error });
  }
  if (error instanceof ProgramFailed) return new Failed({ code: 'PACK_FAILED', reason: error.message }, { cause: error });
  return new Failed(targetFailure(error instanceof WriteFailed ? error.cause : error, path, prune), { cause: error });
}
