/**
 * What a backup directory really holds, found out without any of dbbackup's own code: every data file is hashed and
 * opened, every name accounted for. Also: what still runs, and whether a source was touched.
 */
import { createHash } from 'node:crypto';
import { closeSync, copyFileSync, existsSync, lstatSync, openSync, readdirSync, readFileSync, readlinkSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import type { Manifest, RunRecord } from '../../src/records.js';
import { removeDirectory, tempDirectory } from '../support/cli.js';
import { type Key, unpackedBy } from '../support/packed.js';

/** Thrown by `must`: the contract does not hold. */
export class Broken extends Error {
  override readonly name = 'Broken';
}

export function must(condition: unknown, otherwise: string | (() => string)): asserts condition {
  if (!condition) throw new Broken(typeof otherwise === 'string' ? otherwise : otherwise());
}

export function sha256(path: string): string {
  const hash = createHash('sha256');
  const buffer = Buffer.allocUnsafe(1 << 20);
  const fd = openSync(path, 'r');
  try {
    for (let n = readSync(fd, buffer); n > 0; n = readSync(fd, buffer)) hash.update(buffer.subarray(0, n));
  } finally {
    closeSync(fd);
  }
  return hash.digest('hex');
}

/** A finding of integrity_check that is about rows, not about structure (DESIGN, "How good a copy is"). */
export const isAboutRows = (finding: string): boolean => /^(NULL value in|CHECK constraint failed in|non-unique entry in .* null)/.test(finding);

/**
 * What an index over the application's own function should hold, only the application can say (`makeFunctionIndexDatabase`):
 * dbbackup checks all else and warns TABLES_UNCHECKED.
 */
export const isBeyondSqlite = (finding: string): boolean => /\bindex word_folded\b/.test(finding);

/** Opens a private copy of a data file read-write, without any sidecar, and returns what `look` finds. */
export function inPrivate<T>(path: string, look: (db: Database.Database) => T): T {
  const directory = tempDirectory('look');
  const file = join(directory, 'it.db');
  copyFileSync(path, file);
  const db = new Database(file);
  try {
    return look(db);
  } finally {
    db.close();
    removeDirectory(directory);
  }
}

/**
 * SQLite's own full check, in its words; empty when all is well. The function that `makeFunctionIndexDatabase` needs is
 * supplied. An error that ends the check is a finding; one that only the check of the index over that function meets is
 * said to be so, since without the function nobody comes that far.
 */
export function fullCheck(db: Database.Database): string[] {
  db.function('fold', { deterministic: true }, (text) => String(text).toLowerCase());
  const check = (pragma: string): string[] => {
    try {
      return (db.pragma(pragma) as Record<string, string>[]).flatMap((row) => Object.values(row)).filter((finding) => finding !== 'ok');
    } catch (error) {
      return [`error: ${String(error)}`];
    }
  };
  const ends = (findings: readonly string[]): boolean => findings.some((f) => f.startsWith('error: '));
  const whole = check('integrity_check(1000000)');
  if (!ends(whole)) return whole;
  // What all that can be checked without the index does not meet. No such tables, or an unreadable schema: an end is an end.
  const others = ["quick_check('word')", 'quick_check', "integrity_check('plain')", "integrity_check('sqlite_schema')"].flatMap(check);
  return ends(others) ? whole : [...others, ...whole.map((f) => `in index word_folded: ${f}`)];
}

/** The findings of a private copy that are damage: empty when all is well, rows that break rules aside. */
export const structuralFindings = (path: string): string[] => inPrivate(path, fullCheck).filter((f) => !isAboutRows(f) && !isBeyondSqlite(f));

export interface Directory {
  /** Data files whose manifest is there, by file name. */
  readonly pairs: ReadonlyMap<string, Manifest>;
  /** Data files without a (readable) manifest. */
  readonly loneData: readonly string[];
  readonly loneManifests: readonly string[];
  /** Anything else that is not `.dbbackup`. */
  readonly strange: readonly string[];
  /** Data files with a manifest, and why they do not prove out. */
  readonly bad: readonly string[];
}

const DATA = /^.+-\d{8}T\d{6}Z(-\d+)?\.db(\.gz|\.zst)?(\.age)?$/u;
/** The manifest's name, from the data's. */
const besideOf = (file: string): string => file.replace(/\.db(\.gz|\.zst)?(\.age)?$/, '.json');

let key: Key | null = null;
/** What sealed copies are opened with from now on. */
export function openSealedWith(with_: Key): void {
  key = with_;
}

/** Looks at the plain file that a copy holds, whatever it is packed in; opened by the programs that everybody has. */
export function inPlain<T>(path: string, look: (plain: string) => T): T {
  if (path.endsWith('.db')) return look(path);
  const directory = tempDirectory('plain');
  const plain = join(directory, 'it.db');
  writeFileSync(plain, unpackedBy(path, key));
  try {
    return look(plain);
  } finally {
    removeDirectory(directory);
  }
}

/** Files that were proven before, as `path inode size mtime sha`: a soak looks at the same copies again and again. */
const proven = new Set<string>();

function faultOf(path: string, manifest: Manifest): string | null {
  const stats = lstatSync(path);
  if (!stats.isFile()) return 'is not a regular file';
  if (stats.mode & 0o077) return `has mode ${(stats.mode & 0o7777).toString(8)}`;
  if (stats.size !== manifest.sizeBytes) return `has ${stats.size} bytes, the manifest says ${manifest.sizeBytes}`;
  const key = `${path} ${stats.ino} ${stats.size} ${stats.mtimeMs} ${stats.ctimeMs} ${manifest.sha256}`;
  if (proven.has(key)) return null;
  const sum = sha256(path);
  if (sum !== manifest.sha256) return `has the SHA-256 ${sum}, the manifest says ${manifest.sha256}`;
  const findings = inPlain(path, (plain) => (lstatSync(plain).size === manifest.plainSizeBytes ? structuralFindings(plain) : ['it unpacks to another size']));
  if (findings.length > 0) return `integrity_check: ${findings.slice(0, 3).join('; ')}`;
  proven.add(key);
  return null;
}

export function readManifest(path: string): Manifest | null {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Manifest;
  } catch {
    return null;
  }
}

