/** What deploy/ ships works as it stands: the units load and are tight, the crontab lines make a backup where cron would run them. */
import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { cannot, EXECUTABLE, ROOT } from '../support/cli.js';
import { generate } from '../support/generator.js';

const UNITS = join(ROOT, 'deploy/systemd');
const INSTALLED = '/usr/local/bin/dbbackup';
const SERVICES = ['dbbackup', 'dbbackup-verify', 'dbbackup-status', 'dbbackup-failure'];
const TIMERS = ['dbbackup', 'dbbackup-verify', 'dbbackup-status'];

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(realpathSync(tmpdir()), 'dbbackup-deploy-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const run = (program: string, args: readonly string[], env?: NodeJS.ProcessEnv): SpawnSyncReturns<string> =>
  spawnSync(program, args, { encoding: 'utf8', cwd: directory, ...(env && { env }) });

const read = (file: string): string => readFileSync(join(ROOT, 'deploy', file), 'utf8');

/** `KEY=value` lines of a unit, comments dropped. */
const assignments = (text: string): string[] => text.split('\n').filter((line) => /^\w+=/.test(line));

/** The units as an operator installs them, for the profile `app`, with the executable where it is here. */
function install(): string[] {
  for (const file of readdirSync(UNITS)) {
    if (!file.includes('@')) continue;
    writeFileSync(join(directory, file), read(`systemd/${file}`).replaceAll(INSTALLED, EXECUTABLE));
  }
  return [...SERVICES.map((name) => `${name}@app.service`), ...TIMERS.map((name) => `${name}@app.timer`)];
}

const verify = (units: readonly string[]): SpawnSyncReturns<string> =>
  run('systemd-analyze', ['verify', '--man=no', ...units.map((unit) => join(directory, unit))]);

const systemd = spawnSync('systemd-analyze', ['--version']).status === 0;

describe.skipIf(!systemd)('the systemd units (needs systemd-analyze)', () => {
  it('load without a remark', () => {
    const { status, stdout, stderr } = verify(install());
    expect({ status, said: stdout + stderr }).toEqual({ status: 0, said: '' });
  });

  it('load without a remark with the drop-in for the owner of the database', () => {
    const units = install();
    for (const name of SERVICES) {
      mkdirSync(join(directory, `${name}@app.service.d`));
      copyFileSync(join(UNITS, 'owner.conf.example'), join(directory, `${name}@app.service.d/owner.conf`));
    }
    const { status, stdout, stderr } = verify(units);
    expect({ status, said: stdout + stderr }).toEqual({ status: 0, said: '' });
  });

  it('make systemd-analyze complain when something is wrong, so that its silence means something', () => {
    const units = install();
    writeFileSync(join(directory, 'dbbackup@.service'), `${read('systemd/dbbackup@.service')}\nNoSuchSetting=yes\n`);
    expect(verify(units).stderr).toContain('NoSuchSetting');
  });

  it.each(SERVICES)('%s@.service is exposed by at most 2.0', (name) => {
    install();
    const { status, stdout } = run('systemd-analyze', ['security', '--offline=true', '--threshold=20', '--no-pager', join(directory, `${name}@app.service`)]);
    const level = Number(/Overall exposure level for .*: ([\d.]+)/.exec(stdout)?.[1]);
    expect(level).toBeGreaterThan(0);
    expect(level).toBeLessThanOrEqual(2);
    expect(status).toBe(0);
  });

  it('are hardened alike', () => {
    const own = /^(Description|OnFailure|ExecStart|SuccessExitStatus|Timeout\w+|KillMode|OOMScoreAdjust)=/;
    const [first, ...others] = SERVICES.map((name) => assignments(read(`systemd/${name}@.service`)).filter((line) => !own.test(line)));
    for (const other of others) expect(other).toEqual(first);
  });

  it('take their settings from the profile, never from an EnvironmentFile', () => {
    for (const name of SERVICES) {
      const lines = assignments(read(`systemd/${name}@.service`));
      expect(lines.filter((line) => line.startsWith('ExecStart='))).toEqual([expect.stringMatching(/^ExecStart=\/usr\/local\/bin\/dbbackup \w+ --profile %i/)]);
      expect(lines.filter((line) => line.startsWith('Environment'))).toEqual([]);
    }
  });

  it.skipIf(cannot('strace'))('permit every system call that a run makes (needs strace)', () => {
    const allowed = permitted(assignments(read('systemd/dbbackup@.service')));
    generate(join(directory, 'app.db'), 1e6);
    const trace = join(directory, 'trace');
    const { status, stderr } = run('strace', ['-f', '-qq', '-o', trace, '--', EXECUTABLE, 'run', join(directory, 'app.db'), '--to', join(directory, 'to')]);
    expect({ status, stderr }).toMatchObject({ status: 0 });
    // A call that returned ENOSYS is one this kernel has not got: nothing to permit.
    const made = readFileSync(trace, 'utf8').matchAll(/^\d+\s+(\w+)\((?!.*ENOSYS)/gm);
    const refused = new Set([...made].map((call) => call[1] ?? '').filter((call) => !allowed.has(call)));
    expect([...refused]).toEqual([]);
  });
});

/** The system calls that a unit's SystemCallFilter= lines let through, each group spelled out by systemd itself. */
function permitted(lines: readonly string[]): Set<string> {
  const groups = new Map<string, string[]>();
  let group = '';
  for (const line of run('systemd-analyze', ['syscall-filter', '--no-pager']).stdout.split('\n')) {
    if (line.startsWith('@')) {
      group = line.trim();
      groups.set(group, []);
    } else if (/^\s+[@\w]/.test(line)) groups.get(group)?.push(line.trim());
  }
  const spelled = (name: string): string[] => (name.startsWith('@') ? (groups.get(name) ?? []).flatMap(spelled) : [name]);
  const allowed = new Set<string>();
  for (const [, not, names] of lines.map((line) => /^SystemCallFilter=(~?)(.*)$/.exec(line) ?? [])) {
    for (const call of (names ?? '').split(' ').filter(Boolean).flatMap(spelled)) {
      if (not) allowed.delete(call);
      else allowed.add(call);
    }
  }
  expect(allowed.size).toBeGreaterThan(100);
  return allowed;
}

describe('crontab.example', () => {
  const lines = read('crontab.example')
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.startsWith('#'));
  const variables = Object.fromEntries(lines.map((line) => /^([A-Z]+)=(.*)$/.exec(line)?.slice(1) ?? []).filter((pair) => pair.length === 2)) as Record<
    string,
    string
  >;
  const jobs = lines.flatMap((line) => {
    const [, minute, hour, day, month, weekday, command] = /^(\S+) (\S+) (\S+) (\S+) (\S+) (\S.*)$/.exec(line) ?? [];
    return command ? [{ when: [minute, hour, day, month, weekday], command }] : [];
  });
  const [backup, look, proof] = jobs;

  it('is made of variables and of lines of five fields and a command', () => {
    expect(Object.keys(variables)).toEqual(['SHELL', 'PATH', 'MAILTO']);
    expect(jobs).toHaveLength(3);
    expect(lines).toHaveLength(6);
    for (const { when, command } of jobs) {
      const [minute, hour, ...rest] = when;
      // At an odd minute, once a day or once a week.
      expect(Number(minute) % 2).toBe(1);
      expect(Number(minute)).toBeLessThan(60);
      expect(Number(hour)).toBeLessThan(24);
      expect(rest).toEqual(['*', '*', command === proof?.command ? '0' : '*']);
      // cron turns % into a new line.
      expect(command).not.toContain('%');
      expect(command.startsWith(`${INSTALLED} `)).toBe(true);
    }
  });

  /** As cron starts it: /bin/sh, next to no environment, no terminal, in the home directory. */
  function cron(command: string): { status: number | null; said: string } {
    const installed = join(directory, 'bin/dbbackup');
    const path = `${dirname(process.execPath)}:${variables['PATH']}`;
    const { status, stdout, stderr } = run(variables['SHELL'] ?? '', ['-c', command.replaceAll(INSTALLED, installed)], {
      SHELL: variables['SHELL'],
      PATH: path,
      HOME: directory,
      LOGNAME: 'app',
    });
    return { status, said: stdout + stderr };
  }

  beforeEach(() => {
    mkdirSync(join(directory, 'bin'));
    symlinkSync(EXECUTABLE, join(directory, 'bin/dbbackup'));
    mkdirSync(join(directory, '.config/dbbackup'), { recursive: true });
    const profile = [
      `DBBACKUP_DATABASE=${join(directory, 'app.db')}`,
      `DBBACKUP_TO=${join(directory, 'backups')}`,
      // Nobody listens there; nothing is to be sent while all is well.
      'DBBACKUP_MAIL_TO=operator@example.org',
      'DBBACKUP_SMTP_URL=smtp://127.0.0.1:9',
    ];
    writeFileSync(join(directory, '.config/dbbackup/app.env'), profile.map((line) => `${line}\n`).join(''), { mode: 0o600 });
    generate(join(directory, 'app.db'), 1e6);
  });

  it('makes a copy without a word, and finds it fresh', () => {
    expect(cron(backup?.command ?? '')).toEqual({ status: 0, said: '' });
    const copies = readdirSync(join(directory, 'backups')).filter((file) => /^app-\d{8}T\d{6}Z\.(db|json)$/.test(file));
    expect(copies).toHaveLength(2);
    expect(cron(look?.command ?? '')).toEqual({ status: 0, said: '' });
    expect(cron(proof?.command ?? '')).toEqual({ status: 0, said: '' });
  });

  it('speaks, for cron to mail it, when the database has gone', () => {
    rmSync(join(directory, 'app.db'));
    expect(cron(backup?.command ?? '')).toEqual({ status: 1, said: expect.stringContaining('SOURCE_MISSING') });
    expect(cron(look?.command ?? '')).toEqual({ status: 1, said: expect.stringContaining('COPY_NOT_FOUND') });
  });
});
