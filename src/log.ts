/**
 * The log of a run: JSON lines through winston into a file a day (UTC). The lines are kept in memory until the log is
 * opened, so that loading winston costs the run nothing, and their tail goes into failure mails. A log that cannot be
 * written is a remark, never a failure.
 */
import { constants, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from 'winston';
import { errnoWords } from './outcome.js';
import type { Redact } from './redact.js';
import { redactValue } from './redact.js';
import { printableJson } from './settings/values.js';
import { lstatOrNull, makeDirectories, remove } from './system/files.js';

const LOG_FILE = /^dbbackup-(\d{4}-\d\d-\d\d)\.log$/;
const TAIL = 15;
const DAY = 86_400_000;

export type Level = 'info' | 'warn' | 'error';

interface Line {
  readonly level: Level;
  readonly message: string;
  readonly [field: string]: unknown;
}

/** The log of one run. */
export class RunLog {
  readonly #base: Readonly<Record<string, unknown>>;
  readonly #now: () => Date;
  readonly #redact: Redact;
  readonly #tail: string[] = [];
  #early: Line[] = [];
  #logger: Logger | null = null;
  #flush: () => Promise<void> = () => Promise.resolve();
  #problem: string | null = null;

  /** @param base fields of every line, such as the run id */
  constructor(base: Readonly<Record<string, unknown>>, now: () => Date, redact: Redact) {
    this.#base = base;
    this.#now = now;
    this.#redact = redact;
  }

  write(level: Level, message: string, fields: Readonly<Record<string, unknown>> = {}): void {
    const line: Line = redactValue({ ...fields, level, message, time: this.#now().toISOString(), ...this.#base }, this.#redact);
    this.#tail.push(`${String(line['time'])} ${level} ${line.message}`);
    if (this.#tail.length > TAIL) this.#tail.shift();
    if (this.#logger) this.#logger.log(line);
    else this.#early.push(line);
  }

  /** The last lines, for a mail. */
  tail(): readonly string[] {
    return this.#tail;
  }

  /** Loads winston, writes what came before, and removes files older than `keepMs`. Never throws: see `close`. */
  async open(directory: string, keepMs: number, uid: number): Promise<void> {
    try {
      makeDirectories(directory, () => undefined);
      const today = this.#now();
      refuseUnsafe(directory, uid, today);
      const { createLogger, DailyRotateFile, format } = await import('./libraries/winston.js');
      const transport = new DailyRotateFile({
        dirname: directory,
        filename: 'dbbackup-%DATE%.log',
        datePattern: 'YYYY-MM-DD',
        utc: true,
        // A link put there since we looked is not followed.
        options: { flags: constants.O_APPEND | constants.O_CREAT | constants.O_WRONLY | constants.O_NOFOLLOW, mode: 0o600 },
      });
      const fail = (error: Error): void => {
        this.#problem ??= errnoWords(error);
      };
      // Without this listener the transport's stream takes the process down on EACCES or ENOSPC (traps, 30).
      const stream = streamOf(transport);
      stream.on('error', fail);
      transport.on('error', fail);
      const logger = createLogger({ level: 'info', format: format.printf((line) => printableJson(JSON.stringify(line))), transports: [transport] });
      // Two steps, since ending the logger only hands the last lines to the file's stream (traps, 30).
      this.#flush = async () => {
        const handedOver = new Promise<void>((done) => transport.once('finish', () => done()));
        logger.end();
        await handedOver;
        await new Promise<void>((done) => stream.end(() => done()));
      };
      for (const line of this.#early.splice(0)) logger.log(line);
      this.#logger = logger;
      // The transport's own retention ends silently with a truncated audit file (traps, 30): the names say the age.
      sweep(directory, today.getTime() - keepMs);
    } catch (error) {
      this.#problem ??= errnoWords(error);
    }
  }

  /** Flushes and closes. Returns why the log is incomplete, or null. */
  async close(): Promise<string | null> {
    this.#logger = null;
    await this.#flush();
    return this.#problem;
  }
}

interface FileStream {
  on(event: 'error', listener: (error: Error) => void): unknown;
  end(done: () => void): unknown;
}

/** The transport's types leave out the stream that its own documentation tells to listen to. */
const streamOf = (transport: object): FileStream => Reflect.get(transport, 'logStream') as FileStream;

/** Why the lines of a run could not go into a directory that is there, as far as that can be seen without writing; null: they could. */
export function logProblem(directory: string, uid: number, today: Date): string | null {
  try {
    if (lstatOrNull(directory)) refuseUnsafe(directory, uid, today);
    return null;
  } catch (error) {
    return errnoWords(error);
  }
}

function refuseUnsafe(directory: string, uid: number, today: Date): void {
  const stats = lstatOrNull(directory);
  if (!stats?.isDirectory()) throw new Error(`${directory} is not a directory`);
  if (stats.uid !== uid && stats.uid !== 0) throw new Error(`${directory} belongs to uid ${stats.uid}`);
  if (stats.mode & 0o002) throw new Error(`${directory} can be written by others`);
  const file = join(directory, `dbbackup-${today.toISOString().slice(0, 10)}.log`);
  const log = lstatOrNull(file);
  if (log && !log.isFile()) throw new Error(`${file} is not a regular file`);
}

/** A file of day D holds lines until D + 1 day: it is too old when its last line is. */
function sweep(directory: string, before: number): void {
  for (const file of readdirSync(directory)) {
    const day = LOG_FILE.exec(file)?.[1];
    if (day !== undefined && Date.parse(day) + DAY < before) remove(join(directory, file));
  }
}
