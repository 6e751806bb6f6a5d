/**
 * The copies in a backup directory, read from the directory itself. A copy is a data file `NAME-STAMP[-N].db`, with `.gz`
 * or `.zst` and `.age` where it is packed, and a manifest of the same base name; age comes from the name, never from mtime (traps, 34). A directory may be hostile:
 * manifests are opened without following links or waiting, are bounded, and count only when they name their sibling.
 */
import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import type { Content } from './artifacts.js';
import { lookFailure } from './look-failure.js';
import { errnoOf, errnoWords, Failed } from './outcome.js';
import { isPlain, packedAs } from './packing.js';
import type { Check, Copy, CopyStatus, FilesArtifact, Manifest, PathProof, Sealed } from './records.js';
import { isName, printableJson } from './settings/values.js';
import { listing, lstatOrNull, readSmall } from './system/files.js';

/** Bytes; a larger manifest is not read. */
export const MANIFEST_MAX = 16_000_000;
const COPY_FILE = /^(?<name>.+)-(?<stamp>\d{8}T\d{6}Z)(?:-(?<sequence>[1-9]\d{0,5}))?\.(?<extension>json|(?:db|files\.tar)(?:\.gz|\.zst)?(?:\.age)?)$/u;

/** What a file name in the backup directory says. `createdAt`: milliseconds since the epoch. */
export interface CopyFile {
  readonly file: string;
  readonly base: string;
  readonly name: string;
  readonly stamp: string;
  readonly createdAt: number;
  readonly sequence: number;
  /** `files`: the archive of what lies beside the database. */
  readonly kind: 'data' | 'manifest' | 'files';
}

/** `20261121T031700Z`. */
export const stampOf = (at: Date): string =>
  at
    .toISOString()
    .replace(/[-:]/g, '')
    .replace(/\.\d+Z$/, 'Z');

/** RFC 3339, UTC, to the second. */
export const rfc3339 = (at: number): string => new Date(at).toISOString().replace(/\.\d+Z$/, 'Z');

/** In every month. */
const DAYS_IN_ALL = 28;

/** NaN for a day or a time that there is not: Date.UTC would go on counting in the next month. Asked of each of ten thousand names. */
function timeOf(stamp: string): number {
  const part = (start: number, end: number): number => Number(stamp.slice(start, end));
  const [year, month, day, hour, minute, second] = [part(0, 4), part(4, 6), part(6, 8), part(9, 11), part(11, 13), part(13, 15)];
  if (month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59) return Number.NaN;
  const at = Date.UTC(year, month - 1, day, hour, minute, second);
  return (day <= DAYS_IN_ALL || new Date(at).getUTCDate() === day) && year > 99 ? at : Number.NaN;
}

/** Parses a file name; null when it is not one of ours. */
export function parseCopyFile(file: string): CopyFile | null {
  const g = COPY_FILE.exec(file)?.groups;
  const name = g?.['name'];
  const stamp = g?.['stamp'];
  if (name === undefined || stamp === undefined || !isName(name)) return null;
  const createdAt = timeOf(stamp);
  if (Number.isNaN(createdAt)) return null;
  const extension = g?.['extension'] ?? '';
  const kind = extension === 'json' ? 'manifest' : extension.startsWith('db') ? 'data' : 'files';
  const base = file.slice(0, -(extension.length + 1));
  return { file, base, name, stamp, createdAt, sequence: Number(g?.['sequence'] ?? 1), kind };
}

/** The base name of a copy's files, from any of them. */
export const baseOf = (file: string): string => parseCopyFile(file)?.base ?? file;

/**
 * The base name of a copy made at `at`: `NAME-STAMP`, or with the next number when files of that second are `present`. Always
 * a number above all that are there: a gap left by pruning would make a new copy look older than it is.
 */
export function freeBase(name: string, at: Date, present: readonly string[]): string {
  const first = `${name}-${stampOf(at)}`;
  const taken = new Set<number>();
  for (const file of present) {
    if (!file.startsWith(first)) continue;
    const sequence = /^(?:-([1-9]\d{0,5}))?\./.exec(file.slice(first.length));
    if (sequence) taken.add(Number(sequence[1] ?? 1));
  }
  if (taken.size === 0) return first;
  let next = [...taken].reduce((a, b) => Math.max(a, b)) + 1;
  // Nobody makes so many in a second: somebody wants that no name is left.
  if (next > 999_999) for (next = 2; taken.has(next); ) next++;
  return `${first}-${next}`;
}

