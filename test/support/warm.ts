/**
 * Part of `npm run build`: has the program and its children do what they do every night, and keeps what V8 compiled for it. It is no
 * test: where something cannot be done here, less is kept.
 *
 *   warm.ts program DIRECTORY   the program, and below it
 *   warm.ts CHILD               one of its children, which is asked through the usual pipes
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { basename, join } from 'node:path';
import type { Readable } from 'node:stream';
import Database from 'better-sqlite3';
import type { Started } from '../../src/app.js';
import type { DirectoryTarget, Numbered, S3Target } from '../../src/destinations/child-protocol.js';
import { ROOT, type Script } from '../../src/own-files.js';
import type * as precompiled from '../../src/precompiled.js';
import type { Request } from '../../src/system/worker-protocol.js';

const DIST = join(ROOT, 'dist');
// The very one that loads the parts of the program, since it knows which it has loaded.
const { parts, sealed } = createRequire(DIST)(join(DIST, 'precompiled.js')) as typeof precompiled;

const load = (name: string): unknown => createRequire(DIST)(join(DIST, `${name}.js`)) as unknown;

/** Keeps what V8 has compiled so far of all that was loaded. */
function keep(): void {
  for (const [path, { script }] of parts) {
    writeFileSync(path.replace(/\.js$/, '.v8'), sealed(readFileSync(path), script.createCachedData()));
  }
}

/** A child's own side: what it compiled is kept when it has answered all and its standard input has ended. */
function beChild(name: string): void {
  // It serves its parent alone, which it is told in its first argument.
  process.argv[2] = String(process.ppid);
  process.on('exit', keep);
  load(name);
}

/** Asks a child for all this, and waits for its end. */
async function ask(name: Script, requests: readonly object[]): Promise<void> {
  const child = spawn(process.execPath, ['--import', 'tsx', import.meta.filename, name], {
    stdio: ['pipe', 'ignore', 'inherit', 'pipe', 'ignore'],
    cwd: ROOT,
    env: { PATH: process.env['PATH'], AWS_ACCESS_KEY_ID: 'a', AWS_SECRET_ACCESS_KEY: 'b', AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true' },
  });
  (child.stdio[3] as Readable).resume();
  child.stdin?.end(requests.map((request) => `${JSON.stringify(request)}\n`).join(''));
  await once(child, 'close');
}

/** @param directory an empty one, of which nothing needs to stay */
async function beProgram(directory: string): Promise<void> {
  // Not where the sources are: a developer's own .env there would be obeyed, and tell people, and store at real places.
  process.chdir(directory);
  // Answers every request like an empty bucket, and whatever it is sent like a full one.
  const server = createServer((request, response) => {
    request.resume().on('end', () => response.setHeader('connection', 'close').end(request.method === 'GET' ? '<ListBucketResult></ListBucketResult>' : ''));
  });
  try {
    const database = join(directory, 'built.db');
    const to = join(directory, 'backups');
    new Database(database).exec('PRAGMA journal_mode = WAL; CREATE TABLE t (a PRIMARY KEY, b CHECK (b IN (2, 3))); INSERT INTO t VALUES (1, 2)').close();

    const { app } = load('app') as typeof import('../../src/app.js');
    const command = (...argv: string[]): Promise<number> =>
      app({
        argv,
        script: 'dbbackup',
        env: { PATH: process.env['PATH'] },
        childEnv: { PATH: process.env['PATH'] },
        umask: 0o022,
        journal: false,
        signals: new AbortController().signal,
        earlyWorker: null,
        leave: () => undefined,
      } satisfies Started);
    const commands = [
      ['run', database],
      ['run', database, '--keep-last', '1'],
      ['run', database, '--dry-run'],
      ...['list', 'status', 'history', 'prune'].map((looking) => [looking, '--json']),
      ['check', database, '--json', '--quiet'],
      ['verify'],
    ];
    for (const words of commands) {
      const code = await command(...words, '--to', to);
      if (code !== 0) process.stderr.write(`build: "dbbackup ${words[0]}" ended with ${code}, so less is kept of what V8 compiled\n`);
    }
    // Not used here, but what they do when they are loaded is always the same.
    for (const file of readdirSync(join(ROOT, 'src/libraries'))) load(basename(file, '.ts'));
    keep();

    const { dev, ino } = statSync(database);
    const source = { source: database, dev, ino, busyMs: 0, mmap: true };
    const copy = { file: join(directory, 'copy.db'), mmap: true, cellSizeCheck: false };
    await ask('sqlite-worker', [
      { op: 'snapshot', target: copy.file, ...source },
      { op: 'check-source', mode: 'quick', ...source },
      { op: 'describe', ...copy },
      { op: 'check-table', table: 't', part: 'without constraints', ...copy },
      { op: 'check-table', table: 't', part: 'constraints', ...copy },
      { op: 'check-structure', how: 'accounting', ...copy },
    ] satisfies Request[]);

    const sent = { file: database, expected: { sizeBytes: statSync(database).size, sha256: '0'.repeat(64) } };
    const place: DirectoryTarget = { path: directory, apartFrom: [], shown: 'here' };
    await ask('directory-child', [
      { number: 1, op: 'list', target: place },
      { number: 2, op: 'put', name: 'sent', ...sent, target: place },
    ] satisfies Numbered<DirectoryTarget>[]);

    await once(server.listen(0, '127.0.0.1'), 'listening');
    const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const patience = { connectMs: 1000, idleMs: 1000 };
    const bucket = { bucket: 'b', prefix: '', region: null, storageClass: null, forcePathStyle: true, shown: 'there' };
    const target: S3Target = { endpoint, ...bucket, ...patience };
    await ask('s3-child', [
      { number: 1, op: 'list', target },
      { number: 2, op: 'put', name: 'sent', ...sent, target },
      { number: 3, op: 'remove', name: 'sent', target },
    ] satisfies Numbered<S3Target>[]);
  } finally {
    server.close();
  }
}

const [what = '', directory] = process.argv.slice(2);
if (directory !== undefined) await beProgram(directory);
else beChild(what);
