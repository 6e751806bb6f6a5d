/**
 * Mail through nodemailer: its composer writes the message, its connection speaks SMTP; for `sendmail:` the program is
 * started here, because nodemailer would hand it our whole environment and could not be stopped. The socket is opened
 * here too: nodemailer asks the DNS before /etc/hosts even for `localhost`, where a password may go out unencrypted, and
 * what is ours we can end. Every way out is bounded, and leaves nothing that keeps the process alive (traps, 32).
 */
import { spawn } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import { connect, isIP } from 'node:net';
import type SMTPConnection from 'nodemailer/lib/smtp-connection';
import type { MailSettings } from '../settings/load.js';
import type { MailRoute } from '../settings/values.js';
import { isLoopback } from '../settings/values.js';
import type { Message } from './message.js';
import { Undelivered } from './undelivered.js';
import { bounded, hide, holdsEcho, oneLine, reasonInWords, resolve } from './wire.js';

/** Who sends to whom, and how. */
export type Envelope = Pick<MailSettings, 'route' | 'to' | 'from'>;

export interface MailOptions {
  /** Ends the sending at once. */
  readonly signal: AbortSignal;
  /** Milliseconds for all of it; 30 s by default. */
  readonly deadlineMs?: number;
  /** What a sendmail program gets as its environment; our secrets are taken out again. By default nothing but a PATH. */
  readonly env?: Readonly<Record<string, string | undefined>>;
}

type SmtpRoute = Extract<MailRoute, { kind: 'smtp' }>;

const DEADLINE_MS = 30_000;
const STEP_MS = 15_000;
const GOODBYE_MS = 1000;
const REASON_LENGTH = 500;
const STDERR_LENGTH = 2000;
const MTA_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** What became of a message that somebody got. */
export interface Taken {
  /** Who did not get it, and why, in words without secrets; null: all got it. */
  readonly refused: string | null;
  /** Those of them whom the server put off (4xx, greylisting): they may get it the next time. */
  readonly later: readonly string[];
}

/** Delivers a message. Throws `Undelivered` when nobody got it. Sending the same message again carries the same Message-ID. */
export async function sendMail(message: Message, mail: Envelope, options: MailOptions): Promise<Taken> {
  const { route } = mail;
  let taken: Taken = { refused: null, later: [] };
  await attempt(mail, options, async (stop) => {
    if (route.kind === 'sendmail') return pipeTo(route.program, mail, await compose(message, mail, 'unix'), environment(options.env), stop);
    const raw = await compose(message, mail, 'windows');
    return session(route, stop, async (connection) => {
      const info = await settled<{ rejected: string[]; rejectedErrors?: Reply[] | undefined }>((done) =>
        connection.send({ from: mail.from, to: [...mail.to], size: raw.length }, raw, done),
      );
      if (info.rejected.length === 0) return;
      const refused = scrub(`${whereOf(route)}: refused for ${refusals(info.rejected, info.rejectedErrors)}; the other recipients got it`, route);
      const later = (info.rejectedErrors ?? []).flatMap(({ recipient, responseCode }) =>
        recipient !== undefined && responseCode !== undefined && responseCode >= 400 && responseCode < 500 ? [recipient] : [],
      );
      taken = { refused, later };
    });
  });
  return taken;
}

/**
 * Goes all the way to the mail server but sends nothing: connect, EHLO, STARTTLS, log in. For `sendmail:`, that the
 * program is there and executable. Throws like `sendMail`.
 */
export async function verifyMailServer(mail: Envelope, options: MailOptions): Promise<void> {
  const { route } = mail;
  await attempt(mail, options, async (stop) => {
    if (route.kind === 'smtp') return session(route, stop, async () => undefined);
    if (!statSync(route.program).isFile()) throw new Error('not a regular file');
    accessSync(route.program, constants.X_OK);
  });
}

/** How to speak to a server: what DESIGN's "Telling" decides about TLS, and traps, 32 about time. */
export function connectionOptions(route: SmtpRoute): SMTPConnection.Options {
  const local = isLoopback(route.host);
  return {
    host: route.host,
    port: route.port,
    secure: route.tls,
    // Without this a server, or somebody between, need only leave STARTTLS out of its answer to read the password.
    requireTLS: !route.tls && route.password !== '' && !local,
    // The MTA of this machine has a self-made certificate, and nobody can stand between.
    tls: { rejectUnauthorized: !local },
    connectionTimeout: STEP_MS,
    greetingTimeout: STEP_MS,
    socketTimeout: STEP_MS,
    socketCloseTimeout: GOODBYE_MS,
  };
}

