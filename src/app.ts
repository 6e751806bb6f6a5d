/** From the command line to a command: what `main.ts` starts, with all that it has read of the outside world. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Invocation } from './cli.js';
import { COMMANDS, parseArguments } from './cli.js';
import type { Context } from './context.js';
import type { ExitCode, Failure } from './outcome.js';
import { describe, exitCodeOf, Failed, failureOf, warning } from './outcome.js';
import { Output } from './output.js';
import { ROOT } from './own-files.js';
import { SCHEMA_VERSION } from './records.js';
import { redactor } from './redact.js';
import type { Loaded } from './settings/load.js';
import { loadSettings } from './settings/load.js';
import { OPTION_NAMES, spec, variableOf } from './settings/options.js';
import { systemClock } from './system/clock.js';
import { hostName, identity } from './system/processes.js';
import type { EndSignal } from './system/signals.js';

/** The process as it was started. */
export interface Started extends Pick<Context, 'childEnv' | 'umask' | 'earlyWorker'> {
  /** The words after the program's name. */
  readonly argv: readonly string[];
  /** The file that was called. */
  readonly script: string;
  readonly env: NodeJS.ProcessEnv;
  /** stderr is the journal. */
  readonly journal: boolean;
  /** Aborts with the name of a signal. */
  readonly signals: AbortSignal;
  /** Ends the process at once. */
  readonly leave: (code: ExitCode) => void;
}

/** Aborts with the failure that a signal is. */
function interruption(signals: AbortSignal): AbortController {
  const controller = new AbortController();
  const told = (): void => controller.abort(new Failed({ code: 'INTERRUPTED', signal: signals.reason as EndSignal, published: null }));
  if (signals.aborted) told();
  signals.addEventListener('abort', told);
  return controller;
}

/** Commands without a record of their own. */
const LOOKING: readonly string[] = ['list', 'history', 'status', 'check', 'schedule'];
/** A run that has met a bug of ours gets so long for its record, milliseconds. */
const LAST_WORDS_MS = 10_000;

function toolName(): string {
  const pkg: unknown = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  return typeof pkg === 'object' && pkg !== null && 'version' in pkg ? `dbbackup ${String(pkg.version)}` : 'dbbackup';
}

/** To whom mail goes is refused where it is not said how, and that is a secret. */
const isRouteSecret = (env: NodeJS.ProcessEnv): boolean => Boolean(env['DBBACKUP_SMTP_URL'] || env['CREDENTIALS_DIRECTORY']);

/** The command line without what only works with that secret. */
function wordsToSay(argv: readonly string[], env: NodeJS.ProcessEnv): readonly string[] {
  if (!isRouteSecret(env)) return argv;
  const end = argv.includes('--') ? argv.indexOf('--') : argv.length;
  const isFlag = (word: string | undefined): boolean => /^--mail-(to|to-critical|from)$/.test(word ?? '');
  return argv.filter((word, i) => i >= end || !(isFlag(word) || isFlag(argv[i - 1]) || /^--mail-(to|to-critical|from)=/.test(word)));
}

/** `env NAME=VALUE ...`, or nothing: the settings of the environment that may be said, and for a profile where it is looked for. */
function settingsIn(env: NodeJS.ProcessEnv, isProfile: boolean): string[] {
  const secret = new Set(OPTION_NAMES.filter((option) => spec(option).secret).map(variableOf));
  const maySay = (name: string): boolean => !secret.has(name) && !(isRouteSecret(env) && /^DBBACKUP_MAIL_(TO|TO_CRITICAL|FROM)$/.test(name));
  const said = Object.entries(env).filter(([name]) => (name.startsWith('DBBACKUP_') && maySay(name)) || (isProfile && name === 'XDG_CONFIG_HOME'));
  return said.length === 0 ? [] : ['env', ...said.map(([name, value]) => `${name}=${value ?? ''}`)];
}

