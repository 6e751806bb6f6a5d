/**
 * The S3 child: the AWS SDK with its own chain of credentials, in a process whose environment is the upload's. It sends what it is told,
 * proves it, answers. A file goes out in parts, each with its SHA-256, which the server checks; at most two parts are in memory.
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { pipeline as pipelineCallback, Readable, Transform } from 'node:stream';
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  type StorageClass,
  UploadPartCommand,
} from '@aws-sdk/client-s3';
import { redactor } from '../redact.js';
import type { Answers, Request, S3Target as Target, Trouble, Unfinished } from './child-protocol.js';
import type { Handed } from './child-serve.js';
import { collect, doing, sendBytes, serve } from './child-serve.js';
import type { Expected, Proved, RemoteObject } from './destination.js';
import { DestinationError } from './destination.js';
import { factsOf, troubleOf } from './s3-trouble.js';

const MiB = 1 << 20;
/** Parts have at least 5 MiB, and an upload has at most 10,000 (S3's own limits). */
const PART_BYTES = 8 * MiB;
const PARTS_MAX = 10_000;
/** Larger parts go out one by one, so that buffers stay within some 32 MiB up to files of 320 GB. */
const TWO_AT_ONCE_BYTES = 16 * MiB;
const ATTEMPTS = 4;
/**
 * A listing beyond this is not ours: so many are the objects of hourly copies of eleven years, and to list them takes 480 MB of memory in
 * all processes. Pages have up to 1,000 objects, and on some servers none.
 */
const OBJECTS_MAX = 200_000;
const PAGES_MAX = 10_000;
/** A page of 1,000 objects with the longest keys has some 2 MB. */
const ANSWER_MAX_BYTES = 32 * MiB;
/** Taking back a broken-off upload must not take long: `sweep` finds what stays. Milliseconds. */
const TAKE_BACK_MS = 10_000;

interface Session {
  readonly client: S3Client;
  readonly target: Target;
  /** Whom we speak to, for messages. */
  readonly host: string;
  readonly redact: (text: string) => string;
}

/** One for the life of the child: made at the first request, which others may come beside. */
let connecting: Promise<Session> | null = null;
let session: Session | null = null;
/** The object that `get` opened, until `bytes` sends it. */
let opened: { readonly body: Readable; readonly handed: Handed } | null = null;

/** The SDK takes an answer into memory as a whole, all but the bytes of an object: a server must not fill ours. */
function boundAnswers(client: S3Client, { shown }: Target): S3Client {
  client.middlewareStack.add(
    (next, { commandName }) =>
      async (args) => {
        const result = await next(args);
        const { response } = result;
        if (!isAnswer(response) || (commandName === 'GetObjectCommand' && response.statusCode < 300)) return result;
        let seen = 0;
        const bounded = new Transform({
          transform(chunk: Buffer, _encoding, done) {
            seen += chunk.length;
            if (seen <= ANSWER_MAX_BYTES) done(null, chunk);
            else done(new DestinationError('other', `${shown}: the server's answer has no end: is this the right endpoint?`, false));
          },
        });
        pipelineCallback(response.body, bounded, () => undefined);
        response.body = bounded;
        return result;
      },
    // Below the SDK's own step that reads the answer.
    { step: 'deserialize', priority: 'low', name: 'boundAnswers' },
  );
  return client;
}

const isAnswer = (response: unknown): response is { statusCode: number; body: Readable } =>
  typeof response === 'object' && response !== null && 'statusCode' in response && 'body' in response && response.body instanceof Readable;

const makeClient = (target: Target, region: string | null): S3Client =>
  new S3Client({
    ...(region === null ? {} : { region }),
    ...(target.endpoint === null ? {} : { endpoint: target.endpoint }),
    forcePathStyle: target.forcePathStyle,
    // Checksums are given by us, for buffers of known length. The SDK's own way is to append them to a chunked body, which an
    // S3-compatible server has stored as part of the object.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    // A server that does not know `Expect: 100-continue` would cost seconds with every part.
    expectContinueHeader: false,
    maxAttempts: ATTEMPTS,
    retryMode: 'standard',
    requestHandler: { connectionTimeout: target.connectMs, socketTimeout: target.idleMs },
  });

