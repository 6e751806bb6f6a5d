/**
 * The JSON of DESIGN, to the letter: which fields a document has (no more, no fewer) and what each may hold. `problemsIn`
 * names every place that differs.
 */
export type Shape = (value: unknown, at: string) => string[];

const is =
  (what: string, test: (value: unknown) => boolean): Shape =>
  (value, at) =>
    test(value) ? [] : [`${at} is not ${what}: ${JSON.stringify(value)?.slice(0, 200)}`];

const text = is('a text', (v) => typeof v === 'string' && v !== '');
const anyText = is('a text', (v) => typeof v === 'string');
const yesOrNo = is('true or false', (v) => typeof v === 'boolean');
const count = is('a whole number', (v) => typeof v === 'number' && Number.isSafeInteger(v) && v >= 0);
/** RFC 3339, UTC. */
export const time = is('a time', (v) => typeof v === 'string' && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$/.test(v) && !Number.isNaN(Date.parse(v)));
const bareName = is('a bare file name', (v) => typeof v === 'string' && /^[^/]+$/.test(v));
const absolute = is('an absolute path', (v) => typeof v === 'string' && v.startsWith('/'));
const hash = is('a SHA-256', (v) => typeof v === 'string' && /^[0-9a-f]{64}$/.test(v));
const uuid = is('a UUID', (v) => typeof v === 'string' && /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/.test(v));
const code = is('a code', (v) => typeof v === 'string' && /^[A-Z]+(_[A-Z]+)*$/.test(v));
const oneOf = (...allowed: readonly unknown[]): Shape => is(`one of ${allowed.join(', ')}`, (v) => allowed.includes(v));
const orNull =
  (shape: Shape): Shape =>
  (v, at) =>
    v === null ? [] : shape(v, at);
const list =
  (shape: Shape): Shape =>
  (v, at) =>
    Array.isArray(v) ? v.flatMap((each, i) => shape(each, `${at}[${i}]`)) : [`${at} is not a list`];
const tableOf =
  (shape: Shape): Shape =>
  (v, at) =>
    typeof v === 'object' && v !== null && !Array.isArray(v) ? Object.entries(v).flatMap(([k, each]) => shape(each, `${at}.${k}`)) : [`${at} is not a table`];
/** Exactly these fields; `optional` ones may be missing. */
const exactly =
  (fields: Readonly<Record<string, Shape>>, optional: Readonly<Record<string, Shape>> = {}): Shape =>
  (v, at) => {
    if (typeof v !== 'object' || v === null || Array.isArray(v)) return [`${at} is not an object: ${JSON.stringify(v)}`];
    const all = { ...fields, ...optional };
    const missing = Object.keys(fields).filter((k) => !(k in v));
    const surplus = Object.keys(v).filter((k) => !(k in all));
    return [
      ...missing.map((k) => `${at}.${k} is missing`),
      ...surplus.map((k) => `${at}.${k} is not in the contract`),
      ...Object.entries(v).flatMap(([k, each]) => all[k]?.(each, `${at}.${k}`) ?? []),
    ];
  };
const both =
  (...shapes: readonly Shape[]): Shape =>
  (v, at) =>
    shapes.flatMap((s) => s(v, at));

const schemaVersion = oneOf(1);
const severity = oneOf('warning', 'critical');
const exitCode = oneOf(0, 1, 3, 64, 70, 75, 78, 129, 130, 143);
const problem = exactly({ code, severity, message: text });
const copyFields = {
  file: bareName,
  manifest: orNull(bareName),
  name: text,
  createdAt: time,
  sizeBytes: count,
  sha256: orNull(hash),
  status: oneOf('good', 'suspect', 'bad', 'unverified'),
  verifiedAt: orNull(time),
  method: oneOf('vacuum-into', 'page-copy', null),
  source: orNull(absolute),
  tags: list(text),
};
export const copy = exactly(copyFields);

