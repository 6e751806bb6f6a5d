/** Mail against real servers on loopback and a real program as the MTA: what arrives, what is said when it does not, what must not exist. */
import { execFile, spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, describe, expect, test } from 'vitest';
import type { MailOptions } from '../../src/notifiers/mail.js';
import { connectionOptions, sendMail, verifyMailServer } from '../../src/notifiers/mail.js';
import type { Message } from '../../src/notifiers/message.js';
import type { Letter } from '../../src/notifiers/outbox.js';
import { enqueue, forget, noteAttempt, pending } from '../../src/notifiers/outbox.js';
import { Failed } from '../../src/outcome.js';
import type { MailSettings } from '../../src/settings/load.js';
import { isLoopback, mailRoute, UNPRINTABLE } from '../../src/settings/values.js';
import type { ScriptedServer, SmtpOptions, SmtpServer } from '../support/smtp.js';
import { parseMail, startScripted, startSmtp } from '../support/smtp.js';

const CANARY = 'cänary/pass w0rd';
const never = new AbortController().signal;

const MESSAGE: Message = {
  id: '0190b3c4-run.1',
  createdAt: '2026-11-21T03:17:00.000Z',
  kind: 'failure',
  name: 'app',
  runId: 'r1',
  subject: 'dbbackup: größe FAILED on host1: SOURCE_MISSING',
  text: 'größe: backup FAILED\n.\nafter a lone dot\n',
  html: '<!doctype html><html lang="en"><body><p>größe &lt;b&gt; FAILED</p></body></html>\n',
};

const settings = (url: string, to: readonly string[] = ['ops@example.org']): MailSettings => ({
  route: mailRoute(url),
  to,
  critical: [],
  from: 'backup@db.example.org',
  on: new Set(['failure', 'recovery']),
});

/** The reason of the one failure that mail may have. */
async function reasonOf(sending: Promise<unknown>): Promise<string> {
  const error: unknown = await sending.then(
    () => new Error('it was delivered'),
    (e: unknown) => e,
  );
  if (!(error instanceof Failed)) throw error;
  expect(error.failure).toMatchObject({ code: 'NOTIFY_FAILED', kept: false });
  expect(JSON.stringify(error.failure)).not.toContain('Error:');
  expect(error.cause).toBeUndefined();
  return error.failure.code === 'NOTIFY_FAILED' ? error.failure.reason : '';
}

let cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup();
  cleanups = [];
});

async function smtp(options: SmtpOptions = {}): Promise<SmtpServer> {
  const server = await startSmtp(options);
  cleanups.push(() => server.close());
  return server;
}

async function scripted(greeting: string, answer: (line: string) => string | null): Promise<ScriptedServer> {
  const server = await startScripted(greeting, answer);
  cleanups.push(() => server.close());
  return server;
}

