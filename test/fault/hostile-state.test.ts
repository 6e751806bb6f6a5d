/** State that somebody tampered with, and two runs whose state lies in different places: nothing is believed, and nobody sweeps the other's work. */
import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { cannot, dbbackup, makeDatabase, type Result, tempDirectory, useDatabase } from '../support/cli.js';
import { type Place, place } from './bad-input.js';
import { mustBeWhole } from './proof.js';

async function withOneRun(): Promise<Place & { history: string }> {
  const p = place();
  makeDatabase(p.source);
  const run = await dbbackup(['run', p.source, '--to', p.to]);
  if (run.code !== 0) throw new Error(run.stderr);
  return { ...p, history: join(p.to, '.dbbackup/history.db') };
}

describe('a history that is not ours any more: the run stands, and says so', () => {
  const SPOILT: readonly [what: string, spoil: (history: string) => void][] = [
    [
      'a trigger in it',
      (history) => {
        const db = new Database(history);
        db.exec('CREATE TRIGGER gotcha AFTER INSERT ON runs BEGIN DELETE FROM runs; END');
        db.close();
      },
    ],
    [
      'a view in place of its table',
      (history) => {
        const db = new Database(history);
        db.exec(
          "DROP TABLE runs; CREATE VIEW runs AS SELECT 1 AS seq, 'x' AS run_id, 'app' AS name, 'ok' AS status, 0 AS dry_run, '{}' AS process, '{}' AS record",
        );
        db.close();
      },
    ],
    ['text', (history) => writeFileSync(history, 'no database')],
    [
      'a FIFO for its journal',
      (history) => {
        execFileSync('mkfifo', [`${history}-journal`]);
      },
    ],
    [
      'a directory',
      (history) => {
        rmSync(history);
        mkdirSync(history);
      },
    ],
  ];

  test.each(SPOILT)('%s', { timeout: 60_000 }, async (_, spoil) => {
    const p = await withOneRun();
    spoil(p.history);
    const run = await dbbackup(['run', p.source, '--to', p.to, '--json']);
    expect([run.hung, run.code], run.stderr).toEqual([false, 0]);
    expect(run.json.warnings?.map((w) => w.code)).toContain('STATE_UNWRITABLE');
    mustBeWhole(p.to, 'after the run');
    for (const command of ['status', 'history', 'verify']) {
      const reading = await dbbackup([command, '--to', p.to, '--json']);
      expect([reading.hung, reading.isJson], `${command}: ${reading.stderr}`).toEqual([false, true]);
      expect(reading.code, command).not.toBe(70);
    }
  });
});

/**
 * Lays a journal beside a database whose rolling back removes `victim`: it names that as the super-journal of its transaction
 * (https://sqlite.org/fileformat2.html, "The Rollback Journal").
 */
function plantJournal(database: string, victim: string): void {
  if (!existsSync(database)) makeDatabase(database, { journal: 'delete', bytes: 1 });
  const pageSize = 4096;
  const magic = Buffer.from('d9d505f920a163d7', 'hex');
  const name = Buffer.from(victim);
  const numbers = (...all: number[]): Buffer => {
    const bytes = Buffer.alloc(4 * all.length);
    for (const [i, n] of all.entries()) bytes.writeUInt32BE(n, 4 * i);
    return bytes;
  };
  const header = Buffer.concat([magic, numbers(0, 0, statSync(database).size / pageSize, 512, pageSize)]);
  const sum = name.reduce((total, byte) => total + byte, 0);
  writeFileSync(
    `${database}-journal`,
    Buffer.concat([header, Buffer.alloc(512 - header.length), numbers(0x40000000 / pageSize + 1), name, numbers(name.length, sum), magic]),
  );
}

