/** README.md says what the code does: its tables are the code's own, nothing is left out, and what it points to is there. */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { FLAGS } from '../../src/cli.js';
import { CODE_DOCS, EXIT_CODES } from '../../src/outcome.js';
import { OPTION_NAMES, spec, variableOf } from '../../src/settings/options.js';
import { commandNames, render } from '../support/docs.js';

const ROOT = new URL('../../', import.meta.url);
const read = (file: string): string => readFileSync(new URL(file, ROOT), 'utf8');
const README = read('README.md');
/** Tables without their padding. */
const SQUEEZED = README.replaceAll(/ +\|/g, ' |');

/** The text under a heading, up to the next one of its level or above. */
function section(title: string): string {
  const lines = SQUEEZED.split('\n');
  const start = lines.findIndex((line) => line.replace(/^#+ /, '') === title && line.startsWith('#'));
  const level = /^#+/.exec(lines[start] ?? '')?.[0].length ?? 0;
  const rest = lines.slice(start + 1);
  const end = rest.findIndex((line) => /^#+ /.test(line) && (/^#+/.exec(line)?.[0].length ?? 0) <= level);
  return rest.slice(0, end < 0 ? rest.length : end).join('\n');
}

/** Fenced blocks: language and lines. */
const blocks = (text: string): { language: string; lines: string[] }[] =>
  [...text.matchAll(/^```(\w*)\n(.*?)^```$/gms)].map(([, language, body]) => ({ language: language ?? '', lines: (body ?? '').trimEnd().split('\n') }));

describe('the generated sections', () => {
  test('are up to date; if not: npm run docs', () => {
    expect(render(README)).toBe(README);
  });

  test('are made anew whatever stands in them', () => {
    expect(render(README.replace(/(<!-- codes:begin -->).*(<!-- codes:end -->)/s, '$1old$2'))).toBe(README);
  });

  test('need their markers, each once', () => {
    expect(() => render(README.replace('<!-- settings:begin -->', ''))).toThrow('settings:begin');
    expect(() => render(README.replace('<!-- codes:end -->', ''))).toThrow('codes:end');
    expect(() => render(README.replaceAll('<!-- codes:begin -->', '<!-- codes:begin --><!-- codes:begin -->'))).toThrow('codes:begin');
  });
});

describe('README.md mentions', () => {
  test.each(commandNames())('the command %s', (command) => {
    expect(README).toMatch(new RegExp(`\\| \`dbbackup ${command}[\` ]`));
  });

  test.each(OPTION_NAMES)('the setting %s', (option) => {
    expect(section('Settings')).toContain(`| \`${option}\` |`);
  });

  test.each(OPTION_NAMES.filter((option) => spec(option).secret))('how the secret %s is given', (option) => {
    expect(section('Settings')).toContain(`\`${variableOf(option)}_FILE\``);
  });

  test.each(EXIT_CODES.map(([code]) => code))('the exit code %d', (code) => {
    expect(section('Exit codes and codes of errors and warnings')).toContain(`| ${code} |`);
  });

  test.each(Object.keys(CODE_DOCS))('the code %s, and what to do about it', (code) => {
    expect(section('Exit codes and codes of errors and warnings')).toContain(`| \`${code}\` |`);
    expect(section('Troubleshooting')).toContain(`\`${code}\``);
  });
});

describe('what README.md tells to type', () => {
  const typed = blocks(README).flatMap(({ lines }) => lines.map((line) => line.replace(/^\$ /, '')));

  test('for the tests is what .ci/run does', () => {
    const TESTS = 'npm ci && npm test';
    expect(typed).toContain(TESTS);
    const npm = read('.ci/run')
      .split('\n')
      .filter((line) => !line.trimStart().startsWith('#'))
      .flatMap((line) => /\bnpm (?:ci|test|run|install)\b.*/.exec(line) ?? []);
    // Flags there only keep npm from talking.
    expect(npm.map((command) => command.replaceAll(/ --no-\w+/g, '')).join(' && ')).toBe(TESTS);
  });

  test('are scripts that exist', () => {
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
    const names = [...README.matchAll(/npm run ([\w-]+)/g)].map(([, name]) => name ?? '');
    expect(names).toContain('demo');
    expect(names.filter((name) => !(name in scripts))).toEqual([]);
  });

  test('are commands and flags that exist', () => {
    const own = [
      '--help',
      '--version',
      '--json',
      '--quiet',
      '--verbose',
      '--no-color',
      '--env-file',
      '--profile',
      '--dry-run',
      '--notify',
      '--send-test',
      '--limit',
    ];
    const flags = Object.values(FLAGS).flatMap((made) => made.map((option) => option().long ?? ''));
    const known = [...own, ...flags, ...OPTION_NAMES.filter((option) => !spec(option).secret).map((option) => `--${option}`)];
    const lines = typed.flatMap((line) => /^(?:sudo -u \w+ )?(?:npx )?dbbackup (.*)/.exec(line)?.[1] ?? []);
    expect(lines.length).toBeGreaterThan(5);
    expect(lines.filter((line) => !commandNames().some((command) => line.split(' ').includes(command)))).toEqual([]);
    expect(lines.flatMap((line) => line.match(/(?<= )--[a-z][\w-]*/g) ?? []).filter((flag) => !known.includes(flag))).toEqual([]);
  });
});

describe('links', () => {
  /** As GitHub makes the anchor of a heading. */
  const anchor = (heading: string): string =>
    heading
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-');
  const anchorsOf = (text: string): string[] => [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading]) => anchor(heading ?? ''));

  test.each(['README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', 'docs/development.md'])('of %s lead somewhere', (file) => {
    const text = read(file);
    const targets = [...text.matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target ?? '').filter((target) => !/^[a-z]+:/.test(target));
    const dead = targets.filter((link) => {
      const [path = '', fragment] = link.split('#');
      const target = new URL(path === '' ? file : path, new URL(path === '' ? '' : file, ROOT));
      if (!existsSync(fileURLToPath(target))) return true;
      return fragment !== undefined && !anchorsOf(readFileSync(target, 'utf8')).includes(fragment);
    });
    expect(dead).toEqual([]);
  });

  test('lead to files that the packed tarball holds', () => {
    const { files } = JSON.parse(read('package.json')) as { files: string[] };
    const packed = [...files, 'README.md', 'LICENSE', 'package.json'];
    const paths = [...README.matchAll(/\]\(([^)\s#:]+)(?:#[^)]*)?\)/g)].map(([, path]) => path ?? '');
    expect(paths.length).toBeGreaterThan(3);
    expect(paths.filter((path) => !packed.some((entry) => path === entry || path.startsWith(`${entry}/`)))).toEqual([]);
  });
});
