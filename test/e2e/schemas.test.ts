/** Every kind of database that SQLite can hold arrives whole; what this build cannot do is done another way, and said. */
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import type { Manifest } from '../../src/records.js';
import { sizeOf } from '../../src/system/files.js';
import { inPrivate, sha256, structuralFindings } from '../fault/proof.js';
import { breakRows, damage, makeDatabase, makeFunctionIndexDatabase, openWriter, query, readJson, rootPage, start, until } from '../support/cli.js';
import { dataFiles, type Scene, scene } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

type Db = Database.Database;

function make(s: Scene, work: (db: Db) => void): void {
  const db = new Database(s.source);
  try {
    db.unsafeMode(true);
    db.defaultSafeIntegers(true);
    work(db);
  } finally {
    db.close();
  }
}

/** Rewrites stored SQL, as an application with another SQLite build would have written it in the first place. */
function rewrite(db: Db, ...pairs: readonly (readonly [from: string, to: string])[]): void {
  db.pragma('writable_schema = on');
  for (const [from, to] of pairs) {
    const { changes } = db.prepare('UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE instr(sql, ?)').run(from, to, from);
    if (changes === 0) throw new Error(`no ${from} in the schema`);
  }
  db.pragma('writable_schema = reset');
}

/** Schema, settings and all rows as one text. Tables in `skip` need something that is not there. */
function dump(db: Db, skip: readonly string[]): string {
  db.defaultSafeIntegers(true);
  const settings = ['page_size', 'encoding', 'auto_vacuum', 'user_version', 'application_id'].map((p) => `${p} ${String(db.pragma(p, { simple: true }))}`);
  const schema = db.prepare<[], string[]>('SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name').raw().all();
  const tables = db
    .prepare<[], [string, bigint]>("SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') AND name <> 'sqlite_schema'")
    .raw()
    .all()
    .filter(([name]) => !skip.includes(name))
    .sort();
  const show = (v: unknown): string =>
    Buffer.isBuffer(v) ? `x${v.toString('hex')}` : typeof v === 'bigint' ? `${v}n` : Object.is(v, -0) ? '-0' : JSON.stringify(v);
  const content = tables.map(([name, wr]) => {
    const quoted = `"${name.replaceAll('"', '""')}"`;
    // With rowids, where there are some: a copy that renumbers them is no copy.
    const rows = db
      .prepare<[], unknown[]>(`SELECT ${wr ? '' : 'rowid, '}* FROM ${quoted} NOT INDEXED ORDER BY 1`)
      .raw()
      .all();
    return `${name}: ${rows.map((r) => r.map(show).join(' ')).join('\n')}`;
  });
  return [...settings, ...schema.map((r) => r.join(' | ')), ...content].join('\n');
}

interface Made {
  readonly manifest: Manifest;
  readonly path: string;
  readonly warnings: readonly string[];
  readonly stderr: string;
}

/** Runs, and expects a good copy that equals the source. */
async function copyOf(s: Scene, skip: readonly string[] = []): Promise<Made> {
  const before = sha256(s.source);
  const run = await s.run(['--json']);
  expect([run.code, run.json.status, run.json.copy?.status], run.stderr).toEqual([0, 'ok', 'good']);
  const path = join(s.to, dataFiles(s.to)[0] ?? '');
  const manifest = readJson(path.replace(/db$/, 'json')) as Manifest;
  expect(problemsIn(manifest, shapes.manifest)).toEqual([]);
  expect(problemsIn(run.json, shapes.run)).toEqual([]);
  expect(manifest.sha256).toBe(sha256(path));
  expect(manifest.pageCount * manifest.pageSize).toBe(statSync(path).size);
  expect(inPrivate(path, (db) => dump(db, skip))).toBe(inPrivate(s.source, (db) => dump(db, skip)));
  expect(inPrivate(path, (db) => db.pragma('journal_mode', { simple: true }))).toBe('delete');
  expect(sha256(s.source)).toBe(before);
  expect(readdirSync(s.to)).toHaveLength(3);
  return { manifest, path, warnings: (run.json.warnings ?? []).map((w) => w.code).filter((c) => c !== 'SOURCE_ROLLBACK_MODE'), stderr: run.stderr };
}

