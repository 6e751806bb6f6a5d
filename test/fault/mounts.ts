/** Small file systems to fill up, to cut off and to make read-only. All are unmounted at the end. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { atEnd, keepDirectory, tempDirectory } from '../support/cli.js';

const mount = (...args: string[]): void => {
  execFileSync('mount', args, { stdio: ['ignore', 'ignore', 'pipe'] });
};

function unmount(point: string): void {
  const done = spawnSync('umount', [point]);
  if (done.status !== 0) spawnSync('umount', ['-l', point]);
}

/** Where to mount: below a temp directory of its own. */
function mountPoint(label: string): string {
  const point = join(tempDirectory(label), 'mnt');
  mkdirSync(point);
  atEnd(() => unmount(point));
  return point;
}

/** A tmpfs of this size; returns where it is mounted. */
export function mountTmpfs(bytes: number): string {
  const point = mountPoint('tmpfs');
  mount('-t', 'tmpfs', '-o', `size=${bytes},mode=0700`, 'tmpfs', point);
  return point;
}

export interface Ext4 {
  readonly point: string;
  readonly mount: () => void;
  readonly unmount: () => void;
}

function isAlive(point: string): boolean {
  const probe = join(point, '.probe');
  try {
    writeFileSync(probe, 'x');
    rmSync(probe);
    return true;
  } catch {
    return false;
  }
}

/** An ext4 in a sparse file, loop-mounted. */
export function mountExt4(bytes: number): Ext4 {
  const home = mkdtempSync('/tmp/dbbackup-image-');
  keepDirectory(home);
  const image = join(home, 'ext4.img');
  execFileSync('truncate', ['-s', String(bytes), image]);
  execFileSync('mkfs.ext4', ['-q', '-F', '-m', '0', '-E', 'lazy_itable_init=0,lazy_journal_init=0', image]);
  const point = mountPoint('ext4');
  atEnd(() => {
    unmount(point);
    execFileSync('rm', ['-rf', home]);
  });
  const ext4: Ext4 = {
    point,
    mount: () => {
      // Another mount namespace that was made meanwhile (a sandbox, unshare) keeps the old, cut-off file system alive, and
      // mounting the device again finds that one: once more, until it is a live one.
      for (let tries = 0; tries < 1000; tries++) {
        mount('-o', 'loop', image, point);
        if (isAlive(point)) return;
        execFileSync('umount', [point]);
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
      }
      throw new Error(`${point} cannot be mounted again`);
    },
    unmount: () => {
      execFileSync('umount', [point], { stdio: ['ignore', 'ignore', 'pipe'] });
    },
  };
  ext4.mount();
  return ext4;
}

/** A second, read-only view of a directory. */
export function bindReadOnly(directory: string): string {
  const point = mountPoint('readonly');
  mount('--bind', directory, point);
  mount('-o', 'remount,ro,bind', point);
  return point;
}

/**
 * FS_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: from this instant nothing reaches the disk any more, not even the
 * journal. The process waits with everything loaded, so that the cut comes when it is asked for.
 */
const CUTTER = `
import fcntl, os, struct, sys
print('ready', flush=True)
for line in sys.stdin:
    fd = os.open(line.rstrip('\\n'), os.O_RDONLY)
    fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 2))
    os.close(fd)
    print('cut', flush=True)
`;

export class PowerSwitch {
  readonly #process: ChildProcess;
  #answers = 0;

  constructor() {
    this.#process = spawn('python3', ['-c', CUTTER], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#process.stdout?.on('data', (b: Buffer) => {
      this.#answers += b.toString().split('\n').length - 1;
    });
    atEnd(() => this.#process.kill('SIGKILL'));
  }

  ready(): boolean {
    return this.#answers > 0;
  }

  /** Cuts the power of a mounted file system; resolves when it is off. */
  async cut(point: string): Promise<void> {
    const before = this.#answers;
    this.#process.stdin?.write(`${point}\n`);
    while (this.#answers === before) {
      if (this.#process.exitCode !== null) throw new Error('the power switch broke');
      await new Promise((r) => setTimeout(r, 1));
    }
  }

  off(): void {
    this.#process.kill('SIGKILL');
  }
}
