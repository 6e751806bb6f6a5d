/**
 * Packing: how the data of a copy is compressed and sealed on its way to the disk, and how it is opened again. What comes out
 * is what `zstd -d`, `gunzip` and `age -d` read. Everything streams; nothing here grows with the size of a database.
 *
 *   plain ── compress ──▶ .gz | .zst ── seal ──▶ .age          sealing is for public keys: who seals cannot open again
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, createReadStream, createWriteStream, fstatSync, openSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import type { Transform, Writable } from 'node:stream';
import { pipeline as pipelineCallback, Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { ReadableStream as WebStream } from 'node:stream/web';
import zlib from 'node:zlib';
import { errnoOf } from './outcome.js';
import type { FileId } from './system/files.js';
import { beginningOf, openToCopy, ReadFailed, writeAll } from './system/files.js';
import type { Tools } from './system/programs.js';
import { filtered, findProgram, runFiltering } from './system/programs.js';
import { MissingProgram } from './system/workers.js';

export type Compression = 'none' | 'gzip' | 'zstd';

/** How a stored file is packed: what its name says. */
export interface Packed {
  readonly compress: Compression;
  readonly encrypted: boolean;
}

/** Keys that open what was sealed for them. `path`: the file that they came from. */
export interface Identity {
  readonly path: string;
  readonly keys: readonly string[];
}

/** None of the keys belongs to whom the file was sealed for. */
export class WrongIdentity extends Error {}

/** The unpacked bytes cannot be written; `code` is the system's. */
export class WriteFailed extends Error {}

/** What comes out is more than what went in was, or what goes in more than was stored: the rest is not unpacked. */
export class TooLong extends Error {}

const SUFFIX: Record<Compression, string> = { none: '', gzip: '.gz', zstd: '.zst' };

/** What packing adds to a file's name: `.zst.age`. */
export const suffixOf = ({ compress, encrypted }: Packed): string => SUFFIX[compress] + (encrypted ? '.age' : '');

/** How a file is packed, from its name. */
export function packedAs(file: string): Packed {
  const encrypted = file.endsWith('.age');
  const inner = encrypted ? file.slice(0, -'.age'.length) : file;
  return { compress: inner.endsWith('.gz') ? 'gzip' : inner.endsWith('.zst') ? 'zstd' : 'none', encrypted };
}

export const isPlain = ({ compress, encrypted }: Packed): boolean => compress === 'none' && !encrypted;

/**
 * zstd's level 3 with tables of half their size (powers of two), which stay in a processor's own cache while the checks are at work beside it:
 * a fifth less time. Measured with zstd 1.5.4: 0.1 % more bytes for the benchmark's database, 1 % for
 * Debian's commands.db, 2 to 10 % for tables of log lines.
 */
const ZSTD = { level: 3, hashLog: 16, chainLog: 15 } as const;
const CHUNK = 1 << 20;

/** zstd of Node itself, which Node 20 does not have. */
const native: {
  readonly createZstdCompress?: (options?: object) => Transform;
  readonly createZstdDecompress?: (options?: object) => Transform;
  readonly constants: Readonly<Record<string, number>>;
} = zlib;

/** Why zstd cannot be had on this machine, or null. */
export const zstdMissing = (env: NodeJS.ProcessEnv): string | null =>
  native.createZstdCompress || findProgram('zstd', env) ? null : 'compress zstd needs the program zstd (apt install zstd), or Node 22.15 or newer; or say gzip';

function zstdProgram({ env }: Tools): string {
  const program = findProgram('zstd', env);
  if (program === null) throw new MissingProgram('zstd needs the program zstd (apt install zstd), or Node 22.15 or newer');
  return program;
}

/** Plain recipients, which the program age knows in all its versions; others are sealed for by the library. */
const X25519 = /^age1[02-9ac-hj-np-z]{58}$/;

