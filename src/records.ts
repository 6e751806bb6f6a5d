/** The shapes of what dbbackup prints with --json and stores: README's JSON reference. Fields are only ever added. */
import type { ExitCode, StageName, Warning } from './outcome.js';
import type { Compression } from './packing.js';

export const SCHEMA_VERSION = 1;

export type CommandName = 'run' | 'list' | 'verify' | 'restore' | 'guard' | 'status' | 'history' | 'check' | 'prune' | 'schedule';
export type CopyStatus = 'good' | 'suspect' | 'bad' | 'unverified';
export type Method = 'vacuum-into' | 'page-copy';
export type RunStatus = 'running' | 'ok' | 'failed' | 'incomplete' | 'interrupted' | 'rolled_back' | 'skipped';

/** One finished backup. `file` and `manifest` are bare names below the backup directory; sizes are bytes. */
export interface Copy {
  readonly file: string;
  readonly manifest: string | null;
  readonly name: string;
  /** RFC 3339, UTC, to the second: always what the file name says. */
  readonly createdAt: string;
  readonly sizeBytes: number;
  readonly sha256: string | null;
  readonly status: CopyStatus;
  readonly verifiedAt: string | null;
  readonly method: Method | null;
  /** Absolute path of the database as it was configured. */
  readonly source: string | null;
  readonly tags: readonly string[];
}

export interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly message: string;
}

/** Rows that break a rule of their own schema: so in the source, and copied faithfully. */
export interface Violations {
  readonly check: number;
  readonly notNull: number;
  readonly foreignKey: number;
}

/** The JSON file beside a data file. */
export interface Manifest extends Copy {
  readonly schemaVersion: number;
  readonly runId: string;
  readonly tool: string;
  readonly sqlite: string;
  /** Null where it stands in `sealed`. */
  readonly configuredPath: string | null;
  readonly realPath: string | null;
  readonly journalMode: string;
  readonly pageSize: number;
  readonly pageCount: number;
  readonly userVersion: number;
  readonly applicationId: number;
  readonly schemaHash: string | null;
  readonly rows: Readonly<Record<string, number>>;
  readonly plainSizeBytes: number;
  readonly plainSha256: string | null;
  readonly compress: Compression;
  readonly encrypted: boolean;
  /** Of an encrypted copy: what tells of its content (`Sealed`), sealed with age for the same recipients, base64. */
  readonly sealed: string | null;
  /** Of an encrypted copy: whether a path is that of its source can be asked, the path cannot be read. */
  readonly pathProof: PathProof | null;
  /** Null: nothing was included. */
  readonly files: FilesArtifact | null;
  readonly checks: readonly Check[];
  readonly violations: Violations;
  /** Milliseconds from the start of the run until this manifest was written. */
  readonly durationMs: number;
  /** SHA-256 of this file's own text, with zeros here. Shows accident, not malice. */
  readonly selfSha256: string;
}

/** The archive of what lies beside the database: one more file of the same copy. Sizes in bytes. */
export interface FilesArtifact {
  readonly file: string;
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly plainSizeBytes: number;
  /** Null where it stands in `sealed`. */
  readonly plainSha256: string | null;
  /** Regular files, and the bytes in them. */
  readonly count: number;
  readonly fileBytes: number;
  /** How many of them were cut, padded or written to while they were read, were gone by then, could not be read, are of no kind that is kept. */
  readonly changed: number;
  readonly vanished: number;
  readonly unreadable: number;
  readonly skipped: number;
}

/** What became of one destination. `shown`: without credentials. */
export interface UploadResult {
  readonly destination: string;
  readonly status: 'ok' | 'failed';
  /** What arrived, and how that was proven. */
  readonly uploaded: readonly { readonly file: string; readonly proved: 'server-checksum' | 'read-back' }[];
  /** Copies that it still lacks. */
  readonly missing: readonly string[];
  readonly pruned: readonly Pruned[];
  readonly error: { readonly code: string; readonly message: string } | null;
}

