/** A password is given, used, and then to be found nowhere: no output, no file, no mail, no other process. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { descendants } from '../fault/proof.js';
import { dbbackup, holdExclusively, type Options, PATH, pathWith, type Result, signalTo, start, tempDirectory, until } from '../support/cli.js';
import { startHttp } from '../support/http.js';
import { type SmtpServer, startScripted, startSmtp } from '../support/smtp.js';
import { ago, baseAt, everything, HOUR, plant, type Scene, scene, sceneWithCopy } from './scene.js';

/** With characters that have to be percent-encoded in a URL, escaped in JSON, and quoted in a shell. */
const PASSWORD = 'cAnArY"p@ss/w\\ö 7f3e';
const ENCODED = encodeURIComponent(PASSWORD);
const base64 = (text: string): string => Buffer.from(text).toString('base64');
/** Every form in which it could turn up; the bare word alone would be found in most of them. */
const FORMS = ['cAnArY', ENCODED, JSON.stringify(PASSWORD).slice(1, -1), base64(PASSWORD), base64(`\0ops\0${PASSWORD}`)];

function expectNowhere(what: string, text: string): void {
  for (const form of FORMS) expect(text.includes(form) ? `${what} holds ${form}` : '').toBe('');
}

let server: SmtpServer;
beforeAll(async () => {
  server = await startSmtp({ auth: { user: 'ops', password: PASSWORD } });
});
afterAll(() => server.close());

const url = (port = server.port): string => `smtp://ops:${ENCODED}@127.0.0.1:${port}`;

/** The ways to give a secret: options for the executable, and what the command line needs besides. */
const WAYS: readonly (readonly [way: string, give: (s: Scene, secret: string) => { options: Options; words: string[] }])[] = [
  ['the environment', (_, secret) => ({ options: { env: { DBBACKUP_SMTP_URL: secret, DBBACKUP_MAIL_TO: 'a@x.org' } }, words: [] })],
  [
    'an env file',
    (s, secret) => {
      writeFileSync(join(s.home, 'x.env'), `DBBACKUP_SMTP_URL='${secret}'\nDBBACKUP_MAIL_TO=a@x.org\n`, { mode: 0o600 });
      return { options: {}, words: ['--env-file', join(s.home, 'x.env')] };
    },
  ],
  [
    'a file that the environment names',
    (s, secret) => {
      writeFileSync(join(s.home, 'url'), `${secret}\n`, { mode: 0o600 });
      return { options: { env: { DBBACKUP_SMTP_URL_FILE: join(s.home, 'url'), DBBACKUP_MAIL_TO: 'a@x.org' } }, words: [] };
    },
  ],
  [
    'a credential of systemd',
    (_, secret) => {
      const directory = tempDirectory('credentials');
      writeFileSync(join(directory, 'smtp_url'), secret, { mode: 0o400 });
      return { options: { env: { CREDENTIALS_DIRECTORY: directory, DBBACKUP_MAIL_TO: 'a@x.org' } }, words: [] };
    },
  ],
];

/** All that a command left behind or said, but for the files that were given to it. */
function expectUntold(s: Scene, results: readonly Result[]): void {
  for (const r of results) expectNowhere('the output', r.stdout + r.stderr);
  expectNowhere('the backup directory', everything(s.to));
}

describe.each(WAYS)('a password from %s', (_, give) => {
  test('logs in, and is found nowhere else: run, failure, status, check, history', async () => {
    const s = scene();
    const { options, words } = give(s, url());
    plant(s.to, baseAt(ago(40 * HOUR), 'stale'));
    server.received.length = 0;
    const results = [
      await s.run([...words, '--verbose'], options),
      await dbbackup(['run', `${s.source}.gone`, '--to', s.to, '--name', 'app', '--json', '--verbose', ...words], options),
      await s.ask('status', ['--json', '--notify', '--name', 'stale', ...words], options),
      await dbbackup(['check', s.source, '--to', s.to, '--json', ...words], options),
      await dbbackup(['check', s.source, '--to', s.to, '--send-test', ...words], options),
      await s.ask('history', ['--json', ...words], options),
    ];
    expect(results.map((r) => r.code)).toEqual([0, 1, 1, 0, 0, 0]);
    // It was used: the server took a failure, a stale copy and a test from whoever knew it.
    expect(server.received.map((m) => m.user)).toEqual(['ops', 'ops', 'ops']);
    expectNowhere('the mail', server.received.map((m) => m.raw).join('\n'));
    expectUntold(s, results);
    const check = results[3]?.json as { settings?: { name: string; value: string }[] };
    expect(check.settings?.find((x) => x.name === 'smtp-url')?.value).toBe('***');
  });
});

