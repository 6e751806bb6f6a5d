/**
 * Measures what is promised about speed, memory and politeness, side by side with what an operator would do by hand, on
 * this machine: warm cache, median of five, alternating. rows.ts says what is measured, and against which bar.
 *
 *   npm run bench -- [--size 1GB] [--only ROW,...] [--dir DIR] [--rounds 5] [--json]
 *
 * Exit code 1 when a bar is missed or a row fails.
 */
import { mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import Database from 'better-sqlite3';
import { generate, parseSize } from '../support/generator.js';
import { ask, machine } from './measure.js';
import { type Bench, BIN, type Figure, ROWS, SQLITE3, words } from './rows.js';

interface Judged extends Figure {
  readonly row: string;
  readonly verdict: 'goal' | 'ok' | 'miss' | '';
}

function judge(row: string, figure: Figure): Judged {
  const { value, bar, goal } = figure;
  if (bar === null) return { ...figure, row, verdict: '' };
  return { ...figure, row, verdict: value > bar || Number.isNaN(value) ? 'miss' : goal !== null && value <= goal ? 'goal' : 'ok' };
}

const show = (value: number, unit: Figure['unit']): string =>
  ({ ratio: `${value.toFixed(2)} ×`, seconds: `${value.toFixed(2)} s`, MB: `${value.toFixed(0)} MB`, '%': `${value.toFixed(1)} %`, count: String(value) })[
    unit
  ];

function table(figures: readonly Judged[]): string {
  const cells = [
    ['row', 'what', 'dbbackup', 'beside', 'figure', 'bar', 'goal', ''],
    ...figures.map((f) => [
      f.row,
      f.what,
      f.ours,
      f.beside,
      show(f.value, f.unit),
      f.bar === null ? '' : `≤ ${show(f.bar, f.unit)}`,
      f.goal === null ? '' : show(f.goal, f.unit),
      { goal: 'ok, goal reached', ok: 'ok', miss: 'MISS', '': '' }[f.verdict],
    ]),
  ];
  const widths = cells[0]?.map((_, column) => Math.max(...cells.map((line) => line[column]?.length ?? 0))) ?? [];
  return cells
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      size: { type: 'string', default: '1GB' },
      only: { type: 'string' },
      dir: { type: 'string', default: tmpdir() },
      rounds: { type: 'string', default: '5' },
      json: { type: 'boolean', default: false },
    },
  });
  const wanted = values.only?.split(',');
  const unknown = wanted?.filter((id) => !ROWS.some((row) => row.id === id)) ?? [];
  if (unknown.length > 0) throw new Error(`no row ${unknown.join(', ')}; there are ${ROWS.map((row) => row.id).join(', ')}`);
  const size = parseSize(values.size);
  const disk = statfsSync(values.dir);
  if (disk.bavail * disk.bsize < 4 * size) throw new Error(`${values.dir} has no room for four times ${words(size)}; name another with --dir`);

  const directory = mkdtempSync(join(resolve(values.dir), 'dbbackup-bench-'));
  const sources = new Map<number, string>();
  const bench: Bench = {
    directory,
    size,
    rounds: Number(values.rounds),
    source: (bytes) => {
      const path = sources.get(bytes) ?? join(directory, `source-${bytes}.db`);
      if (!sources.has(bytes)) generate(path, bytes);
      sources.set(bytes, path);
      return path;
    },
  };
  // An interrupted benchmark must not leave gigabytes behind.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      rmSync(directory, { recursive: true, force: true });
      process.kill(process.pid, signal);
    });
  }

  const note = (line: string): void => console.error(line);
  const figures: Judged[] = [];
  const notMeasured: { row: string; reason: string }[] = [];
  const recipe = ask(SQLITE3, '--version')?.split(' ')[0] ?? null;
  try {
    for (const row of ROWS) {
      if (wanted && !wanted.includes(row.id)) continue;
      if (row.needsSqlite3 && recipe === null) {
        notMeasured.push({ row: row.id, reason: `needs ${SQLITE3} (apt-get install sqlite3)` });
        continue;
      }
      note(`measuring ${row.id} ...`);
      try {
        figures.push(...(await row.measure(bench)).map((figure) => judge(row.id, figure)));
      } catch (error) {
        notMeasured.push({ row: row.id, reason: error instanceof Error ? error.message : String(error) });
        process.exitCode = 1;
      }
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  if (figures.some((figure) => figure.verdict === 'miss')) process.exitCode = 1;

  const versions = {
    dbbackup: ask(BIN, '--version') ?? 'dbbackup does not start',
    node: ask('node', '--version') ?? process.version,
    sqlite: new Database(':memory:').prepare('SELECT sqlite_version()').pluck().get(),
    recipe: recipe ?? 'missing',
  };
  const where = machine(values.dir);
  if (values.json) {
    console.log(JSON.stringify({ at: new Date().toISOString(), machine: where, versions, rounds: bench.rounds, figures, notMeasured }, null, 2));
    return;
  }
  console.log(where);
  console.log(`${versions.dbbackup}, node ${versions.node}, SQLite ${versions.sqlite}; recipe: sqlite3 ${versions.recipe}`);
  console.log(`warm cache, median of ${bench.rounds}, alternating\n`);
  console.log(table(figures));
  for (const { row, reason } of notMeasured) console.log(`${row}: not measured: ${reason}`);
}

await main();