/** SHA-256 (hex) of the salt, a NUL and the path. */
export interface PathProof {
  readonly salt: string;
  readonly configured: string;
  readonly real: string;
}

/** The fields of a manifest that an encrypted copy has in `sealed` alone. */
export interface Sealed {
  readonly source: string | null;
  readonly configuredPath: string | null;
  readonly realPath: string | null;
  readonly schemaHash: string | null;
  readonly rows: Readonly<Record<string, number>>;
  readonly plainSha256: string | null;
  readonly filesPlainSha256: string | null;
  readonly checks: readonly Check[];
}

export interface SourceFacts {
  readonly path: string;
  readonly sizeBytes: number;
  readonly walBytes: number;
  readonly journalMode: string;
  readonly pageSize: number;
}

export interface StageRecord {
  readonly name: StageName;
  readonly status: 'ok' | 'failed' | 'skipped';
  readonly durationMs: number;
}

export interface ErrorRecord {
  readonly code: string;
  readonly stage: StageName | null;
  readonly message: string;
  readonly hint: string;
}

/**
 * Why a copy stays: `policy` asks for it; `hold`: pruning waits, which says nothing of the copy; `person`: it is for a person to look at,
 * and to remove; `failure`: it was to be removed.
 */
export type KeptBy = 'policy' | 'hold' | 'person' | 'failure';

export interface Kept {
  readonly file: string;
  readonly reasons: readonly string[];
  /** Records of older versions have none. */
  readonly by?: KeptBy;
}

export interface Pruned {
  readonly file: string;
  readonly reason: string;
}

/** One execution of an acting command. Times RFC 3339 UTC, durations milliseconds, sizes bytes. */
export interface RunRecord {
  readonly schemaVersion: number;
  readonly command: CommandName;
  readonly runId: string;
  readonly name: string | null;
  readonly profile: string | null;
  readonly status: RunStatus;
  readonly dryRun: boolean;
  readonly startedAt: string;
  readonly finishedAt: string | null;
  readonly durationMs: number | null;
  readonly exitCode: ExitCode | null;
  readonly attempts: number;
  readonly source: SourceFacts | null;
  readonly copy: Copy | null;
  readonly stages: readonly StageRecord[];
  readonly kept: readonly Kept[];
  readonly pruned: readonly Pruned[];
  readonly warnings: readonly Warning[];
  readonly error: ErrorRecord | null;
  readonly resources: { readonly cpuMs: number; readonly peakAnonBytes: number };
  /** Dry runs only: what a run would do. */
  readonly plan?: { readonly file: string; readonly neededBytes: number; readonly freeBytes: number | null };
  /** Of the backup directory's file system, when the copy was made. Bytes. */
  readonly freeBytes?: number | null;
  /** Runs with destinations only. */
  readonly uploads?: readonly UploadResult[];
  /** `verify` only. */
  readonly results?: readonly VerifyResult[];
  /** `restore` only: what was put where; in a dry run, what would be. */
  readonly restored?: Restored | null;
  /** `guard` only. `guarded`: the database itself, where the path that was named leads over a symbolic link. */
  readonly guarded?: string;
  readonly backupPoint?: string | null;
  readonly child?: ChildResult | null;
  readonly checks?: readonly Check[];
  readonly tables?: readonly TableRows[];
  readonly rolledBack?: boolean;
  /** Absolute path of the failed state of a guarded database. */
  readonly setAside?: string | null;
}

const isText = (v: unknown): boolean => typeof v === 'string';
const isNumber = (v: unknown): boolean => typeof v === 'number' && Number.isFinite(v);
const orNull =
  (is: (v: unknown) => boolean) =>
  (v: unknown): boolean =>
    v === null || is(v);
const isMissingOr =
  (is: (v: unknown) => boolean) =>
  (v: unknown): boolean =>
    v === undefined || is(v);
