/** What the rules look at, gathered from history, catalog and disk; and what they say, put into the record. */
import type { Acting } from './acting.js';
import type { Ledger } from './artifacts.js';
import { baseOf, newestGood, parseCopyFile, readManifest } from './catalog.js';
import { errnoWords, warning } from './outcome.js';
import type { Kept, KeptBy, Manifest, RunRecord } from './records.js';
import { isFinishedRun } from './records.js';
import type { IsLoss } from './retention.js';
import type { RuleFacts } from './rules.js';
import { losses, rules, TREND_RUNS } from './rules.js';
import { listing } from './system/files.js';
import { fileSystem } from './system/processes.js';

/** The good copy that a run compares its own with, and what is gone that should be there; taken before that copy is there and others are pruned. */
export function stateBefore(acting: Acting): Pick<RuleFacts, 'before' | 'kept'> {
  const { config, name, ctx } = acting;
  const copy = newestGood(config.to, name, ctx.clock.now().getTime());
  const manifest = copy && readManifest(config.to, baseOf(copy.file));
  const before = manifest && !('unreadable' in manifest) ? manifest : null;
  return { before, kept: keptBefore(acting, before) };
}

/** Compares two copies by what their manifests say. */
export const lossesIn =
  (directory: string): IsLoss =>
  (newer, older) => {
    const [made, before] = [newer, older].map((file) => readManifest(directory, baseOf(file)));
    return !!made && !!before && !('unreadable' in made || 'unreadable' in before) && losses({ made, before }).length > 0;
  };

/** So many runs are looked through for one that worked in this directory: disks may take turns, with one state directory for all. */
const TURNS = 50;

/** Records of older versions say it in words alone. */
function keptBy({ by, reasons }: Kept): KeptBy {
  if (by) return by;
  const says = (words: RegExp): boolean => reasons.some((reason) => words.test(reason));
  if (says(/^pruning waits: /)) return 'hold';
  if (says(/^was to be removed/)) return 'failure';
  return says(/^(bad: left|unverified: not|suspect: the newest)/) ? 'person' : 'policy';
}

/**
 * Null also where a run was killed since, or is not on record: it may have pruned. And where the history cannot be read, which `lookBack` says.
 * @param newest the newest good copy
 */
function keptBefore({ config, name, recorder, ledger }: Acting, newest: Manifest | null): RuleFacts['kept'] {
  // What was found bad since then a person may have removed as well.
  const bad = new Set<string>();
  let last: RuleFacts['kept'] = null;
  let turns = 0;
  try {
    if (newest && ledger()?.knows(newest.runId) !== true) return null;
    const there = new Set(listing(config.to));
    for (const record of ledger()?.since(name, 'here') ?? []) {
      for (const { file, problems } of record.results ?? []) if (problems.length > 0) bad.add(file);
      if (record.runId === recorder.runId || record.name !== name || (record.command !== 'run' && record.command !== 'prune')) continue;
      if (record.exitCode === null) return null;
      if (record.kept.length === 0) continue;
      if (record.kept.some((copy) => keptBy(copy) === 'hold')) return null;
      const files = record.kept.filter((copy) => keptBy(copy) === 'policy' && !bad.has(copy.file)).map(({ file }) => file);
      const gone = files.filter((file) => !there.has(file));
      const kept = { files, gone, since: record.startedAt };
      if (gone.length < files.length) return kept;
      last ??= kept;
      if (++turns === TURNS) break;
    }
    // Nothing of it: either all is lost, or others lie here.
    return [...there].some((file) => parseCopyFile(file)?.name === name) ? null : last;
  } catch {
    // Remarked on when the rules are looked at.
  }
  return null;
}

/** Looks at all rules and remarks on what they find. What keeps them from being looked at is a remark itself. */
export function lookBack(acting: Acting, made: Manifest, before: Pick<RuleFacts, 'before' | 'kept'>, walGrewBytes: number): void {
  const { config, recorder, ctx, name } = acting;
  const freeBytes = fileSystem(config.to)?.freeBytes ?? null;
  recorder.add({ freeBytes });
  try {
    const now = ctx.clock.now().getTime();
    const ledger = acting.ledger();
    const facts = {
      now,
      made,
      ...before,
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

/** The last runs, the last `verify` that proved something, and when all this began. */
function past(ledger: Ledger, name: string, runId: string, now: number): { runs: RunRecord[]; provenAt: number | null; sinceAt: number | null } {
  const runs: RunRecord[] = [];
  for (const record of ledger.since(name)) {
    if (runs.length === TREND_RUNS) break;
    if (record.name === name && record.runId !== runId && isFinishedRun(record)) runs.push(record);
  }
  return { runs, provenAt: ledger.provenAt(name, now), sinceAt: ledger.beganAt(name) };
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
