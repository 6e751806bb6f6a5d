/** What waits to be told: how long a channel is tried, and how long one is left alone. Real servers on loopback, and a clock that a test sets. */
import { symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import type { Context } from '../../src/context.js';
import { hasWork, tell } from '../../src/notifiers/delivery.js';
import type { Message } from '../../src/notifiers/message.js';
import type { Letter } from '../../src/notifiers/outbox.js';
import { outboxPath, pending } from '../../src/notifiers/outbox.js';
import type { Telling } from '../../src/settings/load.js';
import { CHANNELS } from '../../src/settings/values.js';
import { tempDirectory } from '../support/cli.js';
import { type HttpServer, startHttp } from '../support/http.js';

const nobody = Object.fromEntries(CHANNELS.map((channel) => [channel, null])) as unknown as Telling;

test('an outbox that cannot be looked at is work for whoever opens it, and never an exception', () => {
  const directory = tempDirectory('state');
  expect([hasWork(nobody, null), hasWork(nobody, directory)]).toEqual([false, false]);
  const loop = join(directory, 'loop');
  symlinkSync(loop, loop);
  expect(hasWork(nobody, loop)).toBe(true);
});

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

const BEGAN = Date.parse('2026-11-21T03:17:00Z');

/** A webhook, a state directory, and a clock that goes on when it is told to. */
async function place(): Promise<{ server: HttpServer; goOn: (ms: number) => void; heard: () => string[]; waiting: () => number; tell: Teller }> {
  const server = await startHttp();
  closing.push(() => server.close());
  const stateDir = tempDirectory('state');
  let ms = 0;
  const clock = { now: () => new Date(BEGAN + ms), monotonic: () => ms };
  const ctx = { clock, childEnv: {} } as unknown as Context;
  const telling = { ...nobody, webhook: { url: new URL(server.url), on: new Set() } } as Telling;
  return {
    server,
    goOn: (by) => {
      ms += by;
    },
    heard: () => server.heard.splice(0).map(({ body }) => (JSON.parse(body) as { subject: string }).subject),
    waiting: () => pending(outboxPath(stateDir), 'app').length,
    tell: (...subjects) =>
      tell(
        ctx,
        telling,
        { stateDir, name: 'app' },
        subjects.map((subject) => letter(subject, clock.now())),
        () => undefined,
        new AbortController().signal,
      ),
  };
}

type Teller = (...subjects: string[]) => ReturnType<typeof tell>;

function letter(subject: string, at: Date): Letter {
  const message: Message = { id: subject, createdAt: at.toISOString(), kind: 'failure', name: 'app', runId: null, subject, text: subject, html: subject };
  return { channel: 'webhook', audience: 'everyone', message };
}

test('a channel that takes its time to fail is given up for this run after 10 s; one that refuses quickly is asked for each message', async () => {
  const { server, goOn, heard, waiting, tell } = await place();
  const failing = (eachMs: number): void =>
    server.behave(() => {
      goOn(eachMs);
      return { answer: 500 };
    });
  failing(4000);
  const slow = await tell('a', 'b', 'c', 'd', 'e');
  // After 8 s there is time for one more, and after 12 s there is none.
  expect([heard(), waiting(), slow.failure?.kept]).toEqual([['a', 'b', 'c'], 5, true]);
  failing(1000);
  await tell();
  expect([heard(), waiting()]).toEqual([['a', 'b', 'c', 'd', 'e'], 5]);
  server.behave({ answer: 200 });
  expect([(await tell()).failure, heard(), waiting()]).toEqual([null, ['a', 'b', 'c', 'd', 'e'], 0]);
});

test('a server is left alone for as long as it asked, and for no longer than a day: the clock may have been wrong', async () => {
  const { server, goOn, heard, waiting, tell } = await place();
  server.behave({ answer: 429, headers: { 'retry-after': String(24 * 3600) } });
  await tell('a');
  server.behave({ answer: 200 });
  goOn(1000);
  expect([heard(), (await tell()).failure?.reason, heard()]).toEqual([['a'], expect.stringContaining('left alone until 2026-11-22T03:17:00'), []]);
  // The clock is set back to what it should have been: now it would be more than a day.
  goOn(-2000);
  expect([(await tell()).failure, heard(), waiting()]).toEqual([null, ['a'], 0]);
});
