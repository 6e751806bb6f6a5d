/** `dbbackup restore` as the operator sees it: what is put where, what is kept of the state before, and what is refused by name. */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import type { Manifest } from '../../src/records.js';
import { mountTmpfs } from '../fault/mounts.js';
import { cannot, damage, dbbackup, makeDatabase, openWriter, query, rootPage, start, until, useDatabase } from '../support/cli.js';
import { type Otherwise, textOf } from '../support/manifest.js';
import { ago, baseAt, type Copied, DAY, modeOf, plant, type Scene, scene, sceneWithCopy, tree } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

/** Every row of every table, as text. */
function content(path: string): string {
  const db = new Database(path, { readonly: true });
  try {
    const tables = db.prepare<[], string>("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").pluck().all();
    return JSON.stringify(tables.map((t) => [t, db.prepare(`SELECT * FROM "${t}"`).raw().all().map(String)]));
  } finally {
    db.close();
  }
}

const change = (path: string, sql = 'DELETE FROM setting; UPDATE invoice SET cents = -1; CREATE TABLE IF NOT EXISTS later (x)'): void => {
  const db = new Database(path);
  db.exec(sql);
  db.close();
};

async function made(journal: 'wal' | 'delete' = 'wal'): Promise<Copied & { copied: string }> {
  const { s, file } = await sceneWithCopy({ journal });
  return { s, file, copied: content(join(s.to, file)) };
}

const twin = (path: string): void => {
  makeDatabase(path);
  linkSync(path, `${path}.twin`);
};
const sha = (path: string): string => spawnSync('sha256sum', [path], { encoding: 'utf8' }).stdout.slice(0, 64);
const left = (s: Scene): string[] => [
  ...(existsSync(join(s.state, 'tmp')) ? readdirSync(join(s.state, 'tmp')) : []),
  ...readdirSync(dirname(s.source)).filter((f) => f.startsWith('.dbbackup')),
];

