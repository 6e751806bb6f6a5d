/**
 * The composition root: the only reader of argv and the environment, the only setter of the exit code. Everything else
 * takes what it needs as an argument.
 */
import { readFileSync } from 'node:fs';
import type { Invocation } from './cli.js';
import type { Context } from './context.js';
import type { ExitCode, Failure, SignalName } from './outcome.js';
import type { Output } from './output.js';
import type { Loaded } from './settings/load.js';
import { isJournal } from './system/journal.js';
import { Worker } from './system/workers.js';

const SIGNALS: readonly SignalName[] = ['SIGHUP', 'SIGINT', 'SIGTERM'];

/** Aborts with the failure as its reason when the first signal comes; later ones change nothing. */
async function listenForSignals(): Promise<AbortSignal> {
  const { Failed } = await import('./outcome.js');
  const controller = new AbortController();
  for (const signal of SIGNALS) {
    process.on(signal, () => controller.abort(new Failed({ code: 'INTERRUPTED', signal, published: null })));
  }
  return controller.signal;
}

/** The environment without what is ours: settings, secrets, and credentials meant for other parts. */
function withoutSettings(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const ours = /^(DBBACKUP_|AWS_|RCLONE_)|^CREDENTIALS_DIRECTORY$/;
  return Object.fromEntries(Object.entries(env).filter(([key]) => !ours.test(key)));
}

function toolName(): string {
  const pkg: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return typeof pkg === 'object' && pkg !== null && 'version' in pkg ? `dbbackup ${String(pkg.version)}` : 'dbbackup';
}

/**
 * A run needs a SQLite child, whose start takes as long as loading everything here: started first, it costs nothing. It
 * opens nothing before it is asked to.
 */
function startEarly(argv: readonly string[]): Worker | null {
  if (
    argv.includes('--all-profiles') ||
    argv.find((word) => !word.startsWith('-')) !== 'run' ||
    argv.some((a) => ['-h', '--help', '-n', '--dry-run'].includes(a))
  )
    return null;
  try {
    return new Worker(withoutSettings(process.env));
  } catch {
    // The run meets the same reason and tells it.
    return null;
  }
}

async function main(argv: readonly string[], earlyWorker: Worker | null): Promise<ExitCode> {
  const signal = await listenForSignals();
  const [{ COMMANDS, parseArguments }, { Output: OutputClass }, { exitCodeOf, failureOf }] = await Promise.all([
    import('./cli.js'),
    import('./output.js'),
    import('./outcome.js'),
  ]);
  const tool = toolName();
  const meant = argv.find((word) => Object.hasOwn(COMMANDS, word));
  const beforeDashes = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv;
  let invocation: Invocation;
  try {
    const parsed = parseArguments(argv, tool.replace('dbbackup ', ''));
    if ('words' in parsed) {
      process.stdout.on('error', () => undefined);
      process.stdout.write(parsed.words);
      return 0;
    }
    invocation = parsed;
  } catch (error) {
    const output = new OutputClass(process.stdout, process.stderr, {
      json: beforeDashes.includes('--json'),
      quiet: false,
      verbose: false,
      color: useColor(true),
      journal,
    });
    return await end(output, meant ?? null, failureOf(error));
  }

  const [{ redactor }, { loadSettings }, { systemClock }, { hostName, identity }] = await Promise.all([
    import('./redact.js'),
    import('./settings/load.js'),
    import('./system/clock.js'),
    import('./system/processes.js'),
  ]);
  const output = new OutputClass(process.stdout, process.stderr, { ...invocation, color: useColor(invocation.color), journal });
  if (invocation.allProfiles) {
    const { runAllProfiles } = await import('./all-profiles.js');
    try {
      return await runAllProfiles({ command: invocation.command, argv, script: process.argv[1] ?? '', env: process.env, output, signal });
    } catch (error) {
      return await end(output, invocation.command, failureOf(error));
    }
  }
  const who = identity();
  let loaded: Loaded;
  try {
    loaded = await loadSettings({ ...invocation, env: process.env, cwd: process.cwd(), uid: who.uid });
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
    umask,
    invocation: [process.argv[1] ?? 'dbbackup', ...argv],
    childEnv: withoutSettings(process.env),
    earlyWorker,
  };
  process.on('uncaughtException', (error) => {
    void end(output, invocation.command, failureOf(error)).finally(() => {
      // biome-ignore lint/nursery/noJsRestrictedProperties: after an uncaught error nothing can be relied on any more, and 70 must be said
      process.exit(70);
    });
  });
  try {
    const exitCode = await dispatch(ctx, invocation, loaded);
    // What only looks has no record to say it in.
    const acting = !['list', 'history', 'status', 'check', 'schedule'].includes(invocation.command);
    return signal.aborted && !acting ? exitCodeOf(failureOf(signal.reason), false) : exitCode;
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
  if (!config) {
    const { reportSettings } = await import('./commands/settings-failure.js');
    return await reportSettings(ctx, command, loaded, dryRun);
  }
  if (invocation.from !== null && !config.from) {
    const { withRemote } = await import('./remote.js');
    return await withRemote(ctx, config, invocation, (there) => dispatch(ctx, invocation, { ...loaded, config: there, announcement: null }));
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
  const [{ describe, exitCodeOf }, { SCHEMA_VERSION }] = await Promise.all([import('./outcome.js'), import('./records.js')]);
  const exitCode = exitCodeOf(failure, false);
  output.error(failure, null);
  output.document({ schemaVersion: SCHEMA_VERSION, command, exitCode, error: { code: failure.code, stage: null, ...describe(failure) } });
  return exitCode;
}

const useColor = (wanted: boolean): boolean => wanted && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb';

// Whatever we or our children create is ours alone.
const umask = process.umask(0o077);
const argv = process.argv.slice(2);
const journal = isJournal(process.env['JOURNAL_STREAM'], 2);
const earlyWorker = startEarly(argv);
process.exitCode = await main(argv, earlyWorker);
await earlyWorker?.kill();
