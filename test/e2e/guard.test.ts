/** Guarded commands: real migrations that end well, badly, or not at all, and what the database is afterwards. */
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { processesAt, recordsOf } from '../fault/proof.js';
import {
  breakRows,
  cannot,
  dbbackup,
  EXECUTABLE,
  killGroup,
  makeDatabase,
  type Options,
  openWriter,
  PATH,
  query,
  type Result,
  readJson,
  signalTo,
  start,
  until,
  useDatabase,
} from '../support/cli.js';
import { dataFiles, linesOf, modeOf, type Scene, scene, tree } from './scene.js';

const DRIVER = createRequire(import.meta.url).resolve('better-sqlite3');
/** A migration as a tool would run it: JavaScript with the database open as `db`, its path in argv. */
const migration = (body: string): string[] => [process.execPath, '-e', `const db = new (require('${DRIVER}'))(process.argv[1]); ${body}`, '{}'];

const guard = (s: Scene, flags: readonly string[], words: readonly string[], options: Options = {}): Promise<Result> =>
  s.ask('guard', ['--database', s.source, '--json', ...flags, '--', ...words], options);

/** Everything in a database, row by row: schema, tables, pragmas. */
function contentOf(path: string): unknown {
  const db = new Database(path, { readonly: true });
  try {
    const tables = db.prepare<[], string>("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").pluck().all();
    return {
      schema: db.prepare('SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name').all(),
      rows: tables.map((t) => [t, db.prepare(`SELECT * FROM "${t}" ORDER BY 1`).raw().all()]),
      userVersion: db.pragma('user_version', { simple: true }),
      journal: db.pragma('journal_mode', { simple: true }),
      integrity: db.pragma('integrity_check', { simple: true }),
    };
  } finally {
    db.close();
  }
}

const RUN_FIELDS = [
  'schemaVersion command runId name profile status dryRun startedAt finishedAt durationMs exitCode attempts source copy stages kept pruned warnings',
  'error resources',
].flatMap((line) => line.split(' '));
const GUARD_FIELDS = ['backupPoint', 'child', 'checks', 'tables', 'rolledBack', 'setAside'];

/** The document as DESIGN says, whatever came of it. */
function expectShape(json: Result['json'], dryRun = false): void {
  // `guarded` only where a link was named.
  expect(
    Object.keys(json)
      .filter((field) => field !== 'guarded')
      .toSorted(),
  ).toEqual([...RUN_FIELDS, ...GUARD_FIELDS, ...(dryRun ? ['plan'] : [])].toSorted());
  if (json.child) expect(Object.keys(json.child).toSorted()).toEqual(['durationMs', 'exitCode', 'peakAnonBytes', 'signal']);
  for (const c of json.checks ?? []) expect(Object.keys(c).toSorted()).toEqual(['message', 'name', 'ok']);
  for (const t of json.tables ?? []) expect(Object.keys(t).toSorted()).toEqual(['name', 'rowsAfter', 'rowsBefore']);
}

/** What every failed guard must have left: the database as it was, and the failed state set aside. */
function expectRolledBack(s: Scene, run: Result, before: unknown, code = 1): void {
  expect([run.code, run.hung], run.stderr).toEqual([code, false]);
  expectShape(run.json);
  expect(run.json).toMatchObject({ status: 'rolled_back', exitCode: code, rolledBack: true });
  expect(contentOf(s.source)).toEqual(before);
  expect(run.json.tables?.every((t) => t.rowsBefore === t.rowsAfter)).toBe(true);
  const { setAside, backupPoint } = run.json;
  if (setAside) expect(setAside.startsWith(join(s.state, 'aside/'))).toBe(true);
  expect(dataFiles(s.to)).toEqual([backupPoint]);
  expect(readdirSync(join(s.state, 'tmp'))).toEqual([]);
  expect(recordsOf(s.to).map((r) => [r.command, r.status, r.exitCode])).toEqual([['guard', 'rolled_back', code]]);
}

test('a database that is named by a link keeps what the command did, also where that is still in its -wal', async () => {
  const s = scene({ journal: 'wal' });
  const link = join(s.home, 'link.db');
  symlinkSync(s.source, link);
  // Killed, it leaves the -wal as it is.
  const body = "db.exec('CREATE TABLE more AS SELECT randomblob(90000)'); process.kill(process.pid, 'SIGKILL')";
  const run = await guard({ ...s, source: link }, [], ['sh', '-c', '"$@"; exit 0', 'sh', ...migration(body)]);
  expect([run.code, run.json.rolledBack], run.stderr).toEqual([0, false]);
  expect(run.json.tables).toContainEqual({ name: 'more', rowsBefore: null, rowsAfter: 1 });
});

test('killed, the way back that it leaves names the file that a link leads to, and is gone once it was gone', async () => {
  const s = scene({ journal: 'wal' });
  const link = join(s.home, 'link.db');
  symlinkSync(s.source, link);
  const started = join(s.home, 'started');
  const running = start(['guard', '--database', link, '--to', s.to, '--name', 'app', '--', 'sh', '-c', `touch ${started}; exec sleep 60`]);
  await until('the command to run', () => existsSync(started), 20_000);
  killGroup(running.pid, 'SIGKILL');
  await running.result;
  const problems = async (): Promise<string> => JSON.stringify((await s.ask('status', ['--json', '--name', 'app'])).json.problems);
  await s.ask('prune', ['--keep-last', 'all', '--name', 'app']);
  const [copy = ''] = dataFiles(s.to);
  expect(await problems()).toContain(`dbbackup restore ${copy} --into ${s.source} --to`);
  const back = await s.ask('restore', [copy, '--into', s.source, '--name', 'app', '--yes']);
  expect([back.code, await problems()], back.stderr).toEqual([0, expect.not.stringContaining('LAST_RUN_DIED')]);
});

test('killed, the way back that a run to another directory tells of, which shares its state, leads to the copy', async () => {
  const s = scene({ journal: 'wal' });
  const state = ['--state-dir', join(s.home, 'state')];
  const elsewhere = join(s.home, 'elsewhere');
  const before = contentOf(s.source);
  const started = join(s.home, 'started');
  const body = `db.exec('DELETE FROM beat; DELETE FROM invoice'); require('fs').writeFileSync(${JSON.stringify(started)}, ''); setTimeout(() => {}, 60000)`;
  const running = start(['guard', '--database', s.source, '--to', s.to, ...state, '--', ...migration(body)]);
  await until('the command to have written', () => existsSync(started), 20_000);
  killGroup(running.pid, 'SIGKILL');
  await running.result;
  await until('its command to be gone', () => processesAt(s.home).length === 0);
  const run = await dbbackup(['run', s.source, '--to', elsewhere, ...state, '--json']);
  const told = run.json.warnings?.find(({ code }) => code === 'LAST_RUN_DIED')?.message ?? '';
  const [, back = ''] = /dbbackup (restore \S+ --into .*--yes)/.exec(told) ?? [];
  const restore = await dbbackup(back.split(' '));
  expect([restore.code, contentOf(s.source)], `${told}: ${restore.stderr}`).toEqual([0, before]);
});

