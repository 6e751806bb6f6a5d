/**
 * Whatever rclone can reach, by the program itself and its own configuration. What was stored is read back: which checksums a remote
 * computes, and over what, differs from backend to backend.
 */
import { createHash } from 'node:crypto';
import { accessSync, constants, statSync } from 'node:fs';
import { delimiter, isAbsolute, join, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { redactor } from '../redact.js';
import { lstatOrNull } from '../system/files.js';
import type { Destination, DestinationErrorKind, Expected, Patience, Proved, RemoteObject } from './destination.js';
import { bareName, DestinationError, tooLong } from './destination.js';
import { judged, Leashed, onAbort, reasonOf, secretsOf } from './leash.js';
import type { RcloneUrl } from './url.js';

/** A listing of a hundred thousand objects has some 20 MB. */
const LISTING_MAX_BYTES = 256 << 20;
const DIRECTORY_NOT_FOUND = 3;
const FILE_NOT_FOUND = 4;
const TEMPORARY = 5;

/** Would make rclone ask, pretend, write among the bytes, or print the credentials that it sends. */
const UNSET = [
  'PROGRESS',
  'DRY_RUN',
  'INTERACTIVE',
  'DUMP',
  'DUMP_HEADERS',
  'DUMP_BODIES',
  'VERBOSE',
  'QUIET',
  'LOG_LEVEL',
  'LOG_FILE',
  'USE_JSON_LOG',
  'SYSLOG',
];

export class RcloneDestination implements Destination {
  readonly shown: string;
  readonly #remote: string;
  readonly #env: NodeJS.ProcessEnv;
  readonly #redact: (text: string) => string;
  readonly #live = new Set<Leashed>();
  /** Bytes of each object in the last listing: rclone takes longer to start than to read a manifest. */
  #listed: ReadonlyMap<string, number> = new Map();

  constructor(url: RcloneUrl, env: NodeJS.ProcessEnv, patience: Patience) {
    this.shown = url.shown;
    this.#remote = url.remote;
    this.#redact = redactor(secretsOf(env));
    const unset = new Set(UNSET.map((name) => `RCLONE_${name}`));
    this.#env = {
      RCLONE_CONTIMEOUT: `${patience.connectMs}ms`,
      RCLONE_TIMEOUT: `${patience.idleMs}ms`,
      ...Object.fromEntries(Object.entries(env).filter(([name]) => !unset.has(name))),
      // Nobody is there to be asked for the password of a configuration.
      RCLONE_ASK_PASSWORD: 'false',
    };
  }

  async list(signal: AbortSignal): Promise<readonly RemoteObject[]> {
    const doing = 'listing it';
    const { end, stdout, stderr } = await this.#run(['lsjson', '--files-only', '--no-modtime', '--no-mimetype', '--', this.#remote], signal);
    // Most remotes have no empty directories: before the first put there is nothing to list.
    if (end.code !== DIRECTORY_NOT_FOUND) this.#mustBeFine(end, stderr, doing);
    const entries = end.code === DIRECTORY_NOT_FOUND ? [] : this.#entries(stdout, doing);
    this.#listed = new Map(entries.map((entry) => [entry.name, entry.sizeBytes]));
    return entries;
  }

  async put(file: string, name: string, expected: Expected, signal: AbortSignal): Promise<Proved> {
    const doing = `storing "${name}"`;
    const object = this.#object(name);
    const local = lstatOrNull(file);
    if (!local?.isFile() || local.size !== expected.sizeBytes) {
      throw new DestinationError('wrong-bytes', `${file} is not what it was when it was proven: verify it`, false);
    }
    // Without --ignore-times rclone leaves an object alone that has the same size and time, whatever its bytes.
    const copied = await this.#run(['copyto', '--ignore-times', '--no-traverse', '--', resolve(file), object], signal);
    this.#mustBeFine(copied.end, copied.stderr, doing);
    const hash = createHash('sha256');
    let sizeBytes = 0;
    const { end, stderr } = await this.#run(['cat', '--', object], signal, (chunk) => {
      hash.update(chunk);
      sizeBytes += chunk.length;
    });
    this.#mustBeFine(end, stderr, `reading "${name}" back`);
    if (sizeBytes === expected.sizeBytes && hash.digest('hex') === expected.sha256) return 'read-back';
    await this.#run(['deletefile', '--', object], signal);
    throw new DestinationError('wrong-bytes', `${this.shown}: "${name}" reads back otherwise than it was proven, and was removed again: verify ${file}`, false);
  }

  async get(name: string, signal: AbortSignal): Promise<Readable> {
    const doing = `reading "${name}"`;
    const object = this.#object(name);
    const sizeBytes = await this.#sizeOf(object, doing, signal);
    if (sizeBytes === null) throw new DestinationError('missing', `${this.shown}: "${name}" is not there: look what is there with list`, false);
    return this.#cat(name, sizeBytes, signal);
  }

  #cat(name: string, sizeBytes: number | null, signal: AbortSignal): Readable {
    signal.throwIfAborted();
    const rclone = this.#start(['cat', '--', this.#object(name)]);
    const { stdout } = rclone.child;
    if (!stdout) throw new Error('no channel from rclone');
    const verdict = async (): Promise<void> => this.#mustBeFine(await rclone.closed, rclone.stderr, `reading "${name}"`);
    return judged(stdout, sizeBytes, `${this.shown}: "${name}"`, verdict, () => this.#end(rclone), signal);
  }

  async read(name: string, maxBytes: number, signal: AbortSignal): Promise<Buffer> {
    const listed = this.#listed.get(name);
    if (listed !== undefined) {
      try {
        const bytes = await this.#collect(name, this.#cat(name, null, signal), maxBytes);
        if (bytes.length === listed) return bytes;
      } catch (error) {
        if (!(error instanceof DestinationError) || error.transient) throw error;
      }
      // It was replaced or removed since, or cut short: asked for as it is now.
    }
    return await this.#collect(name, await this.get(name, signal), maxBytes);
  }

  async #collect(name: string, stream: Readable, maxBytes: number): Promise<Buffer> {
    const chunks: Buffer[] = [];
    let length = 0;
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length > maxBytes) throw tooLong(`${this.shown}: "${name}"`, maxBytes);
      chunks.push(chunk);
    }
    return Buffer.concat(chunks);
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    const doing = `removing "${name}"`;
    const object = this.#object(name);
    const { end, stderr } = await this.#run(['deletefile', '--', object], signal);
    // What is not there has no exit code of its own, and "doesn't exist" is also said when some remotes could not be asked.
    if (end.code !== 0 && (await this.#sizeOf(object, doing, signal)) !== null) this.#mustBeFine(end, stderr, doing);
  }

  /** rclone itself takes back what it breaks off, where a remote can keep such things at all. */
  async sweep(_ours: (name: string) => boolean, _before: Date, signal: AbortSignal): Promise<number> {
    signal.throwIfAborted();
    return 0;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#live].map((rclone) => this.#end(rclone)));
  }

  /** Never begins with a dash, since the remote does not, and stands behind `--` all the same. */
  #object(name: string): string {
    return `${this.#remote}${/[:/]$/.test(this.#remote) ? '' : '/'}${bareName(name)}`;
  }

  #start(words: readonly string[]): Leashed {
    const rclone = new Leashed([this.#program(), ...words], this.#env, ['ignore', 'pipe', 'pipe']);
    this.#live.add(rclone);
    return rclone;
  }

  async #end(rclone: Leashed): Promise<void> {
    await rclone.kill();
    this.#live.delete(rclone);
  }

  /** Runs it to its end. `take` gets its output; without one it is collected. Rejects with the signal's reason when that aborts. */
  async #run(
    words: readonly string[],
    signal: AbortSignal,
    take?: (chunk: Buffer) => void,
  ): Promise<{ end: { code: number | null }; stdout: Buffer; stderr: string }> {
    signal.throwIfAborted();
    const rclone = this.#start(words);
    const collected: Buffer[] = [];
    let collectedBytes = 0;
    rclone.child.stdout?.on('data', (chunk: Buffer) => {
      if (take) {
        take(chunk);
        return;
      }
      collectedBytes += chunk.length;
      if (collectedBytes <= LISTING_MAX_BYTES) collected.push(chunk);
      else void rclone.kill();
    });
    const takeBack = onAbort(signal, () => void rclone.kill());
    try {
      const end = await rclone.closed;
      if (signal.aborted) throw reasonOf(signal);
      return { end, stdout: Buffer.concat(collected), stderr: rclone.stderr };
    } finally {
      takeBack();
      await this.#end(rclone);
    }
  }

  /** Bytes; null when there is no such object. */
  async #sizeOf(object: string, doing: string, signal: AbortSignal): Promise<number | null> {
    const { end, stdout, stderr } = await this.#run(['lsjson', '--stat', '--no-modtime', '--no-mimetype', '--', object], signal);
    if (end.code === DIRECTORY_NOT_FOUND || end.code === FILE_NOT_FOUND) return null;
    this.#mustBeFine(end, stderr, doing);
    const [entry] = this.#entries(Buffer.concat([Buffer.from('['), stdout, Buffer.from(']')]), doing);
    return entry?.sizeBytes ?? null;
  }

  /** What lsjson printed; a size that a remote does not know is -1, and no object of ours. */
  #entries(json: Buffer, doing: string): RemoteObject[] {
    try {
      const parsed: unknown = JSON.parse(json.toString('utf8'));
      if (!Array.isArray(parsed)) throw new Error('no list');
      return parsed.flatMap((entry: unknown) => {
        if (typeof entry !== 'object' || entry === null || !('Name' in entry) || !('Size' in entry)) throw new Error('no entry');
        const { Name: name, Size: sizeBytes } = entry;
        if ('IsDir' in entry && entry.IsDir === true) return [];
        return typeof name === 'string' && typeof sizeBytes === 'number' && sizeBytes >= 0 ? [{ name, sizeBytes }] : [];
      });
    } catch {
      throw new DestinationError('program', `${this.shown}: ${doing} failed: rclone printed what is no listing: use version 1.60 or later`, false);
    }
  }

  #program(): string {
    const found = (this.#env['PATH'] ?? '/usr/local/bin:/usr/bin:/bin')
      .split(delimiter)
      .filter(isAbsolute)
      .map((directory) => join(directory, 'rclone'))
      .find(isProgram);
    if (found === undefined) {
      throw new DestinationError('program', `${this.shown}: rclone is not installed, or not in PATH: install it (apt install rclone), or set PATH`, false);
    }
    return found;
  }

  #mustBeFine(end: { code: number | null }, stderr: string, doing: string): void {
    if (end.code === 0) return;
    const said = this.#redact(lastWords(stderr));
    const found = CASES.find(({ codes, text }) => (end.code !== null && codes?.includes(end.code)) || text?.test(said));
    const how = end.code === null ? 'rclone was ended by a signal' : `rclone ended with ${end.code}`;
    const what = `${this.shown}: ${doing} failed (${how}${said === '' ? '' : `: ${said}`})`;
    throw new DestinationError(
      found?.kind ?? 'other',
      found ? `${what}: ${found.next}` : what,
      end.code === null || end.code === TEMPORARY || (found?.transient ?? false),
    );
  }
}

