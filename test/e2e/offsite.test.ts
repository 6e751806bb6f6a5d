/** Copies at a destination, as the operator sees them: what a run uploads, what is said when it cannot, and the way back on a machine that has nothing. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { UploadResult } from '../../src/records.js';
import { dbbackup, type Options, PATH, query, type Result, readJson, start, tempDirectory, until, useDatabase } from '../support/cli.js';
import { noRclone } from '../support/destinations.js';
import { type FakeS3, startFakeS3 } from '../support/fake-s3.js';
import { makeKey } from '../support/packed.js';
import { differences } from '../support/rows.js';
import { ago, baseAt, DAY, everything, plant, type Scene, scene, tree } from './scene.js';

const SECRET = 'canary-secret-of-s3-0123456789';
const TOKEN = 'canary-session-token-0123456789';
let s3: FakeS3;

beforeAll(async () => {
  s3 = await startFakeS3('bucket');
});
beforeEach(() => {
  s3.rule = () => null;
  s3.objects.clear();
  s3.seen.length = 0;
});
afterAll(() => s3.close());

/** A destination of its own for each test. */
let count = 0;
const place = (): { url: string; prefix: string } => {
  const prefix = `p${++count}`;
  return { url: `s3://bucket/${prefix}?endpoint=${s3.endpoint}&region=eu-central-1`, prefix };
};
const CREDENTIALS = { AWS_ACCESS_KEY_ID: 'AKIDCANARY', AWS_SECRET_ACCESS_KEY: SECRET, AWS_SESSION_TOKEN: TOKEN, AWS_EC2_METADATA_DISABLED: 'true' };
const withKeys = (more: Options = {}): Options => ({ ...more, env: { ...CREDENTIALS, ...more.env } });
const named = (prefix: string): string[] => [...s3.objects.keys()].filter((k) => k.startsWith(`${prefix}/`)).map((k) => k.slice(prefix.length + 1));
const uploadsOf = (run: Result): readonly UploadResult[] => run.json.uploads ?? [];
const local = (s: Scene): string[] =>
  readdirSync(s.to)
    .filter((f) => !f.startsWith('.'))
    .sort();
const content = (path: string): unknown => query(path, 'SELECT group_concat(id || quote(cents)) AS x FROM invoice');
const plainSha256Of = (s: Scene): unknown => (readJson(join(s.to, local(s).find((f) => f.endsWith('.json')) ?? '')) as { plainSha256?: unknown }).plainSha256;
const hash = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Files beside the database. */
function uploads(s: Scene): string {
  const directory = join(s.home, 'data/uploads');
  mkdirSync(join(directory, 'deep'), { recursive: true });
  writeFileSync(join(directory, 'one.txt'), 'one');
  writeFileSync(join(directory, 'deep/two ü.bin'), Buffer.alloc(70_000, 7));
  symlinkSync('/etc/hostname', join(directory, 'link'));
  return directory;
}
/** Names, kinds and bytes of a tree, without times and inodes. */
const shape = (directory: string): string[] =>
  tree(directory).map((line) =>
    line
      .split(' ')
      .filter((_, n, all) => n < all.length - 3 || n === all.length - 1)
      .join(' '),
  );