/** One file compressed into a new one. Not synced. */
export async function compressFile(from: string, to: string, compress: Exclude<Compression, 'none'>, tools: Tools): Promise<void> {
  if (compress === 'zstd' && !native.createZstdCompress) {
    const program = zstdProgram(tools);
    const workers = Math.min(4, availableParallelism());
    const how = ['-q', '-c', `-${ZSTD.level}`, `--zstd=hlog=${ZSTD.hashLog},clog=${ZSTD.chainLog}`, `-T${workers}`];
    await betweenFiles(from, to, (input, output) => runFiltering(program, how, input, output, tools));
    return;
  }
  const {
    ZSTD_c_compressionLevel: level = 100,
    ZSTD_c_hashLog: hashLog = 102,
    ZSTD_c_chainLog: chainLog = 103,
    ZSTD_c_checksumFlag: sum = 201,
  } = native.constants;
  // With the sum that the program writes as well: whoever unpacks by hand learns of flipped bits from it alone.
  const params = { [level]: ZSTD.level, [hashLog]: ZSTD.hashLog, [chainLog]: ZSTD.chainLog, [sum]: 1 };
  // One thread: with ZSTD_c_nbWorkers, Node ends its stream before the workers have (nodejs/node#59899).
  const transform = compress === 'gzip' ? zlib.createGzip({ chunkSize: CHUNK }) : native.createZstdCompress?.({ params });
  if (!transform) throw new Error('no zstd');
  await pipeline(createReadStream(from, { highWaterMark: CHUNK }), transform, createWriteStream(to, { flags: 'wx', mode: 0o600 }), { signal: tools.signal });
}

/** A file sealed for recipients into a new one. Not synced. Returns the SHA-256 (hex) of the bytes that were to be written. */
export async function sealFile(from: string, to: string, recipients: readonly string[], tools: Tools): Promise<string> {
  const program = recipients.every((r) => X25519.test(r)) ? findProgram('age', tools.env) : null;
  if (program !== null) {
    // Far faster than the library (traps, "Packages").
    const args = recipients.flatMap((r) => ['-r', r]);
    return await writeHashed(filtered(reading(from), program, args, tools), to, tools);
  }
  return await writeHashed(nodeOf(await (await encrypter(recipients)).encrypt(webOf(reading(from)))), to, tools);
}

const reading = (path: string): Readable => createReadStream('', { fd: openToCopy(path), highWaterMark: CHUNK });

async function writeHashed(stream: Readable, to: string, tools: Tools): Promise<string> {
  const hash = createHash('sha256');
  const output = created(to);
  try {
    let done = 0;
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      tools.signal.throwIfAborted();
      hash.update(chunk);
      await writeAll(output, chunk, done).catch(writeFailed);
      done += chunk.length;
    }
    return hash.digest('hex');
  } finally {
    closeSync(output);
  }
}

async function betweenFiles(from: string, to: string, work: (input: number, output: number) => Promise<void>): Promise<void> {
  const input = openToCopy(from);
  try {
    const output = created(to);
    try {
      await work(input, output);
    } finally {
      closeSync(output);
    }
  } finally {
    closeSync(input);
  }
}

/** zstd's magic number (RFC 8878, 3.1.1) and gzip's (RFC 1952, 2.3.1). */
const MAGIC: Record<Exclude<Compression, 'none'>, Buffer> = { gzip: Buffer.from('1f8b08', 'hex'), zstd: Buffer.from('28b52ffd', 'hex') };

/** Whether a file begins as the format demands: a program that only seems to be zstd would undo its own work. */
export const isFormat = (path: string, compress: Exclude<Compression, 'none'>): boolean => beginningOf(path, MAGIC[compress].length).equals(MAGIC[compress]);

const AGE_VERSION = 'age-encryption.org/v1\n';
/** Bytes; the longest stanza, a hybrid one, has 1.6 kB. */
const STANZA_MAX = 4096;
const AGE_CHUNK = 65_536;
const TAG = 16;
const NONCE = 16;

/**
 * What can be seen of a sealed file without a key (age-encryption.org/v1): a header with a stanza for each of so many
 * recipients, and behind it as many bytes as sealing so many plain ones takes. Why it is not that, or null.
 */