async function connect(target: Target): Promise<Session> {
  const make = (region: string | null): S3Client => boundAnswers(makeClient(target, region), target);
  let client = make(target.region);
  let region: string;
  try {
    region = await client.config.region();
  } catch {
    if (!target.forcePathStyle) {
      throw new DestinationError(
        'other',
        `${target.shown}: the region of the bucket is not known: say it with ?region= in the setting upload, or set AWS_REGION`,
        false,
      );
    }
    // Servers of one's own take any region, and this one is their default.
    region = 'us-east-1';
    client = make(region);
  }
  const own = await client.config.endpoint?.();
  const host = own
    ? `${own.hostname}${own.port === undefined ? '' : `:${own.port}`}`
    : target.endpoint === null
      ? `S3 in ${region}`
      : new URL(target.endpoint).host;
  try {
    const { accessKeyId, secretAccessKey, sessionToken } = await client.config.credentials();
    return { client, target, host, redact: redactor([accessKeyId, secretAccessKey, ...(sessionToken ? [sessionToken] : [])]) };
  } catch (error) {
    // Its text is not repeated: it may hold the command line of a credential_process.
    const { code } = factsOf(error);
    throw new DestinationError(
      'denied',
      `${target.shown}: no credentials (${code}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the env file, or AWS_PROFILE, or give this machine a role`,
      false,
    );
  }
}

async function answer<O extends Request['op']>(s: Session, r: Request): Promise<Answers[O] | unknown> {
  switch (r.op) {
    case 'list':
      return await list(s);
    case 'put':
      return await put(s, r.file, r.name, r.expected);
    case 'get':
      return await get(s, r.name);
    case 'bytes':
      return await bytes();
    case 'read':
      return await read(s, r.name, r.maxBytes);
    case 'remove':
      return await remove(s, r.name);
    case 'unfinished':
      return await unfinished(s);
    case 'abort':
      return await abort(s, r.name, r.id);
  }
}

/** The bucket and key of an object, as every command takes them. */
const at = (s: Session, name: string): { Bucket: string; Key: string } => ({ Bucket: s.target.bucket, Key: `${s.target.prefix}${name}` });

/** The name of an object directly below the prefix, or null. */
function bare(s: Session, key: string | undefined): string | null {
  if (!key?.startsWith(s.target.prefix)) return null;
  const name = key.slice(s.target.prefix.length);
  return name === '' || name.includes('/') ? null : name;
}

async function list(s: Session): Promise<RemoteObject[]> {
  const found: RemoteObject[] = [];
  let pages = 0;
  for (let from: string | undefined; ; ) {
    if (++pages > PAGES_MAX || found.length > OBJECTS_MAX) {
      throw new DestinationError('other', `${s.target.shown}: the listing of the server (${s.host}) has no end: give the copies a prefix of their own`, false);
    }
    const page = await s.client.send(
      new ListObjectsV2Command({
        Bucket: s.target.bucket,
        Prefix: s.target.prefix,
        Delimiter: '/',
        ...(from === undefined ? {} : { ContinuationToken: from }),
      }),
    );
    for (const { Key, Size } of page.Contents ?? []) {
      const name = bare(s, Key);
      if (name !== null && Size !== undefined) found.push({ name, sizeBytes: Size });
    }
    if (!page.IsTruncated) return found;
    const next = page.NextContinuationToken;
    // Half a listing taken for a whole one would look as if copies were gone.
    if (next === undefined || next === from) throw new DestinationError('other', `${s.target.shown}: the server (${s.host}) breaks its listing off`, false);
    from = next;
  }
}

/** What the server's answers say about the bytes it got. `lost`: the last answer did not come, so that it is not known whose object is there. */
type Said = 'right' | 'nothing' | 'lost';

/** Throws when the server computed another checksum over what it got than we did. Base64. */
function compare(s: Session, name: string, sent: string, returned: string | undefined): Said {
  if (returned === undefined || returned === '') return 'nothing';
  if (returned === sent) return 'right';
  throw new DestinationError(
    'wrong-bytes',
    `${s.target.shown}: the server (${s.host}) got other bytes of "${name}" than were sent: try again, and check that server`,
    false,
  );
}

