/** What all channels share on their way out: an end that comes in any case, addresses, and errors in words. */
import { Resolver } from 'node:dns/promises';
import { isIP } from 'node:net';
import { errnoWords } from '../outcome.js';
import { isLoopback, printable } from '../settings/values.js';
import { lookUp } from '../system/lookup.js';

/** Runs `work` until it settles, the deadline (milliseconds) passes or the caller's signal comes; `stop` aborts with the reason. */
export async function bounded<T>(deadlineMs: number, signal: AbortSignal, work: (stop: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = controller.signal;
  const abort = (): void => controller.abort(new Error('stopped before it was delivered'));
  const timer = setTimeout(() => controller.abort(new Error(`not done within ${deadlineMs / 1000} s`)), deadlineMs);
  signal.addEventListener('abort', abort, { once: true });
  try {
    if (signal.aborted) abort();
    stop.throwIfAborted();
    const stopped = new Promise<never>((_, fail) => stop.addEventListener('abort', () => fail(stop.reason), { once: true }));
    return await Promise.race([work(stop), stopped]);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
  }
}

/**
 * Addresses of a host. The DNS first, because its queries can be cancelled; getaddrinfo, which takes a process of its own, only
 * for names that it does not know: /etc/hosts, search domains.
 */
export async function resolve(host: string, stop: AbortSignal): Promise<string[]> {
  if (isIP(host)) return [host];
  if (isLoopback(host)) return ['127.0.0.1', '::1'];
  const resolver = new Resolver({ timeout: 4000, tries: 2 });
  const cancel = (): void => resolver.cancel();
  stop.addEventListener('abort', cancel, { once: true });
  const found = await Promise.all([resolver.resolve6(host).catch(() => []), resolver.resolve4(host).catch(() => [])]);
  stop.removeEventListener('abort', cancel);
  stop.throwIfAborted();
  return found.flat().length > 0 ? found.flat() : await lookUp(host, stop);
}

/** An error of a connection in words. */
export function reasonInWords(error: unknown): string {
  // Node's when no address of a host answered; its own message is empty.
  if (error instanceof AggregateError) return error.errors.map(reasonInWords).join(', ');
  return errnoWords(error);
}

/** The text without these. */
export function hide(text: string, secrets: readonly string[]): string {
  const longestFirst = secrets.filter((secret) => secret !== '').sort((a, b) => b.length - a.length);
  return longestFirst.reduce((t, secret) => t.replaceAll(secret, '***'), text);
}

/** One printable line of at most `length` characters without any of these secrets: servers may repeat what they were sent. */
export function oneLine(text: string, secrets: readonly string[], length: number): string {
  const line = printable(hide(text, secrets).replace(/\s+/gu, ' ').trim());
  return line.length > length ? `${Array.from(line).slice(0, length).join('')}...` : line;
}

const bare = (text: string): string => text.toLowerCase().replace(/[^\p{L}\p{N}]/gu, '');
/** Shorter ones stand in ordinary words. */
const SHORTEST_ECHO = 4;

/**
 * Whether a text holds this secret in disguise: in other letters, in pieces, as hexadecimal digits or base64, whatever stands before it there.
 * A server that is sent a password may repeat it so.
 */
export function holdsEcho(text: string, secret: string): boolean {
  const bytes = Buffer.from(secret);
  // What base64 makes of it depends on how many bytes stand before it; its first and last digits hold bits of what is around.
  const encoded = [0, 1, 2].map((before) => {
    const digits = Buffer.concat([Buffer.alloc(before), bytes])
      .toString('base64')
      .replace(/=+$/, '');
    return digits.slice(before === 0 ? 0 : before + 1, (before + bytes.length) % 3 === 0 ? undefined : -1);
  });
  const reversed = [...secret].reverse().join('');
  // The code that begins each line of an answer is none of its words.
  const said = bare(text.replace(/^\d{3}[ -]/gm, ''));
  return [secret, reversed, bytes.toString('hex'), ...encoded].map(bare).some((form) => form.length >= SHORTEST_ECHO && said.includes(form));
}
