/**
 * From raw text to a `Config`, or to every problem at once. Precedence: flag, real environment, env file, default.
 * Nothing raw gets past this file: the stages take a `Config`.
 */
import { lstatSync } from 'node:fs';
import { dirname, isAbsolute, join } from 'node:path';
import type { DestinationUrl } from '../destinations/url.js';
import type { SettingsProblem } from '../outcome.js';
import { errnoOf, errnoWords } from '../outcome.js';
import type { Compression, Identity } from '../packing.js';
import type { RemoteCopies } from '../place.js';
import type { CommandName } from '../records.js';
import { readSmall } from '../system/files.js';
import { shutToOthers } from '../system/processes.js';
import { stateDirOf } from '../workspace.js';
import type { OptionName, Parsed } from './options.js';
import { NOT_SHARED, OPTION_NAMES, spec, variableOf } from './options.js';
import type { Channel, MailRoute, NotifyEvent } from './values.js';
import { isName, nameFromFile, PROFILE, printable, secretsOf } from './values.js';

/** What retention keeps; Infinity is `all`, null a rule nobody gave. */
export interface Policy {
  readonly last: number | null;
  readonly withinMs: number | null;
  readonly daily: number | null;
  readonly weekly: number | null;
  readonly monthly: number | null;
  readonly yearly: number | null;
}

export type { Channel, NotifyEvent } from './values.js';

/** `to` and `critical`: at least one of the two names somebody. */
export interface MailSettings {
  readonly route: MailRoute;
  readonly to: readonly string[];
  /** Who is told of failures and critical warnings alone. */
  readonly critical: readonly string[];
  readonly from: string;
  readonly on: ReadonlySet<NotifyEvent>;
}

/** An address that is posted to. The URL is a secret. */
export interface HookSettings {
  readonly url: URL;
  readonly on: ReadonlySet<NotifyEvent>;
}

/** Who is told, on which ways; null: that way is not set. */
export interface Telling {
  readonly mail: MailSettings | null;
  readonly slack: HookSettings | null;
  readonly webhook: HookSettings | null;
  /** A secret. */
  readonly ping: URL | null;
}

export interface UploadSettings {
  readonly to: readonly DestinationUrl[];
  readonly prune: boolean;
  readonly timeoutMs: number;
  /** AWS_* and RCLONE_*, of the environment and of the env file: for destinations alone. */
  readonly env: Readonly<Record<string, string>>;
}

export interface Retries {
  readonly count: number;
  readonly waitMs: number;
  readonly backoff: 'fixed' | 'linear' | 'exponential';
}

/** Settings that parsed. Paths absolute, durations milliseconds. */
export interface Config {
  readonly profile: string | null;
  readonly database: string | null;
  /** The name where it is known without looking at the directory. */
  readonly name: string | null;
  /** True when the operator said the name (or a profile); false when it was derived from the database. */
  readonly nameGiven: boolean;
  readonly sourceCheck: 'quick' | 'full';
  readonly to: string;
  readonly stateDir: string;
  readonly acceptMoved: boolean;
  readonly policy: Policy;
  readonly lockWaitMs: number;
  readonly timeoutMs: number;
  readonly maxAgeMs: number;
  readonly ifOlderThanMs: number | null;
  readonly warnAfterMs: number | null;
  readonly retries: Retries;
  /** Commands as words; null: none. */
  readonly hooks: Readonly<Record<'before' | 'after' | 'on-failure', readonly string[] | null>>;
  readonly packing: { readonly compress: Compression; readonly recipients: readonly string[] };
  /** What is archived with each copy, absolute paths. */
  readonly include: readonly string[];
  readonly upload: UploadSettings;
  /** --from: the copies are read there; null: from `to`. */
  readonly from: RemoteCopies | null;
  /** What opens sealed copies; null: not given. */
  readonly identity: Identity | null;
  readonly telling: Telling;
  /** Absolute; its directory is not made. */
  readonly metricsFile: string | null;
  readonly logDir: string;
  readonly logKeepMs: number;
}

