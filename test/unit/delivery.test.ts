import { symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { hasWork } from '../../src/notifiers/delivery.js';
import type { Telling } from '../../src/settings/load.js';
import { CHANNELS } from '../../src/settings/values.js';
import { tempDirectory } from '../support/cli.js';

test('an outbox that cannot be looked at is work for whoever opens it, and never an exception', () => {
  const nobody = Object.fromEntries(CHANNELS.map((channel) => [channel, null])) as unknown as Telling;
  const directory = tempDirectory('state');
  expect([hasWork(nobody, null), hasWork(nobody, directory)]).toEqual([false, false]);
  const loop = join(directory, 'loop');
  symlinkSync(loop, loop);
  expect(hasWork(nobody, loop)).toBe(true);
});
