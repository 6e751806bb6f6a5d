/**
 * EIO, EDQUOT and EROFS put into every kind of file call that a run makes on its files, one at a time: never a false
 * exit 0, never a bad copy, never "a bug of ours", and the next run heals what a failed clean-up left.
 */
import { cpSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { dbbackup, makeDatabase, tempDirectory, wrap } from '../support/cli.js';
import { counted, type Failure, mustEndCleanly, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { contentOf, must, mustBeWhole, mustHoldNoBadCopy, processesAt, recordsOf, sourceState } from './proof.js';
import { type Calibration, type Call, calibrate, readTrace } from './trace.js';

const SOURCE_BYTES = 600_000;
const LANES = 2;

interface Stage {
  readonly home: string;
  readonly source: string;
  readonly to: string;
  readonly args: readonly string[];
  readonly content: string;
  /** Source and backups as each round finds them. */
  readonly template: string;
}

/** A source and one older copy, so that there is something to prune. */
async function setStage(): Promise<Stage> {
  const home = join(tempDirectory('inject'), 'home');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  mkdirSync(home);
  makeDatabase(source, { bytes: SOURCE_BYTES });
  const args = ['run', source, '--to', to, '--keep-last', '1', '--json'];
  const first = await dbbackup(args);
  must(first.code === 0, () => `a run without any fault failed: ${told(first)}`);
  const template = join(tempDirectory('inject-template'), 'home');
  cpSync(home, template, { recursive: true });
  return { home, source, to, args, content: contentOf(source), template };
}

/** Always at the same paths, since a copy knows where its source was. */
function lay({ home, template }: Stage): void {
  rmSync(home, { recursive: true, force: true });
  cpSync(template, home, { recursive: true });
}

async function play(request: Request): Promise<Failure[]> {
  const idle = await Promise.all(Array.from({ length: LANES }, setStage));
  const [{ home, args } = { home: '', args: [] }] = idle;
  const calibration = await calibrate(home, join(tempDirectory('trace'), 'log'), args);
  const seen = { harmless: 0, failed: 0, incomplete: 0, elsewhere: 0, missed: 0 };
  const failures = await rounds(
    'inject',
    request,
    async (round) => {
      const stage = idle.pop();
      if (!stage) throw new Error('more lanes than stages');
      lay(stage);
      try {
        await one(stage, calibration, round, seen);
      } catch (error) {
        cpSync(stage.home, join(round.directory, 'home'), { recursive: true });
        throw error;
      } finally {
        idle.push(stage);
      }
    },
    LANES,
  );
  request.note?.(`${calibration.size} calls of ${calibration.kinds.length} kinds to choose from; ${counted(seen)}`);
  return failures;
}

type Seen = Record<'harmless' | 'failed' | 'incomplete' | 'elsewhere' | 'missed', number>;

/** Data, manifest and directory must be synced for exit 0; state (history, lock, log, outbox) has rules of its own. */
const isSyncOfACopy = (c: Call, to: string): boolean =>
  (c.call === 'fsync' || c.call === 'fdatasync') && c.line.includes(to) && !/\/\.dbbackup(\/(?!tmp)|>)/.test(c.line);

async function one({ home, source, to, args, content }: Stage, calibration: Calibration, round: Round, seen: Seen): Promise<void> {
  const { random, directory, say } = round;
  const before = sourceState(source);
  const old = [...mustBeWhole(to, 'before').pairs.keys()];
  const error = random.pick(['EIO', 'EIO', 'EDQUOT', 'EROFS'] as const);
  const { call, when } = calibration.inTurn(random, round.index);
  say(`${error} in ${call} ${when}`);
  const traces = join(directory, 'trace');
  mkdirSync(traces);
  const run = await dbbackup(args, { through: wrap.fault(join(traces, 'log'), [{ calls: call, error, when }]) });
  say(told(run));
  const hit = readTrace(join(traces, 'log')).filter((c) => c.injected);
  // A fault in Node's own start (its libraries, our program's files) says nothing about how we treat the operator's files.
  const elsewhere = hit.some((c) => !c.line.includes(home));
  say(hit.map((c) => c.line.slice(0, 200)).join(' & ') || 'the call was not reached');
  if (hit.length === 0) seen.missed++;
  else if (elsewhere) seen.elsewhere++;
  if (!elsewhere) mustEndCleanly(run);
  must(processesAt(home).length === 0, () => `survivors: ${processesAt(home).join('; ')}`);
  must(sourceState(source) === before, 'the source or its -wal was written to');

  const found = mustHoldNoBadCopy(to, 'after the fault');
  const fresh = [...found.pairs].filter(([file]) => !old.includes(file));
  if (run.code === 0 || run.code === 3) {
    const file = run.json.copy?.file ?? '';
    must(found.pairs.get(file)?.status === 'good', () => `exit ${run.code}, and ${file} is not there as a good copy`);
    must(contentOf(join(to, file)) === content, () => `${file} does not hold what the source holds`);
    must(run.code === 3 || hit.every((c) => !isSyncOfACopy(c, to)), 'exit 0 although something of the copy could not be synced');
    if (hit.length > 0 && !elsewhere) seen[run.code === 0 ? 'harmless' : 'incomplete']++;
  } else if (!elsewhere) {
    must(fresh.length === 0, () => `exit ${run.code}, and there is a new copy: ${fresh.map(([f]) => f).join(', ')}`);
    must(
      old.every((f) => found.pairs.has(f)),
      'a run without a new copy removed an old one',
    );
    seen.failed++;
  }

  const next = await dbbackup(args);
  must(next.code === 0, () => `the next run did not succeed: ${told(next)}`);
  const healed = mustBeWhole(to, 'after the next run');
  must(healed.pairs.has(next.json.copy?.file ?? ''), 'the next copy is not there');
  const running = recordsOf(to).filter((r) => r.status === 'running');
  must(running.length === 0, () => `the history has a running run: ${running.map((r) => r.runId).join(', ')}`);
}

export const inject: Scenario = {
  name: 'inject',
  promise: 'EIO, EDQUOT or EROFS in any file call never gives a false exit 0, a bad copy or a crash',
  ci: 30,
  soak: 3000,
  needs: ['strace'],
  play,
};
