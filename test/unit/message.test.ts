/** What the operator reads: the verdict first, everything that is needed at 3 a.m., and nothing that a hostile name could do. */
import { describe, expect, test } from 'vitest';
import type { Message, MessageFacts } from '../../src/notifiers/message.js';
import { composeRun, composeStatus, composeTest } from '../../src/notifiers/message.js';
import { critical, warning, describe as words } from '../../src/outcome.js';
import type { Copy, RunRecord } from '../../src/records.js';
import { UNPRINTABLE } from '../../src/settings/values.js';

const FACTS: MessageFacts = {
  id: 'm1',
  now: new Date('2026-11-21T03:17:05.250Z'),
  host: 'host1',
  newestGood: { file: 'app-20261120T031700Z.db', ageSeconds: 86_405 },
  unseen: null,
  restore: 'dbbackup restore app-20261120T031700Z.db --into /srv/app.db --dry-run',
  user: 'backup',
  program: '/usr/local/bin/dbbackup',
  logLines: ['inspect: ok', 'snapshot: failed'],
  retry: 'dbbackup run -P app',
  directory: '/var/backups/app',
  redact: (text) => text.replaceAll('hunter2', '***'),
};

const COPY: Copy = {
  file: 'app-20261121T031700Z.db',
  manifest: 'app-20261121T031700Z.json',
  name: 'app',
  createdAt: '2026-11-21T03:17:00Z',
  sizeBytes: 21_000_000,
  sha256: 'ab',
  status: 'good',
  verifiedAt: '2026-11-21T03:17:04Z',
  method: 'vacuum-into',
  source: '/srv/app.db',
  tags: [],
};

const missing = words({ code: 'SOURCE_MISSING', path: '/srv/app.db' });

const FAILED: RunRecord = {
  schemaVersion: 1,
  command: 'run',
  runId: 'run-77',
  name: 'app',
  profile: 'app',
  status: 'failed',
  dryRun: false,
  startedAt: '2026-11-21T03:17:00.000Z',
  finishedAt: '2026-11-21T03:17:05.000Z',
  durationMs: 5012,
  exitCode: 1,
  attempts: 1,
  source: { path: '/srv/app.db', sizeBytes: 1, walBytes: 0, journalMode: 'wal', pageSize: 4096 },
  copy: null,
  stages: [{ name: 'inspect', status: 'failed', durationMs: 12 }],
  kept: [],
  pruned: [],
  warnings: [],
  error: { code: 'SOURCE_MISSING', stage: 'inspect', ...missing },
  resources: { cpuMs: 1, peakAnonBytes: 1 },
};

const INCOMPLETE: RunRecord = {
  ...FAILED,
  status: 'incomplete',
  exitCode: 3,
  copy: COPY,
  stages: [
    { name: 'snapshot', status: 'ok', durationMs: 2100 },
    { name: 'prune', status: 'failed', durationMs: 7 },
  ],
  error: { code: 'IO_ERROR', stage: 'prune', ...words({ code: 'IO_ERROR', path: '/var/backups/app', reason: 'input/output error (EIO)' }) },
};

const lines = (m: Message): string[] => m.text.split('\n');
/** The visible text of the HTML, one line per block. */
const visible = (m: Message): string =>
  m.html
    .replace(/<title>.*?<\/title>/u, '')
    .replace(/<[^>]*>/gu, ' ')
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&quot;', '"')
    .replaceAll('&#39;', "'")
    .replaceAll('&amp;', '&')
    .replace(/\s+/gu, ' ');

