/** `dbbackup status`: is there a fresh, good copy? With --notify, people are told what nobody was told yet. */
import { isFailure } from '../artifacts.js';
import { baseOf, isAhead, isFuture, isPlainGood, readCopy, readManifest, scan, wholeSize } from '../catalog.js';
import type { Context } from '../context.js';
import { bytes, duration, plural } from '../format.js';
import { asKilled, History, historyWarning } from '../history.js';
import { lookFailure } from '../look-failure.js';
import { writeMetrics } from '../metrics.js';
import { resolveName } from '../names.js';
import { hasChannel, hasWork, onlyOn, tell } from '../notifiers/delivery.js';
import { composeStatus } from '../notifiers/message.js';
import { outboxPath, pending } from '../notifiers/outbox.js';
import type { ExitCode, Failure, Warning, Whereabouts } from '../outcome.js';
import { critical, describe, errnoWords, Failed, warning } from '../outcome.js';
import type { Copy, RunRecord } from '../records.js';
import { SCHEMA_VERSION } from '../records.js';
import { RULES, spaceLow } from '../rules.js';
import type { Channel, Config } from '../settings/load.js';
import { CHANNELS } from '../settings/values.js';
import { inspectTarget } from '../stages/inspect.js';
import { lettersToAll, messageFacts } from '../stages/report.js';
import { lstatOrNull, makeDirectories } from '../system/files.js';
import { fileSystem } from '../system/processes.js';
import { whereabouts } from '../workspace.js';

interface Look {
  readonly newestGood: (Copy & { readonly ageSeconds: number }) | null;
  readonly problems: readonly Warning[];
}

/** Prints what there is; exit 0 with a fresh good copy, 1 without, 3 when that is so but people could not be told. */
export async function status(ctx: Context, config: Config, options: { notify: boolean }): Promise<ExitCode> {
  const { output } = ctx;
  const problems: Warning[] = [];
  const name = resolveName(config) ?? onlyNameTried(config, problems);
  const { newestGood, problems: seen } = lookAtCopies(config, name, ctx.clock.now().getTime());
  // One by one: as arguments, 125,000 of them are more than the stack takes.
  for (const problem of seen) problems.push(problem);
  const { lastRun, lastTried } = name === null ? NO_RUNS : lookAtRuns(config, name, problems);
  const healthy = newestGood !== null && newestGood.ageSeconds * 1000 <= config.maxAgeMs;
  let untold: Failure | null = null;
  if (options.notify) {
    if (hasWork(config.telling, config.stateDir)) untold = await notify(ctx, config, name, newestGood, problems);
    // What was delivered just now waits no longer.
    sayWaiting(config, name, problems);
    if (!hasChannel(config.telling)) problems.push(warning('NOBODY_HEARS', 'no mail-to, slack-webhook or webhook is set, so --notify tells nobody'));
    if (untold) problems.push(critical('NOTIFY_FAILED', describe(untold).message));
    const unwritten = measure(config, name, problems, ctx.clock.now());
    if (unwritten) problems.push(unwritten);
  } else sayWaiting(config, name, problems);
  const lines = [
    newestGood
      ? `${healthy ? 'healthy' : 'NOT HEALTHY'}: ${newestGood.file}, ${bytes(newestGood.sizeBytes)}, ${duration(newestGood.ageSeconds * 1000)} old`
      : `NOT HEALTHY: no good copy${name === null ? '' : ` of ${name}`} in ${config.to}`,
    ...(lastTried
      ? [
          `last run: ${lastTried.status} at ${output.time(lastTried.startedAt)}${lastTried.error ? `: ${lastTried.error.code}: ${lastTried.error.message}` : ''}`,
        ]
      : []),
    ...problems.map((p) => `${p.severity} ${p.code}: ${p.message}`),
  ];
  // Under cron silence has to mean that all is well.
  if (!output.options.quiet || !healthy || problems.some((p) => p.severity === 'critical')) output.data(lines);
  output.document({ schemaVersion: SCHEMA_VERSION, command: 'status', name, healthy, newestGood, lastRun, problems });
  if (!healthy) return 1;
  return untold ? 3 : 0;
}

/** Where there is no copy yet: the name that runs have tried to make one of, when it is one. */
function onlyNameTried(config: Config, problems: Warning[]): string | null {
  let history: History | null = null;
  try {
    history = History.openToRead(config.stateDir, config.to);
    const [name = null, ...others] = history?.names() ?? [];
    return others.length === 0 ? name : null;
  } catch (error) {
    problems.push(historyWarning(config.stateDir, 'read', error));
    return null;
  } finally {
    history?.close();
  }
}

