/**
 * Lines between our processes: a JSON document each, which holds no line break. Node's readline gives half a line at the end as a whole
 * one, which is what a child leaves that was killed in the middle of an answer.
 */
import type { Readable } from 'node:stream';

/** Calls back with each line as it comes, without its end; what comes after the last line break is none. */
export function onLines(stream: Readable, each: (line: string) => void): void {
  let rest = '';
  stream.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) each(line);
  });
}
