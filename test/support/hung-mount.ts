/** A mount whose server reads what is asked of it and never answers: who asks hangs in the kernel, where not even SIGKILL reaches it. */
import { spawnSync } from 'node:child_process';
import { closeSync, constants, existsSync, mkdirSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { atEnd, cannot, tempDirectory } from './cli.js';

/** Why there can be none here, or null. */
export const noHungMount = (): string | null => cannot('root', 'mount') ?? (existsSync('/dev/fuse') ? null : 'this needs /dev/fuse');

export interface HungMount {
  readonly point: string;
  /** Whether somebody has asked it something since the last time. */
  readonly asked: () => boolean;
  /** Lets everybody go who hangs in it. */
  readonly release: () => void;
}

/** FUSE's answer to INIT (fuse(4)): protocol 7.31, no flags, writes of 4 kB. */
function initAnswer(unique: bigint): Buffer {
  const answer = Buffer.alloc(80);
  answer.writeUInt32LE(answer.length, 0);
  answer.writeBigUInt64LE(unique, 8);
  answer.writeUInt32LE(7, 16);
  answer.writeUInt32LE(31, 20);
  answer.writeUInt32LE(4096, 36);
  answer.writeUInt32LE(1, 40);
  return answer;
}

/** Mounts one; everything of it goes at the end. */
export function hungMount(): HungMount {
  const point = join(tempDirectory('hung'), 'mnt');
  mkdirSync(point);
  const fd = openSync('/dev/fuse', constants.O_RDWR | constants.O_NONBLOCK);
  const options = `fd=3,rootmode=40000,user_id=0,group_id=0`;
  const mounted = spawnSync('mount', ['-i', '-t', 'fuse', '-o', options, 'hung', point], { stdio: ['ignore', 'ignore', 'inherit', fd] });
  if (mounted.status !== 0) throw new Error(`mount ended with ${mounted.status}`);
  const request = Buffer.alloc(1 << 17);
  const take = (): number => {
    try {
      return readSync(fd, request, 0, request.length, null);
    } catch {
      return 0;
    }
  };
  let open = true;
  const release = (): void => {
    if (open) closeSync(fd);
    open = false;
  };
  atEnd(() => {
    release();
    spawnSync('umount', ['-l', point]);
  });
  while (take() === 0);
  writeSync(fd, initAnswer(request.readBigUInt64LE(8)));
  return { point, asked: () => take() > 0, release };
}