const error = exactly(
  {
    code,
    stage: oneOf(null, 'inspect', 'snapshot', 'verify', 'pack', 'publish', 'restore', 'check', 'command', 'rollback', 'prune', 'upload', 'report'),
    message: text,
    hint: text,
  },
  { problems: list(exactly({ setting: text, message: text, origin: text })) },
);

const runFields = {
  schemaVersion,
  command: oneOf('run', 'verify', 'restore', 'guard', 'prune'),
  runId: uuid,
  name: orNull(text),
  profile: orNull(text),
  status: oneOf('running', 'ok', 'failed', 'incomplete', 'interrupted', 'rolled_back', 'skipped'),
  dryRun: yesOrNo,
  startedAt: time,
  finishedAt: orNull(time),
  durationMs: orNull(count),
  exitCode: orNull(exitCode),
  attempts: count,
  source: orNull(exactly({ path: absolute, sizeBytes: count, walBytes: count, journalMode: text, pageSize: count })),
  copy: orNull(copy),
  stages: list(
    exactly({
      name: oneOf('inspect', 'snapshot', 'verify', 'pack', 'publish', 'restore', 'check', 'command', 'rollback', 'prune', 'upload', 'report'),
      status: oneOf('ok', 'failed', 'skipped'),
      durationMs: count,
    }),
  ),
  kept: list(
    exactly({
      file: bareName,
      reasons: both(
        list(text),
        is('at least one reason', (v) => Array.isArray(v) && v.length > 0),
      ),
      by: oneOf('policy', 'hold', 'person', 'failure'),
    }),
  ),
  pruned: list(exactly({ file: bareName, reason: text })),
  warnings: list(problem),
  error: orNull(error),
  resources: exactly({ cpuMs: count, peakAnonBytes: count }),
};
const dryFields = { freeBytes: orNull(count), plan: exactly({ file: bareName, neededBytes: count, freeBytes: orNull(count) }) };

/** What a Run's fields must be together, beside each being right by itself. */
const sensible: Shape = (v, at) => {
  const r = v as Readonly<Record<string, unknown>>;
  const wrong: string[] = [];
  const must = (ok: boolean, what: string): void => {
    if (!ok) wrong.push(`${at}: ${what}`);
  };
  must((r['finishedAt'] === null) === (r['durationMs'] === null), 'finished without a duration, or the other way round');
  must(r['exitCode'] !== 0 || r['error'] === null, 'exit 0 with an error');
  must(r['exitCode'] === 0 || r['exitCode'] === null || r['error'] !== null, 'not exit 0, and no error');
  must((r['status'] === 'ok' || r['status'] === 'skipped') === (r['exitCode'] === 0), `status ${String(r['status'])} with exit ${String(r['exitCode'])}`);
  must((r['status'] === 'incomplete') === (r['exitCode'] === 3), `status ${String(r['status'])} with exit ${String(r['exitCode'])}`);
  must('plan' in r ? r['dryRun'] === true : true, 'a plan in a run that was not dry');
  return wrong;
};

const moreFields = {
  results: list(exactly({ file: bareName, status: oneOf('good', 'suspect', 'bad', 'unverified'), proved: oneOf('full', 'bytes'), problems: list(text) })),
};
export const run = both(exactly(runFields, { ...dryFields, ...moreFields }), sensible);

