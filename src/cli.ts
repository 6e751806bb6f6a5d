/**
 * The command line as commander sees it, built from the table of settings. It parses and nothing else: what comes out is
 * an `Invocation`, or words to print.
 */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { EXIT_CODES, Failed } from './outcome.js';
import type { CommandName } from './records.js';
import type { Calendar } from './schedule.js';
import { calendar } from './schedule.js';
import type { Group, OptionName } from './settings/options.js';
import { NOT_SHARED, OPTION_NAMES, spec, variableOf } from './settings/options.js';
import { duration, positiveDuration, size } from './settings/values.js';

export interface Invocation {
  readonly command: CommandName;
  readonly flags: ReadonlyMap<OptionName, readonly string[]>;
  readonly profile: string | null;
  readonly allProfiles: boolean;
  readonly envFile: string | null;
  readonly json: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
  readonly color: boolean;
  readonly dryRun: boolean;
  readonly notify: boolean;
  readonly sendTest: boolean;
  readonly limit: number | null;
  readonly verify: VerifyFlags;
  /** A destination instead of the backup directory. */
  readonly from: string | null;
  readonly restore: RestoreFlags;
  readonly guard: GuardFlags;
  readonly schedule: ScheduleFlags;
}

export interface ScheduleFlags {
  readonly calendar: Calendar | null;
  /** Milliseconds. */
  readonly randomizedDelayMs: number | null;
}

export interface VerifyFlags {
  /** Files or `latest`; empty: latest. */
  readonly copies: readonly string[];
  readonly all: boolean;
  /** Milliseconds. */
  readonly maxTimeMs: number | null;
}

export interface RestoreFlags {
  /** A file or `latest`; null: latest. */
  readonly copy: string | null;
  readonly output: string | null;
  readonly into: string | null;
  readonly timestamp: string | null;
  /** Where included files go. */
  readonly filesTo: string | null;
  readonly force: boolean;
  readonly yes: boolean;
}

export interface GuardFlags {
  readonly words: readonly string[];
  readonly shared: boolean;
  readonly yes: boolean;
  readonly rehearse: boolean;
  /** The environment variable that points the command to the scratch copy. */
  readonly setEnv: string | null;
  readonly checks: readonly string[];
  readonly checkFiles: readonly string[];
  /** Milliseconds. */
  readonly commandTimeoutMs: number | null;
  /** Bytes. */
  readonly memoryLimitBytes: number | null;
  readonly window: string | null;
}

/** Help or version, asked for: printed on stdout, exit 0. */
export interface Words {
  readonly words: string;
}

interface Verb {
  readonly summary: string;
  /** What stands for the words after the command in usage lines; `[database]` is the setting of that name. */
  readonly words: '' | '[database]' | '[copy...]' | '[copy]' | '[command...]';
  readonly dryRun: boolean;
}

export const COMMANDS: Record<CommandName, Verb> = {
  run: { summary: 'snapshot, verify, publish and prune: leave a dated, proven copy', words: '[database]', dryRun: true },
  list: { summary: 'the copies there are, newest first', words: '', dryRun: false },
  verify: { summary: 'prove stored copies again, from their bytes alone: the latest, the ones named, or --all', words: '[copy...]', dryRun: true },
  restore: { summary: 'bring a copy back: into a new file (-o), or into a database, also a live one (--into)', words: '[copy]', dryRun: true },
  guard: { summary: 'run a migration behind a proven backup point: keep what it did, or roll it back', words: '[command...]', dryRun: true },
  status: { summary: 'is there a fresh, good copy? exit 0 or 1; for monitors', words: '', dryRun: false },
  history: { summary: 'runs, newest first, also failed, interrupted and dry ones', words: '', dryRun: false },
  check: {
    summary: 'look at everything a run needs: settings with their origin, source, directory, space, destinations, who is told',
    words: '[database]',
    dryRun: false,
  },
  prune: { summary: 'apply the retention policy now', words: '', dryRun: true },
  schedule: { summary: 'print crontab lines and systemd units for the profiles; installs nothing', words: '', dryRun: false },
};

