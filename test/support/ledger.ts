/**
 * An application that keeps books: every commit writes the same amount into two tables and says so in a marker, and now
 * and then gives every row of a third a new generation. Whoever reads sees at once whether it all belongs to one commit.
 * Two processes of it, as real ones would be: one that writes, one that reads. They end when their input does.
 *
 *   tsx test/support/ledger.ts write|read DATABASE TIMEOUT_MS BEAT_MS
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath, pathToFileURL } from 'node:url';
import Database from 'better-sqlite3';
import { atEnd, PATH, until } from './cli.js';

type Db = Database.Database;

/** Commits between two new generations of all rows. */
const GENERATION = 40;

export function makeLedger(path: string, journal: 'wal' | 'delete', ballastRows: number): void {
  const db = new Database(path);
  db.pragma(`journal_mode = ${journal}`);
  db.exec(`
    CREATE TABLE debit (id INTEGER PRIMARY KEY, amount INTEGER, text TEXT);
    CREATE TABLE marker (commits INTEGER, total INTEGER, generation INTEGER, token TEXT);
    CREATE TABLE ballast (id INTEGER PRIMARY KEY, generation INTEGER, bytes BLOB);
    CREATE TABLE credit (id INTEGER PRIMARY KEY, amount INTEGER, text TEXT);
    CREATE INDEX ballast_generation ON ballast (generation);
    INSERT INTO marker VALUES (0, 0, 0, 'first');
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${ballastRows}) INSERT INTO ballast SELECT i, 0, randomblob(1800) FROM n;`);
  db.close();
}

interface Marker {
  readonly commits: number;
  readonly total: number;
  readonly generation: number;
  readonly token: string;
}

/** What does not belong together in the state that this connection sees, or null. To be called inside a transaction. */
export function auditLedger(db: Db): string | null {
  const marker = db.prepare<[], Marker>('SELECT * FROM marker').get();
  const side = (table: string): { n: number; sum: number } =>
    db.prepare<[], { n: number; sum: number }>(`SELECT count(*) n, coalesce(sum(amount), 0) sum FROM ${table}`).get() ?? { n: -1, sum: -1 };
  const debit = side('debit');
  const ballast = db.prepare<[], { low: number; high: number }>('SELECT min(generation) low, max(generation) high FROM ballast NOT INDEXED').get();
  const credit = side('credit');
  const whole =
    marker !== undefined &&
    debit.n === marker.commits &&
    debit.sum === marker.total &&
    credit.n === marker.commits &&
    credit.sum === marker.total &&
    ballast?.low === marker.generation &&
    ballast.high === marker.generation;
  return whole ? null : JSON.stringify({ marker, debit, credit, ballast });
}

/** SHA-256 over every row. To be called inside a transaction. */
export function digestLedger(db: Db): string {
  const hash = createHash('sha256');
  for (const table of ['marker', 'debit', 'credit', 'ballast']) {
    hash.update(`${table}\n`);
    for (const row of db.prepare<[], unknown[]>(`SELECT * FROM ${table} ORDER BY 1`).raw().iterate()) {
      for (const value of row) hash.update(Buffer.isBuffer(value) ? value : `${typeof value} ${String(value)}\n`);
    }
  }
  return hash.digest('hex');
}

/** The writer found another state than the one that it had left: nobody else writes, so it was replaced. */
export interface Jump {
  /** Its own last commit. */
  readonly left: number;
  /** What it found, before it wrote again. */
  readonly found: number;
  readonly digest: string;
}

export interface LedgerDiary {
  /** Transactions that came to their end. */
  readonly done: number;
  /** SQLite's code → how often a transaction failed with it. */
  readonly failed: Readonly<Record<string, number>>;
  /** States that no commit has left. */
  readonly mixtures: readonly string[];
  readonly jumps: readonly Jump[];
}

export interface LedgerApp {
  readonly pid: number;
  /** What it did so far. */
  readonly ask: () => Promise<LedgerDiary>;
  readonly end: () => Promise<LedgerDiary>;
}

const FILE = fileURLToPath(import.meta.url);

/** Starts one of the two and waits for its first transaction. `timeoutMs`: how long it waits for a lock. */
export async function startLedger(role: 'write' | 'read', database: string, timeoutMs: number, beatMs: number): Promise<LedgerApp> {
  const child: ChildProcess = spawn(process.execPath, ['--import', 'tsx', FILE, role, database, String(timeoutMs), String(beatMs)], {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { PATH },
  });
  atEnd(() => child.kill('SIGKILL'));
  if (!child.stdout || !child.stdin) throw new Error('the app has no pipes');
  const { stdin } = child;
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const exit = once(child, 'exit');
  const next = async (): Promise<LedgerDiary> => {
    const line = await lines.next();
    if (line.done) throw new Error(`the ${role} app died without a word`);
    return JSON.parse(line.value) as LedgerDiary;
  };
  const ask = (): Promise<LedgerDiary> => {
    stdin.write('?\n');
    return next();
  };
  await until(`the ${role} app`, async () => (await ask()).done > 0, 20_000, 20);
  return {
    pid: child.pid ?? 0,
    ask,
    end: async () => {
      stdin.end();
      const last = await next();
      await exit;
      return last;
    },
  };
}

