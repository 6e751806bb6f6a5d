/**
 * Damaged sources: flipped bits, zeroed, doubled and swapped pages, truncations, a mutilated header or freelist, on
 * databases of several shapes. The judge is SQLite itself: where a full integrity_check of the damaged file (with its
 * `-wal`) fails structurally, no copy may be called good.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import Database from 'better-sqlite3';
import { atEnd, breakRows, damage, dbbackup, makeDatabase, makeFunctionIndexDatabase, openWriter, PATH, tempDirectory } from '../support/cli.js';
import { type Failure, mustEndCleanly, type Random, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { isAboutRows, isBeyondSqlite, must, mustHaveNoTemp, mustHoldNoBadCopy, sourceState } from './proof.js';

// ------------------------------------------------------------------------------------------------------------ corpus

interface Shape {
  readonly name: string;
  readonly make: (path: string) => void | Promise<void>;
}

function make(path: string, pragmas: string, sql: string): void {
  const db = new Database(path);
  db.exec(`${pragmas}; PRAGMA synchronous = off; ${sql}`);
  db.close();
}

const N = (n: number): string => `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${n})`;

const SHAPES: readonly Shape[] = [
  { name: 'app-wal', make: (p) => makeDatabase(p, { bytes: 200_000 }) },
  { name: 'app-rollback', make: (p) => makeDatabase(p, { journal: 'delete', bytes: 100_000 }) },
  { name: 'small-pages', make: (p) => makeDatabase(p, { pageSize: 512, bytes: 60_000 }) },
  { name: 'large-pages', make: (p) => makeDatabase(p, { pageSize: 65_536, bytes: 600_000, journal: 'delete' }) },
  {
    name: 'live-wal',
    make: async (p) => {
      const temp = join(tempDirectory('live'), 'x.db');
      makeDatabase(temp, { bytes: 80_000 });
      const writer = await openWriter(temp, {
        loop: 'INSERT INTO beat (at) VALUES (hex(randomblob(50))); UPDATE invoice SET cents = cents + 1 WHERE id % 9 = 1',
      });
      await writer.crash();
      copyFileSync(temp, p);
      copyFileSync(`${temp}-wal`, `${p}-wal`);
    },
  },
  {
    name: 'freelist',
    make: (p) =>
      make(
        p,
        'PRAGMA page_size = 1024',
        `CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB); ${N(300)} INSERT INTO t SELECT i, randomblob(900) FROM n; DELETE FROM t WHERE id % 3 > 0`,
      ),
  },
  {
    name: 'auto-vacuum',
    make: (p) =>
      make(
        p,
        'PRAGMA auto_vacuum = full',
        `CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB); CREATE INDEX tb ON t (substr(b, 1, 9)); ${N(60)} INSERT INTO t SELECT i, randomblob(i * 200) FROM n; DELETE FROM t WHERE id % 5 = 0`,
      ),
  },
  {
    name: 'incremental',
    make: (p) =>
      make(
        p,
        'PRAGMA auto_vacuum = incremental',
        `CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB); ${N(60)} INSERT INTO t SELECT i, randomblob(3000) FROM n; DELETE FROM t WHERE id % 2 = 0`,
      ),
  },
  {
    name: 'overflow',
    make: (p) =>
      make(
        p,
        'PRAGMA page_size = 1024',
        `CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b BLOB); CREATE INDEX ta ON t (a); ${N(12)} INSERT INTO t SELECT i, hex(randomblob(700)), randomblob(9000) FROM n`,
      ),
  },
  {
    name: 'utf16',
    make: (p) =>
      make(
        p,
        "PRAGMA encoding = 'UTF-16be'",
        `CREATE TABLE t (a TEXT COLLATE NOCASE, b TEXT UNIQUE); CREATE INDEX ta ON t (a DESC); ${N(600)} INSERT INTO t SELECT 'grün ' || i % 50, 'ö' || i FROM n`,
      ),
  },
  {
    name: 'many-indexes',
    make: (p) =>
      make(
        p,
        'PRAGMA journal_mode = wal',
        `CREATE TABLE t (a, b, c, d GENERATED ALWAYS AS (a + b) STORED, e AS (a * 2));
         CREATE UNIQUE INDEX ta ON t (a); CREATE INDEX tbc ON t (b, c); CREATE INDEX tp ON t (c) WHERE b > 10; CREATE INDEX te ON t (abs(b) + a); CREATE INDEX td ON t (d, e);
         ${N(900)} INSERT INTO t (a, b, c) SELECT i, i % 31, 'c' || i % 7 FROM n; ANALYZE`,
      ),
  },
  {
    name: 'without-rowid',
    make: (p) =>
      make(
        p,
        '',
        `CREATE TABLE w (a TEXT, b INTEGER, c BLOB, PRIMARY KEY (b, a)) WITHOUT ROWID; CREATE INDEX wc ON w (c); ${N(700)} INSERT INTO w SELECT 'a' || i % 13, i, randomblob(20) FROM n`,
      ),
  },
  {
    name: 'full-text',
    make: (p) =>
      make(
        p,
        'PRAGMA journal_mode = wal',
        `CREATE VIRTUAL TABLE f USING fts5 (body); CREATE VIRTUAL TABLE r USING rtree (id, x0, x1); ${N(300)} INSERT INTO f SELECT 'word' || i % 40 || ' other' || i || ' more' FROM n; ${N(100)} INSERT INTO r SELECT i, i, i + 2 FROM n`,
      ),
  },
  {
    name: 'broken-rows',
    make: (p) => {
      makeDatabase(p, { bytes: 60_000, journal: 'delete' });
      breakRows(p);
    },
  },
  {
    name: 'listed-values',
    make: (p) => {
      const columns = "id INTEGER PRIMARY KEY, s TEXT CHECK (s IN ('open', 'paid', 'void')), n INTEGER";
      const rows = "SELECT i, substr('openpaidvoid', 1 + 4 * (i % 3), 4), i % 50 FROM n";
      make(
        p,
        'PRAGMA journal_mode = wal',
        `CREATE TABLE t (${columns}, CHECK (n < 60)); CREATE INDEX ts ON t (s, n); CREATE TABLE w (${columns}) WITHOUT ROWID; CREATE INDEX ws ON w (s);
         ${N(900)} INSERT INTO t ${rows}; ${N(900)} INSERT INTO w ${rows}; PRAGMA ignore_check_constraints = on; UPDATE w SET s = 'lost' WHERE id % 90 = 0`,
      );
    },
  },
  { name: 'function-index', make: (p) => makeFunctionIndexDatabase(p, 'delete') },
  {
    name: 'objects',
    make: (p) =>
      make(
        p,
        '',
        `CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a NOT NULL CHECK (a <> 'z'), r REFERENCES t (id)); CREATE VIEW v AS SELECT a FROM t; CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET r = 1 WHERE id = new.id; END; ${N(400)} INSERT INTO t (a) SELECT 'a' || i FROM n`,
      ),
  },
];

// ------------------------------------------------------------------------------------------------------------ damage

/** What the header says, or something usual where an earlier damage left nothing there. */
const pageSizeOf = (file: string): number => {
  const raw = readFileSync(file).readUInt16BE(16);
  return raw === 1 ? 65_536 : raw || 4096;
};