/** Whether one of our files there is of this name; stops at the first. */
export const hasFilesOf = (directory: string, name: string): boolean =>
  listing(directory).some((file) => file.startsWith(`${name}-`) && parseCopyFile(file)?.name === name);

/** Everything in the directory that is named like one of our files, newest first. An absent directory is empty. `wanted`: others need not be looked at. */
export function scan(directory: string, wanted: (file: string) => boolean = () => true): readonly CopyFile[] {
  const found = listing(directory)
    .filter(wanted)
    .map(parseCopyFile)
    .filter((f) => f !== null);
  return found.sort((a, b) => b.createdAt - a.createdAt || b.sequence - a.sequence || (a.base < b.base ? -1 : a.base > b.base ? 1 : 0));
}

const isText = (v: unknown): v is string => typeof v === 'string';
const isCount = (v: unknown): v is number => typeof v === 'number' && Number.isSafeInteger(v) && v >= 0;
const isTextOrNull = (v: unknown): v is string | null => v === null || isText(v);
const STATUSES: readonly unknown[] = ['good', 'suspect', 'bad'];
const METHODS: readonly unknown[] = ['vacuum-into', 'page-copy'];

function isCheck(v: unknown): boolean {
  if (typeof v !== 'object' || v === null) return false;
  const c: Partial<Record<keyof Check, unknown>> = v;
  return isText(c.name) && typeof c.ok === 'boolean' && isText(c.message);
}

const isRows = (v: unknown): boolean => typeof v === 'object' && v !== null && !Array.isArray(v) && Object.values(v).every(isCount);

const isSum = (v: unknown): v is string => isText(v) && /^[0-9a-f]{64}$/.test(v);

const DATA_EXTENSION = /^\.db(?:\.gz|\.zst)?(?:\.age)?$/;

/** @param base one that was parsed */
const isData = (v: unknown, base: string): v is string => isText(v) && v.startsWith(base) && DATA_EXTENSION.test(v.slice(base.length));

function isFiles(v: unknown, base: string): boolean {
  if (typeof v !== 'object' || v === null) return false;
  const f: Partial<Record<keyof FilesArtifact, unknown>> = v;
  const parsed = isText(f.file) ? parseCopyFile(f.file) : null;
  return (
    parsed?.kind === 'files' &&
    parsed.base === base &&
    [f.sizeBytes, f.plainSizeBytes, f.count, f.fileBytes, f.changed, f.vanished, f.unreadable, f.skipped].every(isCount) &&
    isSum(f.sha256) &&
    (f.plainSha256 === null || isSum(f.plainSha256))
  );
}

function isProof(v: unknown): boolean {
  if (typeof v !== 'object' || v === null) return false;
  const p: Partial<Record<keyof PathProof, unknown>> = v;
  return isText(p.salt) && isSum(p.configured) && isSum(p.real);
}

const proofOf = (salt: string, path: string): string => createHash('sha256').update(`${salt}\0${path}`).digest('hex');

/** A proof of two paths that does not tell them; `salt`: random, hex. Whoever guesses a path can see that it is right. */
const pathProof = (salt: string, configuredPath: string, realPath: string): PathProof => ({
  salt,
  configured: proofOf(salt, configuredPath),
  real: proofOf(salt, realPath),
});

/** Whether a copy was made of the database at this path. A symbolic link may be re-pointed, a mount may move: one of the two is enough. */
export function isCopyOf(m: Manifest, path: string, realPath: string): boolean {
  if (m.configuredPath === path || m.realPath === realPath) return true;
  const proof = m.pathProof;
  return !!proof && (proof.configured === proofOf(proof.salt, path) || proof.real === proofOf(proof.salt, realPath));
}

/** A manifest as an encrypted copy has it: what tells of the content stands in `sealed` alone. Messages of checks may name tables. */
export function withoutSecrets(m: Omit<Manifest, 'selfSha256'>, sealed: string, salt: string): Omit<Manifest, 'selfSha256'> {
  return {
    ...m,
    sealed,
    source: null,
    configuredPath: null,
    realPath: null,
    schemaHash: null,
    rows: {},
    plainSha256: null,
    files: m.files && { ...m.files, plainSha256: null },
    checks: m.checks.map((c) => ({ ...c, message: c.message === 'ok' ? 'ok' : 'sealed' })),
    pathProof: pathProof(salt, m.configuredPath ?? '', m.realPath ?? ''),
  };
}

