/**
 * A command and everything it started. A process whose parent has ended belongs to init and not to the tree any more, so
 * whoever was seen once is remembered, and an environment variable finds who was never seen.
 */
import { readdirSync } from 'node:fs';
import { anonBytesOf } from './memory.js';
import { readOrEmpty, statOf } from './proc.js';
import { END_SIGNALS } from './signals.js';

interface Seen {
  readonly pid: number;
  readonly parent: number;
  /** With the number it tells a process from a later one of the same number. */
  readonly startTicks: string;
}

/** The processes of one command, as far as this user can see them. */
export class ProcessTree {
  readonly #root: number;
  readonly #marker: Buffer;
  readonly #known = new Map<number, string>();
  #rootIsNew = true;

  /** @param marker `NAME=value`, which the command has in its environment and nobody else */
  constructor(root: number, marker: string) {
    this.#root = root;
    this.#marker = Buffer.from(`${marker}\0`);
  }

  /** Who is alive now, by parentage; with `thorough` also by environment, which costs a file for each process of the machine. */
  members(thorough = false): readonly number[] {
    const all = list();
    const alive = new Map(all.map((p) => [p.pid, p.startTicks]));
    for (const [pid, startTicks] of this.#known) if (alive.get(pid) !== startTicks) this.#known.delete(pid);
    const root = alive.get(this.#root);
    if (root !== undefined && !this.#known.has(this.#root) && this.#rootIsNew) this.#known.set(this.#root, root);
    this.#rootIsNew = false;
    if (thorough) for (const p of all) if (hasMarker(p.pid, this.#marker)) this.#known.set(p.pid, p.startTicks);
    // Children may be listed before their parents.
    for (let found = true; found; ) {
      found = false;
      for (const p of all) {
        if (this.#known.has(p.pid) || !this.#known.has(p.parent)) continue;
        this.#known.set(p.pid, p.startTicks);
        found = true;
      }
    }
    return [...this.#known.keys()];
  }

  /** Anonymous memory of all of them, bytes. */
  anonBytes(): number {
    return this.members().reduce((sum, pid) => sum + anonBytesOf(pid), 0);
  }

  /** Sends a signal to all of them. */
  signal(signal: NodeJS.Signals, thorough = false): void {
    for (const pid of this.members(thorough)) {
      try {
        process.kill(pid, signal);
      } catch {
        // It has ended meanwhile, or is another user's.
      }
    }
  }
}

/** Calls back for each signal that asks us to end, also the second and third one; returns what stops that. */
export function passSignals(pass: (signal: NodeJS.Signals) => void): () => void {
  for (const signal of END_SIGNALS) process.on(signal, pass);
  return () => {
    for (const signal of END_SIGNALS) process.off(signal, pass);
  };
}

/** All processes that are no zombies. */
function list(): Seen[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((entry) => {
      const pid = Number(entry);
      const field = statOf(pid);
      if (['', 'Z', 'X'].includes(field(3))) return [];
      return [{ pid, parent: Number(field(4)), startTicks: field(22) }];
    });
}

function hasMarker(pid: number, marker: Buffer): boolean {
  const environment = readOrEmpty(`/proc/${pid}/environ`);
  const at = environment.indexOf(marker);
  return at === 0 || (at > 0 && environment[at - 1] === 0);
}
