/**
 * The sections of README.md that are made from the code: commands, settings, exit codes, error and warning codes. Each
 * stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. Pure: `npm run docs` writes the result, a test compares it.
 */
import { COMMANDS } from '../../src/cli.js';
import { CODE_DOCS, EXIT_CODES } from '../../src/outcome.js';
import type { CommandName } from '../../src/records.js';
import type { Group, OptionName } from '../../src/settings/options.js';
import { OPTION_NAMES, spec, variableOf } from '../../src/settings/options.js';

const GROUPS: Record<Group, string> = {
  source: 'Source',
  directory: 'Directory',
  retention: 'Retention',
  run: 'Run',
  packing: 'Packing',
  'off-site': 'Off-site',
  telling: 'Telling',
  log: 'Log',
  hooks: 'Hooks',
};

/** What stands between the markers of each section. */
const SECTIONS: Record<string, () => string> = {
  commands: () =>
    table(
      ['Command', 'What it does'],
      commandNames().map((name) => [`\`${['dbbackup', name, COMMANDS[name].words].filter(Boolean).join(' ')}\``, COMMANDS[name].summary]),
    ),
  settings: () => (Object.keys(GROUPS) as Group[]).map(settingsOf).join('\n\n'),
  'exit-codes': () =>
    table(
      ['Exit code', 'Meaning'],
      EXIT_CODES.map(([code, meaning]) => [String(code), meaning]),
    ),
  codes: () =>
    table(
      ['Code', 'Meaning'],
      Object.entries(CODE_DOCS).map(([code, sentence]) => [`\`${code}\``, sentence]),
    ),
};

/** README.md as it should be. Throws where a pair of markers is missing or not the only one. */
export function render(readme: string): string {
  return Object.entries(SECTIONS).reduce((text, [name, make]) => between(text, name, make()), readme);
}

function between(text: string, name: string, content: string): string {
  const [before, inside, ...more] = text.split(`<!-- ${name}:begin -->`);
  if (before === undefined || inside === undefined || more.length > 0) throw new Error(`README.md needs one <!-- ${name}:begin -->`);
  const [, after, ...again] = inside.split(`<!-- ${name}:end -->`);
  if (after === undefined || again.length > 0) throw new Error(`README.md needs one <!-- ${name}:end --> behind its begin`);
  return `${before}<!-- ${name}:begin -->\n\n${content}\n\n<!-- ${name}:end -->${after}`;
}

export const commandNames = (): CommandName[] => Object.keys(COMMANDS) as CommandName[];

function settingsOf(group: Group): string {
  const rows = OPTION_NAMES.filter((option) => spec(option).group === group).map((option) => {
    const { value, fallback, list, summary } = spec(option);
    return [`\`${option}\``, value ? `\`${value}\`${list ? ', ...' : ''}` : 'on or off', fallback ?? '', usedBy(option), `${summary}${secretNote(option)}`];
  });
  return `**${GROUPS[group]}**\n\n${table(['Setting', 'Value', 'Default', 'Used by', 'Meaning'], rows)}`;
}

function usedBy(option: OptionName): string {
  const { commands } = spec(option);
  return commands.length === commandNames().filter(hasSettings).length ? 'all' : commands.join(', ');
}

/** `schedule` has none: it looks at the profiles. */
const hasSettings = (name: CommandName): boolean => OPTION_NAMES.some((option) => spec(option).commands.includes(name));

const secretNote = (option: OptionName): string =>
  spec(option).secret ? ` A secret: no flag, but \`${variableOf(option)}\` or \`${variableOf(option)}_FILE\`.` : '';

/** Columns as wide as their widest cell: how the formatter wants tables, and how they read in a terminal. */
function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = [header, ...rows].map((row) => row.map((cell) => cell.replaceAll('|', '\\|')));
  const widths = header.map((_, column) => Math.max(3, ...cells.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]): string => `| ${widths.map((width, column) => (row[column] ?? '').padEnd(width)).join(' | ')} |`;
  const [first = [], ...others] = cells;
  return [line(first), line(widths.map((width) => '-'.repeat(width))), ...others.map(line)].join('\n');
}
