/** Archives that nobody vouches for: each is refused by name, and nothing outside the directory is ever touched. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  createReadStream,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ArchiveError } from '../../src/archive/common.js';
import { writeArchive } from '../../src/archive/pack.js';
import { extractArchive, inspectArchive } from '../../src/archive/unpack.js';
import { mountTmpfs } from '../fault/mounts.js';
import { cannot, openTempDirectory, ROOT, tempDirectory, wrap } from '../support/cli.js';
import { archive, END, entry, pax, treeOf } from '../support/tar.js';

const never = new AbortController().signal;
const KB = 1024;

/** In pieces of odd sizes, as a pipe may bring them. */
function streamOf(bytes: Buffer, piece = 700): Readable {
  return Readable.from(Array.from({ length: Math.ceil(bytes.length / piece) }, (_, i) => bytes.subarray(i * piece, (i + 1) * piece)));
}

/** What is thrown, which must be an ArchiveError. */
async function refusal(work: Promise<unknown>): Promise<ArchiveError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof ArchiveError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

interface Place {
  readonly home: string;
  readonly out: string;
  /** A file that no archive may reach. */
  readonly outside: string;
}

function place(): Place {
  const home = tempDirectory('hostile');
  writeFileSync(join(home, 'outside'), 'as it was', { mode: 0o600 });
  utimesSync(join(home, 'outside'), 1_000_000_000, 1_000_000_000);
  return { home, out: join(home, 'unpacked'), outside: join(home, 'outside') };
}

const ok = entry({ name: 'first', content: 'first' });

interface Hostile {
  readonly what: string;
  /** After an entry `first`. `outside`: an absolute path in the way. */
  readonly bytes: (outside: string) => Buffer;
  readonly says: RegExp;
  /** True where the archive alone shows it, without unpacking. */
  readonly seenByInspection: boolean;
}

const byName = (what: string, name: string, says: RegExp): Hostile => ({
  what,
  bytes: () => entry({ name, content: 'evil' }),
  says,
  seenByInspection: true,
});

