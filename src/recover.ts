/**
 * What a killed run left, put right by the next acting command of the same name, which holds its lock:
 * - a workspace whose manifest is staged and whose data is already linked: re-hashed, then completed or withdrawn;
 * - a manifest without data: an unfinished prune, finished;
 * - any other workspace: cleared away;
 * - a database whose replacement by a copy was cut short: see aside.ts.
 */
import { join } from 'node:path';
import { asideRoot, settleAside } from './aside.js';
import { archivesIn, baseOf, copyOf, MANIFEST_MAX, parseCopyFile, parseManifest, readManifest, scan } from './catalog.js';
import { plural } from './format.js';
import type { Warning } from './outcome.js';
import { critical, errnoOf, errnoWords, unsupportedBy, warning } from './outcome.js';
import { packedAs } from './packing.js';
import type { Copy, Manifest } from './records.js';
import { hashFile, IS_THE_FILES, isSameFile, listing, lstatOrNull, publish, readSmall, remove, syncDirectory } from './system/files.js';
import type { Workspace } from './workspace.js';
import { clearDirectory, finishedPath, isLiving, parseWorkspace, removeQuietly, sweepDirectory, tempRoot, workspace } from './workspace.js';

export interface Recovered {
  /** Run id of a killed run → the copy it had published or that was completed for it, or null. */
  readonly runs: ReadonlyMap<string, Copy | null>;
  /**
   * Takes their directories away, which are empty now: to be called when it is written down that they were killed, since nothing else says so.
   * @param isWritten whether it is, of this run
   */
  clear(isWritten: (runId: string) => boolean): void;
}

/**
 * Puts right what killed runs of this name left. The caller holds its lock. What cannot be put right is told, and tried again by the next
 * command: it is no reason to make no copy tonight. Throws where the temp directory cannot be read, and the signal's reason.
 */
export async function recover(to: string, stateDir: string, name: string, signal: AbortSignal, warn: (w: Warning) => void): Promise<Recovered> {
  const unsupported = unsupportedBy(warn);
  const runs = new Map<string, Copy | null>();
  const spent: { readonly runId: string | null; readonly remove: () => void }[] = [];
  const tried = async (what: string, work: () => void | Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      signal.throwIfAborted();
      warn(unhealed(what, error));
    }
  };
  for (const entry of listing(tempRoot(to))) {
    const left = parseWorkspace(entry);
    if (left?.name !== name) continue;
    const place = workspace(to, name, left.runId);
    runs.set(left.runId, null);
    if (isLiving(place.directory)) {
      // With a lock in it, it is of a command of which it does not say that it was killed. An empty one may be what is left of a killed run.
      const isEmpty = listing(place.directory).length === 0;
      spent.push({ runId: isEmpty ? left.runId : null, remove: () => sweepDirectory(place.directory) });
      continue;
    }
    await tried(place.directory, async () => {
      const found = await finishPublication(to, name, place, signal, unsupported);
      runs.set(left.runId, found && 'copy' in found ? found.copy : null);
      if (found && 'withdrawn' in found) {
        warn(warning('HEALED', `a killed run had not finished publishing ${found.withdrawn}: it does not prove out, and was withdrawn`));
      } else if (found?.healed) {
        warn(warning('HEALED', `a killed run had not finished publishing ${found.copy.file}: it was proven again and completed`));
      }
      clearDirectory(place.directory);
      spent.push({ runId: left.runId, remove: () => removeQuietly(place.directory) });
    });
  }
  await tried(asideRoot(stateDir), () => settleAside(stateDir, name, unsupported, warn, (what, error) => warn(unhealed(what, error))));
  await tried(to, () => finishPrune(to, name, warn, unsupported));
  const clear = (isWritten: (runId: string) => boolean): void => {
    for (const { runId, remove } of spent) if (runId === null || isWritten(runId)) remove();
  };
  return { runs, clear };
}

const unhealed = (what: string, error: unknown): Warning =>
  critical('HEAL_FAILED', `what a killed run left in ${what} could not be put right: ${errnoWords(error)}; the next command tries it again`);

/** A copy that is whole now, and whether we had to complete it; or a data file that had its name already and did not prove out. */
type Finished = { readonly copy: Copy; readonly healed: boolean } | { readonly withdrawn: string };