/** Looks at everything in a backup directory. */
export function examine(to: string): Directory {
  const names = existsSync(to) ? readdirSync(to).filter((n) => n !== '.dbbackup' && n !== 'lost+found') : [];
  const data = names.filter((n) => DATA.test(n));
  const pairs = new Map<string, Manifest>();
  const loneData: string[] = [];
  const bad: string[] = [];
  for (const file of data) {
    const beside = besideOf(file);
    if (!names.includes(beside)) {
      loneData.push(file);
      continue;
    }
    const manifest = readManifest(join(to, beside));
    if (!manifest) {
      bad.push(`${beside} does not parse`);
      continue;
    }
    if (manifest.file !== file || manifest.manifest !== beside) bad.push(`${beside} names ${manifest.file} and ${manifest.manifest}`);
    const fault = faultOf(join(to, file), manifest);
    if (fault) bad.push(`${file} ${fault}`);
    pairs.set(file, manifest);
  }
  const loneManifests = names.filter((n) => DATA.test(n.replace(/\.json$/, '.db')) && n.endsWith('.json') && !data.some((d) => besideOf(d) === n));
  const strange = names.filter((n) => !DATA.test(n) && !DATA.test(n.replace(/\.json$/, '.db')));
  return { pairs, loneData, loneManifests, strange, bad };
}

/** The newest copy; in one second `-2` comes after none. */
export function newestOf(found: Directory): string {
  const place = (file: string): string => {
    const [, stamp = '', sequence = '1'] = /-(\d{8}T\d{6}Z)(?:-(\d+))?\.db/.exec(file) ?? [];
    return `${stamp} ${sequence.padStart(6, '0')}`;
  };
  return [...found.pairs.keys()].sort((a, b) => (place(a) < place(b) ? -1 : 1)).at(-1) ?? '';
}

/** No pair at a final name is bad, and nothing lies there that is no copy. */
export function mustHoldNoBadCopy(to: string, when: string): Directory {
  const found = examine(to);
  must(found.bad.length === 0, () => `${when}: bad copies: ${found.bad.join(', ')}`);
  must(found.strange.length === 0, () => `${when}: strange files in the directory: ${found.strange.join(', ')}`);
  return found;
}

/** The same, and nothing is unfinished: no data without manifest, no manifest without data, no temp. */
export function mustBeWhole(to: string, when: string, state = join(to, '.dbbackup')): Directory {
  const found = mustHoldNoBadCopy(to, when);
  must(found.loneData.length === 0, () => `${when}: data without manifest: ${found.loneData.join(', ')}`);
  must(found.loneManifests.length === 0, () => `${when}: manifests without data: ${found.loneManifests.join(', ')}`);
  mustHaveNoTemp(to, when, state);
  return found;
}

