/** Profiles, env files and the environment, from the file to what the executable then does. */
import { spawnSync } from 'node:child_process';
import { appendFileSync, chmodSync, existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, type Result, tempDirectory } from '../support/cli.js';
import { dataFiles, linesOf, plantDaily, scene, tree } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

interface Profile {
  readonly home: string;
  readonly file: string;
  readonly env: { readonly HOME: string };
}

/** A user's home directory with a profile, and a database beside it. */
function profile(lines: readonly string[], mode = 0o600, name = 'shop'): Profile {
  const home = tempDirectory('home');
  mkdirSync(join(home, '.config/dbbackup'), { recursive: true });
  makeDatabase(join(home, 'app.db'), { journal: 'delete' });
  const file = join(home, `.config/dbbackup/${name}.env`);
  writeFileSync(file, `${lines.join('\n')}\n`);
  chmodSync(file, mode);
  return { home, file, env: { HOME: home } };
}

interface Shown {
  readonly name: string;
  readonly value: string;
  readonly origin: string;
}
const shown = (r: Result, name: string): Shown | undefined => (r.json as { settings?: Shown[] }).settings?.find((s) => s.name === name);

describe('a profile', () => {
  test('is all that a crontab line needs', async () => {
    const p = profile(['# the shop', 'DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=../../backups', 'DBBACKUP_KEEP_LAST=2', 'UNRELATED=1']);
    const line = ['run', '--profile', 'shop', '--quiet'];
    for (let i = 0; i < 3; i++) expect(await dbbackup(line, { env: p.env })).toMatchObject({ code: 0, stdout: '', stderr: '' });
    const files = dataFiles(join(p.home, 'backups'));
    expect(files).toHaveLength(2);
    for (const f of files) expect(f).toMatch(/^shop-\d{8}T\d{6}Z(-\d)?\.db$/);

    const list = await dbbackup(['list', '-P', 'shop', '--json'], { env: p.env });
    expect(list.json.copies?.map((c) => c.name)).toEqual(['shop', 'shop']);
    const status = await dbbackup(['status', '-P', 'shop', '--json'], { env: p.env });
    expect([status.code, status.json.name, status.json.lastRun?.profile]).toEqual([0, 'shop', 'shop']);
    const check = await dbbackup(['check', '-P', 'shop', '--json', '--max-age', '3h'], { env: { ...p.env, DBBACKUP_TIMEOUT: '5m' } });
    expect(problemsIn(check.json, shapes.checkDocument)).toEqual([]);
    expect(shown(check, 'keep-last')).toMatchObject({ value: '2', origin: p.file });
    expect(shown(check, 'timeout')).toMatchObject({ value: '5m', origin: 'DBBACKUP_TIMEOUT' });
    expect(shown(check, 'max-age')).toMatchObject({ value: '3h', origin: '--max-age' });
    expect(shown(check, 'log-keep')).toMatchObject({ value: '30d', origin: 'default' });
    const history = await dbbackup(['history', '-P', 'shop', '--json'], { env: p.env });
    expect(history.json.runs?.map((r) => [r.profile, r.name, r.status])).toEqual([
      ['shop', 'shop', 'ok'],
      ['shop', 'shop', 'ok'],
      ['shop', 'shop', 'ok'],
    ]);
    expect((await dbbackup(['prune', '-P', 'shop', '--keep-last', '1', '-q'], { env: p.env })).code).toBe(0);
    expect(dataFiles(join(p.home, 'backups'))).toHaveLength(1);
  });

  test('gives way to the environment, and both to a flag', async () => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=../../from-file']);
    const made = (dir: string): number => dataFiles(join(p.home, dir)).length;
    await dbbackup(['run', '-P', 'shop'], { env: p.env });
    expect(made('from-file')).toBe(1);
    // Relative in the environment counts from the working directory, in the file from the file.
    await dbbackup(['run', '-P', 'shop'], { env: { ...p.env, DBBACKUP_TO: 'from-env' }, cwd: p.home });
    expect([made('from-file'), made('from-env')]).toEqual([1, 1]);
    await dbbackup(['run', '-P', 'shop', '--to', 'from-flag'], { env: { ...p.env, DBBACKUP_TO: 'from-env' }, cwd: p.home });
    expect([made('from-file'), made('from-env'), made('from-flag')]).toEqual([1, 1, 1]);
  });

  test('is looked for in XDG_CONFIG_HOME first, in ~/.config only without it', async () => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=/never']);
    const xdg = tempDirectory('xdg');
    mkdirSync(join(xdg, 'dbbackup'));
    const other = await dbbackup(['check', '-P', 'shop', '--json'], { env: { ...p.env, XDG_CONFIG_HOME: xdg } });
    expect([other.code, other.json.error?.message]).toEqual([78, expect.stringContaining(`looked for ${xdg}/dbbackup/shop.env and /etc/dbbackup/shop.env`)]);
    writeFileSync(join(xdg, 'dbbackup/shop.env'), `DBBACKUP_DATABASE=${p.home}/app.db\nDBBACKUP_TO=${p.home}/xdg\n`);
    const found = await dbbackup(['run', '-P', 'shop', '--json'], { env: { ...p.env, XDG_CONFIG_HOME: xdg } });
    expect([found.code, dataFiles(join(p.home, 'xdg')).length]).toEqual([0, 1]);
  });

  const noMount = cannot('root', 'mount');
  test.skipIf(noMount)('in /etc/dbbackup comes last, and serves where there is no HOME', async () => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=../../from-home']);
    // An /etc of our own, in a mount namespace of our own.
    const etc = join(p.home, 'etc');
    mkdirSync(join(etc, 'dbbackup'), { recursive: true });
    for (const f of ['passwd', 'group', 'hosts']) spawnSync('cp', [`/etc/${f}`, etc]);
    for (const name of ['shop', 'unit'])
      writeFileSync(join(etc, `dbbackup/${name}.env`), `DBBACKUP_DATABASE=${p.home}/app.db\nDBBACKUP_TO=${p.home}/from-etc\n`);
    const through = ['unshare', '-m', '--propagation', 'private', 'sh', '-c', `mount --bind ${etc} /etc && exec "$0" "$@"`];
    expect((await dbbackup(['run', '-P', 'shop'], { env: p.env, through })).code).toBe(0);
    expect([dataFiles(join(p.home, 'from-home')).length, existsSync(join(p.home, 'from-etc'))]).toEqual([1, false]);
    expect((await dbbackup(['run', '-P', 'unit'], { env: p.env, through })).code).toBe(0);
    expect((await dbbackup(['run', '-P', 'shop'], { through })).code).toBe(0);
    expect(dataFiles(join(p.home, 'from-etc')).map((f) => f.split('-')[0])).toEqual(['unit', 'shop']);
    expect([existsSync('/etc/dbbackup/unit.env')]).toEqual([false]);
  });

  test('that only tells wrongly keeps nobody from looking, or from having the data back', async () => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=../../backups']);
    expect((await dbbackup(['run', '-P', 'shop'], { env: p.env })).code).toBe(0);
    appendFileSync(p.file, 'DBBACKUP_SMTP_URL=smtp:/oops\nDBBACKUP_SLACK_WEBHOOK_FILE=/nowhere\n');
    for (const words of [['list'], ['status'], ['history'], ['restore', '-o', join(p.home, 'back.db')]]) {
      const done = await dbbackup([...words, '-P', 'shop'], { env: p.env });
      expect(done.code, done.stderr).toBe(0);
      expect(done.stderr.match(/^dbbackup: warning SETTINGS: (smtp-url|slack-webhook)/gm)).toHaveLength(2);
    }
    for (const words of [['run'], ['check'], ['status', '--notify']])
      expect((await dbbackup([...words, '-P', 'shop', '--json'], { env: p.env })).json).toMatchObject({ exitCode: 78, error: { code: 'SETTINGS' } });
  });

  test('that is not there: those that are there are named', async () => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=../../backups']);
    const run = await dbbackup(['run', '-P', 'shpo', '--json'], { env: p.env });
    expect([run.code, run.json.error?.hint]).toEqual([78, 'the profiles that are there: shop']);
  });

  test.each(['../shop', '/etc/passwd', '', '.shop'])('may not be called %j', async (name) => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=/never']);
    const run = await dbbackup(['run', `--profile=${name}`, '--json'], { env: p.env });
    expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
    expect(run.json.error?.message).toMatch(/is no profile name/);
  });

  test('and --env-file exclude one another', async () => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=/never']);
    const run = await dbbackup(['run', '-P', 'shop', '--env-file', p.file, '--json'], { env: p.env });
    expect([run.code, run.json.error?.message]).toEqual([78, expect.stringMatching(/exclude one another/)]);
  });

  test.each([
    [0o602, /can be written by others: chmod o-w/],
    [0o644, /holds a secret and can be read by others: chmod o-rwx/],
  ])('with mode %o and a secret is refused, and nothing is done', async (mode, why) => {
    const p = profile(
      ['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=../../backups', 'DBBACKUP_MAIL_TO=a@x.org', 'DBBACKUP_SMTP_URL=smtp://u:cAnArY-1@127.0.0.1:9'],
      mode,
    );
    const before = tree(p.home);
    const run = await dbbackup(['run', '-P', 'shop', '--json', '--dry-run'], { env: p.env });
    expect([run.code, run.json.error?.code, run.json.error?.message]).toEqual([78, 'SETTINGS', expect.stringMatching(why)]);
    expect(run.stdout + run.stderr).not.toContain('cAnArY-1');
    expect(tree(p.home)).toEqual(before);
  });

  test.skipIf(cannot('root'))('of another user is refused', async () => {
    const p = profile(['DBBACKUP_DATABASE=../../app.db', 'DBBACKUP_TO=../../backups']);
    spawnSync('chown', ['4711', p.file]);
    const run = await dbbackup(['run', '-P', 'shop', '--json'], { env: p.env });
    expect([run.code, run.json.error?.message]).toEqual([78, expect.stringMatching(/belongs to uid 4711, not to root or this user/)]);
    expect(existsSync(join(p.home, 'backups'))).toBe(false);
  });
});

