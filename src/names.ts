/** Which name a command without `--name`, profile or database means: the only one in the directory, or a usage error that lists them. */
import { namesIn } from './catalog.js';
import { Failed } from './outcome.js';
import { copiesIn, placeOf } from './place.js';
import type { CommandName } from './records.js';
import type { Config } from './settings/load.js';
import { lookFailure } from './stages/inspect.js';
import { shellWord } from './system/processes.js';

/** Null: the directory holds no copies at all. */
export function resolveName(config: Config, command: CommandName): string | null {
  if (config.name !== null) return config.name;
  const names = list(copiesIn(config));
  if (names.length > 1) {
    throw new Failed({
      code: 'USAGE',
      message: `${placeOf(config)} holds copies of several names: ${names.join(', ')}`,
      hint: `say which: dbbackup ${command} ${config.from ? `--from ${shellWord(placeOf(config))}` : `--to ${shellWord(config.to)}`} --name ${shellWord(names[0] ?? 'NAME')}`,
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
