/** Somebody hears of it: who is told what, when, and how often, with a real mail server on loopback. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmdirSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { type AddressInfo, createServer } from 'node:net';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { mountTmpfs } from '../fault/mounts.js';
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
  startCommand,
  tempDirectory,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { type ParsedMail, parseMail, type SmtpServer, startScripted, startSmtp } from '../support/smtp.js';
import { ago, baseAt, dataFiles, HOUR, plant, plantDaily, type Scene, scene, sceneWithCopy } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

let server: SmtpServer;
/** A port at which nobody listens. */
let deadPort: number;

beforeAll(async () => {
  server = await startSmtp();
  const taken = createServer().listen(0, '127.0.0.1');
  await new Promise((listening) => taken.once('listening', listening));
  deadPort = (taken.address() as AddressInfo).port;
  await new Promise((closed) => taken.close(closed));
});
afterAll(() => server.close());
beforeEach(() => {
  server.received.length = 0;
});

const env = (more: Readonly<Record<string, string>> = {}): { env: Record<string, string> } => ({
  env: { DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${server.port}`, DBBACKUP_MAIL_TO: 'ops@example.org', ...more },
});
const down = (): { env: Record<string, string> } => env({ DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${deadPort}` });

/** What has arrived since the last look, oldest first. */
function arrived(): ParsedMail[] {
  return server.received.splice(0).map((m) => parseMail(m.raw));
}
const subjects = (): string[] => arrived().map((m) => m.headers.get('subject') ?? '');
const outbox = (s: Scene): string[] => (existsSync(join(s.state, 'outbox')) ? readdirSync(join(s.state, 'outbox')).filter((f) => f.endsWith('.json')) : []);
const HOST = hostname();
const about = (verdict: string, code?: string, name = 'app'): string => `dbbackup: ${name} ${verdict} on ${HOST}${code ? `: ${code}` : ''}`;
const hide = (s: Scene): void => renameSync(s.source, `${s.source}.gone`);
function change(s: Scene, sql: string): void {
  const db = new Database(s.source);
  db.unsafeMode(true);
  db.exec(sql);
  db.close();
}
const bringBack = (s: Scene): void => renameSync(`${s.source}.gone`, s.source);

describe('a run that fails', () => {
  test('is told with all that is needed at 3 a.m.', async () => {
    const s = scene(null);
    const copy = plant(s.to, baseAt(ago(26 * HOUR)));
    const run = await s.run(['--json'], env({ DBBACKUP_MAIL_TO: 'ops@example.org,boss@example.org', DBBACKUP_MAIL_FROM: 'db@example.org' }));
    expect([run.code, run.json.error?.code]).toEqual([1, 'SOURCE_MISSING']);
    expect(server.received.map((m) => [m.from, m.to])).toEqual([['db@example.org', ['ops@example.org', 'boss@example.org']]]);
    const [mail] = arrived();
    expect(mail?.headers.get('subject')).toBe(about('FAILED', 'SOURCE_MISSING'));
    const text = mail?.text ?? '';
    const { message = '', hint = '' } = run.json.error ?? {};
    for (const part of [
      `SOURCE_MISSING: ${message}`,
      hint,
      `The newest good copy is ${copy}, 26 h old.`,
      HOST,
      s.to,
      run.json.runId ?? '',
      `run ${s.source} --to ${s.to} --json`,
    ]) {
      expect(text).toContain(part);
    }
    expect(text).toMatch(/^ *Failed at +inspect$/m);
    // The last lines of the log.
    expect(text).toMatch(/\d{4}-\d\d-\d\dT[\d:.]+Z info run begins/);
    expect(text).toMatch(/error inspect failed: SOURCE_MISSING/);
    for (const part of ['SOURCE_MISSING', copy, HOST]) expect(mail?.html).toContain(part);
    expect(outbox(s)).toEqual([]);
  });

  test.each([
    ['itself', () => ({}), 'env DBBACKUP_KEEP_LAST=3'],
    ['a credential', (url: string) => ({ DBBACKUP_SMTP_URL: '', CREDENTIALS_DIRECTORY: dirname(url) }), 'env DBBACKUP_KEEP_LAST=3'],
    ['a file', (url: string) => ({ DBBACKUP_SMTP_URL: '', DBBACKUP_SMTP_URL_FILE: url }), 'env DBBACKUP_MAIL_TO='],
  ])('is told with a line that works in a shell without that environment: smtp-url as %s', async (_, way, begins) => {
    const s = scene();
    const url = join(tempDirectory('credentials'), 'smtp_url');
    writeFileSync(url, env().env['DBBACKUP_SMTP_URL'] ?? '', { mode: 0o600 });
    hide(s);
    const mail = { DBBACKUP_MAIL_TO_CRITICAL: 'boss@example.org', DBBACKUP_MAIL_FROM: 'db@example.org', DBBACKUP_KEEP_LAST: '3' };
    const asFlags = ['--mail-to', 'ops@example.org', '--mail-from=db@example.org'];
    expect((await s.run(asFlags, env({ ...mail, ...way(url) }))).code).toBe(1);
    bringBack(s);
    const line = / && (?:sudo -u \S+ )?(.*)$/m.exec(arrived()[0]?.text.replaceAll('\r', '') ?? '')?.[1] ?? '';
    expect(line.startsWith(begins), line).toBe(true);
    const again = await startCommand(['sh', '-c', line]).result;
    expect([again.code, dataFiles(s.to).length], again.stderr).toEqual([0, 1]);
  });

  test('is told each time, and its end once', async () => {
    const s = scene();
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([]);
    hide(s);
    await s.run([], env());
    await s.run([], env());
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING'), about('FAILED', 'SOURCE_MISSING')]);
    bringBack(s);
    const ok = await s.run(['--json'], env());
    const [recovery, ...others] = arrived();
    expect([ok.code, recovery?.headers.get('subject'), others.length]).toEqual([0, about('RECOVERED'), 0]);
    expect(recovery?.text).toContain(`The new copy is ${ok.json.copy?.file}`);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([]);
  });

  test('before there is a directory at all is recorded, told, also later, and its end is', async () => {
    const s = scene();
    hide(s);
    const first = await s.run(['--json'], down());
    expect([first.code, first.json.error?.code, outbox(s).length]).toEqual([1, 'SOURCE_MISSING', 1]);
    expect((await s.ask('history', ['--json'])).json.runs?.map((r) => [r.status, r.error?.code])).toEqual([['failed', 'SOURCE_MISSING']]);
    // There is one name that runs have tried.
    const status = await s.ask('status', ['--json']);
    expect([status.code, status.json.name, status.json.lastRun?.error?.code, status.json.problems?.map((p) => `${p.severity} ${p.code}`)]).toEqual([
      1,
      'app',
      'SOURCE_MISSING',
      expect.arrayContaining(['critical COPY_NOT_FOUND', 'warning LAST_RUN_FAILED']),
    ]);
    bringBack(s);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING'), about('RECOVERED')]);
  });

  test('notify-on decides which of them are told', async () => {
    const { s } = await sceneWithCopy();
    hide(s);
    await s.run(['--notify-on', 'recovery'], env());
    expect(subjects()).toEqual([]);
    bringBack(s);
    await s.run(['--notify-on', 'recovery'], env());
    expect(subjects()).toEqual([about('RECOVERED')]);
    hide(s);
    await s.run([], env({ DBBACKUP_NOTIFY_ON: 'failure' }));
    bringBack(s);
    await s.run([], env({ DBBACKUP_NOTIFY_ON: 'failure' }));
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING')]);
    expect(outbox(s)).toEqual([]);
  });

  test('a prune that fails is told as well; a rule, a remark and a dry run are not', async () => {
    const s = scene();
    breakRows(s.source);
    plant(s.to, baseAt(ago(40 * HOUR), 'stale'));
    expect((await s.run([], env())).code).toBe(0);
    hide(s);
    expect((await s.run(['--dry-run'], env())).code).toBe(1);
    expect((await s.ask('status', ['--name', 'stale'], env())).code).toBe(1);
    expect(subjects()).toEqual([]);
    chmodSync(s.to, 0o777);
    expect((await s.ask('prune', ['--name', 'app'], env())).code).toBe(78);
    expect(subjects()).toEqual([about('prune FAILED', 'TARGET_OWNER')]);
  });

  test('a run that only lost the race for the lock is none', async () => {
    const { s } = await sceneWithCopy();
    hide(s);
    await s.run([], down());
    const waiting = outbox(s);
    expect(waiting).toHaveLength(1);
    const holder = await useDatabase(join(s.state, 'app.lock.db'), ['BEGIN IMMEDIATE']);
    bringBack(s);
    const run = await s.run(['--json'], env());
    expect([run.code, run.json.error?.code]).toEqual([75, 'LOCKED']);
    expect([subjects(), outbox(s)]).toEqual([[], waiting]);
    await holder.stop();
    // Nor does it end the trouble, or begin one.
    await s.run([], env());
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING'), about('RECOVERED')]);
  });

  test('a suspect copy is told as such, and is no recovery', async () => {
    const s = scene();
    const good = await s.run(['--json']);
    // A page that belongs to nothing: the source is damaged, and a copy of what can be read is not.
    change(s, "PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = 'beat'");
    for (let i = 0; i < 2; i++) {
      const run = await s.run(['--json'], env());
      expect([run.code, run.json.error?.code, run.json.copy?.status]).toEqual([1, 'SOURCE_CORRUPT', 'suspect']);
      const [mail, ...others] = arrived();
      expect([mail?.headers.get('subject'), others.length]).toEqual([about('FAILED', 'SOURCE_CORRUPT'), 0]);
      expect(mail?.text).toContain(`kept as the suspect copy ${run.json.copy?.file}`);
      expect(mail?.text).toContain(`The newest good copy is ${good.json.copy?.file}`);
    }
    change(s, 'VACUUM');
    expect((await s.run([], env())).code).toBe(0);
    // The table that was damaged is gone: well again, and not all is well.
    expect(subjects()).toEqual([about('RECOVERED', 'TABLE_GONE')]);
  });
});

test('a run that has nothing to do, and an old message that cannot be sent, take back nothing of what the last night found', async () => {
  const s = scene();
  const options = env({ DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${deadPort}`, DBBACKUP_NOTIFY_ON: 'failure,recovery,warning,success' });
  await s.run([], options);
  change(s, 'DROP TABLE setting');
  expect((await s.run(['--json'], options)).json.warnings?.map((w) => w.code)).toContain('TABLE_GONE');
  const skipped = await s.run(['--if-older-than', '20h', '--json'], options);
  expect([skipped.code, skipped.json.copy, skipped.json.error?.code], skipped.stderr).toEqual([3, null, 'NOTIFY_FAILED']);
  expect((await s.ask('status', ['--json'])).json.problems?.map((p) => p.code)).toContain('TABLE_GONE');
});

describe('a server that cannot be reached', () => {
  test('changes nothing of a failure, and what could not be sent is sent by the next run, once', async () => {
    const { s } = await sceneWithCopy();
    hide(s);
    const failed = await s.run(['--json'], down());
    expect([failed.code, failed.json.error?.code, failed.json.status]).toEqual([1, 'SOURCE_MISSING', 'failed']);
    expect(failed.json.warnings?.map((w) => w.code)).toEqual(['NOTIFY_FAILED']);
    expect(failed.json.stages?.find((t) => t.name === 'report')?.status).toBe('failed');
    expect(problemsIn(failed.json, shapes.run)).toEqual([]);
    expect(outbox(s)).toHaveLength(1);
    expect((await s.ask('status', ['--json', '--name', 'app'])).json.problems?.map((p) => p.code)).toEqual(['LAST_RUN_FAILED', 'UNDELIVERED']);

    bringBack(s);
    const next = await s.run(['--json'], env());
    expect([next.code, next.json.status]).toEqual([0, 'ok']);
    const [first, second, ...others] = arrived();
    expect([first?.headers.get('subject'), second?.headers.get('subject'), others.length]).toEqual([about('FAILED', 'SOURCE_MISSING'), about('RECOVERED'), 0]);
    expect(first?.text).toContain(failed.json.runId);
    expect([outbox(s), (await s.run([], env())).code, subjects()]).toEqual([[], 0, []]);
  });

  test('turns exit 0 into 3, and nothing else', async () => {
    const { s } = await sceneWithCopy();
    hide(s);
    await s.run([], down());
    bringBack(s);
    const run = await s.run(['--json'], down());
    expect(run.code, run.stderr).toBe(3);
    expect(problemsIn(run.json, shapes.run)).toEqual([]);
    expect(run.json).toMatchObject({ status: 'incomplete', exitCode: 3, error: { code: 'NOTIFY_FAILED', stage: 'report' }, copy: { status: 'good' } });
    expect(run.stderr).toMatch(/^dbbackup: error NOTIFY_FAILED \(report\): .*it is kept and a later run sends it.* Hint: dbbackup check --send-test/m);
    expect(run.json.error?.message).toContain(`127.0.0.1:${deadPort}`);
    expect(dataFiles(s.to)).toContain(run.json.copy?.file);
    expect((await s.ask('status', ['--json'])).json).toMatchObject({ healthy: true, lastRun: { status: 'incomplete' } });

    // Each of the two that wait arrives once, the older one first, and the trouble has ended once.
    expect((await s.run([], env())).code).toBe(0);
    const mails = arrived();
    expect(mails.map((m) => m.headers.get('subject'))).toEqual([about('FAILED', 'SOURCE_MISSING'), about('RECOVERED')]);
    expect(new Set(mails.map((m) => m.headers.get('message-id'))).size).toBe(2);
    expect([outbox(s), (await s.run([], env())).code, subjects()]).toEqual([[], 0, []]);
  });

  test.each(['prune', 'run'])('where the time limit ends the telling of %s, what was to be done is done: 3', async (command) => {
    const silent = await startScripted('', () => null);
    const { s } = await sceneWithCopy();
    hide(s);
    await s.run([], down());
    bringBack(s);
    const at = env({ DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${silent.port}` });
    const limited = ['--json', '--keep-last', '5', '--timeout', '2s'];
    const late = command === 'run' ? await s.run(limited, at) : await s.ask(command, limited, at);
    await silent.close();
    expect([late.code, late.json.status, late.json.error?.code, late.json.error?.stage], late.stderr).toEqual([3, 'incomplete', 'TIMEOUT', 'report']);
    // Not that it has recovered: that it came short is told, and its end after that.
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([
      about('FAILED', 'SOURCE_MISSING'),
      about('INCOMPLETE', 'TIMEOUT', command === 'run' ? 'app' : 'app prune'),
      about('RECOVERED'),
    ]);
  });

  test('a signal that ends the telling of a restore says that the copy is in place', async () => {
    const silent = await startScripted('', () => null);
    const { s, file } = await sceneWithCopy();
    hide(s);
    await s.run([], down());
    bringBack(s);
    const out = join(s.home, 'out.db');
    const at = env({ DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${silent.port}` });
    const running = start(['restore', '-o', out, '--to', s.to, '--json'], at);
    await until('the copy to be in place', () => running.stderr().includes(`${file} to ${out}`));
    expect(signalTo(running.pid, 'SIGHUP')).toBe(true);
    const ended = await running.result;
    await silent.close();
    expect([ended.code, ended.json.error?.code, ended.json.error?.stage], ended.stderr).toEqual([129, 'INTERRUPTED', 'report']);
    expect([ended.json.error?.message, ended.json.error?.hint]).toEqual([
      `ended by SIGHUP; ${file} into ${out} was already made`,
      'its work is done; what was still to be told is told by the next command',
    ]);
    expect(existsSync(out)).toBe(true);
  });

  test('a server that takes the mail and refuses one recipient is told, and nobody gets it twice', async () => {
    const picky = await startSmtp({ refuse: { at: 'rcpt', code: 550, only: 'gone@example.org' } });
    const s = scene(null);
    const at = env({ DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${picky.port}`, DBBACKUP_MAIL_TO: 'ops@example.org,gone@example.org' });
    const run = await s.run(['--json'], at);
    expect([run.code, run.json.error?.code]).toEqual([1, 'SOURCE_MISSING']);
    expect(run.json.warnings?.find((w) => w.code === 'NOTIFY_FAILED')?.message).toMatch(/gone@example\.org/);
    expect(picky.received.map((m) => m.to)).toEqual([['ops@example.org']]);
    await picky.close();
  });

  test('messages of one name are not sent by a run of another', async () => {
    const s = scene();
    await s.run(['--name', 'other']);
    hide(s);
    await s.run([], down());
    bringBack(s);
    expect((await s.run(['--name', 'other'], env())).code).toBe(0);
    expect([subjects(), outbox(s).length]).toEqual([[], 1]);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING'), about('RECOVERED')]);
  });

  test('a database called outbox has its mail as well', async () => {
    const s = scene();
    await s.run(['--name', 'outbox']);
    hide(s);
    const run = await s.run(['--name', 'outbox', '--json'], { ...env(), deadlineMs: 20_000 });
    expect([run.code, run.hung, run.json.warnings]).toEqual([1, false, []]);
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING', 'outbox')]);
  });
});