test('killed twice, both are told of, and both lead back to before the first: what the second one found was half done already', async () => {
  const s = scene({ journal: 'wal' });
  const before = contentOf(s.source);
  const killedAfter = async (sql: string): Promise<void> => {
    const started = join(s.home, `started ${sql}`);
    const body = `db.exec(${JSON.stringify(sql)}); require('fs').writeFileSync(${JSON.stringify(started)}, ''); setTimeout(() => {}, 60000)`;
    const running = start(['guard', '--database', s.source, '--to', s.to, '--name', 'app', '--', ...migration(body)]);
    await until('the command to have written', () => existsSync(started), 20_000);
    killGroup(running.pid, 'SIGKILL');
    await running.result;
    await until('its command to be gone', () => processesAt(s.home).length === 0);
  };
  await killedAfter('DELETE FROM invoice');
  const [first = ''] = dataFiles(s.to);
  await killedAfter('DELETE FROM beat');
  const back = (text: string | undefined): string => /(?<=dbbackup )restore \S+ --into \S+/.exec(text ?? '')?.[0] ?? '';
  const problems = async (): Promise<string[]> =>
    ((await s.ask('status', ['--json', '--name', 'app'])).json.problems ?? []).filter((p) => p.code === 'LAST_RUN_DIED').map((p) => p.message);
  const lines = [await problems()];
  const prune = await s.ask('prune', ['--keep-last', 'all', '--name', 'app', '--json']);
  lines.push(await problems());
  expect(dataFiles(s.to)).toHaveLength(2);
  expect(lines.map((found) => found.map(back))).toEqual([0, 1].map(() => [0, 1].map(() => `restore ${first} --into ${s.source}`)));
  expect(prune.json.warnings?.map(({ code, message }) => [code, back(message)])).toEqual([['LAST_RUN_DIED', `restore ${first} --into ${s.source}`]]);
  const restored = await s.ask('restore', [first, '--into', s.source, '--name', 'app', '--yes']);
  expect([restored.code, contentOf(s.source), await problems()], restored.stderr).toEqual([0, before, []]);
});

test.each([
  ['gzip', 'SIGTERM', []],
  ['gzip', null, ['--timeout', '3s']],
  ['zstd', 'SIGTERM', []],
] as const)('a backup point that is packed (%s) is unpacked on the way back, also after %s or the time limit', async (compress, signal, more) => {
  const s = scene({ journal: 'wal' });
  const before = contentOf(s.source);
  const started = join(s.home, 'started');
  const body = `db.exec('DELETE FROM invoice'); require('fs').writeFileSync(${JSON.stringify(started)}, ''); setTimeout(() => {}, 60000)`;
  const args = ['guard', '--database', s.source, '--to', s.to, '--compress', compress, ...more, '--json', '--', ...migration(body)];
  const running = start(args);
  await until('the command to have written', () => existsSync(started), 20_000);
  if (signal) signalTo(running.pid, signal);
  const run = await running.result;
  expect([run.code, run.json.error?.code, run.json.rolledBack], run.stderr).toEqual([signal ? 143 : 1, signal ? 'INTERRUPTED' : 'TIMEOUT', true]);
  expect(contentOf(s.source)).toEqual(before);
});

test('who has opened the database while the backup point is made is seen before the command is run', async () => {
  const s = scene({ journal: 'wal', bytes: 12_000_000 });
  const running = start(['guard', '--database', s.source, '--to', s.to, '--json', '--', 'touch', join(s.home, 'ran')]);
  await until('the backup point to be under way', () => running.stderr().includes('snapshot '), 20_000, 1);
  const db = new Database(s.source, { readonly: true });
  const rows = db.prepare('SELECT count(*) FROM beat').pluck().get();
  const run = await running.result;
  db.close();
  expect([rows, run.code, run.json.error?.code, existsSync(join(s.home, 'ran'))], run.stderr).toEqual([0, 1, 'IN_USE', false]);
  expect(run.json.error?.message).toContain(String(process.pid));
});

test('who writes while the backup point is made, and is gone again, would lose that on the way back: the command is not run', async () => {
  const s = scene({ journal: 'wal', bytes: 12_000_000 });
  const running = start(['guard', '--database', s.source, '--to', s.to, '--json', '--', 'touch', join(s.home, 'ran')]);
  await until('the backup point to be under way', () => running.stderr().includes('snapshot '), 20_000, 1);
  const db = new Database(s.source);
  db.exec("INSERT INTO beat (at) VALUES ('order 4711')");
  db.close();
  const run = await running.result;
  expect([run.code, run.json.error?.code, existsSync(join(s.home, 'ran'))], run.stderr).toEqual([1, 'IN_USE', false]);
  expect(run.json.error?.message).toContain('was written to while the backup point was made');
  expect(query<number>(s.source, "SELECT count(*) FROM beat WHERE at = 'order 4711'")).toBe(1);
});

test('the longest name that there may be leaves room for a way back', async () => {
  const s = scene({ journal: 'wal' });
  const name = '数'.repeat(63);
  const run = await guard(s, ['--name', name], migration("db.exec('DELETE FROM invoice'); process.exitCode = 1"));
  expect([run.code, run.json.error?.code, run.json.rolledBack], run.stderr).toEqual([1, 'COMMAND_FAILED', true]);
});