describe('restore -o', () => {
  test('makes a new file, bit for bit the copy, 0600', async () => {
    const { s, file } = await made();
    const out = join(s.home, 'out.db');
    const restore = await s.ask('restore', ['-o', out, '--json']);
    expect(restore.code, restore.stderr).toBe(0);
    expect(problemsIn(restore.json, shapes.restoreDocument)).toEqual([]);
    expect(restore.json).toMatchObject({ command: 'restore', status: 'ok', restored: { file, target: out, safetyCopy: null, setAside: [] }, copy: { file } });
    expect(sha(out)).toBe(sha(join(s.to, file)));
    expect(modeOf(out)).toBe('600');
    expect(readdirSync(s.home).sort()).toEqual(['backups', 'data', 'out.db']);
    expect(left(s)).toEqual([]);
    expect((await s.ask('history', ['--json'])).json.runs?.[0]).toMatchObject({ command: 'restore', status: 'ok', restored: { target: out } });
  });

  test('refuses a file that is there, and with --force replaces it', async () => {
    const { s, file } = await made();
    const out = join(s.home, 'out.db');
    writeFileSync(out, 'precious');
    const refused = await s.ask('restore', ['-o', out, '--json']);
    expect([refused.code, refused.json.error?.code, refused.json.restored]).toEqual([1, 'TARGET_EXISTS', null]);
    expect(problemsIn(refused.json, shapes.restoreDocument)).toEqual([]);
    expect(readFileSync(out, 'utf8')).toBe('precious');
    expect((await s.ask('restore', ['-o', out, '--force'])).code).toBe(0);
    expect(sha(out)).toBe(sha(join(s.to, file)));
  });

  test('does not put a file beside the -wal of another', async () => {
    const { s } = await made();
    const out = join(s.home, 'out.db');
    writeFileSync(`${out}-wal`, 'somebody needs this');
    for (const more of [[], ['--force']]) {
      const refused = await s.ask('restore', ['-o', out, ...more, '--json']);
      expect([refused.code, refused.json.error?.code]).toEqual([1, 'TARGET_EXISTS']);
      // Not what does not help.
      expect(refused.json.error?.hint).toBe('use --into, which sets it aside, or move it away');
    }
    expect(existsSync(out)).toBe(false);
    expect(readFileSync(`${out}-wal`, 'utf8')).toBe('somebody needs this');
  });

  test.each([
    ['a symbolic link', (path: string) => symlinkSync('/etc/passwd', path)],
    ['a directory', (path: string) => mkdirSync(path)],
    ['a FIFO', (path: string) => void spawnSync('mkfifo', [path])],
  ])('refuses %s, also with --force', async (kind, plantIt) => {
    const { s } = await made();
    const out = join(s.home, 'out.db');
    plantIt(out);
    for (const more of [[], ['--force']]) {
      const refused = await s.ask('restore', ['-o', out, ...more, '--json']);
      expect([refused.code, refused.json.error?.code]).toEqual([1, 'SOURCE_NOT_A_FILE']);
      expect(refused.stderr).toContain(kind);
    }
    expect(lstatSync(out).isFile()).toBe(false);
  });

  test('refuses a copy that does not prove out, and makes nothing', async () => {
    const { s, file } = await made();
    damage(join(s.to, file), 5000, Buffer.from([1, 2, 3]));
    const out = join(s.home, 'out.db');
    const refused = await s.ask('restore', [file, '-o', out, '--json']);
    expect([refused.code, refused.json.error?.code, refused.json.error?.stage]).toEqual([1, 'COPY_BAD', 'verify']);
    expect(existsSync(out)).toBe(false);
    expect(left(s)).toEqual([]);
  });

  test.each(['-o', '--into'])('what %s found bad is no good copy to anybody from then on', async (way) => {
    const { s, file: older } = await made();
    const newer = (await s.run(['--json'])).json.copy?.file ?? '';
    damage(join(s.to, newer), 5000, Buffer.from([1, 2, 3]));
    const args = way === '-o' ? ['-o', join(s.home, 'out.db')] : ['--into', s.source, '--yes'];
    expect((await s.ask('restore', [...args, '--json'])).json.error?.code).toBe('COPY_BAD');
    expect((await s.ask('list', ['--json'])).json.copies?.map((c) => [c.file, c.status])).toEqual([
      [newer, 'bad'],
      [older, 'good'],
    ]);
    expect((await s.ask('status', ['--json'])).json.newestGood?.file).toBe(older);
    expect((await s.ask('prune', ['--keep-last', '1'])).code).toBe(0);
    expect(existsSync(join(s.to, older))).toBe(true);
    expect(left(s)).toEqual([]);
    // The next one takes what is good.
    expect((await s.ask('restore', [...args, '--json'])).json.restored?.file).toBe(older);
  });

  test('where the verdict cannot be written down, it is told all the same', async () => {
    const { s, file } = await made();
    damage(join(s.to, file), 5000, Buffer.from([1, 2, 3]));
    const lock = new Database(join(s.state, 'app.lock.db'));
    lock.exec('BEGIN IMMEDIATE');
    const refused = await s.ask('restore', ['-o', join(s.home, 'out.db'), '--json']);
    lock.close();
    expect([refused.code, refused.json.error?.code, refused.json.warnings?.map((w) => w.code)]).toEqual([1, 'COPY_BAD', ['LOCKED']]);
  });
});

/** What `restore` says of a copy that SQLite need not check again. */
const KNOWN = 'the bytes that SQLite checked at';