describe('settings that do not parse', () => {
  test('are mailed when those of the mail alone do, recorded, and recovered from', async () => {
    const { s } = await sceneWithCopy();
    const run = await s.run(['--json'], env({ DBBACKUP_TIMEOUT: 'soon', DBBACKUP_KEEP_LSAT: '3' }));
    expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
    const [mail, ...others] = arrived();
    expect([mail?.headers.get('subject'), others.length]).toEqual([about('FAILED', 'SETTINGS'), 0]);
    expect(mail?.text).toMatch(/timeout "soon"/);
    expect(mail?.text).toMatch(/did you mean DBBACKUP_KEEP_LAST/);
    expect((await s.ask('history', ['--json'])).json.runs?.[0]).toMatchObject({ status: 'failed', exitCode: 78, error: { code: 'SETTINGS' } });
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([about('RECOVERED')]);
  });

  test('on the first night: recorded where the settings lie in a file, the mail kept, and recovered from', async () => {
    const s = scene();
    const profile = join(s.home, 'app.env');
    const write = (more: string): void => {
      writeFileSync(profile, `DBBACKUP_DATABASE=${s.source}\nDBBACKUP_TO=${s.to}\n${more}`, { mode: 0o600 });
    };
    const run = (at: Options): Promise<Result> => dbbackup(['run', '--env-file', profile, '--json'], at);
    write('DBBACKUP_TIMEOUT=soon\n');
    expect((await run(down())).code).toBe(78);
    expect([readdirSync(s.to), (await s.ask('history', ['--json'])).json.runs?.map((r) => r.error?.code), outbox(s).length]).toEqual([
      ['.dbbackup'],
      ['SETTINGS'],
      1,
    ]);
    write('');
    expect((await run(env())).code).toBe(0);
    expect(subjects()).toEqual([about('FAILED', 'SETTINGS'), about('RECOVERED')]);
  });

  test('with a backup directory that is gone: recorded in the state that lies elsewhere, the mail kept there, and recovered from', async () => {
    const s = scene();
    const state = ['--state-dir', join(s.home, 'state')];
    expect((await s.run(state, env())).code).toBe(0);
    renameSync(s.to, `${s.to}.gone`);
    // Without a database nobody may make the directory anew.
    const run = await s.ask('run', ['--name', 'app', ...state, '--json'], down());
    expect([run.code, run.json.error?.message]).toEqual([78, expect.stringContaining('database is required')]);
    expect([existsSync(s.to), readdirSync(join(s.home, 'state/outbox'))]).toEqual([false, [expect.stringMatching(/mail\.json$/)]]);
    expect((await s.ask('history', [...state, '--json'])).json.runs?.map((r) => [r.exitCode, r.error?.code])).toEqual([
      [78, 'SETTINGS'],
      [0, undefined],
    ]);
    renameSync(`${s.to}.gone`, s.to);
    expect((await s.run(state, env())).code).toBe(0);
    expect(subjects()).toEqual([about('FAILED', 'SETTINGS'), about('RECOVERED')]);
  });

  test('are mailed even where there is no directory to record them in', async () => {
    const s = scene();
    const run = await dbbackup(['run', s.source, '--json'], env());
    expect([run.code, run.json.error?.message]).toEqual([78, expect.stringMatching(/to is required/)]);
    expect(subjects()).toEqual([about('FAILED', 'SETTINGS')]);
  });

  test('those of the mail itself, of commands that only look, and of dry runs are not', async () => {
    const s = scene();
    for (const broken of [{ DBBACKUP_MAIL_TO: 'nobody at all' }, { DBBACKUP_SMTP_URL: 'http://127.0.0.1' }, { DBBACKUP_MAIL_TO: '' }]) {
      const run = await s.run(['--json'], env(broken));
      expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
    }
    expect((await s.ask('list', [], env({ DBBACKUP_TIMEOUT: 'soon' }))).code).toBe(78);
    expect((await s.run(['--dry-run'], env({ DBBACKUP_TIMEOUT: 'soon' }))).code).toBe(78);
    expect((await s.run(['--nonsense'], env())).code).toBe(64);
    expect(subjects()).toEqual([]);
    expect(existsSync(s.to)).toBe(false);
  });
});