describe('a database with', () => {
  test('FTS5: its index answers in the copy', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec("CREATE VIRTUAL TABLE doc USING fts5(title, body, tokenize = 'porter unicode61'); CREATE VIRTUAL TABLE bare USING fts5(x, content='')");
      const insert = db.prepare('INSERT INTO doc VALUES (?, ?)');
      for (let i = 0; i < 300; i++) insert.run(`title ${i}`, `running water number ${i} größe`);
      db.exec('DELETE FROM doc WHERE rowid % 7 = 0');
    });
    const { path, warnings, manifest } = await copyOf(s);
    expect([warnings, manifest.method]).toEqual([[], 'vacuum-into']);
    inPrivate(path, (db) => {
      expect(db.prepare("SELECT count(*) FROM doc WHERE doc MATCH 'run'").pluck().get()).toBe(258);
      expect(() => db.exec("INSERT INTO doc(doc) VALUES ('integrity-check')")).not.toThrow();
    });
  });

  test('an R*Tree', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec('CREATE VIRTUAL TABLE place USING rtree(id, x0, x1, y0, y1, +name TEXT)');
      const insert = db.prepare('INSERT INTO place VALUES (?, ?, ?, ?, ?, ?)');
      for (let i = 0; i < 500; i++) insert.run(i, i, i + 1, -i, -i + 1, `p${i}`);
    });
    const { path } = await copyOf(s);
    expect(inPrivate(path, (db) => db.prepare('SELECT name FROM place WHERE x0 >= 40 AND x1 <= 42').pluck().all())).toEqual(['p40', 'p41']);
    expect(inPrivate(path, (db) => db.prepare("SELECT rtreecheck('place')").pluck().get())).toBe('ok');
  });

  test('WITHOUT ROWID, STRICT, generated columns, views, triggers, partial and expression indexes', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec(`
        CREATE TABLE kv (k TEXT, n INTEGER, v ANY, PRIMARY KEY (k, n DESC)) STRICT, WITHOUT ROWID;
        CREATE TABLE line (id INTEGER PRIMARY KEY, net REAL, gross REAL AS (net * 1.19) STORED, label TEXT AS ('#' || id) VIRTUAL);
        CREATE INDEX line_cheap ON line (net) WHERE net < 10;
        CREATE UNIQUE INDEX line_label ON line (lower(label) COLLATE NOCASE, id);
        CREATE VIEW dear AS SELECT * FROM line WHERE net > 10;
        CREATE TRIGGER line_log AFTER INSERT ON line BEGIN INSERT INTO kv VALUES ('line', new.id, new.net); END;
        CREATE TABLE parent (a, b, PRIMARY KEY (a, b));
        CREATE TABLE child (a, b, FOREIGN KEY (a, b) REFERENCES parent (a, b) DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO parent VALUES (1, 2); INSERT INTO child VALUES (1, 2), (NULL, 2);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO line (net) SELECT i / 4.0 FROM n;
        ANALYZE;`);
    });
    const { path, manifest } = await copyOf(s);
    expect(manifest.rows).toMatchObject({ kv: 200, line: 200, parent: 1, child: 2 });
    expect(Object.keys(manifest.rows)).not.toContain('sqlite_stat1');
    inPrivate(path, (db) => {
      db.exec('INSERT INTO line (net) VALUES (3)');
      expect(db.prepare("SELECT count(*) FROM kv WHERE k = 'line'").pluck().get()).toBe(201);
    });
  });

  test('every value that a cell can hold, and gaps between its rowids', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec('CREATE TABLE v (x); CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT, x)');
      const insert = db.prepare('INSERT INTO v (rowid, x) VALUES (?, ?)');
      const values = [
        9223372036854775807n,
        -9223372036854775808n,
        0,
        1.5e308,
        Number.POSITIVE_INFINITY,
        -0.1,
        '',
        'a\0b',
        'größe 漢字 😀 \u202e',
        null,
        Buffer.alloc(0),
      ];
      for (const [i, x] of [...values, Buffer.from([0, 255, 1]), 'x'.repeat(100_000), Buffer.alloc(70_000, 7)].entries()) insert.run(i * 1000 - 5000, x);
      insert.run(9223372036854775807n, 'last');
      db.exec("INSERT INTO auto (id, x) VALUES (5, 'a'), (500, 'b'); DELETE FROM auto WHERE id = 500");
    });
    const { path } = await copyOf(s);
    // The counter of AUTOINCREMENT goes on, so that numbers are not given twice.
    inPrivate(path, (db) => expect(db.prepare('INSERT INTO auto (x) VALUES (1)').run().lastInsertRowid).toBe(501));
  });

  test.each([512, 1024, 2048, 8192, 16384, 32768, 65536])('pages of %d bytes', async (pageSize) => {
    const s = scene({ journal: 'delete', pageSize, bytes: 60_000 });
    expect((await copyOf(s)).manifest.pageSize).toBe(pageSize);
  });

  test('pages of 65536 bytes, and of 512, in WAL mode with the application at work', async () => {
    for (const pageSize of [512, 65536]) {
      const s = scene({ journal: 'wal', pageSize });
      const app = await openWriter(s.source);
      const run = await s.run(['--json']);
      expect([run.code, run.json.source?.pageSize], run.stderr).toEqual([0, pageSize]);
      expect(inPrivate(join(s.to, run.json.copy?.file ?? ''), (db) => db.prepare('SELECT count(*) FROM beat').pluck().get())).toBe(2);
      await app.stop();
    }
  });

  test.each(['UTF-8', 'UTF-16le', 'UTF-16be'])('the encoding %s', async (encoding) => {
    const s = scene(null);
    make(s, (db) => {
      db.pragma(`encoding = '${encoding}'`);
      db.exec('CREATE TABLE "größe" (x TEXT); INSERT INTO "größe" VALUES (\'漢字 😀\'), (\'a\')');
    });
    const { path, manifest } = await copyOf(s);
    expect(inPrivate(path, (db) => db.pragma('encoding', { simple: true }))).toBe(encoding);
    expect(manifest.rows).toEqual({ größe: 2 });
  });

  test.each([
    ['FULL', 1n],
    ['INCREMENTAL', 2n],
  ])('auto_vacuum = %s', async (mode, value) => {
    const s = scene(null);
    make(s, (db) => {
      db.pragma(`auto_vacuum = ${mode}`);
      db.exec('CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO t SELECT randomblob(500) FROM n');
      db.exec('DELETE FROM t WHERE rowid % 3 = 0');
    });
    const { path } = await copyOf(s);
    expect(
      inPrivate(path, (db) => {
        db.defaultSafeIntegers(true);
        return db.pragma('auto_vacuum', { simple: true });
      }),
    ).toBe(value);
  });

  test('no tables at all', async () => {
    const s = scene(null);
    make(s, (db) => db.pragma('user_version = 42'));
    const { manifest } = await copyOf(s);
    expect(manifest).toMatchObject({ rows: {}, userVersion: 42, pageCount: 1 });
  });

  test('no tables at all, in WAL mode', async () => {
    const s = scene(null);
    make(s, (db) => db.pragma('journal_mode = wal'));
    expect((await copyOf(s)).manifest).toMatchObject({ rows: {}, journalMode: 'wal' });
  });

  test('a table that has been emptied: free pages are not copied', async () => {
    const s = scene({ journal: 'delete', bytes: 1_000_000 });
    make(s, (db) => db.exec('DELETE FROM invoice; DELETE FROM setting'));
    const { manifest } = await copyOf(s);
    expect(manifest.sizeBytes).toBeLessThan(statSync(s.source).size / 2);
  });

  test('names that no sane person would give', async () => {
    const s = scene(null);
    const names = ['123', '100', '-1', 'select', 'a"b c', '__proto__', 'constructor', '😀', 'a\nb', 'x; DROP TABLE y', '', 'sqlite', "it's", '[x]', 'größe'];
    make(s, (db) => {
      for (const [i, name] of names.entries()) {
        const quoted = `"${name.replaceAll('"', '""')}"`;
        db.exec(`CREATE TABLE ${quoted} ("${name.replaceAll('"', '""')}" PRIMARY KEY, x CHECK (x > 0)); CREATE INDEX "i${i}" ON ${quoted} (x)`);
        for (let n = 0; n <= i; n++) db.exec(`INSERT INTO ${quoted} VALUES (${n}, 1)`);
      }
    });
    const { manifest, warnings } = await copyOf(s);
    expect(warnings).toEqual([]);
    expect(Object.entries(manifest.rows).sort()).toEqual(names.map((n, i) => [n, i + 1] as [string, number]).sort());
  });
});