/** Null: it had published nothing. */
async function finishPublication(
  to: string,
  name: string,
  place: Workspace,
  signal: AbortSignal,
  unsupported: (what: string) => void,
): Promise<Finished | null> {
  const manifest = stagedManifest(place, name);
  if (!manifest) return null;
  const data = join(to, manifest.file);
  const base = baseOf(manifest.file);
  const json = join(to, `${base}.json`);
  const published = lstatOrNull(data);
  const archive = manifest.files && join(to, manifest.files.file);
  if (!published?.isFile()) {
    // The archive had its name already, the data not.
    const stagedArchive = finishedPath(place.files, packedAs(manifest.file));
    // Where rename was used, its staged name is gone.
    const isOurs = async (path: string): Promise<boolean> =>
      lstatOrNull(stagedArchive) ? isSameFile(path, stagedArchive) : (await hashOrNull(path, signal)) === manifest.files?.sha256;
    if (archive && lstatOrNull(archive) && !lstatOrNull(json) && (await isOurs(archive))) {
      remove(archive);
      syncDirectory(to, unsupported);
    }
    return null;
  }
  // The same inode as the staged data: ours beyond doubt. Where rename was used, the staged name is gone.
  const packed = packedAs(manifest.file);
  const staged = lstatOrNull(finishedPath(place.data, packed));
  if (staged && (staged.ino !== published.ino || staged.dev !== published.dev)) return null;
  if (lstatOrNull(json)) {
    const there = readManifest(to, base);
    if ('unreadable' in there || there.runId !== manifest.runId) return null;
    // Killed right after the last link, it may be known to nobody but the memory.
    syncDirectory(to, unsupported);
    return { copy: copyOf(there, there.status), healed: false };
  }
  const filesWhole = !manifest.files || (archive !== null && (await hashOrNull(archive, signal)) === manifest.files.sha256);
  if (filesWhole && published.size === manifest.sizeBytes && (await hashOrNull(data, signal)) === manifest.sha256) {
    publish(place.manifest, json);
    syncDirectory(to, unsupported);
    return { copy: copyOf(manifest, manifest.status), healed: true };
  }
  remove(data);
  if (archive) remove(archive);
  syncDirectory(to, unsupported);
  return { withdrawn: manifest.file };
}

/** Null when it cannot be read to the end: then it is withdrawn, rather than stand in the way of every later run. */
async function hashOrNull(path: string, signal: AbortSignal): Promise<string | null> {
  try {
    return await hashFile(path, signal, () => undefined);
  } catch (error) {
    signal.throwIfAborted();
    if (!IS_THE_FILES.has(errnoOf(error))) throw error;
    return null;
  }
}

function stagedManifest(place: Workspace, name: string): Manifest | null {
  try {
    const { bytes } = readSmall(place.manifest, MANIFEST_MAX);
    const file: unknown = (JSON.parse(bytes.toString('utf8')) as { file?: unknown }).file;
    const parsed = typeof file === 'string' ? parseCopyFile(file) : null;
    return parsed?.name === name ? parseManifest(bytes, parsed.base) : null;
  } catch (error) {
    // Missing, cut short by a power cut, or not ours: then nothing was linked after it. Of one that cannot be read just now that is not known.
    if (error instanceof SyntaxError || ['ENOENT', 'ENOTDIR', 'ELOOP', 'EINVAL', 'EFBIG', 'ENXIO'].includes(errnoOf(error))) return null;
    throw error;
  }
}

function finishPrune(to: string, name: string, warn: (w: Warning) => void, unsupported: (what: string) => void): void {
  const files = scan(to).filter((f) => f.name === name);
  const data = new Set(files.filter((f) => f.kind === 'data').map((f) => f.base));
  const orphans = files.filter((f) => f.kind === 'manifest' && !data.has(f.base) && !('unreadable' in readManifest(to, f.base)));
  if (orphans.length === 0) return;
  const archives = archivesIn(to, name);
  // One that cannot be removed stands in nobody's way but its own.
  let first: unknown;
  const gone = (file: string): boolean => {
    try {
      remove(join(to, file));
      return true;
    } catch (error) {
      first ??= Object.assign(new Error(`${file}: ${errnoWords(error)}`), { cause: error });
      return false;
    }
  };
  const bare = orphans.filter(({ base }) => {
    const archive = archives.get(base);
    return archive === undefined || gone(archive);
  });
  // The manifests last: without them nobody would know what is left.
  syncDirectory(to, unsupported);
  const removed = bare.filter(({ file }) => gone(file)).length;
  syncDirectory(to, unsupported);
  if (removed > 0) {
    warn(warning('HEALED', `removed ${plural(removed, 'manifest')} whose data was already gone: a prune was interrupted, or somebody removed the data`));
  }
  if (first !== undefined) throw first;
}