test.each([
  ['the one that is put off gets the message later', 'grey@example.org'],
  ['who takes the place of one that is put off gets it', 'right@example.org'],
])('of several recipients %s, and the others get it once', async (_, by) => {
  const s = scene(null);
  const grey = await startSmtp({ refuse: { at: 'rcpt', code: 451, only: 'grey@example.org' } });
  const at = (port: number, other = 'grey@example.org'): Options =>
    env({ DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${port}`, DBBACKUP_MAIL_TO: `ops@example.org,${other}` });
  plant(s.to, baseAt(ago(HOUR)));
  const run = await s.run(['--json'], at(grey.port));
  expect([run.code, run.json.error?.code]).toEqual([1, 'SOURCE_MISSING']);
  expect(run.json.warnings?.find((w) => w.code === 'NOTIFY_FAILED')?.message).toMatch(
    /refused for grey@example\.org \(451 .*the other recipients got it; it is kept/,
  );
  expect([grey.received.map((m) => m.to), outbox(s).length]).toEqual([[['ops@example.org']], 1]);
  for (const turn of ['first', 'second']) {
    expect((await s.ask('status', ['--notify', '--name', 'app'], at(server.port, by))).code, turn).toBe(0);
    expect([server.received.map((m) => m.to), outbox(s)]).toEqual([[[by]], []]);
  }
  expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING')]);
  await grey.close();
});

test('beside the messages that wait there is nothing in the outbox', async () => {
  const { s } = await sceneWithCopy();
  hide(s);
  await s.run([], env());
  expect([subjects(), readdirSync(join(s.state, 'outbox'))]).toEqual([[about('FAILED', 'SOURCE_MISSING')], []]);
});

test('a run that is killed while it tells has its end on record already', async () => {
  const { s } = await sceneWithCopy();
  const mute = await startSmtp({ stall: 'connect' });
  hide(s);
  const running = start(['run', s.source, '--to', s.to, '--quiet'], env({ DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${mute.port}` }));
  await until('the message to wait for its server', () => outbox(s).length === 1);
  await until('its end to be on record', async () => (await s.ask('history', ['--json'])).json.runs?.[0]?.status === 'failed');
  killGroup(running.pid, 'SIGKILL');
  await running.result;
  await mute.close();
  expect((await s.ask('status', ['--json'], env())).json.problems?.map((p) => p.code)).toEqual(['LAST_RUN_FAILED', 'UNDELIVERED']);
  bringBack(s);
  expect((await s.run([], env())).code).toBe(0);
  const [failed, recovered, ...others] = arrived();
  expect([failed, recovered].map((m) => m?.headers.get('subject'))).toEqual([about('FAILED', 'SOURCE_MISSING'), about('RECOVERED')]);
  // Whoever tries again wants an answer.
  expect([failed?.text.includes(`run ${s.source} --to ${s.to}\n`.replace('\n', '\r\n')), failed?.text.includes('--quiet'), others]).toEqual([true, false, []]);
});