describe('what VACUUM INTO cannot do here is copied page by page, and said', () => {
  const twice = ['wal', 'delete'] as const;

  function expectPageCopy({ manifest, warnings, stderr }: Made, why: RegExp, unchecked: readonly RegExp[]): void {
    expect(manifest.method).toBe('page-copy');
    expect(warnings.toSorted()).toEqual([...(unchecked.length > 0 ? ['TABLES_UNCHECKED'] : []), 'PAGE_COPY'].toSorted());
    expect(stderr).toMatch(/^dbbackup: warning PAGE_COPY: this schema cannot be vacuumed/m);
    expect(/PAGE_COPY: .*/.exec(stderr)?.[0]).toMatch(why);
    const check = manifest.checks.find((c) => c.name === 'integrity_check');
    expect(check?.ok).toBe(true);
    if (unchecked.length === 0) expect(check?.message).toMatch(/^ok \(/);
    else expect(check?.message).toMatch(/^ok, except /);
    for (const table of unchecked) {
      expect(check?.message).toMatch(table);
      expect(/TABLES_UNCHECKED: .*/.exec(stderr)?.[0]).toMatch(table);
    }
  }

  test.each(twice)('an index over a function of the application (%s)', async (journal) => {
    const s = scene(null);
    makeFunctionIndexDatabase(s.source, journal);
    const made = await copyOf(s);
    expectPageCopy(made, /fold/, [/word: .*fold/]);
    expect(made.manifest.rows).toEqual({ word: 200, plain: 0 });
    // Its application can use the copy.
    inPrivate(made.path, (db) => {
      db.function('fold', { deterministic: true }, (text) => String(text).toLowerCase());
      expect(db.prepare("SELECT count(*) FROM word WHERE fold(text) = 'word 7919'").pluck().get()).toBe(1);
      expect(db.pragma('integrity_check')).toEqual([{ integrity_check: 'ok' }]);
    });
  });

  test('with pages in the WAL that no checkpoint has moved yet', async () => {
    const s = scene({ journal: 'wal' });
    make(s, (db) => {
      db.function('fold', { deterministic: true }, (text) => String(text).toLowerCase());
      db.exec('CREATE TABLE word (text); CREATE INDEX word_folded ON word (fold(text))');
    });
    const app = await openWriter(s.source, { loop: "INSERT INTO beat (at) VALUES ('x')", beatMs: 2 });
    const run = await s.run(['--json']);
    const wrote = await app.stop();
    expect([run.code, run.json.copy?.method, wrote.failed], run.stderr).toEqual([0, 'page-copy', 0]);
    const path = join(s.to, run.json.copy?.file ?? '');
    expect(inPrivate(path, (db) => db.prepare('SELECT count(*) FROM beat').pluck().get())).toBeGreaterThanOrEqual(2);
    expect(structuralFindings(path)).toEqual([]);
    expect(readdirSync(s.to)).toHaveLength(3);
  });

  test('while the application makes tables and drops them all the time: the schema that is said is that of the copy', async () => {
    const s = scene({ journal: 'wal', bytes: 20_000_000 });
    make(s, (db) => rewrite(db, ['CREATE TABLE beat', 'create table beat']));
    const running = start(['run', s.source, '--to', s.to, '--json']);
    // What VACUUM makes is thrown away when it is done: from here on it lasts, and what is read after it is to be of one moment.
    const temp = join(s.state, 'tmp');
    const made = (): number => (existsSync(temp) ? readdirSync(temp, { recursive: true }) : []).reduce((sum, f) => sum + sizeOf(join(temp, String(f))), 0);
    await until('VACUUM to be at work', () => made() > 1_000_000);
    const app = new Database(s.source, { timeout: 10_000 });
    app.pragma('synchronous = off');
    let count = 0;
    while (running.isRunning()) {
      app.exec(`CREATE TABLE passing${++count} (x); DROP TABLE IF EXISTS passing${count - 1}`);
      await new Promise(setImmediate);
    }
    app.close();
    const run = await running.result;
    expect([run.code, run.json.error?.code, run.json.copy?.method, run.json.copy?.status], run.stderr).toEqual([0, undefined, 'page-copy', 'good']);
  });

  test('a trigger on the tables behind a full-text index, which SQLite takes, is no damage', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.unsafeMode(true);
      db.exec(`CREATE VIRTUAL TABLE f USING fts5(x); CREATE TABLE log(n);
        CREATE TRIGGER t AFTER INSERT ON f_data BEGIN INSERT INTO log VALUES (1); END; INSERT INTO f VALUES ('word')`);
    });
    for (const also of ['', "CREATE TABLE old (a CHECK (a <> 'none'))"]) {
      make(s, (db) => db.unsafeMode(true).exec(also));
      if (also !== '') make(s, (db) => rewrite(db.unsafeMode(true), ["'none'", '"none"']));
      const run = await s.run(['--json']);
      expect([run.code, run.json.error, run.json.copy?.status], run.stderr).toEqual([0, null, 'good']);
    }
    const restore = await s.ask('restore', ['--into', s.source, '--yes', '--json']);
    expect([restore.code, restore.json.error], restore.stderr).toEqual([0, null]);
    const guard = await s.ask('guard', ['--database', s.source, '--json', '--', 'true']);
    expect([guard.code, guard.json.error], guard.stderr).toEqual([0, null]);
  });

  test('whatever its application does to its schema meanwhile, a database is copied', async () => {
    const s = scene({ journal: 'wal' });
    const app = new Database(s.source, { timeout: 10_000 });
    app.pragma('synchronous = off');
    let count = 0;
    for (let n = 0; n < 6; n++) {
      const running = start(['run', s.source, '--to', s.to, '--json']);
      while (running.isRunning()) {
        app.exec(`CREATE TABLE passing${++count} (x); DROP TABLE IF EXISTS passing${count - 1}`);
        await new Promise(setImmediate);
      }
      const run = await running.result;
      expect([run.code, run.json.error], run.stderr).toEqual([0, null]);
    }
    app.close();
  });

  test.each(twice)('a collation of the application (%s)', async (journal) => {
    const s = scene({ journal });
    make(s, (db) => {
      db.exec("CREATE TABLE word (t TEXT, n); CREATE INDEX word_t ON word (t COLLATE NOCASE); INSERT INTO word VALUES ('b', 1), ('A', 2)");
      rewrite(db, ['COLLATE NOCASE', 'COLLATE german']);
    });
    const made = await copyOf(s);
    expectPageCopy(made, /german/, [/word: .*german/]);
    // Rows are counted along the table, where the index cannot be used.
    expect(made.manifest.rows).toMatchObject({ word: 2, customer: 5 });
  });

  test('a schema that somebody has edited, in words that VACUUM would write in its own way', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec("CREATE TABLE t (a); INSERT INTO t VALUES ('x')");
      rewrite(db, ['CREATE TABLE t', 'create table t']);
    });
    expectPageCopy(await copyOf(s), /its text would not stay as it is/, []);
  });

  test('a list of free pages and a pointer map beside a collation of the application', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec(`PRAGMA page_size = 512; PRAGMA auto_vacuum = incremental; CREATE TABLE word (t TEXT); CREATE INDEX word_t ON word (t COLLATE NOCASE);
        CREATE TABLE much (x); INSERT INTO much VALUES (randomblob(400000)); CREATE TABLE kept (x); INSERT INTO kept VALUES (randomblob(20000)); DROP TABLE much`);
      rewrite(db, ['COLLATE NOCASE', 'COLLATE german']);
    });
    const made = await copyOf(s);
    expectPageCopy(made, /german/, [/word: .*german/]);
    // More than one page of that list, and more than one of that map.
    expect(inPrivate(made.path, (db) => db.pragma('freelist_count', { simple: true }))).toBeGreaterThan(512 / 4);
  });

  test('texts in double quotes, as older builds allowed them', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec(`
        CREATE TABLE t (a TEXT CHECK (a <> 'none'), b TEXT AS (a || 'end') STORED);
        CREATE INDEX t_some ON t (a) WHERE a <> 'few';
        INSERT INTO t (a) VALUES ('x'), ('few');`);
      rewrite(db, ["'none'", '"none"'], ["'end'", '"end"'], ["'few'", '"few"']);
    });
    expectPageCopy(await copyOf(s), /double|quotes|no such column/, []);
  });

  test('a generated column and a CHECK that call a function of the application', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.function('fold', { deterministic: true }, (text) => String(text).toLowerCase());
      db.exec(
        "CREATE TABLE t (a, b AS (fold(a)) STORED, CHECK (fold(a) <> 'x')); INSERT INTO t (a) VALUES ('Q'); CREATE TABLE plain (x); INSERT INTO plain VALUES (1)",
      );
    });
    const made = await copyOf(s, ['t']);
    expectPageCopy(made, /fold/, [/t: .*fold/]);
    expect(made.manifest.rows).toEqual({ t: 1, plain: 1 });
  });
});

