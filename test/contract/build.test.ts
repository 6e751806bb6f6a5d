/** `npm run build` as a developer runs it, whose directory and environment may hold anything. */
import { cpSync, existsSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { load } from '../../src/precompiled.js';
import { dbbackup, makeDatabase, ROOT, startCommand, tempDirectory } from '../support/cli.js';
import { startHttp } from '../support/http.js';

/** The sources, to be built elsewhere. */
function sources(): string {
  const root = tempDirectory('sources');
  for (const part of ['bin', 'src', 'test', 'package.json', 'tsconfig.json']) cpSync(join(ROOT, part), join(root, part), { recursive: true });
  symlinkSync(join(ROOT, 'node_modules'), join(root, 'node_modules'));
  return root;
}

const build = (cwd: string, env: Readonly<Record<string, string>> = {}) => startCommand(['npm', 'run', '--silent', 'build'], { cwd, env }).result;

test('settings that lie beside the sources tell nobody, store nothing, and do not get into what is built', async () => {
  const root = sources();
  const server = await startHttp();
  const off = tempDirectory('off');
  const settings = { UPLOAD: `file://${off}`, PING_URL: `${server.url}/ping`, WEBHOOK: `${server.url}/hook`, NOTIFY_ON: 'success,failure' };
  writeFileSync(
    join(root, '.env'),
    Object.entries(settings)
      .map(([k, v]) => `DBBACKUP_${k}=${v}\n`)
      .join(''),
    { mode: 0o600 },
  );
  const made = await build(root, { NODE_OPTIONS: '--max-old-space-size=2048', HOME: root });
  expect([made.code, made.stderr]).toEqual([0, '']);
  expect([server.heard, readdirSync(off)]).toEqual([[], []]);
  const built = readdirSync(join(root, 'dist'));
  const compiled = built.filter((file) => file.endsWith('.v8'));
  // One for the program, one for each child, one for each of libraries/.
  expect(compiled).toHaveLength(4 + readdirSync(join(root, 'src/libraries')).length);
  expect(compiled.map((file) => file.replace('.v8', '.js'))).toEqual(built.filter((file) => file.endsWith('.code.js')));
  expect(load(join(root, 'dist/app.code.js')).script.cachedDataRejected).toBe(false);
  expect(existsSync(join(root, 'dist/scratch'))).toBe(false);

  // And what was built makes a copy.
  const source = join(root, 'app.db');
  makeDatabase(source);
  const run = await dbbackup(['run', source, '--to', join(root, 'backups'), '--json'], { executable: join(root, 'bin/dbbackup.js') });
  expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
});
