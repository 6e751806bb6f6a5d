/**
 * How tests meet dbbackup: the real executable in an environment as bare as cron's, real SQLite databases in every
 * state an application can leave one in, and processes that hold them. Everything made here is gone when the test file
 * (or the soak) ends; set KEEP_TEMP=1 to look at it afterwards.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database from 'better-sqlite3';
import type { Copy, RunRecord } from '../../src/records.js';
import { betrayed } from './canaries.js';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));
/** TEST_EXECUTABLE points the same tests at an installed tarball, or at a build that nobody else is about to replace. */
export const EXECUTABLE = process.env['TEST_EXECUTABLE'] ?? join(ROOT, 'bin/dbbackup.js');

// ---------------------------------------------------------------------------------------------- temp directories

const temps = new Set<string>();
const children = new Set<ChildProcess>();
const undo: (() => void)[] = [];

/** A new empty directory, 0700, removed at the end. TEST_TMP names another place than /tmp, a faster disk for example. */
export function tempDirectory(label = 'test'): string {
  const path = mkdtempSync(join(process.env['TEST_TMP'] ?? '/tmp', `dbbackup-${label}-`));
  temps.add(path);
  return path;
}

/** The same, for as long as this process lives: for what several test files use. */
export function lastingDirectory(label: string): string {
  const path = tempDirectory(label);
  temps.delete(path);
  const over = (): void => removeDirectory(path);
  process.on('exit', over);
  // Which is how vitest ends its processes.
  process.once('SIGTERM', () => {
    over();
    process.kill(process.pid, 'SIGTERM');
  });
  return path;
}

/** The same, open to all users (for tests that change uid): 0755. */
export function openTempDirectory(label = 'test'): string {
  const path = tempDirectory(label);
  chmodSync(path, 0o755);
  return path;
}

/** Hands a directory over: it stays (evidence of a failure). */
export function keepDirectory(path: string): void {
  temps.delete(path);
}

export function removeDirectory(path: string): void {
  temps.delete(path);
  if (process.env['KEEP_TEMP']) return;
  rmSync(path, { recursive: true, force: true });
}

/** Something to undo at the end, before the temp directories go: a mount, say. Last in, first out. */
export function atEnd(action: () => void): void {
  undo.push(action);
}

/** Ends what was started, unmounts what was mounted, removes what was made. */
export function cleanUp(): void {
  for (const child of children) child.kill('SIGKILL');
  const failed: unknown[] = [];
  for (const action of undo.splice(0).reverse()) {
    try {
      action();
    } catch (error) {
      // The others all the same: what stays mounted stays for ever.
      failed.push(error);
    }
  }
  for (const path of temps) removeDirectory(path);
  if (failed.length > 0) throw failed[0];
}

// In vitest each file cleans up after itself (after-each-file.ts), and a process runs several.
if (!process.env['VITEST']) {
  process.on('exit', cleanUp);
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const) {
    process.on(signal, () => {
      cleanUp();
      process.exitCode = code;
      process.kill(process.pid, 'SIGKILL');
    });
  }
}

// ------------------------------------------------------------------------------------------------ what is possible

/** Debian's cron daemon, where it is installed. */
export const CRON = ['/usr/sbin/cron'].find((path) => existsSync(path)) ?? null;

const WAYS = {
  root: () => process.getuid?.() === 0 || 'this needs root',
  strace: () => spawnSync('strace', ['-o', '/dev/null', 'true']).status === 0 || 'this needs strace, and the right to trace',
  setpriv: () => spawnSync('setpriv', ['--version']).status === 0 || 'this needs setpriv (util-linux)',
  faketime: () => spawnSync('faketime', ['-f', '+1d', 'true']).status === 0 || 'this needs faketime',
  mount: () => spawnSync('unshare', ['-m', 'true']).status === 0 || 'this needs the right to mount',
  python3: () => spawnSync('python3', ['-c', '0']).status === 0 || 'this needs python3 (for an ioctl)',
  age: () => spawnSync('age', ['--version']).status === 0 || 'this needs the program age',
  zstd: () => spawnSync('zstd', ['--version']).status === 0 || 'this needs the program zstd',
  gunzip: () => spawnSync('gunzip', ['--version']).status === 0 || 'this needs the program gunzip',
  sqlite3: () => spawnSync('sqlite3', ['--version']).status === 0 || 'this needs the program sqlite3',
  promtool: () => spawnSync('promtool', ['--version']).status === 0 || 'this needs promtool (Debian: prometheus)',
  systemd: () => spawnSync('systemd-analyze', ['--version']).status === 0 || 'this needs systemd-analyze',
  cron: () => CRON !== null || 'this needs the cron daemon (Debian: cron)',
  loop: () => (existsSync('/dev/loop-control') && spawnSync('losetup', ['-f']).status === 0) || 'this needs loop devices',
} as const;

