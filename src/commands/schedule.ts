/** `dbbackup schedule`: crontab lines and systemd units for the profiles as they are. Prints, and installs nothing. */
import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { profileNames } from '../all-profiles.js';
import type { Invocation } from '../cli.js';
import type { Context } from '../context.js';
import { HOOK_LIMIT_MS } from '../hooks.js';
import type { ExitCode, SettingsProblem, Warning } from '../outcome.js';
import { critical, describe, Failed } from '../outcome.js';
import { ROOT } from '../own-files.js';
import { SCHEMA_VERSION } from '../records.js';
import { redactor } from '../redact.js';
import type { Schedule, ScheduledProfile, Shipped, UnitFile, Wish } from '../schedule.js';
import { scheduleOf, unitValue } from '../schedule.js';
import type { Config, Loaded } from '../settings/load.js';
import { loadSettings, profileDirectories, SYSTEM_PROFILES } from '../settings/load.js';
import { printable, UNPRINTABLE } from '../settings/values.js';
import { ancestors, lstatOrNull } from '../system/files.js';
import { groupsOf, homeOf, shellWord, shutToOthers, userName } from '../system/processes.js';
import { nextElapse } from '../system/systemd.js';

/** Both in a clone and in the installed package. */
const DEPLOY = join(ROOT, 'deploy');

const HINT =
  "make one, as root: install -d /etc/dbbackup && printf 'DBBACKUP_DATABASE=/srv/app/app.db\\nDBBACKUP_TO=/var/backups/dbbackup/app\\n' > /etc/dbbackup/app.env";

interface Problems {
  readonly name: string;
  readonly problems: readonly SettingsProblem[];
}

/** Prints what to install for each profile. Exit 78 when there is none, or when one of them is of no use. */
export async function schedule(ctx: Context, invocation: Invocation): Promise<ExitCode> {
  const { output } = ctx;
  if (invocation.envFile !== null)
    throw new Failed({ code: 'USAGE', message: 'schedule takes profiles, not an --env-file', hint: `put it where profiles are: ${SYSTEM_PROFILES}/NAME.env` });
  const directories = profileDirectories(ctx.childEnv).map((d) => resolve(ctx.cwd, d));
  const names = invocation.profile === null ? profileNames(directories) : [invocation.profile];
  if (names.length === 0) {
    const message = `there is no profile in ${directories.join(' or ')}`;
    throw new Failed({ code: 'SETTINGS', problems: [{ setting: 'profile', message, origin: 'NAME.env' }], hint: HINT });
  }
  const shipped = readShipped();
  const timer = shipped.units.get('dbbackup@.timer') ?? '';
  const { calendar, randomizedDelayMs } = invocation.schedule;
  const next = await nextElapse(calendar?.systemd ?? unitValue(timer, 'OnCalendar') ?? '', ctx.childEnv, ctx.signal);
  if (next && ('refused' in next || next.at === null)) {
    const message = `--calendar: ${'refused' in next ? next.refused : 'that time never comes'}`;
    throw new Failed({ code: 'USAGE', message, hint: 'systemd.time(7) says how times are written' });
  }
  const wish: Wish = {
    executable: resolve(ctx.cwd, ctx.invocation[0] ?? ''),
    nodeDirectory: dirname(process.execPath),
    calendar,
    delayMs: randomizedDelayMs,
    machine: ctx.host,
  };

  const secrets: string[] = [];
  const looked: (ScheduledProfile | Problems)[] = [];
  for (const name of names) looked.push(await lookAt(ctx, name, directories, (loaded) => secrets.push(...loaded.secrets)));
  output.useRedactor(redactor(secrets));
  const profiles = looked.flatMap((p) => ('problems' in p ? [] : [{ profile: p, made: scheduleOf(p, wish, shipped) }]));
  const problems: Warning[] = [];
  const delay = randomizedDelayMs === null ? unitValue(timer, 'RandomizedDelaySec') : `${randomizedDelayMs / 1000}s`;
  for (const { profile, made } of profiles) {
    output.data([...words(profile, made), `# Next run: ${next?.at ? `${output.time(next.at)}; by systemd up to ${delay} later` : 'not known here'}`, '']);
  }
  for (const p of looked) {
    if (!('problems' in p)) continue;
    const failure = { code: 'SETTINGS', problems: p.problems, hint: `dbbackup check --profile ${shellWord(p.name)} shows every setting` } as const;
    output.error(failure, null);
    problems.push(critical('SETTINGS', `${p.name}: ${describe(failure).message}`));
  }
  output.document({
    schemaVersion: SCHEMA_VERSION,
    command: 'schedule',
    profiles: profiles.map(({ profile: { name, envFile, owner }, made }) => ({
      name,
      envFile,
      owner,
      prepare: made.prepare,
      crontab: made.crontab,
      units: [...made.shared, ...made.dropIns],
      nextRun: next?.at ?? null,
    })),
    problems,
  });
  return problems.length > 0 ? 78 : 0;
}

