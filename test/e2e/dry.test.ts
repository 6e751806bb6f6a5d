/** Looking changes nothing: dry runs, list, status, history and check leave every byte, mode and time as it was. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { cannot, dbbackup, leaveSidecars, makeDatabase, makeHotJournal, query, type Result, useDatabase } from '../support/cli.js';
import { ago, baseAt, DAY, dataFiles, HOUR, linesOf, plant, plantDaily, type Scene, scene, sceneWithCopy, tree } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

/** Everything that only looks. */
const LOOKS: readonly (readonly [what: string, words: (s: Scene) => string[]])[] = [
  ['run --dry-run', (s) => ['run', s.source, '--to', s.to, '--dry-run']],
  ['run -n --json', (s) => ['run', s.source, '--to', s.to, '-n', '--json', '--keep-last', '1']],
  ['run --dry-run --if-older-than', (s) => ['run', s.source, '--to', s.to, '--dry-run', '--if-older-than', '20h']],
  ['prune --dry-run', (s) => ['prune', '--to', s.to, '--dry-run', '--keep-last', '1', '--name', 'app']],
  ['list', (s) => ['list', '--to', s.to]],
  ['status', (s) => ['status', '--to', s.to, '--name', 'app']],
  ['history', (s) => ['history', '--to', s.to]],
  ['check', (s) => ['check', s.source, '--to', s.to]],
  ['run with a setting that does not parse', (s) => ['run', s.source, '--to', s.to, '--dry-run', '--timeout', 'soon']],
];

describe('nothing is changed', () => {
  test.each(LOOKS)('where nothing is yet: %s', async (_, words) => {
    const s = scene({ journal: 'wal' });
    const before = tree(s.home);
    const result = await dbbackup(words(s));
    expect([0, 1, 78], result.stderr).toContain(result.code);
    expect(tree(s.home)).toEqual(before);
    expect(existsSync(s.to)).toBe(false);
    // Opening an idle WAL database, even for reading only, would have made these.
    expect(readdirSync(join(s.home, 'data'))).toEqual(['app.db']);
  });

  test.each(LOOKS)('where copies are, and no history: %s', async (_, words) => {
    const s = scene({ journal: 'wal' });
    plantDaily(s.to, 4, 30 * HOUR, { configuredPath: s.source, realPath: s.source });
    plant(s.to, baseAt(ago(DAY * 40)), null);
    const before = tree(s.home);
    await dbbackup(words(s));
    expect(tree(s.home)).toEqual(before);
    expect(readdirSync(join(s.home, 'data'))).toEqual(['app.db']);
  });

  test.each(LOOKS)('where a state directory is, and no history in it: %s', async (_, words) => {
    const s = scene({ journal: 'wal' });
    mkdirSync(s.state, { recursive: true, mode: 0o700 });
    chmodSync(s.to, 0o700);
    const before = tree(s.home);
    await dbbackup(words(s));
    expect(tree(s.home)).toEqual(before);
  });

  test('nor where runs have been, but for a row in the history that dry runs add', async () => {
    const { s } = await sceneWithCopy({ journal: 'delete' });
    const state = ['.dbbackup', '.dbbackup/history.db'];
    for (const [what, words] of LOOKS) {
      const before = tree(s.home);
      const rows = query<number>(join(s.state, 'history.db'), 'SELECT count(*) FROM runs');
      await dbbackup(words(s));
      const added = query<number>(join(s.state, 'history.db'), 'SELECT count(*) FROM runs') - rows;
      const dry = /run.*dry|-n|prune/.test(what) && !what.includes('parse');
      expect([what, added]).toEqual([what, dry ? 1 : 0]);
      if (dry) expect(tree(s.to, state)).toEqual(lines(before, state));
      else expect(tree(s.home)).toEqual(before);
    }
    const history = await s.ask('history', ['--json']);
    expect(problemsIn(history.json, shapes.historyDocument)).toEqual([]);
    expect(history.json.runs?.map((r) => [r.command, r.dryRun, r.status])).toEqual([
      ['prune', true, 'ok'],
      ['run', true, 'skipped'],
      ['run', true, 'ok'],
      ['run', true, 'ok'],
      ['run', false, 'ok'],
    ]);
    expect(readdirSync(s.state).toSorted()).toEqual(['app.lock.db', 'history.db', 'log', 'tmp']);
  });

  /** The tree of `backups` within one of `home`, as `tree(s.to, without)` says it. */
  function lines(home: readonly string[], without: readonly string[]): string[] {
    const below = home.filter((l) => l.startsWith('backups')).map((l) => l.replace(/^backups(\/| )/, (_, c: string) => (c === ' ' ? '. ' : '')));
    return below.filter((l) => !without.includes(l.split(' ')[0] ?? ''));
  }

  test('nor beside a source that its application left with a WAL', async () => {
    const s = scene({ journal: 'wal' });
    await leaveSidecars(s.source);
    const before = tree(s.home);
    for (const words of [
      ['run', s.source, '--to', s.to, '-n'],
      ['check', s.source, '--to', s.to],
    ]) {
      const dry = await dbbackup(words);
      expect(dry.code, dry.stderr).toBe(0);
      expect(tree(s.home)).toEqual(before);
    }
  });

  test('nor while another run holds the lock, and nobody waits for it', async () => {
    const { s } = await sceneWithCopy();
    const holder = await useDatabase(join(s.state, 'app.lock.db'), ['BEGIN IMMEDIATE']);
    for (const words of [
      ['run', s.source, '--to', s.to, '-n'],
      ['prune', '--to', s.to, '-n'],
      ['list', '--to', s.to],
      ['status', '--to', s.to],
      ['history', '--to', s.to],
    ]) {
      const looked = await dbbackup(words);
      expect([words[0], looked.code], looked.stderr).toEqual([words[0], 0]);
    }
    const acting = await s.run(['--json']);
    expect([acting.code, acting.json.error?.code, acting.json.status]).toEqual([75, 'LOCKED', 'failed']);
    expect(problemsIn(acting.json, shapes.run)).toEqual([]);
    await holder.stop();
  });
});