// ------------------------------------------------------------------------------------------------- inside the process

class Diary {
  done = 0;
  readonly failed: Record<string, number> = {};
  readonly mixtures: string[] = [];
  readonly jumps: Jump[] = [];

  fail(error: unknown): void {
    const code = error instanceof Database.SqliteError ? error.code : String(error);
    this.failed[code] = (this.failed[code] ?? 0) + 1;
  }

  check(db: Db): void {
    const problem = auditLedger(db);
    if (problem !== null && this.mixtures.length < 20) this.mixtures.push(problem);
  }
}

function writer(path: string, timeoutMs: number, diary: Diary): { step: () => void; close: () => void } {
  const db = new Database(path, { timeout: timeoutMs });
  db.pragma('synchronous = normal');
  const look = db.prepare<[], Marker>('SELECT * FROM marker');
  const debit = db.prepare('INSERT INTO debit (amount, text) VALUES (?, ?)');
  const credit = db.prepare('INSERT INTO credit (amount, text) VALUES (?, ?)');
  const mark = db.prepare('UPDATE marker SET commits = ?, total = total + ?, generation = ?, token = ?');
  const renew = db.prepare('UPDATE ballast SET generation = ?');
  let mine: Marker | null = null;
  const commit = db.transaction((): { wrote: Marker; jump: Jump | null } => {
    const there = look.get();
    if (!there) throw new Error('no marker');
    let jump: Jump | null = null;
    if (mine && there.token !== mine.token) {
      diary.check(db);
      jump = { left: mine.commits, found: there.commits, digest: digestLedger(db) };
    }
    const commits = there.commits + 1;
    const amount = commits % 1000;
    const generation = there.generation + (commits % GENERATION === 0 ? 1 : 0);
    const token = randomBytes(8).toString('hex');
    debit.run(amount, `debit ${commits}`);
    if (generation !== there.generation) renew.run(generation);
    mark.run(commits, amount, generation, token);
    credit.run(amount, `credit ${commits}`);
    return { wrote: { commits, total: there.total + amount, generation, token }, jump };
  });
  return {
    step: () => {
      const { wrote, jump } = commit.immediate();
      mine = wrote;
      if (jump) diary.jumps.push(jump);
    },
    close: () => db.close(),
  };
}

/** Two looks in one transaction, with room between them for others, now and then much; every tenth time over a connection of its own. */
function reader(path: string, timeoutMs: number, diary: Diary): { step: () => Promise<void>; close: () => void } {
  const lasting = new Database(path, { timeout: timeoutMs });
  let turn = 0;
  const look = async (db: Db): Promise<void> => {
    db.exec('BEGIN');
    try {
      diary.check(db);
      const first = db.prepare<[], string>('SELECT token FROM marker').pluck().get();
      await new Promise((go) => setTimeout(go, turn % 25 === 0 ? 500 : turn % 7));
      diary.check(db);
      const second = db.prepare<[], string>('SELECT token FROM marker').pluck().get();
      if (first !== second) diary.mixtures.push(`${first} turned into ${second} within one transaction`);
    } finally {
      if (db.inTransaction) db.exec('COMMIT');
    }
  };
  return {
    step: async () => {
      turn++;
      if (turn % 10 !== 0) return await look(lasting);
      const own = new Database(path, { timeout: timeoutMs });
      try {
        await look(own);
      } finally {
        own.close();
      }
    },
    close: () => lasting.close(),
  };
}

async function main(role: string, path: string, timeoutMs: number, beatMs: number): Promise<void> {
  const diary = new Diary();
  const { step, close } = role === 'write' ? writer(path, timeoutMs, diary) : reader(path, timeoutMs, diary);
  const tell = (): void => console.log(JSON.stringify(diary));
  let open = true;
  const questions = createInterface({ input: process.stdin });
  questions.on('line', tell);
  questions.on('close', () => {
    open = false;
  });
  while (open) {
    try {
      await step();
      diary.done++;
    } catch (error) {
      diary.fail(error);
    }
    await new Promise((go) => setTimeout(go, beatMs));
  }
  close();
  tell();
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [role, path, timeoutMs, beatMs] = process.argv.slice(2);
  if (role && path) await main(role, path, Number(timeoutMs), Number(beatMs));
}
