/**
 * How a profile gets its turn: crontab lines and systemd units for it, as text. Pure. What is the same for all profiles is
 * taken from the files in deploy/; what differs (owner, paths, time) is put in, for systemd as drop-ins beside the shipped units.
 */
import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import { shellWord } from './system/processes.js';

/** A time that cron and systemd both understand. */
export interface Calendar {
  /** As in OnCalendar=. */
  readonly systemd: string;
  /** The five fields of a crontab line. */
  readonly cron: string;
}

/** The files of deploy/: the crontab, and the units by file name. */
export interface Shipped {
  readonly crontab: string;
  readonly units: ReadonlyMap<string, string>;
}

/** What the lines and units of a profile depend on. Paths absolute. */
export interface ScheduledProfile {
  readonly name: string;
  readonly envFile: string;
  /** What XDG_CONFIG_HOME has to be, so that the owner finds the profile; null: it is found without. */
  readonly configHome: string | null;
  /** The name of the user whom the database belongs to. */
  readonly owner: string;
  readonly database: string;
  readonly to: string;
  /** Directories that a run writes to. `there`: whether it exists. `ours`: dbbackup makes it, or would. */
  readonly writes: readonly { readonly path: string; readonly there: boolean; readonly ours: boolean }[];
  /** Mail goes by the sendmail program, which the shipped units do not let change its user. */
  readonly bySendmail: boolean;
  /** How long a run may take, and a verify. Milliseconds. */
  readonly longestMs: { readonly run: number; readonly verify: number };
}

/** Where dbbackup is, and what was asked for. */
export interface Wish {
  /** Absolute path of the command. */
  readonly executable: string;
  /** Absolute path of the directory of node. */
  readonly nodeDirectory: string;
  /** Null: as shipped. */
  readonly calendar: Calendar | null;
  /** Null: as shipped. Milliseconds. */
  readonly delayMs: number | null;
  /** The same on every call on one machine, another one elsewhere: its name. */
  readonly machine: string;
}

/** A file and where it goes. */
export interface UnitFile {
  readonly path: string;
  readonly text: string;
}

export interface Schedule {
  /** Commands for root, to be given once beforehand. */
  readonly prepare: readonly string[];
  readonly crontab: readonly string[];
  /** The shipped units, the same for every profile. */
  readonly shared: readonly UnitFile[];
  /** What makes them this profile's. */
  readonly dropIns: readonly UnitFile[];
  /** What to enable. */
  readonly timers: readonly string[];
}

/** Where deploy/ expects the command. */
const INSTALLED = '/usr/local/bin/dbbackup';
const UNIT_DIRECTORY = '/etc/systemd/system';
/** As in crontab.example. */
const CRON_PATH = ['/usr/local/bin', '/usr/bin', '/bin'];
/** Where systemd looks without being told. */
const SYSTEMD_PATH = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
/** How long the shipped units let a run take, less the time it needs to end itself. */
const SHIPPED_LONGEST_MS = 2 * 3_600_000;
const TO_END_ITSELF_MS = 600_000;

/** The lines and units of one profile. */
export function scheduleOf(profile: ScheduledProfile, wish: Wish, shipped: Shipped): Schedule {
  const names = [...shipped.units.keys()].filter((file) => file.includes('@.'));
  return {
    prepare: profile.writes.filter((w) => w.ours && !w.there).map((w) => `install -d -o ${profile.owner} -m 700 ${shellWord(w.path)}`),
    crontab: crontabOf(profile, wish, shipped.crontab),
    shared: names.map((file) => ({ path: join(UNIT_DIRECTORY, file), text: shipped.units.get(file) ?? '' })),
    dropIns: names.flatMap((file) => dropIn(file, profile, wish, shipped.units.get(file) ?? '')),
    timers: names.filter((file) => file.endsWith('.timer')).map((file) => file.replace('@', `@${profile.name}`)),
  };
}

/** The value of a unit's setting, or null. */
export const unitValue = (text: string, key: string): string | null =>
  text
    .split('\n')
    .find((line) => line.startsWith(`${key}=`))
    ?.slice(key.length + 1) ?? null;

const JOB = /^(\S+ \S+ \S+ \S+ \S+) \/usr\/local\/bin\/dbbackup (\w+) --profile app\b(.*)$/;

