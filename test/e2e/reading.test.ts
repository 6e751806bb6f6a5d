/** What list, status, history and check say: to a person, to a monitor, and as JSON. */
import { chmodSync, chownSync, existsSync, mkdirSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { OPTION_NAMES } from '../../src/settings/options.js';
import {
  cannot,
  dbbackup,
  executableFor,
  holdExclusively,
  killGroup,
  makeDatabase,
  openTempDirectory,
  start,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { ago, baseAt, dataFiles, HOUR, linesOf, plant, plantDaily, type Scene, scene, sceneWithCopy } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

describe('list', () => {
  test('shows the copies there are, newest first, from the directory alone', async () => {
    const s = scene(null);
    const good = plant(s.to, baseAt(ago(90 * 60_000)));
    const tagged = plant(s.to, baseAt(ago(3 * HOUR)), { tags: ['before-restore'] });
    const suspect = plant(s.to, baseAt(ago(30 * HOUR)), { status: 'suspect' });
    const bad = plant(s.to, baseAt(ago(60 * HOUR)));
    truncateSync(join(s.to, bad), 1);
    const lost = plant(s.to, baseAt(ago(80 * HOUR)), null);
    const ahead = plant(s.to, baseAt(ago(-5 * HOUR)), { method: 'page-copy' });

    const text = await s.ask('list');
    expect([text.code, text.stderr]).toEqual([0, '']);
    const [header = '', ...rows] = linesOf(text.stdout);
    expect(header.trim().split(/ +/)).toEqual(['CREATED', 'AGE', 'SIZE', 'STATUS', 'FILE', 'TAGS']);
    expect(header.indexOf('FILE')).toBe(rows[0]?.indexOf('app-'));
    const cells = rows.map((r) => r.split(/ {2,}/));
    expect(cells.map((c) => c.slice(3))).toEqual([
      ['good', ahead],
      ['good', good],
      ['good', tagged, 'before-restore'],
      ['suspect', suspect],
      ['bad', bad],
      ['unverified', lost],
    ]);
    expect(cells.map((c) => c[1])).toEqual(['ahead', '1 h 30 m', '3 h 0 m', '30 h 0 m', '2 d 12 h', '3 d 8 h']);
    for (const [created] of cells) expect(created).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    expect(new Set(rows.map((r) => r.indexOf('app-'))).size).toBe(1);

    const json = await s.ask('list', ['--json']);
    expect(problemsIn(json.json, shapes.listDocument)).toEqual([]);
    expect(json.json.copies?.map((c) => [c.file, c.status, c.tags, c.method])).toEqual([
      [ahead, 'good', [], 'page-copy'],
      [good, 'good', [], 'vacuum-into'],
      [tagged, 'good', ['before-restore'], 'vacuum-into'],
      [suspect, 'suspect', [], 'vacuum-into'],
      [bad, 'bad', [], 'vacuum-into'],
      [lost, 'unverified', [], null],
    ]);
    expect(json.json.copies?.at(-1)).toMatchObject({ manifest: null, sha256: null, verifiedAt: null, source: null });
  });

  test('shows all names, or the one that is asked for', async () => {
    const s = scene(null);
    plantDaily(s.to, 2);
    plantDaily(s.to, 1, HOUR / 2, {}, 'zoo');
    expect((await s.ask('list', ['--json'])).json.copies?.map((c) => c.name)).toEqual(['zoo', 'app', 'app']);
    expect((await s.ask('list', ['--json', '--name', 'zoo'])).json.copies?.map((c) => c.name)).toEqual(['zoo']);
    expect((await s.ask('list', ['--json', '--name', 'none'])).json.copies).toEqual([]);
  });

  test('an empty directory is no error, a missing one is', async () => {
    const s = scene(null);
    const missing = await s.ask('list', ['--json']);
    expect([missing.code, missing.json.error?.code]).toEqual([1, 'COPY_NOT_FOUND']);
    expect(problemsIn(missing.json, shapes.failureDocument)).toEqual([]);
    mkdirSync(s.to);
    expect(await s.ask('list')).toMatchObject({ code: 0, stdout: '', stderr: `no copies in ${s.to}\n` });
    expect((await s.ask('list', ['--json'])).json).toEqual({ schemaVersion: 1, command: 'list', copies: [] });
    writeFileSync(join(s.home, 'file'), '');
    expect((await dbbackup(['list', '--to', join(s.home, 'file'), '--json'])).code).toBe(1);
  });

  test('hostile manifests make no line of their own, and no terminal dance', async () => {
    const s = scene(null);
    plant(s.to, baseAt(ago(HOUR)), { tags: ['x\nFORGED LINE', '\u001b[2J\u202e'], source: '/srv/\u001b[31mapp.db' });
    plant(s.to, baseAt(ago(2 * HOUR)), { file: '../../etc/passwd' });
    symlinkSync('/dev/zero', join(s.to, `${baseAt(ago(3 * HOUR))}.json`));
    writeFileSync(join(s.to, `${baseAt(ago(3 * HOUR))}.db`), 'x');
    const text = await s.ask('list');
    expect([text.code, linesOf(text.stdout).length]).toEqual([0, 4]);
    expect(text.stdout).toContain('x\\u{a}FORGED LINE,\\u{1b}[2J\\u{202e}');
    const json = await s.ask('list', ['--json']);
    expect(problemsIn(json.json, shapes.listDocument)).toEqual([]);
    expect(json.json.copies?.map((c) => c.status)).toEqual(['good', 'unverified', 'unverified']);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: none may be there
    for (const out of [text.stdout, json.stdout]) expect(out).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e]/);
  });

  test('a thousand copies are listed in a moment', async () => {
    const s = scene(null);
    for (let i = 0; i < 1000; i++) plant(s.to, baseAt(ago(i * HOUR)));
    const json = await s.ask('list', ['--json'], { deadlineMs: 20_000 });
    expect([json.code, json.json.copies?.length]).toEqual([0, 1000]);
  });
});

