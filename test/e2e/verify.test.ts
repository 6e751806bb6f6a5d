/** `dbbackup verify` as the operator sees it: what is said of good and bad copies, what is written back, what is left alone. */
import { spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import zlib from 'node:zlib';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import type { Manifest } from '../../src/records.js';
import { cannot, damage, makeFunctionIndexDatabase, readJson, start, until } from '../support/cli.js';
import { parseMail, startSmtp } from '../support/smtp.js';
import { ago, baseAt, dataFiles, plant, type Scene, scene, sceneWithCopy, tree } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

async function withCopy(runs = 1): Promise<{ s: Scene; file: string; path: string; json: string }> {
  const { s } = await sceneWithCopy();
  for (let i = 1; i < runs; i++) expect((await s.run()).code).toBe(0);
  const [file = ''] = dataFiles(s.to);
  return { s, file, path: join(s.to, file), json: join(s.to, file.replace(/db$/, 'json')) };
}

const temp = (s: Scene): string[] => (existsSync(join(s.state, 'tmp')) ? readdirSync(join(s.state, 'tmp')) : []);

describe('a copy that is as it was made', () => {
  test('is good, and its manifest says when that was seen last', async () => {
    const { s, file, json } = await withCopy();
    const before = readJson(json) as Manifest;
    const verify = await s.ask('verify', ['--json']);
    expect(verify.code, verify.stderr).toBe(0);
    expect(problemsIn(verify.json, shapes.verifyDocument)).toEqual([]);
    expect(verify.json).toMatchObject({ command: 'verify', ok: true, results: [{ file, status: 'good', proved: 'full', problems: [] }] });
    const after = readJson(json) as Manifest;
    expect(problemsIn(after, shapes.manifest)).toEqual([]);
    expect(Date.parse(after.verifiedAt ?? '')).toBeGreaterThan(Date.parse(before.verifiedAt ?? ''));
    expect(after.checks.at(-1)).toEqual({ name: 'verify', ok: true, message: 'ok' });
    expect({ ...after, verifiedAt: '', checks: [], selfSha256: '' }).toEqual({ ...before, verifiedAt: '', checks: [], selfSha256: '' });
    expect(temp(s)).toEqual([]);
    const history = await s.ask('history', ['--json']);
    expect(history.json.runs?.[0]).toMatchObject({ command: 'verify', status: 'ok', results: [{ file, status: 'good' }] });
    // What was written back proves out as well.
    expect((await s.ask('verify', [])).code).toBe(0);
  });

  test('is told in a table, and with --quiet not at all', async () => {
    const { s, file } = await withCopy();
    const loud = await s.ask('verify', []);
    expect(loud.stdout).toMatch(new RegExp(`^STATUS +FILE +PROVED +PROBLEMS\ngood +${file} +full +-\n$`));
    const quiet = await s.ask('verify', ['--quiet']);
    expect([quiet.code, quiet.stdout, quiet.stderr]).toEqual([0, '', '']);
  });

  test('of a damaged database stays suspect', async () => {
    const s = scene();
    const db = new Database(s.source);
    db.unsafeMode();
    // A page that belongs to nothing: damage that a VACUUM does not copy.
    db.exec("PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'beat'");
    db.close();
    expect((await s.run()).code).toBe(1);
    const [file = ''] = dataFiles(s.to);
    const verify = await s.ask('verify', [file, '--json']);
    expect(verify.json.results?.[0]).toMatchObject({ file, status: 'suspect' });
  });

  test('that needs functions of the application proves out without them', async () => {
    const s = scene(null);
    makeFunctionIndexDatabase(s.source);
    expect((await s.run()).code).toBe(0);
    expect((await s.ask('verify', [])).code).toBe(0);
  });
});

/** What is done to the copy, and what `verify` says. */
const WRONGS: readonly (readonly [string, (path: string, json: string) => void, RegExp])[] = [
  ['a changed byte', (path) => damage(path, 5000, Buffer.from([0xff, 0x00, 0xff])), /its SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}/],
  ['a byte more', (path) => appendFileSync(path, 'x'), /it has \d+ bytes, not \d+/],
  ['a page less', (path) => truncateSync(path, 4096), /it has 4096 bytes/],
  [
    'an edited manifest',
    (_, json) => writeFileSync(json, readFileSync(json, 'utf8').replace(/"rows": \{\n {2}"(\w+)": \d+/, '"rows": {\n  "$1": 7')),
    /the manifest is not as it was written/,
  ],
  ['an added field', (_, json) => writeFileSync(json, readFileSync(json, 'utf8').replace('{\n', '{\n "more": 1,\n')), /the manifest is not as it was written/],
  [
    'a link in place of the data',
    (path) => {
      renameSync(path, `${path}.elsewhere`);
      symlinkSync(`${path}.elsewhere`, path);
    },
    /COPY_NOT_FOUND/,
  ],
];

describe('a copy with', () => {
  test.each(WRONGS)('%s is bad, and from then on not the latest', async (_, spoil, said) => {
    const { s, file, path, json } = await withCopy();
    spoil(path, json);
    const verify = await s.ask('verify', [file, '--json']);
    expect(verify.code).toBe(1);
    expect(verify.stderr + verify.stdout).toMatch(said);
    expect(verify.stderr).toMatch(/^dbbackup: error COPY_(BAD|NOT_FOUND)/m);
    if (verify.json.results && verify.json.results.length > 0) {
      expect(verify.json).toMatchObject({ ok: false, results: [{ file, status: 'bad', proved: 'full' }], error: { code: 'COPY_BAD', stage: 'verify' } });
      expect(problemsIn(verify.json, shapes.verifyDocument)).toEqual([]);
      expect(verify.json.error?.hint).toContain(`dbbackup verify --all --to ${s.to} --name app proves the others`);
    }
    expect((await s.ask('status', ['--json'])).json).toMatchObject({ healthy: false, newestGood: null });
    expect((await s.ask('verify', [])).code).toBe(1);
    expect(temp(s)).toEqual([]);
    // The keep rules do not count it, and it is left for a person.
    expect((await s.run(['--keep-last', '1'])).code).toBe(0);
    expect(existsSync(path)).toBe(true);
  });

  test('a -wal beside it is refused by verify and restore, and good again when that is gone: its bytes are what they were', async () => {
    const { s, file, path, json } = await withCopy();
    const before = readFileSync(json, 'utf8');
    writeFileSync(`${path}-wal`, '');
    const verify = await s.ask('verify', ['--json']);
    expect([verify.code, verify.json.error?.code], verify.stderr).toEqual([1, 'COPY_BAD']);
    expect(verify.json.error?.hint).toMatch(/remove it: the copy itself proves out$/);
    expect(verify.json.results).toEqual([{ file, status: 'bad', proved: 'full', problems: [expect.stringMatching(/-wal lies beside it.*remove it$/)] }]);
    const refused = await s.ask('restore', ['-o', join(s.home, 'out.db'), '--json']);
    expect([refused.code, refused.json.error?.code, existsSync(join(s.home, 'out.db'))]).toEqual([1, 'COPY_BAD', false]);
    expect(readFileSync(json, 'utf8')).toBe(before);
    rmSync(`${path}-wal`);
    expect([(await s.ask('verify', [])).code, (await s.ask('restore', ['-o', join(s.home, 'out.db')])).code]).toEqual([0, 0]);
  });

  test('damage is proven of the others also where one cannot be read, or unpacked here', async () => {
    const { s } = await withCopy(2);
    const packed = await s.run(['--compress', 'zstd', '--json']);
    const [bad = ''] = dataFiles(s.to);
    const which = (program: string): string => spawnSync('which', [program], { encoding: 'utf8' }).stdout.trim();
    const through = cannot('strace')
      ? []
      : [which('strace'), '-f', '-qq', '-o', '/dev/null', '-P', join(s.to, bad), '-e', 'trace=pread64,read', '-e', 'inject=pread64,read:error=EUCLEAN', '--'];
    const bin = join(s.home, 'bin');
    mkdirSync(bin);
    for (const program of ['node', 'setpriv']) symlinkSync(which(program), join(bin, program));
    const verify = await s.ask('verify', ['--all', '--json'], { through, env: { PATH: bin } });
    const status = (file: string): string | undefined => verify.json.results?.find((r) => r.file === file)?.status;
    expect([packed.code, verify.code]).toEqual([0, 1]);
    expect([status(bad), dataFiles(s.to).slice(1).map(status)], verify.stderr).toEqual([through.length > 0 ? 'bad' : 'good', ['good']]);
    // Of Node itself from 22.15 on.
    if (!('createZstdDecompress' in zlib)) expect(verify.json.results?.find((r) => r.file === packed.json.copy?.file)).toMatchObject({ status: 'unverified' });
  });

  test.skipIf(cannot('strace') !== null)('what is pruned while it is proven is left out, and nothing is said of a disk', async () => {
    const { s } = await withCopy(2);
    const [second = '', first = ''] = ((await s.ask('list', ['--json'])).json.copies ?? []).map((c) => c.file);
    const through = ['strace', '-f', '-qq', '-o', '/dev/null', '-P', join(s.to, first), '-e', 'trace=openat', '-e', 'inject=openat:delay_enter=3000000', '--'];
    const running = start(['verify', '--all', '--to', s.to, '--json'], { through });
    await until('the first copy to be looked at', () => temp(s).length > 0);
    expect((await s.ask('prune', ['--keep-last', '1'])).code).toBe(0);
    expect(dataFiles(s.to)).toEqual([second]);
    const verify = await running.result;
    expect([verify.code, verify.json.results?.map((r) => r.file)], verify.stderr).toEqual([0, [second]]);
  });

  test('a manifest that is none is unverified', async () => {
    const { s, file, json } = await withCopy();
    writeFileSync(json, 'no JSON');
    const verify = await s.ask('verify', [file, '--json']);
    expect(verify.code).toBe(1);
    expect(verify.json.results).toEqual([{ file, status: 'unverified', proved: 'full', problems: [expect.stringContaining('manifest')] }]);
    expect(readFileSync(json, 'utf8')).toBe('no JSON');
  });

  test("another copy's data or manifest", async () => {
    const { s } = await withCopy(2);
    const [newer = '', older = ''] = dataFiles(s.to);
    const manifest = (f: string): string => join(s.to, f.replace(/db$/, 'json'));
    copyFileSync(manifest(older), manifest(newer));
    const verify = await s.ask('verify', ['--all', '--json']);
    expect(verify.json.results?.find((r) => r.file === newer)).toMatchObject({ status: 'unverified' });
    expect(verify.json.results?.find((r) => r.file === older)).toMatchObject({ status: 'good' });
  });
});

test('damage is mailed like a failed run', async () => {
  const smtp = await startSmtp();
  const { s, path } = await withCopy();
  damage(path, 5000, Buffer.from([1, 2, 3]));
  const env = { DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${smtp.port}`, DBBACKUP_MAIL_TO: 'ops@example.org' };
  expect((await s.ask('verify', [], { env })).code).toBe(1);
  expect(smtp.received).toHaveLength(1);
  const mail = parseMail(smtp.received[0]?.raw ?? '');
  expect(mail.headers.get('subject')).toMatch(/^dbbackup: app verify FAILED on .*COPY_BAD/);
  expect(mail.text).toContain('does not prove out');
  await smtp.close();
});

test('a verify that fails at the door is mailed as well: on a timer nobody reads what it prints', async () => {
  const smtp = await startSmtp();
  const { s } = await withCopy();
  chmodSync(s.to, 0o777);
  const env = { DBBACKUP_SMTP_URL: `smtp://127.0.0.1:${smtp.port}`, DBBACKUP_MAIL_TO: 'ops@example.org' };
  const verify = await s.ask('verify', ['--all', '--json'], { env });
  expect([verify.code, verify.json.error?.code], verify.stderr).toEqual([78, 'TARGET_OWNER']);
  expect(smtp.received.map((m) => parseMail(m.raw).headers.get('subject'))).toEqual([
    expect.stringMatching(/^dbbackup: (app )?verify FAILED on .*TARGET_OWNER/),
  ]);
  await smtp.close();
});

test('an archive of many megabytes beside a copy is proven without a word of Node about it', async () => {
  const s = scene({ journal: 'wal' });
  mkdirSync(join(s.home, 'files'));
  writeFileSync(join(s.home, 'files/large'), Buffer.alloc(20_000_000, 'x'));
  expect((await s.run(['--include', join(s.home, 'files')])).code).toBe(0);
  expect(await s.ask('verify', ['--quiet'])).toMatchObject({ code: 0, stdout: '', stderr: '' });
});

describe('which copies', () => {
  test('--all begins with the one that was verified least recently, and --max-time begins no further one', async () => {
    const { s } = await withCopy(3);
    const [a = '', b = '', c = ''] = (await s.ask('list', ['--json'])).json.copies?.map((copy) => copy.file).reverse() ?? [];
    await s.ask('verify', [a]);
    const all = await s.ask('verify', ['--all', '--json']);
    expect(all.json.results?.map((r) => r.file)).toEqual([b, c, a]);
    const some = await s.ask('verify', ['--all', '--max-time', '1ms', '--json']);
    expect(some.json.results?.map((r) => r.file)).toEqual([b]);
    expect((await s.ask('verify', ['--all', '--json'])).json.results?.map((r) => r.file)).toEqual([c, a, b]);
  });

  test('by file, by manifest, by path, and latest', async () => {
    const { s, file, path, json } = await withCopy();
    for (const word of [file, path, json, 'latest']) expect((await s.ask('verify', [word, '--json'])).json.results?.[0]?.file, word).toBe(file);
    expect((await s.ask('verify', [file, path, json, 'latest', '--json'])).json.results?.map((r) => r.file)).toEqual([file]);
  });

  test.each([
    ['a name that no copy has', ['nonsense.db'], 'COPY_NOT_FOUND', 1],
    ['a copy that is not there', ['app-20200101T000000Z.db'], 'COPY_NOT_FOUND', 1],
    ['a path elsewhere', ['/etc/app-20200101T000000Z.db'], 'COPY_NOT_FOUND', 1],
    ['the way out', ['../app-20200101T000000Z.db'], 'COPY_NOT_FOUND', 1],
    ['files and --all', ['--all', 'latest'], 'USAGE', 64],
    ['a wrong time', ['--max-time', 'soon'], 'USAGE', 64],
  ])('%s', async (_, words, code, exit) => {
    const { s } = await withCopy();
    const verify = await s.ask('verify', [...words, '--json']);
    expect([verify.code, verify.json.error?.code]).toEqual([exit, code]);
  });

  test('several names in a directory have to be told apart', async () => {
    const { s } = await withCopy();
    plant(s.to, baseAt(ago(1000), 'other'));
    const verify = await s.ask('verify', ['--json']);
    expect([verify.code, verify.json.error?.code]).toEqual([64, 'USAGE']);
    expect(verify.stderr).toContain('app, other');
    expect((await s.ask('verify', ['--name', 'app'])).code).toBe(0);
  });

  test('no directory, no copies', async () => {
    const s = scene();
    expect((await s.ask('verify', ['--json'])).json.error?.code).toBe('COPY_NOT_FOUND');
    mkdirSync(s.to, { mode: 0o700 });
    expect((await s.ask('verify', ['--json'])).json.error?.code).toBe('COPY_NOT_FOUND');
    const all = await s.ask('verify', ['--all', '--name', 'other', '--json']);
    expect([all.code, all.json.error?.code, all.json.error?.message]).toEqual([1, 'COPY_NOT_FOUND', expect.stringContaining('no copy of other')]);
    expect(readdirSync(s.to)).toEqual([]);
  });
});

test('--dry-run says what it would prove and changes nothing', async () => {
  const { s, file } = await withCopy();
  rmSync(join(s.state, 'history.db'));
  const before = tree(s.home);
  const dry = await s.ask('verify', ['--all', '--dry-run']);
  expect([dry.code, dry.stdout]).toEqual([0, expect.stringMatching(new RegExp(`^would prove ${file} \\(.*B, verified .*\\)\n$`))]);
  const json = await s.ask('verify', ['--all', '--dry-run', '--json']);
  expect(json.json).toMatchObject({ command: 'verify', dryRun: true, ok: true, results: [], plan: { files: [file] }, exitCode: 0 });
  expect(tree(s.home)).toEqual(before);
});
