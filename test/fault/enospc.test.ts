import { mkdirSync, readdirSync, statfsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ago, baseAt, DAY, dataFiles, HOUR, plantDaily, scene } from '../e2e/scene.js';
import { cannot, dbbackup, makeDatabase, tempDirectory, useDatabase, wrap } from '../support/cli.js';
import { plantCopy } from '../support/manifest.js';
import { enospc } from './enospc.js';
import { testScenario } from './in-vitest.js';
import { mountTmpfs } from './mounts.js';
import { listing, mustBeWhole } from './proof.js';

testScenario(enospc);

const reason = cannot('root', 'mount', 'strace');
if (reason) process.stderr.write(`not run here: WAL_PRESSURE: ${reason}\n`);

test.skipIf(reason)('a snapshot ends itself before the growing WAL fills the disk of the application', { timeout: 60_000 }, async () => {
  const point = mountTmpfs(64 << 20);
  const source = join(point, 'app.db');
  makeDatabase(source, { bytes: 20_000_000 });
  const to = join(tempDirectory('pressure'), 'backups');
  // The same row again and again: the database itself does not grow, only the WAL, and only while it cannot be reset.
  const setup = ['PRAGMA synchronous = off', "INSERT INTO beat VALUES (1, 'x')"];
  const app = await useDatabase(source, setup, { loop: 'UPDATE beat SET at = hex(randomblob(60000)) WHERE id = 1', beatMs: 3 });
  const run = await dbbackup(['run', source, '--to', to, '--json'], { through: wrap.slow('pwrite64', 3000) });
  const { done, failed, first } = await app.stop();
  expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'WAL_PRESSURE']);
  expect(run.json.error?.message).toMatch(/WAL grew to [1-9]/);
  expect([failed, first, done > 20]).toEqual([0, '', true]);
  mustBeWhole(to, 'after the run');
  expect(listing(to)).toBe('');
});

/** Good copies as large as the database, one a day, and not a byte free beside them. */
function fill(to: string, count: number, source: string, name = 'app'): void {
  mkdirSync(to, { mode: 0o700 });
  const { size } = statSync(source);
  for (let day = 0; day < count; day++) {
    plantCopy(to, baseAt(ago(HOUR + day * DAY), name), Buffer.alloc(size, day), { name, configuredPath: source, realPath: source });
  }
  const { bavail, bsize } = statfsSync(to);
  writeFileSync(join(to, '..', 'filler'), Buffer.alloc(bavail * bsize));
}

test.skipIf(cannot('root', 'mount'))('the line that would make room does, whatever the rules of the profile keep', async () => {
  const s = scene({ bytes: 200_000 });
  const to = join(mountTmpfs(4 << 20), 'backups');
  fill(to, 9, s.source);
  const config = join(s.home, 'dbbackup');
  mkdirSync(config);
  const rules = 'DBBACKUP_KEEP_LAST=all\nDBBACKUP_KEEP_WITHIN=30d\nDBBACKUP_KEEP_DAILY=9\nDBBACKUP_KEEP_MONTHLY=all\n';
  writeFileSync(join(config, 'app.env'), `DBBACKUP_DATABASE=${s.source}\nDBBACKUP_TO=${to}\n${rules}`, { mode: 0o600 });
  const env = { XDG_CONFIG_HOME: s.home };
  const full = await dbbackup(['run', '--profile', 'app', '--json'], { env });
  expect([full.code, full.json.error?.code], full.stderr).toEqual([1, 'NO_SPACE']);
  const status = await dbbackup(['status', '--profile', 'app', '--json'], { env });
  expect(status.json.problems?.find((problem) => problem.code === 'SPACE_LOW')?.message).toMatch(/^0 B are free .* room for 0 more copies/);
  // What could not be written leaves no name.
  expect(readdirSync(join(to, '.dbbackup'), { recursive: true }).filter((name) => String(name).endsWith('.new'))).toEqual([]);
  const line = /dbbackup (prune .*)$/.exec(full.json.error?.hint ?? '')?.[1] ?? '';
  const pruned = await dbbackup([...line.split(' '), '--json'], { env });
  expect([pruned.code, pruned.json.kept?.length, pruned.json.pruned?.length], `${line}: ${pruned.stderr}`).toEqual([0, 7, 2]);
  expect((await dbbackup(['run', '--profile', 'app'], { env })).code).toBe(0);
});

test.skipIf(cannot('root', 'mount'))('that line is for the directory that is full, and not for that of the profile', async () => {
  const s = scene({ bytes: 200_000 });
  const config = join(s.home, 'dbbackup');
  mkdirSync(config);
  writeFileSync(join(config, 'app.env'), `DBBACKUP_DATABASE=${s.source}\nDBBACKUP_TO=${s.to}\n`, { mode: 0o600 });
  plantDaily(s.to, 5, HOUR, { configuredPath: s.source, realPath: s.source });
  const to = join(mountTmpfs(4 << 20), 'backups');
  fill(to, 9, s.source, 'other');
  const env = { XDG_CONFIG_HOME: s.home };
  const full = await dbbackup(['run', '--profile', 'app', '--to', to, '--name', 'other', '--json'], { env });
  expect([full.code, full.json.error?.code], full.stderr).toEqual([1, 'NO_SPACE']);
  const line = /dbbackup (prune .*)$/.exec(full.json.error?.hint ?? '')?.[1] ?? '';
  const pruned = await dbbackup([...line.split(' '), '--json'], { env });
  expect([pruned.code, pruned.json.name, pruned.json.pruned?.length], `${line}: ${pruned.stderr}`).toEqual([0, 'other', 2]);
  expect((await dbbackup(['run', '--profile', 'app', '--to', to, '--name', 'other', '--keep-last', '9'], { env })).code).toBe(0);
  expect(dataFiles(s.to).length).toBe(5);
});

test.skipIf(cannot('root', 'mount'))('a restore that has no room is told no line that could remove the copy it needs', async () => {
  const s = scene({ bytes: 200_000 });
  const to = join(mountTmpfs(4 << 20), 'backups');
  fill(to, 9, s.source);
  const restore = await dbbackup(['restore', '--to', to, '--into', s.source, '--yes', '--json']);
  expect([restore.code, restore.json.error?.code], restore.stderr).toEqual([1, 'NO_SPACE']);
  expect(restore.json.error?.hint).not.toContain('prune');
});

test.skipIf(cannot('root', 'mount'))('a proof that has no room is told no line that could leave nothing but the copy in doubt', async () => {
  const s = scene({ bytes: 200_000 });
  const to = join(mountTmpfs(4 << 20), 'backups');
  fill(to, 9, s.source);
  const verify = await dbbackup(['verify', '--to', to]);
  expect([verify.code, verify.stderr], verify.stdout).toEqual([1, expect.stringMatching(/error NO_SPACE \(verify\): .* Hint: make room/)]);
  expect(verify.stderr).not.toContain('prune');
  // Nothing of it is proven.
  expect(verify.stdout).toMatch(/\nunverified +\S+ +- +not proven: not enough space/);
});

// SQLite says the same of it as of a broken disk, and has taken back what it had written.
test('a limit for the size of files, as a quota is one, is no broken disk', async () => {
  const s = scene({ bytes: 1_000_000 });
  const run = await dbbackup(['run', s.source, '--to', s.to, '--json'], { through: wrap.limit('-f', 1000) });
  expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'NO_SPACE']);
  mustBeWhole(s.to, 'after the run');
  expect(dataFiles(s.to)).toEqual([]);
  expect(readdirSync(join(s.state, 'tmp'))).toEqual([]);
});