describe('status', () => {
  test('healthy: a fresh, good copy', async () => {
    const s = scene();
    const run = await s.run(['--json']);
    const text = await s.ask('status');
    expect([text.code, text.stderr]).toEqual([0, '']);
    const [first = '', second = '', ...rest] = linesOf(text.stdout);
    expect(first).toMatch(new RegExp(`^healthy: ${run.json.copy?.file}, [\\d.]+ k?B, [\\d.]+ (ms|s) old$`));
    expect(second).toBe(`last run: ok at ${run.json.startedAt}`);
    expect(rest).toEqual([]);
    const json = await s.ask('status', ['--json']);
    expect(problemsIn(json.json, shapes.statusDocument)).toEqual([]);
    expect(json.json).toMatchObject({ name: 'app', healthy: true, problems: [], newestGood: { ...run.json.copy }, lastRun: { runId: run.json.runId } });
    expect(json.json.lastRun).toEqual(run.json);
    expect(await s.ask('status', ['--quiet'])).toMatchObject({ code: 0, stdout: '', stderr: '' });
  });

  const rows: readonly (readonly [what: string, make: (s: Scene) => unknown, healthy: boolean, problems: readonly string[]])[] = [
    ['no directory', () => undefined, false, ['critical COPY_NOT_FOUND']],
    ['no copy', (s) => mkdirSync(s.to), false, ['critical COPY_NOT_FOUND']],
    ['a copy 25 hours old', (s) => plant(s.to, baseAt(ago(25 * HOUR))), true, []],
    ['a copy 27 hours old', (s) => plant(s.to, baseAt(ago(27 * HOUR))), false, ['critical COPY_STALE']],
    [
      'a suspect copy after a good one',
      (s) => [plant(s.to, baseAt(ago(2 * HOUR))), plant(s.to, baseAt(ago(HOUR)), { status: 'suspect' })],
      true,
      ['critical SOURCE_CORRUPT'],
    ],
    ['a suspect copy alone', (s) => plant(s.to, baseAt(ago(HOUR)), { status: 'suspect' }), false, ['critical COPY_NOT_FOUND', 'critical SOURCE_CORRUPT']],
    ['a tagged copy alone', (s) => plant(s.to, baseAt(ago(HOUR)), { tags: ['before-guard'] }), false, ['critical COPY_NOT_FOUND']],
    [
      'a copy whose size is wrong, before a good one',
      (s) => [plant(s.to, baseAt(ago(2 * HOUR))), truncateSync(join(s.to, plant(s.to, baseAt(ago(HOUR)))), 1)],
      true,
      ['critical COPY_BAD'],
    ],
    ['data without a manifest', (s) => plant(s.to, baseAt(ago(HOUR)), null), false, ['critical COPY_NOT_FOUND', 'warning COPY_UNVERIFIED']],
    ['a copy dated ahead of the clock', (s) => plant(s.to, baseAt(ago(-2 * HOUR))), false, ['critical COPY_NOT_FOUND', 'critical CLOCK']],
    ['a copy dated half an hour ahead', (s) => plant(s.to, baseAt(ago(-HOUR / 2))), true, []],
  ];
  test.each(rows)('%s', async (_, make, healthy, problems) => {
    const s = scene(null);
    make(s);
    const json = await s.ask('status', ['--json', '--name', 'app']);
    expect(problemsIn(json.json, shapes.statusDocument)).toEqual([]);
    expect([json.code, json.json.healthy, json.json.name, json.json.lastRun]).toEqual([healthy ? 0 : 1, healthy, 'app', null]);
    expect(json.json.problems?.map((p) => `${p.severity} ${p.code}`)).toEqual(problems);
    const text = await s.ask('status', ['--name', 'app', '--quiet']);
    expect(text.code).toBe(healthy ? 0 : 1);
    // Silence under cron means that all is well.
    if (healthy && problems.length === 0) expect(text.stdout).toBe('');
    else {
      expect(text.stdout).toMatch(healthy ? /^healthy: / : /^NOT HEALTHY: /);
      for (const p of problems) expect(text.stdout).toContain(p);
    }
  });

  test('a run that found another one at work does not hide what became of that one', async () => {
    const { s } = await sceneWithCopy();
    const holder = await holdExclusively(s.source);
    const killed = start(['run', s.source, '--to', s.to]);
    await until('the run to be at work', () => killed.stderr().includes('inspect'));
    await until('another to be locked out', async () => (await s.run()).code === 75);
    killGroup(killed.pid, 'SIGKILL');
    await killed.result;
    await holder.stop();
    const { json, stdout } = { ...(await s.ask('status')), json: (await s.ask('status', ['--json'])).json };
    expect(json.lastRun?.exitCode).toBe(75);
    expect(json.problems?.map((p) => `${p.severity} ${p.code}`)).toEqual(['critical LAST_RUN_DIED']);
    expect(stdout).toMatch(/^last run: interrupted at /m);
  });

  test.skipIf(cannot('root', 'setpriv'))('who may see the copies and not read them is told whose they are, and not that they are worthless', async () => {
    const home = openTempDirectory('theirs');
    const to = join(home, 'backups');
    plant(to, baseAt(ago(HOUR)));
    chmodSync(to, 0o755);
    const through = wrap.as(65_534);
    const executable = executableFor(65_534);
    for (const command of ['list', 'status']) {
      const r = await dbbackup([command, '--to', to, '--json'], { through, executable });
      expect([r.code, r.json.error?.code, r.json.error?.hint], r.stderr).toEqual([78, 'TARGET_OWNER', expect.stringContaining('sudo -u root')]);
    }
  });

  test.skipIf(cannot('root', 'setpriv'))('a lock that belongs to somebody else is named, with whose it is', async () => {
    const home = openTempDirectory('lock');
    chownSync(home, 65_534, 65_534);
    const source = join(home, 'app.db');
    makeDatabase(source, { journal: 'delete' });
    chownSync(source, 65_534, 65_534);
    const [through, executable] = [wrap.as(65_534), executableFor(65_534)];
    const run = (): ReturnType<typeof dbbackup> => dbbackup(['run', source, '--to', join(home, 'backups'), '--json'], { through, executable });
    expect((await run()).code).toBe(0);
    const lock = join(home, 'backups/.dbbackup/app.lock.db');
    chownSync(lock, 0, 0);
    chmodSync(lock, 0o600);
    const refused = await run();
    expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([78, 'TARGET_OWNER']);
    expect(refused.json.error?.message).toContain(`the lock ${lock} belongs to root`);
    expect(refused.json.error?.hint).toContain(`chown nobody ${lock}`);
  });

  test('a guard that was killed before it had the database in its hands is a problem, and not only in the message of --notify', async () => {
    const { s } = await sceneWithCopy({ journal: 'delete' });
    const guard = start(['guard', '--database', s.source, '--to', s.to, '--', 'sleep', '60']);
    await until('the guard to be at work', async () => (await s.ask('history', ['--json'])).json.runs?.[0]?.command === 'guard');
    killGroup(guard.pid, 'SIGKILL');
    await guard.result;
    const { json } = await s.ask('status', ['--json']);
    expect(json.problems?.map((p) => `${p.severity} ${p.code}`)).toEqual(['critical LAST_RUN_DIED']);
    expect(json.problems?.[0]?.message).toContain('guard of ');
  });

  test('a history that is damaged is critical, and each that meets it says what to do', async () => {
    const { s } = await sceneWithCopy();
    writeFileSync(join(s.state, 'history.db'), 'this is no database, and never was one'.repeat(100));
    const away = `move ${join(s.state, 'history.db')} away`;
    const quiet = await s.run(['--quiet']);
    expect([quiet.code, quiet.stderr]).toEqual([0, expect.stringContaining(`critical STATE_UNWRITABLE`)]);
    expect(quiet.stderr).toContain(away);
    expect((await s.ask('status', ['--quiet'])).stdout).toContain(away);
    expect((await s.ask('history')).stderr).toMatch(/Hint: move .*history\.db away, and the next run makes a new one/);
    unlinkSync(join(s.state, 'history.db'));
    expect([(await s.run(['--quiet'])).stderr, (await s.ask('history', ['--json'])).json.runs?.length]).toEqual(['', 1]);
  });

  test('a damaged history is told also where there is no copy, whose name would be asked for in it', async () => {
    const s = scene(null);
    mkdirSync(s.state, { recursive: true });
    chmodSync(s.to, 0o700);
    writeFileSync(join(s.state, 'history.db'), 'no database, and long enough not to be taken for an empty one'.repeat(30));
    const status = await s.ask('status', ['--json']);
    expect([status.code, status.json.problems?.map((p) => `${p.severity} ${p.code}`)]).toEqual([1, expect.arrayContaining(['critical STATE_UNWRITABLE'])]);
  });

  test('a directory that is not there is said not to be there, and no line is offered that would say so again', async () => {
    const s = scene(null);
    expect((await s.ask('status', ['--name', 'app'])).stdout).toContain(`there is no directory ${s.to}: is it mounted`);
    for (const command of ['list', 'prune', 'verify']) {
      const r = await s.ask(command, ['--json']);
      expect([r.code, r.json.error?.code, r.json.error?.hint]).toEqual([1, 'COPY_NOT_FOUND', expect.stringMatching(/^check the name of the directory/)]);
    }
    expect(existsSync(s.to)).toBe(false);
  });

  test('max-age decides', async () => {
    const s = scene(null);
    plant(s.to, baseAt(ago(3 * HOUR)));
    expect((await s.ask('status', ['--max-age', '4h'])).code).toBe(0);
    const stale = await s.ask('status', ['--max-age', '2h', '--json']);
    expect([stale.code, stale.json.problems?.[0]?.message]).toEqual([1, 'the newest good copy is 3 h 0 m old; max-age is 2 h 0 m']);
    expect(stale.json.newestGood?.ageSeconds).toBeGreaterThanOrEqual(3 * 3600);
    expect((await dbbackup(['status', '--to', s.to], { env: { DBBACKUP_MAX_AGE: '1h' } })).code).toBe(1);
  });

  test('tells of a failed last run, and stays healthy while the copy is fresh', async () => {
    const { s } = await sceneWithCopy();
    unlinkSync(s.source);
    const failed = await s.run(['--json']);
    const json = await s.ask('status', ['--json']);
    expect([json.code, json.json.healthy, json.json.lastRun?.runId]).toEqual([0, true, failed.json.runId]);
    expect(json.json.problems).toEqual([{ code: 'LAST_RUN_FAILED', severity: 'warning', message: expect.stringContaining('SOURCE_MISSING') }]);
    expect((await s.ask('status')).stdout).toMatch(/^last run: failed at .*: SOURCE_MISSING: there is no file at /m);
    // Dry runs and prunes are no runs.
    await s.run(['--dry-run']);
    await s.ask('prune', ['--keep-last', 'all']);
    expect((await s.ask('status', ['--json'])).json.lastRun?.runId).toBe(failed.json.runId);
  });

  test('where two names are it has to be said which, and both are listed', async () => {
    const s = scene(null);
    plantDaily(s.to, 1);
    plantDaily(s.to, 1, 40 * HOUR, {}, 'zoo');
    for (const more of [[], ['--notify']]) {
      const which = await s.ask('status', ['--json', ...more]);
      expect([which.code, which.json.error?.code]).toEqual([64, 'USAGE']);
      expect(which.json.error?.message).toMatch(/several names: app, zoo$/);
      expect(which.json.error?.hint).toMatch(/--name app/);
      expect(problemsIn(which.json, shapes.failureDocument)).toEqual([]);
    }
    expect((await s.ask('status', ['--name', 'app'])).code).toBe(0);
    expect((await s.ask('status', ['--name', 'zoo'])).code).toBe(1);
    // The database says it as well.
    expect((await s.ask('status', ['--database', '/srv/zoo.db', '--json'])).json).toMatchObject({ name: 'zoo', healthy: false });
    expect((await s.ask('list', ['--json'])).json.copies).toHaveLength(2);
  });
});

