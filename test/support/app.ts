/**
 * An application at work: writes to a sample database (generator.ts) on a steady beat, one small transaction each time,
 * and keeps count. Its own process, as the real one would be; it ends when its input does, so it cannot outlive its parent.
 *
 *   tsx test/support/app.ts DATABASE BEAT_MS [WRITES]
 *
 * Says `ready` after the first write and, at the end, a `Diary` as one line of JSON.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath, pathToFileURL } from 'node:url';
import Database from 'better-sqlite3';

export interface Diary {
  readonly writes: number;
  readonly failed: number;
  /** What the failed writes said, each text once. */
  readonly errors: readonly string[];
  /** How long each write took, milliseconds, in order. */
  readonly tookMs: readonly number[];
  /** Writes that were done more than 100 ms after their beat. */
  readonly late: number;
}

export interface App {
  /** Settles when the app has ended; `end` asks it to. */
  readonly done: Promise<Diary>;
  readonly end: () => Promise<Diary>;
}

const FILE = fileURLToPath(import.meta.url);
const LATE_MS = 100;

/** Starts the app and waits for its first write. `writes`: ends by itself after that many. */
export async function startApp(database: string, beatMs: number, writes = Number.POSITIVE_INFINITY): Promise<App> {
  const child: ChildProcess = spawn(process.execPath, ['--import', 'tsx', FILE, database, String(beatMs), String(writes)], {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  if (!child.stdout || !child.stdin) throw new Error('the app has no pipes');
  const exit = once(child, 'exit');
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const first = await lines.next();
  if (first.value !== 'ready') throw new Error('the app did not start');
  const done = (async (): Promise<Diary> => {
    const last = await lines.next();
    await exit;
    if (last.done) throw new Error('the app died without a word');
    return JSON.parse(last.value) as Diary;
  })();
  // Whoever waits for `done` gets the error; nobody may be waiting yet.
  done.catch(() => {});
  return {
    done,
    end: () => {
      child.stdin?.end();
      return done;
    },
  };
}

async function work(path: string, beatMs: number, limit: number): Promise<void> {
  // No busy timeout: a write that somebody blocks even for a moment counts as failed.
  const db = new Database(path, { timeout: 0 });
  db.pragma('journal_mode = WAL');
  db.pragma('synchronous = NORMAL');
  const { customers, next } = db
    .prepare<[], { customers: number; next: number }>('SELECT max(id) AS customers, (SELECT max(id) + 1 FROM orders) AS next FROM customers')
    .get() ?? { customers: 1, next: 1 };
  const order = db.prepare("INSERT INTO orders VALUES (?, ?, ?, 'open', ?, 'written while the backup runs')");
  const pay = db.prepare('UPDATE customers SET balance = balance - ? WHERE id = ?');
  const write = db.transaction((n: number) => {
    const customer = 1 + ((n * 7_919) % customers);
    order.run(next + n, customer, Math.floor(Date.now() / 1000), n % 100);
    pay.run(n % 100, customer);
  });

  let open = true;
  process.stdin.on('end', () => {
    open = false;
  });
  process.stdin.resume();

  const tookMs: number[] = [];
  const errors = new Set<string>();
  let failed = 0;
  let late = 0;
  const start = performance.now();
  for (let n = 0; open && n < limit; n++) {
    // The beat does not wait for a slow write: what comes after it is late, too, and is counted.
    const due = start + n * beatMs;
    await new Promise((go) => setTimeout(go, Math.max(0, due - performance.now())));
    const began = performance.now();
    try {
      write.immediate(n);
    } catch (error) {
      failed++;
      errors.add(error instanceof Error ? error.message : String(error));
    }
    const ended = performance.now();
    tookMs.push(Math.round((ended - began) * 1000) / 1000);
    if (ended - due > LATE_MS) late++;
    if (n === 0) console.log('ready');
  }
  db.close();
  const diary: Diary = { writes: tookMs.length, failed, errors: [...errors], tookMs, late };
  console.log(JSON.stringify(diary));
  process.stdin.destroy();
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [path, beat, writes] = process.argv.slice(2);
  if (path && beat) await work(path, Number(beat), Number(writes ?? 'Infinity'));
}
