/** From raw text to a Config: who wins, what is refused and in which words, and that a secret is in none of them. */
import { spawnSync } from 'node:child_process';
import { chmodSync, chownSync, lchownSync, mkdirSync, renameSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { generateHybridIdentity, generateX25519Identity, identityToRecipient } from 'age-encryption';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { COMMANDS, parseArguments } from '../../src/cli.js';
import type { CommandName } from '../../src/records.js';
import type { Config, Loaded, RawSettings } from '../../src/settings/load.js';
import { loadSettings } from '../../src/settings/load.js';
import type { OptionName } from '../../src/settings/options.js';
import { OPTION_NAMES, OPTIONS, spec, variableOf } from '../../src/settings/options.js';
import { mailRoute, nameFromFile, UNPRINTABLE } from '../../src/settings/values.js';
import { cannot, PATH, tempDirectory } from '../support/cli.js';

const UID = process.geteuid?.() ?? 0;
const asRoot = test.skipIf(cannot('root'));
const HOME = tempDirectory('settings');

interface Given {
  readonly command?: CommandName;
  readonly flags?: Partial<Record<OptionName, string | readonly string[]>>;
  readonly env?: Readonly<Record<string, string>>;
  /** The lines of an env file that --env-file names. */
  readonly file?: readonly string[];
  readonly envFile?: string;
  readonly profile?: string;
  readonly cwd?: string;
  readonly uid?: number;
  readonly notify?: boolean;
}

let files = 0;
/** A new directory with a file in it, 0600 unless told otherwise. */
function envFile(lines: readonly string[], mode = 0o600, name = 'some.env'): string {
  const directory = join(HOME, `d${files++}`);
  mkdirSync(directory);
  const path = join(directory, name);
  writeFileSync(path, `${lines.join('\n')}\n`);
  chmodSync(path, mode);
  return path;
}

async function load(given: Given): Promise<Loaded> {
  const raw: RawSettings = {
    command: given.command ?? 'run',
    flags: new Map(Object.entries(given.flags ?? {}).map(([k, v]) => [k as OptionName, typeof v === 'string' ? [v] : v])),
    env: given.env ?? {},
    cwd: given.cwd ?? HOME,
    uid: given.uid ?? UID,
    profile: given.profile ?? null,
    notify: given.notify ?? false,
    from: null,
    envFile: given.envFile ?? (given.file ? envFile(given.file) : null),
  };
  return loadSettings(raw);
}

/** The least that a run needs. */
const LEAST = { to: '/backups', database: '/srv/app.db' } as const;

async function config(given: Given): Promise<Config> {
  const loaded = await load({ ...given, flags: { ...LEAST, ...given.flags } });
  expect(loaded.problems).toEqual([]);
  if (!loaded.config) throw new Error('no config, and no problem');
  return loaded.config;
}

async function problems(given: Given): Promise<string[]> {
  const loaded = await load({ ...given, flags: { ...LEAST, ...given.flags } });
  expect(loaded.config === null).toBe(loaded.problems.length > 0);
  return loaded.problems.map((p) => `${p.setting}: ${p.message} (${p.origin})`);
}

const shown = (loaded: Loaded, name: OptionName): { value: string; origin: string } | undefined => {
  const found = loaded.shown.find((s) => s.name === name);
  return found && { value: found.value, origin: found.origin };
};

/** Everything of a Loaded that can reach a person. */
const said = (l: Loaded): string => JSON.stringify([l.problems, l.shown, l.announcement]);

// ----------------------------------------------------------------------------------------------------- the table

describe('the table of settings', () => {
  test.each(OPTION_NAMES)('%s has one sentence that ends in a full stop', (option) => {
    const { summary } = spec(option);
    expect(summary).toMatch(/^[A-Z].*[^.]\.$/);
    expect(summary).not.toMatch(/\n|[.;] [A-Z].*\. [A-Z]/);
    expect(option).toMatch(/^[a-z]+(-[a-z]+)*$/);
  });

  test('a flag and a variable are the same word', () => {
    expect(variableOf('keep-last')).toBe('DBBACKUP_KEEP_LAST');
    expect(OPTION_NAMES.map((o) => variableOf(o).replace('DBBACKUP_', '').toLowerCase().replaceAll('_', '-'))).toEqual(OPTION_NAMES);
  });

  test('DESIGN names each setting, and the table each of DESIGN that is built', () => {
    expect(OPTION_NAMES.toSorted()).toEqual(
      (
        'database name source-check to state-dir accept-moved keep-last keep-within keep-daily keep-weekly keep-monthly keep-yearly ' +
        'lock-wait timeout max-age if-older-than retries retry-wait retry-backoff before after on-failure compress encrypt-to identity-file include upload upload-prune upload-timeout warn-after mail-to mail-to-critical mail-from smtp-url slack-webhook webhook ping-url notify-on metrics-file log-dir log-keep'
      )
        .split(' ')
        .toSorted(),
    );
  });

  test.each(Object.keys(COMMANDS) as CommandName[])('%s has a flag for what it heeds, and for no secret', (command) => {
    const help = parseArguments([command, '--help'], '0');
    const text = 'words' in help ? help.words : '';
    const offered = [...text.matchAll(/^ {2}(?:-\w, )?--([a-z-]+)/gm)].map((m) => m[1]);
    const heeded = OPTION_NAMES.filter((o) => !spec(o).secret && spec(o).commands.includes(command));
    expect(OPTION_NAMES.filter((o) => offered.includes(o))).toEqual(heeded);
    for (const o of OPTION_NAMES.filter((n) => spec(n).secret && spec(n).commands.includes(command))) expect(text).toContain(`${variableOf(o)}_FILE`);
    // Wrapped over lines, each sentence is still all there.
    const plain = text.replace(/\s+/g, ' ');
    for (const o of heeded) expect(plain).toContain(spec(o).summary);
  });

  test.each(OPTION_NAMES.filter((o) => !spec(o).secret))('the flag --%s arrives as the setting', (option) => {
    const { value, commands } = spec(option);
    const command = commands[0] ?? 'run';
    const parsed = parseArguments([command, ...(value === '' ? [`--${option}`] : [`--${option}`, 'x y'])], '0');
    expect('flags' in parsed && parsed.flags.get(option)).toEqual(value === '' ? ['true'] : ['x y']);
  });

  test('every default that the table states is the one that holds', async () => {
    const c = await config({});
    expect(c).toMatchObject({
      sourceCheck: OPTIONS['source-check'].fallback,
      stateDir: '/backups/.dbbackup',
      logDir: '/backups/.dbbackup/log',
      acceptMoved: false,
      ifOlderThanMs: null,
      telling: { mail: null, slack: null, webhook: null, ping: null },
    });
    expect(c.lockWaitMs).toBe(OPTIONS['lock-wait'].parse(OPTIONS['lock-wait'].fallback));
    expect(c.timeoutMs).toBe(OPTIONS.timeout.parse(OPTIONS.timeout.fallback));
    expect(c.maxAgeMs).toBe(OPTIONS['max-age'].parse(OPTIONS['max-age'].fallback));
    expect(c.logKeepMs).toBe(OPTIONS['log-keep'].parse(OPTIONS['log-keep'].fallback));
    expect(c.policy).toEqual({ last: 7, withinMs: null, daily: 30, weekly: null, monthly: null, yearly: null });
    expect([c.timeoutMs, c.maxAgeMs, c.lockWaitMs]).toEqual([7_200_000, 93_600_000, 0]);
  });
});

// ------------------------------------------------------------------------------------------------------ who wins

describe('precedence', () => {
  const SOURCES = ['flag', 'env', 'file'] as const;
  const subsets = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => SOURCES.filter((_, i) => bits & (1 << i)));

  test.each(subsets.map((s) => [s.join(' + ') || 'nothing', s] as const))('%s', async (_, given) => {
    const path = envFile(['DBBACKUP_MAX_AGE=3h', 'DBBACKUP_TO=/f', 'DBBACKUP_DATABASE=/f.db'].slice(given.includes('file') ? 0 : 1));
    const loaded = await load({
      envFile: path,
      flags: given.includes('flag') ? { 'max-age': '1h' } : {},
      env: given.includes('env') ? { DBBACKUP_MAX_AGE: '2h' } : {},
    });
    const winner = given[0] ?? 'default';
    expect(loaded.config?.maxAgeMs).toBe({ flag: 1, env: 2, file: 3, default: 26 }[winner] * 3_600_000);
    expect(shown(loaded, 'max-age')).toEqual({
      value: { flag: '1h', env: '2h', file: '3h', default: '26h' }[winner],
      origin: { flag: '--max-age', env: 'DBBACKUP_MAX_AGE', file: path, default: 'default' }[winner],
    });
  });

  test('a list comes from one source as a whole', async () => {
    const c = await config({
      flags: { 'mail-to': ['flag@x.org'] },
      env: { DBBACKUP_MAIL_TO: 'a@x.org,b@x.org', DBBACKUP_SMTP_URL: 'smtp://localhost' },
    });
    expect(c.telling.mail?.to).toEqual(['flag@x.org']);
  });

  test('an empty variable is one that is not given', async () => {
    const c = await config({ env: { DBBACKUP_MAX_AGE: '', DBBACKUP_NAME: '' }, file: ['DBBACKUP_MAX_AGE=4h', 'DBBACKUP_LOG_KEEP='] });
    expect(c).toMatchObject({ maxAgeMs: 4 * 3_600_000, name: 'app', logKeepMs: 30 * 86_400_000 });
  });

  test('the same holds for the file of a secret', async () => {
    const path = envFile(['DBBACKUP_SMTP_URL_FILE=url', 'DBBACKUP_MAIL_TO=a@x.org']);
    writeFileSync(join(path, '../url'), 'smtp://mx.x.org\n', { mode: 0o600 });
    expect((await config({ envFile: path, env: { DBBACKUP_SMTP_URL: '', DBBACKUP_SMTP_URL_FILE: '' } })).telling.mail?.route).toMatchObject({
      host: 'mx.x.org',
    });
  });

  test('the keep-* defaults vanish as soon as one keep-* is given, wherever', async () => {
    const none = { last: null, withinMs: null, daily: null, weekly: null, monthly: null, yearly: null };
    expect((await config({ flags: { 'keep-weekly': '4' } })).policy).toEqual({ ...none, weekly: 4 });
    expect((await config({ env: { DBBACKUP_KEEP_YEARLY: '2' } })).policy).toEqual({ ...none, yearly: 2 });
    expect((await config({ file: ['DBBACKUP_KEEP_WITHIN=8d'] })).policy).toEqual({ ...none, withinMs: 8 * 86_400_000 });
    expect((await config({ flags: { 'keep-last': '5' }, file: ['DBBACKUP_KEEP_DAILY=9'] })).policy).toEqual({ ...none, last: 5, daily: 9 });
  });

  test('the environment of the process is left as it was', async () => {
    const before = { ...process.env };
    await load({ file: ['DBBACKUP_MAX_AGE=4h', 'AWS_SECRET_ACCESS_KEY=x', 'FOO=bar'] });
    expect({ ...process.env }).toEqual(before);
  });
});