const HOSTILE: readonly Hostile[] = [
  {
    what: 'an absolute name',
    bytes: (outside) => entry({ name: outside, content: 'evil' }),
    says: /outside" is refused: its name is absolute/,
    seenByInspection: true,
  },
  byName('.. in front', '../outside', /"\.\.\/outside" is refused: it would leave the directory/),
  byName('.. in the middle', 'a/../../outside', /"a\/\.\.\/\.\.\/outside" is refused: it would leave the directory/),
  byName('.. behind', 'a/..', /it would leave the directory/),
  byName('.. behind a dot', './../outside', /it would leave the directory/),
  byName('nothing but ..', '..', /it would leave the directory/),
  byName('an empty part', 'a//b', /no plain path/),
  byName('a dot as a part', 'a/./b', /no plain path/),
  byName('a file with the name of the directory', './', /no plain path/),
  byName('a file with the name of a directory', 'a/', /no plain path/),
  byName('no name', '', /no plain path/),
  {
    what: '.. in a pax header',
    bytes: () => Buffer.concat([pax({ path: 'a/../../outside' }), entry({ name: 'a', content: 'evil' })]),
    says: /it would leave/,
    seenByInspection: true,
  },
  {
    what: '.. in a global pax header',
    bytes: () => Buffer.concat([entry({ name: 'g', type: 'g', content: '19 path=../outside\n' }), pax({ mtime: '1' }), entry({ name: 'a', content: 'evil' })]),
    says: /it would leave/,
    seenByInspection: true,
  },
  {
    what: '.. in a long name of GNU',
    bytes: () =>
      Buffer.concat([entry({ name: '././@LongLink', type: 'L', content: `${'a/'.repeat(60)}../../outside\0` }), entry({ name: 'a', content: 'evil' })]),
    says: /it would leave/,
    seenByInspection: true,
  },
  {
    what: 'a NUL',
    bytes: () => Buffer.concat([pax({ path: 'a\0b' }), entry({ name: 'a', content: 'evil' })]),
    says: /"a\\u0000b" is refused: its name holds a NUL/,
    seenByInspection: true,
  },
  {
    what: 'a name that is not UTF-8',
    bytes: () => entry({ name: Buffer.from([0x61, 0xff]), content: 'evil' }),
    says: /"aÿ" is refused: .*not valid UTF-8/,
    seenByInspection: true,
  },
  {
    what: 'another encoding',
    bytes: () => Buffer.concat([pax({ hdrcharset: 'BINARY', path: 'a' }), entry({ name: 'a' })]),
    says: /"a" is refused: .*another encoding/,
    seenByInspection: true,
  },
  {
    what: 'a hard link',
    bytes: (outside) => entry({ name: 'hard', type: '1', link: outside }),
    says: /"hard" is refused: it is a hard link/,
    seenByInspection: true,
  },
  { what: 'a character device', bytes: () => entry({ name: 'dev', type: '3' }), says: /"dev" is refused: it is a device/, seenByInspection: true },
  { what: 'a block device', bytes: () => entry({ name: 'dev', type: '4' }), says: /"dev" is refused: it is a device/, seenByInspection: true },
  { what: 'a FIFO', bytes: () => entry({ name: 'fifo', type: '6' }), says: /"fifo" is refused: it is a FIFO/, seenByInspection: true },
  { what: 'an unknown kind', bytes: () => entry({ name: 'odd', type: 'Z' }), says: /"odd" is refused: it is neither/, seenByInspection: true },
  { what: 'a sparse file of old GNU', bytes: () => entry({ name: 'odd', type: 'S' }), says: /"odd" is refused: it is neither/, seenByInspection: true },
  {
    what: 'a sparse file',
    bytes: () => Buffer.concat([pax({ 'GNU.sparse.major': '1' }), entry({ name: 'odd' })]),
    says: /"odd" is refused: it is a sparse file/,
    seenByInspection: true,
  },
  {
    what: 'a directory with content',
    bytes: () => entry({ name: 'd/', type: '5', content: 'evil' }),
    says: /"d\/" is refused: it is a directory with content/,
    seenByInspection: true,
  },
  {
    what: 'a link with content',
    bytes: () => entry({ name: 'l', type: '2', link: 'x', content: 'evil' }),
    says: /"l" is refused: it is a symlink with content/,
    seenByInspection: true,
  },
  { what: 'a link to nowhere at all', bytes: () => entry({ name: 'l', type: '2' }), says: /"l" is refused: its target is empty/, seenByInspection: true },
  {
    what: 'a link with a NUL',
    bytes: () => Buffer.concat([pax({ linkpath: 'a\0b' }), entry({ name: 'l', type: '2', link: 'a' })]),
    says: /"l" is refused: its target is empty, or holds a NUL/,
    seenByInspection: true,
  },
  {
    what: 'a size that is none',
    bytes: () => Buffer.concat([pax({ size: '4evil' }), entry({ name: 'a', content: 'evil' })]),
    says: /"a" is refused: its size is no number/,
    seenByInspection: true,
  },
  {
    what: 'a time that is none',
    bytes: () => Buffer.concat([pax({ mtime: 'soon' }), entry({ name: 'a' })]),
    says: /"a" is refused: its time/,
    seenByInspection: true,
  },
  {
    what: 'a time without end',
    bytes: () => Buffer.concat([pax({ mtime: '1e300' }), entry({ name: 'a' })]),
    says: /"a" is refused: its time/,
    seenByInspection: true,
  },
  {
    what: 'a file twice',
    bytes: () => Buffer.concat([entry({ name: 'a', content: '1' }), entry({ name: 'a', content: '2' })]),
    says: /"a" is refused: the archive has that name twice/,
    seenByInspection: false,
  },
  {
    what: 'a directory twice',
    bytes: () => Buffer.concat([entry({ name: 'd/', type: '5' }), entry({ name: 'd', type: '5' })]),
    says: /"d" is refused: the archive has it twice/,
    seenByInspection: false,
  },
  {
    what: 'a link twice',
    bytes: () => Buffer.concat([entry({ name: 'l', type: '2', link: 'x' }), entry({ name: 'l', type: '2', link: 'y' })]),
    says: /"l" is refused: the archive has that name twice/,
    seenByInspection: false,
  },
  {
    what: 'a file where a directory is',
    bytes: () => Buffer.concat([entry({ name: 'd/', type: '5' }), entry({ name: 'd', content: 'evil' })]),
    says: /"d" is refused: the archive has that name twice/,
    seenByInspection: false,
  },
  {
    what: 'a directory where a file is',
    bytes: () => entry({ name: 'first/', type: '5' }),
    says: /"first\/" is refused: the archive has "first" as something else/,
    seenByInspection: false,
  },
  {
    what: 'a name through a file',
    bytes: () => entry({ name: 'first/a', content: 'evil' }),
    says: /"first\/a" is refused: the archive has "first" as something else/,
    seenByInspection: false,
  },
  {
    what: 'a file through a link',
    bytes: () => Buffer.concat([entry({ name: 'l', type: '2', link: '..' }), entry({ name: 'l/outside', content: 'evil' })]),
    says: /"l\/outside" is refused: the archive has "l" as something else/,
    seenByInspection: false,
  },
  {
    what: 'a directory through a link',
    bytes: () => Buffer.concat([entry({ name: 'l', type: '2', link: '..' }), entry({ name: 'l/d/', type: '5' })]),
    says: /"l\/d\/" is refused: the archive has "l" as something else/,
    seenByInspection: false,
  },
  {
    what: 'a link through a link',
    bytes: () => Buffer.concat([entry({ name: 'l', type: '2', link: '..' }), entry({ name: 'l/m', type: '2', link: 'x' })]),
    says: /"l\/m" is refused/,
    seenByInspection: false,
  },
  {
    what: 'a file through a link further down',
    bytes: () =>
      Buffer.concat([entry({ name: 'd/l', type: '2', link: '../..' }), entry({ name: 'd/x', content: 'x' }), entry({ name: 'd/l/outside', content: 'evil' })]),
    says: /"d\/l\/outside" is refused: the archive has "d\/l" as/,
    seenByInspection: false,
  },
  {
    what: 'a file over a link',
    bytes: (outside) => Buffer.concat([entry({ name: 'l', type: '2', link: outside }), entry({ name: 'l', content: 'evil' })]),
    says: /"l" is refused: the archive has that name twice/,
    seenByInspection: false,
  },
  {
    what: 'a directory over a link',
    bytes: () => Buffer.concat([entry({ name: 'l', type: '2', link: '..' }), entry({ name: 'l/', type: '5', mode: 0o777 })]),
    says: /"l\/" is refused: the archive has "l" as something else/,
    seenByInspection: false,
  },
];

