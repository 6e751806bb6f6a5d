/**
 * Every secret that any test gives to a command is a canary: when the command has ended, it must stand neither in what it printed
 * nor in anything that it left in the directories that it writes into. No test has to ask for this, and none can forget it.
 */
import { existsSync, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'dotenv';

/** What the settings of dbbackup, the AWS SDK and rclone call their secrets. */
const SECRET = /^(DBBACKUP_(SMTP_URL|SLACK_WEBHOOK|WEBHOOK|PING_URL)|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|RCLONE_(.*_)?PASS(WORD)?)$/;
const SECRET_FILE = /^DBBACKUP_(SMTP_URL|SLACK_WEBHOOK|WEBHOOK|PING_URL)_FILE$/;
/** As the redactor has it: shorter ones are ordinary words. */
const SHORTEST = 4;
/** Larger files are copies. Nothing of ours that speaks is as large. */
const LARGEST = 4 << 20;

interface Given {
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** Where a secret that was given to a command turned up; empty: nowhere. */
export function betrayed(given: Given, printed: string): string[] {
  const secrets = secretsOf(given);
  if (secrets.length === 0) return [];
  const found = secrets.filter((s) => printed.includes(s)).map((s) => `the output holds the secret ${s}`);
  for (const directory of writtenBy(given)) {
    for (const file of filesIn(directory)) {
      const text = readFileSync(file, 'utf8');
      found.push(...secrets.filter((s) => text.includes(s)).map((s) => `${file} holds the secret ${s}`));
    }
  }
  return found;
}

/** The words of a flag: `--to DIR`, `--to=DIR`. */
function wordsOf(args: readonly string[], flag: string): string[] {
  return args.flatMap((word, i) => (word === flag ? (args[i + 1] ?? []) : word.startsWith(`${flag}=`) ? word.slice(flag.length + 1) : []));
}

/** The settings in env files that the command line leads to. */
function settingsOf({ args, env }: Given): Readonly<Record<string, string>>[] {
  const directory = env['XDG_CONFIG_HOME'] === undefined ? null : join(env['XDG_CONFIG_HOME'], 'dbbackup');
  const profiles = directory !== null && existsSync(directory) ? readdirSync(directory).map((name) => join(directory, name)) : [];
  const files = [...wordsOf(args, '--env-file'), ...profiles].filter(isRegular);
  return [env, ...files.map((file) => parse(readFileSync(file)))];
}

function secretsOf(given: Given): string[] {
  const values: string[] = [];
  for (const settings of settingsOf(given)) {
    for (const [name, value] of Object.entries(settings)) {
      if (SECRET.test(name)) values.push(value);
      else if (SECRET_FILE.test(name) && isRegular(value)) values.push(readFileSync(value, 'utf8').trim());
      else if (name === 'CREDENTIALS_DIRECTORY' && existsSync(value)) values.push(...filesIn(value).map((file) => readFileSync(file, 'utf8').trim()));
    }
  }
  for (const file of pathsOf(given, 'identity-file')) {
    if (isRegular(file)) values.push(...(readFileSync(file, 'utf8').match(/^AGE-SECRET-KEY-.*$/gm) ?? []));
  }
  return [...new Set(values.flatMap(formsOf))].filter((secret) => secret.length >= SHORTEST);
}

/** A secret, and what in a URL is secret by itself. An address without either is none. */
function formsOf(value: string): string[] {
  if (!URL.canParse(value)) return [value];
  const { password, pathname, search, protocol } = new URL(value);
  if (!protocol.startsWith('http')) return password === '' ? [] : [value, password, decoded(password)];
  // A webhook's path is its password; that of a server of these tests may be a word.
  return pathname === '/' && search === '' && password === '' ? [] : [value, ...(password === '' ? [] : [password, decoded(password)])];
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What a setting that names a path is set to, anywhere. */
const pathsOf = (given: Given, name: string): string[] => [
  ...wordsOf(given.args, `--${name}`),
  ...settingsOf(given).flatMap((s) => s[`DBBACKUP_${name.toUpperCase().replaceAll('-', '_')}`] ?? []),
];

/** The backup directory, and state, log and metrics where they are elsewhere. */
const writtenBy = (given: Given): string[] => ['to', 'state-dir', 'log-dir', 'metrics-file'].flatMap((name) => pathsOf(given, name));

/** Regular files below a directory, or the file itself, that are small enough to be something said. */
function filesIn(path: string): string[] {
  try {
    const stats = lstatSync(path);
    if (stats.isFile()) return stats.size <= LARGEST ? [path] : [];
    return stats.isDirectory() ? readdirSync(path).flatMap((name) => filesIn(join(path, name))) : [];
  } catch {
    // Not there, or nobody's to read: then nothing was told there that this user could hear.
    return [];
  }
}

function isRegular(path: string): boolean {
  try {
    return lstatSync(path).isFile();
  } catch {
    return false;
  }
}