describe('what cannot be checked here is copied, and named', () => {
  test('a virtual table whose module is missing', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec('CREATE TABLE t (x); INSERT INTO t VALUES (1); CREATE VIRTUAL TABLE v USING rtree(id, a, b)');
      rewrite(db, ['USING rtree(', 'USING theirs(']);
    });
    const { manifest, warnings, stderr } = await copyOf(s);
    expect([manifest.method, warnings]).toEqual(['vacuum-into', ['TABLES_UNCHECKED']]);
    expect(stderr).toMatch(/verified except 1 table: v: no such module: theirs/);
    expect(manifest.checks.find((c) => c.name === 'integrity_check')?.message).toMatch(/except v: no such module/);
  });

  test('a tokenizer that is missing', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec("CREATE TABLE t (x); CREATE VIRTUAL TABLE v USING fts5(x, tokenize = 'porter'); INSERT INTO v VALUES ('hello')");
      rewrite(db, ['porter', 'theirs']);
    });
    const { warnings, stderr } = await copyOf(s);
    expect(warnings).toEqual(['TABLES_UNCHECKED']);
    expect(stderr).toMatch(/verified except 1 table: v: /);
  });
});

describe('what the application alone can check is copied, and named', () => {
  const fts = (options: string): string => `CREATE VIRTUAL TABLE "f ""t" USING fts4(${options})`;
  test.each([
    ['a full-text index without content', [fts('content="", body'), `INSERT INTO "f ""t"(docid, body) VALUES (1, 'hello')`]],
    [
      'one of a table that is indexed later',
      ['CREATE TABLE c (docid INTEGER PRIMARY KEY, body)', fts('content="c", body'), "INSERT INTO c VALUES (1, 'later')"],
    ],
    ['one whose table is gone', ['CREATE TABLE c (docid INTEGER PRIMARY KEY, body)', fts('content="c", body'), 'DROP TABLE c']],
    ['one that the application compresses', [fts('body, compress=zip, uncompress=unzip'), `INSERT INTO "f ""t"(body) VALUES ('hello')`]],
    [
      'a generated column over JSON that is none',
      [`CREATE TABLE "f ""t" (doc)`, `INSERT INTO "f ""t" VALUES ('{'), ('{"a": 1}')`, `ALTER TABLE "f ""t" ADD COLUMN a TEXT AS (json_extract(doc, '$.a'))`],
    ],
    [
      'one that overflows',
      [`CREATE TABLE "f ""t" (x)`, `INSERT INTO "f ""t" VALUES (-9223372036854775808)`, `ALTER TABLE "f ""t" ADD COLUMN m INTEGER AS (abs(x))`],
    ],
  ])('%s', async (_, sql) => {
    const s = scene(null);
    make(s, (db) => {
      db.function('zip', (x) => x);
      db.function('unzip', (x) => x);
      for (const statement of sql) db.exec(statement);
    });
    // It cannot be read here either.
    const { manifest, stderr } = await copyOf(s, sql.some((one) => one.includes('ADD COLUMN')) ? ['f "t'] : []);
    expect(manifest.status).toBe('good');
    expect(stderr).toMatch(/TABLES_UNCHECKED: verified except 1 table: f "t: \S/);
    const guard = await s.ask('guard', ['--database', s.source, '--json', '--', 'true']);
    expect([guard.code, guard.json.error], guard.stderr).toEqual([0, null]);
  });

  test('but an index of words elsewhere that cannot be read from end to end is damage', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec(`CREATE TABLE c (docid INTEGER PRIMARY KEY, body); CREATE VIRTUAL TABLE f USING fts4(content="c", body);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000) INSERT INTO c SELECT i, 'word' || i || ' and others' FROM n;
        INSERT INTO f(f) VALUES ('rebuild')`);
    });
    make(s, (db) => db.exec('DELETE FROM f_segments WHERE blockid = (SELECT max(blockid) FROM f_segments)'));
    const run = await s.run(['--json']);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'SOURCE_CORRUPT']);
  });

  test('and a full-text index with its words in it that is spoilt is damage', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.unsafeMode(true);
      db.exec("CREATE VIRTUAL TABLE f USING fts4(body); INSERT INTO f(body) VALUES ('hello world'); UPDATE f_content SET c0body = 'other words'");
    });
    const run = await s.run(['--json']);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'SOURCE_CORRUPT']);
  });
});

