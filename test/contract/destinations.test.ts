/** What every destination must do, asked of each of them, against real directories, servers and programs. */
import { mkdirSync, rmSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Destination } from '../../src/destinations/destination.js';
import { destination } from '../../src/destinations/url.js';
import { tempDirectory } from '../support/cli.js';
import type { Found } from '../support/destinations.js';
import {
  bytesOf,
  DestinationError,
  localFile,
  markedEnvironment,
  noRclone,
  openDestination,
  rejection,
  startS3rver,
  startWebDav,
} from '../support/destinations.js';
import { startFakeS3 } from '../support/fake-s3.js';

const never = new AbortController().signal;
const BUCKET = 'copies-of-app';

/** One kind of destination, ready: `open` gives one below a prefix of its own. */
interface Ready {
  open(prefix: string): Destination;
  processes(): Found[];
  close(): Promise<void>;
}

interface Kind {
  readonly name: string;
  /** Bytes: for S3 more than one part. */
  readonly large: number;
  readonly proved: 'server-checksum' | 'read-back';
  readonly cannot: () => string | null;
  start(): Promise<Ready>;
}

const S3_KEYS = { AWS_ACCESS_KEY_ID: 'S3RVER', AWS_SECRET_ACCESS_KEY: 'S3RVER' };

function s3(endpoint: string, close: () => Promise<void>): Ready {
  const { env, processes } = markedEnvironment(S3_KEYS);
  return { open: (prefix) => openDestination(destination(`s3://${BUCKET}/${prefix}?endpoint=${endpoint}`), env), processes, close };
}

const KINDS: readonly Kind[] = [
  {
    name: 'a directory',
    large: 5_000_000,
    proved: 'read-back',
    cannot: () => null,
    async start() {
      const root = tempDirectory('mounted');
      const { env, processes } = markedEnvironment({});
      return {
        open: (prefix) => {
          mkdirSync(join(root, prefix), { recursive: true });
          return openDestination(destination(`file://${root}/${prefix}`), env);
        },
        processes,
        close: async () => undefined,
      };
    },
  },
  {
    name: 'S3 (s3rver)',
    large: 10_000_000,
    proved: 'read-back',
    cannot: () => null,
    async start() {
      const server = await startS3rver(BUCKET);
      return s3(server.endpoint, server.close);
    },
  },
  {
    name: 'S3 that returns checksums',
    large: 10_000_000,
    proved: 'server-checksum',
    cannot: () => null,
    async start() {
      const server = await startFakeS3(BUCKET);
      return s3(server.endpoint, server.close);
    },
  },
  {
    name: 'rclone, local',
    large: 5_000_000,
    proved: 'read-back',
    cannot: noRclone,
    async start() {
      const root = tempDirectory('rclone');
      const { env, processes } = markedEnvironment({ RCLONE_CONFIG_DISK_TYPE: 'local' });
      return { open: (prefix) => openDestination(destination(`rclone:disk:${root}/${prefix}`), env), processes, close: async () => undefined };
    },
  },
  {
    name: 'rclone, WebDAV',
    large: 5_000_000,
    proved: 'read-back',
    cannot: noRclone,
    async start() {
      const server = await startWebDav(tempDirectory('webdav'));
      const { env, processes } = markedEnvironment({
        RCLONE_CONFIG_DAV_TYPE: 'webdav',
        RCLONE_CONFIG_DAV_URL: server.url,
        RCLONE_CONFIG_DAV_VENDOR: 'other',
        RCLONE_CONFIG_DAV_USER: server.user,
        RCLONE_CONFIG_DAV_PASS: server.obscured,
      });
      return { open: (prefix) => openDestination(destination(`rclone:dav:${prefix}`), env), processes, close: server.close };
    },
  },
];

const NAMES = ['with blanks, größe-日本.db', 'a#b+c%20d&e=f.db', "-it's.db"];