export type Need = keyof typeof WAYS;

/** Why a test cannot be run here, or null when it can. */
export function cannot(...needs: Need[]): string | null {
  for (const need of needs) {
    const possible = WAYS[need]();
    if (possible !== true) return possible;
  }
  return null;
}

// ---------------------------------------------------------------------------------------------------- the executable

/** What any command may answer with --json; absent fields are undefined. */
export interface Answer extends Partial<Omit<RunRecord, 'command'>> {
  readonly command?: string;
  readonly ok?: boolean;
  readonly copies?: readonly Copy[];
  readonly runs?: readonly RunRecord[];
  readonly healthy?: boolean;
  readonly newestGood?: (Copy & { ageSeconds: number }) | null;
  readonly lastRun?: RunRecord | null;
  readonly problems?: readonly { code: string; severity: string; message: string }[];
}

export interface Result {
  /** The exit code; null after a signal. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
  /** stdout as one JSON document; empty when it is none. */
  readonly json: Answer;
  readonly isJson: boolean;
  readonly durationMs: number;
  /** True when the deadline passed and the process had to be killed. */
  readonly hung: boolean;
}

export interface Options {
  /** Added to an environment that otherwise holds PATH alone. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Words before the command: one of the wrappers below. */
  readonly through?: readonly string[];
  /** Killed, with all in its session, after this many milliseconds. */
  readonly deadlineMs?: number;
  readonly executable?: string;
}

export interface Running {
  readonly pid: number;
  readonly result: Promise<Result>;
  /** Text so far. */
  readonly stderr: () => string;
  readonly isRunning: () => boolean;
}

export const PATH = [...new Set([dirname(process.execPath), '/usr/local/bin', '/usr/bin', '/bin'])].join(':');

/** A directory with `node`, what the shell needs, and of these programs those that are named: for PATH. */
export function pathOf(...programs: readonly string[]): string {
  const directory = tempDirectory('path');
  for (const name of ['node', 'env', 'sh', 'cat', 'head', 'sleep', ...programs]) {
    const from = PATH.split(':')
      .map((d) => join(d, name))
      .find((f) => existsSync(f));
    if (from === undefined) throw new Error(`there is no ${name} in ${PATH}`);
    symlinkSync(from, join(directory, name));
  }
  return directory;
}

