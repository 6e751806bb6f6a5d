/** Part of `npm run build`: makes copies of a small database with `dist/app.code.js`, and keeps what V8 compiled for it. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import type { Started } from '../../src/app.js';
import { ROOT } from '../../src/own-files.js';
import { load, sealed } from '../../src/precompiled.js';

const file = join(ROOT, 'dist/app.code.js');
const { exports, script } = load(file);
const { app } = exports as typeof import('../../src/app.js');
const directory = mkdtempSync(join(tmpdir(), 'dbbackup-build-'));
const database = join(directory, 'app.db');
const to = join(directory, 'backups');
new Database(database).exec('PRAGMA journal_mode = WAL; CREATE TABLE t (a PRIMARY KEY, b); INSERT INTO t VALUES (1, 2)').close();

const command = (...argv: string[]): Promise<number> =>
  app({
    argv,
    script: 'dbbackup',
    env: { PATH: process.env['PATH'] },
    childEnv: { PATH: process.env['PATH'] },
    umask: 0o022,
    journal: false,
    signals: new AbortController().signal,
    earlyWorker: null,
    leave: () => undefined,
  } satisfies Started);

try {
  // What runs every night, and what people and monitors look with. It is no test: where nothing can be copied here, the build is whole all the same.
  await command('run', database, '--to', to);
  await command('run', database, '--to', to, '--keep-last', '1');
  await command('run', database, '--to', to, '--dry-run');
  for (const looking of ['list', 'status', 'history', 'prune']) await command(looking, '--to', to, '--json');
  await command('check', database, '--to', to, '--json', '--quiet');
  await command('verify', '--to', to);
} finally {
  rmSync(directory, { recursive: true, force: true });
}
writeFileSync(file.replace(/\.js$/, '.v8'), sealed(readFileSync(file), script.createCachedData()));
