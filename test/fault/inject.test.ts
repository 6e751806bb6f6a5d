import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, tempDirectory } from '../support/cli.js';
import { testScenario } from './in-vitest.js';
import { inject } from './inject.js';
import { mustBeWhole } from './proof.js';

testScenario(inject);

const reason = cannot('strace');
if (reason) process.stderr.write(`not run here: a mapping that dies: ${reason}\n`);

/** A read error on a mapped file is a SIGBUS (traps, 39): the second look does not map, and so meets none. */
test.skipIf(reason)('a child that dies of its mapping is no damage: the source is read once more without', async () => {
  const home = tempDirectory('bus');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'delete', bytes: 200_000 });
  const log = join(home, 'trace');
  const through = ['strace', '-ff', '-qq', '-o', log, '-P', source, '-e', 'trace=mmap', '-e', 'inject=mmap:signal=BUS:when=1', '--'];
  const run = await dbbackup(['run', source, '--to', to, '--json'], { through });
  expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
  mustBeWhole(to, 'after the run');
  const traces = readdirSync(home).filter((file) => file.startsWith('trace.'));
  expect(traces.map((file) => readFileSync(join(home, file), 'utf8')).join()).toContain('killed by SIGBUS');
});
