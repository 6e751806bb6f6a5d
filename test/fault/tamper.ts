/**
 * Damaged copies and manifests: flipped bits, truncations, exchanged files, edited JSON, planted sidecars, links and FIFOs
 * in the place of files. A round tampers with one copy of two and meets it with one command: `verify`, `restore -o` or
 * `restore --into`. None may take it for good, and none may leave a trace at the place it was to be restored to.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import Database from 'better-sqlite3';
import { damage, dbbackup, leaveSidecars, makeDatabase, type Result, removeDirectory, tempDirectory } from '../support/cli.js';
import { counted, type Failure, mustEndCleanly, type Random, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { must, sha256, sourceState } from './proof.js';

// ------------------------------------------------------------------------------------------------------------ tampers

/** The files of the copy that is tampered with, and of another one, of the same size, in the same directory. */
interface Victim {
  readonly data: string;
  readonly manifest: string;
  readonly otherData: string;
  readonly otherManifest: string;
  /** A `-wal` with rows that the copy does not hold, and that SQLite reads with it. */
  readonly plantedWal: string;
}

interface Tamper {
  readonly name: string;
  /** Does it, and says what it did. */
  readonly act: (victim: Victim, random: Random) => string;
  /** The other copy does not prove out either. */
  readonly both?: true;
  /** A manifest alone is an unfinished prune, no copy: only who asks for it by name is told. */
  readonly byName?: true;
  /** Only the verdict is another, and a worse one: it keeps a restore back, and `verify` proves the bytes again and takes it back. */
  readonly verdictOnly?: true;
}

const sizeOf = (path: string): number => lstatSync(path).size;

function flip(path: string, random: Random, bits: number): string {
  const bytes = readFileSync(path);
  const said: string[] = [];
  const done = new Set<number>();
  while (done.size < bits) {
    const at = random.below(bytes.length * 8);
    // The same bit twice would be no damage.
    if (done.has(at)) continue;
    done.add(at);
    const offset = at >> 3;
    bytes[offset] = (bytes[offset] ?? 0) ^ (1 << (at & 7));
    said.push(`${at & 7} of byte ${offset}`);
  }
  writeFileSync(path, bytes);
  return `${basename(path)}: bit ${said.slice(0, 3).join(', ')} flipped${bits > 3 ? `, ${bits} bits in all` : ''}`;
}

function truncate(path: string, length: number): string {
  truncateSync(path, length);
  return `${basename(path)}: truncated to ${length} bytes`;
}

function append(path: string, bytes: Uint8Array | string): string {
  appendFileSync(path, bytes);
  return `${basename(path)}: ${bytes.length} bytes appended`;
}

function exchange(a: string, b: string): string {
  renameSync(a, `${a}.x`);
  renameSync(b, a);
  renameSync(`${a}.x`, b);
  return `${basename(a)} and ${basename(b)} exchanged`;
}

/** Something else takes the place of a file, whose bytes live on elsewhere. */
function replaceBy(path: string, kind: 'link' | 'relative link' | 'fifo' | 'directory' | 'nothing'): string {
  const away = join(dirname(dirname(path)), `away-${basename(path)}`);
  renameSync(path, away);
  if (kind === 'link') symlinkSync(away, path);
  if (kind === 'relative link') symlinkSync(`../${basename(away)}`, path);
  if (kind === 'fifo' && spawnSync('mkfifo', [path]).status !== 0) throw new Error('mkfifo failed');
  if (kind === 'directory') mkdirSync(path, { mode: 0o700 });
  return `${basename(path)}: ${kind} in its place`;
}

function plant(path: string, bytes: Uint8Array): string {
  writeFileSync(path, bytes, { mode: 0o600 });
  return `${basename(path)} planted, ${bytes.length} bytes`;
}