describe('an index that lacks rows is damage', () => {
  /** Rows changed while the schema did not know of the index: it holds what they were. */
  function withStaleIndex(s: Scene, rule: string, extra: string, spoil = ''): void {
    make(s, (db) => {
      db.exec(`CREATE TABLE t (id INTEGER PRIMARY KEY, a ${rule}, b); CREATE INDEX i ON t (b); ${extra};
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO t SELECT i, i, 'x' || i FROM n`);
    });
    const root = Number(query<number>(s.source, "SELECT rootpage FROM sqlite_schema WHERE name = 'i'"));
    make(s, (db) => db.exec("PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = 'i'"));
    make(s, (db) => db.exec(`PRAGMA ignore_check_constraints = on; UPDATE t SET b = b || 'q' WHERE id < 40; ${spoil}`));
    make(s, (db) => db.exec(`PRAGMA writable_schema = on; INSERT INTO sqlite_schema VALUES ('index', 'i', 't', ${root}, 'CREATE INDEX i ON t (b)')`));
  }

  test.each([
    ['by itself', '', '', ''],
    ['beside a table named like the list of all tables', '', 'CREATE TABLE pragma_table_list (schema, name, type)', ''],
    ['beside a view of that name', '', "CREATE VIEW pragma_table_list AS SELECT 'main' AS schema, 't' AS name, 'view' AS type", ''],
    ['beside a table named like the check', '', 'CREATE TABLE pragma_integrity_check (integrity_check)', ''],
    ['where a CHECK cannot be evaluated at a row', 'CHECK (abs(a) > 0)', '', 'UPDATE t SET a = -9223372036854775808 WHERE id = 400'],
    ['where one with a list cannot', 'CHECK (abs(a) NOT IN (0, -1, -2))', '', 'UPDATE t SET a = -9223372036854775808 WHERE id = 400'],
    [
      'found before a row for which a generated column cannot be evaluated',
      '',
      '',
      "UPDATE t SET a = '{' WHERE id = 400; ALTER TABLE t ADD COLUMN g TEXT AS (json_extract(a, '$.x'))",
    ],
    [
      'before such a row, and behind one at which a CHECK cannot',
      'CHECK (abs(a) > 0)',
      '',
      "UPDATE t SET a = iif(id = 400, '{', -9223372036854775808) WHERE id IN (1, 400); ALTER TABLE t ADD COLUMN g TEXT AS (json_extract(a, '$.x'))",
    ],
    ['where a CHECK is over JSON that is none', "CHECK (json_extract(a, '$') > 0)", '', "UPDATE t SET a = '{' WHERE id = 400"],
    [
      'behind a table with more broken rows than are listed, and then one for which its CHECK cannot be evaluated',
      '',
      'CREATE TABLE many (n CHECK (abs(n) > 0))',
      'INSERT INTO many SELECT 0 FROM t WHERE id <= 150; INSERT INTO many VALUES (-9223372036854775808)',
    ],
  ])('%s', async (_, rule, extra, spoil) => {
    const s = scene(null);
    withStaleIndex(s, rule, extra, spoil);
    const run = await s.run(['--json']);
    expect([run.code, run.json.error?.code, run.json.copy], run.stderr).toEqual([1, 'SOURCE_CORRUPT', null]);
    expect(run.json.error?.message).toContain('missing from index i');
  });

  test('and a healthy one with such names and such a CHECK is copied; of the CHECK it is said that nobody could evaluate it', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec('CREATE TABLE pragma_index_list (x); CREATE TABLE pragma_foreign_key_check (x); CREATE TABLE dbstat (x); CREATE TABLE t (a CHECK (abs(a) > 0))');
      db.exec('PRAGMA ignore_check_constraints = on; INSERT INTO t VALUES (1), (-9223372036854775808)');
    });
    const { manifest, warnings } = await copyOf(s);
    expect([manifest.status, warnings, manifest.rows]).toEqual([
      'good',
      ['TABLES_UNCHECKED'],
      { dbstat: 0, pragma_foreign_key_check: 0, pragma_index_list: 0, t: 2 },
    ]);
    expect(manifest.checks.find((c) => c.name === 'integrity_check')?.message).toMatch(/except t: CHECK constraints: \S/);
  });
});

