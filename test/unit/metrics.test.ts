/** The text of the metrics file, the numbers behind its counters, and the alert rules that are shipped for it. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { History, historyPath } from '../../src/history.js';
import { type MetricsFacts, render } from '../../src/metrics.js';
import type { CommandName, RunRecord, RunStatus } from '../../src/records.js';
import { cannot, ROOT, tempDirectory } from '../support/cli.js';
import { recordOf } from '../support/records.js';

const noPromtool = cannot('promtool');
if (noPromtool) console.log(`skipped: ${noPromtool}`);

const FULL: MetricsFacts = {
  name: 'app',
  maxAgeMs: 93_600_000,
  lastRun: {
    at: Date.parse('2026-11-21T03:17:04.250Z'),
    status: 'incomplete',
    stages: [
      { name: 'snapshot', durationMs: 1500 },
      { name: 'verify', durationMs: 250 },
      { name: 'verify', durationMs: 1 },
    ],
  },
  lastSuccessAt: Date.parse('2026-11-20T03:17:04Z'),
  runs: [
    { command: 'run', status: 'ok', runs: 12 },
    { command: 'guard', status: 'rolled_back', runs: 1 },
  ],
  newestGood: { at: Date.parse('2026-11-21T03:17:00Z'), sizeBytes: 20_500_000 },
  copies: { count: 3, totalBytes: 61_500_000 },
  freeBytes: 72_195_710_976,
  problems: [
    { code: 'UPLOAD_FAILED', severity: 'critical' },
    { code: 'ROWS_VIOLATE', severity: 'warning' },
    { code: 'ROWS_VIOLATE', severity: 'warning' },
  ],
  undelivered: 2,
};
const NOTHING: MetricsFacts = {
  name: 'app',
  maxAgeMs: 93_600_000,
  lastRun: null,
  lastSuccessAt: null,
  runs: null,
  newestGood: null,
  copies: null,
  freeBytes: null,
  problems: [],
  undelivered: null,
};

/** The samples, each as `metric{labels}` and its value. */
const samples = (text: string): Map<string, string> =>
  new Map(
    text
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'))
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), line.slice(line.lastIndexOf(' ') + 1)]),
  );