/** Each does its damage to the database file (or its `-wal`) and says what it did. */
const DAMAGES: readonly ((file: string, random: Random) => string)[] = [
  (file, random) => flip(file, random, 1, 0),
  (file, random) => flip(file, random, 1, 0),
  (file, random) => flip(file, random, 2 + random.below(30), 0),
  (file, random) => {
    // Page headers and cell pointers sit at the beginning of a page: most bits elsewhere are only content.
    const size = pageSizeOf(file);
    const page = random.below(Math.floor(statSync(file).size / size));
    const offset = page * size + (page === 0 ? 100 : 0) + random.below(60);
    return flipAt(file, offset, random.below(8));
  },
  (file, random) => {
    const size = pageSizeOf(file);
    const page = random.below(Math.floor(statSync(file).size / size));
    damage(file, page * size, new Uint8Array(size));
    return `page ${page + 1} zeroed`;
  },
  (file, random) => {
    const { size, a, b } = twoPages(file, random);
    const bytes = readFileSync(file);
    damage(file, b * size, bytes.subarray(a * size, (a + 1) * size));
    return `page ${a + 1} copied over page ${b + 1}`;
  },
  (file, random) => {
    const { size, a, b } = twoPages(file, random);
    const bytes = readFileSync(file);
    damage(file, b * size, bytes.subarray(a * size, (a + 1) * size));
    damage(file, a * size, bytes.subarray(b * size, (b + 1) * size));
    return `pages ${a + 1} and ${b + 1} swapped`;
  },
  (file, random) => {
    const length = 1 + random.below(Math.max(1, statSync(file).size - 1));
    truncateSync(file, length);
    return `truncated to ${length} bytes`;
  },
  (file, random) => {
    const size = pageSizeOf(file);
    const pages = 1 + random.below(Math.max(1, Math.floor(statSync(file).size / size) - 1));
    truncateSync(file, pages * size);
    return `truncated to ${pages} pages`;
  },
  (file, random) => {
    const offset = random.below(100);
    damage(file, offset, random.bytes(1 + random.below(4)));
    return `header changed at ${offset}`;
  },
  (file, random) => {
    // Bytes 32 to 39: the first freelist trunk page and the number of free pages.
    const bytes = Buffer.alloc(8);
    bytes.writeUInt32BE(random.below(random.chance(0.5) ? 20 : 100_000), 0);
    bytes.writeUInt32BE(random.below(random.chance(0.5) ? 20 : 100_000), 4);
    damage(file, 32, bytes);
    return 'freelist header changed';
  },
  (file, random) => {
    const size = pageSizeOf(file);
    const trunk = readFileSync(file).readUInt32BE(32);
    // A header that was changed before may name a page far behind the end.
    if (trunk === 0 || trunk * size > statSync(file).size) return flip(file, random, 4, 0);
    const offset = (trunk - 1) * size + 4 * random.below(12);
    damage(file, offset, random.bytes(4));
    return `freelist trunk page ${trunk} changed at ${offset}`;
  },
  (file, random) => {
    const at = random.below(statSync(file).size);
    damage(file, at, random.bytes(1 + random.below(3000)));
    return `garbage at ${at}`;
  },
  (file, random) => {
    const bytes = readFileSync(file);
    const shift = 1 + random.below(64);
    const at = random.below(bytes.length);
    writeFileSync(file, Buffer.concat([bytes.subarray(0, at), random.bytes(shift), bytes.subarray(at)]));
    return `${shift} bytes inserted at ${at}`;
  },
];