describe('a table whose name is not UTF-8', () => {
  /** Nobody can write such a name into a statement: it is put into the file. */
  function rename(s: Scene): void {
    const bytes = readFileSync(s.source);
    for (let at = bytes.indexOf('xAy'); at >= 0; at = bytes.indexOf('xAy', at)) bytes[at + 1] = 0xff;
    writeFileSync(s.source, bytes);
  }

  test('is copied, proven, put back and guarded like any other; rows that break a rule are counted', async () => {
    const s = scene(null);
    make(s, (db) => {
      db.exec(`CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE xAy (a TEXT COLLATE NOCASE PRIMARY KEY, p REFERENCES p, n CHECK (n > 0));
        PRAGMA foreign_keys = off; PRAGMA ignore_check_constraints = on; INSERT INTO xAy VALUES ('one', 1, 1), ('two', 2, -2)`);
    });
    rename(s);
    const { manifest, warnings } = await copyOf(s, ['x\ufffdy']);
    expect([manifest.status, manifest.method, manifest.rows, manifest.violations, warnings]).toEqual([
      'good',
      'vacuum-into',
      { p: 0 },
      { check: 1, notNull: 0, foreignKey: 2 },
      ['ROWS_VIOLATE'],
    ]);
    const verify = await s.ask('verify', ['--all', '--json']);
    expect([verify.code, verify.json.ok]).toEqual([0, true]);
    const back = join(s.home, 'back.db');
    const restore = await s.ask('restore', ['-o', back]);
    expect(restore.code, restore.stderr).toBe(0);
    expect(sha256(back)).toBe(sha256(join(s.to, manifest.file)));
    make(s, (db) => db.exec("PRAGMA writable_schema = on; UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (n > 0)', '')"));
    make(s, (db) => db.exec('INSERT INTO p VALUES (1), (2)'));
    const guard = await s.ask('guard', ['--database', s.source, '--json', '--', 'true']);
    expect([guard.code, guard.json.error], guard.stderr).toEqual([0, null]);
    make(s, (db) => db.exec('PRAGMA foreign_keys = off; DELETE FROM p WHERE id = 2'));
    const orphan = await s.ask('guard', ['--database', s.source, '--json', '--', 'true']);
    expect([orphan.code, orphan.json.error?.message]).toEqual([1, expect.stringContaining('1 of x')]);
  });

  test('does not keep damage elsewhere from being seen', async () => {
    const s = scene(null);
    make(s, (db) => db.exec("CREATE TABLE xAy (a); CREATE TABLE t (id INTEGER PRIMARY KEY, b); CREATE INDEX i ON t (b); INSERT INTO t VALUES (1, 'x')"));
    const root = query<number>(s.source, "SELECT rootpage FROM sqlite_schema WHERE name = 'i'");
    make(s, (db) => db.exec("PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = 'i'"));
    make(s, (db) => db.exec("INSERT INTO t VALUES (2, 'y')"));
    make(s, (db) => db.exec(`PRAGMA writable_schema = on; INSERT INTO sqlite_schema VALUES ('index', 'i', 't', ${root}, 'CREATE INDEX i ON t (b)')`));
    rename(s);
    const run = await s.run(['--json']);
    expect([run.code, run.json.error?.code, run.json.copy], run.stderr).toEqual([1, 'SOURCE_CORRUPT', null]);
    expect(run.json.error?.message).toContain('entries in index i');
  });
});

