/** How bytes are packed and opened again: every way in both directions, what cannot be opened, and what is refused. */
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { gzipSync } from 'node:zlib';
import { generateHybridIdentity, generateX25519Identity, identityToRecipient } from 'age-encryption';
import { beforeAll, describe, expect, test } from 'vitest';
import type { Compression, Packed, Unpacked, UnpackInput } from '../../src/packing.js';
import {
  compressFile,
  isFormat,
  isPlain,
  keyProblem,
  openText,
  packedAs,
  recipientProblem,
  sealedProblem,
  sealFile,
  sealText,
  suffixOf,
  TooLong,
  unpack,
  WriteFailed,
  WrongIdentity,
  zstdMissing,
} from '../../src/packing.js';
import { ReadFailed } from '../../src/system/files.js';
import type { Tools } from '../../src/system/programs.js';
import { findProgram, ProgramFailed } from '../../src/system/programs.js';
import { MissingProgram } from '../../src/system/workers.js';
import { cannot, PATH, pathOf, pathWith, tempDirectory } from '../support/cli.js';

const HOME = tempDirectory('packing');
let files = 0;
const fresh = (): string => join(HOME, `f${files++}`);
const sum = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

function tools(path = PATH, signal = new AbortController().signal): Tools {
  return { env: { PATH: path }, signal, watch: () => undefined };
}

function file(bytes: Buffer): string {
  const path = fresh();
  writeFileSync(path, bytes);
  return path;
}

const noPrograms = cannot('age', 'zstd', 'setpriv');
if (noPrograms) process.stderr.write(`not run here: packing with programs: ${noPrograms}\n`);

interface Pair {
  readonly secret: string;
  readonly recipient: string;
  readonly path: string;
}

async function pair(secret: string): Promise<Pair> {
  const path = fresh();
  writeFileSync(path, `${secret}\n`, { mode: 0o600 });
  return { secret, recipient: await identityToRecipient(secret), path };
}

let mine: Pair;
let theirs: Pair;
let hybrid: Pair;
beforeAll(async () => {
  mine = await pair(await generateX25519Identity());
  theirs = await pair(await generateX25519Identity());
  hybrid = await pair(await generateHybridIdentity());
});

const open = (from: string | Readable, packed: Packed, more: Partial<UnpackInput> = {}): Promise<Unpacked> =>
  unpack({ from, packed, identity: null, to: null, packedBytes: 100_000_000, limit: 100_000_000, tools: tools(), progress: () => undefined, ...more });

/** Bytes around the sizes at which formats cut. */
const CONTENTS: readonly (readonly [string, Buffer])[] = [
  ['nothing', Buffer.alloc(0)],
  ['one byte', Buffer.from('x')],
  ['a chunk of age less one', randomBytes(65_535)],
  ['a chunk of age', randomBytes(65_536)],
  ['a chunk of age and one', randomBytes(65_537)],
  ['zeros', Buffer.alloc(3_000_000)],
  ['more than fits into one read', randomBytes(2_500_001)],
];

describe('names', () => {
  test.each([
    ['a.db', 'none', false],
    ['a.db.gz', 'gzip', false],
    ['a.db.zst', 'zstd', false],
    ['a.db.age', 'none', true],
    ['a.db.gz.age', 'gzip', true],
    ['a.db.zst.age', 'zstd', true],
  ] as const)('%s says %s, sealed %s', (name, compress, encrypted) => {
    expect(packedAs(name)).toEqual({ compress, encrypted });
    expect(`a.db${suffixOf({ compress, encrypted })}`).toBe(name);
    expect(isPlain({ compress, encrypted })).toBe(name === 'a.db');
  });

  test.each(['a.age.db', 'a.gz.db', 'x.gz', 'x'])('%s is read from its end', (name) => {
    expect(isPlain(packedAs(name))).toBe(name !== 'x.gz');
  });
});

