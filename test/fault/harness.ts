/**
 * A fault scenario is a number of rounds, each with a random stream of its own that follows from the seed and the
 * round's number alone. The same scenario runs a few rounds in `npm test` and many in `npm run soak`. A round that fails
 * leaves its directory and the line that repeats it.
 */
import { cpSync, existsSync, lstatSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Need, type Result, removeDirectory, tempDirectory } from '../support/cli.js';
import { must } from './proof.js';

/** mulberry32: small, fast, and the same everywhere. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  /** From 0 to 1, 1 excluded. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  }
  /** A whole number from 0 to n - 1. */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }
  between(low: number, high: number): number {
    return low + this.next() * (high - low);
  }
  chance(p: number): boolean {
    return this.next() < p;
  }
  pick<T>(from: readonly T[]): T {
    const found = from[this.below(from.length)];
    if (found === undefined) throw new Error('nothing to pick from');
    return found;
  }
  bytes(n: number): Uint8Array {
    return Uint8Array.from({ length: n }, () => this.below(256));
  }
}

export interface Round {
  readonly index: number;
  readonly random: Random;
  /** A directory of this round; kept as evidence when the round fails. */
  readonly directory: string;
  /** Said in the report of a failure: what was done in this round. */
  readonly say: (text: string) => void;
}

export interface Failure {
  readonly round: number;
  readonly why: string;
}

export interface Request {
  /** Rounds to play. */
  readonly count: number;
  readonly seed: number;
  /** This round alone, to repeat a failure. */
  readonly only?: number | undefined;
  /** A line on what was seen, for the table of the soak. */
  readonly note?: (text: string) => void;
  readonly progress?: (done: number, failures: number) => void;
}

export interface Scenario {
  readonly name: string;
  /** What holds, as one sentence. */
  readonly promise: string;
  readonly ci: number;
  readonly soak: number;
  readonly needs: readonly Need[];
  readonly play: (request: Request) => Promise<readonly Failure[]>;
}

export const EVIDENCE = '/tmp/dbbackup-fault-evidence';

/** Plays the rounds; one that throws is a failure. `lanes`: how many at a time. */
export async function rounds(name: string, request: Request, body: (round: Round) => Promise<void>, lanes = 1): Promise<Failure[]> {
  const failures: Failure[] = [];
  const queue = request.only === undefined ? Array.from({ length: request.count }, (_, i) => i) : [request.only];
  let done = 0;
  const lane = async (): Promise<void> => {
    for (let index = queue.shift(); index !== undefined; index = queue.shift()) {
      const directory = tempDirectory(name);
      const said: string[] = [];
      try {
        await body({ index, random: new Random(Math.imul(request.seed, 1_000_003) + index * 7919), directory, say: (t) => said.push(t) });
        removeDirectory(directory);
      } catch (error) {
        const why = `${said.join('; ')}: ${error instanceof Error && error.name === 'Broken' ? error.message : String(error instanceof Error ? error.stack : error)}`;
        const again = `npx tsx test/fault/soak.ts --only ${name} --seed ${request.seed} --round ${index}`;
        const kept = keepEvidence(`${name}-${request.seed}-${index}`, directory, `${why}\n\nAgain: ${again}\n`);
        failures.push({ round: index, why: `${why}\n  again: ${again}\n  kept: ${kept}` });
      }
      done++;
      request.progress?.(done, failures.length);
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  return failures;
}

function keepEvidence(label: string, directory: string, why: string): string {
  mkdirSync(EVIDENCE, { recursive: true, mode: 0o700 });
  const kept = join(EVIDENCE, label);
  rmSync(kept, { recursive: true, force: true });
  if (existsSync(directory)) {
    // Copied, not renamed: it may lie on another file system, or have something mounted on it.
    cpSync(directory, kept, { recursive: true, filter: (from) => !lstatSync(from).isFIFO() });
    removeDirectory(directory);
  } else {
    mkdirSync(kept);
  }
  writeFileSync(join(kept, 'WHY.txt'), why);
  return kept;
}

/** What was seen how often, for the table. */
export const counted = (seen: Readonly<Record<string, number>> | ReadonlyMap<string, number>): string =>
  (seen instanceof Map ? [...seen] : Object.entries(seen)).map(([what, n]) => `${what} ${n}`).join(', ');

/** A result in a few words, for the text of a failure. */
export const told = (r: Result): string =>
  `exit ${r.hung ? 'never (hung)' : (r.code ?? r.signal)}, error ${r.json.error?.code ?? '-'}, stderr: ${r.stderr.trim().split('\n').slice(-3).join(' / ')}`;

/** What holds for every end of every run, whatever was done to it. */
export function mustEndCleanly(r: Result): void {
  must(!r.hung, 'did not end');
  must(r.code !== 70, () => `called it a bug: ${r.json.error?.message ?? r.stderr}`);
  must(r.signal === null, () => `died of ${r.signal}`);
  must(r.code === 0 || r.code === 1 || r.code === 3, () => `an exit code out of the contract: ${told(r)}`);
  must(r.isJson, () => `--json, and no JSON document on stdout: ${told(r)}; stdout: ${r.stdout.slice(0, 500)}`);
  must(r.json.exitCode === r.code, () => `the document says exit ${r.json.exitCode}: ${told(r)}`);
  must(r.code === 0 || (r.json.error?.code && r.json.error.hint), () => `failed without code and hint: ${told(r)}`);
}