describe('a journal that names a file elsewhere removes nothing', () => {
  test('SQLite itself would follow it', () => {
    const directory = tempDirectory('journal');
    const victim = join(directory, 'victim');
    writeFileSync(victim, 'precious');
    plantJournal(join(directory, 'any.db'), victim);
    const db = new Database(join(directory, 'any.db'));
    db.prepare('SELECT count(*) FROM sqlite_schema').get();
    db.close();
    expect(existsSync(victim)).toBe(false);
  });

  test.each(['run', 'status', 'history', 'check', 'dry'])('beside the history: %s', async (command) => {
    const { source, to, history } = await withOneRun();
    const victim = join(tempDirectory('victim'), 'victim');
    writeFileSync(victim, 'precious');
    plantJournal(history, victim);
    const words = command === 'dry' ? ['run', source, '-n'] : command === 'run' || command === 'check' ? [command, source] : [command];
    const asked = await dbbackup([...words, '--to', to]);
    expect([asked.hung, asked.code === 70, existsSync(victim)], asked.stderr).toEqual([false, false, true]);
    if (command === 'run') expect([asked.code, asked.stderr], asked.stderr).toEqual([0, expect.stringContaining('STATE_UNWRITABLE')]);
  });

  test.each(['a journal', 'a FIFO'])('beside what has the name of the lock: %s', async (what) => {
    const { source, to } = await withOneRun();
    const lock = join(to, '.dbbackup/app.lock.db');
    const victim = join(tempDirectory('victim'), 'victim');
    writeFileSync(victim, 'precious');
    rmSync(lock);
    plantJournal(lock, victim);
    if (what === 'a FIFO') {
      rmSync(`${lock}-journal`);
      execFileSync('mkfifo', [`${lock}-journal`]);
    }
    const run = await dbbackup(['run', source, '--to', to, '--json'], { deadlineMs: 20_000 });
    expect([run.hung, run.code, run.json.error?.code, existsSync(victim)], run.stderr).toEqual([false, 1, 'TARGET_UNWRITABLE', true]);
    expect(run.json.error?.message).toContain('app.lock.db is no lock of ours');
    // One that is as it should be is opened, and what lies beside it does no harm.
    writeFileSync(lock, '');
    expect((await dbbackup(['run', source, '--to', to], { deadlineMs: 20_000 })).code).toBe(0);
    expect(existsSync(victim)).toBe(true);
  });

  test.skipIf(cannot('root') !== null)('nor does a stranger in a sticky directory, who makes the lock before us', async () => {
    const { source, to } = place();
    makeDatabase(source);
    const stateDir = tempDirectory('sticky');
    chmodSync(stateDir, 0o1777);
    const lock = join(stateDir, 'app.lock.db');
    writeFileSync(lock, '');
    chownSync(lock, 65_534, 65_534);
    const run = await dbbackup(['run', source, '--to', to, '--state-dir', stateDir, '--json'], { deadlineMs: 20_000 });
    expect([run.code, run.json.error?.code, run.json.error?.message], run.stderr).toEqual([78, 'TARGET_OWNER', expect.stringContaining('belongs to')]);
  });
});

test('a run with its state elsewhere waits for one that works in the same backup directory', { timeout: 60_000 }, async () => {
  const p = await withOneRun();
  const holder = await useDatabase(join(p.to, '.dbbackup/app.lock.db'), ['BEGIN IMMEDIATE']);
  const work = join(p.to, '.dbbackup/tmp/app-00000000-0000-4000-8000-000000000000');
  mkdirSync(work, { recursive: true });
  const elsewhere = join(p.home, 'state');
  const refused = await dbbackup(['run', p.source, '--to', p.to, '--state-dir', elsewhere, '--json']);
  expect([refused.code, refused.json.error?.code]).toEqual([75, 'LOCKED']);
  expect(existsSync(work)).toBe(true);
  await holder.stop();
  expect((await dbbackup(['run', p.source, '--to', p.to, '--state-dir', elsewhere])).code).toBe(0);
  // It is of no run that is on record there: whether it says that one was killed, those know whose state is in its usual place.
  expect(existsSync(work)).toBe(true);
  expect((await dbbackup(['run', p.source, '--to', p.to])).code).toBe(0);
  expect(readdirSync(join(p.to, '.dbbackup/tmp'))).toEqual([]);
});

test('a link and a file with the name of a workspace are cleared away, and nothing behind the link is', async () => {
  const home = tempDirectory('workspace-link');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'wal' });
  expect((await dbbackup(['run', source, '--to', to])).code).toBe(0);
  const elsewhere = join(home, 'elsewhere');
  mkdirSync(elsewhere);
  writeFileSync(join(elsewhere, 'precious'), 'not ours');
  const temp = join(to, '.dbbackup/tmp');
  symlinkSync(elsewhere, join(temp, `app-${randomUUID()}`));
  writeFileSync(join(temp, `app-${randomUUID()}`), 'no directory');
  const run = await dbbackup(['run', source, '--to', to, '--json']);
  expect([run.code, run.json.warnings, readdirSync(temp), readdirSync(elsewhere)], run.stderr).toEqual([0, [], [], ['precious']]);
});

test('what a living verify works on is not swept by a run beside it', { timeout: 60_000 }, async () => {
  const p = await withOneRun();
  const work = join(p.to, '.dbbackup/tmp/app-00000000-0000-4000-8000-000000000001');
  mkdirSync(work, { mode: 0o700 });
  const alive = await useDatabase(join(work, 'alive-1.lock.db'), ['BEGIN IMMEDIATE']);
  expect((await dbbackup(['run', p.source, '--to', p.to])).code).toBe(0);
  expect(existsSync(work)).toBe(true);
  await alive.crash();
  expect((await dbbackup(['run', p.source, '--to', p.to])).code).toBe(0);
  expect(existsSync(work)).toBe(false);
});

