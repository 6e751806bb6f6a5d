/** The log: JSON lines, a file a day, kept as long as was asked for; and never a reason for a run to fail. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { makeFunctionIndexDatabase } from '../support/cli.js';
import { ago, DAY, dataFiles, linesOf, modeOf, plantDaily, type Scene, scene } from './scene.js';

interface Line {
  readonly time: string;
  readonly level: string;
  readonly message: string;
  readonly runId: string;
  readonly name: string;
  readonly command: string;
  readonly stage?: string;
  readonly code?: string;
  readonly hint?: string;
  readonly durationMs?: number;
}

const dayOf = (at: Date): string => at.toISOString().slice(0, 10);
const fileOf = (at: Date): string => `dbbackup-${dayOf(at)}.log`;
/** All lines of all files, each a JSON document. */
const lines = (directory: string): Line[] =>
  readdirSync(directory)
    .filter((f) => f.endsWith('.log'))
    .sort()
    .flatMap((f) => linesOf(readFileSync(join(directory, f), 'utf8')))
    .map((l) => JSON.parse(l) as Line);
const log = (s: Scene): string => join(s.state, 'log');

describe('the log', () => {
  test('has a line for the beginning, each stage and the end of a run, in order and complete', async () => {
    const s = scene();
    const first = await s.run(['--json']);
    const said = lines(log(s));
    expect(said.map((l) => l.stage ?? l.message.replace(/:.*/, ''))).toEqual([
      'run begins',
      'inspect',
      expect.stringContaining('is not in WAL mode'),
      'snapshot',
      'verify',
      'publish',
      'prune',
      'ends',
    ]);
    for (const l of said) {
      expect(l).toMatchObject({ runId: first.json.runId, name: 'app', command: 'run' });
      expect(l.time).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
      expect(['info', 'warn', 'error']).toContain(l.level);
    }
    expect(said.map((l) => l.time)).toEqual(said.map((l) => l.time).toSorted());
    expect(said.at(-1)?.message).toMatch(/^ends: ok, exit 0/);
    for (const stage of ['snapshot', 'verify', 'publish', 'prune']) expect(said.find((l) => l.stage === stage)?.durationMs).toBeTypeOf('number');

    // The next run goes on in the same file; so do prune and a run that fails.
    await s.ask('prune', ['--keep-last', '3', '-q']);
    expect((await s.run(['--name', 'other'])).code).toBe(0);
    const all = lines(log(s));
    expect(all.slice(0, said.length)).toEqual(said);
    expect(new Set(all.map((l) => `${l.command} ${l.name}`))).toEqual(new Set(['run app', 'prune app', 'run other']));
    expect(readdirSync(log(s)).filter((f) => f.endsWith('.log'))).toEqual([fileOf(new Date(first.json.startedAt ?? ''))]);
    expect(modeOf(join(log(s), fileOf(new Date(first.json.startedAt ?? ''))))).toBe('600');
  });

  test('has the error of a run that fails, with its code, stage and hint', async () => {
    const s = scene(null);
    mkdirSync(s.to, { mode: 0o700 });
    const run = await s.run(['--json']);
    expect(run.code).toBe(1);
    const said = lines(log(s));
    expect(said.find((l) => l.code === 'SOURCE_MISSING')).toMatchObject({ level: 'error', message: run.json.error?.message, hint: run.json.error?.hint });
    expect(said.find((l) => l.stage === 'inspect')).toMatchObject({ level: 'error' });
    expect(said.at(-1)?.message).toMatch(/^ends: failed, exit 1/);
  });

  test('has the remarks, and no row of data', async () => {
    const s = scene(null);
    makeFunctionIndexDatabase(s.source, 'delete');
    await s.run(['-q']);
    const said = lines(log(s));
    expect(said.filter((l) => l.level === 'warn').map((l) => l.code)).toEqual(
      expect.arrayContaining(['PAGE_COPY', 'TABLES_UNCHECKED', 'SOURCE_ROLLBACK_MODE']),
    );
    expect(JSON.stringify(said)).not.toContain('Word 7919');
  });

  test('is not written by what only looks, nor by dry runs', async () => {
    const s = scene();
    plantDaily(s.to, 1, DAY, { configuredPath: s.source, realPath: s.source });
    for (const words of [['list'], ['status'], ['history']] as const) await s.ask(words[0]);
    await s.run(['--dry-run']);
    expect(existsSync(s.state)).toBe(false);
  });

  test('goes where log-dir says', async () => {
    const s = scene();
    expect((await s.run(['-q', '--log-dir', join(s.home, 'logs/deep')])).code).toBe(0);
    expect(lines(join(s.home, 'logs/deep')).length).toBeGreaterThan(5);
    expect(existsSync(log(s))).toBe(false);
    expect(modeOf(join(s.home, 'logs/deep'))).toBe('700');
  });
});

