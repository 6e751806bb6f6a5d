/**
 * `dbbackup restore` when the world does not hold still: ended or killed in the middle, somebody busy beside the file that it
 * makes, targets among the copies, notes and texts that somebody else wrote. What there is afterwards is looked at row by row.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { descendants, processesAt } from '../fault/proof.js';
import {
  cannot,
  damage,
  dbbackup,
  EXECUTABLE,
  leaveSidecars,
  PATH,
  query,
  type Result,
  type Running,
  readJson,
  rootPage,
  signalTo,
  start,
  tempDirectory,
  until,
  useDatabase,
} from '../support/cli.js';
import { type Said, textOf } from '../support/manifest.js';
import { differences } from '../support/rows.js';
import { type Copied, dataFiles, type Scene, scene, sceneWithCopy, tree } from './scene.js';

const made = (journal: 'wal' | 'delete' = 'delete', bytes = 0): Promise<Copied> => sceneWithCopy({ journal, bytes });

const COPY_BYTES = 600_000;

/** A large copy of a database that is small now. Returns where its state of now is kept, to be compared with. */
async function shrunk(): Promise<Copied & { now: string }> {
  const m = await made('delete', COPY_BYTES);
  const db = new Database(m.s.source);
  db.exec('DELETE FROM setting; DELETE FROM invoice; DELETE FROM customer WHERE id > 5; VACUUM');
  db.close();
  const now = join(m.s.home, 'now.db');
  copyFileSync(m.s.source, now);
  return { ...m, now };
}

const codesOf = (r: Result): string[] => (r.json.warnings ?? []).map((w) => w.code);
const namesBeside = (s: Scene): string[] => readdirSync(dirname(s.source)).sort();
const temp = (s: Scene): string[] => readdirSync(join(s.state, 'tmp'));

// ------------------------------------------------------------------------------------------------------------ in the middle

/** More writes than it takes to put the small database back, fewer than the large copy needs. */
const MIDDLE = 60;

/** A restore whose child stands still in the middle of writing the copy into the live database. */
async function stoppedInTheMiddle({ s, file }: Copied): Promise<{ running: Running; pid: number }> {
  const log = join(tempDirectory('trace'), 'log');
  const through = [
    ...['strace', '-f', '-qq', '-o', log, '-P', s.source, '-e', 'trace=pwrite64'],
    ...['-e', `inject=pwrite64:signal=STOP:when=${MIDDLE}`, '--'],
  ];
  const running = start(['restore', file, '--into', s.source, '--yes', '--to', s.to, '--json'], { through });
  await until('the middle of the restore', () => existsSync(log) && readFileSync(log, 'utf8').includes('stopped by SIGSTOP'), 20_000);
  // The old state is in the journal now, and the database holds a mixture.
  expect(statSync(`${s.source}-journal`).size).toBeGreaterThan(0);
  const [pid = 0] = descendants(running.pid);
  return { running, pid };
}

