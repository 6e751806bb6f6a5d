/** Which name a command without `--name`, profile or database means: the only one in the directory, or a usage error that lists them. */
import { namesIn } from './catalog.js';
import { lookFailure } from './look-failure.js';
import { Failed } from './outcome.js';
import { copiesIn, placeOf } from './place.js';
import type { Config } from './settings/load.js';
import { shellWord } from './system/processes.js';

/** Null: the directory holds no copies at all. */
export function resolveName(config: Config): string | null {
  if (config.name !== null) return config.name;
  const names = list(copiesIn(config));
  if (names.length > 1) {
    throw new Failed({
      code: 'USAGE',
      message: `${placeOf(config)} holds copies of several names: ${names.join(', ')}`,
      // Not a line to paste: without the other words of this one it would do something else.
      hint: `say which, with one more word to the same line: ${names
        .slice(0, 5)
        .map((name) => `--name ${shellWord(name)}`)
        .join(' or ')}`,
    });
  }
  return names[0] ?? null;
}

function list(directory: string): string[] {
  try {
    return namesIn(directory);
  } catch (error) {
    throw new Failed(lookFailure(directory, error), { cause: error });
  }
}