export function sealedProblem(path: string, sizeBytes: number, plainSizeBytes: number, recipients: number): string | null {
  const text = beginningOf(path, STANZA_MAX * (recipients + 1)).toString('latin1');
  const end = /^--- [A-Za-z0-9+/]{43}\n/m.exec(text);
  if (!text.startsWith(AGE_VERSION) || !end) return 'it has no header of age';
  const header = text.slice(0, end.index);
  const stanzas = header.match(/^-> /gm)?.length ?? 0;
  if (stanzas < recipients) return `it is sealed for ${stanzas} of ${recipients} recipients`;
  const expected = header.length + end[0].length + NONCE + plainSizeBytes + TAG * Math.max(1, Math.ceil(plainSizeBytes / AGE_CHUNK));
  return sizeBytes === expected ? null : `it has ${sizeBytes} bytes, and ${expected} are needed for what was sealed`;
}

/** A small text sealed for recipients, base64. */
export async function sealText(text: string, recipients: readonly string[]): Promise<string> {
  return Buffer.from(await (await encrypter(recipients)).encrypt(text)).toString('base64');
}

/** The text again. Throws `WrongIdentity`, or what the library says of bytes that are not what was sealed. */
export async function openText(sealed: string, identity: Identity): Promise<string> {
  const opener = await decrypter(identity);
  try {
    return await opener.decrypt(Buffer.from(sealed, 'base64'), 'text');
  } catch (error) {
    throw asWrongIdentity(error);
  }
}

async function encrypter(recipients: readonly string[]): Promise<import('age-encryption').Encrypter> {
  const { Encrypter } = await import('./libraries/age.js');
  const made = new Encrypter();
  for (const recipient of recipients) made.addRecipient(recipient);
  return made;
}

async function decrypter(identity: Identity): Promise<import('age-encryption').Decrypter> {
  const { Decrypter } = await import('./libraries/age.js');
  const made = new Decrypter();
  for (const key of identity.keys) made.addIdentity(key);
  return made;
}

/** Why a recipient cannot be sealed for, or null. */
export async function recipientProblem(recipient: string): Promise<string | null> {
  try {
    await encrypter([recipient]);
    return null;
  } catch {
    return 'is no age recipient: it must be age1... as age-keygen prints it, or a file with one such line for each';
  }
}

/** Why a key cannot open anything, or null. Never says the key. */
export async function keyProblem(key: string): Promise<string | null> {
  try {
    await decrypter({ path: '', keys: [key] });
    return null;
  } catch {
    return 'holds a line that is no age secret key';
  }
}

const NO_MATCH = /no identity matched/i;
const asWrongIdentity = (error: unknown): unknown => (error instanceof Error && NO_MATCH.test(error.message) ? new WrongIdentity(error.message) : error);

const webOf = (stream: Readable): ReadableStream<Uint8Array> => Readable.toWeb(stream) as ReadableStream<Uint8Array>;
const nodeOf = (stream: ReadableStream<Uint8Array>): Readable => Readable.fromWeb(stream as WebStream);

async function opened(input: Readable, identity: Identity, tools: Tools): Promise<Readable> {
  const program = identity.keys.every((k) => k.startsWith('AGE-SECRET-KEY-1')) ? findProgram('age', tools.env) : null;
  if (program !== null) return filtered(input, program, ['-d', '-i', identity.path], tools);
  return nodeOf(await (await decrypter(identity)).decrypt(webOf(input)));
}

function decompressed(input: Readable, compress: Compression, tools: Tools): Readable {
  if (compress === 'none') return input;
  const transform = compress === 'gzip' ? zlib.createGunzip({ chunkSize: CHUNK }) : native.createZstdDecompress?.({ chunkSize: CHUNK });
  if (!transform) {
    return filtered(input, zstdProgram(tools), ['-q', '-d', '-c'], tools);
  }
  // The error comes out of the last stream.
  pipelineCallback(input, transform, () => undefined);
  return transform;
}

