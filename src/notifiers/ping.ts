/**
 * The dead-man's switch, as healthchecks.io takes it (https://healthchecks.io/docs/http_api/): a ping at the beginning of a
 * run, one at its end, and somebody else who notices when none comes. A ping is never kept for later: late, it would lie.
 */
import { printable } from '../settings/values.js';
import type { PostOptions } from './http.js';
import type { NotifyFailure } from './undelivered.js';
import { notifyFailure, Undelivered } from './undelivered.js';

export type PingEvent = 'start' | 'success' | 'fail' | 'log';

/** Healthchecks keeps the first 10 kB of a body at least, and the end of the log is what matters. */
const BODY_BYTES = 10_000;

/** Pings once. Throws `Undelivered`. `rid`: ties the end of a run to its start. */
export async function ping(url: URL, event: PingEvent, rid: string, lines: readonly string[], options: PostOptions): Promise<void> {
  const content = { type: 'text/plain; charset=utf-8', body: lastLines(lines) };
  // What speaks HTTP is loaded by runs that do.
  const { post } = await import('./http.js');
  const text = await post('ping', addressOf(url, event, rid), content, { ...options, wantsText: true });
  // It answers 200 to an address that it does not know, so that nobody can find out which ones it does.
  if (/^OK \(not found\)/i.test(text)) throw new Undelivered(`ping at ${url.host}: the server does not know this check`, true);
}

/** `https://HOST/UUID/start?rid=...`; what stands behind the `?` already stays. */
function addressOf(url: URL, event: PingEvent, rid: string): URL {
  const address = new URL(url);
  if (event !== 'success') address.pathname = `${address.pathname.replace(/\/+$/, '')}/${event}`;
  address.searchParams.set('rid', rid);
  return address;
}

/** The last lines that fit, whole and printable. */
function lastLines(lines: readonly string[]): string {
  const fit: string[] = [];
  let left = BODY_BYTES;
  for (const line of lines.map((l) => printable(l)).reverse()) {
    left -= Buffer.byteLength(line) + 1;
    if (left < 0) break;
    fit.unshift(line);
  }
  return fit.map((line) => `${line}\n`).join('');
}

/** A ping that did not arrive. `mayPass`: the server did not say no to it. */
export interface Unpinged {
  readonly failure: NotifyFailure;
  readonly mayPass: boolean;
}

/** The pings of one run. */
export class RunPings {
  readonly #url: URL;
  readonly #runId: string;
  readonly #now: () => Date;
  #started: Promise<Unpinged | null> = Promise.resolve(null);

  constructor(url: URL, runId: string, now: () => Date) {
    this.#url = url;
    this.#runId = runId;
    this.#now = now;
  }

  /** Says that the run has begun, while it goes on. */
  start(lines: readonly string[], signal: AbortSignal): void {
    this.#started = this.#send('start', lines, signal);
  }

  /** Says how the run ended; after the start, since the other way round it would seem to go on. Never throws. */
  async end(event: 'success' | 'fail', lines: readonly string[], signal: AbortSignal): Promise<{ start: Unpinged | null; end: Unpinged | null }> {
    const start = await this.#started;
    return { start, end: await this.#send(event, lines, signal) };
  }

  async #send(event: PingEvent, lines: readonly string[], signal: AbortSignal): Promise<Unpinged | null> {
    try {
      await ping(this.#url, event, this.#runId, lines, { signal, now: this.#now() });
      return null;
    } catch (error) {
      return { failure: notifyFailure(error), mayPass: !(error instanceof Undelivered && error.refused) };
    }
  }
}