const GROUP_TITLES: Record<Group, string> = {
  source: 'Source:',
  directory: 'Directory:',
  retention: 'Retention:',
  run: 'Run:',
  packing: 'Packing:',
  'off-site': 'Off-site:',
  telling: 'Telling:',
  log: 'Log:',
  hooks: 'Hooks:',
};

/** `-nq` as `-n -q`: some belong to the program and some to a command, and commander finds each of them only where it stands alone. */
function takenApart(argv: readonly string[]): string[] {
  const end = argv.includes('--') ? argv.indexOf('--') : argv.length;
  return argv.flatMap((word, i) => (i < end && /^-[nqv]{2,}$/.test(word) ? [...word.slice(1)].map((letter) => `-${letter}`) : [word]));
}

/** @throws Failed with USAGE */
export function parseArguments(given: readonly string[], version: string): Invocation | Words {
  const argv = takenApart(given);
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
            .replace(/\.$/, '')
            // What was to be its value may be a secret.
            .replace(/^(unknown option '-[^=']*)=.*'/, "$1'");
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
    if (verb.words !== '') command.argument(verb.words, WORDS[verb.words]);
    if (FOR_ALL.includes(name)) command.option('--all-profiles', 'for every profile, one after the other');
    if (verb.dryRun) command.option('-n, --dry-run', 'decide everything, change nothing');
    for (const option of FLAGS[name] ?? []) command.addOption(option());
    if (name === 'status') command.option('--notify', 'tell people what nobody was told yet');
    if (name === 'check') command.option('--send-test', 'send a test message');
    if (name === 'history') command.addOption(new Option('--limit <n>', 'how many (default: 20 on a terminal, else all)').argParser(positive));
    // Only the command that is meant needs its options; building them all costs a tenth of a small run.
    if (argv.includes(name)) for (const option of OPTION_NAMES) addSetting(command, name, option);
    command.addHelpText('after', secretHelp(name));
    command.action((...args: unknown[]) => made(toInvocation(name, args[0], command)));
  }
  return program;
}

/** What can be done for every profile. */
const FOR_ALL: readonly CommandName[] = ['run', 'list', 'status', 'verify', 'history', 'check', 'prune'];

const WORDS: Record<Exclude<Verb['words'], ''>, string> = {
  '[database]': 'the SQLite database (the setting database)',
  '[copy...]': 'a file of the backup directory, or latest (the default)',
  '[copy]': 'a file of the backup directory, or latest (the default)',
  '[command...]': 'after --: the command with its arguments, run without a shell; {} is the scratch copy in a rehearsal',
};

const parsedBy =
  <T>(parse: (raw: string) => T) =>
  (text: string): T => {
    try {
      return parse(text);
    } catch (error) {
      throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
    }
  };
const again = (value: string, earlier: string[] | undefined): string[] => [...(earlier ?? []), value];

const from = (): Option => new Option('--from <url>', 'read the copies of this destination (see upload) instead of those in the backup directory');