describe('the text', () => {
  test('has every fact, times in seconds, sizes in bytes', () => {
    const found = samples(render(FULL));
    const counters = [...found.keys()].filter((key) => key.startsWith('dbbackup_runs_total'));
    expect(Object.fromEntries([...found].filter(([key]) => !counters.includes(key)))).toEqual({
      'dbbackup_last_run_timestamp_seconds{name="app"}': '1795231024.25',
      'dbbackup_last_success_timestamp_seconds{name="app"}': '1795144624',
      'dbbackup_last_run_status{name="app",status="ok"}': '0',
      'dbbackup_last_run_status{name="app",status="failed"}': '0',
      'dbbackup_last_run_status{name="app",status="incomplete"}': '1',
      'dbbackup_last_run_status{name="app",status="interrupted"}': '0',
      'dbbackup_last_run_status{name="app",status="rolled_back"}': '0',
      'dbbackup_last_run_status{name="app",status="skipped"}': '0',
      'dbbackup_last_run_stage_duration_seconds{name="app",stage="snapshot"}': '1.5',
      'dbbackup_last_run_stage_duration_seconds{name="app",stage="verify"}': '0.251',
      'dbbackup_newest_good_copy_timestamp_seconds{name="app"}': '1795231020',
      'dbbackup_newest_good_copy_size_bytes{name="app"}': '20500000',
      'dbbackup_max_age_seconds{name="app"}': '93600',
      'dbbackup_copies{name="app"}': '3',
      'dbbackup_copies_size_bytes{name="app"}': '61500000',
      'dbbackup_free_bytes{name="app"}': '72195710976',
      'dbbackup_undelivered_messages{name="app"}': '2',
      'dbbackup_problems{name="app",code="UPLOAD_FAILED",severity="critical"}': '1',
      'dbbackup_problems{name="app",code="ROWS_VIOLATE",severity="warning"}': '2',
    });
    expect(found.get('dbbackup_runs_total{name="app",command="run",status="ok"}')).toBe('12');
    expect(found.get('dbbackup_runs_total{name="app",command="guard",status="rolled_back"}')).toBe('1');
    // A failure that has not happened yet is there as 0, so that increase() sees the first.
    expect(found.get('dbbackup_runs_total{name="app",command="verify",status="failed"}')).toBe('0');
  });

  test('heads each metric once, with its help and its type, before its samples', () => {
    const lines = render(FULL).split('\n').slice(0, -1);
    const metrics = new Set<string>();
    for (const [i, line] of lines.entries()) {
      const metric = /^# HELP (dbbackup_\w+) \S.*\.$/.exec(line)?.[1];
      if (metric === undefined) continue;
      expect(metrics).not.toContain(metric);
      metrics.add(metric);
      expect(lines[i + 1]).toBe(`# TYPE ${metric} ${metric.endsWith('_total') ? 'counter' : 'gauge'}`);
      expect(lines[i + 2]?.startsWith(`${metric}{`)).toBe(true);
    }
    expect(metrics.size).toBe(13);
    expect([...samples(render(FULL)).keys()].filter((key) => !metrics.has(key.slice(0, key.indexOf('{'))))).toEqual([]);
  });

  test('says nothing of what is not known, so that absent() sees it', () => {
    expect(render(NOTHING)).toBe(
      [
        '# HELP dbbackup_max_age_seconds How old the newest good copy may be: the setting max-age.',
        '# TYPE dbbackup_max_age_seconds gauge',
        'dbbackup_max_age_seconds{name="app"} 93600',
        '',
      ].join('\n'),
    );
  });

  test('escapes what a label may hold', () => {
    expect(render({ ...NOTHING, name: 'a"b\\c\nd é' })).toContain('dbbackup_max_age_seconds{name="a\\"b\\\\c\\nd é"} 93600\n');
  });

  test.skipIf(noPromtool).each([
    ['full', FULL],
    ['empty', NOTHING],
    ['odd', { ...FULL, name: 'a"b\\c\nd é' }],
  ])('is clean for promtool: %s (needs promtool)', (_, facts) => {
    const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], { input: render(facts), encoding: 'utf8' });
    expect({ status, said: stdout + stderr }).toEqual({ status: 0, said: '' });
  });
});

const TO = '/backups';
let made = 0;
const record = (command: CommandName, status: RunStatus, more: Partial<RunRecord> = {}): RunRecord =>
  recordOf({ command, status, runId: `run-${made++}`, finishedAt: status === 'running' ? null : '2026-11-21T03:17:04.000Z', durationMs: 4000, ...more });