test('what is copied page by page needs room for its free pages, too', async () => {
  const s = scene(null);
  makeFunctionIndexDatabase(s.source);
  make(s, (db) => db.exec('CREATE TABLE gone AS SELECT zeroblob(3000000) AS x; DROP TABLE gone'));
  const size = statSync(s.source).size;
  expect(size).toBeGreaterThan(3_000_000);
  expect((await s.run(['--json'])).json.copy?.method).toBe('page-copy');
  const dry = await s.run(['--dry-run', '--json']);
  expect(dry.json.plan?.neededBytes).toBeGreaterThanOrEqual(size);
});

describe('rows that break a rule of their own schema are counted, and copied as they are', () => {
  const NONE = { check: 0, notNull: 0, foreignKey: 0 };

  test('one of each', async () => {
    const s = scene();
    breakRows(s.source);
    const { manifest, warnings, stderr } = await copyOf(s);
    expect(manifest.violations).toEqual({ check: 1, notNull: 1, foreignKey: 1 });
    expect(warnings).toEqual(['ROWS_VIOLATE']);
    expect(stderr).toMatch(/1 NOT NULL, 1 CHECK, 1 foreign key/);
    expect(manifest.status).toBe('good');
  });

  type Broken = { readonly check?: number; readonly notNull?: number; readonly foreignKey?: number };

  /** Tables with so many rows that break CHECK, NOT NULL and a foreign key. */
  function broken(db: Db, tables: Readonly<Record<string, Broken>>): void {
    db.exec('PRAGMA foreign_keys = off; PRAGMA ignore_check_constraints = on; CREATE TABLE parent (id INTEGER PRIMARY KEY)');
    for (const [name, { check = 0, notNull = 0, foreignKey = 0 }] of Object.entries(tables)) {
      db.exec(`CREATE TABLE "${name}" (c INTEGER CHECK (c > 0), n INTEGER, p INTEGER REFERENCES parent (id))`);
      const insert = db.prepare(`INSERT INTO "${name}" VALUES (?, ?, ?)`);
      for (let i = 0; i < check; i++) insert.run(-i, 1, null);
      for (let i = 0; i < notNull; i++) insert.run(1, null, null);
      for (let i = 0; i < foreignKey; i++) insert.run(1, 1, i + 1);
      insert.run(1, 1, null);
    }
    rewrite(db, ['n INTEGER,', 'n INTEGER NOT NULL,']);
  }

  test.each([
    ['99', { a: { check: 99 } }, { ...NONE, check: 99 }],
    ['exactly a hundred', { a: { check: 100 } }, { ...NONE, check: 100 }],
    ['more than a hundred of one kind', { a: { check: 357 } }, { ...NONE, check: 357 }],
    [
      'more than a hundred of each, over several tables',
      { a: { check: 120, notNull: 230 }, b: { notNull: 101, foreignKey: 340 }, c: { check: 7 } },
      { check: 127, notNull: 331, foreignKey: 340 },
    ],
    [
      'less than a hundred each in three tables, more than that together',
      { a: { check: 60 }, b: { check: 60 }, c: { notNull: 60 } },
      { check: 120, notNull: 60, foreignKey: 0 },
    ],
    ['a table whose name is a number', { '100': { check: 3 }, a: { check: 4, notNull: 5 } }, { check: 7, notNull: 5, foreignKey: 0 }],
  ])('%s', async (_, tables, violations) => {
    const s = scene(null);
    make(s, (db) => broken(db, tables));
    const { manifest, warnings } = await copyOf(s);
    expect([manifest.violations, warnings]).toEqual([violations, ['ROWS_VIOLATE']]);
  });

  describe('in hundreds of small tables', () => {
    const many = (more: Readonly<Record<string, Broken>>): Readonly<Record<string, Broken>> => ({
      ...Object.fromEntries(Array.from({ length: 250 }, (_, i) => [`t${i}`, {}])),
      ...more,
    });
    test.each([
      ['of each kind', false],
      ['beside what needs the application', true],
    ])('%s', async (_, virtual) => {
      const s = scene(null);
      make(s, (db) => {
        broken(db, many({ t7: { check: 3 }, t100: { notNull: 130 }, t249: { foreignKey: 5, check: 2 } }));
        if (!virtual) return;
        db.exec('CREATE VIRTUAL TABLE v USING rtree(id, a, b)');
        rewrite(db, ['USING rtree(', 'USING theirs(']);
      });
      const { manifest, warnings } = await copyOf(s);
      expect([manifest.violations, warnings]).toEqual([
        { check: 5, notNull: 130, foreignKey: 5 },
        virtual ? ['ROWS_VIOLATE', 'TABLES_UNCHECKED'] : ['ROWS_VIOLATE'],
      ]);
      expect(Object.keys(manifest.rows).length).toBeGreaterThan(250);
      expect((await s.ask('verify', ['--json'])).json.ok).toBe(true);
    });

    test('a damaged index is found', async () => {
      const s = scene(null);
      make(s, (db) => {
        broken(db, many({}));
        db.exec("ALTER TABLE t5 ADD COLUMN t TEXT; UPDATE t5 SET t = 'the only one'; CREATE INDEX t5_t ON t5 (t)");
      });
      const page = rootPage(s.source, 't5_t');
      const at = readFileSync(s.source).indexOf('the only one', (page - 1) * 4096);
      damage(s.source, at, Buffer.from('the onlY'));
      const run = await s.run(['--json']);
      expect([run.code, run.json.error?.code, run.json.copy], run.stderr).toEqual([1, 'SOURCE_CORRUPT', null]);
    });
  });

  test('of a list of values, and of the rules beside it, in tables with and without rowids', async () => {
    const s = scene(null);
    make(s, (db) => {
      const columns = "k INTEGER PRIMARY KEY, s TEXT CHECK (s IN ('open', 'paid', 'void')), c INTEGER, CHECK (c > 0)";
      for (const [name, form] of [
        ['a', ''],
        ['say "b"', 'WITHOUT ROWID'],
      ] as const) {
        const table = `"${name.replaceAll('"', '""')}"`;
        db.exec(`PRAGMA ignore_check_constraints = on; CREATE TABLE ${table} (${columns}) ${form}`);
        const insert = db.prepare(`INSERT INTO ${table} VALUES (?, ?, ?)`);
        for (let i = 0; i < 300; i++) insert.run(i, ['open', 'gone', null][i % 3], i % 2 === 0 ? 1 : null);
        for (let i = 300; i < 350; i++) insert.run(i, i % 2 === 0 ? 'gone' : 'paid', 0);
      }
      rewrite(db, ['c INTEGER,', 'c INTEGER NOT NULL,']);
    });
    const { manifest, warnings } = await copyOf(s);
    expect([manifest.violations, warnings]).toEqual([{ check: 300, notNull: 300, foreignKey: 0 }, ['ROWS_VIOLATE']]);
    expect((await s.ask('verify', ['--json'])).json.ok).toBe(true);
  });

  test('a hundred in one table do not hide what could not be checked in another', async () => {
    const s = scene(null);
    make(s, (db) => {
      broken(db, { a: { check: 100 } });
      db.exec('CREATE VIRTUAL TABLE v USING rtree(id, a, b)');
      rewrite(db, ['USING rtree(', 'USING theirs(']);
    });
    const { manifest, warnings } = await copyOf(s);
    expect([manifest.violations, warnings]).toEqual([{ ...NONE, check: 100 }, ['ROWS_VIOLATE', 'TABLES_UNCHECKED']]);
    expect(manifest.checks.find((c) => c.name === 'integrity_check')?.message).toMatch(/except v: no such module/);
  });

  test('beside an index over a function that is not there', async () => {
    const s = scene(null);
    makeFunctionIndexDatabase(s.source, 'delete');
    make(s, (db) => broken(db, { a: { check: 30, foreignKey: 200 } }));
    const made = await copyOf(s);
    expect(made.manifest.violations).toEqual({ check: 30, notNull: 0, foreignKey: 200 });
    expect(made.warnings.toSorted()).toEqual(['PAGE_COPY', 'ROWS_VIOLATE', 'TABLES_UNCHECKED']);
  });

  test('beside such an index, more than SQLite lists of one table: said, and no reason to have no copy', async () => {
    const s = scene(null);
    makeFunctionIndexDatabase(s.source, 'delete');
    make(s, (db) => broken(db, { many: { check: 250 } }));
    const made = await copyOf(s);
    expect(made.manifest.violations.check).toBeGreaterThanOrEqual(100);
    expect(made.stderr).toMatch(/TABLES_UNCHECKED: .*many: /);
  });

  test('do not hide a damaged index behind them', async () => {
    const s = scene(null);
    make(s, (db) => {
      broken(db, { many: { check: 300 } });
      // In the very table whose rows fill SQLite's list of a hundred findings.
      db.exec("ALTER TABLE many ADD COLUMN t TEXT; UPDATE many SET t = printf('thread-%d', rowid); CREATE INDEX many_t ON many (t)");
    });
    const path = s.source;
    // The last entry of the index: still in order, and no longer what the table says.
    const leaf = inPrivate(path, (db) => db.prepare<[], number>("SELECT max(pageno) FROM dbstat WHERE name = 'many_t'").pluck().get() ?? 0);
    const at = readFileSync(path).indexOf('thread-99', (leaf - 1) * 4096);
    expect(Math.floor(at / 4096) + 1).toBe(leaf);
    damage(path, at + 'thread-9'.length, Buffer.from('Z'));
    expect(structuralFindings(path).join()).toMatch(/missing from index many_t/);
    const run = await s.run(['--json']);
    expect([run.code, run.json.error?.code, run.json.copy], run.stderr).toEqual([1, 'SOURCE_CORRUPT', null]);
    expect(run.json.error?.message).toMatch(/many_t/);
    expect(dataFiles(s.to)).toEqual([]);
    // And without the rows that break rules it is seen just the same.
    const full = await s.run(['--json', '--source-check', 'full']);
    expect([full.code, full.json.error?.code]).toEqual([1, 'SOURCE_CORRUPT']);
    expect(dataFiles(s.to)).toEqual([]);
  });
});

test('--source-check full is named in the manifest', async () => {
  const s = scene();
  makeDatabase(join(s.home, 'other.db'));
  const run = await s.run(['--json', '--source-check', 'full']);
  expect(run.code, run.stderr).toBe(0);
  const m = readJson(join(s.to, run.json.copy?.manifest ?? '')) as Manifest;
  expect(m.checks[0]).toEqual({ name: 'source integrity_check', ok: true, message: 'ok' });
});
