/** What can go wrong between us and an S3 server, in words. Texts of the server are not repeated: they may quote what we sent. */
import type { Trouble } from './child-protocol.js';
import { inWords } from './child-serve.js';
import type { DestinationErrorKind } from './destination.js';
import { DestinationError } from './destination.js';

/** What is known about an error of the SDK, of the server behind it, or of the network. */
export interface Facts {
  /** The HTTP status; null: there was no answer. */
  readonly status: number | null;
  /** The server's code (`AccessDenied`), the SDK's name of the error, or an errno. */
  readonly code: string;
}

export function factsOf(error: unknown): Facts {
  if (!(error instanceof Error)) return { status: null, code: '' };
  const metadata = '$metadata' in error && typeof error.$metadata === 'object' ? error.$metadata : null;
  const status = metadata && 'httpStatusCode' in metadata && typeof metadata.httpStatusCode === 'number' ? metadata.httpStatusCode : null;
  const errno = 'code' in error && typeof error.code === 'string' ? error.code : '';
  // What a server calls its error is shown only where it looks like a name.
  const code = [errno, error.name].find((c) => /^[A-Za-z][A-Za-z0-9_.]{1,60}$/.test(c) && c !== 'Error') ?? '';
  return { status, code };
}

const NETWORK = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ECONNABORTED',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EHOSTDOWN',
  'ENETDOWN',
  'ENOTFOUND',
  'EAI_AGAIN',
  'TimeoutError',
]);
const CERTIFICATE = /CERT|SELF_SIGNED|UNABLE_TO_(VERIFY|GET_ISSUER)|^ERR_TLS/;

interface Case {
  readonly when: (facts: Facts) => boolean;
  readonly kind: DestinationErrorKind;
  readonly transient: boolean;
  readonly next: string;
}

const code =
  (...codes: readonly string[]) =>
  (facts: Facts): boolean =>
    codes.includes(facts.code);

/** The first that fits decides. */
const CASES: readonly Case[] = [
  {
    when: (f) => f.status === null && NETWORK.has(f.code),
    kind: 'unreachable',
    transient: true,
    next: 'check the network, and the endpoint in the setting upload',
  },
  {
    when: (f) => CERTIFICATE.test(f.code),
    kind: 'unreachable',
    transient: false,
    next: 'its certificate is not trusted: put it right, or name its authority in NODE_EXTRA_CA_CERTS',
  },
  {
    when: code('RequestTimeTooSkewed', 'RequestExpired', 'RequestInTheFuture'),
    kind: 'denied',
    transient: false,
    next: 'the clock of this machine is wrong: set it',
  },
  {
    when: code('ExpiredToken', 'ExpiredTokenException', 'TokenRefreshRequired'),
    kind: 'denied',
    transient: false,
    next: 'the session token has expired: get a new one, or use a key that does not expire',
  },
  {
    when: code('InvalidToken', 'InvalidAccessKeyId', 'SignatureDoesNotMatch', 'InvalidSecurity', 'InvalidClientTokenId'),
    kind: 'denied',
    transient: false,
    next: 'check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN',
  },
  {
    when: code('QuotaExceeded', 'QuotaExceededException', 'StorageFull', 'XMinioStorageFull', 'InsufficientStorage', 'ServiceQuotaExceededException'),
    kind: 'full',
    transient: false,
    next: 'make room there, or keep fewer copies',
  },
  { when: (f) => f.status === 507, kind: 'full', transient: false, next: 'make room there, or keep fewer copies' },
  {
    when: code('AuthorizationHeaderMalformed', 'PermanentRedirect', 'TemporaryRedirect', 'IllegalLocationConstraintException'),
    kind: 'other',
    transient: false,
    next: 'the bucket is in another region: say which, with ?region= in the setting upload',
  },
  { when: (f) => f.status === 301 || f.status === 307, kind: 'other', transient: false, next: 'the bucket is in another region: say which, with ?region=' },
  { when: code('NoSuchBucket'), kind: 'missing', transient: false, next: 'make the bucket, or correct the setting upload' },
  {
    when: code('InvalidObjectState'),
    kind: 'denied',
    transient: false,
    next: 'it lies in an archive class: restore it there first, or use another storage-class',
  },
  {
    when: code('BadDigest', 'XAmzContentSHA256Mismatch', 'XAmzContentChecksumMismatch', 'InvalidDigest', 'IncompleteBody'),
    kind: 'wrong-bytes',
    transient: true,
    next: 'the bytes changed on their way: try again',
  },
  {
    when: code('InvalidStorageClass'),
    kind: 'other',
    transient: false,
    next: 'this server has no such storage class: correct ?storage-class= in the setting upload',
  },
  { when: (f) => f.status === 401 || f.status === 403, kind: 'denied', transient: false, next: 'check the key and its rights to this bucket and prefix' },
  { when: (f) => f.status === 404, kind: 'missing', transient: false, next: 'look what is there with list' },
  {
    when: (f) => f.status === 429 || f.code === 'SlowDown' || f.code === 'RequestTimeout',
    kind: 'other',
    transient: true,
    next: 'the server is busy: try again later',
  },
  { when: (f) => f.status !== null && f.status >= 500, kind: 'other', transient: true, next: 'the server has a fault: try again later' },
];

/**
 * In words: what failed on what, what the server or the network said, and what to do next.
 *
 * @param doing `storing "app.db"`
 * @param host whom we spoke to
 */
export function troubleOf(error: unknown, shown: string, doing: string, host: string): Trouble {
  if (error instanceof DestinationError) return inWords(error);
  const facts = factsOf(error);
  const found = CASES.find((c) => c.when(facts));
  const said = [facts.status === null ? null : `status ${facts.status}`, facts.code === '' ? null : facts.code].filter(Boolean).join(' ');
  const what = `${shown}: ${doing} failed (${said === '' ? 'no reason was given' : said}, ${host})`;
  return { kind: found?.kind ?? 'other', message: found ? `${what}: ${found.next}` : what, transient: found?.transient ?? false };
}