describe('a copy that was proven before', () => {
  /** Makes the manifest agree with whatever is said or lies there: its sums are right. */
  const rewrite = (s: Scene, file: string, otherwise: Otherwise = {}): void => {
    const path = join(s.to, file.replace(/\.db.*/, '.json'));
    const { selfSha256: _, ...said } = JSON.parse(readFileSync(path, 'utf8')) as Manifest;
    const sha256 = sha(join(s.to, file));
    writeFileSync(path, textOf({ ...said, sha256, plainSha256: sha256 }, otherwise));
  };
  const inHistory = (s: Scene, sql: string): void => change(join(s.state, 'history.db'), sql);

  test.each([[[]], [['--compress', 'gzip']]])('is hashed, and SQLite does not check it again: %s', async (more) => {
    const s = scene();
    expect((await s.run(more)).code).toBe(0);
    const out = join(s.home, 'out.db');
    const restore = await s.ask('restore', ['-o', out]);
    expect([restore.code, restore.stderr]).toEqual([0, expect.stringContaining(KNOWN)]);
    expect(content(out)).toBe(content(s.source));
    expect((await s.ask('restore', ['--into', s.source, '--yes'])).stderr).toContain(KNOWN);
  });

  test.each<[string, (s: Scene) => void]>([
    ['no history', (s) => rmSync(join(s.state, 'history.db'))],
    ['another version of dbbackup', (s) => inHistory(s, "UPDATE proofs SET tool = 'dbbackup 0.0.1'")],
    ['another build of SQLite', (s) => inHistory(s, "UPDATE proofs SET sqlite = '2020-01-01 3.31.0'")],
    ['other bytes', (s) => inHistory(s, "UPDATE proofs SET sha256 = 'other'")],
    ['a time that is none', (s) => inHistory(s, "UPDATE proofs SET at = 'some day'")],
    ['no table for it, from an older version', (s) => inHistory(s, 'DROP TABLE proofs')],
    ['a damaged table for it', (s) => damage(join(s.state, 'history.db'), (rootPage(join(s.state, 'history.db'), 'proofs') - 1) * 4096, Buffer.alloc(200, 7))],
  ])('is checked again where that is not known: %s', async (_, forget) => {
    const { s, file } = await made();
    forget(s);
    const out = join(s.home, 'out.db');
    const restore = await s.ask('restore', ['-o', out]);
    expect(restore.code, restore.stderr).toBe(0);
    expect(restore.stderr).toContain(`${file} proven`);
    expect(restore.stderr).not.toContain(KNOWN);
    expect(sha(out)).toBe(sha(join(s.to, file)));
  });

  test.each<[string, RegExp, (s: Scene, file: string) => void]>([
    ['other bytes with the right sums', /./, (s, file) => damage(join(s.to, file), 4096 + 8, Buffer.alloc(100, 255))],
    ['another number of rows', /rows/, (s, file) => rewrite(s, file, { rows: { setting: 1 } })],
    ['another schema', /schema/, (s, file) => rewrite(s, file, { schemaHash: 'c'.repeat(64) })],
    ['another plain size', /plain size/, (s, file) => rewrite(s, file, { plainSizeBytes: 4096 })],
    ['another plain sum', /plain SHA-256/, (s, file) => rewrite(s, file, { plainSha256: 'c'.repeat(64) })],
  ])('is refused when its manifest was made to agree with %s', async (what, problem, change) => {
    const { s, file } = await made();
    change(s, file);
    if (what.startsWith('other bytes')) rewrite(s, file);
    const out = join(s.home, 'out.db');
    const refused = await s.ask('restore', [file, '-o', out, '--json']);
    expect([refused.code, refused.json.error?.code, refused.json.error?.message]).toEqual([1, 'COPY_BAD', expect.stringMatching(problem)]);
    expect(existsSync(out)).toBe(false);
  });

  test('verify always checks, and what it proves is known from then on', async () => {
    const { s, file } = await made();
    inHistory(s, 'DELETE FROM proofs');
    expect((await s.ask('verify', [file])).code).toBe(0);
    expect((await s.ask('restore', ['-o', join(s.home, 'out.db')])).stderr).toContain(KNOWN);
    damage(join(s.to, file), 4096 + 8, Buffer.alloc(100, 255));
    rewrite(s, file);
    inHistory(s, `UPDATE proofs SET sha256 = '${sha(join(s.to, file))}'`);
    const verify = await s.ask('verify', [file, '--json']);
    expect([verify.code, verify.json.results?.[0]?.status]).toEqual([1, 'bad']);
    // What was believed of these bytes is forgotten.
    expect(query(join(s.state, 'history.db'), 'SELECT count(*) FROM proofs')).toBe(0);
  });
});