describe('the plan', () => {
  let s: Scene;
  let dry: Result;
  beforeAll(async () => {
    s = scene();
    plantDaily(s.to, 4, 30 * HOUR, { configuredPath: s.source, realPath: s.source });
    dry = await s.run(['--dry-run', '--json', '--keep-last', '2', '--keep-daily', '3']);
  });

  test('is a Run, marked dry', () => {
    expect(dry.code, dry.stderr).toBe(0);
    expect(problemsIn(dry.json, shapes.run)).toEqual([]);
    expect(dry.json).toMatchObject({
      command: 'run',
      dryRun: true,
      status: 'ok',
      exitCode: 0,
      copy: null,
      plan: { file: expect.stringMatching(/^app-\d{8}T\d{6}Z\.db$/) },
    });
    expect(dry.json.source).toMatchObject({ path: s.source, journalMode: 'delete', pageSize: 4096 });
    expect(dry.json.plan?.neededBytes).toBeGreaterThan(0);
    expect(dry.json.plan?.freeBytes).toBeGreaterThan(0);
    expect(dry.json.stages?.map((t) => t.name)).toEqual(['inspect']);
  });

  test('is what a real run then does', async () => {
    const text = await s.run(['--dry-run', '--keep-last', '2', '--keep-daily', '3']);
    const real = await s.run(['--json', '--keep-last', '2', '--keep-daily', '3']);
    expect(real.json.pruned).toEqual(dry.json.pruned);
    expect(real.json.pruned).toHaveLength(2);
    expect(real.json.kept?.filter((k) => k.file !== real.json.copy?.file)).toEqual(dry.json.kept);
    const [first = '', ...rest] = linesOf(text.stdout);
    expect(first).toMatch(/^would make \S+\/backups\/app-\d{8}T\d{6}Z\.db \(up to [\d.]+ k?B; [\d.]+ [kMGT]B free\)$/);
    expect(rest).toEqual([
      ...(dry.json.pruned ?? []).map((p) => `would remove ${p.file}: ${p.reason}`),
      ...(dry.json.kept ?? []).map((k) => `would keep ${k.file}: ${k.reasons.join('; ')}`),
    ]);
    expect(rest.length).toBeGreaterThan(3);
  });

  test('with --quiet says nothing when all is well', async () => {
    expect(await s.run(['--dry-run', '--quiet'])).toMatchObject({ code: 0, stdout: '', stderr: '' });
  });
});

