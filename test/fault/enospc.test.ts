import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, tempDirectory, useDatabase, wrap } from '../support/cli.js';
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