describe.each(['wal', 'delete'] as const)('a database in %s mode', (journal) => {
  test('keeps what a good command did, behind a backup point that is tagged', async () => {
    const s = scene({ journal });
    const before = contentOf(s.source);
    const run = await guard(
      s,
      ['--check', 'SELECT * FROM invoice WHERE cents < 0'],
      migration("db.exec('CREATE TABLE tag (id INTEGER PRIMARY KEY); INSERT INTO tag VALUES (1), (2); DROP TABLE beat; DELETE FROM setting')"),
    );
    expect(run.code, run.stderr).toBe(0);
    expectShape(run.json);
    expect(run.json).toMatchObject({ command: 'guard', status: 'ok', exitCode: 0, error: null, rolledBack: false, setAside: null, name: 'app' });
    expect(run.json.child).toMatchObject({ exitCode: 0, signal: null });
    expect(run.json.child?.durationMs).toBeGreaterThan(0);
    expect(run.json.checks).toEqual(
      ['integrity_check', 'foreign_key_check', 'SELECT * FROM invoice WHERE cents < 0'].map((name) => ({ name, ok: true, message: 'ok' })),
    );
    expect(run.json.tables).toEqual([
      { name: 'beat', rowsBefore: 0, rowsAfter: null },
      { name: 'customer', rowsBefore: 5, rowsAfter: 5 },
      { name: 'invoice', rowsBefore: 20, rowsAfter: 20 },
      { name: 'setting', rowsBefore: 2, rowsAfter: 0 },
      { name: 'tag', rowsBefore: null, rowsAfter: 2 },
    ]);
    expect(run.json.stages?.map((t) => t.name)).toEqual(['inspect', 'check', 'snapshot', 'verify', 'publish', 'command', 'check', 'report']);
    const point = run.json.backupPoint ?? '';
    expect(readJson(join(s.to, point.replace(/db$/, 'json')))).toMatchObject({ tags: ['before-guard'], status: 'good' });
    const db = contentOf(join(s.to, point)) as Record<string, unknown>;
    expect({ ...db, journal }).toEqual(before);
  });

  test.each([
    ['exits 1 halfway', "db.exec('UPDATE customer SET email = id; CREATE TABLE half (a)'); process.exitCode = 7;", 'COMMAND_FAILED', 7],
    ['exits 0 and leaves rows without a parent', "db.pragma('foreign_keys = off'); db.exec('DELETE FROM customer WHERE id = 2')", 'CHECK_FAILED', 0],
    [
      'exits 0 and takes the key of a parent away',
      "db.pragma('foreign_keys = off'); db.exec('CREATE TABLE n AS SELECT * FROM customer; DROP TABLE customer; ALTER TABLE n RENAME TO customer')",
      'CHECK_FAILED',
      0,
    ],
    ["exits 0 and breaks the user's check", "db.exec('UPDATE invoice SET cents = -1 WHERE id = 3')", 'CHECK_FAILED', 0],
    [
      'exits 0 and leaves rows that break a CHECK',
      "db.unsafeMode(); db.pragma('ignore_check_constraints = on'); db.exec('UPDATE customer SET born = 1')",
      'CHECK_FAILED',
      0,
    ],
    [
      'exits 0 and damages pages',
      "db.pragma('wal_checkpoint(TRUNCATE)'); db.close(); require('fs').writeFileSync(process.argv[1], Buffer.concat([require('fs').readFileSync(process.argv[1]).subarray(0, 4096), require('crypto').randomBytes(20000)]))",
      'CHECK_FAILED',
      0,
    ],
    ['exits 0 and cuts the file short', "db.close(); require('fs').truncateSync(process.argv[1], 5000)", 'CHECK_FAILED', 0],
    [
      'exits 0 and cuts the file inside a blob',
      "db.exec('CREATE TABLE blobs AS SELECT randomblob(90000)'); db.pragma('journal_mode = delete'); db.close(); require('fs').truncateSync(process.argv[1], require('fs').statSync(process.argv[1]).size - 4000)",
      'CHECK_FAILED',
      0,
    ],
    ['exits 0 and empties the file', "db.close(); require('fs').truncateSync(process.argv[1], 0)", 'CHECK_FAILED', 0],
    ['exits 0 and deletes the file', "db.close(); require('fs').unlinkSync(process.argv[1])", 'CHECK_FAILED', 0],
    ['exits 0 and deletes the directory', "db.close(); require('fs').rmSync(require('path').dirname(process.argv[1]), { recursive: true })", 'CHECK_FAILED', 0],
    ['exits 0 and writes a text in its place', "db.close(); require('fs').writeFileSync(process.argv[1], 'hello')", 'CHECK_FAILED', 0],
    [
      'exits 0 and puts a directory in its place',
      "db.close(); require('fs').unlinkSync(process.argv[1]); require('fs').mkdirSync(process.argv[1])",
      'CHECK_FAILED',
      0,
    ],
    [
      'exits 0 and puts a link in its place',
      "db.close(); require('fs').renameSync(process.argv[1], process.argv[1] + '.x'); require('fs').symlinkSync('/dev/null', process.argv[1])",
      'CHECK_FAILED',
      0,
    ],
    ['exits 0 and gives it a second name', "db.close(); require('fs').linkSync(process.argv[1], process.argv[1] + '.x')", 'CHECK_FAILED', 0],
    [
      'changes page size and journal mode, then fails',
      "db.pragma('journal_mode = delete'); db.pragma('page_size = 8192'); db.exec('VACUUM'); process.exitCode = 1",
      'COMMAND_FAILED',
      1,
    ],
    [
      'turns the journal mode round, then fails',
      "db.pragma('journal_mode = ' + (db.pragma('journal_mode', { simple: true }) === 'wal' ? 'delete' : 'wal')); process.exitCode = 1",
      'COMMAND_FAILED',
      1,
    ],
    [
      'dies in the middle of a transaction',
      "db.pragma('cache_size = 1'); db.exec('BEGIN; UPDATE customer SET born = 1950; UPDATE invoice SET note = 1'); process.abort()",
      'COMMAND_FAILED',
      null,
    ],
    ['is killed after a commit', "db.exec('DELETE FROM invoice'); process.kill(process.pid, 'SIGKILL')", 'COMMAND_FAILED', null],
  ])('a command that %s: the database is what it was', async (_, body, code, exitCode) => {
    const s = scene({ journal });
    chmodSync(s.source, 0o640);
    const before = contentOf(s.source);
    const run = await guard(s, ['--check', 'SELECT * FROM invoice WHERE cents < 0'], migration(body));
    expectRolledBack(s, run, before);
    expect(run.json.error).toMatchObject({ code, stage: code === 'CHECK_FAILED' ? 'check' : 'command' });
    expect(run.json.child?.exitCode).toBe(exitCode);
    expect(run.json.checks?.some((c) => !c.ok)).toBe(code === 'CHECK_FAILED');
    expect(run.json.error?.hint).toContain('rolled back');
    // As it looked, too.
    expect([modeOf(s.source), lstatSync(s.source).isFile(), lstatSync(s.source).nlink]).toEqual(['640', true, 1]);
  });
});

