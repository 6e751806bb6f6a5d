/**
 * A destination that fails in every way that a server can, at a random step of an upload: whatever it was, a run that could
 * not prove its copy over there does not exit 0, the copy here is good, nobody hangs, no process stays; and a run after
 * the server has come to itself completes what is missing.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseManifest } from '../../src/catalog.js';
import { dbbackup, makeDatabase, tempDirectory } from '../support/cli.js';
import { type FakeS3, type Fault, type Operation, startFakeS3 } from '../support/fake-s3.js';
import { type Failure, mustEndCleanly, type Random, type Request, type Round, rounds, type Scenario, told } from './harness.js';
import { must, mustHaveNoTemp, mustHoldNoBadCopy, sha256 } from './proof.js';

/** What a run asks for: it looks for broken uploads first, then stores; it reads back where the server computed no checksum. */
const OPERATIONS: readonly Operation[] = ['put', 'put', 'put', 'put', 'get', 'list-uploads'];
const KEYS = { AWS_ACCESS_KEY_ID: 'AKIDFAULT', AWS_SECRET_ACCESS_KEY: 'fault-secret-0123456789', AWS_EC2_METADATA_DISABLED: 'true' };

/** Whether storing with this fault can still be honest success: what is retried, or what harms nobody. */
function faultOf(random: Random, operation: Operation): { fault: Fault; text: string } {
  const at = random.below(40_000);
  const faults: readonly Fault[] = [
    {
      status: random.pick([400, 401, 403, 404, 409, 500, 501, 502, 503, 504]),
      code: random.pick(['AccessDenied', 'ExpiredToken', 'InternalError', 'SlowDown', 'NoSuchBucket']),
    },
    { ok: 'but-error', code: 'InternalError' },
    'lose-answer',
    // Less than the smallest body: where nothing is cut, the server would be silent, which only takes its time.
    ...(operation === 'put' ? [{ resetAtByte: at % 1000 }] : []),
    { cutAtByte: at },
    'wrong-checksum',
    'no-checksum',
    'store-other',
    'store-less',
  ];
  const fault = random.pick(faults);
  return { fault, text: JSON.stringify(fault) };
}

// They wait for retries most of the time.
const LANES = 4;

async function play(request: Request): Promise<Failure[]> {
  const seen = { ok: 0, incomplete: 0, codes: new Map<string, number>() };
  const servers = await Promise.all(Array.from({ length: LANES }, () => startFakeS3('bucket')));
  const idle = [...servers];
  const source = join(tempDirectory('transport-source'), 'app.db');
  makeDatabase(source, { bytes: 20_000 });
  const failures = await rounds(
    'transport',
    request,
    async (round) => {
      const server = idle.pop();
      if (!server) throw new Error('more lanes than servers');
      try {
        await one(server, source, round, seen);
      } finally {
        idle.push(server);
      }
    },
    LANES,
  );
  for (const server of servers) await server.close();
  request.note?.(`exit 0 ${seen.ok}, exit 3 ${seen.incomplete}: ${[...seen.codes].map(([code, n]) => `${code} ${n}`).join(', ')}`);
  return failures;
}

async function one(
  server: FakeS3,
  source: string,
  { random, directory, say }: Round,
  seen: { ok: number; incomplete: number; codes: Map<string, number> },
): Promise<void> {
  const to = join(directory, 'backups');
  const prefix = `r${random.below(1_000_000_000)}`;
  const args = ['run', source, '--to', to, '--upload', `s3://bucket/${prefix}?endpoint=${server.endpoint}&region=eu-central-1`, '--json'];
  server.objects.clear();
  const operation = random.pick(OPERATIONS);
  const { fault, text } = faultOf(random, operation);
  const from = random.below(2);
  const times = random.pick([1, 3, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]);
  // A server without checksums is read back: then reading can fail as well.
  const blind = operation === 'get';
  say(`${text} at ${operation} ${from}, ${times} times`);
  let met = 0;
  server.rule = (request) => {
    if (request.operation !== operation) return blind && request.operation === 'put' ? 'no-checksum' : null;
    met++;
    return met > from && met <= from + times ? fault : null;
  };
  const run = await dbbackup(args, { env: KEYS, deadlineMs: 60_000 });
  say(told(run));
  server.rule = () => null;
  mustEndCleanly(run);
  must(run.code === 0 || run.code === 3, 'the backup itself failed');
  const found = mustHoldNoBadCopy(to, 'after the run');
  mustHaveNoTemp(to, 'after the run');
  must(found.pairs.size === 1 && [...found.pairs.values()].every((m) => m.status === 'good'), 'the good copy here is gone');
  if (run.code === 0) {
    seen.ok++;
    mustBeThere(server, prefix, to, 'exit 0');
  } else {
    seen.incomplete++;
    const code = run.json.uploads?.[0]?.error?.code ?? '-';
    seen.codes.set(code, (seen.codes.get(code) ?? 0) + 1);
    must(run.json.error?.code === 'UPLOAD_FAILED', () => `exit 3 for ${run.json.error?.code}`);
    must((run.json.uploads?.[0]?.missing.length ?? 0) > 0 || run.json.uploads?.[0]?.uploaded.length === 1, 'failed, and nothing is said to be missing');
  }
  const next = await dbbackup(args, { env: KEYS, deadlineMs: 60_000 });
  say(told(next));
  must(next.code === 0, 'the next run, with a server that is well, did not end with 0');
  mustBeThere(server, prefix, to, 'after the next run');
}

/** Every copy of the directory is over there, whole, under its manifest. */
function mustBeThere(server: FakeS3, prefix: string, to: string, when: string): void {
  for (const file of readdirSync(to).filter((f) => f.endsWith('.json'))) {
    const here = readFileSync(join(to, file));
    const manifest = parseManifest(here, file.slice(0, -'.json'.length));
    must(manifest !== null, 'a manifest here cannot be read');
    must(server.objects.get(`${prefix}/${file}`)?.equals(here), () => `${when}: the manifest ${file} is not there, or another`);
    const data = server.objects.get(`${prefix}/${manifest?.file}`);
    must(data?.equals(readFileSync(join(to, manifest?.file ?? ''))), () => `${when}: ${manifest?.file} is not there, or another`);
    must(manifest?.sha256 === sha256(join(to, manifest?.file ?? '')), 'the copy here is not what its manifest says');
  }
}

export const transport: Scenario = {
  name: 'transport',
  promise: 'a destination that fails is never exit 0, costs no copy here, and the next run completes it',
  ci: 40,
  soak: 1_000,
  needs: [],
  play,
};