describe('a run', () => {
  test('uploads its copy, manifest last, and says how that was proven', async () => {
    const s = scene();
    const { url, prefix } = place();
    const run = await s.run(['--upload', url, '--json'], withKeys());
    expect(run.code, run.stderr).toBe(0);
    expect(run.json.stages?.map((x) => x.name)).toEqual(['inspect', 'snapshot', 'verify', 'publish', 'prune', 'upload', 'report']);
    const [file = '', manifest = ''] = local(s);
    expect(uploadsOf(run)).toEqual([{ destination: url, status: 'ok', uploaded: [{ file, proved: 'server-checksum' }], missing: [], pruned: [], error: null }]);
    expect(named(prefix).sort()).toEqual([file, manifest].sort());
    for (const name of local(s)) expect(s3.objects.get(`${prefix}/${name}`)).toEqual(readFileSync(join(s.to, name)));
    const stored = s3.seen.filter((x) => x.operation === 'put' || x.operation === 'complete').map((x) => x.key);
    expect(stored).toEqual([`${prefix}/${file}`, `${prefix}/${manifest}`]);
    expect(s3.last.sessionToken).toBe(TOKEN);
    const history = await s.ask('history', ['--json']);
    expect(history.json.runs?.[0]).toMatchObject({ uploads: uploadsOf(run) });
  });

  test('at a destination that refuses: exit 3, a good copy here, told; the next run makes up for it, newest first', async () => {
    const s = scene();
    const { url, prefix } = place();
    const early = plant(s.to, baseAt(ago(DAY)), { configuredPath: s.source });
    s3.rule = ({ operation }) => (operation === 'list' ? null : { status: 403, code: 'AccessDenied' });
    const failed = await s.run(['--upload', url, '--json'], withKeys());
    expect([failed.code, failed.json.status, failed.json.error?.code, failed.json.error?.stage]).toEqual([3, 'incomplete', 'UPLOAD_FAILED', 'upload']);
    expect(failed.json.error?.message).toContain(url);
    expect(failed.json.stages?.find((x) => x.name === 'upload')?.status).toBe('failed');
    const first = failed.json.copy?.file ?? '';
    expect(failed.json.copy?.status).toBe('good');
    expect(uploadsOf(failed)).toMatchObject([{ status: 'failed', uploaded: [], missing: [first], error: { code: 'UPLOAD_DENIED' } }]);
    expect(named(prefix)).toEqual([]);
    expect((await s.ask('status', ['--json'])).json.healthy).toBe(true);

    s3.rule = () => null;
    const next = await s.run(['--upload', url, '--json'], withKeys());
    expect(next.code, next.stderr).toBe(0);
    expect(uploadsOf(next)[0]?.uploaded.map((u) => u.file)).toEqual([next.json.copy?.file, first]);
    // What was there before this destination was set stays here.
    expect(named(prefix)).not.toContain(early);
    const again = await s.run(['--upload', url, '--json'], withKeys());
    expect(uploadsOf(again)[0]?.uploaded.map((u) => u.file)).toEqual([again.json.copy?.file]);
  });

  test.each([
    ['not be written', ['BEGIN', 'SELECT count(*) FROM runs']],
    ['not be read', ['BEGIN EXCLUSIVE']],
  ])('whose history can %s: what is made tonight goes everywhere, and no destination is blamed', async (_, sql) => {
    const s = scene({ journal: 'wal' });
    const [known, fresh] = [tempDirectory('disk'), tempDirectory('disk')];
    const to = ['--upload', `file://${known}`, '--upload', `file://${fresh}`, '--json'];
    expect((await s.run(to.slice(0, 2))).code).toBe(0);
    const holder = await useDatabase(join(s.state, 'history.db'), sql);
    const run = await s.run(to);
    await holder.crash();
    expect([run.code, [...new Set(run.json.warnings?.map((w) => w.code))]], run.stderr).toEqual([0, ['STATE_UNWRITABLE']]);
    for (const disk of [known, fresh]) expect(readdirSync(disk)).toContain(run.json.copy?.file);
    const next = await s.run(to);
    expect([next.code, uploadsOf(next).map((u) => u.error)], next.stderr).toEqual([0, [null, null]]);
    for (const disk of [known, fresh]) expect(readdirSync(disk)).toContain(next.json.copy?.file);
  });

  test('with retries what did not answer is asked again, and only that', async () => {
    const s = scene({ journal: 'wal' });
    const { url, prefix } = place();
    const disk = `file://${tempDirectory('disk')}`;
    let down = true;
    s3.rule = ({ operation }) => (down && operation === 'put' ? { resetAtByte: 100 } : null);
    const running = start(['run', s.source, '--to', s.to, '--upload', disk, '--upload', url, '--retries', '1', '--retry-wait', '1s', '--json'], withKeys());
    await until('the first attempt has failed', () => running.stderr().includes('attempt 1 of 2 failed'), 30_000);
    down = false;
    const run = await running.result;
    expect([run.code, run.json.attempts, run.json.stages?.filter((x) => x.name === 'upload').length], run.stderr).toEqual([0, 2, 2]);
    const file = run.json.copy?.file ?? '';
    expect(uploadsOf(run).map((u) => [u.destination, u.status, u.uploaded.map((x) => x.file)])).toEqual([
      [disk, 'ok', [file]],
      [url, 'ok', [file]],
    ]);
    expect(named(prefix)).toHaveLength(2);
  });

  test('each destination has its own result, and the tagged copies stay here', async () => {
    const s = scene({ journal: 'wal' });
    const { url, prefix } = place();
    const disk = tempDirectory('disk');
    const gone = `file://${join(s.home, 'not-mounted')}`;
    const first = await s.run(['--upload', url, '--json'], withKeys());
    expect(first.code).toBe(0);
    expect((await s.ask('restore', ['--into', s.source, '--yes'])).code).toBe(0);
    // A destination is owed what is made from the second on in which it is first named.
    await until('another second than that of the first copy', () => Date.now() >= Date.parse(first.json.copy?.createdAt ?? '') + 1000);
    const run = await s.run(['--upload', gone, '--upload', url, '--upload', `file://${disk}`, '--json'], withKeys());
    expect(run.code).toBe(3);
    const file = run.json.copy?.file ?? '';
    expect(uploadsOf(run).map((u) => [u.destination, u.status, u.uploaded.map((x) => x.proved)])).toEqual([
      [gone, 'failed', []],
      [url, 'ok', ['server-checksum']],
      [`file://${disk}`, 'ok', ['read-back']],
    ]);
    expect(existsSync(join(s.home, 'not-mounted'))).toBe(false);
    expect(readdirSync(disk).sort()).toEqual(['.dbbackup-destination', file, file.replace('.db', '.json')].sort());
    expect(hash(join(disk, file))).toBe(hash(join(s.to, file)));
    expect(named(prefix)).toHaveLength(4);
  });

  test.each([
    ['is over when upload-timeout is', ['--upload-timeout', '6s'], null, 3, 'TIMEOUT'],
    ['ends within 2 s at a signal, and the record has the copy', [], 'SIGTERM', 143, 'INTERRUPTED'],
  ] as const)('an upload that hangs %s', async (_, more, signal, code, error) => {
    const s = scene();
    const { url } = place();
    const [before, after] = [`file://${tempDirectory('before')}`, `file://${tempDirectory('after')}`];
    s3.rule = ({ operation }) => (operation === 'put' || operation === 'create' ? 'stall' : null);
    const hangs = s3.stalled();
    const all = [before, url, after].flatMap((to) => ['--upload', to]);
    const running = start(['run', s.source, '--to', s.to, ...all, '--json', ...more], withKeys());
    await hangs;
    if (signal) process.kill(running.pid, signal);
    const began = performance.now();
    const run = await running.result;
    expect(run.code, run.stderr).toBe(code);
    if (signal) expect(performance.now() - began).toBeLessThan(2000);
    expect(run.json.copy?.status).toBe('good');
    const file = run.json.copy?.file ?? '';
    // Each has its own time: what hangs takes nothing from the next. At a signal the record has what was done until then.
    const done = [
      [before, 'ok', [], undefined],
      [url, 'failed', [file], error],
      [after, 'ok', [], undefined],
    ].slice(0, signal ? 2 : 3);
    expect(uploadsOf(run).map((u) => [u.destination, u.status, u.missing, u.error?.code])).toEqual(done);
    expect((await s.ask('history', ['--json'])).json.runs?.[0]?.uploads).toEqual(uploadsOf(run));
    s3.rule = () => null;
    const next = await s.run(['--upload', url, '--json'], withKeys());
    expect(next.code, next.stderr).toBe(0);
    expect(uploadsOf(next)[0]?.uploaded.map((u) => u.file)).toEqual([next.json.copy?.file, file]);
  });

  test('a run that is killed before it uploads owes its copy all the same', async () => {
    const s = scene({ journal: 'wal' });
    const { url } = place();
    const killed = await s.run(['--upload', url, '--before', "sh -c 'kill -9 $PPID'"], withKeys());
    expect(killed.signal).toBe('SIGKILL');
    const made = await s.run(['--json']);
    const run = await s.run(['--upload', url, '--json'], withKeys());
    expect(uploadsOf(run)[0]?.uploaded.map((u) => u.file)).toEqual([run.json.copy?.file, made.json.copy?.file]);
  });

  test('what vanished at a destination is uploaded again and told, but for what was removed there by us', async () => {
    const s = scene({ journal: 'wal' });
    const { url, prefix } = place();
    const args = ['--upload', url, '--json', '--keep-last', '9'];
    const key = (file: string): string => `${prefix}/${file}`;
    const four = (await s.run(args, withKeys())).json.copy?.file ?? '';
    const [one, two, three] = [3, 2, 1].map((days) => plant(s.to, baseAt(ago(days * DAY)), { configuredPath: s.source })) as [string, string, string];
    const history = new Database(join(s.state, 'history.db'));
    for (const file of [one, two, three]) {
      for (const part of [file, file.replace('.db', '.json')]) s3.objects.set(key(part), readFileSync(join(s.to, part)));
      history.prepare('INSERT INTO uploads VALUES (?, ?, ?)').run(url, file, '2026-01-01T00:00:00Z');
    }
    history.prepare('INSERT INTO removals VALUES (?, ?, ?)').run(url, one, '2026-01-01T00:00:00Z');
    history.close();
    s3.objects.delete(key(one));
    s3.objects.set(key(two), Buffer.from('cut'));
    s3.objects.delete(key(three.replace('.db', '.json')));
    s3.rule = ({ operation }) => (operation === 'list' ? { status: 403, code: 'AccessDenied' } : null);
    const blind = await s.run(args, withKeys());
    expect([blind.code, uploadsOf(blind)[0]?.uploaded.length, blind.json.warnings]).toEqual([0, 1, []]);
    s3.rule = () => null;
    s3.seen.length = 0;
    const pages = Math.ceil(named(prefix).length / 2);
    const run = await s.run(args, withKeys());
    expect([run.code, uploadsOf(run)[0]?.uploaded.map((u) => u.file)]).toEqual([0, [run.json.copy?.file, three, two]]);
    expect(s3.seen.filter((x) => x.operation === 'list')).toHaveLength(pages);
    expect(run.json.warnings?.map((w) => [w.code, w.severity])).toEqual([['COPIES_VANISHED', 'warning']]);
    expect(run.json.warnings?.[0]?.message).toContain(`2 copies of 4 that had arrived at ${url} are gone or changed, and uploaded again: ${three}, ${two}`);
    expect([named(prefix).includes(one), s3.objects.get(key(two))?.equals(readFileSync(join(s.to, two)))]).toEqual([false, true]);
    const pruned = await s.run(['--upload', url, '--json', '--keep-last', '3', '--upload-prune'], withKeys());
    expect([pruned.code, pruned.json.warnings]).toEqual([0, []]);
    const noted = new Database(join(s.state, 'history.db'), { readonly: true });
    expect(noted.prepare('SELECT file FROM removals ORDER BY file').pluck().all()).toEqual([one, two, three, four].sort());
    noted.close();
  });

  test('an empty directory where copies were stored is a disk that is not mounted, until it is marked', async () => {
    const s = scene({ journal: 'wal' });
    const disk = tempDirectory('disk');
    const args = ['--upload', `file://${disk}`, '--json'];
    const first = await s.run(args);
    expect(first.code, first.stderr).toBe(0);
    for (const file of readdirSync(disk)) rmSync(join(disk, file));
    const run = await s.run(args);
    expect([run.code, uploadsOf(run)[0]?.error?.code, readdirSync(disk)]).toEqual([3, 'UPLOAD_UNREACHABLE', []]);
    const line = /touch (\S+)$/.exec(uploadsOf(run)[0]?.error?.message ?? '')?.[1] ?? '';
    writeFileSync(line, '');
    const next = await s.run(args);
    expect([next.code, uploadsOf(next)[0]?.uploaded.map((u) => u.file)]).toEqual([0, [next.json.copy?.file, run.json.copy?.file, first.json.copy?.file]]);
    expect(next.json.warnings?.map((w) => [w.code, w.severity])).toEqual([['COPIES_VANISHED', 'critical']]);
    // A copy of it is as good as the mark: one may be removed, and not all.
    rmSync(join(disk, '.dbbackup-destination'));
    expect((await s.run(args)).code).toBe(0);
    expect(readdirSync(disk)).toContain('.dbbackup-destination');
  });

  test('--dry-run and check name the destinations; a dry run asks nobody', async () => {
    const s = scene();
    const { url } = place();
    const dry = await s.run(['--upload', url, '--dry-run'], withKeys());
    expect([dry.code, dry.stdout.includes(`would upload it to ${url}`), s3.seen]).toEqual([0, true, []]);
    const fine = await dbbackup(['check', s.source, '--to', s.to, '--upload', url], withKeys());
    expect(fine.stdout).toContain(`destination: ${url}, 0 copies`);
    s3.rule = () => ({ status: 403, code: 'InvalidAccessKeyId' });
    const bad = await dbbackup(['check', s.source, '--to', s.to, '--upload', url, '--json'], withKeys());
    expect([bad.code, bad.json.problems?.find((p) => p.severity === 'critical')?.code]).toEqual([1, 'UPLOAD_FAILED']);
  });
});