test('the failed state is set aside, whole', async () => {
  const s = scene({ journal: 'wal' });
  const run = await guard(s, [], migration("db.exec('DELETE FROM invoice; CREATE TABLE mine (a)'); process.kill(process.pid, 'SIGKILL')"));
  expectRolledBack(s, run, contentOf(s.source));
  const aside = join(run.json.setAside ?? '', 'app.db');
  expect([modeOf(run.json.setAside ?? ''), modeOf(aside)]).toEqual(['700', '600']);
  const failed = contentOf(aside) as { rows: [string, unknown[]][] };
  expect(failed.rows.map(([t, rows]) => [t, rows.length])).toContainEqual(['mine', 0]);
  expect(failed.rows.map(([t, rows]) => [t, rows.length])).toContainEqual(['invoice', 0]);
});

test.each([
  ['page size', 'PRAGMA page_size = 512', 0],
  ['text encoding', "PRAGMA encoding = 'UTF-16le'", 3],
])('a file of another %s in its place that SQLite cannot even open does not keep the database from being put back', async (_, pragma, exit) => {
  const s = scene({ journal: 'wal' });
  const before = contentOf(s.source);
  // A schema format that SQLite never wrote.
  const body = `db.close(); const fs = require('fs'); const path = process.argv[1]; for (const end of ['', '-wal', '-shm']) fs.rmSync(path + end, { force: true });
    const other = new (require('${DRIVER}'))(path); other.exec(\`${pragma}; CREATE TABLE other (x); INSERT INTO other VALUES (1)\`); other.close();
    const fd = fs.openSync(path, 'r+'); fs.writeSync(fd, Buffer.from([9]), 0, 1, 47); fs.closeSync(fd); process.exitCode = ${exit}`;
  expectRolledBack(s, await guard(s, [], migration(body)), before);
});

describe('ended early', () => {
  const slow = migration("db.exec('DELETE FROM invoice'); console.log('at work'); setInterval(() => {}, 1000)");

  test.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('%s reaches the command, then the database is put back', async (signal) => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const running = start(['guard', '--database', s.source, '--to', s.to, '--json', '--', ...slow]);
    await until('the command is at work', () => running.stderr().includes('at work'));
    process.kill(running.pid, signal);
    const run = await running.result;
    expectRolledBack(s, run, before, { SIGTERM: 143, SIGINT: 130, SIGHUP: 129 }[signal]);
    expect(run.json.error).toMatchObject({ code: 'INTERRUPTED', message: `ended by ${signal}; the database was rolled back to what it was before` });
    expect(run.json.child?.signal).toBe(signal);
    expect(run.durationMs).toBeLessThan(10_000);
  });

  test('a command that ends well after a signal is rolled back all the same', async () => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const stubborn = migration(
      "db.exec('DELETE FROM invoice'); process.on('SIGTERM', () => process.exit(0)); console.log('at work'); setInterval(() => {}, 1000)",
    );
    const running = start(['guard', '--database', s.source, '--to', s.to, '--json', '--', ...stubborn]);
    await until('the command is at work', () => running.stderr().includes('at work'));
    process.kill(running.pid, 'SIGTERM');
    expectRolledBack(s, await running.result, before, 143);
  });

  test('--command-timeout: TERM, and KILL for what does not listen, and for what it started', async () => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const deaf = "process.on('SIGTERM', () => {}); setInterval(() => {}, 1000)";
    const body = `db.exec('DELETE FROM invoice'); require('child_process').spawn(process.execPath, ['-e', "${deaf}"], { detached: true }); ${deaf}`;
    const run = await guard(s, ['--command-timeout', '500ms'], migration(body));
    expectRolledBack(s, run, before);
    expect(run.json.error).toMatchObject({ code: 'COMMAND_FAILED', message: 'the command ran longer than 0.5 s (--command-timeout) and was ended' });
    expect(run.json.child).toMatchObject({ exitCode: null, signal: 'SIGKILL' });
    expect(spawnSync('sh', ['-c', `grep -lz "GUARDED_RUN=${run.json.runId}" /proc/[0-9]*/environ 2>/dev/null`], { encoding: 'utf8' }).stdout).toBe('');
  });

  test('--timeout, the limit of the whole run, holds for the command and not for the way back', async () => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const run = await guard(s, ['--timeout', '2500ms'], slow);
    expectRolledBack(s, run, before);
    expect(run.json.error?.code).toBe('TIMEOUT');
  });

  test('--memory-limit: a warning at 80 %, then the end, counted over all of its processes', async () => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const eat = 'const a = []; setInterval(() => a.push(Buffer.alloc(2e6, 1)), 20)';
    const run = await guard(s, ['--memory-limit', '120MB'], ['sh', '-c', '"$0" -e "$1"; true', process.execPath, eat]);
    expectRolledBack(s, run, before);
    expect(run.json.error?.message).toMatch(/^the command used \d+\.\d MB of memory, more than 120\.0 MB \(--memory-limit\), and was ended$/);
    expect(run.json.warnings?.map((w) => w.code)).toEqual(['MEMORY_HIGH']);
    expect(run.json.child?.peakAnonBytes).toBeGreaterThan(120e6);
  });

  test('kill -9 of the guard takes the command with it, and the next command says how to go back', async () => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const running = start(['guard', '--database', s.source, '--to', s.to, '--json', '--', ...slow]);
    // Not by a look into the database: guard would refuse to begin while somebody has it open.
    await until('the command is at work', () => running.stderr().includes('at work'));
    process.kill(running.pid, 'SIGKILL');
    await running.result;
    const [point = ''] = dataFiles(s.to);
    const next = await guard(s, [], ['true']);
    expect(next.code, next.stderr).toBe(0);
    const history = await s.ask('history', ['--json']);
    expect(history.json.runs?.at(-1)).toMatchObject({ command: 'guard', status: 'interrupted', backupPoint: point });
    expect(history.json.runs?.at(-1)?.error?.hint).toContain(`dbbackup restore ${point} --into`);
    const back = await s.ask('restore', [point, '--into', s.source, '--yes', '--json', '--name', 'app']);
    expect(back.code, back.stderr).toBe(0);
    expect(contentOf(s.source)).toEqual(before);
  });
});

