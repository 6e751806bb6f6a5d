/** Archives of files beside a database: real trees, real changes while they are read, and Debian's tar as the judge. */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  appendFileSync,
  chmodSync,
  createReadStream,
  existsSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ArchiveError } from '../../src/archive/common.js';
import { type ArchiveFile, type ArchiveInput, writeArchive } from '../../src/archive/pack.js';
import { extractArchive, inspectArchive } from '../../src/archive/unpack.js';
import { mountTmpfs } from '../fault/mounts.js';
import { cannot, openTempDirectory, ROOT, tempDirectory } from '../support/cli.js';
import { treeOf } from '../support/tar.js';

const never = new AbortController().signal;
const MB = 1 << 20;

interface Place {
  /** The directory that is archived. */
  readonly tree: string;
  /** Where the archive goes. */
  readonly target: string;
  /** Where it is unpacked: not there yet. */
  readonly out: string;
}

function place(): Place {
  const home = tempDirectory('archive');
  mkdirSync(join(home, 'tree'));
  return { tree: join(home, 'tree'), target: join(home, 'files.tar'), out: join(home, 'out') };
}

const write = (at: Place, more: Partial<ArchiveInput> = {}): Promise<ArchiveFile> =>
  writeArchive({ roots: [at.tree], target: at.target, signal: never, ...more });

const extract = (at: Place): Promise<{ count: number; fileBytes: number }> => extractArchive(createReadStream(at.target), at.out, never);

/** The names in an archive, as Debian's tar reads them. */
const namesIn = (target: string): string[] =>
  execFileSync('tar', ['--quoting-style=literal', '-tf', target], { encoding: 'utf8' })
    .split('\n')
    .filter((name) => name !== '');

const NOTHING_LOST = { vanished: 0, changed: 0, unreadable: 0, skipped: 0 };

/** What is thrown. */
async function thrown(work: Promise<unknown>): Promise<unknown> {
  try {
    await work;
  } catch (error) {
    return error;
  }
  return 'nothing was thrown';
}

const asNobody = cannot('root');
/** Does something with the rights of another user, where we are root. */
async function unprivileged<T>(work: () => Promise<T>): Promise<T> {
  if (asNobody !== null) return await work();
  process.setegid?.(65_534);
  process.seteuid?.(65_534);
  try {
    return await work();
  } finally {
    process.seteuid?.(0);
    process.setegid?.(0);
  }
}

/** A tree with whatever a name, a mode and a time can be. */
function oddTree(tree: string): void {
  const file = (name: string, content: string | Buffer, mode = 0o644): void => {
    writeFileSync(join(tree, name), content);
    chmodSync(join(tree, name), mode);
  };
  file('plain.txt', 'plain');
  file('empty', '');
  file('block', Buffer.alloc(512, 1));
  file('for-nobody', 'secret', 0o000);
  file('setuid', '#!/bin/sh\n', 0o4755);
  file('ümläut-名前-🗄', 'unicode');
  file('with\nnewline', 'newline');
  file('\ufeffbyte order mark', 'bom');
  file('replaced \ufffd', 'a character that was lost before');
  file(`${'n'.repeat(255)}`, 'a long name');
  file('large', Buffer.alloc(3 * MB + 17, 'content '));
  mkdirSync(join(tree, 'empty directory'));
  mkdirSync(join(tree, 'closed'), 0o700);
  const deep = join(tree, ...Array.from({ length: 12 }, (_, i) => `${'d'.repeat(40)}${i}`));
  mkdirSync(deep, { recursive: true });
  writeFileSync(join(deep, 'with\nnewline, and deep'), 'deep');
  symlinkSync('plain.txt', join(tree, 'link'));
  symlinkSync('/etc/passwd', join(tree, 'link out'));
  symlinkSync(`gone/${'t'.repeat(300)}`, join(tree, 'link to nothing, a long way'));
  linkSync(join(tree, 'plain.txt'), join(tree, 'second name'));
  utimesSync(join(tree, 'plain.txt'), 1_234_567_890.125, 1_234_567_890.125);
  utimesSync(join(tree, 'empty'), -86_400, -86_400);
  utimesSync(join(tree, 'block'), 4_000_000_000.5, 4_000_000_000.5);
  lutimesSync(join(tree, 'link'), 1_000_000_000, 1_000_000_000);
  utimesSync(join(tree, 'empty directory'), 1_111_111_111, 1_111_111_111);
}