/** A setting as `check` shows it: secrets are never in `value`. */
export interface ShownSetting {
  readonly name: string;
  readonly value: string;
  readonly origin: string;
}

export interface RawSettings {
  readonly command: CommandName;
  /** Flag values as given, by option name. */
  readonly flags: ReadonlyMap<OptionName, readonly string[]>;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly cwd: string;
  readonly uid: number;
  readonly profile: string | null;
  /** --from: then the backup directory is not needed. */
  readonly from: string | null;
  readonly envFile: string | null;
  /** `status --notify`. */
  readonly notify?: boolean;
  /** Secrets may come later, as credentials of the unit that will run: that one is missing is no problem here. */
  readonly secretsLater?: boolean;
}

export interface Loaded {
  /** null when there are problems. */
  readonly config: Config | null;
  readonly problems: readonly SettingsProblem[];
  /** Problems that do not keep this command from its work. */
  readonly remarks: readonly SettingsProblem[];
  readonly shown: readonly ShownSetting[];
  /** What parsed on its own, so that a settings error can still be recorded and mailed. */
  readonly partial: Pick<Config, 'profile' | 'name' | 'telling' | 'database'> & {
    readonly to: string | null;
    readonly stateDir: string | null;
    /** `to` is said by a profile, a file that was named, or the environment: not mistyped just now, nor by a .env that happens to lie here. */
    readonly toIsSetUp: boolean;
  };
  /** The values that must never be printed. */
  readonly secrets: readonly string[];
  /** Said to the operator: the env file that was found by itself. */
  readonly announcement: string | null;
}

const SECRET_KEY = /AGE-SECRET-KEY-[^\s,/]+/gi;
const ENV_FILE_MAX = 1 << 20;
const SECRET_MAX = 1 << 16;

interface EnvFile {
  readonly path: string;
  readonly values: Readonly<Record<string, string>>;
  readonly found: 'named' | 'profile' | 'cwd';
}

interface Given {
  readonly raw: readonly string[];
  readonly origin: string;
  readonly base: string;
  /** The env file that said it, or where it is to be found; null: a flag, the environment, systemd. */
  readonly from: EnvFile | null;
}

