/** The main job: what is there afterwards, that it is true, and that the source never noticed. */
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, renameSync, statSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import type { Manifest } from '../../src/records.js';
import { statOf } from '../../src/system/proc.js';
import { inPrivate, sha256 } from '../fault/proof.js';
import { cannot, dbbackup, holdExclusively, makeDatabase, openWriter, ROOT, readJson, start, tempDirectory, until, useDatabase, wrap } from '../support/cli.js';
import { ago, baseAt, DAY, dataFiles, HOUR, linesOf, modeOf, plant, type Scene, scene, sceneWithCopy, tree } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

type Db = Database.Database;
const TABLES = ['customer', 'invoice', 'setting', 'beat'];
const rowsOf = (db: Db, table: string): unknown[] => db.prepare(`SELECT * FROM ${table} ORDER BY 1`).raw().all();
const readOnly = <T>(path: string, look: (db: Db) => T): T => {
  const db = new Database(path, { readonly: true });
  try {
    return look(db);
  } finally {
    db.close();
  }
};
const manifestOf = (s: Scene, file: string): Manifest => readJson(join(s.to, file.replace(/\.db$/, '.json'))) as Manifest;
/** proc(5) */
const [PARENT, NICE] = [4, 19];
const copyOf = (text: string): string => text.trim().split('/').at(-1) ?? '';