describe('a failed run', () => {
  test('reads like this', () => {
    const m = composeRun(
      { ...FAILED, warnings: [warning('HEALED', 'cleared away a temp directory'), critical('CLOCK', 'a copy is dated ahead')] },
      'failure',
      FACTS,
    );
    expect(m).toMatchObject({ id: 'm1', createdAt: '2026-11-21T03:17:05.250Z', kind: 'failure', name: 'app', runId: 'run-77' });
    expect(m.subject).toBe('dbbackup: app FAILED on host1: SOURCE_MISSING');
    expect(m.text).toBe(`app: backup FAILED
on host1, 2026-11-21 03:17:05 UTC

SOURCE_MISSING: there is no file at /srv/app.db

No good new copy was made. The newest good copy is app-20261120T031700Z.db, 24 h old.

WHAT TO DO
  check the path, and that its file system is mounted; if the database is lost: dbbackup restore --into it

WHAT THE NEWEST GOOD COPY WOULD BRING BACK; CHANGES NOTHING
  dbbackup restore app-20261120T031700Z.db --into /srv/app.db --dry-run

THEN TRY AGAIN
  dbbackup run -P app

WARNINGS OF THIS RUN
  CRITICAL CLOCK: a copy is dated ahead
  HEALED: cleared away a temp directory

DETAILS
  Failed at    inspect
  Source       /srv/app.db
  Backups in   /var/backups/app
  Newest good  app-20261120T031700Z.db, 24 h old
  Stages       inspect FAILED after 12 ms
  Took         5.0 s
  Started      2026-11-21 03:17:00 UTC
  Host         host1
  Commands as  backup
  Program      /usr/local/bin/dbbackup
  Profile      app
  Run          run-77
  Exit code    1

LAST LOG LINES
  inspect: ok
  snapshot: failed
`);
  });

  test('says the same in HTML', () => {
    const m = composeRun(FAILED, 'failure', FACTS);
    const seen = visible(m);
    for (const line of lines(m).filter((l) => l !== '' && l !== l.toUpperCase())) {
      for (const part of line.trim().split(/ {2,}/)) expect(seen).toContain(part);
    }
    expect(seen.indexOf('backup FAILED')).toBeLessThan(20);
  });

  test('says when there is no good copy at all, and when that is not known', () => {
    expect(composeRun(FAILED, 'failure', { ...FACTS, newestGood: null }).text).toMatch(
      /No good new copy was made\. There is NO good copy to be found in \/var\/backups\/app\.\n/,
    );
    const settings: RunRecord = {
      ...FAILED,
      name: null,
      profile: null,
      source: null,
      stages: [],
      exitCode: 78,
      error: { code: 'SETTINGS', stage: null, message: 'to is required', hint: 'dbbackup check' },
    };
    const shut = composeRun(FAILED, 'failure', { ...FACTS, newestGood: null, unseen: 'permission denied (EACCES)', restore: '' }).text;
    expect(shut).toMatch(/Which copies there are could not be looked up: permission denied \(EACCES\)\.\n/);
    expect(shut).not.toMatch(/NO good copy|BRING BACK/);
    const m = composeRun(settings, 'failure', { ...FACTS, newestGood: null, directory: null, logLines: [] });
    expect(m).toMatchObject({ name: null, subject: 'dbbackup: FAILED on host1: SETTINGS' });
    expect(lines(m)[0]).toBe('backup FAILED');
    expect(m.text).toMatch(/could not be looked up/);
    expect(m.text).toMatch(/Failed at +before the first stage/);
    expect(m.text).not.toMatch(/NO good copy|undefined|null|LAST LOG LINES/);
  });

  test('that is to be run by somebody else offers the line that would work alone', () => {
    const error = { code: 'TARGET_OWNER', stage: null, message: 'not yours', hint: 'run as its owner: sudo -u app dbbackup run' };
    expect(composeRun({ ...FAILED, error }, 'failure', FACTS).text).not.toMatch(/TRY AGAIN|BRING BACK/);
  });

  test('with a suspect copy does not call that a backup', () => {
    const error = { code: 'SOURCE_CORRUPT', stage: 'verify' as const, message: 'damaged', hint: 'stop' };
    const m = composeRun({ ...FAILED, copy: { ...COPY, status: 'suspect' }, error }, 'failure', FACTS);
    expect(m.subject).toBe('dbbackup: app FAILED on host1: SOURCE_CORRUPT');
    expect(m.text).toMatch(
      /No good new copy was made\. The newest good copy is app-20261120T031700Z\.db, 24 h old\. What could be read .* suspect copy app-20261121T031700Z\.db: it does not replace a good one\./,
    );
    expect(m.text).not.toMatch(/good new copy exists/i);
  });

  test('names another command than run', () => {
    const m = composeRun({ ...FAILED, command: 'prune', error: { code: 'IO_ERROR', stage: 'prune', message: 'x', hint: 'y' } }, 'failure', FACTS);
    expect(m.subject).toBe('dbbackup: app prune FAILED on host1: IO_ERROR');
    expect(lines(m)[0]).toBe('app: prune FAILED');
    expect(m.text).not.toMatch(/No good new copy/);
  });

  test.each([
    [-7200, 'dated in the future'],
    [0, '0 s old'],
    [119, '119 s old'],
    [120, '2 min old'],
    [7200, '2 h old'],
    [47.9 * 3600, '47 h old'],
    [48 * 3600, '2 days old'],
  ])('a newest copy of %d s is "%s"', (ageSeconds, said) => {
    expect(composeRun(FAILED, 'failure', { ...FACTS, newestGood: { file: 'f.db', ageSeconds } }).text).toContain(`The newest good copy is f.db, ${said}.`);
  });
});

