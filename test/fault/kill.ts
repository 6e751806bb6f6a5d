/** kill -9 at any moment: never a bad copy at a final name, nobody survives, the next run heals. */
import { cpSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { cannot, dbbackup, makeDatabase, removeDirectory, start, tempDirectory, wrap } from '../support/cli.js';
import { makeKey } from '../support/packed.js';
import { kill9, mustLeaveNobody } from './ends.js';
import { counted, type Failure, mustEndCleanly, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { contentOf, inPlain, must, mustBeWhole, mustHoldNoBadCopy, openSealedWith, recordsOf, sourceState } from './proof.js';
import { type Calibration, calibrate } from './trace.js';

/** One that a run does with two children, just so, and one that it does with a single one. */
const SOURCES = [17_500_000, 1_000_000] as const;
/** Calls of which a run makes few and which decide: publication, pruning, cleaning up. */
const DECISIVE = ['link', 'linkat', 'rename', 'unlink', 'unlinkat', 'rmdir', 'fsync', 'fdatasync', 'mkdir', 'openat', 'ftruncate', 'pwrite64', 'getdents64'];

interface Stage {
  readonly home: string;
  readonly source: string;
  readonly to: string;
  readonly args: readonly string[];
  readonly content: string;
  /** How long a run takes, milliseconds. */
  readonly usual: number;
  readonly calibration: Calibration;
}

async function setStage(bytes: number): Promise<Stage> {
  const home = tempDirectory('kill');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { bytes });
  const args = ['run', source, '--to', to, '--keep-last', '2', '--json'];
  let usual = 0;
  // Two, so that the next one has something to prune.
  for (let i = 0; i < 2; i++) {
    const run = await dbbackup(args);
    must(run.code === 0, () => `a run without any fault failed: ${told(run)}`);
    usual = run.durationMs;
  }
  const calibration = await calibrate(home, join(tempDirectory('trace'), 'log'), args);
  return { home, source, to, args, content: contentOf(source), usual, calibration };
}

/** The run ids that unfinished work is kept under: `tmp/NAME-RUNID`. */
const unfinished = (to: string): { readonly runId: string; readonly isEmpty: boolean }[] => {
  const temp = join(to, '.dbbackup/tmp');
  if (!existsSync(temp)) return [];
  return readdirSync(temp).map((n) => ({ runId: n.replace(/^app-/, ''), isEmpty: readdirSync(join(temp, n)).length === 0 }));
};

async function play(request: Request): Promise<Failure[]> {
  const packings = await waysToPack();
  const stages = await Promise.all(SOURCES.map(setStage));
  const seen = { parent: 0, child: 0, both: 0, call: 0, after: 0, published: 0, interrupted: 0 };
  const failures = await rounds('kill', request, async (round) => {
    // The large one costs four times as much.
    const which = round.index % 8 === 0 ? 0 : 1;
    const stage = stages[which];
    if (!stage) throw new Error('no stage');
    try {
      await one(stage, round, packings, seen);
    } catch (error) {
      cpSync(stage.home, join(round.directory, 'home'), { recursive: true });
      removeDirectory(stage.home);
      stages[which] = await setStage(SOURCES[which] ?? 0);
      throw error;
    }
  });
  for (const { home } of stages) removeDirectory(home);
  request.note?.(`a run takes ${stages.map(({ usual }) => Math.round(usual)).join(' or ')} ms; killed: ${counted(seen)}`);
  return failures;
}

type Seen = Record<'parent' | 'child' | 'both' | 'call' | 'after' | 'published' | 'interrupted', number>;

/** Flags: mostly none; packed in some rounds, where the programs for it are there. */
async function waysToPack(): Promise<readonly (readonly string[])[]> {
  if (cannot('age', 'zstd', 'gunzip')) return [[]];
  const key = await makeKey();
  openSealedWith(key);
  const seal = ['--encrypt-to', key.recipient];
  return [[], [], [], ['--compress', 'gzip'], ['--compress', 'zstd'], seal, ['--compress', 'zstd', ...seal]];
}

async function one(
  { home, source, to, args: plain, content, usual, calibration }: Stage,
  round: Round,
  packings: readonly (readonly string[])[],
  seen: Seen,
): Promise<void> {
  const { random } = round;
  const packing = random.pick(packings);
  if (packing.length > 0) round.say(packing.join(' '));
  const args = [...plain, ...packing];
  const before = sourceState(source);
  const known = new Set(mustBeWhole(to, 'before').pairs.keys());
  const how = random.pick(['parent', 'parent', 'child', 'both', 'call', 'call'] as const);
  let parentDied: boolean;
  if (how === 'call') {
    const { call, when } = calibration.pick(random, DECISIVE);
    round.say(`kill -9 at ${call} ${when}`);
    mkdirSync(join(round.directory, 'trace'));
    const run = await dbbackup(args, { through: wrap.fault(join(round.directory, 'trace/log'), [{ calls: call, signal: 'KILL', when }]) });
    parentDied = run.signal === 'SIGKILL' || run.code === 137;
    if (!parentDied) mustEndCleanly(run);
    if (run.code === 0) seen.after++;
  } else {
    // Packing takes its own time; gzip most of all.
    const delay = random.between(0, usual * (packing.length === 0 ? 1.02 : 3));
    const run = start(args);
    await new Promise((r) => setTimeout(r, delay));
    const killed = kill9(run, how, random);
    round.say(`kill -9 of ${how} after ${Math.round(delay)} of ${Math.round(usual)} ms (${killed})`);
    const result = await run.result;
    parentDied = result.signal === 'SIGKILL';
    if (!parentDied) {
      mustEndCleanly(result);
      if (result.code === 0) seen.after++;
      else round.say(told(result));
    }
  }
  seen[how]++;
  await mustLeaveNobody(home);

  const found = mustHoldNoBadCopy(to, 'after the kill');
  const left = parentDied ? unfinished(to) : [];
  if ([...found.pairs.keys()].some((f) => !known.has(f))) seen.published++;
  must(sourceState(source) === before, 'the source or its -wal was written to');
  const app = new Database(source, { timeout: 100 });
  app.exec("INSERT INTO beat (at) VALUES ('after the kill')");
  app.close();

  const next = await dbbackup(args);
  must(next.code === 0, () => `the next run did not succeed: ${told(next)}`);
  const healed = mustBeWhole(to, 'after the next run');
  const file = next.json.copy?.file ?? '';
  must(healed.pairs.get(file)?.status === 'good', () => `${file} is not there as a good copy`);
  must(inPlain(join(to, file), contentOf) === content, () => `${file} does not hold what the source holds`);

  const records = recordsOf(to);
  must(records[0]?.runId === next.json.runId, 'the next run is not the newest in the history');
  const running = records.filter((r) => r.status === 'running');
  must(running.length === 0, () => `shown as running: ${running.map((r) => r.runId).join(', ')}`);
  for (const { runId, isEmpty } of left) {
    const record = records.find((r) => r.runId === runId);
    // Killed before its first record, it had done nothing.
    if (!record && isEmpty) continue;
    // Killed when all that was left was to take its directory away, it had come to its end.
    const hasEnded = record?.status === 'ok' && healed.pairs.has(record.copy?.file ?? '');
    must(record?.status === 'interrupted' || hasEnded, () => `the killed run ${runId} is ${record?.status ?? 'not in the history'}`);
    seen.interrupted++;
  }
}

export const kill: Scenario = {
  name: 'kill',
  promise: 'kill -9 of parent, child or both never leaves a bad copy at a final name, and the next run heals',
  ci: 40,
  soak: 2000,
  needs: ['strace'],
  play,
};