describe.each(['wal', 'delete'] as const)('a run of a database in %s mode', (journal) => {
  test('leaves a copy that equals the source row by row, and a manifest that is complete and true', async () => {
    const s = scene({ journal, bytes: 200_000 });
    // In WAL mode the application is at work, and its newest rows are in the WAL alone.
    const app = journal === 'wal' ? await openWriter(s.source) : null;
    const before = [s.source, `${s.source}-wal`].map((f) => (existsSync(f) ? [sha256(f), statSync(f, { bigint: true }).mtimeNs] : null));
    const beside = readdirSync(join(s.home, 'data'));
    const earliest = Math.floor(Date.now() / 1000) * 1000;

    const run = await s.run(['--json'], { through: wrap.umask('000') });

    expect([run.code, run.signal], run.stderr).toEqual([0, null]);
    expect(problemsIn(run.json, shapes.run)).toEqual([]);
    expect(run.json).toMatchObject({ command: 'run', name: 'app', profile: null, status: 'ok', dryRun: false, attempts: 1, error: null, pruned: [] });
    expect(run.json.stages?.map((t) => [t.name, t.status])).toEqual(['inspect', 'snapshot', 'verify', 'publish', 'prune', 'report'].map((n) => [n, 'ok']));
    expect(run.json.warnings?.map((w) => w.code)).toEqual(journal === 'wal' ? [] : ['SOURCE_ROLLBACK_MODE']);
    expect(run.json.source).toMatchObject({ path: s.source, sizeBytes: statSync(s.source).size, journalMode: journal });
    expect(run.json.source?.walBytes).toBe(app ? statSync(`${s.source}-wal`).size : 0);

    const [file = '', ...others] = dataFiles(s.to);
    expect(others).toEqual([]);
    expect(file).toMatch(/^app-\d{8}T\d{6}Z\.db$/);
    const m = manifestOf(s, file);
    expect(problemsIn(m, shapes.manifest)).toEqual([]);
    const at = join(s.to, file);
    expect(m).toMatchObject({
      file,
      manifest: file.replace(/db$/, 'json'),
      name: 'app',
      status: 'good',
      tags: [],
      method: 'vacuum-into',
      sizeBytes: statSync(at).size,
      plainSizeBytes: statSync(at).size,
      sha256: sha256(at),
      plainSha256: sha256(at),
      source: s.source,
      configuredPath: s.source,
      realPath: s.source,
      runId: run.json.runId,
      journalMode: journal,
      pageSize: 4096,
      userVersion: 7,
      applicationId: 1145197122,
      violations: { check: 0, notNull: 0, foreignKey: 0 },
    });
    expect(m.pageCount * m.pageSize).toBe(m.sizeBytes);
    expect(m.checks.map((c) => [c.name, c.ok])).toEqual([
      ['source quick_check', true],
      ['schema', true],
      ['integrity_check', true],
      ['foreign_key_check', true],
      ['sha256', true],
    ]);
    expect(m.createdAt.replace(/[-:]/g, '')).toBe(/\d{8}T\d{6}Z/.exec(file)?.[0]);
    expect(Date.parse(m.createdAt)).toBeGreaterThanOrEqual(earliest);
    expect(Date.parse(m.createdAt)).toBeLessThanOrEqual(Date.parse(m.verifiedAt ?? ''));
    expect(m.durationMs).toBeLessThanOrEqual(run.json.durationMs ?? 0);
    expect(run.json.copy).toEqual(Object.fromEntries(Object.keys(run.json.copy ?? {}).map((k) => [k, m[k as keyof Manifest]])));
    expect(run.json.kept?.map((k) => k.file)).toEqual([file]);

    inPrivate(at, (copy) => {
      expect(copy.pragma('integrity_check')).toEqual([{ integrity_check: 'ok' }]);
      expect(copy.pragma('journal_mode', { simple: true })).toBe('delete');
      readOnly(s.source, (source) => {
        for (const table of TABLES) {
          expect(rowsOf(copy, table)).toEqual(rowsOf(source, table));
          expect(m.rows[table]).toBe(rowsOf(source, table).length);
        }
        const schema = 'SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name';
        expect(copy.prepare(schema).all()).toEqual(source.prepare(schema).all());
      });
      expect(rowsOf(copy, 'beat')).toHaveLength(app ? 2 : 0);
    });
    expect(Object.keys(m.rows).toSorted()).toEqual(TABLES.toSorted());

    // The source never noticed. (In WAL mode comparing opened it, after the application had been looked at.)
    expect([s.source, `${s.source}-wal`].map((f) => (existsSync(f) ? [sha256(f), statSync(f, { bigint: true }).mtimeNs] : null))).toEqual(before);
    expect(readdirSync(join(s.home, 'data'))).toEqual(beside);
    await app?.stop();

    // Ours alone, whatever the umask was.
    for (const entry of ['.', ...(readdirSync(s.to, { recursive: true }) as string[])]) {
      const path = join(s.to, entry);
      expect([entry, modeOf(path)]).toEqual([entry, statSync(path).isDirectory() ? '700' : '600']);
    }
    expect(readdirSync(join(s.state, 'tmp'))).toEqual([]);
    expect(readdirSync(s.to).toSorted()).toEqual(['.dbbackup', file, file.replace(/db$/, 'json')].toSorted());
  });

  test('says one line a stage, and prints the path of the copy', async () => {
    const s = scene({ journal });
    const run = await s.run();
    expect(run.stdout).toBe(`${s.to}/${dataFiles(s.to)[0]}\n`);
    expect(
      linesOf(run.stderr)
        .filter((l) => !l.startsWith('dbbackup: warning'))
        .map((l) => l.split(' ')[0]),
    ).toEqual(['inspect', 'snapshot', 'verify', 'publish', 'prune']);
    for (const line of linesOf(run.stderr)) expect(line).toMatch(/\(\d+(\.\d)? m?s\)$|^dbbackup: warning SOURCE_ROLLBACK_MODE: /);
  });
});

const noSqlite3 = cannot('sqlite3');
if (noSqlite3) process.stderr.write(`not run here: a copy in the plain sqlite3 program: ${noSqlite3}\n`);

test.skipIf(noSqlite3)('the plain sqlite3 program opens a copy', async () => {
  const s = scene();
  const file = copyOf((await s.run(['--quiet', '--json'])).json.copy?.file ?? '');
  const told = spawnSync('sqlite3', [`file:${join(s.to, file)}?immutable=1`, 'PRAGMA integrity_check; SELECT count(*) FROM invoice'], { encoding: 'utf8' });
  expect(told.stdout).toBe('ok\n20\n');
});

