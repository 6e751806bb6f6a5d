/**
 * Which system calls a run makes on its files, so that a fault can be put into each of them. A run is traced once;
 * `when=N` of strace counts each call of each thread apart (traps, 46), and so does this.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { dbbackup, type Options, wrap } from '../support/cli.js';
import type { Random } from './harness.js';
import { must } from './proof.js';

/** Calls on files. Not among them: write and read, which Node also uses on its own pipes and cannot do without. */
export const FILE_CALLS = [
  'openat,fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat',
  'pwrite64,pread64,ftruncate,fallocate,getdents64,statfs,fstatfs,statx,newfstatat,lstat,stat,fstat,access,faccessat',
  'readlink,readlinkat,chmod,fchmod,fchmodat,chown,fchown,fchownat,fcntl,copy_file_range,sendfile,utimensat,symlink,lseek',
].join(',');

export interface Call {
  /** One per thread. */
  readonly tracee: string;
  readonly call: string;
  /** The how many-th call of this kind of its thread, from 1. */
  readonly when: number;
  readonly line: string;
  readonly injected: boolean;
}

/** The logs that `wrap.fault` wrote: `log.TID`. */
export function readTrace(log: string): Call[] {
  const calls: Call[] = [];
  for (const name of readdirSync(dirname(log)).filter((n) => n.startsWith(`${basename(log)}.`))) {
    const counts = new Map<string, number>();
    for (const line of readFileSync(join(dirname(log), name), 'utf8').split('\n')) {
      const call = /^(\w+)\(/.exec(line)?.[1];
      if (call === undefined) continue;
      const when = (counts.get(call) ?? 0) + 1;
      counts.set(call, when);
      calls.push({ tracee: name, call, when, line, injected: line.endsWith('(INJECTED)') });
    }
  }
  return calls;
}

export class Calibration {
  readonly #byCall: ReadonlyMap<string, readonly Call[]>;

  constructor(calls: readonly Call[]) {
    const byCall = new Map<string, Call[]>();
    for (const call of calls) byCall.set(call.call, [...(byCall.get(call.call) ?? []), call]);
    this.#byCall = byCall;
  }

  only(wanted: (call: Call) => boolean): Calibration {
    return new Calibration([...this.#byCall.values()].flat().filter(wanted));
  }

  get kinds(): string[] {
    return [...this.#byCall.keys()];
  }

  get size(): number {
    return [...this.#byCall.values()].reduce((n, c) => n + c.length, 0);
  }

  /** Each kind of call is as likely as any other: there are a thousand reads for one link. */
  pick(random: Random, kinds: readonly string[] = this.kinds): Call {
    const possible = kinds.filter((k) => this.#byCall.has(k));
    return random.pick(this.#byCall.get(random.pick(possible)) ?? []);
  }

  /** As many kinds of calls as there are rounds, one after the other: round i gets kind i. */
  inTurn(random: Random, index: number, kinds: readonly string[] = this.kinds): Call {
    const possible = kinds.filter((k) => this.#byCall.has(k));
    return random.pick(this.#byCall.get(possible[index % possible.length] ?? '') ?? []);
  }
}

/** Runs once under strace and returns the calls that touched files below `home`. */
export async function calibrate(home: string, log: string, args: readonly string[], options: Options = {}): Promise<Calibration> {
  const run = await dbbackup(args, { ...options, through: wrap.trace(log, FILE_CALLS) });
  must(run.code === 0, () => `the run to learn from failed: ${run.code} ${run.stderr}`);
  const calls = readTrace(log).filter((c) => c.line.includes(home));
  must(calls.length > 50, () => `the trace shows only ${calls.length} calls below ${home}`);
  return new Calibration(calls);
}
