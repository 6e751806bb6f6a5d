/**
 * What the parent asks of a SQLite child and what it answers: one JSON document a line, requests on the child's
 * standard input, answers on its descriptor 3. A child works on one request at a time and blocks while it does
 * (traps, 20), so the parent keeps the clock, the signals and the progress.
 */
import type { Check, Method } from '../records.js';

/** Properties that a snapshot preserves (traps, 15). */
export interface Properties {
  readonly pageSize: number;
  readonly encoding: string;
  readonly autoVacuum: number;
  readonly userVersion: number;
  readonly applicationId: number;
}

/** What a check said, sorted: damage, rows that break a rule, and what could not be checked at all. */
export interface Findings {
  readonly structural: readonly string[];
  readonly notNull: number;
  readonly check: number;
  /** `table: reason` for what needs functions, collations or modules that only the application has. */
  readonly unchecked: readonly string[];
}

export type Request =
  /** Makes a snapshot of `source` in `target`, which must not exist. `busyMs`: how long to wait for other holders; `dev`, `ino`: the file it must be. */
  | { op: 'snapshot'; source: string; dev: number; ino: number; target: string; busyMs: number; mmap: boolean }
  /** Checks the live source, read-only. */
  | { op: 'check-source'; source: string; dev: number; ino: number; mode: 'quick' | 'full'; busyMs: number; mmap: boolean }
  /** Schema, properties, tables and their rows of a private file. */
  | { op: 'describe'; file: string; mmap: boolean; cellSizeCheck: boolean }
  /** The schema's own table and the accounting of pages of a private file; where these are not as VACUUM leaves them, or that is asked for, quick_check. */
  | { op: 'check-structure'; file: string; mmap: boolean; cellSizeCheck: boolean; how: 'accounting' | 'quick_check' }
  /**
   * integrity_check of one table and its indexes, read-write, so that CHECK constraints count (traps, 22). They may be counted
   * by themselves, as another part of the work (check-constraints.ts).
   */
  | { op: 'check-table'; file: string; table: string; part: 'whole' | 'without constraints' | 'constraints'; mmap: boolean; cellSizeCheck: boolean }
  /** integrity_check of everything without a limit of findings: only where a limit was reached, or a table cannot be asked for. */
  | { op: 'check-all'; file: string; mmap: boolean; cellSizeCheck: boolean }
  /** Rows of one table, or of all, whose foreign keys point nowhere. */
  | { op: 'check-foreign-keys'; file: string; table: string | null; mmap: boolean; cellSizeCheck: boolean }
  /** Closes the private file that the requests above leave open for the next of them. Any other request does so as well. */
  | { op: 'let-go' }

  /** Opens a database that nobody else may have open for writing, so that SQLite rolls back or checkpoints what is left, and removes -wal and -shm. */
  | { op: 'settle'; file: string; dev: number; ino: number; busyMs: number }
  /** Gives a private file the journal mode that its database had. */
  | { op: 'set-wal'; file: string }
  /** The other way round. */
  | { op: 'set-rollback'; file: string }
  /** What `guard` asks of a database: its checks, `queries` (SELECTs that must return nothing), and what is in it. Writes nothing. */
  | { op: 'check-live'; file: string; queries: readonly string[]; busyMs: number }
  /** All pages of `file` into the live database `target`, in one transaction: an answer means that it is committed. */
  /** `seen`: the state of the target that somebody still has (`outerState`), or null. */
  | { op: 'put-into'; file: string; target: string; dev: number; ino: number; busyMs: number; seen: string | null }
  /** A look at what is in the database after that, in one read transaction. */
  | { op: 'check-put'; target: string; dev: number; ino: number; busyMs: number };

export const NOTHING_FOUND: Findings = { structural: [], notNull: 0, check: 0, unchecked: [] };

/** How a finding begins that only the accounting of all pages tells. */
export const ACCOUNTING = 'accounting of pages: ';

export interface Answers {
  snapshot: {
    method: Method;
    /** When the source could be read, after all waiting for it: milliseconds since the epoch. */
    takenAt: number;
    /** Why not VACUUM INTO, for page copies. */
    why: string | null;
    /** SHA-256 of the schema: type, name, table and SQL of everything, root pages left out, since a VACUUM changes them. */
    schemaBefore: string;
    /** Read after the copy: VACUUM cannot share a transaction with the first reading (traps, 40). */
    schemaAfter: string;
    properties: Properties;
    journalMode: string;
    sqlite: string;
  };
  'check-source': Findings;
  describe: {
    schemaHash: string;
    properties: Properties;
    pageCount: number;
    /** false: the name of a table is not UTF-8, so that nobody can ask for it. */
    byTable: boolean;
    /** `cost`: rows times the lookups that checking one costs. `foreignKeys`: the table declares some. `apart`: its constraints are better counted by themselves. */
    tables: readonly { name: string; rows: number | null; cost: number; foreignKeys: boolean; apart: boolean }[];
  };
  'check-structure': Findings;
  /** `limited`: the limit of findings was reached, so there may be more. */
  'check-table': Findings & { readonly limited: boolean };
  'check-all': Findings;
  'check-foreign-keys': { readonly rows: number; readonly unchecked: string | null };
  'let-go': Record<string, never>;
  settle: Record<string, never>;
  'set-wal': Record<string, never>;
  'set-rollback': Record<string, never>;
  /** `isLost`: the target was another than `seen` when it was locked to be replaced. */
  'put-into': { readonly isLost: boolean };
  'check-put': PutInto;
  'check-live': CheckedLive;
}

/** One thing of a schema; `sql` is null for what SQLite made by itself. */
export interface SchemaObject {
  readonly type: string;
  readonly name: string;
  readonly sql: string | null;
}

export interface CheckedLive {
  readonly checks: readonly Check[];
  /** The first of the queries that is no read-only SELECT; null: all are. Then nothing was checked. */
  readonly notASelect: string | null;
  /** Rows of every table that is not SQLite's own. */
  readonly tables: readonly { readonly name: string; readonly rows: number }[];
  readonly schema: readonly SchemaObject[];
}

/** What a live database is after a copy was put into it. */
export interface PutInto {
  readonly findings: Findings;
  readonly schemaHash: string;
  readonly journalMode: string;
}

/** What SQLite or the system said when a request failed. */
export interface WorkerError {
  /** SQLite's extended code, or an errno. */
  readonly code: string;
  readonly message: string;
}

export type Reply = { ok: true; value: unknown; cpuMs: number; anonBytes: number } | { ok: false; error: WorkerError; cpuMs: number; anonBytes: number };