describe('a live restore that is ended', () => {
  const noStrace = cannot('strace');

  test.skipIf(noStrace)('by Ctrl-C while it writes: over within 2 s, the old state, and no journal', async () => {
    const m = await shrunk();
    const { running, pid } = await stoppedInTheMiddle(m);
    const began = performance.now();
    signalTo(pid, 'SIGINT');
    const ended = await running.result;
    expect(performance.now() - began).toBeLessThan(2000);
    expect([ended.code, ended.json.status, ended.json.error?.code], ended.stderr).toEqual([130, 'interrupted', 'INTERRUPTED']);
    expect(codesOf(ended)).not.toContain('SOURCE_HOT_JOURNAL');
    // It does not know whether it had come to its end, and says what can be relied on, and the way back.
    expect(ended.json.error?.message).toBe(`ended by SIGINT; ${m.s.source} is the old database or the new one, whole`);
    expect(ended.json.error?.hint).toContain(`back to the old one: dbbackup restore ${ended.json.restored?.safetyCopy} --into ${m.s.source}`);
    expect(namesBeside(m.s)).toEqual(['app.db']);
    expect(differences(m.now, m.s.source)).toEqual([]);
    expect([temp(m.s), processesAt(m.s.home)]).toEqual([[], []]);
  });

  test('by Ctrl-C while it waits for a reader: over within 2 s, nothing has changed', async () => {
    const { s, now } = await shrunk();
    const reader = await useDatabase(s.source, ['BEGIN', 'SELECT count(*) FROM invoice']);
    const running = start(['restore', '--into', s.source, '--yes', '--to', s.to]);
    await until('the safety copy, after which it waits', () => running.stderr().includes('(before-restore)'));
    const began = performance.now();
    signalTo(running.pid, 'SIGINT');
    const ended = await running.result;
    expect(performance.now() - began).toBeLessThan(2000);
    expect([ended.code, ended.stderr.includes('INTERRUPTED')], ended.stderr).toEqual([130, true]);
    await reader.stop();
    expect(namesBeside(s)).toEqual(['app.db']);
    expect(differences(now, s.source)).toEqual([]);
    expect([temp(s), processesAt(s.home)]).toEqual([[], []]);
  });

  test.skipIf(noStrace)('by kill -9 while it writes: all who look and all that act say so, until a restore went well', async () => {
    const m = await shrunk();
    const { s, file, now } = m;
    const { running, pid } = await stoppedInTheMiddle(m);
    const died = async (): Promise<string[]> => {
      const { json } = await s.ask('status', ['--json']);
      return (json.problems ?? []).filter((p) => p.code === 'LAST_RUN_DIED').map((p) => `${p.severity}: ${p.message}`);
    };
    signalTo(pid, 'SIGKILL');
    expect((await running.result).signal).toBe('SIGKILL');
    await until('no child to survive', () => processesAt(s.home).length === 0, 3000);
    const safety = dataFiles(s.to).find((f) => f !== file) ?? '';
    const back = `restore ${safety} --into ${s.source}`;
    const [said, ...more] = await died();
    expect([said, more]).toEqual([
      expect.stringMatching(/^critical: restore of .* was killed before it could finish: .* is the old database as it was, or the new one, whole: look which/),
      [],
    ]);
    expect(said).toContain(back);
    const prune = await s.ask('prune', ['--json']);
    expect([prune.code, prune.json.warnings?.filter((w) => w.code === 'LAST_RUN_DIED')], prune.stderr).toEqual([
      0,
      [{ code: 'LAST_RUN_DIED', severity: 'critical', message: expect.stringContaining(back) }],
    ]);
    // Told once by those that act, and kept by status until it is put right.
    expect(codesOf(await s.ask('prune', ['--json']))).not.toContain('LAST_RUN_DIED');
    expect(await died()).toHaveLength(1);
    // The application opens it, and SQLite rolls back.
    const db = new Database(s.source);
    db.exec('BEGIN IMMEDIATE; COMMIT');
    db.close();
    expect([namesBeside(s), differences(now, s.source)]).toEqual([['app.db'], []]);
    const again = await s.ask('restore', [file, '--into', s.source, '--yes', '--json']);
    expect([again.code, differences(join(s.to, file), s.source)], again.stderr).toEqual([0, []]);
    expect(await died()).toEqual([]);
  });
});

/**
 * Closing any descriptor of a file drops all locks that the process has on it (traps, 8): while SQLite has a database open, nothing else in
 * that process opens it. `log` is of one process after the other, the calls on the database alone.
 */