describe('upload-prune', () => {
  test('removes old copies of this name by the same rules, and nothing else', async () => {
    const s = scene();
    const { url, prefix } = place();
    s3.objects.set(`${prefix}/other-20260101T000000Z.db`, Buffer.from('x'));
    s3.objects.set(`${prefix}/app-20260101T000000Z.db`, Buffer.from('no manifest'));
    s3.objects.set(`${prefix}/notes.txt`, Buffer.from('x'));
    const foreign = [...s3.objects.keys()].map((k) => k.slice(prefix.length + 1));
    const [one, two] = [await s.run(['--upload', url, '--json'], withKeys()), await s.run(['--upload', url, '--json', '--keep-last', '1'], withKeys())];
    expect([one.code, two.code]).toEqual([0, 0]);
    expect(named(prefix)).toHaveLength(foreign.length + 4);
    const three = await s.run(['--upload', url, '--json', '--keep-last', '1', '--upload-prune'], withKeys());
    expect(three.code, three.stderr).toBe(0);
    expect(uploadsOf(three)[0]?.pruned.map((p) => p.file)).toEqual([two.json.copy?.file, one.json.copy?.file]);
    const file = three.json.copy?.file ?? '';
    expect(named(prefix).sort()).toEqual([...foreign, file, file.replace('.db', '.json')].sort());
  });

  test('leaves there, too, what the run tells a person to bring back', async () => {
    const s = scene();
    const { url, prefix } = place();
    const args = ['--upload', url, '--json', '--keep-last', '1', '--upload-prune'];
    const before = await s.run(args, withKeys());
    const db = new Database(s.source);
    db.exec('DROP TABLE setting');
    db.close();
    const run = await s.run(args, withKeys());
    expect([run.code, uploadsOf(run)[0]?.pruned, run.json.warnings?.some((w) => w.code === 'TABLE_GONE')], run.stderr).toEqual([0, [], true]);
    expect(named(prefix)).toContain(before.json.copy?.file);
  });

  test('with credentials that may not delete is a warning', async () => {
    const s = scene({ journal: 'wal' });
    const { url, prefix } = place();
    expect((await s.run(['--upload', url], withKeys())).code).toBe(0);
    s3.rule = ({ operation }) => (operation === 'delete' ? { status: 403, code: 'AccessDenied' } : null);
    const run = await s.run(['--upload', url, '--json', '--keep-last', '1', '--upload-prune'], withKeys());
    expect([run.code, run.json.warnings?.map((w) => w.code)]).toEqual([0, ['UPLOAD_PRUNE']]);
    expect(named(prefix)).toHaveLength(4);
  });

  test('without upload is a settings error', async () => {
    const s = scene();
    const run = await s.run(['--upload-prune', '--json']);
    expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
  });
});

