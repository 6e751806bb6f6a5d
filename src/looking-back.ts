/** What the rules look at, gathered from history, catalog and disk; and what they say, put into the record. */
import type { Acting } from './acting.js';
import type { Ledger } from './artifacts.js';
import { baseOf, newestGood, parseCopyFile, readManifest } from './catalog.js';
import { errnoWords, warning } from './outcome.js';
import type { Manifest, RunRecord } from './records.js';
import { rules, TREND_RUNS } from './rules.js';
import { fileSystem } from './system/processes.js';

const MONTH_MS = 30 * 86_400_000;
/** However often runs are, no more records than this are read. */
const RECORDS = 1000;

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
      ...(ledger ? past(ledger, name, recorder.runId, now) : { runs: [], provenAt: null, sinceAt: null }),
      behind: ledger ? behind(acting, ledger) : [],
      maxAgeMs: config.maxAgeMs,
    };
    for (const w of rules(facts)) recorder.warn(w);
  } catch (error) {
    recorder.warn(warning('STATE_UNWRITABLE', `the history cannot be looked back at: ${errnoWords(error)}`));
  }
}

/** The last runs, the last `verify` that proved something, and when all this began, or an older record than the rules ask for. */
function past(ledger: Ledger, name: string, runId: string, now: number): { runs: RunRecord[]; provenAt: number | null; sinceAt: number | null } {
  const runs: RunRecord[] = [];
  let provenAt: number | null = null;
  let sinceAt: number | null = null;
  let read = 0;
  for (const record of ledger.since(name)) {
    if (++read > RECORDS) break;
    if (record.name !== name || record.runId === runId) continue;
    sinceAt = Date.parse(record.startedAt);
    if (record.command === 'run' && runs.length < TREND_RUNS) runs.push(record);
    if (provenAt === null && record.command === 'verify' && record.results?.some((r) => r.proved === 'full' && r.problems.length === 0)) provenAt = sinceAt;
    if (runs.length === TREND_RUNS && (provenAt !== null || now - sinceAt > MONTH_MS)) break;
  }
  return { runs, provenAt, sinceAt };
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
      return { destination, newestAt: times.length === 0 ? null : Math.max(...times) };
    });
}
