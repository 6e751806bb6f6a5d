/**
 * Bringing large files to the disk. On a slow one that takes long and nothing ends it: not a signal, not even SIGKILL, since the
 * kernel waits for what it has handed to the disk. So a process of its own waits there (`sync` of coreutils), and a signal
 * leaves it behind; a thread of ours would keep us from ending.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { closeSync, constants, existsSync, fstatSync, fsync, openSync } from 'node:fs';
import { setPriority } from 'node:os';
import { promisify } from 'node:util';
import { findSetpriv } from './start-worker.js';

const SYNC = ['/usr/bin/sync', '/bin/sync', '/usr/local/bin/sync', '/run/current-system/sw/bin/sync'];
/** Below this a process of its own is not worth it, bytes. */
const LARGE = 1_000_000;

const fsyncFd = promisify(fsync);

/** Opens a file for `syncLarge`: what goes wrong with its bytes from now on, this descriptor is told. Links are not followed. */
export const openToSync = (path: string): number => openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);

/**
 * Syncs the bytes of an open file that may be read. Rejects with the system's error, or with the signal's reason as soon as that
 * aborts: then the file should be given up, for the sync may go on for as long as the disk needs.
 */
export async function syncLarge(fd: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const [sync, setpriv] = [SYNC.find((p) => existsSync(p)), findSetpriv()];
  if (sync !== undefined && setpriv !== null && fstatSync(fd).size >= LARGE) {
    await endOf(startSync(setpriv, sync, [], fd), signal);
  }
  // Its verdict counts, and not that of a program: an error is told to each descriptor that was open when it came. By now there
  // is little left to wait for.
  await fsyncFd(fd);
}

/** The same of a path. */
export async function syncLargeFile(path: string, signal: AbortSignal): Promise<void> {
  const fd = openToSync(path);
  try {
    await syncLarge(fd, signal);
  } finally {
    closeSync(fd);
  }
}

/** A process that syncs the file that is open, whatever becomes of its name. */
function startSync(setpriv: string, sync: string, flags: readonly string[], fd: number): ChildProcess {
  const child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', sync, ...flags, '/proc/self/fd/3'], {
    env: {},
    stdio: ['ignore', 'ignore', 'ignore', fd],
    detached: true,
    cwd: '/',
  });
  beNice(child.pid);
  return child;
}

/** As much may wait to be brought to the disk, bytes. */
const PIECE = 32_000_000;

/**
 * Brings a file to the disk while it grows. What waits to be written there all at once, an application waits for as well whenever it
 * syncs: ext4 writes out the new data of all files before it ends a transaction. Beside a snapshot of 1 GB that was 2 s; in pieces it is
 * not to be noticed. It is no promise: that is the sync of the whole, `syncLarge`.
 */
export class SyncInPieces {
  readonly #path: string;
  readonly #signal: AbortSignal;
  #fd: number | null = null;
  #asked = 0;
  #atWork: Promise<void> | null = null;
  #failed = false;

  constructor(path: string, signal: AbortSignal) {
    this.#path = path;
    this.#signal = signal;
  }

  /** The file has so many bytes by now. */
  grown(bytes: number): void {
    const [sync, setpriv] = [SYNC.find((p) => existsSync(p)), findSetpriv()];
    if (this.#atWork || bytes - this.#asked < PIECE || sync === undefined || setpriv === null || this.#signal.aborted) return;
    this.#asked = bytes;
    // Opened before the first of them: an error that one of them is told, it will be told as well.
    try {
      this.#fd ??= openToSync(this.#path);
    } catch {
      // It is being made anew: the next look finds it.
      return;
    }
    let child: ChildProcess;
    try {
      child = startSync(setpriv, sync, ['--data'], this.#fd);
    } catch {
      // No memory for it: it is no promise.
      return;
    }
    child.once('exit', (code) => {
      this.#failed ||= code !== null && code !== 0;
    });
    this.#atWork = endOf(child, this.#signal)
      .catch(() => undefined)
      .finally(() => {
        this.#atWork = null;
      });
  }

  /** Waits for the piece under way. Throws what the system says where one could not be written; no further one may be begun. */
  async end(): Promise<void> {
    await this.#atWork;
    const fd = this.#fd;
    this.#fd = null;
    if (fd === null) return;
    try {
      if (this.#failed && !this.#signal.aborted) await fsyncFd(fd);
    } finally {
      closeSync(fd);
    }
  }
}

/** As all our children are (DESIGN, "Files"). */
function beNice(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    setPriority(pid, 10);
  } catch {
    // It has ended.
  }
}

/** Waits until the child has ended, in whatever way, or could not be started. Rejects when the signal aborts. */
function endOf(child: ChildProcess, signal: AbortSignal): Promise<void> {
  return new Promise((done, fail) => {
    const leave = (): void => {
      child.kill('SIGKILL');
      // It may take its time to end: nothing of ours waits for that.
      child.unref();
      fail(signal.reason);
    };
    signal.addEventListener('abort', leave, { once: true });
    const ended = (): void => {
      signal.removeEventListener('abort', leave);
      done();
    };
    child.once('error', ended);
    child.once('exit', ended);
  });
}