describe('--from', () => {
  test('lists, proves and restores what is there, needs no directory and leaves nothing behind', async () => {
    const s = scene();
    const { url } = place();
    expect((await s.run(['--upload', url], withKeys())).code).toBe(0);
    const here = await s.ask('list', ['--json']);
    const tmp = tempDirectory('tmp');
    const elsewhere = withKeys({ cwd: tempDirectory('elsewhere'), env: { TMPDIR: tmp } });
    const list = await dbbackup(['list', '--from', url, '--json'], elsewhere);
    expect([list.code, list.json.copies]).toEqual([0, here.json.copies]);
    const verify = await dbbackup(['verify', '--from', url, '--json'], elsewhere);
    expect([verify.code, verify.json.results?.map((r) => [r.status, r.proved])], verify.stderr).toEqual([0, [['good', 'full']]]);
    const out = join(tempDirectory('new'), 'new.db');
    const restore = await dbbackup(['restore', '--from', url, '-o', out, '--json'], elsewhere);
    expect(restore.code, restore.stderr).toBe(0);
    expect(content(out)).toEqual(content(s.source));
    expect([readdirSync(tmp), readdirSync(elsewhere.cwd ?? '')]).toEqual([[], []]);
    // A database that is there must be kept somewhere first.
    const refused = await dbbackup(['restore', '--from', url, '--into', s.source, '--yes', '--json'], elsewhere);
    expect([refused.code, refused.json.error?.code]).toEqual([64, 'USAGE']);
    const into = await s.ask('restore', ['--from', url, '--into', s.source, '--yes', '--json'], withKeys());
    expect(into.code, into.stderr).toBe(0);
    expect(existsSync(join(s.to, into.json.restored?.safetyCopy ?? 'none'))).toBe(true);
  });

  test('what is damaged there is refused, and a connection that breaks is no damage', async () => {
    const s = scene();
    const { url, prefix } = place();
    expect((await s.run(['--upload', url], withKeys())).code).toBe(0);
    const [file = ''] = local(s);
    const out = join(s.home, 'new.db');
    const restore = (): Promise<Result> => dbbackup(['restore', '--from', url, '-o', out, '--json'], withKeys());
    const verify = (): Promise<Result> => dbbackup(['verify', '--from', url, '--json'], withKeys());
    s3.rule = ({ operation, key }) => (operation === 'get' && key.endsWith('.db') ? { cutAtByte: 5000 } : null);
    expect((await restore()).json.error?.code).toBe('REMOTE_FAILED');
    expect((await verify()).json.error?.code).toBe('REMOTE_FAILED');
    s3.rule = () => null;
    const bytes = Buffer.from(s3.objects.get(`${prefix}/${file}`) ?? '');
    bytes.writeUInt8(bytes.readUInt8(4000) ^ 1, 4000);
    s3.objects.set(`${prefix}/${file}`, bytes);
    expect([(await verify()).json.results?.[0]?.status, (await restore()).json.error?.code, existsSync(out)]).toEqual(['bad', 'COPY_BAD', false]);
  });

  test.each([
    ['an address that is none', 'ftp://x', 64, 'USAGE'],
    ['a server that is not there', 's3://bucket/x?endpoint=http://127.0.0.1:9&region=eu-central-1', 1, 'REMOTE_FAILED'],
    ['a disk that is not mounted', 'file:///nowhere/at/all', 1, 'REMOTE_FAILED'],
  ])('%s is said', async (_, url, code, error) => {
    const list = await dbbackup(['list', '--from', url, '--json'], withKeys());
    expect([list.code, list.json.error?.code]).toEqual([code, error]);
  });
});