const changed = (file: string): DestinationError => new DestinationError('wrong-bytes', `${file} is not what it was when it was proven: verify it`, false);

async function put(s: Session, file: string, name: string, expected: Expected): Promise<Proved> {
  const source = new Source(file, expected);
  let said: Said;
  try {
    said = expected.sizeBytes <= PART_BYTES ? await putWhole(s, source, name) : await putInParts(s, source, name);
  } finally {
    source.close();
  }
  if (said === 'right') return 'server-checksum';
  await readBack(s, name, expected, said === 'nothing');
  return 'read-back';
}

async function putWhole(s: Session, source: Source, name: string): Promise<Said> {
  const part = source.next(Buffer.allocUnsafeSlow(source.sizeBytes));
  source.mustBeWhole();
  const { ChecksumSHA256 } = await s.client.send(new PutObjectCommand({ ...at(s, name), ...storageClass(s), Body: part.bytes, ChecksumSHA256: part.sha256 }));
  try {
    return compare(s, name, part.sha256, ChecksumSHA256);
  } catch (error) {
    await takeBack(s, new DeleteObjectCommand(at(s, name)));
    throw error;
  }
}

async function putInParts(s: Session, source: Source, name: string): Promise<Said> {
  const { UploadId } = await s.client.send(new CreateMultipartUploadCommand({ ...at(s, name), ...storageClass(s), ChecksumAlgorithm: 'SHA256' }));
  if (!UploadId) throw new DestinationError('other', `${s.target.shown}: the server (${s.host}) cannot take a file in parts`, false);
  const upload = { ...at(s, name), UploadId };
  try {
    const parts = await sendParts(s, source, name, upload);
    // The object appears with the next request: never with other bytes than those that were proven.
    source.mustBeWhole();
    return await complete(s, upload, parts);
  } catch (error) {
    await takeBack(s, new AbortMultipartUploadCommand(upload));
    throw error;
  }
}

interface SentPart {
  readonly PartNumber: number;
  readonly ETag: string | undefined;
  /** Ours, base64. */
  readonly sha256: string;
  readonly said: Said;
}

interface Upload {
  readonly Bucket: string;
  readonly Key: string;
  readonly UploadId: string;
}

async function sendParts(s: Session, source: Source, name: string, upload: Upload): Promise<SentPart[]> {
  const partBytes = Math.max(PART_BYTES, Math.ceil(source.sizeBytes / PARTS_MAX / MiB) * MiB);
  const sent: SentPart[] = [];
  const failed = new AbortController();
  let begun = 0;
  const lane = async (): Promise<void> => {
    const buffer = Buffer.allocUnsafeSlow(partBytes);
    while (source.leftBytes > 0) {
      // Read and hashed without a pause in between, so that lanes take the parts in their order.
      const part = source.next(buffer);
      const PartNumber = ++begun;
      const { ETag, ChecksumSHA256 } = await s.client.send(
        new UploadPartCommand({ ...upload, PartNumber, Body: part.bytes, ContentLength: part.bytes.length, ChecksumSHA256: part.sha256 }),
        { abortSignal: failed.signal },
      );
      sent.push({ PartNumber, ETag, sha256: part.sha256, said: compare(s, name, part.sha256, ChecksumSHA256) });
    }
  };
  const lanes = (partBytes <= TWO_AT_ONCE_BYTES ? [lane(), lane()] : [lane()]).map((work) =>
    work.catch((error: unknown) => {
      failed.abort();
      throw error;
    }),
  );
  try {
    await Promise.all(lanes);
  } finally {
    await Promise.allSettled(lanes);
  }
  return sent.sort((a, b) => a.PartNumber - b.PartNumber);
}

