/**
 * The composition root: the only reader of argv and the environment, the only setter of the exit code. Everything else
 * takes what it needs as an argument.
 */
import { readFileSync } from 'node:fs';
import type { Invocation } from './cli.js';
import { parseArguments } from './cli.js';
import type { Context } from './context.js';
import type { ExitCode, Failure, SignalName } from './outcome.js';
import { describe, exitCodeOf, Failed, failureOf } from './outcome.js';
import { Output } from './output.js';
import { SCHEMA_VERSION } from './records.js';
import { redactor } from './redact.js';
import type { Loaded } from './settings/load.js';
import { loadSettings } from './settings/load.js';
import { systemClock } from './system/clock.js';
import { hostName, identity } from './system/processes.js';

const SIGNALS: readonly SignalName[] = ['SIGHUP', 'SIGINT', 'SIGTERM'];

/** Aborts with the failure as its reason when the first signal comes; later ones change nothing. */
function listenForSignals(): AbortSignal {
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

async function main(argv: readonly string[]): Promise<ExitCode> {
  // Whatever we or our children create is ours alone.
  process.umask(0o077);
  const signal = listenForSignals();
  const tool = toolName();
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
    const output = new Output(process.stdout, process.stderr, { json: beforeDashes.includes('--json'), quiet: false, verbose: false, color: useColor(true) });
    return end(output, argv[0] ?? null, failureOf(error));
  }

  const output = new Output(process.stdout, process.stderr, { ...invocation, color: useColor(invocation.color) });
  const who = identity();
  const loaded = await loadSettings({ ...invocation, env: process.env, cwd: process.cwd(), uid: who.uid });
  output.useRedactor(redactor(loaded.secrets));
  const ctx: Context = {
    clock: systemClock,
    signal,
    output,
    identity: who,
    host: hostName(),
    tool,
    invocation: [process.argv[1] ?? 'dbbackup', ...argv],
    childEnv: withoutSettings(process.env),
  };
  process.on('uncaughtException', (error) => {
    end(output, invocation.command, failureOf(error));
    // biome-ignore lint/nursery/noJsRestrictedProperties: after an uncaught error nothing can be relied on any more, and 70 must be said
    process.exit(70);
  });
  try {
    return await dispatch(ctx, invocation, loaded);
  } catch (error) {
    return end(output, invocation.command, failureOf(error));
  }
}

async function dispatch(ctx: Context, invocation: Invocation, loaded: Loaded): Promise<ExitCode> {
  const { command, dryRun } = invocation;
  const { config } = loaded;
  if (loaded.announcement !== null) ctx.output.info(loaded.announcement);
  if (!config) {
    const { reportSettings } = await import('./commands/settings-failure.js');
    return await reportSettings(ctx, command, loaded, dryRun);
  }
  switch (command) {
    case 'run':
      return await (await import('./commands/run.js')).run(ctx, config, { dryRun });
    case 'prune':
      return await (await import('./commands/prune.js')).prune(ctx, config, { dryRun });
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
function end(output: Output, command: string | null, failure: Failure): ExitCode {
  const exitCode = exitCodeOf(failure, false);
  output.error(failure, null);
  output.document({ schemaVersion: SCHEMA_VERSION, command, exitCode, error: { code: failure.code, stage: null, ...describe(failure) } });
  return exitCode;
}

const useColor = (wanted: boolean): boolean => wanted && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb';

process.exitCode = await main(process.argv.slice(2));