describe('relative paths', () => {
  test('in an env file count from the file, elsewhere from the working directory', async () => {
    const path = envFile(['DBBACKUP_DATABASE=data/app.db', 'DBBACKUP_TO=../backups', 'DBBACKUP_STATE_DIR=./state', 'DBBACKUP_LOG_DIR=/var/log/x']);
    const base = join(path, '..');
    const fromFile = await load({ envFile: path, cwd: '/somewhere' });
    expect(fromFile.config).toMatchObject({
      database: `${base}/data/app.db`,
      to: join(base, '../backups'),
      stateDir: `${base}/state`,
      logDir: '/var/log/x',
    });
    const elsewhere = await load({ cwd: '/somewhere', flags: { database: 'data/app.db' }, env: { DBBACKUP_TO: './b/../c/' } });
    expect(elsewhere.config).toMatchObject({ database: '/somewhere/data/app.db', to: '/somewhere/c', stateDir: '/somewhere/c/.dbbackup' });
  });

  test('the env file itself counts from the working directory', async () => {
    const path = envFile(['DBBACKUP_TO=x', 'DBBACKUP_DATABASE=y']);
    const loaded = await load({ envFile: basename(path), cwd: join(path, '..') });
    expect(loaded.config?.to).toBe(join(path, '../x'));
  });

  test.each([
    ['', 'not given'],
    [' app.db', /blanks/],
    ['app.db ', /blanks/],
    ['dir/ app.db', /blanks/],
    ['app\u0007.db', /control/],
    ['app\u202egnp.db', /bidirectional/],
  ])('the path %j is refused', async (path, why) => {
    const found = await problems({ flags: { database: path } });
    if (path === '') expect(found).toHaveLength(1);
    else expect(found).toEqual([expect.stringMatching(why)]);
    for (const p of found) expect(p).not.toMatch(UNPRINTABLE);
  });
});

// -------------------------------------------------------------------------------------------------------- values

describe('values', () => {
  test('lists: commas in the environment and in files, repeated flags', async () => {
    const url = { DBBACKUP_SMTP_URL: 'smtp://localhost' };
    expect((await config({ env: { ...url, DBBACKUP_MAIL_TO: ' a@x.org, b@x.org ,,c@x.org,' } })).telling.mail?.to).toEqual(['a@x.org', 'b@x.org', 'c@x.org']);
    expect((await config({ env: url, file: ['DBBACKUP_MAIL_TO="a@x.org,b@x.org"'] })).telling.mail?.to).toEqual(['a@x.org', 'b@x.org']);
    const flags = await config({ env: url, flags: { 'mail-to': ['a@x.org', 'b@x.org'], 'notify-on': ['recovery'] } });
    expect([flags.telling.mail?.to, flags.telling.mail?.from, [...(flags.telling.mail?.on ?? [])]]).toEqual([['a@x.org', 'b@x.org'], 'a@x.org', ['recovery']]);
    expect(await problems({ env: url, flags: { 'mail-to': 'a@x.org,b@x.org' } })).toEqual([
      expect.stringMatching(/^mail-to: mail-to "a@x\.org,b@x\.org" must be/),
    ]);
  });

  test.each([
    ['90s', 90_000],
    ['30m', 1_800_000],
    ['26h', 93_600_000],
    ['30d', 2_592_000_000],
    ['2w', 1_209_600_000],
    ['500ms', 500],
    ['007s', 7000],
  ])('the duration %s', async (text, ms) => {
    expect((await config({ flags: { timeout: text } })).timeoutMs).toBe(ms);
  });

  test.each(['10', '1.5h', '-5m', '5 m', 'h', '1H', '1h30m', '1y', '1e3s', '٣h', 'Infinity', '0x10s', 's5'])('no duration: %s', async (text) => {
    expect(await problems({ flags: { timeout: text } })).toEqual([`timeout: timeout "${text}" must be a duration like 90s, 30m, 26h or 30d (--timeout)`]);
  });

  test.each(['999999999999w', '99999999999999d'])('a duration that is too long: %s', async (text) => {
    expect(await problems({ flags: { timeout: text } })).toEqual([`timeout: timeout "${text}" is longer than a hundred years (--timeout)`]);
  });

  test('no time at all is a time to wait, and no time limit', async () => {
    expect((await config({ flags: { 'lock-wait': '0s' } })).lockWaitMs).toBe(0);
    for (const option of ['timeout', 'max-age', 'log-keep', 'keep-within', 'if-older-than'] as const) {
      expect(await problems({ flags: { [option]: '0h' } })).toEqual([`${option}: ${option} "0h" must be longer than 0 (--${option})`]);
    }
  });

  test.each([
    ['0', 0],
    ['7', 7],
    ['007', 7],
    ['999999', 999_999],
    ['all', Number.POSITIVE_INFINITY],
  ])('the count %s', async (text, n) => {
    expect((await config({ flags: { 'keep-last': text, 'keep-daily': '1' } })).policy.last).toBe(n);
  });

  test.each(['-1', '+1', '1.5', 'ALL', 'everything', '1e3', ' 7', '7 ', '0x7', 'NaN', 'Infinity', '७'])('no count: %j', async (text) => {
    expect(await problems({ flags: { 'keep-daily': text } })).toEqual([`keep-daily: keep-daily "${text}" must be a whole number, or all (--keep-daily)`]);
  });

  test('a count that is too large', async () => {
    expect(await problems({ flags: { 'keep-daily': '1000000' } })).toEqual(['keep-daily: keep-daily "1000000" is more than 999999: say all (--keep-daily)']);
  });

  test.each([
    ['source-check', 'deep', /quick or full/],
    ['notify-on', 'trouble', /must be failure, recovery, warning or success, or one of these for one channel, like slack:success/],
    ['notify-on', 'pigeon:success', /must be failure/],
    ['notify-on', 'slack:success:x', /must be failure/],
    ['notify-on', 'slack:', /must be failure/],
    ['mail-to-critical', 'nobody at all', /mail address/],
    ['mail-from', 'Ops <ops@x.org>', /mail address/],
    ['mail-from', 'a@b@c', /mail address/],
    ['mail-from', 'a b@c', /mail address/],
    ['mail-from', 'a@x.org\r\nBcc: z@x.org', /mail address/],
  ] as const)('%s %j is refused', async (option, text, why) => {
    const env = { DBBACKUP_SMTP_URL: 'smtp://localhost', DBBACKUP_MAIL_TO: 'a@x.org' };
    const found = await problems({ env, flags: { [option]: text } });
    expect(found).toEqual([expect.stringMatching(why)]);
    expect(found[0]).not.toMatch(UNPRINTABLE);
  });

  test.each([
    ['1', true],
    ['true', true],
    ['YES', true],
    ['on', true],
    ['0', false],
    ['False', false],
    ['no', false],
    ['off', false],
  ])('accept-moved=%s', async (text, value) => {
    expect((await config({ env: { DBBACKUP_ACCEPT_MOVED: text } })).acceptMoved).toBe(value);
  });

  test('accept-moved=maybe is refused', async () => {
    expect(await problems({ env: { DBBACKUP_ACCEPT_MOVED: 'maybe' } })).toEqual([expect.stringMatching(/must be true or false \(DBBACKUP_ACCEPT_MOVED\)/)]);
  });
});