/** A manifest with what was sealed. Throws where the text is not what was sealed. */
export function withSecrets(m: Manifest, opened: string): Manifest {
  const secret: unknown = JSON.parse(opened);
  if (typeof secret !== 'object' || secret === null) throw new Error('what is sealed is no part of a manifest');
  const s: Partial<Record<keyof Sealed, unknown>> = secret;
  const { source, configuredPath, realPath, schemaHash, rows, plainSha256, filesPlainSha256, checks } = s;
  const files = m.files && isSum(filesPlainSha256) ? { ...m.files, plainSha256: filesPlainSha256 } : m.files;
  const areChecks = (v: unknown): v is Check[] => Array.isArray(v) && v.every(isCheck);
  const areRows = (v: unknown): v is Record<string, number> => isRows(v);
  if (
    !isTextOrNull(source) ||
    !isText(configuredPath) ||
    !isText(realPath) ||
    !isText(schemaHash) ||
    !isSum(plainSha256) ||
    !areRows(rows) ||
    !areChecks(checks)
  )
    throw new Error('what is sealed is no part of a manifest');
  // What verify has added since is in the open part alone.
  const since = m.checks.filter((c) => !checks.some((inner) => inner.name === c.name));
  return { ...m, source, configuredPath, realPath, schemaHash, rows, plainSha256, files, checks: [...checks, ...since] };
}

/** No manifest of ours comes near it. One without end could be read, but not be written back: JSON.stringify calls itself. */
const DEEPEST = 16;
const isShallow = (v: unknown, levels = DEEPEST): boolean => {
  if (typeof v !== 'object' || v === null) return true;
  return levels > 0 && Object.values(v).every((inner) => typeof inner !== 'object' || isShallow(inner, levels - 1));
};

function isManifest(v: unknown, base: string, name: string, createdAt: number): v is Manifest {
  if (typeof v !== 'object' || v === null || !isShallow(v)) return false;
  const m: Partial<Record<keyof Manifest, unknown>> = v;
  return (
    isCount(m.schemaVersion) &&
    isData(m.file, base) &&
    m.manifest === `${base}.json` &&
    m.name === name &&
    isText(m.createdAt) &&
    Date.parse(m.createdAt) === createdAt &&
    isCount(m.sizeBytes) &&
    isSum(m.sha256) &&
    STATUSES.includes(m.status) &&
    METHODS.includes(m.method) &&
    packedAs(m.file).encrypted === isText(m.sealed) &&
    isTextOrNull(m.verifiedAt) &&
    isTextOrNull(m.source) &&
    Array.isArray(m.tags) &&
    m.tags.every(isText) &&
    isText(m.runId) &&
    (isText(m.sealed) ? isProof(m.pathProof) : isText(m.configuredPath) && isText(m.realPath)) &&
    isTextOrNull(m.configuredPath) &&
    isTextOrNull(m.realPath) &&
    (m.checks === undefined || (Array.isArray(m.checks) && m.checks.every(isCheck))) &&
    (m.rows === undefined || isRows(m.rows)) &&
    (m.files === undefined || m.files === null || isFiles(m.files, base))
  );
}

/** A manifest from raw bytes, or null when they are not a manifest of the copy `base`. `named`: what its name says, where that is known. */
export function parseManifest(
  bytes: Buffer,
  base: string,
  named: Pick<CopyFile, 'name' | 'createdAt'> | null = parseCopyFile(`${base}.json`),
): Manifest | null {
  if (!named) return null;
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch {
    return null;
  }
  return isManifest(value, base, named.name, named.createdAt) ? value : null;
}

/**
 * The manifest beside a copy, or why there is none. One that belongs neither to root nor to the directory's owner is
 * not believed: in a sticky directory anybody could have put it there.
 */
export function readManifest(directory: string, base: string, owner = ownerOf(directory), named?: CopyFile): Manifest | { readonly unreadable: string } {
  const read = readManifestText(directory, base, owner, named);
  return 'unreadable' in read ? read : read.manifest;
}