describe.skipIf(noPrograms)('packed and opened again', () => {
  test.each(CONTENTS)('%s', async (_, bytes) => {
    const plain = file(bytes);
    for (const compress of ['none', 'gzip', 'zstd'] as const) {
      let inner = plain;
      if (compress !== 'none') {
        inner = fresh();
        await compressFile(plain, inner, compress, tools());
        expect([isFormat(inner, compress), isFormat(plain, compress), statSync(inner).mode & 0o777]).toEqual([true, false, 0o600]);
      }
      const [recipients, withProgram] = compress === 'gzip' ? [[mine.recipient, theirs.recipient], false] : [[mine.recipient], true];
      const sealed = fresh();
      const written = await sealFile(inner, sealed, recipients, tools(withProgram ? PATH : pathOf('zstd')));
      const size = statSync(sealed).size;
      expect(written).toBe(sum(readFileSync(sealed)));
      expect(sealedProblem(sealed, size, statSync(inner).size, recipients.length)).toBe(null);
      // By whoever did not seal it.
      const to = fresh();
      const identity = { path: mine.path, keys: [mine.secret] };
      const told: number[] = [];
      const u = await open(
        sealed,
        { compress, encrypted: true },
        {
          identity,
          to,
          limit: bytes.length,
          tools: tools(withProgram ? pathOf('zstd') : PATH),
          progress: (n) => told.push(n),
        },
      );
      expect(u).toMatchObject({ sizeBytes: size, sha256: written, plainSizeBytes: bytes.length, plainSha256: sum(bytes) });
      expect([readFileSync(to).equals(bytes), statSync(to).mode & 0o777, u.made?.ino, told.at(-1)]).toEqual([true, 0o600, statSync(to).ino, size]);
    }
  });

  test('from a stream, in pieces of any size', async () => {
    const bytes = randomBytes(200_000);
    const pieces = (of: Buffer): Readable => Readable.from([of.subarray(0, 1), of.subarray(1, 70_000), of.subarray(70_000)], { objectMode: false });
    expect(await open(pieces(gzipSync(bytes)), { compress: 'gzip', encrypted: false })).toMatchObject({ plainSha256: sum(bytes), made: null });
    expect(await open(pieces(bytes), { compress: 'none', encrypted: false })).toMatchObject({ sizeBytes: 200_000, sha256: sum(bytes) });
  });

  test('for a hybrid recipient, whom the program does not know, and a plain one beside it', async () => {
    const sealed = fresh();
    const calls = fresh();
    const counting = pathWith('age', `echo called >> '${calls}'; exit 1`);
    await sealFile(file(Buffer.from('text')), sealed, [hybrid.recipient, mine.recipient], tools(counting));
    expect(existsSync(calls)).toBe(false);
    expect(sealedProblem(sealed, statSync(sealed).size, 4, 2)).toBe(null);
    for (const { path, secret } of [hybrid, mine]) {
      expect(await open(sealed, { compress: 'none', encrypted: true }, { identity: { path, keys: [secret] } })).toMatchObject({
        plainSha256: sum(Buffer.from('text')),
      });
    }
  });

  test('a text', async () => {
    const sealed = await sealText('größe \0 ✓', [mine.recipient, hybrid.recipient]);
    for (const { path, secret } of [mine, hybrid]) expect(await openText(sealed, { path, keys: [theirs.secret, secret] })).toBe('größe \0 ✓');
    await expect(openText(sealed, { path: '', keys: [theirs.secret] })).rejects.toThrow(WrongIdentity);
    await expect(openText('AAAA', { path: '', keys: [mine.secret] })).rejects.not.toThrow(WrongIdentity);
  });
});

