/**
 * Where a run works: `<to>/.dbbackup/tmp/NAME-RUNID/`, always below the backup directory, since link(2) needs one file
 * system. The data and manifest of a copy are staged there before they appear under their final names.
 */
import { join } from 'node:path';

const RUN_ID = /^(.+)-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$/u;

export interface Workspace {
  readonly directory: string;
  readonly data: string;
  readonly manifest: string;
}

/** Where state lies unless `state-dir` says otherwise. */
export const stateDirOf = (to: string): string => join(to, '.dbbackup');

/** Where unfinished work lies. */
export const tempRoot = (to: string): string => join(stateDirOf(to), 'tmp');

/** The workspace of a run. */
export function workspace(to: string, name: string, runId: string): Workspace {
  const directory = join(tempRoot(to), `${name}-${runId}`);
  return { directory, data: join(directory, 'data.db'), manifest: join(directory, 'manifest.json') };
}

/** Whose workspace a directory below `tmp/` is; null for what is not ours. */
export function parseWorkspace(entry: string): { name: string; runId: string } | null {
  const [, name, runId] = RUN_ID.exec(entry) ?? [];
  return name === undefined || runId === undefined ? null : { name, runId };
}
