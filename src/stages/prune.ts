/**
 * Stage 6: remove what retention no longer asks for. All data first, then the manifests, each synced: whatever is killed
 * in between leaves manifests without data, which the next run knows to be an unfinished prune (traps, 35).
 */
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { archivesIn, baseOf, readCopies } from '../catalog.js';
import { plural } from '../format.js';
import type { Failure, Warning } from '../outcome.js';
import { critical, errnoOf, errnoWords, failureOf, targetFailure, unsupportedBy } from '../outcome.js';
import type { Kept, Pruned } from '../records.js';
import type { IsLoss } from '../retention.js';
import { decide } from '../retention.js';
import type { Policy } from '../settings/load.js';
import { remove as removeFile, syncDirectory } from '../system/files.js';

export interface PruneInput {
  readonly to: string;
  readonly name: string;
  readonly policy: Policy;
  /** The copy that this run has just made; null for `prune`. */
  readonly made: string | null;
  /** Of a run; null for `prune`. */
  readonly isLoss: IsLoss | null;
  readonly now: Date;
  readonly signal: AbortSignal;
  readonly warn: (w: Warning) => void;
}

/** What was kept and removed; `failure` when removing ended early. */
export interface PruneResult {
  readonly kept: readonly Kept[];
  readonly pruned: readonly Pruned[];
  readonly failure: Failure | null;
}

/** Applies the policy. Never throws: what was removed beside a failure is told with it. */
export async function prune(input: PruneInput): Promise<PruneResult> {
  const { to, signal, warn } = input;
  const pruned: Pruned[] = [];
  let kept: readonly Kept[] = [];
  let remove: readonly Pruned[] = [];
  const refused = new Refused(to);
  try {
    const decision = decide(readCopies(to, input.name), input.policy, input.now.getTime(), input.made, input.isLoss ?? undefined);
    kept = decision.keep;
    remove = decision.remove;
    holdWarning(decision.hold, warn);
    const archives = archivesIn(to, input.name);
    const unsupported = unsupportedBy(warn);
    const bare: string[] = [];
    for (const copy of remove) {
      // Signals and the time limit are heard between two copies; what was begun is finished below.
      await setImmediate();
      if (signal.aborted) break;
      const base = baseOf(copy.file);
      if (!refused.remove(copy.file)) continue;
      pruned.push(copy);
      // The manifest of an archive that stays is what the next run knows it by.
      const archive = archives.get(base);
      if (archive === undefined || refused.remove(archive)) bare.push(base);
    }
    if (pruned.length > 0) {
      syncDirectory(to, unsupported);
      for (const base of bare) refused.remove(`${base}.json`);
      syncDirectory(to, unsupported);
    }
    return { kept: [...kept, ...stayed(remove, pruned)], pruned, failure: signal.aborted ? failureOf(signal.reason) : refused.failure() };
  } catch (error) {
    // Stopped between data and manifests: the manifests left over tell the next run how to finish.
    return { kept: [...kept, ...stayed(remove, pruned)], pruned, failure: targetFailure(error, to) };
  }
}

const stayed = (remove: readonly Pruned[], pruned: readonly Pruned[]): Kept[] =>
  remove.filter((copy) => !pruned.includes(copy)).map(({ file, reason }) => ({ file, reasons: [`was to be removed: ${reason}`], by: 'failure' }));

/** Removes files of a directory; one that stays, as by `chattr +i`, keeps no other from going. */
class Refused {
  readonly #to: string;
  #first: { readonly path: string; readonly error: unknown } | null = null;
  #more = 0;

  constructor(to: string) {
    this.#to = to;
  }

  /** Whether it is gone. */
  remove(file: string): boolean {
    const path = join(this.#to, file);
    try {
      removeFile(path);
      return true;
    } catch (error) {
      if (this.#first) this.#more++;
      else this.#first = { path, error };
      return false;
    }
  }

  failure(): Failure | null {
    if (!this.#first) return null;
    const { path, error } = this.#first;
    // One file that cannot be removed is not the directory's fault.
    if (!['EPERM', 'EBUSY'].includes(errnoOf(error))) return targetFailure(error, this.#to);
    const remedy = 'find out what protects it (lsattr, mount), and run dbbackup prune, with the same flags or --profile';
    const more = this.#more === 0 ? '' : `; nor can ${plural(this.#more, 'other file')}`;
    return { code: 'IO_ERROR', path, reason: `cannot be removed: ${errnoWords(error)}${more}`, remedy };
  }
}

/** Says why nothing is pruned, where that is so. */
export function holdWarning(hold: { readonly code: 'CLOCK' | 'SUSPECT'; readonly file: string } | null, warn: (w: Warning) => void): void {
  if (hold?.code === 'CLOCK') {
    warn(
      critical(
        'CLOCK',
        `${hold.file} is dated more than an hour ahead of this machine's clock: nothing is pruned until the clock is right or the file is moved away`,
      ),
    );
  }
  if (hold?.code === 'SUSPECT') {
    warn(critical('SOURCE_CORRUPT', `the newest copy, ${hold.file}, is suspect: nothing but surplus suspect copies is pruned until there is a good one`));
  }
}
