/** Rules that look at more than one night or at a whole disk, end to end: on real file systems, with the clock moved. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { baseOf } from '../../src/catalog.js';
import type { RunRecord } from '../../src/records.js';
import { mountTmpfs } from '../fault/mounts.js';
import { cannot, damage, dbbackup, makeDatabase, type Result, useDatabase, wrap } from '../support/cli.js';
import { startHttp } from '../support/http.js';
import { manifestFileOf } from '../support/manifest.js';
import { ago, DAY, dataFiles, HOUR, type Scene, scene, sceneWithCopy } from './scene.js';

const told = (run: Result): string[] => (run.json.warnings ?? []).map((w) => `${w.severity} ${w.code}`);

test.skipIf(cannot('faketime') !== null)('a destination that lags is a warning, and critical when its newest copy is older than max-age', async () => {
  const s = scene({ journal: 'wal' });
  const disk = join(s.home, 'disk');
  mkdirSync(disk);
  const run = (after: string): Promise<Result> =>
    s.run(['--upload', `file://${disk}`, '--json'], { through: wrap.clock(after), env: { DBBACKUP_MAX_AGE: '26h' } });
  expect((await run('+0h')).code).toBe(0);
  rmSync(disk, { recursive: true });
  const [soon, late] = [await run('+24h'), await run('+48h')];
  expect([soon.code, told(soon), late.code, told(late)]).toEqual([3, ['warning DESTINATION_BEHIND'], 3, ['critical DESTINATION_BEHIND']]);
  expect(late.json.warnings?.[0]?.message).toContain('disk is behind: its newest copy is 2 d 0 h old');
  const status = await s.ask('status', ['--json'], { through: wrap.clock('+48h') });
  expect(status.json.problems?.map((p) => `${p.severity} ${p.code}`)).toContain('critical DESTINATION_BEHIND');
  // A run that had nothing to do has not looked, and takes nothing back.
  const skipped = await s.run(['--upload', `file://${disk}`, '--if-older-than', '2d', '--json'], { through: wrap.clock('+49h') });
  expect([skipped.code, skipped.json.status]).toEqual([0, 'skipped']);
  const then = await s.ask('status', ['--json'], { through: wrap.clock('+49h') });
  expect(then.json.problems?.map((p) => `${p.severity} ${p.code}`)).toContain('critical DESTINATION_BEHIND');
});

test('a WAL that grows by more than the database while it is copied is a warning', async () => {
  const s = scene({ journal: 'wal' });
  const app = await useDatabase(s.source, ['PRAGMA wal_autocheckpoint = 0'], {
    loop: 'INSERT INTO setting VALUES (randomblob(20), zeroblob(300000))',
    beatMs: 1,
  });
  const run = await s.run(['--json']);
  expect((await app.stop()).failed).toBe(0);
  expect([run.code, run.json.warnings?.find((w) => w.code === 'WAL_GREW')?.message], run.stderr).toEqual([
    0,
    expect.stringMatching(/^the WAL grew by .* during the snapshot, more than the database \(/),
  ]);
});

test.skipIf(cannot('root', 'mount') !== null)('a disk that fills up: told by its trend, and when there is room for fewer than three more copies', async () => {
  const s = scene(null);
  makeDatabase(s.source, { bytes: 1_000_000 });
  const to = join(mountTmpfs(24_000_000), 'to');
  const run = (): Promise<Result> => dbbackup(['run', s.source, '--to', to, '--json']);
  const fill = (name: string, bytes: number): void => writeFileSync(join(to, name), Buffer.alloc(bytes));
  const first = await run();
  expect([first.code, told(first)]).toEqual([0, []]);
  // As if that had been the fourth night in which two megabytes were written besides.
  const db = new Database(join(to, '.dbbackup/history.db'));
  for (let night = 1; night <= 4; night++)
    db.prepare(
      `INSERT INTO runs(run_id, name, status, dry_run, process, record) SELECT run_id || :night, name, status, dry_run, process,
         json_set(record, '$.runId', run_id || :night, '$.startedAt', :at, '$.freeBytes', (record ->> '$.freeBytes') + :more) FROM runs LIMIT 1`,
    ).run({ night, at: ago((5 - night) * DAY).toISOString(), more: 2_000_000 * (5 - night) });
  db.prepare('UPDATE runs SET seq = seq + 10 WHERE run_id = ?').run(first.json.runId);
  db.close();
  const trend = await run();
  expect([trend.code, told(trend), trend.json.warnings?.[0]?.message]).toEqual([
    0,
    ['warning SPACE_TREND'],
    expect.stringMatching(/^at the present trend the backup directory is full in \d+ days/),
  ]);
  fill('filler', (trend.json.freeBytes ?? 0) - 3_500_000);
  const low = await run();
  expect([low.code, told(low), low.json.warnings?.[0]?.message]).toEqual([0, ['warning SPACE_LOW'], expect.stringMatching(/room for [12] more cop/)]);
});

test('messages of channels that are not set any more: shown by status, and gone when they are old, also where no channel is left', async () => {
  const { s } = await sceneWithCopy({ journal: 'wal' });
  const server = await startHttp({ answer: 503 });
  renameSync(s.source, `${s.source}.gone`);
  await s.run([], { env: { DBBACKUP_SLACK_WEBHOOK: `${server.url}/x` } });
  await server.close();
  renameSync(`${s.source}.gone`, s.source);
  const waiting = async (): Promise<string[]> =>
    ((await s.ask('status', ['--json', '--name', 'app'])).json.problems ?? []).filter((p) => p.code === 'UNDELIVERED').map((p) => p.message);
  expect(await waiting()).toEqual(['1 message could not be delivered yet (slack 1, which is not set any more)']);
  expect(told(await s.run(['--json']))).toEqual([]);
  expect(await waiting()).toHaveLength(1);
  const outbox = join(s.state, 'outbox');
  const [file = ''] = readdirSync(outbox).filter((f) => f.endsWith('.json'));
  writeFileSync(
    join(outbox, file),
    readFileSync(join(outbox, file), 'utf8').replace(/"createdAt": "[^"]*"/, `"createdAt": "${ago(15 * 24 * HOUR).toISOString()}"`),
  );
  const run = await s.run(['--json']);
  expect([run.code, run.json.warnings]).toEqual([
    0,
    [{ code: 'NOTIFY_FAILED', severity: 'critical', message: expect.stringMatching(/SOURCE_MISSING.*\(slack\) is given up, since it is older than 14 days$/) }],
  ]);
  expect([existsSync(join(outbox, file)), await waiting()]).toEqual([false, []]);
});

describe('copies that are gone, and that no prune has removed', () => {
  const gone = (run: Result): (string | undefined)[] => (run.json.warnings ?? []).flatMap((w) => (w.code === 'COPIES_GONE' ? [w.severity, w.message] : []));
  const nights = async (s: Scene, count: number): Promise<string[]> => {
    for (let night = 0; night < count; night++) expect((await s.run(['--keep-last', '3', '--json'])).code).toBe(0);
    return dataFiles(s.to);
  };

  test('all of them: a critical remark that cron hears, and that status has until the next night', async () => {
    const s = scene({ journal: 'wal' });
    const files = await nights(s, 3);
    for (const file of files) rmSync(join(s.to, file));
    const run = await s.run(['--quiet']);
    expect([run.code, run.stdout]).toEqual([0, '']);
    expect(run.stderr).toMatch(/^dbbackup: critical COPIES_GONE: all copies that the run of \S+ had kept are gone \(app-.*\); dbbackup has not removed them/m);
    const problems = async (): Promise<(string | undefined)[]> => (await s.ask('status', ['--json'])).json.problems?.map((p) => p.code) ?? [];
    expect(await problems()).toEqual(['COPIES_GONE']);
    expect(gone(await s.run(['--json']))).toEqual([]);
    expect(await problems()).toEqual([]);
  });

  /** Records as an older version has written them: why a copy stays is said in words alone. */
  function asOlder(s: Scene, file: string, reason: string): void {
    const db = new Database(join(s.state, 'history.db'));
    const rows = db.prepare<[], { seq: number; record: string }>('SELECT seq, record FROM runs').all();
    for (const { seq, record } of rows) {
      const { kept, ...rest } = JSON.parse(record) as RunRecord;
      const older = kept.map((copy) => ({ file: copy.file, reasons: copy.file === file ? [reason] : copy.reasons }));
      db.prepare('UPDATE runs SET record = ? WHERE seq = ?').run(JSON.stringify({ ...rest, kept: older }), seq);
    }
    db.close();
  }

  test.each([
    ['last 2', true],
    ['newest good copy', true],
    ['before-guard: kept 30 days', true],
    ['was to be removed: no keep rule asks for it', false],
    ['pruning waits: app-20991231T000000Z.db is dated ahead of the clock', false],
    ['bad: left for a person to look at', false],
    ['unverified: not provably made by dbbackup', false],
    ['suspect: the newest 3 are kept for a rescue', false],
  ])('one that an older version kept, which said no more than "%s": missed %s', async (reason, missed) => {
    const { s, file } = await sceneWithCopy();
    expect((await s.run()).code).toBe(0);
    asOlder(s, file, reason);
    for (const one of [file, manifestFileOf(baseOf(file))]) rmSync(join(s.to, one));
    const run = await s.run(['--json']);
    expect([run.code, gone(run)], run.stderr).toEqual([0, missed ? ['warning', expect.stringContaining(`is gone (${file})`)] : []]);
  });

  test.skipIf(cannot('faketime') !== null)('disks that take turns, with one state directory for all of them, have lost nothing', async () => {
    const s = scene({ journal: 'wal' });
    const state = join(s.home, 'state');
    const disks = [join(s.home, 'one'), join(s.home, 'two')];
    for (const night of [0, 1, 2, 3]) {
      const through = wrap.clock(`+${night}d`);
      const run = await dbbackup(['run', s.source, '--to', disks[night % 2] ?? '', '--state-dir', state, '--json'], { through });
      expect([run.code, gone(run)], run.stderr).toEqual([0, []]);
    }
  });

  test('a suspect one that a person removes when the database is mended: nothing to say', async () => {
    const s = scene({ journal: 'delete' });
    await nights(s, 2);
    // More free pages than there are.
    damage(s.source, 36, Buffer.from([0, 0, 0, 5]));
    const suspect = await s.run(['--json']);
    expect([suspect.code, suspect.json.copy?.status]).toEqual([1, 'suspect']);
    damage(s.source, 36, Buffer.from([0, 0, 0, 0]));
    for (const file of [suspect.json.copy?.file ?? '', suspect.json.copy?.manifest ?? '']) rmSync(join(s.to, file));
    const run = await s.run(['--json']);
    expect([run.code, gone(run)], run.stderr).toEqual([0, []]);
  });

  test('an old one: a remark; none of what pruning removed, or a person after verify had called it bad', async () => {
    const s = scene({ journal: 'wal' });
    const [, middle = '', oldest = ''] = await nights(s, 5);
    rmSync(join(s.to, oldest));
    rmSync(join(s.to, manifestFileOf(baseOf(oldest))));
    const run = await s.run(['--keep-last', '3', '--json']);
    expect(gone(run)).toEqual(['warning', expect.stringContaining(`1 copy that the run of`)]);
    expect(gone(run)[1]).toContain(`is gone (${oldest})`);
    expect((await s.ask('prune', ['--keep-last', '3', '--json'])).json.pruned).toEqual([]);
    damage(join(s.to, middle), 5000, Buffer.from('not what was there'));
    expect((await s.ask('verify', ['--all'])).code).toBe(1);
    rmSync(join(s.to, middle));
    rmSync(join(s.to, manifestFileOf(baseOf(middle))));
    expect(gone(await s.run(['--keep-last', '1', '--json']))).toEqual([]);
    const pruned = await s.ask('prune', ['--keep-last', '1', '--json']);
    expect([pruned.code, gone(await s.run(['--json']))]).toEqual([0, []]);
  });
});