describe('refused', () => {
  test.each(HOSTILE)('$what', async ({ bytes, says, seenByInspection }) => {
    const at = place();
    const before = treeOf(at.home);
    const whole = archive(ok, bytes(at.outside));
    const error = await refusal(extractArchive(streamOf(whole), at.out, never));
    expect(error.code).toBe('ENTRY_REFUSED');
    expect(error.message).toMatch(says);
    expect(error.hint).toContain(`what was unpacked before stays in ${at.out}`);
    expect(treeOf(at.home).filter((line) => !line.startsWith('unpacked'))).toEqual(before);
    expect(readFileSync(join(at.out, 'first'), 'utf8')).toBe('first');
    if (seenByInspection) expect((await refusal(inspectArchive(streamOf(whole), never))).message).toMatch(says);
  });

  test('a link may point anywhere, and stays what it is', async () => {
    const at = place();
    const whole = archive(
      entry({ name: 'l', type: '2', link: at.outside }),
      entry({ name: 'd/', type: '5' }),
      entry({ name: 'd/m', type: '2', link: '../../outside' }),
    );
    expect(await extractArchive(streamOf(whole), at.out, never)).toEqual({ count: 0, fileBytes: 0 });
    expect([readlinkSync(join(at.out, 'l')), readlinkSync(join(at.out, 'd', 'm'))]).toEqual([at.outside, '../../outside']);
    expect(lstatSync(join(at.out, 'l')).mtimeMs).toBe(1_700_000_000_000);
    expect(lstatSync(at.outside).mtimeMs).toBe(1_000_000_000_000);
  });

  test('setuid, setgid and sticky are not given, to files and directories', async () => {
    const at = place();
    const whole = archive(entry({ name: 'd/', type: '5', mode: 0o7755 }), entry({ name: 'd/a', mode: 0o6751 }));
    await extractArchive(streamOf(whole), at.out, never);
    expect([statSync(join(at.out, 'd')).mode & 0o7777, statSync(join(at.out, 'd', 'a')).mode & 0o7777]).toEqual([0o755, 0o751]);
  });

  test('a path deeper than descriptors reach is an error with its name', () => {
    const at = place();
    const file = join(at.home, 'deep.tar');
    writeFileSync(file, archive(ok, Buffer.concat([pax({ path: `${'d/'.repeat(400)}x` }), entry({ name: 'x' })])));
    const code = `
      const { extractArchive } = await import(${JSON.stringify(join(ROOT, 'src/archive/unpack.ts'))});
      const stream = (await import('node:fs')).createReadStream(${JSON.stringify(file)});
      await extractArchive(stream, ${JSON.stringify(at.out)}, new AbortController().signal).catch((error) => console.log(error.code, error.message));`;
    const words = [...wrap.limit('-n', 200), process.execPath, '--import', 'tsx', '--input-type=module', '-e', code];
    const said = execFileSync(words[0] ?? '', words.slice(1), { cwd: ROOT, encoding: 'utf8' });
    expect(said).toMatch(/^UNPACK_FAILED cannot unpack "(d\/){400}x": too many open files \(EMFILE\)\n$/);
  });
});