describe('a policy that keeps nothing', () => {
  test.each([{ 'keep-last': '0' }, { 'keep-daily': '0' }, { 'keep-last': '0', 'keep-daily': '0', 'keep-yearly': '0' }])('%o', async (flags) => {
    expect(await problems({ flags })).toEqual([expect.stringMatching(/^keep-(last|daily): this policy would keep nothing/)]);
  });
  test('is said of a rule that was given', async () => {
    expect(await problems({ flags: { 'keep-weekly': '0' } })).toEqual([expect.stringMatching(/^keep-weekly: .*\(--keep-weekly\)$/)]);
    expect(await problems({ env: { DBBACKUP_KEEP_YEARLY: '0' } })).toEqual([expect.stringMatching(/^keep-yearly: .*\(DBBACKUP_KEEP_YEARLY\)$/)]);
  });
  test.each([
    { 'keep-last': '0', 'keep-daily': '1' },
    { 'keep-last': '0', 'keep-within': '1h' },
    { 'keep-weekly': 'all', 'keep-last': '0' },
  ])('%o is none', async (flags) => {
    await config({ flags });
  });
  test('a count that does not parse is one problem, not two', async () => {
    expect(await problems({ flags: { 'keep-last': 'x', 'keep-daily': '0' } })).toHaveLength(1);
  });
});

// --------------------------------------------------------------------------------------------------------- names

describe('names', () => {
  test.each(['app', 'A', '7', '_x', 'größe', '漢字', 'a b', 'a.b_c-d', 'n'.repeat(100), '漢'.repeat(63)])('%s is one', async (name) => {
    expect(await config({ flags: { name } })).toMatchObject({ name, nameGiven: true });
  });
  test.each(['', '.app', '-app', ' app', 'a/b', '../a', 'a\nb', 'a*', 'a\u202eb', '😀', 'n'.repeat(101), 'e\u0301'])('%j is none', async (name) => {
    const found = await problems({ flags: { name } });
    expect(found).toEqual([expect.stringMatching(/^name: name ".*" must begin with a letter/)]);
    expect(found[0]).not.toMatch(UNPRINTABLE);
  });
  test('is bounded in bytes too, since a file name is', async () => {
    expect(await problems({ flags: { name: '漢'.repeat(64) } })).toEqual([expect.stringMatching(/longer than 190 bytes/)]);
  });

  test.each([
    ['/srv/app.db', 'app'],
    ['/srv/app.tar.sqlite3', 'app.tar'],
    ['/srv/app', 'app'],
    ['/srv/.hidden', '_hidden'],
    ['/srv/.hidden.db', '_hidden'],
    ['/srv/-dash.db', '_dash'],
    ['/srv/:memory:', '_memory_'],
    ['/srv/a?b#c%20d&e=f.db', 'a_b_c_20d_e_f'],
    ['/srv/it\'s "x".db', 'it_s _x_'],
    ['/srv/größe 漢字 😀.db', 'größe 漢字 _'],
    ['/srv/😀.db', '_'],
    ['/srv/a\\b.db', 'a_b'],
    [`/srv/${'n'.repeat(200)}.db`, 'n'.repeat(100)],
    [`/srv/${'漢'.repeat(80)}.db`, '漢'.repeat(63)],
    ['/srv/app.', 'app'],
    ['/srv/...', '_.'],
  ])('%s is called %s', async (database, name) => {
    expect(await config({ flags: { database } })).toMatchObject({ name, nameGiven: false });
  });

  test('a derived name is always a name', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', minLength: 1, maxLength: 300 }), (file) => {
        const name = nameFromFile(`/srv/${file.replaceAll('/', '')}x`);
        expect(name).toMatch(/^[\p{L}\p{N}_][\p{L}\p{N}._ -]{0,99}$/u);
        expect(Buffer.byteLength(name)).toBeLessThanOrEqual(190);
      }),
    );
  });

  test('comes from the profile before the database, and from --name before both', async () => {
    const xdg = tempDirectory('xdg');
    mkdirSync(join(xdg, 'dbbackup'));
    writeFileSync(join(xdg, 'dbbackup/shop.env'), 'DBBACKUP_DATABASE=/srv/app.db\nDBBACKUP_TO=/b\n', { mode: 0o600 });
    const given = { profile: 'shop', env: { XDG_CONFIG_HOME: xdg } };
    expect((await load(given)).config).toMatchObject({ profile: 'shop', name: 'shop', nameGiven: true });
    expect((await load({ ...given, flags: { name: 'other' } })).config).toMatchObject({ profile: 'shop', name: 'other', nameGiven: true });
  });
});

// ------------------------------------------------------------------------------------------------------ problems

