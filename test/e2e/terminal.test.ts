/** On a terminal: a progress line, colours, local times; and none of that where it was declined. A real one, through script(1). */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { History } from '../../src/history.js';
import { EXECUTABLE, PATH, type Result, startCommand } from '../support/cli.js';
import { recordOf } from '../support/records.js';
import { baseAt, DAY, dataFiles, linesOf, plant, plantDaily, scene } from './scene.js';

const missing = spawnSync('script', ['--version']).status === 0 ? null : 'this needs script (bsdutils)';
const ESC = '\u001b';
const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;

/** Runs dbbackup with a terminal for stdout and stderr; both come back in `stdout`, with plain line ends. */
async function onTerminal(words: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Result> {
  const line = [EXECUTABLE, ...words].map(quoted).join(' ');
  const result = await startCommand(['script', '-qec', line, '/dev/null'], { env: { PATH, TERM: 'xterm', ...env } }).result;
  return { ...result, stdout: result.stdout.replaceAll('\r\n', '\n') };
}

describe.skipIf(missing)('on a terminal', () => {
  test('progress is shown in a line that the next message overwrites, and stages are coloured', async () => {
    const s = scene({ journal: 'wal', bytes: 3_000_000 });
    const run = await onTerminal(['run', s.source, '--to', s.to]);
    expect(run.code, run.stdout).toBe(0);
    const progress = [...run.stdout.matchAll(new RegExp(`\\r${ESC}\\[K(snapshot|verify) +[\\d.]+ [kM]?B of [\\d.]+ [kM]?B \\((\\d+) %\\)`, 'g'))];
    expect(progress.length).toBeGreaterThan(1);
    expect(progress.map((m) => m[1])).toContain('verify');
    for (const [, , percent] of progress) expect(Number(percent)).toBeLessThanOrEqual(100);
    // After it, the line is taken back: what is left on the screen are the five stages and the path.
    const screen = run.stdout.split('\n').map((l) => l.split(`\r${ESC}[K`).at(-1) ?? '');
    const plain = screen.map((l) => l.replaceAll(new RegExp(`${ESC}\\[\\d+m`, 'g'), ''));
    expect(plain.filter((l) => / of .* %\)$/.test(l))).toEqual([]);
    expect(plain.filter(Boolean).map((l) => l.split(' ')[0])).toEqual(['inspect', 'snapshot', 'verify', 'publish', 'prune', `${s.to}/${dataFiles(s.to)[0]}`]);
    expect(run.stdout).toContain(`${ESC}[32minspect `);
  });

  test.each([
    ['NO_COLOR', [], { NO_COLOR: '1' }],
    ['--no-color', ['--no-color'], {}],
    ['a dumb terminal', [], { TERM: 'dumb' }],
  ] as const)('%s: no colours, the rest as before', async (_, words, env) => {
    const s = scene({ journal: 'wal' });
    const run = await onTerminal(['run', s.source, '--to', s.to, ...words], env);
    expect(run.code).toBe(0);
    expect(run.stdout).not.toMatch(new RegExp(`${ESC}\\[\\d+m`));
    expect(run.stdout).toMatch(/^inspect +\S/m);
    const missingSource = await onTerminal(['run', join(s.home, 'nope.db'), '--to', s.to, ...words], env);
    expect(missingSource.stdout).not.toContain(ESC);
    expect(missingSource.stdout).toMatch(/^dbbackup: error SOURCE_MISSING/m);
  });

  test('errors and warnings are red and yellow', async () => {
    const s = scene({ journal: 'delete' });
    expect((await onTerminal(['run', join(s.home, 'nope.db'), '--to', s.to])).stdout).toContain(`dbbackup: ${ESC}[31merror${ESC}[0m SOURCE_MISSING`);
    expect((await onTerminal(['run', s.source, '--to', s.to])).stdout).toContain(`dbbackup: ${ESC}[33mwarning${ESC}[0m SOURCE_ROLLBACK_MODE`);
    expect((await onTerminal(['nonsense'])).stdout).toContain(`${ESC}[31merror${ESC}[0m USAGE`);
  });

  test('--quiet is quiet there, too', async () => {
    const s = scene({ journal: 'wal', bytes: 2_000_000 });
    expect(await onTerminal(['run', s.source, '--to', s.to, '--quiet'])).toMatchObject({ code: 0, stdout: '' });
  });

  test('times are local with their offset; JSON stays UTC', async () => {
    const s = scene(null);
    plant(s.to, baseAt(new Date('2024-07-01T22:15:00Z')));
    const env = { TZ: 'Asia/Kolkata' };
    const list = await onTerminal(['list', '--to', s.to], env);
    expect(linesOf(list.stdout)[1]).toMatch(/^2024-07-02 03:45:00 \+05:30 /);
    expect((await onTerminal(['list', '--to', s.to, '--json'], env)).json.copies?.[0]?.createdAt).toBe('2024-07-01T22:15:00Z');
    // Not on a terminal: UTC, whatever the zone.
    const piped = await startCommand([EXECUTABLE, 'list', '--to', s.to], { env: { PATH, ...env } }).result;
    expect(linesOf(piped.stdout)[1]).toMatch(/^2024-07-01T22:15:00Z /);
  });

  test('history shows twenty, and all where it is piped or was asked for', async () => {
    const s = scene(null);
    plantDaily(s.to, 1, DAY);
    expect((await s.ask('prune', ['-q'])).code).toBe(0);
    const history = History.openToWrite(join(s.to, '.dbbackup'), s.to);
    for (let i = 0; i < 21; i++) history.save(recordOf({ runId: `run-${i}`, finishedAt: '2026-11-21T03:17:01.000Z' }));
    history.close();
    expect(linesOf((await onTerminal(['history', '--to', s.to])).stdout)).toHaveLength(21);
    expect(linesOf((await onTerminal(['history', '--to', s.to, '--limit', '22'])).stdout)).toHaveLength(23);
    expect((await onTerminal(['history', '--to', s.to, '--json'])).json.runs).toHaveLength(22);
    expect(linesOf((await s.ask('history')).stdout)).toHaveLength(23);
  });
});
