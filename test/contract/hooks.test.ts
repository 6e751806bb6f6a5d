/** POSTs against real servers on loopback: what arrives, what is said when it does not, how long it may take, what must not be told. */
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { lookUpHost, type PostOptions, post } from '../../src/notifiers/http.js';
import type { Message } from '../../src/notifiers/message.js';
import { ping, RunPings } from '../../src/notifiers/ping.js';
import { slackBody } from '../../src/notifiers/slack.js';
import { Undelivered } from '../../src/notifiers/undelivered.js';
import { webhookBody } from '../../src/notifiers/webhook.js';
import { hookUrl, UNPRINTABLE } from '../../src/settings/values.js';
import { type Behaviour, type HttpServer, startHttp } from '../support/http.js';
import { TEST_CERTIFICATE, TEST_KEY } from '../support/smtp.js';

const NOW = new Date('2026-11-21T03:17:00Z');
const never: PostOptions = { signal: new AbortController().signal, now: NOW };
const TOKEN = 'T0CANARY7f3e';
const PATH = `/services/${TOKEN}/x`;

let cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup();
  cleanups = [];
});

async function http(first?: Behaviour): Promise<HttpServer> {
  const server = await startHttp(first);
  cleanups.push(() => server.close());
  return server;
}

const send = (server: { url: string }, options: Partial<PostOptions> = {}, path = PATH): Promise<string> =>
  post('webhook', new URL(`${server.url}${path}`), { type: 'application/json', body: '{"größe":1}' }, { ...never, ...options });

async function failureOf(sending: Promise<unknown>): Promise<Undelivered & { reason: string }> {
  const error: unknown = await sending.then(
    () => new Error('it was delivered'),
    (e: unknown) => e,
  );
  if (!(error instanceof Undelivered)) throw error;
  const reason = error.failure.code === 'NOTIFY_FAILED' ? error.failure.reason : '';
  expect(error.failure).toEqual({ code: 'NOTIFY_FAILED', reason, kept: false });
  expect(error.cause).toBeUndefined();
  expect(reason).not.toContain(TOKEN);
  expect(reason).not.toMatch(UNPRINTABLE);
  return Object.assign(error, { reason });
}

