/** The user's checks as text: split into statements, and refused where they cannot be a SELECT. Pure. */

/** A text of SQL split at the semicolons between statements: not at those in literals, identifiers and comments. Comments stay. */
export function splitStatements(sql: string): string[] {
  const statements: string[] = [];
  let begin = 0;
  for (const token of sql.matchAll(TOKEN)) {
    if (token[0] !== ';') continue;
    statements.push(sql.slice(begin, token.index));
    begin = token.index + 1;
  }
  statements.push(sql.slice(begin));
  return statements.map((s) => s.trim()).filter((s) => withoutComments(s) !== '');
}

/** https://www.sqlite.org/lang.html: literals, the four ways to quote a name, both kinds of comments; an unfinished one reaches to the end. */
const TOKEN = /'[^']*(?:'|$)|"[^"]*(?:"|$)|`[^`]*(?:`|$)|\[[^\]]*(?:\]|$)|--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)|;/g;

const withoutComments = (sql: string): string => sql.replace(TOKEN, (token) => (token.startsWith('--') || token.startsWith('/*') ? ' ' : token)).trim();

/** Whether a statement begins as a SELECT does; SQLite itself decides later whether it only reads. */
export const looksLikeSelect = (sql: string): boolean => /^(SELECT|WITH|VALUES)\b/i.test(withoutComments(sql));
