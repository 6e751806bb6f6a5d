/** Trying again, and the operator's own commands around a run. */
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { RunRecord } from '../../src/records.js';
import { waitBefore } from '../../src/retry.js';
import { words } from '../../src/settings/values.js';
import { descendants } from '../fault/proof.js';
import { cannot, dbbackup, holdExclusively, killGroup, makeDatabase, query, type Result, signalTo, start, startCommand, until } from '../support/cli.js';
import { startHttp } from '../support/http.js';
import { dataFiles, everything, type Scene, scene, sceneWithCopy } from './scene.js';

describe('waits between attempts', () => {
  const waits = (backoff: 'fixed' | 'linear' | 'exponential', waitMs = 30_000): number[] =>
    [1, 2, 3, 4, 5].map((n) => waitBefore({ count: 9, waitMs, backoff }, n));

  test('are fixed, grow, or double, and are never above 5 minutes', () => {
    expect(waits('fixed')).toEqual([30_000, 30_000, 30_000, 30_000, 30_000]);
    expect(waits('linear')).toEqual([30_000, 60_000, 90_000, 120_000, 150_000]);
    expect(waits('exponential')).toEqual([30_000, 60_000, 120_000, 240_000, 300_000]);
    expect(waits('linear', 600_000)).toEqual([300_000, 300_000, 300_000, 300_000, 300_000]);
  });
});