/** Does what the command line asks for and returns the exit code. */
export async function app(started: Started): Promise<ExitCode> {
  const { argv, env, journal } = started;
  const interrupted = interruption(started.signals);
  const { signal } = interrupted;
  const useColor = (wanted: boolean): boolean => wanted && !env['NO_COLOR'] && env['TERM'] !== 'dumb';
  const tool = toolName();
  const meant = argv.find((word) => Object.hasOwn(COMMANDS, word));
  const beforeDashes = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv;
  // For what is said before the command line is understood.
  const early = { json: beforeDashes.includes('--json'), quiet: false, verbose: false, color: useColor(true), journal };
  let invocation: Invocation;
  try {
    const parsed = parseArguments(argv, tool.replace('dbbackup ', ''));
    if ('words' in parsed) {
      const output = new Output(process.stdout, process.stderr, early);
      output.document({ schemaVersion: SCHEMA_VERSION, command: meant ?? null, exitCode: 0, text: parsed.words });
      output.data(parsed.words.replace(/\n$/, '').split('\n'));
      return 0;
    }
    invocation = parsed;
  } catch (error) {
    return await end(new Output(process.stdout, process.stderr, early), meant ?? null, failureOf(error));
  }

  const output = new Output(process.stdout, process.stderr, { ...invocation, color: useColor(invocation.color), journal });
  if (invocation.allProfiles) {
    const { runAllProfiles } = await import('./all-profiles.js');
    try {
      return await runAllProfiles({ command: invocation.command, argv, script: started.script, env, output, signal });
    } catch (error) {
      return await end(output, invocation.command, failureOf(error));
    }
  }
  const who = identity();
  let loaded: Loaded;
  try {
    loaded = await loadSettings({ ...invocation, env, cwd: process.cwd(), uid: who.uid });
  } catch (error) {
    // The working directory may have been removed.
    return await end(output, invocation.command, failureOf(error));
  }
  output.useRedactor(redactor(loaded.secrets));
  const ctx: Context = {
    clock: systemClock,
    signal,
    output,
    identity: who,
    host: hostName(),
    tool,
    cwd: process.cwd(),
    umask: started.umask,
    invocation: [started.script, ...argv],
    again: [...settingsIn(env, invocation.profile !== null), started.script, ...wordsToSay(argv, env)],
    childEnv: started.childEnv,
    earlyWorker: started.earlyWorker,
  };
  const isActing = !LOOKING.includes(invocation.command);
  process.on('uncaughtException', (error) => {
    const failure = failureOf(error);
    const now = (): void => void end(output, invocation.command, failure).finally(() => started.leave(70));
    // A run that can still end as after a signal leaves its record and its message; a second such error says that it cannot.
    if (!isActing || invocation.dryRun || signal.aborted) return now();
    interrupted.abort(
      new Failed({ code: 'INTERNAL', message: failure.code === 'INTERNAL' ? failure.message : describe(failure).message, stack: error.stack ?? '' }),
    );
    setTimeout(now, LAST_WORDS_MS).unref();
  });
  try {
    const exitCode = await dispatch(ctx, invocation, loaded);
    // What only looks has no record to say it in.
    return signal.aborted && !isActing ? exitCodeOf(failureOf(signal.reason), false) : exitCode;
  } catch (error) {
    return await end(output, invocation.command, failureOf(error));
  }
}

async function dispatch(ctx: Context, invocation: Invocation, loaded: Loaded): Promise<ExitCode> {
  const { command, dryRun } = invocation;
  const { config } = loaded;
  // It looks at all profiles, one that does not parse included, and has no settings of its own.
  if (command === 'schedule') return await (await import('./commands/schedule.js')).schedule(ctx, invocation);
  if (loaded.announcement !== null) ctx.output.info(loaded.announcement);
  for (const { message, origin } of loaded.remarks) ctx.output.warning(warning('SETTINGS', `${message} (${origin}): it is left out here`));
  if (!config) {
    const { reportSettings } = await import('./commands/settings-failure.js');
    return await reportSettings(ctx, command, loaded, dryRun);
  }
  if (invocation.from !== null && !config.from) {
    const { withRemote } = await import('./remote.js');
    return await withRemote(ctx, config, invocation, (there) => dispatch(ctx, invocation, { ...loaded, config: there, announcement: null, remarks: [] }));
  }
  switch (command) {
    case 'run':
      return await (await import('./commands/run.js')).run(ctx, config, { dryRun });
    case 'prune':
      return await (await import('./commands/prune.js')).prune(ctx, config, { dryRun });
    case 'verify':
      return await (await import('./commands/verify.js')).verify(ctx, config, invocation.verify, { dryRun });
    case 'restore':
      return await (await import('./commands/restore.js')).restore(ctx, config, invocation.restore, { dryRun });
    case 'guard':
      return await (await import('./commands/guard.js')).guard(ctx, config, invocation.guard, { dryRun });
    case 'list':
      return (await import('./commands/list.js')).list(ctx, config);
    case 'history':
      return (await import('./commands/history.js')).history(ctx, config, { limit: invocation.limit });
    case 'status':
      return await (await import('./commands/status.js')).status(ctx, config, { notify: invocation.notify });
    case 'check':
      return await (await import('./commands/check.js')).check(ctx, config, loaded.shown, { sendTest: invocation.sendTest });
  }
}

/** A failure before a command could begin. */
async function end(output: Output, command: string | null, failure: Failure): Promise<ExitCode> {
  const exitCode = exitCodeOf(failure, false);
  output.error(failure, null);
  output.document({ schemaVersion: SCHEMA_VERSION, command, exitCode, error: { code: failure.code, stage: null, ...describe(failure) } });
  return exitCode;
}
