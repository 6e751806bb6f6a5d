/**
 * Restores into a database that two applications have open, one that writes and one that reads. In WAL mode neither may
 * notice anything but other data; in rollback mode they may be made to wait. Nobody ever sees a mixture of two states, and
 * what the writer finds before its next write is the copy, row by row.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { dbbackup, removeDirectory, tempDirectory, until } from '../support/cli.js';
import { auditLedger, digestLedger, type LedgerApp, type LedgerDiary, makeLedger, startLedger } from '../support/ledger.js';
import { counted, type Failure, mustEndCleanly, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { inPrivate, must, mustBeWhole } from './proof.js';

/** Times 2 kB. */
const BALLAST = 1200;
const COPIES = 3;

interface Stage {
  readonly mode: 'wal' | 'delete';
  readonly home: string;
  readonly source: string;
  readonly to: string;
  readonly writer: LedgerApp;
  readonly reader: LedgerApp;
  /** The file of a copy → the digest of its rows. */
  readonly copies: ReadonlyMap<string, string>;
}

async function setStage(mode: 'wal' | 'delete'): Promise<Stage> {
  const home = tempDirectory(`live-${mode}`);
  const source = join(home, 'books.db');
  const to = join(home, 'backups');
  makeLedger(source, mode, BALLAST);
  // In rollback mode a short patience: who waits for ever can never be told that it is busy.
  const writer = await startLedger('write', source, mode === 'wal' ? 10_000 : 300, 3);
  const reader = await startLedger('read', source, mode === 'wal' ? 0 : 300, 10);
  const copies = new Map<string, string>();
  while (copies.size < COPIES) {
    const { done } = await writer.ask();
    const run = await dbbackup(['run', source, '--to', to, '--json']);
    must(run.code === 0 || mode === 'delete', () => `no copy to restore: ${told(run)}`);
    const file = run.json.copy?.file;
    if (run.code !== 0 || file === undefined) continue;
    copies.set(file, inPrivate(join(to, file), digestLedger));
    await until('some commits', async () => (await writer.ask()).done > done + 60, 30_000, 20);
  }
  return { mode, home, source, to, writer, reader, copies };
}

type Seen = Record<'wal' | 'rollback' | 'locked' | 'writes' | 'reads' | 'busy', number>;

/** Rounds in a row in one mode: its two applications keep a processor busy. */
const IN_A_ROW = 5;

async function play(request: Request): Promise<Failure[]> {
  let stage: Stage | null = null;
  const seen: Seen = { wal: 0, rollback: 0, locked: 0, writes: 0, reads: 0, busy: 0 };
  const leave = async (): Promise<void> => {
    const left = stage;
    stage = null;
    if (!left) return;
    const [writer, reader] = await Promise.all([left.writer.end(), left.reader.end()]);
    seen.writes += writer.done;
    seen.reads += reader.done;
    seen.busy += failuresOf(writer) + failuresOf(reader);
    removeDirectory(left.home);
  };
  const failures = await rounds('restore-live', request, async (round) => {
    const mode = Math.floor(round.index / IN_A_ROW) % 4 === 3 ? 'delete' : 'wal';
    if (stage?.mode !== mode) await leave();
    stage ??= await setStage(mode);
    try {
      await one(stage, round, seen);
    } catch (error) {
      await leave();
      throw error;
    }
  });
  await leave();
  request.note?.(counted(seen));
  return failures;
}

const failuresOf = (diary: LedgerDiary): number => Object.values(diary.failed).reduce((n, m) => n + m, 0);

/** What may not be, whatever was done: other failures than waiting in vain where one may have to wait; states that nobody wrote. */
function mustBeAtPeace(mode: Stage['mode'], who: string, diary: LedgerDiary): void {
  must(diary.mixtures.length === 0, () => `the ${who} saw a mixture: ${diary.mixtures.slice(0, 2).join(' | ')}`);
  const failed = Object.keys(diary.failed).filter((code) => mode === 'wal' || code !== 'SQLITE_BUSY');
  must(failed.length === 0, () => `the ${who} failed: ${JSON.stringify(diary.failed)}`);
}

