/**
 * Destinations that misbehave: whatever a server does, nothing counts as stored that is not, what is wrong is taken back, no process
 * stays, and no secret is in a message or in an argv.
 */

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Destination, DestinationError, Patience } from '../../src/destinations/destination.js';
import { PATIENCE } from '../../src/destinations/destination.js';
import { destination } from '../../src/destinations/url.js';
import { UNPRINTABLE } from '../../src/settings/values.js';
import { cannot, ROOT, tempDirectory, until } from '../support/cli.js';
import type { Found } from '../support/destinations.js';
import { BUILT, bytesOf, localFile, markedEnvironment, noRclone, openDestination, rejection } from '../support/destinations.js';
import type { FakeS3, Fault, Operation } from '../support/fake-s3.js';
import { startFakeS3 } from '../support/fake-s3.js';
import { hungMount, noHungMount } from '../support/hung-mount.js';

const never = new AbortController().signal;
const BUCKET = 'copies';
const SECRET = 'canarySecret/Key+0123456789';
const TOKEN = 'canarySessionToken/abcdef==';
const KEY = 'CANARYACCESSKEYID';
/** A server that stalls is given up on after this, and asked three times more. */
const SHORT: Patience = { connectMs: 500, idleMs: 300 };
/** Two parts of 8 MiB and a rest. */
const LARGE = 17_000_000;

let server: FakeS3;
let env: NodeJS.ProcessEnv;
let processes: () => Found[];
let open: Destination[] = [];

beforeEach(async () => {
  server = await startFakeS3(BUCKET);
  ({ env, processes } = markedEnvironment({ AWS_ACCESS_KEY_ID: KEY, AWS_SECRET_ACCESS_KEY: SECRET, AWS_SESSION_TOKEN: TOKEN }));
});
afterEach(async () => {
  const seen = processes();
  expect(JSON.stringify(seen)).not.toMatch(/canary/i);
  await Promise.all(open.splice(0).map((d) => d.close()));
  open = [];
  await server.close();
  expect(processes()).toEqual([]);
});

function place(patience = PATIENCE, query = '', more: NodeJS.ProcessEnv = {}): Destination {
  const made = openDestination(destination(`s3://${BUCKET}/app?endpoint=${server.endpoint}${query}`), { ...env, ...more }, { patience });
  open.push(made);
  return made;
}

/** The error of something that must fail, looked over for what no error may hold. */
async function troubleOf(promise: Promise<unknown>): Promise<DestinationError> {
  const error = await rejection(promise);
  expect(error.name, error.message).toBe('DestinationError');
  const everything = `${error.message} ${JSON.stringify(error)} ${String(error.cause)}`;
  for (const canary of [SECRET, TOKEN, KEY, 'Signature=', 'X-Amz-']) expect(everything).not.toContain(canary);
  expect(error.message).not.toMatch(UNPRINTABLE);
  return error as DestinationError;
}

/** The fault at this operation, the first `times` times. */
function at(operation: Operation, fault: Fault, times = Number.POSITIVE_INFINITY): void {
  let left = times;
  server.rule = (seen) => (seen.operation === operation && left-- > 0 ? fault : null);
}

const count = (operation: Operation): number => server.seen.filter((seen) => seen.operation === operation).length;

/** Nothing that a listing would show, and nothing that costs money unseen. */
function nothingStored(): void {
  expect([...server.objects.keys()]).toEqual([]);
  expect([...server.uploads.keys()]).toEqual([]);
}