describe('files beside the database', () => {
  test('are archived with the copy, come back with --files-to alone, and go when the copy is pruned', async () => {
    const s = scene();
    const directory = uploads(s);
    const run = await s.run(['--include', directory, '--json']);
    expect(run.code, run.stderr).toBe(0);
    expect(local(s).map((f) => f.replace(/^app-\w+/, ''))).toEqual(['.db', '.files.tar', '.json']);
    expect((await s.ask('list', ['--json'])).json.copies).toHaveLength(1);
    const plain = await s.ask('restore', ['-o', join(s.home, 'plain.db'), '--json']);
    expect([plain.code, plain.json.restored?.files]).toEqual([0, undefined]);
    const to = join(s.home, 'back');
    const back = await s.ask('restore', ['-o', join(s.home, 'new.db'), '--files-to', to, '--json']);
    expect([back.code, back.json.restored?.files], back.stderr).toEqual([0, { directory: to, count: 2 }]);
    expect(shape(join(to, directory))).toEqual(shape(directory));
    const full = await s.ask('restore', ['-o', join(s.home, 'newer.db'), '--files-to', to, '--json']);
    expect([full.code, full.json.error?.code, existsSync(join(s.home, 'newer.db'))]).toEqual([1, 'RESTORE_FAILED', false]);
    expect((await s.run(['--keep-last', '1'])).code).toBe(0);
    expect(local(s).map((f) => f.replace(/^app-\w+(-\d+)?/, ''))).toEqual(['.db', '.json']);
  });

  test('the database itself is left out of them; what cannot be read is exit 3 with a good copy', async () => {
    const s = scene({ journal: 'wal' });
    uploads(s);
    const run = await s.run(['--include', join(s.home, 'data'), '--include', join(s.home, 'nowhere'), '--json']);
    expect([run.code, run.json.error?.code, run.json.error?.stage, run.json.copy?.status]).toEqual([3, 'INCLUDE_FAILED', 'pack', 'good']);
    expect(run.json.error?.message).toContain(join(s.home, 'nowhere'));
    const to = join(s.home, 'back');
    expect((await s.ask('restore', ['-o', join(s.home, 'new.db'), '--files-to', to])).code).toBe(0);
    expect(readdirSync(join(to, s.home, 'data'))).toEqual(['uploads']);
  });

  test('what is of no kind that is kept is left out, and named', async () => {
    const s = scene();
    const directory = uploads(s);
    spawnSync('mkfifo', [join(directory, 'pipe')]);
    const run = await s.run(['--include', directory, '--json']);
    expect([run.code, run.json.warnings?.filter((w) => w.code === 'FILES_CHANGED').map((w) => w.message)], run.stderr).toEqual([
      0,
      [expect.stringContaining(`1 included file left out: ${directory}/pipe`)],
    ]);
  });

  test.each([
    ['is not there', (): void => undefined],
    ['is a link that leads nowhere', (path: string): void => symlinkSync('gone', path)],
    ['is a link to itself', (path: string): void => symlinkSync(path, path)],
    ['is a FIFO', (path: string): void => void spawnSync('mkfifo', [path])],
    ['is a device', (path: string): void => symlinkSync('/dev/null', path)],
  ])('what %s costs no copy of the database, and is foreseen', async (_, lay) => {
    const s = scene();
    const path = join(s.home, 'included');
    lay(path);
    const include = ['--include', path, '--json'];
    const dry = await s.run([...include, '--dry-run']);
    expect([dry.code, dry.json.error?.code], dry.stderr).toEqual([3, 'INCLUDE_FAILED']);
    const check = await dbbackup(['check', s.source, '--to', s.to, ...include]);
    expect([check.code, check.json.problems?.map((p) => p.code)]).toEqual([1, expect.arrayContaining(['INCLUDE_FAILED'])]);
    const run = await s.run(include);
    expect([run.code, run.json.error?.code, run.json.copy?.status], run.stderr).toEqual([3, 'INCLUDE_FAILED', 'good']);
  });

  test.each([
    ['cut', (path: string) => truncateSync(path, statSync(path).size - 1), 'bad'],
    ['changed', (path: string) => writeFileSync(path, Buffer.alloc(statSync(path).size, 1)), 'bad'],
    ['gone', (path: string) => rmSync(path), 'bad'],
  ])('an archive that is %s makes the copy bad', async (_, harm, status) => {
    const s = scene();
    expect((await s.run(['--include', uploads(s)])).code).toBe(0);
    const archive = local(s).find((f) => f.endsWith('.tar')) ?? '';
    harm(join(s.to, archive));
    const verify = await s.ask('verify', [local(s).find((f) => f.endsWith('.db')) ?? '', '--json', '--name', 'app']);
    expect([verify.code, verify.json.results?.[0]?.status]).toEqual([1, status]);
    expect(verify.json.results?.[0]?.problems.join()).toContain(archive);
    const restore = await s.ask('restore', ['-o', join(s.home, 'new.db'), '--files-to', join(s.home, 'back'), '--json']);
    expect([restore.code, existsSync(join(s.home, 'new.db')), existsSync(join(s.home, 'back'))]).toEqual([1, false, false]);
  });
});

