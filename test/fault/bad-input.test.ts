/** Sources, targets and settings that cannot be used: the table of the contract's "Bad input, and what it gets". */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import {
  cannot,
  damage,
  dbbackup,
  directoryOf,
  executableFor,
  holdExclusively,
  makeDatabase,
  makeHotJournal,
  openTempDirectory,
  type Running,
  rootPage,
  start,
  until,
  wrap,
} from '../support/cli.js';
import { args, asUser, expectOneLine, NOBODY, PAGE, type Place, place, plain, type Row, rows, type Setup } from './bad-input.js';
import { Random } from './harness.js';
import { bindReadOnly, mountTmpfs } from './mounts.js';
import { listing, mustBeWhole, tempEntries } from './proof.js';

// ------------------------------------------------------------------------------------------------------------ source

rows('a source that is no database', [
  { what: 'nothing there', make: () => undefined, code: 1, error: 'SOURCE_MISSING', dry: true },
  { what: 'no such directory', make: (p) => ({ source: join(p.home, 'no/such/app.db') }), code: 1, error: 'SOURCE_MISSING', dry: true },
  { what: 'a link to nowhere', make: (p) => symlinkSync('gone.db', p.source) as undefined, code: 1, error: 'SOURCE_MISSING', dry: true },
  {
    what: 'links in a circle',
    make: (p) => {
      symlinkSync('b.db', p.source);
      symlinkSync('app.db', join(p.home, 'data/b.db'));
      return undefined;
    },
    code: 1,
    error: 'SOURCE_UNREADABLE',
    dry: true,
  },
  {
    what: 'a file where a directory should be',
    make: (p) => {
      writeFileSync(join(p.home, 'plain'), 'x');
      return { source: join(p.home, 'plain/app.db') };
    },
    code: 1,
    error: ['SOURCE_MISSING', 'SOURCE_UNREADABLE'],
    dry: true,
  },
  { what: 'a directory', make: (p) => mkdirSync(p.source) as undefined, code: 1, error: 'SOURCE_NOT_A_FILE', dry: true },
  {
    what: 'a FIFO',
    make: (p) => {
      execFileSync('mkfifo', [p.source]);
      return undefined;
    },
    code: 1,
    error: 'SOURCE_NOT_A_FILE',
    dry: true,
  },
  {
    what: 'a link to a FIFO',
    make: (p) => {
      execFileSync('mkfifo', [join(p.home, 'data/fifo')]);
      symlinkSync('fifo', p.source);
      return undefined;
    },
    code: 1,
    error: 'SOURCE_NOT_A_FILE',
    dry: true,
  },
  {
    what: 'a socket',
    make: async (p) => {
      const server = createServer();
      await new Promise<void>((done) => server.listen(p.source, done));
      return { after: () => server.close() };
    },
    code: 1,
    error: 'SOURCE_NOT_A_FILE',
    dry: true,
  },
  { what: 'a character device', make: () => ({ source: '/dev/zero' }), code: 1, error: 'SOURCE_NOT_A_FILE', dry: true },
  { what: 'a block device', make: () => ({ source: '/dev/loop0' }), code: 1, error: 'SOURCE_NOT_A_FILE', dry: true, needs: ['loop'] },
  { what: 'an empty file', make: (p) => writeFileSync(p.source, '') as undefined, code: 1, error: 'SOURCE_EMPTY', dry: true },
  { what: 'text', make: (p) => writeFileSync(p.source, 'id,name\n1,x\n'.repeat(2000)) as undefined, code: 1, error: 'NOT_A_DATABASE', dry: true },
  { what: 'ten bytes', make: (p) => writeFileSync(p.source, 'SQLite for') as undefined, code: 1, error: 'NOT_A_DATABASE', dry: true },
  {
    what: 'an encrypted database',
    make: (p) => writeFileSync(p.source, new Random(1).bytes(10 * PAGE)) as undefined,
    code: 1,
    error: 'NOT_A_DATABASE',
    dry: true,
  },
  {
    what: 'zeros',
    make: (p) => writeFileSync(p.source, new Uint8Array(10 * PAGE)) as undefined,
    code: 1,
    error: 'NOT_A_DATABASE',
    dry: true,
  },
]);