describe('problems', () => {
  test('are told all at once, each with its origin', async () => {
    const path = envFile(['DBBACKUP_KEEP_LAST=many', 'DBBACKUP_KEEP_DAYLY=3', 'DBBACKUP_TIMEOUT']);
    const loaded = await load({
      envFile: path,
      flags: { 'max-age': 'soon', name: '../x' },
      env: { DBBACKUP_SOURCE_CHECK: 'deep', DBBACKUP_MAIL_TO: 'a@x.org', DBBACKUP_FOO_BAR_BAZ_QUX: '1', FOO: 'none of ours' },
    });
    expect(loaded.config).toBe(null);
    expect(loaded.problems.map((p) => [p.setting, p.origin]).toSorted()).toEqual(
      [
        ['DBBACKUP_FOO_BAR_BAZ_QUX', 'environment'],
        ['DBBACKUP_KEEP_DAYLY', path],
        ['DBBACKUP_TIMEOUT', path],
        ['database', 'dbbackup run FILE, or DBBACKUP_DATABASE'],
        ['keep-last', path],
        ['mail-to', 'DBBACKUP_MAIL_TO'],
        ['max-age', '--max-age'],
        ['name', '--name'],
        ['source-check', 'DBBACKUP_SOURCE_CHECK'],
        ['to', '--to DIR, or DBBACKUP_TO'],
      ].toSorted(),
    );
  });

  test.each([
    ['DBBACKUP_KEEP_LSAT', 'DBBACKUP_KEEP_LAST'],
    ['DBBACKUP_KEEPLAST', 'DBBACKUP_KEEP_LAST'],
    ['DBBACKUP_DATBASE', 'DBBACKUP_DATABASE'],
    ['DBBACKUP_SMTP_URL_FIEL', 'DBBACKUP_SMTP_URL_FILE'],
    ['DBBACKUP_MAILTO', 'DBBACKUP_MAIL_TO'],
    ['DBBACKUP_STATEDIR', 'DBBACKUP_STATE_DIR'],
    ['DBBACKUP_to', 'DBBACKUP_TO'],
    ['dbbackup_keep_last', 'DBBACKUP_KEEP_LAST'],
  ])('%s: did you mean %s?', async (wrong, right) => {
    expect(await problems({ env: { [wrong]: 'x' } })).toEqual([`${wrong}: ${wrong} is not a setting; did you mean ${right}? (environment)`]);
    const path = envFile([`${wrong}=x`]);
    expect(await problems({ envFile: path })).toEqual([`${wrong}: ${wrong} is not a setting; did you mean ${right}? (${path})`]);
  });

  test('what is far from everything gets no suggestion, and a file only where a secret may be one', async () => {
    expect(await problems({ env: { DBBACKUP_QUITE_SOMETHING_ELSE_AGAIN: 'x' } })).toEqual([
      'DBBACKUP_QUITE_SOMETHING_ELSE_AGAIN: DBBACKUP_QUITE_SOMETHING_ELSE_AGAIN is not a setting (environment)',
    ]);
    expect(await problems({ env: { DBBACKUP_TO_FILE: 'x' } })).toHaveLength(1);
  });

  test('what parsed on its own is still there for the record and the mail', async () => {
    const loaded = await load({
      flags: { to: '/b', database: '/srv/app.db', 'keep-last': 'x' },
      env: { DBBACKUP_MAIL_TO: 'a@x.org', DBBACKUP_SMTP_URL: 'smtp://localhost' },
    });
    expect(loaded.config).toBe(null);
    expect(loaded.partial).toMatchObject({ to: '/b', stateDir: '/b/.dbbackup', name: 'app', telling: { mail: { to: ['a@x.org'] } } });
    const worse = await load({ flags: { to: ' b', name: '-' } });
    expect(worse.partial).toMatchObject({ to: null, stateDir: null, name: null, telling: { mail: null } });
  });

  test('notify-on: one list for all, and one of its own for a channel', async () => {
    const env = {
      DBBACKUP_SMTP_URL: 'smtp://localhost',
      DBBACKUP_MAIL_TO_CRITICAL: 'boss@x.org',
      DBBACKUP_SLACK_WEBHOOK: 'https://hooks.slack.com/services/T/B/X',
      DBBACKUP_WEBHOOK: 'http://localhost:8080/x',
    };
    const on = async (text: string): Promise<string[][]> => {
      const { mail, slack, webhook } = (await config({ env: { ...env, DBBACKUP_NOTIFY_ON: text } })).telling;
      return [mail, slack, webhook].map((channel) => [...(channel?.on ?? [])]);
    };
    const usual = ['failure', 'recovery'];
    expect(await on('')).toEqual([usual, usual, usual]);
    expect(await on('success,warning')).toEqual(Array(3).fill(['success', 'warning']));
    expect(await on('slack:success, slack:failure')).toEqual([usual, ['success', 'failure'], usual]);
    expect(await on('failure,mail:warning')).toEqual([['warning'], ['failure'], ['failure']]);
    const { mail, ping } = (await config({ env })).telling;
    expect([mail?.to, mail?.critical, mail?.from, ping]).toEqual([[], ['boss@x.org'], 'boss@x.org', null]);
    expect(await problems({ env: { DBBACKUP_MAIL_TO_CRITICAL: 'boss@x.org' } })).toEqual([
      expect.stringMatching(/^mail-to-critical: mail-to-critical needs smtp-url/),
    ]);
  });

  test('an address that is posted to is a secret in all its parts, and shown as ***', async () => {
    const loaded = await load({
      flags: { to: '/b', database: '/x.db' },
      env: { DBBACKUP_WEBHOOK: 'https://me:p%40ssword@h/in/T0123abcd?key=longvalue', DBBACKUP_PING_URL: 'https://h/backups' },
    });
    expect(shown(loaded, 'webhook')?.value).toBe('***');
    for (const part of ['/in/T0123abcd?key=longvalue', 'T0123abcd', 'longvalue', 'p@ssword', 'p%40ssword']) expect(loaded.secrets).toContain(part);
    // Else every path with that word would be spoilt.
    expect(loaded.secrets).not.toContain('/backups');
    expect(loaded.secrets).toContain('https://h/backups');
  });

  test('mail-to and smtp-url need one another, and a database only run, guard and check', async () => {
    expect(await problems({ flags: { 'mail-to': 'a@x.org' } })).toEqual([expect.stringMatching(/^mail-to: mail-to needs smtp-url.*\(--mail-to\)$/)]);
    expect(await problems({ env: { DBBACKUP_SMTP_URL: 'smtp://localhost' } })).toEqual([expect.stringMatching(/^smtp-url: .*\(DBBACKUP_SMTP_URL\)$/)]);
    for (const command of Object.keys(COMMANDS) as CommandName[]) {
      const loaded = await load({ command, flags: { to: '/b' } });
      expect(loaded.problems.map((p) => p.setting)).toEqual(['run', 'guard', 'check'].includes(command) ? ['database'] : []);
    }
  });

  test('who looks or restores by hand is not refused where smtp-url is a credential of the unit', async () => {
    const given = { flags: { ...LEAST }, env: { DBBACKUP_MAIL_TO: 'a@x.org' } };
    const refused: string[] = [];
    for (const command of Object.keys(COMMANDS) as CommandName[]) if (!(await load({ ...given, command })).config) refused.push(command);
    expect(refused.sort()).toEqual(['check', 'guard', 'prune', 'run', 'schedule', 'verify']);
    expect((await load({ ...given, command: 'status', notify: true })).problems.map((p) => p.setting)).toEqual(['mail-to']);
  });

  test('an env file that its group can write, where that is our own', async () => {
    expect(await problems({ envFile: envFile(['DBBACKUP_KEEP_LAST=3'], 0o660) })).toEqual([]);
  });

  asRoot.each([
    ['that of the process', 4242, 4242, UID, false],
    ["root's", 0, 4242, UID, false],
    ['another one', 4243, 4242, UID, true],
    ['another one, with the eyes of another user (schedule), whose groups are not ours', 4243, 4242, 4711, false],
  ])('an env file that its group can write: %s', async (_, group, ours, uid, refused) => {
    const file = envFile(['DBBACKUP_KEEP_LAST=3'], 0o660);
    chownSync(file, uid, group);
    process.setegid?.(ours);
    try {
      const why = `env-file: ${file} can be written by its group (${group}): chmod g-w ${file} (${file})`;
      expect(await problems({ envFile: file, uid })).toEqual(refused ? [why] : []);
    } finally {
      process.setegid?.(0);
    }
  });

  test.each(['to', 'state-dir', 'log-dir'] as const)('%s: a directory whose name is not UTF-8', async (option) => {
    const said = await problems({ flags: { [option]: '/back\ufffdups' } });
    expect(said).toEqual([expect.stringMatching(new RegExp(`^${option}: .* is not UTF-8`))]);
  });

  test('whatever is given: a Config or problems, never an exception, never a raw control character', async () => {
    const variables = OPTION_NAMES.filter((o) => o !== 'smtp-url').map(variableOf);
    const value = fc.oneof(fc.string({ unit: 'binary', maxLength: 30 }), fc.constantFrom('7', 'all', '1h', 'a@x.org', '/x', 'full', '0', 'true'));
    const env = fc.dictionary(fc.oneof({ weight: 9, arbitrary: fc.constantFrom(...variables) }, { weight: 1, arbitrary: fc.string() }), value, { maxKeys: 8 });
    await fc.assert(
      fc.asyncProperty(env, async (e) => {
        const loaded = await load({ env: e });
        expect(loaded.config === null).toBe(loaded.problems.length > 0);
        for (const p of loaded.problems) expect(p.message + p.origin).not.toMatch(UNPRINTABLE);
        for (const s of loaded.shown) expect(s.value + s.origin).not.toMatch(UNPRINTABLE);
      }),
      { numRuns: 100 },
    );
  });
});

