/**
 * What a killed run left, put right by the next acting command of the same name, which holds its lock:
 * - a workspace whose manifest is staged and whose data is already linked: re-hashed, then completed or withdrawn;
 * - a manifest without data: an unfinished prune, finished;
 * - any other workspace: cleared away.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseCopyFile, parseManifest, readManifest, scan } from './catalog.js';
import type { Warning } from './outcome.js';
import { errnoOf, warning } from './outcome.js';
import type { Manifest } from './records.js';
import { hashFile, lstatOrNull, publish, readSmall, remove, removeTree, syncDirectory } from './system/files.js';
import type { Workspace } from './workspace.js';
import { parseWorkspace, tempRoot, workspace } from './workspace.js';

export interface Recovered {
  /** Run id of a killed run → the copy that was completed for it, or null. */
  readonly runs: ReadonlyMap<string, string | null>;
}

export async function recover(to: string, name: string, signal: AbortSignal, warn: (w: Warning) => void): Promise<Recovered> {
  const unsupported = (what: string): void => warn(warning('SYNC_UNSUPPORTED', `${what} is not supported by this file system`));
  const runs = new Map<string, string | null>();
  for (const entry of list(tempRoot(to))) {
    const left = parseWorkspace(entry);
    if (left?.name !== name) continue;
    const place = workspace(to, name, left.runId);
    const completed = await finishPublication(to, name, place, signal, unsupported);
    if (completed) warn(warning('HEALED', `a killed run had not finished publishing ${completed}: it was proven again and completed`));
    runs.set(left.runId, completed);
    removeTree(place.directory);
  }
  finishPrune(to, name, warn, unsupported);
  return { runs };
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

/** The file name of the copy that is now whole, or null when there was nothing to complete. */
async function finishPublication(to: string, name: string, place: Workspace, signal: AbortSignal, unsupported: (what: string) => void): Promise<string | null> {
  const manifest = stagedManifest(place, name);
  if (!manifest) return null;
  const data = join(to, manifest.file);
  const json = join(to, manifest.manifest ?? '');
  const published = lstatOrNull(data);
  if (!published?.isFile()) return null;
  // The same inode as the staged data: ours beyond doubt. Where rename was used, the staged name is gone.
  const staged = lstatOrNull(place.data);
  if (staged && (staged.ino !== published.ino || staged.dev !== published.dev)) return null;
  if (lstatOrNull(json)) return null;
  if (published.size === manifest.sizeBytes && (await hashFile(data, signal, () => undefined)) === manifest.sha256) {
    publish(place.manifest, json);
    syncDirectory(to, unsupported);
    return manifest.file;
  }
  remove(data);
  syncDirectory(to, unsupported);
  return null;
}

function stagedManifest(place: Workspace, name: string): Manifest | null {
  try {
    const { bytes } = readSmall(place.manifest, 16_000_000);
    const file: unknown = (JSON.parse(bytes.toString('utf8')) as { file?: unknown }).file;
    const parsed = typeof file === 'string' ? parseCopyFile(file) : null;
    return parsed?.name === name ? parseManifest(bytes, parsed.base) : null;
  } catch {
    // Missing, cut short by a power cut, or not ours: then nothing was linked after it.
    return null;
  }
}

function finishPrune(to: string, name: string, warn: (w: Warning) => void, unsupported: (what: string) => void): void {
  const files = scan(to).filter((f) => f.name === name);
  const data = new Set(files.filter((f) => f.kind === 'data').map((f) => f.base));
  const orphans = files.filter((f) => f.kind === 'manifest' && !data.has(f.base) && !('unreadable' in readManifest(to, f.base)));
  for (const orphan of orphans) remove(join(to, orphan.file));
  if (orphans.length === 0) return;
  syncDirectory(to, unsupported);
  warn(warning('HEALED', `finished an interrupted prune: removed ${orphans.length} manifest${orphans.length === 1 ? '' : 's'} whose data was already gone`));
}