test('writers are not blocked in WAL mode, and a copy holds whole transactions', async () => {
  const s = scene({ journal: 'wal', bytes: 2_000_000 });
  const app = await useDatabase(s.source, ['PRAGMA busy_timeout = 0'], {
    loop: "BEGIN IMMEDIATE; INSERT INTO beat (at) VALUES ('one'); INSERT INTO beat (at) VALUES ('two'); COMMIT",
    beatMs: 1,
  });
  const run = await s.run(['--json']);
  const wrote = await app.stop();
  expect([run.code, wrote.failed, wrote.first], run.stderr).toEqual([0, 0, '']);
  expect(wrote.done).toBeGreaterThan(10);
  const count = inPrivate(join(s.to, run.json.copy?.file ?? ''), (db) => db.prepare<[], number>('SELECT count(*) FROM beat').pluck().get() ?? 0);
  expect(count % 2).toBe(0);
  expect(run.json.copy && manifestOf(s, run.json.copy.file).rows['beat']).toBe(count);
});

test('what looks at more than one night is in the record and in status until a night does not find it any more', async () => {
  const s = scene({ journal: 'wal' });
  const change = (sql: string): void => {
    const db = new Database(s.source);
    db.exec(sql);
    db.close();
  };
  change(
    'CREATE TABLE gone (x); CREATE TABLE many (x); INSERT INTO many WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) SELECT i FROM n',
  );
  expect((await s.run(['--json'])).json.warnings).toEqual([]);
  change('DROP TABLE gone; DELETE FROM many');
  const found = ['critical TABLE_GONE', 'warning TABLE_EMPTY'];
  const run = await s.run(['--json']);
  expect([run.code, run.json.warnings?.map((w) => `${w.severity} ${w.code}`)]).toEqual([0, found]);
  const problems = async (): Promise<string[] | undefined> => (await s.ask('status', ['--json'])).json.problems?.map((p) => `${p.severity} ${p.code}`);
  expect(await problems()).toEqual(found);
  expect((await s.run(['--json'])).json.warnings).toEqual([]);
  expect(await problems()).toEqual([]);
});

test('the hash of the schema follows the schema, and nothing else', async () => {
  const s = scene();
  const hash = async (): Promise<string> => manifestOf(s, (await s.run(['--json'])).json.copy?.file ?? '').schemaHash ?? '';
  const change = (sql: string): void => {
    const db = new Database(s.source);
    db.exec(sql);
    db.close();
  };
  const first = await hash();
  expect(await hash()).toBe(first);
  change("INSERT INTO beat (at) VALUES ('x'); PRAGMA user_version = 8; VACUUM");
  expect(await hash()).toBe(first);
  change('CREATE INDEX beat_at ON beat (at)');
  const second = await hash();
  expect(second).not.toBe(first);
  change('DROP INDEX beat_at');
  expect(await hash()).toBe(first);
});

test('the processes that do the work of SQLite are at low priority', async () => {
  const s = scene();
  const holder = await holdExclusively(s.source);
  const running = start(['run', s.source, '--to', s.to]);
  const nices = (): string[] =>
    readdirSync('/proc').flatMap((entry) => {
      const field = /^\d+$/.test(entry) ? statOf(Number(entry)) : null;
      return field?.(PARENT) === String(running.pid) ? [field(NICE)] : [];
    });
  // It waits for the holder up to 5 s.
  await until('them to be so', () => nices().length > 0 && nices().every((nice) => nice === '10'));
  await holder.stop();
  expect((await running.result).code).toBe(0);
});

