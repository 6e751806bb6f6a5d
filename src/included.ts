/**
 * Included files on their way back: `restore --files-to`. The archive is unpacked from its packing beside the directory and
 * proven before the database is touched; the files themselves appear after the database is in place.
 */
import { closeSync, createReadStream, fstatSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { PassThrough } from 'node:stream';
import type { Acting } from './acting.js';
import { DestinationError } from './destinations/destination.js';
import { bytes, plural } from './format.js';
import { errnoWords, Failed, failureOf, targetFailure } from './outcome.js';
import { packedAs, unpack, WriteFailed, WrongIdentity } from './packing.js';
import { placeOf } from './place.js';
import type { FilesArtifact, Manifest } from './records.js';
import { unseal } from './stages/prove.js';
import { makeStaging } from './staging.js';
import type { FileId } from './system/files.js';
import { openToCopy, ReadFailed } from './system/files.js';

/** Puts the files into their directory. */
export type PutFiles = () => Promise<void>;

/**
 * Proves the archive of a copy, does `work`, and clears away what lies in between. `work` decides when the files appear; where
 * no directory was named, nothing does. Throws `Failed`.
 */
export async function withFiles<T>(acting: Acting, manifest: Manifest, directory: string | null, work: (put: PutFiles) => Promise<T>): Promise<T> {
  const { files } = manifest;
  if (directory === null || !files) return await work(async () => undefined);
  const staging = await makeStaging(dirname(directory), acting.signal, directory);
  try {
    const archive = join(staging.directory, 'files.tar');
    const proven = await acting.recorder.stage(
      'verify',
      () => proveArchive(acting, manifest, files, archive),
      () => `${files.file} proven: ${plural(files.count, 'file')}, ${bytes(files.fileBytes)}`,
    );
    return await work(() => put(acting, archive, proven, directory));
  } finally {
    staging.remove();
  }
}

async function proveArchive(acting: Acting, manifest: Manifest, files: FilesArtifact, to: string): Promise<FileId | null> {
  const { config, tools, signal } = acting;
  const bad = (problem: string): Failed => new Failed({ code: 'COPY_BAD', file: files.file, problems: [problem], to: placeOf(config), others: manifest.name });
  const unsealed = await unseal(manifest, config.identity);
  if ('problem' in unsealed) throw bad(unsealed.problem);
  if ('locked' in unsealed) throw new Failed({ code: 'IDENTITY_MISSING', file: files.file, identity: config.identity?.path ?? null });
  const plainSha256 = unsealed.manifest.files?.plainSha256;
  try {
    const from = config.from ? await config.from.open(files.file, signal) : join(config.to, files.file);
    const progress = (done: number): void => acting.ctx.output.progress('verify', done, files.sizeBytes);
    // Whatever unpacking would refuse is met here, before the database is touched.
    const also = new PassThrough({ highWaterMark: 1 << 20 });
    const { inspectArchive } = await import('./archive/unpack.js');
    const counting = inspectArchive(also, signal).catch((error: unknown) => {
      also.destroy();
      return error instanceof Error ? error.message : String(error);
    });
    const sizes = { packedBytes: files.sizeBytes, limit: files.plainSizeBytes };
    const u = await unpack({ from, packed: packedAs(files.file), identity: config.identity, to, also, ...sizes, tools, progress });
    const counted = await counting;
    if (u.sha256 !== files.sha256) throw bad(`its SHA-256 is ${u.sha256}, not ${files.sha256}`);
    if (u.plainSha256 !== plainSha256) throw bad(`the SHA-256 of what it unpacks to is ${u.plainSha256}, not ${String(plainSha256)}`);
    if (typeof counted === 'string') throw bad(counted);
    if (counted.count !== files.count) throw bad(`it holds ${counted.count} files, not ${files.count}`);
    return u.made;
  } catch (error) {
    if (error instanceof Failed || signal.aborted) throw error;
    if (error instanceof WriteFailed) throw new Failed(targetFailure(error.cause, to), { cause: error });
    if (error instanceof WrongIdentity)
      throw new Failed({ code: 'IDENTITY_MISSING', file: files.file, identity: config.identity?.path ?? null }, { cause: error });
    if (error instanceof ReadFailed && error.cause instanceof DestinationError)
      throw new Failed({ code: 'REMOTE_FAILED', shown: placeOf(config), reason: error.cause.message }, { cause: error });
    throw bad(error instanceof ReadFailed ? `it cannot be read: ${errnoWords(error.cause)}` : `it cannot be unpacked: ${errnoWords(error)}`);
  }
}

async function put(acting: Acting, archive: string, proven: FileId | null, directory: string): Promise<void> {
  const { extractArchive } = await import('./archive/unpack.js');
  try {
    const { count } = await acting.recorder.stage(
      'restore',
      () => extractArchive(reading(archive, proven), directory, acting.signal),
      (counted) => `${plural(counted.count, 'file')} to ${directory}`,
    );
    acting.recorder.addRestored({ files: { directory, count } });
  } catch (error) {
    const ended = acting.signal.aborted ? failureOf(acting.signal.reason) : null;
    // The database has its name already: no error may say that nothing was left behind.
    if (ended?.code === 'INTERRUPTED' || ended?.code === 'TIMEOUT') {
      const next = `the database is whole and stays; for all of the files: empty ${directory}, and restore once more into another new file (-o)`;
      throw new Failed({ ...ended, published: `the database, with a part of the files in ${directory},`, next }, { cause: error });
    }
    const state = 'the database itself was restored; restore into a new file (-o) with another --files-to to have the files as well';
    throw new Failed({ code: 'RESTORE_FAILED', path: directory, reason: errnoWords(error), state }, { cause: error });
  }
}

/** The file that was proven and no other: who owns the directory in which it lies could have exchanged it. */
function reading(archive: string, proven: FileId | null): Readable {
  const fd = openToCopy(archive);
  const now = fstatSync(fd);
  if (proven && now.dev === proven.dev && now.ino === proven.ino) return createReadStream('', { fd, highWaterMark: 1 << 20 });
  closeSync(fd);
  throw Object.assign(new Error('the proven archive was exchanged for another file'), { code: 'EEXIST' });
}
