/** One command for every profile: each has its turn, its own record and verdict, and all of them come to one exit code. */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { exitCodeOfAll } from '../../src/all-profiles.js';
import {
  cannot,
  dbbackup,
  EXECUTABLE,
  executableFor,
  makeDatabase,
  type Options,
  openTempDirectory,
  start,
  tempDirectory,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { startHttp } from '../support/http.js';
import { dataFiles, linesOf } from './scene.js';

interface World {
  readonly home: string;
  readonly options: Options;
  readonly profile: (name: string, lines: Readonly<Record<string, string>>, mode?: number) => void;
  readonly add: (name: string, more?: Readonly<Record<string, string>>) => string;
}

function world(): World {
  const home = tempDirectory('profiles');
  const directory = join(home, 'dbbackup');
  mkdirSync(directory);
  const profile: World['profile'] = (name, lines, mode = 0o600) =>
    writeFileSync(
      join(directory, `${name}.env`),
      Object.entries(lines)
        .map(([k, v]) => `${k}=${v}\n`)
        .join(''),
      { mode },
    );
  const add: World['add'] = (name, more = {}) => {
    const database = join(home, `${name}-source.db`);
    makeDatabase(database);
    profile(name, { DBBACKUP_DATABASE: database, DBBACKUP_TO: join(home, `to-${name}`), ...more });
    return join(home, `to-${name}`);
  };
  return { home, options: { env: { XDG_CONFIG_HOME: home } }, profile, add };
}

interface All {
  readonly exitCode?: number;
  readonly profiles?: readonly {
    name: string;
    exitCode: number | null;
    document: { status?: string; copies?: readonly unknown[]; error?: { code: string } | null } | null;
  }[];
}

describe('--all-profiles', () => {
  test('runs each in turn, also after one that fails, and says so at the end', async () => {
    const w = world();
    const [a, c] = [w.add('a'), w.add('c')];
    w.profile('b', { DBBACKUP_DATABASE: join(w.home, 'missing.db'), DBBACKUP_TO: join(w.home, 'to-b') });
    const run = await dbbackup(['run', '--all-profiles'], w.options);
    expect(run.code, run.stderr).toBe(1);
    expect([dataFiles(a).length, dataFiles(c).length]).toEqual([1, 1]);
    expect(run.stderr.split('\n').slice(-4)).toEqual(['a: ok', 'b: exit 1, failed', 'c: ok', '']);
    rmSync(join(w.home, 'to-b'), { recursive: true });
    const list = await dbbackup(['list', '--all-profiles', '--json'], w.options);
    const all = JSON.parse(list.stdout) as All;
    expect([list.code, all.exitCode, all.profiles?.map((p) => [p.name, p.exitCode, p.document?.copies?.length])]).toEqual([
      1,
      1,
      [
        ['a', 0, 1],
        ['b', 1, undefined],
        ['c', 0, 1],
      ],
    ]);
  });

  test.skipIf(cannot('strace') !== null)('one that cannot be started for want of memory has failed, and the next has its turn', async () => {
    const w = world();
    const [a, b, c] = [w.add('a'), w.add('b'), w.add('c')];
    // Of this process alone, which starts nothing but them.
    const through = ['strace', '-qq', '-o', '/dev/null', '-e', 'trace=clone', '-e', 'inject=clone:error=ENOMEM:when=2', '--'];
    const run = await dbbackup(['run', '--all-profiles', '--json'], { ...w.options, through });
    expect(run.isJson, run.stderr).toBe(true);
    const all = JSON.parse(run.stdout) as All;
    expect([run.code, all.exitCode, all.profiles?.map((p) => [p.name, p.exitCode, p.document?.status])], run.stderr).toEqual([
      1,
      1,
      [
        ['a', 0, 'ok'],
        ['b', 1, undefined],
        ['c', 0, 'ok'],
      ],
    ]);
    expect([dataFiles(a).length, existsSync(b), dataFiles(c).length]).toEqual([1, false, 1]);
    expect(run.stderr).toContain('ENOMEM');
    expect(run.stderr.split('\n').slice(-4)).toEqual(['a: ok', 'b: exit 1, failed', 'c: ok', '']);
  });

  test('is silent with --quiet when all is well, and one document with --json', async () => {
    const w = world();
    w.add('one');
    w.add('two', { DBBACKUP_KEEP_LAST: '1' });
    const quiet = await dbbackup(['run', '--quiet', '--all-profiles'], w.options);
    expect([quiet.code, quiet.stdout, quiet.stderr]).toEqual([0, '', '']);
    const json = await dbbackup(['run', '--json', '--all-profiles'], w.options);
    const all = JSON.parse(json.stdout) as All;
    expect(all.profiles?.map((p) => [p.name, p.document?.status])).toEqual([
      ['one', 'ok'],
      ['two', 'ok'],
    ]);
    expect((await dbbackup(['status', '--all-profiles', '--quiet'], w.options)).code).toBe(0);
  });

  test('a profile with a name that is none is a failure, and not passed over in silence', async () => {
    const w = world();
    const a = w.add('a');
    w.add('my db');
    const run = await dbbackup(['run', '--all-profiles', '--json'], w.options);
    const all = JSON.parse(run.stdout) as All;
    expect([run.code, all.profiles?.map((p) => [p.name, p.exitCode]), dataFiles(a).length]).toEqual([
      78,
      [
        ['a', 0],
        ['my db', 78],
      ],
      1,
    ]);
  });

  test('a signal ends the one at work, and no other begins', async () => {
    const w = world();
    w.add('a', { DBBACKUP_BEFORE: 'sleep 600' });
    const b = w.add('b');
    const running = start(['run', '--all-profiles', '--json'], w.options);
    await until('the first is at its hook', () => existsSync(join(w.home, 'to-a/.dbbackup/history.db')) && running.stderr().includes('inspect'));
    process.kill(running.pid, 'SIGTERM');
    const run = await running.result;
    expect([run.code, existsSync(b)]).toEqual([143, false]);
    // One document, which says so as well.
    expect(run.isJson, run.stdout).toBe(true);
    const all = JSON.parse(run.stdout) as All;
    expect([all.exitCode, run.json.error?.code, all.profiles?.map((p) => [p.name, p.exitCode])]).toEqual([
      143,
      'INTERRUPTED',
      [
        ['a', 143],
        ['b', null],
      ],
    ]);
    expect(run.stderr).toContain('\nb: its turn did not come\n');
  });

  test('with --quiet it is said which of them failed, right behind what it said', async () => {
    const w = world();
    w.add('a');
    w.profile('b', { DBBACKUP_DATABASE: join(w.home, 'missing.db'), DBBACKUP_TO: join(w.home, 'to-b') });
    w.add('c');
    const server = await startHttp();
    const run = await dbbackup(['run', '--all-profiles', '--quiet'], { env: { ...w.options.env, DBBACKUP_WEBHOOK: server.url } });
    await server.close();
    expect([run.code, run.stdout]).toEqual([1, '']);
    expect(linesOf(run.stderr)).toEqual([expect.stringMatching(/^dbbackup: error SOURCE_MISSING/), 'b: exit 1, failed']);
    // The line to try again is for a shell that knows nothing of this environment, and a person who wants an answer.
    expect(server.taken.map((p) => /^ {2}(cd .*)$/m.exec((JSON.parse(p.body) as { text: string }).text)?.[1])).toEqual([
      `cd / && env XDG_CONFIG_HOME=${w.home} ${EXECUTABLE} run --profile=b`,
    ]);
  });

  test('one whose lock is held keeps no other from its turn', async () => {
    const w = world();
    const [a, b] = [w.add('a'), w.add('b')];
    expect((await dbbackup(['run', '--profile', 'a'], w.options)).code).toBe(0);
    const holder = await useDatabase(join(a, '.dbbackup/a.lock.db'), ['BEGIN IMMEDIATE']);
    const run = await dbbackup(['run', '--all-profiles', '--json'], w.options);
    await holder.stop();
    expect([run.code, (JSON.parse(run.stdout) as All).profiles?.map((p) => p.exitCode), dataFiles(b).length]).toEqual([75, [75, 0], 1]);
  });

  test.each([
    ['DBBACKUP_DATABASE', '/x.db', 'database'],
    ['DBBACKUP_NAME', 'x', 'name'],
    ['DBBACKUP_METRICS_FILE', '/x.prom', 'metrics-file'],
    ['DBBACKUP_PING_URL', 'https://example.org/x', 'ping-url'],
    ['DBBACKUP_PING_URL_FILE', '/x', 'ping-url'],
  ])('%s of the environment would be that of every profile: nothing is run', async (variable, value, setting) => {
    const w = world();
    const a = w.add('a');
    const run = await dbbackup(['run', '--all-profiles', '--json'], { env: { ...w.options.env, [variable]: value } });
    expect([run.code, run.json.error?.message, existsSync(a)]).toEqual([78, expect.stringContaining(`takes no ${setting} from the environment`), false]);
  });

  test('and so would a credential', async () => {
    const w = world();
    const a = w.add('a');
    const credentials = tempDirectory('credentials');
    writeFileSync(join(credentials, 'ping_url'), 'https://example.org/x', { mode: 0o600 });
    const run = await dbbackup(['run', '--all-profiles', '--json'], { env: { ...w.options.env, CREDENTIALS_DIRECTORY: credentials } });
    expect([run.code, run.json.error?.message, existsSync(a)]).toEqual([78, expect.stringContaining('takes no ping-url'), false]);
  });

  test.skipIf(cannot('root', 'setpriv') !== null)('a profile directory that cannot be read is a failure, and not one without profiles', async () => {
    const home = openTempDirectory('profiles');
    mkdirSync(join(home, 'dbbackup'), { mode: 0o700 });
    const run = await dbbackup(['run', '--all-profiles', '--json'], {
      env: { XDG_CONFIG_HOME: home },
      through: wrap.as(12_345),
      executable: executableFor(12_345),
    });
    expect([run.code, run.json.error?.code, run.json.error?.message]).toEqual([1, 'IO_ERROR', `${join(home, 'dbbackup')}: permission denied (EACCES)`]);
  });

  test.each([
    [['run', '--all-profiles', '--profile', 'a'], 64],
    [['run', '/x.db', '--all-profiles'], 64],
    [['run', '--metrics-file', '/x.prom', '--all-profiles'], 64],
    [['run', '--accept-moved', '--all-profiles'], 64],
    [['restore', '--all-profiles', '-o', 'x'], 64],
    [['run', '--all-profiles'], 78],
  ])('%j', async (args, code) => {
    expect((await dbbackup([...args, '--json'], world().options)).code).toBe(code);
  });
});

describe('defaults.env', () => {
  test('is shared by the profiles beside it, and what a profile says wins', async () => {
    const w = world();
    w.add('a');
    w.add('b', { DBBACKUP_KEEP_LAST: '5' });
    w.profile('defaults', { DBBACKUP_KEEP_LAST: '2', DBBACKUP_COMPRESS: 'gzip' });
    const settings = async (name: string): Promise<unknown> => {
      const check = await dbbackup(['check', '--profile', name, '--json'], w.options);
      const of = (check.json as { settings?: { name: string; value: string; origin: string }[] }).settings ?? [];
      return ['keep-last', 'compress'].map((s) => of.find((x) => x.name === s)?.value);
    };
    expect(await settings('a')).toEqual(['2', 'gzip']);
    expect(await settings('b')).toEqual(['5', 'gzip']);
    const list = await dbbackup(['list', '--all-profiles', '--json'], w.options);
    expect((JSON.parse(list.stdout) as All).profiles?.map((p) => p.name)).toEqual(['a', 'b']);
  });

  test('a secret of a profile wins over the file that is named for all, and the other way round', async () => {
    const w = world();
    w.add('a', { DBBACKUP_SLACK_WEBHOOK: 'https://a.example.org/x' });
    writeFileSync(join(w.home, 'dbbackup/b.slack'), 'https://b.example.org/x', { mode: 0o600 });
    w.add('b', { DBBACKUP_SLACK_WEBHOOK_FILE: 'b.slack', DBBACKUP_WEBHOOK: 'https://b.example.org/x' });
    w.profile('defaults', { DBBACKUP_SLACK_WEBHOOK_FILE: '/nowhere', DBBACKUP_WEBHOOK_FILE: '/nowhere' });
    const origins = async (name: string): Promise<unknown> => {
      const check = await dbbackup(['check', '--profile', name, '--json'], w.options);
      const settings = (check.json as { settings?: { name: string; origin: string }[] }).settings ?? [];
      return [...['slack-webhook', 'webhook'].map((s) => settings.find((x) => x.name === s)?.origin), check.json.error?.message];
    };
    expect(await origins('a')).toEqual([join(w.home, 'dbbackup/a.env'), 'not set', expect.stringMatching(/^webhook: \/nowhere: no such file/)]);
    expect((await origins('b')) as unknown[]).toEqual([
      `DBBACKUP_SLACK_WEBHOOK_FILE in ${join(w.home, 'dbbackup/b.env')}`,
      join(w.home, 'dbbackup/b.env'),
      undefined,
    ]);
  });

  test('may not name what only one profile can have', async () => {
    const w = world();
    w.add('a');
    w.profile('defaults', { DBBACKUP_METRICS_FILE: '/x.prom', DBBACKUP_PING_URL_FILE: '/x', DBBACKUP_NAME: 'x' });
    const run = await dbbackup(['run', '--profile', 'a', '--json'], w.options);
    expect(run.code).toBe(78);
    for (const setting of ['metrics-file', 'ping-url', 'name']) expect(run.json.error?.message).toContain(`${setting} cannot be shared`);
  });

  test('may not name a database; unknown names and readable secrets in it are errors', async () => {
    const w = world();
    w.add('a');
    w.profile('defaults', { DBBACKUP_DATABASE: '/x.db', DBBACKUP_KEEP_LATS: '1', DBBACKUP_SMTP_URL: 'smtp://u:p@h' }, 0o644);
    const run = await dbbackup(['run', '--profile', 'a', '--json'], w.options);
    expect(run.code).toBe(78);
    for (const part of ['database cannot be shared', 'DBBACKUP_KEEP_LATS is not a setting', 'chmod o-rwx']) expect(run.json.error?.message).toContain(part);
  });
});

test.each([
  [[0, 0], 0],
  [[0, 75, 78], 75],
  [[78, 3, 0], 3],
  [[3, 1], 1],
  [[1, 4, 70], 4],
  [[1, 70], 70],
  [[75, 3], 3],
  [[0, 143], 143],
])('%j come to %d', (codes, all) => {
  expect(exitCodeOfAll(codes)).toBe(all);
});
