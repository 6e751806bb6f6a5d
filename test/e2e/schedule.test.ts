/** What schedule prints can be used as it is: systemd finds nothing to say about the units, and cron runs the line. */
import { spawnSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  CRON,
  cannot,
  dbbackup,
  EXECUTABLE,
  makeDatabase,
  openTempDirectory,
  pathOf,
  type Result,
  type Running,
  signalTo,
  startCommand,
  until,
} from '../support/cli.js';
import { dataFiles, linesOf, tree } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

const noSystemd = cannot('systemd');
const noCron = cannot('root', 'mount', 'cron');
for (const why of [noSystemd, noCron]) if (why) console.log(`skipped: ${why}`);
const root = cannot('root') === null;

interface Document {
  readonly profiles: readonly {
    readonly name: string;
    readonly envFile: string;
    readonly owner: string;
    readonly prepare: readonly string[];
    readonly crontab: readonly string[];
    readonly units: readonly { readonly path: string; readonly text: string }[];
    readonly nextRun: string | null;
  }[];
  readonly problems: readonly { readonly code: string; readonly severity: string; readonly message: string }[];
}
const documentOf = (r: Result): Document => {
  expect(problemsIn(r.json, shapes.schedule)).toEqual([]);
  return r.json as unknown as Document;
};

interface Place {
  readonly home: string;
  /** XDG_CONFIG_HOME. */
  readonly config: string;
  readonly env: Readonly<Record<string, string>>;
  /** Writes a profile of a new database, and returns the backup directory. */
  readonly add: (name: string, more?: readonly string[], owner?: number) => string;
}

/** The directory of the profiles has a name that shells, cron and systemd all take apart, unless it is quoted. */
function place(config = "it's 100% odd"): Place {
  const home = openTempDirectory('schedule');
  const at = join(home, config);
  mkdirSync(join(at, 'dbbackup'), { recursive: true });
  for (const directory of [at, join(at, 'dbbackup')]) chmodSync(directory, 0o755);
  return {
    home,
    config: at,
    env: { XDG_CONFIG_HOME: at },
    add: (name, more = [], owner) => {
      const data = join(home, `data-${name}`);
      mkdirSync(data, { mode: 0o755 });
      makeDatabase(join(data, 'app.db'));
      if (owner !== undefined) for (const path of [data, join(data, 'app.db')]) chownSync(path, owner, owner);
      const to = join(home, `backups-${name}`);
      const envFile = join(at, `dbbackup/${name}.env`);
      writeFileSync(envFile, `DBBACKUP_DATABASE=${data}/app.db\nDBBACKUP_TO=${to}\n${more.map((line) => `${line}\n`).join('')}`);
      chmodSync(envFile, owner === undefined ? 0o600 : 0o644);
      return to;
    },
  };
}

const ask = (p: Place, more: readonly string[] = []): Promise<Result> => dbbackup(['schedule', '--json', ...more], { env: p.env });

/** A run every minute by the real cron, while the other tests do their work. */
interface Nightly {
  readonly p: Place;
  readonly to: string;
  readonly lines: readonly string[];
  readonly cron: Running;
}
let nightly: Nightly | null = null;

beforeAll(async () => {
  if (noCron) return;
  const p = place();
  const to = p.add('app');
  const { profiles } = documentOf(await ask(p, ['--calendar', 'minutely']));
  const lines = profiles[0]?.crontab ?? [];
  // The crontab of root and nothing else, a /run without the machine's own daemon, and processes that all end with it.
  const crontab = join(p.home, 'crontab');
  writeFileSync(crontab, lines.map((line) => `${line}\n`).join(''));
  const empty = join(p.home, 'empty');
  writeFileSync(empty, '');
  const inside = [
    'mount -t tmpfs tmpfs /var/spool/cron',
    'mkdir -m 1730 /var/spool/cron/crontabs',
    'install -m 600 "$1" /var/spool/cron/crontabs/root',
    'mount -t tmpfs tmpfs /etc/cron.d',
    'mount --bind "$2" /etc/crontab',
    'mount -t tmpfs tmpfs /run',
    'exec "$0" -f',
  ].join(' && ');
  const words = [
    'unshare',
    '-m',
    '--pid',
    '--fork',
    '--kill-child',
    '--mount-proc',
    '--propagation',
    'private',
    'sh',
    '-c',
    inside,
    CRON ?? '',
    crontab,
    empty,
  ];
  nightly = { p, to, lines, cron: startCommand(words, { deadlineMs: 110_000 }) };
});