function openTwice(log: string): { twice: string[]; locked: number } {
  const open = new Map<string, Set<string>>();
  const twice: string[] = [];
  let locked = 0;
  for (const line of readFileSync(log, 'utf8').split('\n')) {
    const [, process = '', call = '', rest = ''] = /^(\d+) +(\w+)\((.*)$/.exec(line) ?? [];
    const descriptors = open.get(process) ?? new Set<string>();
    open.set(process, descriptors);
    const opened = call === 'openat' ? / = (\d+)/.exec(rest)?.[1] : undefined;
    if (opened !== undefined) descriptors.add(opened);
    if (call === 'close') descriptors.delete(/^\d+/.exec(rest)?.[0] ?? '');
    if (descriptors.size > 1) twice.push(line);
    if (call === 'fcntl' && rest.includes('F_WRLCK')) locked++;
  }
  return { twice, locked };
}

const untraced = cannot('strace');
if (untraced) process.stderr.write(`not run here: what a live restore opens: ${untraced}\n`);

test.skipIf(untraced).each(['wal', 'delete'] as const)('no process of a live restore opens the database beside SQLite: %s', async (journal) => {
  const { s, file } = await made(journal, 300_000);
  const db = new Database(s.source);
  db.exec('DELETE FROM invoice');
  db.close();
  const log = join(tempDirectory('trace'), 'log');
  const through = ['strace', '-f', '-qq', '-o', log, '-P', s.source, '-e', 'trace=openat,close,fcntl', '--'];
  const restore = await s.ask('restore', [file, '--into', s.source, '--yes', '--json'], { through });
  expect([restore.code, differences(join(s.to, file), s.source)], restore.stderr).toEqual([0, []]);
  const { twice, locked } = openTwice(log);
  expect([twice, locked > 0]).toEqual([[], true]);
});

describe.skipIf(cannot('strace'))('a restore that is killed', () => {
  const killedAt = async (s: Scene, call: string, path: string): Promise<void> => {
    const through = ['strace', '-f', '-qq', '-o', '/dev/null', '-P', path, '-e', `trace=${call}`, '-e', `inject=${call}:signal=KILL:when=1`, '--'];
    const ended = await s.ask('restore', ['--into', s.source, '--yes'], { through });
    expect(ended.signal === 'SIGKILL' || ended.code === 137, ended.stderr).toBe(true);
  };
  const died = async (s: Scene): Promise<string> => {
    const told = await s.ask('prune', ['--json']);
    expect([told.code, codesOf(told).filter((code) => code === 'LAST_RUN_DIED')], told.stderr).toEqual([0, ['LAST_RUN_DIED']]);
    return told.json.warnings?.find(({ code }) => code === 'LAST_RUN_DIED')?.message ?? '';
  };

  test('while it makes a new database: what it left beside it is cleared away by the next command, also where that makes no copy', async () => {
    const { s } = await made('wal', 300_000);
    rmSync(s.source);
    await killedAt(s, 'link', s.source);
    expect(namesBeside(s)).toEqual([expect.stringMatching(/^\.dbbackup-/)]);
    expect(await died(s)).toContain(`${s.source} is the new database, whole, or what was there before: nothing, or a damaged one`);
    expect(namesBeside(s).filter((name) => name.startsWith('.dbbackup-') || name === 'app.db')).toEqual([]);
  });

  test('after it has taken the -wal aside: what its application commits then, and closes, is not written over by that', async () => {
    const { s } = await made('wal', 300_000);
    await leaveSidecars(s.source, { loop: "INSERT INTO beat (at) VALUES ('before')" });
    damage(s.source, (rootPage(s.source, 'setting') - 1) * 4096, Buffer.alloc(4096, 0x5a));
    await killedAt(s, 'rename', `${s.source}-shm`);
    expect(namesBeside(s)).not.toContain('app.db-wal');
    const app = new Database(s.source);
    app.exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO beat (at) SELECT 'after' FROM n");
    app.close();
    const told = await s.ask('prune', ['--json']);
    expect([told.code, told.json.warnings?.find(({ code }) => code === 'HEALED')?.message], told.stderr).toEqual([
      0,
      expect.stringContaining('the database was used since: it was left as it is'),
    ]);
    expect(query<number>(s.source, "SELECT count(*) FROM beat WHERE at = 'after'")).toBe(400);
  });

  test('before it came to its database: that is what is said of it', async () => {
    const { s, file } = await made('wal', 300_000);
    // While the copy is proven.
    await killedAt(s, 'openat', join(s.to, file));
    expect(await died(s)).toContain(`${s.source} was not touched: run the restore again`);
  });
});

test('a -wal or -journal that appears beside FILE while the copy is proven is not left to be read with it, also with --force', async () => {
  const { s } = await made('wal', 3_000_000);
  const stagings = (): string[] => readdirSync(s.home).filter((name) => name.startsWith('.dbbackup-'));
  for (const [suffix, force] of [
    ['-wal', []],
    ['-journal', []],
    ['-wal', ['--force']],
  ] as const) {
    const out = join(s.home, `out${suffix}${force}.db`);
    if (force.length > 0) writeFileSync(out, 'precious');
    const running = start(['restore', '-o', out, ...force, '--to', s.to, '--json']);
    await until('the copy to be proven beside FILE', () => stagings().length > 0, 10_000, 0);
    // It stands still: what is planted now is there before the new file gets its name.
    signalTo(running.pid, 'SIGSTOP');
    expect([stagings().length, existsSync(out)]).toEqual([1, force.length > 0]);
    writeFileSync(out + suffix, 'rows of another');
    signalTo(running.pid, 'SIGCONT');
    const refused = await running.result;
    expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([1, 'TARGET_EXISTS']);
    expect(refused.json.error?.message).toContain(out + suffix);
    expect(existsSync(out) ? readFileSync(out, 'utf8') : null).toBe(force.length > 0 ? 'precious' : null);
    expect(readFileSync(out + suffix, 'utf8')).toBe('rows of another');
    expect(stagings()).toEqual([]);
  }
});

// ---------------------------------------------------------------------------------------------------------------- targets

/** Where nothing may be restored to. `s.home/state` is the state directory, `s.home/way` leads to the backup directory, `s.home/other` to the state. */
const AMONG_THE_COPIES: readonly (readonly [what: string, target: (s: Scene, file: string) => string, way: '-o' | '--into'])[] = [
  ['a new file in the backup directory', (s) => join(s.to, 'new.db'), '-o'],
  ['a new database in it', (s) => join(s.to, 'new.db'), '--into'],
  ['the same over a link', (s) => join(s.home, 'way/new.db'), '-o'],
  ['a directory below it', (s) => join(s.to, 'below/new.db'), '--into'],
  ['the copy itself', (s, file) => join(s.to, file), '-o'],
  ['the copy itself over a link', (s, file) => join(s.home, 'way', file), '--into'],
  ['what is hidden in it', (s) => join(s.to, '.dbbackup/tmp/new.db'), '-o'],
  ['the state directory', (s) => join(s.home, 'state/new.db'), '-o'],
  ['the history over a link', (s) => join(s.home, 'other/history.db'), '--into'],
];

test('Ctrl-C at the question is a signal', async () => {
  const { s } = await sceneWithCopy();
  const line = [EXECUTABLE, 'restore', '--into', s.source, '--to', s.to].join(' ');
  const child = spawn('script', ['-qec', line, '/dev/null'], { env: { PATH, TERM: 'xterm' }, stdio: ['pipe', 'pipe', 'inherit'] });
  let seen = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    seen += text;
  });
  const ended = once(child, 'close');
  await until('the question', () => seen.includes('[y/N]'));
  child.stdin.write('\u0003');
  expect([(await ended)[0], seen], seen).toEqual([130, expect.stringContaining('INTERRUPTED')]);
});

