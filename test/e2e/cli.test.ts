/** The command line itself: help, version, mistakes, exit codes, and what goes to which stream. */
import { mkdirSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { EXIT_CODES } from '../../src/outcome.js';
import { dbbackup, ROOT, tempDirectory, useDatabase } from '../support/cli.js';
import { ago, baseAt, dataFiles, HOUR, linesOf, plant, plantDaily, scene, sceneWithCopy } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

const COMMANDS = ['run', 'list', 'verify', 'restore', 'guard', 'status', 'history', 'check', 'prune', 'schedule'];

describe('help and version', () => {
  test('--help names the commands and the exit codes', async () => {
    for (const flag of ['--help', '-h']) {
      const help = await dbbackup([flag]);
      expect([help.code, help.stderr]).toEqual([0, '']);
      for (const command of COMMANDS) expect(help.stdout).toMatch(new RegExp(`^  ${command} `, 'm'));
      for (const [code, meaning] of EXIT_CODES) expect(help.stdout).toContain(`${String(code).padEnd(4)}${meaning}`);
      for (const part of ['--json', '-q, --quiet', '-v, --verbose', '--no-color', '--env-file <file>', '-P, --profile <name>', '-V, --version']) {
        expect(help.stdout).toContain(part);
      }
      // What is not built yet is not there.
      expect(help.stdout).not.toMatch(/^ {2}report\b/m);
    }
  });

  test('short flags may stand together, in any order', async () => {
    const { s } = await sceneWithCopy();
    for (const flags of ['-nq', '-qn', '-vn', '-nv']) {
      const run = await s.run([flags, '--json']);
      expect([run.code, run.json.dryRun], run.stderr).toEqual([0, true]);
    }
  });

  test.each(COMMANDS)('%s --help', async (command) => {
    const help = await dbbackup([command, '--help']);
    expect([help.code, help.stderr]).toEqual([0, '']);
    const words: Record<string, string> = { run: ' [database]', check: ' [database]', verify: ' [copy...]', restore: ' [copy]', guard: ' [command...]' };
    expect(help.stdout.startsWith(`Usage: dbbackup ${command} [options]${words[command] ?? ''}\n`)).toBe(true);
    // It looks at the profiles, and has no settings of its own.
    expect(help.stdout.includes('--to <DIR>')).toBe(command !== 'schedule');
    expect(help.stdout.includes('--dry-run')).toBe(['run', 'verify', 'restore', 'guard', 'prune'].includes(command));
    expect(help.stdout).not.toContain('--smtp-url');
    // Whatever else was given, help is help.
    expect((await dbbackup([command, '--nonsense', '--help'])).code).not.toBe(70);
  });

  test('--version', async () => {
    const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string };
    for (const flag of ['--version', '-V']) expect(await dbbackup([flag])).toMatchObject({ code: 0, stdout: `dbbackup ${version}\n`, stderr: '' });
  });

  test('with --json both are one document', async () => {
    for (const [words, command] of [
      [['--version'], null],
      [['--help'], null],
      [['run', '--help'], 'run'],
    ] as const) {
      const [plain, json] = [await dbbackup(words), await dbbackup([...words, '--json'])];
      expect([json.code, json.stderr, json.isJson]).toEqual([0, '', true]);
      expect(json.json).toEqual({ schemaVersion: 1, command, exitCode: 0, text: plain.stdout });
    }
  });
});

