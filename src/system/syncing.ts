/**
 * Bringing large files to the disk. On a slow one that takes long and nothing ends it: not a signal, not even SIGKILL, since the
 * kernel waits for what it has handed to the disk. So a process of its own waits there (`sync` of coreutils), and a signal
 * leaves it behind; a thread of ours would keep us from ending.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { closeSync, constants, existsSync, fstatSync, openSync } from 'node:fs';
import { syncFile } from './files.js';
import { findSetpriv } from './workers.js';

const SYNC = ['/usr/bin/sync', '/bin/sync', '/usr/local/bin/sync', '/run/current-system/sw/bin/sync'];
/** Below this a process of its own is not worth it, bytes. */
const LARGE = 1_000_000;
/** glibc's words for what can come of it (strerror(3), C locale). */
const ERRORS: readonly (readonly [RegExp, string])[] = [
  [/No space left on device/, 'ENOSPC'],
  [/Disk quota exceeded/, 'EDQUOT'],
  [/Read-only file system/, 'EROFS'],
];

/**
 * Syncs a file's bytes. Rejects with an error that has an errno as its `code`, or with the signal's reason as soon as that aborts:
 * then the file should be given up, for the sync may go on for as long as the disk needs.
 */
export async function syncLarge(path: string, signal: AbortSignal): Promise<void> {
  const fd = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
  try {
    if (!(await syncLargeFd(fd, fstatSync(fd).size, signal))) await syncFile(path);
  } finally {
    closeSync(fd);
  }
}

/** The same of an open file that may be read. False: it was not worth a process of its own, or none could be started. */
export async function syncLargeFd(fd: number, sizeBytes: number, signal: AbortSignal): Promise<boolean> {
  signal.throwIfAborted();
  const [sync, setpriv] = [SYNC.find((p) => existsSync(p)), findSetpriv()];
  if (sync === undefined || setpriv === null || sizeBytes < LARGE) return false;
  // The file that is open, whatever becomes of its name.
  const child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', sync, '/proc/self/fd/3'], {
    env: { LC_ALL: 'C' },
    stdio: ['ignore', 'ignore', 'pipe', fd],
    detached: true,
    cwd: '/',
  });
  child.on('error', () => undefined);
  if (child.pid === undefined) return false;
  await endOf(child, signal);
  return true;
}

function endOf(child: ChildProcess, signal: AbortSignal): Promise<void> {
  let said = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-1000);
  });
  return new Promise((done, fail) => {
    const leave = (): void => {
      child.kill('SIGKILL');
      // It may take its time to end: nothing of ours waits for that.
      child.stderr?.destroy();
      child.unref();
      fail(signal.reason);
    };
    signal.addEventListener('abort', leave, { once: true });
    const end = (error: Error | null): void => {
      signal.removeEventListener('abort', leave);
      if (error) fail(error);
      else done();
    };
    child.once('close', (code, killedBy) => {
      if (code === 0) return end(null);
      // An error of the disk is told once, and was told to that process: it must not be taken for anything less.
      const errno = ERRORS.find(([words]) => words.test(said))?.[1] ?? 'EIO';
      end(
        Object.assign(new Error(`${errno}: ${killedBy ? `the sync was ended by ${killedBy}` : said.trim() || `sync ended with ${code}`}`), {
          code: errno,
        }),
      );
    });
  });
}