test('a database that lives below the backup directory gets its copy back', async () => {
  const s = scene();
  const source = join(s.to, 'data/app.db');
  mkdirSync(dirname(source), { recursive: true, mode: 0o700 });
  chmodSync(s.to, 0o700);
  renameSync(s.source, source);
  expect((await dbbackup(['run', source, '--to', s.to])).code).toBe(0);
  const back = await s.ask('restore', ['--into', source, '--yes', '--json']);
  expect([back.code, back.json.error], back.stderr).toEqual([0, null]);
});

test('no target lies among the copies or the state, whatever the way to it', async () => {
  const s = scene();
  const state = ['--state-dir', join(s.home, 'state')];
  expect((await s.run(state)).code).toBe(0);
  const file = dataFiles(s.to)[0] ?? '';
  mkdirSync(join(s.to, 'below'));
  symlinkSync(s.to, join(s.home, 'way'));
  symlinkSync(join(s.home, 'state'), join(s.home, 'other'));
  // The refusals are recorded: in the history and the log, and nowhere else.
  const rest = (): string[] => tree(s.home).filter((line) => !/^state( |\/(history\.db|log\b))/.test(line));
  const before = rest();
  const refusals = await Promise.all(
    AMONG_THE_COPIES.map(([, target, way]) =>
      s.ask('restore', [file, '--force', '--json', ...state, ...(way === '-o' ? ['-o'] : ['--yes', '--into']), target(s, file)]),
    ),
  );
  expect(refusals.map((r, i) => [AMONG_THE_COPIES[i]?.[0], r.code, r.json.error?.code, r.json.error?.message.includes('among the copies')])).toEqual(
    AMONG_THE_COPIES.map(([what]) => [what, 1, 'RESTORE_FAILED', true]),
  );
  expect(rest()).toEqual(before);
  // The way beside it is free.
  expect((await s.ask('restore', [...state, '-o', join(s.home, 'elsewhere.db')])).code).toBe(0);
});

