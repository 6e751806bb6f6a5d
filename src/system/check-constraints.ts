/**
 * CHECK constraints with a list, counted by a query of their own. integrity_check makes the list of an `IN (...)` anew for every
 * row, which is 40 % of what the check of such a table costs; a SELECT makes it once. SQLite tells constraints only as the text
 * of the schema, so this reads that text, and goes by it only where it is certain of it: otherwise integrity_check does what it
 * always does. What is counted here is rows that break a rule; damage is found elsewhere.
 */
import type { Db } from './sqlite.js';
import { quoted } from './sqlite.js';

interface Token {
  readonly text: string;
  readonly start: number;
}

/** A literal, a quoted name, a word, a number or one character; comments and blanks come first, and count for nothing. */
const TOKEN = /(\s+|--[^\n]*|\/\*[\s\S]*?\*\/)|'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|[\p{L}_][\p{L}\p{N}_$]*|\d[\w.]*|[\s\S]/gu;

const tokensOf = (sql: string): Token[] => [...sql.matchAll(TOKEN)].filter(([, blank]) => blank === undefined).map((m) => ({ text: m[0], start: m.index }));

/**
 * The expressions of all CHECK constraints of a table, from its CREATE TABLE (https://www.sqlite.org/lang_createtable.html);
 * null where that cannot be said for certain.
 * @param mayCall whether a constraint may call a function of this name
 */
export function constraintsOf(sql: string, mayCall: (name: string) => boolean): string[] | null {
  const tokens = tokensOf(sql);
  const found: string[] = [];
  let depth = 0;
  for (let at = 0; at < tokens.length; at++) {
    const text = tokens[at]?.text ?? '';
    if (text === '(') depth++;
    if (text === ')') depth--;
    if (text.toUpperCase() !== 'CHECK') continue;
    // A reserved word: it stands in the list of columns, before a parenthesis, and nowhere else.
    const [open, end] = [tokens[at + 1], closing(tokens, at + 1)];
    if (depth !== 1 || open?.text !== '(' || end === null || !isPlain(tokens.slice(at + 2, end), mayCall)) return null;
    // As it is written: a comment in it ends before the parenthesis that ends the constraint.
    found.push(sql.slice(open.start + 1, tokens[end]?.start));
    at = end;
  }
  return depth === 0 ? found : null;
}

/** The number of the token that closes the parenthesis at `open`. */
function closing(tokens: readonly Token[], open: number): number | null {
  let depth = 0;
  for (let at = open; at < tokens.length; at++) {
    if (tokens[at]?.text === '(') depth++;
    if (tokens[at]?.text === ')' && --depth === 0) return at;
  }
  return null;
}

/** Words that stand before a parenthesis and are no functions. */
const OPERATORS = new Set(['IN', 'NOT', 'AND', 'OR', 'IS', 'BETWEEN', 'LIKE', 'GLOB', 'CASE', 'WHEN', 'THEN', 'ELSE', 'CAST']);
/** What no constraint can have, a quote without its end among it: a text with it is not what it seems. */
const FOREIGN = new Set(["'", '"', '`', '[', ';', '?', ':', '@', '$', '#', 'SELECT', 'VALUES', 'RAISE', 'OVER', 'FILTER', 'CHECK']);

/** What a schema may not call (trusted_schema), SQLite would let a query of ours call. */
function isPlain(expression: readonly Token[], mayCall: (name: string) => boolean): boolean {
  return expression.every(({ text }, at) => {
    if (FOREIGN.has(text.toUpperCase())) return false;
    const isCall = expression[at + 1]?.text === '(' && /^[\p{L}_"`[]/u.test(text) && !OPERATORS.has(text.toUpperCase());
    return !isCall || mayCall(text);
  });
}

/** https://www.sqlite.org/c3ref/c_deterministic.html: SQLITE_INNOCUOUS and SQLITE_DIRECTONLY. */
const INNOCUOUS = 0x20_0000;
const DIRECT_ONLY = 0x8_0000;
const HAS_LIST = /\bIN\s*\(/i;

/** The query that counts the rows of a table which break a CHECK; null where integrity_check is to count them. */
export function constraintQuery(db: Db, table: string): string | null {
  const sql = db.prepare<[string], unknown>("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?").pluck().get(table);
  if (typeof sql !== 'string' || !HAS_LIST.test(sql)) return null;
  const flagsOf = db.prepare<[string], number>('SELECT flags FROM temp.pragma_function_list WHERE name = lower(?)').pluck();
  const mayCall = (name: string): boolean => {
    const all = flagsOf.all(name);
    return all.length > 0 && all.every((flags) => (flags & INNOCUOUS) !== 0 && (flags & DIRECT_ONLY) === 0);
  };
  const constraints = constraintsOf(sql, mayCall);
  if (!constraints?.some((c) => HAS_LIST.test(c))) return null;
  // NOT INDEXED: of the table itself, and not of what an index says of it. NULL breaks no constraint.
  return `SELECT count(*) FROM ${quoted(table)} NOT INDEXED WHERE ${constraints.map((c) => `(${c}) IS FALSE`).join(' OR ')}`;
}
