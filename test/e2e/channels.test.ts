/** Slack, a JSON webhook and a ping beside mail: who hears what, and what becomes of it while servers misbehave. Real servers on loopback. */
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterEach, describe, expect, test } from 'vitest';
import type { RunRecord } from '../../src/records.js';
import {
  breakRows,
  cannot,
  dbbackup,
  holdExclusively,
  killGroup,
  type Options,
  type Result,
  signalTo,
  start,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { type HttpServer, startHttp } from '../support/http.js';
import { parseMail, type SmtpServer, startSmtp } from '../support/smtp.js';
import { ago, baseAt, dataFiles, everything, HOUR, plant, type Scene, scene, sceneWithCopy } from './scene.js';
import { problemsIn, run as runShape } from './shapes.js';

let closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing) await close();
  closing = [];
});

async function http(port = 0): Promise<HttpServer> {
  const server = await startHttp(undefined, port);
  closing.push(() => server.close());
  return server;
}
async function smtp(port = 0): Promise<SmtpServer> {
  const server = await startSmtp({}, port);
  closing.push(() => server.close());
  return server;
}

interface Servers {
  readonly mail: SmtpServer;
  readonly slack: HttpServer;
  readonly webhook: HttpServer;
  readonly ping: HttpServer;
}
const servers = async (): Promise<Servers> => ({ mail: await smtp(), slack: await http(), webhook: await http(), ping: await http() });

type Ports = { readonly [K in keyof Servers]: { readonly port: number } };
/** Settings for all channels; `more` wins, and an empty text takes one away. */
const env = (at: Ports, more: Readonly<Record<string, string>> = {}): Options => ({
  env: {
    DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${at.mail.port}`,
    DBBACKUP_MAIL_TO: 'ops@example.org',
    DBBACKUP_SLACK_WEBHOOK: `http://127.0.0.1:${at.slack.port}/services/T0/B0/x`,
    DBBACKUP_WEBHOOK: `http://127.0.0.1:${at.webhook.port}/in`,
    DBBACKUP_PING_URL: `http://127.0.0.1:${at.ping.port}/check`,
    ...more,
  },
});
const NO_MAIL = { DBBACKUP_SMTP_URL: '', DBBACKUP_MAIL_TO: '' };

interface Document {
  readonly event: string;
  readonly subject: string;
  readonly text: string;
  readonly name: string;
  readonly host: string;
  readonly runId: string | null;
  readonly status: string | null;
  readonly exitCode: number | null;
  readonly record: RunRecord | null;
}
const documents = (server: HttpServer): Document[] => server.taken.splice(0).map((p) => JSON.parse(p.body) as Document);
const subjectsIn = {
  mail: (server: SmtpServer): string[] => server.received.splice(0).map((m) => parseMail(m.raw).headers.get('subject') ?? ''),
  slack: (server: HttpServer): string[] => server.taken.splice(0).map((p) => (JSON.parse(p.body) as { text: string }).text.split('\n')[0] ?? ''),
  webhook: (server: HttpServer): string[] => documents(server).map((d) => d.subject),
};
const heard = (s: Servers): string[][] => [subjectsIn.mail(s.mail), subjectsIn.slack(s.slack), subjectsIn.webhook(s.webhook)];
/** `start`, `success`, `fail` of the pings that came, with their run. */
const pings = (server: HttpServer): [event: string, rid: string | null][] =>
  server.heard.splice(0).map((p) => {
    const url = new URL(p.path, 'http://x');
    return [url.pathname.split('/')[2] ?? 'success', url.searchParams.get('rid')];
  });

const outbox = (s: Scene): string[] =>
  existsSync(join(s.state, 'outbox'))
    ? readdirSync(join(s.state, 'outbox'))
        .filter((f) => f.endsWith('.json'))
        .sort()
    : [];
const waiting = (s: Scene): string[] => outbox(s).map((f) => f.split('.').at(-2) ?? '');
const about = (verdict: string, code?: string, name = 'app'): string => `dbbackup: ${name} ${verdict} on ${hostname()}${code ? `: ${code}` : ''}`;
const hide = (s: Scene): void => renameSync(s.source, `${s.source}.gone`);
const bringBack = (s: Scene): void => renameSync(`${s.source}.gone`, s.source);
const GONE = about('FAILED', 'SOURCE_MISSING');
const notifyWarnings = (r: Result): string[] => (r.json.warnings ?? []).filter((w) => w.code === 'NOTIFY_FAILED').map((w) => `${w.severity} ${w.message}`);
const notify = (s: Scene, options: Options): Promise<Result> => s.ask('status', ['--notify', '--json', '--name', 'app'], options);
const WAL = { journal: 'wal' } as const;

