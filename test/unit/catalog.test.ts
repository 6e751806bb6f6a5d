/** What a directory's listing means: names and dates, verdicts, and manifests that somebody planted. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chownSync, linkSync, mkdirSync, readFileSync, renameSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  freeBase,
  isCopyOf,
  namesIn,
  newestGood,
  newestManifest,
  parseCopyFile,
  parseManifest,
  readCopies,
  readManifest,
  renderManifest,
  rfc3339,
  scan,
  stampOf,
  withoutSecrets,
  withSecrets,
} from '../../src/catalog.js';
import type { Copy, Manifest } from '../../src/records.js';
import { atEnd, cannot, tempDirectory } from '../support/cli.js';
import { manifestOf, type Otherwise, plantCopy, type Said, textOf } from '../support/manifest.js';

const BASE = 'app-20261120T031700Z';

const DATA = 'data';

const plant = (to: string, base: string, otherwise: Otherwise = {}): string => plantCopy(to, base, DATA, otherwise);

const directory = (...bases: readonly string[]): string => {
  const to = tempDirectory('catalog');
  for (const base of bases) plant(to, base);
  return to;
};

describe('file names', () => {
  test.each([
    ['app-20261120T031700Z.db', 'app', '2026-11-20T03:17:00Z', 1, 'data'],
    ['app-20261120T031700Z.json', 'app', '2026-11-20T03:17:00Z', 1, 'manifest'],
    ['app-20261120T031700Z-2.db', 'app', '2026-11-20T03:17:00Z', 2, 'data'],
    ['app-20261120T031700Z-17.json', 'app', '2026-11-20T03:17:00Z', 17, 'manifest'],
    ['größe 漢字-20280229T235959Z.db', 'größe 漢字', '2028-02-29T23:59:59Z', 1, 'data'],
    ['app-20261120T031700Z-20261121T041800Z.db', 'app-20261120T031700Z', '2026-11-21T04:18:00Z', 1, 'data'],
    ['a.b-c_d-20261120T031700Z.db', 'a.b-c_d', '2026-11-20T03:17:00Z', 1, 'data'],
  ])('%s', (file, name, createdAt, sequence, kind) => {
    const parsed = parseCopyFile(file);
    expect(parsed).toMatchObject({ file, name, sequence, kind, base: file.replace(/\.(db|json)$/, '') });
    expect(rfc3339(parsed?.createdAt ?? 0)).toBe(createdAt);
  });

  test.each([
    '',
    'app.db',
    '-20261120T031700Z.db',
    'app-20261120T031700Z',
    'app-20261120T031700Z.db-wal',
    'app-20261120T031700Z.db-journal',
    'app-20261120T031700Z.db.tmp',
    'app-20261120T031700Z.DB',
    'app-20261120T031700.db',
    'app-20261120t031700z.db',
    'app-20261120T031700Z-0.db',
    'app-20261120T031700Z-02.db',
    'app-20261120T031700Z-.db',
    'app-20261120T031700Z--2.db',
    'app-20261120T031700Z-1e3.db',
    'app-20260229T031700Z.db',
    'app-20261320T031700Z.db',
    'app-20261131T031700Z.db',
    'app-20261120T241700Z.db',
    'app-20261120T240000Z.db',
    'app-20261120T036000Z.db',
    'app-20261120T031760Z.db',
    '.app-20261120T031700Z.db',
    ' app-20261120T031700Z.db',
    '../app-20261120T031700Z.db',
    'a/b-20261120T031700Z.db',
    'app\n-20261120T031700Z.db',
    'app\u202e-20261120T031700Z.db',
    `${'n'.repeat(101)}-20261120T031700Z.db`,
    'app-٢٠٢٦1120T031700Z.db',
  ])('%j is not one of ours', (file) => {
    expect(parseCopyFile(file)).toBe(null);
  });

  const name = fc.stringMatching(/^[\p{L}\p{N}_][\p{L}\p{N}._ -]{0,40}$/u);
  const time = fc.integer({ min: Date.parse('1970-01-01T00:00:00Z') / 1000, max: Date.parse('9999-12-31T23:59:59Z') / 1000 }).map((s) => s * 1000);

  test('what is made is read back: name, second, number', () => {
    fc.assert(
      fc.property(name, time, fc.integer({ min: 1, max: 999_999 }), fc.constantFrom('db', 'json'), (n, t, sequence, extension) => {
        const base = `${n}-${stampOf(new Date(t))}${sequence === 1 ? '' : `-${sequence}`}`;
        expect(parseCopyFile(`${base}.${extension}`)).toEqual({
          file: `${base}.${extension}`,
          base,
          name: n,
          stamp: stampOf(new Date(t)),
          createdAt: t,
          sequence,
          kind: extension === 'db' ? 'data' : 'manifest',
        });
      }),
    );
  });

  test('a free name is free, newer than all of its second, and of the same name and second', () => {
    fc.assert(
      fc.property(
        name,
        time,
        fc.array(fc.tuple(fc.integer({ min: 1, max: 30 }), fc.constantFrom('.db', '.json', '.db-wal')), { maxLength: 10 }),
        (n, t, there) => {
          const first = `${n}-${stampOf(new Date(t))}`;
          const present = there.map(([i, extension]) => `${first}${i === 1 ? '' : `-${i}`}${extension}`);
          const base = freeBase(n, new Date(t), [...present, 'other', `x${first}.db`]);
          const made = parseCopyFile(`${base}.db`);
          expect(made).toMatchObject({ name: n, createdAt: t });
          for (const [i] of there) expect(made?.sequence).toBeGreaterThan(i);
          if (there.length === 0) expect(base).toBe(first);
        },
      ),
    );
  });
});

describe('a listing', () => {
  test('is newest first, by date, then by number, whatever readdir says', () => {
    const bases = ['app-20261120T031700Z', 'app-20261120T031700Z-2', 'app-20261120T031700Z-10', 'app-20261119T235959Z', 'b-20261120T031701Z'];
    const to = directory(...bases.toSorted());
    expect(scan(to).map((f) => f.file)).toEqual(
      ['b-20261120T031701Z', 'app-20261120T031700Z-10', 'app-20261120T031700Z-2', 'app-20261120T031700Z', 'app-20261119T235959Z'].flatMap((b) =>
        [`${b}.db`, `${b}.json`].sort((x, y) => scan(to).findIndex((f) => f.file === x) - scan(to).findIndex((f) => f.file === y)),
      ),
    );
    expect(readCopies(to, null).map((c) => c.file)).toEqual([
      'b-20261120T031701Z.db',
      'app-20261120T031700Z-10.db',
      'app-20261120T031700Z-2.db',
      'app-20261120T031700Z.db',
      'app-20261119T235959Z.db',
    ]);
    expect(readCopies(to, 'b').map((c) => c.file)).toEqual(['b-20261120T031701Z.db']);
    expect(namesIn(to)).toEqual(['app', 'b']);
  });

  test('of a directory that is not there is empty; one that cannot be read is an error', () => {
    expect([scan('/nowhere/at/all'), readCopies('/nowhere/at/all', null), namesIn('/nowhere/at/all')]).toEqual([[], [], []]);
    expect(() => scan('/dev/null')).toThrow(/ENOTDIR/);
  });

  test('leaves out what is not ours', () => {
    const to = directory(BASE);
    mkdirSync(join(to, '.dbbackup'));
    for (const file of ['app.db', 'README', `${BASE}.db-wal`, `${BASE}.db.gz.gz`, `${BASE}.db.age.zst`, `${BASE}.db.bz2`, 'app-20261320T031700Z.db'])
      writeFileSync(join(to, file), 'x');
    expect(readCopies(to, null)).toHaveLength(1);
    expect(namesIn(to)).toEqual(['app']);
  });
});

describe('verdicts', () => {
  const only = (to: string): Copy => {
    const copies = readCopies(to, null);
    expect(copies).toHaveLength(1);
    return copies[0] as Copy;
  };

  test('good: the manifest is good, the data is there, the size agrees', () => {
    expect(only(directory(BASE))).toEqual({
      file: `${BASE}.db`,
      manifest: `${BASE}.json`,
      name: 'app',
      createdAt: '2026-11-20T03:17:00Z',
      sizeBytes: 4,
      sha256: createHash('sha256').update(DATA).digest('hex'),
      status: 'good',
      verifiedAt: '2026-11-20T03:17:00Z',
      method: 'vacuum-into',
      source: '/srv/app.db',
      tags: [],
    });
  });

  test('bad: another size, shorter or longer, or the manifest says so', () => {
    for (const size of [0, 3, 5]) {
      const to = directory(BASE);
      truncateSync(join(to, `${BASE}.db`), size);
      expect(only(to)).toMatchObject({ status: 'bad', sizeBytes: 4, manifest: `${BASE}.json` });
    }
    const said = directory();
    plant(said, BASE, { status: 'bad' });
    expect(only(said).status).toBe('bad');
  });

  test('suspect stays suspect, and becomes bad with another size', () => {
    const to = directory();
    plant(to, BASE, { status: 'suspect' });
    expect(only(to).status).toBe('suspect');
    truncateSync(join(to, `${BASE}.db`), 3);
    expect(only(to).status).toBe('bad');
  });

  test('unverified: no manifest, so nothing but name, date and size is known', () => {
    const to = directory(BASE);
    unlinkSync(join(to, `${BASE}.json`));
    expect(only(to)).toEqual({
      file: `${BASE}.db`,
      manifest: null,
      name: 'app',
      createdAt: '2026-11-20T03:17:00Z',
      sizeBytes: 4,
      sha256: null,
      status: 'unverified',
      verifiedAt: null,
      method: null,
      source: null,
      tags: [],
    });
  });

  test('no copy at all: a manifest without data, data that is a link, a directory, a FIFO', () => {
    const to = directory(BASE, 'app-20261119T031700Z', 'app-20261118T031700Z', 'app-20261117T031700Z');
    writeFileSync(join(to, 'elsewhere'), 'data');
    for (const [i, make] of [
      () => undefined,
      (path: string) => symlinkSync(join(to, 'elsewhere'), path),
      (path: string) => mkdirSync(path),
      (path: string) => spawnSync('mkfifo', [path]),
    ].entries()) {
      const path = join(to, `app-${20261120 - i}T031700Z.db`);
      unlinkSync(path);
      make(path);
    }
    expect(readCopies(to, null)).toEqual([]);
  });

  test('the newest good one passes over suspects, tags, the bad, the lost, other names and the future', () => {
    const to = directory('app-20261110T000000Z', 'app-20261109T000000Z', 'b-20261120T000000Z');
    plant(to, 'app-20261111T000000Z', { status: 'suspect' });
    plant(to, 'app-20261112T000000Z', { tags: ['before-restore'] });
    plant(to, 'app-20261113T000000Z', { sizeBytes: 5 });
    plant(to, 'app-20261114T000000Z');
    unlinkSync(join(to, 'app-20261114T000000Z.db'));
    plant(to, 'app-20261115T000000Z');
    writeFileSync(join(to, 'app-20261115T000000Z.json'), '{}');
    plant(to, 'app-20261120T010001Z');
    const now = Date.parse('2026-11-20T00:00:00Z');
    expect(newestGood(to, 'app', now)?.file).toBe('app-20261110T000000Z.db');
    // An hour ahead is a clock that is a little off.
    expect(newestGood(to, 'app', now + 1000)?.file).toBe('app-20261120T010001Z.db');
    expect(newestGood(to, 'c', now)).toBe(null);
    expect(newestManifest(to, 'app')?.file).toBe('app-20261120T010001Z.db');
    expect(newestManifest(to, 'c')).toBe(null);
  });

  test('whose copies these are is known even when the newest data is gone', () => {
    const to = directory('app-20261109T000000Z');
    plant(to, BASE, { configuredPath: '/srv/new.db', status: 'suspect' });
    unlinkSync(join(to, `${BASE}.db`));
    expect(newestManifest(to, 'app')?.configuredPath).toBe('/srv/new.db');
  });
});

describe('hostile manifests', () => {
  const path = (to: string): string => join(to, `${BASE}.json`);
  const good = manifestOf(BASE, DATA);
  const saying = (otherwise: Otherwise) => (to: string) => writeFileSync(path(to), textOf(good, otherwise));
  const text = (content: string) => (to: string) => writeFileSync(path(to), content);
  const without = (key: keyof Said) => saying({ [key]: undefined });
  const replaced = (make: (at: string, to: string) => void) => (to: string) => {
    unlinkSync(path(to));
    make(path(to), to);
  };

  const rows: readonly [what: string, make: (to: string) => void][] = [
    ['naming another file', saying({ file: 'app-20261119T031700Z.db' })],
    ['naming a file elsewhere', saying({ file: `../${BASE}.db` })],
    ['naming an absolute path', saying({ file: `/etc/passwd` })],
    ['calling itself something else', saying({ manifest: '../x.json' })],
    ['of another name', saying({ name: 'b' })],
    ['of another second', saying({ createdAt: '2026-11-20T03:17:01Z' })],
    ['of no date', saying({ createdAt: 'yesterday' })],
    ['with a status that there is not', saying({ status: 'excellent' })],
    ['that calls itself unverified', saying({ status: 'unverified' })],
    ['with half a hash', saying({ sha256: 'a'.repeat(63) })],
    ['with a hash in capitals', saying({ sha256: 'A'.repeat(64) })],
    ['with a negative size', saying({ sizeBytes: -4 })],
    ['with a size that is no number', saying({ sizeBytes: '4' })],
    ['with a size that is no whole number', saying({ sizeBytes: 4.5 })],
    ['with another method', saying({ method: 'cp' })],
    ['with tags that are no list', saying({ tags: 'before-guard' })],
    ['with tags that are no words', saying({ tags: [1] })],
    ['with a source that is no path', saying({ source: 7 })],
    ...(
      ['schemaVersion', 'file', 'manifest', 'name', 'createdAt', 'sizeBytes', 'sha256', 'status', 'method', 'tags', 'configuredPath', 'realPath'] as const
    ).map((key): [string, (to: string) => void] => [`without ${key}`, without(key)]),
    ['that is empty', text('')],
    ['that is cut short', (to) => truncateSync(path(to), 100)],
    ['that is no JSON', text('file: x')],
    ['that is null', text('null')],
    ['that is a list', text('[]')],
    ['that is a text', text('"good"')],
    ['that is nested beyond all measure', text('['.repeat(1_000_000))],
    ['that has a prototype', text(JSON.stringify({ __proto__: null, constructor: {} }).replace('{', '{"__proto__":{"status":"good"},'))],
    ['larger than 16 MB', (to) => truncateSync(path(to), 16_000_001)],
    ['of a terabyte, sparse', (to) => truncateSync(path(to), 2 ** 40)],
    [
      'that is a FIFO',
      replaced((at) => {
        spawnSync('mkfifo', [at]);
      }),
    ],
    [
      'that is a link to a good one',
      replaced((at, to) => {
        writeFileSync(join(to, 'real'), textOf(good));
        symlinkSync(join(to, 'real'), at);
      }),
    ],
    ['that is a link to /dev/zero', replaced((at) => symlinkSync('/dev/zero', at))],
    ['that is a link to itself', replaced((at) => symlinkSync(at, at))],
    ['that is a directory', replaced((at) => mkdirSync(at))],
    [
      'that is a socket',
      replaced((at) => {
        const server = createServer().listen(at);
        atEnd(() => server.close());
      }),
    ],
  ];

  test.each(rows)('one %s makes the copy unverified, at once', async (_, make) => {
    const to = directory(BASE, 'app-20261101T000000Z');
    make(to);
    // The socket appears when the server listens.
    await new Promise((r) => setImmediate(r));
    const began = performance.now();
    const copies = readCopies(to, 'app');
    expect(performance.now() - began).toBeLessThan(5000);
    expect(copies.map((c) => [c.file, c.status, c.manifest])).toEqual([
      [`${BASE}.db`, 'unverified', null],
      ['app-20261101T000000Z.db', 'good', 'app-20261101T000000Z.json'],
    ]);
    expect(copies[0]).toMatchObject({ sizeBytes: 4, sha256: null, source: null, tags: [] });
    const read = readManifest(to, BASE);
    expect('unreadable' in read && read.unreadable).toMatch(/manifest/);
    // What is not believed decides nothing.
    expect(newestManifest(to, 'app')?.file).toBe('app-20261101T000000Z.db');
    expect(newestGood(to, 'app', Date.parse('2026-11-21T00:00:00Z'))?.file).toBe('app-20261101T000000Z.db');
  });

  test('a good one of another copy, moved here, is not believed', () => {
    const to = directory(BASE, 'app-20261101T000000Z');
    renameSync(join(to, 'app-20261101T000000Z.json'), path(to));
    expect(readCopies(to, 'app').map((c) => c.status)).toEqual(['unverified', 'unverified']);
    linkSync(path(to), join(to, 'app-20261101T000000Z.json'));
    expect(readCopies(to, 'app').map((c) => c.status)).toEqual(['unverified', 'good']);
  });

  test.skipIf(cannot('root'))("one of a user who is neither root nor the directory's owner is not believed", () => {
    const to = directory(BASE);
    chownSync(path(to), 4711, 4711);
    expect(readCopies(to, 'app')[0]?.status).toBe('unverified');
    chownSync(to, 4711, 4711);
    expect(readCopies(to, 'app')[0]?.status).toBe('good');
  });

  test('one with 16 MB and more to say than we know is read', () => {
    const to = directory(BASE);
    const future = { ...good, schemaVersion: 2, somethingNew: 'x'.repeat(15_000_000) };
    writeFileSync(path(to), textOf(future));
    expect(readCopies(to, 'app')[0]?.status).toBe('good');
  });

  test('from bytes: never an exception, and only for its own base', () => {
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 200 }).map(Buffer.from), fc.json().map(Buffer.from)), (bytes) => {
        expect(parseManifest(bytes, BASE)).toBe(null);
      }),
    );
    const bytes = Buffer.from(textOf(good));
    expect(parseManifest(bytes, BASE)).toMatchObject({ name: 'app' });
    expect(parseManifest(bytes, `${BASE}-2`)).toBe(null);
    expect(parseManifest(bytes, `../${BASE}`)).toBe(null);
    // One field at a time turned into something else: believed only where the field says nothing that is acted on.
    const acted = ['file', 'manifest', 'name', 'createdAt', 'sizeBytes', 'sha256', 'status', 'method', 'tags', 'runId', 'configuredPath', 'realPath'];
    fc.assert(
      fc.property(fc.constantFrom(...acted), fc.oneof(fc.integer({ max: -1 }), fc.constant({}), fc.constant(true), fc.constant([[]])), (key, value) => {
        expect(parseManifest(Buffer.from(textOf(good, { [key]: value })), BASE)).toBe(null);
      }),
    );
  });

  test('reading leaves everything as it was', () => {
    const to = directory(BASE);
    const before = readFileSync(path(to));
    readCopies(to, null);
    expect(readFileSync(path(to))).toEqual(before);
  });
});

describe('a sealed manifest', () => {
  const FILE = `${BASE}.db.zst.age`;
  const full = {
    ...manifestOf(BASE, DATA),
    file: FILE,
    compress: 'zstd',
    encrypted: true,
    configuredPath: '/srv/cAnArY/app.db',
    realPath: '/mnt/cAnArY/app.db',
    source: '/srv/cAnArY/app.db',
    schemaHash: 'c'.repeat(64),
    plainSha256: 'd'.repeat(64),
    rows: { cAnArY: 31337, __proto__x: 1 },
    checks: [
      { name: 'integrity_check', ok: true, message: 'ok, except cAnArY' },
      { name: 'foreign_key_check', ok: true, message: 'ok' },
    ],
    selfSha256: '0'.repeat(64),
  } as Manifest;
  const open = withoutSecrets(full, 'U0VBTEVE', '00ff') as Manifest;
  const { source, configuredPath, realPath, schemaHash, rows, plainSha256, checks } = full;
  const secret = { source, configuredPath, realPath, schemaHash, rows, plainSha256, checks };

  test('is read, and tells nothing that stands in its sealed part', () => {
    const parsed = parseManifest(Buffer.from(renderManifest(open)), BASE);
    expect(parsed).toMatchObject({
      file: FILE,
      sealed: 'U0VBTEVE',
      source: null,
      configuredPath: null,
      realPath: null,
      schemaHash: null,
      plainSha256: null,
      rows: {},
    });
    expect(renderManifest(open)).not.toMatch(/canary|31337|c{64}|d{64}/i);
    expect(parsed?.checks.map((c) => [c.name, c.ok, c.message])).toEqual([
      ['integrity_check', true, 'sealed'],
      ['foreign_key_check', true, 'ok'],
    ]);
  });

  test('is what it was, with what was sealed, and with what was added since', () => {
    const { sealed, pathProof, ...back } = withSecrets(open, JSON.stringify(secret));
    expect({ ...back, sealed: null, pathProof: null }).toEqual(full);
    expect([sealed, pathProof?.salt]).toEqual(['U0VBTEVE', '00ff']);
    const verify = { name: 'verify', ok: true, message: 'ok' };
    expect(withSecrets({ ...open, checks: [...open.checks, verify] }, JSON.stringify(secret)).checks).toEqual([...checks, verify]);
  });

  test.each(Object.keys(secret))('is refused where the sealed %s is missing or something else', (field) => {
    for (const value of [undefined, 7, [], { a: 'b' }, { a: -1 }, [{ name: 'x' }], 'no hash']) {
      const odd = { ...secret, [field]: value };
      const fits = value === 'no hash' && ['source', 'configuredPath', 'realPath', 'schemaHash'].includes(field);
      if (fits || (field === 'checks' && Array.isArray(value) && value.length === 0)) continue;
      expect(() => withSecrets(open, JSON.stringify(odd)), `${field} ${JSON.stringify(value)}`).toThrow();
    }
  });

  test.each(['', '{', 'null', '[]', '7', '"text"', '{}'])('is refused where %j was sealed', (text) => {
    expect(() => withSecrets(open, text)).toThrow();
  });

  test('answers whether a path is that of its source, and no more', () => {
    for (const m of [full, open]) {
      expect(isCopyOf(m, '/srv/cAnArY/app.db', '/elsewhere')).toBe(true);
      expect(isCopyOf(m, '/elsewhere', '/mnt/cAnArY/app.db')).toBe(true);
      expect(isCopyOf(m, '/mnt/cAnArY/app.db', '/srv/cAnArY/app.db')).toBe(false);
      expect(isCopyOf(m, '/elsewhere', '/elsewhere')).toBe(false);
      expect(isCopyOf(m, '', '')).toBe(false);
    }
    // Another salt, another proof: two copies of one database cannot be told from two of two.
    const again = withoutSecrets(full, 'U0VBTEVE', '00fe') as Manifest;
    expect([again.pathProof?.configured === open.pathProof?.configured, again.pathProof?.real === open.pathProof?.real]).toEqual([false, false]);
    expect(isCopyOf(again, '/srv/cAnArY/app.db', '/x')).toBe(true);
  });

  test.each([
    ['an open one for a sealed file', { sealed: null, configuredPath: '/a', realPath: '/a' }],
    ['a sealed one for a plain file', { file: `${BASE}.db` }],
    ['one without a proof of its path', { pathProof: null }],
    ['a proof that is none', { pathProof: { salt: '00', configured: 'x', real: 'y' } }],
    ['a file of another kind', { file: `${BASE}.files.tar.age` }],
    ['a file of another copy', { file: `app-20261101T000000Z.db.age` }],
  ])('is not believed: %s', (_, more) => {
    expect(parseManifest(Buffer.from(JSON.stringify({ ...open, ...more })), BASE)).toBe(null);
  });

  test('is the one of its own data alone, whatever else has its base name', () => {
    const to = tempDirectory('sealed');
    writeFileSync(join(to, FILE), 'data');
    writeFileSync(join(to, `${BASE}.json`), renderManifest(open));
    expect(readCopies(to, 'app').map((c) => [c.file, c.status, c.source])).toEqual([[FILE, 'good', null]]);
    writeFileSync(join(to, `${BASE}.db`), 'data');
    expect(
      readCopies(to, 'app')
        .map((c) => [c.file, c.status])
        .toSorted(),
    ).toEqual([
      [`${BASE}.db`, 'unverified'],
      [FILE, 'good'],
    ]);
  });
});
