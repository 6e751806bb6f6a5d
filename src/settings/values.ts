/**
 * From text to values: one parser per kind of setting. A parser throws an Error whose message says what was expected;
 * `load.ts` collects them. Nothing here touches the file system.
 */
import { isIPv4 } from 'node:net';
import { basename, isAbsolute, resolve } from 'node:path';

/** Control and bidirectional characters: they could make a terminal, a mail or a log lie. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
export const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/u;
const UNPRINTABLE_ALL = new RegExp(UNPRINTABLE.source, 'gu');

/** Text that is safe to print: unprintable characters become `\u{hex}`. */
export const printable = (text: string): string => text.replace(UNPRINTABLE_ALL, (c) => `\\u{${(c.codePointAt(0) ?? 0).toString(16)}}`);

/** JSON that is safe to print: what JSON leaves raw becomes `\\uXXXX`, which parses to the same. Line breaks between values stay. */
export const printableJson = (json: string): string =>
  json.replace(UNPRINTABLE_ALL, (c) => (c === '\n' ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`));

/** What a copy's name may look like (DESIGN, "Files"). */
const NAME = /^[\p{L}\p{N}_][\p{L}\p{N}._ -]{0,99}$/u;
/** Most names. What letters there are in all scripts takes V8 2 ms to gather, at every start. */
const PLAIN_NAME = /^[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}$/;
export const isName = (text: string): boolean => PLAIN_NAME.test(text) || NAME.test(text);
/** Room for `-20261121T031700Z-RUNID-failed` (guarding.ts) within the 255 bytes that Linux gives a file name. */
const NAME_MAX_BYTES = 190;
export const PROFILE = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;

/** An absolute path. `base` is the directory that a relative one counts from. */
export function path(raw: string, base: string): string {
  if (raw === '') throw new Error('is empty');
  if (UNPRINTABLE.test(raw)) throw new Error('holds control or bidirectional characters, which are refused');
  const last = basename(raw);
  // better-sqlite3 trims blanks off file names and would open another file (traps, 7).
  if (last !== last.trim() || raw !== raw.trim()) throw new Error('begins or ends with blanks, which are refused');
  return isAbsolute(raw) ? resolve(raw) : resolve(base, raw);
}

/** A path where something is made: what is not UTF-8 in it arrives as U+FFFD, and another place than the one that was said would be made. */
export function placeToMake(raw: string, base: string): string {
  if (raw.includes('\ufffd')) throw new Error('is not UTF-8: give the directory another name');
  return path(raw, base);
}

/** The path of a file for node_exporter's textfile collector, which reads `*.prom` and nothing else. */
export function metricsFile(raw: string, base: string): string {
  const file = path(raw, base);
  if (!/[^/]\.prom$/.test(file)) throw new Error('must end in .prom: the textfile collector reads no other files');
  return file;
}

/** A name of copies, as it was given. */
export function name(raw: string): string {
  if (!isName(raw)) {
    throw new Error('must begin with a letter, digit or _ and go on with at most 99 letters, digits, dots, blanks, _ or -');
  }
  if (Buffer.byteLength(raw) > NAME_MAX_BYTES) throw new Error(`is longer than ${NAME_MAX_BYTES} bytes`);
  return raw;
}

/** The name that copies of a database get when nobody gave one: its base name without extension, made fit. */
export function nameFromFile(file: string): string {
  const base = basename(file).replace(/(?<=.)\.[^.]*$/u, '');
  if (PLAIN_NAME.test(base)) return base;
  let fit = Array.from(base, (c) => (/[\p{L}\p{N}._ -]/u.test(c) ? c : '_'))
    .slice(0, 100)
    .join('');
  if (!/^[\p{L}\p{N}_]/u.test(fit)) fit = `_${fit.slice(1)}`;
  while (Buffer.byteLength(fit) > NAME_MAX_BYTES) fit = Array.from(fit).slice(0, -1).join('');
  return fit;
}

const UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };
const LONGEST = 100 * 366 * 86_400_000;

/** Milliseconds from `90s`, `26h`, `30d`. */
export function duration(raw: string): number {
  const m = /^(\d{1,12})(ms|s|m|h|d|w)$/.exec(raw);
  const ms = m ? Number(m[1]) * (UNITS[m[2] ?? ''] ?? Number.NaN) : Number.NaN;
  if (/^\d+(ms|s|m|h|d|w)$/.test(raw) && !(ms <= LONGEST)) throw new Error('is longer than a hundred years');
  if (Number.isNaN(ms)) throw new Error('must be a duration like 90s, 30m, 26h or 30d');
  return ms;
}

export function positiveDuration(raw: string): number {
  const ms = duration(raw);
  if (ms === 0) throw new Error('must be longer than 0');
  return ms;
}

/** Bytes from `500MB`, `2GiB`. */
export function size(raw: string): number {
  const m = /^(\d{1,12})(?:([kMGT])(i?)B|B)$/.exec(raw);
  const power = ['', 'k', 'M', 'G', 'T'].indexOf(m?.[2] ?? '');
  const n = m ? Number(m[1]) * (m[3] ? 1024 : 1000) ** power : Number.NaN;
  if (!(n > 0 && n <= Number.MAX_SAFE_INTEGER)) throw new Error('must be a size like 500MB or 2GiB');
  return n;
}

/** How many a retention rule keeps: a whole number, or Infinity for `all`. */
export function count(raw: string): number {
  if (raw === 'all') return Number.POSITIVE_INFINITY;
  if (/^\d{7,}$/.test(raw)) throw new Error('is more than 999999: say all');
  if (!/^\d+$/.test(raw)) throw new Error('must be a whole number, or all');
  return Number(raw);
}

export const choice =
  <T extends string>(...allowed: readonly T[]) =>
  (raw: string): T => {
    const found = allowed.find((a) => a === raw);
    if (found === undefined) throw new Error(`must be ${allowed.join(' or ')}`);
    return found;
  };

export function boolean(raw: string): boolean {
  const v = raw.toLowerCase();
  if (['1', 'true', 'yes', 'on'].includes(v)) return true;
  if (['0', 'false', 'no', 'off'].includes(v)) return false;
  throw new Error('must be true or false');
}

/** An address for the local MTA or the internet: no display names, so that nothing needs quoting. */
export function address(raw: string): string {
  if (UNPRINTABLE.test(raw) || !/^[^\s@<>,;"\\]+(@[^\s@<>,;"\\]+)?$/u.test(raw)) {
    throw new Error('must be a mail address like ops@example.org');
  }
  return raw;
}

/**
 * A command as words, the way a shell would split it: blanks part words, quotes and backslashes keep them together. Nothing is
 * expanded, and no shell runs it.
 */
export function words(raw: string): readonly string[] {
  if (UNPRINTABLE.test(raw)) throw new Error('holds control or bidirectional characters, which are refused');
  const found: string[] = [];
  let word: string | null = null;
  let quote = '';
  for (let i = 0; i < raw.length; i++) {
    const c = raw.charAt(i);
    if (quote === "'" || (quote === '"' && c !== '\\')) {
      if (c === quote) quote = '';
      else word = (word ?? '') + c;
    } else if (c === '\\') {
      const next = raw.charAt(++i);
      if (next === '') throw new Error('ends with a backslash');
      // Inside double quotes it only keeps what would end them.
      word = (word ?? '') + (quote === '"' && next !== '"' && next !== '\\' ? `\\${next}` : next);
    } else if (c === "'" || c === '"') {
      quote = c;
      word ??= '';
    } else if (c === ' ') {
      if (word !== null) found.push(word);
      word = null;
    } else word = (word ?? '') + c;
  }
  if (quote !== '') throw new Error(`has no end to its ${quote}`);
  if (word !== null) found.push(word);
  if (found.length === 0 || found[0] === '') throw new Error('names no program');
  return found;
}

/** A small number of times. */
export function times(raw: string): number {
  if (!/^\d{1,2}$/.test(raw)) throw new Error('must be a whole number from 0 to 99');
  return Number(raw);
}

/** Whom copies are sealed for: a public key of age, or the absolute path of a file of them. */
export type RecipientSource = { readonly key: string } | { readonly file: string };

/** Parses one value of `encrypt-to`. That the key is one is looked at by the library, in keys.ts. */
export function recipient(raw: string, base: string): RecipientSource {
  if (/^AGE-SECRET-KEY-/i.test(raw)) throw new Error('is a secret key, which does not belong here: give its public key, age1...');
  return /^age1[^/.]*$/i.test(raw) ? { key: raw } : { file: path(raw, base) };
}

/** Parses `identity-file`: a path, and not what is in the file. */
export function identityFile(raw: string, base: string): string {
  if (/AGE-SECRET-KEY-/i.test(raw))
    throw new Error('is a secret key itself, which everybody can see in a command line: write it to a file (0600) and name that');
  return path(raw, base);
}

/** How mail leaves. The URL of an SMTP server may hold a password: it is a secret as a whole. */
export type MailRoute =
  | { readonly kind: 'smtp'; readonly host: string; readonly port: number; readonly tls: boolean; readonly user: string; readonly password: string }
  | { readonly kind: 'sendmail'; readonly program: string };

/** Parses `smtp-url`. Never says what it was given: it may hold a password. */
export function mailRoute(raw: string): MailRoute {
  if (raw.startsWith('sendmail:')) {
    const program = raw.slice('sendmail:'.length) || '/usr/sbin/sendmail';
    if (!isAbsolute(program) || UNPRINTABLE.test(program)) throw new Error('sendmail: takes nothing, or the absolute path of a program');
    return { kind: 'sendmail', program };
  }
  const url = URL.canParse(raw) ? new URL(raw) : null;
  if (!url || (url.protocol !== 'smtp:' && url.protocol !== 'smtps:') || url.hostname === '') {
    throw new Error('must be smtp://[USER:PASSWORD@]HOST[:PORT], smtps://... or sendmail:; percent-encode / ? # @ in user and password (# is %23)');
  }
  if (!['', '/'].includes(url.pathname) || url.search !== '' || url.hash !== '') {
    throw new Error('takes no path or query behind the host; percent-encode / ? # @ in user and password');
  }
  const tls = url.protocol === 'smtps:';
  let user: string;
  let password: string;
  try {
    user = decodeURIComponent(url.username);
    password = decodeURIComponent(url.password);
  } catch {
    throw new Error('has a % in user or password that is not percent-encoded');
  }
  const port = url.port === '' ? (tls ? 465 : 587) : Number(url.port);
  return { kind: 'smtp', host: url.hostname.replace(/^\[|\]$/g, ''), port, tls, user, password };
}

/** Only these count as this machine: a name like `127.evil.example` does not, and neither does what a DNS calls local. */
export function isLoopback(host: string): boolean {
  return host.toLowerCase() === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));
}

/** The host of a URL as a resolver wants it: an IPv6 address without its brackets. */
export const hostOf = (url: URL): string => url.hostname.replace(/^\[|\]$/g, '');

/** Parses an address that is posted to: https, or http to this machine. Never says what it was given: whoever knows it can post there. */
export function hookUrl(raw: string): URL {
  if (/\s/u.test(raw) || UNPRINTABLE.test(raw)) throw new Error('holds blanks or control characters, which are refused');
  const url = URL.canParse(raw) ? new URL(raw) : null;
  if (!url || !['http:', 'https:'].includes(url.protocol) || url.hostname === '') throw new Error('must be https://HOST[:PORT]/PATH');
  if (url.protocol === 'http:' && !isLoopback(hostOf(url)))
    throw new Error('must be https://...: http shows it to everybody on the way, and is only taken to this machine');
  if (url.hash !== '') throw new Error('has a # in it, and what follows would not be sent: write %23');
  try {
    decodeURIComponent(url.username + url.password);
  } catch {
    throw new Error('has a % in user or password that is not percent-encoded');
  }
  return url;
}

/** A word of a URL that nobody would write by himself. Ordinary words stay out: blacking out `/backups` would spoil every path. */
const isToken = (word: string): boolean => word.length >= 20 || (word.length >= 8 && /\d|[a-z][A-Z]/.test(word));

/** Every text by which somebody could post to this address: for the redactor. */
export function secretsOf(url: URL): string[] {
  const words = url.pathname.split('/').filter(isToken);
  const values = [...url.searchParams.values()].filter((value) => value.length >= 8);
  const path = `${url.pathname}${url.search}`;
  const whole = words.length > 0 || values.length > 0 || url.pathname.length >= 20 ? [path, url.pathname] : [];
  const found = [
    url.href,
    ...whole,
    ...words,
    ...values,
    url.password,
    url.username === '' ? '' : Buffer.from(`${url.username}:${url.password}`).toString('base64'),
  ];
  return found.flatMap((text) => [text, decoded(text), encodeURIComponent(decoded(text))]).filter((text) => text !== '');
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What a person can be told of: see README, "Being told". */
const EVENTS = ['failure', 'recovery', 'warning', 'success'] as const;
export type NotifyEvent = (typeof EVENTS)[number];

/** The ways on which a message goes, and waits while it cannot. */
export const CHANNELS = ['mail', 'slack', 'webhook'] as const;
export type Channel = (typeof CHANNELS)[number];

/** One word of `notify-on`. `channel` null: for all channels that have none of their own. */
export interface NotifyRule {
  readonly channel: Channel | null;
  readonly event: NotifyEvent;
}

/** Parses `failure`, or `slack:failure` for one channel. */
export function notifyRule(raw: string): NotifyRule {
  const [event, only] = raw.split(':').reverse();
  const channel = CHANNELS.find((c) => c === only);
  const known = EVENTS.find((e) => e === event);
  if (known === undefined || (only !== undefined && channel === undefined) || raw.split(':').length > 2) {
    throw new Error(`must be ${EVENTS.slice(0, -1).join(', ')} or ${EVENTS.at(-1)}, or one of these for one channel, like slack:${EVENTS.at(-1)}`);
  }
  return { channel: channel ?? null, event: known };
}
