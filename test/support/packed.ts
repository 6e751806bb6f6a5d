/** Keys, and packed copies as the programs that everybody has read them: none of dbbackup's own code is asked. */
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { generateHybridIdentity, generateX25519Identity, identityToRecipient } from 'age-encryption';
import { PATH, tempDirectory } from './cli.js';

export interface Key {
  /** The identity file, 0600, as age-keygen writes it. */
  readonly path: string;
  readonly secret: string;
  readonly recipient: string;
}

/** A new key of a person. `hybrid`: one that the program age 1.1 does not know. */
export async function makeKey(kind: 'plain' | 'hybrid' = 'plain'): Promise<Key> {
  const secret = await (kind === 'plain' ? generateX25519Identity() : generateHybridIdentity());
  const recipient = await identityToRecipient(secret);
  const path = join(tempDirectory('key'), 'key.txt');
  writeFileSync(path, `# created: 2026-11-21T03:17:00Z\n# public key: ${recipient}\n${secret}\n`, { mode: 0o600 });
  return { path, secret, recipient };
}

function piped(program: string, args: readonly string[], input: Buffer): Buffer {
  const done = spawnSync(program, args, { input, env: { PATH }, maxBuffer: 1 << 30 });
  if (done.status !== 0) throw new Error(`${program} ${args.join(' ')} ended with ${done.status}: ${done.stderr.toString()}`);
  return done.stdout;
}

/** The bytes of a copy, opened and unpacked by the programs that its name asks for. */
export function unpackedBy(path: string, key: Key | null): Buffer {
  let bytes: Buffer = readFileSync(path);
  if (path.endsWith('.age')) bytes = piped('age', ['-d', '-i', key?.path ?? ''], bytes);
  const inner = path.replace(/\.age$/, '');
  if (inner.endsWith('.zst')) return piped('zstd', ['-d', '-q', '-c'], bytes);
  return inner.endsWith('.gz') ? piped('gunzip', ['-c'], bytes) : bytes;
}

/** The sealed part of a manifest, opened by the program age. */
export const secretsOf = (manifest: { readonly sealed: string | null }, key: Key): Record<string, unknown> =>
  JSON.parse(piped('age', ['-d', '-i', key.path], Buffer.from(manifest.sealed ?? '', 'base64')).toString()) as Record<string, unknown>;
