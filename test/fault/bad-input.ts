import { existsSync, lstatSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cannot, dbbackup, directoryOf, executableFor, makeDatabase, type Need, type Options, openTempDirectory, type Result, wrap } from '../support/cli.js';
import { listing, mustBeWhole, mustHaveNoTemp, recordsOf, sourceState } from './proof.js';

export const NOBODY = 65534;
export const PAGE = 4096;

export interface Place {
  readonly home: string;
  readonly source: string;
  /** An empty directory of ours, 0700. */
  readonly to: string;
}

export function place(): Place {
  const home = openTempDirectory('bad');
  const data = join(home, 'data');
  mkdirSync(data);
  const to = join(home, 'backups');
  mkdirSync(to, { mode: 0o700 });
  return { home, source: join(data, 'app.db'), to };
}

/** What a row asks for beyond `run SOURCE --to TO`. */
export interface Setup {
  readonly source?: string;
  readonly to?: string;
  readonly more?: readonly string[];
  readonly options?: Options;
  /** Done when everything has been looked at. */
  readonly after?: () => unknown;
}

export interface Row {
  readonly what: string;
  readonly make: (p: Place) => Setup | undefined | Promise<Setup | undefined>;
  readonly code: number;
  readonly error: string | readonly string[];
  readonly needs?: readonly Need[];
  /** A dry run sees it too: the same code, and nothing at all is made. */
  readonly dry?: true;
  /** It takes 5 s: once is enough. */
  readonly slow?: true;
  /** No record can be expected: the directory is not ours to write. */
  readonly unrecorded?: true;
  /** What could be read is kept as a suspect copy. */
  readonly suspect?: true;
}

export const args = (p: Place, s: Setup): string[] => ['run', s.source ?? p.source, '--to', s.to ?? p.to, ...(s.more ?? [])];

/** Beside a source, SQLite may leave `-wal` and `-shm` (traps, 1); nothing else may change. */
const around = (p: Place): string =>
  listing(join(p.home, 'data'))
    .split('\n')
    .filter((line) => !/-(wal|shm) /.test(line))
    .join('\n');

export function expectOneLine(r: Result, codes: readonly string[]): void {
  const lines = r.stderr.split('\n').filter((line) => codes.some((c) => line.includes(`error ${c}`)));
  expect(lines, `one line with the code in: ${r.stderr}`).toHaveLength(1);
  expect(lines[0]).toMatch(/^dbbackup: error [A-Z_]+.*Hint: \S+/);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: none may be there
  expect(r.stderr).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/);
}

export function rows(title: string, table: readonly Row[]): void {
  describe(title, () => {
    for (const row of table) {
      const reason = row.needs ? cannot(...row.needs) : null;
      if (reason) process.stderr.write(`not run here: ${title}: ${row.what}: ${reason}\n`);
      test.skipIf(reason)(`${row.what}: ${row.code} ${row.error}`, { timeout: 60_000 }, () => check(row));
    }
  });
}

async function check(row: Row): Promise<void> {
  const p = place();
  const setup = (await row.make(p)) ?? {};
  try {
    await checkSetUp(row, p, setup);
  } finally {
    await setup.after?.();
  }
}

async function checkSetUp(row: Row, p: Place, setup: Setup): Promise<void> {
  const codes = typeof row.error === 'string' ? [row.error] : row.error;
  const to = setup.to ?? p.to;
  const source = setup.source ?? p.source;
  const before = [listing(to), around(p), stateOf(source)];

  if (row.dry) {
    const dry = await dbbackup([...args(p, setup), '--dry-run', '--json'], setup.options);
    expect(codes, `dry run: ${dry.stdout}`).toContain(dry.json.error?.code);
    expect([dry.code, dry.json.dryRun]).toEqual([row.code, true]);
    expect([listing(to), around(p), existsSync(join(p.to, '.dbbackup'))]).toEqual([before[0], before[1], false]);
  }

  const run = await dbbackup([...args(p, setup), '--json'], setup.options);
  expect(run.isJson, `stdout: ${run.stdout}`).toBe(true);
  expect([run.code, run.json.exitCode, run.hung], run.stderr).toEqual([row.code, row.code, false]);
  expect(codes, `${run.json.error?.message}`).toContain(run.json.error?.code);
  expect(run.json.error?.hint).toMatch(/\S/);
  expect(run.json.error?.message).not.toMatch(/\n/);
  expectOneLine(run, codes);

  if (row.suspect) {
    const found = mustBeWhole(p.to, 'after the run');
    expect([...found.pairs.values()].map((m) => m.status)).toEqual(['suspect']);
    expect(run.json.copy?.status).toBe('suspect');
  } else {
    expect(run.json.copy ?? null).toBe(null);
    expect(listing(to)).toBe(before[0]);
    mustHaveNoTemp(p.to, 'after the run');
  }
  expect(around(p)).toBe(before[1]);
  expect(stateOf(source)).toBe(before[2]);

  if (!row.unrecorded) {
    expect(recordsOf(to).map((r) => [r.runId, r.status, r.error?.code])).toEqual([[run.json.runId, 'failed', run.json.error?.code]]);
  }
  if (!row.slow) {
    const quiet = await dbbackup([...args(p, setup), '--quiet'], setup.options);
    expect(quiet.code, quiet.stderr).toBe(row.code);
    expectOneLine(quiet, codes);
    if (!row.suspect) expect(quiet.stdout).toBe('');
  }
}

const stateOf = (source: string): string => (existsSync(source) && lstatSync(source).isFile() ? sourceState(source) : '');

/** The run is somebody else's: a directory for their copies, and an executable that they can read. */
export function asUser(p: Place, uid: number, more: Partial<Setup> = {}): Setup {
  const to = directoryOf(join(p.home, `copies-of-${uid}`), uid, uid, 0o700);
  return { to, options: { through: wrap.as(uid), executable: executableFor(uid) }, ...more };
}

/** A database with its pages in known places. */
export function plain(p: Place): void {
  makeDatabase(p.source, { journal: 'delete', bytes: 300_000 });
}