const restored = exactly({ file: bareName, target: absolute, safetyCopy: orNull(bareName), setAside: list(absolute) });
/** Null: nothing was restored. */
export const restoreDocument = both(exactly({ ...runFields, restored: orNull(restored) }), sensible);
export const listDocument = exactly({ schemaVersion, command: oneOf('list'), copies: list(copy) });
export const statusDocument = exactly({
  schemaVersion,
  command: oneOf('status'),
  name: orNull(text),
  healthy: yesOrNo,
  newestGood: orNull(exactly({ ...copyFields, ageSeconds: count })),
  lastRun: orNull(run),
  problems: list(problem),
});
export const historyDocument = exactly({ schemaVersion, command: oneOf('history'), runs: list(run) });
const verifyResult = exactly({ file: bareName, status: oneOf('good', 'suspect', 'bad', 'unverified'), proved: oneOf('full', 'bytes'), problems: list(text) });
export const verifyDocument = exactly({
  schemaVersion,
  command: oneOf('verify'),
  ok: yesOrNo,
  results: list(verifyResult),
  runId: uuid,
  name: text,
  exitCode,
  warnings: list(problem),
  error: orNull(error),
});
export const checkDocument = exactly({
  schemaVersion,
  command: oneOf('check'),
  ok: yesOrNo,
  settings: list(exactly({ name: text, value: anyText, origin: text })),
  problems: list(problem),
});
/** A failure before a command could begin. */
export const failureDocument = exactly(
  { schemaVersion, command: oneOf('run', 'list', 'verify', 'restore', 'guard', 'status', 'history', 'check', 'prune', 'schedule', null), exitCode, error },
  // `check` shows the settings all the same.
  { ok: oneOf(false), settings: list(exactly({ name: text, value: anyText, origin: text })), problems: list(problem) },
);
export const schedule = exactly({
  schemaVersion,
  command: oneOf('schedule'),
  profiles: list(
    exactly({
      name: text,
      envFile: absolute,
      owner: text,
      prepare: list(text),
      crontab: list(text),
      units: list(exactly({ path: absolute, text })),
      nextRun: orNull(time),
    }),
  ),
  problems: list(problem),
});
const manifestFields = {
  ...copyFields,
  manifest: bareName,
  sha256: hash,
  status: oneOf('good', 'suspect'),
  verifiedAt: time,
  method: oneOf('vacuum-into', 'page-copy'),
  source: absolute,
  schemaVersion,
  runId: uuid,
  tool: is('a tool', (v) => typeof v === 'string' && /^dbbackup \d+\.\d+\.\d+/.test(v)),
  sqlite: is('a version', (v) => typeof v === 'string' && /^3\.\d+\.\d+$/.test(v)),
  configuredPath: absolute,
  realPath: absolute,
  journalMode: oneOf('wal', 'delete', 'truncate', 'persist'),
  pageSize: count,
  pageCount: count,
  userVersion: is('a number', (v) => Number.isInteger(v)),
  applicationId: is('a number', (v) => Number.isInteger(v)),
  schemaHash: hash,
  rows: tableOf(count),
  plainSizeBytes: count,
  plainSha256: hash,
  compress: oneOf('none', 'gzip', 'zstd'),
  encrypted: oneOf(false),
  sealed: oneOf(null),
  pathProof: oneOf(null),
  files: oneOf(null),
  checks: list(exactly({ name: text, ok: yesOrNo, message: text })),
  violations: exactly({ check: count, notNull: count, foreignKey: count }),
  durationMs: count,
  selfSha256: hash,
};
export const manifest = exactly(manifestFields);
/** Of an encrypted copy: what tells of its content is for the recipients alone. */
export const sealedManifest = exactly({
  ...manifestFields,
  source: oneOf(null),
  configuredPath: oneOf(null),
  realPath: oneOf(null),
  schemaHash: oneOf(null),
  rows: exactly({}),
  plainSha256: oneOf(null),
  encrypted: oneOf(true),
  sealed: is('base64', (v) => typeof v === 'string' && /^[A-Za-z0-9+/]{100,}={0,2}$/.test(v)),
  pathProof: exactly({ salt: is('hex', (v) => typeof v === 'string' && /^[0-9a-f]{32}$/.test(v)), configured: hash, real: hash }),
  checks: list(exactly({ name: text, ok: yesOrNo, message: oneOf('ok', 'sealed') })),
});

/** Everything in a document that is not as the contract says; empty when all is. */
export const problemsIn = (value: unknown, shape: Shape): string[] => shape(value, '$');