describe('before the command', () => {
  /** COMMAND would leave this behind. */
  const touch = (s: Scene): string[] => ['touch', join(s.home, 'ran')];
  const expectNotRun = (s: Scene): void => {
    expect(existsSync(join(s.home, 'ran'))).toBe(false);
    expect(dataFiles(s.to)).toEqual([]);
  };

  test.each([
    ['a check of the user', ['--check', 'SELECT * FROM customer'], 'the check "SELECT * FROM customer"', 'it returned 5 rows, and must return none'],
    ['a check of a table that is not there', ['--check', 'SELECT * FROM nope'], 'the check "SELECT * FROM nope"', 'no such table: nope'],
  ])('%s that fails ends it', async (_, flags, check, why) => {
    const s = scene();
    const run = await guard(s, flags, touch(s));
    expect(run.code, run.stderr).toBe(1);
    expectShape(run.json);
    expect(run.json).toMatchObject({ status: 'failed', backupPoint: null, child: null, rolledBack: false, tables: [] });
    expect(run.json.error).toMatchObject({
      code: 'CHECK_FAILED',
      stage: 'check',
      message: `${check} of ${s.source} fails already, before the command: ${why}`,
    });
    expect(run.json.checks?.map((c) => c.ok)).toEqual([true, true, false]);
    expectNotRun(s);
  });

  test('rows that break their own rules, and a damaged file, end it', async () => {
    const s = scene();
    breakRows(s.source);
    const run = await guard(s, [], touch(s));
    expect([run.code, run.json.error?.code]).toEqual([1, 'CHECK_FAILED']);
    expect(run.json.checks).toMatchObject([
      { name: 'integrity_check', ok: false },
      { name: 'foreign_key_check', ok: false, message: 'rows without a parent: 1 of invoice' },
    ]);
    expectNotRun(s);
  });

  test('a check file: several SELECTs with comments, semicolons in literals', async () => {
    const s = scene();
    const file = join(s.home, 'checks.sql');
    writeFileSync(
      file,
      "-- nobody; owes\nSELECT * FROM invoice WHERE note = 'a;b';\n/* ; */ SELECT 1 WHERE 0;\n\nWITH x AS (SELECT 1 WHERE 0) SELECT * FROM x -- end;",
    );
    const run = await guard(s, ['--check-file', 'checks.sql'], ['true'], { cwd: s.home });
    expect(run.code, run.stderr).toBe(0);
    expect(run.json.checks).toHaveLength(5);
    expect(run.json.checks?.every((c) => c.ok)).toBe(true);
  });

  test.each([
    ['no command', [], [], 'there is no command'],
    ['a word before --', ['app.db'], ['true'], '"app.db" stands before --'],
    ['a check that deletes', ['--check', 'DELETE FROM customer'], ['true'], 'must be a SELECT'],
    ['a check that is a pragma', ['--check', 'PRAGMA user_version = 3'], ['true'], 'must be a SELECT'],
    ['a second statement that writes', ['--check', 'SELECT 1 WHERE 0; DROP TABLE beat'], ['true'], 'must be a SELECT'],
    ['a check that writes behind WITH', ['--check', 'WITH x AS (SELECT 1) DELETE FROM beat'], ['true'], 'must be a SELECT'],
    ['an empty check', ['--check', ' -- nothing'], ['true'], 'holds no statement'],
    ['a check file that is not there', ['--check-file', '/nope.sql'], ['true'], 'cannot read the checks in /nope.sql'],
    ['a window of nonsense', ['--window', 'tonight'], ['true'], '--window "tonight" must be like'],
    ['a rehearsal that cannot point anywhere', ['--rehearse'], ['true'], 'must tell the command where the scratch copy is'],
    ['a variable that is none', ['--rehearse', '--set-env', 'A-B'], ['true'], '"A-B" is no name'],
  ])('%s is a usage error', async (_, flags, words, message) => {
    const s = scene();
    const before = contentOf(s.source);
    const run = await guard(s, flags, words);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([64, 'USAGE']);
    expect(run.json.error?.message).toContain(message);
    expect(contentOf(s.source)).toEqual(before);
    expect(dataFiles(s.to)).toEqual([]);
  });

  test('a program that is not there is seen before anything is done', async () => {
    const s = scene();
    const run = await guard(s, [], ['no-such-program']);
    expect([run.code, run.json.error?.code, run.json.child]).toEqual([1, 'COMMAND_FAILED', null]);
    expect(run.json.error?.message).toBe('the command cannot be started: there is no executable no-such-program');
    expect(existsSync(s.to)).toBe(false);
  });

  test('a database that is not there, or is none', async () => {
    const s = scene(null);
    const run = await guard(s, [], touch(s));
    expect([run.code, run.json.error?.code]).toEqual([1, 'SOURCE_MISSING']);
    writeFileSync(s.source, 'hello, this is a text and no database at all');
    expect((await guard(s, [], touch(s))).json.error?.code).toBe('NOT_A_DATABASE');
    expectNotRun(s);
  });

  test('no database given is a settings error', async () => {
    const s = scene();
    const run = await s.ask('guard', ['--json', '--', 'true']);
    expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
  });

  test('outside its window it does not begin, and says when it may', async () => {
    const s = scene();
    // One hour, half a day away.
    const hour = (new Date().getUTCHours() + 12) % 24;
    const two = (n: number): string => String(n % 24).padStart(2, '0');
    const run = await guard(s, ['--window', `${two(hour)}:00-${two(hour + 1)}:00`], touch(s));
    expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'OUTSIDE_WINDOW']);
    expect(run.json.error?.hint).toMatch(new RegExp(`^the window opens next at \\d{4}-\\d\\d-\\d\\dT${two(hour)}:00:00Z$`));
    expectNotRun(s);
    const inside = await guard(s, ['--window', `${two(hour + 6)}:00-${two(hour + 18)}:00`], ['true']);
    expect(inside.code, inside.stderr).toBe(0);
  });

  test('while another run holds the lock', async () => {
    const s = scene();
    const running = start(['guard', '--database', s.source, '--to', s.to, '--json', '--', 'sh', '-c', 'echo at work; sleep 3']);
    await until('the command is at work', () => running.stderr().includes('at work'));
    expect([(await guard(s, [], touch(s))).code, (await s.run()).code]).toEqual([75, 75]);
    expect((await running.result).code).toBe(0);
    expect(existsSync(join(s.home, 'ran'))).toBe(false);
  });
});

