/** Packed copies when things go wrong: damage, bombs, kills, full disks, and programs that are not what they seem. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { appendFileSync, copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statfsSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import zlib, { gzipSync } from 'node:zlib';
import Database from 'better-sqlite3';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { renderManifest } from '../../src/catalog.js';
import type { Manifest } from '../../src/records.js';
import {
  atEnd,
  cannot,
  dbbackup,
  makeDatabase,
  PATH,
  pathOf,
  pathWith,
  type Result,
  readJson,
  signalTo,
  start,
  tempDirectory,
  until,
  wrap,
} from '../support/cli.js';
import { type Key, makeKey, unpackedBy } from '../support/packed.js';
import { mountTmpfs } from './mounts.js';
import { contentOf, processesAt, sha256, sourceState, tempEntries } from './proof.js';

const reason = cannot('age', 'zstd', 'gunzip', 'setpriv');
if (reason) process.stderr.write(`not run here: packed copies when things go wrong: ${reason}\n`);
/** Newer versions of Node have it, and then no program of that name is asked. */
const hasOwnZstd = 'createZstdCompress' in zlib;
if (hasOwnZstd) process.stderr.write('not run here: what a program called zstd may do: this Node has zstd itself\n');
const programs = <Row extends readonly [name: string, ...unknown[]]>(rows: readonly Row[]): Row[] => rows.filter(([name]) => !hasOwnZstd || name !== 'zstd');
const noStrace = cannot('strace');
if (noStrace) process.stderr.write(`not run here: a packed copy between its two names: ${noStrace}\n`);
const noMount = cannot('root', 'mount');
if (noMount) process.stderr.write(`not run here: a disk that fills up while a copy is packed: ${noMount}\n`);

let key: Key;
beforeAll(async () => {
  key = await makeKey();
});

const CANARY = 'cAnArY of a row';

/** A database that is as good as random to a compressor, with one row that is not. */
function database(path: string, bytes: number): void {
  makeDatabase(path, { bytes });
  const db = new Database(path);
  db.prepare('INSERT INTO beat (at) VALUES (?)').run(CANARY);
  db.pragma('wal_checkpoint(TRUNCATE)');
  db.close();
}

const dataIn = (to: string): string[] => (existsSync(to) ? readdirSync(to).filter((f) => f.includes('.db') && f !== '.dbbackup') : []);
const everythingIn = (to: string): string[] => (existsSync(to) ? readdirSync(to).filter((f) => f !== '.dbbackup') : []);

function expectNothingMade(to: string, run: Result): void {
  expect([everythingIn(to), tempEntries(to), run.json.copy ?? null]).toEqual([[], [], null]);
}

// --------------------------------------------------------------------------------------------------------------- damage

interface Victim {
  readonly data: string;
  readonly json: string;
  /** The files of another copy, which is whole. */
  readonly other: { readonly data: string; readonly json: string };
}

/** The manifest of a careful forger: its own sum is right. */
function forge(json: string, change: (m: Manifest) => Partial<Manifest>): void {
  const { selfSha256: _, ...m } = readJson(json) as Manifest;
  writeFileSync(json, renderManifest({ ...m, ...change(m as Manifest) }));
}

function flip(path: string, at: number, bit = 1): void {
  const bytes = readFileSync(path);
  const offset = at < 0 ? bytes.length + at : at;
  bytes[offset] = (bytes[offset] ?? 0) ^ bit;
  writeFileSync(path, bytes);
}

const middle = (path: string): number => Math.floor(readFileSync(path).length / 2);
const facts = (path: string): Partial<Manifest> => ({ sizeBytes: readFileSync(path).length, sha256: sha256(path) });

/** Does something to the data, and makes the manifest say so. */
function known({ data, json }: Victim, act: () => void): void {
  act();
  forge(json, () => facts(data));
}

const bytesOfZeros = 1_000_000_000;