describe('the counters', () => {
  test('count what ended, by command and status; not what is dry, runs still, or has another name', () => {
    const history = History.openToWrite(tempDirectory('history'), TO);
    for (const status of ['ok', 'ok', 'failed', 'running'] as const) history.save(record('run', status));
    history.save(record('verify', 'failed'));
    history.save(record('run', 'ok', { dryRun: true }));
    history.save(record('run', 'ok', { name: 'other' }));
    expect(history.counts('app')).toEqual([
      { command: 'run', status: 'failed', runs: 1 },
      { command: 'run', status: 'ok', runs: 2 },
      { command: 'verify', status: 'failed', runs: 1 },
    ]);
    expect(history.counts('nobody')).toEqual([]);
    history.close();
  });

  test('and what arrived is known by names of any letters', () => {
    const history = History.openToWrite(tempDirectory('history'), TO);
    for (const name of ['𠮷', 'app']) history.noteUploaded('there', `${name}-20260101T000000Z.db`, new Date(0));
    expect([history.uploadedFiles('there', '𠮷'), history.uploadedFiles('there', 'app')]).toEqual([['𠮷-20260101T000000Z.db'], ['app-20260101T000000Z.db']]);
    history.close();
  });

  test('do not go back when old runs go', () => {
    const stateDir = tempDirectory('history');
    History.openToWrite(stateDir, TO).close();
    const db = new Database(historyPath(stateDir));
    const insert = db.prepare("INSERT INTO runs(run_id, name, status, dry_run, process, record) VALUES (?, 'app', ?, ?, '{}', ?)");
    const whole = JSON.stringify(record('run', 'ok'));
    db.transaction(() => {
      // The oldest: 3 that failed, a dry one, one that never ended, and then more than are kept.
      for (let i = 0; i < 10_004; i++) {
        const status = i < 3 ? 'failed' : i === 4 ? 'running' : 'ok';
        insert.run(`old-${i}`, status, i === 3 ? 1 : 0, whole);
      }
    })();
    db.close();
    const history = History.openToWrite(stateDir, TO);
    const before = history.counts('app');
    expect(before).toEqual([
      { command: 'run', status: 'failed', runs: 3 },
      { command: 'run', status: 'ok', runs: 9999 },
    ]);
    history.trim('app');
    // The first stays, since it says when all began.
    expect(history.runs('app', null)).toHaveLength(10_001);
    expect(history.counts('app')).toEqual(before);
    history.save(record('run', 'ok'));
    history.trim('app');
    history.trim('app');
    expect(history.runs('app', null)).toHaveLength(10_001);
    expect(history.counts('app')).toEqual([
      { command: 'run', status: 'failed', runs: 3 },
      { command: 'run', status: 'ok', runs: 10_000 },
    ]);
    history.close();
  });

  test('nor does what is still to be settled, or was proven, go when many runs come after it', () => {
    const stateDir = tempDirectory('history');
    const history = History.openToWrite(stateDir, TO);
    const restored = { file: 'app-1.db', target: '/srv/app.db', safetyCopy: null, setAside: [] };
    const results = [{ file: 'app-1.db', status: 'good', proved: 'full', problems: [] }] as const;
    history.save(record('run', 'ok', { startedAt: '2026-01-01T00:00:00.000Z' }));
    history.save(record('restore', 'failed', { exitCode: 4, restored }));
    history.save(record('verify', 'ok', { results }));
    const before = { unsettled: history.unsettled('app'), provenAt: history.provenAt('app', Date.now()), beganAt: history.beganAt('app') };
    expect([before.unsettled.length, before.provenAt, before.beganAt]).toEqual([1, expect.any(Number), Date.UTC(2026, 0, 1)]);
    const db = new Database(historyPath(stateDir));
    const insert = db.prepare("INSERT INTO runs(run_id, name, status, dry_run, process, record) VALUES (?, 'app', 'ok', 0, '{}', ?)");
    const whole = (command: CommandName): string => JSON.stringify(record(command, 'ok'));
    const [run, verify] = [whole('run'), whole('verify')];
    db.transaction(() => {
      for (let i = 0; i < 10_100; i++) insert.run(`run-${i}-later`, run);
    })();
    history.trim('app');
    expect({ unsettled: history.unsettled('app'), provenAt: history.provenAt('app', Date.now()), beganAt: history.beganAt('app') }).toEqual(before);
    expect(history.runs('app', null)).toHaveLength(10_003);
    // Nor do these fill the disk.
    db.transaction(() => {
      for (let i = 0; i < 12_000; i++) insert.run(`verify-${i}-later`, verify);
    })();
    history.trim('app');
    expect(history.runs('app', null)).toHaveLength(11_001);
    db.close();
    history.close();
  });

  test('are there for a history of an earlier version, also where it can only be read', () => {
    const stateDir = tempDirectory('history');
    const first = History.openToWrite(stateDir, TO);
    first.save(record('run', 'ok'));
    first.close();
    const db = new Database(historyPath(stateDir));
    db.exec('DROP TABLE trimmed');
    db.close();
    for (const open of [() => History.openToRead(stateDir, TO), () => History.openToWrite(stateDir, TO)]) {
      const history = open();
      expect(history?.counts('app')).toEqual([{ command: 'run', status: 'ok', runs: 1 }]);
      history?.close();
    }
  });
});

describe.skipIf(noPromtool)('the alert rules (needs promtool)', () => {
  const promtool = (...args: string[]) => spawnSync('promtool', args, { encoding: 'utf8', cwd: join(ROOT, 'deploy/prometheus') });

  test('are well formed', () => {
    const { status, stdout, stderr } = promtool('check', 'rules', 'dbbackup.rules.yml');
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: expect.stringContaining('7 rules found'), stderr: '' });
  });

  test('fire when they should, and not otherwise', () => {
    const { status, stdout, stderr } = promtool('test', 'rules', 'dbbackup.test.yml');
    expect({ status, said: stdout + stderr }).toEqual({ status: 0, said: expect.stringContaining('SUCCESS') });
  });
});
