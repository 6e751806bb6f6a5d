/**
 * The order in which names are given and taken, and what is synced in between. ext4 forgives a missing directory sync: it
 * persists the directory as a side effect of a later sync in it, so power cuts do not notice (traps, 46). The calls themselves do.
 */
import { readdirSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { join, relative } from 'node:path';
import { expect, test } from 'vitest';
import { type Copied, dataFiles, type Scene, scene, sceneWithCopy } from '../e2e/scene.js';
import {
  cannot,
  damage,
  dbbackup,
  holdExclusively,
  leaveSidecars,
  makeDatabase,
  type Options,
  start,
  startCommand,
  tempDirectory,
  until,
  useDatabase,
  wrap,
} from '../support/cli.js';
import { startHttp } from '../support/http.js';
import { descendants, openFiles } from './proof.js';
import { readTrace } from './trace.js';

const reason = cannot('strace');
if (reason) process.stderr.write(`not run here: the order of the calls: ${reason}\n`);

const COPY = 'backups/app-*';
const WORK = 'backups/.dbbackup/tmp/app-*';
const ASIDE = 'backups/.dbbackup/aside/app-*';

test.skipIf(reason)('what makes a copy durable happens, and in the right order; so does what removes one', { timeout: 60_000 }, async () => {
  const home = tempDirectory('order');
  const source = join(home, 'app.db');
  makeDatabase(source, { bytes: 100_000 });
  const args = ['run', source, '--to', join(home, 'made/backups')];

  const first = await traced(home, args);
  expectInOrder(first, ['make made', 'sync .', 'make made/backups', 'sync made']);
  expectInOrder(first, [
    `sync made/${WORK}/data.db`,
    `sync made/${WORK}/manifest.json`,
    `sync made/${WORK}`,
    `name made/${COPY}.db`,
    `name made/${COPY}.json`,
    'sync made/backups',
  ]);

  const [old = ''] = dataFiles(join(home, 'made/backups'));
  const second = await traced(home, [...args, '--keep-last', '1']);
  expectInOrder(second, [
    `name made/${COPY}.json`,
    'sync made/backups',
    `gone made/backups/${old}`,
    'sync made/backups',
    `gone made/backups/${old.replace(/db$/, 'json')}`,
    'sync made/backups',
  ]);

  const packed = await traced(home, [...args, '--compress', 'gzip']);
  expectInOrder(packed, [`sync made/${WORK}/data.db.packed`, `name made/${COPY}.db.gz`]);
});

test.skipIf(reason)('what a killed run or prune left is removed so that a power cut leaves the next command what it knows it by', async () => {
  const s = scene();
  const args = ['run', s.source, '--to', s.to, '--include', join(s.home, 'data')];
  expect((await dbbackup(args)).code).toBe(0);
  const [pruned = ''] = dataFiles(s.to);
  // Between the archive and the data.
  await dbbackup(args, { through: wrap.fault(join(s.home, 'trace'), [{ calls: 'link,linkat', signal: 'KILL', when: 2 }]) });
  const [killed = ''] = readdirSync(join(s.state, 'tmp'));
  rmSync(join(s.to, pruned));

  const base = `backups/${pruned.replace(/\.db$/, '')}`;
  const healed = await traced(s.home, args);
  expectInOrder(healed, [`gone ${COPY}.files.tar`, 'sync backups', `gone backups/.dbbackup/tmp/${killed}/manifest.json`]);
  expectInOrder(healed, [`gone ${base}.files.tar`, 'sync backups', `gone ${base}.json`, 'sync backups', `make ${WORK}`]);
});

test.skipIf(reason)('a copy that is not known to be on the disk loses its manifest before its data', async () => {
  const { s } = await sceneWithCopy();
  const args = ['run', s.source, '--to', s.to];
  expect((await dbbackup(args, { through: wrap.trace(join(s.home, 'clean'), 'fsync') })).code).toBe(0);
  const sync = readTrace(join(s.home, 'clean')).find((c) => c.line.includes(`<${s.to}>`));
  const failed = await traced(s.home, args, { inject: `fsync:error=EIO:when=${sync?.when}`, code: 1 });
  expectInOrder(failed, [`name ${COPY}.db`, `name ${COPY}.json`, 'sync backups', `gone ${COPY}.json`, `gone ${COPY}.db`]);
});

test.skipIf(reason)('a message is on the disk before it is sent, and forgotten for good', async () => {
  const { s } = await sceneWithCopy();
  const server = await startHttp();
  const outbox = 'backups/.dbbackup/outbox';
  const env = { DBBACKUP_WEBHOOK: server.url, DBBACKUP_NOTIFY_ON: 'success' };
  const calls = await traced(s.home, ['run', s.source, '--to', s.to], { env });
  await server.close();
  expect(server.taken).toHaveLength(1);
  expectInOrder(calls, [`name ${outbox}/*.webhook.json`, `sync ${outbox}`, `gone ${outbox}/*.webhook.json`, `sync ${outbox}`]);
});

interface WayBack {
  readonly args: (copied: Copied) => string[];
  /** Does something to the database or the copy first, and returns what ends it. */
  readonly before: (copied: Copied) => Promise<(() => Promise<unknown>) | undefined>;
  readonly code?: number;
  readonly order: readonly string[];
}

const into = ({ s, file }: Copied): string[] => ['restore', file, '--into', s.source, '--to', s.to, '--yes'];

test.skipIf(reason).each<[string, WayBack]>([
  [
    'a verdict stays in the manifest',
    {
      args: ({ s, file }) => ['verify', file, '--to', s.to],
      before: async ({ s, file }) => damage(join(s.to, file), 5000, Buffer.from('damage')) as undefined,
      code: 1,
      order: [`name ${COPY}.json`, 'sync backups'],
    },
  ],
  [
    'a file that was restored is there',
    {
      args: ({ s, file }) => ['restore', file, '-o', join(s.home, 'data/out.db'), '--to', s.to],
      before: async () => undefined,
      order: ['sync data/.dbbackup-*/restore.db', 'name data/out.db', 'gone data/.dbbackup-*/restore.db', 'sync data'],
    },
  ],
  [
    'a live database has the copy, though a reader keeps SQLite from bringing it home',
    {
      args: into,
      before: async ({ s }) => (await useDatabase(s.source, ['BEGIN', 'SELECT count(*) FROM beat'])).stop,
      // SQLite itself syncs the head of a new -wal, before it writes the copy there.
      order: [`name ${COPY}.json`, 'sync data/app.db-wal', 'sync data', 'sync data/app.db-wal', 'sync data', `gone ${WORK}/restore.db`],
    },
  ],
  [
    'files were exchanged',
    {
      args: into,
      before: async ({ s }) => {
        await leaveSidecars(s.source);
        truncateSync(s.source, 5000);
        return undefined;
      },
      order: [
        `name ${ASIDE}/restore.json`,
        `sync ${ASIDE}`,
        'sync backups/.dbbackup/aside',
        `name ${ASIDE}/app.db`,
        `sync ${ASIDE}`,
        `name ${ASIDE}/restore.json`,
        `sync ${ASIDE}`,
        `name ${ASIDE}/app.db-wal`,
        `name ${ASIDE}/app.db-shm`,
        `sync ${ASIDE}`,
        'sync data',
        'name data/app.db',
        'sync data',
        `name ${ASIDE}/restore.json`,
        `sync ${ASIDE}`,
      ],
    },
  ],
])('after a power cut %s', async (_, { args, before, code = 0, order }) => {
  const copied = await sceneWithCopy({ journal: 'wal', bytes: 100_000 });
  const stop = await before(copied);
  const calls = await traced(copied.s.home, args(copied), { code });
  await stop?.();
  expectInOrder(calls, order);
});

/** The disk tells a descriptor once that it has lost something. */
const noAttach = cannot('root', 'strace');
if (noAttach) process.stderr.write(`not run here: a disk that says once that it has lost something: ${noAttach}\n`);

test.skipIf(noAttach)('what the disk has lost of a copy is not forgotten when the child that checks it dies first', async () => {
  const s = scene();
  const { run } = await withFaults(s, 'mmap:signal=BUS:when=1', 'fsync:error=EIO:when=1');
  expect([run.code, run.json.error?.code, run.json.error?.stage, dataFiles(s.to)], run.stderr).toEqual([1, 'IO_ERROR', 'verify', []]);
});

test.skipIf(noAttach)('a snapshot of which the disk has lost a piece is made anew', { timeout: 60_000 }, async () => {
  const s = scene({ journal: 'delete', pageSize: 16_384, bytes: 60_000_000 });
  const { run, calls } = await withFaults(s, 'fdatasync:error=EIO', 'fsync:error=EIO:when=1');
  expect(run.code, run.stderr).toBe(0);
  expectInOrder(calls, [`sync ${WORK}/data.db`, `gone ${WORK}/data.db`, `sync ${WORK}/data.db`, `name ${COPY}.db`]);
});

// ------------------------------------------------------------------------------------------------------------- helpers

const VERBS: Readonly<Record<string, string>> = {
  ...{ fsync: 'sync', fdatasync: 'sync', mkdir: 'make', mkdirat: 'make', unlink: 'gone', unlinkat: 'gone' },
  ...{ link: 'name', linkat: 'name', rename: 'name', renameat: 'name', renameat2: 'name' },
};

const CALLS = Object.keys(VERBS)
  .map((call) => `?${call}`)
  .join(',');

/** One command, and its calls in the order in which they were begun, those of all its threads and children together: `sync data`, `name data/app.db`. */
async function traced(home: string, args: readonly string[], { inject, code = 0, env = {} }: { inject?: string; code?: number; env?: Options['env'] } = {}) {
  const log = join(home, 'calls');
  const faults = inject === undefined ? [] : ['-e', `inject=${inject}`];
  const through = ['strace', '-f', '-y', '-s', '4096', '-o', log, '-e', `trace=${CALLS}`, ...faults, '--'];
  const run = await dbbackup(args, { through, env });
  expect(run.code, run.stderr).toBe(code);
  return callsOf(home, log);
}

/** A run with faults in the calls on its snapshot alone: put in while it waits for its source, when it is known where that will be. */
async function withFaults(s: Scene, ...inject: readonly string[]) {
  const holder = await holdExclusively(s.source);
  // One thread, so that each `when` counts for all of them.
  const running = start(['run', s.source, '--to', s.to, '--json'], { env: { UV_THREADPOOL_SIZE: '1' } });
  await until('a child of the run to wait for its source', () => descendants(running.pid).some((pid) => openFiles(pid).includes(s.source)));
  const pids = [running.pid, ...descendants(running.pid)];
  const [work = ''] = readdirSync(join(s.state, 'tmp'));
  const log = join(s.home, 'calls');
  const only = ['-P', join(s.state, 'tmp', work, 'data.db'), '-e', `trace=mmap,${CALLS}`, ...inject.flatMap((fault) => ['-e', `inject=${fault}`])];
  const strace = startCommand(['strace', '-f', '-y', '-s', '4096', '-o', log, ...only, ...pids.flatMap((pid) => ['-p', String(pid)])]);
  await until('strace to be there', () => strace.stderr().split(' attached').length > pids.length);
  await holder.crash();
  const run = await running.result;
  await strace.result;
  return { run, calls: callsOf(s.home, log) };
}

function callsOf(home: string, log: string): string[] {
  return readFileSync(log, 'utf8')
    .split('\n')
    .flatMap((line) => {
      const [, call = '', rest = ''] = /^\d+ +(\w+)\((.*)/.exec(line) ?? [];
      const path = call.endsWith('sync') ? /<(.*?)>/.exec(rest)?.[1] : [...rest.matchAll(/"(.*?)"/g)].at(-1)?.[1];
      return path === undefined || line.includes('ENOENT') ? [] : [`${VERBS[call]} ${relative(home, path) || '.'}`];
    });
}

/** Each step comes somewhere after the one before it. A star is a part of a name. */
function expectInOrder(calls: readonly string[], steps: readonly string[]): void {
  let at = -1;
  for (const step of steps) {
    const is = new RegExp(
      `^${step
        .split('*')
        .map((part) => part.replace(/[.+]/g, '\\$&'))
        .join('[^/]*')}$`,
    );
    at = calls.findIndex((call, i) => i > at && is.test(call));
    expect(at, `${step}, after the step before it, in:\n${calls.join('\n')}`).toBeGreaterThan(-1);
  }
}