function readShipped(): Shipped {
  const directory = join(DEPLOY, 'systemd');
  const read = (path: string): string => readFileSync(path, 'utf8');
  return {
    crontab: read(join(DEPLOY, 'crontab.example')),
    units: new Map(
      readdirSync(directory)
        .sort()
        .map((file) => [file, read(join(directory, file))]),
    ),
  };
}

/**
 * A profile as its own run will see it: by the owner of its database, without anything of the present environment. So it is
 * read twice, first for the database, and then with the eyes of whom that belongs to.
 */
async function lookAt(ctx: Context, name: string, directories: readonly string[], read: (loaded: Loaded) => void): Promise<ScheduledProfile | Problems> {
  const load = async (uid: number): Promise<Loaded> => {
    const loaded = await loadSettings({
      command: 'run',
      flags: new Map(),
      env: ctx.childEnv,
      cwd: ctx.cwd,
      uid,
      profile: name,
      from: null,
      envFile: null,
      secretsLater: true,
    });
    read(loaded);
    return loaded;
  };
  const envFile = directories.map((directory) => join(directory, `${name}.env`)).find((path) => lstatOrNull(path)) ?? '';
  const wrong = (setting: string, message: string): Problems => ({ name, problems: [{ setting, message: printable(message), origin: printable(envFile) }] });
  const first = await load(uidOf(envFile) ?? ctx.identity.uid);
  const { database } = first.partial;
  const uid = database === null ? null : uidOf(database);
  if (database === null || uid === null) {
    if (first.problems.length > 0 || database === null) return { name, problems: first.problems };
    return wrong('database', `there is no file at ${database}, so it is not known whose it is`);
  }
  const { config, problems } = await load(uid);
  if (!config) return { name, problems };
  const owner = userName(uid);
  if (owner.startsWith("'#")) return wrong('database', `${database} belongs to uid ${uid}, and no user has it: neither cron nor systemd could run as it`);
  // cron and systemd each have their own mind about these.
  if (UNPRINTABLE.test(envFile) || envFile.includes('\\'))
    return wrong('profile', `${envFile} holds a backslash, control or bidirectional characters: give it another place`);
  const closed = closedTo(envFile, uid);
  if (closed !== null)
    return wrong(
      'env-file',
      `${closed} cannot be read by ${owner}, who the run has to be: ${closed === realpathSync(envFile) ? shutToOthers(closed, 0, uid) : `chmod o+x ${shellWord(closed)}`}`,
    );
  const theirs = uidOf(config.to);
  if (theirs !== null && theirs !== uid)
    return wrong(
      'to',
      `${config.to} belongs to ${userName(theirs)}, and the run has to be ${owner}, whose the database is: chown ${owner} it (as root), or give another one`,
    );
  return profileOf(config, { name, envFile, owner, uid, database: realpathSync(database) });
}

interface Who {
  readonly name: string;
  readonly envFile: string;
  readonly owner: string;
  readonly uid: number;
  readonly database: string;
}

