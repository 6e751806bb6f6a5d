/** What schedule makes of a profile, and that cron and systemd read a --calendar in the same way. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Schedule, ScheduledProfile, Shipped, Wish } from '../../src/schedule.js';
import { calendar, scheduleOf, unitValue } from '../../src/schedule.js';
import { cannot, ROOT } from '../support/cli.js';

const noSystemd = cannot('systemd');
if (noSystemd) console.log(`skipped: ${noSystemd}`);

const read = (file: string): string => readFileSync(join(ROOT, 'deploy', file), 'utf8');
const SHIPPED: Shipped = {
  crontab: read('crontab.example'),
  units: new Map(readdirSync(join(ROOT, 'deploy/systemd')).map((file) => [file, read(`systemd/${file}`)])),
};
const JOBS = SHIPPED.crontab.split('\n').filter((line) => /^\d/.test(line));

const PROFILE: ScheduledProfile = {
  bySendmail: false,
  name: 'app',
  envFile: '/etc/dbbackup/app.env',
  configHome: null,
  owner: 'www-data',
  database: '/srv/app/app.db',
  to: '/var/backups/dbbackup/app',
  writes: [
    { path: '/srv/app', there: true, ours: false },
    { path: '/var/backups/dbbackup/app', there: true, ours: true },
  ],
  longestMs: { run: 7_200_000, verify: 7_200_000 },
};
const WISH: Wish = { executable: '/usr/local/bin/dbbackup', nodeDirectory: '/usr/local/bin', calendar: null, delayMs: null, machine: 'db1' };

const made = (profile: Partial<ScheduledProfile> = {}, wish: Partial<Wish> = {}): Schedule =>
  scheduleOf({ ...PROFILE, ...profile }, { ...WISH, ...wish }, SHIPPED);
const dropIn = (schedule: Schedule, unit: string): string[] =>
  schedule.dropIns
    .find(({ path }) => path.startsWith(`/etc/systemd/system/${unit}.d/`))
    ?.text.trimEnd()
    .split('\n') ?? [];
const SERVICES = ['dbbackup', 'dbbackup-verify', 'dbbackup-status', 'dbbackup-failure'];

describe('crontab lines', () => {
  test("are those of crontab.example, with a PATH of their own and the profile's name", () => {
    expect(JOBS).toHaveLength(3);
    expect(made({ name: 'shop' }).crontab).toEqual(
      JOBS.map((line) =>
        line.replace('/usr/local/bin/dbbackup', 'PATH=/usr/local/bin:/usr/bin:/bin /usr/local/bin/dbbackup').replace('--profile app', '--profile shop'),
      ),
    );
  });

  test('take the time for the run alone', () => {
    const [run, ...others] = made({}, { calendar: calendar('Mon..Fri 22:30') }).crontab;
    expect(run).toMatch(/^30 22 \* \* 1-5 PATH=\S+ \S+ run --profile app --quiet$/);
    expect(others).toEqual(made().crontab.slice(1));
  });

  test('wait for a part of the delay: always the same for a profile on a machine', () => {
    const sleepOf = (name: string, machine: string, delayMs = 1_200_000): number => {
      const [run, ...others] = made({ name }, { machine, delayMs }).crontab;
      for (const line of others) expect(line).not.toContain('sleep');
      return Number(/^17 3 \* \* \* sleep (\d+); PATH=/.exec(run ?? '')?.[1] ?? 0);
    };
    const sleeps = Array.from({ length: 50 }, (_, i) => sleepOf(`app${i}`, 'db1'));
    expect(Math.max(...sleeps)).toBeLessThanOrEqual(1200);
    expect(new Set(sleeps).size).toBeGreaterThan(40);
    expect(sleepOf('app1', 'db1')).toBe(sleeps[1]);
    expect(sleepOf('app1', 'db2')).not.toBe(sleeps[1]);
    expect(made({}, { delayMs: 0 }).crontab).toEqual(made().crontab);
  });

  test('quote what a shell would take apart, and escape % for cron', () => {
    const [run] = made({ configHome: "/srv/it's 100%" }, { executable: '/opt/a b/dbbackup', nodeDirectory: '/opt/node%20/bin' }).crontab;
    expect(run).toBe(
      "17 3 * * * PATH=/opt/node\\%20/bin:/usr/local/bin:/usr/bin:/bin XDG_CONFIG_HOME='/srv/it'\\''s 100\\%' '/opt/a b/dbbackup' run --profile app --quiet",
    );
  });
});

describe('units', () => {
  test('are the shipped ones, word for word, without the example', () => {
    const { shared } = made();
    expect(shared.map(({ path }) => path).sort()).toEqual(
      [...SERVICES.map((s) => `${s}@.service`), 'dbbackup@.timer', 'dbbackup-verify@.timer', 'dbbackup-status@.timer']
        .map((f) => `/etc/systemd/system/${f}`)
        .sort(),
    );
    for (const { path, text } of shared) expect(text).toBe(read(path.replace('/etc/systemd/system', 'systemd')));
    expect(made().timers.toSorted()).toEqual(['dbbackup-status@app.timer', 'dbbackup-verify@app.timer', 'dbbackup@app.timer']);
  });

  test('are made a profile by a drop-in for each service: its owner, and what it writes', () => {
    const schedule = made();
    expect(schedule.dropIns.map(({ path }) => path).sort()).toEqual(SERVICES.map((s) => `/etc/systemd/system/${s}@app.service.d/owner.conf`).sort());
    for (const service of SERVICES) {
      expect(dropIn(schedule, `${service}@app.service`)).toEqual([
        '# The profile app: /etc/dbbackup/app.env',
        // The others have to speak when a disk is missing.
        ...(['dbbackup', 'dbbackup-verify'].includes(service)
          ? ['[Unit]', 'RequiresMountsFor=/srv/app', 'RequiresMountsFor=/var/backups/dbbackup/app', '']
          : []),
        '[Service]',
        'User=www-data',
        'ReadWritePaths=-/srv/app',
        'ReadWritePaths=-/var/backups/dbbackup/app',
      ]);
    }
    expect(schedule.prepare).toEqual([]);
  });

  test('a directory that dbbackup would make has to be there first; none keeps a unit from starting', () => {
    const schedule = made({
      writes: [
        { path: '/srv/app', there: true, ours: false },
        { path: '/srv/app/backups', there: false, ours: true },
        { path: '/mnt/state dir', there: false, ours: true },
        { path: '/mnt/disk', there: false, ours: false },
        { path: '/mnt/disk', there: false, ours: false },
      ],
    });
    expect(schedule.prepare).toEqual(['install -d -o www-data -m 700 /srv/app/backups', "install -d -o www-data -m 700 '/mnt/state dir'"]);
    expect(dropIn(schedule, 'dbbackup@app.service').filter((line) => line.startsWith('ReadWritePaths='))).toEqual([
      'ReadWritePaths=-/srv/app',
      'ReadWritePaths="-/mnt/state dir"',
      'ReadWritePaths=-/mnt/disk',
    ]);
  });

  test('have time and delay in a drop-in of the timer of the run, and only where they were asked for', () => {
    expect(made().dropIns.filter(({ path }) => path.includes('.timer'))).toEqual([]);
    const both = made({}, { calendar: calendar('*:0/30'), delayMs: 90_000 });
    expect(both.dropIns.filter(({ path }) => path.includes('.timer'))).toEqual([
      { path: '/etc/systemd/system/dbbackup@app.timer.d/schedule.conf', text: '[Timer]\nOnCalendar=\nOnCalendar=*:0/30\nRandomizedDelaySec=90s\n' },
    ]);
    expect(dropIn(made({}, { delayMs: 0 }), 'dbbackup@app.timer')).toEqual(['[Timer]', 'RandomizedDelaySec=0s']);
  });

  test('get as much time as the profile may take, uploads included', () => {
    const schedule = made({ longestMs: { run: 8 * 3_600_000, verify: 7_200_000 } });
    expect(dropIn(schedule, 'dbbackup@app.service')).toContain('TimeoutStartSec=29400s');
    for (const service of SERVICES.slice(1)) expect(dropIn(schedule, `${service}@app.service`).join()).not.toContain('TimeoutStartSec');
  });

  test('call the command where it is, with node in the PATH, with their profile and their own /tmp', () => {
    const schedule = made({ configHome: '/tmp/x' }, { executable: '/opt/a "b" 100%/dbbackup', nodeDirectory: '/opt/node/bin' });
    const verify = dropIn(schedule, 'dbbackup-verify@app.service');
    expect(verify.slice(verify.indexOf('User=www-data') + 3)).toEqual([
      'Environment=PATH=/opt/node/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      'Environment=XDG_CONFIG_HOME=/tmp/x',
      'ExecStart=',
      'ExecStart="/opt/a \\"b\\" 100%%/dbbackup" verify --profile %i --all --max-time 1h',
    ]);
    expect(dropIn(made({ to: '/tmp/b', writes: [{ path: '/tmp/b', there: true, ours: true }] }), 'dbbackup@app.service')).toContain('PrivateTmp=no');
    expect(dropIn(made({ to: '/tmpfs/b' }), 'dbbackup@app.service')).not.toContain('PrivateTmp=no');
  });
});

/** Expressions, and the five fields that say the same. */
const SAME = [
  ['*-*-* 03:17', '17 3 * * *'],
  ['03:17:00', '17 3 * * *'],
  ['*:*', '* * * * *'],
  ['*:0/15', '0-59/15 * * * *'],
  ['*:5/20', '5-59/20 * * * *'],
  ['8..18/2:30', '30 8-18/2 * * *'],
  ['Mon..Fri 22:30', '30 22 * * 1-5'],
  ['sat,Sunday 04:05', '5 4 * * 6,7'],
  ['Sun *-*-* 04:41', '41 4 * * 7'],
  ['*-*-01 00:30', '30 0 1 * *'],
  ['*-1/3-15,31 6:00', '0 6 15,31 1-12/3 *'],
  ['02-29 1:02', '2 1 29 2 *'],
  ['minutely', '* * * * *'],
  ['hourly', '0 * * * *'],
  ['Daily', '0 0 * * *'],
  ['weekly', '0 0 * * 1'],
  ['monthly', '0 0 1 * *'],
  ['quarterly', '0 0 1 1,4,7,10 *'],
  ['semiannually', '0 0 1 1,7 *'],
  ['yearly', '0 0 1 1 *'],
  ['Mon', '0 0 * * 1'],
  ['*-*-1/10 12:00', '0 12 1-31/10 * *'],
  ['0/6:20', '20 0-23/6 * * *'],
] as const;

