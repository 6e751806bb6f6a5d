/** Run records for tests of what is made of them. */
import type { RunRecord } from '../../src/records.js';

/** A run of `app` that ended well and did nothing worth telling, but for what is said. */
export const recordOf = (more: Partial<RunRecord> & Pick<RunRecord, 'runId'>): RunRecord => ({
  schemaVersion: 1,
  command: 'run',
  name: 'app',
  profile: null,
  status: 'ok',
  dryRun: false,
  startedAt: '2026-11-21T03:17:00.000Z',
  finishedAt: null,
  durationMs: 1,
  exitCode: 0,
  attempts: 1,
  source: null,
  copy: null,
  stages: [],
  kept: [],
  pruned: [],
  warnings: [],
  error: null,
  resources: { cpuMs: 0, peakAnonBytes: 0 },
  ...more,
});
