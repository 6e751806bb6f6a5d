/**
 * The main job on real input, for somebody who has just cloned this: a sample database of about 20 MB in WAL mode, a process
 * that keeps writing to it, and the real executable beside it. Everything happens in a temporary directory.
 *
 *   npm run demo
 *
 * Exit code 1 when a command does not exit 0, a copy is missing or unsound, or the writing process lost a write.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database from 'better-sqlite3';
import { startApp } from './app.js';
import { generate } from './generator.js';

const BIN = fileURLToPath(new URL('../../bin/dbbackup.js', import.meta.url));
const BUILT = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
const SIZE = 20e6;
const BEAT_MS = 20;
const COMMANDS = [
  ['run', 'shop.db', '--to', 'backups'],
  ['run', 'shop.db', '--to', 'backups'],
  ['run', 'shop.db', '--to', 'backups', '--dry-run'],
  ['list', '--to', 'backups'],
  ['status', '--to', 'backups'],
  ['history', '--to', 'backups'],
];
/** Copies that the runs above leave. */
const COPIES = 2;

const say = (text: string): void => console.log(text);
const strong = (text: string): string => (process.stdout.isTTY && !process.env['NO_COLOR'] ? `\x1b[1m${text}\x1b[0m` : text);

async function demo(directory: string): Promise<string[]> {
  const wrong: string[] = [];
  const made = generate(join(directory, 'shop.db'), SIZE);
  const app = await startApp(join(directory, 'shop.db'), BEAT_MS);
  say(`A sample database, ${directory}/shop.db, ${(made / 1e6).toFixed(1)} MB, and a process that writes to it every ${BEAT_MS} ms.\n`);

  // What this user has set for databases of their own must not steer the demo.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('DBBACKUP_')));
  for (const argv of COMMANDS) {
    say(strong(`$ dbbackup ${argv.join(' ')}`));
    const { status, signal, error } = spawnSync(BIN, argv, { cwd: directory, env, stdio: ['ignore', 'inherit', 'inherit'] });
    if (error) throw error;
    say('');
    if (status !== 0) wrong.push(`dbbackup ${argv.join(' ')} ended with ${signal ?? `exit code ${status}`}, not 0`);
  }

  const { writes, failed, errors } = await app.end();
  say(`Meanwhile the process wrote ${writes} times, and ${failed === 0 ? 'none' : failed} of its writes failed.`);
  if (writes === 0) wrong.push('the writing process did not write');
  if (failed > 0) wrong.push(`${failed} writes failed: ${errors.join('; ')}`);
  return [...wrong, ...look(join(directory, 'backups'))];
}

/** A copy is a plain SQLite file: opened here as any program would. */
function look(backups: string): string[] {
  const copies = existsSync(backups) ? readdirSync(backups).filter((file) => file.endsWith('.db')) : [];
  if (copies.length !== COPIES) return [`there are ${copies.length} copies, not ${COPIES}`];
  return copies.flatMap((file) => {
    const db = new Database(join(backups, file), { readonly: true });
    const verdict = db.pragma('integrity_check', { simple: true });
    const orders = db.prepare('SELECT count(*) FROM orders').pluck().get();
    db.close();
    say(`${file}: ${orders} orders, integrity_check ${verdict}`);
    return verdict === 'ok' ? [] : [`${file}: ${verdict}`];
  });
}

async function main(): Promise<void> {
  if (!existsSync(BUILT)) throw new Error('dist/ is missing: run npm run build first (npm ci does it by itself)');
  const directory = mkdtempSync(join(tmpdir(), 'dbbackup-demo-'));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      rmSync(directory, { recursive: true, force: true });
      process.kill(process.pid, signal);
    });
  }
  try {
    const wrong = await demo(directory);
    if (wrong.length > 0) throw new Error(wrong.join('\n'));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  say('\nNow with your own database: npx dbbackup run /path/to/app.db --to backups');
  say('Every night: copy a line from deploy/crontab.example, or the units in deploy/systemd/.');
}

main().catch((error: unknown) => {
  console.error(`demo: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
});