describe('names of copies', () => {
  test('a second copy within one second gets -2, a third -3, and they are in that order', async () => {
    const s = scene();
    const one = (await s.run(['--json'])).json.copy;
    // Whatever the second of the next runs, it is taken: by good copies, one of them with a number already.
    const source = { configuredPath: s.source, realPath: s.source };
    // Counted from one moment: a slow machine must not step over a second.
    const from = Date.now();
    for (let i = 0; i < 60; i++) {
      const base = baseAt(new Date(from + i * 1000));
      if (`${base}.db` === one?.file) continue;
      plant(s.to, base, source);
      if (i % 2) plant(s.to, `${base}-2`, source);
    }
    const made: string[] = [];
    for (let i = 0; i < 3; i++) made.push((await s.run(['--json', '--keep-last', 'all'])).json.copy?.file ?? '');
    expect(new Set(made).size).toBe(3);
    for (const file of made) {
      expect(file).toMatch(/^app-\d{8}T\d{6}Z-[2-5]\.db$/);
      const m = manifestOf(s, file);
      expect(m).toMatchObject({ file, manifest: file.replace(/db$/, 'json'), sha256: sha256(join(s.to, file)) });
      expect(existsSync(join(s.to, file.replace(/-\d\.db$/, '.db')))).toBe(true);
    }
    const listed = (await s.ask('list', ['--json'])).json.copies?.map((c) => c.file) ?? [];
    expect(listed.filter((f) => made.includes(f))).toEqual(made.toReversed());
  });

  test('are those of the source, of --name, or of the profile', async () => {
    const s = scene();
    renameSync(s.source, join(s.home, 'data/.größe #1.sqlite'));
    const source = join(s.home, 'data/.größe #1.sqlite');
    expect((await dbbackup(['run', source, '--to', s.to, '--json'])).json.copy?.name).toBe('_größe _1');
    expect((await dbbackup(['run', source, '--to', s.to, '--name', 'other', '--json'])).json.copy?.file).toMatch(/^other-/);
    expect(dataFiles(s.to)).toHaveLength(2);
  });
});

describe('the directory', () => {
  test('is made, 0700, with what is missing above it', async () => {
    const s = scene();
    const run = await dbbackup(['run', s.source, '--to', join(s.home, 'a/b/c'), '-q'], { through: wrap.umask('000') });
    expect([run.code, run.stderr, run.stdout]).toEqual([0, '', '']);
    expect(['a', 'a/b', 'a/b/c'].map((d) => modeOf(join(s.home, d)))).toEqual(['700', '700', '700']);
  });

  test('keeps its mode when it was there', async () => {
    const s = scene();
    mkdirSync(s.to);
    chmodSync(s.to, 0o750);
    expect((await s.run(['-q'])).code).toBe(0);
    expect([modeOf(s.to), modeOf(s.state), modeOf(join(s.to, dataFiles(s.to)[0] ?? ''))]).toEqual(['750', '700', '600']);
  });

  test('state-dir and log-dir may lie elsewhere; unfinished work stays below the directory', async () => {
    const s = scene();
    const run = await s.run(['--state-dir', join(s.home, 'state'), '--log-dir', join(s.home, 'logs/here'), '--json']);
    expect(run.code, run.stderr).toBe(0);
    expect(
      readdirSync(join(s.home, 'state'))
        .filter((f) => !f.endsWith('-journal'))
        .toSorted(),
    ).toEqual(['app.lock.db', 'history.db']);
    expect(readdirSync(join(s.home, 'logs/here'))).toHaveLength(1);
    expect(readdirSync(s.state).sort()).toEqual(['app.lock.db', 'tmp']);
    const history = await s.ask('history', ['--state-dir', join(s.home, 'state'), '--json']);
    expect(history.json.runs?.map((r) => r.runId)).toEqual([run.json.runId]);
  });

  test('what lies in it and is not ours is not touched', async () => {
    const s = scene();
    mkdirSync(s.to, { mode: 0o700 });
    mkdirSync(join(s.to, 'app-20200101T000000Z.db'));
    for (const f of ['README', 'app.db', 'app-2020.db', 'app-20200101T000000Z.db.gz', '.hidden', 'app-20209999T000000Z.json']) writeFileSync(join(s.to, f), f);
    symlinkSync('/etc/passwd', join(s.to, 'app-20200102T000000Z.json'));
    symlinkSync('README', join(s.to, 'app-20200103T000000Z.db'));
    const before = tree(s.to).filter((l) => !l.startsWith('. '));
    expect((await s.run(['--keep-last', '1'])).code).toBe(0);
    expect((await s.run(['--keep-last', '1'])).code).toBe(0);
    const after = tree(s.to);
    for (const line of before) expect(after).toContain(line);
  });
});