describe('a run that was killed', () => {
  /** Runs, and is killed in the middle of the snapshot. */
  async function killOne(s: Scene, more: readonly string[] = []): Promise<string> {
    const holder = await holdExclusively(s.source);
    const run = start(['run', s.source, '--to', s.to, ...more], env());
    let id = '';
    await until('the run to be recorded', async () => {
      const [newest] = (await s.ask('history', ['--json', '--limit', '1', ...more])).json.runs ?? [];
      id = newest?.status === 'running' ? newest.runId : '';
      return id !== '';
    });
    killGroup(run.pid, 'SIGKILL');
    await run.result;
    await holder.crash();
    // The application starts again, and rolls its journal back.
    await useDatabase(s.source, ['SELECT count(*) FROM sqlite_schema']).then((app) => app.stop());
    return id;
  }

  test('is told by the next run, once, and so is the recovery', async () => {
    const { s } = await sceneWithCopy();
    const id = await killOne(s);
    expect(subjects()).toEqual([]);
    expect((await s.run([], env())).code).toBe(0);
    const [killed, recovery, ...others] = arrived();
    expect(killed?.headers.get('subject')).toBe(about('INTERRUPTED'));
    expect(killed?.text).toContain(id);
    expect(killed?.text).toMatch(/killed before it could finish/);
    // Not the command that tells of it: that may be a restore.
    expect(killed?.text).not.toMatch(/TRY/);
    expect([recovery?.headers.get('subject'), others.length]).toEqual([about('RECOVERED'), 0]);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([]);
  });

  test('is told by the next run also where that fails before it could begin', async () => {
    const { s } = await sceneWithCopy();
    await killOne(s);
    hide(s);
    expect((await s.run([], env())).code).toBe(1);
    expect(subjects()).toEqual([about('INTERRUPTED'), about('FAILED', 'SOURCE_MISSING')]);
    bringBack(s);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([about('RECOVERED')]);
    expect(readdirSync(join(s.state, 'tmp'))).toEqual([]);
  });

  describe('with its state in a directory that a run to another place shares', () => {
    async function shared(): Promise<{ s: Scene; state: string[]; elsewhere: (more?: readonly string[]) => Promise<Result> }> {
      const s = scene({ journal: 'wal' });
      const state = ['--state-dir', join(s.home, 'state')];
      const elsewhere = (more: readonly string[] = []): Promise<Result> =>
        dbbackup(['run', s.source, '--to', join(s.home, 'elsewhere'), ...state, '--json', ...more], env());
      expect([(await s.run(state)).code, (await elsewhere()).code]).toEqual([0, 0]);
      return { s, state, elsewhere };
    }

    test('is told by that one, once, and cleared away by the next one of its own', async () => {
      const { s, state, elsewhere } = await shared();
      const id = await killOne(s, state);
      expect((await elsewhere()).code).toBe(0);
      const [killed, recovery, ...others] = arrived();
      expect([killed, recovery].map((m) => m?.headers.get('subject'))).toEqual([about('INTERRUPTED'), about('RECOVERED')]);
      expect([killed?.text.includes(id), others]).toEqual([true, []]);
      expect(readdirSync(join(s.state, 'tmp'))).toEqual([`app-${id}`]);
      const own = await s.run([...state, '--json'], env());
      expect([own.code, subjects(), readdirSync(join(s.state, 'tmp'))], own.stderr).toEqual([0, [], []]);
      const interrupted = (await s.ask('history', [...state, '--json'])).json.runs?.filter((run) => run.status === 'interrupted');
      expect(interrupted?.map(({ runId, error }) => [runId, error?.code])).toEqual([[id, 'INTERRUPTED']]);
      expect(dataFiles(s.to)).toHaveLength(2);
    });

    const noStrace = cannot('strace');
    if (noStrace) process.stderr.write(`not run here: a run that is killed when it has made its copy: ${noStrace}\n`);

    test.skipIf(noStrace !== null)('and has made its copy: nobody is told that there is none, and it stays', async () => {
      const { s, state, elsewhere } = await shared();
      const before = dataFiles(s.to);
      // At the first sync of the directory, which follows the last link.
      const through = ['strace', '-f', '-qq', '-o', '/dev/null', '-P', s.to, '-e', 'trace=fsync', '-e', 'inject=fsync:signal=KILL:when=1', '--'];
      const ended = await s.run(state, { through });
      expect(ended.signal === 'SIGKILL' || ended.code === 137, ended.stderr).toBe(true);
      const [made = ''] = dataFiles(s.to).filter((file) => !before.includes(file));
      expect((await elsewhere()).code).toBe(0);
      const [killed] = arrived();
      expect(killed?.headers.get('subject')).toBe(about('INTERRUPTED'));
      expect(killed?.text).not.toContain('No good new copy was made');
      expect((await s.run(state, env())).code).toBe(0);
      expect((await s.ask('list', ['--json'])).json.copies?.find(({ file }) => file === made)?.status).toBe('good');
    });
  });

  test('is told at once where the outbox cannot be written', async () => {
    const { s } = await sceneWithCopy();
    await killOne(s);
    writeFileSync(join(s.state, 'outbox'), '');
    const run = await s.run(['--json'], env());
    expect([run.code, run.json.warnings?.some((w) => w.code === 'STATE_UNWRITABLE')], run.stderr).toEqual([0, true]);
    expect(subjects()).toEqual([about('INTERRUPTED'), about('RECOVERED')]);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([]);
  });

  test.skipIf(cannot('strace') !== null)('is told also where the run that was to tell it is killed over that', async () => {
    const { s } = await sceneWithCopy();
    const id = await killOne(s);
    const log = join(tempDirectory('trace'), 'log');
    await s.run([], { ...env(), through: wrap.fault(log, [{ calls: 'rename', signal: 'KILL', when: 1 }]) });
    expect(readdirSync(join(s.state, 'outbox')).map((file) => file.slice(-9))).toEqual(['.json.new']);
    expect((await s.run([], env())).code).toBe(0);
    const mails = arrived();
    expect(mails.map((m) => m.headers.get('subject')).at(-1)).toBe(about('RECOVERED'));
    expect(mails.filter((m) => m.text.includes(id))).toHaveLength(1);
  });

  test('is told also where commands with another state directory have worked there twice since', async () => {
    const { s } = await sceneWithCopy();
    const id = await killOne(s);
    const other = ['--state-dir', join(s.home, 'other')];
    for (let i = 0; i < 2; i++) expect((await s.run(other)).code).toBe(0);
    // The first of them has emptied it.
    expect(readdirSync(join(s.state, 'tmp'), { recursive: true })).toEqual([`app-${id}`]);
    expect((await s.ask('status', ['--json', '--name', 'app'])).json.problems?.map((p) => p.code)).toEqual(['LAST_RUN_DIED']);
    expect((await s.run([], env())).code).toBe(0);
    expect([subjects(), readdirSync(join(s.state, 'tmp'))]).toEqual([[about('INTERRUPTED'), about('RECOVERED')], []]);
    expect((await s.ask('history', ['--json'])).json.runs?.find(({ runId }) => runId === id)?.error?.code).toBe('INTERRUPTED');
    // One of the other's own it takes away.
    const own = await killOne(s, other);
    expect(readdirSync(join(s.state, 'tmp'))).toEqual([`app-${own}`]);
    expect((await s.run(other, env())).code).toBe(0);
    expect([subjects(), readdirSync(join(s.state, 'tmp'))]).toEqual([[about('INTERRUPTED'), about('RECOVERED')], []]);
  });

  test('is told by status --notify, and then by nobody else', async () => {
    const { s } = await sceneWithCopy();
    await killOne(s);
    const status = await s.ask('status', ['--notify', '--json'], env());
    expect(problemsIn(status.json, shapes.statusDocument)).toEqual([]);
    expect([status.code, status.json.healthy, status.json.problems?.map((p) => p.code)]).toEqual([0, true, ['LAST_RUN_DIED']]);
    const [mail, ...others] = arrived();
    expect([mail?.headers.get('subject'), others.length]).toEqual([about('UNHEALTHY', 'LAST_RUN_DIED'), 0]);
    await s.ask('status', ['--notify'], env());
    expect(subjects()).toEqual([]);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([about('RECOVERED')]);
  });
});

