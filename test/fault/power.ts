/** Power cuts on a loop-mounted ext4: after exit 0 the copy is there, whole; otherwise nothing bad is. */
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { dbbackup, makeDatabase, type Result, removeDirectory, tempDirectory, until } from '../support/cli.js';
import { cutAfter, cutAtCall, mustLeaveNobody } from './ends.js';
import { counted, type Failure, mustEndCleanly, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { type Ext4, mountExt4, PowerSwitch } from './mounts.js';
import { contentOf, must, mustBeWhole, mustHoldNoBadCopy, newestOf, recordsOf } from './proof.js';
import { type Calibration, calibrate } from './trace.js';

const SOURCE_BYTES = 4_000_000;
/** Rounds on one file system before a new one is made. */
const AGE = 40;
const DECISIVE = ['link', 'linkat', 'rename', 'unlink', 'unlinkat', 'rmdir', 'fsync', 'fdatasync', 'mkdir', 'ftruncate'];

interface Bench {
  readonly source: string;
  readonly content: string;
  readonly disk: Ext4;
  readonly to: string;
  readonly args: readonly string[];
  readonly usual: number;
  readonly calibration: Calibration;
}

async function setUp(home: string): Promise<Bench> {
  const source = join(home, 'app.db');
  const disk = mountExt4(64 << 20);
  const to = join(disk.point, 'backups');
  const args = ['run', source, '--to', to, '--keep-last', '3', '--json'];
  let usual = 0;
  // Three, so that the next one has something to prune.
  for (let i = 0; i < 3; i++) {
    const run = await dbbackup(args);
    must(run.code === 0, () => `a run without any fault failed: ${told(run)}`);
    usual = run.durationMs;
  }
  const calibration = await calibrate(disk.point, join(tempDirectory('trace'), 'log'), args);
  return { source, content: contentOf(source), disk, to, args, usual, calibration };
}

async function play(request: Request): Promise<Failure[]> {
  const home = tempDirectory('power');
  makeDatabase(join(home, 'app.db'), { bytes: SOURCE_BYTES });
  const power = new PowerSwitch();
  await until('the power switch', () => power.ready());
  let bench: Bench | null = null;
  let age = 0;
  const seen = { afterExit: 0, atRandom: 0, atCall: 0, exit0: 0, failed: 0 };
  const failures = await rounds('power', request, async (round) => {
    if (bench === null || age >= AGE) {
      bench?.disk.unmount();
      bench = await setUp(home);
      age = 0;
    }
    age++;
    try {
      await one(bench, power, round, seen);
    } catch (error) {
      // What is on the disk is the evidence.
      keepDisk(bench.disk.point, join(round.directory, 'disk'));
      age = AGE;
      throw error;
    }
  });
  power.off();
  removeDirectory(home);
  request.note?.(counted(seen));
  return failures;
}

function keepDisk(from: string, to: string): void {
  try {
    cpSync(from, to, { recursive: true });
  } catch {
    // The file system is still cut off: nothing can be read from it.
  }
}

type Seen = Record<'afterExit' | 'atRandom' | 'atCall' | 'exit0' | 'failed', number>;

async function runAndCut(bench: Bench, power: PowerSwitch, round: Round, seen: Seen): Promise<Result> {
  const { random } = round;
  const { disk, args } = bench;
  const how = random.pick(['afterExit', 'atRandom', 'atRandom', 'atCall'] as const);
  seen[how]++;
  if (how === 'afterExit') {
    round.say('cut right after the end');
    const result = await dbbackup(args);
    await power.cut(disk.point);
    must(result.code === 0, () => `a run without any fault failed: ${told(result)}`);
    return result;
  }
  if (how === 'atRandom') {
    const delay = random.between(0, bench.usual * 1.02);
    round.say(`cut after ${Math.round(delay)} of ${Math.round(bench.usual)} ms`);
    return await cutAfter(args, delay, power, disk.point);
  }
  const call = bench.calibration.pick(random, DECISIVE);
  round.say(`cut at ${call.call} ${call.when}`);
  return await cutAtCall(args, call, power, disk.point, round);
}

async function one(bench: Bench, power: PowerSwitch, round: Round, seen: Seen): Promise<void> {
  const { to, disk, args, content } = bench;
  const newest = newestOf(mustBeWhole(to, 'before'));
  const result = await runAndCut(bench, power, round, seen);
  round.say(told(result));
  mustEndCleanly(result);
  if (result.code === 0) seen.exit0++;
  else seen.failed++;
  await mustLeaveNobody(disk.point, 5000);
  disk.unmount();
  disk.mount();

  const found = mustHoldNoBadCopy(to, 'after the power cut');
  if (result.code === 0 || result.code === 3) {
    const file = result.json.copy?.file ?? '';
    must(found.pairs.get(file)?.status === 'good', () => `exit ${result.code}, and ${file} is gone`);
    must(contentOf(join(to, file)) === content, () => `${file} does not hold what the source holds`);
  }
  must(found.pairs.has(newest), () => `${newest}, the newest copy before the run, is gone`);

  const next = await dbbackup(args);
  must(next.code === 0, () => `the next run did not succeed: ${told(next)}`);
  const healed = mustBeWhole(to, 'after the next run');
  must(healed.pairs.has(next.json.copy?.file ?? ''), 'the next copy is not there');
  const running = recordsOf(to).filter((r) => r.status === 'running');
  must(running.length === 0, () => `the history has a running run: ${running.map((r) => r.runId).join(', ')}`);
}

export const power: Scenario = {
  name: 'power',
  promise: 'after exit 0 a power cut cannot take the copy away, and at no moment does one leave a bad copy',
  ci: 10,
  soak: 1000,
  needs: ['root', 'loop', 'mount', 'strace', 'python3'],
  play,
};