/** Reads flags, environment, env file and secrets. Does not throw for what an operator can get wrong: that is in `problems`. */
export async function loadSettings(input: RawSettings): Promise<Loaded> {
  const problems: SettingsProblem[] = [];
  const secrets: string[] = [];
  const problem = (setting: string, message: string, origin: string): void => {
    problems.push({ setting, message: printable(message), origin: printable(origin) });
  };

  const file = await findEnvFile(input, problem);
  refuseUnknown(input.env, 'environment', problem);
  const defaults = await findDefaults(file, input, problem);
  // What a profile says wins.
  const files = [file, defaults].filter((f) => f !== null);
  for (const f of files) refuseUnknown(f.values, f.path, problem);

  const given = new Map<OptionName, Given>();
  for (const option of OPTION_NAMES) {
    const found = spec(option).secret ? readSecret(option, input, files, problem) : lookUp(option, input, files);
    if (!found) continue;
    given.set(option, found);
    // The name of a program is none.
    if (spec(option).secret) secrets.push(...found.raw.filter((raw) => !/^sendmail:(\/.*)?$/.test(raw)));
  }

  const parsed: Parsed = {};
  for (const [option, { raw, origin, base }] of given) {
    const s = spec(option);
    try {
      const values = raw.map((r) => s.parse(r, base));
      Object.assign(parsed, { [option]: s.list ? values : values.at(-1) });
    } catch (error) {
      // An address that does not parse may hold a password: neither here nor in the command line of a mail.
      if (option === 'upload') secrets.push(...raw.filter((r) => r.includes('@') || r.includes('?')));
      const shown = s.secret || option === 'upload' || raw.some((r) => r.match(SECRET_KEY)) ? '' : ` "${raw.join(',')}"`;
      problem(option, `${option}${shown} ${error instanceof Error ? error.message : String(error)}`, origin);
    }
  }
  for (const option of OPTION_NAMES) {
    const { fallback, list, parse } = spec(option);
    if (given.has(option) || fallback === undefined || fallback.startsWith('(')) continue;
    const values = (list ? fallback.split(',') : [fallback]).map((text) => parse(text, input.cwd));
    Object.assign(parsed, { [option]: list ? values : values[0] });
  }

  if (parsed['upload-prune'] && (parsed.upload ?? []).length === 0)
    problem('upload-prune', 'upload-prune needs upload: there is nowhere to remove anything', given.get('upload-prune')?.origin ?? '');
  const route = parsed['smtp-url'];
  for (const url of [parsed['slack-webhook'], parsed.webhook, parsed['ping-url']]) if (url) secrets.push(...secretsOf(url));
  if (route?.kind === 'smtp' && route.password) secrets.push(route.password, encodeURIComponent(route.password));
  if (route?.kind === 'sendmail' && file?.found === 'cwd' && given.get('smtp-url')?.from === file && route.program !== '/usr/sbin/sendmail') {
    problem('smtp-url', 'a .env found in the current directory may not name a program', file.path);
    // Nor may the mail about this very problem start it.
    delete parsed['smtp-url'];
  }

  if (file?.found === 'cwd' && (input.from !== null || (parsed.upload ?? []).length > 0)) {
    const programs = Object.keys(file.values).filter((k) => NAMES_PROGRAMS.test(k));
    if (programs.length > 0) {
      const message = `a .env found in the current directory may not set ${programs.join(', ')}, which can name programs to run: say --env-file ${file.path}`;
      problem('upload', message, file.path);
    }
  }

  // Somebody's slip, in whatever setting, must not make it known.
  for (const { raw } of given.values()) for (const text of raw) secrets.push(...(text.match(SECRET_KEY) ?? []));
  for (const option of ['before', 'after', 'on-failure'] as const) {
    if (file?.found !== 'cwd' || given.get(option)?.from !== file || given.get(option) === undefined) continue;
    problem(option, `a .env found in the current directory may set no commands (${option})`, file.path);
  }
  const originOf = (option: OptionName): string => given.get(option)?.origin ?? 'default';
  const uploadEnv = { ...uploadEnvOf(defaults?.values ?? {}), ...uploadEnvOf(file?.values ?? {}), ...uploadEnvOf(input.env) };
  const keys = { uploadEnv, ...(await readKeys(input, parsed, (option, error) => problem(option, `${option} ${errnoWords(error)}`, originOf(option)))) };
  secrets.push(...(keys.identity?.keys ?? []), ...uploadSecrets(uploadEnv).filter((v) => v.length >= SHORTEST_UPLOAD_SECRET));
  if (parsed.compress === 'zstd' && spec('compress').commands.includes(input.command)) {
    const missing = (await import('../packing.js')).zstdMissing(input.env);
    if (missing !== null) problem('compress', missing, originOf('compress'));
  }
  const comesLater = (option: OptionName): boolean => input.secretsLater === true && spec(option).secret === true && !given.has(option);
  // What a file would have said that could not be read is not missing.
  const unread = file === null && problems.some((p) => p.setting === 'env-file' || p.setting === 'profile');
  const saidThere = (option: OptionName): boolean => unread && (option === 'to' || option === 'database');
  const failed = (option: OptionName): boolean => comesLater(option) || saidThere(option) || problems.some((p) => p.setting === option);
  const config = toConfig(input, parsed, keys, problem, originOf, failed);
  const isRemark = ({ setting }: SettingsProblem): boolean => !mustTell(input) && OPTION_NAMES.some((o) => o === setting && spec(o).group === 'telling');
  const remarks = problems.filter(isRemark);
  return {
    config: problems.length === remarks.length ? config : null,
    problems: problems.filter((p) => !isRemark(p)),
    remarks,
    shown: OPTION_NAMES.map((option) => ({
      name: option,
      value: shownValue(option, given.get(option), config),
      origin: given.get(option)?.origin ?? (shownValue(option, undefined, config) === '' ? 'not set' : 'default'),
    })),
    partial: {
      profile: config.profile,
      name: config.name,
      database: config.database,
      telling: config.telling,
      to: config.to === '' ? null : config.to,
      toIsSetUp: given.has('to') && !input.flags.has('to') && given.get('to')?.from?.found !== 'cwd',
      stateDir: config.to === '' || failed('state-dir') ? null : config.stateDir,
    },
    secrets,
    announcement: file?.found === 'cwd' ? `settings from ${file.path}` : null,
  };
}