test.skipIf(cannot('strace') !== null)('a run that is killed while it queues its message is told all the same', async () => {
  const { s } = await sceneWithCopy();
  const log = join(tempDirectory('trace'), 'log');
  await s.run(['--before', 'false'], { ...env(), through: wrap.fault(log, [{ calls: 'rename', signal: 'KILL', when: 1 }]) });
  expect(readdirSync(join(s.state, 'outbox')).map((file) => file.slice(-9))).toEqual(['.json.new']);
  await s.ask('status', ['--notify', '--name', 'app'], env());
  expect(subjects()).toEqual([about('UNHEALTHY', 'LAST_RUN_DIED')]);
});

describe('a run that came to its end, and could not write that down, was not killed', () => {
  const codes = async (s: Scene): Promise<string[]> => (await s.ask('status', ['--json', '--name', 'app'], env())).json.problems?.map((p) => p.code) ?? [];

  test('one that went well', async () => {
    const { s } = await sceneWithCopy();
    const held = join(s.home, 'held');
    const hook = join(s.home, 'hold.cjs');
    const driver = createRequire(import.meta.url).resolve('better-sqlite3');
    // Until the run has tried to write its last record; the hook itself ends at once.
    writeFileSync(
      hook,
      `const db = new (require(${JSON.stringify(driver)}))(${JSON.stringify(join(s.state, 'history.db'))});
       db.exec('BEGIN IMMEDIATE'); require('fs').writeFileSync(${JSON.stringify(held)}, String(process.pid)); setInterval(() => {}, 1000);`,
    );
    const before = `sh -c 'setsid ${process.execPath} ${hook} >/dev/null 2>&1 & while [ ! -e ${held} ]; do :; done'`;
    const run = await s.run(['--json', '--before', before], env());
    process.kill(Number(readFileSync(held, 'utf8')), 'SIGKILL');
    expect([run.code, run.json.warnings?.map((w) => w.code).includes('STATE_UNWRITABLE')], run.stderr).toEqual([0, true]);
    expect(await codes(s)).toEqual(['LAST_RUN_FAILED']);
    expect((await s.ask('status', ['--notify', '--name', 'app'], env())).code).toBe(0);
    expect((await s.run([], env())).code).toBe(0);
    expect([subjects(), await codes(s)]).toEqual([[], []]);
    const [, seen] = (await s.ask('history', ['--json'])).json.runs ?? [];
    expect([seen?.runId, seen?.copy?.file, seen?.error?.code]).toEqual([run.json.runId, run.json.copy?.file, 'STATE_UNWRITABLE']);
  });

  test('and one that was killed is told, once, also where the next two runs could not write that down', async () => {
    const { s } = await sceneWithCopy();
    const holder = await holdExclusively(s.source);
    const running = start(['run', s.source, '--to', s.to]);
    let id = '';
    await until('the run to be under way', async () => {
      const [newest] = (await s.ask('history', ['--json'])).json.runs ?? [];
      id = newest?.status === 'running' ? newest.runId : '';
      return id !== '';
    });
    killGroup(running.pid, 'SIGKILL');
    await running.result;
    await holder.crash();
    const unwritten = async (): Promise<void> => {
      const run = await s.run(['--json'], env());
      expect([run.code, run.json.warnings?.some((w) => w.code === 'STATE_UNWRITABLE')], run.stderr).toEqual([0, true]);
    };
    const path = join(s.state, 'history.db');
    const history = await useDatabase(path, ['BEGIN IMMEDIATE']);
    await unwritten();
    await history.crash();
    // It could read the history all the same.
    expect(subjects()).toEqual([about('RECOVERED')]);
    mkdirSync(`${path}-journal`);
    await unwritten();
    rmdirSync(`${path}-journal`);
    expect(subjects()).toEqual([]);
    expect((await s.run([], env())).code).toBe(0);
    expect(subjects()).toEqual([about('INTERRUPTED'), about('RECOVERED')]);
    expect((await s.run([], env())).code).toBe(0);
    expect([subjects(), outbox(s), readdirSync(join(s.state, 'tmp'))]).toEqual([[], [], []]);
    const interrupted = (await s.ask('history', ['--json'])).json.runs?.filter((run) => run.error?.code === 'INTERRUPTED');
    expect(interrupted?.map(({ runId, status }) => [runId, status])).toEqual([[id, 'interrupted']]);
  });

  test('nor is one that was killed taken for such a one, where its state lies in another backup directory', async () => {
    const s = scene({ journal: 'wal' });
    const state = ['--state-dir', join(s.home, 'others/.dbbackup')];
    expect((await s.run(state)).code).toBe(0);
    const holder = await holdExclusively(s.source);
    const running = start(['run', s.source, '--to', s.to, ...state]);
    await until('the run to be under way', async () => (await s.ask('history', [...state, '--json'])).json.runs?.[0]?.status === 'running');
    killGroup(running.pid, 'SIGKILL');
    await running.result;
    await holder.crash();
    const [seen] = (await s.ask('history', [...state, '--json'])).json.runs ?? [];
    expect([seen?.status, seen?.error?.code]).toEqual(['interrupted', 'INTERRUPTED']);
    expect((await s.ask('status', [...state, '--json', '--name', 'app'])).json.problems?.map((p) => p.code)).toContain('LAST_RUN_DIED');
    // Nor by whoever has that directory, nor where a command with state of its own has put away what the run left.
    const others = join(s.home, 'others');
    expect((await dbbackup(['prune', '--to', s.to, '--name', 'app', '--state-dir', join(s.home, 'own')])).code).toBe(0);
    expect((await dbbackup(['history', '--to', others, '--json'])).json.runs?.[0]?.error?.code).toBe('INTERRUPTED');
    expect((await s.run(state)).code).toBe(0);
    const [, healed] = (await s.ask('history', [...state, '--json'])).json.runs ?? [];
    expect([healed?.runId, healed?.error?.code]).toEqual([seen?.runId, 'INTERRUPTED']);
  });

  test.skipIf(cannot('strace') !== null).each([
    ['at the making of its workspace', 'mkdir'],
    ['when that is there, and its first record is not', 'fsync'],
  ] as const)('nor is one that was killed %s: it has done nothing, and nothing is said of it', async (_, calls) => {
    const { s } = await sceneWithCopy();
    const only = calls === 'fsync' ? ['-P', join(s.state, 'tmp')] : [];
    const through = ['strace', '-f', '-qq', '-o', '/dev/null', ...only, '-e', `trace=${calls}`, '-e', `inject=${calls}:signal=KILL:when=1`, '--'];
    const killed = await s.run([], { ...env(), through });
    expect(killed.signal === 'SIGKILL' || killed.code === 137, killed.stderr).toBe(true);
    expect(readdirSync(join(s.state, 'tmp'))).toHaveLength(calls === 'fsync' ? 1 : 0);
    expect(await codes(s)).toEqual([]);
    expect((await s.run([], env())).code).toBe(0);
    expect([subjects(), readdirSync(join(s.state, 'tmp'))]).toEqual([[], []]);
    expect((await s.ask('history', ['--json'])).json.runs?.map(({ status }) => status)).toEqual(['ok', 'ok']);
  });

  test.skipIf(cannot('root', 'mount') !== null)('one that failed, since its disk was full: told once, and so is the recovery', async () => {
    const s = scene({ journal: 'wal' });
    const to = join(mountTmpfs(3_000_000), 'to');
    const run = (more: readonly string[]): Promise<Result> => dbbackup(['run', s.source, '--to', to, '--json', ...more], env());
    expect((await run([])).code).toBe(0);
    const fill = join(to, '../fill');
    const full = await run(['--before', `sh -c 'dd if=/dev/zero of=${fill} bs=4k 2>/dev/null; true'`]);
    expect([full.code, full.json.error?.code], full.stderr).toEqual([1, 'NO_SPACE']);
    rmSync(fill);
    expect((await run([])).code).toBe(0);
    expect(subjects()).toEqual([about('FAILED', 'NO_SPACE'), about('RECOVERED')]);
  });
});