/** The records in a history as they were written, newest first. */
export function recordsOf(to: string): RunRecord[] {
  const db = new Database(join(to, '.dbbackup/history.db'), { readonly: true });
  try {
    const texts = db.prepare<[], string>('SELECT record FROM runs ORDER BY seq DESC').pluck().all();
    return texts.map((text) => JSON.parse(text) as RunRecord);
  } finally {
    db.close();
  }
}

/** What lies below `<to>/.dbbackup/tmp`. */
export function tempEntries(to: string): string[] {
  const temp = join(to, '.dbbackup/tmp');
  return existsSync(temp) ? (readdirSync(temp, { recursive: true }) as string[]) : [];
}

export function mustHaveNoTemp(to: string, when: string, state = join(to, '.dbbackup')): void {
  const left = tempEntries(to);
  must(left.length === 0, () => `${when}: left in tmp: ${left.join(', ')}`);
  const staged = existsSync(state) && lstatSync(state).isDirectory() ? readdirSync(state).filter((n) => n.endsWith('.new')) : [];
  must(staged.length === 0, () => `${when}: left in the state directory: ${staged.join(', ')}`);
}

/** Every file below a directory with its size, time and inode: for "unchanged" comparisons. State is left out. */
export function listing(directory: string): string {
  if (!existsSync(directory) || !lstatSync(directory).isDirectory()) return '(no directory)';
  const lines: string[] = [];
  for (const name of readdirSync(directory).sort()) {
    if (name === '.dbbackup') continue;
    const s = lstatSync(join(directory, name));
    lines.push(`${name} ${s.ino} ${s.size} ${s.mtimeMs} ${(s.mode & 0o7777).toString(8)} ${s.uid}`);
  }
  return lines.join('\n');
}

/** The hashes of a source and its `-wal`: neither may change by our doing. */
export const sourceState = (path: string): string =>
  [path, `${path}-wal`, `${path}-journal`].map((f) => (existsSync(f) && lstatSync(f).isFile() && lstatSync(f).size > 0 ? sha256(f) : 'none')).join(' ');

/** A checksum over all rows of the tables that `makeDatabase` makes: two databases with the same one hold the same data. */
export const CONTENT = `
  SELECT count(*) || ' ' || coalesce(sum(length(email) + born), 0) FROM customer
  UNION ALL SELECT count(*) || ' ' || coalesce(sum(cents * (id % 97)), 0) || ' ' || coalesce(sum(unicode(note)), 0) FROM invoice
  UNION ALL SELECT count(*) || ' ' || coalesce(sum(length(value)), 0) || ' ' || coalesce(max(hex(value)), '') FROM setting`;

export const contentOf = (path: string): string => inPrivate(path, (db) => db.prepare(CONTENT).pluck().all().join(' | '));

// --------------------------------------------------------------------------------------------------------- processes

const readProc = (path: string): string => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
};

const pids = (): number[] =>
  readdirSync('/proc')
    .filter((n) => /^\d+$/.test(n))
    .map(Number);

/** The parent of a process, from /proc/PID/stat (the name in parentheses may hold anything, blanks too); 0 for the dead. */
function parentOf(pid: number): number {
  const stat = readProc(`/proc/${pid}/stat`);
  const [state, ppid] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return state === 'Z' || state === undefined ? 0 : Number(ppid ?? 0);
}

/** All living descendants of a process, nearest first. */
export function descendants(pid: number): number[] {
  const parents = new Map(pids().map((p) => [p, parentOf(p)]));
  const found: number[] = [];
  let generation = [pid];
  while (generation.length > 0) {
    generation = [...parents].filter(([, parent]) => generation.includes(parent)).map(([p]) => p);
    found.push(...generation);
  }
  return found;
}

/** Processes other than our own that name a path below `directory` in their arguments, or have a file there open. */
export function processesAt(directory: string): string[] {
  const found: string[] = [];
  for (const pid of pids()) {
    if (pid === process.pid || parentOf(pid) === 0) continue;
    const command = readProc(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim();
    const inArguments = command.includes(directory);
    if (inArguments || openFiles(pid).some((f) => f.startsWith(directory))) found.push(`${pid} ${command.slice(0, 200)}`);
  }
  return found;
}

/** Paths that a process has open. */
export function openFiles(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`);
      } catch {
        return '';
      }
    });
  } catch {
    return [];
  }
}