interface Case {
  readonly codes?: readonly number[];
  readonly text?: RegExp;
  readonly kind: DestinationErrorKind;
  readonly transient: boolean;
  readonly next: string;
}

/** The first that fits decides. Exit codes as rclone documents them; it has none for most of these. */
const CASES: readonly Case[] = [
  { codes: [DIRECTORY_NOT_FOUND, FILE_NOT_FOUND], kind: 'missing', transient: false, next: 'look what is there with list' },
  {
    text: /didn't find section in config|config file .* not found|unable to decrypt configuration|RCLONE_CONFIG_PASS/i,
    kind: 'other',
    transient: false,
    next: 'name a remote of your rclone configuration; RCLONE_CONFIG in the env file says where that is',
  },
  { text: /no space left|quota|insufficient storage|\b507\b/i, kind: 'full', transient: false, next: 'make room there, or keep fewer copies' },
  {
    text: /\b40[13]\b|access ?denied|forbidden|unauthorized|permission denied|unable to authenticate|login incorrect|invalid_grant|expired/i,
    kind: 'denied',
    transient: false,
    next: 'check the credentials and rights of this remote',
  },
  {
    text: /connection refused|connection reset|no such host|timeout|timed out|unreachable|no route to host|broken pipe|unexpected EOF|\bEOF$|\b50[0234]\b|server misbehaving/i,
    kind: 'unreachable',
    transient: true,
    next: 'check the network, and try again',
  },
];

/** The last thing that rclone said, without its time stamp; of an address only its host, since the rest may hold a token. */
function lastWords(stderr: string): string {
  const lines = stderr
    .split('\n')
    .map((line) => line.replace(/^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d /, '').trim())
    .filter((line) => line !== '');
  return (lines.at(-1) ?? '').replace(/(https?|s?ftp):\/\/(?:[^\s/@"']*@)?([^\s/?#"']*)[^\s"']*/g, '$1://$2').slice(0, 500);
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}