describe('when it goes wrong', () => {
  const env = (secret: string, more: Readonly<Record<string, string>> = {}): Options => ({
    env: { DBBACKUP_SMTP_URL: secret, DBBACKUP_MAIL_TO: 'a@x.org', ...more },
  });

  test('a server that refuses the login and repeats it, and one that is not there', async () => {
    const parrot = await startSmtp({ auth: { user: 'ops', password: 'another' } });
    const echo = await startScripted('220 hello\r\n', (line) =>
      line.startsWith('EHLO') ? '250-hello\r\n250 AUTH PLAIN LOGIN\r\n' : `535 5.7.8 I heard: ${line} ${PASSWORD} ${ENCODED}\r\n`,
    );
    for (const port of [parrot.port, echo.port, 9]) {
      const { s } = await sceneWithCopy();
      const results = [
        await dbbackup(['run', `${s.source}.gone`, '--to', s.to, '--name', 'app', '--json', '--verbose'], env(url(port))),
        await s.run(['--verbose'], env(url(port))),
        await s.ask('status', ['--json'], env(url(port))),
        await s.ask('status', ['--notify'], env(url(port))),
        await dbbackup(['check', s.source, '--to', s.to, '--send-test', '--json'], env(url(port))),
      ];
      // Nobody got the mail: it waits in the outbox, which must not hold the password either.
      expect(results[0]?.json.warnings?.map((w) => w.code)).toContain('NOTIFY_FAILED');
      expect(results[2]?.json.problems?.map((p) => p.code)).toContain('UNDELIVERED');
      expectUntold(s, results);
    }
    await parrot.close();
    await echo.close();
  });

  test.each([
    ['a URL that does not parse', `smtp://ops:${ENCODED}@127.0.0.1:99999`],
    ['a URL with a path', `smtp://ops:${ENCODED}@127.0.0.1/x`],
    ['something else', PASSWORD],
  ])('%s', async (_, secret) => {
    const { s } = await sceneWithCopy();
    const results = [
      await s.run(['--json'], env(secret)),
      await s.run(['--verbose'], env(secret)),
      await dbbackup(['check', s.source, '--to', s.to], env(secret)),
    ];
    expect(results.map((r) => r.code)).toEqual([78, 78, 78]);
    expectUntold(s, results);
  });

  test('two ways at once', async () => {
    const s = scene();
    writeFileSync(join(s.home, 'url'), url(), { mode: 0o600 });
    const results = [
      await s.run(['--json'], env(url(), { DBBACKUP_SMTP_URL_FILE: join(s.home, 'url') })),
      await s.run(['-v'], env(url(), { DBBACKUP_SMTP_URL_FILE: '/nope' })),
    ];
    expect(results.map((r) => r.code)).toEqual([78, 78]);
    expect(results[0]?.json.error?.message).toMatch(/given in 2 ways.*DBBACKUP_SMTP_URL and DBBACKUP_SMTP_URL_FILE/);
    expectUntold(s, results);
  });

  test('a file that is not there is named', async () => {
    const s = scene();
    const run = await s.run(['--json'], env('', { DBBACKUP_SMTP_URL_FILE: '/nowhere/url' }));
    expect([run.code, run.json.error?.message]).toEqual([78, expect.stringMatching(/smtp-url: \/nowhere\/url: no such file.*\(DBBACKUP_SMTP_URL_FILE\)/)]);
  });

  test('a name and a path that hold the password are blacked out as well', async () => {
    const s = scene(null);
    plant(s.to, baseAt(ago(HOUR)));
    const simple = 'smtp://ops:cAnArY-simple@127.0.0.1:9';
    const run = await dbbackup(['run', '/srv/cAnArY-simple/app.db', '--to', s.to, '--json', '-v'], env(simple));
    expect([run.code, run.json.error?.message]).toEqual([1, expect.stringContaining('/srv/***/app.db')]);
    expectUntold(s, [run]);
  });
});