describe('retries', () => {
  test('a source that was held is tried again, and each attempt is in the record', async () => {
    const s = scene();
    const holder = await holdExclusively(s.source);
    const running = start(['run', s.source, '--to', s.to, '--retries', '3', '--retry-wait', '100ms', '--json']);
    await until('the first attempt has failed', () => running.stderr().includes('attempt 1 of 4 failed'), 20_000);
    await holder.crash();
    const run = await running.result;
    expect(run.code, run.stderr).toBe(0);
    expect(run.json.attempts).toBeGreaterThan(1);
    expect(run.json.warnings?.filter((w) => w.code === 'SOURCE_LOCKED')).toHaveLength((run.json.attempts ?? 0) - 1);
    expect(run.json.stages?.filter((x) => x.name === 'snapshot').map((x) => x.status)).toEqual([...Array((run.json.attempts ?? 0) - 1).fill('failed'), 'ok']);
    expect(dataFiles(s.to)).toHaveLength(1);
  });

  test('a source that is replaced is looked at anew', async () => {
    const s = scene();
    const holder = await holdExclusively(s.source);
    const running = start(['run', s.source, '--to', s.to, '--retries', '1', '--retry-wait', '10ms', '--json']);
    await until('the run to wait for its source', async () => (await s.ask('history', ['--json'])).json.runs?.[0]?.status === 'running');
    const other = join(s.home, 'data/new.db');
    makeDatabase(other, { journal: 'delete', bytes: 100_000 });
    renameSync(other, s.source);
    await holder.stop();
    const run = await running.result;
    expect([run.code, run.json.attempts, run.json.warnings?.map((w) => w.code)], run.stderr).toEqual([0, 2, expect.arrayContaining(['SOURCE_REPLACED'])]);
    expect(query(join(s.to, run.json.copy?.file ?? ''), 'SELECT count(*) FROM customer')).toBe(query(s.source, 'SELECT count(*) FROM customer'));
    // It is over with the run: the next night must not tell of its end.
    const server = await startHttp();
    await s.run([], { env: { DBBACKUP_WEBHOOK: server.url, DBBACKUP_NOTIFY_ON: 'warning' } });
    await server.close();
    expect(server.heard.map((p) => p.body).join('\n')).not.toContain('SOURCE_REPLACED');
  });

  test.skipIf(cannot('strace') !== null)('a read error is tried again in fresh processes', async () => {
    const s = scene();
    const go = join(s.home, 'go');
    const wait = `sh -c 'until [ -e ${go} ]; do sleep 0.02; done'`;
    const running = start(['run', s.source, '--to', s.to, '--before', wait, '--retries', '1', '--retry-wait', '1s', '--json']);
    await until('the hook to wait', () => running.stderr().includes('inspect'));
    // Every read of this file fails, in the processes that are there and in those that come, until the tracer goes.
    const workers = descendants(running.pid).filter((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('sqlite-worker'));
    const all = [running.pid, ...workers].flatMap((pid) => ['-p', String(pid)]);
    const disk = startCommand(['strace', '-f', '-o', '/dev/null', '-P', s.source, '-e', 'trace=pread64', '-e', 'inject=pread64:error=EIO', ...all]);
    await until('the tracer to be there', () => disk.stderr().includes(`${running.pid} attached`));
    writeFileSync(go, '');
    await until('the first attempt has failed', () => running.stderr().includes('attempt 1 of 2 failed'), 20_000);
    signalTo(disk.pid, 'SIGINT');
    await disk.result;
    const run = await running.result;
    expect([run.code, run.json.attempts, run.json.warnings?.filter((w) => w.code === 'IO_ERROR').length], run.stderr).toEqual([0, 2, 1]);
    expect(dataFiles(s.to)).toHaveLength(1);
  });

  test('what will not go away is not tried again', async () => {
    const s = scene(null);
    writeFileSync(s.source, 'no database at all, but long enough to be read');
    const run = await s.run(['--retries', '5', '--retry-wait', '1h', '--json']);
    expect([run.code, run.json.attempts, run.json.error?.code]).toEqual([1, 1, 'NOT_A_DATABASE']);
  });

  test('a signal ends the wait at once', async () => {
    const s = scene();
    const holder = await holdExclusively(s.source);
    const running = start(['run', s.source, '--to', s.to, '--retries', '1', '--retry-wait', '1h', '--json']);
    await until('it waits', () => running.stderr().includes('again in'), 20_000);
    const began = performance.now();
    process.kill(running.pid, 'SIGTERM');
    const run = await running.result;
    expect([run.code, performance.now() - began < 2000]).toEqual([143, true]);
    await holder.crash();
    expect(everything(join(s.state, 'tmp'))).toBe('');
  });

  test('the wait is within the time limit of the run', async () => {
    const s = scene();
    const holder = await holdExclusively(s.source);
    const run = await s.run(['--retries', '1', '--retry-wait', '1h', '--timeout', '7s', '--json']);
    await holder.crash();
    expect([run.code, run.json.error?.code]).toEqual([1, 'TIMEOUT']);
  });
});

describe('retries of uploads and of messages', () => {
  const stage = (run: Result, name: string): (string | undefined)[] | undefined => run.json.stages?.filter((x) => x.name === name).map((x) => x.status);

  test('what is not worth another attempt has failed all the same when the others were mended', async () => {
    const s = scene();
    // A copy beside the copies is no second copy: that will not go away. The disk that is not mounted yet will.
    const [never, disk] = [`file://${s.to}`, join(s.home, 'disk')];
    const running = start(['run', s.source, '--to', s.to, '--upload', never, '--upload', `file://${disk}`, '--retries', '2', '--retry-wait', '1s', '--json']);
    await until('the first attempt has failed', () => running.stderr().includes('attempt 1 of 3 failed'), 20_000);
    mkdirSync(disk);
    const run = await running.result;
    expect([run.code, run.json.error?.code, run.json.attempts]).toEqual([3, 'UPLOAD_FAILED', 2]);
    expect(run.json.error?.message).toContain('is no second copy');
    expect(run.json.uploads?.map((u) => [u.destination, u.status])).toEqual([
      [never, 'failed'],
      [`file://${disk}`, 'ok'],
    ]);
    expect([stage(run, 'upload'), readdirSync(disk).filter((f) => !f.startsWith('.')).length]).toEqual([['failed', 'ok'], 2]);
  });

  test('upload-timeout ends the wait, and the reason is the one that the attempt had', async () => {
    const s = scene();
    const disk = `file://${join(s.home, 'disk')}`;
    const run = await s.run(['--upload', disk, '--upload-timeout', '1s', '--retries', '5', '--retry-wait', '1h', '--json']);
    expect([run.code, run.json.error?.code, run.json.error?.stage, run.json.attempts]).toEqual([3, 'UPLOAD_FAILED', 'upload', 1]);
    expect(run.json.error?.message).toContain('Is the disk mounted');
  });

  test('a server that is not there is asked again, and a message that it takes then has been delivered', async () => {
    const s = scene();
    const gone = await startHttp();
    await gone.close();
    const env = { DBBACKUP_SLACK_WEBHOOK: `${gone.url}/x`, DBBACKUP_PING_URL: `${gone.url}/check`, DBBACKUP_NOTIFY_ON: 'success' };
    const running = start(['run', s.source, '--to', s.to, '--retries', '30', '--retry-wait', '200ms', '--json'], { env });
    await until('the first attempt has failed', () => running.stderr().includes('attempt 1 of 31 failed'), 20_000);
    const back = await startHttp(undefined, gone.port);
    const run = await running.result;
    await back.close();
    expect([run.code, run.json.status, readdirSync(join(s.state, 'outbox')).filter((f) => f.endsWith('.json'))], run.stderr).toEqual([0, 'ok', []]);
    expect(back.taken.map((p) => p.path.split('?')[0])).toEqual(['/x', '/check']);
    expect(run.json.attempts).toBeGreaterThan(1);
    // The next night has nothing to say of it.
    const quiet = await startHttp();
    await s.run([], { env: { DBBACKUP_WEBHOOK: quiet.url, DBBACKUP_NOTIFY_ON: 'warning' } });
    await quiet.close();
    expect(quiet.heard).toEqual([]);
  });

  test('one that says no is not, and one that is never there ends as without retries', async () => {
    const s = scene();
    const no = await startHttp({ answer: 404 });
    const refused = await s.run(['--retries', '3', '--retry-wait', '1h', '--json'], { env: { DBBACKUP_WEBHOOK: no.url, DBBACKUP_NOTIFY_ON: 'success' } });
    expect([refused.code, refused.json.attempts, no.heard.length]).toEqual([3, 1, 1]);
    no.behave('hang up');
    const env = { DBBACKUP_WEBHOOK: no.url, DBBACKUP_NOTIFY_ON: 'success' };
    const unheard = await s.run(['--retries', '2', '--retry-wait', '10ms', '--json'], { env });
    expect([unheard.code, unheard.json.error?.code, unheard.json.attempts]).toEqual([3, 'NOTIFY_FAILED', 3]);
    const patient = await s.run(['--retries', '2', '--retry-wait', '1h', '--timeout', '1m', '--json'], { env });
    await no.close();
    expect([patient.code, patient.json.attempts, patient.hung]).toEqual([3, 1, false]);
  });
});

describe('a command as words', () => {
  test.each([
    ['/bin/x a b', ['/bin/x', 'a', 'b']],
    ["  x 'a b'  c ", ['x', 'a b', 'c']],
    ['x "a \\"b\\" \\c" \\ d', ['x', 'a "b" \\c', ' d']],
    ["x '' $HOME `id` ; &", ['x', '', '$HOME', '`id`', ';', '&']],
  ])('%s', (raw, expected) => {
    expect(words(raw)).toEqual(expected);
  });

  test.each(['', '   ', "x 'a", 'x "a', 'x \\', "''"])('%j is refused', (raw) => {
    expect(() => words(raw)).toThrow();
  });

  test('what is quoted comes back', () => {
    fc.assert(
      fc.property(fc.array(fc.stringMatching(/^[ -~]{0,12}$/), { minLength: 1, maxLength: 6 }), (list) => {
        const all = ['prog', ...list];
        expect(words(all.map((w) => `'${w.replaceAll("'", `'\\''`)}'`).join(' '))).toEqual(all);
      }),
    );
  });
});

describe('hooks', () => {
  /** A program that writes down what it got. */
  function hook(s: Scene, name: string, code = 0): string {
    const path = join(s.home, `${name} hook.sh`);
    writeFileSync(path, `#!/bin/sh\nenv > "${s.home}/${name}.env"\ncat > "${s.home}/${name}.json"\necho "said by ${name}"\nexit ${code}\n`);
    chmodSync(path, 0o755);
    return `'${path}' '${name}'`;
  }
  const recordOf = (s: Scene, name: string): RunRecord => JSON.parse(readFileSync(join(s.home, `${name}.json`), 'utf8')) as RunRecord;

  test('before and after a run, with the record, the name and the status, and none of our secrets', async () => {
    const s = scene();
    const secret = 'canary-of-the-mail-password';
    const env = { DBBACKUP_MAIL_TO: 'a@example.org', DBBACKUP_SMTP_URL: `smtp://u:${secret}@127.0.0.1:9`, AWS_SECRET_ACCESS_KEY: 'canary-of-s3' };
    const run = await s.run(['--before', hook(s, 'before'), '--after', hook(s, 'after'), '--on-failure', hook(s, 'bad'), '--json'], { env });
    expect(run.code, run.stderr).toBe(0);
    expect([recordOf(s, 'before').status, recordOf(s, 'after').status, existsSync(join(s.home, 'bad.json'))]).toEqual(['running', 'ok', false]);
    expect(recordOf(s, 'after').copy?.file).toBe(run.json.copy?.file);
    const got = readFileSync(join(s.home, 'after.env'), 'utf8');
    for (const line of [`DBB_RUN_ID=${run.json.runId}`, 'DBB_NAME=app', 'DBB_STATUS=ok']) expect(got.split('\n')).toContain(line);
    expect(got).not.toMatch(/canary|DBBACKUP_/);
    expect(everything(join(s.state, 'log'))).toContain('said by after');
  });

  test('a before that takes the database away: said at which stage it was missed', async () => {
    const s = scene();
    const run = await s.run(['--before', `rm '${s.source}'`, '--json']);
    expect([run.code, run.json.error?.code, run.json.error?.stage], run.stderr).toEqual([1, 'SOURCE_MISSING', 'inspect']);
  });

  test('what a before has loaded is in the copy, whatever the size of the database was before', async () => {
    const s = scene();
    const small = statSync(s.source).size;
    const load = join(s.home, 'load');
    // More than a damaged database would be allowed to grow by.
    writeFileSync(load, `#!/bin/sh\nsqlite3 '${s.source}' 'CREATE TABLE loaded AS SELECT zeroblob(90000000) AS x'\n`);
    chmodSync(load, 0o755);
    const run = await s.run(['--before', load, '--json']);
    expect([run.code, run.json.copy?.status], run.stderr).toEqual([0, 'good']);
    expect(run.json.copy?.sizeBytes).toBeGreaterThan(90_000_000);
    expect(run.json.source?.sizeBytes).toBeGreaterThan(small);
  });

  test('check sees whose program is not there', async () => {
    const s = scene();
    const check = async (...flags: string[]): Promise<unknown> => {
      const { code, json } = await dbbackup(['check', s.source, '--to', s.to, ...flags, '--json']);
      return [code, (json.problems ?? []).filter((p) => p.code === 'HOOK_FAILED').map((p) => p.severity)];
    };
    expect(await check('--before', 'true', '--after', '/bin/true x')).toEqual([0, []]);
    expect(await check('--before', 'no-such-program', '--after', '/nope/hook')).toEqual([1, ['critical', 'warning']]);
  });

  test('on-failure hears of a run that failed before it began', async () => {
    const { s } = await sceneWithCopy();
    renameSync(s.source, `${s.source}.gone`);
    const run = await s.run(['--on-failure', hook(s, 'bad'), '--json']);
    expect([run.code, recordOf(s, 'bad').error?.code]).toEqual([1, 'SOURCE_MISSING']);
    expect(readFileSync(join(s.home, 'bad.env'), 'utf8')).toContain('\nDBB_STATUS=failed\n');
    expect(everything(join(s.state, 'log'))).toContain('said by bad');
  });

  test('a before that fails ends the run, and on-failure hears of it', async () => {
    const s = scene();
    const run = await s.run(['--before', hook(s, 'before', 3), '--after', hook(s, 'after'), '--on-failure', hook(s, 'bad'), '--json']);
    expect([run.code, run.json.error?.code, dataFiles(s.to)]).toEqual([1, 'HOOK_FAILED', []]);
    expect(run.json.error?.message).toContain('said by before');
    expect([existsSync(join(s.home, 'after.json')), recordOf(s, 'bad').error?.code]).toEqual([false, 'HOOK_FAILED']);
  });

  test.each([
    ['fails', (s: Scene) => hook(s, 'after', 9), 'exited with 9'],
    ['is not there', () => '/nowhere/at/all', 'could not be started'],
  ])('an after that %s is a remark', async (_, command, why) => {
    const s = scene();
    const run = await s.run(['--after', command(s), '--json']);
    expect([run.code, run.json.status, run.json.warnings?.find((w) => w.code === 'HOOK_FAILED')?.message.includes(why)]).toEqual([0, 'ok', true]);
  });

  test('a hook that leaves a process behind does not hold the run; one that hangs ends at a signal', async () => {
    const s = scene();
    const run = await s.run(['--after', "sh -c 'sleep 21 & echo left'", '--json']);
    expect([run.code, run.durationMs < 20_000]).toEqual([0, true]);
    const running = start(['run', s.source, '--to', s.to, '--before', 'sleep 600', '--json']);
    await until(
      'the hook runs',
      () => existsSync(join(s.state, 'history.db')) && !running.stderr().includes('snapshot') && running.stderr().includes('inspect'),
    );
    process.kill(running.pid, 'SIGTERM');
    const ended = await running.result;
    expect(ended.code).toBe(143);
  });

  /** Nobody may have asked yet how an orphan ended. */
  const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}`) && !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));

  /** A hook whose child leaves its session and writes down its number: neither a group nor parentage leads to it. */
  function runaway(s: Scene): { words: string; pid: () => number } {
    const file = join(s.home, 'runaway.pid');
    const pid = (): number => (existsSync(file) ? Number(readFileSync(file, 'utf8')) : 0);
    return { words: `sh -c 'setsid -f sh -c "echo \\$\\$ > ${file}; exec sleep 600"; exec sleep 600'`, pid };
  }

  test('a signal ends all that a hook has started, also what has left its session', async () => {
    const s = scene();
    const { words: before, pid } = runaway(s);
    const running = start(['run', s.source, '--to', s.to, '--before', before, '--json']);
    await until('the hook is at work', () => pid() > 0);
    expect(isAlive(pid())).toBe(true);
    const began = performance.now();
    signalTo(running.pid, 'SIGTERM');
    const run = await running.result;
    expect([run.code, performance.now() - began < 2000]).toEqual([143, true]);
    await until('the runaway to be gone', () => !isAlive(pid()), 2000);
  });

  test('the time limit of a run holds for before', async () => {
    const s = scene();
    const run = await s.run(['--before', 'sleep 600', '--timeout', '1s', '--json']);
    expect([run.code, run.json.error?.code, dataFiles(s.to)]).toEqual([1, 'TIMEOUT', []]);
  });

  test.skipIf(cannot('faketime') !== null)('a hook has five minutes', async () => {
    const s = scene();
    // A hundred times as fast.
    const through = ['faketime', '-f', '+0 x100'];
    const run = await s.run(['--before', 'sleep 3600', '--json'], { through });
    expect([run.code, run.json.error?.code, run.json.error?.message]).toEqual([1, 'HOOK_FAILED', 'the hook before took longer than 5 minutes']);
    expect(run.durationMs).toBeGreaterThan(2500);
  });

  test('what a hook prints, and what it gets, holds no secret, also where the end of it is cut off', async () => {
    const s = scene();
    const secret = 'canary7of9the5webhook3address';
    const env = { DBBACKUP_WEBHOOK: `http://127.0.0.1:9/${secret}`, DBBACKUP_LOG_DIR: join(s.home, secret) };
    // 20,010 characters: where the beginning is cut off, a half of the secret could stay.
    const script = join(s.home, 'hook.sh');
    writeFileSync(script, `#!/bin/sh\ncat > ${s.home}/got\ni=0; while [ $i -lt 667 ]; do printf '%s ' "$1"; i=$((i + 1)); done; echo; echo "last $1"\n`, {
      mode: 0o755,
    });
    const run = await s.run(['--after', `${script} ${secret}`, '--upload', `file:///${secret}`, '--json'], { env });
    expect(run.json.error?.code).toBe('UPLOAD_FAILED');
    expect(readFileSync(join(s.home, 'got'), 'utf8')).toContain('***');
    expect(readFileSync(join(s.home, 'got'), 'utf8')).not.toContain('canary');
    const log = everything(join(s.home, secret));
    expect(log).toContain('last ***');
    expect(log).not.toMatch(/canary|3address/);
  });

  /** That nothing of it was lost: what the last record has is what the run says. */
  async function mustBeWrittenDown(s: Scene, run: Result): Promise<void> {
    const [last] = (await s.ask('history', ['--json', '--limit', '1'])).json.runs ?? [];
    expect([last?.runId, last?.status, last?.exitCode, last?.copy?.file]).toEqual([run.json.runId, run.json.status, run.code, run.json.copy?.file]);
  }

  test.each([
    ['before', [1, 'failed', 'HOOK_FAILED']],
    ['after', [0, 'ok', undefined]],
    ['on-failure', [1, 'failed', 'SOURCE_MISSING']],
  ] as const)('words of %s that are too long for the system: as one that is not there', async (hook, ended) => {
    const { s } = await sceneWithCopy();
    const file = join(s.home, 'long.env');
    // More than one word may have (MAX_ARG_STRLEN): Node throws E2BIG.
    writeFileSync(file, `DBBACKUP_${hook.toUpperCase().replace('-', '_')}=/bin/true ${'x'.repeat(200_000)}\n`, { mode: 0o600 });
    if (hook === 'on-failure') renameSync(s.source, `${s.source}.gone`);
    const run = await s.run(['--env-file', file, '--json']);
    expect([run.code, run.json.status, run.json.error?.code], run.stderr).toEqual(ended);
    const told = hook === 'before' ? run.json.error : run.json.warnings?.find((w) => w.code === 'HOOK_FAILED');
    expect(told?.message).toMatch(new RegExp(`^the hook ${hook} cannot be started: .*E2BIG`));
    await mustBeWrittenDown(s, run);
  });

  test.skipIf(cannot('strace') !== null)('no memory left to start one: a remark, and the run ends as ever', async () => {
    const s = scene({ journal: 'wal' });
    // The first process that a run starts is its SQLite child.
    const through = ['strace', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=clone', '-e', 'inject=clone:error=ENOMEM:when=2', '--'];
    const run = await s.run(['--after', '/bin/true', '--json'], { through });
    expect([run.code, run.json.status, run.json.warnings?.find((w) => w.code === 'HOOK_FAILED')?.message], run.stderr).toEqual([
      0,
      'ok',
      expect.stringMatching(/^the hook after cannot be started: .*ENOMEM/),
    ]);
    await mustBeWrittenDown(s, run);
  });

  test.skipIf(spawnSync('prlimit', ['--version']).status !== 0)('no descriptor left to start one with: a remark, and the run ends as ever', async () => {
    const s = scene({ journal: 'wal' });
    // With the limit right above what the run holds open, its work can be done, and three pipes cannot be had.
    for (const more of [0, 1, 2, 3]) {
      const before = ['sh', '-c', `prlimit --pid $PPID --nofile=$(($(ls /proc/$PPID/fd | wc -l) + ${more})):100`].map((word) => `'${word}'`).join(' ');
      const run = await s.run(['--json', '--before', before, '--after', '/bin/true']);
      expect(run.code, run.stderr).not.toBe(70);
      const [last] = (await s.ask('history', ['--json', '--limit', '1'])).json.runs ?? [];
      expect([last?.runId, last?.exitCode], run.stderr).toEqual([run.json.runId, run.code]);
    }
  });

  test('a run that is killed in one has a copy all the same, and whoever tells of it says so', async () => {
    const s = scene({ journal: 'wal' });
    const started = join(s.home, 'started');
    const running = start(['run', s.source, '--to', s.to, '--after', `sh -c 'touch ${started}; exec sleep 60'`]);
    await until('the hook to run', () => existsSync(started), 20_000);
    killGroup(running.pid, 'SIGKILL');
    await running.result;
    const [file = ''] = dataFiles(s.to);
    expect((await s.ask('prune', ['--name', 'app'])).code).toBe(0);
    const killed = (await s.ask('history', ['--json'])).json.runs?.find((r) => r.command === 'run');
    expect([killed?.status, killed?.copy?.file]).toEqual(['interrupted', file]);
    expect(killed?.error?.message).toContain(`its copy ${file} is there`);
  });

  test('a .env of the current directory may set none', async () => {
    const s = scene(null);
    makeDatabase(s.source);
    writeFileSync(join(s.home, '.env'), `DBBACKUP_TO=${s.to}\nDBBACKUP_BEFORE=touch ${join(s.home, 'ran')}\n`, { mode: 0o600 });
    const run = await dbbackup(['run', s.source, '--json'], { cwd: s.home });
    expect([run.code, run.json.error?.message.includes('may set no commands'), existsSync(join(s.home, 'ran'))]).toEqual([78, true, false]);
  });
});