/** The minutes (UTC) after `from` at which cron would start a line, as crontab(5) says. */
function cronTimes(cron: string, from: number, n: number): string[] {
  const sets = cron.split(' ').map((field, i) => {
    const [least, most] = (
      [
        [0, 59],
        [0, 23],
        [1, 31],
        [1, 12],
        [0, 7],
      ] as const
    )[i] ?? [0, 0];
    const set = new Set<number>();
    for (const part of field.split(',')) {
      const [range = '', step = '1'] = part.split('/');
      const [first, last = first] = range === '*' ? [least, most] : range.split('-').map(Number);
      for (let v = first ?? 0; v <= (last ?? 0); v += Number(step)) set.add(i === 4 ? v % 7 : v);
    }
    return set;
  });
  const found: string[] = [];
  for (let at = from + 60_000; found.length < n && at < from + 5 * 366 * 86_400_000; at += 60_000) {
    const t = new Date(at);
    const parts = [t.getUTCMinutes(), t.getUTCHours(), t.getUTCDate(), t.getUTCMonth() + 1, t.getUTCDay()];
    if (parts.every((part, i) => sets[i]?.has(part))) found.push(t.toISOString().slice(0, 16).replace('T', ' '));
  }
  return found;
}

describe('a calendar', () => {
  test.each(SAME)('%s is %s to cron', (text, cron) => {
    expect(calendar(text).cron).toBe(cron);
    expect(calendar(`  ${text.replace(' ', '   ')} `)).toEqual({ systemd: text, cron });
  });

  test.skipIf(noSystemd).each(SAME)('%s means the same to systemd as %s to cron (needs systemd-analyze)', (text, cron) => {
    const from = '2027-01-30 21:03';
    const args = ['calendar', '--iterations=4', `--base-time=${from}:00 UTC`, text];
    const { status, stdout } = spawnSync('systemd-analyze', args, { encoding: 'utf8', env: { ...process.env, TZ: 'UTC', LC_ALL: 'C' } });
    expect(status).toBe(0);
    const elapses = [...stdout.matchAll(/^ *(?:Next elapse|Iter(?:ation|\.) #\d+): \w+ (\S+ \S+):00 UTC$/gm)].map(([, at]) => at);
    const expected = cronTimes(cron, Date.parse(`${from}Z`), 4);
    expect(expected.length).toBeGreaterThan(0);
    expect(elapses.slice(0, expected.length)).toEqual(expected);
  });

  test('of the shipped timer is that of the shipped crontab line', () => {
    for (const [timer, verb] of [
      ['dbbackup', 'run'],
      ['dbbackup-verify', 'verify'],
    ]) {
      const { cron } = calendar(unitValue(read(`systemd/${timer}@.timer`), 'OnCalendar') ?? '');
      const line = JOBS.find((job) => job.includes(` ${verb} `)) ?? '';
      expect(line.startsWith(`${cron.replace(/7$/, '0')} /`), line).toBe(true);
    }
  });

  test.each([
    ['', /must be a time like/],
    ['3:17 tomorrow maybe', /time zone|must be/],
    ['17 3 * * *', /must be a time like/],
    ['@daily', /must be a time like/],
    ['often', /has "often" where a weekday/],
    ['Mon..Noday 3:17', /has "Noday"/],
    ['Fri..Mon 3:17', /ends before it begins/],
    ['24:00', /has 24 where 0 to 23/],
    ['3:60', /has 60 where 0 to 59/],
    ['*-13-01', /has 13 where 1 to 12/],
    ['*-*-0', /has 0 where 1 to 31/],
    ['22..6:00', /ends before it begins/],
    ['*:0/0', /no crontab can say/],
    ['*:*..5', /no crontab can say/],
    ['*-*-*/10', /systemd does not know: write 1\/10/],
    ['*/6:20', /systemd does not know: write 0\/6/],
    ['*-*~1', /no crontab can say/],
    ['3:17:30', /names seconds/],
    ['*:*:0/10', /names seconds/],
    ['2027-01-01', /names a year/],
    ['Mon *-*-1..7 3:17', /days of the week and of the month/],
    ['3:17 UTC', /names a time zone.*leave out UTC/],
    ['3:17 Europe/Berlin', /names a time zone/],
    ['1:2:0:0', /too many/],
    ['1-2-3-4', /too many/],
  ])('%j is refused, and why', (text, why) => {
    expect(() => calendar(text)).toThrow(why);
  });
});
