/**
 * Full proofs are remembered in the history: the same bytes need not be checked by SQLite twice. A check
 * with cell_size_check, as `verify` makes it, and one without say the same of a file: integrity_check looks at every cell itself.
 */
import type { Acting } from './acting.js';
import type { Content } from './artifacts.js';
import { errnoWords, warning } from './outcome.js';

/** Counts up when a check is made stricter: what passed before it is checked anew. */
const CHECKS = 2;
const by = ({ ctx }: Acting): string => `${ctx.tool}, checks ${CHECKS}`;

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
