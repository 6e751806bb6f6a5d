/** Run records for tests of what is made of them. */
import { copyOf } from '../../src/catalog.js';
import type { Manifest, RunRecord } from '../../src/records.js';
import { manifestOf } from './manifest.js';

const made = copyOf(manifestOf('app-20261121T031700Z', 'data') as Manifest, 'good');
/** Only a whole night has made a copy. */
const hasCopy = ({ command = 'run', status = 'ok', dryRun = false }: Partial<RunRecord>): boolean =>
  command === 'run' && !dryRun && (status === 'ok' || status === 'incomplete');

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
  copy: hasCopy(more) ? made : null,
  stages: [],
  kept: [],
  pruned: [],
  warnings: [],
  error: null,
  resources: { cpuMs: 0, peakAnonBytes: 0 },
  ...more,
});