/** A few bytes that unpack to a gigabyte of zeros. */
function bomb(file: string): Buffer {
  if (file.includes('.gz')) {
    const member = gzipSync(Buffer.alloc(20_000_000));
    return Buffer.concat(Array.from({ length: bytesOfZeros / 20_000_000 }, () => member));
  }
  const made = spawnSync('sh', ['-c', `head -c ${bytesOfZeros} /dev/zero | zstd -q -c`], { env: { PATH } });
  return made.stdout;
}

const sealedFor = (recipient: string, bytes: Buffer): Buffer => spawnSync('age', ['-r', recipient], { input: bytes, env: { PATH } }).stdout;

/** So that what follows is refused for the damage alone. */
const NO_DAMAGE = ['nothing', (): void => undefined] as const;

/** What is done to a copy; `where`: only to those whose name says so. */
const DAMAGES: readonly (readonly [name: string, act: (v: Victim) => void, where?: RegExp])[] = [
  ['a bit of its beginning', (v) => flip(v.data, 1)],
  ['a bit in its middle', (v) => flip(v.data, middle(v.data), 128)],
  ['a bit of its last byte', (v) => flip(v.data, -1)],
  ['a bit of the recipient', (v) => flip(v.data, 60), /age/],
  ['its end cut off', (v) => truncateSync(v.data, readFileSync(v.data).length - 1)],
  ['half of it', (v) => truncateSync(v.data, middle(v.data))],
  ['bytes appended', (v) => appendFileSync(v.data, 'more')],
  ['trailing zeros', (v) => appendFileSync(v.data, Buffer.alloc(512))],
  ['a second member that holds nothing', (v) => appendFileSync(v.data, gzipSync('')), /gz$/],
  ['a second member, and a manifest that knows of it', (v) => known(v, () => appendFileSync(v.data, gzipSync('more'))), /gz$/],
  ['the bytes of another copy', (v) => copyFileSync(v.other.data, v.data)],
  ['the bytes of another copy, and a manifest that knows of them', (v) => known(v, () => copyFileSync(v.other.data, v.data))],
  ['the sealed part of another copy', (v) => forge(v.json, () => ({ sealed: (readJson(v.other.json) as Manifest).sealed })), /age/],
  [
    'a bit of the sealed part',
    (v) =>
      forge(v.json, ({ sealed }) => {
        const bytes = Buffer.from(sealed ?? '', 'base64');
        const last = bytes.length - 1;
        bytes[last] = (bytes[last] ?? 0) ^ 1;
        return { sealed: bytes.toString('base64') };
      }),
    /age/,
  ],
  ['a sealed part with other words', (v) => forge(v.json, () => ({ sealed: sealedFor(key.recipient, Buffer.from('{"rows":{}}')).toString('base64') })), /age/],
  ['an edited manifest', (v) => writeFileSync(v.json, readFileSync(v.json, 'utf8').replace(/"userVersion": 7/, '"userVersion": 8'))],
  ['another number of plain bytes', (v) => forge(v.json, (m) => ({ plainSizeBytes: m.plainSizeBytes + 4096 }))],
  ['fewer plain bytes', (v) => forge(v.json, (m) => ({ plainSizeBytes: m.plainSizeBytes - 4096 }))],
  ['a page more in its manifest', (v) => forge(v.json, (m) => ({ pageCount: m.pageCount + 1 }))],
  [
    'a gigabyte of zeros',
    (v) => known(v, () => writeFileSync(v.data, v.data.endsWith('.age') ? sealedFor(key.recipient, bomb(v.data)) : bomb(v.data))),
    /gz|zst/,
  ],
];

