/** What the rules look at, gathered from history, catalog and disk; and what they say, put into the record. */
import type { Acting } from './acting.js';
import type { Ledger } from './artifacts.js';
import { baseOf, newestGood, parseCopyFile, readManifest } from './catalog.js';
import { errnoWords, warning } from './outcome.js';
import type { Manifest, RunRecord } from './records.js';
import { isFinishedRun } from './records.js';
import { rules, TREND_RUNS } from './rules.js';
import { fileSystem } from './system/processes.js';

/** The good copy that a run compares its own with; taken before that is there. */
export function copyBefore({ config, name, ctx }: Acting): Manifest | null {
  const copy = newestGood(config.to, name, ctx.clock.now().getTime());
  const manifest = copy && readManifest(config.to, baseOf(copy.file));
  return manifest && !('unreadable' in manifest) ? manifest : null;
}

/** Looks at all rules and remarks on what they find. What keeps them from being looked at is a remark itself. */
export function lookBack(acting: Acting, made: Manifest, before: Manifest | null, walGrewBytes: number): void {
  const { config, recorder, ctx, name } = acting;
  const freeBytes = fileSystem(config.to)?.freeBytes ?? null;
  recorder.add({ freeBytes });
  try {
    const now = ctx.clock.now().getTime();
    const ledger = acting.ledger();
    const facts = {
      now,
      made,
      before,
      durationMs: recorder.elapsedMs(),
      warnAfterMs: config.warnAfterMs,
      source: { sizeBytes: recorder.sourceBytes, walGrewBytes },
      freeBytes,
      ...(ledger ? past(ledger, name, recorder.runId) : { runs: [], provenAt: null, sinceAt: null }),
      behind: ledger ? behind(acting, ledger) : [],
      maxAgeMs: config.maxAgeMs,
    };
    for (const w of rules(facts)) recorder.warn(w);
  } catch (error) {
    recorder.warn(warning('STATE_UNWRITABLE', `the history cannot be looked back at: ${errnoWords(error)}`));
  }
}

/** The last runs, the last `verify` that proved something, and when all this began. */
function past(ledger: Ledger, name: string, runId: string): { runs: RunRecord[]; provenAt: number | null; sinceAt: number | null } {
  const runs: RunRecord[] = [];
  for (const record of ledger.since(name)) {
    if (runs.length === TREND_RUNS) break;
    if (record.name === name && record.runId !== runId && isFinishedRun(record)) runs.push(record);
  }
  return { runs, provenAt: ledger.provenAt(name), sinceAt: ledger.beganAt(name) };
}

/** Destinations that tonight's run could not bring up to date. */
function behind({ recorder, name }: Acting, ledger: Ledger): { destination: string; newestAt: number | null }[] {
  return recorder.uploads
    .filter((u) => u.missing.length > 0)
    .map(({ destination }) => {
      const times = ledger
        .uploadedFiles(destination, name)
        .flatMap((file) => parseCopyFile(file) ?? [])
        .filter((f) => f.name === name)
        .map((f) => f.createdAt);
      return { destination, newestAt: times.reduce<number | null>((newest, at) => Math.max(newest ?? at, at), null) };
    });
}
