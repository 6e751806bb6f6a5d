/** What the end-to-end tests share: a place of its own for each, copies made beforehand, and everything that lies in a directory. */
import { createHash } from 'node:crypto';
import { cpSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { stampOf } from '../../src/catalog.js';
import type { Manifest } from '../../src/records.js';
import { atEnd, dbbackup, EXECUTABLE, makeDatabase, type Options, type Result, type Shape, tempDirectory } from '../support/cli.js';
import { manifestFileOf, plantCopy } from '../support/manifest.js';

export const HOUR = 3_600_000;
export const DAY = 24 * HOUR;

export interface Scene {
  readonly home: string;
  /** `<home>/data/app.db`. */
  readonly source: string;
  /** `<home>/backups`, which is not there yet. */
  readonly to: string;
  /** `<to>/.dbbackup` */
  readonly state: string;
  /** `dbbackup run SOURCE --to TO ...` */
  readonly run: (more?: readonly string[], options?: Options) => Promise<Result>;
  /** `dbbackup COMMAND --to TO ...` */
  readonly ask: (command: string, more?: readonly string[], options?: Options) => Promise<Result>;
  /** The same as a line for a shell. */
  readonly askLine: (command: string, more?: readonly string[]) => string;
}

/** @param shape null: no database is made */
export function scene(shape: Shape | null = { journal: 'delete' }): Scene {
  const home = tempDirectory('e2e');
  const source = join(home, 'data/app.db');
  const to = join(home, 'backups');
  mkdirSync(dirname(source));
  if (shape) makeDatabase(source, shape);
  return {
    home,
    source,
    to,
    state: join(to, '.dbbackup'),
    run: (more = [], options = {}) => dbbackup(['run', source, '--to', to, ...more], options),
    ask: (command, more = [], options = {}) => dbbackup([command, '--to', to, ...more], options),
    askLine: (command, more = []) => [EXECUTABLE, command, '--to', to, ...more].map((word) => `'${word}'`).join(' '),
  };
}

/** A copy that a run made: its data file's name. */
export interface Copied {
  readonly s: Scene;
  readonly file: string;
}

const copied = new Map<string, Copied & { readonly template: string }>();

/**
 * A scene after its first run. That run is made once for each shape and laid out anew for every test that asks for one, always at the
 * same place, since a copy knows where its source was: what the test before left there is gone.
 */
export async function sceneWithCopy(shape: Shape = { journal: 'delete' }): Promise<Copied> {
  const known = copied.get(JSON.stringify(shape));
  if (known) {
    rmSync(known.s.home, { recursive: true });
    cpSync(known.template, known.s.home, { recursive: true, preserveTimestamps: true });
    return known;
  }
  const s = scene(shape);
  const run = await s.run();
  if (run.code !== 0) throw new Error(`no copy was made: ${run.stderr}`);
  const [file = ''] = dataFiles(s.to);
  const template = join(tempDirectory('template'), 'home');
  cpSync(s.home, template, { recursive: true, preserveTimestamps: true });
  copied.set(JSON.stringify(shape), { s, file, template });
  atEnd(() => copied.clear());
  return { s, file };
}

/** `app-20261121T031700Z` for a time, or for a moment so many milliseconds ago. */
export const baseAt = (at: Date, name = 'app'): string => `${name}-${stampOf(at)}`;
export const ago = (ms: number): Date => new Date(Math.floor((Date.now() - ms) / 1000) * 1000);

/** Puts a copy into a directory as if it had been made long ago. Returns its data file's name. `more` null: no manifest. */
export function plant(to: string, base: string, more: Partial<Manifest> | null = {}): string {
  if (!existsSync(to)) mkdirSync(to, { mode: 0o700 });
  const file = plantCopy(to, base, `data of ${base}`, more ?? {});
  if (!more) rmSync(join(to, manifestFileOf(base)));
  return file;
}

/** One good copy a day, the newest `newestMs` old, newest first. */
export const plantDaily = (to: string, days: number, newestMs = HOUR, more: Partial<Manifest> = {}, name = 'app'): string[] =>
  Array.from({ length: days }, (_, i) => plant(to, baseAt(ago(newestMs + i * DAY), name), more));

/**
 * Every path below a directory, with all that could change: kind, mode, owner, size, inode, time (directories too), content.
 * @param without paths, relative, that are left out
 */
export function tree(directory: string, without: readonly string[] = []): string[] {
  const lines: string[] = [];
  const walk = (at: string, name: string): void => {
    const s = lstatSync(at, { bigint: true });
    const content = s.isSymbolicLink() ? readlinkSync(at) : s.isFile() ? createHash('sha256').update(readFileSync(at)).digest('hex').slice(0, 16) : '';
    if (!without.includes(name))
      lines.push(`${name} ${s.mode.toString(8)} ${s.uid} ${s.isDirectory() ? '' : `${s.size} ${s.nlink}`} ${s.ino} ${s.mtimeNs} ${content}`);
    if (s.isDirectory()) for (const entry of readdirSync(at).sort()) walk(join(at, entry), name === '.' ? entry : join(name, entry));
  };
  if (existsSync(directory)) walk(directory, '.');
  return lines;
}

/** Data files in a backup directory, newest name first. */
export const dataFiles = (to: string): string[] =>
  existsSync(to)
    ? readdirSync(to)
        .filter((f) => f.endsWith('.db'))
        .sort()
        .reverse()
    : [];

export const modeOf = (path: string): string => (lstatSync(path).mode & 0o7777).toString(8);

/** The lines of a text, without the last, empty one. */
export const linesOf = (text: string): string[] => text.split('\n').slice(0, -1);

/** All that lies below a directory as one text, for searching: names and bytes (as latin1). */
export function everything(directory: string): string {
  const parts: string[] = [];
  for (const entry of existsSync(directory) ? (readdirSync(directory, { recursive: true }) as string[]) : []) {
    const path = join(directory, entry);
    parts.push(entry);
    if (lstatSync(path).isFile()) parts.push(readFileSync(path, 'latin1'));
  }
  return parts.join('\n');
}