describe('the path of the source', () => {
  test('may be a link: both paths are in the manifest', async () => {
    const s = scene();
    const link = join(s.home, 'current.db');
    symlinkSync('data/app.db', link);
    const run = await dbbackup(['run', 'current.db', '--to', 'backups', '--json'], { cwd: s.home });
    expect(run.code, run.stderr).toBe(0);
    expect(manifestOf(s, run.json.copy?.file ?? '')).toMatchObject({ name: 'current', source: link, configuredPath: link, realPath: s.source });
  });

  test('a name belongs to one database: another one is refused, until it is said that it moved', async () => {
    const { s } = await sceneWithCopy();
    const other = join(s.home, 'other/app.db');
    mkdirSync(join(s.home, 'other'));
    makeDatabase(other, { journal: 'delete' });
    const before = tree(s.to, ['.dbbackup', '.dbbackup/history.db', '.dbbackup/log', `.dbbackup/log/dbbackup-${new Date().toISOString().slice(0, 10)}.log`]);
    for (const more of [[], ['--dry-run']]) {
      const refused = await dbbackup(['run', other, '--to', s.to, '--json', ...more]);
      expect([refused.code, refused.json.error?.code]).toEqual([1, 'NAME_TAKEN']);
      expect(refused.json.error?.message).toContain(s.source);
      expect(refused.json.error?.message).toContain(other);
      expect(refused.json.error?.hint).toMatch(/--name.*--accept-moved/);
    }
    expect(tree(s.to, ['.dbbackup', '.dbbackup/history.db', '.dbbackup/log', `.dbbackup/log/dbbackup-${new Date().toISOString().slice(0, 10)}.log`])).toEqual(
      before,
    );

    expect((await dbbackup(['run', other, '--to', s.to, '--accept-moved'])).code).toBe(0);
    // Once is enough: the newest manifest now names the new place, and the old one is the stranger.
    expect((await dbbackup(['run', other, '--to', s.to])).code).toBe(0);
    expect((await s.run(['--json'])).json.error?.code).toBe('NAME_TAKEN');
    expect((await dbbackup(['run', s.source, '--to', s.to, '--name', 'first'])).code).toBe(0);
  });

  test('a link that points elsewhere, or another way to the same file, is the same database', async () => {
    const s = scene();
    const link = join(s.home, 'app.db');
    symlinkSync('data/app.db', link);
    expect((await dbbackup(['run', link, '--to', s.to])).code).toBe(0);
    // The same file under another path.
    expect((await s.run()).code).toBe(0);
    expect((await dbbackup(['run', link, '--to', s.to])).code).toBe(0);
    // The same path, another file: a new version of the application has put its database elsewhere.
    makeDatabase(join(s.home, 'v2.db'), { journal: 'delete' });
    spawnSync('ln', ['-sfn', 'v2.db', link]);
    expect((await dbbackup(['run', link, '--to', s.to])).code).toBe(0);
  });
});

