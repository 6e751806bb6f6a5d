/**
 * Stage 6: remove what retention no longer asks for. All data first, then the manifests, each synced: whatever is killed
 * in between leaves manifests without data, which the next run knows to be an unfinished prune (traps, 35).
 */
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { archivesIn, baseOf, readCopies } from '../catalog.js';
import type { Failure, Warning } from '../outcome.js';
import { critical, errnoOf, errnoWords, failureOf, targetFailure, warning } from '../outcome.js';
import type { Kept, Pruned } from '../records.js';
import { decide } from '../retention.js';
import type { Policy } from '../settings/load.js';
import { remove, syncDirectory } from '../system/files.js';

export interface PruneInput {
  readonly to: string;
  readonly name: string;
  readonly policy: Policy;
  /** The copy that this run has just made; null for `prune`. */
  readonly made: string | null;
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

/** Applies the policy. Never throws: what was removed before a failure is told with it. */
export async function prune(input: PruneInput): Promise<PruneResult> {
  const { to, warn } = input;
  const pruned: Pruned[] = [];
  let kept: readonly Kept[] = [];
  let left: readonly Pruned[] = [];
  let at = to;
  try {
    const decision = decide(readCopies(to, input.name), input.policy, input.now.getTime(), input.made);
    kept = decision.keep;
    left = decision.remove;
    holdWarning(decision.hold, warn);
    const archives = archivesIn(to, input.name);
    const unsupported = (what: string): void => warn(warning('SYNC_UNSUPPORTED', `${what} is not supported by this file system`));
    for (const copy of decision.remove) {
      // Signals and the time limit are heard between two files; what was begun is finished below.
      await setImmediate();
      if (input.signal.aborted) break;
      for (const file of [copy.file, ...(archives.get(baseOf(copy.file)) ?? [])]) {
        at = join(to, file);
        remove(at);
      }
      pruned.push(copy);
    }
    if (pruned.length > 0) {
      syncDirectory(to, unsupported);
      for (const copy of pruned) remove(join(to, `${baseOf(copy.file)}.json`));
      syncDirectory(to, unsupported);
    }
    return { kept, pruned, failure: input.signal.aborted ? failureOf(input.signal.reason) : null };
  } catch (error) {
    // Stopped between data and manifests: the manifests left over tell the next run how to finish.
    const stayed = left.filter((copy) => !pruned.includes(copy)).map(({ file, reason }) => ({ file, reasons: [`was to be removed: ${reason}`] }));
    return { kept: [...kept, ...stayed], pruned, failure: notRemoved(error, at, to) };
  }
}

/** One file that cannot be removed is not the directory's fault. */
function notRemoved(error: unknown, path: string, to: string): Failure {
  if (!['EPERM', 'EBUSY'].includes(errnoOf(error))) return targetFailure(error, to);
  const remedy = 'find out what protects it (lsattr, mount), and run dbbackup prune, with the same flags or --profile';
  return { code: 'IO_ERROR', path, reason: `cannot be removed: ${errnoWords(error)}`, remedy };
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