test('a suspect copy is never the latest, and restored by name it is said what it is', async () => {
  const s = scene();
  const db = new Database(s.source);
  db.unsafeMode();
  // A page that belongs to nothing: damage that a VACUUM does not copy.
  db.exec("PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'beat'");
  db.close();
  expect((await s.run()).code).toBe(1);
  const file = dataFiles(s.to)[0] ?? '';
  const out = join(s.home, 'out.db');
  const latest = await s.ask('restore', ['-o', out, '--json']);
  expect([latest.code, latest.json.error?.code, existsSync(out)]).toEqual([1, 'COPY_NOT_FOUND', false]);
  expect(latest.json.error?.message).toContain(`by name there would be ${file} (suspect)`);
  const warned = [{ code: 'SOURCE_CORRUPT', severity: 'critical', message: expect.stringMatching(new RegExp(`^${file} is suspect: .* rows may be missing`)) }];
  const asFile = await s.ask('restore', [file, '-o', out, '--json']);
  expect([asFile.code, asFile.json.warnings], asFile.stderr).toEqual([0, warned]);
  expect(differences(join(s.to, file), out)).toEqual([]);
  // Also where only what is critical is said.
  const into = await s.ask('restore', [file, '--into', s.source, '--yes', '--quiet']);
  expect([into.code, into.stderr]).toEqual([0, expect.stringMatching(new RegExp(`^dbbackup: critical SOURCE_CORRUPT: ${file} is suspect`, 'm'))]);
  expect(differences(join(s.to, file), s.source)).toEqual([]);
});

// ------------------------------------------------------------------------------------------------------------ notes in aside/

const STRANGER = 4711;

/** What a note says that a killed restore left before the new file took the name: then sidecars go back to the database. */
function noteFor(s: Scene): Record<string, unknown> {
  const { ino } = lstatSync(s.source);
  return { target: s.source, name: 'app', runId: '00000000-0000-4000-8000-000000000000', state: 'moving', newIno: 1, oldIno: ino, staged: null };
}

