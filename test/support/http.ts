/** Real HTTP servers on loopback that are posted to: they behave, or misbehave as a test wants, and remember all that came. */
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

export interface Posted {
  readonly method: string;
  /** Path and query. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** `answer`: a status, its headers and text. The others are what servers do when they are not well. */
export type Behaviour =
  | { readonly answer: number; readonly headers?: Readonly<Record<string, string>>; readonly text?: string }
  /** Take the request and never answer. */
  | 'stall'
  /** Close in the middle of the request, before it is read. */
  | 'hang up'
  /** Close in the middle of the answer: its head has been sent. */
  | 'break off'
  /** An answer that never ends. */
  | 'endless'
  /** Something that is not HTTP. */
  | 'garbage';

/** A behaviour, or what decides it. */
export type Manner = Behaviour | ((posted: Posted) => Behaviour | Promise<Behaviour>);

export interface HttpServer {
  readonly port: number;
  /** `http://127.0.0.1:PORT` */
  readonly url: string;
  /** Requests that were answered with 2xx, in order. */
  readonly taken: Posted[];
  /** All requests that came, in order. */
  readonly heard: Posted[];
  /** From now on; the path may decide. */
  behave(as: Manner): void;
  /** Connections that are open now. */
  open(): number;
  close(): Promise<void>;
}

const OK: Behaviour = { answer: 200, text: 'ok' };

/** @param port the same port again after a server was closed; 0: any */
export async function startHttp(first: Behaviour = OK, port = 0): Promise<HttpServer> {
  let behaviour: Manner = first;
  const taken: Posted[] = [];
  const heard: Posted[] = [];
  const sockets = new Set<Socket>();

  const serve = (request: IncomingMessage, response: ServerResponse): void => {
    if (behaviour === 'hang up') {
      request.socket.destroy();
      return;
    }
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const headers = Object.fromEntries(Object.entries(request.headers).map(([name, value]) => [name, String(value)]));
      const posted = { method: request.method ?? '', path: request.url ?? '', headers, body: Buffer.concat(chunks).toString('utf8') };
      heard.push(posted);
      const as = typeof behaviour === 'function' ? behaviour(posted) : behaviour;
      void Promise.resolve(as).then((now) => respond(now, posted, request.socket, response));
    });
  };

  const respond = (as: Behaviour, posted: Posted, socket: Socket, response: ServerResponse): void => {
    if (as === 'stall') return;
    if (as === 'hang up') return void socket.destroy();
    if (as === 'garbage') return void socket.end('220 hello, I am a mail server\r\n');
    if (as === 'break off') {
      response.writeHead(500, { 'content-length': '1000' });
      response.write('half a');
      setTimeout(() => socket.destroy(), 20);
      return;
    }
    if (as === 'endless') {
      response.writeHead(500);
      const more = (): void => {
        if (!socket.destroyed) response.write('x'.repeat(65_536), more);
      };
      more();
      return;
    }
    if (as.answer >= 200 && as.answer < 300) taken.push(posted);
    response.writeHead(as.answer, as.headers);
    response.end(as.text ?? '');
  };

  const server: Server = createServer(serve);
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.once('close', () => sockets.delete(socket));
  });
  await new Promise<void>((listening) => server.listen(port, '127.0.0.1', listening));
  const { port: bound } = server.address() as AddressInfo;
  return {
    port: bound,
    url: `http://127.0.0.1:${bound}`,
    taken,
    heard,
    behave: (as) => {
      behaviour = as;
    },
    open: () => sockets.size,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((closed) => server.close(() => closed()));
    },
  };
}