describe('what arrives', () => {
  test('a failure and its end, on every channel, each in its own form', async () => {
    const at = await servers();
    const s = scene(WAL);
    const copy = await s.run(['--json'], env(at));
    expect([copy.code, copy.json.warnings, heard(at)]).toEqual([0, [], [[], [], []]]);
    expect(pings(at.ping)).toEqual([
      ['start', copy.json.runId],
      ['success', copy.json.runId],
    ]);
    hide(s);
    const failed = await s.run(['--json'], env(at));
    expect([failed.code, failed.json.warnings]).toEqual([1, []]);
    expect(subjectsIn.mail(at.mail)).toEqual([GONE]);
    const [posted] = at.slack.heard;
    expect(posted).toMatchObject({ method: 'POST', path: '/services/T0/B0/x', headers: { 'content-type': 'application/json; charset=utf-8' } });
    const { text } = JSON.parse(posted?.body ?? '') as { text: string };
    for (const part of [
      `${GONE}\n\`\`\`\n`,
      `SOURCE_MISSING: ${failed.json.error?.message}`,
      failed.json.error?.hint,
      `The newest good copy is ${copy.json.copy?.file}`,
    ]) {
      expect(text).toContain(part);
    }
    const [document] = documents(at.webhook);
    expect(document).toMatchObject({
      schemaVersion: 1,
      event: 'failure',
      name: 'app',
      host: hostname(),
      runId: failed.json.runId,
      status: 'failed',
      exitCode: 1,
      subject: GONE,
    });
    expect(document?.text).toContain('WHAT TO DO');
    expect(document?.record).toMatchObject({ runId: failed.json.runId, command: 'run', error: failed.json.error });
    expect(problemsIn(document?.record, runShape)).toEqual([]);
    // It failed before it began: there is an end, and no start.
    const [body] = at.ping.heard.map((p) => p.body);
    expect(body).toMatch(/^\d{4}-\S+Z info run begins\n(.*\n)*\S+Z error .*\n$/);
    expect(pings(at.ping)).toEqual([['fail', failed.json.runId]]);
    expect(outbox(s)).toEqual([]);
    at.slack.taken.length = 0;

    bringBack(s);
    expect((await s.run([], env(at))).code).toBe(0);
    expect(heard(at)).toEqual(Array(3).fill([about('RECOVERED')]));
    expect((await s.run([], env(at))).code).toBe(0);
    expect(heard(at)).toEqual([[], [], []]);
  });

  test('notify-on for all, and for one channel', async () => {
    const at = await servers();
    const s = scene(WAL);
    const options = env(at, { DBBACKUP_NOTIFY_ON: 'failure, slack:success, slack:recovery' });
    expect((await s.run([], options)).code).toBe(0);
    expect(heard(at)).toEqual([[], [about('OK')], []]);
    hide(s);
    expect((await s.run([], options)).code).toBe(1);
    expect(heard(at)).toEqual([[GONE], [], [GONE]]);
    bringBack(s);
    await s.run([], options);
    expect(heard(at)).toEqual([[], [about('RECOVERED')], []]);
    // A list for one channel leaves the default to the others.
    hide(s);
    await s.run([], env(at, { DBBACKUP_NOTIFY_ON: 'webhook:success' }));
    expect(heard(at)).toEqual([[GONE], [GONE], []]);
  });

  test('a warning when it appears and when it ends, not every night', async () => {
    const at = await servers();
    const s = scene(WAL);
    const options = env(at, { DBBACKUP_NOTIFY_ON: 'failure,recovery,webhook:warning' });
    breakRows(s.source);
    expect((await s.run([], options)).code).toBe(0);
    const [document] = documents(at.webhook);
    expect([document?.event, document?.subject, document?.exitCode]).toEqual(['warning', about('WARNING', 'ROWS_VIOLATE'), 0]);
    expect(document?.text).toMatch(/^app: a good copy was made, but there is something to look at\n/);
    await s.run([], options);
    await s.run([], options);
    expect(heard(at)).toEqual([[], [], []]);
    const db = new Database(s.source);
    db.unsafeMode(true);
    db.exec(`DELETE FROM invoice WHERE customer = 999999; DELETE FROM customer WHERE id = 900001; UPDATE invoice SET note = '' WHERE note IS NULL`);
    db.close();
    await s.run([], options);
    const [ended] = documents(at.webhook);
    expect([ended?.subject, ended?.text]).toEqual([about('WARNING ENDED', 'ROWS_VIOLATE'), expect.stringContaining('No longer so: ROWS_VIOLATE: ')]);
    await s.run([], options);
    expect(heard(at)).toEqual([[], [], []]);
  });

  test('mail-to-critical hears of failures and of nothing else that is not critical', async () => {
    const at = await servers();
    const s = scene(WAL);
    const options = env(at, { DBBACKUP_MAIL_TO_CRITICAL: 'boss@example.org,ops@example.org', DBBACKUP_NOTIFY_ON: 'failure,recovery,warning,success' });
    const mails = (): [string, readonly string[]][] => at.mail.received.splice(0).map((m) => [parseMail(m.raw).headers.get('subject') ?? '', m.to]);
    breakRows(s.source);
    await s.run([], options);
    expect(mails()).toEqual([[about('WARNING', 'ROWS_VIOLATE'), ['ops@example.org']]]);
    await s.run([], options);
    expect(mails()).toEqual([[about('OK'), ['ops@example.org']]]);
    hide(s);
    await s.run([], options);
    expect(mails()).toEqual([[GONE, ['ops@example.org', 'boss@example.org']]]);
    // Whatever notify-on says, and also where they are the only ones.
    await s.run([], { env: { ...options.env, DBBACKUP_NOTIFY_ON: 'success' } });
    await s.run([], { env: { ...options.env, DBBACKUP_MAIL_TO: '' } });
    expect(mails()).toEqual([
      [GONE, ['boss@example.org', 'ops@example.org']],
      [GONE, ['boss@example.org', 'ops@example.org']],
    ]);
    bringBack(s);
    await s.run([], options);
    expect(mails()).toEqual([[about('RECOVERED'), ['ops@example.org']]]);
    plant(s.to, baseAt(ago(40 * HOUR), 'stale'));
    await s.ask('status', ['--notify', '--name', 'stale'], options);
    expect(mails()).toEqual([[about('UNHEALTHY', 'COPY_STALE', 'stale'), ['ops@example.org', 'boss@example.org']]]);
  });

  test('who is in mail-to and in mail-to-critical gets one of two, the grave one', async () => {
    const at = await servers();
    const s = scene(WAL);
    const to = { DBBACKUP_MAIL_TO: 'ops@example.org,dev@example.org', DBBACKUP_MAIL_TO_CRITICAL: 'boss@example.org,ops@example.org' };
    const mails = (): [string, readonly string[]][] => at.mail.received.splice(0).map((m) => [parseMail(m.raw).headers.get('subject') ?? '', m.to]);
    await s.run([], env(at, to));
    const newest = (await s.run(['--json'], env(at, to))).json.copy;
    hide(s);
    await s.run([], env(at, to));
    bringBack(s);
    for (const file of [newest?.file ?? '', newest?.manifest ?? '']) rmSync(join(s.to, file));
    mails();
    await s.run([], env(at, to));
    expect(mails()).toEqual([
      [about('RECOVERED', 'COPIES_GONE'), ['dev@example.org']],
      [about('CRITICAL', 'COPIES_GONE'), ['boss@example.org', 'ops@example.org']],
    ]);
  });

  test('a run that was killed, and a stale copy, once on each channel', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    const holder = await holdExclusively(s.source);
    const run = start(['run', s.source, '--to', s.to], env(at));
    await until('the run to be recorded', async () => (await s.ask('history', ['--json', '--limit', '1'])).json.runs?.[0]?.status === 'running');
    killGroup(run.pid, 'SIGKILL');
    await run.result;
    await holder.crash();
    await useDatabase(s.source, ['SELECT count(*) FROM sqlite_schema']).then((app) => app.stop());
    expect((await s.run([], env(at))).code).toBe(0);
    expect(heard(at)).toEqual(Array(3).fill([about('INTERRUPTED'), about('RECOVERED')]));
    plant(s.to, baseAt(ago(40 * HOUR), 'stale'));
    for (let i = 0; i < 2; i++) expect((await s.ask('status', ['--notify', '--name', 'stale'], env(at))).code).toBe(1);
    expect(heard(at)).toEqual(Array(3).fill([about('UNHEALTHY', 'COPY_STALE', 'stale')]));
  });

  test('what one channel cannot deliver for long is told on the others, once', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    hide(s);
    const noSlack = env(at, { DBBACKUP_SLACK_WEBHOOK: 'http://127.0.0.1:1/x' });
    expect((await s.run([], noSlack)).code).toBe(1);
    heard(at);
    expect((await s.ask('status', ['--notify', '--name', 'app'], noSlack)).code).toBe(3);
    expect(heard(at)).toEqual([[], [], []]);
    // An hour later.
    const outbox = join(s.state, 'outbox');
    for (const file of readdirSync(outbox).filter((f) => f.endsWith('.json'))) {
      const text = readFileSync(join(outbox, file), 'utf8');
      writeFileSync(join(outbox, file), text.replace(/"createdAt":\s*"[^"]*"/, `"createdAt":"${ago(2 * HOUR).toISOString()}"`));
    }
    for (let i = 0; i < 2; i++) expect((await s.ask('status', ['--notify', '--name', 'app'], noSlack)).code).toBe(3);
    const [mail, slack, webhook] = heard(at);
    expect([slack, mail, webhook]).toEqual([[], [about('UNHEALTHY', 'UNDELIVERED')], [about('UNHEALTHY', 'UNDELIVERED')]]);
  });

  test('settings that do not parse, on every channel whose own do', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    expect((await s.run([], env(at, { DBBACKUP_TIMEOUT: 'soon' }))).code).toBe(78);
    expect(heard(at)).toEqual(Array(3).fill([about('FAILED', 'SETTINGS')]));
    expect(pings(at.ping).map(([event]) => event)).toEqual(['fail']);
    const broken = await s.run(
      ['--json'],
      env(at, { DBBACKUP_SLACK_WEBHOOK: 'http://hooks.example.org/x', DBBACKUP_NOTIFY_ON: 'everything', DBBACKUP_MAIL_TO: '' }),
    );
    expect([broken.code, broken.json.error?.message]).toEqual([78, expect.stringMatching(/slack-webhook must be https.*notify-on "everything" must be/)]);
    expect(heard(at)).toEqual([[], [], [about('FAILED', 'SETTINGS')]]);
    expect((await s.ask('list', [], env(at, { DBBACKUP_TIMEOUT: 'soon' }))).code).toBe(78);
    expect([heard(at), pings(at.ping).map(([event]) => event)]).toEqual([[[], [], []], ['fail']]);
  });
});