for (const kind of KINDS) {
  const missing = kind.cannot();
  if (missing !== null) console.warn(`not run: ${kind.name}: ${missing}`);

  describe.skipIf(missing !== null)(kind.name, () => {
    let ready: Ready;
    const open: Destination[] = [];
    let prefixes = 0;
    const fresh = (prefix = `p${++prefixes}/copies`): Destination => {
      const made = ready.open(prefix);
      open.push(made);
      return made;
    };
    beforeAll(async () => {
      ready = await kind.start();
    });
    afterAll(async () => {
      await ready.close();
    });
    afterEach(async () => {
      await Promise.all(open.splice(0).map((d) => d.close()));
      expect(ready.processes()).toEqual([]);
    });

    test('what was stored comes back: nothing, one byte, several MB', async () => {
      const place = fresh();
      const sizes = [0, 1, kind.large];
      for (const sizeBytes of sizes) {
        const local = localFile(sizeBytes);
        expect(await place.put(local.file, `of-${sizeBytes}.db`, local, never)).toBe(kind.proved);
        expect((await bytesOf(await place.get(`of-${sizeBytes}.db`, never))).equals(local.bytes)).toBe(true);
      }
      const listed = [...(await place.list(never))].sort((a, b) => a.sizeBytes - b.sizeBytes);
      expect(listed).toEqual(sizes.map((sizeBytes) => ({ name: `of-${sizeBytes}.db`, sizeBytes })));
    });

    test('names with blanks, letters of the world and characters that URLs and flags give a meaning', async () => {
      const place = fresh();
      for (const name of NAMES) {
        const local = localFile(10);
        await place.put(local.file, name, local, never);
        expect((await bytesOf(await place.get(name, never))).equals(local.bytes), name).toBe(true);
      }
      expect((await place.list(never)).map((o) => o.name).sort()).toEqual([...NAMES].sort());
      for (const name of NAMES) await place.remove(name, never);
      expect(await place.list(never)).toEqual([]);
    });

    test('a listing has what is directly below its prefix, and nothing of its neighbours', async () => {
      const local = localFile(3);
      const own = fresh('n/copies');
      for (const neighbour of ['n', 'n/copies-old', 'n/copies/deeper']) await fresh(neighbour).put(local.file, 'theirs.db', local, never);
      expect(await own.list(never)).toEqual([]);
      for (const name of ['1.db', '2.db', '3.db']) await own.put(local.file, name, local, never);
      expect((await own.list(never)).map((o) => o.name).sort()).toEqual(['1.db', '2.db', '3.db']);
    });

    test('a removed object is gone; removing it again is no error; the others stay', async () => {
      const place = fresh();
      const local = localFile(5);
      for (const name of ['a.db', 'b.db']) await place.put(local.file, name, local, never);
      await place.remove('a.db', never);
      await place.remove('a.db', never);
      expect(await place.list(never)).toEqual([{ name: 'b.db', sizeBytes: 5 }]);
    });

    test('reading what is not there is refused as missing', async () => {
      const place = fresh();
      const local = localFile(5);
      await place.put(local.file, 'there.db', local, never);
      const error = await rejection(place.get('nowhere.db', never));
      expect(error).toBeInstanceOf(DestinationError);
      expect(error).toMatchObject({ kind: 'missing', transient: false });
      expect(error.message).toContain('nowhere.db');
    });

    test('small objects are read several at once, and none that has more bytes than it may have', async () => {
      const place = fresh();
      const locals = [1000, 1, 0].map((sizeBytes) => ({ name: `of-${sizeBytes}.json`, ...localFile(sizeBytes) }));
      for (const local of locals) await place.put(local.file, local.name, local, never);
      const read = await Promise.all(locals.map((local) => place.read(local.name, 1000, never)));
      expect(read.map((bytes, n) => bytes.equals(locals[n]?.bytes ?? Buffer.from('other')))).toEqual([true, true, true]);
      expect(await rejection(place.read('of-1000.json', 999, never))).toMatchObject({ name: 'DestinationError', kind: 'wrong-bytes' });
      expect(await rejection(place.read('nowhere.json', 999, never))).toMatchObject({ name: 'DestinationError', kind: 'missing' });
    });

    test('what was replaced or removed since the last listing is read as it is now', async () => {
      const place = fresh('listed');
      const other = fresh('listed');
      const [first, longer, shorter] = [localFile(10), localFile(20), localFile(5)];
      for (const name of ['a.json', 'b.json', 'c.json']) await place.put(first.file, name, first, never);
      await place.list(never);
      await other.put(longer.file, 'a.json', longer, never);
      await other.put(shorter.file, 'c.json', shorter, never);
      await other.remove('b.json', never);
      expect((await place.read('a.json', 1000, never)).equals(longer.bytes)).toBe(true);
      expect((await place.read('c.json', 1000, never)).equals(shorter.bytes)).toBe(true);
      expect(await rejection(place.read('b.json', 1000, never))).toMatchObject({ name: 'DestinationError', kind: 'missing' });
    });

    test('an object of that name is replaced, also by one of the same size and time', async () => {
      const place = fresh();
      for (const sizeBytes of [100, 100, 7]) {
        const local = localFile(sizeBytes);
        utimesSync(local.file, 1_000_000, 1_000_000);
        await place.put(local.file, 'same.db', local, never);
        expect((await bytesOf(await place.get('same.db', never))).equals(local.bytes)).toBe(true);
      }
      expect(await place.list(never)).toEqual([{ name: 'same.db', sizeBytes: 7 }]);
    });

    test('a local file that is not what was proven is not stored', async () => {
      const place = fresh();
      const local = localFile(1000);
      for (const expected of [
        { sizeBytes: 1000, sha256: localFile(1000).sha256 },
        { sizeBytes: 999, sha256: local.sha256 },
      ]) {
        expect(await rejection(place.put(local.file, 'other.db', expected, never))).toMatchObject({ name: 'DestinationError', kind: 'wrong-bytes' });
      }
      expect(await place.list(never)).toEqual([]);
    });

    test('names that lead elsewhere are refused', async () => {
      const place = fresh();
      const local = localFile(1);
      for (const name of ['', '.', '..', '../up.db', 'a/b.db', '/etc/passwd', 'a\nb', `${'x'.repeat(256)}`]) {
        for (const attempt of [() => place.put(local.file, name, local, never), () => place.get(name, never), () => place.remove(name, never)]) {
          expect((await rejection(Promise.resolve().then<unknown>(attempt))).message, name).toContain('is no name for an object');
        }
      }
    });

    test('an abort in the middle of storing ends it within 2 s, with its own reason, and leaves no process', async () => {
      const place = fresh();
      const local = localFile(10_000_000);
      const abort = new AbortController();
      const why = new Error('the run was told to end');
      const storing = rejection(place.put(local.file, 'broken-off.db', local, abort.signal));
      const began = performance.now();
      abort.abort(why);
      expect(await storing).toBe(why);
      expect(performance.now() - began).toBeLessThan(2000);
      expect(ready.processes()).toEqual([]);
      // And it can be used afterwards.
      expect(await rejection(place.put(local.file, 'again.db', local, abort.signal))).toBe(why);
      expect(await place.put(local.file, 'again.db', local, never)).toBe(kind.proved);
    });

    test('an abort in the middle of reading, and a reader that has enough, leave no process', async () => {
      const place = fresh();
      const local = localFile(10_000_000);
      await place.put(local.file, 'big.db', local, never);
      await place.close();
      expect(ready.processes()).toEqual([]);
      const abort = new AbortController();
      const why = new Error('the run was told to end');
      const reading = (async () => {
        for await (const chunk of await place.get('big.db', abort.signal)) {
          expect(chunk).toBeInstanceOf(Buffer);
          abort.abort(why);
        }
      })();
      expect(await rejection(reading)).toBe(why);
      expect(ready.processes()).toEqual([]);
      for await (const chunk of await place.get('big.db', never)) {
        expect(chunk).toBeInstanceOf(Buffer);
        break;
      }
      await place.close();
      expect(ready.processes()).toEqual([]);
    });

    test('there is nothing to sweep after what went well', async () => {
      const place = fresh();
      const local = localFile(10);
      await place.put(local.file, 'a.db', local, never);
      expect(await place.sweep(() => true, new Date(Date.now() + 60_000), never)).toBe(0);
      expect(await place.list(never)).toEqual([{ name: 'a.db', sizeBytes: 10 }]);
    });
  });
}

test('a directory that is not there is an error and is not made', async () => {
  const root = tempDirectory('unmounted');
  rmSync(root, { recursive: true });
  const place = openDestination(destination(`file://${root}/disk`), {});
  const local = localFile(1);
  const attempts = [
    () => place.list(never),
    () => place.put(local.file, 'a.db', local, never),
    () => place.get('a.db', never),
    () => place.read('a.db', 10, never),
    () => place.remove('a.db', never),
  ];
  for (const attempt of attempts) expect(await rejection(attempt())).toMatchObject({ name: 'DestinationError', kind: 'unreachable' });
  await place.close();
  expect(() => rmSync(root)).toThrow('ENOENT');
});