const drained = (stream: Writable): Promise<void> =>
  new Promise((done) => {
    const either = (): void => {
      stream.off('drain', either).off('close', either);
      done();
    };
    stream.once('drain', either).once('close', either);
  });

function writeFailed(error: unknown): never {
  throw Object.assign(new WriteFailed(String(error), { cause: error }), { code: errnoOf(error) });
}

function created(path: string): number {
  try {
    return openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600);
  } catch (error) {
    return writeFailed(error);
  }
}

export interface Unpacked {
  /** Of the bytes that were read. */
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly plainSizeBytes: number;
  readonly plainSha256: string;
  /** The file that was made; null: none was. */
  readonly made: FileId | null;
}

export interface UnpackInput {
  /** The packed bytes: a file, or a stream of them. */
  readonly from: string | Readable;
  /** How many there are; more than that ends it with `TooLong`: what comes from elsewhere may have no end. */
  readonly packedBytes: number;
  readonly packed: Packed;
  /** Needed for what is encrypted. */
  readonly identity: Identity | null;
  /** The new file to make (0600), not synced; null: the plain bytes are only hashed. */
  readonly to: string | null;
  /** Gets the plain bytes as well; what it makes of them does not matter here. */
  readonly also?: Writable;
  /** Plain bytes; more than that ends it with `TooLong`. */
  readonly limit: number;
  readonly tools: Tools;
  /** Told of packed bytes. */
  readonly progress: (doneBytes: number) => void;
}

/**
 * Unpacks, hashing both ends: SHA-256, hex. Throws `ReadFailed` where the packed bytes cannot be read, `WrongIdentity`,
 * `WriteFailed` where `to` cannot be written, `MissingProgram`, a `ProgramFailed` that says whether it is the program's fault,
 * and anything else, `TooLong` among it, for bytes that cannot be unpacked.
 */
export async function unpack(input: UnpackInput): Promise<Unpacked> {
  const { packed, identity, tools } = input;
  const outer = createHash('sha256');
  const inner = createHash('sha256');
  let sizeBytes = 0;
  let plainSizeBytes = 0;
  const source = typeof input.from === 'string' ? reading(input.from) : input.from;
  async function* counted(): AsyncGenerator<Buffer> {
    try {
      for await (const chunk of source as AsyncIterable<Buffer>) {
        tools.signal.throwIfAborted();
        outer.update(chunk);
        sizeBytes += chunk.length;
        if (sizeBytes > input.packedBytes) throw new TooLong(`it has more than ${input.packedBytes} bytes`);
        input.progress(sizeBytes);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof TooLong) throw error;
      throw tools.signal.aborted ? tools.signal.reason : Object.assign(new ReadFailed(String(error), { cause: error }), { code: errnoOf(error) });
    }
  }
  let output: number | null = null;
  try {
    let stream: Readable = Readable.from(counted(), { objectMode: false, highWaterMark: CHUNK });
    if (packed.encrypted) {
      if (!identity) throw new WrongIdentity('there is no identity');
      stream = await opened(stream, identity, tools);
    }
    stream = decompressed(stream, packed.compress, tools);
    if (input.to !== null) output = created(input.to);
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      tools.signal.throwIfAborted();
      inner.update(chunk);
      if (plainSizeBytes + chunk.length > input.limit) throw new TooLong(`it holds more than ${input.limit} bytes`);
      if (input.also && !input.also.destroyed && !input.also.write(chunk)) await drained(input.also);
      if (output !== null) await writeAll(output, chunk, plainSizeBytes).catch(writeFailed);
      plainSizeBytes += chunk.length;
    }
    input.also?.end();
    const made = output === null ? null : fstatSync(output);
    return { sizeBytes, sha256: outer.digest('hex'), plainSizeBytes, plainSha256: inner.digest('hex'), made };
  } catch (error) {
    throw tools.signal.aborted ? tools.signal.reason : asWrongIdentity(error);
  } finally {
    source.destroy();
    // Cut short: whoever reads it must not take this for the end.
    if (!input.also?.writableEnded) input.also?.destroy(new Error('cut short'));
    if (output !== null) closeSync(output);
  }
}
