/** The judge's own process: a path per line on standard input, what SQLite finds in that file as JSON per line on standard output. */
import { createInterface } from 'node:readline';
import Database from 'better-sqlite3';
import { fullCheck } from './proof.js';

createInterface({ input: process.stdin }).on('line', (path) => {
  let findings: string[];
  try {
    const db = new Database(path);
    try {
      findings = fullCheck(db);
    } finally {
      db.close();
    }
  } catch (error) {
    findings = [`error: ${String(error)}`];
  }
  process.stdout.write(`${JSON.stringify(findings.slice(0, 2000))}\n`);
});
