/**
 * An S3 server on loopback, in memory: it checks the checksums that it is sent and returns those that it computed, as Amazon's does, and
 * misbehaves where a test tells it to. Only what `src/destinations/` uses; signatures are looked at, not computed.
 */
import { createHash, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

export type Operation = 'list' | 'list-uploads' | 'get' | 'put' | 'delete' | 'create' | 'part' | 'complete' | 'abort';

/** A request as a rule sees it. */
export interface Seen {
  readonly operation: Operation;
  /** Without the slash in front; empty for the bucket. */
  readonly key: string;
  /** 0 where it is none. */
  readonly partNumber: number;
}

export type Fault =
  | { readonly status: number; readonly code: string }
  /** `200 OK` and an error in the body, as CompleteMultipartUpload may answer. */
  | { readonly ok: 'but-error'; readonly code: string }
  /** Takes the request and never answers. */
  | 'stall'
  /** Does the work and drops the connection instead of answering. */
  | 'lose-answer'
  /** Drops the connection after so many bytes of the request's body. */
  | { readonly resetAtByte: number }
  /** Drops the connection after so many bytes of the answer. */
  | { readonly cutAtByte: number }
  /** Gives an object that has no end. */
  | 'endless'
  /** Starts the answer, and stops at this byte without closing. */
  | { readonly stallAtByte: number }
  /** Returns a checksum of other bytes. */
  | 'wrong-checksum'
  /** Knows nothing of checksums: neither checks nor returns them. */
  | 'no-checksum'
  /** The same, and stores other bytes than it got. */
  | 'store-other'
  /** The same, and stores one byte less. */
  | 'store-less';

export interface FakeS3 {
  readonly endpoint: string;
  readonly objects: Map<string, Buffer>;
  /** Multipart uploads that are neither completed nor aborted. */
  readonly uploads: Map<string, { readonly key: string; readonly begunAt: Date; readonly parts: Map<number, Buffer> }>;
  readonly seen: Seen[];
  /** What the last request carried: its signature's scope, its session token, its storage class. */
  readonly last: { authorization: string; sessionToken: string; storageClass: string };
  /** Asked for every request. */
  rule: (seen: Seen) => Fault | null;
  /** Resolves when a request has come to where it stalls. */
  stalled(): Promise<void>;
  close(): Promise<void>;
}

/** Few, so that listings come in pages. */
const PAGE = 2;
const SMALLEST_PART = 5 << 20;

export async function startFakeS3(bucket: string): Promise<FakeS3> {
  const sockets = new Set<Socket>();
  let reached = (): void => undefined;
  let stalled = new Promise<void>((done) => {
    reached = done;
  });
  const server = createServer((request, response) => {
    request.on('error', () => undefined);
    response.on('error', () => undefined);
    handle(request, response).catch((error: unknown) => {
      if (!request.destroyed && !response.headersSent) fail(response, 500, `Fake${String(error)}`);
    });
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });

  const fake: FakeS3 = {
    endpoint: '',
    objects: new Map(),
    uploads: new Map(),
    seen: [],
    last: { authorization: '', sessionToken: '', storageClass: '' },
    rule: () => null,
    stalled: () => stalled,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      if (!server.listening) return;
      server.close();
      await once(server, 'close');
    },
  };

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', 'http://fake');
    const [, first = '', ...rest] = url.pathname.split('/');
    const key = decodeURIComponent(rest.join('/'));
    const q = url.searchParams;
    const operation = operationOf(request.method ?? '', key, q);
    const seen: Seen = { operation, key, partNumber: Number(q.get('partNumber') ?? 0) };
    fake.seen.push(seen);
    const header = (name: string): string => String(request.headers[name] ?? '');
    Object.assign(fake.last, {
      authorization: header('authorization'),
      sessionToken: header('x-amz-security-token'),
      storageClass: header('x-amz-storage-class'),
    });
    const fault = fake.rule(seen);
    if (fault !== null && typeof fault === 'object' && 'resetAtByte' in fault) {
      let got = 0;
      request.on('data', (chunk: Buffer) => {
        got += chunk.length;
        if (got >= fault.resetAtByte) request.socket.resetAndDestroy();
      });
      return;
    }
    const body = await read(request);
    if (fault === 'stall') {
      reached();
      stalled = new Promise((done) => {
        reached = done;
      });
      return;
    }
    if (fault !== null && typeof fault === 'object' && 'status' in fault) {
      fail(response, fault.status, fault.code);
      return;
    }
    if (fault !== null && typeof fault === 'object' && 'ok' in fault) {
      fail(response, 200, fault.code);
      return;
    }
    if (!header('authorization').startsWith('AWS4-HMAC-SHA256 Credential=')) {
      fail(response, 403, 'AccessDenied');
      return;
    }
    if (decodeURIComponent(first) !== bucket) {
      fail(response, 404, 'NoSuchBucket');
      return;
    }
    // Each of these has its reasons for not checking.
    const blind = fault === 'no-checksum' || fault === 'store-other' || fault === 'store-less';
    if (!blind) {
      const sent = header('x-amz-checksum-sha256');
      if (sent !== '' && sent !== sha256(body)) {
        fail(response, 400, 'BadDigest');
        return;
      }
      const signed = header('x-amz-content-sha256');
      if (/^[0-9a-f]{64}$/.test(signed) && signed !== createHash('sha256').update(body).digest('hex')) {
        fail(response, 400, 'XAmzContentSHA256Mismatch');
        return;
      }
    }
    const stored = fault === 'store-other' ? Buffer.concat([Buffer.from('X'), body.subarray(1)]) : fault === 'store-less' ? body.subarray(0, -1) : body;
    const checksum = blind || header('x-amz-checksum-sha256') === '' ? null : fault === 'wrong-checksum' ? sha256(Buffer.from('other bytes')) : sha256(body);
    const answer = (status: number, xml: string, headers: Record<string, string> = {}): void => {
      if (fault === 'lose-answer') {
        request.socket.resetAndDestroy();
        return;
      }
      response.writeHead(status, { 'content-type': 'application/xml', ...headers });
      response.end(xml === '' ? '' : `<?xml version="1.0" encoding="UTF-8"?>\n${xml}`);
    };
    const told: Record<string, string> = {
      etag: `"${createHash('md5').update(body).digest('hex')}"`,
      ...(checksum === null ? {} : { 'x-amz-checksum-sha256': checksum }),
    };
    const upload = fake.uploads.get(q.get('uploadId') ?? '');

    switch (operation) {
      case 'put':
        fake.objects.set(key, stored);
        answer(200, '', told);
        return;
      case 'create': {
        const id = randomUUID();
        fake.uploads.set(id, { key, begunAt: new Date(), parts: new Map() });
        answer(
          200,
          `<InitiateMultipartUploadResult><Bucket>${bucket}</Bucket><Key>${inXml(key)}</Key><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`,
        );
        return;
      }
      case 'part':
        if (!upload || upload.key !== key) {
          fail(response, 404, 'NoSuchUpload');
          return;
        }
        upload.parts.set(seen.partNumber, stored);
        answer(200, '', told);
        return;
      case 'complete': {
        if (!upload || upload.key !== key) {
          fail(response, 404, 'NoSuchUpload');
          return;
        }
        const numbers = [...body.toString('utf8').matchAll(/<PartNumber>(\d+)<\/PartNumber>/g)].map((m) => Number(m[1]));
        const parts = numbers.map((n) => upload.parts.get(n) ?? Buffer.alloc(0));
        if (parts.length !== upload.parts.size || parts.slice(0, -1).some((part) => part.length < SMALLEST_PART)) {
          fail(response, 400, 'InvalidPart');
          return;
        }
        const claimed = [...body.toString('utf8').matchAll(/<ChecksumSHA256>([^<]*)<\/ChecksumSHA256>/g)].map((m) => m[1]);
        if (claimed.some((sum, i) => sum !== sha256(parts[i] ?? Buffer.alloc(0)))) {
          fail(response, 400, 'InvalidPart');
          return;
        }
        fake.uploads.delete(q.get('uploadId') ?? '');
        fake.objects.set(key, Buffer.concat(parts));
        const composite = createHash('sha256');
        for (const part of parts) composite.update(createHash('sha256').update(part).digest());
        const sum = claimed.length === 0 ? '' : `<ChecksumSHA256>${composite.digest('base64')}-${parts.length}</ChecksumSHA256>`;
        answer(200, `<CompleteMultipartUploadResult><Key>${inXml(key)}</Key><ETag>"x-${parts.length}"</ETag>${sum}</CompleteMultipartUploadResult>`);
        return;
      }
      case 'abort':
        if (!fake.uploads.delete(q.get('uploadId') ?? '')) fail(response, 404, 'NoSuchUpload');
        else answer(204, '');
        return;
      case 'delete':
        fake.objects.delete(key);
        answer(204, '');
        return;
      case 'get': {
        const object = fake.objects.get(key);
        if (!object) {
          fail(response, 404, 'NoSuchKey');
          return;
        }
        if (fault === 'endless') {
          response.writeHead(200, { 'content-length': '1000000000000000' });
          const block = Buffer.alloc(1 << 20);
          const pump = (): void => {
            while (response.write(block));
          };
          response.on('drain', pump);
          pump();
          return;
        }
        response.writeHead(200, { 'content-length': String(object.length), 'content-type': 'application/octet-stream' });
        if (fault !== null && typeof fault === 'object') {
          const at = 'cutAtByte' in fault ? fault.cutAtByte : fault.stallAtByte;
          response.write(object.subarray(0, at), () => {
            if ('cutAtByte' in fault) request.socket.destroy();
            else reached();
          });
          return;
        }
        response.end(object);
        return;
      }
      case 'list': {
        const prefix = q.get('prefix') ?? '';
        const names = [...fake.objects.keys()].filter((k) => k.startsWith(prefix) && !k.slice(prefix.length).includes('/')).sort();
        const from = Number(q.get('continuation-token') ?? 0);
        const page = names.slice(from, from + PAGE);
        const more = from + PAGE < names.length;
        const contents = page.map((k) => `<Contents><Key>${inXml(k)}</Key><Size>${fake.objects.get(k)?.length ?? 0}</Size></Contents>`).join('');
        const next = more ? `<NextContinuationToken>${from + PAGE}</NextContinuationToken>` : '';
        answer(200, `<ListBucketResult><Name>${bucket}</Name><IsTruncated>${more}</IsTruncated>${next}${contents}</ListBucketResult>`);
        return;
      }
      case 'list-uploads': {
        const prefix = q.get('prefix') ?? '';
        const all = [...fake.uploads].filter(([, u]) => u.key.startsWith(prefix)).sort(([a], [b]) => (a < b ? -1 : 1));
        const after = q.get('upload-id-marker') ?? '';
        const rest = all.filter(([id]) => id > after);
        const page = rest.slice(0, PAGE);
        const last = page.at(-1);
        const more =
          rest.length > PAGE && last ? `<NextKeyMarker>${inXml(last[1].key)}</NextKeyMarker><NextUploadIdMarker>${last[0]}</NextUploadIdMarker>` : '';
        const entries = page
          .map(([id, u]) => `<Upload><Key>${inXml(u.key)}</Key><UploadId>${id}</UploadId><Initiated>${u.begunAt.toISOString()}</Initiated></Upload>`)
          .join('');
        answer(200, `<ListMultipartUploadsResult><IsTruncated>${more !== ''}</IsTruncated>${more}${entries}</ListMultipartUploadsResult>`);
      }
    }
  }

  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return Object.assign(fake, { endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
}

function operationOf(method: string, key: string, q: URLSearchParams): Operation {
  if (key === '') return q.has('uploads') ? 'list-uploads' : 'list';
  if (method === 'POST') return q.has('uploads') ? 'create' : 'complete';
  if (method === 'PUT') return q.has('uploadId') ? 'part' : 'put';
  if (method === 'DELETE') return q.has('uploadId') ? 'abort' : 'delete';
  return 'get';
}

async function read(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** Its text quotes the request, as some servers' do: nobody may repeat it. */
function fail(response: ServerResponse, status: number, code: string): void {
  const { authorization, 'x-amz-security-token': token } = response.req.headers;
  response.writeHead(status, { 'content-type': 'application/xml' });
  response.end(`<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>you sent ${authorization} ${String(token)}</Message></Error>`);
}

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('base64');
const inXml = (text: string): string => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