describe('restore --into a live database', () => {
  test.each(['wal', 'delete'] as const)('in %s mode: the copy is in, the state before is a tagged copy', async (journal) => {
    const { s, file, copied } = await made(journal);
    change(s.source);
    const before = content(s.source);
    const { ino, mode } = statSync(s.source);
    const restore = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect(restore.code, restore.stderr).toBe(0);
    expect(problemsIn(restore.json, shapes.restoreDocument)).toEqual([]);
    expect(content(s.source)).toBe(copied);
    expect(query(s.source, 'PRAGMA journal_mode')).toBe(journal);
    expect(statSync(s.source)).toMatchObject({ ino, mode });
    const safety = restore.json.restored?.safetyCopy ?? '';
    expect(restore.json.restored).toEqual({ file, target: s.source, safetyCopy: safety, setAside: [] });
    expect(restore.json.stages?.map((t) => t.name)).toEqual(['inspect', 'verify', 'snapshot', 'verify', 'publish', 'restore', 'report']);
    expect(content(join(s.to, safety))).toBe(before);
    const list = await s.ask('list', ['--json']);
    expect(list.json.copies?.map((c) => [c.file, c.status, c.tags])).toEqual([
      [safety, 'good', ['before-restore']],
      [file, 'good', []],
    ]);
    // The tagged one is not the latest, and the next run is not disturbed by it.
    expect((await s.ask('status', ['--json'])).json.newestGood?.file).toBe(file);
    expect((await s.run()).code).toBe(0);
    expect(left(s)).toEqual([]);
    // And back again.
    expect((await s.ask('restore', [safety, '--into', s.source, '--yes'])).code).toBe(0);
    expect(content(s.source)).toBe(before);
  });

  test('an application that has it open goes on, and sees the copy', async () => {
    const { s, copied } = await made('wal');
    const app = await openWriter(s.source, {});
    change(s.source);
    expect((await s.ask('restore', ['--into', s.source, '--yes'])).code).toBe(0);
    expect(content(s.source)).toBe(copied);
    await app.stop();
    expect(query(s.source, 'PRAGMA integrity_check')).toBe('ok');
  });

  test('what is committed between the safety copy and the restore is said to be lost', async () => {
    const { s } = await made('wal');
    const app = await openWriter(s.source, {});
    const running = start(['restore', '--into', s.source, '--yes', '--to', s.to, '--json']);
    await until('the safety copy to be under way', () => running.stderr().includes('snapshot '), 20_000, 1);
    change(s.source);
    const restore = await running.result;
    await app.stop();
    const lost = restore.json.warnings?.filter(({ code }) => code === 'COMMITS_LOST') ?? [];
    expect([restore.code, lost.map(({ severity }) => severity)], restore.stderr).toEqual([0, ['critical']]);
    // Nobody writes: nothing to say.
    const quiet = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect([quiet.code, quiet.json.warnings], quiet.stderr).toEqual([0, []]);
  });

  test.skipIf(cannot('strace') !== null).each(['wal', 'delete'] as const)(
    'so is what a writer commits for whom the restore had to wait (%s)',
    async (journal) => {
      const { s } = await made(journal);
      const db = new Database(s.source);
      db.exec("BEGIN IMMEDIATE; INSERT INTO beat (at) VALUES ('order 4711')");
      const log = join(s.home, 'opened');
      const through = ['strace', '-f', '-qq', '-o', log, '-P', s.source, '-e', 'trace=openat', '--'];
      const running = start(['restore', '--into', s.source, '--yes', '--to', s.to, '--json'], { through });
      const tries = (): number => (existsSync(log) ? readFileSync(log, 'utf8').split('O_RDWR').length - 1 : 0);
      await until('the restore to have tried twice to write into the database', () => tries() >= 2);
      db.exec('COMMIT');
      db.close();
      const restore = await running.result;
      expect([restore.code, restore.json.warnings?.filter(({ code }) => code === 'COMMITS_LOST')], restore.stderr).toEqual([0, [expect.anything()]]);
      expect(query<number>(s.source, "SELECT count(*) FROM beat WHERE at = 'order 4711'")).toBe(0);
    },
  );

  test('a copy whose run had to wait for the source is named by when it could read it: --timestamp before that takes the one before', async () => {
    const { s, file } = await made('delete');
    const writer = await useDatabase(s.source, ['BEGIN EXCLUSIVE', 'DELETE FROM setting']);
    const running = start(['run', s.source, '--to', s.to, '--json']);
    await until('the run to wait', async () => (await s.ask('history', ['--json'])).json.runs?.[0]?.status === 'running');
    const waiting = new Date(Date.now() + 1000);
    await until('the second in which it began to be over', () => Date.now() > waiting.getTime() + 1000);
    await writer.crash();
    const { copy } = (await running.result).json;
    expect(Date.parse(copy?.createdAt ?? '')).toBeGreaterThanOrEqual(waiting.getTime());
    const restore = await s.ask('restore', ['-o', join(s.home, 'then.db'), '--timestamp', waiting.toISOString(), '--json']);
    expect([restore.code, restore.json.copy?.file], restore.stderr).toEqual([0, file]);
  });

  test('asks, and without a terminal wants --yes', async () => {
    const { s } = await made();
    change(s.source);
    const before = content(s.source);
    const refused = await s.ask('restore', ['--into', s.source, '--json']);
    expect([refused.code, refused.json.error?.code]).toEqual([64, 'USAGE']);
    expect(content(s.source)).toBe(before);
    const asked = (answer: string): number | null =>
      spawnSync('script', ['-qec', `${s.askLine('restore', ['--into', s.source])}`, '/dev/null'], { input: `${answer}\n`, encoding: 'utf8' }).status;
    expect(asked('n')).toBe(64);
    expect(content(s.source)).toBe(before);
    expect(asked('y')).toBe(0);
    expect(content(s.source)).not.toBe(before);
  });

  test('a copy of another database is refused by name, and --force accepts it', async () => {
    const { s, copied } = await made();
    const other = join(s.home, 'other.db');
    makeDatabase(other, { journal: 'wal' });
    const before = content(other);
    const refused = await s.ask('restore', ['--into', other, '--yes', '--json']);
    expect([refused.code, refused.json.error?.code]).toEqual([1, 'OTHER_SOURCE']);
    expect(refused.stderr).toContain(s.source);
    expect(content(other)).toBe(before);
    expect((await s.ask('restore', ['--into', other, '--yes', '--force'])).code).toBe(0);
    expect(content(other)).toBe(copied);
    // The safety copy of the other one does not take the name away from this one.
    expect((await s.run()).code).toBe(0);
  });

  test('a copy that does not prove out leaves the database untouched', async () => {
    const { s, file } = await made('delete');
    damage(join(s.to, file), 5000, Buffer.from([1, 2, 3]));
    const before = sha(s.source);
    const refused = await s.ask('restore', [file, '--into', s.source, '--yes', '--json']);
    expect([refused.code, refused.json.error?.code]).toEqual([1, 'COPY_BAD']);
    expect(sha(s.source)).toBe(before);
  });
});

