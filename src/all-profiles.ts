/**
 * --all-profiles: the command once for every profile, one after the other, each in a process of its own with its own settings,
 * record and verdict; then a summary, and one exit code for all. A profile that fails does not keep the next from its turn.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import type { ExitCode } from './outcome.js';
import { EXIT_CODES, errnoOf, errnoWords, Failed, isEndSignal } from './outcome.js';
import type { Output } from './output.js';
import type { CommandName } from './records.js';
import { SCHEMA_VERSION } from './records.js';
import { DEFAULTS, profileDirectories } from './settings/load.js';
import { findSetpriv } from './system/workers.js';

export interface AllProfiles {
  readonly command: CommandName;
  /** The command line, without the program. */
  readonly argv: readonly string[];
  /** The script to start for each, absolute. */
  readonly script: string;
  readonly env: NodeJS.ProcessEnv;
  readonly output: Output;
  readonly signal: AbortSignal;
}

/**
 * The names of all profiles in these directories, in alphabetical order, also of those that are no names: who runs them says so. A
 * directory that is not there has none; one that cannot be read is a failure, or databases would go without a backup in silence.
 */
export function profileNames(directories: readonly string[]): string[] {
  const names = directories.flatMap((directory) => {
    try {
      return readdirSync(directory).filter((file) => /^[^.].*\.env$/.test(file) && file !== DEFAULTS);
    } catch (error) {
      if (['ENOENT', 'ENOTDIR'].includes(errnoOf(error))) return [];
      throw new Failed({ code: 'IO_ERROR', path: directory, reason: errnoWords(error) }, { cause: error });
    }
  });
  return [...new Set(names.map((file) => file.slice(0, -'.env'.length)))].sort();
}

/** The first of these that any profile ended with; a person is needed for the first two (DESIGN, "Exit codes"). */
const WORST: readonly number[] = [4, 70, 1, 3, 75, 78, 64];

/** What all of them come to. */
export const exitCodeOfAll = (codes: readonly number[]): number => WORST.find((code) => codes.includes(code)) ?? codes.find((code) => code !== 0) ?? 0;

interface Done {
  readonly name: string;
  readonly exitCode: number;
  /** What it printed with --json; null: nothing that could be read. */
  readonly document: unknown;
}

/** Runs the command for every profile. Throws `Failed`: SETTINGS where there is none, INTERRUPTED at a signal. */
export async function runAllProfiles(input: AllProfiles): Promise<ExitCode> {
  const { output, signal } = input;
  const names = profileNames(profileDirectories(input.env));
  if (names.length === 0) {
    const message = `there are no profiles: looked for *.env in ${profileDirectories(input.env).join(' and ')}`;
    throw new Failed({ code: 'SETTINGS', problems: [{ setting: 'all-profiles', message, origin: '--all-profiles' }] });
  }
  const done: Done[] = [];
  for (const name of names) {
    if (signal.aborted) break;
    if (!output.options.quiet) output.info(`profile ${name}:`);
    done.push(await one(input, name));
  }
  const exitCode = exitCodeOfAll(done.map((d) => d.exitCode));
  const meaning = (code: number): string =>
    EXIT_CODES.find(([known]) => known === code)?.[1]
      .split(':')[0]
      ?.split(';')[0] ?? `exit ${code}`;
  if (!output.options.quiet || exitCode !== 0)
    for (const d of done) output.info(`${d.name}: ${d.exitCode === 0 ? 'ok' : `exit ${d.exitCode}, ${meaning(d.exitCode)}`}`);
  output.document({ schemaVersion: SCHEMA_VERSION, command: input.command, exitCode, profiles: done });
  signal.throwIfAborted();
  const known = EXIT_CODES.find(([code]) => code === exitCode);
  return known ? known[0] : 1;
}

async function one({ argv, script, env, output, signal }: AllProfiles, name: string): Promise<Done> {
  // In its place: what follows a -- would be no flag.
  const words = argv.flatMap((word) => (word === '--all-profiles' ? [`--profile=${name}`] : [word]));
  const node = [process.execPath, ...process.execArgv, '--', script, ...words];
  const setpriv = findSetpriv();
  // Killed with us, also at kill -9. In our process group: what a terminal sends reaches it as well.
  const [program = '', ...rest] = setpriv === null ? node : [setpriv, '--pdeathsig', 'KILL', '--', ...node];
  const child = spawn(program, rest, { env, stdio: ['inherit', output.options.json ? 'pipe' : 'inherit', 'inherit'] });
  const pass = (): void => {
    child.kill('SIGTERM');
  };
  signal.addEventListener('abort', pass, { once: true });
  const chunks: Buffer[] = [];
  child.stdout?.on('data', (chunk: Buffer) => chunks.push(chunk));
  const [code, by] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  signal.removeEventListener('abort', pass);
  const exitCode = code ?? (isEndSignal(by) ? { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 }[by] : 1);
  return { name, exitCode, document: documentOf(Buffer.concat(chunks).toString('utf8')) };
}

function documentOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
