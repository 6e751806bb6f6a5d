/** The accounting of pages, asked of the built SQLite child: a page in no tree, or in two, never passes. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { ROOT, tempDirectory } from '../support/cli.js';

/** What the child finds wrong with the structure of a file. */
function structure(file: string): string {
  const child = spawnSync(process.execPath, [join(ROOT, 'dist/sqlite-worker.js'), String(process.pid)], {
    input: `${JSON.stringify({ op: 'check-structure', file, mmap: true, cellSizeCheck: false, how: 'accounting' })}\n`,
    stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
    encoding: 'utf8',
  });
  const reply = JSON.parse(child.output[3] ?? '') as { ok: boolean; value: { structural: string[] } };
  expect(reply.ok).toBe(true);
  return reply.value.structural.join('; ');
}

function make(name: string, change: string): string {
  const path = join(tempDirectory('accounting'), name);
  const db = new Database(path);
  db.unsafeMode();
  db.exec(`CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x PRIMARY KEY) WITHOUT ROWID; INSERT INTO a VALUES (1); INSERT INTO b VALUES (2);
    INSERT INTO a WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) SELECT randomblob(40) FROM n; INSERT INTO a VALUES (zeroblob(20000))`);
  db.exec(`PRAGMA writable_schema = ON; ${change}`);
  db.close();
  return path;
}

test('a file as VACUUM leaves it passes, interior and overflow pages included', () => {
  expect(structure(make('whole.db', 'VACUUM'))).toBe('');
});

test('a page that two trees share, and the page that is in none instead', () => {
  const shared = "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'b') WHERE name = 'a'";
  expect(structure(make('shared.db', shared))).toMatch(/2nd reference|never used/);
});

test('a page that is in no tree', () => {
  expect(structure(make('lost.db', "DELETE FROM sqlite_schema WHERE name = 'b'"))).toMatch(/never used/);
});

test('free pages and pointer maps are left to quick_check, which passes them', () => {
  expect(structure(make('free.db', 'DELETE FROM a'))).toBe('');
  expect(structure(make('map.db', 'PRAGMA auto_vacuum = FULL; VACUUM'))).toBe('');
});
