/**
 * --all-profiles: the command once for every profile, one after the other, each in a process of its own with its own settings,
 * record and verdict; then a summary, and one exit code for all. A profile that fails does not keep the next from its turn.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import type { ExitCode } from './outcome.js';
import { describe, EXIT_CODES, errnoOf, errnoWords, exitCodeOf, Failed, failureOf, SIGNAL_EXIT } from './outcome.js';
import type { Output } from './output.js';
import type { CommandName } from './records.js';
import { SCHEMA_VERSION } from './records.js';
import { DEFAULTS, notShared, profileDirectories } from './settings/load.js';
import { variableOf } from './settings/options.js';
import { isEndSignal } from './system/signals.js';
import { findSetpriv } from './system/start-worker.js';

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
const WORST: readonly number[] = [4, 70, 1, 143, 130, 129, 3, 75, 78, 64];

/** What all of them come to. */
export const exitCodeOfAll = (codes: readonly number[]): number => WORST.find((code) => codes.includes(code)) ?? codes.find((code) => code !== 0) ?? 0;

interface Done {
  readonly name: string;
  /** Null: a signal came before its turn. */
  readonly exitCode: number | null;
  /** What it printed with --json; null: nothing that could be read. */
  readonly document: unknown;
}

const meaningOf = (code: number): string =>
  EXIT_CODES.find(([known]) => known === code)?.[1]
    .split(':')[0]
    ?.split(';')[0] ?? `exit ${code}`;

const lineOf = ({ name, exitCode }: Done): string =>
  exitCode === null ? `${name}: its turn did not come` : exitCode === 0 ? `${name}: ok` : `${name}: exit ${exitCode}, ${meaningOf(exitCode)}`;

/** Runs the command for every profile. Throws `Failed` with SETTINGS where there is none, or where all would get what only one can have. */
export async function runAllProfiles(input: AllProfiles): Promise<ExitCode> {
  const { output, signal } = input;
  const names = profileNames(profileDirectories(input.env));
  if (names.length === 0) {
    const message = `there are no profiles: looked for *.env in ${profileDirectories(input.env).join(' and ')}`;
    throw new Failed({ code: 'SETTINGS', problems: [{ setting: 'all-profiles', message, origin: '--all-profiles' }] });
  }
  // The environment wins over a profile: each of them would back up the same database, and say that all is well.
  const shared = notShared(input.env);
  if (shared.length > 0) {
    const message = (setting: string): string => `--all-profiles takes no ${setting} from the environment: each profile has its own`;
    throw new Failed({
      code: 'SETTINGS',
      problems: shared.map((setting) => ({ setting, message: message(setting), origin: variableOf(setting) })),
      hint: 'unset it, or put it into the profile that it is meant for',
    });
  }
  const done: Done[] = [];
  for (const name of names) {
    if (signal.aborted) {
      done.push({ name, exitCode: null, document: null });
      continue;
    }
    if (!output.options.quiet) output.info(`profile ${name}:`);
    const came = await one(input, name);
    done.push(came);
    // Right behind what it said, which need not tell whose database it is about.
    if (output.options.quiet && came.exitCode !== 0) output.trouble(lineOf(came));
  }
  if (!output.options.quiet) for (const d of done) d.exitCode === 0 ? output.info(lineOf(d)) : output.trouble(lineOf(d));
  const ended = signal.aborted ? failureOf(signal.reason) : null;
  const exitCode = ended ? exitCodeOf(ended, false) : exitCodeOfAll(done.flatMap((d) => d.exitCode ?? []));
  if (ended) output.error(ended, null);
  const error = ended && { code: ended.code, stage: null, ...describe(ended) };
  output.document({ schemaVersion: SCHEMA_VERSION, command: input.command, exitCode, ...(error ? { error } : {}), profiles: done });
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
  let child: ChildProcess;
  try {
    child = spawn(program, rest, { env, stdio: ['inherit', output.options.json ? 'pipe' : 'inherit', 'inherit'] });
  } catch (error) {
    // Node tells some errors by "error", and throws others, as that memory has run out.
    output.error(failureOf(error), null);
    return { name, exitCode: UNSTARTED, document: null };
  }
  const pass = (): void => {
    child.kill('SIGTERM');
  };
  signal.addEventListener('abort', pass, { once: true });
  const chunks: Buffer[] = [];
  child.stdout?.on('data', (chunk: Buffer) => chunks.push(chunk));
  const [code, by] = await endOf(child, output);
  signal.removeEventListener('abort', pass);
  const exitCode = code ?? (isEndSignal(by) ? SIGNAL_EXIT[by] : 1);
  return { name, exitCode, document: documentOf(Buffer.concat(chunks).toString('utf8')) };
}

/** One that cannot be started is a failure like another: the next has its turn all the same. */
const UNSTARTED = 1;

/** How it ended. */
async function endOf(child: ChildProcess, output: Output): Promise<[number | null, NodeJS.Signals | null]> {
  try {
    return (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  } catch (error) {
    output.error(failureOf(error), null);
    return [UNSTARTED, null];
  }
}

function documentOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