/** What a copy takes. */
function sizeOf(directory: string, { file, sizeBytes }: Copy): number {
  const manifest = readManifest(directory, baseOf(file));
  return 'unreadable' in manifest ? sizeBytes : wholeSize(manifest);
}

/** From the newest copy back to the first good one: the directory of ten thousand copies is not read in full. */
function lookAtCopies(config: Config, name: string | null, now: number): Look {
  const problems: Warning[] = [];
  let newestGood: Look['newestGood'] = null;
  let tagged: string | null = null;
  let files: ReturnType<typeof scan> = [];
  try {
    if (!lstatOrNull(config.to)) {
      problems.push(critical('COPY_NOT_FOUND', `there is no directory ${config.to}: is it mounted, and is this its name?`));
      return { newestGood, problems };
    }
    files = scan(config.to).filter((f) => f.kind === 'data' && f.name === name);
  } catch (error) {
    const failure = lookFailure(config.to, error);
    // Who may not look does not know that there is none.
    if (failure.code === 'TARGET_OWNER') throw new Failed(failure, { cause: error });
    problems.push(critical(failure.code, describe(failure).message));
  }
  for (const file of files) {
    const copy = readCopy(config.to, file);
    if (!copy) continue;
    if (isAhead(copy, now))
      problems.push(
        critical(
          'CLOCK',
          `${copy.file} is dated more than an hour ahead of this machine's clock: nothing is pruned until the clock is right, or that file is moved away`,
        ),
      );
    else if (isPlainGood(copy)) {
      newestGood = { ...copy, ageSeconds: Math.max(0, Math.round((now - Date.parse(copy.createdAt)) / 1000)) };
      break;
    } else if (copy.status === 'good') tagged ??= copy.file;
    else if (copy.status === 'suspect')
      problems.push(critical('SOURCE_CORRUPT', `${copy.file} is suspect: the database was structurally damaged when it was made`));
    else if (copy.status === 'bad') problems.push(critical('COPY_BAD', `${copy.file} is bad: its bytes are not those that were proven`));
    else if (copy.status === 'unverified') problems.push(warning('COPY_UNVERIFIED', `${copy.file} has no readable manifest`));
  }
  if (!newestGood) {
    const but = tagged === null ? '' : ` but for what restore and guard made before they acted, the newest of it ${tagged}`;
    problems.unshift(critical('COPY_NOT_FOUND', `there is no good copy${name === null ? '' : ` of ${name}`} in ${config.to}${but}`));
  } else if (newestGood.ageSeconds * 1000 > config.maxAgeMs) {
    problems.unshift(critical('COPY_STALE', `the newest good copy is ${duration(newestGood.ageSeconds * 1000)} old; max-age is ${duration(config.maxAgeMs)}`));
  }
  const freeBytes = newestGood && (fileSystem(config.to)?.freeBytes ?? null);
  const low = newestGood && freeBytes !== null ? spaceLow(freeBytes, sizeOf(config.to, newestGood)) : null;
  if (low) problems.push(low);
  return { newestGood, problems };
}

/** `lastTried`: not counting those that found another run at work, of which that one is to be judged. */
interface Runs {
  readonly lastRun: RunRecord | null;
  readonly lastTried: RunRecord | null;
}
const NO_RUNS: Runs = { lastRun: null, lastTried: null };

