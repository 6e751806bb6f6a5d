/** CHECK constraints that are counted by a query: what is read from a schema's text, and that the count is that of SQLite's own check. */
import Database from 'better-sqlite3';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { constraintQuery, constraintsOf } from '../../src/system/check-constraints.js';

const anyFunction = (): boolean => true;

test.each([
  ['of a column', "CREATE TABLE t (a TEXT CHECK (a IN ('x','y')), b)", ["a IN ('x','y')"]],
  ['of the table, named', 'CREATE TABLE t (a, b, CONSTRAINT "check" CHECK(a<b),CONSTRAINT two check ( b IN (1,2,3) ))', ['a<b', ' b IN (1,2,3) ']],
  ['parentheses in literals and names', `CREATE TABLE "t(" ([a(] CHECK ([a(] <> ')' AND "a(" <> '(''('), \`b)\`)`, [`[a(] <> ')' AND "a(" <> '(''('`]],
  ['comments', 'CREATE TABLE t (a -- CHECK (a > 1)\n, b CHECK (b > 2 -- or ) so\n) /* CHECK (b > 3) */)', ['b > 2 -- or ) so\n']],
  ['numbers and blobs', "CREATE TABLE t (a CHECK (a IN (.5, 1e-3, 0x1F, x'00')))", [".5, 1e-3, 0x1F, x'00'"].map((list) => `a IN (${list})`)],
  ['none', 'CREATE TABLE t (a DEFAULT (\'CHECK (1)\'), checked, "check")', []],
  ['letters of every alphabet', 'CREATE TABLE größe (漢 CHECK (漢 IN (1)))', ['漢 IN (1)']],
] as const)('%s', (_, sql, constraints) => {
  expect(constraintsOf(sql, anyFunction)).toEqual(constraints);
});

test.each([
  ['a query', 'CREATE TABLE t (a CHECK (a IN (SELECT 1)))'],
  ['a second statement', 'CREATE TABLE t (a CHECK (a IN (1); DELETE FROM t))'],
  ['a variable', 'CREATE TABLE t (a CHECK (a IN (?, 1)))'],
  ['no end', 'CREATE TABLE t (a CHECK (a IN (1, 2))'],
  ['a literal without an end', "CREATE TABLE t (a CHECK (a IN ('x, 2)))"],
  ['a word that is no constraint', 'CREATE TABLE t (a DEFAULT (CHECK (1)))'],
  ['nothing behind the word', 'CREATE TABLE t (a CHECK)'],
])('%s is not believed', (_, sql) => {
  expect(constraintsOf(sql, anyFunction)).toBeNull();
});

test('only what a schema may call is called', () => {
  const called: string[] = [];
  const note = (name: string): boolean => called.push(name) < 3;
  expect(constraintsOf('CREATE TABLE t (a CHECK (lower (a) IN (1) AND NOT (a) AND "x"(a) AND load_extension(a)))', note)).toBeNull();
  expect(called).toEqual(['lower', '"x"', 'load_extension']);
});

describe('in a database', () => {
  /** Rows that break a CHECK, by SQLite's own check of the whole table. */
  const byPragma = (db: Database.Database): number =>
    db
      .prepare<[], string>('PRAGMA integrity_check(1000000)')
      .pluck()
      .all()
      .filter((finding) => finding.startsWith('CHECK constraint failed in ')).length;

  const byQuery = (db: Database.Database, table: string): number | null => {
    const query = constraintQuery(db, table);
    return query === null ? null : (db.prepare<[], number>(query).pluck().get() ?? -1);
  };

  test.each([
    ['without a list it is left to integrity_check', 'a CHECK (a > 0)', null],
    ['a list in a comment is none', 'a CHECK (a > 0) /* a IN (1, 2) */', null],
    ['a function of the application', 'a CHECK (fold(a) IN (1, 2))', null],
    ['a function of SQLite', "a CHECK (lower(a) IN ('x', 'y', 'z'))", 2],
    ['its name in capitals', "a CHECK (LOWER(a) IN ('x', 'y', 'z'))", 2],
  ])('%s', (_, column, count) => {
    const db = new Database(':memory:');
    db.function('fold', { deterministic: true }, (a) => a);
    db.exec(`PRAGMA ignore_check_constraints = ON; CREATE TABLE "a ""t" (${column}); INSERT INTO "a ""t" VALUES ('X'), ('u'), (NULL), (-1)`);
    expect(byQuery(db, 'a "t')).toBe(count);
  });

  const literal = fc.constantFrom('1', '2', "'a'", "'B'", 'NULL', "x'61'", '1.5', '-3', "''");
  const list = fc.array(literal, { minLength: 1, maxLength: 6 }).map((values) => values.join(', '));
  const constraint = fc.oneof(
    fc.tuple(fc.constantFrom('a', 'b', 'lower(a)', 'abs(b)', 't.a', '"b"'), fc.constantFrom('IN', 'NOT IN'), list).map(([x, op, l]) => `${x} ${op} (${l})`),
    fc.tuple(list, fc.constantFrom('AND', 'OR'), literal).map(([l, op, x]) => `a IN (${l}) ${op} b > ${x}`),
    fc.constantFrom('b > 0', 'length(a) < 3', 'a IS NOT NULL', 'b', "a LIKE 'a%'", 'CASE WHEN a IN (1, 2, 3) THEN b END'),
  );
  const declared = fc.constantFrom('', 'TEXT', 'INTEGER', 'REAL', 'TEXT COLLATE NOCASE', 'NUMERIC');

  test('the count is that of integrity_check, whatever the constraints, types and rows', () => {
    let counted = 0;
    fc.assert(
      fc.property(
        fc.array(constraint, { minLength: 1, maxLength: 3 }),
        fc.tuple(declared, declared),
        fc.array(fc.tuple(literal, literal), { minLength: 1, maxLength: 20 }),
        fc.constantFrom('', ' WITHOUT ROWID'),
        (constraints, [a, b], rows, form) => {
          const db = new Database(':memory:');
          const [first, ...others] = constraints;
          const parts = ['k INTEGER PRIMARY KEY', `a ${a} CHECK (${first})`, `b ${b}`, ...others.map((c) => `CHECK (${c})`)];
          db.exec(`PRAGMA ignore_check_constraints = ON; CREATE TABLE t (${parts.join(', ')})${form}; CREATE INDEX i ON t (a)`);
          for (const [i, [x, y]] of rows.entries()) db.exec(`INSERT INTO t (k, a, b) VALUES (${i}, ${x}, ${y})`);
          db.pragma('ignore_check_constraints = OFF');
          const found = byQuery(db, 't');
          if (found !== null) {
            expect(found).toBe(byPragma(db));
            counted++;
          }
          db.close();
        },
      ),
      { seed: 20261128, numRuns: 400 },
    );
    expect(counted).toBeGreaterThan(200);
  });
});