describe('history', () => {
  test('shows runs, newest first: ok, failed, skipped, dry, prunes, of all names', async () => {
    const s = scene();
    const first = await s.run(['--json']);
    const other = join(s.home, 'zoo.db');
    makeDatabase(other, { journal: 'delete' });
    await dbbackup(['run', other, '--to', s.to, '-q']);
    unlinkSync(s.source);
    await s.run(['-q']);
    await s.run(['-q', '--if-older-than', '1h']);
    await s.run(['-n', '-q']);
    await s.ask('prune', ['--name', 'zoo', '-q']);
    await s.run(['--timeout', 'soon', '-q']);

    const json = await s.ask('history', ['--json']);
    expect(json.code).toBe(0);
    expect(problemsIn(json.json, shapes.historyDocument)).toEqual([]);
    expect(json.json.runs?.map((r) => [r.command, r.name, r.status, r.dryRun, r.exitCode, r.error?.code ?? null])).toEqual([
      ['run', 'app', 'failed', false, 78, 'SETTINGS'],
      ['prune', 'zoo', 'ok', false, 0, null],
      ['run', 'app', 'failed', true, 1, 'SOURCE_MISSING'],
      ['run', 'app', 'skipped', false, 0, null],
      ['run', 'app', 'failed', false, 1, 'SOURCE_MISSING'],
      ['run', 'zoo', 'ok', false, 0, null],
      ['run', 'app', 'ok', false, 0, null],
    ]);
    expect(json.json.runs?.at(-1)).toEqual(first.json);
    const times = json.json.runs?.map((r) => r.startedAt) ?? [];
    expect(times).toEqual(times.toSorted().reverse());

    const text = await s.ask('history');
    const [header = '', ...rows] = linesOf(text.stdout);
    expect(header).toMatch(/^STARTED +NAME +COMMAND +STATUS +EXIT +TOOK +COPY OR ERROR$/);
    expect(rows.map((r) => r.split(/ {2,}/).slice(1, 5).join(' '))).toEqual([
      'app run failed 78',
      'zoo prune ok 0',
      'app run (dry) failed 1',
      'app run skipped 0',
      'app run failed 1',
      'zoo run ok 0',
      'app run ok 0',
    ]);
    expect(rows.at(-1)).toMatch(new RegExp(`${first.json.copy?.file}$`));
    expect(rows[0]).toMatch(/SETTINGS$/);

    // At length: what each of them said, and the time of each stage.
    const long = linesOf((await s.ask('history', ['-v'])).stdout);
    expect(long.filter((l) => !l.startsWith(' '))).toHaveLength(7);
    const [copy, stages] = long.slice(long.findLastIndex((l) => !l.startsWith(' ')) + 1);
    expect(copy).toMatch(new RegExp(`^  ${first.json.copy?.file} \\(.* good\\)$`));
    expect(stages).toMatch(/^ {2}inspect \d+ ms, snapshot \d+ ms, verify \d+ ms, publish \d+ ms, prune \d+ ms, report \d+ ms$/);
    expect(long.filter((l) => l.startsWith('  error SOURCE_MISSING (inspect): there is no file at '))).toHaveLength(2);
    expect(long.filter((l) => l.startsWith('  hint: check the path'))).toHaveLength(2);

    expect((await s.ask('history', ['--json', '--name', 'zoo'])).json.runs?.map((r) => r.command)).toEqual(['prune', 'run']);
    expect((await s.ask('history', ['--json', '--limit', '2'])).json.runs).toEqual(json.json.runs?.slice(0, 2));
    expect(linesOf((await s.ask('history', ['--limit', '1'])).stdout)).toHaveLength(2);
    for (const limit of ['0', '-1', 'x', '1.5']) expect((await s.ask('history', ['--limit', limit])).code).toBe(64);
  });

  test('there may be none', async () => {
    const s = scene(null);
    expect((await s.ask('history', ['--json'])).json).toEqual({ schemaVersion: 1, command: 'history', runs: [] });
    const text = await s.ask('history');
    expect([text.code, text.stdout, text.stderr]).toEqual([0, '', `there is no directory ${s.to}: is it mounted, and is this its name?\n`]);
    mkdirSync(s.to, { mode: 0o700 });
    const empty = await s.ask('history');
    expect([empty.code, empty.stdout, empty.stderr]).toEqual([0, '', `no runs are recorded in ${s.state}\n`]);
  });

  const FOREIGN: readonly (readonly [what: string, sql: string])[] = [
    [
      'a record of another shape',
      `INSERT INTO runs(run_id, name, status, dry_run, process, record) VALUES ('x', 'app', 'ok', 0, '{}', '{"command":"run","warnings":7}')`,
    ],
    ['a record that is null', "INSERT INTO runs(run_id, name, status, dry_run, process, record) VALUES ('x', 'app', 'ok', 0, '{}', 'null')"],
    // Evaluated at every write, and for as long as it likes.
    [
      'a constraint in a table',
      'DROP TABLE told; CREATE TABLE told(key TEXT PRIMARY KEY, at TEXT NOT NULL CHECK (length(printf(char(37)||char(46)||9||char(99), at)) > 0))',
    ],
    ['an index more', "CREATE INDEX more ON runs(run_id) WHERE status = 'ok'"],
  ];
  test.each(FOREIGN)('%s, written by somebody else, is an error, and no reason for a run to fail', async (_, sql) => {
    const { s } = await sceneWithCopy();
    const db = new Database(join(s.state, 'history.db'));
    db.exec(sql);
    db.close();
    const broken = await s.ask('history', ['--json']);
    expect([broken.code, broken.json.error?.code, broken.json.error?.message], broken.stderr).toEqual([
      1,
      'IO_ERROR',
      expect.stringContaining('dbbackup did not'),
    ]);
    const run = await s.run(['--json']);
    expect([run.code, run.json.copy?.status, run.json.warnings?.some((w) => w.code === 'STATE_UNWRITABLE')], run.stderr).toEqual([0, 'good', true]);
    expect((await s.ask('status', ['--json'])).code).toBe(0);
  });

  test('what is no history of ours is an error, and no reason for a run to fail', async () => {
    const s = scene();
    mkdirSync(s.state, { recursive: true, mode: 0o700 });
    writeFileSync(join(s.state, 'history.db'), 'not a database, but long enough to look like one'.repeat(100), { mode: 0o600 });
    const broken = await s.ask('history', ['--json']);
    expect([broken.code, broken.json.error?.code]).toEqual([1, 'IO_ERROR']);
    const run = await s.run(['--json']);
    expect([run.code, run.json.copy?.status, run.json.warnings?.filter((w) => w.code === 'STATE_UNWRITABLE').length]).toEqual([0, 'good', 1]);
    expect((await s.ask('status', ['--json'])).json).toMatchObject({ healthy: true, lastRun: null });
  });

  test('a run that was killed is shown as interrupted by whoever looks, and recorded by the next one', async () => {
    const { s } = await sceneWithCopy();
    const holder = await holdExclusively(s.source);
    const killed = start(['run', s.source, '--to', s.to]);
    const state = async (): Promise<string | undefined> => (await s.ask('history', ['--json', '--limit', '1'])).json.runs?.[0]?.status;
    await until('the run to be recorded', async () => (await state()) === 'running');
    const running = (await s.ask('history', ['--json', '--limit', '1'])).json;
    expect(problemsIn(running, shapes.historyDocument)).toEqual([]);
    expect(running.runs?.[0]).toMatchObject({ status: 'running', finishedAt: null, exitCode: null, durationMs: null, error: null });
    expect((await s.ask('history')).stdout).toMatch(/ run +running +- +-\n/);
    // Another one meanwhile: 75, and it says who holds the lock.
    const second = await s.ask('prune', ['--json']);
    expect([second.code, second.json.error?.message]).toEqual([75, `another run holds the lock of app (run since ${running.runs?.[0]?.startedAt})`]);

    killGroup(killed.pid, 'SIGKILL');
    await killed.result;
    const seen = (await s.ask('history', ['--json', '--limit', '2'])).json;
    expect(problemsIn(seen, shapes.historyDocument)).toEqual([]);
    const interrupted = seen.runs?.find((r) => r.runId === running.runs?.[0]?.runId);
    expect(interrupted).toMatchObject({ status: 'interrupted', exitCode: null, error: { code: 'INTERRUPTED' } });
    const status = await s.ask('status', ['--json']);
    expect(status.json.problems?.map((p) => `${p.severity} ${p.code}`)).toEqual(['critical LAST_RUN_DIED']);
    expect(status.json.lastRun?.runId).toBe(interrupted?.runId);
    expect((await s.ask('history')).stdout).toMatch(/ run +interrupted +- +- +INTERRUPTED\n/);

    await holder.crash();
    await useDatabase(s.source, []).then((u) => u.stop());
    expect((await s.run()).code).toBe(0);
    expect((await s.ask('history', ['--json'])).json.runs?.find((r) => r.runId === interrupted?.runId)?.status).toBe('interrupted');
    expect((await s.ask('status', ['--json'])).json.problems).toEqual([]);
    expect(dataFiles(s.to)).toHaveLength(2);
  });
});