/** Runs `work` within its bounds and gives every failure its one shape. */
async function attempt(mail: Envelope, options: MailOptions, work: (stop: AbortSignal) => Promise<void>): Promise<void> {
  try {
    await bounded(options.deadlineMs ?? DEADLINE_MS, options.signal, work);
  } catch (error) {
    throw new Undelivered(scrub(`${whereOf(mail.route)}: ${reasonOf(error)}`, mail.route), isRefusal(error));
  }
}

/** 5xx to the message, its sender or all of its recipients. What a server says to a greeting or a login is put right elsewhere, and the message is worth keeping. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const { responseCode, code } = error as Reply;
  return (code === 'EENVELOPE' || code === 'EMESSAGE') && typeof responseCode === 'number' && responseCode >= 500;
}

/** The message as bytes. Date and Message-ID come from the message, so that one that is sent twice can be recognised. */
async function compose(message: Message, mail: Envelope, newline: 'unix' | 'windows'): Promise<Buffer> {
  const { MailComposer } = await import('../libraries/nodemailer.js');
  return new MailComposer({
    from: { name: 'dbbackup', address: mail.from },
    to: mail.to.map((address) => ({ name: '', address })),
    subject: message.subject,
    text: message.text,
    html: message.html,
    messageId: messageId(message.id, mail.from),
    date: new Date(message.createdAt),
    // RFC 3834: vacation responders keep quiet.
    headers: { 'Auto-Submitted': 'auto-generated' },
    newline,
    disableFileAccess: true,
    disableUrlAccess: true,
  })
    .compile()
    .build();
}

/** The sender's domain, as servers expect it; where there is none that fits a Message-ID, one that nobody can own (RFC 2606). */
function messageId(id: string, from: string): string {
  const domain = /@([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)$/.exec(from)?.[1] ?? 'dbbackup.invalid';
  return `<dbbackup.${id.replace(/[^A-Za-z0-9._-]/g, '_')}@${domain}>`;
}

/** One SMTP session: greeted, encrypted and logged in before `work`; ended whatever comes. */
async function session(route: SmtpRoute, stop: AbortSignal, work: (connection: SMTPConnection) => Promise<void>): Promise<void> {
  const { SMTPConnection: Connection } = await import('../libraries/nodemailer.js');
  const socket = await dial(route, stop);
  const connection = new Connection({ ...connectionOptions(route), connection: socket });
  const ended = new Promise<never>((_, fail) => {
    connection.on('error', fail);
    // Later than what the server said last, which tells more.
    connection.on('end', () => setImmediate(() => fail(new Error('the server closed the connection'))));
  });
  const hangUp = (): void => {
    connection.close();
    socket.destroy();
  };
  stop.addEventListener('abort', hangUp, { once: true });
  try {
    if (stop.aborted) hangUp();
    await Promise.race([ended, converse(connection, route, work)]);
  } catch (error) {
    hangUp();
    throw error;
  } finally {
    stop.removeEventListener('abort', hangUp);
  }
  // Delivered, whatever the server answers to QUIT: nobody waits for that, and no process is kept for it.
  socket.unref();
  connection.quit();
  connection.close();
}

async function converse(connection: SMTPConnection, route: SmtpRoute, work: (connection: SMTPConnection) => Promise<void>): Promise<void> {
  await settled((done) => connection.connect((error) => done(error ?? null)));
  if (route.user !== '' || route.password !== '') {
    // nodemailer's transport would send without logging in, and the operator would wonder why relaying is denied.
    if (!connection.allowsAuth) throw new Error('the server offers no login, but smtp-url has a user');
    await settled((done) => connection.login({ credentials: { user: route.user, pass: route.password } }, done));
  }
  await work(connection);
}

/** A callback of nodemailer's as a promise. */
const settled = <T>(start: (done: (error: Error | null, value?: T) => void) => void): Promise<T> =>
  new Promise<T>((resolve, reject) => start((error, value) => (error ? reject(error) : resolve(value as T))));

/** An open TCP connection, or the error of the last address that was tried. */
async function dial(route: SmtpRoute, stop: AbortSignal): Promise<Socket> {
  const addresses = await resolve(route.host, stop);
  stop.throwIfAborted();
  const all = addresses.map((address) => ({ address, family: isIP(address) }));
  const socket = connect({
    host: route.host,
    port: route.port,
    // Node tries the addresses in turn, so that a broken IPv6 path costs a second and not the mail.
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: 1000,
    lookup: (_host, _options, found) => found(null, all),
  });
  const hangUp = (): void => void socket.destroy(new Error('no connection'));
  const timer = setTimeout(() => socket.destroy(new Error(`no connection within ${STEP_MS / 1000} s`)), STEP_MS);
  stop.addEventListener('abort', hangUp, { once: true });
  try {
    await new Promise<void>((done, fail) => {
      socket.once('connect', done);
      socket.once('error', fail);
    });
    return socket;
  } finally {
    clearTimeout(timer);
    stop.removeEventListener('abort', hangUp);
  }
}

/** Feeds the message to a sendmail program and waits for its exit. */
function pipeTo(program: string, mail: Envelope, raw: Buffer, env: Record<string, string>, stop: AbortSignal): Promise<void> {
  return new Promise((done, fail) => {
    // A group of its own, so that whatever the program started ends with it. `--`: an address is never an option.
    const child = spawn(program, ['-i', '-f', mail.from, '--', ...mail.to], { cwd: '/', env, stdio: ['pipe', 'ignore', 'pipe'], detached: true });
    let said = '';
    let unread = false;
    const kill = (): void => {
      // Killed before its input closes: a program that sees the end of a half-written message would deliver that half.
      if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
        try {
          process.kill(-child.pid, 'SIGKILL');
        } catch {
          child.kill('SIGKILL');
        }
      }
      child.stdin.destroy();
      child.stderr.destroy();
    };
    stop.addEventListener('abort', kill, { once: true });
    if (stop.aborted) kill();
    const finish = (error: Error | null): void => {
      stop.removeEventListener('abort', kill);
      child.stdin.destroy();
      child.stderr.destroy();
      if (error) fail(error);
      else done();
    };

    child.once('error', finish);
    child.stderr.on('data', (chunk: Buffer) => {
      if (said.length < STDERR_LENGTH) said += chunk.toString('utf8');
    });
    child.stdin.on('error', () => {
      unread = true;
    });
    child.stdin.end(raw);
    child.once('exit', (code, signal) => {
      // Not 'close': a delivery that the program left in the background may hold stderr open for hours.
      if (code === 0 && !unread && child.stdin.writableLength === 0) return finish(null);
      const how = code === 0 ? 'ended before it had read the message' : signal ? `was ended by ${signal}` : `ended with code ${code}`;
      const fails = (): void => finish(new Error(said.trim() === '' ? how : `${how}: ${said.trim()}`));
      const patience = setTimeout(fails, 250);
      child.once('close', () => {
        clearTimeout(patience);
        fails();
      });
    });
  });
}

