/**
 * The command line as commander sees it, built from the table of settings. It parses and nothing else: what comes out is
 * an `Invocation`, or words to print and an exit code.
 */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { EXIT_CODES, Failed } from './outcome.js';
import type { CommandName } from './records.js';
import type { Group, OptionName } from './settings/options.js';
import { OPTION_NAMES, spec, variableOf } from './settings/options.js';

export interface Invocation {
  readonly command: CommandName;
  readonly flags: ReadonlyMap<OptionName, readonly string[]>;
  readonly profile: string | null;
  readonly envFile: string | null;
  readonly json: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
  readonly color: boolean;
  readonly dryRun: boolean;
  readonly notify: boolean;
  readonly sendTest: boolean;
  readonly limit: number | null;
}

/** Help or version, asked for: printed on stdout, exit 0. */
export interface Words {
  readonly words: string;
}

interface Verb {
  readonly summary: string;
  readonly positional: boolean;
  readonly dryRun: boolean;
}

export const COMMANDS: Record<CommandName, Verb> = {
  run: { summary: 'snapshot, verify, publish and prune: leave a dated, proven copy', positional: true, dryRun: true },
  list: { summary: 'the copies there are, newest first', positional: false, dryRun: false },
  status: { summary: 'is there a fresh, good copy? exit 0 or 1; for monitors', positional: false, dryRun: false },
  history: { summary: 'runs, newest first, also failed, interrupted and dry ones', positional: false, dryRun: false },
  check: { summary: 'look at everything a run needs: settings with their origin, source, directory, space, mail', positional: true, dryRun: false },
  prune: { summary: 'apply the retention policy now', positional: false, dryRun: true },
};

const GROUP_TITLES: Record<Group, string> = {
  source: 'Source:',
  directory: 'Directory:',
  retention: 'Retention:',
  run: 'Run:',
  telling: 'Telling:',
  log: 'Log:',
};

/** @throws Failed with USAGE */
export function parseArguments(argv: readonly string[], version: string): Invocation | Words {
  let invocation: Invocation | null = null;
  let words = '';
  const program = build(argv, version, (made) => {
    invocation = made;
  });
  const output = {
    writeOut: (text: string): void => {
      words += text;
    },
    writeErr: () => undefined,
  };
  for (const command of [program, ...program.commands]) command.exitOverride().configureOutput(output);
  try {
    program.parse(argv, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { words };
    const message =
      error.code === 'commander.help'
        ? 'no command was given'
        : error.message
            .replace(/^error: /, '')
            .replaceAll('\n', ' ')
            .replace(/\.$/, '');
    throw new Failed({ code: 'USAGE', message, hint: 'dbbackup --help shows the commands, dbbackup COMMAND --help their options' });
  }
  if (!invocation) throw new Failed({ code: 'USAGE', message: 'no command was given', hint: 'dbbackup --help shows the commands' });
  return invocation;
}

function build(argv: readonly string[], version: string, made: (invocation: Invocation) => void): Command {
  const program = new Command('dbbackup')
    .description('Leaves dated, proven copies of a live SQLite database; started by cron or a systemd timer.')
    .version(`dbbackup ${version}`, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand(false)
    .configureHelp({ showGlobalOptions: true })
    .option('--json', 'one JSON document on stdout')
    .option('-q, --quiet', 'say nothing unless something is wrong')
    .option('-v, --verbose', 'say more')
    .option('--no-color', 'no colour (as with NO_COLOR)')
    .option('--env-file <file>', 'settings from this file')
    .option('-P, --profile <name>', 'settings from NAME.env in the profile directories')
    .addHelpText('after', () => `\n${exitCodeHelp()}`);
  for (const [name, verb] of Object.entries(COMMANDS) as [CommandName, Verb][]) {
    const command = program.command(name).description(verb.summary).helpOption('-h, --help', 'print this help');
    command.configureHelp({ showGlobalOptions: true });
    if (verb.positional) command.argument('[database]', 'the SQLite database (the setting database)');
    if (verb.dryRun) command.option('-n, --dry-run', 'decide everything, change nothing');
    if (name === 'status') command.option('--notify', 'tell people what nobody was told yet');
    if (name === 'check') command.option('--send-test', 'send a test message');
    if (name === 'history') command.addOption(new Option('--limit <n>', 'how many (default: 20 on a terminal, else all)').argParser(positive));
    // Only the command that is meant needs its options; building them all costs a tenth of a small run.
    if (argv.includes(name)) for (const option of OPTION_NAMES) addSetting(command, name, option);
    command.addHelpText('after', secretHelp(name));
    command.action((...args: unknown[]) => made(toInvocation(name, verb.positional ? args[0] : undefined, command)));
  }
  return program;
}

function positive(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('must be a whole number above 0');
  return Number(text);
}

function addSetting(command: Command, name: CommandName, option: OptionName): void {
  const s = spec(option);
  if (s.secret || !s.commands.includes(name)) return;
  const flag = new Option(`--${option}${s.value === '' ? '' : ` <${s.value}>`}`, s.fallback ? `${s.summary} Default: ${s.fallback}.` : s.summary);
  flag.helpGroup(GROUP_TITLES[s.group]);
  if (s.value === '') flag.argParser(undefined as never);
  else flag.argParser((value: string, earlier: string[] | undefined) => [...(earlier ?? []), value]);
  command.addOption(flag);
}

function secretHelp(name: CommandName): string {
  const secrets = OPTION_NAMES.filter((o) => spec(o).secret && spec(o).commands.includes(name));
  if (secrets.length === 0) return '';
  const lines = secrets.map((o) => `  ${variableOf(o)}, or ${variableOf(o)}_FILE: ${spec(o).summary}`);
  return `\nSecrets have no flag:\n${lines.join('\n')}`;
}

const exitCodeHelp = (): string => `Exit codes:\n${EXIT_CODES.map(([code, meaning]) => `  ${String(code).padEnd(4)}${meaning}`).join('\n')}`;

/** Commander's loosely typed results, read once and checked here. */
function toInvocation(command: CommandName, database: unknown, from: Command): Invocation {
  const values: Record<string, unknown> = from.optsWithGlobals();
  const text = (key: string): string | null => (typeof values[key] === 'string' ? values[key] : null);
  const flags = new Map<OptionName, readonly string[]>();
  for (const option of OPTION_NAMES) {
    const value = values[option.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())];
    if (value === true) flags.set(option, ['true']);
    else if (Array.isArray(value)) flags.set(option, value.map(String));
  }
  for (const [option, given] of flags) {
    if (given.length > 1 && !spec(option).list) throw usage(`--${option} is given ${given.length} times`);
  }
  if (typeof database === 'string') {
    if (flags.has('database')) throw usage('the database is given twice: as an argument and as --database');
    flags.set('database', [database]);
  }
  return {
    command,
    flags,
    profile: text('profile'),
    envFile: text('envFile'),
    json: values['json'] === true,
    quiet: values['quiet'] === true,
    verbose: values['verbose'] === true,
    color: values['color'] !== false,
    dryRun: values['dryRun'] === true,
    notify: values['notify'] === true,
    sendTest: values['sendTest'] === true,
    limit: typeof values['limit'] === 'number' ? values['limit'] : null,
  };
}

const usage = (message: string): Failed => new Failed({ code: 'USAGE', message, hint: 'give it once' });