// ------------------------------------------------------------------------------------------------------- secrets

const CANARY = 'cAnArY-7f3e';

describe('secrets', () => {
  const MAIL = { DBBACKUP_MAIL_TO: 'a@x.org' };
  const URL_TEXT = `smtp://ops:${CANARY}@mx.x.org`;
  const secretFile = (text: string, mode = 0o600): string => envFile([text], mode, 'secret');

  test('directly, from a file, from a credential of systemd', async () => {
    const credentials = tempDirectory('credentials');
    writeFileSync(join(credentials, 'smtp_url'), `${URL_TEXT}\n`);
    // systemd's are 0440 and root's, below a directory that is ours alone.
    chmodSync(join(credentials, 'smtp_url'), 0o444);
    const ways = [
      { given: { env: { ...MAIL, DBBACKUP_SMTP_URL: URL_TEXT } }, origin: 'DBBACKUP_SMTP_URL' },
      { given: { env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: secretFile(`  ${URL_TEXT}  `) } }, origin: 'DBBACKUP_SMTP_URL_FILE' },
      { given: { env: { ...MAIL, CREDENTIALS_DIRECTORY: credentials } }, origin: 'credential smtp_url' },
    ];
    for (const { given, origin } of ways) {
      const loaded = await load({ ...given, flags: LEAST });
      expect(loaded.config?.telling.mail?.route).toEqual({ kind: 'smtp', host: 'mx.x.org', port: 587, tls: false, user: 'ops', password: CANARY });
      expect(shown(loaded, 'smtp-url')).toEqual({ value: '***', origin });
      expect(loaded.secrets).toEqual(expect.arrayContaining([URL_TEXT, CANARY]));
      expect(said(loaded)).not.toContain(CANARY);
    }
  });

  test('the path of the file counts from the env file that names it', async () => {
    const path = envFile([`DBBACKUP_SMTP_URL_FILE=secrets/url`, 'DBBACKUP_MAIL_TO=a@x.org']);
    mkdirSync(join(path, '../secrets'));
    writeFileSync(join(path, '../secrets/url'), URL_TEXT, { mode: 0o600 });
    const loaded = await load({ envFile: path, flags: LEAST, cwd: '/' });
    expect(loaded.config?.telling.mail?.route).toMatchObject({ password: CANARY });
    expect(shown(loaded, 'smtp-url')?.origin).toBe(`DBBACKUP_SMTP_URL_FILE in ${path}`);
    const fromEnv = await load({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: 'secrets/url' }, flags: LEAST, cwd: join(path, '..') });
    expect(fromEnv.config?.telling.mail?.route).toMatchObject({ password: CANARY });
  });

  test('two ways are an error, and neither is told', async () => {
    const credentials = tempDirectory('credentials');
    writeFileSync(join(credentials, 'smtp_url'), URL_TEXT);
    const env = { ...MAIL, DBBACKUP_SMTP_URL: URL_TEXT, DBBACKUP_SMTP_URL_FILE: secretFile(URL_TEXT), CREDENTIALS_DIRECTORY: credentials };
    for (const left of [{}, { CREDENTIALS_DIRECTORY: '' }, { DBBACKUP_SMTP_URL_FILE: '' }, { DBBACKUP_SMTP_URL: '' }]) {
      const loaded = await load({ env: { ...env, ...left }, flags: LEAST });
      const ways = 3 - Object.keys(left).length;
      expect(loaded.problems[0]).toMatchObject({ setting: 'smtp-url', message: `smtp-url is given in ${ways} ways; give one` });
      expect(loaded.problems[0]?.origin.split(' and ')).toHaveLength(ways);
      expect(said(loaded)).not.toContain(CANARY);
    }
    // One in the file, another in the environment.
    const mixed = await load({ env: { ...MAIL, DBBACKUP_SMTP_URL: URL_TEXT }, file: [`DBBACKUP_SMTP_URL_FILE=/nope`], flags: LEAST });
    expect(mixed.problems[0]?.message).toMatch(/2 ways/);
  });

  test.each([
    ['a missing file', '/nope/url', /no such file/],
    ['a directory', HOME, /regular file/],
    ['a device', '/dev/zero', /regular file/],
  ])('%s', async (_, path, why) => {
    expect(await problems({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: path } })).toEqual([expect.stringMatching(why)]);
  });

  test('an empty file, one that is too large, one that others can read', async () => {
    const large = secretFile('x');
    truncateSync(large, 70_000);
    expect(await problems({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: secretFile('  ') } })).toEqual([expect.stringMatching(/empty/)]);
    expect(await problems({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: large } })).toEqual([expect.stringMatching(/larger/)]);
    for (const mode of [0o644, 0o604, 0o602]) {
      expect(await problems({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: secretFile(URL_TEXT, mode) } })).toEqual([
        expect.stringMatching(/by others: chmod o-rwx/),
      ]);
    }
    const group = { env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: secretFile(URL_TEXT, 0o640) } };
    expect((await config(group)).telling.mail?.route).toMatchObject({ password: CANARY });
  });

  test('a link is followed, as secret stores need it', async () => {
    const link = join(tempDirectory('link'), 'url');
    symlinkSync(secretFile(URL_TEXT), link);
    expect((await config({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: link } })).telling.mail?.route).toMatchObject({ password: CANARY });
  });

  test('those of destinations, wherever they are from, but for what is as short as a word', async () => {
    const env = { AWS_SECRET_ACCESS_KEY: `${CANARY}-env`, AWS_REGION: 'eu-central-1', RCLONE_SFTP_KEY_USE_AGENT: 'true', RCLONE_CONFIG_PASS: 'abc' };
    const loaded = await load({ env, file: [`RCLONE_SFTP_PASS=${CANARY}-file`], flags: LEAST });
    expect(loaded.secrets.toSorted()).toEqual([`${CANARY}-env`, `${CANARY}-file`]);
  });

  asRoot('a file of another user is refused, one of root is not', async () => {
    const theirs = secretFile(URL_TEXT);
    chownSync(theirs, 4711, 4711);
    expect(await problems({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: theirs } })).toEqual([expect.stringMatching(/belongs to uid 4711/)]);
    expect((await config({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: theirs }, uid: 4711 })).telling.mail).not.toBe(null);
    expect((await config({ env: { ...MAIL, DBBACKUP_SMTP_URL_FILE: secretFile(URL_TEXT) }, uid: 4711 })).telling.mail).not.toBe(null);
  });

  test.each([
    CANARY,
    `http://u:${CANARY}@h`,
    `smtp://u:${CANARY}@h/path`,
    `smtp://u:${CANARY}@h?x=1`,
    `smtp://u:${CANARY}#x@h`,
    `smtp://u:${CANARY}%zz@h`,
    `smtp://u:${CANARY}@`,
    `smtp://u:${CANARY}@h:99999`,
    `sendmail:${CANARY}`,
  ])('what does not parse is not repeated: %j', async (text) => {
    for (const given of [{ env: { ...MAIL, DBBACKUP_SMTP_URL: text } }, { env: MAIL, file: [`DBBACKUP_SMTP_URL='${text}'`] }]) {
      const loaded = await load({ ...given, flags: LEAST });
      expect(loaded.problems.map((p) => p.setting)).toEqual(['smtp-url']);
      expect(said(loaded)).not.toContain(CANARY);
      expect(loaded.secrets.join()).toContain(CANARY);
    }
  });

  test('a secret is in no message, whatever else is wrong', async () => {
    const word = fc.string({ minLength: 6, maxLength: 20 }).map((s) => `${CANARY}${s}`);
    await fc.assert(
      fc.asyncProperty(word, fc.constantFrom('', 'smtp://u:', 'smtps://'), fc.constantFrom('', '@h', '@h/p'), async (text, before, after) => {
        const loaded = await load({ env: { DBBACKUP_SMTP_URL: before + text + after, DBBACKUP_TIMEOUT: 'x', DBBACKUP_MAIL_FROM: '<>' } });
        expect(loaded.problems.length).toBeGreaterThan(0);
        expect(said(loaded)).not.toContain(CANARY);
      }),
      { numRuns: 100 },
    );
  });
});

