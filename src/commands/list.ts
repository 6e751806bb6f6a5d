/** `dbbackup list`: the copies there are, newest first, from the directory itself. */
import { readCopies } from '../catalog.js';
import type { Context } from '../context.js';
import { bytes, duration, table } from '../format.js';
import { lookFailure } from '../look-failure.js';
import type { ExitCode } from '../outcome.js';
import { Failed } from '../outcome.js';
import { copiesIn, placeOf } from '../place.js';
import type { Copy } from '../records.js';
import { SCHEMA_VERSION } from '../records.js';
import type { Config } from '../settings/load.js';
import { lstatOrNull } from '../system/files.js';

/** Prints the copies of one name or all. Exit 0 also when there are none. */
export function list(ctx: Context, config: Config): ExitCode {
  const { output } = ctx;
  const name = config.nameGiven ? config.name : null;
  let copies: Copy[] | null;
  try {
    copies = lstatOrNull(copiesIn(config)) && readCopies(copiesIn(config), name);
  } catch (error) {
    throw new Failed(lookFailure(placeOf(config), error), { cause: error });
  }
  if (!copies) throw new Failed({ code: 'COPY_NOT_FOUND', path: placeOf(config), reason: 'there is no such directory', to: placeOf(config), missing: true });
  const now = ctx.clock.now().getTime();
  if (copies.length === 0) output.info(`no copies ${name === null ? '' : `of ${name} `}in ${placeOf(config)}`);
  else if (!output.options.json) {
    const rows = copies.map((c) => [output.time(c.createdAt), ageOf(c, now), bytes(c.sizeBytes), c.status, c.file, c.tags.join(',')]);
    output.data(table(['CREATED', 'AGE', 'SIZE', 'STATUS', 'FILE', 'TAGS'], rows, ' >>'));
  }
  output.document({ schemaVersion: SCHEMA_VERSION, command: 'list', copies });
  return 0;
}

function ageOf(copy: Copy, now: number): string {
  const ms = now - Date.parse(copy.createdAt);
  return ms < 0 ? 'ahead' : duration(ms);
}