describe('--if-older-than', () => {
  test('young copies of another database are no reason to leave this one without', async () => {
    const s = scene();
    plant(s.to, baseAt(ago(HOUR)), { configuredPath: '/srv/other/app.db', realPath: '/srv/other/app.db' });
    for (const more of [[], ['--dry-run']]) {
      const run = await s.run(['--if-older-than', '20h', '--json', ...more]);
      expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'NAME_TAKEN']);
    }
  });

  const planted = (s: Scene, age: number, more = {}): string => plant(s.to, baseAt(ago(age)), { configuredPath: s.source, realPath: s.source, ...more });

  test('does nothing while the newest good copy is younger, and says so', async () => {
    const s = scene();
    const file = planted(s, 19 * HOUR);
    const run = await s.run(['--if-older-than', '20h']);
    expect([run.code, run.stdout]).toEqual([0, '']);
    expect(run.stderr).toMatch(new RegExp(`nothing to do: ${file} is younger than --if-older-than`));
    const json = await s.run(['--if-older-than', '20h', '--json']);
    expect(problemsIn(json.json, shapes.run)).toEqual([]);
    expect(json.json).toMatchObject({ status: 'skipped', exitCode: 0, copy: null });
    expect(await s.run(['--if-older-than', '20h', '--quiet'])).toMatchObject({ code: 0, stdout: '', stderr: '' });
    expect((await s.run(['--if-older-than', '20h', '--dry-run'])).stdout).toMatch(/^would do nothing: /);
    expect(dataFiles(s.to)).toEqual([file]);
  });

  test.each([
    ['the newest is older', 21 * HOUR, {}],
    ['the newest is suspect', HOUR, { status: 'suspect' as const }],
    ['the newest is tagged', HOUR, { tags: ['before-restore'] }],
    ['the newest is not whole', HOUR, { sizeBytes: 7 }],
    ['the newest is dated ahead', -2 * HOUR, {}],
  ])('acts when %s', async (_, age, more) => {
    const s = scene();
    planted(s, age, more);
    const run = await s.run(['--if-older-than', '20h', '--json']);
    expect([run.code, run.json.status, run.json.copy?.status], run.stderr).toEqual([0, 'ok', 'good']);
  });

  test('an old copy of another name is no reason', async () => {
    const s = scene();
    plant(s.to, baseAt(ago(HOUR), 'other'), {});
    plant(s.to, baseAt(ago(2 * DAY)), { configuredPath: s.source, realPath: s.source });
    expect((await s.run(['--if-older-than', '20h', '--json'])).json.status).toBe('ok');
  });
});

test('runs of several names at the same time do not disturb one another; of one name, one waits', async () => {
  const s = scene({ journal: 'wal', bytes: 300_000 });
  const names = ['a', 'b', 'c', 'c'];
  const runs = await Promise.all(names.map((name) => s.run(['--json', '--name', name, '--keep-last', '1', '--lock-wait', '30s'])));
  expect(runs.map((r) => [r.code, r.json.name, r.json.status])).toEqual(names.map((n) => [0, n, 'ok']));
  expect(dataFiles(s.to).map((f) => f[0])).toEqual(['c', 'b', 'a']);
  const history = await s.ask('history', ['--json']);
  expect(history.json.runs?.map((r) => `${r.name} ${r.status}`).toSorted()).toEqual(['a ok', 'b ok', 'c ok', 'c ok']);
  expect(readdirSync(join(s.state, 'tmp'))).toEqual([]);
});

test('no HOME, no TZ, no locale and a bare PATH are enough', async () => {
  const s = scene();
  const run = await s.run(['--json'], { env: { PATH: '/usr/bin:/bin' }, cwd: tempDirectory('cwd'), through: [process.execPath] });
  expect([run.code, run.json.status], run.stderr).toEqual([0, 'ok']);
});

/** An installation of its own, in which something can be broken. */
function installation(): { root: string; executable: string } {
  const root = tempDirectory('package');
  for (const part of ['bin', 'dist', 'package.json']) cpSync(join(ROOT, part), join(root, part), { recursive: true });
  return { root, executable: join(root, 'bin/dbbackup.js') };
}

test('the last words of a SQLite process that cannot run are told', async () => {
  const s = scene();
  const { root, executable } = installation();
  symlinkSync(join(ROOT, 'node_modules'), join(root, 'node_modules'));
  unlinkSync(join(root, 'dist/sqlite-worker.js'));
  const run = await s.run(['--json'], { executable });
  expect([run.code, run.json.error?.code, run.json.error?.message]).toEqual([1, 'SNAPSHOT_FAILED', expect.stringContaining('Cannot find module')]);
  expect(dataFiles(s.to)).toEqual([]);
});

