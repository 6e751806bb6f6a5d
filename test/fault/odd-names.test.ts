import { copyFileSync, readdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { dbbackup, EXECUTABLE, makeDatabase, startCommand } from '../support/cli.js';
import { expectOneLine, type Place, place } from './bad-input.js';
import { contentOf, examine, listing, mustBeWhole } from './proof.js';

// ------------------------------------------------------------------------------------------------- file names

describe('file names', () => {
  const GOOD = [
    'two words.db',
    "it's.db",
    'say "hi".db',
    'a?b#c%20d&e=f.db',
    '100%d.db',
    'größe 漢字 😀.db',
    '-dash.db',
    '--json.db',
    'file:x.db?mode=memory',
    ':memory:',
    'a\\b.db',
    '$(touch pwned);`id`.db',
    '.hidden',
    'x.sqlite3.bak',
    '*.db',
    `${'n'.repeat(200)}.db`,
    `${'漢'.repeat(80)}.db`,
    '123',
    'app-20261121T031700Z.db',
  ];
  test.each(GOOD)('%s works', { timeout: 60_000 }, async (name) => {
    const p = place();
    const data = join(p.home, 'data');
    // better-sqlite3 opens what it is told; a file made elsewhere and renamed is certain to have the name.
    makeDatabase(join(p.home, 'plain.db'), { journal: 'delete' });
    renameSync(join(p.home, 'plain.db'), join(data, name));
    for (const words of [
      ['run', '--to', p.to, '--json', '--', name],
      ['run', join(data, name), '--to', p.to, '--json'],
    ]) {
      const run = await dbbackup(words, { cwd: data });
      expect([run.code, run.json.error?.message], run.stderr).toEqual([0, undefined]);
      expect(run.json.source?.path).toBe(join(data, name));
      const file = run.json.copy?.file ?? '';
      expect(contentOf(join(p.to, file))).toBe(contentOf(join(data, name)));
    }
    expect(readdirSync(data)).toEqual([name]);
    expect(mustBeWhole(p.to, 'after the runs').pairs.size).toBe(2);
    const status = await dbbackup(['status', '--name', examine(p.to).pairs.values().next().value?.name ?? '', '--to', p.to, '--json']);
    expect([status.code, status.json.healthy], status.stdout).toEqual([0, true]);
  });

  const REFUSED: readonly [what: string, name: string, says: RegExp][] = [
    ['a newline', 'a\nb.db', /control/],
    ['a tab', 'a\tb.db', /control/],
    ['an escape sequence', 'a\u001b[31mb.db', /control/],
    ['a bidirectional override', 'a\u202egnp.db', /control|bidi/],
    ['a blank at the beginning', ' a.db', /blanks/],
    ['a blank at the end', 'a.db ', /blanks/],
    ['a no-break space at the end', 'a.db\u00a0', /blanks/],
  ];
  test.each(REFUSED)('%s is refused, saying so', { timeout: 60_000 }, async (_, name, says) => {
    const p = place();
    const file = join(p.home, 'data', name);
    copyFileSync(makeSmall(p), file);
    const run = await dbbackup(['run', file, '--to', p.to, '--json']);
    expect([run.code, run.json.error?.code], run.stderr).toEqual([78, 'SETTINGS']);
    expect(run.json.error?.message).toMatch(says);
    expectOneLine(run, ['SETTINGS']);
    expect(listing(p.to)).toBe('');
  });

  test('a name that is not UTF-8 cannot be opened, and the hint says so', async () => {
    const p = place();
    // No program of Node can say such a name: a shell does.
    const script = 'f="$1/$(printf "caf\\351.db")"; cp "$2" "$f"; exec "$3" run "$f" --to "$4" --json';
    const run = await startCommand(['sh', '-c', script, 'sh', join(p.home, 'data'), makeSmall(p), EXECUTABLE, p.to]).result;
    expect([run.code, run.json.error?.code, run.json.error?.hint], run.stderr).toEqual([1, 'SOURCE_MISSING', expect.stringContaining('not UTF-8')]);
  });

  test.each(['--to', '--state-dir', '--log-dir'])('a directory to be made whose name is not UTF-8 is refused, and nothing is made: %s', async (flag) => {
    const p = place();
    const small = makeSmall(p);
    const before = listing(p.home);
    const to = flag === '--to' ? [] : ['--to', p.to];
    const script = 'flag="$1"; at="$2/$(printf "caf\\351")"; shift 2; exec "$@" "$flag" "$at"';
    const run = await startCommand(['sh', '-c', script, 'sh', flag, p.home, EXECUTABLE, 'run', small, ...to, '--json']).result;
    expect([run.code, run.json.error?.code, run.json.error?.message], run.stderr).toEqual([78, 'SETTINGS', expect.stringContaining('is not UTF-8')]);
    expect(listing(p.home)).toBe(before);
  });
});

function makeSmall(p: Place): string {
  const file = join(p.home, 'small.db');
  makeDatabase(file, { journal: 'delete' });
  return file;
}