function environment(given: MailOptions['env']): Record<string, string> {
  const kept = Object.entries({ PATH: MTA_PATH, ...given }).filter(
    (entry): entry is [string, string] => entry[1] !== undefined && !entry[0].startsWith('DBBACKUP_') && entry[0] !== 'CREDENTIALS_DIRECTORY',
  );
  return Object.fromEntries(kept);
}

/** What nodemailer hangs on its errors, as far as it is told to people. */
interface Reply extends Error {
  readonly response?: string | undefined;
  readonly recipient?: string | undefined;
  readonly responseCode?: number | undefined;
  readonly code?: string | undefined;
}

const whereOf = (route: MailRoute): string =>
  route.kind === 'sendmail' ? route.program : `mail server ${route.host.includes(':') ? `[${route.host}]` : route.host}:${route.port}`;

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const refused = 'rejectedErrors' in error && Array.isArray(error.rejectedErrors) ? (error.rejectedErrors as Reply[]) : null;
  if (refused && refused.length > 0) return `refused for ${refusals([], refused)}`;
  return reasonInWords(error);
}

/** `a@x.org (550 no such user), b@x.org (...)` */
function refusals(rejected: readonly string[], errors: readonly Reply[] | undefined): string {
  if (!errors || errors.length === 0) return rejected.join(', ');
  return errors.map((e) => `${e.recipient ?? 'a recipient'} (${e.response ?? e.message})`).join(', ');
}

/** One printable line without secrets: servers and programs may repeat what they were sent, in any of its encodings. */
function scrub(reason: string, route: MailRoute): string {
  if (route.kind !== 'smtp' || route.password === '') return oneLine(reason, [], REASON_LENGTH);
  const { user, password } = route;
  const base64 = (s: string): string => Buffer.from(s).toString('base64');
  const hidden = hide(reason, [base64(`\0${user}\0${password}`), base64(password), encodeURIComponent(password), password]);
  if (holdsEcho(hidden, password)) return `${whereOf(route)}: what the server says holds the password in disguise, and is not repeated`;
  return oneLine(hidden, [], REASON_LENGTH);
}
