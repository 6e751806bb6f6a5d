/**
 * Everything that one whole integrity_check looks at, and the foreign keys besides, of a private file: split by table over
 * two SQLite children (traps, 21 and 22), with an accounting of all pages. What was found is sorted, not judged.
 */
import { lstatSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { TWO_CHILDREN_BYTES } from './artifacts.js';
import type { Answers, Findings, Request } from './system/worker-protocol.js';
import { NOTHING_FOUND } from './system/worker-protocol.js';
import type { WorkerPool } from './system/workers.js';

export interface FileToCheck {
  readonly file: string;
  readonly mmap: boolean;
  /** For files that may have been made to harm (DESIGN, "Files"); costs as much again. */
  readonly cellSizeCheck: boolean;
  readonly pool: WorkerPool;
}

export interface CheckedFile {
  readonly described: Answers['describe'];
  readonly findings: Findings;
  /** Rows whose foreign key points nowhere. */
  readonly foreignKey: number;
}

/** Asking for one table takes as long as checking so many bytes: hundreds of smaller ones are checked as a whole. */
const WORTH_BYTES = 100_000;
const FEW_TABLES = 200;

/** Checks a private file, read-write. Rejects with what the children say. */
export async function checkFile(input: FileToCheck): Promise<CheckedFile> {
  const { file, mmap, cellSizeCheck } = input;
  const { size } = lstatSync(file);
  const many = size >= TWO_CHILDREN_BYTES && availableParallelism() > 1;
  const described = await input.pool.worker(0).ask({ op: 'describe', file, mmap, cellSizeCheck });
  const { tables } = described;
  const worthIt = tables.length <= FEW_TABLES || size >= tables.length * WORTH_BYTES || tables.some(({ rows }) => rows === null);
  const whole = described.byTable && worthIt ? null : await checkWhole(input);
  // Where something could not be checked, table by table says most.
  const checked = whole && (!described.byTable || whole.findings.unchecked.length === 0) ? whole : await checkTables(input, tables, many);
  await Promise.all((many ? ([0, 1] as const) : ([0] as const)).map((n) => input.pool.worker(n).ask({ op: 'let-go' })));
  return { described, ...checked };
}

/** What cannot be split, since a table cannot be asked for by its name, or is not worth it. */
async function checkWhole({ file, mmap, cellSizeCheck, pool }: FileToCheck): Promise<Pick<CheckedFile, 'findings' | 'foreignKey'>> {
  const request = { file, mmap, cellSizeCheck } as const;
  const findings = await pool.worker(0).ask({ op: 'check-all', ...request });
  const { rows, unchecked } = await pool.worker(0).ask({ op: 'check-foreign-keys', table: null, ...request });
  return { findings: { ...findings, unchecked: [...findings.unchecked, ...(unchecked === null ? [] : [`foreign keys of ${unchecked}`])] }, foreignKey: rows };
}

/** What a file of this schema holds, for a manifest: rows of every table that is not SQLite's own. */
export const rowsOf = (described: Answers['describe']): Record<string, number> =>
  Object.fromEntries(described.tables.flatMap((t) => (t.rows === null || t.name.startsWith('sqlite_') ? [] : [[t.name, t.rows]])));

/** `cost`: about how many rows and index entries are looked at. */
type Task = { readonly cost: number } & (
  | { readonly op: 'check-table'; readonly table: string; readonly part: Extract<Request, { op: 'check-table' }>['part'] }
  | { readonly op: 'check-foreign-keys'; readonly table: string }
  | { readonly op: 'check-structure' }
);

/** One queue, dearest task first, two children taking from it: neither is idle while there is work. */
async function checkTables(input: FileToCheck, tables: Answers['describe']['tables'], many: boolean): Promise<Pick<CheckedFile, 'findings' | 'foreignKey'>> {
  const request = { file: input.file, mmap: input.mmap, cellSizeCheck: input.cellSizeCheck } as const;
  const queue: Task[] = tables.flatMap(({ name: table, rows, cost, foreignKeys, apart }): Task[] => [
    { op: 'check-table', table, part: apart ? 'without constraints' : 'whole', cost },
    ...(apart ? [{ op: 'check-table', table, part: 'constraints', cost: rows ?? 0 } as const] : []),
    ...(foreignKeys ? [{ op: 'check-foreign-keys', table, cost: rows ?? 0 } as const] : []),
  ]);
  queue.push({ op: 'check-structure', cost: tables.reduce((sum, t) => sum + (t.rows ?? 0), 0) });
  queue.sort((a, b) => b.cost - a.cost);
  let structure: Findings = NOTHING_FOUND;
  const found: Findings[] = [];
  let foreignKey = 0;
  let limited = false;
  const takeTurns = async (n: 0 | 1): Promise<void> => {
    for (let task = queue.shift(); task; task = queue.shift()) {
      const worker = input.pool.worker(n);
      switch (task.op) {
        case 'check-structure':
          // It sees rows that break NOT NULL as well; they are counted by table.
          structure = { ...(await worker.ask({ op: task.op, how: 'accounting', ...request })), notNull: 0, check: 0 };
          break;
        case 'check-table': {
          const f = await worker.ask({ op: task.op, table: task.table, part: task.part, ...request });
          limited ||= f.limited && f.structural.length === 0;
          found.push(f);
          break;
        }
        case 'check-foreign-keys': {
          const f = await worker.ask({ op: task.op, table: task.table, ...request });
          foreignKey += f.rows;
          if (f.unchecked) found.push({ ...NOTHING_FOUND, unchecked: [`foreign keys of ${f.unchecked}`] });
        }
      }
    }
  };
  // A single child has its next task before it has told of the last.
  const turns = many ? [takeTurns(0), takeTurns(1)] : [takeTurns(0), takeTurns(0)];
  await Promise.all(turns).catch((error: unknown) => {
    // The other one must not go on, with a fresh child, when this one has failed.
    queue.length = 0;
    throw error;
  });
  // The accounting of pages is enough beside a full check of every table; one that could not be had leaves a gap.
  if (found.some((f) => f.unchecked.length > 0)) {
    structure = { ...(await input.pool.worker(0).ask({ op: 'check-structure', how: 'quick_check', ...request })), notNull: 0, check: 0 };
  }
  // Rows that break a rule filled a list and may hide damage behind them: look again without a limit.
  const ofTables = limited
    ? [await input.pool.worker(0).ask({ op: 'check-all', ...request }), ...found.map(({ unchecked }) => ({ ...NOTHING_FOUND, unchecked }))]
    : found;
  return { findings: mergeFindings([structure, ...ofTables]), foreignKey };
}

function mergeFindings(all: readonly Findings[]): Findings {
  return {
    structural: all.flatMap((f) => f.structural),
    notNull: all.reduce((n, f) => n + f.notNull, 0),
    check: all.reduce((n, f) => n + f.check, 0),
    unchecked: [...new Set(all.flatMap((f) => f.unchecked))],
  };
}