function lookAtRuns(config: Config, name: string, problems: Warning[]): Runs {
  try {
    const history = History.openToRead(config.stateDir, config.to);
    const lastRun = history?.lastRun(name) ?? null;
    const lastTried = lastRun?.exitCode === 75 ? (history?.lastRun(name, (r) => r.exitCode !== 75) ?? null) : lastRun;
    const lastNight = history?.lastFinished(name) ?? null;
    const unsettled = history?.unsettled(name) ?? [];
    const dead = (history?.unfinished(name, 'not held') ?? [])
      .map(({ record }) => record)
      .filter((r) => r.command !== 'run' && unsettled.every(({ runId }) => runId !== r.runId));
    history?.close();
    // What it left is for a person to look at, whatever the copies are like.
    for (const run of unsettled) {
      const { command, startedAt, error } = run.exitCode === 4 ? run : asKilled(run, run.copy, whereabouts(config.to, config.stateDir), unsettled);
      const code = run.exitCode === 4 ? 'ROLLBACK_FAILED' : 'LAST_RUN_DIED';
      const until = `said until a restore or guard of it has gone well`;
      problems.push(critical(code, `${command} of ${startedAt}: ${error?.message ?? ''}: ${error?.hint ?? ''} (${until})`));
    }
    for (const run of dead) problems.push(critical('LAST_RUN_DIED', killedInWords(run, whereabouts(config.to, config.stateDir))));
    if (lastTried?.error?.code === 'INTERRUPTED' && lastTried.exitCode === null)
      problems.push(critical('LAST_RUN_DIED', killedInWords(lastTried, whereabouts(config.to, config.stateDir))));
    else if (lastTried?.error)
      problems.push(warning('LAST_RUN_FAILED', `the run of ${lastTried.startedAt} ended ${lastTried.status}: ${lastTried.error.code}`));
    // What looks at more than one night is said until a later night does not find it any more.
    // How much room there is was looked at just now.
    for (const w of lastNight?.warnings ?? []) if (RULES.has(w.code) && w.code !== 'SPACE_LOW') problems.push(w);
    return { lastRun, lastTried };
  } catch (error) {
    problems.push(historyWarning(config.stateDir, 'read', error));
    return NO_RUNS;
  }
}

/** After telling, so that what was delivered is not counted as waiting. */
function measure(config: Config, name: string | null, problems: readonly Warning[], now: Date): Warning | null {
  let history: History | null = null;
  try {
    history = History.openToRead(config.stateDir, config.to);
  } catch {
    // Said already, and without it the file tells of the copies alone.
  }
  try {
    return writeMetrics(config, name, { record: null, problems, history }, now);
  } finally {
    history?.close();
  }
}

function sayWaiting(config: Config, name: string | null, problems: Warning[]): void {
  const waiting = countWaiting(config, name);
  if (waiting.total > 0) problems.push(warning('UNDELIVERED', `${plural(waiting.total, 'message')} could not be delivered yet (${waiting.words})`));
}

/** How many messages wait, and in words where: `mail 2, slack 1`. */
function countWaiting(config: Config, name: string | null): { total: number; words: string } {
  try {
    const waiting = pending(outboxPath(config.stateDir), name);
    const each = CHANNELS.map((channel) => ({ channel, n: waiting.filter((letter) => letter.channel === channel).length }));
    // Nobody tries these any more: they go when they are old.
    const lost = (channel: Channel): string => (config.telling[channel] ? '' : ', which is not set any more');
    const words = each.filter(({ n }) => n > 0).map(({ channel, n }) => `${channel} ${n}${lost(channel)}`);
    return { total: waiting.length, words: words.join(', ') };
  } catch {
    return { total: 0, words: '' };
  }
}

/** Tells what nobody was told yet, once; sends what waits. */
async function notify(ctx: Context, config: Config, name: string | null, newestGood: Copy | null, problems: readonly Warning[]): Promise<Failure | null> {
  let history: History | null = null;
  try {
    const target = inspectTarget(config.to, config.stateDir, ctx.identity, ctx.again);
    if (!isFailure(target) && target.exists && !target.network) makeDirectories(config.stateDir, () => undefined);
    // What another user's runs need must not be made by us: they could not write it any more.
    if (lstatOrNull(config.stateDir)?.uid === ctx.identity.uid) history = History.openToWrite(config.stateDir, config.to);
  } catch {
    // Without a history nobody can know who was told: then telling once too often is right.
  }
  try {
    const news = untoldProblems(history, config, name, newestGood, problems, ctx.clock.now().getTime());
    const message = news.problems.length > 0 ? composeStatus(name, news.problems, messageFacts(ctx, { ...config, name }, [], 'nothing')) : null;
    const letters = message
      ? lettersToAll(
          config.telling,
          message,
          news.problems.some((p) => p.severity === 'critical'),
        )
      : [];
    const box = { stateDir: history ? config.stateDir : null, name };
    const { failure, heard, kept } = await tell(ctx, config.telling, box, letters, (w) => ctx.output.warning(w), ctx.signal);
    try {
      // What waits in the outbox is as good as told.
      if (message && letters.length > 0 && (kept || heard.has(message.id))) for (const key of news.keys) history?.noteTold(key, ctx.clock.now());
      if (history) await tellOfStuck(ctx, config, name, history);
    } catch (error) {
      // It has arrived all the same.
      ctx.output.warning(historyWarning(config.stateDir, 'written', error));
    }
    return failure;
  } catch (error) {
    return { code: 'NOTIFY_FAILED', reason: errnoWords(error), kept: false };
  } finally {
    history?.close();
  }
}