async function complete(s: Session, upload: Upload, parts: readonly SentPart[]): Promise<Said> {
  const Parts = parts.map(({ PartNumber, ETag, sha256, said }) => ({ PartNumber, ETag, ...(said === 'right' ? { ChecksumSHA256: sha256 } : {}) }));
  let returned: string | undefined;
  try {
    returned = (await s.client.send(new CompleteMultipartUploadCommand({ ...upload, MultipartUpload: { Parts } }))).ChecksumSHA256;
  } catch (error) {
    // The answer to a first attempt may have been lost on its way. What is there now decides.
    if (factsOf(error).code === 'NoSuchUpload') return 'lost';
    throw error;
  }
  if (parts.some(({ said }) => said !== 'right')) return 'nothing';
  if (returned === undefined) return 'right';
  // Over the parts' checksums, by S3's rule. Servers differ here: where it is another one, the bytes themselves decide.
  const composite = createHash('sha256');
  for (const { sha256 } of parts) composite.update(Buffer.from(sha256, 'base64'));
  return returned.replace(/-\d+$/, '') === composite.digest('base64') ? 'right' : 'nothing';
}

/** Hashes what the server gives back. What is wrong is removed when it is ours. */
async function readBack(s: Session, name: string, expected: Expected, ours: boolean): Promise<void> {
  const { Body } = await s.client.send(new GetObjectCommand(at(s, name)));
  const hash = createHash('sha256');
  let sizeBytes = 0;
  if (Body instanceof Readable) {
    for await (const chunk of Body as AsyncIterable<Buffer>) {
      hash.update(chunk);
      sizeBytes += chunk.length;
    }
  }
  if (sizeBytes === expected.sizeBytes && hash.digest('hex') === expected.sha256) return;
  if (ours) await takeBack(s, new DeleteObjectCommand(at(s, name)));
  const how = sizeBytes === expected.sizeBytes ? 'with other bytes' : `with ${sizeBytes} bytes instead of ${expected.sizeBytes}`;
  throw new DestinationError(
    'wrong-bytes',
    `${s.target.shown}: the server (${s.host}) gives "${name}" back ${how}${ours ? '; it was removed again' : ''}: check that server`,
    false,
  );
}

/** Tries to undo what an error left. The error is what is told, not whether this worked. */
async function takeBack(s: Session, command: DeleteObjectCommand | AbortMultipartUploadCommand): Promise<void> {
  const abortSignal = AbortSignal.timeout(TAKE_BACK_MS);
  try {
    if (command instanceof DeleteObjectCommand) await s.client.send(command, { abortSignal });
    else await s.client.send(command, { abortSignal });
  } catch {
    // An object is replaced by the next put of its name; an unfinished upload is swept.
  }
}

const storageClass = (s: Session): { StorageClass?: StorageClass } =>
  s.target.storageClass === null ? {} : { StorageClass: s.target.storageClass as StorageClass };

/** The local file, read once from beginning to end. */
class Source {
  readonly sizeBytes: number;
  readonly #file: string;
  readonly #expected: Expected;
  readonly #fd: number;
  readonly #hash = createHash('sha256');
  #done = 0;

