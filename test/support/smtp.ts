/** Real SMTP servers on loopback: `startSmtp` behaves unless told otherwise, `startScripted` says exactly what a test wants. */

import type { AddressInfo, Server, Socket } from 'node:net';
import { createServer } from 'node:net';
import { SMTPServer } from 'smtp-server';

/** Made for these tests alone (openssl, valid until 2126); signed by nobody but itself. */
export const TEST_KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgMBVQb66FjdmPSFz9
G6DZIcX008ezuBaZWwjYV4PWrU6hRANCAAQ7t0JU23M9M/vVuoEio0um/LY4EJnz
cIerP61WxfpoB9e96s0TAM4ywFC6t70fUbUn+6PS85CBxGYTbBoO5F6p
-----END PRIVATE KEY-----`;
export const TEST_CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUGNg/e1VEyIJX47cL7jEjEUFHQcIwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTA5NTczN1oYDzIxMjYxMDI4
MDk1NzM3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQ7t0JU23M9M/vVuoEio0um/LY4EJnzcIerP61WxfpoB9e96s0TAM4y
wFC6t70fUbUn+6PS85CBxGYTbBoO5F6po28wbTAdBgNVHQ4EFgQU9JQWXg3Bn5Bc
cCKL1s78GyysCdcwHwYDVR0jBBgwFoAU9JQWXg3Bn5BccCKL1s78GyysCdcwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgQZHBvmBQlecYqoafzHTP+5HDwQfxfVqGBFn4l3QYqRACIQDR
kCnDDHX8WLJ/fs0ARmybqfMkUo1yaXg856Pza3iSHg==
-----END CERTIFICATE-----`;

export type Step = 'connect' | 'mail' | 'rcpt' | 'data';

export interface Refusal {
  readonly at: Step;
  /** 4xx or 5xx. */
  readonly code: number;
  /** Only this recipient; for `rcpt`. */
  readonly only?: string;
}

export interface SmtpOptions {
  /** Require this login. Offered without TLS as well, so that a client that gives its password away is caught. */
  readonly auth?: { readonly user: string; readonly password: string };
  /** Offer STARTTLS, with a certificate that nobody signed. */
  readonly starttls?: boolean;
  /** TLS from the first byte, with that certificate. */
  readonly tls?: boolean;
  readonly refuse?: Refusal;
  /** Never answer at this step. */
  readonly stall?: Step;
  /** Drop the connection at this step. */
  readonly drop?: Step;
}

export interface ReceivedMail {
  readonly from: string;
  readonly to: readonly string[];
  /** The message as it came, CRLF. */
  readonly raw: string;
  readonly encrypted: boolean;
  readonly user: string | null;
}

export interface SmtpServer {
  readonly port: number;
  /** Messages that were accepted, in order. */
  readonly received: ReceivedMail[];
  /** Resolves when a client has come as far as the step where the server stalls. */
  readonly stalled: Promise<void>;
  /** Connections that are open now. */
  open(): number;
  close(): Promise<void>;
}

