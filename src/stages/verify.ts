/**
 * Stage 3: the proof. The synced temp file is hashed by reading it back, its schema compared with the source's, and
 * checked read-write by integrity_check, split by table over two children (traps, 21 and 22), beside an accounting of all
 * pages: together they look at everything that one whole integrity_check does.
 */
import { closeSync, lstatSync } from 'node:fs';
import type { CheckedSnapshot, Snapshot, VerifiedSnapshot } from '../artifacts.js';
import { SOURCE_BUSY_MS } from '../artifacts.js';
import { checkFile, rowsOf } from '../checks.js';
import { plural } from '../format.js';
import type { Failure, Warning } from '../outcome.js';
import { diskFull, errnoOf, Failed, failureOf, targetFailure, warning } from '../outcome.js';
import type { Check, Violations } from '../records.js';
import { hashFile } from '../system/files.js';
import { isEndSignal } from '../system/signals.js';
import { openToSync, syncLarge } from '../system/syncing.js';
import type { Properties } from '../system/worker-protocol.js';
import { ACCOUNTING } from '../system/worker-protocol.js';
import type { WorkerPool } from '../system/workers.js';
import { ChildDied, RequestFailed } from '../system/workers.js';

export interface VerifyInput {
  readonly snapshot: Snapshot;
  readonly sourceCheck: 'quick' | 'full';
  readonly pool: WorkerPool;
  readonly signal: AbortSignal;
  readonly warn: (w: Warning) => void;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
}

/** Proves a snapshot, or fails. A read error or a killed mapping is tried once more, without mapping (traps, 19 and 39). */
export async function verify(input: VerifyInput): Promise<VerifiedSnapshot> {
  let fd: number;
  try {
    fd = openToSync(input.snapshot.path);
  } catch (error) {
    throw translated(error, input);
  }
  // One descriptor for both attempts: an error of the disk that the first one did not ask for is told to it in the second.
  try {
    return await twice(input, fd);
  } finally {
    closeSync(fd);
  }
}

async function twice(input: VerifyInput, fd: number): Promise<VerifiedSnapshot> {
  try {
    return await attempt(input, fd, true);
  } catch (error) {
    await input.pool.killAll();
    input.signal.throwIfAborted();
    if (error instanceof Failed) throw error;
    if (!(error instanceof ChildDied && error.signal === 'SIGBUS') && !(error instanceof RequestFailed)) throw translated(error, input);
  }
  try {
    return await attempt(input, fd, false);
  } catch (error) {
    await input.pool.killAll();
    input.signal.throwIfAborted();
    throw translated(error, input);
  }
}

function translated(error: unknown, input: VerifyInput): Failed {
  if (error instanceof Failed) return error;
  return new Failed(verifyFailure(error, input), { cause: error });
}

function verifyFailure(error: unknown, input: VerifyInput): Failure {
  const { path } = input.snapshot;
  if (error instanceof ChildDied) {
    if (isEndSignal(error.signal)) return { code: 'INTERRUPTED', signal: error.signal, published: null };
    return error.signal === 'SIGBUS'
      ? { code: 'IO_ERROR', path, reason: 'a page could not be read from the disk (SIGBUS)' }
      : { code: 'VERIFY_FAILED', findings: [error.message], died: true };
  }
  if (!(error instanceof RequestFailed)) return errnoOf(error) === '' ? failureOf(error) : targetFailure(error, path);
  const { code, message } = error.detail;
  if (code === 'SQLITE_FULL') return diskFull(path);
  if (/^SQLITE_(IOERR|CANTOPEN)/.test(code)) return { code: 'IO_ERROR', path, reason: `${message} (${code})` };
  return { code: 'VERIFY_FAILED', findings: [`${message} (${code})`] };
}

async function attempt(input: VerifyInput, fd: number, mmap: boolean): Promise<VerifiedSnapshot> {
  const { snapshot } = input;
  const file = snapshot.path;
  const sizeBytes = lstatSync(file).size;
  const failed = new AbortController();
  // Asked first: the child is at work while the process that syncs is started.
  const checking = checkFile({ file, mmap, cellSizeCheck: false, pool: input.pool });
  const hashing = syncAndHash({ ...input, signal: AbortSignal.any([input.signal, failed.signal]) }, fd, sizeBytes);
  // Failures of the hash are awaited below; until then the checks may fail first.
  hashing.catch(() => undefined);
  const { described, findings, foreignKey } = await checking.catch(async (error: unknown) => {
    failed.abort(error);
    // The disk tells a descriptor once that it has lost something: that must not get lost behind what the checks met. A signal does not wait for it.
    if (!input.signal.aborted) await hashing;
    throw error;
  });
  const { sha256 } = await hashing;

  // A 0-byte file passes every check (traps, 13).
  if (sizeBytes === 0 || sizeBytes !== described.pageCount * described.properties.pageSize) {
    throw new Failed({
      code: 'VERIFY_FAILED',
      findings: [`the copy has ${sizeBytes} bytes, not ${described.pageCount} pages of ${described.properties.pageSize}`],
    });
  }
  if (described.schemaHash !== snapshot.schemaBefore && described.schemaHash !== snapshot.schemaAfter) {
    throw new Failed({ code: 'VERIFY_FAILED', findings: ["the copy's schema is not the source's"] });
  }
  const different = differences(snapshot.properties, described.properties);
  if (different.length > 0) throw new Failed({ code: 'VERIFY_FAILED', findings: different });
  if (findings.structural.length > 0) throw new Failed(await blame(input, findings.structural));

  const violations: Violations = { check: findings.check, notNull: findings.notNull, foreignKey };
  const unchecked = [...new Set([...snapshot.sourceFindings.unchecked, ...findings.unchecked])];
  remark(input, violations, unchecked);
  const suspect = snapshot.sourceFindings.structural.length > 0;
  const proven: CheckedSnapshot = {
    snapshot,
    verdict: suspect ? 'suspect' : 'good',
    sizeBytes,
    sha256,
    pageCount: described.pageCount,
    properties: described.properties,
    schemaHash: described.schemaHash,
    rows: rowsOf(described),
    checks: listChecks(input, violations, unchecked, described.tables.length),
    violations,
  };
  return proven as VerifiedSnapshot;
}