describe('smtp-url', () => {
  const smtp = (r: object): object => ({ kind: 'smtp', tls: false, port: 587, user: '', password: '', ...r });
  test.each([
    ['smtp://mx.x.org', smtp({ host: 'mx.x.org' })],
    ['smtps://mx.x.org', smtp({ host: 'mx.x.org', tls: true, port: 465 })],
    ['smtp://mx.x.org:25/', smtp({ host: 'mx.x.org', port: 25 })],
    ['smtps://mx.x.org:2465', smtp({ host: 'mx.x.org', tls: true, port: 2465 })],
    ['smtp://[::1]:1025', smtp({ host: '::1', port: 1025 })],
    ['smtp://u:p@h', smtp({ host: 'h', user: 'u', password: 'p' })],
    ['smtp://a%40x.org:p%2Fa%3As%25%23%3F@h', smtp({ host: 'h', user: 'a@x.org', password: 'p/a:s%#?' })],
    ['smtp://u:p%C3%A4ss%20w%C3%B6rd@h', smtp({ host: 'h', user: 'u', password: 'päss wörd' })],
    ['smtp://u:p@ss@h', smtp({ host: 'h', user: 'u', password: 'p@ss' })],
    ['smtp://u@h', smtp({ host: 'h', user: 'u' })],
    ['sendmail:', { kind: 'sendmail', program: '/usr/sbin/sendmail' }],
    ['sendmail:/opt/bin/msmtp', { kind: 'sendmail', program: '/opt/bin/msmtp' }],
  ])('%s', (text, route) => {
    expect(mailRoute(text)).toEqual(route);
  });

  test.each([
    ['mx.x.org', /smtp:\/\//],
    ['http://h', /smtp:\/\//],
    ['smtp://', /smtp:\/\//],
    ['smtp:h', /smtp:\/\//],
    ['smtp://h/path', /path or query/],
    ['smtp://h?pool=true', /path or query/],
    ['smtp://h#x', /path or query/],
    ['smtp://u:p#x@h', /# is %23/],
    ['smtp://u:a%zz@h', /percent-encoded/],
    ['smtp://u:a%ff@h', /percent-encoded/],
    ['smtp://h:0x10', /smtp:\/\//],
    ['sendmail:relative', /absolute/],
    ['sendmail:/bin/x\u0007', /absolute/],
  ])('%j is refused', (text, why) => {
    expect(() => mailRoute(text)).toThrow(why);
  });
});

// ------------------------------------------------------------------------------------------------------- env files

describe('the env file', () => {
  test("is read with dotenv's rules", async () => {
    const c = await config({
      file: ['# a comment', 'export DBBACKUP_MAX_AGE=4h', "DBBACKUP_NAME='two words' # why not", 'DBBACKUP_TIMEOUT = "90s"', '', 'OTHER=$(rm -rf /)'],
    });
    expect(c).toMatchObject({ maxAgeMs: 14_400_000, name: 'two words', timeoutMs: 90_000 });
    const windows = await config({ envFile: envFile(['DBBACKUP_MAX_AGE=4h\r', 'DBBACKUP_TIMEOUT=90s\r']) });
    expect(windows).toMatchObject({ maxAgeMs: 14_400_000, timeoutMs: 90_000 });
  });

  test('a line of ours that does not parse is told, not passed over', async () => {
    const path = envFile(['DBBACKUP_KEEP_LAST 7', 'export DBBACKUP_TIMEOUT', 'OTHER THINGS']);
    expect(await problems({ envFile: path })).toEqual([
      `DBBACKUP_KEEP_LAST: the line of DBBACKUP_KEEP_LAST does not parse (${path})`,
      `DBBACKUP_TIMEOUT: the line of DBBACKUP_TIMEOUT does not parse (${path})`,
    ]);
  });

  test('must be there, a regular file, and small', async () => {
    const fifo = join(tempDirectory('fifo'), 'x.env');
    spawnSync('mkfifo', [fifo]);
    const large = envFile(['#']);
    truncateSync(large, 2 << 20);
    for (const [path, why] of [
      ['/nope/x.env', /cannot read \/nope\/x\.env: no such file.*\(--env-file\)/],
      [fifo, /regular file/],
      [HOME, /regular file/],
      ['/dev/zero', /regular file/],
      [large, /larger/],
    ] as const) {
      expect(await problems({ envFile: path })).toEqual([expect.stringMatching(why)]);
    }
  });

  test.each([
    [0o600, [], []],
    [0o640, [], []],
    [0o644, [], ['others: chmod o-rwx']],
    [0o604, [], ['others: chmod o-rwx']],
    [0o660, [], []],
    [0o602, ['written by others: chmod o-w'], ['written by others: chmod o-w']],
    [0o666, ['written by others: chmod o-w'], ['written by others: chmod o-w']],
  ])('with mode %o', async (mode, plain, withSecret) => {
    const plainFile = envFile(['DBBACKUP_MAX_AGE=4h'], mode);
    const secret = envFile([`DBBACKUP_SMTP_URL=smtp://u:${CANARY}@h`, 'DBBACKUP_MAIL_TO=a@x.org'], mode);
    const matching = (texts: readonly string[]): unknown[] => texts.map((t) => expect.stringContaining(t));
    expect(await problems({ envFile: plainFile })).toEqual(matching(plain));
    const found = await problems({ envFile: secret });
    expect(found).toEqual(matching(withSecret));
    expect(found.join()).not.toContain(CANARY);
  });

  test('must not be readable by others either where the secret is a short one of a destination', async () => {
    expect(await problems({ envFile: envFile(['RCLONE_CONFIG_PASS=abc'], 0o644) })).toEqual([expect.stringContaining('others: chmod o-rwx')]);
    expect(await problems({ envFile: envFile(['RCLONE_SFTP_KEY_USE_AGENT=true'], 0o644) })).toEqual([]);
  });

  test('may be readable by others when it names the file of a secret only', async () => {
    const secret = envFile(['smtp://h'], 0o600, 'url');
    await config({ envFile: envFile([`DBBACKUP_SMTP_URL_FILE=${secret}`, 'DBBACKUP_MAIL_TO=a@x.org'], 0o644) });
  });

  asRoot('must belong to root or to the user who runs', async () => {
    const theirs = envFile(['DBBACKUP_MAX_AGE=4h'], 0o644);
    chownSync(theirs, 4711, 4711);
    expect(await problems({ envFile: theirs })).toEqual([`env-file: ${theirs} belongs to uid 4711, not to root or this user (${theirs})`]);
    expect((await config({ envFile: theirs, uid: 4711 })).maxAgeMs).toBe(14_400_000);
    expect((await config({ envFile: envFile(['DBBACKUP_MAX_AGE=4h'], 0o644), uid: 4711 })).maxAgeMs).toBe(14_400_000);
  });

  asRoot('behind a link is the word of whoever laid that', async () => {
    const ours = envFile(['DBBACKUP_MAX_AGE=4h']);
    const link = join(dirname(ours), 'link.env');
    symlinkSync(ours, link);
    expect((await config({ envFile: link })).maxAgeMs).toBe(14_400_000);
    lchownSync(link, 4711, 4711);
    expect(await problems({ envFile: link })).toEqual([`env-file: ${link} belongs to uid 4711, not to root or this user (${link})`]);
  });

  test('that cannot be read is the only problem: what it would have said is not missing', async () => {
    for (const given of [{ envFile: '/nope.env' }, { profile: 'nobody-has-this' }, { envFile: envFile([], 0o666) }]) {
      expect((await load(given)).problems).toHaveLength(1);
    }
  });

  test('and --profile exclude one another', async () => {
    expect(await problems({ envFile: '/x', profile: 'x' })).toEqual([expect.stringMatching(/exclude one another/)]);
  });
});

describe('./.env', () => {
  const here = (lines: readonly string[], mode?: number): string => join(envFile(lines, mode, '.env'), '..');

  test('is found, and announced', async () => {
    const cwd = here(['DBBACKUP_MAX_AGE=4h', 'DBBACKUP_TO=b', 'DBBACKUP_DATABASE=d', 'SECRET_OF_THE_APP=x']);
    const loaded = await load({ cwd });
    expect(loaded.config).toMatchObject({ maxAgeMs: 14_400_000, to: `${cwd}/b` });
    expect(loaded.announcement).toBe(`settings from ${cwd}/.env`);
  });

  test('is not looked at when another file was named', async () => {
    const cwd = here(['DBBACKUP_MAX_AGE=4h']);
    const loaded = await load({ cwd, file: ['DBBACKUP_LOG_KEEP=1d'], flags: LEAST });
    expect(loaded.config).toMatchObject({ maxAgeMs: 26 * 3_600_000, logKeepMs: 86_400_000 });
    expect(loaded.announcement).toBe(null);
  });

  asRoot("an application's own, without a line of ours, is neither announced nor judged", async () => {
    const cwd = here(['DATABASE_URL=x', '# DBBACKUP_TO=x'], 0o666);
    chownSync(join(cwd, '.env'), 4711, 4711);
    const loaded = await load({ cwd, flags: LEAST });
    expect([loaded.problems, loaded.announcement]).toEqual([[], null]);
    writeFileSync(join(cwd, '.env'), 'DBBACKUP_MAX_AGE=4h\n');
    expect(await problems({ cwd })).toEqual([expect.stringMatching(/belongs to uid 4711/)]);
  });

  test('what cannot be read is none of our business', async () => {
    const cwd = tempDirectory('cwd');
    mkdirSync(join(cwd, '.env'));
    const loaded = await load({ cwd, flags: LEAST });
    expect([loaded.problems, loaded.announcement]).toEqual([[], null]);
  });

  test('may not name a program', async () => {
    const mail = 'DBBACKUP_MAIL_TO=a@x.org';
    for (const line of ['DBBACKUP_SMTP_URL=sendmail:/tmp/evil', 'DBBACKUP_SMTP_URL_FILE=url']) {
      const cwd = here([line, mail]);
      writeFileSync(join(cwd, 'url'), 'sendmail:/tmp/evil', { mode: 0o600 });
      const loaded = await load({ cwd, flags: LEAST });
      expect(loaded.problems.map((p) => p.message)).toEqual([expect.stringContaining('may not name a program')]);
      // Nor is it started to mail that very problem.
      expect(loaded.partial.telling.mail).toBe(null);
    }
    expect((await config({ cwd: here(['DBBACKUP_SMTP_URL=sendmail:', mail]) })).telling.mail?.route).toEqual({
      kind: 'sendmail',
      program: '/usr/sbin/sendmail',
    });
    // Named by the operator, in whatever way: then it may.
    const env = { DBBACKUP_SMTP_URL: 'sendmail:/opt/msmtp' };
    expect((await config({ cwd: here([mail]), env })).telling.mail?.route).toMatchObject({ program: '/opt/msmtp' });
    expect((await config({ file: ['DBBACKUP_SMTP_URL=sendmail:/opt/msmtp', mail] })).telling.mail?.route).toMatchObject({ program: '/opt/msmtp' });
  });
});

describe('profiles', () => {
  function home(...profiles: readonly string[]): { XDG_CONFIG_HOME: string } {
    const xdg = tempDirectory('xdg');
    mkdirSync(join(xdg, 'dbbackup'));
    for (const p of profiles) writeFileSync(join(xdg, `dbbackup/${p}.env`), 'DBBACKUP_DATABASE=data.db\nDBBACKUP_TO=/b\n', { mode: 0o600 });
    return { XDG_CONFIG_HOME: xdg };
  }

  test('are env files in the configuration directory', async () => {
    const env = home('shop');
    const loaded = await load({ env, profile: 'shop', cwd: '/' });
    expect(loaded.config).toMatchObject({ profile: 'shop', database: `${env.XDG_CONFIG_HOME}/dbbackup/data.db` });
    expect(loaded.announcement).toBe(null);
  });

  test('lie below ~/.config where XDG_CONFIG_HOME is not set', async () => {
    const { XDG_CONFIG_HOME } = home('shop');
    const user = tempDirectory('home');
    symlinkSync(XDG_CONFIG_HOME, join(user, '.config'));
    expect((await load({ env: { HOME: user }, profile: 'shop' })).config).toMatchObject({ profile: 'shop', to: '/b' });
    expect((await load({ env: { HOME: user, XDG_CONFIG_HOME: '' }, profile: 'shop' })).config).toMatchObject({ to: '/b' });
  });

  test('are looked for in order, and all places are told', async () => {
    expect(await problems({ env: { XDG_CONFIG_HOME: '/x', HOME: '/h' }, profile: 'nobody-has-this' })).toEqual([
      'profile: there is no profile nobody-has-this: looked for /x/dbbackup/nobody-has-this.env and /etc/dbbackup/nobody-has-this.env (--profile)',
    ]);
    expect(await problems({ env: { HOME: '/h' }, profile: 'nobody-has-this' })).toEqual([
      expect.stringContaining('/h/.config/dbbackup/nobody-has-this.env and /etc/'),
    ]);
    // A unit of systemd's may have no HOME at all.
    expect(await problems({ profile: 'nobody-has-this' })).toEqual([expect.stringMatching(/looked for \/etc\/dbbackup\/nobody-has-this\.env \(/)]);
  });

  test('one that is there but cannot be used is not passed over', async () => {
    const env = home('shop');
    chmodSync(join(env.XDG_CONFIG_HOME, 'dbbackup/shop.env'), 0o666);
    expect(await problems({ env, profile: 'shop' })).toEqual([expect.stringMatching(/written by others/)]);
    const gone = home();
    symlinkSync('/nowhere', join(gone.XDG_CONFIG_HOME, 'dbbackup/shop.env'));
    expect(await problems({ env: gone, profile: 'shop' })).toEqual([expect.stringMatching(/cannot read .*shop\.env: no such file.*\(--profile\)/)]);
  });

  test.each(['', '../shop', '/etc/passwd', '.shop', '-shop', 'a b', 'a/b', 'größe', 'a\nb'])('%j is no profile name', async (profile) => {
    const found = await problems({ env: home('shop'), profile });
    expect(found).toEqual([expect.stringMatching(/^profile: ".*" is no profile name/)]);
    expect(found[0]).not.toMatch(UNPRINTABLE);
  });

  test.each(['shop', 'Shop-2', '0', 'a.b_c'])('%s is one', async (profile) => {
    expect((await load({ env: home(profile), profile })).config?.profile).toBe(profile);
  });
});

describe('packing', () => {
  /** A file of these lines, 0600 unless told otherwise. */
  const keysIn = (lines: readonly string[], mode = 0o600): string => envFile(lines, mode, 'keys');
  const one = async (): Promise<{ secret: string; recipient: string }> => {
    const secret = await generateX25519Identity();
    return { secret, recipient: await identityToRecipient(secret) };
  };

  test('is not done unless it is asked for', async () => {
    expect(await config({})).toMatchObject({ packing: { compress: 'none', recipients: [] }, identity: null });
    expect(await config({ flags: { compress: 'gzip' } })).toMatchObject({ packing: { compress: 'gzip', recipients: [] } });
    expect(await problems({ flags: { compress: 'bzip2' } })).toEqual(['compress: compress "bzip2" must be none or gzip or zstd (--compress)']);
  });

  test('zstd needs Node 22.15 or its program, where a copy is made', async () => {
    const said = 'compress: compress zstd needs the program zstd (apt install zstd), or Node 22.15 or newer; or say gzip (--compress)';
    const native = 'createZstdCompress' in (await import('node:zlib'));
    expect(await problems({ flags: { compress: 'zstd' }, env: { PATH: '/nowhere' } })).toEqual(native ? [] : [said]);
    expect(await problems({ flags: { compress: 'zstd' }, command: 'guard', env: { PATH: '' } })).toEqual(native ? [] : [said]);
    expect(await problems({ env: { DBBACKUP_COMPRESS: 'zstd', PATH: '/nowhere' }, command: 'prune' })).toEqual([]);
    if (cannot('zstd') === null) expect((await config({ flags: { compress: 'zstd' }, env: { PATH } })).packing.compress).toBe('zstd');
  });

  test('recipients come one by one, in files, from the environment, each once', async () => {
    const [a, b] = [await one(), await one()];
    const hybrid = await identityToRecipient(await generateHybridIdentity());
    const file = keysIn(['# people', '', `  ${b.recipient}\r`, hybrid], 0o644);
    const recipients = [a.recipient, b.recipient, hybrid];
    expect((await config({ flags: { 'encrypt-to': [a.recipient, file, a.recipient] } })).packing.recipients).toEqual(recipients);
    expect((await config({ env: { DBBACKUP_ENCRYPT_TO: `${a.recipient}, ${file}` } })).packing.recipients).toEqual(recipients);
    // Relative to the env file that names it.
    const settings = envFile([`DBBACKUP_ENCRYPT_TO=${a.recipient},${basename(file)}`]);
    renameSync(file, join(dirname(settings), basename(file)));
    expect((await config({ envFile: settings })).packing.recipients).toEqual(recipients);
    // Who makes no copy does not ask for whom it would be sealed.
    expect(await problems({ command: 'list', env: { DBBACKUP_ENCRYPT_TO: 'age1wrong,/nowhere' } })).toEqual([]);
  });

  test('a recipient that is none', async () => {
    const { recipient } = await one();
    for (const wrong of ['age1', 'age1qqqq', `${recipient.slice(0, -1)}b`, `${recipient}q`, 'age1pq1qqqq']) {
      expect(await problems({ flags: { 'encrypt-to': [recipient, wrong] } })).toEqual([
        `encrypt-to: encrypt-to "${wrong}" is no age recipient: it must be age1... as age-keygen prints it, or a file with one such line for each (--encrypt-to)`,
      ]);
    }
    const file = keysIn([recipient, 'ssh-ed25519 AAAA']);
    expect(await problems({ flags: { 'encrypt-to': file } })).toEqual([expect.stringContaining(`encrypt-to ${file} is no age recipient`)]);
    expect(await problems({ flags: { 'encrypt-to': keysIn(['# nobody', '']) } })).toEqual([expect.stringContaining('holds no recipient')]);
    expect(await problems({ flags: { 'encrypt-to': '/nowhere/keys' } })).toEqual([expect.stringContaining('/nowhere/keys: no such file or directory')]);
    mkdirSync(join(HOME, 'a-directory'));
    expect(await problems({ flags: { 'encrypt-to': join(HOME, 'a-directory') } })).toEqual([expect.stringContaining('not a regular file')]);
  });

  test('a file of recipients that others can write, or that is theirs', async () => {
    const { recipient } = await one();
    const open = keysIn([recipient], 0o666);
    expect(await problems({ flags: { 'encrypt-to': open } })).toEqual([
      `encrypt-to: encrypt-to ${open} can be written by others: chmod o-w ${open} (--encrypt-to)`,
    ]);
    expect(await problems({ flags: { 'encrypt-to': keysIn([recipient], 0o644) } })).toEqual([]);
  });

  asRoot('a file of keys that belongs to a third user', async () => {
    const { recipient, secret } = await one();
    const file = keysIn([recipient]);
    const keys = keysIn([secret]);
    for (const path of [file, keys]) chownSync(path, 4711, 4711);
    expect(await problems({ flags: { 'encrypt-to': file } })).toEqual([expect.stringContaining(`${file} belongs to uid 4711, not to root or this user`)]);
    expect(await problems({ command: 'verify', flags: { 'identity-file': keys } })).toEqual([expect.stringContaining(`${keys} belongs to uid 4711`)]);
    expect(await problems({ flags: { 'encrypt-to': file }, uid: 4711 })).toEqual([]);
    expect((await config({ command: 'verify', flags: { 'identity-file': keys }, uid: 4711 })).identity?.keys).toEqual([secret]);
  });

  test('an identity file is read by who opens copies, and its keys are secrets', async () => {
    const [a, b] = [await one(), await one()];
    const path = keysIn(['# created: today', `# public key: ${a.recipient}`, a.secret, '', `${b.secret}\r`], 0o400);
    const loaded = await load({ command: 'verify', flags: { ...LEAST, 'identity-file': path } });
    expect(loaded.config?.identity).toEqual({ path, keys: [a.secret, b.secret] });
    expect(loaded.secrets).toEqual([a.secret, b.secret]);
    expect(said(loaded)).not.toContain('AGE-SECRET-KEY');
    expect(shown(loaded, 'identity-file')).toEqual({ value: path, origin: '--identity-file' });
    expect((await load({ command: 'list', env: { DBBACKUP_IDENTITY_FILE: '/nowhere' }, flags: LEAST })).problems).toEqual([]);
  });

  test('an identity file that is open to others, sealed, empty, or something else', async () => {
    const { secret, recipient } = await one();
    const wrong = async (path: string): Promise<string> => {
      const loaded = await load({ command: 'restore', flags: { ...LEAST, 'identity-file': path } });
      expect(said(loaded)).not.toContain(secret.slice(16, 40));
      expect(loaded.config).toBe(null);
      return loaded.problems.map((p) => `${p.setting}: ${p.message}`).join();
    };
    for (const mode of [0o644, 0o602, 0o604]) {
      const open = keysIn([secret], mode);
      expect(await wrong(open)).toBe(`identity-file: identity-file ${open} can be read or written by others: chmod o-rwx ${open}`);
    }
    expect(await wrong(keysIn(['age-encryption.org/v1', '-> scrypt AAAA 18']))).toMatch(/sealed with a passphrase/);
    expect(await wrong(keysIn(['-----BEGIN AGE ENCRYPTED FILE-----']))).toMatch(/sealed with a passphrase/);
    expect(await wrong(keysIn(['# nothing']))).toMatch(/holds no secret key/);
    expect(await wrong(keysIn([recipient]))).toMatch(/holds a line that is no age secret key \(AGE-SECRET-KEY-1/);
    expect(await wrong(keysIn([secret, secret.slice(0, -1)]))).toMatch(/holds a line that is no age secret key/);
    expect(await wrong('/nowhere/key')).toMatch(/no such file or directory/);
  });

  test('a secret key given in the place of something else is not repeated, and is known as a secret', async () => {
    const { secret, recipient } = await one();
    const canary = secret.slice(16, 40);
    const refusals: readonly Given[] = [
      { flags: { 'encrypt-to': secret } },
      { flags: { 'encrypt-to': [recipient, secret.toLowerCase()] } },
      { env: { DBBACKUP_ENCRYPT_TO: `${recipient},${secret}` } },
      { flags: { 'encrypt-to': keysIn([recipient, secret]) } },
      { flags: { 'encrypt-to': keysIn([secret.toLowerCase()]) } },
      { command: 'verify', flags: { 'identity-file': secret } },
      { command: 'verify', flags: { 'identity-file': `./${secret}` } },
      { flags: { compress: secret } },
    ];
    for (const given of refusals) {
      const loaded = await load({ ...given, flags: { ...LEAST, ...given.flags } });
      expect(loaded.config).toBe(null);
      expect(JSON.stringify(loaded.problems).toUpperCase()).not.toContain(canary);
      expect(loaded.problems.map((p) => p.message).join()).toMatch(/secret key|must be none/);
      // What is shown passes the redactor, which knows it.
      const hidden = loaded.secrets.reduce((text, known) => text.replaceAll(known, '***'), said(loaded)).toUpperCase();
      expect(hidden).not.toContain(canary);
    }
    // Wherever else it is written: it is never said.
    for (const option of ['name', 'log-dir', 'state-dir', 'database'] as const) {
      expect((await load({ flags: { ...LEAST, [option]: `x-${secret}` } })).secrets).toEqual([secret]);
    }
  });
});