/** A set-aside with a -wal that would go beside the database. Returns its directory. */
function plantAside(s: Scene, note: Record<string, unknown>, number = 0): string {
  const directory = join(s.state, `aside/app-20260101T000000Z-00000000-0000-4000-8000-00000000000${number}`);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  writeFileSync(join(directory, 'app.db-wal'), 'planted');
  writeNote(directory, note);
  return directory;
}

/** As the restore would have written it in that very directory. */
function writeNote(directory: string, note: Record<string, unknown>): void {
  writeFileSync(join(directory, 'restore.json'), JSON.stringify({ hereIno: lstatSync(directory).ino, ...note }), { mode: 0o600 });
}

/** Notes that are not believed. */
const FOREIGN: readonly (readonly [what: string, spoil: (directory: string, s: Scene) => void])[] = [
  ['of another user', (directory) => chownSync(join(directory, 'restore.json'), STRANGER, STRANGER)],
  ["in another user's directory", (directory) => chownSync(directory, STRANGER, STRANGER)],
  [
    'behind a link',
    (directory, s) => {
      spawnSync('mv', [join(directory, 'restore.json'), join(s.home, 'note.json')]);
      symlinkSync(join(s.home, 'note.json'), join(directory, 'restore.json'));
    },
  ],
  [
    'that is a FIFO',
    (directory) => {
      spawnSync('sh', ['-c', 'rm "$0"; mkfifo "$0"', join(directory, 'restore.json')]);
    },
  ],
  ['without end', (directory) => writeFileSync(join(directory, 'restore.json'), readFileSync(join(directory, 'restore.json'), 'utf8').padEnd(65_537))],
  ['of another name', (directory, s) => writeNote(directory, { ...noteFor(s), name: 'other' })],
  ['in a state that there is not', (directory, s) => writeNote(directory, { ...noteFor(s), state: 'please' })],
  ['that came with files from elsewhere', (directory, s) => writeNote(directory, { ...noteFor(s), hereIno: 1 })],
  ['that is null', (directory) => writeFileSync(join(directory, 'restore.json'), 'null')],
  ['with an inode in words', (directory, s) => writeNote(directory, { ...noteFor(s), oldIno: `${lstatSync(s.source).ino}` })],
];

test.skipIf(cannot('root'))('a note in aside/ is followed when it is ours, and then at the place of the restore alone', async () => {
  const { s } = await made();
  const aside = join(s.state, 'aside');
  const look = (): string[] => [...tree(aside), ...tree(dirname(s.source))];
  const mustBeIgnored = async (what: string): Promise<void> => {
    const before = look();
    const next = await s.ask('prune', ['--json'], { deadlineMs: 10_000 });
    expect([next.hung, next.code, codesOf(next)], `${what}: ${next.stderr}`).toEqual([false, 0, []]);
    expect(look(), what).toEqual(before);
    rmSync(aside, { recursive: true });
  };
  for (const [i, [, spoil]] of FOREIGN.entries()) spoil(plantAside(s, noteFor(s), i), s);
  await mustBeIgnored(FOREIGN.map(([what]) => what).join(', '));
  chownSync(dirname(plantAside(s, noteFor(s))), STRANGER, STRANGER);
  await mustBeIgnored("in an aside/ of another user's");

  // A target that is another file than the one that was set aside; and a second name of the database that is no staging of ours.
  const elsewhere = join(s.home, 'elsewhere');
  mkdirSync(elsewhere);
  copyFileSync(s.source, join(elsewhere, 'app.db'));
  linkSync(s.source, join(elsewhere, 'second.db'));
  const planted = [
    plantAside(s, { ...noteFor(s), target: join(elsewhere, 'app.db') }, 1),
    plantAside(s, { ...noteFor(s), newIno: lstatSync(s.source).ino, oldIno: 1, staged: join(elsewhere, 'second.db') }, 2),
  ];
  const before = [...tree(elsewhere), ...tree(dirname(s.source))];
  expect((await s.ask('prune')).code).toBe(0);
  expect([...tree(elsewhere), ...tree(dirname(s.source))]).toEqual(before);
  for (const directory of planted) expect(readFileSync(join(directory, 'app.db-wal'), 'utf8')).toBe('planted');
  rmSync(join(elsewhere, 'second.db'));
  rmSync(aside, { recursive: true });

  const ours = plantAside(s, noteFor(s));
  const next = await s.ask('prune', ['--json']);
  expect([next.code, codesOf(next)], next.stderr).toEqual([0, ['HEALED']]);
  expect([readFileSync(`${s.source}-wal`, 'utf8'), readdirSync(ours)]).toEqual(['planted', ['restore.json']]);
});

