/** How parents ask and children answer: a line each, and what is left of one that was killed. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { linesOf, onLines } from '../../src/system/lines.js';
import type { End } from '../../src/system/start-worker.js';
import { ChildDied, Worker } from '../../src/system/workers.js';

test('lines come whole, however they are cut, and half a one at the end is none', async () => {
  const stream = new PassThrough();
  const seen: string[] = [];
  onLines(stream, (line) => seen.push(line));
  for (const byte of Buffer.from('{"a":"ü"}\n{"b":"no\u2028end"}\r\n\n{"half":')) stream.write(Buffer.of(byte));
  stream.end();
  await once(stream, 'end');
  expect(seen).toEqual(['{"a":"ü"}', '{"b":"no\u2028end"}\r', '']);
});

test('and of a descriptor, whole as well: longer than one reading, several in one, half a one at the end', () => {
  const long = `"${'ü'.repeat(100_000)}"`;
  const dir = mkdtempSync(join(tmpdir(), 'lines-'));
  try {
    writeFileSync(join(dir, 'asked'), `${long}\n{"a":1}\n{"b":2}\r\n\n{"half":`);
    const fd = openSync(join(dir, 'asked'), 'r');
    expect([...linesOf(fd)]).toEqual([long, '{"a":1}', '{"b":2}\r', '']);
    closeSync(fd);
    const unreadable = openSync(dir, 'r');
    expect([...linesOf(unreadable)], 'what cannot be read has no line').toEqual([]);
    closeSync(unreadable);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('a child that is killed in the middle of its answer has died, and has not answered', async () => {
  const child = spawn('/bin/sh', ['-c', `read -r request; printf '{"ok":true,"value":{"struc' >&3; kill -9 $$`], {
    stdio: ['pipe', 'ignore', 'ignore', 'pipe'],
  });
  const ended = once(child, 'close').then(([code, signal]: (number | NodeJS.Signals | null)[]) => ({ error: null, said: '', code, signal }) as End);
  const worker = new Worker({ child, ended });
  const request = { op: 'check-all', file: '/nowhere', mmap: true, cellSizeCheck: false } as const;
  await expect(worker.ask(request)).rejects.toThrow(ChildDied);
});