describe('servers that are not well', () => {
  test('all of them down for three nights: nothing is lost, and each message arrives exactly once when they are back', async () => {
    const first = await servers();
    const ports = {
      mail: { port: first.mail.port },
      slack: { port: first.slack.port },
      webhook: { port: first.webhook.port },
      ping: { port: first.ping.port },
    };
    const { s } = await sceneWithCopy(WAL);
    for (const server of Object.values(first)) await server.close();
    closing = [];
    hide(s);
    const ids: string[] = [];
    for (let night = 1; night <= 3; night++) {
      const run = await s.run(['--json'], env(ports));
      ids.push(run.json.runId ?? '');
      expect([run.code, run.json.error?.code]).toEqual([1, 'SOURCE_MISSING']);
      // One remark that names all four, each by itself.
      const [remark = '', ...others] = notifyWarnings(run);
      expect(others).toEqual([]);
      for (const where of ['mail server', 'Slack webhook at', 'webhook at', 'ping at']) expect(remark).toContain(`${where} 127.0.0.1:`);
      expect(waiting(s).sort()).toEqual([...Array(night).fill('mail'), ...Array(night).fill('slack'), ...Array(night).fill('webhook')]);
      // Whoever looks in between may try as often as they like: what cannot be reached has refused nothing.
      for (let tries = 0; tries < 4; tries++) await notify(s, env(ports));
    }
    const status = await s.ask('status', ['--json', '--name', 'app'], env(ports));
    expect(status.json.problems?.find((p) => p.code === 'UNDELIVERED')?.message).toBe('9 messages could not be delivered yet (mail 3, slack 3, webhook 3)');

    const back: Servers = {
      mail: await smtp(ports.mail.port),
      slack: await http(ports.slack.port),
      webhook: await http(ports.webhook.port),
      ping: await http(ports.ping.port),
    };
    bringBack(s);
    const run = await s.run(['--json'], env(back));
    expect([run.code, run.json.warnings]).toEqual([0, []]);
    const told = documents(back.webhook);
    expect(told.map((d) => d.runId)).toEqual([...ids, run.json.runId]);
    expect(told.map((d) => d.subject)).toEqual([GONE, GONE, GONE, about('RECOVERED')]);
    expect([subjectsIn.mail(back.mail), subjectsIn.slack(back.slack)]).toEqual(Array(2).fill([GONE, GONE, GONE, about('RECOVERED')]));
    // A ping that comes late would lie: only this night's came.
    expect(pings(back.ping)).toEqual([
      ['start', run.json.runId],
      ['success', run.json.runId],
    ]);
    expect([outbox(s), (await s.run([], env(back))).code, heard(back)]).toEqual([[], 0, [[], [], []]]);
  });

  test.each([
    ['answers 500', { answer: 500, text: 'out of order' }, /Slack webhook at 127\.0\.0\.1:\d+: HTTP 500 Internal Server Error: out of order/],
    ['answers 404', { answer: 404, text: 'no_service' }, /HTTP 404 Not Found: no_service/],
    ['redirects', { answer: 302, headers: { location: 'http://127.0.0.1:1/' } }, /HTTP 302 Found: a redirect, which is not followed/],
    ['hangs up', 'hang up', /ECONNRESET|socket hang up/],
    ['breaks off', 'break off', /HTTP 500/],
  ] as const)('one that %s keeps its own messages waiting and nobody else’s', async (_, as, why) => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    at.slack.behave(as);
    hide(s);
    const run = await s.run(['--json'], env(at));
    expect(run.code).toBe(1);
    expect(notifyWarnings(run)).toEqual([expect.stringMatching(why)]);
    expect(notifyWarnings(run)[0]).toMatch(/it is kept and a later run sends it/);
    expect(heard(at)).toEqual([[GONE], [], [GONE]]);
    expect(waiting(s)).toEqual(['slack']);
    bringBack(s);
    // Exit 0 becomes 3: somebody is not told.
    const incomplete = await s.run(['--json'], env(at));
    expect([incomplete.code, incomplete.json.status, incomplete.json.error?.code, incomplete.json.copy?.status]).toEqual([
      3,
      'incomplete',
      'NOTIFY_FAILED',
      'good',
    ]);
    expect(heard(at)).toEqual([[about('RECOVERED')], [], [about('RECOVERED')]]);
    expect(pings(at.ping).map(([event]) => event)).toEqual(['fail', 'start', 'fail']);
    at.slack.behave({ answer: 200 });
    expect((await s.run([], env(at))).code).toBe(0);
    expect([heard(at), outbox(s)]).toEqual([[[], [GONE, about('RECOVERED')], []], []]);
  });

  test('a signal while a run that came short tells of it: 128 + n, with the copy, and what came short as a remark', async () => {
    const at = await servers();
    const s = scene(WAL);
    at.webhook.behave('stall');
    const args = ['run', s.source, '--to', s.to, '--upload', `file://${s.home}/no-disk`, '--json'];
    const running = start(args, env(at));
    await until('the webhook to be asked', () => at.webhook.heard.length > 0, 20_000);
    signalTo(running.pid, 'SIGTERM');
    const ended = await running.result;
    expect([ended.code, ended.json.status, ended.json.error?.code], ended.stderr).toEqual([143, 'interrupted', 'INTERRUPTED']);
    expect([ended.json.copy?.status, ended.json.copy?.file]).toEqual(['good', dataFiles(s.to)[0]]);
    expect(ended.json.warnings).toContainEqual({ code: 'UPLOAD_FAILED', severity: 'critical', message: expect.stringContaining('no-disk') });
  });

  test('one that stalls costs its own 15 s, and a signal meanwhile ends the run within 2 s: what was not sent stays', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    at.slack.behave('stall');
    hide(s);
    const stalled = await s.run(['--json'], env(at));
    expect([stalled.code, notifyWarnings(stalled)]).toEqual([1, [expect.stringMatching(/Slack webhook .*not done within 15 s/)]]);
    expect(stalled.durationMs).toBeLessThan(25_000);
    expect(waiting(s)).toEqual(['slack']);
    bringBack(s);
    at.slack.heard.length = 0;
    at.ping.behave('stall');
    const run = start(['run', s.source, '--to', s.to, '--json'], env(at));
    await until('Slack to be told', () => at.slack.heard.length > 0);
    const began = performance.now();
    signalTo(run.pid, 'SIGTERM');
    const ended = await run.result;
    expect([ended.code, ended.json.status, ended.json.copy?.status]).toEqual([143, 'interrupted', 'good']);
    expect(performance.now() - began).toBeLessThan(2000);
    expect(waiting(s).filter((c) => c === 'slack')).toHaveLength(2);
    at.slack.behave({ answer: 200 });
    at.ping.behave({ answer: 200 });
    heard(at);
    expect((await s.run([], env(at))).code).toBe(0);
    const [mail, slack] = heard(at);
    // The run that was ended has not recovered anything: whoever was not told so before the signal came hears what became of it.
    expect([slack, outbox(s)]).toEqual([[GONE, about('INTERRUPTED'), about('RECOVERED')], []]);
    expect(mail).toEqual([about('INTERRUPTED'), about('RECOVERED')]);
  }, 60_000);

  const noFaketime = cannot('faketime');
  test.skipIf(noFaketime !== null)('one that asks to be left alone is, for as long as it asked', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    at.slack.behave({ answer: 429, headers: { 'retry-after': '3600' } });
    hide(s);
    const asked = await s.run(['--json'], env(at));
    expect(notifyWarnings(asked)).toEqual([expect.stringMatching(/HTTP 429 Too Many Requests; it is kept/)]);
    at.slack.behave({ answer: 200 });
    const soon = await s.run(['--json'], env(at));
    expect(notifyWarnings(soon)).toEqual([expect.stringMatching(/Slack webhook: it asked to be left alone until \d{4}-.*Z; it is kept/)]);
    expect([at.slack.heard.length, waiting(s)]).toEqual([1, ['slack', 'slack']]);
    const later = await s.run(['--json'], { ...env(at), through: wrap.clock('+90m') });
    expect([later.code, notifyWarnings(later), subjectsIn.slack(at.slack)]).toEqual([1, [], [GONE, GONE, GONE]]);
    expect(outbox(s)).toEqual([]);
  });

  test.skipIf(noFaketime !== null)('a message that is refused again and again, for days, is given up, aloud; the others go on', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    at.webhook.behave((p) => (p.body.includes('"event":"failure"') ? { answer: 410, text: 'gone' } : { answer: 200 }));
    hide(s);
    await s.run([], env(at));
    bringBack(s);
    expect((await s.run([], env(at))).code).toBe(3);
    // The refused one holds nobody up.
    expect(subjectsIn.webhook(at.webhook)).toEqual([about('RECOVERED')]);
    // Hours of it are not enough: a server that is mended tomorrow has it.
    for (let tries = 3; tries < 13; tries++) expect((await notify(s, env(at))).code).toBe(3);
    expect(waiting(s)).toEqual(['webhook']);
    const last = await s.run(['--json'], { ...env(at), through: wrap.clock('+73h') });
    expect([last.code, outbox(s)]).toEqual([3, []]);
    expect(last.json.warnings).toContainEqual({
      code: 'NOTIFY_FAILED',
      severity: 'critical',
      message: expect.stringMatching(/^the message "dbbackup: app FAILED .*" of .* \(webhook\) is given up, since it was refused 13 times$/),
    });
    expect(last.json.error?.message).not.toMatch(/kept/);
    expect((await s.run([], { ...env(at), through: wrap.clock('+73h') })).code).toBe(0);
  });

  test('an old message has one more chance, then it is given up; so is one of a channel that is set no more', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    for (const server of [at.slack, at.webhook]) server.behave({ answer: 503 });
    hide(s);
    await s.run([], env(at));
    bringBack(s);
    const old = new Date(Date.now() - 15 * 24 * HOUR).toISOString();
    for (const file of outbox(s)) {
      const path = join(s.state, 'outbox', file);
      writeFileSync(path, readFileSync(path, 'utf8').replace(/"createdAt": "[^"]*"/, `"createdAt": "${old}"`));
    }
    expect(waiting(s)).toEqual(['slack', 'webhook']);
    // Slack takes it after all, the webhook is set no more.
    at.slack.behave({ answer: 200 });
    heard(at);
    const run = await s.run(['--json'], env(at, { DBBACKUP_WEBHOOK: '' }));
    expect([run.code, subjectsIn.slack(at.slack), outbox(s)]).toEqual([0, [GONE, about('RECOVERED')], []]);
    expect(notifyWarnings(run)).toEqual([expect.stringMatching(/^critical .* \(webhook\) is given up, since it is older than 14 days$/)]);
  });

  test('what an older version queued is sent as mail', async () => {
    const at = await servers();
    const { s } = await sceneWithCopy(WAL);
    at.slack.behave({ answer: 500 });
    hide(s);
    await s.run([], env(at, NO_MAIL));
    bringBack(s);
    const [file = ''] = outbox(s);
    const path = join(s.state, 'outbox', file);
    const { message, attempts } = JSON.parse(readFileSync(path, 'utf8')) as { message: Record<string, unknown>; attempts: number };
    const { host, record, ...plain } = message;
    expect([host, record]).toEqual([hostname(), undefined]);
    writeFileSync(path, JSON.stringify({ schemaVersion: 1, attempts, message: plain }));
    renameSync(path, path.replace('.slack.json', '.json'));
    heard(at);
    await s.run([], env(at, { DBBACKUP_SLACK_WEBHOOK: '' }));
    expect([heard(at), outbox(s)]).toEqual([[[GONE, about('RECOVERED')], [], [about('RECOVERED')]], []]);
  });
});