rows('a damaged source', [
  {
    what: 'the header alone',
    make: (p) => writeFileSync(p.source, 'SQLite format 3\0') as undefined,
    code: 1,
    error: ['SOURCE_CORRUPT', 'NOT_A_DATABASE'],
  },
  {
    what: 'cut off in the middle of a page',
    make: (p) => {
      plain(p);
      truncateSync(p.source, statSync(p.source).size / 2 + 1000);
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
  },
  {
    what: 'the last page missing',
    make: (p) => {
      plain(p);
      truncateSync(p.source, statSync(p.source).size - PAGE);
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
  },
  {
    what: 'an impossible page size in the header',
    make: (p) => {
      plain(p);
      damage(p.source, 16, Uint8Array.of(0x12, 0x34));
      return undefined;
    },
    code: 1,
    error: ['SOURCE_CORRUPT', 'NOT_A_DATABASE'],
  },
  {
    what: 'a garbled schema page',
    make: (p) => {
      plain(p);
      damage(p.source, 100, new Random(2).bytes(600));
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
  },
  {
    what: 'a zeroed table page',
    make: (p) => {
      plain(p);
      damage(p.source, (rootPage(p.source, 'invoice') - 1) * PAGE, new Uint8Array(PAGE));
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
  },
  {
    what: 'a zeroed index page',
    make: (p) => {
      plain(p);
      damage(p.source, (rootPage(p.source, 'invoice_customer') - 1) * PAGE, new Uint8Array(PAGE));
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
  },
  {
    what: 'an index that misses rows, which only the full check sees',
    make: (p) => {
      plain(p);
      const db = new Database(p.source);
      db.unsafeMode(true);
      const saved = db.prepare("SELECT * FROM sqlite_schema WHERE name = 'invoice_customer'").get() as Record<string, unknown>;
      db.exec("PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = 'invoice_customer'; PRAGMA writable_schema = reset");
      db.exec('INSERT INTO invoice (customer, cents) VALUES (1, 1)');
      db.exec('PRAGMA writable_schema = on');
      db.prepare('INSERT INTO sqlite_schema VALUES (@type, @name, @tbl_name, @rootpage, @sql)').run(saved);
      db.exec('PRAGMA writable_schema = reset');
      db.close();
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
  },
  {
    what: 'a freelist that claims pages it does not have',
    make: (p) => {
      plain(p);
      const db = new Database(p.source);
      db.exec('DELETE FROM invoice WHERE id % 2 = 0 OR id > 400');
      db.close();
      const bytes = Buffer.alloc(4);
      bytes.writeUInt32BE(3);
      damage(p.source, 36, bytes);
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
    suspect: true,
  },
  {
    what: 'a file in use that lost its end, where the pages are not in its -wal any more',
    make: (p) => {
      const app = new Database(p.source);
      app.pragma('journal_mode = wal');
      app.exec('CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b BLOB); INSERT INTO t VALUES (1, NULL, randomblob(90000))');
      app.pragma('wal_checkpoint(PASSIVE)');
      expect(statSync(`${p.source}-wal`).size).toBeGreaterThan(90_000);
      truncateSync(p.source, statSync(p.source).size - PAGE - 7);
      return { after: () => app.close() };
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
    suspect: true,
  },
  {
    what: 'one of two indexes alike damaged, which VACUUM would mend in the copy',
    make: (p) => {
      const db = new Database(p.source);
      db.exec(`CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT); CREATE INDEX one ON users (email); CREATE INDEX two ON users (email);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) INSERT INTO users (email) SELECT printf('user%05d', 2 * i) FROM n`);
      db.close();
      const at = readFileSync(p.source).indexOf('user00050', (rootPage(p.source, 'one') - 1) * PAGE);
      // Still in order.
      damage(p.source, at + 'user0005'.length, Buffer.from('1'));
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
    suspect: true,
  },
  {
    what: 'a list of free pages that names a page in use, beside a collation that only the application has',
    make: (p) => {
      const db = new Database(p.source);
      db.unsafeMode(true);
      db.exec(`CREATE TABLE word (t TEXT COLLATE NOCASE); INSERT INTO word VALUES ('b'); CREATE TABLE gone (x); INSERT INTO gone VALUES (randomblob(90000));
        CREATE TABLE keep (x); INSERT INTO keep VALUES (1); DROP TABLE gone;
        PRAGMA writable_schema = on; UPDATE sqlite_schema SET sql = replace(sql, 'NOCASE', 'german')`);
      db.close();
      const leaf = Buffer.alloc(4);
      leaf.writeUInt32BE(rootPage(p.source, 'keep'));
      const trunk = readFileSync(p.source).readUInt32BE(32);
      damage(p.source, (trunk - 1) * PAGE + 8, leaf);
      return undefined;
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
  },
  ...(['quick', 'full'] as const).map((how) => ({
    what: `a file that ends in the middle of a blob, where no check but of its length finds anything, source-check ${how}`,
    make: (p: Place) => {
      const db = new Database(p.source);
      db.exec('CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b BLOB); INSERT INTO t VALUES (1, NULL, randomblob(90000))');
      db.close();
      truncateSync(p.source, statSync(p.source).size - PAGE + 7);
      return { more: ['--source-check', how] };
    },
    code: 1,
    error: 'SOURCE_CORRUPT',
    suspect: true as const,
  })),
]);

rows('a source that cannot be read now', [
  {
    what: 'readable by its owner alone',
    make: (p) => {
      plain(p);
      chmodSync(p.source, 0o600);
      return asUser(p, NOBODY);
    },
    code: 1,
    error: 'SOURCE_UNREADABLE',
    needs: ['root', 'setpriv'],
    dry: true,
  },
  {
    what: 'in a directory that cannot be entered',
    make: (p) => {
      plain(p);
      chmodSync(join(p.home, 'data'), 0o700);
      return asUser(p, NOBODY);
    },
    code: 1,
    error: 'SOURCE_UNREADABLE',
    needs: ['root', 'setpriv'],
    dry: true,
  },
  {
    what: 'an idle WAL database in a directory that cannot be written',
    make: (p) => {
      makeDatabase(p.source);
      chmodSync(p.source, 0o644);
      return asUser(p, NOBODY);
    },
    code: 1,
    error: 'SOURCE_READONLY_DIRECTORY',
    needs: ['root', 'setpriv'],
    dry: true,
  },
  {
    what: 'an idle WAL database on a read-only mount',
    make: (p) => {
      makeDatabase(p.source);
      return { source: join(bindReadOnly(join(p.home, 'data')), 'app.db') };
    },
    code: 1,
    error: 'SOURCE_READONLY_DIRECTORY',
    needs: ['root', 'mount'],
    dry: true,
  },
  {
    what: 'held exclusively in rollback mode',
    make: async (p) => {
      plain(p);
      return { after: (await holdExclusively(p.source)).stop };
    },
    code: 1,
    error: 'SOURCE_LOCKED',
    slow: true,
  },
  {
    what: 'held exclusively in WAL mode',
    make: async (p) => {
      makeDatabase(p.source);
      return { after: (await holdExclusively(p.source)).stop };
    },
    code: 1,
    error: 'SOURCE_LOCKED',
    slow: true,
  },
  {
    what: 'a hot rollback journal',
    make: async (p) => {
      await makeHotJournal(p.source);
      return undefined;
    },
    code: 1,
    error: 'SOURCE_HOT_JOURNAL',
    dry: true,
  },
  {
    what: 'a hard link',
    make: (p) => {
      makeDatabase(p.source);
      linkSync(p.source, join(p.home, 'data/other.db'));
      return undefined;
    },
    code: 1,
    error: 'SOURCE_HARD_LINKED',
    dry: true,
  },
]);

const notRoot = cannot('root', 'setpriv');

test.skipIf(notRoot)(
  "a first run that is refused makes a directory for its record, unless the database is somebody else's, whom it would keep out",
  async () => {
    const home = openTempDirectory('first');
    const data = directoryOf(join(home, 'data'), 4001);
    const words = (to: string): string[] => ['run', join(data, 'missing.db'), '--to', to, '--json'];
    const asRoot = await dbbackup(words(join(home, 'backups')));
    expect([asRoot.code, asRoot.json.error?.code, existsSync(join(home, 'backups'))]).toEqual([1, 'SOURCE_MISSING', false]);
    const asOwner = await dbbackup(words(join(data, 'backups')), { through: wrap.as(4001), executable: executableFor(4001) });
    expect([asOwner.code, asOwner.json.error?.code]).toEqual([1, 'SOURCE_MISSING']);
    const { uid, mode } = statSync(join(data, 'backups/.dbbackup/history.db'));
    expect([uid, mode & 0o777]).toEqual([4001, 0o600]);
  },
);
if (notRoot) process.stderr.write(`not run here: another's directory is for others to read: ${notRoot}\n`);
test.skipIf(notRoot)("state of another user in one's own directory: the way out is to take it over, not to run as somebody else", async () => {
  const home = openTempDirectory('state-owner');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { journal: 'delete' });
  expect((await dbbackup(['run', source, '--to', to])).code).toBe(0);
  chownSync(join(to, '.dbbackup'), 1001, 1001);
  const run = await dbbackup(['run', source, '--to', to, '--json']);
  expect([run.code, run.json.error?.code], run.stderr).toEqual([78, 'TARGET_OWNER']);
  const chown = /chown -R root (\S+)$/.exec(run.json.error?.hint ?? '')?.[0] ?? '';
  expect([spawnSync('sh', ['-c', chown]).status, (await dbbackup(['run', source, '--to', to])).code], run.json.error?.hint).toEqual([0, 0]);
});

test.skipIf(notRoot)("another's directory, which this user may not look into: 78 TARGET_OWNER, and no word of a dying disk", async () => {
  const p = place();
  plain(p);
  expect((await dbbackup(args(p, {}))).code).toBe(0);
  const { options = {} } = asUser(p, NOBODY);
  for (const words of [['status'], ['list'], ['history'], ['verify']]) {
    const look = await dbbackup([...words, '--to', p.to, '--json'], options);
    expect([look.code, look.json.error?.code], look.stderr).toEqual([78, 'TARGET_OWNER']);
    expect(look.json.error?.hint).toMatch(/^run as its owner: sudo -u root /);
  }
});

test('a source that is replaced during the run: 1 SOURCE_REPLACED, nothing left', { timeout: 60_000 }, async () => {
  const p = place();
  plain(p);
  const holder = await holdExclusively(p.source);
  const running = start([...args(p, {}), '--json']);
  await until('the run to wait for its source', async () => (await dbbackup(['history', '--to', p.to, '--json'])).json.runs?.[0]?.status === 'running');
  const other = join(p.home, 'data/new.db');
  makeDatabase(other, { journal: 'delete' });
  renameSync(other, p.source);
  await holder.stop();
  const run = await running.result;
  expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'SOURCE_REPLACED']);
  expectOneLine(run, ['SOURCE_REPLACED']);
  mustBeWhole(p.to, 'after the run');
  expect(listing(p.to)).toBe('');
});

const noStrace = cannot('strace');
if (noStrace) process.stderr.write(`not run here: a source that is cut short during the run: ${noStrace}\n`);

/** With the snapshot under way: its child has seen that the file is the right one. */
async function inTheSnapshot(p: Place, journal: 'wal' | 'delete' = 'wal', bytes = 6_000_000): Promise<Running> {
  makeDatabase(p.source, { journal, bytes });
  const running = start([...args(p, {}), '--json'], { through: wrap.slow('pwrite64', Math.round(6e9 / bytes)) });
  await until('the snapshot to be under way', () => tempEntries(p.to).some((f) => f.endsWith('.db') && sizeAt(join(p.to, '.dbbackup/tmp', f)) > bytes / 60));
  return running;
}

test.skipIf(noStrace)('a source that is replaced while it is read: 1 SOURCE_REPLACED, nothing left', { timeout: 60_000 }, async () => {
  const p = place();
  // Large enough for two children: both have opened it by then.
  const running = await inTheSnapshot(p, 'wal', 18_000_000);
  renameSync(p.source, join(p.home, 'data/elsewhere.db'));
  makeDatabase(p.source, { journal: 'wal' });
  const run = await running.result;
  expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'SOURCE_REPLACED']);
  mustBeWhole(p.to, 'after the run');
  expect(listing(p.to)).toBe('');
});

test.skipIf(noStrace)('a snapshot that somebody writes to while it is checked is no copy', { timeout: 60_000 }, async () => {
  const p = place();
  makeDatabase(p.source, { journal: 'wal', bytes: 12_000_000 });
  // Read back slowly, so that there is time to do it.
  const running = start([...args(p, {}), '--json'], { through: wrap.slow('read', 3000) });
  await until('the snapshot to be there', () => running.stderr().includes('snapshot '), 30_000, 1);
  const [data = ''] = tempEntries(p.to).filter((f) => f.endsWith('data.db'));
  let touched = 0;
  const touch = (): boolean => {
    if (existsSync(join(p.to, '.dbbackup/tmp', data))) utimesSync(join(p.to, '.dbbackup/tmp', data), 1, ++touched);
    return !running.isRunning();
  };
  await until('the run to end', touch, 30_000, 1);
  const run = await running.result;
  expect([run.code, run.json.error?.code, run.json.copy], run.stderr).toEqual([1, 'VERIFY_FAILED', null]);
  expect(run.json.error?.message).toContain('the copy changed while it was checked');
  expect(listing(p.to)).toBe('');
});

test.skipIf(noStrace).each(['wal', 'delete'] as const)(
  'a source (%s mode) that is cut short while it is read, mapped or not: 1, called damaged or unreadable, nothing left',
  { timeout: 60_000 },
  async (journal) => {
    const p = place();
    const running = await inTheSnapshot(p, journal);
    truncateSync(p.source, 50_000);
    const run = await running.result;
    expect(run.code, run.stderr).toBe(1);
    expect(['SOURCE_CORRUPT', 'IO_ERROR'], run.stderr).toContain(run.json.error?.code);
    mustBeWhole(p.to, 'after the run');
    expect(listing(p.to)).toBe('');
  },
);

const sizeAt = (path: string): number => (existsSync(path) ? statSync(path).size : 0);

describe('what looks odd and is in order', () => {
  test.each([
    ['a rollback-mode database on a read-only mount', (p: Place) => plain(p), true],
    [
      'a journal that was finished and kept (PERSIST)',
      (p: Place) => {
        plain(p);
        const db = new Database(p.source);
        db.exec("PRAGMA journal_mode = persist; INSERT INTO beat (at) VALUES ('x')");
        db.close();
        if (!existsSync(`${p.source}-journal`)) throw new Error('no journal was kept');
      },
      false,
    ],
    [
      'a symbolic link to the database',
      (p: Place) => {
        makeDatabase(join(p.home, 'data/real.db'));
        symlinkSync('real.db', p.source);
      },
      false,
    ],
    [
      'a database without any table',
      (p: Place) => {
        const db = new Database(p.source);
        db.exec('PRAGMA user_version = 1');
        db.close();
      },
      false,
    ],
  ] as const)('%s: 0', { timeout: 60_000 }, async (_, make, readOnly) => {
    const reason = readOnly ? cannot('root', 'mount') : null;
    if (reason) {
      process.stderr.write(`not run here: ${reason}\n`);
      return;
    }
    const p = place();
    make(p);
    const source = readOnly ? join(bindReadOnly(join(p.home, 'data')), 'app.db') : p.source;
    const run = await dbbackup(['run', source, '--to', p.to, '--json']);
    expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
    expect(mustBeWhole(p.to, 'after the run').pairs.size).toBe(1);
  });
});

// ------------------------------------------------------------------------------------------------------------ target

/** A good source, and whatever the target is. */
const target =
  (make: (p: Place) => Setup): Row['make'] =>
  (p) => {
    makeDatabase(p.source);
    return make(p);
  };

rows('a target that cannot be used', [
  {
    what: 'a file',
    make: target((p) => {
      const to = join(p.home, 'file');
      writeFileSync(to, 'x');
      return { to };
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    dry: true,
    unrecorded: true,
  },
  {
    what: 'below a file',
    make: target((p) => {
      writeFileSync(join(p.home, 'file'), 'x');
      return { to: join(p.home, 'file/below') };
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    dry: true,
    unrecorded: true,
  },
  { what: 'below /proc', make: target(() => ({ to: '/proc/nope/backups' })), code: 1, error: 'TARGET_UNWRITABLE', unrecorded: true },
  {
    what: 'a link to nowhere',
    make: target((p) => {
      symlinkSync('gone', join(p.home, 'link'));
      return { to: join(p.home, 'link') };
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    dry: true,
    unrecorded: true,
  },
  {
    what: 'a link in a circle',
    make: target((p) => {
      symlinkSync('link', join(p.home, 'link'));
      return { to: join(p.home, 'link') };
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    dry: true,
    unrecorded: true,
  },
  {
    what: 'a link to a directory of ours',
    make: target((p) => {
      symlinkSync(p.to, join(p.home, 'link'));
      return { to: join(p.home, 'link') };
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    dry: true,
    unrecorded: true,
  },
  {
    what: "a link of another user's, who could turn it elsewhere",
    make: target((p) => {
      const link = join(p.home, 'link');
      execFileSync('ln', ['-s', p.to, link]);
      execFileSync('chown', ['-h', '4001', link]);
      return { to: link };
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    dry: true,
    needs: ['root'],
    unrecorded: true,
  },
  {
    what: 'on a read-only mount',
    make: target((p) => ({ to: bindReadOnly(p.to) })),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    dry: true,
    needs: ['root', 'mount'],
    unrecorded: true,
  },
  {
    what: 'where this user may not make it',
    make: target((p) => {
      chmodSync(p.source, 0o644);
      return { to: join(p.home, 'new'), options: { through: wrap.as(NOBODY), executable: executableFor(NOBODY) } };
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    needs: ['root', 'setpriv'],
    unrecorded: true,
  },
  {
    what: 'our own, and not writable',
    make: (p) => {
      makeDatabase(p.source, { journal: 'delete' });
      chmodSync(p.source, 0o644);
      const setup = asUser(p, NOBODY);
      chmodSync(setup.to ?? '', 0o500);
      return setup;
    },
    code: 1,
    error: 'TARGET_UNWRITABLE',
    needs: ['root', 'setpriv'],
    unrecorded: true,
  },
  {
    what: "another user's",
    make: target((p) => {
      chownSync(p.to, 4001, 4001);
      return {};
    }),
    code: 78,
    error: 'TARGET_OWNER',
    dry: true,
    needs: ['root'],
    unrecorded: true,
  },
  {
    what: 'writable by others',
    make: target((p) => {
      chmodSync(p.to, 0o777);
      return {};
    }),
    code: 78,
    error: 'TARGET_OWNER',
    dry: true,
    unrecorded: true,
  },
  {
    what: 'below a directory that others can write',
    make: target((p) => {
      const open = join(p.home, 'open');
      mkdirSync(open);
      chmodSync(open, 0o777);
      mkdirSync(join(open, 'backups'), { mode: 0o700 });
      return { to: join(open, 'backups') };
    }),
    code: 78,
    error: 'TARGET_OWNER',
    dry: true,
    unrecorded: true,
  },
  {
    what: "below another user's directory",
    make: target((p) => {
      const theirs = directoryOf(join(p.home, 'theirs'), 4001);
      mkdirSync(join(theirs, 'backups'), { mode: 0o700 });
      return { to: join(theirs, 'backups') };
    }),
    code: 78,
    error: 'TARGET_OWNER',
    dry: true,
    needs: ['root'],
    unrecorded: true,
  },
  {
    what: 'full',
    make: target(() => {
      const point = mountTmpfs(1 << 20);
      const to = join(point, 'backups');
      mkdirSync(to, { mode: 0o700 });
      const s = statfsSync(point);
      writeFileSync(join(point, 'filler'), Buffer.alloc(s.bavail * s.bsize));
      return { to };
    }),
    code: 1,
    error: 'NO_SPACE',
    dry: true,
    needs: ['root', 'mount'],
    unrecorded: true,
  },
  {
    what: 'with a file where the state directory should be',
    make: target((p) => {
      writeFileSync(join(p.to, '.dbbackup'), 'x');
      return {};
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    unrecorded: true,
  },
  {
    what: 'with a directory where the lock should be',
    make: target((p) => {
      mkdirSync(join(p.to, '.dbbackup/app.lock.db'), { recursive: true });
      return {};
    }),
    code: 1,
    error: 'TARGET_UNWRITABLE',
    unrecorded: true,
  },
]);

test("another user's target: the error holds the exact sudo line", { timeout: 60_000 }, async () => {
  const reason = cannot('root');
  if (reason) {
    process.stderr.write(`not run here: ${reason}\n`);
    return;
  }
  const p = place();
  makeDatabase(p.source);
  chownSync(p.to, NOBODY, NOBODY);
  const run = await dbbackup(['run', p.source, '--to', p.to, '--json']);
  expect(run.json.error?.hint).toContain(`sudo -u nobody`);
  expect(run.json.error?.hint).toContain(`run ${p.source} --to ${p.to}`);
  // Settings of the environment are not there for whom sudo makes of us; secrets are not said.
  const env = { DBBACKUP_TO: p.to, DBBACKUP_NAME: 'a name', DBBACKUP_WEBHOOK: 'https://example.org/hook/zzzzzzzzzz' };
  const from = await dbbackup(['run', p.source, '--json'], { env });
  expect(from.json.error?.hint).toContain(`sudo -u nobody env DBBACKUP_TO=${p.to} 'DBBACKUP_NAME=a name' `);
  expect(from.json.error?.hint).not.toMatch(/WEBHOOK|zzzz/);
});

describe('a target that can be used', () => {
  test.each([
    ['missing', (p: Place) => rmSync(p.to, { recursive: true }), 0o700],
    ['there, with a mode of its own', (p: Place) => chmodSync(p.to, 0o750), 0o750],
  ] as const)('%s: 0, and its mode is right', { timeout: 60_000 }, async (_, make, mode) => {
    const p = place();
    makeDatabase(p.source);
    make(p);
    const run = await dbbackup(['run', p.source, '--to', p.to, '--json'], { through: wrap.umask('000') });
    expect(run.code, run.stderr).toBe(0);
    expect(statSync(p.to).mode & 0o7777).toBe(mode);
    for (const file of readdirSync(join(p.to, '.dbbackup'), { recursive: true }) as string[]) {
      expect(statSync(join(p.to, '.dbbackup', file)).mode & 0o077, file).toBe(0);
    }
    mustBeWhole(p.to, 'after the run');
  });

  test('with missing parents: all are made, 0700', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    const to = join(p.to, 'a/b/c');
    const run = await dbbackup(['run', p.source, '--to', to, '--json']);
    expect(run.code, run.stderr).toBe(0);
    expect(['a', 'a/b', 'a/b/c'].map((d) => statSync(join(p.to, d)).mode & 0o777)).toEqual([0o700, 0o700, 0o700]);
    mustBeWhole(to, 'after the run');
  });
});

// ---------------------------------------------------------------------------------------------------------- settings

describe('settings that contradict or do not parse', () => {
  const SETTINGS: readonly [what: string, args: readonly string[], env: Record<string, string>, code: number, error: string, says: RegExp][] = [
    ['no target', ['run', '/x.db'], {}, 78, 'SETTINGS', /to is required/],
    ['no database', ['run', '--to', '/x'], {}, 78, 'SETTINGS', /database is required/],
    ['a policy that keeps nothing', ['run', '/x.db', '--to', '/x', '--keep-last', '0'], {}, 78, 'SETTINGS', /keep nothing/],
    ['no duration', ['run', '/x.db', '--to', '/x', '--timeout', 'soon'], {}, 78, 'SETTINGS', /timeout.*soon.*duration/],
    ['no count', ['run', '/x.db', '--to', '/x', '--keep-last', '-3'], {}, 78, 'SETTINGS', /keep-last/],
    ['an unknown choice', ['run', '/x.db', '--to', '/x', '--source-check', 'deep'], {}, 78, 'SETTINGS', /quick or full/],
    ['a bad name', ['run', '/x.db', '--to', '/x', '--name', '../up'], {}, 78, 'SETTINGS', /name/],
    ['an unknown variable', ['run', '/x.db', '--to', '/x'], { DBBACKUP_KEEP_LATS: '3' }, 78, 'SETTINGS', /DBBACKUP_KEEP_LATS.*did you mean DBBACKUP_KEEP_LAST/],
    ['mail-to without smtp-url', ['run', '/x.db', '--to', '/x', '--mail-to', 'a@example.org'], {}, 78, 'SETTINGS', /smtp-url/],
    ['a missing env file', ['run', '/x.db', '--to', '/x', '--env-file', '/no/such.env'], {}, 78, 'SETTINGS', /no\/such\.env/],
    ['a profile and an env file', ['run', '--profile', 'a', '--env-file', '/b'], {}, 78, 'SETTINGS', /exclude/],
    ['a missing profile', ['run', '--profile', 'nobody-has-this'], {}, 78, 'SETTINGS', /no profile/],
    ['an unknown flag', ['run', '/x.db', '--keep-lats', '3'], {}, 64, 'USAGE', /keep-lats/],
    ['an unknown command', ['backup', '/x.db'], {}, 64, 'USAGE', /backup/],
    ['two databases', ['run', '/x.db', '/y.db', '--to', '/x'], {}, 64, 'USAGE', /\S/],
    ['a flag without its value', ['run', '/x.db', '--to'], {}, 64, 'USAGE', /--to/],
  ];
  test.each(SETTINGS)('%s', { timeout: 60_000 }, async (_, words, env, code, error, says) => {
    const run = await dbbackup(
      [...words, '--json'].filter((w, i, all) => !(w === '--json' && all[i - 1] === '--to')),
      { env },
    );
    expect([run.code, run.json.error?.code ?? error], `${run.stdout}${run.stderr}`).toEqual([code, error]);
    expect(run.stderr.replaceAll('\n', ' ')).toMatch(says);
    expectOneLine(run, [error]);
    expect(existsSync('/x')).toBe(false);
  });

  test('all problems are told at once, each with its origin', { timeout: 60_000 }, async () => {
    const run = await dbbackup(['run', '/x.db', '--timeout', 'soon', '--json'], { env: { DBBACKUP_KEEP_LAST: 'many', DBBACKUP_TOO: '/y' } });
    expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
    for (const part of ['--timeout', 'DBBACKUP_KEEP_LAST', 'DBBACKUP_TOO', 'to is required']) expect(run.json.error?.message).toContain(part);
  });

  test.each([
    ['writable by others', 0o646, 0, /written by others/],
    ["another user's", 0o644, 4001, /4001/],
    ['with a secret that others can read', 0o644, 0, /secret/],
  ] as const)('an env file %s is refused', { timeout: 60_000 }, async (_, mode, uid, says) => {
    const p = place();
    const file = join(p.home, 'a.env');
    writeFileSync(
      file,
      `DBBACKUP_DATABASE=${p.source}\nDBBACKUP_TO=${p.to}\nDBBACKUP_MAIL_TO=a@example.org\nDBBACKUP_SMTP_URL=smtp://u:hunter2@localhost:25\n`,
    );
    chmodSync(file, mode);
    if (uid !== 0 && cannot('root') === null) chownSync(file, uid, uid);
    const run = await dbbackup(['run', '--env-file', file, '--json']);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([78, 'SETTINGS']);
    expect(run.stderr).toMatch(says);
    expect(run.stdout + run.stderr).not.toContain('hunter2');
    expect(listing(p.to)).toBe('');
  });
});

describe('two databases of one name', () => {
  test('the second is refused, NAME_TAKEN, until it is accepted once', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    const other = join(p.home, 'app.db');
    makeDatabase(other);
    expect((await dbbackup(['run', p.source, '--to', p.to])).code).toBe(0);
    const before = listing(p.to);
    for (const more of [['--dry-run'], []]) {
      const run = await dbbackup(['run', other, '--to', p.to, '--json', ...more]);
      expect([run.code, run.json.error?.code], run.stderr).toEqual([1, 'NAME_TAKEN']);
      expectOneLine(run, ['NAME_TAKEN']);
      expect(listing(p.to)).toBe(before);
    }
    expect((await dbbackup(['run', other, '--to', p.to, '--name', 'second'])).code).toBe(0);
    expect((await dbbackup(['run', other, '--to', p.to, '--accept-moved'])).code).toBe(0);
    expect((await dbbackup(['run', other, '--to', p.to])).code).toBe(0);
    expect((await dbbackup(['run', p.source, '--to', p.to])).code).toBe(1);
  });

  test('a database reached by another path is the same one', { timeout: 60_000 }, async () => {
    const p = place();
    makeDatabase(p.source);
    expect((await dbbackup(['run', p.source, '--to', p.to])).code).toBe(0);
    symlinkSync('data', join(p.home, 'link'));
    expect((await dbbackup(['run', join(p.home, 'link/app.db'), '--to', p.to])).code).toBe(0);
    // The application moved its file and left a link: the configured path is the same.
    const elsewhere = join(p.home, 'elsewhere');
    mkdirSync(elsewhere);
    renameSync(p.source, join(elsewhere, 'app.db'));
    symlinkSync('../elsewhere/app.db', p.source);
    const moved = await dbbackup(['run', p.source, '--to', p.to, '--json']);
    expect([moved.code, moved.json.error?.code]).toEqual([1, 'NAME_TAKEN']);
  });
});
