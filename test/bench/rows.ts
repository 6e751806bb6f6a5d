/** The rows of the table: what each measures, against which bar and goal. */
import { execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, readSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { generateX25519Identity, identityToRecipient } from 'age-encryption';
import Database from 'better-sqlite3';
import { rfc3339, stampOf } from '../../src/catalog.js';
import { startApp } from '../support/app.js';
import { plantCopy } from '../support/manifest.js';
import { alternate, type Command, median, quantile, time } from './measure.js';

/** TEST_EXECUTABLE measures an installed tarball, or another version, instead of this tree's build. */
export const BIN = process.env['TEST_EXECUTABLE'] ?? fileURLToPath(new URL('../../bin/dbbackup.js', import.meta.url));
/** Not whichever sqlite3 comes first in PATH: the recipe is defined with the distribution's. */
export const SQLITE3 = '/usr/bin/sqlite3';
const SMALL = 10e6;
const LISTED_COPIES = 10_000;
const LISTED_TABLES = 50;
const BEAT_MS = 5;
const BEATS = 5_000;

export interface Bench {
  readonly directory: string;
  readonly size: number;
  readonly rounds: number;
  /** A source database of this size; made at first use. */
  readonly source: (size: number) => string;
}

/** One line of the table. `value` is what bar and goal are about; null bars are shown and not judged. */
export interface Figure {
  readonly what: string;
  readonly ours: string;
  readonly beside: string;
  readonly value: number;
  readonly unit: 'ratio' | 'seconds' | 'MB' | '%' | 'count';
  readonly bar: number | null;
  readonly goal: number | null;
  readonly samples: Readonly<Record<string, readonly number[]>>;
}

interface Row {
  readonly id: string;
  readonly needsSqlite3?: true;
  readonly measure: (bench: Bench) => Promise<Figure[]>;
}

export const ROWS: readonly Row[] = [
  { id: 'run', needsSqlite3: true, measure: (b) => besideRecipe(b, b.size, b.size >= 5e9 ? { bar: 0.8, goal: 0.65 } : { bar: 0.5, goal: 0.42 }) },
  { id: 'zstd', needsSqlite3: true, measure: besideGzip },
  { id: 'run-10mb', needsSqlite3: true, measure: (b) => besideRecipe(b, SMALL, { bar: null, goal: null }) },
  { id: 'start', measure: besideNode },
  { id: 'memory', measure: memory },
  { id: 'list', measure: (b) => listing(b, 'list', ['list'], (said) => said.copies?.length) },
  { id: 'status', measure: (b) => listing(b, 'status', ['status'], (said) => (said.newestGood ? LISTED_COPIES : 0)) },
  { id: 'prune', measure: (b) => listing(b, 'prune --dry-run', ['prune', '--dry-run'], (said) => (said.kept?.length ?? 0) + (said.pruned?.length ?? 0)) },
  { id: 'restore', measure: besideCp },
  { id: 'app', measure: beats },
];

/** A run as cron starts it; each leaves the directory as it found it, history and log apart. */
const backup = (source: string, to: string, more: readonly string[] = []): Command => [BIN, 'run', source, '--to', to, '--quiet', ...more];

/** Takes the copy of the last run away, and complains when there is not exactly one: a run that did nothing is fast. */
function removeCopy(to: string): void {
  const files = readdirSync(to).filter((file) => /\.(db(\.zst)?(\.age)?|json)$/.test(file));
  if (files.length !== 2) throw new Error(`a run left ${files.join(', ') || 'nothing'} in ${to}`);
  for (const file of files) rmSync(join(to, file));
}

const asIs = (words: Command): Command => words;

async function oneRun(bench: Bench, source: string, to: string, more: readonly string[] = [], as: (words: Command) => Command = asIs): Promise<number> {
  await settle(bench);
  const { ms } = await time(as(backup(source, to, more)), bench.directory);
  removeCopy(to);
  return ms;
}

async function besideRecipe(bench: Bench, size: number, limits: Pick<Figure, 'bar' | 'goal'>): Promise<Figure[]> {
  const source = bench.source(size);
  const to = join(bench.directory, `to-${size}`);
  const recipe = `${SQLITE3} '${source}' "VACUUM INTO 'o.db'" && ${SQLITE3} o.db "PRAGMA integrity_check" && sync o.db`;
  readThrough(source);
  const [ours, theirs] = await alternate(
    bench.rounds,
    () => oneRun(bench, source, to),
    async () => {
      await settle(bench);
      const { ms } = await time(['/bin/sh', '-c', recipe], bench.directory);
      rmSync(join(bench.directory, 'o.db'));
      return ms;
    },
  );
  return [{ what: `run, ${words(size)}, beside the recipe`, ...ratio(ours, theirs, 'recipe'), ...limits }];
}

/** A packed copy beside the recipe and gzip; sealed as well; and how small it is beside what the program zstd makes of the same bytes. */
async function besideGzip(bench: Bench): Promise<Figure[]> {
  const source = bench.source(bench.size);
  const to = join(bench.directory, `to-${bench.size}`);
  const recipe = `${SQLITE3} '${source}' "VACUUM INTO 'o.db'" && ${SQLITE3} o.db "PRAGMA integrity_check" && sync o.db && gzip o.db`;
  const recipient = await identityToRecipient(await generateX25519Identity());
  const packed = ['--compress', 'zstd'];
  readThrough(source);
  const sealed: number[] = [];
  const [ours, theirs] = await alternate(
    bench.rounds,
    async () => {
      sealed.push(await oneRun(bench, source, to, [...packed, '--encrypt-to', recipient]));
      return await oneRun(bench, source, to, packed);
    },
    async () => {
      await settle(bench);
      const { ms } = await time(['/bin/sh', '-c', recipe], bench.directory);
      rmSync(join(bench.directory, 'o.db.gz'));
      return ms;
    },
  );
  await time(backup(source, to, packed), bench.directory);
  const [copy = ''] = readdirSync(to).filter((file) => file.endsWith('.zst'));
  const size = statSync(join(to, copy)).size;
  const beside = Number(execFileSync('/bin/sh', ['-c', `zstd -d -q -c '${join(to, copy)}' | zstd -3 -q -c | wc -c`], { encoding: 'utf8' }));
  removeCopy(to);
  const what = `run, ${words(bench.size)}, compress zstd`;
  const mb = (n: number): string => `${(n / 1e6).toFixed(1)} MB`;
  return [
    { what: `${what}, beside the recipe and gzip`, ...ratio(ours, theirs, 'recipe + gzip'), bar: 0.2, goal: 0.12 },
    { what: `${what} and age, beside without age`, ...ratio(sealed, ours, 'without'), bar: 1.5, goal: null },
    { what: `${what}, size beside zstd -3`, ours: mb(size), beside: mb(beside), value: size / beside, unit: 'ratio', bar: 1.05, goal: null, samples: {} },
  ];
}

async function besideNode(bench: Bench): Promise<Figure[]> {
  const source = bench.source(SMALL);
  const to = join(bench.directory, `to-${SMALL}`);
  readThrough(source);
  const measured = (as: (words: Command) => Command): Promise<[number[], number[]]> =>
    alternate(
      bench.rounds,
      () => oneRun(bench, source, to, [], as),
      async () => (await time(as(['node', '-e', '0']), bench.directory)).ms,
    );
  const asItIs = ratio(...(await measured(asIs)), 'node -e 0');
  // Where it is set, Node 20 reads all certificates at every start, and that is two thirds of `node -e 0`. Under cron it is not.
  const asInCron = ratio(...(await measured((words) => ['env', '-u', 'NODE_EXTRA_CA_CERTS', ...words])), 'node -e 0');
  return [
    { what: 'run, 10 MB, beside node -e 0', ...asItIs, bar: 5, goal: 3 },
    { what: 'the same without NODE_EXTRA_CA_CERTS', ...asInCron, bar: null, goal: null },
  ];
}

/** Bringing a copy back into a new file, proof included, beside a copy that nobody proved but that is on the disk as well. */
async function besideCp(bench: Bench): Promise<Figure[]> {
  const to = join(bench.directory, `to-${bench.size}`);
  await time(backup(bench.source(bench.size), to), bench.directory);
  const [copy = ''] = readdirSync(to).filter((file) => file.endsWith('.db'));
  const out = join(bench.directory, 'restored.db');
  readThrough(join(to, copy));
  const measured = (words: Command) => async (): Promise<number> => {
    await settle(bench);
    const { ms } = await time(words, bench.directory);
    rmSync(out);
    return ms;
  };
  const [ours, theirs] = await alternate(
    bench.rounds,
    measured([BIN, 'restore', '-o', out, '--to', to, '--quiet']),
    measured(['/bin/sh', '-c', `cp '${join(to, copy)}' '${out}' && sync '${out}'`]),
  );
  removeCopy(to);
  return [{ what: `restore -o, ${words(bench.size)}, beside cp + fsync`, ...ratio(ours, theirs, 'cp'), bar: 2.5, goal: 2 }];
}

/** Plain runs of both sizes, and the one that does the most at once: compressed, proven and sealed. */
async function memory(bench: Bench): Promise<Figure[]> {
  const recipient = await identityToRecipient(await generateX25519Identity());
  const runs = [
    ...[...new Set([SMALL, bench.size])].map((size) => ({ size, flags: [], how: '' })),
    { size: bench.size, flags: ['--compress', 'zstd', '--encrypt-to', recipient], how: ', zstd and age' },
  ];
  const figures: Figure[] = [];
  for (const { size, flags, how } of runs) {
    const source = bench.source(size);
    const to = join(bench.directory, `to-${size}`);
    const peaks: number[] = [];
    for (let round = 0; round < bench.rounds; round++) {
      peaks.push((await time(backup(source, to, flags), bench.directory, true)).peakAnonBytes / 1e6);
      removeCopy(to);
    }
    // The highest, not the median: a limit on memory is met by the worst run.
    const value = Math.max(...peaks);
    figures.push({
      what: `RssAnon of all processes, ${words(size)}${how}`,
      ours: `${value.toFixed(0)} MB`,
      beside: '',
      value,
      unit: 'MB',
      bar: 200,
      goal: 120,
      samples: { megabytes: peaks },
    });
  }
  return figures;
}

/** The parts of the commands' JSON that show that they saw every copy. */
interface Said {
  readonly copies?: readonly unknown[];
  readonly newestGood?: unknown;
  readonly kept?: readonly unknown[];
  readonly pruned?: readonly unknown[];
}

async function listing(bench: Bench, what: string, argv: Command, seen: (said: Said) => number | undefined): Promise<Figure[]> {
  const to = join(bench.directory, 'listed');
  fillDirectory(to);
  const where = ['--to', to, '--name', 'app'];
  const said = JSON.parse(execFileSync(BIN, [...argv, ...where, '--json'], { encoding: 'utf8', cwd: bench.directory, maxBuffer: 1 << 30 })) as Said;
  if (seen(said) !== LISTED_COPIES) throw new Error(`${what} saw ${seen(said)} of ${LISTED_COPIES} copies`);
  const samples: number[] = [];
  for (let round = 0; round <= bench.rounds; round++) {
    const { ms } = await time([BIN, ...argv, ...where], bench.directory);
    if (round > 0) samples.push(ms / 1000);
  }
  const value = median(samples);
  return [
    {
      what: `${what}, ${LISTED_COPIES.toLocaleString('en')} copies of ${LISTED_TABLES} tables`,
      ours: `${value.toFixed(2)} s`,
      beside: '',
      value,
      unit: 'seconds',
      bar: 1,
      goal: 0.5,
      samples: { seconds: samples },
    },
  ];
}

/** An application on a beat, with and without runs going on back to back, twice each in turn. */
async function beats(bench: Bench): Promise<Figure[]> {
  const source = bench.source(bench.size);
  const to = join(bench.directory, 'to-app');
  const quiet = { tookMs: [] as number[], late: 0, failed: 0, errors: new Set<string>() };
  const busy = { ...quiet, tookMs: [] as number[], errors: new Set<string>() };
  let runs = 0;
  for (const phase of [quiet, busy, quiet, busy]) {
    await settle(bench);
    const app = await startApp(source, BEAT_MS, BEATS);
    let ended = false;
    const diary = app.done.finally(() => {
      ended = true;
    });
    // Awaited below; an app that dies during a run must not count as nobody's problem.
    diary.catch(() => {});
    while (phase === busy && !ended) {
      await time(backup(source, to), bench.directory);
      if (!ended) runs++;
      removeCopy(to);
    }
    const { tookMs, late, failed, errors } = await diary;
    phase.tookMs.push(...tookMs);
    phase.late += late;
    phase.failed += failed;
    for (const error of errors) phase.errors.add(error);
  }
  if (runs === 0) throw new Error('the application was done before the first run was');

  const ms = (values: readonly number[], q: number): string => `${quantile(values, q).toFixed(2)} ms`;
  const [p99, p99Quiet] = [quantile(busy.tookMs, 0.99), quantile(quiet.tookMs, 0.99)];
  const samples = {
    busyMs: [0.5, 0.9, 0.99, 0.999, 1].map((q) => quantile(busy.tookMs, q)),
    quietMs: [0.5, 0.9, 0.99, 0.999, 1].map((q) => quantile(quiet.tookMs, q)),
  };
  const during = `${busy.tookMs.length.toLocaleString('en')} writes during ${runs} runs of ${words(bench.size)}`;
  return [
    {
      what: `failed writes, ${during}`,
      ours: [busy.failed, ...busy.errors].join(', '),
      beside: `${quiet.failed} without runs`,
      value: busy.failed,
      unit: 'count',
      bar: 0,
      goal: null,
      samples: {},
    },
    {
      what: 'p99 of a write',
      ours: ms(busy.tookMs, 0.99),
      beside: `${ms(quiet.tookMs, 0.99)} without runs`,
      value: p99 / p99Quiet,
      unit: 'ratio',
      bar: 2,
      goal: 1.2,
      samples,
    },
    {
      what: 'beats more than 100 ms late',
      ours: `${busy.late}, slowest write ${ms(busy.tookMs, 1)}`,
      beside: `${quiet.late} without runs`,
      value: (100 * busy.late) / busy.tookMs.length,
      unit: '%',
      bar: 10,
      goal: null,
      samples: {},
    },
  ];
}

function ratio(ours: readonly number[], theirs: readonly number[], name: string): Pick<Figure, 'ours' | 'beside' | 'value' | 'unit' | 'samples'> {
  const [a, b] = [median(ours), median(theirs)];
  return { ours: seconds(a), beside: `${name} ${seconds(b)}`, value: a / b, unit: 'ratio', samples: { oursMs: ours, besideMs: theirs } };
}

const seconds = (ms: number): string => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(2)} s`);
export const words = (bytes: number): string => (bytes >= 1e9 ? `${Number((bytes / 1e9).toFixed(1))} GB` : `${Number((bytes / 1e6).toFixed(1))} MB`);

/** What the one before left for the disk to write must not slow the next one down. */
async function settle(bench: Bench): Promise<void> {
  await time(['sync', '--file-system', bench.directory], bench.directory);
}

/** Brings a file into the page cache. */
function readThrough(path: string): void {
  const fd = openSync(path, 'r');
  const buffer = Buffer.allocUnsafe(1 << 20);
  while (readSync(fd, buffer) > 0);
  closeSync(fd);
}

/** Small real databases, an hour apart, each with a manifest as a run writes it. Made once. */
function fillDirectory(to: string): void {
  try {
    mkdirSync(to, { mode: 0o700 });
  } catch {
    return;
  }
  const tables = Array.from({ length: LISTED_TABLES }, (_, i) => `table_of_the_application_${i}`);
  const one = join(to, 'one');
  const db = new Database(one);
  db.exec(
    tables
      .slice(0, 1)
      .map((table) => `CREATE TABLE ${table} (id INTEGER PRIMARY KEY)`)
      .join(';'),
  );
  db.close();
  const data = readFileSync(one);
  rmSync(one);
  const newest = Math.floor(Date.now() / 1000) * 1000 - 60_000;
  for (let i = 0; i < LISTED_COPIES; i++) {
    const at = newest - i * 3_600_000;
    const base = `app-${stampOf(new Date(at))}`;
    plantCopy(to, base, data, {
      verifiedAt: rfc3339(at + 2_000),
      rows: Object.fromEntries(tables.map((table, n) => [table, n * 1_000])),
      checks: ['source quick_check', 'schema', 'integrity_check', 'foreign_key_check'].map((name) => ({ name, ok: true, message: 'ok' })),
    });
  }
}