type Problem = (setting: string, message: string, origin: string) => void;

const distinct = (urls: readonly DestinationUrl[]): DestinationUrl[] => urls.filter((url, n) => urls.findIndex((u) => u.shown === url.shown) === n);

const FOR_UPLOAD = /^(AWS|RCLONE)_/;
/** RCLONE_PASSWORD_COMMAND, RCLONE_SFTP_SSH, `credential_process` in a file: somebody else's .env must not start programs. */
const NAMES_PROGRAMS = /^RCLONE_|^AWS_(CONFIG|SHARED_CREDENTIALS)_FILE$/;
const UPLOAD_SECRET = /SECRET|TOKEN|PASS|KEY/;

/** What is for the programs and libraries of destinations, and for nobody else. */
const uploadEnvOf = (values: Readonly<Record<string, string | undefined>>): Record<string, string> =>
  Object.fromEntries(Object.entries(values).flatMap(([k, v]) => (FOR_UPLOAD.test(k) && v !== undefined ? [[k, v]] : [])));

/** Their secrets, wherever they are from. */
const uploadSecrets = (values: Readonly<Record<string, string | undefined>>): string[] =>
  Object.entries(values).flatMap(([k, v]) => (FOR_UPLOAD.test(k) && UPLOAD_SECRET.test(k) && v && !/^(true|false)$/i.test(v) ? [v] : []));

/** Blacking out what is as short as a word would tell more than it hides. */
const SHORTEST_UPLOAD_SECRET = 8;

interface Keys {
  readonly uploadEnv: Readonly<Record<string, string>>;
  readonly recipients: readonly string[];
  readonly identity: Identity | null;
}

/** Read where a command uses them alone: the library that knows a key takes its time to load. */
async function readKeys(input: RawSettings, p: Parsed, fail: (option: OptionName, error: unknown) => void): Promise<Omit<Keys, 'uploadEnv'>> {
  const sources = p['encrypt-to'] ?? [];
  const path = p['identity-file'];
  const wanted = (option: OptionName): boolean => spec(option).commands.includes(input.command);
  const withRecipients = sources.length > 0 && wanted('encrypt-to');
  const withIdentity = path !== undefined && wanted('identity-file');
  if (!withRecipients && !withIdentity) return { recipients: [], identity: null };
  const { readIdentity, readRecipients } = await import('./keys.js');
  const orFail = async <T>(option: OptionName, instead: T, read: () => Promise<T>): Promise<T> => {
    try {
      return await read();
    } catch (error) {
      fail(option, error);
      return instead;
    }
  };
  return {
    recipients: withRecipients ? await orFail('encrypt-to', [], () => readRecipients(sources, input.uid)) : [],
    identity: withIdentity ? await orFail('identity-file', null, () => readIdentity(path, input.uid)) : null,
  };
}

