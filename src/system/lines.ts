/**
 * Lines between our processes: a JSON document each, which holds no line break. Node's readline gives half a line at the end as a whole
 * one, which is what a child leaves that was killed in the middle of an answer.
 */
import { readSync } from 'node:fs';
import type { Readable } from 'node:stream';

/** The end of what a process wrote to stderr, without the places in the code, of which newer versions of Node name ever more. */
export const lastWords = (stderr: string): string =>
  stderr
    .replaceAll(/^ {4}at .*\n?/gm, '')
    .trim()
    .slice(-500);

/** Calls back with each line as it comes, without its end; what comes after the last line break is none. */
export function onLines(stream: Readable, each: (line: string) => void): void {
  let rest = '';
  stream.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) each(line);
  });
}

/**
 * The same of a descriptor, until the other side closes its end or is gone; nothing else happens in this process while a line is waited
 * for. For one that has nothing else to do: what Node has for streams takes a sixth of the start of a SQLite child to load.
 */
export function* linesOf(fd: number): Generator<string> {
  const chunk = Buffer.allocUnsafe(65_536);
  let rest = Buffer.alloc(0);
  for (;;) {
    let length: number;
    try {
      length = readSync(fd, chunk);
    } catch {
      return;
    }
    if (length === 0) return;
    rest = Buffer.concat([rest, chunk.subarray(0, length)]);
    for (let end = rest.indexOf('\n'); end >= 0; end = rest.indexOf('\n')) {
      yield rest.toString('utf8', 0, end);
      rest = rest.subarray(end + 1);
    }
  }
}
