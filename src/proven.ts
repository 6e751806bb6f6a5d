/**
 * What a full proof of a copy is about, so that it can be remembered: the same bytes need not be checked by SQLite twice. A check
 * with cell_size_check, as `verify` makes it, and one without say the same of a file: integrity_check looks at every cell itself.
 */
import { createHash } from 'node:crypto';
import type { Acting } from './acting.js';
import { errnoWords, warning } from './outcome.js';
import type { Manifest } from './records.js';

/** Counts up when a check is made stricter: what passed before it is checked anew. */
const CHECKS = 1;
const by = ({ ctx }: Acting): string => `${ctx.tool}, checks ${CHECKS}`;

export interface Content {
  /** SHA-256 of the plain database file, hex. */
  readonly sha256: string;
  /** SHA-256, hex, of everything that a manifest says of that file and a proof compares with it. */
  readonly claims: string;
}

/** Of a manifest with nothing sealed in it; null: it does not know the hash. Where rows were too many for the manifest, it is never known again. */
export function contentOf(manifest: Manifest): Content | null {
  const { plainSha256, pageSize, pageCount, userVersion, applicationId, schemaHash, rows } = manifest;
  if (plainSha256 === null) return null;
  const tables = Object.entries(rows ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  const claims = JSON.stringify([pageSize, pageCount, userVersion, applicationId, schemaHash, tables]);
  return { sha256: plainSha256, claims: createHash('sha256').update(claims).digest('hex') };
}

/** Remembers a full proof, as far as state can be written: one that is not known is only made again. */
export function noteProven(acting: Acting, content: Content): void {
  try {
    acting.ledger()?.noteProven(content, by(acting), acting.ctx.clock.now());
  } catch (error) {
    warnOf(acting, error);
  }
}

/** SQLite has found damage in it that it had not found before. */
export function forgetProven(acting: Acting, content: Content): void {
  try {
    acting.ledger()?.forgetProven(content.sha256);
  } catch (error) {
    warnOf(acting, error);
  }
}

/** When this content was proven in full by this version of ours and this build of SQLite, RFC 3339; null: not as far as is known. */
export function whenProven(acting: Acting, content: Content): string | null {
  try {
    return acting.ledger()?.contentProvenAt(content, by(acting)) ?? null;
  } catch (error) {
    warnOf(acting, error);
    return null;
  }
}

const warnOf = ({ recorder, config }: Acting, error: unknown): void =>
  recorder.warn(warning('STATE_UNWRITABLE', `what was proven before cannot be looked up or written down in ${config.stateDir}: ${errnoWords(error)}`));