/** So long a message may wait before the other channels are told: a server may be away for a moment. */
const STUCK_MS = 3_600_000;

/** A channel that delivers nothing cannot say so itself: the others do, once. */
async function tellOfStuck(ctx: Context, config: Config, name: string | null, history: History): Promise<void> {
  const now = ctx.clock.now();
  const stuck = pending(outboxPath(config.stateDir), name).filter(
    ({ channel, message }) => config.telling[channel] !== null && now.getTime() - Date.parse(message.createdAt) > STUCK_MS,
  );
  const [oldest] = stuck;
  const mute = new Set(stuck.map((letter) => letter.channel));
  const others = onlyOn(config.telling, new Set(CHANNELS.filter((channel) => !mute.has(channel))));
  if (!oldest || !hasChannel(others) || history.wasTold(`stuck ${oldest.message.id}`)) return;
  const problem = warning(
    'UNDELIVERED',
    `${plural(stuck.length, 'message')} of ${[...mute].join(' and ')} cannot be delivered, since ${oldest.message.createdAt}`,
  );
  const message = composeStatus(name, [problem], messageFacts(ctx, { ...config, name }, [], 'nothing'));
  const letters = lettersToAll(others, message, true);
  const { heard, kept } = await tell(ctx, others, { stateDir: config.stateDir, name }, letters, (w) => ctx.output.warning(w), ctx.signal);
  if (kept || heard.has(message.id)) history.noteTold(`stuck ${oldest.message.id}`, now);
}

/** It may have been lost on its way, or forgotten. */
const STILL_STALE_MS = 7 * 86_400_000;

/**
 * A stale copy is known when its age was told, for a week, or when a failed run was, for `max-age`: where nothing runs any more,
 * nobody hears of the next failure. A killed run is known when its own end was told.
 */
function untoldProblems(
  history: History | null,
  { to, stateDir, maxAgeMs }: Pick<Config, 'to' | 'stateDir' | 'maxAgeMs'>,
  name: string | null,
  newestGood: Copy | null,
  problems: readonly Warning[],
  now: number,
): { problems: Warning[]; keys: string[] } {
  const told: Warning[] = [];
  const keys: string[] = [];
  const stale = problems.find((p) => p.code === 'COPY_STALE' || p.code === 'COPY_NOT_FOUND');
  const staleKey = `stale ${name ?? ''} ${newestGood?.file ?? 'none'}`;
  const toldAt = history?.toldAt(staleKey) ?? null;
  const isKnown = (toldAt !== null && isWithin(toldAt, STILL_STALE_MS, now)) || failureWasTold(history, name, newestGood, maxAgeMs, now);
  if (stale && !isKnown) {
    told.push(stale);
    keys.push(staleKey);
  }
  const dead = name === null ? [] : (history?.unfinished(name, 'not held') ?? []).map(({ record }) => record);
  for (const run of dead) {
    if (history?.wasTold(`run ${run.runId}`)) continue;
    told.push(critical('LAST_RUN_DIED', killedInWords(run, whereabouts(to, stateDir))));
    keys.push(`run ${run.runId}`);
  }
  return { problems: told, keys };
}

/** A killed backup has left nothing that matters; what a killed restore or guard left is for a person to look at. Both say how to go on. */
function killedInWords(run: RunRecord, at: Whereabouts): string {
  const { error } = asKilled(run, null, at);
  return run.command === 'restore' || run.command === 'guard'
    ? `the ${run.command} of ${run.startedAt}: ${error?.message ?? ''}: ${error?.hint ?? ''}`
    : `the ${run.command} of ${run.startedAt} was killed before it could finish: ${error?.hint ?? ''}`;
}

/** What a clock that ran ahead has written down would else be known until that time comes. */
const isWithin = (at: number, spanMs: number, now: number): boolean => now - at < spanMs && !isFuture(at, now);

/** Of a run that began in the last `spanMs` milliseconds. */
function failureWasTold(history: History | null, name: string | null, newestGood: Copy | null, spanMs: number, now: number): boolean {
  if (!history) return false;
  for (const run of history.since(name)) {
    // Not as texts: one has milliseconds, the other has none.
    const began = Date.parse(run.startedAt);
    if (isFuture(began, now)) continue;
    if (now - began > spanMs || (newestGood && began < Date.parse(newestGood.createdAt))) return false;
    if (run.command === 'run' && history.wasTold(`run ${run.runId}`)) return true;
  }
  return false;
}
