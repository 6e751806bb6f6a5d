/** What is said of a run that was killed: what it left, and what to do next. */
import { expect, test } from 'vitest';
import { asKilled } from '../../src/history.js';
import type { RunRecord } from '../../src/records.js';

const BACKUPS = { to: '/backups', stateDir: null };
const RECORD = { command: 'restore', name: 'app', source: null, copy: null, status: 'running' } as unknown as RunRecord;

test('a restore that had put nothing into place: what may be there, and that the next one clears away what lies beside it', () => {
  const killed = asKilled(RECORD, null, BACKUPS);
  expect(killed.error?.hint).toContain('is there, whole, or not at all');
  expect(killed.error?.hint).toContain('.dbbackup-*');
  const restored = { file: 'app-1.db', target: '/srv/app.db', safetyCopy: null, setAside: [] };
  expect(asKilled({ ...RECORD, restored }, null, BACKUPS).error?.hint).toContain(
    '/srv/app.db is the new database, whole, or what was there before: nothing, or a damaged one',
  );
  // Else the history that knows of it would never learn that it is settled.
  const elsewhere = { to: '/backups', stateDir: '/var/lib/state' };
  const back = { ...RECORD, restored: { ...restored, safetyCopy: 'app-0.db' } };
  const source = { path: '/srv/app.db' } as RunRecord['source'];
  expect(asKilled({ ...back, source }, null, elsewhere).error?.hint).toContain('--to /backups --state-dir /var/lib/state --name app --yes');
  expect(asKilled({ ...RECORD, restored, source }, null, BACKUPS).error?.hint).toContain('/srv/app.db is the old database as it was, or the new one');
  expect(asKilled({ ...RECORD, source }, null, BACKUPS).error?.hint).toMatch(/^\/srv\/app\.db was not touched: run the restore again;/);
  expect(asKilled({ ...RECORD, command: 'run' }, null, BACKUPS).error?.hint).toContain('out-of-memory');
});

test('of several that were killed with one database in their hands, each leads back to before the first', () => {
  const guard = (n: number, path = '/srv/app.db'): RunRecord =>
    ({
      ...RECORD,
      runId: `run-${n}`,
      command: 'guard',
      startedAt: `2026-11-2${n}T03:17:00Z`,
      source: { path },
      backupPoint: `app-${n}.db`,
      profile: null,
    }) as unknown as RunRecord;
  const unsettled = [guard(1), guard(2), guard(3, '/srv/other.db')];
  const hint = (record: RunRecord): string => asKilled(record, null, BACKUPS, unsettled).error?.hint ?? '';
  expect(hint(guard(1))).toContain('back to what it was before: dbbackup restore app-1.db');
  expect(hint(guard(2))).toContain('before the one that began at 2026-11-21T03:17:00Z, which was not settled either: dbbackup restore app-1.db');
  expect(hint(guard(3, '/srv/other.db'))).toContain('back to what it was before: dbbackup restore app-3.db');
  // One that had not begun its command has changed nothing.
  expect(hint({ ...guard(4), backupPoint: null })).toContain('the command had not begun');
});