describe('what a server may do while a file is stored', () => {
  test.each([
    ['one request', 1000, 'put'],
    ['parts', LARGE, 'part'],
  ] as const)('%s: checksums that it computed prove it', async (_, sizeBytes, operation) => {
    const local = localFile(sizeBytes);
    expect(await place(PATIENCE, '&storage-class=STANDARD_IA').put(local.file, 'a.db', local, never)).toBe('server-checksum');
    expect(server.objects.get('app/a.db')?.equals(local.bytes)).toBe(true);
    expect(count(operation)).toBe(sizeBytes === LARGE ? 3 : 1);
    expect(count('get')).toBe(0);
    expect(server.last.sessionToken).toBe(TOKEN);
    expect(server.last.authorization).toContain(`Credential=${KEY}/`);
    expect(server.last.storageClass).toBe(sizeBytes === LARGE ? '' : 'STANDARD_IA');
  });

  test.each([
    ['one request', 1000, 'put'],
    ['parts', LARGE, 'part'],
  ] as const)('%s: it returns no checksum: everything is read back', async (_, sizeBytes, operation) => {
    at(operation, 'no-checksum');
    const local = localFile(sizeBytes);
    expect(await place().put(local.file, 'a.db', local, never)).toBe('read-back');
    expect(count('get')).toBe(1);
    expect(server.objects.get('app/a.db')?.equals(local.bytes)).toBe(true);
  });

  test.each([
    ['one request', 1000, 'put'],
    ['parts', LARGE, 'part'],
  ] as const)('%s: it returns another checksum: wrong-bytes, and nothing stays', async (_, sizeBytes, operation) => {
    at(operation, 'wrong-checksum');
    const local = localFile(sizeBytes);
    expect(await troubleOf(place().put(local.file, 'a.db', local, never))).toMatchObject({ kind: 'wrong-bytes' });
    nothingStored();
  });

  test.each([
    ['other bytes', 1000, 'put', 'store-other'],
    ['fewer bytes', 1000, 'put', 'store-less'],
    ['other bytes in a part', LARGE, 'part', 'store-other'],
    ['fewer bytes in a part', LARGE, 'part', 'store-less'],
  ] as const)('it stores %s and says nothing: reading back finds it, and the object is removed', async (_, sizeBytes, operation, fault) => {
    at(operation, fault);
    const local = localFile(sizeBytes);
    const error = await troubleOf(place().put(local.file, 'a.db', local, never));
    expect(error).toMatchObject({ kind: 'wrong-bytes', transient: false });
    expect(error.message).toContain('removed again');
    nothingStored();
  });

  test('reading back is cut short: not stored as far as anybody knows', async () => {
    server.rule = ({ operation }) => (operation === 'put' ? 'no-checksum' : operation === 'get' ? { cutAtByte: 10 } : null);
    const local = localFile(1000);
    expect(await troubleOf(place().put(local.file, 'a.db', local, never))).toMatchObject({ kind: 'unreachable', transient: true });
  });

  test.each([
    ['403', 'put', 1000, { status: 403, code: 'AccessDenied' }, 'denied', false],
    ['403 at the first part', 'part', LARGE, { status: 403, code: 'AccessDenied' }, 'denied', false],
    ['403 at the end', 'complete', LARGE, { status: 403, code: 'AccessDenied' }, 'denied', false],
    ['an expired token', 'put', 1000, { status: 400, code: 'ExpiredToken' }, 'denied', false],
    ['a wrong key', 'put', 1000, { status: 403, code: 'SignatureDoesNotMatch' }, 'denied', false],
    ['no bucket', 'create', LARGE, { status: 404, code: 'NoSuchBucket' }, 'missing', false],
    ['a quota', 'put', 1000, { status: 400, code: 'QuotaExceeded' }, 'full', false],
    ['a full server', 'part', LARGE, { status: 507, code: 'XMinioStorageFull' }, 'full', false],
    ['damage on the way', 'part', LARGE, { status: 400, code: 'BadDigest' }, 'wrong-bytes', true],
    ['an error in an answer that begins with 200', 'complete', LARGE, { ok: 'but-error', code: 'InternalError' }, 'other', true],
  ] as const)('%s', async (_, operation, sizeBytes, fault, kind, transient) => {
    at(operation, fault);
    const local = localFile(sizeBytes);
    const error = await troubleOf(place().put(local.file, 'a.db', local, never));
    expect(error).toMatchObject({ kind, transient });
    expect(error.message).toContain(fault.code);
    expect(error.message).toContain(new URL(server.endpoint).host);
    nothingStored();
  });

  test('a code that quotes what was sent is not repeated', async () => {
    at('put', { status: 403, code: `Denied${TOKEN}` });
    const local = localFile(10);
    expect(await troubleOf(place().put(local.file, 'a.db', local, never))).toMatchObject({ kind: 'denied' });
  });

  test.each([
    ['put', 1000],
    ['part', LARGE],
    ['complete', LARGE],
  ] as const)('500 for ever at %s: given up after four attempts', async (operation, sizeBytes) => {
    at(operation, { status: 500, code: 'InternalError' });
    const local = localFile(sizeBytes);
    expect(await troubleOf(place().put(local.file, 'a.db', local, never))).toMatchObject({ kind: 'other', transient: true });
    expect(count(operation)).toBeGreaterThanOrEqual(4);
    nothingStored();
  });

  test.each([
    ['503 SlowDown twice', { status: 503, code: 'SlowDown' }, 2],
    ['a connection that breaks in the middle', { resetAtByte: 300_000 }, 1],
    ['an answer that is lost', 'lose-answer', 1],
  ] as const)('%s, then fine: stored', async (_, fault, times) => {
    for (const [operation, sizeBytes] of [
      ['put', 1_000_000],
      ['part', LARGE],
    ] as const) {
      at(operation, fault, times);
      const local = localFile(sizeBytes);
      expect(await place().put(local.file, `${operation}.db`, local, never)).toBe('server-checksum');
      expect(server.objects.get(`app/${operation}.db`)?.equals(local.bytes)).toBe(true);
      expect(server.uploads.size).toBe(0);
    }
  });

  test('the answer to the last request is lost: what is there decides', async () => {
    at('complete', 'lose-answer', 1);
    const local = localFile(LARGE);
    expect(await place().put(local.file, 'a.db', local, never)).toBe('read-back');
    expect(server.objects.get('app/a.db')?.equals(local.bytes)).toBe(true);
  });

  test('the upload is gone at the last request, and an older object is there: refused, and the older one stays', async () => {
    const older = Buffer.from('older');
    server.objects.set('app/a.db', older);
    at('complete', { status: 404, code: 'NoSuchUpload' });
    const local = localFile(LARGE);
    expect(await troubleOf(place().put(local.file, 'a.db', local, never))).toMatchObject({ kind: 'wrong-bytes' });
    expect(server.objects.get('app/a.db')).toBe(older);
  });

  test('connections that always break', async () => {
    for (const [operation, sizeBytes] of [
      ['put', 1_000_000],
      ['part', LARGE],
    ] as const) {
      at(operation, { resetAtByte: 300_000 });
      const local = localFile(sizeBytes);
      expect(await troubleOf(place().put(local.file, 'a.db', local, never))).toMatchObject({ kind: 'unreachable', transient: true });
    }
    nothingStored();
  });

  test('a server that never answers is given up on', async () => {
    at('put', 'stall');
    const local = localFile(1000);
    expect(await troubleOf(place(SHORT).put(local.file, 'a.db', local, never))).toMatchObject({ kind: 'unreachable', transient: true });
    nothingStored();
  });

  test('nobody listens', async () => {
    const closed = createServer().listen(0, '127.0.0.1');
    await once(closed, 'listening');
    const { port } = closed.address() as AddressInfo;
    closed.close();
    await once(closed, 'close');
    const gone = openDestination(destination(`s3://${BUCKET}?endpoint=http://127.0.0.1:${port}`), env, { patience: SHORT });
    open.push(gone);
    const local = localFile(10);
    for (const attempt of [() => gone.put(local.file, 'a.db', local, never), () => gone.list(never), () => gone.get('a.db', never)]) {
      const error = await troubleOf(Promise.resolve().then<unknown>(attempt));
      expect(error).toMatchObject({ kind: 'unreachable', transient: true });
      expect(error.message).toContain('ECONNREFUSED');
    }
  });

  test('an abort in the middle of the parts ends it at once; what it leaves is swept, and nothing else', async () => {
    at('part', 'stall');
    const local = localFile(LARGE);
    const abort = new AbortController();
    const why = new Error('the run was told to end');
    const storing = rejection(place().put(local.file, 'a.db', local, abort.signal));
    await server.stalled();
    expect(processes()).toHaveLength(1);
    for (const { argv } of processes()) for (const canary of [SECRET, TOKEN, KEY]) expect(argv).not.toContain(canary);
    const began = performance.now();
    abort.abort(why);
    expect(await storing).toBe(why);
    expect(performance.now() - began).toBeLessThan(2000);
    expect(processes()).toEqual([]);
    expect([...server.objects.keys()]).toEqual([]);

    const old = new Date(Date.now() - 86_400_000);
    for (const key of ['app/a.db', 'app/other.db', 'app/deeper/a.db', 'elsewhere/a.db', 'app/b.db', 'app/c.db']) {
      server.uploads.set(`old-${key}`, { key, begunAt: old, parts: new Map() });
    }
    server.rule = () => null;
    const cleaner = place();
    const ours = (name: string): boolean => name !== 'other.db';
    expect(await cleaner.sweep(ours, new Date(old.getTime() + 1000), never)).toBe(3);
    expect([...server.uploads.values()].map((u) => u.key).sort()).toEqual(['app/a.db', 'app/deeper/a.db', 'app/other.db', 'elsewhere/a.db']);
    expect(await cleaner.sweep(ours, new Date(Date.now() + 60_000), never)).toBe(1);
  });

  test('a child that is killed is an error, and the next request gets a new one', async () => {
    at('put', 'stall');
    const local = localFile(10);
    const there = place();
    const storing = troubleOf(there.put(local.file, 'a.db', local, never));
    await server.stalled();
    for (const { pid } of processes()) process.kill(pid, 'SIGKILL');
    expect(await storing).toMatchObject({ kind: 'other', transient: true });
    server.rule = () => null;
    expect(await there.put(local.file, 'a.db', local, never)).toBe('server-checksum');
  });
});