const listOf =
  (is: (v: unknown) => boolean) =>
  (v: unknown): boolean =>
    Array.isArray(v) && v.every(is);
const shaped =
  (fields: Readonly<Record<string, (v: unknown) => boolean>>) =>
  (v: unknown): boolean =>
    typeof v === 'object' && v !== null && Object.entries(fields).every(([field, is]) => is((v as Record<string, unknown>)[field]));
const isTime = (v: unknown): boolean => typeof v === 'string' && !Number.isNaN(Date.parse(v));
const isKept = shaped({ file: isText, reasons: listOf(isText), by: isMissingOr(isText) });
const isPruned = shaped({ file: isText, reason: isText });

const RECORD = shaped({
  command: isText,
  runId: isText,
  name: orNull(isText),
  profile: orNull(isText),
  status: isText,
  dryRun: (v) => typeof v === 'boolean',
  startedAt: isTime,
  finishedAt: orNull(isTime),
  durationMs: orNull(isNumber),
  exitCode: orNull(isNumber),
  source: orNull(shaped({ path: isText, sizeBytes: isNumber, walBytes: isNumber, journalMode: isText })),
  copy: orNull(shaped({ file: isText, sizeBytes: isNumber, status: isText, createdAt: isTime, tags: listOf(isText) })),
  stages: listOf(shaped({ name: isText, status: isText, durationMs: isNumber })),
  kept: listOf(isKept),
  pruned: listOf(isPruned),
  warnings: listOf(shaped({ code: isText, severity: isText, message: isText })),
  error: orNull(shaped({ code: isText, stage: orNull(isText), message: isText, hint: isText })),
  resources: shaped({ cpuMs: isNumber, peakAnonBytes: isNumber }),
  uploads: isMissingOr(listOf(shaped({ destination: isText, status: isText, missing: listOf(isText), pruned: listOf(isPruned) }))),
  results: isMissingOr(listOf(shaped({ file: isText, status: isText, proved: isText, problems: listOf(isText) }))),
  restored: isMissingOr(orNull(shaped({ file: isText, target: isText, safetyCopy: orNull(isText), setAside: listOf(isText) }))),
  backupPoint: isMissingOr(orNull(isText)),
  guarded: isMissingOr(isText),
});

/** Whether a value from a file has the shape of a record, as far as anybody relies on it. */
export const isRunRecord = (value: unknown): value is RunRecord => RECORD(value);

/** A `run` that came to its end, destinations or not: it has made a copy, and has seen all that there was to warn of. */
export const isFinishedRun = (record: RunRecord): boolean =>
  // Without a copy it was a run that had nothing to do, and could not deliver an older message.
  record.command === 'run' && !record.dryRun && record.copy !== null && (record.status === 'ok' || record.status === 'incomplete');

/** What `verify` found of one copy. `proved`: `bytes` where only size and hash could be looked at. */
export interface VerifyResult {
  readonly file: string;
  readonly status: CopyStatus;
  readonly proved: 'full' | 'bytes';
  readonly problems: readonly string[];
}

/** `target`, `setAside`: absolute paths. `safetyCopy`: the file of the tagged copy of the replaced state. */
export interface Restored {
  readonly file: string;
  readonly target: string;
  readonly safetyCopy: string | null;
  readonly setAside: readonly string[];
  /** `--files-to`: where the included files went, and how many. */
  readonly files?: { readonly directory: string; readonly count: number };
}

/** How a guarded command ended. */
export interface ChildResult {
  readonly exitCode: number | null;
  readonly signal: string | null;
  readonly durationMs: number;
  readonly peakAnonBytes: number;
}

/** Rows of a table before and after a guarded command; null: the table was not there. */
export interface TableRows {
  readonly name: string;
  readonly rowsBefore: number | null;
  readonly rowsAfter: number | null;
}