function twoPages(file: string, random: Random): { size: number; a: number; b: number } {
  const size = pageSizeOf(file);
  const pages = Math.floor(statSync(file).size / size);
  const a = random.below(pages);
  return { size, a, b: (a + 1 + random.below(pages - 1)) % pages };
}

function flipAt(file: string, offset: number, bit: number): string {
  const byte = readFileSync(file)[offset] ?? 0;
  damage(file, offset, Uint8Array.of(byte ^ (1 << bit)));
  return `bit ${bit} of byte ${offset} flipped`;
}

function flip(file: string, random: Random, bits: number, from: number): string {
  const size = statSync(file).size;
  const done = Array.from({ length: bits }, () => flipAt(file, from + random.below(size - from), random.below(8)));
  return done.slice(0, 3).join(', ') + (bits > 3 ? `, ${bits} bits in all` : '');
}

// ------------------------------------------------------------------------------------------------------------- judge

/** A process of its own, because a damaged database can take its reader down. */
class Judge {
  #process: ChildProcess | null = null;
  #waiting: ((findings: readonly string[]) => void) | null = null;

  /** All findings of SQLite's integrity_check on this very file (it is opened read-write: give it a private copy). */
  findings(path: string): Promise<readonly string[]> {
    const judge = this.#started();
    return new Promise((done) => {
      this.#waiting = done;
      judge.stdin?.write(`${path}\n`);
    });
  }

  #started(): ChildProcess {
    if (this.#process) return this.#process;
    const child = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), join(import.meta.dirname, 'judge.ts')], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: { PATH },
      cwd: '/',
    });
    createInterface({ input: child.stdout }).on('line', (line) => this.#answer(JSON.parse(line) as string[]));
    child.on('close', () => {
      this.#process = null;
      this.#answer(['error: the checking process died']);
    });
    this.#process = child;
    return child;
  }

  #answer(findings: readonly string[]): void {
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.(findings);
  }

  end(): void {
    this.#process?.stdin?.end();
  }
}

// ------------------------------------------------------------------------------------------------------------ rounds

const LANES = 2;