test('a child ends with us, also at kill -9', async () => {
  at('put', 'stall');
  const local = localFile(10);
  const code = `
    import { destination, openDestination } from '${BUILT}';
    const there = openDestination(destination('s3://${BUCKET}/app?endpoint=${server.endpoint}'), process.env);
    await there.put('${local.file}', 'a.db', { sizeBytes: 10, sha256: '${local.sha256}' }, new AbortController().signal);`;
  const parent = spawn(process.execPath, ['--input-type=module', '-e', code], { cwd: ROOT, env, stdio: 'inherit' });
  await server.stalled();
  expect(processes().some(({ argv }) => argv.includes('s3-child'))).toBe(true);
  parent.kill('SIGKILL');
  await once(parent, 'exit');
  await vi.waitFor(() => expect(processes()).toEqual([]));
});

describe('what a server may do while an object is read', () => {
  test.each([
    ['cut short', { cutAtByte: 500_000 }],
    ['stalled', { stallAtByte: 500_000 }],
  ] as const)('%s: the stream errors, and never ends well', async (_, fault) => {
    server.objects.set('app/a.db', Buffer.alloc(1_000_000, 7));
    at('get', fault);
    const stream = await place(SHORT).get('a.db', never);
    const error = await troubleOf(bytesOf(stream));
    expect(error).toMatchObject({ kind: 'unreachable', transient: true });
    // What was still on its way when the connection broke does not count.
    expect(error.message).toMatch(/"a\.db" was cut short by .*: \d{1,6} of 1000000 bytes came/);
    expect(processes()).toEqual([]);
  });

  test('403, and a listing that fails on its second page', async () => {
    at('get', { status: 403, code: 'AccessDenied' });
    expect(await troubleOf(place().get('a.db', never))).toMatchObject({ kind: 'denied', transient: false });
    for (const n of [1, 2, 3, 4, 5]) server.objects.set(`app/${n}.db`, Buffer.from('x'));
    let pages = 0;
    server.rule = ({ operation }) => (operation === 'list' && ++pages === 2 ? { status: 403, code: 'AccessDenied' } : null);
    expect(await troubleOf(place().list(never))).toMatchObject({ kind: 'denied' });
  });

  test('a reader that dawdles holds the child back, and gets everything', async () => {
    const bytes = localFile(30_000_000).bytes;
    server.objects.set('app/a.db', bytes);
    const stream = await place().get('a.db', never);
    await once(stream, 'readable');
    const held = stream.readableLength;
    expect(held).toBeLessThan(1 << 20);
    expect((await bytesOf(stream)).equals(bytes)).toBe(true);
  });
});