/** @param port the same port again after a server was closed; 0: any */
export async function startSmtp(options: SmtpOptions = {}, port = 0): Promise<SmtpServer> {
  const received: ReceivedMail[] = [];
  const sockets = new Set<Socket>();
  let reached = (): void => undefined;
  const stalled = new Promise<void>((done) => {
    reached = done;
  });

  const arrive = (step: Step, next: (error?: Error | null) => void, who?: string): void => {
    const { refuse } = options;
    const refused = refuse?.at === step && (refuse.only === undefined || refuse.only === who);
    if (options.stall === step) reached();
    else if (options.drop === step) for (const socket of sockets) socket.destroy();
    else next(refused ? Object.assign(new Error(`not today, at ${step}`), { responseCode: refuse.code }) : null);
  };

  const server = new SMTPServer({
    secure: options.tls ?? false,
    key: TEST_KEY,
    cert: TEST_CERTIFICATE,
    authOptional: options.auth === undefined,
    allowInsecureAuth: true,
    disabledCommands: [...(options.starttls ? [] : ['STARTTLS']), ...(options.auth ? [] : ['AUTH'])],
    disableReverseLookup: true,
    closeTimeout: 100,
    onAuth: (auth, _session, done) => {
      const ok = auth.username === options.auth?.user && auth.password === options.auth?.password;
      // A server that repeats what it was sent: it must not get into a log or an error.
      if (!ok) return done(new Error(`no user ${auth.username} with password ${auth.password}`));
      done(null, { user: auth.username });
    },
    onConnect: (_session, done) => arrive('connect', done),
    onMailFrom: (_address, _session, done) => arrive('mail', done),
    onRcptTo: (address, _session, done) => arrive('rcpt', done, address.address),
    onData: (stream, session, done) => {
      const chunks: Buffer[] = [];
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('end', () =>
        arrive('data', (error) => {
          if (error) return done(error);
          const { mailFrom, rcptTo } = session.envelope;
          received.push({
            from: mailFrom ? mailFrom.address : '',
            to: rcptTo.map((r) => r.address),
            raw: Buffer.concat(chunks).toString('utf8'),
            encrypted: session.secure,
            user: session.user ?? null,
          });
          done();
        }),
      );
    },
  });
  // Clients that hang up in the middle are part of the tests.
  server.on('error', () => undefined);
  server.server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  await new Promise<void>((done) => server.listen(port, '127.0.0.1', done));

  return {
    port: portOf(server.server),
    received,
    stalled,
    open: () => sockets.size,
    close: () =>
      new Promise<void>((done) => {
        for (const socket of sockets) socket.destroy();
        server.close(() => done());
      }),
  };
}

export interface ScriptedServer {
  readonly port: number;
  /** Every byte that clients sent, as text. */
  heard(): string;
  close(): Promise<void>;
}

/** Greets with `greeting` and answers each line with what `answer` returns; null: no answer. Never hangs up by itself. */
export async function startScripted(greeting: string, answer: (line: string) => string | null): Promise<ScriptedServer> {
  const sockets = new Set<Socket>();
  let heard = '';
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.write(greeting);
    let rest = '';
    socket.on('data', (chunk) => {
      heard += chunk.toString('latin1');
      const lines = (rest + chunk.toString('latin1')).split('\r\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const said = answer(line);
        if (said !== null) socket.write(said);
      }
    });
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return {
    port: portOf(server),
    heard: () => heard,
    close: () =>
      new Promise<void>((done) => {
        for (const socket of sockets) socket.destroy();
        server.close(() => done());
      }),
  };
}

function portOf(server: Server): number {
  return (server.address() as AddressInfo).port;
}

export interface ParsedMail {
  /** Unfolded, by lower-case name. */
  readonly headers: ReadonlyMap<string, string>;
  readonly text: string;
  readonly html: string;
}

/** Headers and decoded parts of a multipart/alternative message, as far as the tests look at them. */
export function parseMail(raw: string): ParsedMail {
  const { headers, body } = split(raw);
  const boundary = /boundary="([^"]+)"/.exec(headers.get('content-type') ?? '')?.[1];
  const parts = boundary === undefined ? [raw] : body.split(`--${boundary}`).slice(1, -1);
  const part = (type: string): string => {
    for (const each of parts) {
      const found = split(each.replace(/^\r?\n/, ''));
      if (found.headers.get('content-type')?.startsWith(type)) return decode(found.body, found.headers.get('content-transfer-encoding') ?? '7bit');
    }
    return '';
  };
  return { headers, text: part('text/plain'), html: part('text/html') };
}

function split(raw: string): { headers: Map<string, string>; body: string } {
  const [head = '', ...rest] = raw.split(/\r?\n\r?\n/);
  const lines = head.replace(/\r?\n[ \t]+/g, ' ').split(/\r?\n/);
  const headers = new Map(lines.map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()] as const));
  return { headers, body: rest.join('\r\n\r\n') };
}

function decode(body: string, encoding: string): string {
  if (encoding === 'base64') return Buffer.from(body, 'base64').toString('utf8');
  if (encoding !== 'quoted-printable') return body;
  const bytes = body.replace(/=\r?\n/g, '').replace(/=([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