function toConfig(
  input: RawSettings,
  p: Parsed,
  keys: Keys,
  problem: Problem,
  originOf: (option: OptionName) => string,
  failed: (option: OptionName) => boolean,
): Config {
  const to = p.to ?? '';
  if (to === '' && input.from === null && !failed('to')) problem('to', 'to is required: the backup directory', '--to DIR, or DBBACKUP_TO');
  const database = p.database ?? null;
  if (['run', 'check', 'guard'].includes(input.command) && database === null && !failed('database')) {
    problem(
      'database',
      'database is required',
      input.command === 'guard' ? '--database FILE, or DBBACKUP_DATABASE' : `dbbackup ${input.command} FILE, or DBBACKUP_DATABASE`,
    );
  }
  const policy = toPolicy(p);
  const keeps = Object.values(policy).filter((n) => n !== null);
  const rules = ['keep-last', 'keep-within', 'keep-daily', 'keep-weekly', 'keep-monthly', 'keep-yearly'] as const;
  if (!rules.some(failed) && keeps.every((n) => n === 0)) {
    const given = rules.find((rule) => originOf(rule) !== 'default') ?? 'keep-last';
    problem(given, 'this policy would keep nothing: give at least one keep-* above 0', originOf(given));
  }
  const stateDir = p['state-dir'] ?? stateDirOf(to);
  // What has a default is missing only where it did not parse, and then this Config is not used.
  const sure = <T>(value: T | undefined, unused: T): T => value ?? unused;
  return {
    profile: input.profile,
    database,
    name: failed('name') ? null : (p.name ?? input.profile ?? (database === null ? null : nameFromFile(database))),
    nameGiven: p.name !== undefined || input.profile !== null,
    sourceCheck: sure(p['source-check'], 'quick'),
    to,
    stateDir,
    acceptMoved: p['accept-moved'] ?? false,
    policy,
    lockWaitMs: sure(p['lock-wait'], 0),
    timeoutMs: sure(p.timeout, 0),
    maxAgeMs: sure(p['max-age'], 0),
    ifOlderThanMs: p['if-older-than'] ?? null,
    warnAfterMs: p['warn-after'] ?? null,
    retries: { count: sure(p.retries, 0), waitMs: sure(p['retry-wait'], 0), backoff: sure(p['retry-backoff'], 'fixed') },
    hooks: { before: p.before ?? null, after: p.after ?? null, 'on-failure': p['on-failure'] ?? null },
    packing: { compress: sure(p.compress, 'none'), recipients: keys.recipients },
    include: p.include ?? [],
    upload: { to: distinct(p.upload ?? []), prune: p['upload-prune'] ?? false, timeoutMs: sure(p['upload-timeout'], 0), env: keys.uploadEnv },
    from: null,
    identity: keys.identity,
    telling: toTelling(p, mustTell(input) ? problem : () => undefined, originOf, failed),
    metricsFile: p['metrics-file'] ?? null,
    logDir: p['log-dir'] ?? join(stateDir, 'log'),
    logKeepMs: sure(p['log-keep'], 0),
  };
}

/** The defaults vanish as soon as one keep-* is given (DESIGN, "Settings"). */
function toPolicy(p: Parsed): Policy {
  const given = {
    last: p['keep-last'] ?? null,
    withinMs: p['keep-within'] ?? null,
    daily: p['keep-daily'] ?? null,
    weekly: p['keep-weekly'] ?? null,
    monthly: p['keep-monthly'] ?? null,
    yearly: p['keep-yearly'] ?? null,
  };
  return Object.values(given).every((n) => n === null) ? { ...given, last: 7, daily: 30 } : given;
}

/**
 * Where smtp-url is a credential of a unit, a command by hand has none, and a file with it may be shut for whom it is not: who looks, or wants the
 * data back, is not to be kept from it by what only telling needs.
 */
const mustTell = ({ command, notify }: RawSettings): boolean => !['list', 'history', 'restore', 'status'].includes(command) || notify === true;

function toTelling(p: Parsed, problem: Problem, originOf: (option: OptionName) => string, failed: (option: OptionName) => boolean): Telling {
  const hook = (channel: Channel, url: URL | undefined): HookSettings | null => (url ? { url, on: eventsFor(channel, p) } : null);
  return {
    mail: toMail(p, problem, originOf, failed),
    slack: hook('slack', p['slack-webhook']),
    webhook: hook('webhook', p.webhook),
    ping: p['ping-url'] ?? null,
  };
}

function toMail(p: Parsed, problem: Problem, originOf: (option: OptionName) => string, failed: (option: OptionName) => boolean): MailSettings | null {
  const to = p['mail-to'] ?? [];
  const critical = p['mail-to-critical'] ?? [];
  const route = p['smtp-url'];
  for (const option of ['mail-to', 'mail-to-critical'] as const) {
    if ((p[option] ?? []).length > 0 && !route && !failed('smtp-url')) {
      const byHand = 'where a unit has it as a credential, start the unit, or give DBBACKUP_SMTP_URL=sendmail: by hand';
      problem(option, `${option} needs smtp-url: without it nobody would be told; ${byHand}`, originOf(option));
    }
  }
  const first = to[0] ?? critical[0];
  if (route && first === undefined && !failed('mail-to') && !failed('mail-to-critical')) {
    problem('smtp-url', 'smtp-url needs mail-to: without it nobody would be told', originOf('smtp-url'));
  }
  if (!route || first === undefined) return null;
  return { route, to, critical, from: p['mail-from'] ?? first, on: eventsFor('mail', p) };
}