describe('not a whole archive', () => {
  const whole = archive(
    entry({ name: 'd/', type: '5' }),
    Buffer.concat([pax({ path: 'd/long' }), entry({ name: 'x', content: Buffer.alloc(1300, 'x') })]),
    entry({ name: 'zeros', content: Buffer.alloc(2048) }),
    entry({ name: 'l', type: '2', link: 'x' }),
  );

  test('it is one to begin with', async () => {
    expect(await inspectArchive(streamOf(whole), never)).toEqual({ count: 2, fileBytes: 1300 + 2048 });
    // As tar pads it to its records.
    expect(await inspectArchive(streamOf(Buffer.concat([whole, Buffer.alloc(20 * KB)])), never)).toEqual({ count: 2, fileBytes: 1300 + 2048 });
  });

  test('cut off anywhere', async () => {
    for (let length = 0; length < whole.length; length += 128) {
      const error = await refusal(inspectArchive(streamOf(whole.subarray(0, length)), never));
      expect({ length, code: error.code }).toEqual({ length, code: 'NOT_AN_ARCHIVE' });
    }
    const at = place();
    const error = await refusal(extractArchive(streamOf(whole.subarray(0, 3000)), at.out, never));
    expect(error.code).toBe('NOT_AN_ARCHIVE');
    // Half a file would pass for the file.
    expect(treeOf(at.out).filter((line) => line.includes(' file '))).toEqual([]);
  });

  const second = archive(entry({ name: 'second', content: 'second' }));
  test.each([
    ['a second archive behind its end', Buffer.concat([whole, second])],
    ['an entry behind one empty block', Buffer.concat([ok, Buffer.alloc(512), second])],
    ['an entry behind many empty blocks', Buffer.concat([whole, Buffer.alloc(100 * KB), second])],
    ['text behind its end', Buffer.concat([whole, Buffer.alloc(512, 'x')])],
    ['text that fills no block', Buffer.concat([whole, Buffer.from('x')])],
    ['a pax header for no entry', Buffer.concat([ok, pax({ path: 'a' }), END])],
    ['one empty block at the end', Buffer.concat([ok, Buffer.alloc(512)])],
    ['nothing at all', Buffer.alloc(0)],
    ['text', Buffer.from('this is no archive\n'.repeat(100))],
    ['text in whole blocks', Buffer.alloc(4096, 'text')],
    ['a header with a flipped bit', archive(Buffer.concat([Buffer.from([ok[0] ?? 0]), Buffer.from([(ok[1] ?? 0) ^ 1]), ok.subarray(2)]))],
    ['a gzip', Buffer.concat([Buffer.from([0x1f, 0x8b, 8, 0]), Buffer.alloc(1020, 7)])],
    ['a header of 5 MB', archive(entry({ name: 'PaxHeader', type: 'x', content: Buffer.alloc(5 << 20, 'x') }), ok)],
  ])('%s', async (_what, bytes) => {
    for (const piece of [1, 512, 700, 1 << 20]) {
      if (bytes.length / piece > 100_000) continue;
      expect((await refusal(inspectArchive(streamOf(bytes, piece), never))).code).toBe('NOT_AN_ARCHIVE');
    }
    expect((await refusal(extractArchive(streamOf(bytes), place().out, never))).code).toBe('NOT_AN_ARCHIVE');
  });

  test('an empty one is one', async () => {
    expect(await inspectArchive(streamOf(END), never)).toEqual({ count: 0, fileBytes: 0 });
  });

  test('whatever bytes come, it ends with a verdict, and nothing outside is touched', { timeout: 120_000 }, async () => {
    const at = place();
    const before = treeOf(at.home);
    const damage = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 6 });
    let n = 0;
    await fc.assert(
      fc.asyncProperty(damage, fc.integer({ min: 1, max: 5000 }), async (changes, piece) => {
        const bytes = Buffer.from(whole);
        for (const [offset, byte] of changes) bytes[offset] = byte;
        const out = `${at.out}${n++}`;
        const verdict = await extractArchive(streamOf(bytes, piece), out, never).then(
          () => 'whole',
          (error: unknown) => (error instanceof ArchiveError ? error.code : error),
        );
        expect(['whole', 'NOT_AN_ARCHIVE', 'ENTRY_REFUSED', 'UNPACK_FAILED']).toContain(verdict);
        expect(treeOf(at.home).filter((line) => !line.startsWith('unpacked'))).toEqual(before);
        execFileSync('rm', ['-rf', out]);
      }),
      { numRuns: 100 },
    );
  });
});

