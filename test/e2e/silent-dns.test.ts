/** A name server that never answers: a signal ends a run that looks a host up within 2 s, whoever is asked just then. */
import { createSocket } from 'node:dgram';
import { readdirSync, realpathSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cannot, signalTo, start, tempDirectory, until } from '../support/cli.js';
import { sceneWithCopy } from './scene.js';

interface NameServer {
  readonly address: string;
  readonly heard: () => number;
  readonly close: () => void;
}

/** Answers the first queries with "no such name", and nothing after that. */
async function startNameServer(answered: number): Promise<NameServer> {
  const socket = createSocket('udp4');
  let heard = 0;
  socket.on('message', (query, from) => {
    if (++heard > answered) return;
    const answer = Buffer.from(query);
    // A response, recursion available, NXDOMAIN; the question stays, and a record of EDNS goes.
    answer.writeUInt16BE(0x8183, 2);
    answer.writeUInt16BE(0, 10);
    const end = answer.indexOf(0, 12) + 5;
    socket.send(answer.subarray(0, end), from.port, from.address);
  });
  // Resolvers know no port but 53; of loopback addresses there are plenty.
  const address = `127.${process.pid % 251}.${(process.pid >> 8) % 251}.${2 + answered}`;
  await new Promise<void>((bound) => socket.bind(53, address, bound));
  return { address, heard: () => heard, close: () => socket.close() };
}

test.skipIf(cannot('root', 'mount') !== null).each([
  ['the DNS', 0],
  // Both of its questions, for addresses of either kind.
  ['the system', 2],
])('asked by way of %s', async (_, answered) => {
  const server = await startNameServer(answered);
  const { s } = await sceneWithCopy();
  const conf = join(tempDirectory('resolv'), 'resolv.conf');
  writeFileSync(conf, `nameserver ${server.address}\noptions attempts:2 timeout:20\n`);
  const through = ['unshare', '-m', 'sh', '-c', `mount --bind ${conf} ${realpathSync('/etc/resolv.conf')} && exec "$0" "$@"`];
  renameSync(s.source, `${s.source}.gone`);
  const env = { DBBACKUP_WEBHOOK: 'https://alerts.example.org/x' };
  const running = start(['run', s.source, '--to', s.to, '--json'], { env, through });
  await until('the name server to be asked', () => server.heard() > answered);
  const began = performance.now();
  signalTo(running.pid, 'SIGTERM');
  const run = await running.result;
  const tookMs = performance.now() - began;
  server.close();
  expect([run.code, run.json.error?.code, tookMs < 2000 ? 'in time' : tookMs], run.stderr).toEqual([1, 'SOURCE_MISSING', 'in time']);
  expect(readdirSync(join(s.state, 'outbox')).filter((f) => f.endsWith('.json'))).toHaveLength(1);
});