test('a source whose path cannot be walked is told, also while there is no backup directory yet', async () => {
  const s = scene(null);
  const loop = join(s.home, 'loop');
  symlinkSync(loop, loop);
  const run = await dbbackup(['run', join(loop, 'app.db'), '--to', join(s.home, 'new'), '--json'], env());
  expect([run.code, run.json.status, run.json.error?.code], run.stderr).toEqual([1, 'failed', 'SOURCE_UNREADABLE']);
  expect(subjects()).toHaveLength(1);
});

describe('status --notify', () => {
  const notify = (s: Scene, at: Options = env(), more: readonly string[] = []): Promise<Result> =>
    s.ask('status', ['--notify', '--json', '--name', 'app', ...more], at);

  test('tells of a stale copy once, and of the next one again', async () => {
    const s = scene(null);
    mkdirSync(s.state, { recursive: true, mode: 0o700 });
    chmodSync(s.to, 0o700);
    const old = plant(s.to, baseAt(ago(40 * HOUR)));
    const first = await notify(s);
    expect([first.code, first.json.healthy]).toEqual([1, false]);
    const [mail] = arrived();
    expect(mail?.headers.get('subject')).toBe(about('UNHEALTHY', 'COPY_STALE'));
    expect(mail?.text).toContain(old);
    for (let i = 0; i < 2; i++) expect((await notify(s)).code).toBe(1);
    expect(subjects()).toEqual([]);
    // Another copy since, which has gone stale as well.
    plant(s.to, baseAt(ago(30 * HOUR)));
    await notify(s);
    expect(subjects()).toEqual([about('UNHEALTHY', 'COPY_STALE')]);
    // Healthy again: nothing to say.
    plant(s.to, baseAt(ago(HOUR)));
    expect([(await notify(s)).code, subjects()]).toEqual([0, []]);
  });

  test('what has arrived is not called undelivered because the outbox cannot be looked at', async () => {
    const s = scene(null);
    mkdirSync(s.state, { recursive: true, mode: 0o700 });
    chmodSync(s.to, 0o700);
    plant(s.to, baseAt(ago(40 * HOUR)));
    writeFileSync(join(s.state, 'outbox'), 'no directory');
    const told = await notify(s);
    expect([told.code, subjects()], told.stderr).toEqual([1, [about('UNHEALTHY', 'COPY_STALE')]]);
    expect([told.json.problems?.map((p) => p.code).includes('NOTIFY_FAILED'), told.stderr.includes('STATE_UNWRITABLE')]).toEqual([false, true]);
    // And it is known that it was told.
    expect([(await notify(s)).code, subjects()]).toEqual([1, []]);
  });

  test('tells that there is no good copy at all', async () => {
    const s = scene(null);
    mkdirSync(s.state, { recursive: true, mode: 0o700 });
    chmodSync(s.to, 0o700);
    expect((await notify(s)).code).toBe(1);
    expect((await notify(s)).code).toBe(1);
    expect(subjects()).toEqual([about('UNHEALTHY', 'COPY_NOT_FOUND')]);
  });

  test('tells it once also where no run has kept anything yet', async () => {
    const s = scene(null);
    plant(s.to, baseAt(ago(40 * HOUR)));
    await notify(s);
    await notify(s);
    expect(subjects()).toEqual([about('UNHEALTHY', 'COPY_STALE')]);
  });

  test('says nothing of a stale copy when the failures that made it stale were told', async () => {
    const s = scene(null);
    plantDaily(s.to, 2, 25 * HOUR);
    await s.run([], env());
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING')]);
    const status = await notify(s, env(), ['--max-age', '24h']);
    expect([status.code, status.json.problems?.map((p) => p.code), subjects()]).toEqual([1, ['COPY_STALE', 'LAST_RUN_FAILED'], []]);
  });

  test.skipIf(cannot('faketime') !== null)('tells of it after all where nothing runs any more, and once a week from then on', async () => {
    const s = scene(null);
    plantDaily(s.to, 2, 25 * HOUR);
    await s.run([], env());
    expect(subjects()).toEqual([about('FAILED', 'SOURCE_MISSING')]);
    const told: string[][] = [];
    for (const later of ['+1h', '+27h', '+28h', '+6d', '+9d', '+10d']) {
      await notify(s, { ...env(), through: wrap.clock(later) });
      told.push(subjects());
    }
    const stale = [about('UNHEALTHY', 'COPY_STALE')];
    expect(told).toEqual([[], stale, [], [], stale, []]);
  });

  test('also where a clock that ran ahead had told of it: that was not yet', async () => {
    const s = scene(null);
    plantDaily(s.to, 2, 40 * HOUR);
    await s.run([], env());
    const ahead = new Date(Date.now() + 300 * 24 * HOUR).toISOString();
    const tell = async (sql: string): Promise<string[]> => {
      await notify(s);
      const db = new Database(join(s.state, 'history.db'));
      db.prepare(sql).run(ahead);
      db.close();
      arrived();
      await notify(s);
      return subjects();
    };
    const stale = [about('UNHEALTHY', 'COPY_STALE')];
    expect(await tell("UPDATE runs SET record = json_set(record, '$.startedAt', ?)")).toEqual(stale);
    expect(await tell('UPDATE told SET at = ?')).toEqual(stale);
  });

  test('sends what lies undelivered, once', async () => {
    const { s } = await sceneWithCopy();
    hide(s);
    await s.run([], down());
    expect(outbox(s)).toHaveLength(1);
    const unreachable = await notify(s, down());
    expect([unreachable.json.healthy, unreachable.json.problems?.map((p) => p.code)]).toEqual([true, ['LAST_RUN_FAILED', 'UNDELIVERED', 'NOTIFY_FAILED']]);
    expect(unreachable.code).not.toBe(0);
    await notify(s);
    expect([subjects(), outbox(s)]).toEqual([[about('FAILED', 'SOURCE_MISSING')], []]);
    const after = await notify(s);
    expect([after.code, after.json.problems?.map((p) => p.code), subjects()]).toEqual([0, ['LAST_RUN_FAILED'], []]);
  });

  test('a message that it could not send is sent by the next one, once', async () => {
    const s = scene(null);
    mkdirSync(s.state, { recursive: true, mode: 0o700 });
    chmodSync(s.to, 0o700);
    plant(s.to, baseAt(ago(40 * HOUR)));
    expect((await notify(s, down())).code).toBe(1);
    await notify(s);
    await notify(s);
    expect(subjects()).toEqual([about('UNHEALTHY', 'COPY_STALE')]);
  });

  test('under cron, quietly: silent while all is well, loud when not', async () => {
    const { s } = await sceneWithCopy();
    expect(await s.ask('status', ['--notify', '--quiet', '--name', 'app'], env())).toMatchObject({ code: 0, stdout: '', stderr: '' });
    plant(s.to, baseAt(ago(40 * HOUR), 'stale'));
    const stale = await s.ask('status', ['--notify', '--quiet', '--name', 'stale'], env());
    expect([stale.code, stale.stdout]).toEqual([1, expect.stringMatching(/^NOT HEALTHY: /)]);
    expect(subjects()).toEqual([about('UNHEALTHY', 'COPY_STALE', 'stale')]);
  });

  test('with nobody to tell says so', async () => {
    const s = scene(null);
    plant(s.to, baseAt(ago(HOUR)));
    const status = await s.ask('status', ['--notify', '--json']);
    expect([status.code, status.json.problems?.map((p) => `${p.severity} ${p.code}`)]).toEqual([0, ['warning NOBODY_HEARS']]);
  });
});