/** Flags of one command that are no settings: they belong to one call, not to a profile. */
export const FLAGS: Partial<Record<CommandName, readonly (() => Option)[]>> = {
  list: [from],
  verify: [
    from,
    () => new Option('--all', 'all copies of the name, least recently verified first'),
    () => new Option('--max-time <duration>', 'begin no further copy after this time').argParser(parsedBy(positiveDuration)),
  ],
  restore: [
    from,
    () => new Option('-o, --output <file>', 'into a new file'),
    () => new Option('--into <database>', 'into this database: live, or offline where it is missing, damaged or of another page size'),
    () => new Option('--timestamp <time>', 'the newest good copy made at or before this time, like 2026-11-21T03:17:00Z or 2026-11-20'),
    () => new Option('--files-to <dir>', 'unpack the files that were included, into this new or empty directory'),
    () => new Option('--force', 'replace a file that is there; accept a copy of another database'),
    () => new Option('-y, --yes', 'do not ask'),
  ],
  guard: [
    () => new Option('--shared', 'let other processes have the database open meanwhile'),
    () => new Option('-y, --yes', 'roll back without asking, also with --shared, where it drops what others committed'),
    () => new Option('--rehearse', 'run the command on a scratch copy and print what it would change'),
    () => new Option('--set-env <name>', 'in a rehearsal, the path of the scratch copy goes into this environment variable'),
    () => new Option('--check <sql>', 'a SELECT that must return no rows, before and after the command').argParser(again),
    () => new Option('--check-file <file>', 'the same from a file: SELECTs, each ended by a semicolon').argParser(again),
    () => new Option('--command-timeout <duration>', 'end the command after this time, and roll back').argParser(parsedBy(positiveDuration)),
    () => new Option('--memory-limit <size>', 'end the command when its processes use more memory than this, and roll back').argParser(parsedBy(size)),
    () => new Option('--window <times>', 'begin only within these times, like "02:00-04:00 Sun,Wed Asia/Tokyo"'),
  ],
  schedule: [
    () => new Option('--calendar <time>', 'when to run, like "*-*-* 03:17", "Mon..Fri 22:30" or daily').argParser(parsedBy(calendar)),
    () => new Option('--randomized-delay <duration>', 'spread the start over this time, each machine and profile at its own').argParser(parsedBy(duration)),
  ],
};

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
function toInvocation(command: CommandName, argument: unknown, from: Command): Invocation {
  const values: Record<string, unknown> = from.optsWithGlobals();
  const text = (key: string): string | null => (typeof values[key] === 'string' ? values[key] : null);
  const number = (key: string): number | null => (typeof values[key] === 'number' ? values[key] : null);
  const texts = (key: string): string[] => (Array.isArray(values[key]) ? values[key].map(String) : []);
  const flags = new Map<OptionName, readonly string[]>();
  for (const option of OPTION_NAMES) {
    const value = values[option.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())];
    if (value === true) flags.set(option, ['true']);
    else if (Array.isArray(value)) flags.set(option, value.map(String));
  }
  for (const [option, given] of flags) {
    if (given.length > 1 && !spec(option).list) throw usage(`--${option} is given ${given.length} times`, 'give it once');
  }
  if (typeof argument === 'string' && COMMANDS[command].words === '[database]') {
    if (flags.has('database')) throw usage('the database is given twice: as an argument and as --database', 'give it once');
    flags.set('database', [argument]);
  }
  if (values['allProfiles'] === true) {
    for (const other of ['profile', 'envFile', 'from'])
      if (values[other] !== undefined) throw usage(`--all-profiles and --${other.replace('F', '-f')} exclude one another`, 'leave one of them out');
    for (const own of NOT_SHARED)
      if (flags.has(own))
        throw usage(
          `--all-profiles takes no ${own}: each profile has its own`,
          `leave ${own === 'database' ? 'the database' : `--${own}`} out, or name one profile with -P`,
        );
  }
  const words = Array.isArray(argument) ? argument.map(String) : typeof argument === 'string' ? [argument] : [];
  return {
    command,
    flags,
    profile: text('profile'),
    allProfiles: values['allProfiles'] === true,
    envFile: text('envFile'),
    json: values['json'] === true,
    quiet: values['quiet'] === true,
    verbose: values['verbose'] === true,
    color: values['color'] !== false,
    dryRun: values['dryRun'] === true,
    notify: values['notify'] === true,
    sendTest: values['sendTest'] === true,
    limit: number('limit'),
    from: text('from'),
    verify: { copies: words, all: values['all'] === true, maxTimeMs: number('maxTime') },
    restore: {
      copy: words[0] ?? null,
      output: text('output'),
      into: text('into'),
      timestamp: text('timestamp'),
      filesTo: text('filesTo'),
      force: values['force'] === true,
      yes: values['yes'] === true,
    },
    guard: {
      words,
      shared: values['shared'] === true,
      yes: values['yes'] === true,
      rehearse: values['rehearse'] === true,
      setEnv: text('setEnv'),
      checks: texts('check'),
      checkFiles: texts('checkFile'),
      commandTimeoutMs: number('commandTimeout'),
      memoryLimitBytes: number('memoryLimit'),
      window: text('window'),
    },
    schedule: { calendar: isCalendar(values['calendar']) ? values['calendar'] : null, randomizedDelayMs: number('randomizedDelay') },
  };
}

const isCalendar = (value: unknown): value is Calendar => typeof value === 'object' && value !== null && 'cron' in value && 'systemd' in value;

const usage = (message: string, hint: string): Failed => new Failed({ code: 'USAGE', message, hint });