describe('check', () => {
  test('shows every setting with its origin, the source, the directory, and what cannot be seen', async () => {
    const s = scene({ journal: 'wal' });
    const env = { DBBACKUP_MAX_AGE: '3h' };
    const json = await dbbackup(['check', s.source, '--to', s.to, '--json', '--keep-last', '3'], { env });
    expect([json.code, json.stderr]).toEqual([0, '']);
    expect(problemsIn(json.json, shapes.checkDocument)).toEqual([]);
    const { settings = [], problems } = json.json as unknown as {
      settings?: { name: string; value: string; origin: string }[];
      problems?: { code: string; severity: string }[];
    };
    const of = (name: string): string[] => settings.filter((x) => x.name === name).flatMap((x) => [x.value, x.origin]);
    expect(of('database')).toEqual([s.source, expect.stringMatching(/database/)]);
    expect(of('to')).toEqual([s.to, '--to']);
    expect(of('keep-last')).toEqual(['3', '--keep-last']);
    expect(of('max-age')).toEqual(['3h', 'DBBACKUP_MAX_AGE']);
    expect(of('timeout')).toEqual(['2h', 'default']);
    expect(of('smtp-url')).toEqual(['', 'not set']);
    expect(settings).toHaveLength(OPTION_NAMES.length);
    expect(problems?.map((p) => `${p.severity} ${p.code}`)).toEqual(['warning NOBODY_HEARS', 'warning NOT_SEEN']);

    const text = await dbbackup(['check', s.source, '--to', s.to], { env });
    expect(text.code).toBe(0);
    expect(text.stdout).toMatch(/^SETTING +VALUE +FROM\n/);
    expect(text.stdout).toMatch(/^max-age +3h +DBBACKUP_MAX_AGE$/m);
    expect(text.stdout).toMatch(new RegExp(`^source: ${s.source}, [\\d.]+ kB, wal mode, owner \\S+$`, 'm'));
    expect(text.stdout).toMatch(new RegExp(`^directory: ${s.to} \\(will be made\\), [\\d.]+ .B free$`, 'm'));
    expect(linesOf(text.stdout).at(-1)).toBe('ok: a run can begin');
  });

  test('is not ok where a run would fail, and says every reason with its hint', async () => {
    const s = scene(null);
    writeFileSync(s.to, '');
    const json = await dbbackup(['check', s.source, '--to', s.to, '--json']);
    expect([json.code, json.json.ok]).toEqual([1, false]);
    expect(problemsIn(json.json, shapes.checkDocument)).toEqual([]);
    expect(json.json.problems?.filter((p) => p.severity === 'critical').map((p) => p.code)).toEqual(['TARGET_UNWRITABLE', 'SOURCE_MISSING']);
    for (const p of json.json.problems?.filter((q) => q.severity === 'critical') ?? []) expect(p.message).toMatch(/Hint: \S/);
    const text = await dbbackup(['check', s.source, '--to', s.to]);
    expect(linesOf(text.stdout).at(-1)).toBe('NOT OK');
  });

  test('with settings that do not parse still shows them, and what is wrong', async () => {
    const s = scene();
    const json = await dbbackup(['check', s.source, '--to', s.to, '--json', '--max-age', 'soon']);
    expect([json.code, json.json.error?.code, json.json.error?.message]).toEqual([
      78,
      'SETTINGS',
      'max-age "soon" must be a duration like 90s, 30m, 26h or 30d (--max-age)',
    ]);
    expect(problemsIn(json.json, shapes.failureDocument)).toEqual([]);
    expect(json.json.problems?.map((p) => [p.code, p.severity, p.message])).toEqual([['SETTINGS', 'critical', json.json.error?.message]]);
    const text = await dbbackup(['check', s.source, '--to', s.to, '--max-age', 'soon', '--keep-last', 'x']);
    expect(text.stdout).toMatch(/^max-age +soon +--max-age$/m);
    expect(text.stderr).toMatch(/^dbbackup: error SETTINGS: .*max-age "soon".*; .*keep-last "x"|keep-last "x".*; .*max-age "soon"/);
    expect((await dbbackup(['check', '--to', s.to, '--json'])).json.error?.message).toMatch(/database is required/);
    const nowhere = await dbbackup(['check', s.source, '--json']);
    const { settings = [] } = nowhere.json as unknown as { settings?: { name: string; value: string }[] };
    expect(settings.filter((x) => ['to', 'state-dir', 'log-dir'].includes(x.name)).map((x) => x.value)).toEqual(['', '', '']);
  });

  test('sees a name that is taken, but does not mind --if-older-than', async () => {
    const s = scene();
    plant(s.to, baseAt(ago(HOUR)));
    const taken = await dbbackup(['check', s.source, '--to', s.to, '--json'], { env: { DBBACKUP_IF_OLDER_THAN: '20h' } });
    expect([taken.code, taken.json.problems?.[0]?.code]).toEqual([1, 'NAME_TAKEN']);
    expect((await dbbackup(['check', s.source, '--to', s.to, '--accept-moved'])).code).toBe(0);
    expect((await dbbackup(['check', s.source, '--to', s.to, '--name', 'free'])).code).toBe(0);
  });

  test('sees a copy ahead of the clock, as a dry run does, and takes every flag of a run', async () => {
    const s = scene();
    const ahead = plant(s.to, baseAt(ago(-3 * HOUR)), { configuredPath: s.source, realPath: s.source });
    const flags = ['--timeout=1h', '--lock-wait=1m', '--if-older-than=20h', '--retries=1', '--retry-wait=1s', '--retry-backoff=linear', '--before=true'];
    const check = await dbbackup(['check', s.source, '--to', s.to, '--json', ...flags, '--after=true', '--on-failure=true']);
    expect(check.code, check.stderr).toBe(0);
    expect(check.json.problems?.find((p) => p.code === 'CLOCK')).toMatchObject({ severity: 'warning', message: expect.stringContaining(ahead) });
    const help = async (command: string): Promise<string[]> => (await dbbackup([command, '--help'])).stdout.match(/^ {2}--[a-z-]+ <[A-Z]/gm) ?? [];
    expect(await help('check')).toEqual(expect.arrayContaining(await help('run')));
  });
});