describe('credentials and regions', () => {
  test('none: denied, and what to set', async () => {
    const none = { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined, AWS_SESSION_TOKEN: undefined, AWS_EC2_METADATA_DISABLED: 'true' };
    const error = await troubleOf(place(PATIENCE, '', none).list(never));
    expect(error).toMatchObject({ kind: 'denied', transient: false });
    expect(error.message).toContain('AWS_ACCESS_KEY_ID');
    expect(count('list')).toBe(0);
  });

  test('a credential_process that fails: its command line is not repeated', async () => {
    const config = join(tempDirectory('aws'), 'config');
    writeFileSync(config, `[default]\ncredential_process = /bin/false ${SECRET}\n`);
    const none = { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined, AWS_SESSION_TOKEN: undefined, AWS_EC2_METADATA_DISABLED: 'true' };
    expect(await troubleOf(place(PATIENCE, '', { ...none, AWS_CONFIG_FILE: config }).list(never))).toMatchObject({ kind: 'denied' });
  });

  test('the region comes from the URL, else from the environment, else it is the usual one of own servers', async () => {
    for (const [query, more, region] of [
      ['&region=eu-central-1', { AWS_REGION: 'us-west-2' }, 'eu-central-1'],
      ['', { AWS_REGION: 'us-west-2' }, 'us-west-2'],
      ['', {}, 'us-east-1'],
    ] as const) {
      await place(PATIENCE, query, more).list(never);
      expect(server.last.authorization).toContain(`/${region}/s3/`);
    }
    const amazon = openDestination(destination('s3://bucket-without-region'), env);
    open.push(amazon);
    expect((await troubleOf(amazon.list(never))).message).toContain('?region=');
  });
});