describe.skipIf(reason)('damage', { concurrent: true }, () => {
  test.each([['.zst.age', ['--compress', 'zstd'], true]] as const)(
    'no damaged copy %s is called good or comes back',
    { timeout: 120_000 },
    async (suffix, flags, sealed) => {
      const home = tempDirectory('packed-damage');
      const source = join(home, 'app.db');
      const to = join(home, 'backups');
      database(source, 30_000);
      const made: string[] = [];
      for (let i = 0; i < 2; i++) {
        const run = await dbbackup(['run', source, '--to', to, '--json', ...flags, ...(sealed ? ['--encrypt-to', key.recipient] : [])]);
        expect(run.code, run.stderr).toBe(0);
        made.push(run.json.copy?.file ?? '');
        const db = new Database(source);
        db.exec("UPDATE beat SET at = at || '.'");
        db.close();
      }
      const keys = sealed ? ['--identity-file', key.path] : [];
      const [first = '', second = ''] = made;
      const jsonOf = (file: string): string => join(to, file.replace(/\.db.*$/, '.json'));
      const { selfSha256: _, ...manifest } = readJson(jsonOf(first)) as Manifest;
      // As many copies as there are damages, each a good one until then.
      const wrongs = [NO_DAMAGE, ...DAMAGES.filter(([, , where]) => where?.test(suffix) ?? true)];
      const victims = wrongs.map(([name, act], i) => {
        const base = `app-20261101T${String(i).padStart(6, '0')}Z`;
        const file = `${base}.db${suffix}`;
        const createdAt = `2026-11-01T00:00:${String(i).padStart(2, '0')}Z`;
        copyFileSync(join(to, first), join(to, file));
        writeFileSync(join(to, `${base}.json`), renderManifest({ ...manifest, file, manifest: `${base}.json`, createdAt }));
        return { name, act, file, victim: { data: join(to, file), json: join(to, `${base}.json`), other: { data: join(to, second), json: jsonOf(second) } } };
      });
      for (const { act, victim } of victims) act(victim);

      const target = join(home, 'target/app.db');
      mkdirSync(join(home, 'target'));
      makeDatabase(target, { journal: 'delete' });
      const before = sourceState(target);
      // Some of them by restore first, while nothing is marked yet; the bomb, which is the last, both ways.
      for (const [i, { file, name }] of victims.entries()) {
        if (i % 6 !== 1 && i !== victims.length - 1) continue;
        const way = i % 2 === 0 ? ['-o', join(home, 'out.db')] : ['--into', target, '--yes', '--force'];
        const restore = await dbbackup(['restore', file, ...way, '--to', to, '--json', ...keys]);
        expect([name, restore.code, restore.json.error?.code]).toEqual([name, 1, 'COPY_BAD']);
      }
      const verify = await dbbackup(['verify', '--all', '--to', to, '--json', ...keys]);
      const found = Object.fromEntries((verify.json.results ?? []).map((r) => [r.file, r]));
      expect(victims.map(({ name, file }) => [name, found[file]?.status])).toEqual(victims.map(({ name }) => [name, name === NO_DAMAGE[0] ? 'good' : 'bad']));
      expect(made.map((file) => [file, found[file]?.status])).toEqual(made.map((file) => [file, 'good']));
      const zeros = victims.at(-1);
      expect([zeros?.name, found[zeros?.file ?? '']?.problems]).toEqual([
        'a gigabyte of zeros',
        [expect.stringMatching(/cannot be unpacked: it holds more than \d+ bytes/)],
      ]);
      for (const { file, name } of victims.slice(1, 2)) {
        const restore = await dbbackup(['restore', file, '--into', target, '--yes', '--force', '--to', to, '--json', ...keys]);
        expect([name, restore.code, restore.json.error?.code]).toEqual([name, 1, 'COPY_BAD']);
      }
      expect([sourceState(target), readdirSync(join(home, 'target')), existsSync(join(home, 'out.db'))]).toEqual([before, ['app.db'], false]);
      expect([tempEntries(to), dataIn(to).length]).toEqual([[], victims.length + 2]);
    },
  );

  test('a damaged header and a damaged stream, opened by the library', async () => {
    const home = tempDirectory('packed-library');
    const source = join(home, 'app.db');
    const to = join(home, 'backups');
    database(source, 300_000);
    const run = await dbbackup(['run', source, '--to', to, '--json', '--encrypt-to', key.recipient]);
    const file = run.json.copy?.file ?? '';
    const json = join(to, file.replace(/\.db.*$/, '.json'));
    // In the header, and in the stream, where the library has to notice in the middle of its work.
    for (const at of [200, -1]) {
      flip(join(to, file), at);
      forge(json, () => facts(join(to, file)));
      const verify = await dbbackup(['verify', file, '--to', to, '--json', '--identity-file', key.path], { env: { PATH: pathOf() } });
      expect([verify.code, verify.json.results?.[0]?.status], verify.stderr).toEqual([1, 'bad']);
      flip(join(to, file), at);
      forge(json, () => facts(join(to, file)));
    }
    expect((await dbbackup(['verify', file, '--to', to, '--json', '--identity-file', key.path])).code).toBe(0);
  });
});