  constructor(file: string, expected: Expected) {
    this.#file = file;
    this.#expected = expected;
    this.sizeBytes = expected.sizeBytes;
    try {
      this.#fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch (error) {
      throw new DestinationError('other', `cannot read ${file} (${factsOf(error).code})`, false);
    }
    const stats = fstatSync(this.#fd);
    if (stats.isFile() && stats.size === expected.sizeBytes) return;
    this.close();
    throw changed(file);
  }

  get leftBytes(): number {
    return this.sizeBytes - this.#done;
  }

  /** The next part, as much as the buffer holds, with its SHA-256 in base64. */
  next(buffer: Buffer): { bytes: Buffer; sha256: string } {
    const bytes = buffer.subarray(0, Math.min(buffer.length, this.leftBytes));
    for (let filled = 0; filled < bytes.length; ) {
      const n = this.#read(bytes, filled);
      if (n === 0) throw changed(this.#file);
      filled += n;
    }
    this.#done += bytes.length;
    this.#hash.update(bytes);
    return { bytes, sha256: createHash('sha256').update(bytes).digest('base64') };
  }

  /** Throws when what was read is not what was expected. */
  mustBeWhole(): void {
    if (this.leftBytes > 0 || this.#hash.digest('hex') !== this.#expected.sha256) throw changed(this.#file);
  }

  close(): void {
    closeSync(this.#fd);
  }

  #read(bytes: Buffer, filled: number): number {
    try {
      return readSync(this.#fd, bytes, filled, bytes.length - filled, this.#done + filled);
    } catch (error) {
      throw new DestinationError('other', `cannot read ${this.#file} (${factsOf(error).code})`, false);
    }
  }
}

/** An object's body, and what is said of it. */
async function open(s: Session, name: string): Promise<{ body: Readable; handed: Handed }> {
  const { Body, ContentLength } = await s.client.send(new GetObjectCommand(at(s, name)));
  const what = `${s.target.shown}: "${name}"`;
  if (!(Body instanceof Readable) || ContentLength === undefined) {
    throw new DestinationError(
      'other',
      `${s.target.shown}: the server (${s.host}) does not say how long "${name}" is, so that a part could pass for the whole`,
      false,
    );
  }
  // An error that comes before somebody reads is met when somebody does.
  Body.on('error', () => undefined);
  const cut = (seen: number): DestinationError =>
    new DestinationError('unreachable', `${what} was cut short by ${s.host}: ${seen} of ${ContentLength} bytes came; try again`, true);
  return { body: Body, handed: { what, sizeBytes: ContentLength, cut } };
}

async function get(s: Session, name: string): Promise<Answers['get']> {
  opened = await open(s, name);
  return { sizeBytes: opened.handed.sizeBytes };
}

async function bytes(): Promise<Answers['bytes']> {
  if (opened === null) throw new Error('no object was opened');
  const { body, handed } = opened;
  opened = null;
  return await sendBytes(body, handed);
}

async function read(s: Session, name: string, maxBytes: number): Promise<Answers['read']> {
  const { body, handed } = await open(s, name);
  return (await collect(body, maxBytes, handed)).toString('base64');
}

async function remove(s: Session, name: string): Promise<null> {
  try {
    await s.client.send(new DeleteObjectCommand(at(s, name)));
  } catch (error) {
    if (factsOf(error).code !== 'NoSuchKey') throw error;
  }
  return null;
}

async function unfinished(s: Session): Promise<Unfinished[]> {
  const found: Unfinished[] = [];
  for (let from: { KeyMarker?: string; UploadIdMarker?: string } = {}; ; ) {
    let page: Awaited<ReturnType<typeof listUploads>>;
    try {
      page = await listUploads(s, from);
    } catch (error) {
      // A server without such a listing has nothing that could be found by it.
      if (['NotImplemented', 'MethodNotAllowed'].includes(factsOf(error).code)) return found;
      throw error;
    }
    for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
      const name = bare(s, Key);
      if (name !== null && UploadId && Initiated) found.push({ name, id: UploadId, begunAt: Initiated.toISOString() });
    }
    const { NextKeyMarker, NextUploadIdMarker } = page;
    // As many as these are swept now, the others by the next run.
    if (found.length > OBJECTS_MAX) return found;
    if (!page.IsTruncated || NextKeyMarker === undefined || (NextKeyMarker === from.KeyMarker && NextUploadIdMarker === from.UploadIdMarker)) return found;
    from = { KeyMarker: NextKeyMarker, ...(NextUploadIdMarker === undefined ? {} : { UploadIdMarker: NextUploadIdMarker }) };
  }
}

const listUploads = (s: Session, from: { KeyMarker?: string; UploadIdMarker?: string }) =>
  s.client.send(new ListMultipartUploadsCommand({ Bucket: s.target.bucket, Prefix: s.target.prefix, Delimiter: '/', ...from }));

async function abort(s: Session, name: string, uploadId: string): Promise<boolean> {
  try {
    await s.client.send(new AbortMultipartUploadCommand({ ...at(s, name), UploadId: uploadId }));
    return true;
  } catch (error) {
    if (factsOf(error).code === 'NoSuchUpload') return false;
    throw error;
  }
}

function explain(error: unknown, target: Target, request: Request): Trouble {
  const trouble = troubleOf(error, target.shown, doing(request), session?.host ?? target.endpoint ?? 'S3');
  return { ...trouble, message: session ? session.redact(trouble.message) : trouble.message };
}

serve<Target>(async (target, request) => {
  connecting ??= connect(target);
  try {
    session = await connecting;
  } catch (error) {
    // Credentials may be there the next time.
    connecting = null;
    throw error;
  }
  return await answer(session, request);
}, explain);