describe('a run that did not end well although a copy was made', () => {
  test('incomplete: the good copy comes first, then what failed after it', () => {
    const m = composeRun(INCOMPLETE, 'failure', { ...FACTS, newestGood: { file: COPY.file, ageSeconds: 1 } });
    expect(m.subject).toBe('dbbackup: app INCOMPLETE on host1: IO_ERROR');
    expect(lines(m)[0]).toBe('app: a good copy was made, but prune failed');
    expect(lines(m)[3]).toBe('A good new copy exists: app-20261121T031700Z.db (21.0 MB). What failed came after it: nothing is wrong with this copy.');
    expect(lines(m)[5]).toBe('IO_ERROR: /var/backups/app: input/output error (EIO)');
    expect(m.text).not.toMatch(/No good new copy|backup FAILED/);
  });

  test('interrupted after publication', () => {
    const error = { code: 'INTERRUPTED', stage: 'prune' as const, ...words({ code: 'INTERRUPTED', signal: 'SIGTERM', published: COPY.file }) };
    const m = composeRun({ ...INCOMPLETE, status: 'interrupted', exitCode: 143, error }, 'failure', FACTS);
    expect(m.subject).toBe('dbbackup: app INTERRUPTED on host1');
    expect(lines(m)[0]).toBe('app: a good copy was made, then the run was interrupted');
    expect(m.text).toMatch(/ended by SIGTERM/);
  });
});

describe('a run that was ended', () => {
  test('by a signal', () => {
    const error = { code: 'INTERRUPTED', stage: 'snapshot' as const, ...words({ code: 'INTERRUPTED', signal: 'SIGTERM', published: null }) };
    const m = composeRun({ ...FAILED, status: 'interrupted', exitCode: 143, error }, 'failure', FACTS);
    expect(m.subject).toBe('dbbackup: app INTERRUPTED on host1');
    expect(lines(m)[0]).toBe('app: backup was INTERRUPTED');
    expect(m.text).toMatch(/No good new copy was made/);
  });

  test('by kill -9 or a power cut, as the next run tells it', () => {
    const error = { code: 'INTERRUPTED', stage: null, ...words({ code: 'INTERRUPTED', signal: 'SIGKILL', published: null }) };
    const m = composeRun({ ...FAILED, status: 'interrupted', finishedAt: null, durationMs: null, exitCode: null, stages: [], error }, 'failure', FACTS);
    expect(m.subject).toBe('dbbackup: app INTERRUPTED on host1');
    expect(lines(m)[0]).toBe('app: backup was INTERRUPTED');
    expect(lines(m)[3]).toBe('INTERRUPTED: the run was killed before it could finish');
    expect(m.text).toMatch(/out-of-memory killer/);
    expect(m.text).toMatch(/Failed at +not recorded/);
    expect(m.text).not.toMatch(/Took|Exit code|null/);
  });
});

