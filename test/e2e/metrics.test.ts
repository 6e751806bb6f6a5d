/** The metrics file: written whole at the end of every acting command, also of one that failed, and never in its way. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { cannot, dbbackup, type Result, startCommand, until, useDatabase } from '../support/cli.js';
import { ago, baseAt, dataFiles, HOUR, modeOf, plant, type Scene, scene, tree } from './scene.js';

const noPromtool = cannot('promtool');
if (noPromtool) console.log(`skipped: ${noPromtool}`);

interface Measured extends Scene {
  readonly file: string;
  readonly flag: readonly string[];
}

function measured(): Measured {
  const s = scene({ journal: 'wal' });
  mkdirSync(join(s.home, 'textfile'));
  const file = join(s.home, 'textfile/app.prom');
  return { ...s, file, flag: ['--metrics-file', file] };
}

/** The values of the file, by metric and labels without the name. */
function values(s: Measured): Record<string, number> {
  return Object.fromEntries(
    readFileSync(s.file, 'utf8')
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'))
      .map((line) => {
        const [, metric, labels, value] = /^dbbackup_(\w+)\{name="app",?(.*)\} (\S+)$/.exec(line) ?? [];
        return [`${metric}${labels ? `{${labels}}` : ''}`, Number(value)];
      }),
  );
}

const status = (s: Measured): string[] =>
  Object.entries(values(s))
    .filter(([key, value]) => key.startsWith('last_run_status') && value === 1)
    .map(([key]) => /status="(\w+)"/.exec(key)?.[1] ?? '');
const warnings = (r: Result): string[] => (r.json.warnings ?? []).map((w) => w.code);
const seconds = (time: string | null | undefined): number => Date.parse(time ?? '') / 1000;