const TAMPERS: readonly Tamper[] = [
  { name: 'data-bit', act: (v, random) => flip(v.data, random, 1) },
  { name: 'manifest-bit', act: (v, random) => flip(v.manifest, random, 1) },
  { name: 'data-bits', act: (v, random) => flip(v.data, random, 2 + random.below(30)) },
  { name: 'manifest-bits', act: (v, random) => flip(v.manifest, random, 2 + random.below(5)) },
  { name: 'data-truncated', act: (v, random) => truncate(v.data, random.below(sizeOf(v.data))) },
  { name: 'data-less-a-page', act: (v) => truncate(v.data, sizeOf(v.data) - 4096) },
  { name: 'data-empty', act: (v) => truncate(v.data, 0) },
  { name: 'manifest-truncated', act: (v, random) => truncate(v.manifest, random.below(sizeOf(v.manifest))) },
  { name: 'manifest-less-its-end', act: (v) => truncate(v.manifest, sizeOf(v.manifest) - 1) },
  { name: 'manifest-empty', act: (v) => truncate(v.manifest, 0) },
  { name: 'data-longer', act: (v, random) => append(v.data, random.bytes(1 + random.below(5000))) },
  { name: 'data-longer-by-a-page', act: (v) => append(v.data, new Uint8Array(4096)) },
  { name: 'manifest-longer', act: (v, random) => append(v.manifest, random.pick([' ', '\n', '\0', '{}', '}\n', ',', '\t\n'])) },
  { name: 'manifest-huge', act: (v) => truncate(v.manifest, 17_000_000) },
  { name: 'data-exchanged', both: true, act: (v) => exchange(v.data, v.otherData) },
  { name: 'manifests-exchanged', both: true, act: (v) => exchange(v.manifest, v.otherManifest) },
  {
    name: 'data-of-the-other',
    act: (v) => {
      copyFileSync(v.otherData, v.data);
      return `${basename(v.data)}: holds what ${basename(v.otherData)} holds`;
    },
  },
  {
    name: 'manifest-of-the-other',
    act: (v) => {
      copyFileSync(v.otherManifest, v.manifest);
      return `${basename(v.manifest)}: holds what ${basename(v.otherManifest)} holds`;
    },
  },
  {
    name: 'page-garbage',
    act: (v, random) => {
      const at = random.below(sizeOf(v.data) - 64);
      damage(v.data, at, random.bytes(64));
      return `${basename(v.data)}: garbage at ${at}`;
    },
  },
  {
    name: 'manifest-other-text',
    act: (v, random) => {
      const text = readFileSync(v.manifest, 'utf8');
      const other = random.pick([text.replaceAll('\n', '\r\n'), `\uFEFF${text}`, text + text, JSON.stringify(JSON.parse(text)), `[${text}]`, 'null', '"text"']);
      writeFileSync(v.manifest, other);
      return `${basename(v.manifest)}: ${other.length} characters in place of ${text.length}`;
    },
  },
  { name: 'planted-wal', act: (v) => plant(`${v.data}-wal`, readFileSync(v.plantedWal)) },
  { name: 'planted-wal-empty', act: (v) => plant(`${v.data}-wal`, new Uint8Array()) },
  { name: 'planted-wal-garbage', act: (v, random) => plant(`${v.data}-wal`, random.bytes(1 + random.below(9000))) },
  { name: 'planted-journal', act: (v, random) => plant(`${v.data}-journal`, random.bytes(1 + random.below(9000))) },
  { name: 'planted-journal-empty', act: (v) => plant(`${v.data}-journal`, new Uint8Array()) },
  { name: 'data-link', act: (v) => replaceBy(v.data, 'link') },
  { name: 'data-relative-link', act: (v) => replaceBy(v.data, 'relative link') },
  { name: 'data-fifo', act: (v) => replaceBy(v.data, 'fifo') },
  { name: 'data-directory', act: (v) => replaceBy(v.data, 'directory') },
  { name: 'data-gone', byName: true, act: (v) => replaceBy(v.data, 'nothing') },
  { name: 'manifest-link', act: (v) => replaceBy(v.manifest, 'link') },
  { name: 'manifest-fifo', act: (v) => replaceBy(v.manifest, 'fifo') },
  { name: 'manifest-directory', act: (v) => replaceBy(v.manifest, 'directory') },
  { name: 'manifest-gone', act: (v) => replaceBy(v.manifest, 'nothing') },
];

