/** How a child of ours answers: a JSON document a line, on a descriptor of its own, since its stdout may be anybody's. */
import { writeSync } from 'node:fs';

const ANSWERS_FD = 3;

/** Writes one answer. Never throws: a parent that is gone needs none, and the child then ends with 1. */
export function writeAnswer(answer: object): void {
  const line = Buffer.from(`${JSON.stringify(answer)}\n`);
  try {
    for (let done = 0; done < line.length; ) done += writeSync(ANSWERS_FD, line, done);
  } catch {
    // Nobody is left to tell (traps, 44).
    process.exitCode = 1;
  }
}
