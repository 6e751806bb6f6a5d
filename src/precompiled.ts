/**
 * Loads a file of `dist/` together with what V8 made of it at the build: to compile all anew at every start would take a third of
 * what copying a small database takes. How the two files are made: test/support/build.ts.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { Script } from 'node:vm';

const HASH_BYTES = 32;

/** Which Node this is, to the options that it was built with: what one build compiled is for no other one, on other processors least of all. */
const engine = (): string => JSON.stringify([process.version, process.versions.v8, process.platform, process.arch, process.config]);

/** What stands before V8's own bytes: V8 itself looks only at its version, its flags and how long the source is. */
const hashOf = (code: Buffer, made: Buffer): Buffer => createHash('sha256').update(engine()).update(code).update(made).digest();

/** The file that keeps what V8 made of `code`. */
export const sealed = (code: Buffer, made: Buffer): Buffer => Buffer.concat([hashOf(code, made), made]);

/** V8's bytes, if this Node made them of this very code and they are whole; without them the code is compiled as any other. */
function unsealed(code: Buffer, path: string): Buffer | undefined {
  let kept: Buffer;
  try {
    kept = readFileSync(path);
  } catch {
    return undefined;
  }
  const made = kept.subarray(HASH_BYTES);
  return hashOf(code, made).equals(kept.subarray(0, HASH_BYTES)) ? made : undefined;
}

/** The names that a CommonJS module is given, and what `build.ts` wraps the code in. */
export const WRAPPER = ['(function (exports, require, module, __filename, __dirname) {', '});'] as const;

/** One of the program's files, run. */
export interface Part {
  readonly exports: unknown;
  readonly script: Script;
}

/** What was loaded, by path. */
export const parts = new Map<string, Part>();

/** Runs `NAME.code.js`, with `NAME.code.v8` beside it where that was made of it by a V8 like this one. */
export function load(path: string): Part {
  const code = readFileSync(path);
  const cachedData = unsealed(code, path.replace(/\.js$/, '.v8'));
  const script = new Script(code.toString('latin1'), { filename: path, ...(cachedData && { cachedData }) });
  const wrapped = script.runInThisContext() as (...names: unknown[]) => void;
  const module = { exports: {} };
  wrapped.call(module.exports, module.exports, createRequire(path), module, path, dirname(path));
  const part = { exports: module.exports, script };
  parts.set(path, part);
  return part;
}
