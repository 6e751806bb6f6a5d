/**
 * One POST, and what came of it: the way of the Slack webhook, the JSON webhook and the ping. Redirects are not followed, since
 * they would take a secret address and the message to wherever a server likes. The socket is opened to addresses that
 * were looked up here (see `resolve`), and every way out is bounded.
 */
import type { LookupAddress, LookupOptions } from 'node:dns';
import type { ClientRequest, IncomingMessage } from 'node:http';
import { hostOf, secretsOf } from '../settings/values.js';
import { Undelivered } from './undelivered.js';
import { bounded, hide, oneLine, reasonInWords, resolve } from './wire.js';

export interface PostOptions {
  /** Ends it at once. */
  readonly signal: AbortSignal;
  /** What a Retry-After with a date counts from. */
  readonly now: Date;
  /** Milliseconds for all of it; 15 s by default. */
  readonly deadlineMs?: number;
  /** Wait for the answer's text also when all is well. */
  readonly wantsText?: boolean;
}

/** Text with its media type. */
export interface Content {
  readonly type: string;
  readonly body: string;
}

type Found = (error: null, addresses: LookupAddress[]) => void;

const DEADLINE_MS = 15_000;
/** Node tries the addresses in turn, so that a broken IPv6 path costs a second and not the message. */
const EYEBALLS = { autoSelectFamily: true, autoSelectFamilyAttemptTimeout: 1000 };
/** How long the text behind a verdict is waited for: the verdict itself is there already. */
const TEXT_MS = 2000;
const TEXT_BYTES = 4096;
const REASON_LENGTH = 300;
const LONGEST_RETRY_MS = 86_400_000;
/** Answers of the class "no" that a later attempt may turn into a "yes": a slow client, too early, too many. */
const LATER = new Set([408, 425, 429]);

/**
 * Posts, and resolves with the beginning of the answer's text (empty unless it was wanted) when the server took it (2xx). Throws
 * `Undelivered` otherwise; its reason names `what` and the host, and nothing else of the address.
 */
export async function post(what: string, url: URL, content: Content, options: PostOptions): Promise<string> {
  const say = (reason: string): string => oneLine(`${what} at ${url.host}: ${reason}`, secretsIn(url), REASON_LENGTH);
  try {
    return await bounded(options.deadlineMs ?? DEADLINE_MS, options.signal, async (stop) => {
      const { answer, request } = await ask(url, content, stop);
      try {
        const status = answer.statusCode ?? 0;
        const isTaken = status >= 200 && status < 300;
        const text = isTaken && options.wantsText !== true ? '' : await beginningOf(answer, stop);
        if (isTaken) return text;
        const isRedirect = status >= 300 && status < 400;
        const told = isRedirect ? 'a redirect, which is not followed: give the address that it leads to' : text;
        const words = [`HTTP ${status} ${answer.statusMessage ?? ''}`.trim(), told].filter((part) => part !== '').join(': ');
        throw new Undelivered(say(withoutEcho(words, url)), status < 500 && !LATER.has(status), retryAfterOf(answer, options.now));
      } finally {
        request.destroy();
      }
    });
  } catch (error) {
    throw error instanceof Undelivered ? error : new Undelivered(say(reasonInWords(error)), false);
  }
}

/** Looks the host up, and sends nothing. Throws `Undelivered`. */
export async function lookUpHost(what: string, url: URL, options: Pick<PostOptions, 'signal' | 'deadlineMs'>): Promise<void> {
  try {
    await bounded(options.deadlineMs ?? DEADLINE_MS, options.signal, (stop) => resolve(hostOf(url), stop));
  } catch (error) {
    throw new Undelivered(oneLine(`${what} at ${url.host}: ${reasonInWords(error)}`, secretsIn(url), REASON_LENGTH), false);
  }
}

/** Here the path goes whatever it looks like: in a server's answer it can be nothing but an echo. */
const secretsIn = (url: URL): string[] => [...secretsOf(url), ...[`${url.pathname}${url.search}`, url.pathname].filter((path) => path.length > 1)];

/** A piece of the path this long, in whatever case, is an echo of it. */
const ECHO = 6;
/** What may be an encoded one: nobody who says what is wrong says it in such words. */
const TOKEN = /[\w+/=-]{12,}/g;
const isEncoded = (token: string): boolean => /\d/.test(token) || (/[a-z]/.test(token) && /[A-Z]/.test(token));

function withoutEcho(text: string, url: URL): string {
  const path = `${url.pathname}${url.search}`.toLowerCase();
  const pieces = Array.from({ length: Math.max(0, path.length - ECHO + 1) }, (_, i) => path.slice(i, i + ECHO));
  return hide(text, secretsIn(url)).replace(TOKEN, (token) => {
    const low = token.toLowerCase();
    return isEncoded(token) || pieces.some((piece) => low.includes(piece)) ? '***' : token;
  });
}

/** The head of the answer. */
async function ask(url: URL, content: Content, stop: AbortSignal): Promise<{ answer: IncomingMessage; request: ClientRequest }> {
  const addresses = (await resolve(hostOf(url), stop)).map((address) => ({ address, family: address.includes(':') ? 6 : 4 }));
  stop.throwIfAborted();
  const { request: open } = url.protocol === 'https:' ? await import('node:https') : await import('node:http');
  const body = Buffer.from(content.body);
  return new Promise((done, fail) => {
    const request = open(url, {
      method: 'POST',
      headers: { 'content-type': content.type, 'content-length': body.length, 'user-agent': 'dbbackup', connection: 'close' },
      agent: false,
      // Whatever NODE_TLS_REJECT_UNAUTHORIZED says: the address is a secret.
      rejectUnauthorized: true,
      ...EYEBALLS,
      lookup: (_host: string, _options: LookupOptions, found: Found) => found(null, addresses),
      signal: stop,
    });
    request.once('response', (answer) => {
      // What it says from here on is extra, and so is how it ends.
      answer.on('error', () => undefined);
      done({ answer, request });
    });
    request.on('error', fail);
    request.once('close', () => fail(new Error('the server closed the connection without an answer')));
    request.end(body);
  });
}

/** As much of the text as comes soon and is bounded; a text that breaks off is no error. */
async function beginningOf(answer: IncomingMessage, stop: AbortSignal): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  await new Promise<void>((done) => {
    const timer = setTimeout(done, TEXT_MS);
    const end = (): void => {
      clearTimeout(timer);
      stop.removeEventListener('abort', end);
      done();
    };
    stop.addEventListener('abort', end, { once: true });
    answer.on('data', (chunk: Buffer) => {
      chunks.push(chunk);
      size += chunk.length;
      if (size >= TEXT_BYTES) end();
    });
    answer.once('close', end);
    answer.once('end', end);
  });
  answer.pause();
  return Buffer.concat(chunks).subarray(0, TEXT_BYTES).toString('utf8');
}

/** Milliseconds, at most a day; seconds or a date in the header (RFC 9110, 10.2.3). */
function retryAfterOf(answer: IncomingMessage, now: Date): number | null {
  const raw = answer.headers['retry-after'];
  if (raw === undefined) return null;
  const ms = /^\d{1,9}$/.test(raw) ? Number(raw) * 1000 : Date.parse(raw) - now.getTime();
  return Number.isNaN(ms) ? null : Math.min(Math.max(ms, 0), LONGEST_RETRY_MS);
}
