/** Off-site copies and included files where others may write, and where settings contradict one another. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, truncateSync, watch, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { stampOf } from '../../src/catalog.js';
import { cannot, dbbackup, EXECUTABLE, type Options, start, tempDirectory, until } from '../support/cli.js';
import { type FakeS3, startFakeS3 } from '../support/fake-s3.js';
import { hungMount, noHungMount } from '../support/hung-mount.js';
import { type Said, textOf } from '../support/manifest.js';
import { makeKey } from '../support/packed.js';
import { standStill } from '../support/standstill.js';
import { entry } from '../support/tar.js';
import { DAY, HOUR, plant, type Scene, scene, sceneWithCopy } from './scene.js';

let s3: FakeS3;
beforeAll(async () => {
  s3 = await startFakeS3('bucket');
});
beforeEach(() => {
  s3.rule = () => null;
  s3.objects.clear();
});
afterAll(() => s3.close());

const KEYS = { AWS_ACCESS_KEY_ID: 'AKIDCANARY', AWS_SECRET_ACCESS_KEY: 'canary-secret-of-s3-0123456789', AWS_EC2_METADATA_DISABLED: 'true' };
const withKeys: Options = { env: KEYS };
const at = (endpoint: string, prefix = 'p'): string => `s3://bucket/${prefix}?endpoint=${endpoint}&region=eu-central-1`;
const here = (s: Scene, suffix: string): string[] =>
  readdirSync(s.to)
    .filter((f) => f.endsWith(suffix))
    .sort();
const disk = (s: Scene): string => {
  const path = join(s.home, 'disk');
  mkdirSync(path, { recursive: true });
  return path;
};
const saidOf = (path: string): Said => {
  const { selfSha256: _, ...said } = JSON.parse(readFileSync(path, 'utf8')) as Said & { selfSha256: string };
  return said;
};

describe('a .env of the current directory', () => {
  test.each([
    ['rclone:there:copies', (mark: string) => ['RCLONE_CONFIG=rclone.conf', `RCLONE_PASSWORD_COMMAND=touch ${mark}`]],
    [at('http://127.0.0.1:9'), () => ['AWS_CONFIG_FILE=aws.conf']],
  ])('may not name a program that an upload to %s would start', async (url, more) => {
    const s = scene();
    const cwd = tempDirectory('cwd');
    const mark = join(cwd, 'started');
    writeFileSync(join(cwd, 'rclone.conf'), '# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\nAAAA\n');
    writeFileSync(join(cwd, 'aws.conf'), `[default]\ncredential_process = touch ${mark}\n`);
    const lines = [`DBBACKUP_TO=${s.to}`, `DBBACKUP_UPLOAD=${url}`, ...more(mark)];
    writeFileSync(join(cwd, '.env'), `${lines.join('\n')}\n`, { mode: 0o600 });
    const run = await dbbackup(['run', s.source, '--json'], { cwd, env: { AWS_EC2_METADATA_DISABLED: 'true' } });
    expect([run.code, run.json.error?.code, existsSync(mark), existsSync(s.to)]).toEqual([78, 'SETTINGS', false, false]);
    expect(run.json.error?.message).toContain(`--env-file ${cwd}/.env`);
  });

  test('may hold credentials', async () => {
    const s = scene();
    const cwd = tempDirectory('cwd');
    const lines = [`DBBACKUP_TO=${s.to}`, `DBBACKUP_UPLOAD='${at(s3.endpoint)}'`, ...Object.entries(KEYS).map(([k, v]) => `${k}=${v}`)];
    writeFileSync(join(cwd, '.env'), `${lines.join('\n')}\n`, { mode: 0o600 });
    const run = await dbbackup(['run', s.source], { cwd });
    expect([run.code, s3.objects.size], run.stderr).toEqual([0, 2]);
  });
});

describe('include', () => {
  test('of what the backup directory lies in does not archive the copies', async () => {
    const s = scene();
    writeFileSync(join(s.home, 'data/one.txt'), 'one');
    for (let n = 0; n < 2; n++) expect((await s.run(['--include', s.home])).code).toBe(0);
    const back = join(tempDirectory('back'), 'files');
    expect((await s.ask('restore', ['-o', join(tempDirectory('new'), 'new.db'), '--files-to', back])).code).toBe(0);
    expect(readdirSync(join(back, s.home))).toEqual(['data']);
  });

  test.skipIf(cannot('strace') !== null)('of where the database lies leaves its journal out, also one that is made while the archive grows', async () => {
    const s = scene();
    const first = join(s.home, 'data/aa.bin');
    writeFileSync(first, 'first');
    const journal = `${s.source}-journal`;
    writeFileSync(journal, '');
    const run = await standStill([EXECUTABLE, 'run', s.source, '--to', s.to, '--include', join(s.home, 'data'), '--json'], { call: 'pread64', path: first });
    // Another file of that name, and not by chance with the number of the first.
    writeFileSync(`${journal}.new`, 'of another transaction');
    renameSync(`${journal}.new`, journal);
    expect((await run.goOn()).code).toBe(0);
    rmSync(journal);
    const back = join(tempDirectory('back'), 'files');
    expect((await s.ask('restore', ['-o', join(tempDirectory('new'), 'new.db'), '--files-to', back])).code).toBe(0);
    expect(readdirSync(join(back, s.home, 'data'))).toEqual(['aa.bin']);
  });

  test('of the backup directory itself is a settings error', async () => {
    const s = scene();
    mkdirSync(s.to, { mode: 0o700 });
    symlinkSync(s.to, join(s.home, 'link'));
    for (const path of [s.to, join(s.home, 'link')]) {
      const run = await s.run(['--include', path, '--json']);
      expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
      expect(run.json.error?.message).toContain(path);
    }
    expect(here(s, '.db')).toEqual([]);
  });

  test('of what a destination lies in does not archive the copies there; of the destination itself is a settings error', async () => {
    const s = scene({ journal: 'wal' });
    writeFileSync(join(s.home, 'data/one.txt'), 'one');
    const upload = ['--upload', `file://${disk(s)}`];
    for (let n = 0; n < 2; n++) expect((await s.run([...upload, '--include', s.home])).code).toBe(0);
    const back = join(tempDirectory('back'), 'files');
    expect((await s.ask('restore', ['-o', join(tempDirectory('new'), 'new.db'), '--files-to', back])).code).toBe(0);
    expect(readdirSync(join(back, s.home))).toEqual(['data']);
    mkdirSync(join(disk(s), 'below'));
    symlinkSync(disk(s), join(s.home, 'link'));
    for (const path of [disk(s), join(disk(s), 'below'), join(s.home, 'link')]) {
      const run = await s.run([...upload, '--include', path, '--dry-run', '--json']);
      expect([run.code, run.json.error?.code]).toEqual([78, 'SETTINGS']);
      expect(run.json.error?.message).toContain(path);
    }
  });

  test('that no disk has room for is NO_SPACE beforehand, here and on the way back', async () => {
    const s = scene({ journal: 'wal' });
    mkdirSync(join(s.home, 'up'));
    writeFileSync(join(s.home, 'up/one.txt'), Buffer.alloc(100_000));
    const include = ['--include', join(s.home, 'up'), '--include', join(s.home, 'data')];
    expect((await s.run(include)).code).toBe(0);
    const [small, without] = [await s.run([...include, '--dry-run', '--json']), await s.run(['--dry-run', '--json'])];
    // Headers and all, and the database itself once, whatever is included.
    const added = (small.json.plan?.neededBytes ?? 0) - (without.json.plan?.neededBytes ?? 0);
    expect(added).toBe(3 * 1536 + Math.ceil(100_000 / 512) * 512);
    expect((await s.run([...include, '--dry-run'])).stdout).toContain(`would archive ${join(s.home, 'up')} with it (1`);
    truncateSync(join(s.home, 'up/one.txt'), 2 ** 42);
    for (const more of [['--dry-run'], []]) {
      const run = await s.run([...include, ...more, '--json'], { deadlineMs: 20_000 });
      expect([run.code, run.json.error?.code, run.json.error?.stage], run.stderr).toEqual([1, 'NO_SPACE', 'inspect']);
    }
    const [json = ''] = here(s, '.json');
    const said = saidOf(join(s.to, json));
    writeFileSync(join(s.to, json), textOf(said, { files: { ...said.files, fileBytes: 2 ** 50 } }));
    for (const more of [['--dry-run'], []]) {
      const restore = await s.ask('restore', ['-o', join(s.home, 'new.db'), '--files-to', join(s.home, 'back'), ...more, '--json']);
      expect([restore.code, restore.json.error?.code, existsSync(join(s.home, 'new.db'))], restore.stderr).toEqual([1, 'NO_SPACE', false]);
    }
  });
});

describe('upload', () => {
  test('into the backup directory, whatever it is called, is no second copy', async () => {
    const { s } = await sceneWithCopy();
    mkdirSync(join(s.to, 'below'));
    symlinkSync(s.to, join(s.home, 'link'));
    for (const path of [s.to, join(s.to, 'below'), join(s.home, 'link')]) {
      const run = await s.run(['--upload', `file://${path}`, '--json']);
      expect([run.code, run.json.error?.code, run.json.uploads?.[0]?.uploaded, run.json.copy?.status]).toEqual([3, 'UPLOAD_FAILED', [], 'good']);
      const check = await dbbackup(['check', s.source, '--to', s.to, '--upload', `file://${path}`, '--json']);
      expect([check.code, check.json.problems?.find((p) => p.severity === 'critical')?.code]).toEqual([1, 'UPLOAD_FAILED']);
    }
    expect(readdirSync(join(s.to, 'below'))).toEqual([]);
  });

  const noHang = noHungMount();
  if (noHang !== null) console.warn(`not run: a mount that never answers: ${noHang}`);
  test.skipIf(noHang !== null).each([
    ['SIGTERM', [], 143, 'INTERRUPTED'],
    ['upload-timeout', ['--upload-timeout', '1s'], 3, 'TIMEOUT'],
  ] as const)('to a mount that never answers ends within 2 s of %s', async (why, more, code, error) => {
    const s = scene({ journal: 'wal' });
    const hung = hungMount();
    const running = start(['run', s.source, '--to', s.to, '--upload', `file://${hung.point}`, ...more, '--json']);
    await until('it hangs', hung.asked);
    const began = performance.now();
    if (why === 'SIGTERM') process.kill(running.pid, 'SIGTERM');
    const run = await running.result;
    expect(performance.now() - began).toBeLessThan(why === 'SIGTERM' ? 2000 : 3500);
    expect([run.code, run.json.copy?.status, run.json.uploads?.[0]?.error?.code], run.stderr).toEqual([code, 'good', error]);
    hung.release();
  });

  test('by credentials that may not list broken-off uploads is a warning', async () => {
    const s = scene({ journal: 'wal' });
    s3.rule = ({ operation }) => (operation === 'list-uploads' ? { status: 403, code: 'AccessDenied' } : null);
    const run = await s.run(['--upload', at(s3.endpoint), '--json'], withKeys);
    expect([run.code, run.json.warnings?.map((w) => w.code), s3.objects.size]).toEqual([0, ['UPLOAD_PRUNE'], 2]);
  });

  test('does not replace the copy of another machine that has the same name and time', async () => {
    const s = scene();
    const path = disk(s);
    const upload = ['--upload', `file://${path}`];
    const later = await s.run([...upload, '--json']);
    const made = later.json.copy?.manifest ?? '';
    // As if that machine had been faster, and this one's confirmation were lost.
    const theirs = textOf({ ...saidOf(join(path, made)), runId: '11111111-1111-4111-8111-111111111111' });
    writeFileSync(join(path, made), theirs);
    const history = new Database(join(s.state, 'history.db'));
    history.exec('DELETE FROM uploads');
    history.close();
    const run = await s.run([...upload, '--json']);
    expect([run.code, run.json.error?.code, run.json.uploads?.[0]?.uploaded.map((u) => u.file)]).toEqual([3, 'UPLOAD_FAILED', [run.json.copy?.file]]);
    expect(run.json.error?.message).toContain(`${made} is there already`);
    expect(readFileSync(join(path, made), 'utf8')).toBe(theirs);
  });

  test('--upload-prune neither removes nor counts what somebody else put there', async () => {
    const s = scene({ journal: 'wal' });
    const path = disk(s);
    const upload = ['--upload', `file://${path}`, '--keep-last', '3'];
    const first = await s.run([...upload, '--json']);
    expect(first.code).toBe(0);
    const forged = [1, 2, 3].map((n) => plant(path, `app-${stampOf(new Date(Date.now() + n * 60_000))}`));
    // Years ahead: it would keep everything for ever.
    forged.push(plant(path, `app-${stampOf(new Date(Date.now() + 400 * DAY))}`));
    const run = await s.run([...upload, '--upload-prune', '--json']);
    expect([run.code, run.json.uploads?.[0]?.pruned]).toEqual([0, []]);
    expect(run.json.warnings?.map((w) => w.code)).toEqual(['UPLOAD_PRUNE']);
    expect(readdirSync(path)).toEqual(expect.arrayContaining([first.json.copy?.file, run.json.copy?.file, ...forged]));
    const last = await s.run([...upload.slice(0, 2), '--keep-last', '1', '--upload-prune', '--json']);
    expect(last.json.uploads?.[0]?.pruned.map((p) => p.file)).toEqual([run.json.copy?.file, first.json.copy?.file]);
    expect(readdirSync(path)).toEqual(expect.arrayContaining([last.json.copy?.file, ...forged]));
  });
});

describe('--from', () => {
  test('one object that cannot be read does not stand in the way of the others', async () => {
    const s = scene();
    const url = at(s3.endpoint);
    expect((await s.run(['--upload', url], withKeys)).code).toBe(0);
    s3.objects.set(`p/${'漢'.repeat(100)}-20260101T000000Z.db`, Buffer.from('x'));
    s3.objects.set(`p/${'漢'.repeat(100)}-20260101T000000Z.json`, Buffer.from('x'));
    s3.objects.set('p/app-20260101T000000Z.json', Buffer.alloc(16_000_001));
    s3.objects.set('p/app-20260102T000000Z.json', Buffer.from('{}'));
    s3.rule = ({ operation, key }) => (operation === 'get' && key.includes('20260102') ? { status: 403, code: 'InvalidObjectState' } : null);
    const out = join(s.home, 'new.db');
    const restore = await dbbackup(['restore', '--from', url, '-o', out, '--json'], withKeys);
    expect([restore.code, existsSync(out)], restore.stderr).toEqual([0, true]);
    expect(restore.stderr).toContain('2 manifests at');
    s3.rule = ({ operation }) => (operation === 'get' ? { status: 403, code: 'AccessDenied' } : null);
    const denied = await dbbackup(['list', '--from', url, '--json'], withKeys);
    expect([denied.code, denied.json.error?.code]).toEqual([1, 'REMOTE_FAILED']);
  });

  test.each([
    ['without end', true],
    ['that names an object twice', false],
  ])('a listing %s', async (_, endless) => {
    let pages = 0;
    const keys = endless ? Array.from({ length: 1000 }, (_key, n) => `p/${n}`) : ['p/app-20260101T000000Z.db', 'p/app-20260101T000000Z.db'];
    const contents = keys.map((key) => `<Contents><Key>${key}</Key><Size>1</Size></Contents>`).join('');
    const server = createServer((_request, response) => {
      pages++;
      const next = endless ? `<NextContinuationToken>t${pages}</NextContinuationToken>` : '';
      response.end(`<?xml version="1.0"?><ListBucketResult><IsTruncated>${endless}</IsTruncated>${next}${contents}</ListBucketResult>`);
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const url = at(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
      const list = await dbbackup(['list', '--from', url, '--json'], withKeys);
      if (endless) expect([list.code, list.json.error?.code]).toEqual([1, 'REMOTE_FAILED']);
      else expect([list.code, list.json.copies?.map((c) => c.status)]).toEqual([0, ['unverified']]);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  test('an answer without end does not fill the memory', async () => {
    const block = Buffer.alloc(1 << 20, ' ');
    const server = createServer((_request, response) => {
      response.write('<?xml version="1.0"?><ListBucketResult>');
      const pump = (): void => {
        while (response.write(block));
      };
      response.on('drain', pump);
      pump();
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const list = await dbbackup(['list', '--from', at(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), '--json'], withKeys);
      expect([list.code, list.json.error?.code]).toEqual([1, 'REMOTE_FAILED']);
      expect(list.json.error?.message).toContain('has no end');
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  test('a manifest that is not as it was written cannot make a small file fill the disk', async () => {
    const s = scene();
    expect((await s.run(['--compress', 'gzip'])).code).toBe(0);
    const [json = '', packed = ''] = [here(s, '.json')[0], here(s, '.gz')[0]];
    const bomb = gzipSync(Buffer.alloc(200 << 20));
    writeFileSync(join(s.to, packed), bomb);
    const sums = { sizeBytes: bomb.length, sha256: createHash('sha256').update(bomb).digest('hex'), plainSizeBytes: 1e15 };
    writeFileSync(
      join(s.to, json),
      textOf(saidOf(join(s.to, json)), sums)
        .replace('"selfSha256": "', '"selfSha256": "0')
        .replace(/.("\n}\n)$/, '$1'),
    );
    const verify = await s.ask('verify', [packed, '--json', '--name', 'app']);
    expect([verify.code, verify.json.results?.map((r) => [r.status, r.proved])]).toEqual([1, [['bad', 'bytes']]]);
    expect(verify.json.results?.[0]?.problems).toEqual([expect.stringContaining('the manifest is not as it was written')]);
  });

  test('packed copies whose manifests say what cannot be, or what no disk holds, are their own result, and the others are proven', async () => {
    const s = scene();
    expect((await s.run(['--compress', 'gzip'])).code).toBe(0);
    const [json = '', packed = ''] = [here(s, '.json')[0], here(s, '.gz')[0]];
    const forge = (days: number, more: object): string => {
      const base = `app-${stampOf(new Date(Date.now() - days * DAY))}`;
      const [file, manifest] = [`${base}.db.gz`, `${base}.json`];
      const createdAt = `${new Date(Math.floor((Date.now() - days * DAY) / 1000) * 1000).toISOString().slice(0, 19)}Z`;
      writeFileSync(join(s.to, file), readFileSync(join(s.to, packed)));
      writeFileSync(join(s.to, manifest), textOf(saidOf(join(s.to, json)), { file, manifest, createdAt, ...more }));
      return file;
    };
    const impossible = forge(1, { plainSizeBytes: 1e15 });
    const contradicting = forge(2, { plainSizeBytes: 2 ** 40 });
    const large = forge(3, { plainSizeBytes: 2 ** 46, pageSize: 65_536, pageCount: 2 ** 30 });
    const verify = await s.ask('verify', ['--all', '--json']);
    const verdicts = Object.fromEntries((verify.json.results ?? []).map((r) => [r.file, r.status]));
    expect(verdicts).toEqual({ [packed]: 'good', [impossible]: 'bad', [contradicting]: 'bad', [large]: 'unverified' });
    expect([verify.code, verify.json.error?.code]).toEqual([1, 'COPY_BAD']);
    // It is not the fault of that copy, and not a mark on it.
    expect((await s.ask('list', ['--json'])).json.copies?.find((c) => c.file === large)?.status).toBe('good');
    const alone = await s.ask('verify', [packed, large, '--json']);
    expect([alone.code, alone.json.error?.code, alone.json.results?.length]).toEqual([1, 'NO_SPACE', 2]);
    const restore = await s.ask('restore', [impossible, '-o', join(s.home, 'new.db'), '--json']);
    expect([restore.code, restore.json.error?.code]).toEqual([1, 'COPY_BAD']);
  });

  test('an object without end is read no further than its manifest says', async () => {
    const s = scene();
    const key = await makeKey();
    const url = at(s3.endpoint);
    expect((await s.run(['--upload', url, '--encrypt-to', key.recipient], withKeys)).code).toBe(0);
    s3.rule = ({ operation, key: object }) => (operation === 'get' && object.endsWith('.age') ? 'endless' : null);
    const verify = await dbbackup(['verify', '--from', url, '--json'], { ...withKeys, deadlineMs: 20_000 });
    expect([verify.hung, verify.code, verify.json.results?.[0]?.status], verify.stderr).toEqual([false, 1, 'bad']);
    expect(verify.json.results?.[0]?.problems.join()).toMatch(/it has more than \d+ bytes/);
  });

  test('messages name the destination, never the temporary directory', async () => {
    const s = scene();
    const from = `file://${disk(s)}`;
    plant(disk(s), `app-${stampOf(new Date(Date.now() - HOUR))}`, null);
    const tmp = tempDirectory('tmp');
    for (const words of [[], ['app-20260101T000000Z.db'], ['--timestamp', '2026-01-01']]) {
      const restore = await dbbackup(['restore', ...words, '--from', from, '--name', 'app', '-o', join(s.home, 'new.db'), '--json'], { env: { TMPDIR: tmp } });
      expect([restore.code, restore.json.error?.code]).toEqual([1, 'COPY_NOT_FOUND']);
      expect(restore.json.error?.hint).toContain(`list --from ${from}`);
      expect(restore.stdout + restore.stderr).not.toContain(tmp);
    }
  });
});

describe('restore --files-to', () => {
  const withFiles = async (): Promise<Scene> => {
    const s = scene();
    mkdirSync(join(s.home, 'up'));
    writeFileSync(join(s.home, 'up/one.txt'), 'one');
    expect((await s.run(['--include', join(s.home, 'up')])).code).toBe(0);
    return s;
  };

  test('a symbolic link on the way, and a temporary directory that is not there, are named with what to say instead', async () => {
    const s = await withFiles();
    const [real, link] = [join(s.home, 'real'), join(s.home, 'link')];
    mkdirSync(real);
    symlinkSync(real, link);
    for (const [out, files] of [
      [join(s.home, 'new.db'), join(link, 'files')],
      [join(s.home, 'new.db'), link],
      [join(link, 'new.db'), join(s.home, 'files')],
    ] as const) {
      const restore = await s.ask('restore', ['-o', out, '--files-to', files, '--json']);
      expect([restore.code, restore.json.error?.code]).toEqual([1, 'RESTORE_FAILED']);
      expect(restore.json.error?.message).toContain(`${link} is a symbolic link, and is not followed: name what it leads to, ${real}`);
    }
    const list = await dbbackup(['list', '--from', `file://${s.to}`, '--json'], { env: { TMPDIR: join(s.home, 'nowhere') } });
    expect([list.code, list.json.error?.message, list.json.error?.hint]).toEqual([
      78,
      expect.stringContaining(`the temporary directory ${s.home}/nowhere cannot be used: it is not there`),
      expect.stringContaining('TMPDIR='),
    ]);
  });

  test('a directory that the new file itself would lie in is refused beforehand', async () => {
    const s = await withFiles();
    const to = join(s.home, 'back');
    mkdirSync(to);
    const restore = await s.ask('restore', ['-o', join(to, 'app.db'), '--files-to', to, '--json']);
    expect([restore.code, restore.json.error?.code, readdirSync(to)]).toEqual([1, 'RESTORE_FAILED', []]);
    expect(restore.json.error?.message).toContain('must be empty');
  });

  test('ended while files are unpacked: what is there already is said, and in the record', async () => {
    const s = scene();
    mkdirSync(join(s.home, 'up'));
    for (let n = 0; n < 3000; n++) writeFileSync(join(s.home, `up/${n}`), String(n));
    expect((await s.run(['--include', join(s.home, 'up')])).code).toBe(0);
    const [out, back] = [join(s.home, 'new.db'), join(s.home, 'back')];
    mkdirSync(back);
    const running = start(['restore', '--to', s.to, '-o', out, '--files-to', back, '--json']);
    const watcher = watch(back);
    await once(watcher, 'change');
    watcher.close();
    process.kill(running.pid, 'SIGTERM');
    const restore = await running.result;
    expect([restore.code, restore.json.error?.code, restore.json.restored?.target, existsSync(out)]).toEqual([143, 'INTERRUPTED', out, true]);
    expect(restore.json.error?.message).toContain(`with a part of the files in ${back}, was already made`);
    expect(restore.json.error?.hint).toContain(`empty ${back}`);
  });

  test('an archive with an entry that would be refused leaves the database alone', async () => {
    const s = await withFiles();
    const [json = '', tar = ''] = [here(s, '.json')[0], here(s, '.tar')[0]];
    const archive = Buffer.concat([entry({ name: '../../out.txt', content: 'out' }), Buffer.alloc(1024)]);
    const sha256 = createHash('sha256').update(archive).digest('hex');
    writeFileSync(join(s.to, tar), archive);
    const said = saidOf(join(s.to, json));
    const files = { ...said.files, sizeBytes: archive.length, plainSizeBytes: archive.length, sha256, plainSha256: sha256, count: 1 };
    writeFileSync(join(s.to, json), textOf(said, { files }));
    const before = statSync(s.source, { bigint: true }).mtimeNs;
    const back = join(s.home, 'back');
    const restore = await s.ask('restore', ['--into', s.source, '--files-to', back, '--yes', '--json']);
    expect([restore.code, restore.json.error?.code, existsSync(back)]).toEqual([1, 'COPY_BAD', false]);
    expect([restore.json.restored, statSync(s.source, { bigint: true }).mtimeNs]).toEqual([null, before]);
  });

  test('a copy whose archive is gone still gives back its database, and says what is missing to who wants the files', async () => {
    const s = await withFiles();
    const tar = here(s, '.tar')[0] ?? '';
    rmSync(join(s.to, tar));
    const out = join(s.home, 'new.db');
    const files = await s.ask('restore', ['-o', out, '--files-to', join(s.home, 'files'), '--json']);
    expect([files.code, files.json.error?.code, existsSync(out), existsSync(join(s.home, 'files'))]).toEqual([1, 'COPY_BAD', false, false]);
    expect(files.json.error?.message).toContain(tar);
    const restore = await s.ask('restore', ['-o', out, '--json']);
    expect([restore.code, existsSync(out)], restore.stderr).toEqual([0, true]);
    expect((await s.ask('verify', ['--json'])).json.results?.[0]?.problems.join()).toContain(tar);
  });

  test('an archive that a killed run gave its name by renaming, without hard links, is swept', async () => {
    const s = await withFiles();
    const [json = '', tar = '', db = ''] = [here(s, '.json')[0], here(s, '.tar')[0], here(s, '.db')[0]];
    const left = join(s.state, 'tmp/app-00000000-0000-4000-8000-000000000000');
    mkdirSync(left, { recursive: true, mode: 0o700 });
    renameSync(join(s.to, json), join(left, 'manifest.json'));
    renameSync(join(s.to, db), join(left, 'data.db'));
    // Of the same name, and not what that run made.
    writeFileSync(join(s.to, tar.replace('app-', 'other-')), 'x');
    expect((await s.run()).code).toBe(0);
    expect(here(s, '.tar')).toEqual([tar.replace('app-', 'other-')]);
    expect(existsSync(left)).toBe(false);
  });
});