function profileOf(config: Config, { name, envFile, owner, uid, database }: Who): ScheduledProfile {
  const home = homeOf(uid);
  const directory = dirname(envFile);
  const found = directory === SYSTEM_PROFILES || (home !== null && directory === join(home, '.config/dbbackup'));
  const uploads = config.upload.to.flatMap((url) => (url.kind === 'directory' ? [url.path] : []));
  const write = (path: string, ours: boolean): ScheduledProfile['writes'][number] => ({ path, ours, there: lstatOrNull(path) !== null });
  const below = (path: string): boolean => path.startsWith(`${config.to}/`);
  const hooks = [config.hooks.after, config.hooks['on-failure']].filter((words) => words !== null).length;
  const own = [config.stateDir, config.logDir].filter((path) => !below(path));
  return {
    name,
    envFile,
    configHome: found ? null : dirname(directory),
    owner,
    database,
    to: config.to,
    writes: [
      write(dirname(database), false),
      ...[config.to, ...own].map((path) => write(path, true)),
      ...[...uploads, ...(config.metricsFile === null ? [] : [dirname(config.metricsFile)])].map((path) => write(path, false)),
    ],
    bySendmail: config.telling.mail?.route.kind === 'sendmail',
    longestMs: {
      // Each destination has its own; so have the hooks that come after.
      run: config.timeoutMs + config.upload.to.length * config.upload.timeoutMs + hooks * HOOK_LIMIT_MS,
      verify: config.timeoutMs,
    },
  };
}

function uidOf(path: string): number | null {
  try {
    return statSync(path).uid;
  } catch {
    return null;
  }
}

/** What on the way to a file, itself included, this user certainly cannot pass; null: nothing. A group that is not known here gets the benefit of the doubt. */
function closedTo(path: string, uid: number): string | null {
  if (uid === 0) return null;
  const real = realpathSync(path);
  const groups = groupsOf(uid);
  for (const at of ancestors(real)) {
    const { uid: owner, gid, mode } = statSync(at);
    const bits = at === real ? 0o4 : 0o1;
    const shift = owner === uid ? 6 : groups.own.has(gid) ? 3 : 0;
    const doubt = shift === 0 && !groups.known.has(gid) && mode & (bits << 3);
    if (!(mode & (bits << shift)) && !doubt) return at;
  }
  return null;
}

/** What to do, so that it can be read from top to bottom and pasted. */
function words({ name, envFile, owner, database, to, bySendmail }: ScheduledProfile, made: Schedule): string[] {
  const units = join(DEPLOY, 'systemd');
  return [
    `# ${name}: ${envFile}`,
    `# ${database}, which belongs to ${owner}, into ${to}`,
    ...(made.prepare.length > 0 ? ['# Before all else, as root:', ...made.prepare] : []),
    '#',
    `# With cron: these lines go into the crontab of ${owner} (crontab -u ${owner} -e)`,
    ...made.crontab,
    '#',
    '# Or with systemd: the shipped units, once for all profiles,',
    ...(bySendmail ? ['# (no mail leaves from them by sendmail: give smtp-url a server, such as smtp://localhost)'] : []),
    `install -m 644 ${shellWord(units)}/dbbackup*@.* ${dirname(made.shared[0]?.path ?? '')}/`,
    '# and beside them:',
    ...grouped(made.dropIns).flatMap(({ paths, text }) => [...paths.map((path) => `# --- ${path}`), ...text.trimEnd().split('\n')]),
    '# --- then',
    `systemctl daemon-reload && systemctl enable --now ${made.timers.join(' ')}`,
  ];
}

/** Files of the same text once. */
function grouped(files: readonly UnitFile[]): { readonly paths: string[]; readonly text: string }[] {
  const groups = new Map<string, string[]>();
  for (const { path, text } of files) groups.set(text, [...(groups.get(text) ?? []), path]);
  return [...groups].map(([text, paths]) => ({ paths, text }));
}