describe.skipIf(noPrograms)('what cannot be opened', () => {
  const bytes = randomBytes(300_000);
  const sealedAndMore = async (change: (b: Buffer) => Buffer): Promise<string> => {
    const sealed = fresh();
    await sealFile(file(bytes), sealed, [mine.recipient], tools());
    return file(change(readFileSync(sealed)));
  };
  const flipped =
    (at: number) =>
    (b: Buffer): Buffer => {
      const offset = at < 0 ? b.length + at : at;
      b[offset] = (b[offset] ?? 0) ^ 1;
      return b;
    };

  test.each([
    ['a bit of the version', flipped(3)],
    ['a bit of the header', flipped(90)],
    ['a bit of the stream', flipped(1000)],
    ['a bit in a later chunk', flipped(200_000)],
    ['its last bit', flipped(-1)],
    ['the end cut off', (b: Buffer) => b.subarray(0, -1)],
    ['a chunk cut off', (b: Buffer) => b.subarray(0, b.length - (300_000 % 65_536) - 16)],
    ['the header alone', (b: Buffer) => b.subarray(0, 100)],
    ['nothing', () => Buffer.alloc(0)],
    ['more at the end', (b: Buffer) => Buffer.concat([b, Buffer.from('x')])],
  ])('sealed, with %s: neither by the program nor by the library', async (_, change) => {
    const from = await sealedAndMore(change);
    const identity = { path: mine.path, keys: [mine.secret] };
    for (const path of [PATH, pathOf()]) {
      await expect(open(from, { compress: 'none', encrypted: true }, { identity, tools: tools(path) })).rejects.toThrow();
    }
  });

  test('for others: WrongIdentity, from the program and from the library, and without any', async () => {
    const from = await sealedAndMore((b) => b);
    const identity = { path: theirs.path, keys: [theirs.secret] };
    for (const path of [PATH, pathOf()]) {
      await expect(open(from, { compress: 'none', encrypted: true }, { identity, tools: tools(path) })).rejects.toThrow(WrongIdentity);
    }
    await expect(open(from, { compress: 'none', encrypted: true })).rejects.toThrow(WrongIdentity);
  });

  test.each(['gzip', 'zstd'] as const)('%s: damaged, cut off, followed by something, or another format', async (compress) => {
    const packed = fresh();
    await compressFile(file(bytes), packed, compress, tools());
    const whole = readFileSync(packed);
    const as = { compress, encrypted: false } as const;
    const expectNotTheSame = async (b: Buffer): Promise<void> => {
      const u = await open(file(b), as).catch(() => null);
      // Formats that shrug at what follows them are not to be trusted with that: the bytes read tell.
      if (u?.plainSha256 === sum(bytes)) expect(u.sha256).not.toBe(sum(whole));
    };
    await expectNotTheSame(flipped(Math.floor(whole.length / 2))(Buffer.from(whole)));
    await expectNotTheSame(whole.subarray(0, -1));
    await expectNotTheSame(whole.subarray(0, 1000));
    await expectNotTheSame(Buffer.concat([whole, Buffer.alloc(100)]));
    await expectNotTheSame(Buffer.concat([whole, whole]));
    await expect(open(file(Buffer.from('no such format')), as)).rejects.toThrow();
  });

  test.each([
    ['gzip', () => gzipSync(Buffer.alloc(5_000_000))],
    ['none', () => Buffer.alloc(5_000_000)],
  ] as const)('more than was to come out (%s) ends at the limit, on the disk too', async (compress, make) => {
    const to = fresh();
    await expect(open(file(make()), { compress, encrypted: false }, { limit: 2_000_000, to })).rejects.toThrow(TooLong);
    expect(statSync(to).size).toBeLessThanOrEqual(2_000_000);
    expect(await open(file(make()), { compress, encrypted: false }, { limit: 5_000_000 })).toMatchObject({ plainSizeBytes: 5_000_000 });
  });

  test('a file that cannot be read, or is none, is ReadFailed; one that cannot be made is WriteFailed', async () => {
    const plain = { compress: 'none', encrypted: false } as const;
    const there = file(bytes);
    const link = fresh();
    symlinkSync(there, link);
    mkdirSync(join(HOME, 'directory'));
    for (const path of ['/nowhere/x', link, join(HOME, 'directory'), '/dev/zero']) await expect(open(path, plain)).rejects.toThrow(ReadFailed);
    await expect(open(there, plain, { to: there })).rejects.toThrow(WriteFailed);
    for (const compress of ['none', 'gzip', 'zstd'] as const) {
      const cut = new Readable({
        read() {
          this.push(compress === 'gzip' ? gzipSync('x').subarray(0, 12) : Buffer.from('28b52ffd', 'hex'));
          this.destroy(Object.assign(new Error('read error'), { code: 'EIO' }));
        },
      });
      await expect(open(cut, { compress, encrypted: false })).rejects.toThrow(ReadFailed);
    }
  });

  test('a signal ends it with its own reason, also while a program hangs', async () => {
    const sealed = await sealedAndMore((b) => b);
    const identity = { path: mine.path, keys: [mine.secret] };
    const reason = new Error('enough');
    await expect(open(sealed, { compress: 'none', encrypted: true }, { identity, tools: tools(PATH, AbortSignal.abort(reason)) })).rejects.toBe(reason);
    for (const body of ['exec sleep 600', 'sleep 600; exit 0']) {
      const ended = new AbortController();
      const waiting = fresh();
      const path = pathWith('age', `touch '${waiting}'; ${body}`);
      const opening = open(
        sealed,
        { compress: 'none', encrypted: true },
        { identity, tools: { ...tools(path, ended.signal), watch: () => setTimeout(() => ended.abort(reason), 50) } },
      );
      await expect(opening).rejects.toBe(reason);
    }
  });
});

