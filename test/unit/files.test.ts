/** The careful way with files, on a real file system: nothing is clobbered, torn, followed, or waited for. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  ancestors,
  emptyFiles,
  giveLook,
  hashFile,
  lstatOrNull,
  makeDirectories,
  makePrivateDirectory,
  publish,
  readSmall,
  remove,
  removeTree,
  replace,
  sizeOf,
  syncDirectory,
  syncFile,
  writeNew,
} from '../../src/system/files.js';
import { atEnd, tempDirectory, until } from '../support/cli.js';

const nothing = (): void => undefined;
const modeOf = (path: string): string => (lstatSync(path).mode & 0o7777).toString(8);
/** The code of what is thrown. */
function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    return error instanceof Error && 'code' in error ? String(error.code) : String(error);
  }
  return 'nothing was thrown';
}
/** With a umask that hides nothing, as an init script may leave one. */
function withOpenUmask(work: () => void): void {
  const before = process.umask(0);
  try {
    work();
  } finally {
    process.umask(before);
  }
}

describe('publish', () => {
  const staged = (): { to: string; file: string } => {
    const to = tempDirectory('publish');
    const file = join(to, 'staged');
    writeNew(file, 'new');
    return { to, file };
  };

  test('gives the very same file a second name', () => {
    const { to, file } = staged();
    publish(file, join(to, 'final'));
    expect(lstatSync(join(to, 'final')).ino).toBe(lstatSync(file).ino);
    expect(readFileSync(join(to, 'final'), 'utf8')).toBe('new');
    expect(modeOf(join(to, 'final'))).toBe('600');
  });

  test.each([
    ['a file', (path: string) => writeFileSync(path, 'old')],
    ['an empty file', (path: string) => writeFileSync(path, '')],
    ['a link', (path: string) => symlinkSync('elsewhere', path)],
    ['a link to nowhere', (path: string) => symlinkSync('/nowhere/at/all', path)],
    ['a directory', (path: string) => mkdirSync(path)],
    ['a FIFO', (path: string) => void spawnSync('mkfifo', [path])],
  ])('never clobbers %s', (_, make) => {
    const { to, file } = staged();
    writeFileSync(join(to, 'elsewhere'), 'elsewhere');
    const final = join(to, 'final');
    make(final);
    const look = (): unknown[] => {
      const s = lstatSync(final);
      return [s.ino, s.size, s.mtimeMs, s.mode, s.isSymbolicLink() ? readlinkSync(final) : '', readFileSync(join(to, 'elsewhere'), 'utf8')];
    };
    const before = look();
    expect(codeOf(() => publish(file, final))).toBe('EEXIST');
    expect(look()).toEqual(before);
    expect(readdirSync(to).toSorted()).toEqual(['elsewhere', 'final', 'staged']);
  });

  test('fails where there is no such directory, or nothing staged', () => {
    const { to, file } = staged();
    expect(codeOf(() => publish(file, join(to, 'no/final')))).toBe('ENOENT');
    expect(codeOf(() => publish(join(to, 'no'), join(to, 'final')))).toBe('ENOENT');
    expect(existsSync(join(to, 'final'))).toBe(false);
  });
});

describe('writeNew', () => {
  test('makes a file of 0600 under every umask, whole', () => {
    const to = tempDirectory('write');
    const bytes = Buffer.alloc(3_000_001, 'x');
    withOpenUmask(() => writeNew(join(to, 'a'), bytes));
    expect(modeOf(join(to, 'a'))).toBe('600');
    expect(readFileSync(join(to, 'a')).equals(bytes)).toBe(true);
  });

  test('touches nothing that is there, and follows no link', () => {
    const to = tempDirectory('write');
    writeFileSync(join(to, 'there'), 'old');
    symlinkSync('new', join(to, 'link'));
    expect(codeOf(() => writeNew(join(to, 'there'), 'x'))).toBe('EEXIST');
    expect(['EEXIST', 'ELOOP']).toContain(codeOf(() => writeNew(join(to, 'link'), 'x')));
    expect(readFileSync(join(to, 'there'), 'utf8')).toBe('old');
    expect(readdirSync(to).toSorted()).toEqual(['link', 'there']);
  });
});