/** As `readManifest`, and whether its text is the one that was written: for proofs, not for listings, which read thousands. */
export function readManifestText(
  directory: string,
  base: string,
  owner = ownerOf(directory),
  named?: CopyFile,
): { readonly manifest: Manifest; readonly whole: () => boolean } | { readonly unreadable: string } {
  try {
    const { bytes, stats } = readSmall(join(directory, `${base}.json`), MANIFEST_MAX);
    if (stats.uid !== 0 && stats.uid !== owner) return { unreadable: `the manifest belongs to uid ${stats.uid}` };
    const manifest = parseManifest(bytes, base, named);
    return manifest ? { manifest, whole: () => isWhole(bytes) } : { unreadable: 'the manifest is not one of this copy' };
  } catch (error) {
    // The owner's, and we are another: then nothing can be said of any copy here, and least of all that it has no manifest.
    if (errnoOf(error) === 'EACCES' && owner !== process.geteuid?.() && lstatOrNull(join(directory, `${base}.json`))?.uid === owner) {
      throw new Failed(lookFailure(directory, error), { cause: error });
    }
    return { unreadable: errnoOf(error) === 'ENOENT' ? 'there is no manifest' : `the manifest cannot be read: ${errnoWords(error)}` };
  }
}

const NO_SUM = '0'.repeat(64);
const selfSum = (sum: string): string => ` "selfSha256": "${sum}"\n}\n`;

/**
 * A manifest as text, with a SHA-256 of that text in its last line (over the text with zeros there): so that a changed
 * byte in it is seen, wherever. `broken`: zeros stay, for one whose own text did not prove out.
 */
export function renderManifest(manifest: Omit<Manifest, 'selfSha256'>, sum: 'whole' | 'broken' = 'whole'): string {
  const text = `${printableJson(JSON.stringify({ ...manifest, selfSha256: NO_SUM }, null, 1))}\n`;
  return sum === 'broken' ? text : text.slice(0, -selfSum(NO_SUM).length) + selfSum(createHash('sha256').update(text).digest('hex'));
}

/** Whether the text of a manifest is the one that was written. */
export function isWhole(bytes: Buffer): boolean {
  const at = bytes.length - Buffer.byteLength(selfSum(NO_SUM));
  const sum = /^ "selfSha256": "([0-9a-f]{64})"\n}\n$/.exec(bytes.subarray(Math.max(0, at)).toString('latin1'))?.[1];
  if (sum === undefined || sum === NO_SUM) return false;
  return createHash('sha256').update(bytes.subarray(0, at)).update(selfSum(NO_SUM)).digest('hex') === sum;
}

/** Bytes: 4294967294 pages of 65536 (sqlite.org/limits.html). */
const LARGEST_DATABASE = 4_294_967_294 * 65_536;

/** Why a packed copy cannot unpack to what its manifest says, or null: nobody may look for so much room, or make it. */
export function sizesProblem({ file, plainSizeBytes, pageSize, pageCount }: Manifest): string | null {
  if (isPlain(packedAs(file))) return null;
  if (!isCount(plainSizeBytes) || plainSizeBytes > LARGEST_DATABASE)
    return `its manifest says that it unpacks to ${String(plainSizeBytes)} bytes, which no database has`;
  if (plainSizeBytes === pageSize * pageCount) return null;
  return `its manifest says that it unpacks to ${plainSizeBytes} bytes, and to ${pageCount} pages of ${pageSize}`;
}

