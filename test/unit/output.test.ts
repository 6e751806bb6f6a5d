/** What leaves the process as text: redacted, printable, and as much of it as was asked for. */
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bytes, duration, plural, table } from '../../src/format.js';
import type { Failure } from '../../src/outcome.js';
import { CODE_DOCS, critical, EXIT_CODES, errnoWords, exitCodeOf, failureOf, warning, describe as words } from '../../src/outcome.js';
import type { OutputOptions } from '../../src/output.js';
import { Output } from '../../src/output.js';
import { redactor, redactValue } from '../../src/redact.js';
import { loadSettings } from '../../src/settings/load.js';
import { printable, printableJson, UNPRINTABLE } from '../../src/settings/values.js';

interface Heard {
  readonly output: Output;
  readonly stdout: () => string;
  readonly stderr: () => string;
}

function listen(options: Partial<OutputOptions> = {}, terminal = false): Heard {
  const [out, err] = [0, 1].map(() => {
    const stream = Object.assign(new PassThrough({ encoding: 'utf8' }), { isTTY: terminal });
    let text = '';
    const take = (): string => {
      for (let chunk = stream.read() as string | null; chunk !== null; chunk = stream.read() as string | null) text += chunk;
      return text;
    };
    return { stream: stream as unknown as NodeJS.WriteStream, take };
  });
  if (!out || !err) throw new Error('no streams');
  const output = new Output(out.stream, err.stream, { json: false, quiet: false, verbose: false, color: true, ...options });
  return { output, stdout: out.take, stderr: err.take };
}

const MISSING: Failure = { code: 'SOURCE_MISSING', path: '/srv/app.db' };
const BUG: Failure = { code: 'INTERNAL', message: 'oh', stack: 'Error: oh\n    at here.js:1' };

/** Says one of each thing. */
function speak(output: Output): void {
  output.info('info');
  output.detail('detail');
  output.stage('snapshot', 1234, 'done');
  output.warning(warning('HEALED', 'mended'));
  output.warning(critical('CLOCK', 'ahead'));
  output.error(MISSING, 'inspect');
  output.data('data');
  output.result('result');
  output.document({ schemaVersion: 1 });
}

