/**
 * Metrics for Prometheus: a file in its text format, for node_exporter's textfile collector. `render` is pure. One file
 * per profile, replaced as a whole, since the collector may read it at any moment.
 */
import { readdirSync, renameSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { newestGood, scan } from './catalog.js';
import type { History, RunCount } from './history.js';
import { outboxPath, pending } from './notifiers/outbox.js';
import type { Warning } from './outcome.js';
import { errnoWords, warning } from './outcome.js';
import type { CommandName, RunRecord, RunStatus } from './records.js';
import { isFinishedRun } from './records.js';
import { RULES } from './rules.js';
import type { Config } from './settings/load.js';
import { lstatOrNull, readSmall, remove, sizeOf, syncDirectory, writeNew } from './system/files.js';
import { fileSystem } from './system/processes.js';

/** What is measured. Null: not known, and then not in the file either, so that `absent()` sees it. Sizes in bytes, times in milliseconds since the epoch. */
export interface MetricsFacts {
  readonly name: string;
  readonly maxAgeMs: number;
  /** The last `run` that ended, whatever came of it. */
  readonly lastRun: {
    readonly at: number;
    readonly status: RunStatus;
    readonly stages: readonly { readonly name: string; readonly durationMs: number }[];
  } | null;
  /** When the last `run` with exit 0 and a copy ended. */
  readonly lastSuccessAt: number | null;
  /** By command and status; null: there is no history to count in. */
  readonly runs: readonly RunCount[] | null;
  readonly newestGood: { readonly at: number; readonly sizeBytes: number } | null;
  readonly copies: { readonly count: number; readonly totalBytes: number } | null;
  readonly freeBytes: number | null;
  readonly problems: readonly Pick<Warning, 'code' | 'severity'>[];
  readonly undelivered: number | null;
}

interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** The ways a run can have ended: each is a series, so that a rule finds it also while it is 0. */
const ENDS: readonly RunStatus[] = ['ok', 'failed', 'incomplete', 'interrupted', 'rolled_back', 'skipped'];

/** The text of the file: for each metric HELP, TYPE and its samples; a metric without samples is left out. */
export function render(facts: MetricsFacts): string {
  const { name, lastRun, newestGood, copies } = facts;
  const one = (value: number | null | undefined): Sample[] => (value === null || value === undefined ? [] : [{ labels: {}, value }]);
  const seconds = (ms: number | null | undefined): number | null => (ms === null || ms === undefined ? null : ms / 1000);
  const metric = (metricName: string, type: 'gauge' | 'counter', help: string, samples: readonly Sample[]): string[] =>
    samples.length === 0
      ? []
      : [
          `# HELP dbbackup_${metricName} ${help}`,
          `# TYPE dbbackup_${metricName} ${type}`,
          ...samples.map(({ labels, value }) => `dbbackup_${metricName}{${labelText({ name, ...labels })}} ${value}`),
        ];
  const stages = sumBy(
    lastRun?.stages ?? [],
    (s) => s.name,
    (s) => s.durationMs,
  );
  const problems = sumBy(
    facts.problems,
    (p) => `${p.code} ${p.severity}`,
    () => 1,
  );
  return [
    ...metric('last_run_timestamp_seconds', 'gauge', 'When the last run ended, whatever came of it.', one(seconds(lastRun?.at))),
    ...metric('last_success_timestamp_seconds', 'gauge', 'When the last run with exit code 0 and a new copy ended.', one(seconds(facts.lastSuccessAt))),
    ...metric(
      'last_run_status',
      'gauge',
      'How the last run ended: 1 for that status, 0 for the others.',
      lastRun ? ENDS.map((status) => ({ labels: { status }, value: status === lastRun.status ? 1 : 0 })) : [],
    ),
    ...metric(
      'last_run_stage_duration_seconds',
      'gauge',
      'How long each stage of the last run took.',
      [...stages].map(([stage, ms]) => ({ labels: { stage }, value: ms / 1000 })),
    ),
    ...metric('runs_total', 'counter', 'Commands that ended, by command and status.', counted(facts.runs)),
    ...metric('newest_good_copy_timestamp_seconds', 'gauge', 'When the newest good copy was made.', one(seconds(newestGood?.at))),
    ...metric('newest_good_copy_size_bytes', 'gauge', 'Size of the newest good copy.', one(newestGood?.sizeBytes)),
    ...metric('max_age_seconds', 'gauge', 'How old the newest good copy may be: the setting max-age.', one(seconds(facts.maxAgeMs))),
    ...metric('copies', 'gauge', 'Copies in the backup directory, whatever their verdict.', one(copies?.count)),
    ...metric('copies_size_bytes', 'gauge', 'Size of all copies in the backup directory, with their archives of included files.', one(copies?.totalBytes)),
    ...metric('free_bytes', 'gauge', 'Free space of the file system of the backup directory.', one(facts.freeBytes)),
    ...metric('undelivered_messages', 'gauge', 'Messages that could not be delivered yet.', one(facts.undelivered)),
    ...metric(
      'problems',
      'gauge',
      'Problems of the last run, and those that the command which wrote this file found.',
      [...problems].map(([key, n]) => {
        const [code = '', severity = ''] = key.split(' ');
        return { labels: { code, severity }, value: n };
      }),
    ),
  ]
    .map((line) => `${line}\n`)
    .join('');
}

/** What each command can come to; of the others only those that happened are told. */
const COUNTED: readonly (readonly [command: CommandName, statuses: readonly RunStatus[]])[] = [
  ['run', ['ok', 'failed', 'incomplete', 'interrupted', 'skipped']],
  ['verify', ['ok', 'failed', 'incomplete', 'interrupted']],
  ['prune', ['ok', 'failed', 'incomplete', 'interrupted']],
  ['restore', ['ok', 'failed', 'incomplete', 'interrupted']],
  ['guard', ['ok', 'failed', 'incomplete', 'interrupted', 'rolled_back']],
];

/** With zeros: `increase()` does not see the first failure where a series only begins with it. */
function counted(runs: MetricsFacts['runs']): Sample[] {
  if (runs === null) return [];
  const sums = new Map<string, number>(COUNTED.flatMap(([command, statuses]) => statuses.map((status) => [`${command} ${status}`, 0] as const)));
  for (const { command, status, runs: n } of runs) sums.set(`${command} ${status}`, n);
  return [...sums].map(([key, value]) => {
    const [command = '', status = ''] = key.split(' ');
    return { labels: { command, status }, value };
  });
}

/** A series must not come twice: a stage that was repeated counts with all its time. */
function sumBy<T>(items: readonly T[], key: (item: T) => string, value: (item: T) => number): Map<string, number> {
  const sums = new Map<string, number>();
  for (const item of items) sums.set(key(item), (sums.get(key(item)) ?? 0) + value(item));
  return sums;
}

const labelText = (labels: Readonly<Record<string, string>>): string =>
  Object.entries(labels)
    .map(([label, value]) => `${label}="${value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')}"`)
    .join(',');

/** What the writing command knows itself. */
export interface Found {
  /** The record of an acting command as it ended; null: `status`. */
  readonly record: RunRecord | null;
  readonly problems: readonly Warning[];
  readonly history: History | null;
}

/**
 * Writes the metrics of one name into `metrics-file`, where that is set. What cannot be read is left out of the file; a file
 * that cannot be written comes back as a warning. The directory must exist: it is node_exporter's. Nothing is thrown.
 */
export function writeMetrics(config: Config, name: string | null, found: Found, now: Date): Warning | null {
  const { metricsFile } = config;
  // A command that reads a destination on a machine without backups has none to measure.
  if (metricsFile === null || name === null || config.to === config.from?.directory) return null;
  // Another run is at work and writes the file when it ends.
  if (found.record?.exitCode === 75) return null;
  try {
    const other = orElse(null, () => otherIn(metricsFile, name));
    replaceWhole(metricsFile, render(gather(config, name, found, now)));
    return other === null
      ? null
      : warning('STATE_UNWRITABLE', `${metricsFile} held the metrics of ${other}, which are lost: each name needs a metrics-file of its own`);
  } catch (error) {
    return warning('STATE_UNWRITABLE', `the metrics file ${metricsFile} cannot be written: ${errnoWords(error)}`);
  }
}

/** Whose metrics the file holds, where that is another name: two that share a file would each erase what the other wrote. */
function otherIn(path: string, name: string): string | null {
  if (!lstatOrNull(path)?.isFile()) return null;
  const quoted = /^dbbackup_\w+\{(name="(?:[^"\\]|\\.)*")/m.exec(readSmall(path, LARGEST).bytes.toString('utf8'))?.[1];
  return quoted === undefined || quoted === labelText({ name }) ? null : quoted.slice('name="'.length, -1);
}

function gather(config: Config, name: string, { record, problems, history }: Found, now: Date): MetricsFacts {
  const { last, success } = lastRuns(name, record, history);
  // A run that had nothing to do, or failed, has not looked at what the last whole one warned of.
  const night = record && isFinishedRun(record) ? null : orElse(null, () => history?.lastFinished(name) ?? null);
  const ofNight = (night?.warnings ?? []).filter((w) => RULES.has(w.code));
  const ofLast = last && last.runId !== record?.runId ? problemsOf(last) : [];
  return {
    name,
    maxAgeMs: config.maxAgeMs,
    lastRun: last && { at: endOf(last), status: last.status, stages: last.stages },
    lastSuccessAt: success && endOf(success),
    runs: orElse(null, () => history?.counts(name) ?? null),
    newestGood: orElse(null, () => {
      const copy = newestGood(config.to, name, now.getTime());
      return copy && { at: Date.parse(copy.createdAt), sizeBytes: copy.sizeBytes };
    }),
    copies: orElse(null, () => {
      const files = scan(config.to).filter((f) => f.name === name && f.kind !== 'manifest');
      return {
        count: files.filter((f) => f.kind === 'data').length,
        totalBytes: files.reduce((sum, f) => sum + sizeOf(join(config.to, f.file)), 0),
      };
    }),
    freeBytes: fileSystem(config.to)?.freeBytes ?? null,
    problems: distinct([...ofLast, ...ofNight, ...(record ? problemsOf(record) : []), ...problems]),
    undelivered: orElse(null, () => pending(outboxPath(config.stateDir), name).length),
  };
}

/** What status found may be what the last run found, too. */
const distinct = <T extends Pick<Warning, 'code' | 'severity' | 'message'>>(problems: readonly T[]): T[] =>
  problems.filter((p, i) => problems.findIndex((other) => other.code === p.code && other.severity === p.severity && other.message === p.message) === i);

function orElse<T>(instead: T, look: () => T): T {
  try {
    return look();
  } catch {
    // A directory or history that cannot be read: what else is known is worth telling all the more.
    return instead;
  }
}

const endOf = (run: RunRecord): number => Date.parse(run.finishedAt ?? run.startedAt);

const problemsOf = (run: RunRecord): Pick<Warning, 'code' | 'severity' | 'message'>[] => [
  ...run.warnings,
  // Failure codes are the only ones that an error record has.
  ...(run.error ? [{ code: run.error.code as Warning['code'], severity: 'critical' as const, message: run.error.message }] : []),
];

/** The last `run` of the name that ended, and the last one that was well; without a history only this one is known. */
function lastRuns(name: string, record: RunRecord | null, history: History | null): { last: RunRecord | null; success: RunRecord | null } {
  const isRun = (r: RunRecord): boolean => r.command === 'run' && r.name === name && r.status !== 'running' && r.exitCode !== 75;
  let last = record && isRun(record) ? record : null;
  let success = last?.status === 'ok' ? last : null;
  return orElse({ last, success }, () => {
    if (success || !history) return { last, success };
    for (const earlier of history.since(name)) {
      if (!isRun(earlier)) continue;
      last ??= earlier;
      if (earlier.status !== 'ok') continue;
      success = earlier;
      break;
    }
    return { last, success };
  });
}

/** What we write has a few kilobytes. */
const LARGEST = 1 << 20;

/** The mode that lets node_exporter read it. */
const READABLE = 0o644;

/**
 * Replaces the file as a whole. `verify` and `status` write it beside a run, so each writes under a name of its own: one in
 * common could be renamed while another process is still writing. The collector reads neither; what a killed process left is swept.
 */
function replaceWhole(path: string, text: string): void {
  const directory = dirname(path);
  const staged = `${path}.${process.pid}`;
  for (const file of readdirSync(directory)) {
    const pid = file.startsWith(`${basename(path)}.`) ? /^[1-9]\d*$/.exec(file.slice(basename(path).length + 1))?.[0] : undefined;
    if (pid !== undefined && (pid === String(process.pid) || !lstatOrNull(`/proc/${pid}`))) remove(join(directory, file));
  }
  writeNew(staged, text, READABLE);
  try {
    renameSync(staged, path);
  } catch (error) {
    remove(staged);
    throw error;
  }
  syncDirectory(directory, () => undefined);
}
