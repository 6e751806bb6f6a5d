/** Retention through the executable: on copies made beforehand, nothing goes but what was made by this tool, under this name. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { cannot, dbbackup } from '../support/cli.js';
import { ago, baseAt, DAY, dataFiles, HOUR, linesOf, plant, plantDaily, scene, tree } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

const jsonOf = (files: readonly string[]): string[] => files.map((f) => f.replace(/db$/, 'json'));
const listing = (to: string): string[] =>
  readdirSync(to)
    .filter((f) => f !== '.dbbackup')
    .sort();

/** Does it while files cannot be removed, not even by root. */
async function mounted(files: readonly string[], work: () => Promise<void>): Promise<void> {
  for (const file of files) execFileSync('mount', ['--bind', file, file]);
  try {
    await work();
  } finally {
    for (const file of files) execFileSync('umount', [file]);
  }
}

describe('prune', () => {
  test('a name of which there is nothing is a slip, where there are copies of others', async () => {
    const s = scene(null);
    plantDaily(s.to, 2);
    for (const more of [[], ['--dry-run']]) {
      const slip = await s.ask('prune', ['--name', 'apq', '--json', ...more]);
      expect([slip.code, slip.json.error?.code, slip.json.error?.message]).toEqual([1, 'COPY_NOT_FOUND', expect.stringContaining('no copies of apq')]);
    }
    expect(existsSync(s.state)).toBe(false);
  });

  test('several names: what is offered is a word to add, and no line that would do something else', async () => {
    const s = scene(null);
    plantDaily(s.to, 1);
    plantDaily(s.to, 1, HOUR, {}, 'zoo');
    const which = await s.ask('prune', ['--dry-run', '--keep-last', '1', '--json']);
    expect([which.code, which.json.error?.hint]).toEqual([64, 'say which, with one more word to the same line: --name app or --name zoo']);
  });

  test('removes data and manifest of what no rule asks for, and says why', async () => {
    const s = scene(null);
    const files = plantDaily(s.to, 5);
    const prune = await s.ask('prune', ['--keep-last', '3']);
    expect(prune.code, prune.stderr).toBe(0);
    expect(linesOf(prune.stdout)).toEqual([`removed ${files[3]}: no keep rule asks for it`, `removed ${files[4]}: no keep rule asks for it`]);
    expect(prune.stderr).toMatch(/^prune +3 kept, 2 removed \(\d+ ms\)\n$/);
    expect(listing(s.to)).toEqual([...files.slice(0, 3), ...jsonOf(files.slice(0, 3))].sort());
    // Once is enough.
    const again = await s.ask('prune', ['--keep-last', '3', '--json']);
    expect(problemsIn(again.json, shapes.run)).toEqual([]);
    expect(again.json).toMatchObject({ command: 'prune', name: 'app', status: 'ok', dryRun: false, source: null, copy: null, pruned: [], error: null });
    expect(again.json.kept).toEqual([
      { file: files[0], reasons: ['newest good copy', 'last #1'], by: 'policy' },
      { file: files[1], reasons: ['last #2'], by: 'policy' },
      { file: files[2], reasons: ['last #3'], by: 'policy' },
    ]);
    expect(again.json.stages?.map((t) => t.name)).toEqual(['prune', 'report']);
    const history = await s.ask('history', ['--json']);
    expect(history.json.runs?.map((r) => [r.command, r.status, r.pruned.length])).toEqual([
      ['prune', 'ok', 0],
      ['prune', 'ok', 2],
    ]);
  });

  test('without a rule keeps the last 7, and one for each of 30 days', async () => {
    const s = scene(null);
    const twice = Array.from({ length: 40 }, (_, i) => plant(s.to, baseAt(new Date(Date.UTC(2024, 9, 30 - Math.floor(i / 2), 12 - (i % 2))))));
    expect((await s.ask('prune', ['-q'])).code).toBe(0);
    const left = dataFiles(s.to);
    // 20 days with two copies each: the newer of each day, and of the first four days both where they are among the last 7.
    expect(left).toEqual([...twice.slice(0, 7), ...twice.slice(7).filter((_, i) => (i + 7) % 2 === 0)].sort().reverse());
  });

  test.each([
    ['--keep-daily 2', ['--keep-daily', '2'], [0, 2]],
    ['--keep-within 24h', ['--keep-within', '24h'], [0, 1, 2]],
    ['--keep-monthly 2', ['--keep-monthly', '2'], [0, 4]],
    ['--keep-yearly 9', ['--keep-yearly', '9'], [0, 6]],
    ['--keep-weekly 2', ['--keep-weekly', '2'], [0, 3]],
    ['--keep-weekly 3 --keep-last 2', ['--keep-weekly', '3', '--keep-last', '2'], [0, 1, 3, 4]],
    ['--keep-last all', ['--keep-last', 'all'], [0, 1, 2, 3, 4, 5, 6]],
  ] as const)('%s', async (_, rules, kept) => {
    const s = scene(null);
    const times = [
      '2024-11-20T12:00:00Z',
      '2024-11-20T00:00:00Z',
      '2024-11-19T12:00:00Z',
      '2024-11-10T00:00:00Z',
      '2024-10-31T23:59:59Z',
      '2024-10-01T00:00:00Z',
      '2023-12-31T23:59:59Z',
    ];
    const files = times.map((t) => plant(s.to, baseAt(new Date(t))));
    expect((await s.ask('prune', ['-q', ...rules])).code).toBe(0);
    expect(dataFiles(s.to)).toEqual(kept.map((i) => files[i]));
  });

  test('leaves other names, other files and what is not proven alone', async () => {
    const s = scene(null);
    plantDaily(s.to, 3);
    plantDaily(s.to, 3, HOUR, {}, 'app2');
    plantDaily(s.to, 3, HOUR, {}, 'app-20260101T000000Z');
    for (const f of ['README', 'app.db', `${baseAt(ago(DAY * 9))}.db.gz`, 'notes.json', `${baseAt(ago(DAY * 9))}.db-wal`]) writeFileSync(join(s.to, f), f);
    const lost = plant(s.to, baseAt(ago(DAY * 20)), null);
    const bad = plant(s.to, baseAt(ago(DAY * 21)));
    truncateSync(join(s.to, bad), 3);
    const foreign = plant(s.to, baseAt(ago(DAY * 22)), { name: 'app2' });
    mkdirSync(join(s.to, `${baseAt(ago(DAY * 30))}.db`));
    symlinkSync('README', join(s.to, `${baseAt(ago(DAY * 31))}.db`));
    const before = listing(s.to);
    const prune = await s.ask('prune', ['--name', 'app', '--keep-last', '1', '--json']);
    expect(prune.code, prune.stderr).toBe(0);
    const gone = prune.json.pruned?.map((p) => p.file) ?? [];
    expect(gone).toHaveLength(2);
    expect(listing(s.to)).toEqual(before.filter((f) => !gone.includes(f) && !jsonOf(gone).includes(f)));
    const reasons = Object.fromEntries((prune.json.kept ?? []).map((k) => [k.file, k.reasons.join()]));
    expect(reasons[lost]).toMatch(/unverified/);
    expect(reasons[bad]).toMatch(/bad/);
    expect(reasons[foreign]).toMatch(/unverified/);
  });

  test('keeps tagged copies 30 days, and sees good, untagged ones only', async () => {
    const s = scene(null);
    const old = plant(s.to, baseAt(ago(31 * DAY)), { tags: ['before-restore'] });
    const young = plant(s.to, baseAt(ago(29 * DAY)), { tags: ['before-guard'] });
    const newest = plant(s.to, baseAt(ago(HOUR)), { tags: ['before-restore'] });
    const [first, second] = plantDaily(s.to, 2, 2 * DAY);
    const prune = await s.ask('prune', ['--keep-last', '1', '--json']);
    expect(prune.json.pruned).toEqual([
      { file: second, reason: 'no keep rule asks for it' },
      { file: old, reason: 'before-restore: older than 30 days' },
    ]);
    expect(dataFiles(s.to)).toEqual([newest, first, young]);
  });

  test('waits while the newest copy is suspect; only suspects beyond the newest three go', async () => {
    const s = scene(null);
    const suspects = plantDaily(s.to, 5, HOUR, { status: 'suspect' });
    const good = plantDaily(s.to, 3, 10 * DAY);
    const prune = await s.ask('prune', ['--keep-last', '1', '--json']);
    expect(prune.code, prune.stderr).toBe(0);
    expect(prune.json.pruned?.map((p) => p.file)).toEqual(suspects.slice(3));
    expect(dataFiles(s.to)).toEqual([...suspects.slice(0, 3), ...good]);
    expect(prune.json.warnings).toEqual([{ code: 'SOURCE_CORRUPT', severity: 'critical', message: expect.stringContaining(suspects[0] ?? '') }]);
    // cron hears of it.
    expect((await s.ask('prune', ['--keep-last', '1', '-q'])).stderr).toMatch(/^dbbackup: critical SOURCE_CORRUPT: /);
    // A good copy after them ends the wait.
    const again = plant(s.to, baseAt(ago(0)));
    expect((await s.ask('prune', ['--keep-last', '1', '-q'])).stderr).toBe('');
    expect(dataFiles(s.to)).toEqual([again, ...suspects.slice(0, 3)]);
  });

  test('waits while a copy is dated ahead of the clock', async () => {
    const s = scene(null);
    const files = plantDaily(s.to, 4);
    const ahead = plant(s.to, baseAt(ago(-2 * HOUR)));
    const prune = await s.ask('prune', ['--keep-last', '1', '--json']);
    expect([prune.code, prune.json.pruned, prune.json.warnings?.map((w) => [w.code, w.severity])]).toEqual([0, [], [['CLOCK', 'critical']]]);
    expect(dataFiles(s.to)).toEqual([ahead, ...files]);
    unlinkSync(join(s.to, ahead));
    unlinkSync(join(s.to, ahead.replace(/db$/, 'json')));
    await s.ask('prune', ['--keep-last', '1']);
    expect(dataFiles(s.to)).toEqual(files.slice(0, 1));
  });

  test('finishes an interrupted prune: a manifest without data', async () => {
    const s = scene(null);
    const files = plantDaily(s.to, 3);
    unlinkSync(join(s.to, files[1] ?? ''));
    const unreadable = join(s.to, `${baseAt(ago(9 * DAY))}.json`);
    writeFileSync(unreadable, '{}');
    const prune = await s.ask('prune', ['--keep-last', '7', '--json']);
    expect(prune.json.warnings?.map((w) => w.code)).toEqual(['HEALED']);
    expect(existsSync(join(s.to, (files[1] ?? '').replace(/db$/, 'json')))).toBe(false);
    // What cannot be read is not known to be ours.
    expect(existsSync(unreadable)).toBe(true);
  });

  test('a file that only has the name of an archive is not ours to remove', async () => {
    const s = scene(null);
    const files = plantDaily(s.to, 2);
    const mine = join(s.to, (files[1] ?? '').replace(/db$/, 'files.tar.gz'));
    writeFileSync(mine, 'mine');
    const prune = await s.ask('prune', ['--keep-last', '1', '--json']);
    expect([prune.code, prune.json.pruned?.map(({ file }) => file)], prune.stderr).toEqual([0, [files[1]]]);
    expect(existsSync(mine)).toBe(true);
  });

  const noMount = cannot('root', 'mount');
  if (noMount) process.stderr.write(`not run here: files that cannot be removed: ${noMount}\n`);
  test.skipIf(noMount)('one file that cannot be removed keeps no other from going, and no later run from being made', async () => {
    const s = scene();
    const files = plantDaily(s.to, 5);
    const at = (n: number, suffix = ''): string => join(s.to, (files[n] ?? '').replace(/\.db$/, suffix || '.db'));
    const kept = at(1);
    const manifest = at(2, '.json');
    await mounted([kept, manifest], async () => {
      const prune = await s.ask('prune', ['--keep-last', '1', '--json']);
      expect([prune.code, prune.json.error?.code, prune.json.error?.message], prune.stderr).toEqual([
        1,
        'IO_ERROR',
        expect.stringContaining(`${kept}: cannot be`),
      ]);
      expect(prune.json.error?.message).toContain('nor can 1 other file');
      expect(prune.json.pruned?.map(({ file }) => file)).toEqual(files.slice(2));
      expect(prune.json.kept?.map(({ file }) => file)).toEqual(files.slice(0, 2));
      expect(readdirSync(s.to).filter((file) => file.startsWith('app-'))).toHaveLength(5);
      // The manifest without data is a prune that is to be finished, and cannot be.
      const run = await s.run(['--keep-last', 'all', '--accept-moved', '--json']);
      expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
      expect(run.json.warnings?.filter(({ severity }) => severity === 'critical')).toEqual([
        { code: 'HEAL_FAILED', severity: 'critical', message: expect.stringContaining(manifest.replace(`${s.to}/`, '')) as string },
      ]);
    });
    const again = await s.ask('prune', ['--keep-last', '2', '--json']);
    expect([again.code, again.json.pruned?.map(({ file }) => file), again.json.warnings?.map(({ code }) => code)]).toEqual([0, [files[1]], ['HEALED']]);
    expect(existsSync(manifest)).toBe(false);
  });

  test.each([
    [['--keep-last', '0'], /would keep nothing/],
    [['--keep-last', '0', '--keep-daily', '0'], /would keep nothing/],
    [['--keep-last', 'some'], /whole number, or all/],
  ] as const)('refuses %j', async (rules, why) => {
    const s = scene(null);
    plantDaily(s.to, 3);
    const before = tree(s.to);
    const prune = await s.ask('prune', [...rules, '--json']);
    expect([prune.code, prune.json.error?.code, prune.json.error?.message]).toEqual([78, 'SETTINGS', expect.stringMatching(why)]);
    expect(problemsIn(prune.json, shapes.failureDocument)).toEqual([]);
    expect(tree(s.to)).toEqual(before);
  });

  test('needs copies, and a name where there are several', async () => {
    const s = scene(null);
    for (const make of [() => undefined, () => mkdirSync(s.to, { mode: 0o700 })]) {
      make();
      const none = await s.ask('prune', ['--json']);
      expect([none.code, none.json.error?.code]).toEqual([1, 'COPY_NOT_FOUND']);
      expect(problemsIn(none.json, shapes.failureDocument)).toEqual([]);
    }
    plantDaily(s.to, 2);
    plantDaily(s.to, 2, HOUR, {}, 'zoo');
    for (const more of [[], ['--dry-run']]) {
      const several = await s.ask('prune', ['--json', ...more]);
      expect([several.code, several.json.error?.code, several.json.error?.message]).toEqual([64, 'USAGE', expect.stringMatching(/app, zoo/)]);
      expect(problemsIn(several.json, shapes.failureDocument)).toEqual([]);
    }
    expect(dataFiles(s.to)).toHaveLength(4);
    expect((await s.ask('prune', ['--name', 'zoo', '--keep-last', '1'])).code).toBe(0);
    expect(dataFiles(s.to).filter((f) => f.startsWith('zoo'))).toHaveLength(1);
    expect(dataFiles(s.to).filter((f) => f.startsWith('app'))).toHaveLength(2);
  });
});