describe('others', () => {
  test('who has the database open is named, and nothing is done', async () => {
    const s = scene({ journal: 'wal' });
    const app = await useDatabase(s.source, ['SELECT 1']);
    const run = await guard(s, [], ['touch', join(s.home, 'ran')]);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'IN_USE']);
    expect(run.json.error?.message).toContain(`${app.pid} (node)`);
    expect([existsSync(join(s.home, 'ran')), dataFiles(s.to)]).toEqual([false, []]);
    const shared = await guard(s, ['--shared'], migration("db.exec('DELETE FROM invoice')"));
    expect(shared.code, shared.stderr).toBe(0);
    await app.crash();
  });

  test('--shared: without --yes a failed command is not rolled back, and it says so', async () => {
    const s = scene({ journal: 'wal' });
    const app = await openWriter(s.source);
    const run = await guard(s, ['--shared'], migration("db.exec('DELETE FROM invoice'); process.exitCode = 1"));
    expect(run.code, run.stderr).toBe(1);
    expectShape(run.json);
    expect(run.json).toMatchObject({ status: 'failed', rolledBack: false, setAside: null });
    expect(run.json.error).toMatchObject({
      code: 'COMMAND_FAILED',
      message: 'the command exited with 1',
      hint: expect.stringContaining(`dbbackup restore ${run.json.backupPoint} --into ${s.source}`),
    });
    const [said] = run.json.warnings ?? [];
    expect(said).toMatchObject({ code: 'COMMAND_FAILED', severity: 'critical' });
    expect(said?.message).toContain(`dbbackup restore ${run.json.backupPoint} --into ${s.source}`);
    await app.stop();
    expect((contentOf(s.source) as { rows: [string, unknown[]][] }).rows.find(([t]) => t === 'invoice')?.[1]).toEqual([]);
  });

  test('--shared --yes rolls back into the file that the application has open', async () => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const app = await useDatabase(s.source, ['SELECT 1']);
    const run = await guard(s, ['--shared', '--yes'], migration("db.exec('DELETE FROM invoice'); process.exitCode = 1"));
    expectRolledBack(s, run, before);
    await app.crash();
  });

  test('--shared: another file in its place is a failure, since others write into the old one', async () => {
    const s = scene({ journal: 'delete' });
    const run = await guard(s, ['--shared'], ['sh', '-c', `cp ${s.source} ${s.source}.new && mv ${s.source}.new ${s.source}`]);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'CHECK_FAILED']);
    expect(run.json.error?.message).toContain('put another file in its place');
    // Alone, that is how some tools work.
    const alone = await guard(s, [], ['sh', '-c', `cp ${s.source} ${s.source}.new && mv ${s.source}.new ${s.source}`]);
    expect(alone.code, alone.stderr).toBe(0);
  });

  test('a process that the command leaves behind with the database open is ended, and a failure', async () => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const stay = `const db = new (require('${DRIVER}'))('${s.source}'); db.exec('DELETE FROM invoice'); setInterval(() => {}, 1000)`;
    const body = `require('child_process').spawn(process.execPath, ['-e', ${JSON.stringify(stay)}], { detached: true, stdio: 'ignore' }).unref(); setTimeout(() => {}, 1000)`;
    const run = await guard(s, [], [process.execPath, '-e', body]);
    expectRolledBack(s, run, before);
    expect(run.json.error?.message).toMatch(/^the command left processes behind that have the database open: \d+ \(node\)$/);
  });
});

describe('the command', () => {
  test('has our standard input, output and error, our directory, our mask, and none of our secrets', async () => {
    const s = scene();
    const out = join(s.home, 'environment');
    const script = `env > ${out}; cat; pwd; umask; echo to-stderr >&2`;
    const env = {
      DBBACKUP_SMTP_URL: 'smtp://user:hunter2secret@127.0.0.1:1',
      DBBACKUP_MAIL_TO: 'ops@example.org',
      AWS_SECRET_ACCESS_KEY: 'hunter2secret',
      CREDENTIALS_DIRECTORY: '/run/hunter2secret',
      MINE: 'kept',
      S: s.source,
      T: s.to,
      C: script,
    };
    const through = ['sh', '-c', 'umask 022; echo from-stdin | "$0" "$@"'];
    const run = await dbbackup(['guard', '--database', s.source, '--to', s.to, '--', 'sh', '-c', script], { env, through, cwd: s.home });
    expect(run.code, run.stderr).toBe(0);
    expect(run.stdout).toBe(`from-stdin\n${s.home}\n0022\n`);
    expect(linesOf(run.stderr)).toContain('to-stderr');
    const seen = readFileSync(out, 'utf8');
    expect(seen).toContain('MINE=kept');
    expect(seen).not.toMatch(/hunter2secret|DBBACKUP_|^AWS_|CREDENTIALS_DIRECTORY/m);
  });

  test('with --json our standard output has one document, and the command writes to our standard error', async () => {
    const s = scene();
    const run = await guard(s, [], ['echo', 'hello']);
    expect([run.code, run.isJson, linesOf(run.stderr).includes('hello')]).toEqual([0, true, true]);
  });

  test('words are words: no shell, and {} is only replaced where it is a place', async () => {
    const s = scene();
    const words = ['printf', '%s\n', '$HOME', '*', 'a b', '{}', '--db={}', 'sqlite:///{}', 'try {} catch {}', '{"a":{}}'];
    const run = await dbbackup(['guard', '--database', s.source, '--to', s.to, '--set-env', 'DB', '-q', '--', ...words]);
    expect(linesOf(run.stdout)).toEqual(['$HOME', '*', 'a b', s.source, `--db=${s.source}`, `sqlite:///${s.source}`, 'try {} catch {}', '{"a":{}}']);
    const env = await dbbackup(['guard', '--database', s.source, '--to', s.to, '--set-env', 'DB', '-q', '--', 'sh', '-c', 'echo "$DB"']);
    expect(env.stdout).toBe(`${s.source}\n`);
  });
});

