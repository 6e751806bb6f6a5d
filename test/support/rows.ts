/** Two databases compared by what they hold: every row of every table, whatever the pages look like. */
import { createHash } from 'node:crypto';
import Database from 'better-sqlite3';

const quoted = (identifier: string): string => `"${identifier.replaceAll('"', '""')}"`;

interface Table {
  readonly name: string;
  readonly sql: string;
}

const tablesOf = (db: Database.Database, schema = 'main'): readonly Table[] =>
  db.prepare<[], Table>(`SELECT name, sql FROM ${schema}.sqlite_schema WHERE type = 'table' ORDER BY name`).all();

/** SHA-256 over the schema and all rows, in the order of their keys. */
export function digestRows(db: Database.Database): string {
  const hash = createHash('sha256');
  for (const { name, sql } of tablesOf(db)) {
    hash.update(`${name} ${sql}\n`);
    for (const row of db
      .prepare<[], unknown[]>(`SELECT * FROM ${quoted(name)} NOT INDEXED`)
      .raw()
      .safeIntegers()
      .iterate()) {
      for (const value of row) hash.update(Buffer.isBuffer(value) ? value : `${typeof value} ${String(value)}\n`);
    }
  }
  return hash.digest('hex');
}

/** Where two database files differ, table by table; empty when they hold the same. Both are opened where they lie, read-only. */
export function differences(a: string, b: string): string[] {
  const db = new Database(a, { readonly: true });
  try {
    db.prepare('ATTACH ? AS other').run(b);
    const mine = tablesOf(db);
    const others = tablesOf(db, 'other');
    if (JSON.stringify(mine) !== JSON.stringify(others))
      return [`the tables differ: ${mine.map((t) => t.name).join()} and ${others.map((t) => t.name).join()}`];
    return mine.flatMap(({ name }) => {
      const t = quoted(name);
      const missing = (from: string, of: string): number =>
        db.prepare<[], number>(`SELECT count(*) FROM (SELECT * FROM ${from}.${t} EXCEPT SELECT * FROM ${of}.${t})`).pluck().get() ?? -1;
      // EXCEPT knows no rows that occur twice: they are counted.
      const count = (of: string): number => db.prepare<[], number>(`SELECT count(*) FROM ${of}.${t}`).pluck().get() ?? -1;
      const found = [missing('main', 'other'), missing('other', 'main'), count('main') - count('other')];
      return found.every((n) => n === 0) ? [] : [`${name}: ${found[0]} rows only here, ${found[1]} only there, ${found[2]} more`];
    });
  } finally {
    db.close();
  }
}
