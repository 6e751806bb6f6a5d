/**
 * What one stage hands to the next. Each stage takes exactly what the one before produced, so a wrong order does not
 * compile; stages import these types and never one another.
 */
import type { Failure } from './outcome.js';
import type { Packed } from './packing.js';
import type { Check, Copy, FilesArtifact, Manifest, Method, RunRecord, SourceFacts, Violations } from './records.js';
import type { Findings, Properties } from './system/worker-protocol.js';

/** How long to wait for other holders of the source (DESIGN, "Exit codes"). */
export const SOURCE_BUSY_MS = 5000;
/** From this size on a second SQLite child pays for its start. */
export const TWO_CHILDREN_BYTES = 16_000_000;

/** The live database as it looks from outside. Sizes in bytes. */
/** The number in the header (file format, 1.3.13). */
export type TextEncoding = 'UTF-8' | 'UTF-16le' | 'UTF-16be';

/** Of the header of a database (file format, 1.3). */
export const HEADER_BYTES = 100;

/** @param header a database's header. Null: it has no tables yet, or they are in the `-wal` alone. */
export const textEncoding = (header: Buffer): TextEncoding | null => ([null, 'UTF-8', 'UTF-16le', 'UTF-16be'] as const)[header.readUInt32BE(56)] ?? null;

export interface SourceState extends SourceFacts {
  readonly realPath: string;
  readonly dev: number;
  readonly ino: number;
  /** Names of the file: one, or two where a killed restore left one. */
  readonly links: number;
  readonly ownerUid: number;
  readonly owner: string;
  readonly encoding: TextEncoding | null;
  /** Pages in use: what a snapshot needs room for. */
  readonly usedBytes: number;
  /** Name of the network file system it lies on, or null. */
  readonly network: string | null;
  /** What the file is shorter than its header says, as far as that shows from outside: 0 also where it cannot be told. */
  readonly missingBytes: number;
  /** A crash left a rollback journal, as far as that shows from outside. */
  readonly hotJournal: boolean;
}

export interface TargetState {
  readonly path: string;
  readonly exists: boolean;
  readonly freeBytes: number | null;
  readonly network: string | null;
}

/** Everything the plan decides on. A part that could not be learnt is the failure that says why. */
export interface Facts {
  readonly source: SourceState | Failure;
  readonly target: TargetState | Failure;
  /** Copies of this name, newest first; all of them only where that was asked for. */
  readonly copies: readonly Copy[];
  readonly newestGood: Copy | null;
  readonly newestManifest: Manifest | null;
  /** What each included path takes in the archive of a copy, in the order of the setting; empty: no files go with it. */
  readonly included: readonly number[];
}

export const isFailure = <T extends object>(v: T | Failure): v is Failure => 'code' in v;

/** A finished, unproven snapshot. Only `verify` can make something publishable of it. */
export interface Snapshot {
  readonly path: string;
  readonly source: SourceState;
  readonly takenAt: Date;
  readonly method: Method;
  /** Why pages were copied instead of VACUUM INTO; null when they were not. */
  readonly why: string | null;
  /** SHA-256 of the source's schema, read before and after the copy. */
  readonly schemaBefore: string;
  readonly schemaAfter: string;
  readonly properties: Properties;
  readonly journalMode: string;
  readonly sqlite: string;
  readonly sourceFindings: Findings;
  readonly walGrewBytes: number;
}

declare const proof: unique symbol;

/** A snapshot that passed. `verify` alone makes one: the symbol is not exported, so nobody else can write it down. */
export type VerifiedSnapshot = CheckedSnapshot & { readonly [proof]: true };

/** What the checks found. */
export interface CheckedSnapshot {
  readonly snapshot: Snapshot;
  /** `suspect`: the copy passes, but the source is structurally damaged. */
  readonly verdict: 'good' | 'suspect';
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly pageCount: number;
  readonly properties: Properties;
  readonly schemaHash: string;
  readonly rows: Readonly<Record<string, number>>;
  readonly checks: readonly Check[];
  readonly violations: Violations;
}

/** What is published of a snapshot: its own file, or what packing made of it. Sizes in bytes. */
export interface Artifact {
  readonly verified: VerifiedSnapshot;
  /** The private file that takes the copy's name. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly packed: Packed;
  /** What of the manifest is for the recipients alone; null: not encrypted. */
  readonly sealed: string | null;
  /** The archive of included files; null: none are. */
  readonly files: FilesPart | null;
  /** INCLUDE_FAILED, where included paths could not be read: told once the copy is there. */
  readonly unread: Failure | null;
}

/** The archive of included files, as it is published. */
export interface FilesPart {
  readonly path: string;
  readonly facts: Omit<FilesArtifact, 'file'>;
}

/** What a full proof of a copy is about. */
export interface Content {
  /** SHA-256 of the plain database file, hex. */
  readonly sha256: string;
  /** SHA-256, hex, of everything that a manifest says of that file and a proof compares with it. */
  readonly claims: string;
}

/** Remembers which copies arrived where, and which content was proven. */
export interface Ledger {
  /** Since when a name has this destination; from `now` on, if it is new. */
  destinationSince(destination: string, name: string, now: Date): Date;
  hasUploaded(destination: string, file: string): boolean;
  /** The files of a name, or of all, that were proven to have arrived and were not removed there by us. */
  uploadedFiles(destination: string, name: string | null): string[];
  /** Records of a name that are not dry, newest first; `here`: of runs that worked in this backup directory. */
  since(name: string | null, where?: 'anywhere' | 'here'): IterableIterator<RunRecord>;
  /** Whether a run is on record. */
  knows(runId: string): boolean;
  /** When the oldest record of a name began, milliseconds; null: there is none. */
  beganAt(name: string): number | null;
  /** When `verify` last proved a stored copy of a name in full, milliseconds; null: never. Not by a clock that was ahead of `now`. */
  provenAt(name: string, now: number): number | null;
  /** When this content was last proven in full by the same version of ours and this build of SQLite, RFC 3339; null: not known to be. */
  contentProvenAt(content: Content, by: string): string | null;
  noteProven(content: Content, by: string, at: Date): void;
  forgetProven(sha256: string): void;
  noteUploaded(destination: string, file: string, at: Date): void;
  /** A copy that had arrived is removed there by us. */
  noteRemoved(destination: string, file: string, at: Date): void;
}

/** A copy at its final name, whole and synced. `manifest`: with what is sealed in the published one. */
export interface Publication {
  readonly copy: Copy;
  readonly manifest: Manifest;
}