describe('other processes', () => {
  const proc = (pid: number, what: string): string => {
    try {
      return readFileSync(`/proc/${pid}/${what}`, 'latin1');
    } catch {
      return '';
    }
  };

  const holds = (pid: number, file: string): boolean => {
    try {
      return readdirSync(`/proc/${pid}/fd`).some((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === file);
    } catch {
      return false;
    }
  };

  test('a child of a run has the password neither in its arguments nor in its environment', async () => {
    const s = scene();
    // A source held by others keeps the children at work until they have been looked at.
    const holder = await holdExclusively(s.source);
    const env = {
      DBBACKUP_SMTP_URL: url(),
      DBBACKUP_MAIL_TO: 'a@x.org',
      AWS_SECRET_ACCESS_KEY: 'cAnArY-aws',
      RCLONE_CONFIG_PASS: 'cAnArY-rclone',
      OTHER: 'kept',
    };
    const run = start(['run', s.source, '--to', s.to], { env });
    let children: number[] = [];
    await until('a child at work on the source', () => {
      children = descendants(run.pid);
      return children.some((pid) => holds(pid, s.source));
    });
    const mine = [...proc(run.pid, 'cmdline').split('\0'), ...children.flatMap((pid) => proc(pid, 'cmdline').split('\0'))].join('\n');
    expectNowhere('a command line', mine);
    for (const pid of children) {
      const environment = proc(pid, 'environ');
      expect(environment).toContain('OTHER=kept');
      expect(environment).not.toMatch(/DBBACKUP_|AWS_|RCLONE_/);
      expectNowhere('the environment of a child', environment);
    }
    signalTo(run.pid, 'SIGTERM');
    const ended = await run.result;
    expect(ended.code).toBe(143);
    expectUntold(s, [ended]);
    await holder.stop();
  });

  test('nor has a mail program, nor are its arguments anything but addresses', async () => {
    const s = scene(null);
    const program = join(s.home, 'sendmail');
    writeFileSync(program, `#!/bin/sh\n{ env; printf 'ARG %s\\n' "$@"; cat; } > ${s.home}/seen\n`, { mode: 0o755 });
    const env = {
      DBBACKUP_SMTP_URL: `sendmail:${program}`,
      DBBACKUP_MAIL_TO: 'a@x.org',
      DBBACKUP_LOG_DIR: join(s.home, 'cAnArY-log'),
      AWS_SESSION_TOKEN: 'cAnArY-aws',
      OTHER: 'kept',
    };
    expect((await s.run([], { env })).code).toBe(1);
    const seen = readFileSync(join(s.home, 'seen'), 'utf8');
    expect(seen).toMatch(/^ARG a@x\.org$/m);
    expect(seen).toMatch(/^OTHER=kept$/m);
    expect(seen.split('\nSubject:')[0]).not.toMatch(/^(DBBACKUP_|AWS_)/m);
    expect(seen).not.toContain('cAnArY-aws');
  });

  const KEPT = 'OTHER=kept by all';
  /** Arguments and environment of every process of the run at that moment, in a file that the caller reads; other tests beside it have secrets, too. */
  const look = (into: string): string =>
    `for p in /proc/[0-9]*; do if grep -qs '${KEPT}' $p/environ; then cat $p/cmdline $p/environ; fi; done >> ${into} 2>/dev/null; :`;
  const hasRclone = spawnSync('rclone', ['version']).status === 0;

  test.skipIf(!hasRclone)('no process of a run has the secret of a channel: hooks, an upload by rclone, a mail program', async () => {
    const s = scene();
    const http = await startHttp();
    const files = { hooks: join(s.home, 'hooks'), rclone: join(s.home, 'rclone'), sendmail: join(s.home, 'sendmail') };
    const program = (name: string, body: string): string => {
      writeFileSync(join(s.home, `${name}.sh`), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
      return join(s.home, `${name}.sh`);
    };
    const hook = program('hook', look(files.hooks));
    const far = tempDirectory('far');
    const settings = (smtp: string, upload: string): string => {
      const lines = {
        DBBACKUP_SMTP_URL: smtp,
        DBBACKUP_MAIL_TO: 'a@x.org',
        DBBACKUP_SLACK_WEBHOOK: `${http.url}/services/cAnArY-slack-0123456789`,
        DBBACKUP_WEBHOOK: `${http.url.replace('//', '//u:cAnArY-password@')}/cAnArY-webhook-0123456789`,
        DBBACKUP_PING_URL: `${http.url}/cAnArY-ping-0123456789`,
        DBBACKUP_NOTIFY_ON: 'success',
        DBBACKUP_BEFORE: hook,
        DBBACKUP_AFTER: hook,
        DBBACKUP_UPLOAD: upload,
        RCLONE_CONFIG_FAR_TYPE: 'local',
      };
      const file = join(s.home, 'all.env');
      writeFileSync(
        file,
        Object.entries(lines)
          .map(([k, v]) => `${k}='${v}'\n`)
          .join(''),
        { mode: 0o600 },
      );
      return file;
    };
    const [name = '', value = ''] = KEPT.split('=');
    const env = { [name]: value, PATH: pathWith('rclone', `${look(files.rclone)}\nexec $(PATH=${PATH} command -v rclone) "$@"`) };
    server.received.length = 0;
    const mailed = await s.run(['--env-file', settings(url(), `rclone:far:${far}`), '--verbose'], { env });
    expect([mailed.code, server.received.map((m) => m.user)], mailed.stderr).toEqual([0, ['ops']]);
    // All of them were used, by who knew them.
    expect(http.taken.map((p) => p.path.split('?')[0]).sort()).toEqual(
      ['/cAnArY-ping-0123456789', '/cAnArY-ping-0123456789/start', '/cAnArY-webhook-0123456789', '/services/cAnArY-slack-0123456789'].sort(),
    );
    expect(readdirSync(far)).toHaveLength(2);
    const sendmail = program('mta', `${look(files.sendmail)}; cat > /dev/null`);
    const piped = await s.run(['--env-file', settings(`sendmail:${sendmail}`, ''), '--verbose'], { env });
    expect(piped.code, piped.stderr).toBe(0);
    for (const [who, file] of Object.entries(files)) {
      const seen = readFileSync(file, 'latin1');
      for (const there of [KEPT, 'dbbackup.js\0run\0', ...(who === 'hooks' ? ['sqlite-worker.js'] : [])]) expect(seen.includes(there), who).toBe(true);
      expectNowhere(`a process beside ${who}`, seen);
    }
    expectUntold(s, [mailed, piped]);
    expectNowhere('what was posted', http.taken.map((p) => p.body).join('\n'));
    expectNowhere('the mail', server.received.map((m) => m.raw).join('\n'));
    await http.close();
  });
});
