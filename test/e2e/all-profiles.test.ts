/** One command for every profile: each has its turn, its own record and verdict, and all of them come to one exit code. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { exitCodeOfAll } from '../../src/all-profiles.js';
import { dbbackup, makeDatabase, type Options, start, tempDirectory, until } from '../support/cli.js';
import { dataFiles } from './scene.js';

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
    exitCode: number;
    document: { status?: string; copies?: readonly unknown[]; error?: { code: string } | null };
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
    const list = await dbbackup(['list', '--all-profiles', '--json'], w.options);
    const all = JSON.parse(list.stdout) as All;
    expect([list.code, all.exitCode, all.profiles?.map((p) => [p.name, p.exitCode, p.document.copies?.length])]).toEqual([
      1,
      1,
      [
        ['a', 0, 1],
        ['b', 1, undefined],
        ['c', 0, 1],
      ],
    ]);
  });

  test('is silent with --quiet when all is well, and one document with --json', async () => {
    const w = world();
    w.add('one');
    w.add('two', { DBBACKUP_KEEP_LAST: '1' });
    const quiet = await dbbackup(['run', '--quiet', '--all-profiles'], w.options);
    expect([quiet.code, quiet.stdout, quiet.stderr]).toEqual([0, '', '']);
    const json = await dbbackup(['run', '--json', '--all-profiles'], w.options);
    const all = JSON.parse(json.stdout) as All;
    expect(all.profiles?.map((p) => [p.name, p.document.status])).toEqual([
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
  });

  test.each([
    [['run', '--all-profiles', '--profile', 'a'], 64],
    [['run', '/x.db', '--all-profiles'], 64],
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

  test('may not name a database; unknown names and readable secrets in it are errors', async () => {
    const w = world();
    w.add('a');
    w.profile('defaults', { DBBACKUP_DATABASE: '/x.db', DBBACKUP_KEEP_LATS: '1', DBBACKUP_SMTP_URL: 'smtp://u:p@h' }, 0o644);
    const run = await dbbackup(['run', '--profile', 'a', '--json'], w.options);
    expect(run.code).toBe(78);
    for (const part of ['database cannot be shared', 'DBBACKUP_KEEP_LATS is not a setting', 'chmod 600']) expect(run.json.error?.message).toContain(part);
  });
});

test.each([
  [[0, 0], 0],
  [[0, 75, 78], 75],
  [[78, 3, 0], 3],
  [[3, 1], 1],
  [[1, 4, 70], 4],
  [[0, 143], 143],
])('%j come to %d', (codes, all) => {
  expect(exitCodeOfAll(codes)).toBe(all);
});
