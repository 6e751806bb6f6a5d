/** Bringing a growing file to the disk in pieces. */
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { SyncInPieces } from '../../src/system/syncing.js';
import { tempDirectory } from '../support/cli.js';

const never = new AbortController().signal;

test('a file that can be synced is, however often it is asked, and one that is not there yet is no error', async () => {
  const path = join(tempDirectory('pieces'), 'growing');
  const pieces = new SyncInPieces(path, never);
  pieces.grown(40_000_000);
  writeFileSync(path, 'begun');
  truncateSync(path, 120_000_000);
  for (const bytes of [80_000_000, 90_000_000, 120_000_000]) pieces.grown(bytes);
  await expect(pieces.end()).resolves.toBeUndefined();
  await expect(pieces.end()).resolves.toBeUndefined();
});

test('what one piece is told is told at the end', async () => {
  // A device that takes every write and can be synced by nobody.
  const pieces = new SyncInPieces('/dev/full', never);
  pieces.grown(40_000_000);
  await expect(pieces.end()).rejects.toThrow('EINVAL');
});

test('too little for a piece is left to the sync of the whole', async () => {
  const pieces = new SyncInPieces('/dev/full', never);
  pieces.grown(31_000_000);
  await expect(pieces.end()).resolves.toBeUndefined();
});

test('a signal is not kept waiting', async () => {
  const ended = new AbortController();
  const pieces = new SyncInPieces('/dev/full', ended.signal);
  pieces.grown(40_000_000);
  ended.abort(new Error('TERM'));
  await expect(pieces.end()).resolves.toBeUndefined();
});