test('a source that is exchanged, and exchanged back, never gives a copy of another file than the one that was looked at', { timeout: 120_000 }, async () => {
  const p = place();
  makeDatabase(p.source, { journal: 'delete' });
  const other = join(p.home, 'other.db');
  makeDatabase(other, { journal: 'delete' });
  const db = new Database(other);
  db.exec('CREATE TABLE the_other (x); INSERT INTO the_other VALUES (zeroblob(100000))');
  db.close();
  const otherBytes = statSync(other).size;
  let stop = false;
  const swapping = (async (): Promise<number> => {
    let turns = 0;
    const third = join(p.home, 'third.db');
    while (!stop) {
      renameSync(p.source, third);
      renameSync(other, p.source);
      await new Promise((next) => setImmediate(next));
      renameSync(p.source, other);
      renameSync(third, p.source);
      turns++;
      await new Promise((next) => setImmediate(next));
    }
    return turns;
  })();
  const runs: Result[] = [];
  for (let round = 0; round < 12; round++) {
    runs.push(await dbbackup(['run', p.source, '--to', p.to, '--accept-moved', '--keep-last', 'all', '--json']));
  }
  stop = true;
  expect(await swapping).toBeGreaterThan(100);
  expect(runs.map((run) => run.code).filter((code) => code !== 0 && code !== 1)).toEqual([]);
  mustBeWhole(p.to, 'after the exchanges');
  // The two have different sizes, and the record says which one was looked at.
  for (const { json } of runs.filter((run) => run.code === 0)) {
    const copy = new Database(join(p.to, json.copy?.file ?? ''), { readonly: true });
    const isOther = copy.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'the_other'").get() !== undefined;
    copy.close();
    expect(isOther).toBe(json.source?.sizeBytes === otherBytes);
  }
});

const STRANGER = 4711;

describe.skipIf(cannot('root'))('a sticky directory in which a stranger puts things', () => {
  test('messages of a stranger are not sent in our name, and ours are not left with him', async () => {
    const p = place();
    makeDatabase(p.source);
    const state = join(p.home, 'state');
    mkdirSync(state);
    chmodSync(state, 0o1777);
    const sent = join(tempDirectory('sent'), 'mail');
    const program = join(p.home, 'send');
    writeFileSync(program, `#!/bin/sh\ncat >> '${sent}'\n`, { mode: 0o755 });
    const args = ['run', p.source, '--to', p.to, '--state-dir', state, '--json'];
    const env = { DBBACKUP_SMTP_URL: `sendmail:${program}`, DBBACKUP_MAIL_TO: 'ops@example.org', DBBACKUP_NOTIFY_ON: 'failure,success' };
    // A message as we queue it, and then as a stranger has it.
    const waiting = await dbbackup(args, { env: { ...env, DBBACKUP_SMTP_URL: 'smtp://127.0.0.1:1' } });
    expect(waiting.code, waiting.stderr).toBe(3);
    const outbox = join(state, 'outbox');
    const [letter = ''] = readdirSync(outbox).filter((file) => file.endsWith('.json'));
    for (const path of [outbox, join(outbox, letter)]) chownSync(path, STRANGER, STRANGER);
    writeFileSync(join(outbox, letter), readFileSync(join(outbox, letter), 'utf8').replaceAll('dbbackup: app OK', 'forged'));
    const run = await dbbackup(args, { env });
    expect([run.code, existsSync(sent) && readFileSync(sent, 'utf8')], run.stderr).toEqual([0, expect.not.stringContaining('forged')]);
    expect(readFileSync(sent, 'utf8')).toContain('dbbackup: app OK');
    chownSync(outbox, 0, 0);
    await dbbackup(args, { env });
    expect(readFileSync(sent, 'utf8')).not.toContain('forged');
    expect(readdirSync(outbox)).toContain(letter);
  });

  test('names that are all taken, and links that look like copies, keep nobody from anything', async () => {
    const p = place();
    makeDatabase(p.source);
    mkdirSync(p.to, { recursive: true });
    chmodSync(p.to, 0o1777);
    const from = Date.now();
    for (let i = 0; i < 30; i++) {
      const stamp = new Date(from + i * 1000).toISOString().slice(0, 19).replace(/[-:]/g, '');
      writeFileSync(join(p.to, `app-${stamp}Z-999999.files.tar`), '');
      chownSync(join(p.to, `app-${stamp}Z-999999.files.tar`), STRANGER, STRANGER);
    }
    for (const name of ['app-20260101T000000Z.db', 'app-20260101T000000Z.json']) {
      symlinkSync('/etc/shadow', join(p.to, name));
      lchownSync(join(p.to, name), STRANGER, STRANGER);
    }
    const run = await dbbackup(['run', p.source, '--to', p.to, '--json']);
    expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
    const verify = await dbbackup(['verify', '--all', '--to', p.to, '--json']);
    expect([verify.code, verify.json.results?.map((r) => r.file)], verify.stderr).toEqual([0, [run.json.copy?.file]]);
  });
});