/** A PATH in which a shell script of this body comes first under that name. */
export function pathWith(name: string, body: string, rest = PATH): string {
  const directory = tempDirectory('fake');
  writeFileSync(join(directory, name), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  return `${directory}:${rest}`;
}

/** Starts a command in a session of its own, without a terminal, with a scrubbed environment. */
export function start(args: readonly string[], options: Options = {}): Running {
  return startCommand([...(options.through ?? []), options.executable ?? EXECUTABLE, ...args], options);
}

/** Runs dbbackup to its end. */
export const dbbackup = (args: readonly string[], options: Options = {}): Promise<Result> => start(args, options).result;

export function startCommand(words: readonly string[], options: Options = {}): Running {
  const [program, ...rest] = words;
  if (program === undefined) throw new Error('no command');
  const began = performance.now();
  const child = spawn(program, rest, {
    cwd: options.cwd ?? '/',
    env: { PATH, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  children.add(child);
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  child.stdout.on('data', (b: Buffer) => out.push(b));
  child.stderr.on('data', (b: Buffer) => err.push(b));
  let hung = false;
  const timer = setTimeout(() => {
    hung = true;
    killGroup(child.pid ?? 0, 'SIGKILL');
  }, options.deadlineMs ?? 120_000);
  const result = new Promise<Result>((done, fail) => {
    let durationMs = 0;
    const finish = (): void => {
      clearTimeout(timer);
      children.delete(child);
      const stdout = Buffer.concat(out).toString();
      const told = betrayed({ args: words, env: options.env ?? {} }, stdout + Buffer.concat(err).toString());
      if (told.length > 0) fail(new Error(told.join('\n')));
      const json = parseJson(stdout);
      done({
        code: child.exitCode,
        signal: child.signalCode,
        stdout,
        stderr: Buffer.concat(err).toString(),
        json: json ?? {},
        isJson: json !== null,
        durationMs,
        hung,
      });
    };
    child.on('error', fail);
    // 'close' waits for everybody who holds our pipes: a process left behind must not make the test wait for ever.
    child.on('exit', () => {
      durationMs = performance.now() - began;
      setTimeout(() => {
        child.stdout.destroy();
        child.stderr.destroy();
      }, 3000).unref();
    });
    child.on('close', finish);
  });
  return {
    pid: child.pid ?? 0,
    result,
    stderr: () => Buffer.concat(err).toString(),
    isRunning: () => child.exitCode === null && child.signalCode === null,
  };
}

/** A signal to a process and all in its session's group, as a terminal's Ctrl-C is; false when it is gone. */
export function killGroup(pid: number, signal: NodeJS.Signals): boolean {
  return signalTo(-pid, signal);
}

export function signalTo(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}

function parseJson(text: string): Answer | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Answer) : null;
  } catch {
    return null;
  }
}

/** Waits until something can be observed; throws after the deadline, saying what was waited for. */
export async function until(what: string, look: () => boolean | Promise<boolean>, deadlineMs = 10_000, everyMs = 5): Promise<void> {
  const end = performance.now() + deadlineMs;
  while (!(await look())) {
    if (performance.now() > end) throw new Error(`waited ${deadlineMs} ms in vain for: ${what}`);
    await new Promise((r) => setTimeout(r, everyMs));
  }
}

// ---------------------------------------------------------------------------------------------------------- wrappers

export interface Fault {
  /** System calls, as strace names them: `fsync`, `openat`, `link,linkat`. */
  readonly calls: string;
  readonly error?: 'EIO' | 'EDQUOT' | 'EROFS' | 'ENOSPC' | 'EACCES' | 'ENOTSUP' | 'EINVAL';
  readonly signal?: 'KILL' | 'STOP' | 'TERM' | 'INT' | 'HUP';
  /** The N-th such call of a thread; each call counts apart (traps, 46). */
  readonly when?: number;
}

/** @param seldom it stops a process at these calls alone, which costs half; a signal is not put in then */
const strace = (log: string, calls: ReadonlySet<string>, inject: readonly string[], seldom: boolean): string[] => [
  ...['strace', ...(seldom ? ['--seccomp-bpf'] : []), '-ff', '-qq', '-y', '-s', '4096', '-o', log, '-e', `trace=${[...calls].join(',')}`, ...inject, '--'],
];

/** Words to put before a command (Options.through). They can be chained: `[...as(uid), ...without('chown')]`. */
export const wrap = {
  /** As another user, with exactly these groups. */
  as: (uid: number, gid = uid, groups: readonly number[] = []): string[] => [
    'setpriv',
    '--reuid',
    String(uid),
    '--regid',
    String(gid),
    ...(groups.length > 0 ? ['--groups', groups.join(',')] : ['--clear-groups']),
    '--',
  ],
  /** Root without some capabilities, as a hardened unit runs it. */
  without: (...capabilities: string[]): string[] => {
    const minus = capabilities.map((c) => `-${c}`).join(',');
    return ['setpriv', '--bounding-set', minus, '--inh-caps', minus, '--'];
  },
  /** As another user, to whom /proc shows no process but his own (hidepid, systemd's ProtectProc=invisible). */
  unseeing: (uid: number): string[] => [
    ...['unshare', '-m', 'sh', '-c', 'mount -t proc -o hidepid=2 proc /proc && exec "$0" "$@"'],
    ...['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups', '--'],
  ],
  /** Errors or signals put into system calls. `log` gets one file per thread: `log.TID`. */
  fault: (log: string, faults: readonly Fault[]): string[] => {
    const inject = faults.flatMap((f) => {
      const what = f.error ? `error=${f.error}` : `signal=${f.signal ?? 'KILL'}`;
      return ['-e', `inject=${f.calls}:${what}${f.when === undefined ? '' : `:when=${f.when}`}`];
    });
    return strace(
      log,
      new Set(faults.flatMap((f) => f.calls.split(','))),
      inject,
      faults.every((f) => f.error),
    );
  },
  /** Notes these calls, and puts in nothing. */
  trace: (log: string, calls: string): string[] => strace(log, new Set(calls.split(',')), [], true),
  /** Every such call, or the one with that number in each thread, takes this much longer: something then lasts as long as a test needs. */
  slow: (calls: string, microseconds: number, when?: number): string[] => [
    'strace',
    '-f',
    '-qq',
    '-o',
    '/dev/null',
    '-e',
    `trace=${calls}`,
    '-e',
    `inject=${calls}:delay_exit=${microseconds}${when === undefined ? '' : `:when=${when}`}`,
    '--',
  ],
  /** The clock, moved: `+2d`, `-90m`. */
  clock: (offset: string): string[] => ['faketime', '-f', offset],
  /** A shell's ulimit: `limit('-f', 100)`. */
  limit: (flag: string, value: number): string[] => ['sh', '-c', `ulimit ${flag} ${value}; exec "$0" "$@"`],
  stdoutClosed: ['sh', '-c', 'exec "$0" "$@" >&-'],
  stdoutFull: ['sh', '-c', 'exec "$0" "$@" >/dev/full'],
  stderrFull: ['sh', '-c', 'exec "$0" "$@" 2>/dev/full'],
  umask: (mask: string): string[] => ['sh', '-c', `umask ${mask}; exec "$0" "$@"`],
} as const;

/** An executable that `uid` can run: our own, or a copy of it where the working tree is closed to others. */
export function executableFor(uid: number): string {
  const readable = spawnSync('setpriv', ['--reuid', String(uid), '--clear-groups', '--', 'test', '-r', join(dirname(dirname(EXECUTABLE)), 'dist/main.js')]);
  if (readable.status === 0) return EXECUTABLE;
  const copy = openTempDirectory('executable');
  const from = dirname(dirname(EXECUTABLE));
  for (const part of ['bin', 'dist', 'node_modules', 'package.json']) spawnSync('cp', ['-rL', join(from, part), join(copy, part)]);
  spawnSync('chmod', ['-R', 'a+rX', copy]);
  return join(copy, 'bin/dbbackup.js');
}

// --------------------------------------------------------------------------------------------------------- databases

export interface Shape {
  readonly journal?: 'wal' | 'delete';
  readonly pageSize?: number;
  readonly encoding?: 'UTF-8' | 'UTF-16le';
  /** Approximate size in bytes; 0 leaves the tables with a few rows. */
  readonly bytes?: number;
}

/** A database such as an application has: rows, an index, a WITHOUT ROWID table, blobs, a foreign key, a CHECK. */
export function makeDatabase(path: string, shape: Shape = {}): void {
  const db = new Database(path);
  try {
    db.pragma(`encoding = '${shape.encoding ?? 'UTF-8'}'`);
    db.pragma(`page_size = ${shape.pageSize ?? 4096}`);
    db.pragma(`journal_mode = ${shape.journal ?? 'wal'}`);
    db.pragma('synchronous = off');
    db.exec(`
      CREATE TABLE customer (id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, born INTEGER CHECK (born > 1850));
      CREATE TABLE invoice (id INTEGER PRIMARY KEY AUTOINCREMENT, customer INTEGER NOT NULL REFERENCES customer (id), cents INTEGER NOT NULL, note TEXT);
      CREATE INDEX invoice_customer ON invoice (customer, cents);
      CREATE TABLE setting (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
      CREATE TABLE beat (id INTEGER PRIMARY KEY, at TEXT);
      PRAGMA user_version = 7;
      PRAGMA application_id = 1145197122;`);
    // About 640 bytes for a customer with four invoices and a setting.
    const customers = Math.max(5, Math.floor((shape.bytes ?? 0) / 640));
    db.exec(`
      BEGIN;
      WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${customers})
        INSERT INTO customer SELECT i, 'person' || i || '@example.org', 1900 + i % 100 FROM n;
      WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${customers * 4})
        INSERT INTO invoice SELECT i, 1 + i % ${customers}, abs(random() % 100000), hex(randomblob(20 + i % 60)) FROM n;
      WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${Math.ceil(customers / 4)})
        INSERT INTO setting SELECT 'key' || i, randomblob(100 + i % 7) FROM n;
      COMMIT;`);
  } finally {
    db.close();
  }
}

/** Rows that break CHECK, NOT NULL and a foreign key, as an application with the checks off leaves them. */
export function breakRows(path: string): void {
  const db = new Database(path);
  try {
    db.unsafeMode(true);
    db.pragma('foreign_keys = off');
    db.pragma('ignore_check_constraints = on');
    db.exec(`
      INSERT INTO customer VALUES (900001, 'old@example.org', 1700);
      INSERT INTO invoice (customer, cents) VALUES (999999, 1);
      PRAGMA writable_schema = on;
      UPDATE sqlite_schema SET sql = replace(sql, 'note TEXT', 'note TEXT NOT NULL') WHERE name = 'invoice';
      PRAGMA writable_schema = reset;`);
  } finally {
    db.close();
  }
}

/** An index over a function that only the application has: VACUUM INTO fails on it (traps, 16). */
export function makeFunctionIndexDatabase(path: string, journal: 'wal' | 'delete' = 'wal'): void {
  const db = new Database(path);
  try {
    db.pragma(`journal_mode = ${journal}`);
    db.function('fold', { deterministic: true }, (text) => String(text).toLowerCase());
    db.exec(
      'CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX word_folded ON word (fold(text)); CREATE TABLE plain (id INTEGER PRIMARY KEY)',
    );
    const insert = db.prepare('INSERT INTO word (text) VALUES (?)');
    for (let i = 0; i < 200; i++) insert.run(`Word ${i * 7919}`);
  } finally {
    db.close();
  }
}

/** Overwrites bytes of a file in place. */
export function damage(path: string, offset: number, bytes: Uint8Array): void {
  const fd = openSync(path, 'r+');
  try {
    writeSync(fd, bytes, 0, bytes.length, offset);
  } finally {
    closeSync(fd);
  }
}

/** The number of the first page of a table's or an index's b-tree (1 is the first page of the file). */
export function rootPage(path: string, name: string): number {
  const db = new Database(path, { readonly: true });
  try {
    return db.prepare('SELECT rootpage FROM sqlite_schema WHERE name = ?').pluck().get(name) as number;
  } finally {
    db.close();
  }
}

export function query<T>(path: string, sql: string): T {
  const db = new Database(path, { readonly: true });
  try {
    return db.prepare(sql).pluck().get() as T;
  } finally {
    db.close();
  }
}

// ------------------------------------------------------------------------------------- processes that use a database

/**
 * Plain JavaScript because it is handed to `node -e`. Opens a database, executes statements, says "ready"; then repeats
 * `loop` until its stdin ends and says how often that went well, or does nothing until it is killed.
 */
const USER_OF_A_DATABASE = `
const [driver, path, setup, loop, beatMs] = process.argv.slice(1);
const db = new (require(driver))(path, { timeout: 10000 });
const step = (sql) => { for (const s of sql) db.exec(s); };
step(JSON.parse(setup));
process.stdout.write('ready\\n');
let done = 0, failed = 0, first = '', ended = false;
process.stdin.resume();
process.stdin.on('end', () => { ended = true; if (!loop) { db.close(); } });
const next = () => {
  if (ended) { db.close(); process.stdout.write(JSON.stringify({ done, failed, first }) + '\\n'); return; }
  try { db.exec(loop); done++; } catch (e) { failed++; first ||= String(e.code || e); if (db.inTransaction) db.exec('ROLLBACK'); }
  Number(beatMs) > 0 ? setTimeout(next, Number(beatMs)) : setImmediate(next);
};
if (loop) next();
`;

export interface UserOfDatabase {
  readonly pid: number;
  /** Closes the database properly and returns what the loop did. */
  readonly stop: () => Promise<{ done: number; failed: number; first: string }>;
  /** kill -9, as an application crashes. */
  readonly crash: () => Promise<void>;
}

export interface UseOptions {
  readonly loop?: string;
  readonly beatMs?: number;
  readonly through?: readonly string[];
}

/** Another process with the database open: executes `setup`, then holds on, or repeats `loop`. Resolves once set up. */
export async function useDatabase(path: string, setup: readonly string[], options: UseOptions = {}): Promise<UserOfDatabase> {
  const driver = createRequire(import.meta.url).resolve('better-sqlite3');
  const words = [...(options.through ?? []), process.execPath, '-e', USER_OF_A_DATABASE, driver, path, JSON.stringify(setup), options.loop ?? ''];
  const [program = '', ...args] = [...words, String(options.beatMs ?? 0)];
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env: { PATH }, cwd: '/' });
  children.add(child);
  let text = '';
  let errors = '';
  child.stdout.on('data', (b: Buffer) => {
    text += b.toString();
  });
  child.stderr.on('data', (b: Buffer) => {
    errors += b.toString();
  });
  const gone = new Promise<void>((done) => {
    child.on('close', () => {
      children.delete(child);
      done();
    });
  });
  await until('the process that uses the database', () => {
    if (child.exitCode !== null || child.signalCode !== null) throw new Error(`could not use ${path}: ${errors}`);
    return text.includes('ready\n');
  });
  return {
    pid: child.pid ?? 0,
    stop: async () => {
      child.stdin.end();
      await gone;
      const last = text.trim().split('\n').at(-1) ?? '';
      return last.startsWith('{') ? JSON.parse(last) : { done: 0, failed: 0, first: '' };
    },
    crash: async () => {
      child.kill('SIGKILL');
      await gone;
    },
  };
}