describe('what is said', () => {
  const INFO = 'info\n';
  const STAGE = 'snapshot done (1.2 s)\n';
  const WARNING = 'dbbackup: warning HEALED: mended\n';
  const CRITICAL = 'dbbackup: critical CLOCK: ahead\n';
  const ERROR = `dbbackup: error SOURCE_MISSING (inspect): there is no file at /srv/app.db. Hint: ${words(MISSING).hint}\n`;
  const JSON_TEXT = '{\n  "schemaVersion": 1\n}\n';
  test.each([
    ['usually', {}, INFO + STAGE + WARNING + CRITICAL + ERROR, 'data\nresult\n'],
    ['--verbose', { verbose: true }, `${INFO}detail\n${STAGE}${WARNING}${CRITICAL}${ERROR}`, 'data\nresult\n'],
    ['--quiet', { quiet: true }, CRITICAL + ERROR, 'data\n'],
    ['--json', { json: true }, INFO + STAGE + WARNING + CRITICAL + ERROR, JSON_TEXT],
    ['--json --quiet', { json: true, quiet: true }, CRITICAL + ERROR, JSON_TEXT],
  ] as const)('%s', (_, options, stderr, stdout) => {
    const heard = listen(options);
    speak(heard.output);
    expect(heard.stderr()).toBe(stderr);
    expect(heard.stdout()).toBe(stdout);
  });

  test('a bug of ours tells where with --verbose only', () => {
    const plain = listen();
    plain.output.error(BUG, null);
    expect(plain.stderr()).toMatch(/^dbbackup: error INTERNAL: a bug of dbbackup: oh\. Hint: .*\n$/);
    const verbose = listen({ verbose: true });
    verbose.output.error(BUG, null);
    expect(verbose.stderr()).toMatch(/\nError: oh\n {4}at here\.js:1\n$/);
  });

  test('on the journal every line has its priority, also where a message has several, or a text a line break in it', () => {
    const { output, stderr } = listen({ verbose: true, journal: true });
    speak(output);
    output.error(BUG, null);
    output.warning(warning('HEALED', 'one\ntwo'));
    output.trouble('b: exit 1, failed');
    expect(stderr().replace(/^(<.>\S+ ?\S* ?\S*).*$/gmu, '$1')).toBe(
      [
        '<6>info',
        '<6>detail',
        '<6>snapshot done (1.2',
        '<4>dbbackup: warning HEALED:',
        '<3>dbbackup: critical CLOCK:',
        '<3>dbbackup: error SOURCE_MISSING',
        '<3>dbbackup: error INTERNAL:',
        '<3>Error: oh',
        '<3>    at here.js:1',
        '<4>dbbackup: warning HEALED:',
        '<3>b: exit 1,',
        '',
      ].join('\n'),
    );
  });

  test('colour on a terminal only, and not when it was declined', () => {
    for (const [terminal, color, colored] of [
      [true, true, true],
      [true, false, false],
      [false, true, false],
    ] as const) {
      const heard = listen({ color }, terminal);
      speak(heard.output);
      expect(heard.stderr().includes('\u001b[')).toBe(colored);
      expect(heard.stdout()).not.toContain('\u001b');
    }
    const heard = listen({}, true);
    heard.output.error(MISSING, null);
    expect(heard.stderr()).toContain('\u001b[31merror\u001b[0m');
  });

  test('progress is for a terminal, in one line that the next message overwrites', () => {
    const nobody = listen({}, false);
    nobody.output.progress('snapshot', 1, 2);
    const quiet = listen({ quiet: true }, true);
    quiet.output.progress('snapshot', 1, 2);
    expect(nobody.stderr() + quiet.stderr()).toBe('');
    const heard = listen({ color: false }, true);
    heard.output.progress('snapshot', 500, 2000);
    heard.output.progress('snapshot', 3000, 2000);
    heard.output.info('next');
    heard.output.info('after');
    expect(heard.stderr()).toBe('\r\u001b[Ksnapshot 500 B of 2.0 kB (25 %)\r\u001b[Ksnapshot 3.0 kB of 2.0 kB (100 %)\r\u001b[Knext\nafter\n');
    const nothing = listen({}, true);
    nothing.output.progress('verify', 0, 0);
    expect(nothing.stderr()).toContain('(0 %)');
  });

  test('times are local with offset on a terminal, UTC elsewhere', () => {
    const home = process.env['TZ'];
    process.env['TZ'] = 'Asia/Kolkata';
    try {
      expect(listen({}, true).output.time('2026-11-21T03:17:00.5Z')).toBe('2026-11-21 08:47:00 +05:30');
      expect(listen({}, false).output.time('2026-11-21T03:17:00.5Z')).toBe('2026-11-21T03:17:00.5Z');
      process.env['TZ'] = 'America/St_Johns';
      expect(listen({}, true).output.time('2026-11-21T03:17:00Z')).toBe('2026-11-20 23:47:00 -03:30');
    } finally {
      if (home === undefined) delete process.env['TZ'];
      else process.env['TZ'] = home;
    }
  });
});

