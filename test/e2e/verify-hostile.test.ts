/** `dbbackup verify` among copies that somebody made to harm it: each gets its verdict, and none takes the verdicts of the others away. */
import { copyFileSync, existsSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { bindReadOnly } from '../fault/mounts.js';
import { cannot, damage, dbbackup, EXECUTABLE, type Result, readJson, tempDirectory, useDatabase, wrap } from '../support/cli.js';
import { dataFileOf, manifestFileOf, type Otherwise, type Said, textOf } from '../support/manifest.js';
import { differences } from '../support/rows.js';
import { standStill } from '../support/standstill.js';
import { ago, baseAt, type Copied, dataFiles, HOUR, type Scene, sceneWithCopy, tree } from './scene.js';

interface Made extends Copied {
  /** What its manifest says. */
  readonly said: Said;
}

const jsonOf = (s: Scene, file: string): string => join(s.to, file.replace(/db$/, 'json'));

function saidOf(s: Scene, file: string): Said {
  const { selfSha256: _, ...said } = readJson(jsonOf(s, file)) as Said & { selfSha256: string };
  return said;
}

async function made(): Promise<Made> {
  const { s, file } = await sceneWithCopy();
  return { s, file, said: saidOf(s, file) };
}

/** The same bytes as an older copy, whose manifest somebody wrote. Returns its data file. */
function plantBeside({ s, file, said }: Made, hoursAgo: number, text: (said: Said) => string): string {
  const at = ago(hoursAgo * HOUR);
  const base = baseAt(at);
  const planted = dataFileOf(base);
  copyFileSync(join(s.to, file), join(s.to, planted));
  const createdAt = `${at.toISOString().slice(0, 19)}Z`;
  writeFileSync(join(s.to, manifestFileOf(base)), text({ ...said, file: planted, manifest: manifestFileOf(base), createdAt }), { mode: 0o600 });
  return planted;
}

const verdictOf = (verify: Result, file: string): string | undefined => verify.json.results?.find((r) => r.file === file)?.status;
const problemsOf = (verify: Result, file: string): string => verify.json.results?.find((r) => r.file === file)?.problems.join('; ') ?? '';
const temp = (s: Scene): string[] => readdirSync(join(s.state, 'tmp'));

const NESTED = `${'['.repeat(200_000)}${']'.repeat(200_000)}`;
const saying = (otherwise: Otherwise) => (said: Said) => textOf(said, otherwise);

/** Manifests whose own sum holds, unless they are no manifests at all. */
const HOSTILE: readonly (readonly [what: string, text: (said: Said) => string, status: string])[] = [
  ['rows that are null', saying({ rows: null }), 'unverified'],
  ['rows without end', saying({ rows: { customer: Number.MAX_VALUE } }), 'unverified'],
  ['a check that is null', saying({ checks: [null] }), 'unverified'],
  ['checks that are null', saying({ checks: null }), 'unverified'],
  ['a size of nine petabytes', saying({ sizeBytes: 9e15 }), 'bad'],
  ['a plain size of nine petabytes', saying({ plainSizeBytes: 9e15 }), 'bad'],
  ['nothing but brackets', () => NESTED, 'unverified'],
  ['brackets for rows', (said) => textOf(said, { rows: 7 }).replace('"rows": 7', `"rows": ${NESTED}`), 'unverified'],
  ['brackets in a field that we do not know', (said) => textOf(said).replace('{\n', `{\n "deep": ${NESTED},\n`), 'unverified'],
  ['15 MB of blanks before it', (said) => ' '.repeat(15_000_000) + textOf(said), 'bad'],
  ['15 MB of blanks alone', () => ' '.repeat(15_000_000), 'unverified'],
  ['a prototype', (said) => textOf(said).replace('{\n', '{\n "__proto__": {"status": "good"},\n'), 'bad'],
];

test('a manifest made to harm is refused, and the other copies get their verdicts', async () => {
  const m = await made();
  const files = HOSTILE.map(([, text], i) => plantBeside(m, 2 + i, text));
  const oldest = plantBeside(m, 100, textOf);
  const verify = await m.s.ask('verify', ['--all', '--json']);
  expect([verify.code, verify.hung, verify.json.error?.code], verify.stderr).toEqual([1, false, 'COPY_BAD']);
  expect(HOSTILE.map(([what], i) => [what, verdictOf(verify, files[i] ?? '')])).toEqual(HOSTILE.map(([what, , status]) => [what, status]));
  expect([verdictOf(verify, m.file), verdictOf(verify, oldest)]).toEqual(['good', 'good']);
  expect(temp(m.s)).toEqual([]);
  // What was written back is no snare for the next one.
  const again = await m.s.ask('verify', ['--all', '--json']);
  expect([again.code, verdictOf(again, m.file), verdictOf(again, oldest)], again.stderr).toEqual([1, 'good', 'good']);
  const readers = [['list'], ['prune', '--dry-run'], ['restore', '-o', join(m.s.home, 'x.db'), '--dry-run']];
  expect((await Promise.all(readers.map(([command = '', ...words]) => m.s.ask(command, words)))).map((r) => r.code)).toEqual(readers.map(() => 0));
});

/** What listings, proofs, prunes and restores act on: said of another kind, a copy is not good any more. */
const ACTED_ON: readonly (keyof Said)[] = [
  'schemaVersion',
  'file',
  'manifest',
  'name',
  'createdAt',
  'sizeBytes',
  'sha256',
  'status',
  'method',
  'tags',
  'runId',
  'configuredPath',
  'realPath',
  'pageSize',
  'pageCount',
  'userVersion',
  'applicationId',
  'schemaHash',
  'rows',
  'plainSizeBytes',
  'plainSha256',
  'checks',
];

test('each field of the wrong kind, in a manifest whose own sum holds: nothing crashes, nothing is believed', async () => {
  const m = await made();
  const keys = Object.keys(m.said) as (keyof Said)[];
  const planted = keys.flatMap((key, i) => [{ a: [] }, -0.5].map((value, j) => ({ key, file: plantBeside(m, 2 + 2 * i + j, saying({ [key]: value })) })));
  const verify = await m.s.ask('verify', ['--all', '--json']);
  expect([verify.code, verify.json.error?.code], verify.stderr).toEqual([1, 'COPY_BAD']);
  expect(verify.json.results).toHaveLength(planted.length + 1);
  expect(verdictOf(verify, m.file)).toBe('good');
  const believed = planted.filter(({ file }) => ['good', 'suspect'].includes(verdictOf(verify, file) ?? '')).map(({ key }) => key);
  expect(believed.filter((key) => ACTED_ON.includes(key))).toEqual([]);
  expect(temp(m.s)).toEqual([]);
  expect((await m.s.ask('restore', ['-o', join(m.s.home, 'out.db'), '--json'])).json.restored?.file).toBe(m.file);
});

test('a data file of a terabyte, sparse, is refused without being read, whatever its manifest says', async () => {
  const m = await made();
  const sparse = plantBeside(m, 2, textOf);
  const alone = plantBeside(m, 3, () => 'no manifest');
  const believed = plantBeside(m, 4, saying({ sizeBytes: 2 ** 40, plainSizeBytes: 2 ** 40, status: 'bad' }));
  for (const file of [sparse, alone, believed]) truncateSync(join(m.s.to, file), 2 ** 40);
  const verify = await m.s.ask('verify', [m.file, sparse, alone, '--json'], { deadlineMs: 10_000 });
  expect([verify.code, verify.hung, verify.json.error?.code], verify.stderr).toEqual([1, false, 'COPY_BAD']);
  expect([m.file, sparse, alone].map((file) => verdictOf(verify, file))).toEqual(['good', 'bad', 'unverified']);
  expect(problemsOf(verify, sparse)).toBe(`it has ${2 ** 40} bytes, not ${m.said.sizeBytes}`);
  const target = join(m.s.home, 'out.db');
  const restore = await m.s.ask('restore', [sparse, '-o', target, '--json'], { deadlineMs: 10_000 });
  expect([restore.code, restore.hung, restore.json.error?.code], restore.stderr).toEqual([1, false, 'COPY_BAD']);
  expect(existsSync(target)).toBe(false);
  // One that its manifest calls as large is no small file in disguise: there is no room to prove it, and that is said at once.
  const large = await m.s.ask('verify', [believed, '--json'], { deadlineMs: 10_000 });
  expect([large.code, large.hung, large.json.error?.code], large.stderr).toEqual([1, false, 'NO_SPACE']);
  expect(temp(m.s)).toEqual([]);
});

test('data and manifest that do not belong together are refused by restore and by verify, and the others stand', async () => {
  const { s } = await sceneWithCopy();
  const [a = ''] = dataFiles(s.to);
  const db = new Database(s.source);
  db.exec("INSERT INTO beat (at) VALUES ('later')");
  db.close();
  expect((await s.run()).code).toBe(0);
  const b = dataFiles(s.to).find((file) => file !== a) ?? '';
  const m = { s, file: b, said: saidOf(s, b) };
  expect((await s.run(['--name', 'other'])).code).toBe(0);
  const other = dataFiles(s.to).find((file) => file.startsWith('other-')) ?? '';

  const { sha256, plainSha256, sizeBytes } = saidOf(s, a);
  const forged: readonly (readonly [file: string, status: string, problem: string])[] = [
    // Its hashes changed by hand; its own sum changed as well; a manifest of another name copied over.
    [plantBeside(m, 2, (said) => textOf(said).replaceAll(said.sha256 ?? '', sha256 ?? '')), 'bad', 'its own SHA-256 differs'],
    [plantBeside(m, 3, (said) => textOf(said, { sha256, plainSha256 })), 'bad', 'table beat has 0 rows, not 1'],
    [plantBeside(m, 4, () => readFileSync(jsonOf(s, other), 'utf8')), 'unverified', 'the manifest is not one of this copy'],
  ];
  expect(sizeBytes).toBe(m.said.sizeBytes);
  for (const [file] of forged) copyFileSync(join(s.to, a), join(s.to, file));

  const before = join(s.home, 'before.db');
  copyFileSync(s.source, before);
  const target = join(s.home, 'out.db');
  const present = dataFiles(s.to);
  for (const [file, , problem] of forged) {
    for (const way of [
      ['-o', target],
      ['--into', s.source, '--yes', '--force'],
    ]) {
      const restore = await s.ask('restore', [file, ...way, '--json']);
      expect([restore.code, restore.json.error?.code], restore.stderr).toEqual([1, 'COPY_BAD']);
      expect(restore.json.error?.message).toContain(problem);
    }
  }
  expect([existsSync(target), differences(before, s.source), dataFiles(s.to)]).toEqual([false, [], present]);

  const verify = await s.ask('verify', ['--all', '--name', 'app', '--json']);
  expect([verify.code, verdictOf(verify, a), verdictOf(verify, b)], verify.stderr).toEqual([1, 'good', 'good']);
  expect(forged.map(([file]) => [verdictOf(verify, file), problemsOf(verify, file)])).toEqual(
    forged.map(([, status, problem]) => [status, expect.stringContaining(problem)]),
  );
});

describe('what cannot be written', () => {
  test.skipIf(cannot('root', 'mount'))('a backup directory on a read-only mount: said at once, with the way to read its copies all the same', async () => {
    const { s } = await made();
    const before = tree(s.to);
    const readOnly = bindReadOnly(s.to);
    const verify = await dbbackup(['verify', '--all', '--to', readOnly, '--json']);
    expect([verify.code, verify.json.error?.code, verify.json.results], verify.stderr).toEqual([1, 'TARGET_UNWRITABLE', []]);
    expect(verify.json.error?.message).toContain(`backup directory ${readOnly}: the file system is read-only (EROFS)`);
    expect(verify.json.error?.hint).toContain(`--from file://${readOnly}`);
    // What the hint says is added to the line that did not work.
    for (const more of [[], ['--to', readOnly]]) {
      const asItIs = await dbbackup(['verify', '--all', '--from', `file://${readOnly}`, ...more, '--json']);
      expect([asItIs.code, asItIs.json.results?.map((r) => [r.status, r.proved])], asItIs.stderr).toEqual([0, [['good', 'full']]]);
      const out = join(tempDirectory('read-only'), 'out.db');
      const restore = await dbbackup(['restore', '-o', out, '--from', `file://${readOnly}`, ...more]);
      expect([restore.code, existsSync(out)], restore.stderr).toEqual([0, true]);
    }
    expect(tree(s.to)).toEqual(before);
  });

  test.skipIf(cannot('strace'))(
    'manifests that cannot be written to: each copy gets its verdict all the same, and it is said which could not be marked',
    async () => {
      const m = await made();
      const older = plantBeside(m, 2, textOf);
      const bad = plantBeside(m, 3, textOf);
      damage(join(m.s.to, bad), 5000, Buffer.from([1, 2, 3]));
      const files = [m.file, older, bad];
      const before = files.map((file) => readFileSync(jsonOf(m.s, file), 'utf8'));
      // A manifest is replaced by the rename of its new text, and nothing else of a verify is renamed.
      const through = wrap.fault(join(tempDirectory('trace'), 'log'), [{ calls: 'rename', error: 'EROFS' }]);
      const verify = await m.s.ask('verify', ['--all', '--json'], { through });
      expect([verify.code, verify.json.error?.code], verify.stderr).toEqual([1, 'COPY_BAD']);
      expect(files.map((file) => verdictOf(verify, file))).toEqual(['good', 'good', 'bad']);
      const said = verify.json.warnings?.filter((w) => w.code === 'TARGET_UNWRITABLE').map((w) => w.message) ?? [];
      for (const file of files) expect(said.filter((message) => message.includes(file.replace(/\.db$/, '')) && message.includes('EROFS'))).toHaveLength(1);
      // Where all are good, what could not be written down is the failure.
      const good = await m.s.ask('verify', [m.file, older, '--json'], { through });
      expect([good.code, good.json.error?.code, good.json.results?.map((r) => r.status)], good.stderr).toEqual([1, 'TARGET_UNWRITABLE', ['good', 'good']]);
      expect(files.map((file) => readFileSync(jsonOf(m.s, file), 'utf8'))).toEqual(before);
      expect(temp(m.s)).toEqual([]);
    },
  );
});

test('a state directory over a link on the way: nobody shuts himself out', async () => {
  const { s, file } = await made();
  symlinkSync(s.to, join(s.home, 'way'));
  const state = ['--state-dir', join(s.home, 'way/.dbbackup')];
  const out = join(s.home, 'out.db');
  for (const [command, ...words] of [
    ['verify', '--all'],
    ['prune'],
    ['restore', file, '-o', out],
    ['restore', file, '--into', s.source, '--yes'],
    ['guard', '--database', s.source, '--', 'true'],
    ['run', s.source],
  ]) {
    const cut = words.indexOf('--');
    const at = cut < 0 ? words.length : cut;
    const done = await s.ask(command ?? '', [...state, ...words.slice(0, at), '--json', ...words.slice(at)]);
    expect([done.code, done.json.warnings?.map((w) => w.code).filter((code) => code !== 'SOURCE_ROLLBACK_MODE')], `${command}: ${done.stderr}`).toEqual([
      0,
      [],
    ]);
  }
  expect(temp(s)).toEqual([]);
  // And a run over the other way is shut out while one goes on over this one.
  const holder = await useDatabase(join(s.home, 'way/.dbbackup/app.lock.db'), ['BEGIN IMMEDIATE']);
  expect((await s.run(['--json'])).json.error?.code).toBe('LOCKED');
  await holder.stop();
});

const noStrace = cannot('strace');
if (noStrace) process.stderr.write(`not run here: a verdict on a copy that is exchanged meanwhile: ${noStrace}\n`);

test.skipIf(noStrace)('a verdict is not written into the manifest of another copy that has the name meanwhile', async () => {
  const { s, file, said } = await made();
  const bytes = readFileSync(join(s.to, file));
  damage(join(s.to, file), 5000, Buffer.from([1, 2, 3]));
  // It has its verdict, and is about to take the lock for writing it down.
  const words = [EXECUTABLE, 'verify', file, '--to', s.to, '--json'];
  const verify = await standStill(words, { call: 'openat', path: join(s.state, 'app.lock.db') });
  writeFileSync(join(s.to, file), bytes);
  const other = textOf(said, { runId: '11111111-1111-4111-8111-111111111111' });
  writeFileSync(jsonOf(s, file), other);
  const ended = await verify.goOn();
  expect([ended.code, ended.json.error?.code, verdictOf(ended, file)], ended.stderr).toEqual([1, 'COPY_BAD', 'bad']);
  expect(readFileSync(jsonOf(s, file), 'utf8')).toBe(other);
  // Left alone, the same would have been written down.
  damage(join(s.to, file), 5000, Buffer.from([1, 2, 3]));
  expect((await s.ask('verify', [file])).code).toBe(1);
  expect(saidOf(s, file)).toMatchObject({ status: 'bad', runId: '11111111-1111-4111-8111-111111111111' });
});
