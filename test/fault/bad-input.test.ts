/**
 * Bad input, and what it gets: a one-line error with its stable code and a hint, the right exit code, one JSON document
 * with --json, a record where state can be written, and nothing left behind.
 */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { basename, join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import {
  atEnd,
  cannot,
  damage,
  dbbackup,
  directoryOf,
  executableFor,
  holdExclusively,
  makeDatabase,
  makeHotJournal,
  type Need,
  type Options,
  openTempDirectory,
  openWriter,
  type Result,
  rootPage,
  start,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { Random } from './harness.js';
import { bindReadOnly, mountTmpfs } from './mounts.js';
import { contentOf, examine, listing, mustBeWhole, mustHaveNoTemp, sha256, sourceState } from './proof.js';

const NOBODY = 65534;
const PAGE = 4096;

interface Place {
  readonly home: string;
  readonly source: string;
  /** An empty directory of ours, 0700. */
  readonly to: string;
}

function place(): Place {
  const home = openTempDirectory('bad');
  const data = join(home, 'data');
  mkdirSync(data);
  const to = join(home, 'backups');
  mkdirSync(to, { mode: 0o700 });
  return { home, source: join(data, 'app.db'), to };
}

/** What a row asks for beyond `run SOURCE --to TO`. */
interface Setup {
  readonly source?: string;
  readonly to?: string;
  readonly more?: readonly string[];
  readonly options?: Options;
  /** Done when the run is over, before anything is looked at. */
  readonly after?: () => void | Promise<void>;
}

interface Row {
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

const args = (p: Place, s: Setup): string[] => ['run', s.source ?? p.source, '--to', s.to ?? p.to, ...(s.more ?? [])];

/** Beside a source, SQLite may leave `-wal` and `-shm` (traps, 1); nothing else may change. */
const around = (p: Place): string =>
  listing(join(p.home, 'data'))
    .split('\n')
    .filter((line) => !/-(wal|shm) /.test(line))
    .join('\n');

function expectOneLine(r: Result, codes: readonly string[]): void {
  const lines = r.stderr.split('\n').filter((line) => codes.some((c) => line.includes(`error ${c}`)));
  expect(lines, `one line with the code in: ${r.stderr}`).toHaveLength(1);
  expect(lines[0]).toMatch(/^dbbackup: error [A-Z_]+.*Hint: \S+/);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: none may be there
  expect(r.stderr).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/);
}

function rows(title: string, table: readonly Row[]): void {
  describe(title, () => {
    for (const row of table) {
      const reason = row.needs ? cannot(...row.needs) : null;
      if (reason) process.stderr.write(`not run here: ${title}: ${row.what}: ${reason}\n`);
      test.skipIf(reason)(`${row.what}: ${row.code} ${row.error}`, { timeout: 60_000 }, () => check(row));
    }
  });
}

async function check(row: Row): Promise<void> {
  const codes = typeof row.error === 'string' ? [row.error] : row.error;
  const p = place();
  const setup = (await row.make(p)) ?? {};
  const to = setup.to ?? p.to;
  const before = [listing(to), around(p), sourceState(p.source)];

  if (row.dry) {
    const dry = await dbbackup([...args(p, setup), '--dry-run', '--json'], setup.options);
    expect([dry.code, codes.includes(dry.json.error?.code ?? ''), dry.json.error?.code], `dry: ${dry.stdout}`).toEqual([row.code, true, dry.json.error?.code]);
    expect([listing(to), around(p), existsSync(join(p.to, '.dbbackup'))]).toEqual([before[0], before[1], false]);
  }

  const run = await dbbackup([...args(p, setup), '--json'], setup.options);
  await setup.after?.();
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
  expect(sourceState(p.source)).toBe(before[2]);

  if (!row.unrecorded) {
    const history = await dbbackup(['history', '--to', to, '--json'], setup.options);
    expect(history.json.runs?.map((r) => [r.runId, r.status, r.error?.code])).toEqual([[run.json.runId, 'failed', run.json.error?.code]]);
  }
  if (!row.slow && !row.suspect) {
    await row.make({ ...p, home: p.home }).valueOf;
    const quiet = await dbbackup([...args(p, setup), '--quiet'], setup.options);
    expect([quiet.code, quiet.stdout], quiet.stderr).toEqual([row.code, '']);
    expectOneLine(quiet, codes);
  }
}