describe('the ping', () => {
  const only = (at: Pick<Servers, 'ping'>): Options => ({ env: { DBBACKUP_PING_URL: `${at.ping.url}/check` } });

  test('a run that finds another one at work says nothing; one that has nothing to do is well', async () => {
    const at = { ping: await http() };
    const { s } = await sceneWithCopy(WAL);
    const holder = await useDatabase(join(s.state, 'app.lock.db'), ['BEGIN IMMEDIATE']);
    expect((await s.run([], only(at))).code).toBe(75);
    await holder.stop();
    expect(at.ping.heard).toEqual([]);
    expect((await s.run(['--if-older-than', '1h'], only(at))).code).toBe(0);
    expect(pings(at.ping).map(([event]) => event)).toEqual(['success']);
    for (const words of [
      ['run', s.source, '--to', s.to, '--dry-run'],
      ['verify', '--to', s.to, '--name', 'app'],
      ['prune', '--to', s.to, '--name', 'app'],
    ]) {
      expect((await dbbackup(words, only(at))).code).toBe(0);
    }
    expect(at.ping.heard).toEqual([]);
  });

  test('one that fails at the end turns 0 into 3, is never kept, and is no failure of the backup', async () => {
    const at = { ping: await http() };
    const s = scene(WAL);
    at.ping.behave((p) => ({ answer: p.path.includes('/start') ? 200 : 500 }));
    const run = await s.run(['--json'], only(at));
    expect([run.code, run.json.status, run.json.error?.code, run.json.copy?.status]).toEqual([3, 'incomplete', 'NOTIFY_FAILED', 'good']);
    expect(run.json.error?.message).toMatch(/ping at 127\.0\.0\.1:\d+: HTTP 500/);
    expect(run.json.error?.message).not.toMatch(/kept/);
    expect(outbox(s)).toEqual([]);
    hide(s);
    const failed = await s.run(['--json'], only(at));
    expect([failed.code, notifyWarnings(failed)]).toEqual([1, [expect.stringMatching(/^warning .*ping at .*HTTP 500/)]]);
  });

  test('one that fails at the start only is a remark', async () => {
    const at = { ping: await http() };
    const s = scene(WAL);
    at.ping.behave((p) => ({ answer: p.path.includes('/start') ? 404 : 200 }));
    const run = await s.run(['--json'], only(at));
    expect([run.code, run.json.status, notifyWarnings(run)]).toEqual([0, 'ok', [expect.stringMatching(/^warning .*HTTP 404/)]]);
    expect(pings(at.ping).map(([event]) => event)).toEqual(['start', 'success']);
  });
});