// ------------------------------------------------------------------------------------------------------------- programs

describe.skipIf(reason)('a program in PATH that', { concurrent: true }, () => {
  /** The real one, whatever PATH the run has. */
  const real = (name: string): string => `/usr/bin/env -i PATH='${PATH}' ${name} "$@"`;
  const unpacks = 'case "$*" in *-d*)';

  test.each(
    programs([
      ['zstd', 'fails', 'echo "zstd: error 11" >&2; exit 11', 'PACK_FAILED'],
      ['zstd', 'writes garbage', 'cat > /dev/null; echo garbage', 'PACK_FAILED'],
      ['zstd', 'does nothing to the bytes', 'exec cat', 'PACK_FAILED'],
      ['zstd', 'writes nothing', 'exit 0', 'PACK_FAILED'],
      ['zstd', 'leaves the end away', `${unpacks} exec ${real('zstd')};; esac; head -c 20000 | ${real('zstd')}`, 'VERIFY_FAILED'],
      ['zstd', 'makes more of it', `${unpacks} exec cat /dev/zero;; esac; exec ${real('zstd')}`, 'VERIFY_FAILED'],
      ['zstd', 'changes a letter', `${unpacks} ${real('zstd')} | tr e f; exit 0;; esac; exec ${real('zstd')}`, 'VERIFY_FAILED'],
      ['zstd', 'kills itself', 'kill -9 $$', 'PACK_FAILED'],
      ['age', 'fails', 'echo "age: error: no" >&2; exit 1', 'PACK_FAILED'],
      ['age', 'fails in the end', `${real('age')}; exit 1`, 'PACK_FAILED'],
      ['age', 'writes garbage', 'cat > /dev/null; echo garbage', 'PACK_FAILED'],
      ['age', 'does nothing to the bytes', 'exec cat', 'PACK_FAILED'],
      ['age', 'leaves the end away', `head -c 20000 | ${real('age')}`, 'PACK_FAILED'],
      ['age', 'adds something', `${real('age')}; echo more`, 'PACK_FAILED'],
      ['age', 'seals for fewer', `shift 2; exec ${real('age')}`, 'PACK_FAILED'],
    ] as const),
  )('is called %s and %s never leads to a copy', async (name, _, body, code) => {
    const home = tempDirectory('packed-fake');
    const source = join(home, 'app.db');
    const to = join(home, 'backups');
    database(source, 60_000);
    const recipients = [key.recipient, (await makeKey()).recipient].flatMap((r) => ['--encrypt-to', r]);
    const flags = name === 'zstd' ? ['--compress', 'zstd'] : recipients;
    const run = await dbbackup(['run', source, '--to', to, '--json', ...flags], { env: { PATH: pathWith(name, body) } });
    expect([run.code, run.json.error?.code, run.json.error?.stage], run.stderr).toEqual([1, code, 'pack']);
    expectNothingMade(to, run);
  });

  test.each(
    programs([
      ['zstd', 'kill -9 $$', 'was ended by SIGKILL'],
      ['age', 'kill -9 $$', 'was ended by SIGKILL'],
    ] as const),
  )('is called %s and is killed does not make a good copy bad', async (name, body, said) => {
    const home = tempDirectory('packed-killed');
    const source = join(home, 'app.db');
    const to = join(home, 'backups');
    database(source, 300_000);
    expect((await dbbackup(['run', source, '--to', to, '--compress', 'zstd', '--encrypt-to', key.recipient])).code).toBe(0);
    const verify = await dbbackup(['verify', '--to', to, '--json', '--identity-file', key.path], { env: { PATH: pathWith(name, body) } });
    expect([verify.code, verify.json.error?.code, verify.json.error?.message], verify.stderr).toEqual([1, 'IO_ERROR', expect.stringContaining(said)]);
    expect((await dbbackup(['list', '--to', to, '--json'])).json.copies?.map((c) => c.status)).toEqual(['good']);
  });
});