/** Each job line of the example, made this profile's. cron knows next to no environment, so a line brings its own. */
function crontabOf(profile: ScheduledProfile, wish: Wish, example: string): string[] {
  const path = [...new Set([wish.nodeDirectory, ...CRON_PATH])].sort((a, b) => order(CRON_PATH, a) - order(CRON_PATH, b));
  const before = [`PATH=${shellWord(path.join(':'))}`, ...(profile.configHome === null ? [] : [`XDG_CONFIG_HOME=${shellWord(profile.configHome)}`])];
  return example.split('\n').flatMap((line) => {
    const [, when, verb, rest] = JOB.exec(line) ?? [];
    if (when === undefined || verb === undefined) return [];
    const delay = verb === 'run' ? delayOf(profile, wish) : 0;
    const command = `${delay > 0 ? `sleep ${delay}; ` : ''}${before.join(' ')} ${shellWord(wish.executable)} ${verb} --profile ${profile.name}${rest}`;
    // cron makes a new line of a bare %, also inside quotes.
    return [`${verb === 'run' && wish.calendar ? wish.calendar.cron : when} ${command.replaceAll('%', '\\%')}`];
  });
}

/** A directory that is not among the usual ones goes first: there is another node in one of those, perhaps. */
const order = (usual: readonly string[], path: string): number => usual.indexOf(path);

/** Seconds: what FixedRandomDelay= is to systemd, another one for each machine and profile, and always the same. */
function delayOf({ name }: ScheduledProfile, { delayMs, machine }: Wish): number {
  const most = Math.floor((delayMs ?? 0) / 1000);
  return createHash('sha256').update(`${machine}\0${name}`).digest().readUInt32BE(0) % (most + 1);
}

function dropIn(file: string, profile: ScheduledProfile, wish: Wish, shipped: string): UnitFile[] {
  const path = (name: string): string => join(UNIT_DIRECTORY, `${file.replace('@', `@${profile.name}`)}.d`, name);
  if (file === 'dbbackup@.timer') {
    const lines = [
      ...(wish.calendar ? ['OnCalendar=', `OnCalendar=${wish.calendar.systemd}`] : []),
      ...(wish.delayMs === null ? [] : [`RandomizedDelaySec=${span(wish.delayMs)}`]),
    ];
    return lines.length === 0 ? [] : [{ path: path('schedule.conf'), text: `${['[Timer]', ...lines].join('\n')}\n` }];
  }
  return file.endsWith('.service') ? [{ path: path('owner.conf'), text: ownerConf(file, profile, wish, shipped) }] : [];
}

/** What owner.conf.example shows, filled in. */
function ownerConf(file: string, profile: ScheduledProfile, wish: Wish, shipped: string): string {
  const { owner, database, to, configHome, writes, longestMs } = profile;
  const shown = [profile.envFile, database, wish.executable, ...writes.map((w) => w.path)];
  const isRun = file === 'dbbackup@.service';
  const longest = isRun ? longestMs.run : longestMs.verify;
  const limited = (isRun || file === 'dbbackup-verify@.service') && longest > SHIPPED_LONGEST_MS;
  const exec = unitValue(shipped, 'ExecStart') ?? '';
  return `${[
    `# The profile ${profile.name}: ${profile.envFile}`,
    // Who tells that a disk is missing must not wait for it.
    ...(file === 'dbbackup@.service' || file === 'dbbackup-verify@.service'
      ? ['[Unit]', ...[...new Set([dirname(database), to])].map((p) => `RequiresMountsFor=${unitWord(p)}`), '']
      : []),
    '[Service]',
    `User=${owner}`,
    // Where a path is missing the unit would not even start, and nobody would be told: it is left to the run to speak of.
    ...outermost(writes).map((w) => `ReadWritePaths=${unitWord(`-${w.path}`)}`),
    ...(shown.some((p) => /^\/(var\/)?tmp\//.test(p)) ? ['PrivateTmp=no'] : []),
    ...(SYSTEMD_PATH.includes(wish.nodeDirectory) ? [] : [`Environment=${unitWord(`PATH=${[wish.nodeDirectory, ...SYSTEMD_PATH].join(':')}`)}`]),
    ...(configHome === null ? [] : [`Environment=${unitWord(`XDG_CONFIG_HOME=${configHome}`)}`]),
    ...(limited ? [`TimeoutStartSec=${span(longest + TO_END_ITSELF_MS)}`] : []),
    ...(wish.executable === INSTALLED ? [] : ['ExecStart=', `ExecStart=${exec.replace(INSTALLED, () => unitWord(wish.executable))}`]),
  ].join('\n')}\n`;
}

/** Without those that lie below another one. */
const outermost = (writes: ScheduledProfile['writes']): ScheduledProfile['writes'] =>
  writes.filter((w, i) => !writes.some((other, j) => w.path.startsWith(`${other.path}/`) || (j < i && other.path === w.path)));

const span = (ms: number): string => (ms % 1000 === 0 ? `${ms / 1000}s` : `${ms}ms`);

/** A word as a unit file needs it to be taken as it is: quoted where blanks or quotes are in it, % doubled. */
function unitWord(word: string): string {
  const text = word.replaceAll('%', '%%');
  return /^[\w@+=:,./%-]+$/.test(text) ? text : `"${text.replace(/["\\]/g, '\\$&')}"`;
}