describe('problems that can be seen beforehand give the exit code that they would give', () => {
  const rows: readonly { what: string; make?: (s: Scene) => unknown; more?: readonly string[]; code: number; error: string }[] = [
    { what: 'no source', make: (s) => renameSync(s.source, `${s.source}.gone`), code: 1, error: 'SOURCE_MISSING' },
    { what: 'a text file', make: (s) => writeFileSync(s.source, 'x'.repeat(9000)), code: 1, error: 'NOT_A_DATABASE' },
    { what: 'an empty file', make: (s) => writeFileSync(s.source, ''), code: 1, error: 'SOURCE_EMPTY' },
    { what: 'a target that is a file', make: (s) => writeFileSync(s.to, ''), code: 1, error: 'TARGET_UNWRITABLE' },
    { what: 'a target that is a link', make: (s) => symlinkSync('data', s.to), code: 1, error: 'TARGET_UNWRITABLE' },
    { what: 'a name that is taken', make: (s) => plant(s.to, baseAt(ago(DAY))), code: 1, error: 'NAME_TAKEN' },
    { what: 'a target that others can write', make: (s) => makeOpen(s.to), code: 78, error: 'TARGET_OWNER' },
    { what: 'a lock that is none of ours', make: (s) => lay(s, 'app.lock.db', 'something'), code: 1, error: 'TARGET_UNWRITABLE' },
    {
      what: 'a directory for a lock',
      make: (s) => mkdirSync(join(s.state, 'app.lock.db'), { recursive: true, mode: 0o700 }),
      code: 1,
      error: 'TARGET_UNWRITABLE',
    },
    { what: 'a state directory below /proc', more: ['--state-dir', '/proc/nope/state'], code: 1, error: 'TARGET_UNWRITABLE' },
    {
      what: 'a state directory below a file',
      make: (s) => writeFileSync(join(s.home, 'file'), ''),
      more: ['--state-dir', '{home}/file/state'],
      code: 1,
      error: 'TARGET_UNWRITABLE',
    },
    { what: 'a hook that is not there', more: ['--before', '/no/such/program now'], code: 1, error: 'HOOK_FAILED' },
    { what: 'a setting that does not parse', more: ['--lock-wait', '-1s'], code: 78, error: 'SETTINGS' },
    { what: 'an option that there is not', more: ['--keep-hourly', '3'], code: 64, error: 'USAGE' },
  ];
  function makeOpen(directory: string): void {
    mkdirSync(directory);
    chmodSync(directory, 0o777);
  }
  function lay(s: Scene, file: string, content: string): void {
    mkdirSync(s.state, { recursive: true, mode: 0o700 });
    writeFileSync(join(s.state, file), content, { mode: 0o600 });
  }
  test.each(rows)('$what', async ({ make, more: words = [], code, error }) => {
    const s = scene();
    make?.(s);
    const more = words.map((word) => word.replace('{home}', s.home));
    const before = tree(s.home);
    const dry = await s.run(['--dry-run', '--json', ...more]);
    expect([dry.code, dry.json.exitCode, dry.json.error?.code], dry.stderr).toEqual([code, code, error]);
    expect(problemsIn(dry.json, 'runId' in dry.json ? shapes.run : shapes.failureDocument)).toEqual([]);
    expect(tree(s.home)).toEqual(before);
    const check = await s.ask('check', [s.source, '--json', ...more]);
    if (code === 1) expect([check.code, check.json.problems?.map((p) => p.code)], check.stderr).toEqual([1, expect.arrayContaining([error])]);
    expect(tree(s.home)).toEqual(before);
    const real = await s.run(['--json', ...more]);
    expect([real.code, real.json.error?.code], real.stderr).toEqual([code, error]);
    // Blamed is the setting that is to be changed.
    if (words.includes('--state-dir'))
      expect([dry.json.error?.hint, real.json.error?.hint]).toEqual([expect.stringContaining('--state-dir'), expect.stringContaining('--state-dir')]);
  });

  test('a second lock that cannot be had is remarked on, as in a real run', async () => {
    const s = scene();
    lay(s, 'app.lock.db', 'something');
    const more = ['--state-dir', join(s.home, 'state'), '--json'];
    const dry = await s.run(['--dry-run', ...more]);
    const check = await s.ask('check', [s.source, ...more]);
    const real = await s.run(more);
    const remark = { code: 'TARGET_NETWORK_FS', severity: 'warning', message: expect.stringContaining(`${s.state} cannot be locked`) as string };
    for (const [what, { code, json, stderr }] of Object.entries({ dry, real })) {
      expect([what, code, json.warnings], stderr).toEqual([what, 0, expect.arrayContaining([remark])]);
    }
    expect([check.code, check.json.problems], check.stderr).toEqual([0, expect.arrayContaining([remark])]);
  });

  test('all of them are told, the gravest first', async () => {
    const s = scene();
    writeFileSync(s.to, '');
    renameSync(s.source, `${s.source}.gone`);
    const dry = await s.run(['--dry-run', '--json']);
    expect([dry.json.error?.code, dry.json.warnings?.map((w) => [w.code, w.severity])]).toEqual(['TARGET_UNWRITABLE', [['SOURCE_MISSING', 'critical']]]);
    expect(dry.stderr).toMatch(/error TARGET_UNWRITABLE/);
    expect(dry.stderr).toMatch(/critical SOURCE_MISSING/);
  });

  test('nor would a copy go that is a little ahead of the clock: it is the newest', async () => {
    const s = scene();
    const ahead = plant(s.to, baseAt(ago(-HOUR / 2)), { configuredPath: s.source, realPath: s.source });
    const dry = await s.run(['--dry-run', '--json', '--keep-last', '1']);
    expect([dry.code, dry.json.pruned, dry.json.kept?.map((k) => k.file)], dry.stderr).toEqual([0, [], [ahead]]);
    const real = await s.run(['--json', '--keep-last', '1']);
    expect([real.code, real.json.pruned], real.stderr).toEqual([0, []]);
  });

  test('and what a copy ahead of the clock means for pruning', async () => {
    const s = scene();
    plantDaily(s.to, 3, DAY, { configuredPath: s.source, realPath: s.source });
    const ahead = plant(s.to, baseAt(ago(-3 * HOUR)), { configuredPath: s.source, realPath: s.source });
    const dry = await s.run(['--dry-run', '--json', '--keep-last', '1']);
    expect([dry.code, dry.json.pruned, dry.json.kept?.length]).toEqual([0, [], 4]);
    expect(dry.json.warnings?.find((w) => w.code === 'CLOCK')).toMatchObject({ severity: 'critical', message: expect.stringContaining(ahead) });
  });
});