describe('where to', () => {
  const whole = archive(entry({ name: 'a', content: 'a' }));

  test('a directory that is not empty, no directory, or a link to one is refused and left alone', async () => {
    const at = place();
    mkdirSync(join(at.home, 'full'));
    writeFileSync(join(at.home, 'full', 'mine'), 'mine');
    mkdirSync(join(at.home, 'empty'));
    symlinkSync('empty', join(at.home, 'link'));
    const before = treeOf(at.home);
    const rows = [
      ['full', /full: it is not empty$/],
      ['outside', /outside: it is not a directory$/],
      ['link', /link: it is not a directory$/],
      ['missing/out', /missing\/out: no such file or directory \(ENOENT\)$/],
    ] as const;
    for (const [name, says] of rows) {
      const error = await refusal(extractArchive(streamOf(whole), join(at.home, name), never));
      expect(error.code).toBe('DIRECTORY_UNUSABLE');
      expect(error.message).toMatch(says);
    }
    expect(treeOf(at.home)).toEqual(before);
  });

  test('an empty one of our own is filled, its mode left alone', async () => {
    const at = place();
    mkdirSync(at.out);
    chmodSync(at.out, 0o750);
    await extractArchive(streamOf(whole), at.out, never);
    expect(readFileSync(join(at.out, 'a'), 'utf8')).toBe('a');
    expect(statSync(at.out).mode & 0o777).toBe(0o750);
  });

  test.skipIf(cannot('root'))('one of somebody else is refused', async () => {
    const at = place();
    mkdirSync(at.out);
    execFileSync('chown', ['65534', at.out]);
    expect((await refusal(extractArchive(streamOf(whole), at.out, never))).message).toMatch(/it belongs to somebody else/);
    expect(readdirSync(at.out)).toEqual([]);
  });

  test.skipIf(cannot('root'))('without root, too, directories that let nobody in are filled first and closed after', async () => {
    const home = openTempDirectory('hostile');
    execFileSync('chown', ['65534', home]);
    const parts = [
      entry({ name: 'd/', type: '5', mode: 0o000 }),
      entry({ name: 'd/e/', type: '5', mode: 0o500 }),
      entry({ name: 'd/e/a', content: 'a', mode: 0o000 }),
    ];
    process.setegid?.(65_534);
    process.seteuid?.(65_534);
    try {
      await extractArchive(streamOf(archive(...parts)), join(home, 'out'), never);
    } finally {
      process.seteuid?.(0);
      process.setegid?.(0);
    }
    expect(treeOf(join(home, 'out'))).toEqual([
      'd 0 1700000000000 directory',
      'd/e 500 1700000000000 directory',
      `d/e/a 0 1700000000000 file ${Buffer.from('a').toString('hex')}`,
    ]);
    expect(statSync(join(home, 'out', 'd', 'e', 'a')).uid).toBe(65_534);
  });

  test.skipIf(cannot('root', 'mount'))('a full disk is told with the entry', async () => {
    const disk = mountTmpfs(256 * KB);
    const error = await refusal(extractArchive(streamOf(archive(ok, entry({ name: 'big', content: Buffer.alloc(400 * KB, 1) }))), join(disk, 'out'), never));
    expect(error).toMatchObject({ code: 'UNPACK_FAILED', message: 'cannot unpack "big": ENOSPC: no space left on device', cause: { code: 'ENOSPC' } });
    expect(readdirSync(join(disk, 'out'))).toEqual(['first']);
  });
});