describe('check', () => {
  test('--send-test sends one', async () => {
    const s = scene();
    const check = await dbbackup(['check', s.source, '--to', s.to, '--send-test'], env());
    expect([check.code, check.stderr]).toEqual([0, 'a test message was sent to ops@example.org\n']);
    expect(subjects()).toEqual([about('TEST')]);
    expect(existsSync(s.to)).toBe(false);
  });

  test('talks to the server without sending anything', async () => {
    const s = scene();
    expect((await dbbackup(['check', s.source, '--to', s.to], env())).code).toBe(0);
    for (const more of [[], ['--send-test']]) {
      const check = await dbbackup(['check', s.source, '--to', s.to, '--json', ...more], down());
      expect([check.code, check.json.problems?.filter((p) => p.severity === 'critical').map((p) => p.code)]).toEqual([1, ['NOTIFY_FAILED']]);
      expect(problemsIn(check.json, shapes.checkDocument)).toEqual([]);
    }
    expect(subjects()).toEqual([]);
  });

  test('--send-test with nobody to send it to is not ok', async () => {
    const s = scene({ journal: 'wal' });
    const check = await dbbackup(['check', s.source, '--to', s.to, '--send-test', '--json']);
    expect([check.code, check.json.problems?.map((p) => `${p.severity} ${p.code}`)]).toEqual([1, ['critical NOBODY_HEARS', 'warning NOT_SEEN']]);
  });
});

test('mail leaves through the local MTA, too', async () => {
  const s = scene(null);
  const program = join(s.home, 'sendmail');
  writeFileSync(program, `#!/bin/sh\nprintf '%s\\n' "$@" > ${s.home}/args\ncat > ${s.home}/mail\n`, { mode: 0o755 });
  const run = await s.run(['--json'], env({ DBBACKUP_SMTP_URL: `sendmail:${program}` }));
  expect([run.code, run.json.warnings]).toEqual([1, []]);
  expect(readFileSync(join(s.home, 'args'), 'utf8').split('\n')).toEqual(expect.arrayContaining(['ops@example.org']));
  expect(parseMail(readFileSync(join(s.home, 'mail'), 'utf8')).headers.get('subject')).toBe(about('FAILED', 'SOURCE_MISSING'));
  // One that is gone: kept.
  rmSync(join(s.home, 'mail'));
  unlinkSync(program);
  const kept = await s.run(['--json'], env({ DBBACKUP_SMTP_URL: `sendmail:${program}` }));
  expect(kept.json.warnings?.map((w) => w.code)).toEqual(['NOTIFY_FAILED']);
});