describe('restore --into, offline', () => {
  test('a missing database is there again, in its journal mode', async () => {
    const { s, file, copied } = await made('wal');
    for (const suffix of ['', '-wal', '-shm']) rmSync(s.source + suffix, { force: true });
    const restore = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect(restore.code, restore.stderr).toBe(0);
    expect(restore.json.restored).toEqual({ file, target: s.source, safetyCopy: null, setAside: [] });
    expect(content(s.source)).toBe(copied);
    expect(query(s.source, 'PRAGMA journal_mode')).toBe('wal');
    expect(left(s)).toEqual([]);
  });

  test.each([
    ['cut short', (path: string) => truncateSync(path, 5000)],
    ['empty', (path: string) => truncateSync(path, 0)],
    ['overwritten with text', (path: string) => writeFileSync(path, 'oh no')],
    ['damaged inside', (path: string) => damage(path, (rootPage(path, 'customer') - 1) * 4096, Buffer.alloc(4096, 0x5a))],
  ])('a database that is %s is set aside as it is, with its -wal', async (_, spoil) => {
    const { s, copied } = await made('wal');
    // A crashed application leaves its -wal.
    const app = await openWriter(s.source, { loop: "INSERT INTO beat (at) VALUES ('x')" });
    await app.crash();
    spoil(s.source);
    chmodSync(s.source, 0o640);
    if (process.geteuid?.() === 0) chownSync(s.source, 1234, 1234);
    const before = sha(s.source);
    const restore = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect(restore.code, restore.stderr).toBe(0);
    expect(content(s.source)).toBe(copied);
    expect(modeOf(s.source)).toBe('640');
    if (process.geteuid?.() === 0) expect(statSync(s.source).uid).toBe(1234);
    const aside = restore.json.restored?.setAside ?? [];
    const main = aside.find((f) => f.endsWith('app.db')) ?? '';
    expect(main.startsWith(join(s.state, 'aside/'))).toBe(true);
    expect(sha(main)).toBe(before);
    expect(aside.some((f) => f.endsWith('app.db-wal'))).toBe(true);
  });

  test.each([
    ['page size', { pageSize: 512 }],
    ['text encoding', { encoding: 'UTF-16le' }],
  ] as const)('a database of another %s', async (_, shape) => {
    const { s, copied } = await made('wal');
    rmSync(s.source);
    for (const suffix of ['-wal', '-shm']) rmSync(s.source + suffix, { force: true });
    makeDatabase(s.source, { journal: 'wal', ...shape });
    change(s.source, "INSERT INTO customer (email) VALUES ('last words')");
    const app = await openWriter(s.source, {});
    const before = content(s.source);
    const refused = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect([refused.code, refused.json.error?.code, content(s.source)], refused.stderr).toEqual([1, 'IN_USE', before]);
    await app.stop();
    const restore = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect(restore.code, restore.stderr).toBe(0);
    expect(content(s.source)).toBe(copied);
    expect(query(s.source, 'PRAGMA journal_mode')).toBe('wal');
    expect(content(restore.json.restored?.setAside[0] ?? '')).toBe(before);
  });

  test.each([
    ['wal', []],
    // Half of it is in the file already, and what it was in the journal.
    ['delete', ['PRAGMA cache_size = 5', 'BEGIN IMMEDIATE', 'CREATE TABLE half AS SELECT zeroblob(300000) AS b', 'UPDATE invoice SET cents = -1']],
  ] as const)('a database that is deleted while its application has it open: the lines that are printed save what it holds (%s)', async (journal, work) => {
    const { s } = await made(journal);
    const before = content(s.source);
    const app = await useDatabase(s.source, work);
    for (const suffix of ['', '-wal', '-shm']) rmSync(s.source + suffix, { force: true });
    const [run, restore] = [await s.run(['--json']), await s.ask('restore', ['--into', s.source, '--yes', '--json'])];
    expect([run, restore].map((r) => [r.code, r.json.error?.code])).toEqual([
      [1, 'SOURCE_MISSING'],
      [1, 'IN_USE'],
    ]);
    for (const { json } of [run, restore]) {
      const [, lines = ''] = /root\): (.*); then end it/.exec(json.error?.hint ?? '') ?? [];
      expect(lines).toMatch(new RegExp(`^kill -STOP ${app.pid}; cp `));
      expect(spawnSync('sh', ['-c', lines]).status).toBe(0);
      expect(content(`${s.source}.saved`)).toBe(before);
    }
    await app.crash();
    expect((await s.ask('restore', ['--into', s.source, '--yes'])).code).toBe(0);
  });

  test('over a link to the database: its own name is said, and is the one that a message has', async () => {
    const { s } = await made('wal');
    const link = join(s.home, 'link.db');
    symlinkSync(s.source, link);
    const restore = await s.ask('restore', ['--into', link, '--yes', '--json']);
    expect([restore.code, restore.json.error?.hint]).toEqual([1, `name the database file itself: ${s.source}`]);
    damage(s.source, (rootPage(s.source, 'customer') - 1) * 4096, Buffer.alloc(4096, 0x5a));
    const script = join(s.home, 'sendmail');
    writeFileSync(script, `#!/bin/sh\ncat > ${join(s.home, 'mail')}\n`, { mode: 0o755 });
    const env = { DBBACKUP_SMTP_URL: `sendmail:${script}`, DBBACKUP_MAIL_TO: 'ops@example.org' };
    expect((await dbbackup(['run', link, '--to', s.to, '--name', 'app'], { env })).code).toBe(1);
    expect(readFileSync(join(s.home, 'mail'), 'utf8').replaceAll('=\n', '')).toContain(`--into ${s.source} `);
  });

  test('nothing happens while somebody has it open, who is named', async () => {
    const { s } = await made('wal');
    const app = await openWriter(s.source, {});
    truncateSync(s.source, 5000);
    const before = sha(s.source);
    const refused = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect([refused.code, refused.json.error?.code]).toEqual([1, 'IN_USE']);
    expect(refused.stderr).toContain(String(app.pid));
    expect(sha(s.source)).toBe(before);
    await app.crash();
  });

  test.each([
    ['a symbolic link', (path: string) => symlinkSync('/nowhere', path), 'SOURCE_NOT_A_FILE'],
    ['a directory', (path: string) => mkdirSync(path), 'SOURCE_NOT_A_FILE'],
    ['a FIFO', (path: string) => void spawnSync('mkfifo', [path]), 'SOURCE_NOT_A_FILE'],
    ['a file with a second name', twin, 'SOURCE_HARD_LINKED'],
  ])('%s is refused', async (_, plantIt, code) => {
    const { s } = await made('delete');
    rmSync(s.source);
    plantIt(s.source);
    const refused = await s.ask('restore', ['--into', s.source, '--yes', '--force', '--json']);
    expect([refused.code, refused.json.error?.code]).toEqual([1, code]);
    expect(existsSync(join(s.state, 'aside'))).toBe(false);
  });
});

