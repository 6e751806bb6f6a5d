/** What tests of destinations share: files with known hashes, processes found by their environment, servers of other people. */
import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { build } from 'esbuild';
import type { Expected } from '../../src/destinations/destination.js';
import { lastingDirectory, ROOT, tempDirectory } from './cli.js';
import type * as built from './destinations-built.js';

/** A package like ours with these modules in one file: a child of what is run from TypeScript takes twice as long to start, and these tests start many. */
async function buildDestinations(): Promise<string> {
  const root = lastingDirectory('built');
  for (const name of ['node_modules', 'package.json']) symlinkSync(join(ROOT, name), join(root, name));
  mkdirSync(join(root, 'dist'));
  for (const child of ['directory-child.js', 's3-child.js']) symlinkSync(join(ROOT, 'dist', child), join(root, 'dist', child));
  const outfile = join(root, 'dist/destinations.js');
  await build({
    entryPoints: [join(ROOT, 'test/support/destinations-built.ts')],
    outfile,
    bundle: true,
    packages: 'external',
    platform: 'node',
    format: 'esm',
  });
  return outfile;
}

export const BUILT = await buildDestinations();
export const { openDestination, DestinationError } = (await import(BUILT)) as typeof built;

export interface LocalFile extends Expected {
  readonly file: string;
  readonly bytes: Buffer;
}

/** A file of random bytes. */
export function localFile(sizeBytes: number): LocalFile {
  const bytes = randomBytes(sizeBytes);
  const file = join(tempDirectory('object'), 'file');
  writeFileSync(file, bytes);
  return { file, bytes, sizeBytes, sha256: createHash('sha256').update(bytes).digest('hex') };
}

export async function bytesOf(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** What a promise is rejected with; a resolved one is an error of its own kind. */
export async function rejection(promise: Promise<unknown>): Promise<Error> {
  return await promise.then(
    (value) => new Error(`it resolved with ${JSON.stringify(value)}`),
    (error: unknown) => (error instanceof Error ? error : new Error(String(error))),
  );
}

export interface Found {
  readonly pid: number;
  /** Arguments, by blanks. */
  readonly argv: string;
}

/** An environment by which every process that gets it can be found again. */
export function markedEnvironment(more: NodeJS.ProcessEnv): { env: NodeJS.ProcessEnv; processes: () => Found[] } {
  const marker = `DESTINATION_TEST=${randomBytes(8).toString('hex')}`;
  const [name = '', value = ''] = marker.split('=');
  const processes = (): Found[] =>
    readdirSync('/proc')
      .filter((entry) => /^\d+$/.test(entry))
      .filter((pid) => read(`/proc/${pid}/environ`).includes(marker) && !/^\d+ \(.*\) [ZX]/s.test(read(`/proc/${pid}/stat`)))
      .map((pid) => ({ pid: Number(pid), argv: read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ') }));
  return { env: { PATH: process.env['PATH'], HOME: tempDirectory('home'), [name]: value, ...more }, processes };
}

function read(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

/** Why rclone cannot be used here, or null when it can. */
export const noRclone = (): string | null => (spawnSync('rclone', ['version']).status === 0 ? null : 'this needs rclone');

export interface WebDav {
  readonly url: string;
  readonly user: string;
  /** As rclone's configuration wants it. */
  readonly obscured: string;
  close(): Promise<void>;
}

/** rclone's own WebDAV server on loopback, with a password. */
export async function startWebDav(directory: string): Promise<WebDav> {
  const password = randomBytes(8).toString('hex');
  const env = { PATH: process.env['PATH'], HOME: tempDirectory('home'), RCLONE_USER: 'dbbackup', RCLONE_PASS: password };
  const child = spawn('rclone', ['serve', 'webdav', '--addr', '127.0.0.1:0', '--', directory], { env, stdio: ['ignore', 'ignore', 'pipe'] });
  const url = await new Promise<string>((done, fail) => {
    let said = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text;
      const found = /http:\/\/127\.0\.0\.1:\d+/.exec(said);
      if (found) done(found[0]);
    });
    child.once('exit', () => fail(new Error(`rclone serve ended: ${said}`)));
  });
  const obscured = spawnSync('rclone', ['obscure', '-'], { input: password, encoding: 'utf8' }).stdout.trim();
  return {
    url,
    user: 'dbbackup',
    obscured,
    close: async () => {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    },
  };
}

interface S3rver {
  run(): Promise<{ port: number }>;
  close(): Promise<void>;
}
type S3rverClass = new (options: { port: number; address: string; silent: boolean; directory: string; configureBuckets: { name: string }[] }) => S3rver;

/** Somebody else's S3 server: it checks signatures, knows nothing of SHA-256 checksums, and lists no unfinished uploads. */
export async function startS3rver(bucket: string): Promise<{ endpoint: string; close: () => Promise<void> }> {
  const directory = join(tempDirectory('s3rver'), 'data');
  mkdirSync(directory);
  const Server = createRequire(import.meta.url)('s3rver') as S3rverClass;
  const server = new Server({ port: 0, address: '127.0.0.1', silent: true, directory, configureBuckets: [{ name: bucket }] });
  const { port } = await server.run();
  return { endpoint: `http://127.0.0.1:${port}`, close: () => server.close() };
}