describe('a tree at rest', () => {
  test('comes back bit for bit: contents, names, modes, times, links; no setuid', async () => {
    const at = place();
    oddTree(at.tree);
    const written = await write(at);
    expect(written.totals).toEqual(NOTHING_LOST);
    expect(written.sizeBytes).toBe(statSync(at.target).size);
    expect(written.sha256).toBe(createHash('sha256').update(readFileSync(at.target)).digest('hex'));
    expect(statSync(at.target).mode & 0o777).toBe(0o600);
    expect(await inspectArchive(createReadStream(at.target), never)).toEqual({ count: written.count, fileBytes: written.fileBytes });

    expect(await extract(at)).toEqual({ count: written.count, fileBytes: written.fileBytes });
    const unpacked = join(at.out, at.tree);
    expect(treeOf(unpacked)).toEqual(treeOf(at.tree));
    expect(written.count).toBe(treeOf(at.tree).filter((line) => line.includes(' file ')).length);
    expect(lstatSync(join(unpacked, 'setuid')).mode & 0o7777).toBe(0o755);
    expect(lstatSync(join(unpacked, 'plain.txt')).nlink).toBe(1);
    expect(statSync(at.out).mode & 0o777).toBe(0o700);
  });

  test('is read by the tar of Debian, with all names, modes and times', async () => {
    const at = place();
    oddTree(at.tree);
    await write(at);
    const listed = spawnSync('tar', ['-tvf', at.target], { encoding: 'utf8' });
    expect({ status: listed.status, stderr: listed.stderr }).toEqual({ status: 0, stderr: '' });
    expect(listed.stdout).toMatch(/^-rwsr-xr-x /m);
    mkdirSync(at.out);
    execFileSync('tar', ['-xpf', at.target, '-C', at.out]);
    expect(treeOf(join(at.out, at.tree))).toEqual(treeOf(at.tree));
    expect(spawnSync('diff', ['-r', '--no-dereference', at.tree, join(at.out, at.tree)], { encoding: 'utf8' })).toMatchObject({ status: 0, stdout: '' });
  });

  test('gives the same bytes twice, in the order of the bytes, each directory before what is in it', async () => {
    const at = place();
    for (const name of ['b', 'a!', 'é', 'Z', 'a-b']) writeFileSync(join(at.tree, name), name);
    mkdirSync(join(at.tree, 'a'));
    writeFileSync(join(at.tree, 'a', 'z'), '');
    const first = await write(at);
    const second = await write({ ...at, target: `${at.target}.2` });
    expect(second.sha256).toBe(first.sha256);
    const below = namesIn(at.target).map((name) => name.slice(at.tree.length));
    expect(below).toEqual(['', 'Z', 'a/', 'a/z', 'a!', 'a-b', 'b', 'é']);
  });

  test('keeps user and group, also beyond what a plain header holds', async () => {
    const at = place();
    writeFileSync(join(at.tree, 'a'), 'a');
    if (asNobody === null) execFileSync('chown', ['3000000000:262144', join(at.tree, 'a')]);
    await write(at);
    const { uid, gid } = lstatSync(join(at.tree, 'a'));
    expect(execFileSync('tar', ['--numeric-owner', '-tvf', at.target], { encoding: 'utf8' })).toContain(` ${uid}/${gid} `);
  });

  test('writes a size beyond 8 GiB so that tar understands it', async () => {
    const at = place();
    const size = 8 * 1024 ** 3 + 5;
    writeFileSync(join(at.tree, 'huge'), '');
    truncateSync(join(at.tree, 'huge'), size);
    const ending = new AbortController();
    let listed = '';
    const progress = (path: string, done: number): void => {
      if (!path.endsWith('/huge') || done < 2 * MB) return;
      listed = spawnSync('tar', ['-tvf', '-'], { input: readFileSync(at.target), encoding: 'utf8' }).stdout;
      ending.abort(new Error('enough was seen'));
    };
    expect(await thrown(write(at, { progress, signal: ending.signal }))).toMatchObject({ message: 'enough was seen' });
    expect(listed).toContain(` ${size} `);
    expect(existsSync(at.target)).toBe(false);
  });

  test('of any shape comes back as it was', { timeout: 120_000 }, async () => {
    const name = fc
      .string({ unit: 'binary', minLength: 1, maxLength: 60 })
      .filter((n) => !/[/\0]/.test(n) && n !== '.' && n !== '..' && !/\p{Surrogate}/u.test(n) && Buffer.byteLength(n) <= 255);
    const mode = fc.integer({ min: 0, max: 0o777 });
    const time = fc.integer({ min: -2_000_000_000, max: 10_000_000_000 });
    const target = fc.string({ unit: 'binary', minLength: 1, maxLength: 200 }).filter((t) => !t.includes('\0') && !/\p{Surrogate}/u.test(t));
    type Node =
      | { kind: 'file'; mode: number; time: number; content: Uint8Array }
      | { kind: 'link'; target: string }
      | { kind: 'dir'; mode: number; time: number; children: [string, Node][] };
    const { node } = fc.letrec<{ node: Node; dir: Node }>((tie) => ({
      node: fc.oneof(
        { depthSize: 'small', withCrossShrink: true },
        fc.record({ kind: fc.constant('file' as const), mode, time, content: fc.uint8Array({ maxLength: 1500 }) }),
        fc.record({ kind: fc.constant('link' as const), target }),
        tie('dir'),
      ),
      dir: fc.record({
        kind: fc.constant('dir' as const),
        mode,
        time,
        children: fc.uniqueArray(fc.tuple(name, tie('node')), { maxLength: 5, selector: ([n]) => n }),
      }),
    }));
    const make = (path: string, what: Node): void => {
      if (what.kind === 'link') {
        symlinkSync(what.target, path);
        return;
      }
      if (what.kind === 'file') writeFileSync(path, what.content);
      else {
        mkdirSync(path);
        for (const [child, below] of what.children) make(`${path}/${child}`, below);
      }
      // With the rights of its owner, so that everything can be read here without being root, too.
      chmodSync(path, what.mode | (what.kind === 'dir' ? 0o700 : 0o600));
      utimesSync(path, what.time, what.time);
    };
    await fc.assert(
      fc.asyncProperty(fc.uniqueArray(fc.tuple(name, node), { maxLength: 6, selector: ([n]) => n }), async (children) => {
        const at = place();
        for (const [child, what] of children) make(`${at.tree}/${child}`, what);
        const written = await write(at);
        expect(written.totals).toEqual(NOTHING_LOST);
        await extract(at);
        expect(treeOf(join(at.out, at.tree))).toEqual(treeOf(at.tree));
        rmSync(join(at.tree, '..'), { recursive: true });
      }),
      { numRuns: 40 },
    );
  });
});

