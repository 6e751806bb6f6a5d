/** Two applications move money while copies are made: in every copy no cent is missing. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { dbbackup, removeDirectory, tempDirectory, useDatabase } from '../support/cli.js';
import { differences } from '../support/rows.js';
import { type Failure, mustEndCleanly, type Request, rounds, type Scenario, told } from './harness.js';
import { inPrivate, must, mustBeWhole } from './proof.js';

const ACCOUNTS = 200;
const EACH = 1000;

/** An amount is drawn once and moved in two statements of one transaction; the ledger and the tally must agree with it. */
const TRANSFER = `
  BEGIN IMMEDIATE;
  INSERT INTO transfer (source, target, amount) VALUES (abs(random()) % ${ACCOUNTS}, abs(random()) % ${ACCOUNTS}, abs(random()) % 50);
  UPDATE account SET balance = balance - (SELECT amount FROM transfer ORDER BY id DESC LIMIT 1) WHERE id = (SELECT source FROM transfer ORDER BY id DESC LIMIT 1);
  UPDATE account SET balance = balance + (SELECT amount FROM transfer ORDER BY id DESC LIMIT 1) WHERE id = (SELECT target FROM transfer ORDER BY id DESC LIMIT 1);
  UPDATE tally SET transfers = transfers + 1, moved = moved + (SELECT amount FROM transfer ORDER BY id DESC LIMIT 1);
  COMMIT;`;

function makeBank(path: string): void {
  const db = new Database(path);
  db.pragma('journal_mode = wal');
  db.exec(`
    CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
    CREATE INDEX account_balance ON account (balance);
    CREATE TABLE transfer (id INTEGER PRIMARY KEY, source INTEGER, target INTEGER, amount INTEGER);
    CREATE TABLE tally (transfers INTEGER, moved INTEGER);
    INSERT INTO tally VALUES (0, 0);
    CREATE TABLE ballast (id INTEGER PRIMARY KEY, bytes BLOB);
    WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ${ACCOUNTS - 1}) INSERT INTO account SELECT i, ${EACH} FROM n;
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) INSERT INTO ballast SELECT i, randomblob(2000) FROM n;`);
  db.close();
}

interface Books {
  readonly total: number;
  readonly accounts: number;
  readonly transfers: number;
  readonly moved: number;
  readonly tallied: number;
  readonly talliedMoved: number;
}

const audit = (file: string): Books =>
  inPrivate(
    file,
    (db) =>
      db
        .prepare(
          `SELECT (SELECT sum(balance) FROM account) total, (SELECT count(*) FROM account) accounts, (SELECT count(*) FROM transfer) transfers,
             (SELECT coalesce(sum(amount), 0) FROM transfer) moved, (SELECT transfers FROM tally) tallied, (SELECT moved FROM tally) talliedMoved`,
        )
        .get() as Books,
  );

/** What a copy holds, a restore brings back: all of it, row by row, and nothing else. */
async function mustComeBack(to: string, file: string, restored: string): Promise<void> {
  const restore = await dbbackup(['restore', file, '-o', restored, '--to', to, '--json']);
  must(restore.code === 0, () => `${file} cannot be restored: ${told(restore)}`);
  const found = differences(restored, join(to, file));
  must(found.length === 0, () => `${file} and what was restored from it differ: ${found.join('; ')}`);
}

async function play(request: Request): Promise<Failure[]> {
  const home = tempDirectory('bank');
  const source = join(home, 'bank.db');
  const to = join(home, 'backups');
  makeBank(source);
  const writers = await Promise.all(
    [1, 2].map(() => useDatabase(source, ['PRAGMA busy_timeout = 10000', 'PRAGMA synchronous = normal'], { loop: TRANSFER, beatMs: 1 })),
  );
  let before = -1;
  const failures = await rounds('consistency', request, async ({ directory }) => {
    const run = await dbbackup(['run', source, '--to', to, '--keep-last', '2', '--json']);
    mustEndCleanly(run);
    must(run.code === 0, () => `not 0: ${told(run)}`);
    const file = run.json.copy?.file ?? '';
    const books = audit(join(to, file));
    must(books.accounts === ACCOUNTS && books.total === ACCOUNTS * EACH, () => `${file}: the sum does not hold: ${JSON.stringify(books)}`);
    must(books.transfers === books.tallied && books.moved === books.talliedMoved, () => `${file}: part of a transaction: ${JSON.stringify(books)}`);
    must(books.transfers > before, () => `${file}: the writers stood still, or the copy is older than the one before: ${books.transfers} <= ${before}`);
    before = books.transfers;
    mustBeWhole(to, 'after the run');
    await mustComeBack(to, file, join(directory, 'restored.db'));
  });
  const done = await Promise.all(writers.map((w) => w.stop()));
  for (const { failed, first } of done) {
    if (failed > 0) failures.push({ round: -1, why: `a writer had ${failed} failed writes: ${first}` });
  }
  if (!existsSync(source)) failures.push({ round: -1, why: 'the source is gone' });
  request.note?.(`${done.reduce((n, d) => n + d.done, 0)} transfers, none failed`);
  removeDirectory(home);
  return failures;
}

export const consistency: Scenario = {
  name: 'consistency',
  promise: 'a copy holds all of each transaction or none of it, a restore brings back every row, and no writer fails',
  ci: 10,
  soak: 300,
  needs: [],
  play,
};