test('prune --dry-run in text: what would go, what would stay, and why', async () => {
  const s = scene(null);
  const [first, second, third] = plantDaily(s.to, 3);
  const dry = await s.ask('prune', ['-n', '--keep-last', '2']);
  expect([dry.code, dry.stderr]).toEqual([0, '']);
  expect(linesOf(dry.stdout)).toEqual([
    `would remove ${third}: no keep rule asks for it`,
    `would keep ${first}: newest good copy; last #1`,
    `would keep ${second}: last #2`,
  ]);
  expect(dataFiles(s.to)).toHaveLength(3);
  const json = await s.ask('prune', ['-n', '--keep-last', '2', '--json']);
  expect(problemsIn(json.json, shapes.run)).toEqual([]);
  expect(json.json).toMatchObject({ command: 'prune', name: 'app', dryRun: true, exitCode: 0, source: null, copy: null, pruned: [{ file: third }] });
});

test('a database that is not ours to open is looked at by its header alone', async () => {
  const s = scene(null);
  makeDatabase(s.source, { journal: 'wal' });
  const holder = await useDatabase(s.source, ['PRAGMA locking_mode = EXCLUSIVE', 'BEGIN EXCLUSIVE', 'INSERT INTO beat (at) VALUES (1)']);
  const dry = await s.run(['-n', '--json'], { deadlineMs: 4000 });
  expect([dry.code, dry.hung], dry.stderr).toEqual([0, false]);
  await holder.crash();
});