const LARGE_BYTES = 300 * MB;

test('memory holds pieces, not files: neither a large one nor many', async () => {
  const at = place();
  writeFileSync(join(at.tree, 'large'), '');
  truncateSync(join(at.tree, 'large'), LARGE_BYTES);
  mkdirSync(join(at.tree, 'many'));
  for (let i = 0; i < 3000; i++) symlinkSync('x'.repeat(4000), join(at.tree, 'many', `${i}`));
  const before = process.memoryUsage().rss;
  let most = 0;
  const look = (): void => {
    most = Math.max(most, process.memoryUsage().rss - before);
  };
  const written = await write(at, { progress: look });
  const stream = createReadStream(at.target);
  stream.on('data', look).pause();
  expect(await inspectArchive(stream, never)).toEqual({ count: 1, fileBytes: LARGE_BYTES });
  expect(written.fileBytes).toBe(LARGE_BYTES);
  expect(most).toBeGreaterThan(0);
  expect(most).toBeLessThan(LARGE_BYTES / 2);
});

describe('what is not archived is said', () => {
  test('sockets, FIFOs and names that are not UTF-8, each with its reason', async () => {
    const at = place();
    writeFileSync(join(at.tree, 'file'), 'x');
    execFileSync('mkfifo', [join(at.tree, 'fifo')]);
    const latin1 = Buffer.concat([Buffer.from(`${at.tree}/caf`), Buffer.from([0xe9])]);
    mkdirSync(latin1);
    writeFileSync(Buffer.concat([latin1, Buffer.from('/below')]), 'lost');
    symlinkSync(Buffer.from([0xff, 0x41]), join(at.tree, 'link'));
    const server = createServer();
    await new Promise<void>((done) => server.listen(join(at.tree, 'socket'), done));
    const written = await write(at).finally(() => server.close());
    expect(written.skipped).toEqual([
      `${at.tree}/caf\\xE9: its name is not valid UTF-8 (left out with all below it)`,
      `${at.tree}/fifo: a FIFO`,
      `${at.tree}/link: the link's target is not valid UTF-8`,
      `${at.tree}/socket: a socket`,
    ]);
    expect(written.totals).toEqual({ ...NOTHING_LOST, skipped: 4 });
    expect(namesIn(at.target)).toEqual([`${at.tree.slice(1)}/`, `${at.tree.slice(1)}/file`]);
  });

  test('all are counted, a hundred are named', async () => {
    const at = place();
    execFileSync(
      'mkfifo',
      Array.from({ length: 130 }, (_, i) => join(at.tree, `fifo${i}`)),
    );
    const written = await write(at);
    expect(written.skipped).toHaveLength(100);
    expect(written.totals.skipped).toBe(130);
  });

  test.skipIf(asNobody)('what may not be read, with the reason; the rest is there', async () => {
    const home = openTempDirectory('archive');
    const at = { tree: join(home, 'tree'), target: join(home, 'private', 'files.tar'), out: join(home, 'private', 'out') };
    mkdirSync(at.tree);
    mkdirSync(join(home, 'private'), 0o700);
    execFileSync('chown', ['65534', join(home, 'private')]);
    writeFileSync(join(at.tree, 'closed'), 'x', { mode: 0o600 });
    mkdirSync(join(at.tree, 'directory'), 0o700);
    mkdirSync(join(at.tree, 'unlisted'));
    writeFileSync(join(at.tree, 'unlisted', 'a'), 'x');
    chmodSync(join(at.tree, 'unlisted'), 0o711);
    writeFileSync(join(at.tree, 'open'), 'x');
    const written = await unprivileged(() => write(at));
    expect(written.unreadable).toEqual(['closed', 'directory', 'unlisted'].map((name) => `${at.tree}/${name}: permission denied (EACCES)`));
    expect(written.count).toBe(1);
    expect(namesIn(at.target)).toEqual([`${at.tree.slice(1)}/`, `${at.tree.slice(1)}/open`]);

    // A root of which nothing can be read is a mistake, and told before anything is written.
    rmSync(at.target);
    const error = await thrown(unprivileged(() => write(at, { roots: [at.tree, join(at.tree, 'directory')] })));
    expect(error).toMatchObject({ code: 'ROOT_UNUSABLE', message: `cannot archive ${at.tree}/directory: permission denied (EACCES)` });
    expect(existsSync(at.target)).toBe(false);
  });

  const noMount = cannot('root', 'mount');
  test.skipIf(noMount)('another file system is not entered, unless it is named; then it is archived once', async () => {
    const point = mountTmpfs(MB);
    const home = join(point, '..');
    writeFileSync(join(home, 'here'), 'x');
    writeFileSync(join(point, 'there'), 'x');
    const at = place();
    const without = await write(at, { roots: [home] });
    expect(without.skipped).toEqual([`${point}: another file system`]);
    expect(namesIn(at.target)).toEqual([`${home.slice(1)}/`, `${home.slice(1)}/here`]);
    const both = await write({ ...at, target: `${at.target}.2` }, { roots: [point, home] });
    expect(both.totals).toEqual(NOTHING_LOST);
    expect(namesIn(`${at.target}.2`)).toEqual([`${home.slice(1)}/`, `${home.slice(1)}/here`, `${point.slice(1)}/`, `${point.slice(1)}/there`]);
  });

  test.skipIf(cannot('strace'))('a medium that cannot be read: zeros in its place, and the reason', async () => {
    const at = place();
    // Each thread of four may read once before its calls fail (traps, 46).
    writeFileSync(join(at.tree, 'bad'), Buffer.alloc(8 * MB, 'x'));
    writeFileSync(join(at.tree, 'good'), 'good');
    const code = `
      const { writeArchive } = await import(${JSON.stringify(join(ROOT, 'src/archive/pack.ts'))});
      const input = { roots: [${JSON.stringify(at.tree)}], target: ${JSON.stringify(at.target)}, signal: new AbortController().signal };
      console.log(JSON.stringify(await writeArchive(input)));`;
    const node = [process.execPath, '--import', 'tsx', '--input-type=module', '-e', code];
    const strace = ['-f', '-qq', '-o', '/dev/null', '-P', join(at.tree, 'bad'), '-e', 'trace=pread64', '-e', 'inject=pread64:error=EIO:when=2+'];
    const written: unknown = JSON.parse(execFileSync('strace', [...strace, '--', ...node], { cwd: ROOT, encoding: 'utf8' }));
    expect(written).toMatchObject({
      count: 2,
      fileBytes: 8 * MB + 4,
      changed: [],
      unreadable: [expect.stringMatching(/\/bad: input\/output error \(EIO\); archived with zeros from byte \d+ on$/)],
    });
    await extract(at);
    const unpacked = readFileSync(join(at.out, at.tree, 'bad'));
    expect(unpacked).toHaveLength(8 * MB);
    expect([unpacked[0], unpacked[8 * MB - 1]]).toEqual(['x'.charCodeAt(0), 0]);
    expect(readFileSync(join(at.out, at.tree, 'good'), 'utf8')).toBe('good');
  });
});