describe('a POST', () => {
  test('arrives whole, once, and leaves no connection', async () => {
    const server = await http({ answer: 204 });
    expect(await send(server)).toBe('');
    expect(server.heard).toMatchObject([
      { method: 'POST', path: PATH, body: '{"größe":1}', headers: { 'content-type': 'application/json', 'content-length': '13' } },
    ]);
    expect(server.heard[0]?.headers).not.toHaveProperty('authorization');
    await expect.poll(() => server.open()).toBe(0);
  });

  test('gives user and password where the address has them', async () => {
    const server = await http();
    await post('webhook', new URL(`http://me:p%40ss@127.0.0.1:${server.port}/`), { type: 'text/plain', body: '' }, never);
    expect(server.heard[0]?.headers['authorization']).toBe(`Basic ${Buffer.from('me:p@ss').toString('base64')}`);
  });

  test.each([
    [400, true],
    [401, true],
    [403, true],
    [404, true],
    [410, true],
    [408, false],
    [425, false],
    [429, false],
    [500, false],
    [502, false],
    [503, false],
    [301, true],
    [302, true],
    [307, true],
    [304, true],
  ])('%i: refused for good: %s; the reason has the server and its words', async (answer, refused) => {
    const server = await http({ answer, headers: { location: `http://127.0.0.1:1${PATH}` }, text: answer === 304 ? '' : 'not   today\n' });
    const failure = await failureOf(send(server));
    expect([failure.refused, failure.retryAfterMs]).toEqual([refused, null]);
    expect(failure.reason).toMatch(new RegExp(`^webhook at 127\\.0\\.0\\.1:${server.port}: HTTP ${answer} `));
    if (answer >= 400) expect(failure.reason).toContain(': not today');
    else expect(failure.reason).toMatch(/a redirect, which is not followed/);
    expect(server.heard).toHaveLength(1);
    await expect.poll(() => server.open()).toBe(0);
  });

  test.each([
    ['30', 30_000],
    ['0', 0],
    ['Sat, 21 Nov 2026 03:18:30 GMT', 90_000],
    ['Sat, 21 Nov 2026 03:00:00 GMT', 0],
    ['99999999', 86_400_000],
    ['soon', null],
    ['-5', 0],
  ])('Retry-After: %s', async (value, ms) => {
    const server = await http({ answer: 429, headers: { 'retry-after': value } });
    const failure = await failureOf(send(server));
    // `Date.parse('-5')` is a date of the past in V8.
    expect(failure.retryAfterMs).toBe(ms);
  });

  test.each([
    ['hang up', /ECONNRESET|socket hang up/],
    ['garbage', /Parse Error/],
    ['break off', /HTTP 500 Internal Server Error: half a$/],
    ['endless', /HTTP 500 Internal Server Error: x+\.\.\.$/],
  ] as const)('a server that does "%s" may take it later', async (as, why) => {
    const server = await http(as);
    const failure = await failureOf(send(server));
    expect(failure.reason).toMatch(why);
    expect(failure.refused).toBe(false);
    expect(failure.reason.length).toBeLessThan(320);
  });

  test('what is taken is taken, although the answer breaks off or never ends', async () => {
    const server = await http();
    for (const as of ['endless', 'break off'] as const) {
      server.behave(as);
      await failureOf(send(server));
    }
    server.behave({ answer: 200, headers: { 'content-length': '1000' }, text: 'x' });
    expect(await send(server)).toBe('');
  });

  test('nobody listens, nobody is called so', async () => {
    const server = await startHttp();
    await server.close();
    for (const host of ['127.0.0.1', 'localhost', '[::1]']) {
      const failure = await failureOf(send({ url: `http://${host}:${server.port}` }));
      expect([failure.reason, failure.refused]).toEqual([expect.stringMatching(/ECONNREFUSED/), false]);
    }
    expect((await failureOf(send({ url: 'https://no-such-host.invalid' }))).reason).toMatch(/^webhook at no-such-host\.invalid: /);
    expect((await failureOf(lookUpHost('webhook', new URL(`https://no-such-host.invalid${PATH}`), never))).reason).toMatch(
      /^webhook at no-such-host\.invalid: /,
    );
    await lookUpHost('webhook', new URL('http://localhost:1'), never);
  });

  test('a server that repeats the address and speaks in control characters', async () => {
    const server = await http();
    server.behave((p) => ({ answer: 404, text: `no ${p.path} http://127.0.0.1:${server.port}${p.path} ${encodeURIComponent(p.path)} \u001b[31m\u202e\u0007` }));
    const failure = await failureOf(send(server));
    expect(failure.reason).toMatch(/HTTP 404 Not Found: no \*\*\* \*\*\* \*\*\* \\u\{1b\}/);
    // Nor in pieces, in another case, or encoded; what is wrong is still said.
    server.behave(({ path }) => ({
      answer: 400,
      text: `channel_not_found ${path.toUpperCase()} ${path.slice(3, 20)} ${Buffer.from(path).toString('base64')} ${Buffer.from(path).toString('hex')}`,
    }));
    expect((await failureOf(send(server))).reason).toMatch(/: HTTP 400 Bad Request: channel_not_found (\*\*\*[/ ]?)+$/);
    server.behave((p) => ({ answer: 404, text: `no ${p.path} ` }));
    // A short path is no less secret in an echo.
    expect((await failureOf(send(server, {}, '/in'))).reason).toMatch(/: no \*\*\*$/);
  });

  test('a certificate that nobody signed is not accepted, whatever the environment says', async () => {
    const server = createServer({ key: TEST_KEY, cert: TEST_CERTIFICATE }, (_, response) => response.end('ok'));
    await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
    cleanups.push(() => new Promise((closed) => server.close(() => closed())));
    const { port } = server.address() as AddressInfo;
    const failure = await failureOf(send({ url: `https://localhost:${port}` }));
    expect([failure.reason, failure.refused]).toEqual([expect.stringMatching(/certificate/), false]);
  });

  test('a server that stalls ends at the deadline, and a signal ends it at once', async () => {
    const server = await http('stall');
    const began = performance.now();
    expect((await failureOf(send(server, { deadlineMs: 300 }))).reason).toMatch(/not done within 0\.3 s/);
    const stop = new AbortController();
    const sending = failureOf(send(server, { signal: stop.signal }));
    await expect.poll(() => server.heard.length).toBe(2);
    stop.abort();
    expect((await sending).reason).toMatch(/stopped before it was delivered/);
    expect((await failureOf(send(server, { signal: stop.signal }))).reason).toMatch(/stopped/);
    expect(performance.now() - began).toBeLessThan(5000);
    expect(server.heard).toHaveLength(2);
    await expect.poll(() => server.open()).toBe(0);
  });
});