const COMBINATIONS = (['none', 'gzip', 'zstd'] as const).flatMap((compress) =>
  [false, true].flatMap((sealed) => [false, true].map((included) => ({ compress, sealed, included }))),
);

describe('every combination comes back bit for bit, from here, S3, rclone and a disk', () => {
  const rclone = noRclone();
  if (rclone !== null) process.stderr.write(`not run here: combinations with rclone: ${rclone}\n`);

  test.each(COMBINATIONS)('compress $compress, sealed: $sealed, files: $included', async ({ compress, sealed, included }) => {
    const s = scene({ journal: 'delete' });
    const key = await makeKey();
    const directory = uploads(s);
    const far = { RCLONE_CONFIG_FAR_TYPE: 'local' };
    const places = [place().url, `file://${tempDirectory('disk')}`, ...(rclone === null ? [`rclone:far:${tempDirectory('far')}`] : [])];
    const flags = ['--compress', compress, ...(sealed ? ['--encrypt-to', key.recipient] : []), ...(included ? ['--include', directory] : [])];
    const run = await s.run([...flags, ...places.flatMap((p) => ['--upload', p]), '--json'], withKeys({ env: far }));
    expect(run.code, run.stderr).toBe(0);
    const hashes = [];
    for (const from of [['--to', s.to], ...places.map((p) => ['--from', p])]) {
      const home = tempDirectory('machine');
      const args = ['restore', ...from, ...(sealed ? ['--identity-file', key.path] : []), '-o', join(home, 'new.db')];
      const restore = await dbbackup([...args, ...(included ? ['--files-to', join(home, 'files')] : []), '--json'], withKeys({ env: far }));
      expect(restore.code, restore.stderr).toBe(0);
      hashes.push(hash(join(home, 'new.db')));
      if (included) expect(shape(join(home, 'files', directory))).toEqual(shape(directory));
      expect(differences(s.source, join(home, 'new.db'))).toEqual([]);
    }
    // The plain copy as it was proven, whichever way it went.
    expect(new Set(hashes).size).toBe(1);
    if (!sealed) expect(hashes[0]).toBe(plainSha256Of(s));
  });
});