describe('./.env', () => {
  function directory(lines: readonly string[]): string {
    const cwd = tempDirectory('cwd');
    makeDatabase(join(cwd, 'app.db'), { journal: 'delete' });
    writeFileSync(join(cwd, '.env'), `${lines.join('\n')}\n`, { mode: 0o600 });
    return cwd;
  }

  test('is announced on stderr, and says what a run needs', async () => {
    const cwd = directory(['DATABASE_URL=postgres://elsewhere', 'DBBACKUP_DATABASE=app.db', 'DBBACKUP_TO=backups']);
    const run = await dbbackup(['run'], { cwd });
    expect([run.code, linesOf(run.stderr)[0]]).toEqual([0, `settings from ${cwd}/.env`]);
    expect(dataFiles(join(cwd, 'backups'))).toHaveLength(1);
    expect(await dbbackup(['run', '-q'], { cwd })).toMatchObject({ code: 0, stderr: '', stdout: '' });
    const json = await dbbackup(['run', '--json'], { cwd });
    expect([json.isJson, json.stderr.startsWith('settings from')]).toEqual([true, true]);
  });

  test('of an application is none of ours while no line begins with DBBACKUP_', async () => {
    const cwd = directory(['DATABASE_URL=x', 'BROKEN LINE', "QUOTE='"]);
    chmodSync(join(cwd, '.env'), 0o666);
    const run = await dbbackup(['run', 'app.db', '--to', 'backups'], { cwd });
    expect([run.code, /settings from/.test(run.stderr)]).toEqual([0, false]);
    writeFileSync(join(cwd, '.env'), 'DBBACKUP_KEEP_LAST=3\n');
    const refused = await dbbackup(['run', 'app.db', '--to', 'backups', '--json'], { cwd });
    expect([refused.code, refused.json.error?.message]).toEqual([78, expect.stringMatching(/can be written by others/)]);
  });

  test('is not looked at where a file or a profile was named', async () => {
    const cwd = directory(['DBBACKUP_TO=wrong', 'DBBACKUP_NONSENSE=1']);
    writeFileSync(join(cwd, 'my.env'), 'DBBACKUP_TO=right\nDBBACKUP_DATABASE=app.db\n');
    const run = await dbbackup(['run', '--env-file', 'my.env'], { cwd });
    expect([run.code, /settings from/.test(run.stderr), readdirSync(cwd).includes('wrong')], run.stderr).toEqual([0, false, false]);
    expect(dataFiles(join(cwd, 'right'))).toHaveLength(1);
  });

  test.each([
    ['itself', (program: string) => [`DBBACKUP_SMTP_URL=sendmail:${program}`]],
    ['in a file that it names', () => ['DBBACKUP_SMTP_URL_FILE=url']],
  ])('may not name a program, %s, and that program is not started to tell of it', async (_, lines) => {
    const cwd = directory([]);
    const program = join(cwd, 'evil');
    writeFileSync(program, `#!/bin/sh\ntouch ${cwd}/STARTED\n`, { mode: 0o755 });
    writeFileSync(join(cwd, 'url'), `sendmail:${program}`, { mode: 0o600 });
    writeFileSync(join(cwd, '.env'), [...lines(program), 'DBBACKUP_MAIL_TO=a@x.org', 'DBBACKUP_DATABASE=app.db', 'DBBACKUP_TO=backups', ''].join('\n'));
    for (const words of [['run'], ['prune'], ['status', '--notify'], ['check', '--send-test']]) {
      const result = await dbbackup([...words, '--json'], { cwd });
      expect([words, result.code, result.json.error?.message]).toEqual([words, 78, expect.stringMatching(/may not name a program/)]);
    }
    expect(readdirSync(cwd).toSorted()).toEqual(['.env', 'app.db', 'evil', 'url']);
  });
});

