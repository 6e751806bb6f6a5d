/**
 * A disk that fills up, at every step: on a tmpfs and an ext4 whose free space is set so that now the preflight, now the
 * snapshot, now the manifest, now the history is what no longer fits; by ENOSPC put into single calls; and by a limit on
 * the size of files.
 */
import { cpSync, mkdirSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { dbbackup, makeDatabase, type Result, start, tempDirectory, wrap } from '../support/cli.js';
import { counted, type Failure, mustEndCleanly, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { mountExt4, mountTmpfs } from './mounts.js';
import { contentOf, listing, must, mustBeWhole, mustHaveNoTemp, mustHoldNoBadCopy, processesAt, recordsOf, sourceState } from './proof.js';
import { type Calibration, calibrate, readTrace } from './trace.js';

const SOURCE_BYTES = 3_000_000;
const ROOMY = 48 << 20;
/** Calls that take space. */
const WRITING = ['openat', 'mkdir', 'link', 'linkat', 'rename', 'pwrite64', 'ftruncate', 'fallocate', 'fsync', 'fdatasync'];

interface Disk {
  readonly to: string;
  readonly args: readonly string[];
  readonly calibration: Calibration;
  /** How long a run takes, in milliseconds. */
  readonly usual: number;
  /** Leaves so many bytes free (0: none). */
  readonly leave: (bytes: number) => void;
  readonly relax: () => void;
}

const argsFor = (source: string, to: string): string[] => ['run', source, '--to', to, '--keep-last', '3', '--json'];

/** Opening takes space only where it makes a file; whether that is there already, a line does not say. */
const takesSpace = ({ call, line }: { readonly call: string; readonly line: string }): boolean => call !== 'openat' || line.includes('O_CREAT');

async function prepare(source: string, point: string): Promise<Disk> {
  const to = join(point, 'backups');
  const args = argsFor(source, to);
  let usual = 0;
  for (let i = 0; i < 2; i++) {
    const run = await dbbackup(args);
    must(run.code === 0, () => `a run with room enough failed: ${told(run)}`);
    usual = run.durationMs;
  }
  const all = await calibrate(point, join(tempDirectory('trace'), 'log'), args);
  const filler = join(point, 'filler');
  return {
    to,
    args,
    usual,
    calibration: all.only(takesSpace),
    leave: (bytes) => {
      const s = statfsSync(point);
      const fill = s.bavail * s.bsize - bytes;
      try {
        if (fill > 0) writeFileSync(filler, Buffer.alloc(fill, 1));
      } catch {
        // The run was faster: the disk is full, as it was to be.
      }
    },
    relax: () => rmSync(filler, { force: true }),
  };
}

async function play(request: Request): Promise<Failure[]> {
  const source = join(tempDirectory('enospc'), 'app.db');
  makeDatabase(source, { bytes: SOURCE_BYTES });
  const content = contentOf(source);
  const disks = [await prepare(source, mountTmpfs(ROOMY)), await prepare(source, mountExt4(ROOMY).point)];
  const seen = new Map<string, number>();
  const failures = await rounds('enospc', request, async (round) => {
    const disk = disks[round.index % 2];
    if (!disk) throw new Error('no disk');
    try {
      await one(disk, source, content, round, seen);
    } catch (error) {
      cpSync(disk.to, join(round.directory, 'backups'), { recursive: true });
      rmSync(disk.to, { recursive: true, force: true });
      disk.relax();
      for (let i = 0; i < 2; i++) await dbbackup(disk.args);
      throw error;
    } finally {
      disk.relax();
    }
  });
  request.note?.(counted(seen));
  return failures;
}

async function one(disk: Disk, source: string, content: string, round: Round, seen: Map<string, number>): Promise<void> {
  const { to, args, relax } = disk;
  relax();
  const older = mustBeWhole(to, 'before').pairs;
  const before = listing(to);
  const untouched = sourceState(source);
  const { how, run, elsewhere } = await fillAndRun(disk, round);
  round.say(told(run));
  if (!elsewhere) mustEndCleanly(run);
  const stage = `${how}: ${run.code === 0 ? (run.json.warnings ?? []).map((w) => w.code).join('+') || 'fits' : `${run.json.error?.stage ?? 'before'} ${run.code}`}`;
  seen.set(stage, (seen.get(stage) ?? 0) + 1);
  must(processesAt(to).length === 0, () => `survivors: ${processesAt(to).join('; ')}`);
  must(sourceState(source) === untouched, 'the source or its -wal was written to');
  const found = mustHoldNoBadCopy(to, 'on the full disk');
  // A prune that could not be finished may leave manifests whose data is gone: the next run finishes it.
  const half = [...found.loneData, ...(run.code === 3 ? [] : found.loneManifests)];
  must(half.length === 0, () => `half a copy: ${half.join(', ')}`);
  // The call that failed may have been one of the clean-up: then the next run sweeps.
  if (!elsewhere) mustHaveNoTemp(to, 'on the full disk');
  if (elsewhere && run.code !== 0 && run.code !== 3) {
    must(listing(to) === before, 'no copy, and the directory changed');
  } else if (run.code === 1) {
    must(listing(to) === before, () => `exit 1, and the directory changed from\n${before}\nto\n${listing(to)}`);
    const { code, message } = run.json.error ?? { code: '', message: '' };
    // SQLite says the same of a file-size limit and of a broken disk (traps, 19).
    must(code === 'NO_SPACE' || (code === 'IO_ERROR' && how === 'limit'), () => `a full disk is called ${code}: ${message}`);
  } else {
    const file = run.json.copy?.file ?? '';
    must(found.pairs.get(file)?.status === 'good' && contentOf(join(to, file)) === content, () => `exit ${run.code}, and ${file} is not a good copy`);
    const pruned = (run.json.pruned ?? []).map((p) => p.file);
    const lost = [...older.keys()].filter((f) => !found.pairs.has(f) && !pruned.includes(f));
    must(lost.length === 0, () => `lost without a word: ${lost.join(', ')}`);
  }

  relax();
  const next = await dbbackup(args);
  must(next.code === 0, () => `with room again the next run did not succeed: ${told(next)}`);
  must(mustBeWhole(to, 'after the next run').pairs.has(next.json.copy?.file ?? ''), 'the next copy is not there');
  const running = recordsOf(to).filter((r) => r.status === 'running');
  must(running.length === 0, () => `the history has a running run: ${running.map((r) => r.runId).join(', ')}`);
}

interface Filled {
  readonly how: string;
  readonly run: Result;
  /** The fault hit a file of Node's or of our program, or a call that a full disk cannot fail: how that ends says nothing about one. */
  readonly elsewhere?: boolean;
}

async function fillAndRun({ to, args, calibration, usual, leave }: Disk, { random, directory, say }: Round): Promise<Filled> {
  const how = random.pick(['sweep', 'edge', 'race', 'race', 'call', 'call', 'limit'] as const);
  switch (how) {
    case 'sweep':
    case 'edge': {
      // 'edge': around what the snapshot needs, where it is the small files that no longer fit.
      const free = Math.floor(how === 'sweep' ? random.between(0, SOURCE_BYTES * 1.6) : random.between(SOURCE_BYTES - 30_000, SOURCE_BYTES + 150_000));
      say(`${free} bytes free`);
      leave(free);
      return { how, run: await dbbackup(args) };
    }
    case 'race': {
      // Somebody else fills the disk while the run is at work.
      const delay = random.between(usual * 0.3, usual * 1.02);
      const free = random.chance(0.6) ? 0 : Math.floor(random.between(0, 80_000));
      say(`after ${Math.round(delay)} of ${Math.round(usual)} ms ${free} bytes are free`);
      const running = start(args);
      await new Promise((r) => setTimeout(r, delay));
      leave(free);
      return { how, run: await running.result };
    }
    case 'call': {
      const { call, when } = calibration.pick(random, WRITING);
      say(`ENOSPC in ${call} ${when}`);
      mkdirSync(join(directory, 'trace'));
      const log = join(directory, 'trace/log');
      const there = readdirSync(to, { recursive: true }).map((name) => `"${join(to, String(name))}"`);
      const run = await dbbackup(args, { through: wrap.fault(log, [{ calls: call, error: 'ENOSPC', when }]) });
      const hit = readTrace(log).filter((c) => c.injected);
      say(hit.map((c) => c.line.slice(0, 160)).join(' & '));
      return {
        how,
        run,
        elsewhere: hit.some((c) => !c.line.includes(to) || !takesSpace(c) || (c.call === 'openat' && there.some((path) => c.line.includes(path)))),
      };
    }
    case 'limit': {
      // In blocks of 512 bytes: from too small for a lock to too small for the copy.
      const blocks = Math.floor(random.between(64, (SOURCE_BYTES * 1.2) / 512));
      say(`no file larger than ${blocks * 512} bytes`);
      return { how, run: await dbbackup(args, { through: wrap.limit('-f', blocks) }) };
    }
  }
}

export const enospc: Scenario = {
  name: 'enospc',
  promise: 'a disk that fills up at any step leaves no partial file, harms no older copy, and is named NO_SPACE',
  ci: 10,
  soak: 1000,
  needs: ['root', 'loop', 'mount', 'strace'],
  play,
};