test('a recovery says that backups work again, with the copy and how long each stage took', () => {
  const record: RunRecord = {
    ...FAILED,
    status: 'ok',
    exitCode: 0,
    copy: COPY,
    error: null,
    durationMs: 184_000,
    stages: [
      { name: 'snapshot', status: 'ok', durationMs: 180_000 },
      { name: 'verify', status: 'ok', durationMs: 2400 },
      { name: 'prune', status: 'skipped', durationMs: 0 },
    ],
  };
  const m = composeRun(record, 'recovery', { ...FACTS, newestGood: { file: COPY.file, ageSeconds: 3 } });
  expect(m.kind).toBe('recovery');
  expect(m.subject).toBe('dbbackup: app RECOVERED on host1');
  expect(lines(m).slice(0, 4)).toEqual([
    'app: backups work again',
    'on host1, 2026-11-21 03:17:05 UTC',
    '',
    'The new copy is app-20261121T031700Z.db (21.0 MB), checked and good.',
  ]);
  expect(m.text).toMatch(/Stages +snapshot 3 m 0 s, verify 2\.4 s, prune skipped\n/);
  expect(m.text).toMatch(/Took +3 m 4 s\n/);
  expect(m.text).not.toMatch(/FAILED|TRY|LAST LOG/i);
});

describe('a run that went well', () => {
  const OK: RunRecord = { ...FAILED, status: 'ok', exitCode: 0, copy: COPY, error: null };

  test('is told in a few lines', () => {
    const m = composeRun(OK, 'success', FACTS);
    expect(m).toMatchObject({ kind: 'success', subject: 'dbbackup: app OK on host1' });
    expect(lines(m).slice(0, 4)).toEqual([
      'app: backup made',
      'on host1, 2026-11-21 03:17:05 UTC',
      '',
      'The new copy is app-20261121T031700Z.db (21.0 MB), checked and good.',
    ]);
    expect(m.text).not.toMatch(/WARNINGS|LAST LOG|TRY/);
  });

  test('with warnings: the gravest in the subject, what is new, what still is, what is no more', () => {
    const [old, bad, over] = [warning('ROWS_VIOLATE', '3 rows'), critical('CLOCK', 'dated ahead'), warning('PAGE_COPY', 'copied')];
    const news = { appeared: [bad], still: [{ warning: old, since: '2026-11-14T03:17:00.000Z' }], ended: [over] };
    const known = warning('SYNC_UNSUPPORTED', 'no sync');
    const m = composeRun({ ...OK, warnings: [old, bad, known] }, 'warning', FACTS, news);
    expect(m).toMatchObject({ kind: 'warning', subject: 'dbbackup: app CRITICAL on host1: CLOCK' });
    expect(lines(m).filter(Boolean).slice(0, 9)).toEqual([
      'app: a good copy was made, but there is something critical to look at',
      'on host1, 2026-11-21 03:17:05 UTC',
      'CRITICAL CLOCK: dated ahead',
      'Still so, since 2026-11-14 03:17:00 UTC: ROWS_VIOLATE: 3 rows',
      'No longer so: PAGE_COPY: copied',
      'The new copy is app-20261121T031700Z.db (21.0 MB), checked and good.',
      // What is told already is not told twice.
      'OTHER WARNINGS OF THIS RUN',
      '  SYNC_UNSUPPORTED: no sync',
      'DETAILS',
    ]);
    const mild = composeRun({ ...OK, warnings: [old] }, 'warning', FACTS, { ...news, appeared: [] });
    expect(mild.subject).toBe('dbbackup: app WARNING on host1: ROWS_VIOLATE');
    const over2 = composeRun(OK, 'warning', FACTS, { appeared: [], still: [], ended: [over] });
    expect([over2.subject, lines(over2)[0]]).toEqual(['dbbackup: app WARNING ENDED on host1: PAGE_COPY', 'app: a warning has ended']);
  });

  test('a message carries its record, redacted and of a bounded size', () => {
    const kept = Array.from({ length: 10_000 }, (_, i) => ({ file: `f${i}`, reasons: ['hunter2', 'x'.repeat(5000)] }));
    const { record, host } = composeRun({ ...OK, kept }, 'success', { ...FACTS, redact: (t) => t.replaceAll('hunter2', '***') });
    expect([host, record?.runId, record?.kept.length, record?.kept[0]?.reasons[0]]).toEqual(['host1', 'run-77', 100, '***']);
    expect(JSON.stringify(record).length).toBeLessThan(250_000);
    expect(composeTest('app', FACTS).record).toBe(null);
  });
});

