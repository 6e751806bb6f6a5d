/** Trying again, and the operator's own commands around a run. */
import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { RunRecord } from '../../src/records.js';
import { waitBefore } from '../../src/retry.js';
import { words } from '../../src/settings/values.js';
import { dbbackup, holdExclusively, makeDatabase, start, until } from '../support/cli.js';
import { dataFiles, everything, type Scene, scene } from './scene.js';

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

  test('a .env of the current directory may set none', async () => {
    const s = scene(null);
    makeDatabase(s.source);
    writeFileSync(join(s.home, '.env'), `DBBACKUP_TO=${s.to}\nDBBACKUP_BEFORE=touch ${join(s.home, 'ran')}\n`, { mode: 0o600 });
    const run = await dbbackup(['run', s.source, '--json'], { cwd: s.home });
    expect([run.code, run.json.error?.message.includes('may set no commands'), existsSync(join(s.home, 'ran'))]).toEqual([78, true, false]);
  });
});