describe('a tree that changes while it is read', () => {
  /** Archives two files, doing something at a moment of the first one, and unpacks. */
  async function during(when: (path: string, done: number) => boolean, act: (file: string) => void): Promise<{ written: ArchiveFile; at: Place }> {
    const at = place();
    const file = join(at.tree, 'a');
    writeFileSync(file, Buffer.alloc(MB, 'x'));
    writeFileSync(join(at.tree, 'b'), 'b');
    utimesSync(file, 1_000_000_000, 1_000_000_000);
    let acted = 0;
    const written = await write(at, {
      progress: (path, done) => {
        if (path !== file || acted > 0 || !when(path, done)) return;
        acted++;
        act(file);
      },
    });
    expect(acted).toBe(1);
    await extract(at);
    expect(readFileSync(join(at.out, at.tree, 'b'), 'utf8')).toBe('b');
    return { written, at };
  }
  const inTheMiddle = (_path: string, done: number): boolean => done > 0;
  const beforeItIsOpened = (_path: string, done: number): boolean => done === 0;
  const unpacked = ({ at }: { at: Place }): Buffer => readFileSync(join(at.out, at.tree, 'a'));

  test('appended to: cut at the size it had, and named', async () => {
    const seen = await during(inTheMiddle, (file) => appendFileSync(file, 'more'));
    expect(seen.written.changed).toEqual([join(seen.at.tree, 'a')]);
    expect(seen.written.totals).toEqual({ ...NOTHING_LOST, changed: 1 });
    expect(unpacked(seen).equals(Buffer.alloc(MB, 'x'))).toBe(true);
  });

  test('truncated: filled with zeros, and named', async () => {
    const seen = await during(inTheMiddle, (file) => truncateSync(file, 300_000));
    expect(seen.written.changed).toEqual([join(seen.at.tree, 'a')]);
    const bytes = unpacked(seen);
    expect(bytes).toHaveLength(MB);
    expect(bytes.subarray(0, 300_000).equals(Buffer.alloc(300_000, 'x'))).toBe(true);
    expect(bytes.subarray(300_000).equals(Buffer.alloc(MB - 300_000))).toBe(true);
    expect(seen.written.fileBytes).toBe(MB + 1);
  });

  test('overwritten in place: named', async () => {
    const seen = await during(inTheMiddle, (file) => writeFileSync(file, Buffer.alloc(MB, 'y'), { flag: 'r+' }));
    expect(seen.written.changed).toEqual([join(seen.at.tree, 'a')]);
  });

  test('removed while it is read: whole, since it was open', async () => {
    const seen = await during(inTheMiddle, (file) => rmSync(file));
    expect(seen.written.totals).toEqual(NOTHING_LOST);
    expect(unpacked(seen).equals(Buffer.alloc(MB, 'x'))).toBe(true);
  });

  test('removed before it is opened: named as vanished', async () => {
    const seen = await during(beforeItIsOpened, (file) => rmSync(file));
    expect(seen.written.vanished).toEqual([join(seen.at.tree, 'a')]);
    expect(seen.written.totals).toEqual({ ...NOTHING_LOST, vanished: 1 });
    expect(seen.written.count).toBe(1);
    expect(readdirSync(join(seen.at.out, seen.at.tree))).toEqual(['b']);
  });

  test('replaced before it is opened: the new one is archived', async () => {
    const seen = await during(beforeItIsOpened, (file) => {
      writeFileSync(`${file}.new`, 'new');
      renameSync(`${file}.new`, file);
    });
    expect(seen.written.totals).toEqual(NOTHING_LOST);
    expect(unpacked(seen).toString()).toBe('new');
  });

  test('replaced by a link before it is opened: the link is archived, and not what it leads to', async () => {
    const seen = await during(beforeItIsOpened, (file) => {
      rmSync(file);
      symlinkSync('/etc/passwd', file);
    });
    expect(seen.written.totals).toEqual(NOTHING_LOST);
    expect(readlinkSync(join(seen.at.out, seen.at.tree, 'a'))).toBe('/etc/passwd');
  });

  test('replaced by a FIFO before it is opened: left out, without waiting for a writer', async () => {
    const seen = await during(beforeItIsOpened, (file) => {
      rmSync(file);
      execFileSync('mkfifo', [file]);
    });
    expect(seen.written.skipped).toEqual([`${join(seen.at.tree, 'a')}: a FIFO`]);
  });

  test('replaced each time: given up, and named', async () => {
    const at = place();
    const file = join(at.tree, 'a');
    writeFileSync(file, 'x');
    const progress = (path: string, done: number): void => {
      if (path !== file || done > 0) return;
      writeFileSync(`${file}.new`, 'new');
      renameSync(`${file}.new`, file);
    };
    const written = await write(at, { progress, exclude: () => false });
    expect(written.unreadable).toEqual([`${file}: was exchanged for another file each time it was to be opened`]);
    expect(written.count).toBe(0);
  });

  test.each(['before it is opened', 'while it is walked'])('a directory exchanged for a link %s leads nowhere', async (when) => {
    const at = place();
    const outside = tempDirectory('outside');
    writeFileSync(join(outside, 'secret'), 'secret');
    const directory = join(at.tree, 'd');
    mkdirSync(directory);
    writeFileSync(join(directory, 'secret'), 'ours');
    writeFileSync(join(directory, 'zz'), 'ours, too');
    const moment = when === 'while it is walked' ? join(directory, 'secret') : directory;
    let acted = 0;
    const written = await write(at, {
      progress: (path) => {
        if (path !== moment || acted++ > 0) return;
        renameSync(directory, join(at.tree, 'moved away'));
        symlinkSync(outside, directory);
      },
    });
    expect(acted).toBeGreaterThan(0);
    await extract(at);
    const there = join(at.out, at.tree);
    if (when === 'before it is opened') {
      expect(readlinkSync(join(there, 'd'))).toBe(outside);
      expect(namesIn(at.target).some((name) => name.includes('secret'))).toBe(false);
    } else {
      expect(readFileSync(join(there, 'd', 'secret'), 'utf8')).toBe('ours');
      expect(readFileSync(join(there, 'd', 'zz'), 'utf8')).toBe('ours, too');
    }
    expect(written.totals).toEqual(NOTHING_LOST);
  });
});