describe('a directory that misbehaves', () => {
  const noRoot = process.getuid?.() === 0 ? null : 'this needs root';
  const why = noRoot ?? cannot('mount');
  if (why !== null) console.warn(`not run: a full disk: ${why}`);

  /** Closed at the end, and its processes looked for, as those of the others. */
  const directory = (path: string, more = {}): Destination => {
    const made = openDestination(destination(`file://${path}`), env, more);
    open.push(made);
    return made;
  };

  const noHang = noHungMount();
  if (noHang !== null) console.warn(`not run: a mount that never answers: ${noHang}`);
  test.skipIf(noHang !== null)('a mount that never answers: everything ends within 2 s of an abort, and what hangs in the kernel is left behind', async () => {
    const why = new Error('the run was told to end');
    for (const attempt of [
      (there: Destination, signal: AbortSignal) => there.list(signal),
      (there: Destination, signal: AbortSignal) => there.get('a', signal),
    ]) {
      const hung = hungMount();
      const abort = new AbortController();
      const there = directory(hung.point);
      const asking = rejection(attempt(there, abort.signal));
      await until('it hangs', hung.asked);
      const began = performance.now();
      abort.abort(why);
      expect(await asking).toBe(why);
      await there.close();
      expect(performance.now() - began).toBeLessThan(2000);
      expect(processes()).toHaveLength(1);
      hung.release();
      await until('it is gone', () => processes().length === 0);
    }
  });

  test('an abort in the middle of storing leaves no unfinished file', async () => {
    const root = tempDirectory('mounted');
    const local = localFile(200_000_000);
    const abort = new AbortController();
    const storing = rejection(directory(root).put(local.file, 'a.db', local, abort.signal));
    await until('it is being written', () => readdirSync(root).length > 0);
    abort.abort(new Error('the run was told to end'));
    expect((await storing).message).toBe('the run was told to end');
    expect(readdirSync(root)).toEqual([]);
  });

  test('leftovers of a killed run are swept by age and name, and never listed', async () => {
    const root = tempDirectory('mounted');
    const there = directory(root);
    const old = join(root, '.part-0123abcd-a.db');
    for (const name of ['.part-0123abcd-a.db', '.part-0123abcd-theirs.db', '.part-89abcdef-a.db', 'a.db', '.part-x-a.db']) writeFileSync(join(root, name), 'x');
    utimesSync(old, 1000, 1000);
    expect((await there.list(never)).map((o) => o.name).sort()).toEqual(['.part-x-a.db', 'a.db']);
    expect(await there.sweep((name) => name === 'a.db', new Date(2_000_000), never)).toBe(1);
    expect(readdirSync(root).sort()).toEqual(['.part-0123abcd-theirs.db', '.part-89abcdef-a.db', '.part-x-a.db', 'a.db']);
  });

  test('a file where the directory should be', async () => {
    const file = join(tempDirectory('mounted'), 'file');
    writeFileSync(file, '');
    const error = await rejection(directory(file).list(never));
    expect(error).toMatchObject({ name: 'DestinationError', kind: 'other' });
    expect(error.message).toContain('is not a directory');
  });

  test('a link under the name of an object is not followed when read, and replaced when stored', async () => {
    const root = tempDirectory('mounted');
    const there = directory(root);
    const elsewhere = join(tempDirectory('elsewhere'), 'file');
    writeFileSync(elsewhere, 'precious');
    symlinkSync(elsewhere, join(root, 'a.db'));
    expect(await rejection(there.get('a.db', never))).toMatchObject({ name: 'DestinationError' });
    const local = localFile(10);
    await there.put(local.file, 'a.db', local, never);
    expect(readFileSync(elsewhere, 'utf8')).toBe('precious');
    expect(lstatSync(join(root, 'a.db')).isFile()).toBe(true);
    expect(readdirSync(root)).toEqual(['a.db']);
  });

  test.skipIf(why !== null)('a full disk: full, nothing partial, the older object stays', async () => {
    const root = tempDirectory('full');
    expect(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1M', 'none', root]).status).toBe(0);
    try {
      const there = directory(root);
      const small = localFile(1000);
      await there.put(small.file, 'a.db', small, never);
      const local = localFile(2_000_000);
      expect(await rejection(there.put(local.file, 'a.db', local, never))).toMatchObject({ name: 'DestinationError', kind: 'full' });
      expect(readdirSync(root)).toEqual(['a.db']);
      expect((await bytesOf(await there.get('a.db', never))).equals(small.bytes)).toBe(true);
    } finally {
      // A descriptor that is just being closed holds it for a moment.
      if (spawnSync('umount', [root]).status !== 0) spawnSync('umount', ['-l', root]);
    }
  });
});

describe('rclone that misbehaves', () => {
  /** A program of that name, in a PATH of its own. */
  function fakeRclone(script: string): Destination {
    const bin = tempDirectory('bin');
    writeFileSync(join(bin, 'rclone'), `#!/bin/sh\n${script}\n`);
    chmodSync(join(bin, 'rclone'), 0o755);
    const made = openDestination(destination('rclone:disk:/x'), { ...env, PATH: `${bin}:/usr/bin:/bin`, RCLONE_CONFIG_DISK_PASS: SECRET });
    open.push(made);
    return made;
  }

  test('it is not installed: which program, and how to get it', async () => {
    const empty = tempDirectory('bin');
    const error = await troubleOf(openDestination(destination('rclone:disk:/x'), { ...env, PATH: empty }).list(never));
    expect(error).toMatchObject({ kind: 'program', transient: false });
    expect(error.message).toContain('apt install rclone');
  });

  test.each([
    ['exit 0', 'exit 0', 'wrong-bytes', false],
    ['exit 5', 'exit 5', 'other', true],
    ['403', 'echo "2026/11/21 03:17:00 Failed: 403 Forbidden" >&2; exit 1', 'denied', false],
    ['no space', 'echo "write: no space left on device" >&2; exit 1', 'full', false],
    ['refused', 'echo "dial tcp 127.0.0.1:1: connect: connection refused" >&2; exit 1', 'unreachable', true],
    ['no such remote', 'echo "didn\'t find section in config file" >&2; exit 1', 'other', false],
  ] as const)('%s is never taken for stored', async (_, script, kind, transient) => {
    const local = localFile(100);
    expect(await troubleOf(fakeRclone(script).put(local.file, 'a.db', local, never))).toMatchObject({ kind, transient });
  });

  test('it is started once for each object that was listed', async () => {
    const log = join(tempDirectory('calls'), 'log');
    const list = `printf '[{"Name":"a.json","Size":3},{"Name":"b.json","Size":3}]'`;
    const there = fakeRclone(`echo "$1" >>'${log}'; case "$1" in lsjson) ${list} ;; cat) printf abc ;; esac`);
    await there.list(never);
    for (const name of ['a.json', 'b.json']) expect((await there.read(name, 10, never)).toString()).toBe('abc');
    expect(readFileSync(log, 'utf8')).toBe('lsjson\ncat\ncat\n');
  });

  test('what it says is bounded, printable, and without passwords and tokens', async () => {
    const url = `https://user:${SECRET}@dav.example.org/x?sig=${TOKEN}`;
    const script = `yes noise | head -c 1000000 >&2; printf '\\nFailed \\033[31m%s %s\\n' "$RCLONE_CONFIG_DISK_PASS" '${url}' >&2; exit 1`;
    const error = await troubleOf(fakeRclone(script).list(never));
    expect(error.message).toContain('https://dav.example.org');
    expect(error.message.length).toBeLessThan(1000);
  });

  test('a transfer that is cut short, one that fails at its end, and a listing that is none', async () => {
    const sized = (cat: string): Destination => fakeRclone(`case "$1" in lsjson) echo '{"Name":"a.db","Size":10,"IsDir":false}';; cat) ${cat};; esac`);
    expect(await troubleOf(bytesOf(await sized('printf 12345').get('a.db', never)))).toMatchObject({ kind: 'unreachable', transient: true });
    expect(await troubleOf(bytesOf(await sized('printf 1234567890; exit 1').get('a.db', never)))).toMatchObject({ kind: 'other' });
    expect((await bytesOf(await sized('printf 1234567890').get('a.db', never))).toString()).toBe('1234567890');
    expect(await troubleOf(fakeRclone('echo "no json"').list(never))).toMatchObject({ kind: 'program' });
  });

  test('what it started goes with it', async () => {
    const abort = new AbortController();
    const ready = join(tempDirectory('ready'), 'fifo');
    expect(spawnSync('mkfifo', [ready]).status).toBe(0);
    const listing = rejection(fakeRclone(`sleep 1000 & echo up > '${ready}'; wait`).list(abort.signal));
    expect(await readFile(ready, 'utf8')).toBe('up\n');
    expect(processes().length).toBeGreaterThanOrEqual(2);
    const why = new Error('the run was told to end');
    const began = performance.now();
    abort.abort(why);
    expect(await listing).toBe(why);
    expect(performance.now() - began).toBeLessThan(2000);
    // Killed, and not yet taken off the list by init: on a busy machine that takes its moment.
    await until('all are gone', () => processes().length === 0, 2000);
  });

  const missing = noRclone();
  if (missing !== null) console.warn(`not run: a wish to pretend: ${missing}`);
  test.skipIf(missing !== null)('variables that would make it pretend, ask or chatter change nothing', async () => {
    const root = tempDirectory('rclone');
    mkdirSync(join(root, 'copies'));
    const chatty = { RCLONE_DRY_RUN: 'true', RCLONE_PROGRESS: 'true', RCLONE_INTERACTIVE: 'true', RCLONE_DUMP: 'headers', RCLONE_VERBOSE: '2' };
    const there = openDestination(destination(`rclone:disk:${root}/copies`), { ...env, ...chatty, RCLONE_CONFIG_DISK_TYPE: 'local' });
    open.push(there);
    const local = localFile(1000);
    expect(await there.put(local.file, 'a.db', local, never)).toBe('read-back');
    expect(readdirSync(join(root, 'copies'))).toEqual(['a.db']);
  });
});