/** What a channel is told of: its own list, else the one for all. Where the setting did not parse, its default: that it is wrong must be told. */
function eventsFor(channel: Channel, p: Parsed): ReadonlySet<NotifyEvent> {
  const rules = p['notify-on'] ?? [];
  const listOf = (of: Channel | null): NotifyEvent[] => rules.filter((rule) => rule.channel === of).map((rule) => rule.event);
  const [first] = [listOf(channel), listOf(null)].filter((list) => list.length > 0);
  return new Set(first ?? ['failure', 'recovery']);
}

/** An empty value means "not given", as in a crontab's or a unit's `DBBACKUP_NAME=`. */
function lookUp(option: OptionName, input: RawSettings, files: readonly EnvFile[]): Given | null {
  const flag = input.flags.get(option);
  if (flag) return { raw: flag, origin: `--${option}`, base: input.cwd, from: null };
  const variable = variableOf(option);
  const split = (text: string): string[] =>
    spec(option).list
      ? text
          .split(',')
          .map((t) => t.trim())
          .filter(Boolean)
      : [text];
  const fromEnv = input.env[variable];
  if (fromEnv) return { raw: split(fromEnv), origin: variable, base: input.cwd, from: null };
  for (const file of files) {
    const fromFile = file.values[variable];
    if (fromFile) return { raw: split(fromFile), origin: file.path, base: dirname(file.path), from: file };
  }
  return null;
}

/** A secret comes as itself, as a file, or as a systemd credential; two of these are an error (DESIGN, "Settings"). */
function readSecret(option: OptionName, input: RawSettings, files: readonly EnvFile[], problem: Problem): Given | null {
  const variable = variableOf(option);
  const fileVariable = `${variable}_FILE`;
  const ways: (Omit<Given, 'raw'> & { readonly read: () => string; readonly path: string | null })[] = [];
  // The first that has it in either way: what a profile says wins over what is shared.
  const file = files.find((f) => f.values[variable] || f.values[fileVariable]) ?? null;
  const direct = lookUp(option, input, file ? [file] : []);
  if (direct) ways.push({ ...direct, path: null, read: () => direct.raw[0] ?? '' });

  const named = input.env[fileVariable] || file?.values[fileVariable];
  if (named) {
    const from = input.env[fileVariable] ? null : file;
    const base = from ? dirname(from.path) : input.cwd;
    const origin = from ? `${fileVariable} in ${from.path}` : fileVariable;
    const path = join(named.startsWith('/') ? '/' : base, named);
    ways.push({ origin, base, from, path, read: () => readSecretFile(path, input.uid) });
  }
  const credential = credentialOf(option, input.env);
  if (credential !== null) {
    ways.push({
      origin: `credential ${option.replaceAll('-', '_')}`,
      base: input.cwd,
      from: null,
      path: credential,
      read: () => readSecretFile(credential, null),
    });
  }
  if (ways.length > 1) {
    problem(option, `${option} is given in ${ways.length} ways; give one`, ways.map((w) => w.origin).join(' and '));
    return null;
  }
  const [way] = ways;
  if (!way) return null;
  try {
    const text = way.read().trim();
    if (text === '') throw new Error('is empty');
    return { raw: [text], origin: way.origin, base: way.base, from: way.from };
  } catch (error) {
    const where = way.path !== null && errnoOf(error) !== '' ? `${way.path}: ` : '';
    problem(option, `${option}: ${where}${errnoWords(error)}`, way.origin);
    return null;
  }
}