test('a status message lists every problem, the critical one in the subject', () => {
  const m = composeStatus('app', [warning('UNDELIVERED', '2 messages wait'), critical('COPY_STALE', 'the newest good copy is 30 h old')], FACTS);
  expect(m).toMatchObject({ kind: 'status', name: 'app', runId: null, subject: 'dbbackup: app UNHEALTHY on host1: COPY_STALE' });
  expect(lines(m)[3]).toBe('COPY_STALE: the newest good copy is 30 h old');
  expect(m.text).toMatch(/ALL PROBLEMS\n {2}CRITICAL COPY_STALE: .*\n {2}UNDELIVERED: 2 messages wait\n/);
  expect(m.text).toMatch(/TRY\n {2}dbbackup run -P app\n/);
});

test('a test message says that it is none but that, also where there is no copy yet', () => {
  expect(composeTest('app', FACTS)).toMatchObject({ kind: 'test', name: 'app', subject: 'dbbackup: app TEST on host1' });
  const m = composeTest(null, { ...FACTS, newestGood: null, directory: null });
  expect(m.subject).toBe('dbbackup: TEST on host1');
  expect(m.text).toMatch(/^test message\n(.*\n)*.*nothing is to be done/);
  expect(composeTest('app', { ...FACTS, newestGood: null }).text).not.toContain('NO good copy');
});

test('a guarded command that was rolled back: what became of the database, and where things are', () => {
  const m = composeRun(
    {
      ...INCOMPLETE,
      command: 'guard',
      status: 'rolled_back',
      copy: null,
      backupPoint: 'app-20261121T031700Z.db',
      child: { exitCode: 3, signal: null, durationMs: 1200, peakAnonBytes: 0 },
      setAside: '/b/.dbbackup/aside/x-failed',
      error: { code: 'COMMAND_FAILED', stage: 'command', message: 'the command exited with 3', hint: 'mend the command' },
    },
    'failure',
    FACTS,
  );
  expect(m.subject).toMatch(/ guard ROLLED BACK on host1: COMMAND_FAILED$/);
  expect(m.text).toContain('The database is what it was before the command.');
  for (const part of ['exit code 3 after 1.2 s', 'app-20261121T031700Z.db', '/b/.dbbackup/aside/x-failed']) {
    expect(m.text).toContain(part);
    expect(m.html).toContain(part);
  }
});