describe('addresses', () => {
  test.each(['https://hooks.slack.com/services/T/B/X', 'http://127.0.0.1:8000/x', 'http://localhost', 'http://[::1]:1/', 'https://u:p@h/x?y=z'])(
    '%s',
    (text) => {
      expect(hookUrl(text).href).toBe(new URL(text).href);
    },
  );

  test.each([
    ['http://hooks.example.org/x', /https/],
    ['http://127.evil.example/x', /https/],
    ['ftp://h/x', /https:\/\/HOST/],
    ['hooks.slack.com/services', /https:\/\/HOST/],
    ['https://?', /https:\/\/HOST/],
    ['https://h/a b', /blanks/],
    ['https://h/\u202e', /control/],
    ['https://h/x#y', /%23/],
    ['https://u:%zz@h/x', /percent-encoded/],
  ])('%j is refused, and not repeated', (text, why) => {
    expect(() => hookUrl(text)).toThrow(why);
    expect(() => hookUrl(text)).toThrow(expect.not.objectContaining({ message: expect.stringContaining(text) }));
  });
});

const EVIL = '<!channel> <@U1> <https://evil.example|click> &amp; `x` ```y``` *b* \u202egpj. <b>';
const MESSAGE: Message = {
  id: 'm1',
  createdAt: '2026-11-21T03:17:00.000Z',
  kind: 'failure',
  name: EVIL,
  runId: 'r1',
  subject: `dbbackup: ${EVIL.replace('\u202e', '')} FAILED`,
  text: `${EVIL.replace('\u202e', '')}\n\nline two\n`,
  html: '<p>never sent here</p>',
  host: 'host1',
};

