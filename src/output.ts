/**
 * What the operator sees. Data goes to stdout, messages to stderr; with --json stdout carries exactly one document.
 * Everything passes the redactor, and control and bidirectional characters are never printed raw. A closed or full
 * stdout changes nothing (traps, 29). Where messages go to the journal, each line begins with its priority.
 */
import type { WriteStream } from 'node:tty';
import { bytes, duration, localTime } from './format.js';
import type { Failure, StageName, Warning } from './outcome.js';
import { describe, errnoOf, errnoWords } from './outcome.js';
import type { Redact } from './redact.js';
import { redactNothing, redactValue } from './redact.js';
import { printable, printableJson } from './settings/values.js';

export interface OutputOptions {
  readonly json: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
  readonly color: boolean;
  /** stderr is the journal. */
  readonly journal?: boolean;
}

type Stream = Pick<WriteStream, 'write' | 'isTTY' | 'on'>;

/** What the journal sorts lines by (sd-daemon(3)). */
const PRIORITIES = { error: 3, warning: 4, info: 6 } as const;
type Priority = keyof typeof PRIORITIES;

const RED = 31;
const YELLOW = 33;
const GREEN = 32;
const DIM = 2;

/** Everything the operator reads goes through one of these. */
export class Output {
  readonly options: OutputOptions;
  readonly #stdout: Stream;
  readonly #stderr: Stream;
  #redact: Redact = redactNothing;
  #progressShown = false;

  constructor(stdout: Stream, stderr: Stream, options: OutputOptions) {
    this.#stdout = stdout;
    this.#stderr = stderr;
    this.options = options;
    // EPIPE and ENOSPC arrive here, and change no exit code (traps, 29). Whoever closed the pipe knows; who gets a file that is cut short does not.
    let isSaid = false;
    stdout.on('error', (error) => {
      if (isSaid || errnoOf(error) === 'EPIPE') return;
      isSaid = true;
      this.trouble(
        `dbbackup: warning IO_ERROR: what was printed is not whole: standard output cannot be written (${errnoWords(error)}). Hint: make room there, and run it again`,
      );
    });
    stderr.on('error', () => undefined);
  }

  /** From now on these secrets are blacked out. */
  useRedactor(redact: Redact): void {
    this.#redact = redact;
  }

  get redact(): Redact {
    return this.#redact;
  }

  get isTerminal(): boolean {
    return this.#stdout.isTTY === true;
  }

  /** A time: local with offset on a terminal, UTC elsewhere. */
  time(rfc3339: string): string {
    return this.isTerminal ? localTime(rfc3339) : rfc3339;
  }

  /** Lines for the reader or the next program; with --json nothing, since the document says it. A line break inside one is no new line. */
  data(lines: string | readonly string[]): void {
    if (this.options.json) return;
    for (const line of typeof lines === 'string' ? [lines] : lines) this.#stdout.write(`${printable(this.#redact(line))}\n`);
  }

  /** What an acting command made: said unless --quiet. */
  result(text: string): void {
    if (!this.options.quiet) this.data(text);
  }

  /** The one document of --json. */
  document(value: object): void {
    if (this.options.json) this.#stdout.write(`${printableJson(JSON.stringify(redactValue(value, this.#redact), null, 2))}\n`);
  }

  /** A stage is done: one line. */
  stage(name: StageName, ms: number, note: string): void {
    if (!this.options.quiet) this.#message('info', [GREEN, name.padEnd(8)], ` ${note} `, [DIM, `(${duration(ms)})`]);
  }

  /** What is going on; on a terminal only, overwritten by the next message. */
  progress(name: StageName, done: number, total: number): void {
    if (this.options.quiet || this.#stderr.isTTY !== true) return;
    const share = total > 0 ? Math.min(100, Math.floor((100 * done) / total)) : 0;
    this.#stderr.write(`\r\u001b[K${name.padEnd(8)} ${bytes(done)} of ${bytes(total)} (${share} %)`);
    this.#progressShown = true;
  }

  info(text: string): void {
    if (!this.options.quiet) this.#message('info', text);
  }

  /** As `info`, of something that is not well: said also with --quiet. */
  trouble(text: string): void {
    this.#message('error', text);
  }

  detail(text: string): void {
    if (this.options.verbose && !this.options.quiet) this.#message('info', [DIM, text]);
  }

  /** With --quiet only what is critical is said: cron's mail then means trouble. And what can be said here alone, since it cannot be recorded. */
  warning(w: Warning): void {
    if (this.options.quiet && w.severity !== 'critical' && w.code !== 'STATE_UNWRITABLE') return;
    const isCritical = w.severity === 'critical';
    this.#message(isCritical ? 'error' : 'warning', 'dbbackup: ', isCritical ? [RED, 'critical'] : [YELLOW, 'warning'], ` ${w.code}: ${w.message}`);
  }

  /** One line: the stable code, what failed on what, and the next thing to do. */
  error(failure: Failure, stage: StageName | null): void {
    const { message, hint } = describe(failure);
    this.#message('error', 'dbbackup: ', [RED, 'error'], ` ${failure.code}${stage ? ` (${stage})` : ''}: ${message}. Hint: ${hint}`);
    if (failure.code === 'INTERNAL' && this.options.verbose) for (const line of failure.stack.split('\n')) this.#message('error', line);
  }

  /** Each part is made safe on its own, then coloured: an escape sequence inside a text never survives. */
  #message(priority: Priority, ...parts: readonly (string | readonly [color: number, text: string])[]): void {
    const colored = this.options.color && this.#stderr.isTTY === true;
    const line = parts.map((part) => {
      const [color, text] = typeof part === 'string' ? [0, part] : part;
      const safe = printable(this.#redact(text));
      return colored && color !== 0 ? `\u001b[${color}m${safe}\u001b[0m` : safe;
    });
    const begin = this.options.journal ? `<${PRIORITIES[priority]}>` : this.#progressShown ? '\r\u001b[K' : '';
    // A text has no line breaks any more: what is one line here is one line, and one priority, there.
    this.#stderr.write(`${begin}${line.join('')}\n`);
    this.#progressShown = false;
  }
}
