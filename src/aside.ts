/**
 * The old files of a database that a copy replaces offline: kept below `<state>/aside/NAME-STAMP-RUNID/`, never deleted by
 * us. Before the first of them moves, `restore.json` says what is going on; whatever is killed in the middle is put right
 * by the next acting command of the name (`settleAside`): the old state as it was, or the new one, never neither.
 *
 *   keepMain      the old database gets a second name (a hard link; a synced copy across file systems, with its name when it is whole)
 *   moveSidecars  -journal, -wal, -shm leave, since the new file must not meet them (traps, 36)
 *   replace       the new file takes the name, in one rename
 *   finish        restore.json says done
 *
 * A way back that finds no room there, or no directory, keeps the old files beside the database, as `DATABASE.failed-RUNID`.
 */
import type { Stats } from 'node:fs';
import { linkSync, lstatSync, renameSync, rmdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { stampOf } from './catalog.js';
import { fileState } from './content-state.js';
import type { Warning } from './outcome.js';
import { errnoOf, warning } from './outcome.js';
import type { Need } from './room.js';
import { deviceOf } from './room.js';
import type { Unsupported } from './system/files.js';
import {
  copyHashed,
  copySync,
  listing,
  lstatOrNull,
  makeDirectories,
  makePrivateDirectory,
  publish,
  readSmall,
  remove,
  replace,
  sizeOf,
  syncDirectory,
} from './system/files.js';
import { syncLargeFile } from './system/syncing.js';

const SIDECARS = ['-journal', '-wal', '-shm'] as const;
const NOTE = 'restore.json';
/** Behind the name of a copy of the old database that is not whole yet. */
const PART = '.part';
const NOTE_MAX = 65_536;

interface Note {
  readonly target: string;
  readonly name: string;
  readonly runId: string;
  /** Inode of the directory of this note. One that came here with files from elsewhere says nothing about the files here. */
  readonly hereIno: number | null;
  readonly state: 'begun' | 'moving' | 'done' | 'undone';
  /** Inode of the file that takes the name; null while it is not known. */
  readonly newIno: number | null;
  /** Inode of the old database; null: there was none. */
  readonly oldIno: number | null;
  /** `fileState` of the old database when it was copied, or its sidecars began to move; null: not known, or there was none. */
  readonly oldState: string | null;
  /** Inode of the copy of the old database, where it could not get a second name. */
  readonly copyIno: number | null;
  /** Where the new file was made; null while that is not known. */
  readonly staged: string | null;
  /** The old files are kept beside the database. */
  readonly beside: boolean;
}

export interface AsideInput {
  readonly stateDir: string;
  readonly name: string;
  readonly runId: string;
  readonly target: string;
  readonly now: Date;
  readonly unsupported: Unsupported;
  /** Keep the old files beside the database: where the state directory cannot take them, or only their note, it is done without. */
  readonly beside: boolean;
}

/** `<state>/aside`. */
export const asideRoot = (stateDir: string): string => join(stateDir, 'aside');

/**
 * What it takes to set the files of a database aside: nothing where they only get other names, on another file system their size. That is asked of
 * directories: on an overlay a file can have another device than the directory that it is in.
 */
export function asideNeed(stateDir: string, target: string): Need {
  const path = asideRoot(stateDir);
  const [there, here] = [deviceOf(path), deviceOf(dirname(target))];
  return { path, bytes: there === null || there === here ? 0 : ['', ...SIDECARS].reduce((sum, suffix) => sum + sizeOf(target + suffix), 0) };
}

/** Where an old file is kept. */
const keptPath = ({ target, runId, beside }: Note, directory: string, suffix = ''): string =>
  (beside ? `${target}.failed-${runId}` : join(directory, basename(target))) + suffix;

/** The set-aside of one replacement. Methods throw what the system says. */
export class Aside {
  readonly directory: string;
  readonly #input: AsideInput;
  readonly #kept: string[] = [];
  #note: Note;

  constructor(input: AsideInput) {
    this.#input = input;
    this.directory = join(asideRoot(input.stateDir), `${input.name}-${stampOf(input.now)}-${input.runId}`);
    this.#note = {
      target: input.target,
      name: input.name,
      runId: input.runId,
      hereIno: null,
      state: 'begun',
      newIno: null,
      oldIno: lstatOrNull(input.target)?.ino ?? null,
      oldState: null,
      copyIno: null,
      staged: null,
      beside: input.beside,
    };
  }

  /** Absolute paths of what was set aside. */
  get files(): readonly string[] {
    return this.#kept;
  }

  /** The directory with its note, and in it a second name of the old database. */
  async keepMain(signal: AbortSignal): Promise<void> {
    const { target, unsupported } = this.#input;
    this.#orWithout(() => {
      makeDirectories(asideRoot(this.#input.stateDir), unsupported);
      makePrivateDirectory(this.directory);
      this.#write({ hereIno: lstatSync(this.directory).ino });
      syncDirectory(asideRoot(this.#input.stateDir), unsupported);
    });
    if (!lstatOrNull(target)) return;
    const kept = keptPath(this.#note, this.directory);
    try {
      linkSync(target, kept);
    } catch (error) {
      if (!CROSS.has(errnoOf(error))) throw error;
      await this.#copyMain(kept, signal);
    }
    this.#kept.push(kept);
    syncDirectory(dirname(kept), unsupported);
  }

  async #copyMain(kept: string, signal: AbortSignal): Promise<void> {
    const { target } = this.#input;
    const part = kept + PART;
    // Before its first byte is read: what is written meanwhile is not in the copy.
    const oldState = fileState(target);
    await copyHashed(target, part, signal, () => undefined);
    await syncLargeFile(part, signal);
    this.#write({ oldState, copyIno: lstatSync(part).ino });
    renameSync(part, kept);
  }

  /** Takes the sidecars out of the way. `file`: the one that is about to take the name. */
  moveSidecars(file: string): void {
    const { target, unsupported } = this.#input;
    this.#write({ state: 'moving', newIno: lstatSync(file).ino, oldState: fileState(target), staged: file });
    for (const suffix of SIDECARS) {
      if (!lstatOrNull(target + suffix)) continue;
      const kept = keptPath(this.#note, this.directory, suffix);
      move(target + suffix, kept, unsupported);
      this.#kept.push(kept);
    }
    if (!this.#input.beside) syncDirectory(this.directory, unsupported);
    syncDirectory(dirname(target), unsupported);
  }

  /** The new file takes the name: over the old one, or, where there was none, only if there still is none (EEXIST). */
  replace(file: string): void {
    const { target, unsupported } = this.#input;
    if (this.#note.oldIno === null) {
      publish(file, target);
      // A second name would keep it from being backed up.
      remove(file);
    } else renameSync(file, target);
    syncDirectory(dirname(target), unsupported);
  }

  finish(): void {
    this.#write({ state: 'done' });
  }

  /** After a failure: true when the database is as it was. */
  undo(): boolean {
    try {
      if (putSidecarsBack(this.#note, this.directory, this.#input.unsupported) !== 'old') return false;
    } catch {
      // Nothing was touched where nothing had moved: what cannot be looked at is only the place for it.
      if (this.#note.state !== 'begun' || this.#kept.length > 0 || inodeOf(this.#input.target) !== this.#note.oldIno) return false;
    }
    this.#kept.length = 0;
    try {
      if (lstatOrNull(this.directory)) this.#write({ state: 'undone' });
    } catch {
      // It says nothing about the database, and has nothing to say any more.
      this.#forget();
    }
    return true;
  }

  #forget(): void {
    try {
      remove(join(this.directory, NOTE));
      rmdirSync(this.directory);
    } catch {
      // The next acting command tries again to complete it.
    }
  }

  #write(change: Partial<Note>): void {
    this.#note = { ...this.#note, ...change };
    this.#orWithout(() => {
      replace(join(this.directory, NOTE), `${JSON.stringify(this.#note, null, 1)}\n`, this.#input.unsupported);
    });
  }

  /** Beside the database it is a way back, which is worth more than what a kill in the middle of it would leave. */
  #orWithout(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!this.#input.beside) throw error;
    }
  }
}

function inodeOf(path: string): number | null {
  try {
    return lstatOrNull(path)?.ino ?? null;
  } catch {
    return Number.NaN;
  }
}

const CROSS = new Set(['EXDEV', 'EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'EMLINK', 'ENOSYS']);

/** A rename; across file systems a synced copy, then the removal. */
function move(from: string, to: string, unsupported: Unsupported): void {
  try {
    renameSync(from, to);
  } catch (error) {
    if (errnoOf(error) !== 'EXDEV') throw error;
    try {
      copySync(from, to);
      // Its name, too, is on the disk before the old one goes.
      syncDirectory(dirname(to), unsupported);
      remove(from);
    } catch (failed) {
      if (errnoOf(failed) !== 'EEXIST' && lstatOrNull(from)) remove(to);
      throw failed;
    }
  }
}

/** The old state back, as far as it had been taken apart. `new`: the new file has the name already. */
function putSidecarsBack(note: Note, directory: string, unsupported: Unsupported): 'old' | 'new' | 'changed' {
  const there = lstatOrNull(note.target);
  if (there && note.newIno !== null && there.ino === note.newIno) {
    if (note.staged !== null) removeSecondName(note.staged, there);
    return 'new';
  }
  if ((there?.ino ?? null) !== note.oldIno) return 'changed';
  const main = keptPath(note, directory);
  // It stays where it is: with a second name it could not be backed up any more.
  if (there) removeSecondName(main, there);
  const part = main + PART;
  if (lstatOrNull(part)) remove(part);
  const isUnchanged = note.oldState !== null && fileState(note.target) === note.oldState;
  // Whoever had it open since, and has closed it, leaves nothing beside it: an older -wal would be read over what he has written.
  if (note.state !== 'begun' && note.oldState !== null && !isUnchanged) return 'changed';
  for (const suffix of SIDECARS) {
    const kept = keptPath(note, directory, suffix);
    if (!lstatOrNull(kept)) continue;
    // Somebody opened it since, and wrote on: what we have is older, and stays where it is.
    if (lstatOrNull(note.target + suffix)) return 'changed';
    move(kept, note.target + suffix, unsupported);
  }
  syncDirectory(dirname(note.target), unsupported);
  // What it is a copy of is there as it was: nobody needs it, and the disk may be full of it.
  if (isUnchanged && note.copyIno !== null && lstatOrNull(main)?.ino === note.copyIno) remove(main);
  return 'old';
}

function removeSecondName(path: string, of: Stats): void {
  const stats = lstatOrNull(path);
  if (stats?.ino === of.ino && stats.dev === of.dev) remove(path);
}

/** Whether a file has its second name from a replacement that was killed, and that `settleAside` will put right. */
export const isLeftByUs = (stateDir: string, ino: number): boolean =>
  directoriesIn(asideRoot(stateDir)).some((entry) => {
    const note = readNote(join(asideRoot(stateDir), entry));
    return note !== null && isPending(note) && (note.oldIno === ino || note.newIno === ino);
  });

const isPending = (note: Note): boolean => note.state !== 'done' && note.state !== 'undone';

/** Puts right what a killed replacement of this name left, and says so; `failed`: what stays as it is. The caller holds the lock of the name. */
export function settleAside(
  stateDir: string,
  name: string,
  unsupported: Unsupported,
  warn: (w: Warning) => void,
  failed: (directory: string, error: unknown) => void,
): void {
  for (const entry of directoriesIn(asideRoot(stateDir))) {
    const directory = join(asideRoot(stateDir), entry);
    const note = readNote(directory);
    if (note?.name !== name || !isPending(note)) continue;
    try {
      const state = putSidecarsBack(note, directory, unsupported);
      replace(join(directory, NOTE), `${JSON.stringify({ ...note, state: state === 'new' ? 'done' : 'undone' }, null, 1)}\n`, unsupported);
      const where = note.beside ? keptPath(note, directory) : `in ${directory}`;
      const words = {
        old: `the restore of ${note.target} was killed before the new database took its place: the old one is there as it was; run the restore again`,
        new: `the restore of ${note.target} was killed right after the new database took its place: it is there, whole; the old files are ${where}`,
        changed: `the restore of ${note.target} was killed, and the database was used since: it was left as it is; the old files are ${where}`,
      };
      warn(warning('HEALED', words[state]));
    } catch (error) {
      // Its disk may only not be mounted: so it is not given up.
      failed(directory, error);
    }
  }
}

const directoriesIn = (directory: string): string[] => listing(directory).filter((entry) => lstatOrNull(join(directory, entry))?.isDirectory());

/** Null: no note of ours. What a note says is done, as far as renames go: so it has to be ours, whole, and sensible. */
function readNote(directory: string): Note | null {
  try {
    const own = process.geteuid?.();
    const { bytes, stats } = readSmall(join(directory, NOTE), NOTE_MAX);
    const here = lstatSync(directory);
    if (stats.uid !== own || here.uid !== own || lstatSync(dirname(directory)).uid !== own) return null;
    const note: Partial<Record<keyof Note, unknown>> = JSON.parse(bytes.toString('utf8')) as Partial<Record<keyof Note, unknown>>;
    const { name, target, runId, hereIno, state, newIno, oldIno, oldState, copyIno = null, staged, beside } = note;
    const isIno = (v: unknown): v is number | null => v === null || typeof v === 'number';
    if (typeof name !== 'string' || typeof target !== 'string' || typeof runId !== 'string' || !isIno(newIno) || !isIno(oldIno) || !isIno(copyIno)) return null;
    if (hereIno !== here.ino) return null;
    if (state !== 'begun' && state !== 'moving' && state !== 'done' && state !== 'undone') return null;
    const place = typeof staged === 'string' && dirname(dirname(staged)) === dirname(target) ? staged : null;
    const known = typeof oldState === 'string' ? oldState : null;
    return { target, name, runId, hereIno, state, newIno, oldIno, oldState: known, copyIno, staged: place, beside: beside === true };
  } catch {
    return null;
  }
}