describe('what is named', () => {
  test('a path that is missing, relative or no file is an error that names it, before anything is written', async () => {
    const at = place();
    execFileSync('mkfifo', [join(at.tree, 'fifo')]);
    const missing = await thrown(write(at, { roots: [at.tree, join(at.tree, 'nope')] }));
    expect(missing).toBeInstanceOf(ArchiveError);
    expect(missing).toMatchObject({ code: 'ROOT_UNUSABLE', message: `cannot archive ${at.tree}/nope: no such file or directory (ENOENT)` });
    expect(await thrown(write(at, { roots: ['uploads'] }))).toMatchObject({ message: 'cannot archive uploads: it is no absolute path' });
    expect(await thrown(write(at, { roots: [join(at.tree, 'fifo')] }))).toMatchObject({ message: expect.stringContaining('it is a FIFO') });
    expect(existsSync(at.target)).toBe(false);
  });

  test('a link is followed where it is named itself, and stored where it is met; paths in paths are walked once', async () => {
    const at = place();
    mkdirSync(join(at.tree, 'real', 'below'), { recursive: true });
    writeFileSync(join(at.tree, 'real', 'below', 'file'), 'x');
    symlinkSync('real', join(at.tree, 'link'));
    const given = [join(at.tree, 'link'), join(at.tree, 'real', 'below'), join(at.tree, 'real', 'below', 'file'), join(at.tree, 'real')];
    const written = await write(at, { roots: given });
    expect(written.roots).toEqual([
      { given: given[0], real: given[3] },
      { given: given[1], real: given[1] },
      { given: given[2], real: given[2] },
      { given: given[3], real: given[3] },
    ]);
    const real = `${at.tree.slice(1)}/real`;
    expect(namesIn(at.target)).toEqual([`${real}/`, `${real}/below/`, `${real}/below/file`]);
    await write({ ...at, target: `${at.target}.2` });
    expect(namesIn(`${at.target}.2`)).toContain(`${at.tree.slice(1)}/link`);
  });

  test('a single file, and nothing at all, make an archive', async () => {
    const at = place();
    writeFileSync(join(at.tree, 'one'), 'one');
    expect(await write(at, { roots: [join(at.tree, 'one')] })).toMatchObject({ count: 1, fileBytes: 3 });
    await extract(at);
    expect(readFileSync(join(at.out, at.tree, 'one'), 'utf8')).toBe('one');
    // Directories that no entry speaks of are for the caller alone.
    expect(statSync(join(at.out, at.tree)).mode & 0o777).toBe(0o700);
    const none = { ...at, target: `${at.target}.none`, out: `${at.out}.none` };
    expect(await write(none, { roots: [] })).toMatchObject({ count: 0, fileBytes: 0, sizeBytes: 1024 });
    expect(await extract(none)).toEqual({ count: 0, fileBytes: 0 });
  });

  test('the archive itself and what is excluded are left out without a word', async () => {
    const at = place();
    mkdirSync(join(at.tree, 'backups'));
    writeFileSync(join(at.tree, 'backups', 'old'), 'x');
    writeFileSync(join(at.tree, 'kept'), 'x');
    const { dev, ino } = statSync(join(at.tree, 'backups'));
    const target = join(at.tree, 'files.tar');
    const written = await write({ ...at, target }, { exclude: (d, i) => d === dev && i === ino });
    expect(written.totals).toEqual(NOTHING_LOST);
    expect(namesIn(target)).toEqual([`${at.tree.slice(1)}/`, `${at.tree.slice(1)}/kept`]);
  });
});

