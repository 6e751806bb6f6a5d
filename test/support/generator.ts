/**
 * The sample database that benchmark, demo and tests share: always the same rows for the same size, whatever the machine.
 * Four tables (a web shop: customers, orders, documents with blobs, and sessions WITHOUT ROWID) and five indexes, in
 * the proportions of a small business: about 46 % documents, 40 % other rows, 14 % indexes.
 *
 *   npx tsx test/support/generator.ts PATH SIZE [--rollback]      SIZE like 10MB or 1GB
 */
import { rmSync, statSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import Database from 'better-sqlite3';

/** Bytes that one unit (1 customer, 6 orders, 1 document, 8 sessions) takes in the finished file, indexes included. */
const UNIT_BYTES = 2_726;
/** Rows of a unit, beside its one customer and one document. No table holds most of the rows: the check is split by table. */
const ORDERS = 6;
const SESSIONS = 8;
/** Units written in one transaction: bounds memory whatever the size. */
const BATCH_UNITS = 2_000;
const SEED = 0x5eed;

const SCHEMA = `
  CREATE TABLE customers (
    id INTEGER PRIMARY KEY,
    email TEXT NOT NULL,
    name TEXT NOT NULL,
    balance INTEGER NOT NULL DEFAULT 0
  );
  CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL,
    placed_at INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('open', 'paid', 'shipped', 'returned')),
    total REAL NOT NULL CHECK (total >= 0),
    note TEXT
  );
  CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    order_id INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    content BLOB NOT NULL
  );
  CREATE TABLE sessions (
    token TEXT NOT NULL PRIMARY KEY,
    customer_id INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
  ) WITHOUT ROWID;
`;

/** Made after the rows, sorted, because inserting ten gigabytes in random key order takes hours. */
const INDEXES = `
  CREATE UNIQUE INDEX customers_by_email ON customers (email);
  CREATE INDEX orders_by_customer ON orders (customer_id);
  CREATE INDEX orders_by_time ON orders (placed_at);
  CREATE INDEX sessions_by_customer ON sessions (customer_id);
  CREATE INDEX documents_by_order ON documents (order_id);
`;

export interface GeneratorOptions {
  /** Leave the database in WAL mode (the default) or in rollback-journal mode. */
  readonly wal?: boolean;
}

/** Numbers in [0, 2^32) that are the same everywhere: mulberry32. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

const WORDS = 'please leave the parcel with a neighbour ring twice gift wrap no invoice call before delivery fragile back door thanks'.split(' ');
const STATUS = ['open', 'paid', 'shipped', 'returned'] as const;
/** 2024-01-01T00:00:00Z, in seconds. */
const EPOCH = 1_704_067_200;

/** Writes a new database of about `targetBytes` (within 2 %, from 1 MB on) at `path`, replacing what is there. Returns its exact size. */
export function generate(path: string, targetBytes: number, options: GeneratorOptions = {}): number {
  for (const suffix of ['', '-wal', '-shm', '-journal']) rmSync(path + suffix, { force: true });
  const units = Math.max(1, Math.round(targetBytes / UNIT_BYTES));
  const db = new Database(path);
  try {
    db.pragma('page_size = 4096');
    // Nothing here has to survive a crash: the file is made anew.
    db.pragma('journal_mode = OFF');
    db.pragma('synchronous = OFF');
    db.pragma('foreign_keys = OFF');
    db.pragma('cache_size = -65536');
    db.exec(SCHEMA);
    fill(db, units);
    db.exec(INDEXES);
    db.pragma(`journal_mode = ${options.wal === false ? 'DELETE' : 'WAL'}`);
  } finally {
    db.close();
  }
  return statSync(path).size;
}

function fill(db: Database.Database, units: number): void {
  const random = randomFrom(SEED);
  const customer = db.prepare('INSERT INTO customers VALUES (?, ?, ?, ?)');
  const order = db.prepare('INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)');
  const document = db.prepare('INSERT INTO documents VALUES (?, ?, ?, ?)');
  const session = db.prepare('INSERT INTO sessions VALUES (?, ?, ?)');
  const text = (words: number): string => {
    let out = '';
    for (let i = 0; i < words; i++) out += ` ${WORDS[random() % WORDS.length]}`;
    return out.slice(1);
  };
  const blob = new Uint32Array(1_024);
  const bytes = Buffer.from(blob.buffer);

  for (let first = 1; first <= units; first += BATCH_UNITS) {
    db.exec('BEGIN');
    for (let unit = first; unit < first + BATCH_UNITS && unit <= units; unit++) {
      customer.run(unit, `${random().toString(36)}.${unit}@example.org`, text(2), random() % 1_000_000);
      for (let i = 0; i < ORDERS; i++) {
        const owner = 1 + (random() % units);
        order.run(
          unit * ORDERS + i,
          owner,
          EPOCH + unit * 60 + (random() % 86_400),
          STATUS[random() % 4],
          (random() % 1_000_000) / 100,
          text(4 + (random() % 24)),
        );
      }
      // Half noise, half text: as compressible as scanned documents and JSON together.
      const size = 256 + (random() % 1_536);
      if (unit % 2 === 0) {
        for (let i = 0; i * 4 < size; i++) blob[i] = random();
        document.run(unit, unit * ORDERS + (random() % ORDERS), 'image/jpeg', bytes.subarray(0, size));
      } else {
        document.run(unit, unit * ORDERS + (random() % ORDERS), 'application/json', Buffer.from(text(size / 6)));
      }
      for (let i = 0; i < SESSIONS; i++) {
        // Tokens begin with the time, as sortable ids do, so the table grows at its end.
        session.run(`${(unit * SESSIONS + i).toString(36).padStart(8, '0')}-${random().toString(36)}`, 1 + (random() % units), EPOCH + unit * 60);
      }
    }
    db.exec('COMMIT');
  }
}

/** `10MB`, `1GB`, `2GiB` or plain bytes. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?$/i.exec(text);
  if (!match) throw new Error(`"${text}" is not a size like 10MB or 1GB`);
  const power = ['', 'K', 'M', 'G', 'T'].indexOf((match[2] ?? '').toUpperCase());
  return Math.round(Number(match[1]) * (match[3] ? 1024 : 1000) ** power);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [path, size, mode] = process.argv.slice(2);
  if (!path || !size) {
    console.error('usage: npx tsx test/support/generator.ts PATH SIZE [--rollback]');
    process.exitCode = 64;
  } else {
    const made = generate(path, parseSize(size), { wal: mode !== '--rollback' });
    console.log(`${path}: ${(made / 1e6).toFixed(1)} MB`);
  }
}