describe('an end before the end', () => {
  const bytes = archive(ok, entry({ name: 'big', content: Buffer.alloc(300 * KB, 1) }));
  /** Begins, and then says nothing more. */
  function stalling(): Readable {
    let given = false;
    return new Readable({
      read() {
        if (!given) this.push(bytes.subarray(0, 100 * KB));
        given = true;
      },
    });
  }

  test('a signal ends it while the stream keeps it waiting; half a file is not left', async () => {
    const at = place();
    for (const work of [(s: Readable, signal: AbortSignal) => extractArchive(s, at.out, signal), inspectArchive]) {
      const ending = new AbortController();
      const stream = stalling();
      const done = work(stream, ending.signal).then(
        () => 'done',
        (error: unknown) => error,
      );
      setImmediate(() => ending.abort(new Error('SIGTERM')));
      expect(await done).toBe(ending.signal.reason);
      expect(stream.destroyed).toBe(true);
      const late = stalling();
      expect(await work(late, ending.signal).catch((error: unknown) => error)).toBe(ending.signal.reason);
    }
    expect(existsSync(join(at.out, 'big'))).toBe(false);
  });

  test("the stream's own error comes through, and not a word of a damaged archive", async () => {
    const failure = new Error('the key does not fit');
    const failing = (): Readable =>
      Readable.from(
        (async function* () {
          yield bytes.subarray(0, 100 * KB);
          await Promise.resolve();
          throw failure;
        })(),
      );
    expect(await inspectArchive(failing(), never).catch((error: unknown) => error)).toBe(failure);
    expect(await extractArchive(failing(), place().out, never).catch((error: unknown) => error)).toBe(failure);
    expect(await inspectArchive(createReadStream('/nope/files.tar'), never).catch((error: unknown) => error)).toMatchObject({ code: 'ENOENT' });
  });

  test('a stream that is not read to its end is closed', async () => {
    const at = place();
    writeFileSync(join(at.home, 'bad.tar'), archive(entry({ name: '../x' }), entry({ name: 'a', content: Buffer.alloc(1 << 20) })));
    const open = readdirSync('/proc/self/fd').length;
    const stream = createReadStream(join(at.home, 'bad.tar'));
    await refusal(extractArchive(stream, at.out, never));
    if (!stream.closed) await once(stream, 'close');
    expect(readdirSync('/proc/self/fd').length).toBe(open);
  });
});