describe('mistakes on the command line are 64, one line, and a hint', () => {
  test.each([
    [[], /no command was given/],
    [['backup'], /unknown command 'backup'/],
    [['toString'], /unknown command 'toString'/],
    [['runn'], /unknown command 'runn'.*\(?[Dd]id you mean run/],
    [['help'], /unknown command 'help'/],
    [['schedule', '--to', '/x'], /unknown option '--to'/],
    [['schedule', '--calendar', '25:00'], /has 25 where 0 to 23 is possible/],
    [['schedule', '--env-file', '/x'], /takes profiles/],
    [['run', '--too', 'x'], /unknown option '--too'/],
    [['run', '--keep-hourly', '3'], /unknown option '--keep-hourly'/],
    [['run', '--smtp-url', 'smtp://x'], /unknown option '--smtp-url'/],
    [['run', '--smtp-url=smtp://u:secret@x'], /unknown option '--smtp-url'[^@]*$/],
    [['list', '--keep-last', '3'], /unknown option '--keep-last'/],
    [['list', '--dry-run'], /unknown option '--dry-run'/],
    [['run', 'a.db', 'b.db', '--to', '/x'], /too many arguments/],
    [['list', 'a.db'], /too many arguments/],
    [['run', 'a.db', '--to'], /argument missing/],
    [['run', 'a.db', '--to', '/x', '--to', '/y'], /--to is given 2 times/],
    [['run', 'a.db', '--database', 'b.db', '--to', '/x'], /given twice/],
    [['run', 'a.db', '--all-profiles'], /each profile has its own\. Hint: leave the database out/],
    [['history', '--to', '/x', '--limit', 'ten'], /whole number above 0/],
    [['--to', '/x', 'run'], /unknown option '--to'/],
  ])('%j', async (words, why) => {
    const text = await dbbackup(words);
    expect([text.code, text.stdout]).toEqual([64, '']);
    expect(linesOf(text.stderr)).toHaveLength(1);
    expect(text.stderr).toMatch(/^dbbackup: error USAGE: .*\. Hint: \S.*\n$/);
    expect(text.stderr).toMatch(why);
    const json = await dbbackup([...words, '--json']);
    expect([json.code, json.json.exitCode, json.json.error?.code], json.stdout).toEqual([64, 64, 'USAGE']);
    expect(problemsIn(json.json, shapes.failureDocument)).toEqual([]);
  });

  test('after -- there are no options', async () => {
    const cwd = tempDirectory('cwd');
    const run = await dbbackup(['run', '--to', join(cwd, 'b'), '--', '--json'], { cwd });
    expect([run.code, run.isJson, run.stderr]).toEqual([1, false, expect.stringContaining(`there is no file at ${cwd}/--json`)]);
    expect(dataFiles(join(cwd, 'b'))).toEqual([]);
  });

  test('options may stand before the command', async () => {
    const s = scene();
    const run = await dbbackup(['--json', '-q', 'run', s.source, '--to', s.to]);
    expect([run.code, run.stderr, run.json.status]).toEqual([0, '', 'ok']);
  });
});

describe('exit codes', () => {
  test('0, 1, 75 and 78, each with the document that says so', async () => {
    const s = scene();
    const ok = await s.run(['--json']);
    expect([ok.code, ok.json.exitCode, ok.json.status]).toEqual([0, 0, 'ok']);
    const holder = await useDatabase(join(s.state, 'app.lock.db'), ['BEGIN IMMEDIATE']);
    const locked = await s.run(['--json']);
    expect([locked.code, locked.json.exitCode, locked.json.status, locked.json.error?.code]).toEqual([75, 75, 'failed', 'LOCKED']);
    // Another name has another lock.
    expect((await s.run(['--json', '--name', 'other'])).code).toBe(0);
    await holder.stop();
    const settings = await s.run(['--json', '--keep-last', '0']);
    expect([settings.code, settings.json.exitCode, settings.json.error?.code]).toEqual([78, 78, 'SETTINGS']);
    unlinkSync(s.source);
    const missing = await s.run(['--json']);
    expect([missing.code, missing.json.exitCode, missing.json.status]).toEqual([1, 1, 'failed']);
    for (const r of [ok, locked, missing]) expect(problemsIn(r.json, shapes.run)).toEqual([]);
    expect(problemsIn(settings.json, shapes.failureDocument)).toEqual([]);
  });

  test('--lock-wait waits for the other run', async () => {
    const { s } = await sceneWithCopy();
    const holder = await useDatabase(join(s.state, 'app.lock.db'), ['BEGIN IMMEDIATE']);
    const waiting = s.run(['--json', '--lock-wait', '20s']);
    const refused = await s.run(['--json', '--lock-wait', '300ms']);
    expect([refused.code, refused.durationMs >= 300]).toEqual([75, true]);
    await holder.stop();
    expect((await waiting).code).toBe(0);
    expect(dataFiles(s.to)).toHaveLength(2);
  });
});

describe('what goes where', () => {
  test('data on stdout, messages on stderr, with --json one document on stdout, also on failure', async () => {
    const s = scene();
    const text = await s.run([]);
    expect(linesOf(text.stdout)).toEqual([`${s.to}/${dataFiles(s.to)[0]}`]);
    expect(text.stderr).not.toContain('\u001b');
    const json = await s.run(['--json']);
    expect(json.stdout.trim().startsWith('{') && json.stdout.endsWith('}\n')).toBe(true);
    expect(linesOf(json.stderr).length).toBeGreaterThan(4);
    for (const words of [
      ['run', '/nowhere.db', '--to', s.to],
      ['list', '--to', '/nowhere'],
      ['status', '--to', '/nowhere'],
      ['prune', '--to', '/nowhere'],
      ['history', '--to', '/nowhere'],
      ['check', '/nowhere.db', '--to', '/nowhere'],
      ['run', '--to', s.to],
      ['nonsense'],
    ]) {
      const failed = await dbbackup([...words, '--json']);
      expect([words, failed.isJson, (failed.json.exitCode ?? failed.code) === failed.code]).toEqual([words, true, true]);
      expect((failed.json as { schemaVersion?: number }).schemaVersion).toBe(1);
    }
  });

  test('--quiet says nothing on success, whatever is done', async () => {
    const s = scene({ journal: 'delete' });
    plantDaily(s.to, 3, HOUR, { configuredPath: s.source, realPath: s.source });
    for (const words of [
      ['run', s.source, '--to', s.to, '--keep-last', '2'],
      ['run', s.source, '--to', s.to, '--if-older-than', '1h'],
      ['run', s.source, '--to', s.to, '--dry-run'],
      ['prune', '--to', s.to, '--keep-last', '1'],
      ['prune', '--to', s.to, '--dry-run'],
      ['status', '--to', s.to],
    ]) {
      expect([words, await dbbackup([...words, '--quiet'])]).toMatchObject([words, { code: 0, stdout: '', stderr: '' }]);
    }
    // What was asked for is still printed.
    expect(linesOf((await s.ask('list', ['-q'])).stdout)).toHaveLength(2);
    expect(linesOf((await s.ask('history', ['-q'])).stdout).length).toBeGreaterThan(3);
  });

  test('--quiet does say what is wrong, in one line', async () => {
    const s = scene(null);
    mkdirSync(s.to, { mode: 0o700 });
    const run = await s.run(['--quiet']);
    expect([run.code, run.stdout, linesOf(run.stderr).length]).toEqual([1, '', 1]);
    expect(run.stderr).toMatch(/^dbbackup: error SOURCE_MISSING \(inspect\): there is no file at .*\. Hint: check the path/);
  });

  test('names that would dance on a terminal lie still', async () => {
    const cwd = tempDirectory('cwd');
    writeFileSync(join(cwd, 'x\u001b[31m\u202e.db'), '');
    const run = await dbbackup(['run', 'x\u001b[31m\u202e.db', '--to', 'b'], { cwd });
    expect(run.code).toBe(78);
    expect(run.stderr).toContain('x\\u{1b}[31m\\u{202e}.db');
    // biome-ignore lint/suspicious/noControlCharactersInRegex: none may be there
    expect(run.stderr).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u202a-\u202e]/);
    const unknown = await dbbackup(['run', '--\u001b[2J']);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: none may be there
    expect(unknown.stderr).not.toMatch(/[\u0000-\u0009\u000b-\u001f]/);
  });

  test('nothing is copied into the names of processes, and nothing is read from stdin', async () => {
    const s = scene(null);
    plant(s.to, baseAt(ago(HOUR)));
    // stdin is /dev/null in all of these tests; a closed one does no harm either.
    const list = await dbbackup(['list', '--to', s.to], { through: ['sh', '-c', 'exec "$0" "$@" <&-'] });
    expect([list.code, list.stderr]).toEqual([0, '']);
  });
});