// ---------------------------------------------------------------------------------------------------------------- kills

describe.skipIf(reason)('a run that packs', () => {
  const home = tempDirectory('packed-kill');
  const source = join(home, 'app.db');
  const content = (): string => contentOf(source);
  beforeAll(() => {
    database(source, 16_000_000);
  });
  const to = join(home, 'backups');
  afterEach(() => rmSync(to, { recursive: true, force: true }));
  const argsOf = (flags: readonly string[]): string[] => ['run', source, '--to', to, '--json', ...flags];
  const seal = (): string[] => ['--encrypt-to', key.recipient];
  const isAt = (name: string) => (): boolean => tempEntries(to).some((f) => f.endsWith(name));

  /** A program that says who it is, does a part of the work, and then waits for ever. */
  const stuck = (name: string, how: 'itself' | 'with a child'): { PATH: string; pid: () => number; waiter: () => number } => {
    const directory = tempDirectory('stuck');
    const wait = how === 'itself' ? 'exec sleep 600' : `sleep 600 & echo $! > '${directory}/waiter'; wait`;
    const body = `echo $$ > '${directory}/pid.new'; head -c 100000 | /usr/bin/env -i PATH='${PATH}' ${name} "$@"; mv '${directory}/pid.new' '${directory}/pid'; ${wait}`;
    const read = (file: string) => (): number => (existsSync(join(directory, file)) ? Number(readFileSync(join(directory, file), 'utf8')) : 0);
    const waiter = read(how === 'itself' ? 'pid' : 'waiter');
    // Where a test fails, it would wait on.
    atEnd(() => {
      if (waiter() > 0 && readProc(waiter()).startsWith('sleep\0')) signalTo(waiter(), 'SIGKILL');
    });
    return { PATH: pathWith(name, body), pid: read('pid'), waiter };
  };
  const readProc = (pid: number): string => (existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : '');
  const isGone = (pid: number) => (): boolean => {
    // A zombie that nobody has fetched yet is gone, too.
    const status = existsSync(`/proc/${pid}/status`) ? readFileSync(`/proc/${pid}/status`, 'utf8') : 'State:\tZ';
    return /^State:\tZ/m.test(status);
  };

  async function expectHealed(flags: readonly string[], options = {}): Promise<void> {
    const next = await dbbackup(argsOf(flags), options);
    expect(next.code, next.stderr).toBe(0);
    expect([tempEntries(to), dataIn(to)]).toEqual([[], [next.json.copy?.file]]);
    const back = join(home, 'back.db');
    writeFileSync(back, unpackedBy(join(to, next.json.copy?.file ?? ''), key));
    expect(contentOf(back)).toBe(content());
    // Nothing plain of a sealed copy is left anywhere.
    if (flags.includes('--encrypt-to')) expect(spawnSync('grep', ['-rlF', CANARY, to]).stdout.toString()).toBe('');
  }

  test.each([
    ['gzip', 'data.db.packed', ['--compress', 'gzip'], false],
    ['zstd', 'data.db.packed', ['--compress', 'zstd'], true],
    ['age', 'data.db.age', [], true],
  ] as const)('and is killed with -9 in the middle of %s leaves no copy and no process, and the next run sweeps', async (_, file, flags, sealed) => {
    const all = [...flags, ...(sealed ? seal() : [])];
    const run = start(argsOf(all));
    await until(`${file} to appear`, isAt(file), 20_000, 1);
    signalTo(run.pid, 'SIGKILL');
    await run.result;
    expect(everythingIn(to)).toEqual([]);
    await until('nobody to be left', () => processesAt(home).length === 0, 3000);
    await expectHealed(all);
  });

  test.each(programs([['zstd'], ['age']] as const))('and is killed with -9 while %s hangs takes it along', async (name) => {
    const { PATH: path, pid } = stuck(name, 'itself');
    const flags = name === 'zstd' ? ['--compress', 'zstd', ...seal()] : seal();
    const run = start(argsOf(flags), { env: { PATH: path } });
    await until(`${name} to be stuck`, () => pid() > 0, 20_000);
    signalTo(run.pid, 'SIGKILL');
    await run.result;
    await until(`${name} to be gone`, isGone(pid()), 3000);
    expect([everythingIn(to), tempEntries(to).length > 0]).toEqual([[], true]);
    await expectHealed(flags);
  });

  test.each(
    programs([
      ['zstd', 'itself'],
      ['zstd', 'with a child'],
      ['age', 'itself'],
      ['age', 'with a child'],
    ] as const),
  )('and hears SIGTERM while %s hangs, %s, ends within 2 s', async (name, how) => {
    const { PATH: path, pid, waiter } = stuck(name, how);
    const run = start(argsOf(name === 'zstd' ? ['--compress', 'zstd'] : seal()), { env: { PATH: path } });
    await until(`${name} to be stuck`, () => pid() > 0 && waiter() > 0, 20_000);
    const began = performance.now();
    signalTo(run.pid, 'SIGTERM');
    const ended = await run.result;
    expect(performance.now() - began).toBeLessThan(2000);
    expect([ended.code, ended.json.error?.code, ended.json.status]).toEqual([143, 'INTERRUPTED', 'interrupted']);
    expect([isGone(pid())(), isGone(waiter())()]).toEqual([true, true]);
    expectNothingMade(to, ended);
  });

  test('and hears SIGTERM in the middle of gzip, ends within 2 s', async () => {
    const run = start(argsOf(['--compress', 'gzip']));
    await until('data.db.packed to appear', isAt('data.db.packed'), 20_000, 1);
    const began = performance.now();
    signalTo(run.pid, 'SIGTERM');
    const ended = await run.result;
    expect(performance.now() - began).toBeLessThan(2000);
    expect([ended.code, ended.json.error?.code]).toEqual([143, 'INTERRUPTED']);
    expectNothingMade(to, ended);
  });
});