describe('--dry-run', () => {
  test('prints the plan and touches nothing', async () => {
    const s = scene({ journal: 'wal' });
    const before = tree(s.home);
    const run = await s.ask('guard', ['--database', s.source, '-n', '--', 'touch', join(s.home, 'ran')]);
    expect(run.code, run.stderr).toBe(0);
    expect(linesOf(run.stdout)).toEqual([
      `would check ${s.source} (integrity_check, foreign_key_check and 0 of your own)`,
      expect.stringMatching(/^would make the backup point .*\/app-\d{8}T\d{6}Z\.db \(up to /),
      `would run: touch ${join(s.home, 'ran')}`,
      'would check again, and put the database back if the command or a check fails',
    ]);
    const json = await guard(s, ['--dry-run'], ['true']);
    expectShape(json.json, true);
    expect(tree(s.home)).toEqual(before);
  });

  test('has the exit code of what can be seen beforehand', async () => {
    const s = scene({ journal: 'wal' });
    const app = await useDatabase(s.source, ['SELECT 1']);
    const run = await guard(s, ['-n'], ['true']);
    expect([run.code, run.json.error?.code]).toEqual([1, 'IN_USE']);
    await app.crash();
    expect((await guard(s, ['-n'], ['no-such-program'])).json.error?.code).toBe('COMMAND_FAILED');
  });
});

describe('--rehearse', () => {
  const change = 'CREATE TABLE tag (id); CREATE INDEX tag_id ON tag (id); DROP TABLE beat; DELETE FROM setting; ALTER TABLE invoice ADD COLUMN due TEXT';

  test.each([
    ['{}', [], ['sqlite3', '{}', change]],
    ['{} in a script', [], ['sh', '-c', `sqlite3 "{}" "${change}"`]],
    ['--set-env', ['--set-env', 'DB'], ['sh', '-c', `sqlite3 "$DB" "${change}"`]],
  ])('%s leads to a scratch copy; the difference is printed, the database not touched', async (_, flags, words) => {
    const s = scene({ journal: 'wal' });
    const before = contentOf(s.source);
    const data = tree(join(s.home, 'data'));
    const run = await s.ask('guard', ['--database', s.source, '--rehearse', '-q', ...flags, '--', ...words]);
    expect([run.code, run.stderr]).toEqual([0, '']);
    expect(linesOf(run.stdout)).toEqual([
      'TABLE     ROWS BEFORE  ROWS AFTER  CHANGE',
      'beat                0           -  removed',
      'customer            5           5',
      'invoice            20          20',
      'setting             2           0  -2',
      'tag                 -           0  added',
      'The schema changed:',
      '- CREATE TABLE beat (id INTEGER PRIMARY KEY, at TEXT);',
      expect.stringMatching(/^- CREATE TABLE invoice \(.*note TEXT\);$/),
      expect.stringMatching(/^\+ CREATE TABLE invoice \(.*note TEXT, due TEXT\);$/),
      '+ CREATE TABLE tag (id);',
      '+ CREATE INDEX tag_id ON tag (id);',
    ]);
    expect(contentOf(s.source)).toEqual(before);
    expect(dataFiles(s.to)).toEqual([]);
    expect(readdirSync(join(s.state, 'tmp'))).toEqual([]);
    expect(data.length).toBeGreaterThan(0);
  });

  test('the document: rows of the scratch copy, no backup point, nothing rolled back', async () => {
    const s = scene();
    const run = await guard(s, ['--rehearse'], ['sqlite3', '{}', 'DELETE FROM setting']);
    expect(run.code, run.stderr).toBe(0);
    expectShape(run.json);
    expect(run.json).toMatchObject({ status: 'ok', backupPoint: null, rolledBack: false, setAside: null, copy: null, child: { exitCode: 0 } });
    expect(run.json.tables).toContainEqual({ name: 'setting', rowsBefore: 2, rowsAfter: 0 });
  });

  test.each([
    ['fails', ['sh', '-c', 'exit 4; {}'], 'COMMAND_FAILED', 'the command exited with 4'],
    ['breaks a foreign key', ['sqlite3', '{}', 'DELETE FROM customer WHERE id = 2'], 'CHECK_FAILED', 'the scratch copy of'],
    ['deletes it', ['rm', '{}'], 'CHECK_FAILED', 'there is no file at'],
  ])('a command that %s: exit 1, and no word of a roll-back', async (_, words, code, message) => {
    const s = scene();
    const before = tree(join(s.home, 'data'));
    const run = await guard(s, ['--rehearse'], words);
    expect([run.code, run.json.error?.code, run.json.status], run.stderr).toEqual([1, code, 'failed']);
    expect(run.json.error?.message).toContain(message);
    expect(run.json.error?.hint).toBe('the database itself was not touched; mend the command');
    expect(tree(join(s.home, 'data'))).toEqual(before);
  });

  test.each(['wal', 'delete'] as const)('a command that changes the real database (%s mode) fails loudly', async (journal) => {
    const s = scene({ journal });
    const run = await guard(s, ['--rehearse'], ['sqlite3', s.source, "UPDATE setting SET value = 1; SELECT '{}'"]);
    expect([run.code, run.json.error?.code, run.json.status], run.stderr).toEqual([1, 'REHEARSAL_TOUCHED_SOURCE', 'failed']);
    const replaced = await guard(s, ['--rehearse'], ['sh', '-c', `cp -p ${s.source} ${s.source}.n; mv ${s.source}.n ${s.source}; : {}`]);
    expect(replaced.json.error?.code).toBe('REHEARSAL_TOUCHED_SOURCE');
    // Also where the command fails itself.
    const both = await guard(s, ['--rehearse'], ['sh', '-c', `sqlite3 ${s.source} 'DELETE FROM setting'; exit 5; {}`]);
    expect(both.json.error?.code).toBe('REHEARSAL_TOUCHED_SOURCE');
  });
});

describe('the way back', () => {
  test('leads through a symbolic link to the file', async () => {
    const s = scene({ journal: 'wal' });
    renameSync(s.source, `${s.source}.real`);
    symlinkSync('app.db.real', s.source);
    const before = contentOf(s.source);
    const run = await guard(s, [], ['sh', '-c', `rm ${s.source}.real; exit 1`]);
    expectRolledBack(s, run, before);
    expect(lstatSync(s.source).isSymbolicLink()).toBe(true);
  });

  test('that is blocked is exit 4, and names what a person needs', async () => {
    const s = scene({ journal: 'wal' });
    // The backup point is damaged by the command.
    const run = await guard(s, [], ['sh', '-c', `for f in ${s.to}/*.db; do echo x >> $f; done; sqlite3 ${s.source} 'DELETE FROM invoice'; exit 1`]);
    expect(run.code, run.stderr).toBe(4);
    expectShape(run.json);
    expect(run.json).toMatchObject({ status: 'failed', exitCode: 4, rolledBack: false });
    expect(run.json.error).toMatchObject({ code: 'ROLLBACK_FAILED', stage: 'rollback' });
    expect(run.json.error?.hint).toContain(run.json.backupPoint);
    expect(run.json.error?.hint).toContain(run.json.setAside);
    expect(run.json.warnings?.map((w) => [w.severity, w.message])).toContainEqual(['critical', 'the command exited with 1']);
  });

  test('that was blocked is a critical problem until somebody has put the database right, whatever the copies are like', async () => {
    const s = scene({ journal: 'wal' });
    expect((await s.run(['--name', 'app'])).code).toBe(0);
    const [good = ''] = dataFiles(s.to);
    const run = await guard(s, [], ['sh', '-c', `for f in ${s.to}/*.db; do [ $f = ${s.to}/${good} ] || echo x >> $f; done; exit 1`]);
    expect(run.code, run.stderr).toBe(4);
    // A later night sees a database that looks well.
    expect((await s.run(['--name', 'app'])).code).toBe(0);
    const problems = async (): Promise<string[]> =>
      (await s.ask('status', ['--json', '--name', 'app'])).json.problems?.map((p) => `${p.severity} ${p.code}`) ?? [];
    expect(await problems()).toEqual(['critical ROLLBACK_FAILED']);
    const back = await s.ask('restore', [good, '--into', s.source, '--yes', '--json']);
    expect(back.code, back.stderr).toBe(0);
    expect(await problems()).toEqual([]);
  });

  test('that was blocked is settled by a restore that could only not tell people of it', async () => {
    const s = scene({ journal: 'wal' });
    expect((await s.run(['--name', 'app'])).code).toBe(0);
    const [good = ''] = dataFiles(s.to);
    // Nobody listens there.
    const env = { DBBACKUP_MAIL_TO: 'ops@example.org', DBBACKUP_SMTP_URL: 'smtp://127.0.0.1:9' };
    const spoil = ['sh', '-c', `for f in ${s.to}/*.db; do [ $f = ${s.to}/${good} ] || echo x >> $f; done; exit 1`];
    const run = await dbbackup(['guard', '--database', s.source, '--to', s.to, '--', ...spoil], { env });
    expect(run.code, run.stderr).toBe(4);
    const back = await s.ask('restore', [good, '--into', s.source, '--yes', '--json'], { env });
    expect([back.code, back.json.status], back.stderr).toEqual([3, 'incomplete']);
    const problems = (await s.ask('status', ['--json', '--name', 'app'])).json.problems?.map((p) => p.code);
    expect(problems).not.toContain('ROLLBACK_FAILED');
  });

  const noMount = cannot('root', 'mount');
  if (noMount) process.stderr.write(`not run here: a disk that a guarded command filled: ${noMount}\n`);
  test.skipIf(noMount)('from a disk that the command filled', async () => {
    const s = scene(null);
    const disk = join(s.home, 'disk');
    mkdirSync(disk);
    const source = join(disk, 'app.db');
    const seed = join(s.home, 'seed.db');
    makeDatabase(seed, { journal: 'wal', bytes: 1_000_000 });
    const before = contentOf(seed);
    const fill = migration(
      "db.exec('BEGIN; CREATE TABLE big (a)'); try { for (;;) db.exec('INSERT INTO big VALUES (randomblob(100000))') } finally { db.close() }",
    );
    // The database comes out of the private mount before that ends.
    const script = `mount -t tmpfs -o size=6m none ${disk}; cp ${seed} ${source}; "$@"; code=$?; sqlite3 ${source} "VACUUM INTO '${s.source}'"; exit $code`;
    const through = ['unshare', '-m', 'sh', '-c', script, 'sh'];
    const run = await dbbackup(['guard', '--database', source, '--to', s.to, '--json', '--', ...fill], { through });
    expect([run.code, run.json.status], run.stderr).toEqual([1, 'rolled_back']);
    expect(run.json.error?.code).toBe('COMMAND_FAILED');
    expect({ ...(contentOf(s.source) as object), journal: 'wal' }).toEqual(before);
  });
});

describe.skipIf(spawnSync('script', ['--version']).status !== 0)('a person at a terminal', () => {
  /** Keys are typed when the text can be seen. */
  async function onTerminal(
    s: Scene,
    flags: readonly string[],
    words: readonly string[],
    typed: readonly (readonly [seen: string, keys: string])[],
  ): Promise<Result> {
    const line = [EXECUTABLE, 'guard', '--database', s.source, '--to', s.to, ...flags, '--', ...words].map((w) => `'${w.replaceAll("'", `'\\''`)}'`).join(' ');
    const child = spawn('script', ['-qec', line, '/dev/null'], { env: { PATH, TERM: 'xterm' }, stdio: ['pipe', 'pipe', 'inherit'] });
    let stdout = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    const ended = new Promise<number | null>((done) => child.once('close', done));
    try {
      for (const [seen, keys] of typed) {
        await until(seen, () => stdout.includes(seen), 20_000);
        child.stdin.write(keys);
      }
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
    const code = await ended;
    return { code, signal: null, stdout: stdout.replaceAll('\r\n', '\n'), stderr: '', json: {}, isJson: false, durationMs: 0, hung: false };
  }
  const rowsLeft = (s: Scene): string => spawnSync('sqlite3', [s.source, 'SELECT count(*) FROM invoice'], { encoding: 'utf8' }).stdout.trim();
  const failing = (s: Scene): string[] => ['sh', '-c', `sqlite3 ${s.source} 'DELETE FROM invoice'; exit 1`];

  test.each([
    ['y', 'y\r', '20'],
    ['n', 'n\r', '0'],
    ['nothing', '\r', '0'],
    ['Ctrl-C', '\u0003', '0'],
    ['Ctrl-D', '\u0004', '0'],
  ])('--shared asks before it rolls back: %s', async (_, keys, left) => {
    const s = scene({ journal: 'wal' });
    const run = await onTerminal(s, ['--shared'], failing(s), [['[y/N]', keys]]);
    expect([run.code, rowsLeft(s)], run.stdout).toEqual([1, left]);
    expect(run.stdout).toContain(left === '20' ? 'was rolled back' : 'is as the command left it');
  });

  test("the terminal is the command's while it runs", async () => {
    const s = scene({ journal: 'wal' });
    const run = await onTerminal(s, [], ['sqlite3', '{}'], [['sqlite> ', "INSERT INTO beat VALUES (1, 'typed');\r.quit\r"]]);
    expect(run.code, run.stdout).toBe(0);
    expect(run.stdout).toContain('beat: 0 → 1 rows');
  });

  test('Ctrl-C ends the command, and the database is put back', async () => {
    const s = scene({ journal: 'wal' });
    const run = await onTerminal(s, [], ['sh', '-c', `sqlite3 ${s.source} 'DELETE FROM invoice'; echo at work; sleep 30`], [['at work', '\u0003']]);
    expect([run.code, rowsLeft(s)], run.stdout).toEqual([130, '20']);
  });
});