/** `uid` null: systemd made the file and answers for its owner. Symbolic links are followed: secret stores use them. */
function readSecretFile(path: string, uid: number | null): string {
  const { bytes, stats } = readSmall(path, SECRET_MAX, 'follow');
  if (uid !== null) {
    if (stats.uid !== 0 && stats.uid !== uid) throw new Error(`${path} belongs to uid ${stats.uid}, not to root or this user`);
    if (stats.mode & 0o006) throw new Error(`${path} can be read or written by others: ${shutToOthers(path, stats.uid, uid)}`);
  }
  return bytes.toString('utf8');
}

function isThere(path: string): boolean {
  try {
    lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Where profiles lie, the first that has one wins. */
export const SYSTEM_PROFILES = '/etc/dbbackup';
export function profileDirectories(env: Readonly<Record<string, string | undefined>>): string[] {
  const home = env['HOME'];
  const config = env['XDG_CONFIG_HOME'] || (home ? join(home, '.config') : '');
  return [...(config ? [join(config, 'dbbackup')] : []), SYSTEM_PROFILES];
}

/** Settings that all profiles of a directory share; it is no profile itself. */
export const DEFAULTS = 'defaults.env';

/** Which of what belongs to one database alone an environment or an env file holds, as itself, as the file that holds it, or as a credential. */
export const notShared = (values: Readonly<Record<string, string | undefined>>): OptionName[] =>
  NOT_SHARED.filter((option) => values[variableOf(option)] || values[`${variableOf(option)}_FILE`] || credentialOf(option, values) !== null);

/** The systemd credential that holds a secret setting, or null. */
function credentialOf(option: OptionName, env: Readonly<Record<string, string | undefined>>): string | null {
  const directory = env['CREDENTIALS_DIRECTORY'];
  const path = directory && spec(option).secret ? join(directory, option.replaceAll('-', '_')) : '';
  return path && isThere(path) ? path : null;
}

/** The shared settings beside a profile; null: there are none, or no profile was named. */
async function findDefaults(profile: EnvFile | null, input: RawSettings, problem: Problem): Promise<EnvFile | null> {
  const path = profile?.found === 'profile' ? join(dirname(profile.path), DEFAULTS) : null;
  if (path === null || !isThere(path)) return null;
  const file = await readEnvFile(path, 'profile', input, problem);
  for (const option of notShared(file?.values ?? {})) problem(option, `${option} cannot be shared: every profile has its own`, path);
  return file;
}

async function findEnvFile(input: RawSettings, problem: Problem): Promise<EnvFile | null> {
  if (input.envFile !== null && input.profile !== null) {
    problem('env-file', '--env-file and --profile exclude one another', '--env-file, --profile');
    return null;
  }
  if (input.envFile !== null) return readEnvFile(join(input.envFile.startsWith('/') ? '/' : input.cwd, input.envFile), 'named', input, problem);
  if (input.profile !== null) {
    if (!PROFILE.test(input.profile) || !isName(input.profile)) {
      problem('profile', `"${input.profile}" is no profile name: letters, digits, dots, _ and -, beginning with a letter or digit, at most 100`, '--profile');
      return null;
    }
    const candidates = profileDirectories(input.env).map((d) => join(d, `${input.profile}.env`));
    const found = candidates.find(isThere);
    if (found === undefined) {
      problem('profile', `there is no profile ${input.profile}: looked for ${candidates.join(' and ')}`, '--profile');
      return null;
    }
    return readEnvFile(found, 'profile', input, problem);
  }
  const here = join(input.cwd, '.env');
  return isThere(here) ? readEnvFile(here, 'cwd', input, problem) : null;
}

async function readEnvFile(path: string, found: EnvFile['found'], input: RawSettings, problem: Problem): Promise<EnvFile | null> {
  let text: string;
  let owner: number;
  let mode: number;
  let group: number;
  try {
    const { bytes, stats } = readSmall(path, ENV_FILE_MAX, 'follow');
    text = bytes.toString('utf8');
    // A link that somebody else laid here is his word, whoever wrote the file that it leads to.
    const { uid: laidBy } = lstatSync(path);
    owner = laidBy === 0 || laidBy === input.uid ? stats.uid : laidBy;
    mode = stats.mode;
    group = stats.gid;
  } catch (error) {
    // An application's own .env that we may not read is none of our business; one that was named is.
    if (found !== 'cwd') problem('env-file', `cannot read ${path}: ${errnoWords(error)}`, found === 'profile' ? '--profile' : '--env-file');
    return null;
  }
  const { parse } = await import('dotenv');
  const values = parse(text);
  const ours = Object.keys(values).filter((k) => k.startsWith('DBBACKUP_'));
  for (const line of text.split('\n')) {
    const key = /^\s*(?:export\s+)?(DBBACKUP_\w+)/.exec(line)?.[1];
    if (key && !(key in values)) problem(key, `the line of ${key} does not parse`, path);
  }
  // An application's own .env without a word for us: not ours, not announced, not judged.
  if (found === 'cwd' && ours.length === 0) return null;
  if (owner !== 0 && owner !== input.uid) {
    problem('env-file', `${path} belongs to uid ${owner}, not to root or this user`, path);
    return null;
  }
  if (mode & 0o002) {
    problem('env-file', `${path} can be written by others: chmod o-w ${path}`, path);
    return null;
  }
  // It may name commands. A group of one's own is nobody else.
  if (mode & 0o020 && group !== 0 && group !== process.getegid?.() && input.uid === process.geteuid?.()) {
    problem('env-file', `${path} can be written by its group (${group}): chmod g-w ${path}`, path);
    return null;
  }
  const secret =
    uploadSecrets(values).length > 0 ||
    OPTION_NAMES.filter((o) => spec(o).secret)
      .map(variableOf)
      .some((v) => values[v]);
  if (secret && mode & 0o004) problem('env-file', `${path} holds a secret and can be read by others: ${shutToOthers(path, owner, input.uid)}`, path);
  return { path, values, found };
}

function refuseUnknown(values: Readonly<Record<string, string | undefined>>, origin: string, problem: Problem): void {
  const known = OPTION_NAMES.flatMap((o) => (spec(o).secret ? [variableOf(o), `${variableOf(o)}_FILE`] : [variableOf(o)]));
  for (const key of Object.keys(values)) {
    if (!/^dbbackup_/i.test(key) || known.includes(key)) continue;
    const near = nearest(key.toUpperCase(), known);
    problem(key, `${key} is not a setting${near ? `; did you mean ${near}?` : ''}`, origin);
  }
}

/** The known word at the smallest edit distance, if that is close enough to be a slip. */
export function nearest(word: string, known: readonly string[]): string | null {
  let best: string | null = null;
  let bestDistance = Math.max(3, Math.floor(word.length / 4)) + 1;
  for (const candidate of known) {
    const d = distance(word, candidate);
    if (d < bestDistance) {
      best = candidate;
      bestDistance = d;
    }
  }
  return best;
}

function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

/** What is in force, also where it was not said; a secret only as there or not. */
function shownValue(option: OptionName, given: Given | undefined, config: Config): string {
  if (given && spec(option).secret) return '***';
  const keep = (n: number | null): string | null => (n === null ? null : n === Number.POSITIVE_INFINITY ? 'all' : String(n));
  const inForce: Partial<Record<OptionName, string | null>> = {
    database: config.database,
    name: config.name,
    to: config.to,
    // Without a backup directory they would be relative, and mean nothing.
    'state-dir': isAbsolute(config.stateDir) ? config.stateDir : null,
    'log-dir': isAbsolute(config.logDir) ? config.logDir : null,
    'mail-from': config.telling.mail?.from ?? null,
    'metrics-file': config.metricsFile,
    include: config.include.join(','),
    'keep-last': keep(config.policy.last),
    'keep-daily': keep(config.policy.daily),
    'keep-weekly': keep(config.policy.weekly),
    'keep-monthly': keep(config.policy.monthly),
    'keep-yearly': keep(config.policy.yearly),
  };
  const fallback = spec(option).fallback ?? '';
  return printable(inForce[option] || given?.raw.join(',') || (fallback.startsWith('(') ? '' : fallback));
}