function scratch(): string {
  const dir = mkdtempSync(join(tmpdir(), 'dbbackup-mail-'));
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

const send = (server: { port: number }, options: Partial<MailOptions> = {}, url = `smtp://127.0.0.1:${server.port}`): Promise<{ refused: string | null }> =>
  sendMail(MESSAGE, settings(url), { signal: never, ...options });

describe('what arrives', () => {
  test('a message with both parts, for all recipients, that a mail program and a vacation responder understand', async () => {
    const server = await smtp();
    await sendMail(MESSAGE, settings(`smtp://127.0.0.1:${server.port}`, ['ops@example.org', 'größe@example.org']), { signal: never });
    expect(server.received).toHaveLength(1);
    const mail = server.received[0];
    expect(mail).toMatchObject({ from: 'backup@db.example.org', to: ['ops@example.org', 'größe@example.org'], user: null });
    const { headers, text, html } = parseMail(mail?.raw ?? '');
    expect(headers.get('from')).toBe('dbbackup <backup@db.example.org>');
    expect(headers.get('to')).toBe('ops@example.org, größe@example.org');
    expect(headers.get('message-id')).toBe('<dbbackup.0190b3c4-run.1@db.example.org>');
    expect(headers.get('date')).toBe('Sat, 21 Nov 2026 03:17:00 +0000');
    expect(headers.get('auto-submitted')).toBe('auto-generated');
    expect(headers.has('x-mailer')).toBe(false);
    expect(text.replaceAll('\r\n', '\n').trimEnd()).toBe(MESSAGE.text.trimEnd());
    expect(html).toContain('<p>größe &lt;b&gt; FAILED</p>');
  });

  test('the same message sent twice can be recognised as one', async () => {
    const server = await smtp();
    await send(server);
    await send(server);
    const ids = server.received.map((m) => parseMail(m.raw).headers.get('message-id'));
    expect(ids).toEqual([ids[0], ids[0]]);
  });

  test('a subject with line breaks, from a tampered outbox, adds no header and no recipient', async () => {
    const server = await smtp();
    const evil = { ...MESSAGE, subject: 'x\r\nBcc: evil@example.org\r\n\r\nhello', id: 'a\r\nBcc: evil@example.org' };
    await sendMail(evil, settings(`smtp://127.0.0.1:${server.port}`), { signal: never });
    const { headers } = parseMail(server.received[0]?.raw ?? '');
    expect(headers.has('bcc')).toBe(false);
    expect(headers.get('message-id')).toMatch(/^<[\w.-]+@db\.example\.org>$/);
    expect(server.received[0]?.to).toEqual(['ops@example.org']);
  });

  test('logs in over STARTTLS, and over TLS from the start, at an MTA of this machine with its own certificate', async () => {
    const auth = { user: 'me@x', password: CANARY };
    const credentials = `${encodeURIComponent(auth.user)}:${encodeURIComponent(CANARY)}`;
    const starttls = await smtp({ auth, starttls: true });
    await send(starttls, {}, `smtp://${credentials}@localhost:${starttls.port}`);
    expect(starttls.received).toMatchObject([{ encrypted: true, user: 'me@x' }]);
    const tls = await smtp({ auth, tls: true });
    await send(tls, {}, `smtps://${credentials}@127.0.0.1:${tls.port}`);
    expect(tls.received).toMatchObject([{ encrypted: true, user: 'me@x' }]);
  });

  test('on loopback a password may go without TLS', async () => {
    const server = await smtp({ auth: { user: 'u', password: 'p' } });
    await send(server, {}, `smtp://u:p@localhost:${server.port}`);
    expect(server.received).toMatchObject([{ encrypted: false, user: 'u' }]);
  });
});

describe('who gets the password', () => {
  test('only these names are this machine', () => {
    for (const host of ['localhost', 'LOCALHOST', '127.0.0.1', '127.1.2.3', '::1']) expect(isLoopback(host), host).toBe(true);
    for (const host of ['127.evil.example', 'localhost.evil.example', 'localhost.', '127.1', '0.0.0.0', '::ffff:7f00:1', 'mail.example.org', '']) {
      expect(isLoopback(host), host).toBe(false);
    }
  });

  test('with a password TLS is required, and certificates are verified everywhere but on loopback', () => {
    const decide = (url: string): { secure: unknown; requireTLS: unknown; verified: unknown } => {
      const route = mailRoute(url);
      if (route.kind !== 'smtp') throw new Error(url);
      const { secure, requireTLS, tls } = connectionOptions(route);
      return { secure, requireTLS, verified: tls?.rejectUnauthorized };
    };
    expect(decide('smtp://u:p@mail.example.org')).toEqual({ secure: false, requireTLS: true, verified: true });
    expect(decide('smtp://u:p@mail.example.org:465')).toEqual({ secure: false, requireTLS: true, verified: true });
    expect(decide('smtps://u:p@mail.example.org')).toEqual({ secure: true, requireTLS: false, verified: true });
    expect(decide('smtp://mail.example.org:25')).toEqual({ secure: false, requireTLS: false, verified: true });
    expect(decide('smtp://u:p@127.0.0.1')).toEqual({ secure: false, requireTLS: false, verified: false });
    expect(decide('smtp://u:p@[::1]')).toEqual({ secure: false, requireTLS: false, verified: false });
    expect(decide('smtp://u:p@127.evil.example')).toEqual({ secure: false, requireTLS: true, verified: true });
  });

  // ::ffff:127.0.0.1 reaches this machine without being one of the names that are excepted: as far away as a test can go.
  const far = (port: number): string => `smtp://u:${encodeURIComponent(CANARY)}@[::ffff:127.0.0.1]:${port}`;

  test('a server that offers a login but no TLS never sees it', async () => {
    const server = await scripted('220 hello\r\n', (line) => (line.startsWith('EHLO') ? '250-me\r\n250 AUTH PLAIN LOGIN\r\n' : '502 what?\r\n'));
    const reason = await reasonOf(send(server, {}, far(server.port)));
    expect(reason).toMatch(/STARTTLS/);
    expect(server.heard()).not.toMatch(/AUTH/);
    expect(server.heard()).not.toContain(Buffer.from(CANARY).toString('base64'));
  });

  test('nor does one with a certificate that nobody signed', async () => {
    const server = await smtp({ auth: { user: 'u', password: CANARY }, starttls: true });
    expect(await reasonOf(send(server, {}, far(server.port)))).toMatch(/certificate/);
    expect(server.received).toEqual([]);
  });

  test('a server that repeats the password in its refusal does not get it into the reason', async () => {
    for (const echo of [CANARY, encodeURIComponent(CANARY), Buffer.from(CANARY).toString('base64'), Buffer.from(`\0u\0${CANARY}`).toString('base64')]) {
      const server = await scripted('220 hello\r\n', (line) => {
        if (line.startsWith('EHLO')) return '250-me\r\n250 AUTH PLAIN\r\n';
        return line.startsWith('AUTH') ? `535 wrong: ${echo}\r\n` : '221 bye\r\n';
      });
      const reason = await reasonOf(send(server, {}, `smtp://u:${encodeURIComponent(CANARY)}@127.0.0.1:${server.port}`));
      expect(reason).toMatch(/535 wrong: \*\*\*/);
      expect(reason).not.toContain(echo);
    }
  });

  test('nor in disguise', async () => {
    const unpadded = (text: string): string => Buffer.from(text).toString('base64').replaceAll('=', '');
    const disguises = {
      hex: Buffer.from(CANARY).toString('hex'),
      upper: CANARY.toUpperCase(),
      pieces: [...CANARY].join(' '),
      lines: `${CANARY.slice(0, 5)}\r\n535 ${CANARY.slice(5)}`,
      unpadded: unpadded(CANARY),
      shifted: unpadded(`x${CANARY}`),
      shiftedMore: unpadded(`user:${CANARY}!`),
      reversed: [...CANARY].reverse().join(''),
    };
    for (const [how, echo] of Object.entries(disguises)) {
      const server = await scripted('220 hello\r\n', (line) => {
        if (line.startsWith('EHLO')) return '250-me\r\n250 AUTH PLAIN\r\n';
        return line.startsWith('AUTH') ? `${how === 'lines' ? '535-' : '535 '}wrong: ${echo}\r\n` : '221 bye\r\n';
      });
      const reason = await reasonOf(send(server, {}, `smtp://u:${encodeURIComponent(CANARY)}@127.0.0.1:${server.port}`));
      expect(reason, how).toMatch(/^mail server 127\.0\.0\.1:\d+: what the server says holds the password in disguise, and is not repeated$/);
    }
  });

  test('a wrong password is said to be one, without it', async () => {
    const server = await smtp({ auth: { user: 'u', password: 'other' }, starttls: true });
    const url = `smtp://u:${encodeURIComponent(CANARY)}@localhost:${server.port}`;
    for (const attempt of [() => send(server, {}, url), () => verifyMailServer(settings(url), { signal: never })]) {
      const reason = await reasonOf(attempt());
      expect(reason).toMatch(/535/);
      expect(reason).not.toContain(CANARY);
    }
  });

  test('a server without a login, although there is a user for it, is told and gets no mail', async () => {
    const server = await smtp();
    expect(await reasonOf(send(server, {}, `smtp://u:p@127.0.0.1:${server.port}`))).toMatch(/offers no login/);
    expect(server.received).toEqual([]);
  });
});

describe('what is said when it does not arrive', () => {
  test.each([
    ['connect', 421],
    ['connect', 554],
    ['mail', 451],
    ['mail', 550],
    ['rcpt', 450],
    ['rcpt', 550],
    ['data', 452],
    ['data', 554],
  ] as const)('refused at %s with %i: the server and its words', async (at, code) => {
    const server = await smtp({ refuse: { at, code } });
    const reason = await reasonOf(send(server));
    expect(reason).toContain(`mail server 127.0.0.1:${server.port}: `);
    expect(reason).toContain(`${code} not today, at ${at}`);
    if (at === 'rcpt') expect(reason).toContain('refused for ops@example.org');
    expect(server.received).toEqual([]);
  });

  test('one recipient of two refused: delivered, with a word that names the one', async () => {
    const server = await smtp({ refuse: { at: 'rcpt', code: 550, only: 'gone@example.org' } });
    const mail = settings(`smtp://127.0.0.1:${server.port}`, ['ops@example.org', 'gone@example.org']);
    const { refused: reason } = await sendMail(MESSAGE, mail, { signal: never });
    expect(reason).toMatch(/refused for gone@example\.org \(550 not today, at rcpt\); the other recipients got it$/);
    expect(reason).not.toContain('ops@example.org');
    expect(server.received).toMatchObject([{ to: ['ops@example.org'] }]);
  });

  test.each(['connect', 'mail', 'rcpt', 'data'] as const)('a connection dropped at %s', async (drop) => {
    const server = await smtp({ drop });
    expect(await reasonOf(send(server))).toMatch(/clos|ECONNRESET/i);
    expect(server.received).toEqual([]);
  });

  test('nobody listens', async () => {
    const server = await startSmtp();
    await server.close();
    for (const host of ['127.0.0.1', 'localhost']) {
      expect(await reasonOf(send(server, {}, `smtp://${host}:${server.port}`))).toContain('ECONNREFUSED');
    }
  });

  test('a server that answers with terminal codes and many lines gets one printable line', async () => {
    const server = await scripted('220 hello\r\n', (line) => (line.startsWith('EHLO') ? '250 me\r\n' : '550-\u001b[31mred\r\n550 \u0007bell\r\n'));
    const reason = await reasonOf(send(server));
    expect(reason).toContain('\\u{1b}[31mred 550 \\u{7}bell');
    expect(reason).not.toMatch(UNPRINTABLE);
  });
});

describe('how long it may take', () => {
  test.each(['connect', 'mail', 'data'] as const)('a server that stalls at %s ends at the deadline', async (stall) => {
    const server = await smtp({ stall });
    const began = performance.now();
    expect(await reasonOf(send(server, { deadlineMs: 300 }))).toMatch(/not done within 0\.3 s/);
    expect(performance.now() - began).toBeLessThan(5000);
  });

  test('so does one that drips its greeting, which no socket timeout would notice', async () => {
    const server = await scripted('220-', () => null);
    expect(await reasonOf(send(server, { deadlineMs: 200 }))).toMatch(/not done within 0\.2 s/);
    expect(await reasonOf(verifyMailServer(settings(`smtp://127.0.0.1:${server.port}`), { signal: never, deadlineMs: 200 }))).toMatch(/not done within/);
  });

  test('a signal ends it at once, and nothing was sent', async () => {
    const server = await smtp({ stall: 'mail' });
    const stop = new AbortController();
    const sending = reasonOf(send(server, { signal: stop.signal }));
    await server.stalled;
    stop.abort();
    expect(await sending).toMatch(/stopped before it was delivered/);
    expect(server.received).toEqual([]);
  });

  test('after a signal nothing is begun', async () => {
    const server = await smtp();
    const dir = scratch();
    expect(await reasonOf(send(server, { signal: AbortSignal.abort() }))).toMatch(/stopped/);
    expect(await reasonOf(sendMail(MESSAGE, settings(`sendmail:${mta(dir, 'cat >/dev/null')}`), { signal: AbortSignal.abort() }))).toMatch(/stopped/);
    expect(server.received).toEqual([]);
    expect(existsSync(join(dir, 'argv'))).toBe(false);
  });

  test.each([
    ['plain', {}],
    ['STARTTLS', { starttls: true }],
  ])('a process that has sent (%s) ends at once, and so does one that gave up, while the server lingers', async (_, options) => {
    const lingering = await scripted('220 hello\r\n', (line) => {
      if (line.startsWith('QUIT')) return null;
      return line === 'DATA' ? '354 go on\r\n' : /^(EHLO|MAIL|RCPT|\.$)/.test(line) ? '250 ok\r\n' : null;
    });
    const secure = await smtp(options);
    const silent = await smtp({ ...options, stall: 'connect' });
    for (const [server, outcome] of [
      [lingering, 'sent'],
      [secure, 'sent'],
      [silent, 'gave up'],
    ] as const) {
      const alone = await runAlone(server.port, outcome === 'sent' ? 15_000 : 500);
      expect(alone.outcome).toBe(outcome);
      expect(alone.heldForMs).toBeLessThan(500);
    }
  });
});

/** Sends in a process of its own, which does nothing else afterwards; reports how long it was held up. */
async function runAlone(port: number, deadlineMs: number): Promise<{ outcome: string; heldForMs: number }> {
  const code = `
    import { sendMail } from ${JSON.stringify(resolve('src/notifiers/mail.ts'))};
    const mail = { route: { kind: 'smtp', host: 'localhost', port: ${port}, tls: false, user: '', password: '' }, to: ['a@x'], from: 'b@x', on: new Set() };
    const sending = sendMail(${JSON.stringify(MESSAGE)}, mail, { signal: new AbortController().signal, deadlineMs: ${deadlineMs} });
    const outcome = await sending.then(() => 'sent', () => 'gave up');
    const over = performance.now();
    process.on('exit', () => console.log(JSON.stringify({ outcome, heldForMs: performance.now() - over })));`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', code], { timeout: 20_000 });
  return JSON.parse(stdout) as { outcome: string; heldForMs: number };
}

describe('check', () => {
  test('a mail server that works is greeted, encrypted and logged in to, and gets no mail', async () => {
    const server = await smtp({ auth: { user: 'u', password: 'p' }, starttls: true });
    await verifyMailServer(settings(`smtp://u:p@localhost:${server.port}`), { signal: never });
    expect(server.received).toEqual([]);
  });

  test('a sendmail program that is missing, a directory or not executable is said to be so', async () => {
    const dir = scratch();
    const plain = join(dir, 'plain');
    writeFileSync(plain, 'x', { mode: 0o644 });
    const verify = (program: string): Promise<string> => reasonOf(verifyMailServer(settings(`sendmail:${program}`), { signal: never }));
    expect(await verify(join(dir, 'none'))).toMatch(/none: no such file or directory/);
    expect(await verify(dir)).toMatch(/not a regular file/);
    // root may execute nothing that is executable for nobody: X_OK fails for it as well.
    expect(await verify(plain)).toMatch(/permission denied/);
    await verifyMailServer(settings(`sendmail:${mta(dir, 'cat >/dev/null')}`), { signal: never });
    expect(existsSync(join(dir, 'argv'))).toBe(false);
  });
});

/** A program that writes down how it was called, and then does `script`. */
function mta(dir: string, script: string): string {
  const program = join(dir, 'mta');
  writeFileSync(program, `#!/bin/sh\nprintf '%s\\n' "$@" > '${dir}/argv'\nenv > '${dir}/env'\necho $$ > '${dir}/pid'\n${script}\n`);
  chmodSync(program, 0o755);
  return program;
}

const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}`) && !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));

describe('sendmail', () => {
  test('the program gets the message, the envelope as operands, and none of our secrets', async () => {
    const dir = scratch();
    const mail = { ...settings(`sendmail:${mta(dir, `cat > '${dir}/stdin'`)}`, ['-oQ/tmp/x', 'ops@example.org']), from: 'root' };
    const env = { PATH: '/usr/bin:/bin', HOME: '/root', DBBACKUP_SMTP_URL: CANARY, CREDENTIALS_DIRECTORY: '/run/c', LANG: undefined };
    await sendMail(MESSAGE, mail, { signal: never, env });
    expect(readFileSync(join(dir, 'argv'), 'utf8')).toBe('-i\n-f\nroot\n--\n-oQ/tmp/x\nops@example.org\n');
    const seen = readFileSync(join(dir, 'env'), 'utf8');
    expect(seen).toMatch(/^HOME=\/root$/m);
    expect(seen).not.toMatch(/DBBACKUP|CREDENTIALS|NODE|VITEST/);
    expect(seen).not.toContain(CANARY);
    const raw = readFileSync(join(dir, 'stdin'), 'utf8');
    expect(raw).not.toContain('\r');
    const { headers, text } = parseMail(raw);
    expect(headers.get('message-id')).toBe('<dbbackup.0190b3c4-run.1@dbbackup.invalid>');
    expect(headers.get('from')).toBe('dbbackup <root>');
    expect(text).toContain('\n.\nafter a lone dot');
  });

  test('without an environment the program still finds its tools', async () => {
    const dir = scratch();
    await sendMail(MESSAGE, settings(`sendmail:${mta(dir, `cat > '${dir}/stdin'`)}`), { signal: never });
    expect(readFileSync(join(dir, 'env'), 'utf8')).not.toMatch(/^(HOME|NODE|VITEST)/m);
    expect(readFileSync(join(dir, 'stdin'), 'utf8')).toContain('Subject: ');
  });

  test('what the program complains of is the reason', async () => {
    const dir = scratch();
    const reason = await reasonOf(
      sendMail(MESSAGE, settings(`sendmail:${mta(dir, 'cat >/dev/null; echo "queue \u001b[1mfull" >&2; exit 75')}`), { signal: never }),
    );
    expect(reason).toBe(`${dir}/mta: ended with code 75: queue \\u{1b}[1mfull`);
    expect(await reasonOf(sendMail(MESSAGE, settings(`sendmail:${mta(dir, 'kill -9 $$')}`), { signal: never }))).toMatch(/was ended by SIGKILL/);
    expect(await reasonOf(sendMail(MESSAGE, settings('sendmail:/nonexistent/sendmail'), { signal: never }))).toMatch(/no such file/);
  });

  test('a program that ends well without reading a long message has not taken it', async () => {
    const dir = scratch();
    const long = { ...MESSAGE, text: 'x'.repeat(500_000) };
    expect(await reasonOf(sendMail(long, settings(`sendmail:${mta(dir, 'exit 0')}`), { signal: never }))).toMatch(/before it had read the message/);
    await sendMail(long, settings(`sendmail:${mta(dir, `cat > '${dir}/stdin'`)}`), { signal: never });
    expect(parseMail(readFileSync(join(dir, 'stdin'), 'utf8')).text.trim()).toHaveLength(500_000);
  });

  test('a program that hangs is killed with what it started, by a signal or at the deadline', async () => {
    const dir = scratch();
    const stop = new AbortController();
    const program = mta(dir, `cat > /dev/null; sleep 600 & echo $! > '${dir}/child.new'; mv '${dir}/child.new' '${dir}/child'; wait`);
    const hanging = reasonOf(sendMail(MESSAGE, settings(`sendmail:${program}`), { signal: stop.signal }));
    await expect.poll(() => existsSync(join(dir, 'child')), { timeout: 20_000 }).toBe(true);
    stop.abort();
    expect(await hanging).toMatch(/stopped before it was delivered/);
    const pids = [readFileSync(join(dir, 'pid'), 'utf8'), readFileSync(join(dir, 'child'), 'utf8')].map(Number);
    await expect.poll(() => pids.filter(isAlive)).toEqual([]);
    expect(await reasonOf(sendMail(MESSAGE, settings(`sendmail:${program}`), { signal: never, deadlineMs: 300 }))).toMatch(/not done within 0\.3 s/);
  });

  test('a delivery that the program leaves in the background does not hold us up', async () => {
    const dir = scratch();
    const began = performance.now();
    await sendMail(MESSAGE, settings(`sendmail:${mta(dir, `cat > '${dir}/stdin'; sleep 20 & echo $! > '${dir}/child'`)}`), { signal: never });
    expect(performance.now() - began).toBeLessThan(10_000);
    const background = Number(readFileSync(join(dir, 'child'), 'utf8'));
    expect(isAlive(background)).toBe(true);
    process.kill(background);
  });
});

const LETTER: Letter = { channel: 'mail', audience: 'everyone', message: MESSAGE };
const letter = (more: Partial<Message>): Letter => ({ ...LETTER, message: { ...MESSAGE, ...more } });
const AGAIN = { refused: false, notBefore: null };

describe('the outbox', () => {
  const told: string[] = [];
  const unsupported = (what: string): void => void told.push(what);

  test('keeps messages until they are delivered, oldest first, private', () => {
    const dir = join(scratch(), 'outbox');
    expect(pending(dir, 'app')).toEqual([]);
    const newer = enqueue(dir, letter({ id: 'b', createdAt: '2026-11-22T03:17:00.000Z' }), unsupported);
    const older = enqueue(dir, LETTER, unsupported);
    const same = enqueue(dir, letter({ id: 'c', createdAt: '2026-11-21T03:17:00.500Z' }), unsupported);
    expect(older).toBe(join(dir, '20261121T031700Z-0190b3c4-run.1.mail.json'));
    expect(pending(dir, 'app').map((p) => p.path)).toEqual([older, same, newer]);
    expect(pending(dir, 'app')[0]).toEqual({ ...LETTER, path: older, attempts: 0, refusals: 0, notBefore: null });
    expect(statSync(dir).mode & 0o777).toBe(0o700);
    expect(statSync(older).mode & 0o777).toBe(0o600);
    noteAttempt(older, AGAIN);
    noteAttempt(older, AGAIN);
    expect(pending(dir, 'app')[0]).toEqual({ ...LETTER, path: older, attempts: 2, refusals: 0, notBefore: null });
    expect(statSync(older).mode & 0o777).toBe(0o600);
    for (const p of pending(dir, 'app')) forget(p.path);
    forget(older);
    noteAttempt(older, AGAIN);
    expect(readdirSync(dir)).toEqual([]);
    expect(told).toEqual([]);
  });

  test('the same message again is one message', () => {
    const dir = join(scratch(), 'outbox');
    expect(enqueue(dir, LETTER, unsupported)).toBe(enqueue(dir, LETTER, unsupported));
    expect(pending(dir, 'app')).toHaveLength(1);
  });

  test('a message waits for each channel apart, with what its server said', () => {
    const dir = join(scratch(), 'outbox');
    const mail = enqueue(dir, { ...LETTER, audience: 'critical' }, unsupported);
    const slack = enqueue(dir, { ...LETTER, channel: 'slack' }, unsupported);
    noteAttempt(slack, { refused: true, notBefore: '2026-11-21T04:00:00.000Z' });
    expect(
      pending(dir, 'app').map(({ path, channel, audience, attempts, refusals, notBefore }) => [path, channel, audience, attempts, refusals, notBefore]),
    ).toEqual([
      [mail, 'mail', 'critical', 0, 0, null],
      [slack, 'slack', 'everyone', 1, 1, '2026-11-21T04:00:00.000Z'],
    ]);
    noteAttempt(slack, AGAIN);
    expect(pending(dir, 'app')[1]).toMatchObject({ attempts: 2, refusals: 1, notBefore: null });
    forget(mail);
    expect(pending(dir, 'app').map((p) => p.channel)).toEqual(['slack']);
  });

  test('what an older version queued is mail for everybody', () => {
    const dir = join(scratch(), 'outbox');
    mkdirSync(dir, { mode: 0o700 });
    const path = join(dir, '20261121T031700Z-0190b3c4-run.1.json');
    writeFileSync(path, JSON.stringify({ schemaVersion: 1, attempts: 3, message: MESSAGE }));
    expect(pending(dir, 'app')).toEqual([{ ...LETTER, path, attempts: 3, refusals: 0, notBefore: null }]);
    noteAttempt(path, AGAIN);
    expect(pending(dir, 'app')).toMatchObject([{ path, attempts: 4 }]);
  });

  test('each name sees its own messages and those without a name', () => {
    const dir = join(scratch(), 'outbox');
    enqueue(dir, LETTER, unsupported);
    enqueue(dir, letter({ id: 'x', name: 'other' }), unsupported);
    enqueue(dir, letter({ id: 'y', name: null }), unsupported);
    expect(pending(dir, 'app').map((p) => p.message.name)).toEqual(['app', null]);
    expect(pending(dir, null).map((p) => p.message.id)).toEqual(['y']);
    expect(pending(dir, 'APP').map((p) => p.message.name)).toEqual([null]);
  });

  test('hostile and foreign files are not read, not followed, not waited for and not removed', async () => {
    const dir = join(scratch(), 'outbox');
    const mine = enqueue(dir, LETTER, unsupported);
    const good = readFileSync(mine, 'utf8');
    const put = (file: string, content: string): void => writeFileSync(join(dir, `20260101T000000Z-${file}.json`), content);
    symlinkSync(mine, join(dir, '20260101T000000Z-link.json'));
    mkdirSync(join(dir, '20260101T000000Z-directory.json'));
    await promisify(execFile)('mkfifo', [join(dir, '20260101T000000Z-fifo.json')]);
    put('huge', good + ' '.repeat(4 << 20));
    put('channel', JSON.stringify({ attempts: 0, channel: 'pigeon', message: MESSAGE }));
    put('empty', '');
    put('cut', good.slice(0, 100));
    put('null', 'null');
    put('shape', JSON.stringify({ attempts: 0, message: { ...MESSAGE, html: 7 } }));
    put('kind', JSON.stringify({ attempts: 0, message: { ...MESSAGE, kind: 'spam' } }));
    put('id', JSON.stringify({ attempts: 0, message: { ...MESSAGE, id: '../x' } }));
    put('date', JSON.stringify({ attempts: 0, message: { ...MESSAGE, createdAt: 'yesterday' } }));
    put('subject', JSON.stringify({ attempts: 0, message: { ...MESSAGE, subject: 'a\r\nBcc: b' } }));
    writeFileSync(join(dir, 'notes.json'), good);
    writeFileSync(`${mine}.new`, good);
    const before = readdirSync(dir).sort();
    expect(pending(dir, 'app').map((p) => p.path)).toEqual([mine]);
    expect(readdirSync(dir).sort()).toEqual(before);
  });

  test('no message leaves the outbox, and no directory is made above it', () => {
    const root = scratch();
    expect(() => enqueue(join(root, 'outbox'), letter({ id: '../../evil' }), unsupported)).toThrow(/not a message id/);
    expect(() => enqueue(join(root, 'not-mounted', 'outbox'), LETTER, unsupported)).toThrow(/ENOENT/);
    symlinkSync('/tmp', join(root, 'link'));
    expect(() => enqueue(join(root, 'link'), LETTER, unsupported)).toThrow(/not a directory/);
    expect(readdirSync(root)).toEqual(['link']);
  });

  test('a kill between queueing and removing loses nothing: the next run sends it again under the same Message-ID', async () => {
    const dir = join(scratch(), 'outbox');
    const server = await smtp();
    const mail = settings(`smtp://127.0.0.1:${server.port}`);
    const code = `
      import { enqueue } from ${JSON.stringify(resolve('src/notifiers/outbox.ts'))};
      import { sendMail } from ${JSON.stringify(resolve('src/notifiers/mail.ts'))};
      enqueue(${JSON.stringify(dir)}, ${JSON.stringify(LETTER)}, () => undefined);
      await sendMail(${JSON.stringify(MESSAGE)}, ${JSON.stringify({ ...mail, on: [] })}, { signal: new AbortController().signal });
      process.kill(process.pid, 'SIGKILL');`;
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', code], { stdio: 'inherit' });
    const signal = await new Promise((done) => child.once('exit', (_code, by) => done(by)));
    expect(signal).toBe('SIGKILL');
    for (const { message, path } of pending(dir, 'app')) {
      await sendMail(message, mail, { signal: never });
      forget(path);
    }
    expect(server.received.map((m) => parseMail(m.raw).headers.get('message-id'))).toEqual(Array(2).fill('<dbbackup.0190b3c4-run.1@db.example.org>'));
    expect(readdirSync(dir)).toEqual([]);
  });
});
