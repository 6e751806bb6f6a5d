/**
 * Where an upload goes, as an operator writes it. Pure: nothing here looks at a disk or a network. No message repeats what
 * was given, since credentials could be in it.
 */
import { resolve } from 'node:path';
import { UNPRINTABLE } from '../settings/values.js';

/** A bucket of S3 or of a server that speaks its protocol. */
export interface S3Url {
  readonly kind: 's3';
  readonly bucket: string;
  /** Without a slash at either end; empty: the bucket itself. */
  readonly prefix: string;
  /** `http://` or `https://`, host and perhaps a path, without a slash at the end; null: Amazon's, or what AWS_ENDPOINT_URL says. */
  readonly endpoint: string | null;
  /** null: what AWS_REGION or the AWS configuration says. */
  readonly region: string | null;
  readonly storageClass: string | null;
  readonly shown: string;
}

/** A remote that rclone's own configuration knows. */
export interface RcloneUrl {
  readonly kind: 'rclone';
  /** `REMOTE:PATH`, as rclone takes it. */
  readonly remote: string;
  readonly shown: string;
}

/** A directory of this machine: a mounted disk. */
export interface DirectoryUrl {
  readonly kind: 'directory';
  /** Absolute. */
  readonly path: string;
  readonly shown: string;
}

/** `shown` is the canonical text: printed, and the key under which confirmations of uploads are remembered. It parses to the same value. */
export type DestinationUrl = S3Url | RcloneUrl | DirectoryUrl;

const FORM = 'must be s3://BUCKET[/PREFIX][?endpoint=URL&region=R&storage-class=C], rclone:REMOTE:PATH or file:///DIRECTORY';
const NO_CREDENTIALS = 'must hold no user, password or key: credentials belong in the env file (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)';
/** Room for `/` and a file name of 255 bytes within the 1024 bytes of a key of S3. */
const PREFIX_MAX_BYTES = 700;

/** Parses `upload`. Throws an Error whose message goes on behind `upload "..."` and repeats nothing of the text. */
export function destination(raw: string): DestinationUrl {
  if (raw === '') throw new Error('is empty');
  if (UNPRINTABLE.test(raw)) throw new Error('holds control or bidirectional characters, which are refused');
  if (raw !== raw.trim()) throw new Error('begins or ends with blanks, which are refused');
  if (raw.startsWith('s3://')) return s3(raw.slice('s3://'.length));
  if (raw.startsWith('rclone:')) return rclone(raw.slice('rclone:'.length));
  if (raw.startsWith('file://')) return directory(raw.slice('file://'.length));
  throw new Error(FORM);
}

function s3(rest: string): S3Url {
  const [, bucket = '', path = '', query = ''] = /^([^/?]*)([^?]*)(?:\?(.*))?$/u.exec(rest) ?? [];
  if (bucket.includes('@') || bucket.includes(':')) throw new Error(NO_CREDENTIALS);
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$/.test(bucket)) throw new Error(`names no bucket (letters, digits, . - _): ${FORM}`);
  const prefix = path.replace(/^\/+|\/+$/g, '');
  if (prefix !== '' && prefix.split('/').some((segment) => ['', '.', '..'].includes(segment))) {
    throw new Error('has an empty segment, . or .. in its prefix, which are refused');
  }
  if (Buffer.byteLength(prefix) > PREFIX_MAX_BYTES) throw new Error(`has a prefix of more than ${PREFIX_MAX_BYTES} bytes`);
  const { endpoint, region, storageClass } = parameters(query);
  const told = [
    ...(endpoint === null ? [] : [`endpoint=${endpoint}`]),
    ...(region === null ? [] : [`region=${region}`]),
    ...(storageClass === null ? [] : [`storage-class=${storageClass}`]),
  ];
  const shown = `s3://${bucket}${prefix === '' ? '' : `/${prefix}`}${told.length === 0 ? '' : `?${told.join('&')}`}`;
  return { kind: 's3', bucket, prefix, endpoint, region, storageClass, shown };
}

function parameters(query: string): { endpoint: string | null; region: string | null; storageClass: string | null } {
  const given = new Map<string, string>();
  for (const [name, value] of new URLSearchParams(query)) {
    if (!['endpoint', 'region', 'storage-class'].includes(name)) {
      throw new Error('takes endpoint, region and storage-class behind the ? and nothing else; credentials belong in the env file (AWS_ACCESS_KEY_ID, ...)');
    }
    if (given.has(name)) throw new Error(`says ${name} twice`);
    given.set(name, value);
  }
  const region = given.get('region') ?? null;
  if (region !== null && !/^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/.test(region)) throw new Error('has a region that is none: one looks like eu-central-1');
  const storageClass = given.get('storage-class') ?? null;
  if (storageClass !== null && !/^[A-Z][A-Z0-9_]{0,63}$/.test(storageClass)) {
    throw new Error('has a storage class that is none: one looks like STANDARD_IA');
  }
  const endpoint = given.get('endpoint');
  return { endpoint: endpoint === undefined ? null : endpointUrl(endpoint), region, storageClass };
}

function endpointUrl(raw: string): string {
  const url = URL.canParse(raw) ? new URL(raw) : null;
  if (!url || !['http:', 'https:'].includes(url.protocol) || url.hostname === '')
    throw new Error('has an endpoint that is none: one looks like https://HOST[:PORT]');
  if (url.username !== '' || url.password !== '') throw new Error(NO_CREDENTIALS);
  // The path is shown without being encoded again, so it holds nothing that would need it.
  if (url.search !== '' || url.hash !== '' || !/^[A-Za-z0-9._~/-]*$/.test(url.pathname)) {
    throw new Error('has an endpoint with more than a host, a port and a plain path');
  }
  return `${url.origin}${url.pathname.replace(/\/+$/, '')}`;
}

function rclone(rest: string): RcloneUrl {
  const colon = rest.indexOf(':');
  const name = rest.slice(0, Math.max(colon, 0));
  // Names as rclone allows them. `:backend,option=value:` and `name,option=value:` could hold a password, and would put it into argv.
  if (!/^[\p{L}\p{N}_.+@][\p{L}\p{N}_.+@ -]*$/u.test(name) || name.endsWith(' ')) {
    throw new Error('must be rclone:REMOTE:PATH with a REMOTE of your rclone configuration; its options belong there, or in RCLONE_* in the env file');
  }
  const path = rest.slice(colon + 1);
  if (path.split('/').includes('..')) throw new Error('has .. in its path, which is refused');
  const plain = path.replace(/(?<=[^/])\/+$/, '').replace(/^\/+$/, '/');
  const remote = `${name}:${plain}`;
  return { kind: 'rclone', remote, shown: `rclone:${remote}` };
}

function directory(rest: string): DirectoryUrl {
  if (!rest.startsWith('/')) throw new Error('must begin with file:/// and go on with an absolute path');
  let path: string;
  try {
    path = decodeURIComponent(rest);
  } catch {
    throw new Error('has a % that is not percent-encoded: write %25');
  }
  if (rest.includes('?') || rest.includes('#')) throw new Error('has a ? or # in its path: write %3F or %23');
  if (UNPRINTABLE.test(path)) throw new Error('holds control or bidirectional characters, which are refused');
  if (path.split('/').includes('..')) throw new Error('has .. in its path, which is refused');
  if (path !== path.trim()) throw new Error('ends with blanks, which are refused');
  const whole = resolve(path);
  if (whole === '/') throw new Error('names no directory but /');
  return { kind: 'directory', path: whole, shown: `file://${whole.replace(/[%?#]/g, (c) => encodeURIComponent(c))}` };
}