/** Of a manifest with nothing sealed in it; null: it does not know the hash. Where its rows were too many to list, it is never known again. */
export function contentOf(manifest: Manifest): Content | null {
  const { plainSha256, pageSize, pageCount, userVersion, applicationId, schemaHash, rows } = manifest;
  if (plainSha256 === null) return null;
  const tables = Object.entries(rows ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  const claims = JSON.stringify([pageSize, pageCount, userVersion, applicationId, schemaHash, tables]);
  return { sha256: plainSha256, claims: createHash('sha256').update(claims).digest('hex') };
}

/** What a copy takes with the archive of its files, bytes. */
export const wholeSize = ({ sizeBytes, files }: Pick<Manifest, 'sizeBytes' | 'files'>): number => sizeBytes + (files?.sizeBytes ?? 0);

/** The Copy part of a manifest: what listings show. */
export const copyOf = (m: Manifest, status: CopyStatus): Copy => ({
  file: m.file,
  manifest: m.manifest,
  name: m.name,
  createdAt: m.createdAt,
  sizeBytes: m.sizeBytes,
  sha256: m.sha256,
  status,
  verifiedAt: m.verifiedAt,
  method: m.method,
  source: m.source,
  tags: m.tags,
});

const ownerOf = (directory: string): number => statSync(directory).uid;

/**
 * One copy as listings judge it: good when its manifest says so, the data is there and the size agrees. Null: no data, or
 * data of a third user, who could otherwise stop all pruning with one file dated ahead.
 */
export function readCopy(directory: string, data: CopyFile, owner = ownerOf(directory)): Copy | null {
  const stats = lstatOrNull(join(directory, data.file));
  if (!stats?.isFile() || (stats.uid !== 0 && stats.uid !== owner)) return null;
  const manifest = readManifest(directory, data.base, owner, data);
  if ('unreadable' in manifest || manifest.file !== data.file) return unverifiedCopy(data, stats.size);
  // An archive of files that is lost must not take the database with it: `verify` says what is missing.
  return copyOf(manifest, stats.size === manifest.sizeBytes ? manifest.status : 'bad');
}

/** The copy that a run has published, or null; among the newest, since it is asked for soon after. */
export function copyOfRun(directory: string, name: string, runId: string): Copy | null {
  const made = scan(directory).filter((e) => e.kind === 'manifest' && e.name === name);
  for (const { base } of made.slice(0, 10)) {
    const manifest = readManifest(directory, base);
    if (!('unreadable' in manifest) && manifest.runId === runId) return copyOf(manifest, manifest.status);
  }
  return null;
}

/** A copy of which its name is all that is known, and a size in bytes. */
export const unverifiedCopy = ({ file, name, createdAt }: CopyFile, sizeBytes: number): Copy => ({
  file,
  manifest: null,
  name,
  createdAt: rfc3339(createdAt),
  sizeBytes,
  sha256: null,
  status: 'unverified',
  verifiedAt: null,
  method: null,
  source: null,
  tags: [],
});

/** All copies, newest first; of one name, or of all. */
export function readCopies(directory: string, name: string | null): Copy[] {
  const copies: Copy[] = [];
  const isWanted = (file: string): boolean => !file.endsWith('.json') && (name === null || file.startsWith(`${name}-`));
  const entries = scan(directory, isWanted).filter((e) => e.kind === 'data' && (name === null || e.name === name));
  if (entries.length === 0) return copies;
  const owner = ownerOf(directory);
  for (const entry of entries) {
    const copy = readCopy(directory, entry, owner);
    if (copy) copies.push(copy);
  }
  return copies;
}

/** The archives of included files, by the base name of their copy: those that its manifest names, and no other file of such a name. */
export function archivesIn(directory: string, name: string): ReadonlyMap<string, string> {
  const owner = ownerOf(directory);
  const found = new Map<string, string>();
  for (const { file, base } of scan(directory).filter((f) => f.kind === 'files' && f.name === name)) {
    const manifest = readManifest(directory, base, owner);
    if (!('unreadable' in manifest) && manifest.files?.file === file) found.set(base, file);
  }
  return found;
}

/** The names that have copies in a directory, in alphabetical order. */
export const namesIn = (directory: string): string[] =>
  [
    ...new Set(
      scan(directory)
        .filter((f) => f.kind === 'data')
        .map((f) => f.name),
    ),
  ].sort();

/** Ahead of the clock by more than this is a wrong clock, not a fresh copy (DESIGN, "Retention"). */
const CLOCK_TOLERANCE_MS = 3_600_000;

/** A copy that `latest`, `status` and the keep rules may see. */
export const isPlainGood = (copy: Copy): boolean => copy.status === 'good' && copy.tags.length === 0;

/** More than an hour ahead of the clock; both milliseconds since the epoch. */
export const isFuture = (at: number, now: number): boolean => at > now + CLOCK_TOLERANCE_MS;

/** Dated more than an hour ahead of the clock. */
export const isAhead = (copy: Copy, now: number): boolean => isFuture(Date.parse(copy.createdAt), now);

/** The newest good, untagged copy that is not dated ahead of the clock; reads manifests from the newest on until one is good. */
export function newestGood(directory: string, name: string, now: number): Copy | null {
  for (const entry of scan(directory)) {
    if (entry.kind !== 'data' || entry.name !== name) continue;
    const copy = readCopy(directory, entry);
    if (copy && isPlainGood(copy) && !isAhead(copy, now)) return copy;
  }
  return null;
}

/** The newest manifest of a name whatever its verdict: whose copies these are. Tagged ones may be of what a restore replaced. */
export function newestManifest(directory: string, name: string): Manifest | null {
  for (const entry of scan(directory)) {
    if (entry.kind !== 'manifest' || entry.name !== name) continue;
    const manifest = readManifest(directory, entry.base);
    if (!('unreadable' in manifest) && manifest.tags.length === 0) return manifest;
  }
  return null;
}