afterAll(async () => {
  if (!nightly) return;
  signalTo(nightly.cron.pid, 'SIGKILL');
  await nightly.cron.result;
});

describe('schedule', () => {
  test('says where mail would not leave from the units', async () => {
    const p = place();
    p.add('app', ['DBBACKUP_MAIL_TO=ops@example.org', 'DBBACKUP_SMTP_URL=sendmail:']);
    const said = (await dbbackup(['schedule'], { env: p.env })).stdout.match(/no mail leaves from them/g) ?? [];
    expect(said).toHaveLength(1);
    const other = place();
    other.add('app', ['DBBACKUP_MAIL_TO=ops@example.org', 'DBBACKUP_SMTP_URL=smtp://localhost']);
    expect((await dbbackup(['schedule'], { env: other.env })).stdout).not.toContain('no mail leaves');
  });

  test('prints lines and units for every profile, and changes nothing', async () => {
    const p = place();
    p.add('app');
    p.add('shop');
    // Shared settings, an editor's leftover and a hidden file are no profiles.
    for (const file of ['defaults.env', 'app.env~', '.env']) writeFileSync(join(p.config, 'dbbackup', file), '');
    const before = tree(p.home);
    const r = await ask(p);
    expect([r.code, r.stderr]).toEqual([0, '']);
    expect(tree(p.home)).toEqual(before);
    const { profiles, problems } = documentOf(r);
    expect([profiles.map((one) => one.name), problems]).toEqual([['app', 'shop'], []]);
    for (const { name, envFile, owner, prepare, crontab, units } of profiles) {
      expect(envFile).toBe(join(p.config, `dbbackup/${name}.env`));
      if (root) expect(owner).toBe('root');
      expect(prepare).toEqual([`install -d -o ${owner} -m 700 ${p.home}/backups-${name}`]);
      expect(crontab).toHaveLength(3);
      for (const line of crontab) expect(line).toContain(` --profile ${name} `);
      const owned = units.filter(({ path }) => path.endsWith(`@${name}.service.d/owner.conf`));
      expect(owned).toHaveLength(4);
      for (const { text } of owned) {
        expect(linesOf(text)).toEqual(
          expect.arrayContaining([`User=${owner}`, `ReadWritePaths=-${p.home}/data-${name}`, `ReadWritePaths=-${p.home}/backups-${name}`]),
        );
      }
    }
    const text = await dbbackup(['schedule'], { env: p.env });
    expect(text.code).toBe(0);
    for (const { crontab, prepare, units } of profiles) {
      for (const line of [...crontab, ...prepare]) expect(linesOf(text.stdout)).toContain(line);
      for (const { path, text: unit } of units.filter((u) => u.path.includes('.d/'))) {
        expect(text.stdout).toContain(`# --- ${path}\n`);
        expect(text.stdout).toContain(unit);
      }
    }
    expect(text.stdout).toContain(`install -m 644 ${join(dirname(dirname(EXECUTABLE)), 'deploy/systemd')}/dbbackup*@.* /etc/systemd/system/\n`);
    expect(text.stdout).toContain('crontab -u ');
  });

  test('--profile limits it to one', async () => {
    const p = place();
    p.add('app');
    p.add('shop');
    expect(documentOf(await ask(p, ['--profile', 'shop'])).profiles.map((one) => one.name)).toEqual(['shop']);
    const none = await ask(p, ['--profile', 'nobody']);
    expect([none.code, documentOf(none).profiles, documentOf(none).problems[0]?.message]).toEqual([
      78,
      [],
      expect.stringContaining('there is no profile nobody'),
    ]);
  });

  test('without any profile says how to make one, exit 78', async () => {
    const p = place();
    const r = await ask(p);
    expect([r.code, r.json.error?.code, r.json.error?.hint]).toEqual([78, 'SETTINGS', expect.stringContaining('> /etc/dbbackup/app.env')]);
    expect(r.json.error?.message).toContain(`${p.config}/dbbackup`);
    rmSync(p.config, { recursive: true });
    expect((await ask(p)).code).toBe(78);
  });

  test('a profile that is of no use is named, and does not stop the others', async () => {
    const p = place();
    p.add('app');
    p.add('bad', ['DBBACKUP_KEEP_LOST=3']);
    p.add('gone');
    rmSync(join(p.home, 'data-gone/app.db'));
    writeFileSync(join(p.config, 'dbbackup/no name.env'), '');
    const r = await ask(p);
    expect(r.code).toBe(78);
    const { profiles, problems } = documentOf(r);
    expect(profiles.map((one) => one.name)).toEqual(['app']);
    expect(problems.map((one) => one.severity)).toEqual(['critical', 'critical', 'critical']);
    expect(problems.map((one) => one.message)).toEqual([
      expect.stringMatching(/^bad: DBBACKUP_KEEP_LOST is not a setting; did you mean DBBACKUP_KEEP_LAST\?/),
      expect.stringMatching(/^gone: there is no file at .*app\.db/),
      expect.stringMatching(/^no name: .*is no profile name/),
    ]);
    expect(linesOf(r.stderr)).toHaveLength(3);
  });

  test('sees profiles as a timer would, without the settings of the present environment, and names no secret', async () => {
    const p = place();
    p.add('app', ['DBBACKUP_MAIL_TO=ops@example.org', 'DBBACKUP_SMTP_URL=smtp://u:canary-7f3a@mail.example.org']);
    p.add('half', ['DBBACKUP_SMTP_URL=smtp://u:canary-7f3a@mail.example.org/path']);
    const r = await dbbackup(['schedule', '--json'], { env: { ...p.env, DBBACKUP_TO: '/elsewhere', DBBACKUP_NONSENSE: '1' } });
    expect(documentOf(r).profiles[0]?.prepare).toEqual([expect.stringContaining(`${p.home}/backups-app`)]);
    expect(documentOf(r).problems).toHaveLength(1);
    expect(r.stdout + r.stderr).not.toContain('canary');
  });

  test('takes a profile whose secret comes as a credential of the unit', async () => {
    const p = place();
    p.add('app', ['DBBACKUP_MAIL_TO=ops@example.org']);
    const r = await dbbackup(['schedule', '--json'], { env: p.env });
    expect([r.code, documentOf(r).problems, documentOf(r).profiles.length]).toEqual([0, [], 1]);
    // A day that no year has.
    const never = await dbbackup(['schedule', '--calendar', '*-2-30 03:00', '--json'], { env: p.env });
    expect([never.code, never.json.error?.code]).toEqual([64, 'USAGE']);
  });

  test.skipIf(!root)('runs each as the owner of its database, who has to be able to read the profile (needs root)', async () => {
    const p = place();
    p.add('app', [], 1);
    p.add('closed', [], 1);
    chmodSync(join(p.config, 'dbbackup/closed.env'), 0o600);
    p.add('own', [], 1);
    chownSync(join(p.config, 'dbbackup/own.env'), 1, 1);
    chmodSync(join(p.config, 'dbbackup/own.env'), 0o600);
    p.add('group', [], 1);
    chmodSync(join(p.config, 'dbbackup/group.env'), 0o640);
    p.add('grouped', [], 1);
    chmodSync(join(p.config, 'dbbackup/grouped.env'), 0o640);
    chownSync(join(p.config, 'dbbackup/grouped.env'), 0, 1);
    p.add('shared', [], 1);
    chmodSync(join(p.config, 'dbbackup/shared.env'), 0o660);
    chownSync(join(p.config, 'dbbackup/shared.env'), 1, 1);
    mkdirSync(p.add('theirs', [], 1));
    p.add('nobody', [], 54_321);
    const { profiles, problems } = documentOf(await ask(p));
    expect(profiles.map(({ name, owner, prepare }) => [name, owner, prepare.length])).toEqual([
      ['app', 'daemon', 1],
      ['grouped', 'daemon', 1],
      ['own', 'daemon', 1],
      ['shared', 'daemon', 1],
    ]);
    expect(profiles[0]?.units.filter(({ text }) => text.includes('\nUser=daemon\n'))).toHaveLength(4);
    expect(problems.map((one) => one.message)).toEqual([
      expect.stringMatching(/^closed: .*closed\.env cannot be read by daemon/),
      expect.stringMatching(
        /^group: .*group\.env cannot be read by daemon, who the run has to be: as root: chgrp "\$\(id -gn daemon\)" .*group\.env.* && chmod 640/,
      ),
      expect.stringMatching(/^nobody: .*belongs to uid 54321, and no user has it/),
      expect.stringMatching(/^theirs: .*backups-theirs belongs to root, and the run has to be daemon, whose the database is: chown daemon/),
    ]);
  });

  test.skipIf(noSystemd)('says when it would run next (needs systemd-analyze)', async () => {
    const p = place();
    p.add('app');
    const next = async (...more: string[]): Promise<number> => Date.parse(documentOf(await ask(p, more)).profiles[0]?.nextRun ?? '');
    const before = Date.now();
    const minute = await next('--calendar', 'minutely');
    expect(minute % 60_000).toBe(0);
    expect(minute).toBeGreaterThan(before);
    expect(minute).toBeLessThanOrEqual(Date.now() + 60_000);
    // In the time zone of the machine, whatever the caller's is.
    const [plain, elsewhere] = [
      await next(),
      Date.parse(documentOf(await dbbackup(['schedule', '--json'], { env: { ...p.env, TZ: 'Asia/Tokyo' } })).profiles[0]?.nextRun ?? ''),
    ];
    expect(elsewhere).toBe(plain);
    expect((await dbbackup(['schedule'], { env: p.env })).stdout).toMatch(/^# Next run: \d{4}-\S+.*; by systemd up to 20min later$/m);
    // Without systemd-analyze all else is the same.
    const without = documentOf(await dbbackup(['schedule', '--json'], { env: { ...p.env, PATH: pathOf('setpriv') } })).profiles[0];
    expect(without).toEqual({ ...documentOf(await ask(p)).profiles[0], nextRun: null });
  });

  test.skipIf(noSystemd)('makes units that systemd has nothing to say about (needs systemd-analyze)', async () => {
    const p = place();
    p.add('app', [`DBBACKUP_UPLOAD=file://${p.home}/disk`, `DBBACKUP_METRICS_FILE=${p.home}/metrics dir/app.prom`, `DBBACKUP_STATE_DIR=${p.home}/state 50%`]);
    p.add('my-shop.1');
    const { profiles } = documentOf(await ask(p, ['--calendar', 'Mon..Fri 22:30', '--randomized-delay', '10m']));
    const units = join(p.home, 'units');
    for (const { path, text } of profiles.flatMap((one) => one.units)) {
      const file = join(units, path.replace('/etc/systemd/system/', ''));
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, text);
    }
    const instances = profiles.flatMap(({ name }) => [
      ...['dbbackup', 'dbbackup-verify', 'dbbackup-status', 'dbbackup-failure'].map((unit) => `${unit}@${name}.service`),
      ...['dbbackup', 'dbbackup-verify', 'dbbackup-status'].map((unit) => `${unit}@${name}.timer`),
    ]);
    const verify = (): { status: number | null; said: string } => {
      const { status, stdout, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', ...instances.map((unit) => join(units, unit))], {
        encoding: 'utf8',
      });
      return { status, said: stdout + stderr };
    };
    expect(instances).toHaveLength(14);
    expect(verify()).toEqual({ status: 0, said: '' });
    // Its silence means something: it reads the drop-ins.
    writeFileSync(join(units, 'dbbackup@app.service.d/owner.conf'), '[Service]\nUser=root\nReadWritePaths=relative\n');
    expect(verify().said).toContain('relative');
  });
});

// Last in the file: cron has had its time meanwhile. It looks at the clock once a minute.
test.skipIf(noCron)(
  'cron runs the line as it was printed (needs root and cron)',
  async () => {
    if (!nightly) throw new Error('cron was not started');
    const { p, to, lines, cron } = nightly;
    expect(lines[0]).toMatch(/^\* \* \* \* \* PATH=.* XDG_CONFIG_HOME='.*100\\% odd' .* run --profile app --quiet$/);
    const copies = async (): Promise<number> => (await dbbackup(['list', '--profile', 'app', '--json'], { env: p.env })).json.copies?.length ?? 0;
    await until('cron makes a copy', () => !cron.isRunning() || dataFiles(to).length > 0, 75_000, 100);
    expect(cron.stderr()).toBe('');
    await until(
      'the run ends',
      async () => (await dbbackup(['status', '--profile', 'app', '--json'], { env: p.env })).json.lastRun?.status === 'ok',
      20_000,
      200,
    );
    expect(await copies()).toBeGreaterThan(0);
    expect(cron.isRunning()).toBe(true);
  },
  100_000,
);
