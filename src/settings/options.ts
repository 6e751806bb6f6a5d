/**
 * The table of settings: each is stated once, here. Flags, environment variables, --help, README's reference and
 * validation come from it. A flag `--keep-last` is always `DBBACKUP_KEEP_LAST`.
 */
import { destination } from '../destinations/url.js';
import type { CommandName } from '../records.js';
import {
  address,
  boolean,
  choice,
  count,
  duration,
  hookUrl,
  identityFile,
  mailRoute,
  metricsFile,
  name,
  notifyRule,
  path,
  placeToMake,
  positiveDuration,
  recipient,
  times,
  words,
} from './values.js';

export type Group = 'source' | 'directory' | 'retention' | 'run' | 'packing' | 'off-site' | 'telling' | 'log' | 'hooks';

export interface OptionSpec {
  readonly group: Group;
  /** What stands for the value in --help; empty for a switch. */
  readonly value: string;
  /** The default as the operator would write it, which is parsed like a value; or a phrase in parentheses; absent: none. */
  readonly fallback?: string;
  /** Secrets have no flag, may be given as a file, and are never shown. */
  readonly secret?: true;
  /** Commas in the environment, repeated flags. */
  readonly list?: true;
  readonly commands: readonly CommandName[];
  /** One sentence. */
  readonly summary: string;
  /** Throws an Error that says what was expected. `base`: the directory relative paths count from. */
  readonly parse: (raw: string, base: string) => unknown;
}

const ALL: readonly CommandName[] = ['run', 'list', 'verify', 'restore', 'guard', 'status', 'history', 'check', 'prune'];
const MAKING: readonly CommandName[] = ['run', 'restore', 'guard', 'check'];
const KEEPING: readonly CommandName[] = ['run', 'check', 'prune'];
/** `check` takes what `run` takes: it is tried with the same flags. */
const RUNNING: readonly CommandName[] = ['run', 'check'];
const LIMITED: readonly CommandName[] = ['run', 'verify', 'restore', 'guard', 'check', 'prune'];
const TELLING: readonly CommandName[] = ['run', 'verify', 'restore', 'guard', 'status', 'check', 'prune'];