test.each([
  ['missing', null],
  ['made for another Node', 'no library'],
])('a compiled part of better-sqlite3 that is %s is said to be that, and what helps', async (_, content) => {
  const s = scene();
  const { root, executable } = installation();
  const place = join(root, 'node_modules/better-sqlite3/build/Release');
  mkdirSync(place, { recursive: true });
  if (content !== null) writeFileSync(join(place, 'better_sqlite3.node'), content);
  const run = await s.run(['--json'], { executable });
  expect([run.code, run.json.error?.code, run.json.error?.hint]).toEqual([
    70,
    'INTERNAL',
    expect.stringMatching(/^install dbbackup again with this Node .* --allow-scripts=better-sqlite3/),
  ]);
  expect(run.json.error?.message).toContain('the compiled part of better-sqlite3 cannot be loaded');
  expect(dataFiles(s.to)).toEqual([]);
});

test.each([
  ['comes to no end of its own', 'new Promise(() => undefined)', 'came to no end'],
  ['fails where nothing should', "Promise.reject(new Error('out of order'))", 'out of order'],
])('a command that %s does not end like one that went well', async (_, app, says) => {
  const s = scene();
  const { root, executable } = installation();
  writeFileSync(join(root, 'dist/app.js'), `exports.app = () => ${app};\n`);
  const env = { NODE_OPTIONS: '--unhandled-rejections=none' };
  const list = await s.ask('list', [], { executable, env });
  expect([list.code, list.stdout, list.stderr]).toEqual([70, '', expect.stringContaining(says)]);
});

test('a signal that comes before the program is loaded ends the run all the same, with a record', async () => {
  const s = scene();
  const { root, executable } = installation();
  symlinkSync(join(ROOT, 'node_modules'), join(root, 'node_modules'));
  renameSync(join(root, 'dist/app.js'), join(root, 'dist/real.js'));
  writeFileSync(
    join(root, 'dist/app.js'),
    `const heard = new Promise((done) => process.once('SIGTERM', done));
    process.kill(process.pid, 'SIGTERM');
    exports.app = async (started) => (await heard, await require('./real.js').app(started));\n`,
  );
  const run = await s.run(['--json'], { executable });
  expect([run.code, run.json.status, run.json.error?.code], run.stderr).toEqual([143, 'interrupted', 'INTERRUPTED']);
  expect((await s.ask('history', ['--json'])).json.runs?.map((r) => r.status)).toEqual(['interrupted']);
  expect(dataFiles(s.to)).toEqual([]);
  expect((await s.run(['--json'])).json.status).toBe('ok');
});

test('a bug inside a command is 70 and INTERNAL, as text and as a document, and leaves nothing', async () => {
  const s = scene();
  const { root, executable } = installation();
  symlinkSync(join(ROOT, 'node_modules'), join(root, 'node_modules'));
  renameSync(join(root, 'dist/app.js'), join(root, 'dist/real.js'));
  writeFileSync(join(root, 'dist/app.js'), `exports.app = (started) => require('./real.js').app({ ...started, earlyWorker: {} });\n`);
  const run = await s.run(['--json'], { executable });
  expect([run.code, run.json.error?.code, run.stderr]).toEqual([70, 'INTERNAL', expect.stringContaining('dbbackup: error INTERNAL: a bug of dbbackup')]);
  expect(dataFiles(s.to)).toEqual([]);
});

/** So many open files Node needs to come to us at all: no two versions of it are alike. */
async function fewestFiles(): Promise<number> {
  for (let files = 16; files < 64; files++) {
    if ((await dbbackup(['--version'], { through: wrap.limit('-n', files) })).code === 0) return files;
  }
  throw new Error('Node does not start with 64 open files');
}

test.each([2, 4])('%d open files more than Node needs itself are too few: it says so, ends, and leaves nothing half-done', async (more) => {
  const s = scene();
  const files = more + (await fewestFiles());
  const run = await s.run(['--json'], { through: wrap.limit('-n', files), deadlineMs: 20_000 });
  expect([run.hung, run.code, run.json.error?.message], run.stderr).toEqual([false, 1, expect.stringContaining('too many open files')]);
  expect(run.json.error?.hint).toContain('raise the limit of open files');
  expect(dataFiles(s.to)).toEqual([]);
});
