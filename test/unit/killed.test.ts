/** What is said of a run that was killed: what it left, and what to do next. */
import { expect, test } from 'vitest';
import { asKilled } from '../../src/history.js';
import type { RunRecord } from '../../src/records.js';

const RECORD = { command: 'restore', name: 'app', source: null, copy: null, status: 'running' } as unknown as RunRecord;

test('a restore that had put nothing into place: what may be there, and that the next one clears away what lies beside it', () => {
  const killed = asKilled(RECORD, null, '/backups');
  expect(killed.error?.hint).toContain('is there, whole, or not at all');
  expect(killed.error?.hint).toContain('.dbbackup-*');
  const restored = { file: 'app-1.db', target: '/srv/app.db', safetyCopy: null, setAside: [] };
  expect(asKilled({ ...RECORD, restored }, null, '/backups').error?.hint).toContain('/srv/app.db is the old database or the new one');
  expect(asKilled({ ...RECORD, command: 'run' }, null, '/backups').error?.hint).toContain('out-of-memory');
});