describe('a run', () => {
  test('prunes after it has published, by the same rules, and reports both', async () => {
    const s = scene();
    const files = plantDaily(s.to, 4, DAY, { configuredPath: s.source, realPath: s.source });
    const run = await s.run(['--json', '--keep-last', '3']);
    const made = run.json.copy?.file;
    expect([run.code, run.json.pruned?.map((p) => p.file)]).toEqual([0, files.slice(2)]);
    expect(dataFiles(s.to)).toEqual([made, ...files.slice(0, 2)]);
    expect(run.json.kept?.map((k) => k.file)).toEqual([made, ...files.slice(0, 2)]);
    // The rules in the environment are the same rules.
    await dbbackup(['run', s.source, '--to', s.to], { env: { DBBACKUP_KEEP_LAST: '1' } });
    expect(dataFiles(s.to)).toHaveLength(1);
  });

  test('does not remove the copy that it tells a person to bring back; prune does', async () => {
    const s = scene();
    const before = await s.run(['--keep-last', '1', '--json']);
    const db = new Database(s.source);
    db.exec('DROP TABLE setting');
    db.close();
    const after: (string | undefined)[] = [];
    for (const warnings of [['TABLE_GONE'], []]) {
      const run = await s.run(['--keep-last', '1', '--json']);
      expect([run.code, run.json.warnings?.filter((w) => w.severity === 'critical').map((w) => w.code)], run.stderr).toEqual([0, warnings]);
      after.push(run.json.copy?.file);
      expect(new Set(dataFiles(s.to))).toEqual(new Set([...after, before.json.copy?.file]));
      expect(run.json.kept?.at(-1)?.reasons).toEqual([expect.stringMatching(/lacks much of what it has$/)]);
      // It may come again, with a row or two.
      const again = new Database(s.source);
      again.exec('CREATE TABLE IF NOT EXISTS setting (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID');
      again.close();
    }
    expect((await s.run(['--keep-last', '1'])).code).toBe(0);
    expect(dataFiles(s.to)).toContain(before.json.copy?.file);
    expect((await s.ask('prune', ['--keep-last', '1'])).code).toBe(0);
    expect(dataFiles(s.to)).toHaveLength(1);
  });

  test('that fails prunes nothing', async () => {
    const s = scene(null);
    const files = plantDaily(s.to, 4);
    expect((await s.run(['--keep-last', '1'])).code).toBe(1);
    expect(dataFiles(s.to)).toEqual(files);
  });

  test('does not prune the copy that it has made, even behind one that is dated a little ahead', async () => {
    const s = scene();
    const ahead = plant(s.to, baseAt(ago(-30 * 60_000)), { configuredPath: s.source, realPath: s.source });
    const run = await s.run(['--keep-last', '1', '--json']);
    expect([run.code, dataFiles(s.to)]).toEqual([0, [ahead, run.json.copy?.file]]);
  });

  test('of one name leaves the copies of another', async () => {
    const s = scene();
    const other = plantDaily(s.to, 3, HOUR, {}, 'other');
    expect((await s.run(['--keep-last', '1'])).code).toBe(0);
    expect((await s.run(['--keep-last', '1'])).code).toBe(0);
    expect(dataFiles(s.to).filter((f) => f.startsWith('other'))).toEqual(other);
    expect(dataFiles(s.to)).toHaveLength(4);
  });
});
