import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, signalTo, start, tempDirectory, until, wrap } from '../support/cli.js';
import { testScenario } from './in-vitest.js';
import { kill } from './kill.js';
import { descendants, mustBeWhole, tempEntries } from './proof.js';

testScenario(kill);

const reason = cannot('strace');
if (reason) process.stderr.write(`not run here: a child outlives its parent: ${reason}\n`);

/** The rounds above are over too soon to tell a child that was ended from one that came to its end (traps, 41). */
test.skipIf(reason)('a child in the middle of a long snapshot goes with its parent', { timeout: 60_000 }, async () => {
  const home = tempDirectory('orphan');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { bytes: 20_000_000 });
  const args = ['run', source, '--to', to, '--json'];
  // Some 5,000 pages, 5 ms each: the snapshot takes half a minute. strace ends when the last of its processes has ended.
  const running = start(args, { through: wrap.slow('pwrite64', 5000) });
  await until('the snapshot to be under way', () => tempEntries(to).some((f) => f.endsWith('data.db')));
  const [parent = 0, ...below] = descendants(running.pid);
  expect(below.length).toBeGreaterThan(0);
  const began = performance.now();
  expect(signalTo(parent, 'SIGKILL')).toBe(true);
  await running.result;
  expect(performance.now() - began).toBeLessThan(3000);
  const next = await dbbackup(args);
  expect(next.code, next.stderr).toBe(0);
  mustBeWhole(to, 'after the next run');
});