// ---------------------------------------------------------------------------------------------------- edits of the JSON

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type Fields = { [key: string]: Json };

const isFields = (v: Json | undefined): v is Fields => typeof v === 'object' && v !== null && !Array.isArray(v);

/** Another value of the same kind. */
function otherwise(value: Json, random: Random): Json {
  if (value === null) return 'something';
  if (typeof value === 'boolean') return !value;
  if (typeof value === 'number') return random.chance(0.5) ? value + 1 : value * 2 + 1;
  if (Array.isArray(value)) return value.length === 0 ? ['something'] : value.slice(1);
  if (isFields(value)) return { ...value, something: 1 };
  if (value.length === 0) return 'x';
  const at = random.below(value.length);
  return value.slice(0, at) + (value[at] === '0' ? '1' : '0') + value.slice(at + 1);
}

const textOf = (fields: Fields): string => `${JSON.stringify(fields, null, 1)}\n`;

/** The text as a careful forger would write it, with its own SHA-256 right: what it says must still be what the data is. */
function forged(fields: Fields): string {
  const text = textOf({ ...fields, selfSha256: '0'.repeat(64) });
  return text.replace(/0{64}(?="\n}\n$)/, createHash('sha256').update(text).digest('hex'));
}

function edit(name: string, change: (fields: Fields, random: Random) => void, render = textOf): Tamper {
  return {
    name,
    act: (v, random) => {
      const before = readFileSync(v.manifest, 'utf8');
      const fields = JSON.parse(before) as Fields;
      change(fields, random);
      const after = render(fields);
      must(after !== before, `${name} changed nothing`);
      writeFileSync(v.manifest, after);
      return name;
    },
  };
}

/** Fields that say what the data is: even with a right sum over the manifest, the data itself contradicts. */
const FACTS = [
  'file',
  'manifest',
  'name',
  'createdAt',
  'sizeBytes',
  'sha256',
  'pageSize',
  'pageCount',
  'userVersion',
  'applicationId',
  'schemaHash',
  'plainSizeBytes',
  'plainSha256',
];

/** Every field changed and removed, also those of the objects within; fields too many; forgeries. */
function editsOf(manifest: Fields): Tamper[] {
  const edits: Tamper[] = [];
  for (const [key, value] of Object.entries(manifest)) {
    edits.push(
      edit(`${key} changed`, (m, random) => {
        m[key] = otherwise(m[key] ?? null, random);
      }),
      edit(`${key} removed`, (m) => {
        delete m[key];
      }),
    );
    if (!isFields(value)) continue;
    for (const inner of Object.keys(value)) {
      edits.push(
        edit(`${key}.${inner} changed`, (m, random) => {
          const within = m[key];
          if (isFields(within)) within[inner] = otherwise(within[inner] ?? null, random);
        }),
      );
    }
  }
  edits.push(
    edit('a check turned', (m, random) => {
      const check = Array.isArray(m['checks']) ? random.pick(m['checks']) : null;
      if (isFields(check)) check['ok'] = check['ok'] !== true;
    }),
    edit('a field more', (m) => {
      m['more'] = 1;
    }),
    edit('a field more, in front', (m) => {
      const rest = { ...m };
      for (const key of Object.keys(m)) delete m[key];
      Object.assign(m, { more: 1 }, rest);
    }),
    edit('two fields in another order', (m) => {
      const { file, ...rest } = m;
      for (const key of Object.keys(m)) delete m[key];
      Object.assign(m, rest, { file });
    }),
    ...FACTS.map((key) =>
      edit(
        `${key} forged`,
        (m, random) => {
          m[key] = otherwise(m[key] ?? null, random);
        },
        forged,
      ),
    ),
    edit(
      'a table forged',
      (m, random) => {
        const rows = m['rows'];
        if (isFields(rows)) rows[random.pick(Object.keys(rows))] = 7;
      },
      forged,
    ),
    { ...edit('status forged', (m) => Object.assign(m, { status: 'bad' }), forged), verdictOnly: true },
  );
  return edits;
}

// -------------------------------------------------------------------------------------------------------------- targets

/** What `--into` is to replace. Each is made once and copied for a round. */
const TARGETS: Readonly<Record<string, (path: string) => void | Promise<void>>> = {
  idle: (path) => makeDatabase(path, { bytes: 40_000 }),
  crashed: async (path) => {
    makeDatabase(path, { bytes: 40_000 });
    await leaveSidecars(path);
  },
  rollback: (path) => makeDatabase(path, { journal: 'delete', bytes: 40_000 }),
  'other-pages': (path) => makeDatabase(path, { pageSize: 1024, bytes: 40_000 }),
  damaged: (path) => {
    makeDatabase(path, { bytes: 40_000 });
    damage(path, 0, new Uint8Array(4096).fill(7));
    writeFileSync(`${path}-wal`, 'what was left of it');
  },
  missing: () => undefined,
};

// --------------------------------------------------------------------------------------------------------------- rounds

interface Stage {
  readonly home: string;
  /** The two proven copies, by base name. */
  readonly bases: readonly [string, string];
  readonly edits: readonly Tamper[];
}

async function setStage(): Promise<Stage> {
  const home = tempDirectory('tampered');
  const source = join(home, 'app.db');
  const to = join(home, 'backups');
  makeDatabase(source, { bytes: 30_000 });
  const bases: string[] = [];
  for (let i = 0; i < 2; i++) {
    const db = new Database(source);
    // As many bytes as before: the two copies differ in content alone.
    db.exec(`UPDATE customer SET born = ${1950 + i}; PRAGMA wal_checkpoint(TRUNCATE)`);
    db.close();
    const run = await dbbackup(['run', source, '--to', to, '--json']);
    must(run.code === 0, () => `no copy to tamper with: ${told(run)}`);
    bases.push(basename(run.json.copy?.file ?? '', '.db'));
  }
  const [first = '', second = ''] = bases;
  const data = join(to, `${first}.db`);
  must(sizeOf(data) === sizeOf(join(to, `${second}.db`)), 'the two copies have different sizes');
  must(sha256(data) !== sha256(join(to, `${second}.db`)), 'the two copies are the same');
  makeWal(data, join(home, 'planted-wal'));
  for (const [name, make] of Object.entries(TARGETS)) {
    mkdirSync(join(home, 'targets', name), { recursive: true });
    await make(join(home, 'targets', name, 'app.db'));
  }
  return { home, bases: [first, second], edits: editsOf(JSON.parse(readFileSync(join(to, `${first}.json`), 'utf8')) as Fields) };
}

/** The `-wal` of somebody who wrote to a file of these bytes. */
function makeWal(data: string, wal: string): void {
  const directory = tempDirectory('wal');
  const file = join(directory, 'it.db');
  copyFileSync(data, file);
  const db = new Database(file);
  db.pragma('journal_mode = wal');
  db.exec("INSERT INTO beat (at) VALUES ('planted')");
  copyFileSync(`${file}-wal`, wal);
  db.close();
  removeDirectory(directory);
}

const copyAll = (from: string, to: string): void => {
  mkdirSync(to, { mode: 0o700 });
  for (const name of readdirSync(from)) if (name !== '.dbbackup') copyFileSync(join(from, name), join(to, name));
};

const WAYS = ['verify', 'output', 'into'] as const;
type Way = (typeof WAYS)[number];
type Seen = Record<Way, number>;

async function play(request: Request): Promise<Failure[]> {
  const stage = await setStage();
  const seen: Seen = { verify: 0, output: 0, into: 0 };
  const failures = await rounds('tamper', request, (round) => one(stage, round, seen), 2);
  // What is refused above must be refused for the tampering alone.
  await untampered(stage).catch((error: unknown) => failures.push({ round: -1, why: String(error) }));
  removeDirectory(stage.home);
  request.note?.(`${stage.edits.length} edits and ${TAMPERS.length} other kinds; ${counted(seen)}`);
  return failures;
}

async function untampered(stage: Stage): Promise<void> {
  const home = tempDirectory('untampered');
  const to = join(home, 'backups');
  copyAll(join(stage.home, 'backups'), to);
  const [file] = stage.bases.map((b) => `${b}.db`);
  const succeed = async (...args: string[]): Promise<Result> => {
    const done = await dbbackup([...args, '--to', to, '--json']);
    must(done.code === 0, () => `without tampering ${args.join(' ')}: ${told(done)}`);
    return done;
  };
  const verified = await succeed('verify', '--all');
  must(verified.json.results?.length === 2 && verified.json.results.every((r) => r.status === 'good'), 'untampered copies are not all good');
  await succeed('restore', file ?? '', '-o', join(home, 'out.db'));
  for (const name of Object.keys(TARGETS)) {
    copyAll(join(stage.home, 'targets', name), join(home, name));
    await succeed('restore', file ?? '', '--into', join(home, name, 'app.db'), '--yes', '--force');
  }
  removeDirectory(home);
}

async function one(stage: Stage, round: Round, seen: Seen): Promise<void> {
  const { random, index, directory, say } = round;
  const to = join(directory, 'backups');
  copyAll(join(stage.home, 'backups'), to);
  // Edits and the other kinds take turns; each meets all three commands, one after the other.
  const list = index % 2 === 0 ? stage.edits : TAMPERS;
  const k = Math.floor(index / 2);
  const which = k % list.length;
  const tamper = list[which];
  const way = WAYS[(which + Math.floor(k / list.length)) % 3];
  if (!tamper || !way) throw new Error('nothing to do');
  const [base, other] = random.chance(0.5) ? stage.bases : [stage.bases[1], stage.bases[0]];
  const victim: Victim = {
    data: join(to, `${base}.db`),
    manifest: join(to, `${base}.json`),
    otherData: join(to, `${other}.db`),
    otherManifest: join(to, `${other}.json`),
    plantedWal: join(stage.home, 'planted-wal'),
  };
  say(`${way}, ${tamper.name}: ${tamper.act(victim, random)}`);
  seen[way]++;
  const expected = [`${base}.db`, ...(tamper.both ? [`${other}.db`] : [])];
  switch (way) {
    case 'verify':
      return tamper.verdictOnly ? await verifyAgain(round, to, `${base}.db`) : await verify(round, to, expected, `${base}.db`, tamper);
    case 'output':
      return await output(round, to, `${base}.db`);
    case 'into':
      return await into(stage, round, to, `${base}.db`);
  }
}

const dataOf = (to: string): string =>
  readdirSync(to)
    .filter((n) => /\.db(-wal|-journal)?$/.test(n) && lstatSync(join(to, n)).isFile())
    .map((n) => `${n} ${sha256(join(to, n))}`)
    .join('\n');

async function verify({ random, say }: Round, to: string, expected: readonly string[], file: string, tamper: Tamper): Promise<void> {
  const all = tamper.byName !== true && random.chance(0.5);
  const before = dataOf(to);
  const run = await dbbackup(['verify', ...(all ? ['--all'] : [file]), '--to', to, '--json']);
  say(`verify ${all ? '--all' : 'by name'}: ${told(run)}`);
  mustEndCleanly(run);
  must(run.code === 1, 'verify took a tampered copy for good');
  const results = run.json.results ?? [];
  for (const name of all ? expected : [file]) {
    const result = results.find((r) => r.file === name);
    // A name under which no file lies is no copy any more; it is refused by its name.
    if (!result && !all && !existsFile(join(to, name))) {
      must(run.json.error?.code === 'COPY_NOT_FOUND' && run.json.error.message.includes(name), `${name} is not named`);
      continue;
    }
    must(result && result.status !== 'good' && result.status !== 'suspect', () => `${name} is ${result?.status ?? 'not'} in the results`);
    must(result.problems.length > 0, `${name} is ${result.status}, and no problem is named`);
  }
  for (const r of results) if (!expected.includes(r.file)) must(r.status === 'good', () => `${r.file}, which nobody touched, is ${r.status}`);
  must(dataOf(to) === before, 'verify changed the data of a copy, or what lies beside it');
  // What lies beside a copy makes it none the worse.
  if (!random.chance(0.34) || tamper.name.startsWith('planted-')) return;
  const list = await dbbackup(['list', '--to', to, '--json']);
  const good = (list.json.copies ?? []).filter((c) => c.status === 'good').map((c) => c.file);
  must(list.code === 0 && !expected.some((f) => (all || f === file) && good.includes(f)), () => `still listed as good: ${good.join(', ')}`);
}

/** A copy whose bytes nobody touched, called bad: proven again it is good, for all to see. */
async function verifyAgain({ say }: Round, to: string, file: string): Promise<void> {
  const run = await dbbackup(['verify', file, '--to', to, '--json']);
  say(`verify by name: ${told(run)}`);
  mustEndCleanly(run);
  must(run.code === 0 && run.json.results?.[0]?.status === 'good', 'a copy that proves out is not called good');
  const list = await dbbackup(['list', '--to', to, '--json']);
  must(list.json.copies?.find((c) => c.file === file)?.status === 'good', 'nor is it listed as good');
}

const existsFile = (path: string): boolean => existsSync(path) && lstatSync(path).isFile();

function mustBeRefused(run: Result, file: string): void {
  mustEndCleanly(run);
  must(run.code === 1, () => `not refused: ${told(run)}`);
  const { code, message } = run.json.error ?? {};
  must(code === 'COPY_BAD' || code === 'COPY_NOT_FOUND', () => `refused for another reason: ${told(run)}`);
  must(message?.includes(file), () => `the copy is not named: ${message}`);
}

async function output({ random, directory, say }: Round, to: string, file: string): Promise<void> {
  const out = join(directory, 'out');
  mkdirSync(out);
  const target = join(out, 'app.db');
  const there = random.chance(0.3);
  if (there) writeFileSync(target, 'what was there before');
  const run = await dbbackup(['restore', file, '-o', target, ...(there ? ['--force'] : []), '--to', to, '--json']);
  say(told(run));
  mustBeRefused(run, file);
  const left = readdirSync(out);
  must(left.join() === (there ? 'app.db' : ''), () => `a refused restore left ${left.join(', ')}`);
  must(!there || readFileSync(target, 'utf8') === 'what was there before', 'the file that was there was replaced');
}

async function into(stage: Stage, { random, directory, say }: Round, to: string, file: string): Promise<void> {
  const name = random.pick(Object.keys(TARGETS));
  const place = join(directory, name);
  copyAll(join(stage.home, 'targets', name), place);
  // What SQLite builds anew for itself whenever somebody reads.
  rmSync(join(place, 'app.db-shm'), { force: true });
  const target = join(place, 'app.db');
  const before = sourceState(target);
  const inode = existsSync(target) ? lstatSync(target).ino : 0;
  const run = await dbbackup(['restore', file, '--into', target, '--yes', '--force', '--to', to, '--json']);
  say(`${name}: ${told(run)}`);
  mustBeRefused(run, file);
  must(sourceState(target) === before, 'the database or what lies beside it was changed');
  must((existsSync(target) ? lstatSync(target).ino : 0) === inode, 'another file has the name of the database');
  const strange = readdirSync(place).filter((n) => !/^app\.db(-wal|-shm)?$/.test(n));
  must(strange.length === 0, () => `left beside the database: ${strange.join(', ')}`);
  const aside = join(to, '.dbbackup/aside');
  must(!existsSync(aside) || readdirSync(aside).length === 0, 'something was set aside');
  const copies = readdirSync(to).filter((n) => n.endsWith('.db'));
  must(copies.length <= 2, () => `a refused restore made a copy: ${copies.join(', ')}`);
}

export const tamper: Scenario = {
  name: 'tamper',
  promise: 'no tampered copy is called good or restored, and the place it was to go to is untouched',
  ci: 200,
  soak: 10_000,
  needs: [],
  play,
};