test('what a killed restore left for a place that is gone keeps no copy from being made', async () => {
  const { s } = await made();
  // Of a database that was not there; the directory is not there either any more.
  const directory = plantAside(s, { ...noteFor(s), oldIno: null, target: join(s.home, 'unmounted/app.db') });
  for (const turn of ['first', 'second']) {
    const run = await s.run(['--json', '--source-check', 'quick']);
    expect([run.code, run.json.copy?.status, codesOf(run)], `${turn}: ${run.stderr}`).toEqual([0, 'good', expect.arrayContaining(['HEAL_FAILED'])]);
    expect(run.json.warnings?.find(({ code }) => code === 'HEAL_FAILED')?.message).toContain(directory);
    expect(readdirSync(directory).sort()).toEqual(['app.db-wal', 'restore.json']);
  }
  // Whoever looks sees it, too; the copies are fresh all the same.
  const status = await s.ask('status', ['--json']);
  expect([status.code, status.json.problems?.map(({ code, severity }) => [code, severity])]).toEqual([0, [['HEAL_FAILED', 'critical']]]);
});

// ---------------------------------------------------------------------------------------------------------------- the question

const noTerminal = spawnSync('script', ['--version']).status !== 0;

test.skipIf(noTerminal)('no text from a manifest or a name reaches the terminal raw, neither in the question nor after it', async () => {
  const { s, file } = await made();
  const { selfSha256: _, ...said } = readJson(join(s.to, file.replace(/db$/, 'json'))) as Said & { selfSha256: string };
  const title = '\u001b]0;owned\u0007';
  const bidi = '\u202e';
  writeFileSync(join(s.to, file.replace(/db$/, 'json')), textOf(said, { source: `/srv/${title}${bidi}app.db\nReplaced.`, tool: title }));
  const onTerminal = (words: readonly string[], typed: string): { code: number | null; text: string } => {
    const line = [EXECUTABLE, 'restore', ...words, '--to', s.to].map((word) => `'${word}'`).join(' ');
    const { status, stdout } = spawnSync('script', ['-qec', line, '/dev/null'], { input: typed, encoding: 'utf8', env: { PATH, TERM: 'xterm' } });
    return { code: status, text: stdout };
  };
  const mustBeSafe = (text: string): void => {
    for (const raw of [title, '\u001b]', '\u0007', bidi, '\nReplaced.']) expect(text).not.toContain(raw);
  };
  const asked = onTerminal(['--into', s.source], 'n\n');
  expect([asked.code, asked.text]).toEqual([64, expect.stringContaining('of /srv/\\u{1b}]0;owned\\u{7}\\u{202e}app.db\\u{a}Replaced.)? [y/N]')]);
  mustBeSafe(asked.text);
  const answered = onTerminal(['--into', s.source], 'y\n');
  expect([answered.code, answered.text]).toEqual([0, expect.stringContaining('(before-restore)')]);
  mustBeSafe(answered.text);
  const refused = onTerminal([`${title}.db`, '--into', s.source], '');
  expect([refused.code, refused.text]).toEqual([1, expect.stringContaining('\\u{1b}]0;owned\\u{7}.db')]);
  mustBeSafe(refused.text);
  expect(readdirSync(s.home).sort()).toEqual(['backups', basename(dirname(s.source))]);
});