describe('the metrics file', () => {
  test('tells of a run that went well', async () => {
    const s = measured();
    const run = await s.run([...s.flag, '--json']);
    expect([run.code, run.json.warnings]).toEqual([0, []]);
    const copy = run.json.copy;
    const found = values(s);
    expect(found).toMatchObject({
      last_run_timestamp_seconds: seconds(run.json.finishedAt),
      last_success_timestamp_seconds: seconds(run.json.finishedAt),
      'runs_total{command="run",status="ok"}': 1,
      'runs_total{command="run",status="failed"}': 0,
      newest_good_copy_timestamp_seconds: seconds(copy?.createdAt),
      newest_good_copy_size_bytes: copy?.sizeBytes,
      max_age_seconds: 26 * 3600,
      copies: 1,
      copies_size_bytes: copy?.sizeBytes,
      undelivered_messages: 0,
    });
    for (const stage of run.json.stages ?? []) expect(found[`last_run_stage_duration_seconds{stage="${stage.name}"}`]).toBe(stage.durationMs / 1000);
    expect(found['free_bytes']).toBeGreaterThan(0);
    expect(status(s)).toEqual(['ok']);
    // node_exporter runs as another user, and nothing but the file is there.
    expect(modeOf(s.file)).toBe('644');
    expect(readdirSync(join(s.home, 'textfile'))).toEqual(['app.prom']);
  });

  test('tells of a run that failed, and keeps the time of the last success', async () => {
    const s = measured();
    const good = await s.run([...s.flag, '--json']);
    renameSync(s.source, `${s.source}.gone`);
    const failed = await s.run([...s.flag, '--json']);
    expect(failed.code).toBe(1);
    expect(status(s)).toEqual(['failed']);
    expect(values(s)).toMatchObject({
      last_run_timestamp_seconds: seconds(failed.json.finishedAt),
      last_success_timestamp_seconds: seconds(good.json.finishedAt),
      'runs_total{command="run",status="ok"}': 1,
      'runs_total{command="run",status="failed"}': 1,
      'problems{code="SOURCE_MISSING",severity="critical"}': 1,
      copies: 1,
    });
  });

  test('is written by prune, verify, restore and guard, and does not take their end for that of a run', async () => {
    const s = measured();
    const run = await s.run([...s.flag, '--json']);
    const of = (command: string, result: string): number | undefined => values(s)[`runs_total{command="${command}",status="${result}"}`];
    for (const [command, words, code, result] of [
      ['prune', [], 0, 'ok'],
      ['verify', [], 0, 'ok'],
      ['restore', ['-o', join(s.home, 'new.db')], 0, 'ok'],
      ['guard', ['--database', s.source, '--', 'false'], 1, 'rolled_back'],
    ] as const) {
      rmSync(s.file);
      const flags = [...s.flag, '--name', 'app', '--json'];
      const done = await dbbackup([command, '--to', s.to, ...flags, ...words]);
      expect([command, done.code, of(command, result)]).toEqual([command, code, 1]);
      expect(values(s)['last_run_timestamp_seconds']).toBe(seconds(run.json.finishedAt));
      expect(status(s)).toEqual(['ok']);
    }
    // What a command found that is no run is told beside what the last run found.
    expect(values(s)['problems{code="COMMAND_FAILED",severity="critical"}']).toBe(1);
    const [file = ''] = dataFiles(s.to);
    truncateSync(join(s.to, file), 4096);
    expect((await s.ask('verify', [...s.flag, '--name', 'app', file])).code).toBe(1);
    expect(values(s)['problems{code="COPY_BAD",severity="critical"}']).toBe(1);
    expect(of('verify', 'failed')).toBe(1);
  });

  test('is brought up to date by status --notify, with what status found, and left alone by status', async () => {
    const s = measured();
    plant(s.to, baseAt(ago(30 * HOUR)));
    await s.ask('prune', [...s.flag, '--name', 'app']);
    const before = tree(s.home);
    expect((await s.ask('status', [...s.flag, '--name', 'app'])).code).toBe(1);
    expect(tree(s.home)).toEqual(before);
    rmSync(s.file);
    expect((await s.ask('status', [...s.flag, '--name', 'app', '--notify'])).code).toBe(1);
    expect(values(s)).toMatchObject({ 'problems{code="COPY_STALE",severity="critical"}': 1, copies: 1, 'runs_total{command="prune",status="ok"}': 1 });
    // There was no run, and nothing is made up.
    expect(Object.keys(values(s)).filter((key) => /^last_/.test(key))).toEqual([]);
  });

  test('counts messages that wait', async () => {
    const s = measured();
    renameSync(s.source, `${s.source}.gone`);
    mkdirSync(s.to, { mode: 0o700 });
    // Nobody listens on port 9.
    const failed = await s.run(s.flag, { env: { DBBACKUP_SMTP_URL: 'smtp://127.0.0.1:9', DBBACKUP_MAIL_TO: 'ops@example.org' } });
    expect([failed.code, values(s)['undelivered_messages']]).toEqual([1, 1]);
    expect(values(s)['problems{code="NOTIFY_FAILED",severity="warning"}']).toBe(1);
  });

  test('is left to the run that holds the lock', async () => {
    const s = measured();
    await s.run(s.flag);
    const before = readFileSync(s.file, 'utf8');
    const holder = await useDatabase(join(s.state, 'app.lock.db'), ['BEGIN IMMEDIATE']);
    expect((await s.run(s.flag)).code).toBe(75);
    expect(readFileSync(s.file, 'utf8')).toBe(before);
    await holder.stop();
    // Nor is it the last run for those that come later.
    await s.ask('prune', [...s.flag, '--name', 'app']);
    expect(status(s)).toEqual(['ok']);
  });

  test('is not written by dry runs', async () => {
    const s = measured();
    await s.run([]);
    expect((await s.run([...s.flag, '-n'])).code).toBe(0);
    expect(readdirSync(join(s.home, 'textfile'))).toEqual([]);
  });

  test('tells of the copies where there is no history to read', async () => {
    const s = measured();
    await s.run([]);
    writeFileSync(join(s.state, 'history.db'), 'no history');
    const run = await s.run([...s.flag, '--json']);
    expect([run.code, warnings(run)]).toEqual([0, ['STATE_UNWRITABLE']]);
    expect(values(s)).toMatchObject({ copies: 2, last_success_timestamp_seconds: seconds(run.json.finishedAt) });
    expect(Object.keys(values(s)).filter((key) => key.startsWith('runs_total'))).toEqual([]);
  });
});

