/**
 * Where the program's own files lie. `npm run build` makes a few files in `dist/` of all modules (test/support/build.ts says which); from
 * source (`npm run dev`) tsx loads the modules one by one.
 */
import { createRequire } from 'node:module';
import { join } from 'node:path';

/** The directory with package.json. This module lies one level below it, and so does every file that is made of it. */
export const ROOT = join(import.meta.dirname, '..');

const FROM_SOURCE = import.meta.filename.endsWith('.ts');

/** What runs in a process of its own, with its source below `src/`. `npm run build` makes each of them. */
export const SCRIPTS = {
  'sqlite-worker': 'system/sqlite-worker.ts',
  'directory-child': 'destinations/directory-child.ts',
  's3-child': 'destinations/s3-child.ts',
} as const;

export type Script = keyof typeof SCRIPTS;

/** The words that start one of them: program, options, file. */
export const wordsFor = (script: Script): string[] =>
  FROM_SOURCE
    ? [process.execPath, '--import', createRequire(import.meta.filename).resolve('tsx'), join(ROOT, 'src', SCRIPTS[script])]
    : [process.execPath, join(ROOT, 'dist', `${script}.js`)];