test.each([
  ['a signal', [], 143, 'INTERRUPTED', 'interrupted'],
  ['the time limit', ['--timeout', '700ms'], 1, 'TIMEOUT', 'failed'],
] as const)('%s while only gzip is still at work ends the run as such, and leaves nothing', async (_, flags, code, error, status) => {
  const home = tempDirectory('gzip');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  const db = new Database(source);
  // Quickly checked, and slowly compressed.
  db.exec('CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) INSERT INTO t SELECT randomblob(1000000) FROM n');
  db.close();
  const run = start(['run', source, '--to', to, '--json', '--compress', 'gzip', ...flags]);
  if (flags.length === 0) {
    await until('the proof to be done', () => run.stderr().includes('verify   good'), 30_000, 1);
    signalTo(run.pid, 'SIGTERM');
  }
  const ended = await run.result;
  expect([ended.code, ended.json.error?.code, ended.json.status], ended.stderr).toEqual([code, error, status]);
  expect([readdirSync(to), tempEntries(to)]).toEqual([['.dbbackup'], []]);
});

describe.skipIf(reason ?? noStrace)('a copy killed between its two names', () => {
  test.each([
    ['zstd, sealed', '.zst.age', ['--compress', 'zstd'], true, false],
    ['gzip', '.gz', ['--compress', 'gzip'], false, false],
    ['sealed, and damaged since', '.age', [], true, true],
  ] as const)('%s is completed by the next run, or withdrawn', async (_, suffix, flags, sealed, spoiled) => {
    const home = tempDirectory('packed-links');
    const source = join(home, 'app.db');
    const to = join(home, 'backups');
    database(source, 40_000);
    const args = ['run', source, '--to', to, '--json', ...flags, ...(sealed ? ['--encrypt-to', key.recipient] : [])];
    const killed = await dbbackup(args, { through: wrap.fault(join(home, 'trace'), [{ calls: 'link,linkat', signal: 'KILL', when: 2 }]) });
    expect(killed.signal === 'SIGKILL' || killed.code === 137, killed.stderr).toBe(true);
    const [file = '', ...more] = everythingIn(to);
    expect([file.endsWith(`.db${suffix}`), more]).toEqual([true, []]);
    if (spoiled) flip(join(to, file), -1);
    const next = await dbbackup(args);
    expect(next.code, next.stderr).toBe(0);
    expect(next.json.warnings?.find((w) => w.code === 'HEALED')?.message).toMatch(spoiled ? / and was withdrawn$/ : / and completed$/);
    expect(dataIn(to).includes(file)).toBe(!spoiled || next.json.copy?.file === file);
    expect([dataIn(to).length, tempEntries(to)]).toEqual([spoiled ? 1 : 2, []]);
    const verify = await dbbackup(['verify', '--all', '--to', to, '--json', '--identity-file', key.path]);
    expect([verify.code, new Set(verify.json.results?.map((r) => `${r.status} ${r.proved}`))]).toEqual([0, new Set(['good full'])]);
  });
});