describe('which copy', () => {
  test('--timestamp takes the newest good one made at or before it', async () => {
    const { s, file } = await made();
    const old = plant(s.to, baseAt(ago(2 * DAY)));
    plant(s.to, baseAt(ago(3 * DAY)));
    const at = (more: string[]): Promise<string | undefined> =>
      s.ask('restore', ['-o', join(s.home, 'x.db'), '--dry-run', '--json', ...more]).then((r) => r.json.restored?.file);
    expect(await at([])).toBe(file);
    expect(await at(['--timestamp', new Date(Date.now() + 1000).toISOString()])).toBe(file);
    expect(await at(['--timestamp', new Date(Date.now() - DAY).toISOString()])).toBe(old);
    expect(
      await at([
        '--timestamp',
        ago(2 * DAY)
          .toISOString()
          .slice(0, 10),
      ]),
    ).toBe(old);
    // As list shows it on a terminal.
    const local = new Date(ago(2 * DAY).getTime() + 5.5 * 3_600_000).toISOString();
    expect(await at(['--timestamp', `${local.slice(0, 10)} ${local.slice(11, 19)} +05:30`])).toBe(old);
    const none = await s.ask('restore', ['-o', join(s.home, 'x.db'), '--timestamp', '2001-01-01', '--json']);
    expect([none.code, none.json.error?.code]).toEqual([1, 'COPY_NOT_FOUND']);
  });

  test('whoever gets an older one than the newest is told what was passed over', async () => {
    const { s, file } = await made();
    const newer = plant(s.to, baseAt(new Date(Date.now() + 60_000)), { status: 'suspect' });
    const newest = plant(s.to, baseAt(new Date(Date.now() + 120_000)));
    truncateSync(join(s.to, newest), 1);
    const tagged = plant(s.to, baseAt(new Date(Date.now() + 180_000)), { tags: ['before-restore'] });
    const remark = { code: 'COPY_BAD', severity: 'warning', message: `not taken, though newer than ${file}: ${newest} (bad), ${newer} (suspect)` };
    const way = ['-o', join(s.home, 'x.db'), '--json'];
    for (const more of [['--dry-run'], ['--dry-run', '--timestamp', new Date(Date.now() + 600_000).toISOString()], []]) {
      const restore = await s.ask('restore', [...way, ...more]);
      expect([restore.code, restore.json.restored?.file, restore.json.warnings], restore.stderr).toEqual([0, file, [remark]]);
    }
    expect((await s.ask('verify', ['--json'])).json.warnings).toEqual([remark]);
    // Asked for by its name, it is meant.
    expect((await s.ask('restore', [file, '--force', ...way])).json.warnings).toEqual([]);
    expect(tagged).toContain('app-');
  });

  test.each([
    ['no way', []],
    ['two ways', ['-o', 'x.db', '--into', 'y.db']],
    ['a copy and a time', ['latest', '--timestamp', '2026-01-01', '-o', 'x.db']],
    ['a time that is none', ['--timestamp', 'yesterday', '-o', 'x.db']],
    ['two copies', ['latest', 'latest', '-o', 'x.db']],
  ])('%s is a usage error', async (_, words) => {
    const { s } = await made();
    const refused = await s.ask('restore', [...words, '--json']);
    expect([refused.code, refused.json.error?.code]).toEqual([64, 'USAGE']);
  });

  test('a directory that is not there is named', async () => {
    const { s } = await made();
    const refused = await s.ask('restore', ['-o', join(s.home, 'not/there/x.db'), '--json']);
    expect([refused.code, refused.json.error?.code]).toEqual([1, 'RESTORE_FAILED']);
    expect(refused.stderr).toContain('there is no directory');
  });
});

