/** What the build made: taken by this Node as it is, and never where it is not of the very code beside it. */
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { expect, test } from 'vitest';
import { load } from '../../src/precompiled.js';
import { ROOT, tempDirectory } from '../support/cli.js';

const LIBRARIES = readdirSync(join(ROOT, 'src/libraries')).map((file) => basename(file, '.ts'));
const built = (file: string): string => join(ROOT, 'dist', file);

/** The program in a directory of its own, with one byte of a file changed. */
function spoiled(file: 'app.code.js' | 'app.code.v8', spoil: (bytes: Buffer) => void): string {
  const directory = tempDirectory('built');
  for (const part of ['app.code.js', 'app.code.v8']) copyFileSync(built(part), join(directory, part));
  const bytes = readFileSync(built(file));
  spoil(bytes);
  writeFileSync(join(directory, file), bytes);
  return join(directory, 'app.code.js');
}

test('this Node takes what it compiled at the build', () => {
  const { exports, script } = load(built('app.code.js'));
  expect([script.cachedDataRejected, exports]).toEqual([false, { app: expect.any(Function) }]);
});

test.each(LIBRARIES)('and so it does with the packages in %s', (name) => {
  const { exports, script } = load(built(`${name}.code.js`));
  expect([script.cachedDataRejected, Object.keys(exports as object)]).toEqual([false, expect.arrayContaining([expect.any(String)])]);
});

test('a flipped bit in what was compiled: compiled again', () => {
  const { exports, script } = load(spoiled('app.code.v8', (bytes) => bytes.writeUInt8(bytes.readUInt8(500_000) ^ 1, 500_000)));
  expect([script.cachedDataRejected, exports]).toEqual([undefined, { app: expect.any(Function) }]);
});

test('code that is changed and as long as before: compiled again', () => {
  const was = 'dbbackup';
  const path = spoiled('app.code.js', (bytes) => bytes.write('dbBACKUP', bytes.indexOf(was)));
  const { exports, script } = load(path);
  expect([script.cachedDataRejected, exports]).toEqual([undefined, { app: expect.any(Function) }]);
});

// V8 does not see what Node patches in it: what the release before compiled would take the process down.
test.each([
  ['version', 'v20.20.1'],
  ['arch', 'riscv64'],
] as const)('what another Node compiled, by its %s: compiled again', (key, value) => {
  const { [key]: own } = process;
  try {
    Object.defineProperty(process, key, { value });
    const { exports, script } = load(built('app.code.js'));
    expect([script.cachedDataRejected, exports]).toEqual([undefined, { app: expect.any(Function) }]);
  } finally {
    Object.defineProperty(process, key, { value: own });
  }
});

test('nothing beside the code: compiled', () => {
  const directory = tempDirectory('built');
  copyFileSync(built('app.code.js'), join(directory, 'app.code.js'));
  expect(load(join(directory, 'app.code.js')).exports).toEqual({ app: expect.any(Function) });
});

test('each package that is in the program is named with its licence', () => {
  const sections = readFileSync(built('THIRD-PARTY.txt'), 'utf8').split(`\n${'-'.repeat(80)}\n`);
  const names = sections.map((section) => section.trim().split(' ')[0]);
  expect(names).toEqual(
    expect.arrayContaining(['commander', 'dotenv', 'nodemailer', 'winston', 'winston-daily-rotate-file', 'age-encryption', '@aws-sdk/client-s3']),
  );
  const withText = (section: string): boolean => /copyright|permission is hereby granted|apache license/i.test(section);
  const licences = sections.map((section) => /^\S+ \d[\w.-]* \(([\w.-]+)\)\n\n/.exec(section.trim())?.[1] ?? section);
  // Some come without the text: then another one of the same licence has it.
  const lacking = licences.filter((licence) => !sections.some((section) => section.includes(`(${licence})`) && withText(section)));
  expect(lacking).toEqual([]);
});
