/** How large the archive of some files would be, before anything is made. */
import { lstatSync, realpathSync, type Stats } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';

export interface MeasureInput {
  /** Absolute paths of files or directories. */
  readonly roots: readonly string[];
  /** Absolute paths that an archive leaves out, with all below them. */
  readonly leftOut: readonly string[];
  readonly signal: AbortSignal;
}

const BLOCK = 512;
/** The header of an entry, and a pax header with its own. */
const HEADERS = 3 * BLOCK;
/** So many files are looked at before signals are heard again. */
const AT_A_TIME = 1000;

/**
 * The bytes that each root takes in an archive, in the order given: names, sizes and kinds alone are looked at. As in an archive, other
 * file systems are not entered, and what lies in two roots counts once. What cannot be looked at counts nothing. Throws the signal's reason.
 */
export async function measure({ roots, leftOut, signal }: MeasureInput): Promise<number[]> {
  const seen = new Set<string>();
  let looked = 0;
  const sizeOf = async (path: string, device: number): Promise<number> => {
    if (++looked % AT_A_TIME === 0) await setImmediate();
    signal.throwIfAborted();
    const stats = leftOut.includes(path) ? null : lookAt(path);
    if (!stats || stats.dev !== device) return 0;
    if (stats.isFile()) return HEADERS + Math.ceil(stats.size / BLOCK) * BLOCK;
    if (!stats.isDirectory()) return HEADERS;
    const id = `${stats.dev}:${stats.ino}`;
    if (seen.has(id)) return 0;
    seen.add(id);
    let sum = HEADERS;
    for (const name of await readdir(path).catch(() => [])) sum += await sizeOf(join(path, name), device);
    return sum;
  };
  const sizes: number[] = [];
  for (const root of roots) {
    const path = realOf(root);
    const stats = path === null ? null : lookAt(path);
    sizes.push(path === null || !stats ? 0 : await sizeOf(path, stats.dev));
  }
  return sizes;
}

function lookAt(path: string): Stats | null {
  try {
    return lstatSync(path);
  } catch {
    return null;
  }
}

function realOf(path: string): string | null {
  try {
    return realpathSync(path);
  } catch {
    return null;
  }
}