describe('log-keep', () => {
  test('removes our files whose last line is older, and nothing else', async () => {
    const s = scene();
    mkdirSync(log(s), { recursive: true, mode: 0o700 });
    chmodSync(s.to, 0o700);
    const days = [1, 2, 3, 4, 5, 40, 400].map((n) => fileOf(ago(n * DAY)));
    const foreign = ['other-2020-01-01.log', 'dbbackup-2020-01-01.log.gz', 'dbbackup-2020-13-01.txt', 'dbbackup-x.log'];
    for (const f of [...days, ...foreign]) writeFileSync(join(log(s), f), '{}\n');
    expect((await s.run(['-q', '--log-keep', '3d'])).code).toBe(0);
    const left = readdirSync(log(s)).filter((f) => !f.startsWith('.'));
    // A file of the day D ends with it: three days ago is still within, four days ago is not.
    expect(left.toSorted()).toEqual([fileOf(new Date()), ...days.slice(0, 3), ...foreign].toSorted());
  });

  test('is 30 days where nobody said', async () => {
    const s = scene();
    mkdirSync(log(s), { recursive: true, mode: 0o700 });
    chmodSync(s.to, 0o700);
    for (const n of [29, 30, 31, 32]) writeFileSync(join(log(s), fileOf(ago(n * DAY))), '{}\n');
    expect((await s.run(['-q'])).code).toBe(0);
    expect(
      readdirSync(log(s))
        .filter((f) => !f.startsWith('.'))
        .toSorted(),
    ).toEqual([fileOf(new Date()), fileOf(ago(29 * DAY)), fileOf(ago(30 * DAY))].toSorted());
  });
});

describe('a log that cannot be written is a warning', () => {
  const rows: readonly (readonly [what: string, make: (directory: string, s: Scene) => void])[] = [
    ['a file in its place', (d) => writeFileSync(d, '')],
    [
      'a link in its place',
      (d, s) => {
        mkdirSync(join(s.home, 'else'));
        symlinkSync(join(s.home, 'else'), d);
      },
    ],
    [
      'a directory that others can write',
      (d) => {
        mkdirSync(d);
        chmodSync(d, 0o777);
      },
    ],
    ["a directory in the place of today's file", (d) => mkdirSync(join(d, fileOf(new Date())), { recursive: true, mode: 0o700 })],
    [
      "a link in the place of today's file",
      (d, s) => {
        mkdirSync(d, { mode: 0o700 });
        symlinkSync(join(s.home, 'victim'), join(d, fileOf(new Date())));
      },
    ],
    ['a path where nothing can be made', () => undefined],
  ];
  test.each(rows)('%s', async (what, make) => {
    const s = scene({ journal: 'wal' });
    const directory = what.startsWith('a path') ? '/proc/nope/log' : join(s.home, 'logs');
    make(directory, s);
    const run = await s.run(['--json', '--log-dir', directory], { deadlineMs: 30_000 });
    expect([run.code, run.hung, run.json.status, run.json.copy?.status], run.stderr).toEqual([0, false, 'ok', 'good']);
    expect(run.json.warnings?.map((w) => [w.code, w.severity])).toEqual([['STATE_UNWRITABLE', 'warning']]);
    expect(run.json.warnings?.[0]?.message).toContain(directory);
    expect(run.stderr).toMatch(/^dbbackup: warning STATE_UNWRITABLE: /m);
    expect(dataFiles(s.to)).toHaveLength(1);
    expect(existsSync(join(s.home, 'victim'))).toBe(false);
    if (existsSync(join(s.home, 'else'))) expect(readdirSync(join(s.home, 'else'))).toEqual([]);
    // The record has it, too; and cron hears of it, since what is not in the log is told nowhere else.
    const history = await s.ask('history', ['--json']);
    expect(history.json.runs?.[0]?.warnings.map((w) => w.code)).toEqual(['STATE_UNWRITABLE']);
    const quiet = await s.run(['-q', '--log-dir', directory]);
    expect([quiet.code, quiet.stdout, linesOf(quiet.stderr)]).toEqual([0, '', [expect.stringMatching(/^dbbackup: warning STATE_UNWRITABLE: /)]]);
    // Who looks beforehand sees it coming.
    for (const look of [await s.run(['--dry-run', '--json', '--log-dir', directory]), await s.ask('check', [s.source, '--json', '--log-dir', directory])]) {
      expect([look.code, [...(look.json.warnings ?? []), ...(look.json.problems ?? [])].map((w) => w.code)]).toEqual([
        0,
        expect.arrayContaining(['STATE_UNWRITABLE']),
      ]);
    }
  });
});