describe('settings that cannot be used', () => {
  test('are all told at once, each with its origin, and change nothing', async () => {
    const s = scene();
    const file = join(s.home, 'x.env');
    writeFileSync(file, 'DBBACKUP_KEEP_LAST=many\nDBBACKUP_KEEP_LSAT=3\nDBBACKUP_TIMEOUT 5m\n');
    const before = tree(s.home);
    const words = ['--env-file', file, '--lock-wait', 'long'];
    const env = { DBBACKUP_SOURCE_CHECK: 'deep', DBBACKUP_MAIL_TO: 'a@x.org' };
    const run = await s.run([...words, '--json'], { env });
    expect(run.code).toBe(78);
    expect(problemsIn(run.json, shapes.failureDocument)).toEqual([]);
    const { problems = [] } = run.json.error as unknown as { problems?: { setting: string; message: string; origin: string }[] };
    expect(problems.map((p) => `${p.setting} (${p.origin})`).toSorted()).toEqual(
      [
        `DBBACKUP_KEEP_LSAT (${file})`,
        `DBBACKUP_TIMEOUT (${file})`,
        `keep-last (${file})`,
        'lock-wait (--lock-wait)',
        'mail-to (DBBACKUP_MAIL_TO)',
        'source-check (DBBACKUP_SOURCE_CHECK)',
      ].toSorted(),
    );
    expect(problems.find((p) => p.setting === 'DBBACKUP_KEEP_LSAT')?.message).toMatch(/did you mean DBBACKUP_KEEP_LAST\?/);
    // In text: one line, everything in it.
    const text = await s.run(words, { env });
    expect(linesOf(text.stderr)).toHaveLength(1);
    for (const p of problems) expect(text.stderr).toContain(`${p.message} (${p.origin})`);
    expect(text.stderr).toMatch(/Hint: dbbackup check/);
    expect(tree(s.home)).toEqual(before);
  });

  test('in the environment of a command that does not need them are still errors', async () => {
    const s = scene(null);
    plantDaily(s.to, 1);
    const list = await s.ask('list', ['--json'], { env: { DBBACKUP_KEEPLAST: '3' } });
    expect([list.code, list.json.error?.message]).toEqual([78, expect.stringMatching(/did you mean DBBACKUP_KEEP_LAST\? \(environment\)/)]);
    expect((await s.ask('list', [], { env: { DBBACKUP_KEEP_LAST: '3', DBBACKUP_TIMEOUT: '1h', OTHER: 'x' } })).code).toBe(0);
  });

  test('an env file that is a FIFO, a directory, missing or endless is told at once', async () => {
    const s = scene();
    spawnSync('mkfifo', [join(s.home, 'fifo')]);
    symlinkSync('loop', join(s.home, 'loop'));
    for (const file of ['fifo', 'data', 'nope', 'loop', '/dev/zero']) {
      const run = await s.run(['--env-file', file, '--json'], { cwd: s.home, deadlineMs: 20_000 });
      expect([file, run.code, run.hung, run.json.error?.code]).toEqual([file, 78, false, 'SETTINGS']);
    }
    expect(existsSync(s.to)).toBe(false);
  });

  test('--env-file is ours, not that of Node', async () => {
    const s = scene();
    const file = join(s.home, 'x.env');
    // Node 20 would take the flag itself, and these lines into the environment of the process.
    writeFileSync(file, `NODE_OPTIONS=--no-such-option\nDBBACKUP_TO=${s.to}\n`);
    const run = await dbbackup(['run', s.source, '--env-file', file, '--json']);
    expect([run.code, run.json.status], run.stderr).toEqual([0, 'ok']);
  });
});