/** Hash after sync: what is read back is what the disk was told to keep. Sync and hash run beside the checks. */
async function syncAndHash(input: VerifyInput, fd: number, sizeBytes: number): Promise<{ sha256: string }> {
  const { path } = input.snapshot;
  await syncLarge(fd, input.signal);
  const before = lstatSync(path, { bigint: true });
  const sha256 = await hashFile(path, input.signal, (done) => input.progress(done, sizeBytes));
  const after = lstatSync(path, { bigint: true });
  // The checks open the file read-write; they must not have written.
  if (before.mtimeNs !== after.mtimeNs || before.size !== after.size || before.ino !== after.ino) {
    throw new Failed({ code: 'VERIFY_FAILED', findings: ['the copy changed while it was checked'] });
  }
  return { sha256 };
}

function differences(source: Properties, copy: Properties): string[] {
  // Not user_version: a migration may change it between the two readings.
  const keys = ['pageSize', 'encoding', 'autoVacuum', 'applicationId'] as const;
  return keys.filter((k) => source[k] !== copy[k]).map((k) => `${k} is ${copy[k]} in the copy and ${source[k]} in the source`);
}

/**
 * The copy is damaged: is the source? Damage in an index is copied faithfully, and a quick check of the source does not
 * see it (traps, 14), so the full one decides who is to blame.
 */
async function blame(input: VerifyInput, structural: readonly string[]): Promise<Failure> {
  const { source, sourceFindings } = input.snapshot;
  if (sourceFindings.structural.length > 0) return { code: 'SOURCE_CORRUPT', path: source.path, findings: sourceFindings.structural, keptAs: null };
  await input.pool.killAll();
  const again = await input.pool
    .worker(0)
    .ask({ op: 'check-source', source: source.realPath, dev: source.dev, ino: source.ino, mode: 'full', busyMs: SOURCE_BUSY_MS, mmap: false })
    .catch((error: unknown) => {
      input.signal.throwIfAborted();
      if (error instanceof RequestFailed && /^SQLITE_(CORRUPT|NOTADB)/.test(error.detail.code)) {
        return { structural: [error.message], notNull: 0, check: 0, unchecked: [] };
      }
      return null;
    });
  if (again === null) return { code: 'VERIFY_FAILED', findings: structural };
  // Pages were copied as they are, and their accounting cannot be had of the source: what it alone tells is the source's damage.
  const alone = input.snapshot.method === 'page-copy' && structural.every((finding) => finding.startsWith(ACCOUNTING));
  const findings = again.structural.length > 0 || !alone ? again.structural : structural;
  return findings.length > 0 ? { code: 'SOURCE_CORRUPT', path: source.path, findings, keptAs: null } : { code: 'VERIFY_FAILED', findings: structural };
}

function remark(input: VerifyInput, v: Violations, unchecked: readonly string[]): void {
  if (v.check + v.notNull + v.foreignKey > 0) {
    const parts = [
      v.notNull > 0 ? `${v.notNull} NOT NULL` : '',
      v.check > 0 ? `${v.check} CHECK` : '',
      v.foreignKey > 0 ? `${v.foreignKey} foreign key` : '',
    ].filter(Boolean);
    input.warn(warning('ROWS_VIOLATE', `rows in the source break their own rules (${parts.join(', ')}); they were copied as they are`));
  }
  if (unchecked.length > 0) input.warn(warning('TABLES_UNCHECKED', `verified except ${plural(unchecked.length, 'table')}: ${unchecked.join('; ')}`));
  if (input.snapshot.why !== null) {
    input.warn(warning('PAGE_COPY', `this schema cannot be vacuumed (${input.snapshot.why}), so its pages were copied instead`));
  }
}

function listChecks(input: VerifyInput, v: Violations, unchecked: readonly string[], tables: number): Check[] {
  const { sourceFindings } = input.snapshot;
  const except = unchecked.length > 0 ? `ok, except ${unchecked.join('; ')}` : 'ok';
  return [
    {
      name: input.sourceCheck === 'full' ? 'source integrity_check' : 'source quick_check',
      ok: sourceFindings.structural.length === 0,
      message: sourceFindings.structural.length === 0 ? 'ok' : sourceFindings.structural.slice(0, 10).join('; '),
    },
    { name: 'schema', ok: true, message: "the source's" },
    { name: 'integrity_check', ok: true, message: `${except} (${plural(tables, 'table')}, read-write)` },
    { name: 'foreign_key_check', ok: true, message: v.foreignKey === 0 ? 'ok' : `${plural(v.foreignKey, 'row')} without a parent, as in the source` },
    { name: 'sha256', ok: true, message: 'read back after sync' },
  ];
}