describe('an end before the end', () => {
  test('a signal ends it in the middle of a file, with its reason, and leaves no target', async () => {
    const at = place();
    writeFileSync(join(at.tree, 'a'), Buffer.alloc(8 * MB));
    const ending = new AbortController();
    let last = 0;
    const progress = (_path: string, done: number): void => {
      last = done;
      if (done > 2 * MB) ending.abort(new Error('SIGTERM'));
    };
    expect(await thrown(write(at, { signal: ending.signal, progress }))).toBe(ending.signal.reason);
    expect(last).toBeLessThan(3 * MB);
    expect(existsSync(at.target)).toBe(false);
    expect(await thrown(write(at, { signal: ending.signal }))).toBe(ending.signal.reason);
    expect(existsSync(at.target)).toBe(false);
  });

  test('what stands at the target is not touched, a link neither', async () => {
    const at = place();
    writeFileSync(at.target, 'older');
    expect(await thrown(write(at))).toMatchObject({ code: 'EEXIST' });
    expect(readFileSync(at.target, 'utf8')).toBe('older');
    symlinkSync(join(at.tree, 'through'), `${at.target}.link`);
    expect(await thrown(write({ ...at, target: `${at.target}.link` }))).toMatchObject({ code: 'EEXIST' });
    expect(readdirSync(at.tree)).toEqual([]);
  });

  test.skipIf(cannot('root', 'mount'))('a full disk is the error of the system, and leaves it free again', async () => {
    const at = place();
    writeFileSync(join(at.tree, 'a'), Buffer.alloc(4 * MB));
    const disk = mountTmpfs(2 * MB);
    expect(await thrown(write({ ...at, target: join(disk, 'files.tar') }))).toMatchObject({ code: 'ENOSPC' });
    expect(readdirSync(disk)).toEqual([]);
  });

  test('descriptors are closed, whatever came of it', async () => {
    const at = place();
    oddTree(at.tree);
    await write(at);
    const open = readdirSync('/proc/self/fd').length;
    await write({ ...at, target: `${at.target}.2` });
    await extract(at);
    const ending = new AbortController();
    const progress = (path: string): void => {
      if (path.endsWith('/with\nnewline, and deep')) ending.abort(new Error('enough'));
    };
    await thrown(write({ ...at, target: `${at.target}.3` }, { progress, signal: ending.signal }));
    expect(ending.signal.aborted).toBe(true);
    const stream = createReadStream(at.target);
    await once(stream, 'open');
    expect(await thrown(extractArchive(stream, at.out, never))).toMatchObject({ code: 'DIRECTORY_UNUSABLE' });
    if (!stream.closed) await once(stream, 'close');
    expect(readdirSync('/proc/self/fd').length).toBe(open);
  });
});