const SHORTHANDS: Readonly<Record<string, string>> = {
  minutely: '*-*-* *:*',
  hourly: '*-*-* *:00',
  daily: '*-*-* 00:00',
  weekly: 'Mon *-*-* 00:00',
  monthly: '*-*-01 00:00',
  quarterly: '*-01,04,07,10-01 00:00',
  semiannually: '*-01,07-01 00:00',
  yearly: '*-01-01 00:00',
  annually: '*-01-01 00:00',
};

/**
 * Parses a time as systemd.time(7) writes it, as far as a crontab can say it too: `[WEEKDAYS] [[YEAR-]MONTH-DAY] [HOUR:MINUTE]`,
 * each part a number, `*`, a list with commas, a range with `..`, a step with `/`. Throws an Error that goes on behind the value.
 */
export function calendar(raw: string): Calendar {
  const systemd = raw.trim().replace(/\s+/g, ' ');
  const words = (SHORTHANDS[systemd.toLowerCase()] ?? systemd).split(' ');
  const weekdays = /^[A-Za-z]/.test(words[0] ?? '') ? words.shift() : undefined;
  const date = words[0]?.includes('-') ? words.shift() : undefined;
  const time = words[0]?.includes(':') ? words.shift() : undefined;
  if (words[0] !== undefined && /^[A-Z][\w/+-]*$/i.test(words[0])) throw new Error(`names a time zone, which a crontab cannot: leave out ${words[0]}`);
  if (words.length > 0 || (weekdays ?? date ?? time) === undefined) {
    throw new Error('must be a time like "*-*-* 03:17", "Mon..Fri 22:30", "*:0/15" or daily (see systemd.time(7))');
  }
  const [day = '', month = '', year = '*', ...moreDate] = (date ?? '*-*').split('-').reverse();
  const [hour = '', minute = '', second = '0', ...moreTime] = (time ?? '00:00').split(':');
  if (moreDate.length > 0 || moreTime.length > 0 || (date !== undefined && month === '')) throw new Error('has too many or too few parts in its date or time');
  if (year !== '*') throw new Error('names a year, which a crontab cannot: write *');
  if (!/^0+$/.test(second)) throw new Error('names seconds, which a crontab cannot: leave them out');
  const cron = [field(minute, 0, 59), field(hour, 0, 23), field(day, 1, 31), field(month, 1, 12), weekdays === undefined ? '*' : weekdaysOf(weekdays)];
  if (cron[2] !== '*' && cron[4] !== '*') throw new Error('names days of the week and of the month, which to a crontab means either of them: name one');
  return { systemd, cron: cron.join(' ') };
}

/** One part of a date or time as cron writes it. */
function field(text: string, least: number, most: number): string {
  const number = (digits: string): number => {
    const n = Number(digits);
    if (n < least || n > most) throw new Error(`has ${digits} where ${least} to ${most} is possible`);
    return n;
  };
  const parts = text.split(',').map((part) => {
    const [, from = '', to, step] = /^(\*|\d{1,2})(?:\.\.(\d{1,2}))?(?:\/(\d{1,2}))?$/.exec(part) ?? [];
    if (from === '' || (from === '*' && to !== undefined) || Number(step) === 0)
      throw new Error(`has "${part}", which no crontab can say: a number, *, A..B, A/STEP`);
    if (from === '*' && step !== undefined) throw new Error(`has "${part}", which systemd does not know: write ${least}/${step}`);
    if (from === '*') return '*';
    const [first, last] = [number(from), to === undefined ? null : number(to)];
    if (last !== null && last < first) throw new Error(`has the range ${part}, which ends before it begins`);
    if (step === undefined) return last === null ? `${first}` : `${first}-${last}`;
    return `${first}-${last ?? most}/${Number(step)}`;
  });
  return parts.join(',');
}

const WEEKDAYS = ['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'];

function weekdaysOf(text: string): string {
  const number = (word: string): number => {
    const n = WEEKDAYS.findIndex((day) => day === word.toLowerCase() || day.slice(0, 3) === word.toLowerCase());
    if (n < 0) throw new Error(`has "${word}" where a weekday like Mon or a word like daily is expected`);
    return n + 1;
  };
  const parts = text.split(',').map((part) => {
    const [first = 0, last, ...more] = part.split('..').map(number);
    if (more.length > 0 || (last !== undefined && last < first)) throw new Error(`has the range ${part}, which ends before it begins`);
    return last === undefined ? `${first}` : `${first}-${last}`;
  });
  return parts.join(',');
}