describe('a metrics file that cannot be written', () => {
  test.each([
    ['a directory that is missing', (s: Measured) => rmSync(join(s.home, 'textfile'), { recursive: true }), /no such file or directory/],
    ['a directory in its place', (s: Measured) => mkdirSync(s.file), /EISDIR|is a directory/],
  ])('is a warning, in the record too: %s', async (_, spoil, why) => {
    const s = measured();
    spoil(s);
    const run = await s.run([...s.flag, '--json']);
    expect([run.code, run.json.status, warnings(run)]).toEqual([0, 'ok', ['STATE_UNWRITABLE']]);
    expect(run.json.warnings?.[0]?.message).toMatch(why);
    expect(run.json.warnings?.[0]?.message).toContain(s.file);
    const recorded = (await s.ask('history', ['--json'])).json.runs?.[0];
    expect(recorded?.warnings).toEqual(run.json.warnings);
    // Nothing is made for it, and nothing is left beside it.
    expect(tree(s.home).filter((line) => line.includes('app.prom.'))).toEqual([]);
  });

  test('with another ending is a settings problem, and check sees a missing directory', async () => {
    const s = measured();
    const wrong = await s.run(['--metrics-file', join(s.home, 'textfile/app.txt'), '--json']);
    expect([wrong.code, wrong.json.error?.message]).toEqual([78, expect.stringContaining('must end in .prom')]);
    expect((await s.run(['--metrics-file', join(s.home, 'textfile/.prom'), '--json'])).code).toBe(78);
    const missing = await dbbackup(['check', s.source, '--to', s.to, '--metrics-file', join(s.home, 'nowhere/app.prom'), '--json']);
    expect(missing.json.problems?.filter((p) => p.code === 'STATE_UNWRITABLE').map((p) => p.message)).toEqual([expect.stringContaining(`${s.home}/nowhere`)]);
    const there = await dbbackup(['check', s.source, '--to', s.to, ...s.flag, '--json']);
    expect(there.json.problems?.filter((p) => p.code === 'STATE_UNWRITABLE')).toEqual([]);
  });

  test('that is shared by two names is a warning each time it changes hands', async () => {
    const s = measured();
    const run = (name: string): Promise<Result> => s.run([...s.flag, '--name', name, '--json']);
    expect(warnings(await run('app'))).toEqual([]);
    expect(warnings(await run('app'))).toEqual([]);
    const other = await run('other');
    expect([other.code, warnings(other), other.json.warnings?.[0]?.message]).toEqual([
      0,
      ['STATE_UNWRITABLE'],
      expect.stringContaining('held the metrics of app'),
    ]);
    expect(readFileSync(s.file, 'utf8')).toContain('{name="other"}');
  });

  test('is replaced and not followed, and what a killed process left beside it goes', async () => {
    const s = measured();
    const other = join(s.home, 'other');
    writeFileSync(other, 'precious');
    symlinkSync(other, s.file);
    const dead = spawnSync('true').pid;
    writeFileSync(`${s.file}.${dead}`, 'half');
    writeFileSync(`${s.file}.${process.pid}`, 'of a living process');
    writeFileSync(`${s.file}.old`, 'not ours');
    expect((await s.run(s.flag)).code).toBe(0);
    expect(readFileSync(other, 'utf8')).toBe('precious');
    expect(values(s)['copies']).toBe(1);
    expect(readdirSync(join(s.home, 'textfile'))).toEqual(['app.prom', `app.prom.${process.pid}`, 'app.prom.old'].sort());
  });
});

test('a reader sees the old file or the new one, never a part', async () => {
  const s = measured();
  await s.run(s.flag);
  const script = `
    const fs = require('fs'), [, file, directory] = process.argv;
    let reads = 0, torn = 0;
    const look = () => {
      for (let i = 0; i < 200; i++) {
        const text = fs.readFileSync(file, 'utf8');
        reads++;
        if (!text.startsWith('# HELP ') || !text.includes('undelivered_messages{') || !text.endsWith('\\n')) torn++;
        if (fs.readdirSync(directory).some((f) => f.endsWith('.prom') && f !== 'app.prom')) torn++;
      }
      if (fs.existsSync(file + '.stop')) console.log(JSON.stringify({ reads, torn }));
      else setImmediate(look);
    };
    console.error('reading');
    look();`;
  const reader = startCommand([process.execPath, '-e', script, s.file, join(s.home, 'textfile')]);
  await until('the reader reads', () => reader.stderr().includes('reading'));
  // Beside one another, since verify holds no lock.
  for (let i = 0; i < 3; i++) await Promise.all([s.run(s.flag), s.ask('verify', [...s.flag, '--name', 'app'])]);
  writeFileSync(`${s.file}.stop`, '');
  const { reads, torn } = JSON.parse((await reader.result).stdout) as { reads: number; torn: number };
  expect(reads).toBeGreaterThan(1000);
  expect(torn).toBe(0);
});

test.skipIf(noPromtool)('promtool finds nothing wrong with what a run wrote, after trouble of all kinds (needs promtool)', async () => {
  const s = measured();
  const db = new Database(s.source);
  db.pragma('ignore_check_constraints = on');
  db.prepare('UPDATE customer SET born = 1 WHERE id = (SELECT min(id) FROM customer)').run();
  db.close();
  const run = await s.run([...s.flag, '--json', '--upload', `file://${s.home}/nowhere`]);
  expect([run.code, run.json.status]).toEqual([3, 'incomplete']);
  const { status: code, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], { input: readFileSync(s.file), encoding: 'utf8' });
  expect({ code, said: stdout + stderr }).toEqual({ code: 0, said: '' });
  expect(status(s)).toEqual(['incomplete']);
});