describe('control and bidirectional characters', () => {
  const EVIL = 'a\u001b[31mb\u0007\r\n\u202egpj.\u2066\u0085\u200f\u2028z';
  const SAFE = 'a\\u{1b}[31mb\\u{7}\\u{d}\\u{a}\\u{202e}gpj.\\u{2066}\\u{85}\\u{200f}\\u{2028}z';

  test('are never printed raw, nor do they make a new line', () => {
    expect(printable(EVIL)).toBe(SAFE);
    const heard = listen();
    heard.output.info(EVIL);
    heard.output.data(EVIL);
    heard.output.error({ code: 'SOURCE_MISSING', path: EVIL }, null);
    heard.output.warning(warning('TABLES_UNCHECKED', EVIL));
    heard.output.stage('verify', 1, EVIL);
    for (const line of [...heard.stderr().split('\n'), ...heard.stdout().split('\n')]) {
      expect(line).not.toMatch(UNPRINTABLE);
      if (line !== '') expect(line).toContain(SAFE);
    }
    expect(heard.stdout()).toBe(`${SAFE}\n`);
  });

  test('an escape sequence in a file name does not survive on a terminal with colours either', () => {
    const heard = listen({}, true);
    heard.output.error({ code: 'SOURCE_MISSING', path: '/srv/\u001b]0;pwned\u0007\u001b[2J.db' }, 'inspect');
    heard.output.stage('verify', 1, '\u001b[0m');
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are ours
    expect(heard.stderr().replace(/\u001b\[(0|2|31|32|33)m/g, '')).not.toMatch(/[\u0000-\u0009\u000b-\u001f]/);
    expect(heard.stderr()).toContain('/srv/\\u{1b}]0;pwned\\u{7}\\u{1b}[2J.db');
  });

  test('whatever the text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.boolean(), (text, terminal) => {
        const heard = listen({ color: false }, terminal);
        heard.output.data(text);
        heard.output.warning(warning('HEALED', text));
        expect((heard.stdout() + heard.stderr()).replaceAll('\n', '')).not.toMatch(UNPRINTABLE);
        expect(heard.stdout().split('\n')).toHaveLength(2);
      }),
    );
  });

  test('a document holds them escaped, and still says the same', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' })), (value) => {
        const heard = listen({ json: true });
        heard.output.document({ value });
        expect(heard.stdout().replaceAll('\n', '')).not.toMatch(UNPRINTABLE);
        expect(JSON.parse(heard.stdout())).toEqual(JSON.parse(JSON.stringify({ value })));
      }),
    );
    expect(printableJson(JSON.stringify(['\u202e\u0085']))).toBe('["\\u202e\\u0085"]');
    const heard = listen({ json: true });
    heard.output.document({ [EVIL]: [EVIL] });
    expect(heard.stdout().replaceAll('\n', '')).not.toMatch(UNPRINTABLE);
    expect(JSON.parse(heard.stdout())).toEqual({ [EVIL]: [EVIL] });
  });

  test('everything else is left alone', () => {
    expect(printable('größe 漢字 😀 "x" \\ é')).toBe('größe 漢字 😀 "x" \\ é');
  });
});

describe('the redactor', () => {
  test('takes every secret out, the longest first', () => {
    const redact = redactor(['hunter2', 'smtp://u:hunter2@h', 'hunter2-long']);
    expect(redact('smtp://u:hunter2@h and hunter2-long and hunter2hunter2')).toBe('*** and *** and ******');
    expect(redactor([])('hunter2')).toBe('hunter2');
  });

  test('leaves out what is too short to be told from words', () => {
    expect(redactor(['', 'a', 'abc'])('abc a')).toBe('abc a');
    expect(redactor(['abcd'])('xabcdx')).toBe('x***x');
  });

  test('a secret is no pattern', () => {
    expect(redactor(['a.c*$&'])('abc a.c*$& $&')).toBe('abc *** $&');
  });

  test('finds a secret inside JSON, where escaping would hide it', () => {
    const secret = 'pa"ss\\wörd\n\u202e!';
    const redact = redactor([secret]);
    const value = { a: [`x${secret}y`, 7, null, true], b: { c: secret } };
    expect(redactValue(value, redact)).toEqual({ a: ['x***y', 7, null, true], b: { c: '***' } });
    const heard = listen({ json: true });
    heard.output.useRedactor(redact);
    heard.output.document(value);
    expect(heard.stdout()).not.toContain('pa');
    expect(JSON.parse(heard.stdout())).toEqual({ a: ['x***y', 7, null, true], b: { c: '***' } });
  });

  test('is out of a table of more lines than a function takes arguments', () => {
    const heard = listen();
    heard.output.useRedactor(redactor(['hunter2']));
    heard.output.data(table(['FILE'], Array<string[]>(200_000).fill(['hunter2'])));
    const lines = heard.stdout().split('\n');
    expect([lines.length, lines[1], lines.at(-2)]).toEqual([200_002, '***', '***']);
  });

  test('is in every way out', () => {
    const heard = listen({ verbose: true });
    heard.output.useRedactor(redactor(['hunter2']));
    const bad = 'a hunter2 b';
    heard.output.info(bad);
    heard.output.detail(bad);
    heard.output.stage('verify', 1, bad);
    heard.output.warning(warning('HEALED', bad));
    heard.output.error({ code: 'SOURCE_MISSING', path: bad }, null);
    heard.output.error({ code: 'INTERNAL', message: bad, stack: bad }, null);
    heard.output.data(bad);
    heard.output.result(bad);
    expect(heard.stderr() + heard.stdout()).not.toContain('hunter2');
    expect((heard.stderr() + heard.stdout()).match(/a \*\*\* b/g)).toHaveLength(9);
  });

  test('knows the password of smtp-url in each of its spellings', async () => {
    const loaded = await loadSettings({
      command: 'run',
      flags: new Map(),
      env: { DBBACKUP_SMTP_URL: 'smtp://ops:p%40ss%2Fw%C3%B6rd!@mx.x.org', DBBACKUP_MAIL_TO: 'a@x.org' },
      cwd: '/',
      uid: 0,
      profile: null,
      from: null,
      envFile: null,
    });
    const redact = redactor(loaded.secrets);
    for (const text of ['p@ss/wörd!', 'p%40ss%2Fw%C3%B6rd!', 'smtp://ops:p%40ss%2Fw%C3%B6rd!@mx.x.org']) expect(redact(`<${text}>`)).toBe('<***>');
  });

  test('whatever the secret and the text around it', () => {
    fc.assert(
      fc.property(fc.string({ minLength: 4, maxLength: 12 }), fc.string(), fc.string(), (secret, before, after) => {
        fc.pre(!'***'.includes(secret) && !secret.includes('*'));
        const heard = listen({ json: true });
        heard.output.useRedactor(redactor([secret]));
        heard.output.document({ v: before + secret + after });
        expect((JSON.parse(heard.stdout()) as { v: string }).v).not.toContain(secret);
      }),
    );
  });
});