describe('replace', () => {
  test('a reader sees the old bytes or the new ones, never some of both, never none', async () => {
    const to = tempDirectory('replace');
    const file = join(to, 'it');
    const SIZE = 300_000;
    replace(file, 'a'.repeat(SIZE), nothing);
    const reader = spawn(
      process.execPath,
      [
        '-e',
        `const { readFileSync, existsSync } = require('node:fs');
         const [file, stop] = process.argv.slice(1);
         let reads = 0; const torn = [];
         process.stdout.write('ready\\n');
         while (!existsSync(stop)) {
           let text; try { text = readFileSync(file, 'utf8'); } catch (e) { torn.push(e.code); continue; }
           reads++;
           if (text.length !== ${SIZE} || text !== text[0].repeat(${SIZE})) torn.push(text.length);
         }
         process.stdout.write(JSON.stringify({ reads, torn }));`,
        file,
        join(to, 'stop'),
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    atEnd(() => reader.kill('SIGKILL'));
    let said = '';
    reader.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    await until('the reader', () => said.includes('ready'));
    for (let i = 0; i < 60; i++) replace(file, 'ab'.charAt(i % 2).repeat(SIZE), nothing);
    writeFileSync(join(to, 'stop'), '');
    await once(reader, 'close');
    const { reads, torn } = JSON.parse(said.replace('ready\n', '')) as { reads: number; torn: unknown[] };
    expect(torn).toEqual([]);
    expect(reads).toBeGreaterThan(5);
  });

  test('is private, and leaves nothing beside', () => {
    const to = tempDirectory('replace');
    writeFileSync(join(to, 'it'), 'old', { mode: 0o644 });
    withOpenUmask(() => replace(join(to, 'it'), 'new', nothing));
    expect([readFileSync(join(to, 'it'), 'utf8'), modeOf(join(to, 'it')), readdirSync(to)]).toEqual(['new', '600', ['it']]);
  });

  test('a link in its way, or in the place of its staging, is not followed', () => {
    const to = tempDirectory('replace');
    writeFileSync(join(to, 'victim'), 'victim');
    symlinkSync('victim', join(to, 'it'));
    symlinkSync('victim', join(to, 'it.new'));
    replace(join(to, 'it'), 'new', nothing);
    expect([readFileSync(join(to, 'victim'), 'utf8'), readFileSync(join(to, 'it'), 'utf8')]).toEqual(['victim', 'new']);
    expect(lstatSync(join(to, 'it')).isFile()).toBe(true);
  });

  test('the old bytes stay when the new ones cannot be put there', () => {
    const to = tempDirectory('replace');
    mkdirSync(join(to, 'it'));
    writeFileSync(join(to, 'it/inside'), 'x');
    expect(codeOf(() => replace(join(to, 'it'), 'new', nothing))).toMatch(/EISDIR|ENOTEMPTY|EEXIST/);
    expect(readdirSync(join(to, 'it'))).toEqual(['inside']);
  });
});

describe('emptyFiles', () => {
  const made = (): { directory: string; file: string } => {
    const directory = join(tempDirectory('empty'), 'private');
    mkdirSync(directory);
    const file = join(directory, 'data.db');
    writeFileSync(file, 'large');
    return { directory, file };
  };

  test('empties what it is told to, and nothing that has another name', () => {
    const { directory, file } = made();
    writeFileSync(join(directory, 'other'), 'kept');
    writeFileSync(join(directory, 'published.db'), 'kept');
    linkSync(join(directory, 'published.db'), join(directory, '..', 'app.db'));
    symlinkSync(join(directory, 'other'), join(directory, 'link'));
    emptyFiles(directory, lstatSync(directory), ['data.db', 'published.db', 'link', 'missing']);
    expect(sizeOf(file)).toBe(0);
    for (const kept of ['other', 'published.db', '../app.db']) expect(readFileSync(join(directory, kept), 'utf8')).toBe('kept');
  });

  test('follows nothing that took the place of the directory', () => {
    const { directory, file } = made();
    const is = lstatSync(directory);
    const victim = join(tempDirectory('victim'), 'home');
    mkdirSync(victim);
    writeFileSync(join(victim, 'data.db'), 'precious');
    renameSync(directory, `${directory}.moved`);
    symlinkSync(victim, directory);
    emptyFiles(directory, is, ['data.db']);
    expect(() => emptyFiles(join(directory, 'gone'), is, ['data.db'])).not.toThrow();
    remove(directory);
    renameSync(victim, directory);
    emptyFiles(directory, is, ['data.db']);
    expect(readFileSync(join(directory, 'data.db'), 'utf8')).toBe('precious');
    expect(existsSync(file)).toBe(true);
  });
});

describe('readSmall', () => {
  const at = tempDirectory('read');
  writeFileSync(join(at, 'file'), 'hello');
  symlinkSync('file', join(at, 'link'));
  symlinkSync('loop', join(at, 'loop'));
  spawnSync('mkfifo', [join(at, 'fifo')]);

  test('reads a regular file, up to the limit and not a byte more', () => {
    expect(readSmall(join(at, 'file'), 5).bytes.toString()).toBe('hello');
    expect(readSmall(join(at, 'file'), 5).stats.size).toBe(5);
    expect(codeOf(() => readSmall(join(at, 'file'), 4))).toBe('EFBIG');
    writeFileSync(join(at, 'empty'), '');
    expect(readSmall(join(at, 'empty'), 0).bytes).toHaveLength(0);
  });

  test.each([
    ['a link', 'link', 'ELOOP'],
    ['a FIFO without a writer', 'fifo', 'EINVAL'],
    ['a directory', '.', 'EINVAL'],
    ['/dev/zero', '/dev/zero', 'EINVAL'],
    ['what is not there', 'nope', 'ENOENT'],
    ['what is below a file', 'file/x', 'ENOTDIR'],
  ])('refuses %s, at once', (_, name, code) => {
    const began = performance.now();
    expect(codeOf(() => readSmall(name.startsWith('/') ? name : join(at, name), 1000))).toBe(code);
    expect(performance.now() - began).toBeLessThan(5000);
  });

  test('refuses a socket', async () => {
    const server = createServer().listen(join(at, 'socket'));
    await once(server, 'listening');
    expect(codeOf(() => readSmall(join(at, 'socket'), 1000))).toBe('ENXIO');
    server.close();
  });

  test('a huge file costs nothing', () => {
    writeFileSync(join(at, 'huge'), '');
    truncateSync(join(at, 'huge'), 2 ** 40);
    const before = process.memoryUsage().rss;
    expect(codeOf(() => readSmall(join(at, 'huge'), 1 << 20))).toBe('EFBIG');
    expect(process.memoryUsage().rss - before).toBeLessThan(50e6);
  });

  test('follows a link where that was asked for, but not to a FIFO or in a circle', () => {
    expect(readSmall(join(at, 'link'), 10, 'follow').bytes.toString()).toBe('hello');
    symlinkSync('fifo', join(at, 'to-fifo'));
    expect(codeOf(() => readSmall(join(at, 'to-fifo'), 10, 'follow'))).toBe('EINVAL');
    expect(codeOf(() => readSmall(join(at, 'loop'), 10, 'follow'))).toBe('ELOOP');
  });

  test('leaves no descriptor open', () => {
    const open = (): number => readdirSync('/proc/self/fd').length;
    const before = open();
    for (const name of ['file', 'link', 'fifo', '.', 'nope', 'huge']) codeOf(() => readSmall(join(at, name), 4));
    expect(open()).toBe(before);
  });
});

describe('makeDirectories', () => {
  test('makes what is missing, 0700 under every umask, and leaves alone what is there', () => {
    const top = tempDirectory('make');
    chmodSync(top, 0o755);
    withOpenUmask(() => makeDirectories(join(top, 'a/b/c'), nothing));
    expect(['a', 'a/b', 'a/b/c'].map((d) => modeOf(join(top, d)))).toEqual(['700', '700', '700']);
    chmodSync(join(top, 'a/b'), 0o750);
    makeDirectories(join(top, 'a/b/c/d'), nothing);
    makeDirectories(join(top, 'a/b'), nothing);
    expect([modeOf(top), modeOf(join(top, 'a/b')), modeOf(join(top, 'a/b/c/d'))]).toEqual(['755', '750', '700']);
  });

  test.each([
    ['/proc/nope', /ENOENT|EACCES|EPERM/],
    ['/proc/nope/deeper/still', /ENOENT|EACCES|EPERM/],
    ['/proc/self/nope', /ENOENT|EACCES|EPERM/],
    ['/sys/nope', /ENOENT|EACCES|EPERM|EROFS/],
    ['/dev/null/x', /ENOTDIR/],
  ])('%s ends with an error, and ends', (path, code) => {
    const began = performance.now();
    expect(codeOf(() => makeDirectories(path, nothing))).toMatch(code);
    expect(performance.now() - began).toBeLessThan(5000);
  });

  test('a file, a link to nowhere or a name without end in its way are errors', () => {
    const top = tempDirectory('make');
    writeFileSync(join(top, 'file'), '');
    symlinkSync('/nowhere/at/all', join(top, 'link'));
    expect(codeOf(() => makeDirectories(join(top, 'file/x/y'), nothing))).toBe('ENOTDIR');
    expect(codeOf(() => makeDirectories(join(top, 'link/x'), nothing))).toBe('ENOENT');
    expect(codeOf(() => makeDirectories(join(top, 'x'.repeat(300)), nothing))).toBe('ENAMETOOLONG');
    expect(readdirSync(top).toSorted()).toEqual(['file', 'link']);
  });

  test('a single private one says whether it is new', () => {
    const top = tempDirectory('make');
    withOpenUmask(() => expect(makePrivateDirectory(join(top, 'a'))).toBe(true));
    expect([modeOf(join(top, 'a')), makePrivateDirectory(join(top, 'a'))]).toEqual(['700', false]);
    writeFileSync(join(top, 'file'), '');
    symlinkSync('a', join(top, 'link'));
    expect(codeOf(() => makePrivateDirectory(join(top, 'file')))).toBe('ENOTDIR');
    expect(codeOf(() => makePrivateDirectory(join(top, 'link')))).toBe('ENOTDIR');
    expect(codeOf(() => makePrivateDirectory(join(top, 'no/b')))).toBe('ENOENT');
  });
});

describe('the rest', () => {
  test('remove tells whether something was there, and takes the link, not what it points to', () => {
    const at = tempDirectory('remove');
    writeFileSync(join(at, 'file'), 'x');
    symlinkSync('file', join(at, 'link'));
    expect([remove(join(at, 'link')), remove(join(at, 'link')), readdirSync(at)]).toEqual([true, false, ['file']]);
    mkdirSync(join(at, 'directory'));
    expect(codeOf(() => remove(join(at, 'directory')))).toMatch(/EISDIR|EPERM/);
  });

  test('removeTree does not follow a link out of it', () => {
    const outside = tempDirectory('outside');
    writeFileSync(join(outside, 'precious'), 'x');
    const at = tempDirectory('tree');
    mkdirSync(join(at, 't/deep'), { recursive: true });
    symlinkSync(outside, join(at, 't/deep/link'));
    symlinkSync(outside, join(at, 'top'));
    removeTree(join(at, 't'));
    removeTree(join(at, 'top'));
    removeTree(join(at, 'nothing'));
    expect([readdirSync(at), readdirSync(outside)]).toEqual([[], ['precious']]);
  });

  test('lstatOrNull: null for what cannot be there, errors for what cannot be known', () => {
    const at = tempDirectory('stat');
    writeFileSync(join(at, 'file'), 'x');
    symlinkSync('/nowhere', join(at, 'link'));
    expect([lstatOrNull(join(at, 'nope')), lstatOrNull(join(at, 'file/x')), lstatOrNull(join(at, 'link'))?.isSymbolicLink()]).toEqual([null, null, true]);
    expect(codeOf(() => lstatOrNull(join(at, 'x'.repeat(300))))).toBe('ENAMETOOLONG');
    expect([sizeOf(join(at, 'file')), sizeOf(join(at, 'nope'))]).toEqual([1, 0]);
  });

  test('a directory that cannot be synced is told, not an error', () => {
    const told: string[] = [];
    syncDirectory('/proc', (what) => told.push(what));
    expect(told).toEqual(['syncing the directory /proc']);
    syncDirectory(tempDirectory('sync'), (what) => told.push(what));
    expect(told).toHaveLength(1);
    expect(codeOf(() => syncDirectory('/nowhere/at/all', nothing))).toBe('ENOENT');
  });

  test('syncFile follows no link', async () => {
    const at = tempDirectory('sync');
    writeFileSync(join(at, 'file'), 'x');
    symlinkSync('file', join(at, 'link'));
    await expect(syncFile(join(at, 'file'))).resolves.toBe(undefined);
    await expect(syncFile(join(at, 'link'))).rejects.toMatchObject({ code: 'ELOOP' });
  });

  test('hashFile is SHA-256, tells how far it is, ends when asked to, and follows no link', async () => {
    const at = tempDirectory('hash');
    const bytes = Buffer.alloc((1 << 20) * 2 + 7, 'abc');
    writeFileSync(join(at, 'file'), bytes);
    symlinkSync('file', join(at, 'link'));
    const { signal } = new AbortController();
    const done: number[] = [];
    expect(await hashFile(join(at, 'file'), signal, (n) => done.push(n))).toBe(createHash('sha256').update(bytes).digest('hex'));
    expect(done).toEqual([1 << 20, 2 << 20, bytes.length]);
    writeFileSync(join(at, 'empty'), '');
    expect(await hashFile(join(at, 'empty'), signal, nothing)).toBe('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
    await expect(hashFile(join(at, 'link'), signal, nothing)).rejects.toMatchObject({ code: 'ELOOP' });
    const stop = new AbortController();
    await expect(hashFile(join(at, 'file'), stop.signal, () => stop.abort(new Error('enough')))).rejects.toThrow('enough');
  });

  test('ancestors', () => {
    expect([ancestors('/'), ancestors('/var/backups/app')]).toEqual([['/'], ['/', '/var', '/var/backups', '/var/backups/app']]);
  });

  test('hard links to one file are still one file for publish', () => {
    const at = tempDirectory('links');
    writeNew(join(at, 'a'), 'x');
    linkSync(join(at, 'a'), join(at, 'b'));
    expect(codeOf(() => publish(join(at, 'a'), join(at, 'b')))).toBe('EEXIST');
  });
});

describe('giveLook', () => {
  const look = { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0, mode: 0o640 };

  test('gives mode and owner to the file that it must be', () => {
    const path = join(tempDirectory('look'), 'x');
    writeFileSync(path, 'x', { mode: 0o600 });
    giveLook(path, look, lstatSync(path));
    expect(lstatSync(path).mode & 0o7777).toBe(0o640);
  });

  test.each([
    ['a link to another file', (path: string, victim: string) => symlinkSync(victim, path), 'ELOOP'],
    ['another file', (path: string, victim: string) => linkSync(victim, path), 'EEXIST'],
    ['a FIFO', (path: string) => execFileSync('mkfifo', [path]), 'EEXIST'],
  ])('leaves %s under the name as it is', (_, exchange, code) => {
    const directory = tempDirectory('look');
    const path = join(directory, 'x');
    const victim = join(directory, 'victim');
    writeFileSync(path, 'x', { mode: 0o600 });
    writeFileSync(victim, 'secret', { mode: 0o600 });
    const proven = lstatSync(path);
    renameSync(path, `${path}.away`);
    exchange(path, victim);
    expect(() => giveLook(path, look, proven)).toThrow(expect.objectContaining({ code }));
    expect(lstatSync(victim).mode & 0o7777).toBe(0o600);
  });
});
