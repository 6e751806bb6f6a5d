import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, tempDirectory } from '../support/cli.js';
import { testScenario } from './in-vitest.js';
import { power } from './power.js';

testScenario(power);

const reason = cannot('strace');
if (reason) process.stderr.write(`not run here: the order of the calls: ${reason}\n`);

/**
 * ext4 forgives a missing directory sync: it persists the directory as a side effect of a later sync in it, so the power
 * cuts above do not notice (traps, 46). The calls themselves do.
 */
test.skipIf(reason)('what makes a copy durable happens, and in the right order', { timeout: 60_000 }, async () => {
  const home = tempDirectory('order');
  const source = join(home, 'app.db');
  const to = join(home, 'made/backups');
  makeDatabase(source, { bytes: 100_000 });

  const first = await traced(home, source, to);
  const data = first.file;
  const made = first.at((c) => c.call === 'mkdir' && c.text.includes(`"${to}"`));
  expect(first.at((c) => c.call === 'fsync' && c.text.includes(`<${join(home, 'made')}>`))).toBeGreaterThan(made);
  expect(first.at((c) => c.call === 'fsync' && c.text.includes(`<${home}>`))).toBeGreaterThan(-1);

  const order: readonly [what: string, is: (c: Call) => boolean][] = [
    ['the bytes are synced', (c) => c.call === 'fsync' && c.text.includes('/tmp/app-') && c.text.includes('data.db>')],
    ['the manifest is synced', (c) => c.call === 'fsync' && c.text.includes('manifest.json>')],
    ['the private directory is synced', (c) => c.call === 'fsync' && /\/tmp\/app-[0-9a-f-]+>/.test(c.text)],
    ['the data appears', (c) => isLink(c) && c.text.includes(`"${join(to, data)}"`)],
    ['the manifest appears', (c) => isLink(c) && c.text.includes(`"${join(to, data.replace(/\.db$/, '.json'))}"`)],
    ['the directory is synced', (c) => c.call === 'fsync' && c.text.includes(`<${to}>`)],
  ];
  expectInOrder(first, order);

  const second = await traced(home, source, to, '--keep-last', '1');
  expectInOrder(second, [
    ['the manifest appears', (c) => isLink(c) && c.text.includes(`"${join(to, second.file.replace(/\.db$/, '.json'))}"`)],
    ['the directory is synced', (c) => c.call === 'fsync' && c.text.includes(`<${to}>`)],
    ['the old data goes', (c) => c.call.startsWith('unlink') && c.text.includes(`"${join(to, data)}"`)],
    ['the old manifest goes', (c) => c.call.startsWith('unlink') && c.text.includes(`"${join(to, data.replace(/\.db$/, '.json'))}"`)],
  ]);
  const gone = second.at((c) => c.call.startsWith('unlink') && c.text.includes(`"${join(to, data.replace(/\.db$/, '.json'))}"`));
  expect(second.calls.slice(gone).some((c) => c.call === 'fsync' && c.text.includes(`<${to}>`))).toBe(true);

  const packed = await traced(home, source, to, '--compress', 'gzip');
  expectInOrder(packed, [
    ['the packed bytes are synced', (c) => c.call === 'fsync' && c.text.includes('data.db.packed>')],
    ['the data appears', (c) => isLink(c) && c.text.includes(`"${join(to, packed.file)}"`)],
  ]);
});

interface Call {
  readonly call: string;
  readonly text: string;
}

const isLink = (c: Call): boolean => c.call === 'link' || c.call === 'linkat' || c.call === 'rename';

interface Traced {
  readonly file: string;
  readonly calls: readonly Call[];
  /** The place of the first such call, or -1. */
  readonly at: (is: (c: Call) => boolean) => number;
}

/** One run, and its calls in the order in which they were begun, those of all its threads together. */
async function traced(home: string, source: string, to: string, ...more: string[]): Promise<Traced> {
  const log = join(home, 'trace');
  const run = await dbbackup(['run', source, '--to', to, '--json', ...more], {
    through: ['strace', '-f', '-y', '-s', '4096', '-o', log, '-e', 'trace=mkdir,fsync,fdatasync,link,linkat,rename,unlink,unlinkat', '--'],
  });
  expect(run.code, run.stderr).toBe(0);
  const calls = readFileSync(log, 'utf8')
    .split('\n')
    .flatMap((line) => {
      const call = /^\d+ +(\w+)\(/.exec(line)?.[1];
      return call === undefined ? [] : [{ call, text: line }];
    });
  return { file: run.json.copy?.file ?? '', calls, at: (is) => calls.findIndex(is) };
}

function expectInOrder(run: Traced, order: readonly (readonly [what: string, is: (c: Call) => boolean])[]): void {
  let after = -1;
  for (const [what, is] of order) {
    const at = run.calls.findIndex((c, i) => i > after && is(c));
    expect(at, `${what}, after the step before it, in:\n${run.calls.map((c) => c.text).join('\n')}`).toBeGreaterThan(-1);
    after = at;
  }
}