test('the disaster: machine, backup directory and state are gone; database and files come back from S3 with credentials and the key alone', async () => {
  const s = scene({ journal: 'wal' });
  const key = await makeKey();
  const directory = uploads(s);
  const { url } = place();
  const envFile = join(s.home, 'app.env');
  const lines = { DATABASE: s.source, TO: s.to, COMPRESS: 'zstd', ENCRYPT_TO: key.recipient, INCLUDE: directory, UPLOAD: url };
  const text = [...Object.entries(lines).map(([k, v]) => `DBBACKUP_${k}=${v}`), ...Object.entries(CREDENTIALS).map(([k, v]) => `${k}=${v}`)].join('\n');
  writeFileSync(envFile, text, { mode: 0o600 });
  const run = await dbbackup(['run', '--env-file', envFile, '--json', '-v']);
  expect(run.code, run.stderr).toBe(0);
  const before = { rows: content(s.source), files: shape(directory) };
  // No secret is where it does not belong.
  for (const said of [run.stdout, run.stderr, everything(s.to), [...s3.objects.values()].map((b) => b.toString('latin1')).join()])
    for (const secret of [SECRET, TOKEN, key.secret]) expect(said).not.toContain(secret);
  rmSync(s.home, { recursive: true });

  const home = tempDirectory('new-machine');
  const args = ['restore', '--from', url, '--identity-file', key.path, '--into', join(home, 'app.db'), '--files-to', join(home, 'files'), '--force', '--yes'];
  const back = await dbbackup([...args, '--json'], withKeys());
  expect(back.code, back.stderr).toBe(0);
  expect(content(join(home, 'app.db'))).toEqual(before.rows);
  expect(query<string>(join(home, 'app.db'), 'PRAGMA journal_mode')).toBe('wal');
  expect(shape(join(home, 'files', directory))).toEqual(before.files);
  for (const secret of [SECRET, TOKEN, key.secret]) expect(back.stdout + back.stderr).not.toContain(secret);
});

test('settings: credentials in the address are refused and never said; an env file with AWS secrets must be private', async () => {
  const s = scene();
  const inUrl = await s.run(['--upload', `s3://AKID:${SECRET}@bucket/x`, '--json']);
  expect([inUrl.code, inUrl.json.error?.code]).toEqual([78, 'SETTINGS']);
  expect(inUrl.stdout + inUrl.stderr).not.toContain(SECRET);
  const envFile = join(s.home, 'open.env');
  writeFileSync(envFile, `DBBACKUP_TO=${s.to}\nAWS_SECRET_ACCESS_KEY=${SECRET}\n`, { mode: 0o644 });
  const open = await dbbackup(['run', s.source, '--env-file', envFile, '--json'], { env: { PATH } });
  expect([open.code, open.json.error?.message.includes('chmod o-rwx')]).toEqual([78, true]);
  expect(open.stdout + open.stderr).not.toContain(SECRET);
});