describe.skipIf(reason ?? noMount)('a disk that fills up while', () => {
  const SIZE = 40_000_000;
  test.each(
    programs([
      ['zstd', ['--compress', 'zstd'], false],
      ['age', [], true],
      ['gzip', ['--compress', 'gzip'], false],
    ] as const),
  )('%s is at work is NO_SPACE, and leaves nothing', async (name, flags, sealed) => {
    const point = mountTmpfs(SIZE);
    const source = join(tempDirectory('packed-full'), 'app.db');
    const to = join(point, 'backups');
    database(source, 12_000_000);
    const filler = join(point, 'filler');
    const args = ['run', source, '--to', to, '--json', ...flags, ...(sealed ? ['--encrypt-to', key.recipient] : [])];
    // A program fills the disk before it begins. Node's own gzip takes long enough for us.
    const body = `dd if=/dev/zero of='${filler}' bs=64k 2>/dev/null; exec /usr/bin/env -i PATH='${PATH}' ${name} "$@"`;
    const run = start(args, name === 'gzip' ? {} : { env: { PATH: pathWith(name, body) } });
    if (name === 'gzip') {
      await until('data.db.packed to appear', () => tempEntries(to).some((f) => f.endsWith('data.db.packed')), 20_000, 1);
      const { bavail, bsize } = statfsSync(point);
      try {
        writeFileSync(filler, Buffer.alloc(bavail * bsize));
      } catch {
        // The run took some of it meanwhile: the disk is full, as it was to be.
      }
    }
    const full = await run.result;
    expect([full.code, full.json.error?.code, full.json.error?.stage], full.stderr).toEqual([1, 'NO_SPACE', 'pack']);
    expectNothingMade(to, full);
    rmSync(filler);
    const next = await dbbackup(args);
    expect([next.code, tempEntries(to), dataIn(to).length]).toEqual([0, [], 1]);
    expect(
      createHash('sha256')
        .update(unpackedBy(join(to, dataIn(to)[0] ?? ''), key))
        .digest('hex'),
    ).toMatch(/^[0-9a-f]{64}$/);
  });
});