/** A process that holds the database exclusively, so that nobody else can even read. */
export const holdExclusively = (path: string): Promise<UserOfDatabase> =>
  useDatabase(path, ['PRAGMA locking_mode = EXCLUSIVE', 'BEGIN EXCLUSIVE', 'CREATE TABLE IF NOT EXISTS held (id)']);

/** An application that has the (WAL) database open, with changes in the WAL that no checkpoint has moved yet. */
export const openWriter = (path: string, options: UseOptions = {}): Promise<UserOfDatabase> =>
  useDatabase(
    path,
    ['PRAGMA busy_timeout = 10000', 'PRAGMA wal_autocheckpoint = 0', "INSERT INTO beat (at) VALUES ('opened')", "INSERT INTO beat (at) VALUES ('again')"],
    options,
  );

/** Leaves a hot rollback journal: a writer is killed in the middle of a transaction that has already spilled to the file. */
export async function makeHotJournal(path: string): Promise<void> {
  makeDatabase(path, { journal: 'delete', bytes: 400_000 });
  const writer = await useDatabase(path, ['PRAGMA cache_size = 5', 'BEGIN IMMEDIATE', "UPDATE invoice SET note = note || 'x'"]);
  await writer.crash();
  if (!existsSync(`${path}-journal`) || statSync(`${path}-journal`).size === 0) throw new Error('no hot journal was left');
}

/** Leaves `-wal` (with content) and `-shm` beside an idle database, as an application that was killed does. */
export async function leaveSidecars(path: string, options: UseOptions = {}): Promise<void> {
  const writer = await openWriter(path, options);
  await writer.crash();
  if (!existsSync(`${path}-wal`) || statSync(`${path}-wal`).size === 0) throw new Error('no -wal was left');
}

/** Makes a directory that belongs to somebody. */
export function directoryOf(path: string, uid: number, gid = uid, mode = 0o755): string {
  mkdirSync(path);
  chownSync(path, uid, gid);
  chmodSync(path, mode);
  return path;
}

/** Gives a database and its sidecars to somebody. */
export function giveDatabase(path: string, uid: number, gid = uid, mode = 0o640): void {
  for (const file of [path, `${path}-wal`, `${path}-shm`, `${path}-journal`]) {
    if (!existsSync(file)) continue;
    chownSync(file, uid, gid);
    chmodSync(file, mode);
  }
}

export const readJson = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'));