test('a restored file that a kill left with a second name of ours can be backed up: the name goes, and no other does', async () => {
  const { s } = await made();
  const leave = (directory: string): string => {
    mkdirSync(join(dirname(s.source), directory), { mode: 0o700 });
    linkSync(s.source, join(dirname(s.source), directory, 'restore.db'));
    return join(dirname(s.source), directory);
  };
  const ours = leave('.dbbackup-01234567-89ab-cdef-0123-456789abcdef');
  const run = await s.run(['--json']);
  expect([run.code, existsSync(ours)], run.stderr).toEqual([0, false]);
  // One that was killed while it proved: there is no second name, and a whole database is left.
  const proving = join(dirname(s.source), '.dbbackup-11234567-89ab-cdef-0123-456789abcdef');
  mkdirSync(proving, { mode: 0o700 });
  writeFileSync(join(proving, 'restore.db'), 'a part of it');
  const swept = await s.run(['--json']);
  expect([swept.code, existsSync(proving)], swept.stderr).toEqual([0, false]);
  const theirs = leave('dbbackup-of-somebody');
  expect([(await s.run(['--json'])).json.error?.code, existsSync(theirs)]).toEqual(['SOURCE_HARD_LINKED', true]);
});

describe('--dry-run', () => {
  test('says what would be replaced by what, and changes nothing', async () => {
    const { s, file } = await made('wal');
    change(s.source);
    rmSync(join(s.state, 'history.db'));
    const before = tree(s.home);
    const dry = await s.ask('restore', ['--into', s.source, '--dry-run']);
    expect(dry.code, dry.stderr).toBe(0);
    expect(dry.stdout).toMatch(
      new RegExp(`^would prove ${file} .*\nwould make a safety copy of ${s.source} .*\nwould write it into ${s.source} in one transaction.*\n$`),
    );
    const offline = await s.ask('restore', ['--into', join(s.home, 'new.db'), '--force', '--dry-run']);
    expect(offline.stdout).toContain('offline: there is no database');
    expect(tree(s.home)).toEqual(before);
  });

  test('exits as the restore would', async () => {
    const { s } = await made();
    writeFileSync(join(s.home, 'there.db'), 'x');
    const dry = await s.ask('restore', ['-o', join(s.home, 'there.db'), '--dry-run', '--json']);
    expect([dry.code, dry.json.error?.code, dry.json.dryRun]).toEqual([1, 'TARGET_EXISTS', true]);
  });

  test('sums up the space that the restore would need', async (context) => {
    context.skip(cannot('root', 'mount') !== null, cannot('root', 'mount') ?? '');
    const { s, file } = await made();
    const small = mountTmpfs(8_192);
    const ask = (...more: string[]): ReturnType<Scene['ask']> => s.ask('restore', ['-o', join(small, 'x.db'), '--json', ...more]);
    const [dry, real] = [await ask('--dry-run'), await ask()];
    expect([dry.code, dry.json.error?.message]).toEqual([1, real.json.error?.message]);
    expect(dry.json.error).toMatchObject({ code: 'NO_SPACE', message: expect.stringContaining(`at ${small}: `) });
    expect(statSync(join(s.to, file)).size).toBeGreaterThan(8_192);
    expect(readdirSync(small)).toEqual([]);
  });
});