async function one(stage: Stage, round: Round, seen: Seen): Promise<void> {
  const { mode, source, to, writer, reader } = stage;
  const { random, say } = round;
  const file = random.pick([...stage.copies.keys()]);
  const before = { writer: await writer.ask(), reader: await reader.ask() };
  // The writer must have left the copy's state behind, or putting it back would be nothing.
  await until('commits before the restore', async () => (await writer.ask()).done > before.writer.done + random.below(20), 20_000, 5);
  const run = await dbbackup(['restore', file, '--into', source, '--yes', '--to', to, '--json']);
  say(`${mode}, ${file}: ${told(run)}`);
  mustEndCleanly(run);
  must(run.code === 0 || (mode === 'delete' && run.json.error?.code === 'SOURCE_LOCKED'), 'the restore failed');
  seen[mode === 'wal' ? 'wal' : 'rollback']++;
  if (run.code !== 0) seen.locked++;

  const at = await writer.ask();
  await until('another commit', async () => (await writer.ask()).done > at.done, 20_000, 5);
  const readsAt = (await reader.ask()).done;
  await until('another read', async () => (await reader.ask()).done > readsAt, 20_000, 5);
  const after = { writer: await writer.ask(), reader: await reader.ask() };
  mustBeAtPeace(mode, 'writer', after.writer);
  mustBeAtPeace(mode, 'reader', after.reader);
  const jumps = after.writer.jumps.slice(before.writer.jumps.length);
  must(jumps.length === (run.code === 0 ? 1 : 0), () => `exit ${run.code}, and the database was replaced ${jumps.length} times`);
  const [jump] = jumps;
  if (jump) {
    say(`the writer had left commit ${jump.left} and found ${jump.found}`);
    must(jump.digest === stage.copies.get(file), 'what the writer found after the restore is not what the copy holds');
  }
  mustHaveKeptWhatWas(stage, run.code === 0, run.json.restored?.safetyCopy ?? null, jump?.left);
  if (round.index % IN_A_ROW === 0) mustBeIntact(source);
}

/** The safety copy is one state that the writer had left behind. Removed then: the next round makes its own. */
function mustHaveKeptWhatWas({ to, copies }: Stage, restored: boolean, safety: string | null, left: number | undefined): void {
  const found = mustBeWhole(to, 'after the restore');
  const tagged = [...found.pairs.values()].filter((m) => m.tags.includes('before-restore'));
  const named = tagged.map((m) => m.file).join(', ');
  must(!restored || (tagged.length === 1 && named === safety), () => `safety copies: ${named || 'none'}; named: ${safety}`);
  for (const { file } of tagged) {
    const { problem, commits } = inPrivate(join(to, file), (db) => ({
      problem: auditLedger(db),
      commits: db.prepare<[], number>('SELECT commits FROM marker').pluck().get() ?? -1,
    }));
    must(problem === null, () => `the safety copy is a mixture: ${problem}`);
    must(left === undefined || commits <= left, () => `the safety copy holds commit ${commits}, the writer had come to ${left}`);
    for (const name of [file, file.replace(/\.db$/, '.json')]) rmSync(join(to, name));
  }
  must(
    [...copies.keys()].every((f) => found.pairs.get(f)?.status === 'good'),
    'a copy that was there is not good any more',
  );
}

function mustBeIntact(source: string): void {
  const db = new Database(source, { timeout: 10_000 });
  try {
    const findings = db.pragma('integrity_check', { simple: true });
    must(findings === 'ok', () => `integrity_check of the live database: ${String(findings)}`);
  } finally {
    db.close();
  }
}

export const restoreLive: Scenario = {
  name: 'restore-live',
  promise: 'a live restore is one moment to the applications: no failed read or write in WAL mode, never a mixture, and then the copy',
  ci: 20,
  soak: 300,
  needs: [],
  play,
};