describe('hostile input', () => {
  const EVIL = '<img src=x onerror=alert(1)> & "q" \'s\' \u202Egpj.\r\nBcc: evil@example.org\u001b[31m';
  const RECORD: RunRecord = {
    ...INCOMPLETE,
    name: EVIL,
    profile: EVIL,
    runId: EVIL,
    source: { path: EVIL, sizeBytes: 1, walBytes: 1, journalMode: EVIL, pageSize: 1 },
    copy: { ...COPY, file: EVIL },
    warnings: [critical('CLOCK', EVIL), warning('HEALED', EVIL)],
    error: { code: EVIL, stage: 'prune', message: EVIL, hint: EVIL },
  };
  const HOSTILE: MessageFacts = {
    ...FACTS,
    host: EVIL,
    newestGood: { file: EVIL, ageSeconds: 1 },
    directory: EVIL,
    retry: EVIL,
    logLines: [EVIL, `<b>${'x'.repeat(9000)}`],
  };
  const all = (facts: MessageFacts): Message[] => [
    composeRun(RECORD, 'failure', facts),
    composeRun({ ...RECORD, copy: null, status: 'failed' }, 'failure', facts),
    composeRun({ ...RECORD, status: 'ok', error: null }, 'recovery', facts),
    composeStatus(EVIL, [critical('COPY_STALE', EVIL), warning('CLOCK', EVIL)], facts),
    composeTest(EVIL, facts),
  ];

  test('no line break reaches a header, no control or bidirectional character any part', () => {
    for (const m of all(HOSTILE)) {
      expect(m.subject).not.toMatch(UNPRINTABLE);
      expect(m.subject).toMatch(/^dbbackup: </);
      expect(m.subject.length).toBeLessThanOrEqual(203);
      for (const part of [m.text, m.html]) expect(part.replaceAll('\n', '')).not.toMatch(UNPRINTABLE);
      expect(m.text).not.toMatch(/^\s*Bcc:(?! evil@example\.org\\u\{1b\})/m);
    }
  });

  test('markup is text, and the page loads nothing', () => {
    for (const m of all(HOSTILE)) {
      expect(m.html).not.toContain('<img');
      expect(m.html).toContain('&lt;img src=x onerror=alert(1)&gt; &amp; &quot;q&quot; &#39;s&#39;');
      expect(m.html).not.toMatch(/https?:|url\(|<script|<link|<a |\ssrc="|@import/);
      const opened = [...m.html.matchAll(/<([a-z]\w*)/g)].map((t) => t[1]).filter((t) => t !== 'meta');
      const closed = [...m.html.matchAll(/<\/([a-z]\w*)/g)].map((t) => t[1]);
      expect(opened.toSorted()).toEqual(closed.toSorted());
    }
  });

  test('a mail stays small however much there is to say', () => {
    const many = Array.from({ length: 5000 }, (_, i) => warning('CLOCK', `${i} ${'w'.repeat(5000)}`));
    const m = composeRun({ ...FAILED, warnings: many, error: { code: 'X', stage: null, message: 'm'.repeat(1e6), hint: '' } }, 'failure', {
      ...FACTS,
      logLines: Array(5000).fill('y'.repeat(5000)),
    });
    expect(m.text.length + m.html.length).toBeLessThan(200_000);
    expect(m.text).toMatch(/and 4980 more/);
  });

  test('a log line is cut between characters', () => {
    const m = composeRun(FAILED, 'failure', { ...FACTS, logLines: ['😀'.repeat(500)] });
    expect(Buffer.from(m.text).toString('utf8')).toBe(m.text);
  });

  test('a secret is nowhere, wherever it came from', () => {
    const secret = 'hunter2';
    const leaky = JSON.parse(JSON.stringify(RECORD).replaceAll('evil', secret)) as RunRecord;
    const facts = {
      ...HOSTILE,
      host: `h-${secret}`,
      directory: `/b/${secret}`,
      retry: `run ${secret}`,
      logLines: [`log ${secret}`],
      newestGood: { file: `${secret}.db`, ageSeconds: 1 },
    };
    const messages = [
      composeRun(leaky, 'failure', facts),
      composeRun({ ...leaky, copy: null, status: 'failed' }, 'failure', facts),
      composeRun({ ...leaky, error: null, status: 'ok' }, 'recovery', facts),
      composeStatus(`n-${secret}`, leaky.warnings, facts),
      composeTest(`n-${secret}`, facts),
    ];
    for (const m of messages) expect(m.subject + m.text + m.html).not.toContain(secret);
  });
});