async function play(request: Request): Promise<Failure[]> {
  const corpus = tempDirectory('corpus');
  for (const shape of SHAPES) await shape.make(join(corpus, shape.name));
  const judges = Array.from({ length: LANES }, () => new Judge());
  atEnd(() => {
    for (const judge of judges) judge.end();
  });
  const idle = [...judges];
  const seen = { structural: 0, suspectKept: 0, rowsOnly: 0, intact: 0, intactRefused: new Map<string, number>() };
  const failures = await rounds(
    'damaged',
    request,
    async (round) => {
      const judge = idle.pop();
      if (!judge) throw new Error('more lanes than judges');
      try {
        await one(corpus, judge, round, seen);
      } finally {
        idle.push(judge);
      }
    },
    LANES,
  );
  for (const judge of judges) judge.end();
  const refused = [...seen.intactRefused].map(([code, n]) => `${code} ${n}`).join(', ');
  request.note?.(
    `structurally damaged ${seen.structural} (${seen.suspectKept} kept as suspect), rows only ${seen.rowsOnly}, intact to SQLite ${seen.intact}${refused ? ` (refused all the same: ${refused})` : ''}`,
  );
  return failures;
}

interface Seen {
  structural: number;
  suspectKept: number;
  rowsOnly: number;
  intact: number;
  readonly intactRefused: Map<string, number>;
}

async function one(corpus: string, judge: Judge, { random, directory, index, say }: Round, seen: Seen): Promise<void> {
  const shape = SHAPES[index % SHAPES.length];
  if (!shape) throw new Error('no shapes');
  const source = join(directory, 'app.db');
  copyFileSync(join(corpus, shape.name), source);
  if (existsSync(join(corpus, `${shape.name}-wal`))) copyFileSync(join(corpus, `${shape.name}-wal`), `${source}-wal`);
  const damages = Array.from({ length: random.chance(0.15) ? 2 : 1 }, () =>
    existsSync(`${source}-wal`) && random.chance(0.4)
      ? `in -wal: ${flip(`${source}-wal`, random, 1 + random.below(3), 0)}`
      : random.pick(DAMAGES)(source, random),
  );
  say(`${shape.name}: ${damages.join(', ')}`);

  const mine = join(directory, 'judged');
  mkdirSync(mine);
  copyFileSync(source, join(mine, 'x.db'));
  if (existsSync(`${source}-wal`)) copyFileSync(`${source}-wal`, join(mine, 'x.db-wal'));
  const findings = await judge.findings(join(mine, 'x.db'));
  const structural = findings.filter((f) => !isAboutRows(f) && !isBeyondSqlite(f));
  rmSync(mine, { recursive: true });
  say(structural.length > 0 ? `SQLite: ${structural.slice(0, 2).join(' | ')}` : 'SQLite finds no structural damage');

  const before = sourceState(source);
  const to = join(directory, 'backups');
  const run = await dbbackup(['run', source, '--to', to, '--json']);
  say(told(run));
  mustEndCleanly(run);
  must(run.code !== 3, 'exit 3 although no later step was hindered');
  must(sourceState(source) === before, 'the source or its -wal was written to');
  const found = mustHoldNoBadCopy(to, 'after the run');
  mustHaveNoTemp(to, 'after the run');
  must(found.loneData.length === 0 && found.loneManifests.length === 0, 'half a copy was left');
  const good = [...found.pairs.values()].filter((m) => m.status === 'good');
  must((run.code === 0) === (good.length === 1), () => `exit ${run.code}, and ${good.length} good copies`);
  const unchecked = (run.json.warnings ?? []).some((w) => w.code === 'TABLES_UNCHECKED');
  must(good.length === 0 || unchecked || !findings.some(isBeyondSqlite), 'called good without a word on what could not be checked');
  if (structural.length > 0) {
    must(good.length === 0, 'a copy of a structurally damaged source is called good');
    seen.structural++;
    if (found.pairs.size > 0) seen.suspectKept++;
    must(found.pairs.size === 0 || run.json.error?.code === 'SOURCE_CORRUPT', () => `a suspect copy, and the error is ${run.json.error?.code}`);
  } else {
    if (findings.length > 0) seen.rowsOnly++;
    else seen.intact++;
    const code = run.json.error?.code;
    if (code) seen.intactRefused.set(code, (seen.intactRefused.get(code) ?? 0) + 1);
  }
}

export const damaged: Scenario = {
  name: 'damaged',
  promise: 'a copy is never called good where the full check of the source fails structurally',
  ci: 100,
  soak: 20_000,
  needs: [],
  play,
};
