/** Private directories of processes at work: no sweep takes one of those, and each takes what killed ones left. */
import { execFile } from 'node:child_process';
import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { sweepStaging } from '../../src/staging.js';
import { isLiving, sweepDirectory } from '../../src/workspace.js';
import { tempDirectory } from '../support/cli.js';

/** Makes directories, each of which it finds as it left it, however many others sweep beside it meanwhile. */
const WORKER = (beside: string): string => `
  import { existsSync, writeFileSync } from 'node:fs';
  import { makeStaging } from ${JSON.stringify(resolve('src/staging.ts'))};
  for (let round = 0; round < 100; round++) {
    const staging = await makeStaging(${JSON.stringify(beside)}, new AbortController().signal);
    writeFileSync(staging.directory + '/file', '');
    await new Promise((resolve) => setImmediate(resolve));
    if (!existsSync(staging.directory + '/file')) throw new Error('swept in round ' + round);
    staging.remove();
  }`;

test('three processes that sweep beside each other leave each other alone, and nothing behind', async () => {
  const beside = tempDirectory('beside');
  const run = promisify(execFile);
  const args = ['--import', 'tsx', '--input-type=module', '-e', WORKER(beside)];
  const ends = await Promise.allSettled([1, 2, 3].map(() => run(process.execPath, args)));
  expect(ends.map((e) => (e.status === 'rejected' ? String(e.reason) : 'done'))).toEqual(['done', 'done', 'done']);
  expect(readdirSync(beside)).toEqual([]);
});

test('what killed processes left is swept, however far they had come, and what is not ours stays', () => {
  const beside = tempDirectory('beside');
  const left = (number: number, ...files: string[]): void => {
    const directory = join(beside, `.dbbackup-01234567-89ab-cdef-0123-45678901234${number}`);
    mkdirSync(directory);
    for (const file of files) writeFileSync(join(directory, file), '');
  };
  left(1);
  left(2, 'alive-1.lock.db');
  left(3, 'alive-1.lock.db', 'restore.db');
  left(4, 'restore.db');
  left(5, 'alive-1.lock.db', 'alive-2.lock.db');
  // Whoever owns the directory can give any of ours such a name.
  left(6, 'precious');
  left(7, 'restore.db', 'precious');
  mkdirSync(join(beside, '.dbbackup-of-somebody'));
  sweepStaging(beside);
  const stays = [6, 7].map((number) => `.dbbackup-01234567-89ab-cdef-0123-45678901234${number}`);
  expect(readdirSync(beside).sort()).toEqual([...stays, '.dbbackup-of-somebody']);
});

test('a link in place of such a directory, and what it leads to, are left alone', () => {
  const beside = tempDirectory('beside');
  const precious = tempDirectory('precious');
  writeFileSync(join(precious, 'file'), '');
  const link = '.dbbackup-01234567-89ab-cdef-0123-456789012345';
  symlinkSync(precious, join(beside, link));
  sweepStaging(beside);
  expect([readdirSync(beside), readdirSync(precious)]).toEqual([[link], ['file']]);
});

test('a directory that another process removes between two looks is nobody at work', () => {
  const beside = tempDirectory('beside');
  writeFileSync(join(beside, 'file'), '');
  expect([isLiving(join(beside, 'gone')), isLiving(join(beside, 'file'))]).toEqual([false, false]);
  expect(() => sweepDirectory(join(beside, 'gone'))).not.toThrow();
});
