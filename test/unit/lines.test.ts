import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { onLines } from '../../src/system/lines.js';

test('lines come whole, however they are cut, and half a one at the end is none', async () => {
  const stream = new PassThrough();
  const seen: string[] = [];
  onLines(stream, (line) => seen.push(line));
  const bytes = Buffer.from('{"a":"ü"}\n{"b":"no\u2028end"}\r\n\n{"half":');
  for (const byte of bytes) stream.write(Buffer.of(byte));
  stream.end();
  await new Promise((done) => stream.once('end', done));
  expect(seen).toEqual(['{"a":"ü"}', '{"b":"no\u2028end"}\r', '']);
});