export const OPTIONS = {
  database: {
    group: 'source',
    value: 'FILE',
    commands: ['run', 'verify', 'restore', 'guard', 'status', 'check', 'prune'],
    summary: 'The live SQLite database.',
    parse: path,
  },
  name: {
    group: 'source',
    value: 'NAME',
    fallback: "(the profile's name, else the database's base name)",
    commands: ALL,
    summary: 'What the copies of this database are called.',
    parse: name,
  },
  'source-check': {
    group: 'source',
    value: 'quick|full',
    fallback: 'quick',
    commands: ['run', 'guard', 'check'],
    summary: "How the source itself is checked beside the snapshot: SQLite's quick_check or integrity_check.",
    parse: choice('quick', 'full'),
  },
  to: {
    group: 'directory',
    value: 'DIR',
    commands: ALL,
    summary: 'The backup directory; required, made (0700) when it is missing.',
    parse: placeToMake,
  },
  'state-dir': {
    group: 'directory',
    value: 'DIR',
    fallback: '(TO/.dbbackup)',
    commands: ALL,
    summary: 'Lock, history and outbox; must be local when the backup directory is on a network file system.',
    parse: placeToMake,
  },
  'accept-moved': {
    group: 'directory',
    value: '',
    commands: RUNNING,
    summary: 'Accept once that the database of this name has moved to another path.',
    parse: boolean,
  },
  'keep-last': {
    group: 'retention',
    value: 'N|all',
    fallback: '(7, and keep-daily 30, while no keep-* is given)',
    commands: KEEPING,
    summary: 'Keep the newest N copies; `all` never prunes.',
    parse: count,
  },
  'keep-within': {
    group: 'retention',
    value: 'DURATION',
    commands: KEEPING,
    summary: 'Keep every copy made within this time before the newest one.',
    parse: positiveDuration,
  },
  'keep-daily': {
    group: 'retention',
    value: 'N|all',
    commands: KEEPING,
    summary: 'Keep the newest copy of each of the last N days (UTC) that have one.',
    parse: count,
  },
  'keep-weekly': {
    group: 'retention',
    value: 'N|all',
    commands: KEEPING,
    summary: 'Keep the newest copy of each of the last N ISO weeks that have one.',
    parse: count,
  },
  'keep-monthly': {
    group: 'retention',
    value: 'N|all',
    commands: KEEPING,
    summary: 'Keep the newest copy of each of the last N months that have one.',
    parse: count,
  },
  'keep-yearly': {
    group: 'retention',
    value: 'N|all',
    commands: KEEPING,
    summary: 'Keep the newest copy of each of the last N years that have one.',
    parse: count,
  },
  'lock-wait': {
    group: 'run',
    value: 'DURATION',
    fallback: '0s',
    commands: LIMITED,
    summary: 'How long to wait for another run of the same name.',
    parse: duration,
  },
  timeout: {
    group: 'run',
    value: 'DURATION',
    fallback: '2h',
    commands: LIMITED,
    summary: 'End a run that takes longer.',
    parse: positiveDuration,
  },
  'max-age': {
    group: 'run',
    value: 'DURATION',
    fallback: '26h',
    commands: ['run', 'status', 'check'],
    summary: 'How old the newest good copy may be before `status` calls it stale, and the newest one at a destination before a run calls that critical.',
    parse: positiveDuration,
  },
  'if-older-than': {
    group: 'run',
    value: 'DURATION',
    commands: RUNNING,
    summary: 'Do nothing when the newest good copy is younger.',
    parse: positiveDuration,
  },
  retries: {
    group: 'run',
    value: 'N',
    fallback: '0',
    commands: RUNNING,
    summary:
      'How often a run tries again after what may be gone the next time: a source that is held, a read error, a destination or a server that does not answer.',
    parse: times,
  },
  'retry-wait': {
    group: 'run',
    value: 'DURATION',
    fallback: '30s',
    commands: RUNNING,
    summary: 'How long to wait before the first retry.',
    parse: duration,
  },
  'retry-backoff': {
    group: 'run',
    value: 'fixed|linear|exponential',
    fallback: 'fixed',
    commands: RUNNING,
    summary: 'How that wait grows, up to 5 minutes.',
    parse: choice('fixed', 'linear', 'exponential'),
  },
  compress: {
    group: 'packing',
    value: 'none|gzip|zstd',
    fallback: 'none',
    commands: MAKING,
    summary: 'How copies are compressed; zstd needs the program of that name, or Node 22.15.',
    parse: choice('none', 'gzip', 'zstd'),
  },
  'encrypt-to': {
    group: 'packing',
    value: 'age1...|FILE',
    list: true,
    commands: MAKING,
    summary: 'Whose age public keys copies are sealed for: the machine that makes them cannot read them again.',
    parse: recipient,
  },
  'identity-file': {
    group: 'packing',
    value: 'FILE',
    commands: ['run', 'verify', 'restore', 'guard', 'check'],
    summary: 'The age secret keys that open sealed copies: for `verify` and `restore`.',
    parse: identityFile,
  },
  include: {
    group: 'packing',
    value: 'PATH',
    list: true,
    commands: RUNNING,
    summary: 'Files or directories that belong to the database, archived with every copy.',
    parse: path,
  },
  upload: {
    group: 'off-site',
    value: 'URL',
    list: true,
    commands: RUNNING,
    summary: 'Where copies go besides: s3://BUCKET/PREFIX?endpoint=URL&region=R&storage-class=C, rclone:REMOTE:PATH, file:///DIRECTORY.',
    parse: destination,
  },
  'upload-prune': {
    group: 'off-site',
    value: '',
    commands: RUNNING,
    summary: 'Remove old copies of this name at the destinations too, by the same rules.',
    parse: boolean,
  },
  'upload-timeout': {
    group: 'off-site',
    value: 'DURATION',
    fallback: '6h',
    commands: RUNNING,
    summary: 'How long uploading to each destination may take; the next run uploads what is missing then.',
    parse: positiveDuration,
  },
  'warn-after': {
    group: 'telling',
    value: 'DURATION',
    commands: RUNNING,
    summary: 'Warn when a run takes longer.',
    parse: positiveDuration,
  },
  'mail-to': {
    group: 'telling',
    value: 'ADDRESS',
    list: true,
    commands: TELLING,
    summary: 'Who is told.',
    parse: address,
  },
  'mail-to-critical': {
    group: 'telling',
    value: 'ADDRESS',
    list: true,
    commands: TELLING,
    summary: 'Who is told of failures and critical warnings, whatever notify-on says, and of nothing else.',
    parse: address,
  },
  'mail-from': {
    group: 'telling',
    value: 'ADDRESS',
    fallback: '(the first mail-to)',
    commands: TELLING,
    summary: 'Who the mail says it is from.',
    parse: address,
  },
  'smtp-url': {
    group: 'telling',
    value: 'URL',
    secret: true,
    commands: TELLING,
    summary: 'How mail leaves: smtp://USER:PASSWORD@HOST:587, smtps://..., or sendmail: for the local MTA.',
    parse: mailRoute,
  },
  'slack-webhook': {
    group: 'telling',
    value: 'URL',
    secret: true,
    commands: TELLING,
    summary: 'An incoming webhook of Slack (or of a server that takes the same) that is told.',
    parse: hookUrl,
  },
  webhook: {
    group: 'telling',
    value: 'URL',
    secret: true,
    commands: TELLING,
    summary: 'An address that is told with one JSON document for each message.',
    parse: hookUrl,
  },
  'ping-url': {
    group: 'telling',
    value: 'URL',
    secret: true,
    commands: RUNNING,
    summary: 'A check of healthchecks.io (or of a server that takes the same), which tells when a run did not take place.',
    parse: hookUrl,
  },
  'notify-on': {
    group: 'telling',
    value: 'EVENT',
    list: true,
    fallback: 'failure,recovery',
    commands: TELLING,
    summary: 'Which events are told: failure, recovery, warning, success; CHANNEL:EVENT (mail, slack, webhook) gives one channel a list of its own.',
    parse: notifyRule,
  },
  'metrics-file': {
    group: 'telling',
    value: 'FILE',
    commands: TELLING,
    summary: "Where metrics are written for node_exporter's textfile collector (*.prom); by `status` with --notify alone.",
    parse: metricsFile,
  },
  'log-dir': {
    group: 'log',
    value: 'DIR',
    fallback: '(STATE-DIR/log)',
    commands: TELLING,
    summary: 'Where the JSON logs are written, a file a day (UTC).',
    parse: placeToMake,
  },
  'log-keep': {
    group: 'log',
    value: 'DURATION',
    fallback: '30d',
    commands: TELLING,
    summary: 'How long log files are kept.',
    parse: positiveDuration,
  },
  before: {
    group: 'hooks',
    value: 'COMMAND',
    commands: RUNNING,
    summary: 'Words, no shell: run before the snapshot; if it fails, the run ends.',
    parse: words,
  },
  after: {
    group: 'hooks',
    value: 'COMMAND',
    commands: RUNNING,
    summary: 'Run when a copy was made, with the record as JSON on standard input.',
    parse: words,
  },
  'on-failure': {
    group: 'hooks',
    value: 'COMMAND',
    commands: RUNNING,
    summary: 'Run when a run failed or is incomplete, with the record as JSON on standard input.',
    parse: words,
  },
} as const satisfies Record<string, OptionSpec>;

export type OptionName = keyof typeof OPTIONS;
type Spec<K extends OptionName> = (typeof OPTIONS)[K];
type One<K extends OptionName> = ReturnType<Spec<K>['parse']>;

/** What each setting parses to; undefined where nobody gave it and it has no plain default. */
export type Parsed = {
  [K in OptionName]?: Spec<K> extends { readonly list: true } ? readonly One<K>[] : One<K>;
};

export const OPTION_NAMES = Object.keys(OPTIONS) as OptionName[];

/** The same table, widened, for code that walks over all settings. */
export const spec = (option: OptionName): OptionSpec => OPTIONS[option];

export const variableOf = (option: string): string => `DBBACKUP_${option.toUpperCase().replaceAll('-', '_')}`;

/**
 * What belongs to one database alone. In one metrics file the last profile would replace what the others wrote, and of one
 * dead man's switch a profile that is well would hide another one that is not.
 */
export const NOT_SHARED: readonly OptionName[] = ['database', 'name', 'accept-moved', 'metrics-file', 'ping-url'];
