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
    // The file that is open, whatever becomes of its name.
    const child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', sync, '/proc/self/fd/3'], {
      env: {},
      stdio: ['ignore', 'ignore', 'ignore', fd],
      detached: true,
      cwd: '/',
    });
    beNice(child.pid);
    await endOf(child, signal);
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

/** As all our children are (DESIGN, "The command"). */
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