describe.skipIf(noPrograms)('programs', () => {
  test('that fail say what they said, and whose fault it is', async () => {
    const from = file(randomBytes(500_000));
    const run = (body: string): Promise<unknown> => sealFile(from, fresh(), [mine.recipient], tools(pathWith('age', body))).catch((e: unknown) => e);
    const failed = await run('echo one >&2; echo two >&2; exit 7');
    expect(failed).toBeInstanceOf(ProgramFailed);
    expect([(failed as ProgramFailed).message, (failed as ProgramFailed).innocent]).toEqual([expect.stringMatching(/age ended with 7: one; two$/), false]);
    const killed = await run('kill -9 $$');
    expect([(killed as ProgramFailed).message, (killed as ProgramFailed).innocent]).toEqual([expect.stringMatching(/was ended by SIGKILL/), true]);
    const directory = tempDirectory('odd');
    writeFileSync(join(directory, 'age'), 'no program', { mode: 0o755 });
    const odd = await sealFile(from, fresh(), [mine.recipient], tools(directory)).catch((e: unknown) => e);
    expect([odd instanceof ProgramFailed, (odd as ProgramFailed).innocent]).toEqual([true, true]);
  });

  test('are found in absolute directories of PATH, and must be executable files', () => {
    const directory = tempDirectory('path');
    const find = (path: string): string | null => findProgram('tool', { PATH: path });
    expect(find(directory)).toBe(null);
    mkdirSync(join(directory, 'tool'));
    expect(find(directory)).toBe(null);
    const other = tempDirectory('path');
    writeFileSync(join(other, 'tool'), '', { mode: 0o644 });
    expect(find(`${directory}:${other}`)).toBe(null);
    const third = tempDirectory('path');
    writeFileSync(join(third, 'tool'), '', { mode: 0o755 });
    expect([find(`${directory}:${other}:${third}`), find('.'), find(''), findProgram('tool', {})]).toEqual([join(third, 'tool'), null, null, null]);
  });

  test('zstd that is not there is said with the way out', async () => {
    const native = zstdMissing({ PATH: '/nowhere' }) === null;
    if (native) return expect(zstdMissing({})).toBe(null);
    expect(zstdMissing({ PATH })).toBe(null);
    expect(zstdMissing({ PATH: '/nowhere' })).toMatch(/apt install zstd.*Node 22\.15.*gzip/);
    await expect(compressFile(file(Buffer.from('x')), fresh(), 'zstd', tools('/nowhere'))).rejects.toThrow(MissingProgram);
    await expect(open(file(Buffer.from('x')), { compress: 'zstd', encrypted: false }, { tools: tools('/nowhere') })).rejects.toThrow(MissingProgram);
  });
});

describe('what is seen of a sealed file without a key', () => {
  const header = (stanzas: number): string =>
    `age-encryption.org/v1\n${Array.from({ length: stanzas }, () => `-> X25519 ${'A'.repeat(43)}\n${'B'.repeat(43)}\n`).join('')}--- ${'C'.repeat(43)}\n`;
  const made = (stanzas: number, payload: number): string => file(Buffer.concat([Buffer.from(header(stanzas)), randomBytes(payload)]));
  const problem = (path: string, plain: number, recipients: number): string | null => sealedProblem(path, statSync(path).size, plain, recipients);

  test.each([
    [0, 32],
    [1, 33],
    [65_536, 65_568],
    [65_537, 65_585],
    [1_000_000, 1_000_272],
  ])('%d plain bytes take %d behind the header', (plain, payload) => {
    expect(problem(made(1, payload), plain, 1)).toBe(null);
    for (const off of [-1, 1]) expect(problem(made(1, payload + off), plain, 1)).toMatch(/bytes, and \d+ are needed/);
  });

  test('a header that is none, or is for fewer', () => {
    expect(problem(made(1, 32), 0, 2)).toBe('it is sealed for 1 of 2 recipients');
    // A stanza too many is what some implementations add.
    expect(problem(made(3, 32), 0, 2)).toBe(null);
    for (const text of ['', 'garbage\n', header(1).replace('v1', 'v2'), header(1).slice(0, -20)])
      expect(problem(file(Buffer.from(text)), 0, 1)).toBe('it has no header of age');
  });
});

describe('keys', () => {
  test('are taken or refused, and a refusal does not say them', async () => {
    for (const { recipient, secret } of [mine, theirs, hybrid]) {
      expect([await recipientProblem(recipient), await keyProblem(secret)]).toEqual([null, null]);
      const wrong = `${secret.slice(0, -1)}${secret.endsWith('Q') ? 'P' : 'Q'}`;
      const said = await keyProblem(wrong);
      expect(said).toMatch(/no age secret key/);
      expect(said).not.toContain(secret.slice(16, 30));
      expect(await recipientProblem(`${recipient.slice(0, -1)}${recipient.endsWith('q') ? 'p' : 'q'}`)).toMatch(/no age recipient/);
      expect(await recipientProblem(secret)).not.toBe(null);
      expect(await keyProblem(recipient)).not.toBe(null);
    }
    for (const odd of ['', 'age1', 'ssh-ed25519 AAAA', 'AGE-PLUGIN-YUBIKEY-1ABC'])
      expect([await recipientProblem(odd), await keyProblem(odd)]).not.toContain(null);
  });
});

/** The compiler sees to it that a new format is thought of here. */
const EACH: Record<Compression, true> = { none: true, gzip: true, zstd: true };
test('the formats are these', () => {
  expect(Object.keys(EACH).map((c) => suffixOf({ compress: c as Compression, encrypted: false }))).toEqual(['', '.gz', '.zst']);
});