describe('check', () => {
  test('looks each host up and sends nothing', async () => {
    const at = await servers();
    const s = scene(WAL);
    const check = (options: Options, ...more: string[]): Promise<Result> => dbbackup(['check', s.source, '--to', s.to, '--json', ...more], options);
    expect((await check(env(at))).code).toBe(0);
    expect([heard(at), at.ping.heard]).toEqual([[[], [], []], []]);
    const bad = await check(env(at, { DBBACKUP_SLACK_WEBHOOK: 'https://no-such-host.invalid/x', DBBACKUP_PING_URL: 'https://no-such-ping.invalid/x' }));
    expect([bad.code, bad.json.problems?.filter((p) => p.severity === 'critical').map((p) => p.message.split(':')[0])]).toEqual([
      1,
      ['Slack webhook at no-such-host.invalid', 'ping at no-such-ping.invalid'],
    ]);
    for (const channel of ['DBBACKUP_SLACK_WEBHOOK', 'DBBACKUP_WEBHOOK', 'DBBACKUP_PING_URL']) {
      const one = await check({ env: { [channel]: 'http://127.0.0.1:1/x' } });
      expect(one.json.problems?.map((p) => p.code)).toEqual(['NOT_SEEN']);
    }
    expect((await check({})).json.problems?.map((p) => `${p.severity} ${p.code}`)).toEqual(['warning NOBODY_HEARS', 'warning NOT_SEEN']);
  });

  test('--send-test sends one to every channel, and says which did not take it', async () => {
    const at = await servers();
    const s = scene(WAL);
    const good = await dbbackup(['check', s.source, '--to', s.to, '--send-test'], env(at, { DBBACKUP_MAIL_TO_CRITICAL: 'boss@example.org' }));
    expect([good.code, good.stderr.trim().split('\n').sort()]).toEqual([
      0,
      [
        'a test message was sent to ops@example.org, boss@example.org',
        `a test message was sent to the Slack webhook at 127.0.0.1:${at.slack.port}`,
        `a test message was sent to the ping at 127.0.0.1:${at.ping.port}`,
        `a test message was sent to the webhook at 127.0.0.1:${at.webhook.port}`,
      ],
    ]);
    expect(heard(at)).toEqual(Array(3).fill([about('TEST')]));
    expect(pings(at.ping).map(([event]) => event)).toEqual(['log']);
    at.slack.behave({ answer: 403, text: 'invalid_token' });
    at.ping.behave({ answer: 200, text: 'OK (not found)' });
    const bad = await dbbackup(['check', s.source, '--to', s.to, '--send-test', '--json'], env(at));
    expect([bad.code, bad.json.problems?.filter((p) => p.severity === 'critical').map((p) => p.message)]).toEqual([
      1,
      [expect.stringMatching(/Slack webhook at .*HTTP 403 Forbidden: invalid_token/), expect.stringMatching(/ping at .*does not know this check/)],
    ]);
    expect(existsSync(s.to)).toBe(false);
  });
});