describe('Slack', () => {
  const textOf = (message: Message): string => (JSON.parse(slackBody(message)) as { text: string }).text;

  test('subject first, the rest in a code block; nobody is called and nothing is linked', () => {
    const body = JSON.parse(slackBody(MESSAGE)) as Record<string, unknown>;
    expect(body).toMatchObject({ parse: 'none', link_names: false, unfurl_links: false, unfurl_media: false });
    const text = textOf(MESSAGE);
    expect(text).toBe(
      "dbbackup: &lt;!channel&gt; &lt;@U1&gt; &lt;https://evil.example|click&gt; &amp;amp; `x` '''y''' *b* gpj. &lt;b&gt; FAILED\n" +
        "```\n&lt;!channel&gt; &lt;@U1&gt; &lt;https://evil.example|click&gt; &amp;amp; `x` '''y''' *b* gpj. &lt;b&gt;\n\nline two\n```",
    );
    expect(text).not.toMatch(/[<>]/);
    expect(slackBody({ ...MESSAGE, text: EVIL })).not.toMatch(UNPRINTABLE);
  });

  test('stays within what Slack takes, cuts between lines, never within a character', () => {
    const many = textOf({ ...MESSAGE, subject: '&'.repeat(200), text: Array.from({ length: 3000 }, (_, i) => `line ${i} <&>`).join('\n') });
    expect(many.length).toBeLessThanOrEqual(4000);
    expect(many.length).toBeGreaterThan(3500);
    expect(many).toMatch(/\nline \d+ &lt;&amp;&gt;\n\.\.\. \(dbbackup history and the log have the rest\)\n```$/);
    for (const char of ['<', '😀', '&', 'x']) {
      const one = textOf({ ...MESSAGE, text: char.repeat(20_000) });
      expect(one.length).toBeLessThanOrEqual(4000);
      expect(Buffer.from(one).toString('utf8')).toBe(one);
      expect(one.replaceAll(/&(amp|lt|gt);/g, '')).not.toContain('&');
    }
  });
});

test('the JSON webhook: one document, markup as it is, since JSON has its own quotes', () => {
  const body = webhookBody({ ...MESSAGE, subject: 'a "b" \u2028 \\ <b>' });
  expect(body).not.toMatch(UNPRINTABLE);
  expect(JSON.parse(body)).toEqual({
    schemaVersion: 1,
    event: 'failure',
    name: EVIL,
    host: 'host1',
    runId: 'r1',
    status: null,
    exitCode: null,
    subject: 'a "b" \u2028 \\ <b>',
    text: MESSAGE.text,
    record: null,
  });
});

describe('the ping', () => {
  const check = (server: HttpServer, more = ''): URL => new URL(`${server.url}/${TOKEN}${more}`);

  test('start, end and failure, tied together by the run id, with the last lines', async () => {
    const server = await http();
    for (const event of ['start', 'success', 'fail', 'log'] as const) await ping(check(server), event, 'r 1', ['one', 'two \u001b[1m'], never);
    expect(server.heard.map((p) => [p.method, p.path])).toEqual([
      ['POST', `/${TOKEN}/start?rid=r+1`],
      ['POST', `/${TOKEN}?rid=r+1`],
      ['POST', `/${TOKEN}/fail?rid=r+1`],
      ['POST', `/${TOKEN}/log?rid=r+1`],
    ]);
    expect(server.heard[0]).toMatchObject({ body: 'one\ntwo \\u{1b}[1m\n', headers: { 'content-type': 'text/plain; charset=utf-8' } });
    await ping(check(server, '/?create=1'), 'start', 'r', [], never);
    expect(server.heard.at(-1)?.path).toBe(`/${TOKEN}/start?create=1&rid=r`);
  });

  test('carries whole lines, the last ones, at most 10 kB of them', async () => {
    const server = await http();
    await ping(
      check(server),
      'fail',
      'r',
      Array.from({ length: 1000 }, (_, i) => `${i} größe ${'x'.repeat(80)}`),
      never,
    );
    const { body = '' } = server.heard[0] ?? {};
    expect(Buffer.byteLength(body)).toBeLessThanOrEqual(10_000);
    expect(Buffer.byteLength(body)).toBeGreaterThan(9800);
    expect(body).toMatch(/^\d+ größe x+\n(.*\n)*999 größe x{80}\n$/);
  });

  test('a check that the server does not know is no success', async () => {
    const server = await http({ answer: 200, text: 'OK (not found)' });
    expect((await failureOf(ping(check(server), 'success', 'r', [], never))).reason).toMatch(/does not know this check/);
    server.behave({ answer: 200, text: 'OK' });
    await ping(check(server), 'success', 'r', [], never);
  });

  test('the end comes after the start, also when that is slow or fails', async () => {
    const server = await http();
    let letGo = (): void => undefined;
    const held = new Promise<void>((done) => {
      letGo = done;
    });
    server.behave(async (p) => {
      if (!p.path.includes('/start')) return { answer: 200 };
      await held;
      return { answer: 500 };
    });
    const pings = new RunPings(check(server), 'r', () => NOW);
    pings.start([], never.signal);
    const ending = pings.end('success', [], never.signal);
    await expect.poll(() => server.heard.map((p) => p.path)).toEqual([`/${TOKEN}/start?rid=r`]);
    letGo();
    const { start, end } = await ending;
    expect([start?.failure.reason, end]).toEqual([expect.stringMatching(/HTTP 500/), null]);
    expect(server.heard.map((p) => p.path)).toEqual([`/${TOKEN}/start?rid=r`, `/${TOKEN}?rid=r`]);
  });
});