describe('the journal of a crash', () => {
  test('is told beforehand', async () => {
    const s = scene(null);
    await makeHotJournal(s.source);
    const before = tree(s.home);
    const dry = await s.run(['--dry-run', '--json']);
    expect([dry.code, dry.json.error?.code]).toEqual([1, 'SOURCE_HOT_JOURNAL']);
    const check = await dbbackup(['check', s.source, '--to', s.to, '--json']);
    expect([check.code, check.json.problems?.map((p) => `${p.severity} ${p.code}`)]).toEqual([1, expect.arrayContaining(['critical SOURCE_HOT_JOURNAL'])]);
    expect(tree(s.home)).toEqual(before);
  });

  test.each([
    ['of a transaction that is under way', ['PRAGMA cache_size = 5', 'BEGIN IMMEDIATE', 'UPDATE invoice SET note = note || 1'], true],
    ['that an application keeps', ['PRAGMA journal_mode = PERSIST', 'UPDATE invoice SET note = note || 1'], false],
  ])('is not a journal %s', async (_, statements, begun) => {
    const s = scene(null);
    makeDatabase(s.source, { journal: 'delete', bytes: 400_000 });
    const user = await useDatabase(s.source, statements);
    // Its first byte says whether there is something in it to be rolled back.
    expect(readFileSync(`${s.source}-journal`)[0] !== 0).toBe(begun);
    const dry = await s.run(['--dry-run', '--json']);
    expect([dry.code, dry.json.error], dry.stderr).toEqual([0, null]);
    await user.stop();
  });

  const noStrace = cannot('strace');
  if (noStrace) process.stderr.write(`not run here: a list of locks that cannot be read: ${noStrace}\n`);

  describe.skipIf(noStrace)('where nobody may see who holds which lock', () => {
    const through = ['strace', '-f', '-qq', '-o', '/dev/null', '-P', '/proc/locks', '-e', 'trace=openat', '-e', 'inject=openat:error=EACCES', '--'];

    test('is not a journal of a transaction that is under way', async () => {
      const s = scene(null);
      makeDatabase(s.source, { journal: 'delete', bytes: 400_000 });
      const user = await useDatabase(s.source, ['PRAGMA cache_size = 5', 'BEGIN IMMEDIATE', 'UPDATE invoice SET note = note || 1']);
      const dry = await s.run(['--dry-run', '--json'], { through });
      expect([dry.code, dry.json.error], dry.stderr).toEqual([0, null]);
      await user.stop();
    });

    test('is told by the run itself, which SQLite tells', async () => {
      const s = scene(null);
      await makeHotJournal(s.source);
      const before = tree(dirname(s.source));
      const dry = await s.run(['--dry-run', '--json'], { through });
      expect([dry.code, dry.json.error], dry.stderr).toEqual([0, null]);
      const run = await s.run(['--json'], { through });
      expect([run.code, run.json.error?.code, dataFiles(s.to)], run.stderr).toEqual([1, 'SOURCE_HOT_JOURNAL', []]);
      expect(tree(dirname(s.source))).toEqual(before);
    });
  });
});

describe('a source that was cut short', () => {
  test('is told beforehand, as far as its header shows it', async () => {
    const s = scene({ journal: 'delete' });
    truncateSync(s.source, 6000);
    const dry = await s.run(['--dry-run', '--json']);
    expect([dry.code, dry.json.error?.code, dry.json.dryRun]).toEqual([1, 'SOURCE_CORRUPT', true]);
    expect(dry.json.error?.message).toMatch(/bytes shorter than its header says/);
    const check = await dbbackup(['check', s.source, '--to', s.to, '--json']);
    expect([check.code, check.json.ok, check.json.problems?.map((p) => `${p.severity} ${p.code}`)]).toEqual([
      1,
      false,
      expect.arrayContaining(['critical SOURCE_CORRUPT']),
    ]);
    expect((await s.run(['--json'])).json.error?.code).toBe('SOURCE_CORRUPT');
  });

  test.each(['wal', 'delete', 'memory'] as const)('is not said of one that an application has open and writes to (%s mode)', async (journal) => {
    const s = scene({ journal: journal === 'wal' ? 'wal' : 'delete' });
    const writer = await useDatabase(s.source, ['PRAGMA busy_timeout = 10000', `PRAGMA journal_mode = ${journal}`], {
      loop: 'INSERT INTO setting VALUES (randomblob(16), randomblob(9000))',
      beatMs: 1,
    });
    for (let i = 0; i < 5; i++) expect((await s.run(['--dry-run', '--json'])).code).toBe(0);
    expect((await writer.stop()).failed).toBe(0);
  });
});

test('paths are absolute in the settings that check shows', async () => {
  const s = scene();
  mkdirSync(join(s.home, 'inc'));
  const check = await dbbackup(['check', s.source, '--to', s.to, '--metrics-file', 'm.prom', '--include', 'inc', '--json'], { cwd: s.home });
  const settings = (check.json as { settings?: { name: string; value: string }[] }).settings ?? [];
  const shownAs = (name: string): string | undefined => settings.find((setting) => setting.name === name)?.value;
  expect([shownAs('metrics-file'), shownAs('include')]).toEqual([join(s.home, 'm.prom'), join(s.home, 'inc')]);
});