describe('secrets', () => {
  const CANARIES = ['T0cAnArY7f3e', 'B0cAnArY8a4d', 'XcAnArYsLaCk0987654321', 'wHcAnArY-1234', 'q-cAnArY-5678', 'p@ss cAnArY', 'pIngcAnArY-9876'];
  const secret = (at: Ports): Options =>
    env(at, {
      DBBACKUP_SLACK_WEBHOOK: `http://127.0.0.1:${at.slack.port}/services/${CANARIES[0]}/${CANARIES[1]}/${CANARIES[2]}`,
      DBBACKUP_WEBHOOK: `http://me:${encodeURIComponent(CANARIES[5] ?? '')}@127.0.0.1:${at.webhook.port}/in/${CANARIES[3]}?key=${CANARIES[4]}`,
      DBBACKUP_PING_URL: `http://127.0.0.1:${at.ping.port}/${CANARIES[6]}`,
    });
  const expectNowhere = (what: string, text: string): void =>
    expect(/cAnArY/i.test(text) ? `${what}: ${/.{0,80}cAnArY.{0,80}/i.exec(text)?.[0]}` : '').toBe('');

  test('are in no output, log, mail, history, message or outbox, whatever the servers answer', async () => {
    const at = await servers();
    const all = [at.slack, at.webhook, at.ping];
    for (const as of ['taken', 'echoed', 'gone'] as const) {
      const s = scene(WAL);
      if (as === 'echoed') {
        const echo = ({ path, headers }: { path: string; headers: Readonly<Record<string, string>> }): string =>
          `${path} ${decodeURIComponent(path)} http://127.0.0.1${path} ${CANARIES.join(' ')} ${headers['authorization'] ?? ''} ${Buffer.from(`me:${CANARIES[5]}`).toString('base64')}`;
        for (const server of all) server.behave((p) => ({ answer: 404, text: echo(p) }));
      }
      if (as === 'gone') for (const server of all) await server.close();
      plant(s.to, baseAt(ago(40 * HOUR), 'stale'));
      const results = [
        await s.run(['--verbose', '--notify-on', 'success'], secret(at)),
        await dbbackup(['run', `${s.source}.gone`, '--to', s.to, '--name', 'app', '--json', '--verbose'], secret(at)),
        await s.ask('status', ['--json', '--notify', '--name', 'stale'], secret(at)),
        await s.ask('status', ['--notify', '--name', 'app'], secret(at)),
        await dbbackup(['check', s.source, '--to', s.to, '--json'], secret(at)),
        await dbbackup(['check', s.source, '--to', s.to, '--send-test', '--verbose'], secret(at)),
        await s.ask('history', ['--json'], secret(at)),
        await dbbackup(['run', s.source, '--to', s.to, '--timeout', 'soon', '--json'], secret(at)),
      ];
      expect(results.map((r) => r.code)).toEqual(as === 'taken' ? [0, 1, 1, 0, 0, 0, 0, 78] : [3, 1, 1, 3, 0, 1, 0, 78]);
      for (const r of results) expectNowhere('the output', r.stdout + r.stderr);
      expectNowhere('the backup directory', everything(s.to));
      expectNowhere('a mail', at.mail.received.map((m) => m.raw).join('\n'));
      for (const server of all) expectNowhere('a message', server.heard.map((p) => p.body).join('\n'));
    }
    // They were used.
    for (const server of all) expect(server.heard.every((p) => p.path.includes('cAnArY'))).toBe(true);
    expect(at.webhook.heard[0]?.headers['authorization']).toBe(`Basic ${Buffer.from(`me:${CANARIES[5]}`).toString('base64')}`);
  }, 60_000);

  test('nor where they do not parse, nor in a path that repeats them', async () => {
    const { s } = await sceneWithCopy(WAL);
    const options = {
      DBBACKUP_SLACK_WEBHOOK: `http://hooks.example.org/${CANARIES[2]}`,
      DBBACKUP_WEBHOOK: `https://me:cAnArY%zz@h/x`,
      DBBACKUP_PING_URL: `${CANARIES[6]}`,
    };
    for (const words of [['--json'], ['--verbose']]) {
      const run = await s.run(words, { env: options });
      expect(run.code).toBe(78);
      expectNowhere('the output', run.stdout + run.stderr);
    }
    const gone = await dbbackup(['run', `/srv/${CANARIES[2]}/app.db`, '--to', s.to, '--json'], {
      env: { DBBACKUP_SLACK_WEBHOOK: `http://127.0.0.1:1/${CANARIES[2]}` },
    });
    expect([gone.code, gone.json.error?.message]).toEqual([1, expect.stringContaining('/srv***/app.db')]);
    expectNowhere('the backup directory', everything(s.to));
  });

  test('an ordinary word in an address is none: paths stay as they are', async () => {
    const s = scene(null);
    plant(s.to, baseAt(ago(HOUR)));
    const run = await dbbackup(['run', '/srv/backups/app.db', '--to', s.to, '--json'], { env: { DBBACKUP_WEBHOOK: 'http://127.0.0.1:1/backups/in' } });
    expect(run.json.error?.message).toContain('/srv/backups/app.db');
  });
});
