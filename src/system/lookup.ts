/** Addresses of a host as the system itself finds them: /etc/hosts, search domains, whatever nsswitch.conf names. */
import { execFile } from 'node:child_process';

const SCRIPT = `require('node:dns').lookup(process.argv[1], { all: true }, (error, found) =>
  process.stdout.write(JSON.stringify(error ? { code: error.code } : { addresses: found.map((a) => a.address) })))`;

/**
 * In a process of its own, since getaddrinfo cannot be stopped: behind a name server that is silent it would keep ours alive
 * for half a minute after a signal. Throws what it says, and the reason of `stop`.
 */
export function lookUp(host: string, stop: AbortSignal): Promise<string[]> {
  return new Promise((done, fail) => {
    const options = { env: {}, cwd: '/', signal: stop, killSignal: 'SIGKILL', encoding: 'utf8' } as const;
    execFile(process.execPath, ['-e', SCRIPT, '--', host], options, (error, stdout) => {
      if (stop.aborted) return fail(stop.reason);
      if (error) return fail(new Error(`${host} cannot be looked up: ${error.message.split('\n')[0]}`));
      const { code, addresses } = JSON.parse(stdout) as { code?: string; addresses?: string[] };
      return addresses ? done(addresses) : fail(Object.assign(new Error(`getaddrinfo ${code} ${host}`), { code }));
    });
  });
}
