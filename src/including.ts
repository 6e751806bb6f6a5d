/** Included files before they are archived: what they take, and what must not be among them. */
import { realpathSync } from 'node:fs';
import { directoriesOf } from './copying.js';
import type { Failure } from './outcome.js';
import type { Config } from './settings/load.js';

/** What the included files take in an archive: for the facts of a run. */
export async function measureIncluded(config: Config, database: string, signal: AbortSignal): Promise<number[]> {
  if (config.include.length === 0) return [];
  const { measure } = await import('./archive/measure.js');
  const [source = database, ...own] = [database, config.to, config.stateDir].map((path) => realOrNull(path) ?? path);
  const left = [source, `${source}-wal`, `${source}-shm`, `${source}-journal`, ...own, ...directoriesOf(config)];
  return await measure({ roots: config.include, leftOut: left, signal });
}

/** Null also for a link that leads nowhere, or what may not be looked at: it is told when it is read, beside a copy of the database. */
function realOrNull(path: string): string | null {
  try {
    return realpathSync(path);
  } catch {
    return null;
  }
}

/** The backup directory and destinations are left out of an archive; where one is all that is to be archived, that cannot be meant. */
export function includesOwn(config: Config): Failure | null {
  const { include, to, stateDir } = config;
  const destinations = directoriesOf(config);
  const own = [to, stateDir].map(realOrNull);
  const problems = include.flatMap((path) => {
    const at = realOrNull(path);
    // By its name alone: a destination is looked at by nobody but its own process.
    if (at !== null && destinations.some((d) => at === d || at.startsWith(`${d}/`)))
      return [{ setting: 'include', message: `include ${path} is where copies are uploaded to: each copy would hold all earlier ones`, origin: '--include' }];
    if (at === null || !(own.includes(at) || (own[1] && at.startsWith(`${own[1]}/`)))) return [];
    return [
      { setting: 'include', message: `include ${path} is where the copies or their state lie: each copy would hold all earlier ones`, origin: '--include' },
    ];
  });
  return problems.length > 0 ? { code: 'SETTINGS', problems } : null;
}