describe("archives of Debian's tar", () => {
  test.each(['gnu', 'pax', 'ustar', 'oldgnu'])('in the format %s are unpacked', async (format) => {
    const at = place();
    const tree = join(at.home, 'tree');
    mkdirSync(join(tree, 'sub'), { recursive: true });
    writeFileSync(join(tree, 'plain'), 'plain', { mode: 0o640 });
    writeFileSync(join(tree, 'sub', 'größe'), 'unicode');
    if (format !== 'ustar') {
      writeFileSync(join(tree, 'sub', 'n'.repeat(200)), 'long');
      symlinkSync('t'.repeat(200), join(tree, 'sub', 'long link'));
    }
    symlinkSync('plain', join(tree, 'link'));
    const file = join(at.home, 'a.tar');
    execFileSync('tar', [`--format=${format}`, '-cf', file, '-C', tree, '.']);
    // A part of a second is not in the older formats.
    const coarse = (lines: string[]): string[] =>
      format === 'pax' ? lines : lines.map((line) => line.replace(/(\d{10})\d{3} (?=file|link|directory)/, '$1 '));
    const { count } = await extractArchive(createReadStream(file), at.out, never);
    expect(count).toBe(format === 'ustar' ? 2 : 3);
    expect(coarse(treeOf(at.out))).toEqual(coarse(treeOf(tree)));
  });

  test('with hard links, devices or names that are not UTF-8 are refused', async () => {
    const at = place();
    const tree = join(at.home, 'tree');
    mkdirSync(tree);
    writeFileSync(join(tree, 'a'), 'a');
    linkSync(join(tree, 'a'), join(tree, 'b'));
    const file = join(at.home, 'a.tar');
    execFileSync('tar', ['-cf', file, '-C', tree, 'a', 'b']);
    expect((await refusal(inspectArchive(createReadStream(file), never))).message).toMatch(/"b" is refused: it is a hard link/);
    execFileSync('tar', ['-cPf', file, '/dev/null']);
    expect((await refusal(inspectArchive(createReadStream(file), never))).message).toMatch(/"\/dev\/null" is refused/);
    const odd = Buffer.concat([Buffer.from(`${tree}/${'n'.repeat(120)}`), Buffer.from([0xe9])]);
    writeFileSync(odd, 'x');
    execFileSync('tar', ['-cf', file, '-C', tree, '--exclude=a', '--exclude=b', '.']);
    expect((await refusal(inspectArchive(createReadStream(file), never))).message).toMatch(/not valid UTF-8/);
  });

  test('a file of ours and one of tar come to the same', async () => {
    const at = place();
    const tree = join(at.home, 'tree');
    mkdirSync(tree);
    for (let i = 0; i < 50; i++) writeFileSync(join(tree, `f${i}`), Buffer.alloc(i * 100, i));
    const ours = join(at.home, 'ours.tar');
    const written = await writeArchive({ roots: [tree], target: ours, signal: never });
    execFileSync('tar', ['--format=pax', '--sort=name', '-cf', join(at.home, 'theirs.tar'), '-C', '/', tree.slice(1)]);
    expect(await inspectArchive(createReadStream(join(at.home, 'theirs.tar')), never)).toEqual({ count: written.count, fileBytes: written.fileBytes });
    expect(await inspectArchive(createReadStream(ours), never)).toEqual({ count: written.count, fileBytes: written.fileBytes });
  });
});