describe('words and codes', () => {
  const FAILURES: readonly Failure[] = [
    MISSING,
    { code: 'SOURCE_UNREADABLE', path: '/p', reason: 'r', owner: 'app' },
    { code: 'SOURCE_UNREADABLE', path: '/p', reason: 'r', owner: null },
    { code: 'SOURCE_NOT_A_FILE', path: '/p', kind: 'a FIFO' },
    { code: 'NOT_A_DATABASE', path: '/p', reason: 'r' },
    { code: 'SOURCE_EMPTY', path: '/p' },
    { code: 'SOURCE_CORRUPT', path: '/p', findings: ['a', 'b', 'c', 'd'], keptAs: 'x.db' },
    { code: 'SOURCE_LOCKED', path: '/p', waitedMs: 5000 },
    { code: 'SOURCE_HOT_JOURNAL', path: '/p' },
    { code: 'SOURCE_READONLY_DIRECTORY', path: '/p', directory: '/', owner: 'app', isOurs: false },
    { code: 'SOURCE_READONLY_DIRECTORY', path: '/p', directory: '/', owner: 'app', isOurs: true },
    { code: 'SOURCE_REPLACED', path: '/p' },
    { code: 'SOURCE_HARD_LINKED', path: '/p', links: 2 },
    { code: 'SIDECAR_OWNER', path: '/p', owner: 'app', left: [] },
    { code: 'SIDECAR_OWNER', path: '/p', owner: 'app', left: ['/p-wal'] },
    { code: 'SNAPSHOT_FAILED', path: '/p', reason: 'r' },
    { code: 'VERIFY_FAILED', findings: ['f'] },
    { code: 'NO_SPACE', path: '/p', neededBytes: 2e6, freeBytes: 1e6, prune: 'dbbackup prune' },
    { code: 'NO_SPACE', path: '/p', neededBytes: null, freeBytes: null, prune: 'dbbackup prune' },
    { code: 'WAL_PRESSURE', path: '/p', freeBytes: 1, walBytes: 2 },
    { code: 'TARGET_UNWRITABLE', path: '/p', reason: 'r' },
    { code: 'TARGET_OWNER', path: '/p', reason: 'r', remedy: 'sudo -u app dbbackup run' },
    { code: 'NAME_TAKEN', name: 'app', source: '/p', other: '/q' },
    { code: 'LOCKED', name: 'app', holder: 'run since then' },
    { code: 'TIMEOUT', afterMs: 1500, published: null },
    { code: 'INTERRUPTED', signal: 'SIGTERM', published: null },
    { code: 'INTERRUPTED', signal: 'SIGKILL', published: 'x.db' },
    { code: 'IO_ERROR', path: '/p', reason: 'r' },
    { code: 'SETTINGS', problems: [{ setting: 's', message: 'm', origin: 'o' }] },
    { code: 'USAGE', message: 'no command', hint: 'give one' },
    { code: 'COPY_NOT_FOUND', path: '/p', reason: 'r', to: '/p' },
    { code: 'NOTIFY_FAILED', reason: 'r', kept: true },
    BUG,
  ];

  test.each(FAILURES.map((f) => [f.code, f] as const))('%s: one line that says what, and a next thing to do', (code, failure) => {
    const { message, hint } = words(failure);
    expect(message).toMatch(/^\S.*\S$/);
    expect(hint).toMatch(/^\S.*\S$/);
    expect(CODE_DOCS[code]).toMatch(/^[A-Z`].*\.$/);
    if ('path' in failure) expect(message + hint).toContain(failure.path);
    expect(EXIT_CODES.map(([n]) => n)).toContain(exitCodeOf(failure, false));
    expect(EXIT_CODES.map(([n]) => n)).toContain(exitCodeOf(failure, true));
  });

  test('the exit codes of the contract', () => {
    const code = (failure: Partial<Failure> & Pick<Failure, 'code'>, published = false): number => exitCodeOf(failure as Failure, published);
    expect(code(MISSING)).toBe(1);
    expect(code({ code: 'NO_SPACE' }, true)).toBe(3);
    expect(code({ code: 'NOTIFY_FAILED' }, true)).toBe(3);
    expect([code({ code: 'TIMEOUT' }), code({ code: 'TIMEOUT' }, true)]).toEqual([1, 3]);
    expect(code({ code: 'USAGE' })).toBe(64);
    expect(code({ code: 'ROLLBACK_FAILED' })).toBe(4);
    expect(code(BUG)).toBe(70);
    expect([code({ code: 'LOCKED' }), code({ code: 'SETTINGS' }), code({ code: 'TARGET_OWNER' })]).toEqual([75, 78, 78]);
    const signals = ['SIGHUP', 'SIGINT', 'SIGTERM'] as const;
    for (const published of [false, true]) {
      expect(signals.map((signal) => exitCodeOf({ code: 'INTERRUPTED', signal, published: null }, published))).toEqual([129, 130, 143]);
    }
    expect(EXIT_CODES.map(([n]) => n)).toEqual([0, 1, 3, 4, 64, 70, 75, 78, 129, 130, 143]);
  });

  test('anything thrown has a name: our own, the system, or a bug', () => {
    const system = Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO', syscall: 'read' });
    expect(failureOf(system).code).toBe('IO_ERROR');
    expect(failureOf(new Error('x'))).toMatchObject({ code: 'INTERNAL', message: 'x' });
    expect(failureOf('x')).toMatchObject({ code: 'INTERNAL', message: 'x' });
    expect(errnoWords(system)).toBe('input/output error (EIO)');
    expect(errnoWords('odd')).toBe('odd');
  });
});

describe('numbers as people read them', () => {
  test.each([
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1.0 kB'],
    [999_949, '999.9 kB'],
    [999_950, '1.0 MB'],
    [20_943_000, '20.9 MB'],
    [5e12, '5.0 TB'],
    [5e15, '5000.0 TB'],
  ])('%d bytes are %s', (n, text) => {
    expect(bytes(n)).toBe(text);
  });
  test.each([
    [0, '0 ms'],
    [999, '999 ms'],
    [1000, '1.0 s'],
    [59_900, '59.9 s'],
    [60_000, '1 m 0 s'],
    [3_599_999, '1 h 0 m'],
    [93_600_000, '26 h 0 m'],
    [172_800_000, '2 d 0 h'],
  ])('%d ms are %s', (ms, text) => {
    expect(duration(ms)).toBe(text);
  });
  test('tables', () => {
    expect(
      table(
        ['A', 'BB', 'C'],
        [
          ['xxx', '1', ''],
          ['', '22222', 'z'],
        ],
        ' >',
      ),
    ).toEqual(['A       BB  C', 'xxx      1', '     22222  z']);
    expect([plural(1, 'row'), plural(0, 'row'), plural(2, 'row')]).toEqual(['1 row', '0 rows', '2 rows']);
  });
});
