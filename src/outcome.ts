/**
 * What can come of a run: every failure is one case of `Failure`, every remark one `Warning`.
 * `describe` is the only place that turns a failure into words, `exitCodeOf` the only place that turns one
 * into an exit code. README's tables are generated from `EXIT_CODES` and `CODE_DOCS`.
 */

import { constants } from 'node:os';
import { bytes } from './format.js';
import { shellWord } from './system/processes.js';
import type { EndSignal } from './system/signals.js';

export type StageName = 'inspect' | 'snapshot' | 'verify' | 'pack' | 'publish' | 'upload' | 'restore' | 'check' | 'command' | 'rollback' | 'prune' | 'report';

/** Where copies and state lie, for a command that is to be pasted. `to` null: it is not known from here. `stateDir` null: in its usual place. */
export interface Whereabouts {
  readonly to: string | null;
  readonly stateDir: string | null;
}

/** A restore that would bring a database back. */
export interface WayBack extends Whereabouts {
  readonly copy: string;
  readonly target: string;
  readonly name: string | null;
  /** It has settings that the safety copy and the messages of that restore need as well. */
  readonly profile: string | null;
}

/** The line to paste. */
export const restoreLine = ({ copy, target, to, stateDir, name, profile }: WayBack, how: '--yes' | '--dry-run' = '--yes'): string =>
  [
    `dbbackup restore ${shellWord(copy)} --into ${shellWord(target)}`,
    ...(profile === null ? [] : [`-P ${shellWord(profile)}`]),
    ...(to === null ? [] : [`--to ${shellWord(to)}`]),
    ...(stateDir === null ? [] : [`--state-dir ${shellWord(stateDir)}`]),
    ...(name === null ? [] : [`--name ${shellWord(name)}`]),
    ...(copy.endsWith('.age') ? ['--identity-file YOUR-KEY-FILE'] : []),
    how,
  ].join(' ');

/** What a killed run was at, where that matters for what to do next. `back`: to the state before, where there is a copy of it. */
export interface Killed {
  readonly command: 'restore' | 'guard';
  /** Null: a restore that had not come to its target, or was to make a new file. */
  readonly target: string | null;
  readonly back: WayBack | null;
  /** There was no database before that could be read: none, or a damaged one. */
  readonly isUnknown?: boolean;
  /** Such a restore was to replace this database. */
  readonly untouched?: string | undefined;
  /** When an earlier one had begun that was killed with the same database in its hands and never settled: `back` leads to before that one. */
  readonly since?: string | undefined;
}

/** One problem found while settings were read: what is wrong, and which flag, variable or line said it. */
export interface SettingsProblem {
  readonly setting: string;
  readonly message: string;
  readonly origin: string;
}

/** Everything that can end a command. The fields are facts; the words are made in `describe`. */
export type Failure =
  /** No file at the configured path (or a symbolic link to nowhere). */
  | { code: 'SOURCE_MISSING'; path: string; rescue?: Rescue | null }
  /** The file is there and we may not read it. */
  | { code: 'SOURCE_UNREADABLE'; path: string; reason: string; owner: string | null }
  /** A directory, FIFO, device or socket where a database file should be. */
  | {
      code: 'SOURCE_NOT_A_FILE';
      path: string;
      kind: string;
      /** It lies beside the database. */
      beside?: boolean;
      /** The file that a link leads to. */
      leadsTo?: string | null;
    }
  /** A regular file without the SQLite header: text, encrypted, something else. */
  | { code: 'NOT_A_DATABASE'; path: string; reason: string }
  /** 0 bytes: SQLite would call it a valid, empty database. */
  | { code: 'SOURCE_EMPTY'; path: string }
  /** The source is structurally damaged. `keptAs`: the suspect copy that was kept, if it passed its own check. */
  | { code: 'SOURCE_CORRUPT'; path: string; findings: readonly string[]; keptAs: string | null }
  /** Another process holds the source exclusively. */
  | { code: 'SOURCE_LOCKED'; path: string; waitedMs: number }
  /** The application crashed in rollback-journal mode and its journal waits to be rolled back. */
  | { code: 'SOURCE_HOT_JOURNAL'; path: string }
  /** An idle WAL database in a directory that we cannot write: SQLite cannot make its `-shm`. */
  | { code: 'SOURCE_READONLY_DIRECTORY'; path: string; directory: string; owner: string; isOurs: boolean; readOnly?: boolean }
  /** Another file was renamed over the source while it was read. */
  | { code: 'SOURCE_REPLACED'; path: string }
  /** More than one name: SQLite would look for more than one `-wal`. */
  | { code: 'SOURCE_HARD_LINKED'; path: string; links: number }
  /** Opening the source would leave (or left) a `-wal` or `-shm` that its owner cannot write. */
  | { code: 'SIDECAR_OWNER'; path: string; owner: string; left: readonly string[] }
  /** SQLite could not make the snapshot for a reason that no other case names. */
  | { code: 'SNAPSHOT_FAILED'; path: string; reason: string }
  /** The copy did not pass although the source did. */
  | {
      code: 'VERIFY_FAILED';
      findings: readonly string[];
      /** The process that checked it was ended. */
      died?: boolean;
    }
  /** A copy could not be compressed or sealed. */
  | { code: 'PACK_FAILED'; reason: string }
  /** A hook failed. `output`: the last line that it printed. */
  | { code: 'HOOK_FAILED'; hook: string; how: string; output: string }
  /** Included files could not all be archived. `what`: the first of them, with reasons. */
  | { code: 'INCLUDE_FAILED'; what: readonly string[]; total: number }
  /** Destinations that did not get what they should have. `failed`: `destination: reason`. */
  | { code: 'UPLOAD_FAILED'; failed: readonly string[] }
  /** A destination could not be read. `shown`: without credentials. */
  | { code: 'REMOTE_FAILED'; shown: string; reason: string }
  /** Sealed copies, and no key that opens this one. `identity`: the file that was tried; null: none was given. */
  | { code: 'IDENTITY_MISSING'; file: string; identity: string | null }
  /** The disk is full, or would be. Bytes; null where they are not known. */
  | {
      code: 'NO_SPACE';
      path: string;
      neededBytes: number | null;
      freeBytes: number | null;
      /** The line that would make room (room.ts), or empty. */
      prune: string;
    }
  /** The source's file system ran low while the snapshot kept the WAL from being reset. Bytes. */
  | { code: 'WAL_PRESSURE'; path: string; freeBytes: number; walBytes: number }
  /** The backup directory cannot be made or written. `there`: but it is there, and its copies can perhaps be read. `state`: it is that of --state-dir. */
  | { code: 'TARGET_UNWRITABLE'; path: string; reason: string; there?: boolean; state?: boolean }
  /** The backup directory is somebody else's, or somebody else could swap it. `remedy`: what would help. */
  | { code: 'TARGET_OWNER'; path: string; reason: string; remedy: string }
  /** Copies of another database already carry this name. */
  | { code: 'NAME_TAKEN'; name: string; source: string; other: string }
  /** Another run holds the lock of this name. */
  | { code: 'LOCKED'; name: string; holder: string | null }
  /**
   * `timeout` passed. `published`: the copy made before that, if any. `rolledBack`: what became of a guarded database; `back`: the way
   * back that was not gone. `midway`: the database that a copy was just being put into. `next`: the hint, where it is no usual one.
   */
  | { code: 'TIMEOUT'; afterMs: number; published: string | null; midway?: string; rolledBack?: boolean; back?: WayBack; next?: string }
  /** A signal ended the run. SIGKILL stands for every end that the run could not tell itself: kill -9, a power cut. */
  | {
      code: 'INTERRUPTED';
      signal: EndSignal | 'SIGKILL';
      published: string | null;
      killed?: Killed;
      midway?: string;
      rolledBack?: boolean;
      back?: WayBack;
      next?: string;
    }
  /** The system refused an operation for a reason that no other case names. */
  | { code: 'IO_ERROR'; path: string; reason: string; remedy?: string }
  /** Settings that do not parse, contradict one another or are unknown: all of them at once. */
  | { code: 'SETTINGS'; problems: readonly SettingsProblem[]; hint?: string }
  /** The command line itself is wrong. */
  | { code: 'USAGE'; message: string; hint: string }
  /** No copy where one is needed. */
  | { code: 'COPY_NOT_FOUND'; path: string; reason: string; to: string; missing?: boolean }
  /** A stored copy does not prove out. */
  | {
      code: 'COPY_BAD';
      /** Nothing is wrong but that something lies beside it. */
      onlyBeside?: boolean;
      /** There is no manifest that can be read: nothing is known of it. */
      isUnknown?: boolean;
      file: string;
      problems: readonly string[];
      to: string;
      /** How many of how many, where it was more than one. */
      many?: string;
      /** The name whose other copies may be good; null: all were looked at. */
      others: string | null;
    }
  /** Something stands where a restored file would go. */
  | { code: 'TARGET_EXISTS'; path: string; reason: string; remedy?: string }
  /** The copy came from another database than the one it would replace. */
  | { code: 'OTHER_SOURCE'; file: string; source: string; target: string }
  /** Another process has the database open. `holders`: `pid (program)`. `shareable`: --shared would allow it. */
  | { code: 'IN_USE'; path: string; holders: readonly string[]; shareable?: boolean; rescue?: Rescue | null }
  /** The copy could not be put in place; `state` says what the database is now. */
  | { code: 'RESTORE_FAILED'; path: string; reason: string; state: string }
  /** A check of `guard` did not pass. `untouched`: of a scratch copy. */
  | { code: 'CHECK_FAILED'; path: string; when: 'before' | 'after'; check: string; message: string; rolledBack: boolean; untouched?: boolean; back?: WayBack }
  /** The guarded command failed. `how`: `exited with 1`, `was ended by SIGTERM`. `untouched`: it never had the database. */
  | { code: 'COMMAND_FAILED'; how: string; rolledBack: boolean; untouched?: boolean; back?: WayBack }
  /** What was to be put back could not be: a person is needed. */
  | { code: 'ROLLBACK_FAILED'; path: string; reason: string; back: WayBack; setAside: string | null }
  /** `guard --window`: not now. */
  | { code: 'OUTSIDE_WINDOW'; window: string; next: string | null }
  /** The rehearsed command changed the real database. */
  | { code: 'REHEARSAL_TOUCHED_SOURCE'; path: string }
  /** A message could not be delivered; it is kept and sent by a later run. */
  | { code: 'NOTIFY_FAILED'; reason: string; kept: boolean }
  /** A bug of ours. `remedy`: it is none of ours, and this helps. */
  | { code: 'INTERNAL'; message: string; stack: string; remedy?: string };

export type FailureCode = Failure['code'];

export type WarningCode =
  | 'CLOCK'
  | 'STATE_UNWRITABLE'
  | 'SOURCE_ROLLBACK_MODE'
  | 'SOURCE_NETWORK_FS'
  | 'SOURCE_CORRUPT'
  | 'ROWS_VIOLATE'
  | 'TABLES_UNCHECKED'
  | 'PAGE_COPY'
  | 'SYNC_UNSUPPORTED'
  | 'HEALED'
  | 'HEAL_FAILED'
  | 'COMMITS_LOST'
  | 'TARGET_NETWORK_FS'
  | 'NOTIFY_FAILED'
  | 'NOBODY_HEARS'
  | 'COPY_SHRANK'
  | 'TABLE_GONE'
  | 'TABLE_EMPTY'
  | 'DESTINATION_BEHIND'
  | 'COPIES_VANISHED'
  | 'COPIES_GONE'
  | 'SLOW_RUN'
  | 'WAL_GREW'
  | 'SPACE_LOW'
  | 'SPACE_TREND'
  | 'NOT_VERIFIED'
  | 'FILES_CHANGED'
  | 'UPLOAD_PRUNE'
  | 'MEMORY_HIGH'
  | 'NOT_SEEN'
  | 'SIDECAR_OWNER'
  | 'UNDELIVERED'
  | 'COPY_STALE'
  | 'COPY_NOT_FOUND'
  | 'COPY_UNVERIFIED'
  | 'LAST_RUN_FAILED'
  | 'LAST_RUN_DIED';

export type Severity = 'warning' | 'critical';

/** A remark that does not end the run and never changes its exit code. */
export interface Warning {
  readonly code: WarningCode | FailureCode;
  readonly severity: Severity;
  readonly message: string;
}

export const warning = (code: Warning['code'], message: string): Warning => ({ code, severity: 'warning', message });
export const critical = (code: Warning['code'], message: string): Warning => ({ code, severity: 'critical', message });

/** Thrown by a stage, caught by what runs a command from its first look to its exit code. Carries the failure as a value. */
export class Failed extends Error {
  readonly failure: Failure;
  constructor(failure: Failure, options?: { cause?: unknown }) {
    super(failure.code, options);
    this.name = 'Failed';
    this.failure = failure;
  }
}

/** The exit codes of DESIGN's table: the only numbers that `process.exitCode` is ever set to. */
export const EXIT_CODES = [
  [0, 'done, all promises hold'],
  [1, 'failed: no new good copy (`status`, `verify`, `check`: not healthy; `guard`: rolled back)'],
  [3, 'incomplete: a good new copy exists (or the work is done), a later step (prune, upload, notification) failed'],
  [4, '`guard`, `restore`: the roll-back itself failed, a person is needed now'],
  [64, 'usage error'],
  [70, 'a bug of ours; says where to report it'],
  [75, 'another run holds the lock'],
  [78, 'settings error'],
  [129, 'ended by SIGHUP within 2 s; nothing half-done is left'],
  [130, 'ended by SIGINT within 2 s; nothing half-done is left'],
  [143, 'ended by SIGTERM within 2 s; nothing half-done is left'],
] as const;

export type ExitCode = (typeof EXIT_CODES)[number][0];

export const SIGNAL_EXIT: Record<EndSignal | 'SIGKILL', ExitCode> = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143, SIGKILL: 1 };

/** The exit code of a failure. `published`: a good new copy exists, so what failed came after it. */
export function exitCodeOf(failure: Failure, published: boolean): ExitCode {
  switch (failure.code) {
    case 'LOCKED':
      return 75;
    case 'SETTINGS':
    case 'TARGET_OWNER':
      return 78;
    case 'USAGE':
      return 64;
    case 'INTERNAL':
      return 70;
    case 'INTERRUPTED':
      return SIGNAL_EXIT[failure.signal];
    case 'ROLLBACK_FAILED':
      return 4;
    default:
      return published ? 3 : 1;
  }
}

/** What to look at after the end of a restore or a guard that could not say itself what came of it. */
export function hintForKilled({ command, target, back: way, isUnknown, untouched, since }: Killed): string {
  const back = way ? restoreLine(way) : null;
  if (untouched !== undefined) return `${untouched} was not touched: run the restore again; that also clears away what it left beside it (.dbbackup-*)`;
  if (target === null)
    return 'what it was to make is there, whole, or not at all: look, and run it again if not; that also clears away what it left beside it (.dbbackup-*)';
  if (isUnknown)
    return `${target} is the new database, whole, or what was there before: nothing, or a damaged one, of which files may lie in .dbbackup/aside; run the restore again if it is not the new one`;
  if (command === 'guard' && back === null) return `the command had not begun, or it was a rehearsal: ${target} is as it was; run it again`;
  // What the later one found was what the earlier one had left.
  const before = since === undefined ? '' : ` the one that began at ${since}, which was not settled either`;
  return command === 'restore'
    ? `${target} is the old database as it was, or the new one, whole: look which, and run the restore again if it is the old one${back ? `; back to ${since === undefined ? 'the old one' : `before${before}`}: ${back}` : ''}`
    : `the command's first process was ended with it; others of it may still run (fuser ${shellWord(target)}). ${target} is as they leave it: look at it${back ? `; back to what it was before${before}: ${back}` : ''}`;
}

const some = (findings: readonly string[]): string => findings.slice(0, 3).join('; ') + (findings.length > 3 ? `; and ${findings.length - 3} more` : '');

/** `to`: a directory, or a destination. */
const placeFlag = (to: string): string => `${to.startsWith('/') ? '--to' : '--from'} ${shellWord(to)}`;

const listLine = (to: string): string => `dbbackup list ${placeFlag(to)}`;

/** Copies can be read without writing beside them: on a disk that is mounted read-only, in a directory of somebody else. */
const orReadOnly = (path: string): string => `; to verify or restore the copies that are in it, as they are: --from ${shellWord(`file://${path}`)}`;

/** What the database is after a guarded command that failed. */
function afterCommand(f: { rolledBack: boolean; untouched?: boolean; back?: WayBack }): string {
  if (f.untouched) return 'the database itself was not touched; mend the command';
  if (f.rolledBack) return 'the database was rolled back to what it was before; mend the command';
  return `the database is as the command left it${f.back ? `; ${goBack(f.back)}` : ''}`;
}

const goBack = (back: WayBack): string => `to go back to the state before: ${restoreLine(back)}`;

/** Whether the one transaction had been committed nobody knows who ended it. */
const midwayIs = (f: { midway?: string }): string => (f.midway === undefined ? '' : `; ${f.midway} is the old database or the new one, whole`);

const guardedIs = (f: { rolledBack?: boolean }): string =>
  f.rolledBack === undefined ? '' : f.rolledBack ? '; the database was rolled back to what it was before' : '; the database is as the command left it';

/** A database that was deleted and that a process still has open. */
export interface Rescue {
  /** `123 (app)`. */
  readonly holder: string;
  readonly pid: number;
  /** Commands for a shell that save it. */
  readonly lines: readonly string[];
}

/** What SQLite says of what it computes from the rows, which its versions do not all do alike: texts of real numbers, round(), tokens. */
const isComputed = (finding: string): boolean =>
  / missing from index |inverted index for FTS|checksum mismatch for table|^(TEXT|NUMERIC) value in /.test(finding);

const COMPUTED_ELSEWHERE =
  "if the application's own SQLite says ok (PRAGMA integrity_check), an index was computed by another version than the one in here, and no row is lost: copy it with that program (.backup) until the application has a newer one, then REINDEX. If not: ";

const rescueHint = ({ lines, pid }: Rescue): string =>
  `what it holds is newer than any copy, and gone when it ends: save it first (as its user or root): ${lines.join('; ')}; then end it (kill -KILL ${pid}), and restore the newest copy or put back what was saved`;

/** What happened and what to do next, each one line. The texts hold no secrets; paths are as the file system has them. */
export function describe(f: Failure): { message: string; hint: string } {
  switch (f.code) {
    case 'SOURCE_MISSING':
      return {
        message: `there is no file at ${f.path}${f.rescue ? `: it was deleted, and ${f.rescue.holder} still has it open` : ''}`,
        // What is not UTF-8 in a name arrives as this character, and cannot be said back.
        hint: f.rescue
          ? rescueHint(f.rescue)
          : f.path.includes('\ufffd')
            ? 'a part of the path that is not UTF-8 cannot be opened: give the file or the directory another name'
            : 'check the path, and that its file system is mounted; if the database is lost: dbbackup restore --into it',
      };
    case 'SOURCE_UNREADABLE':
      return {
        message: `cannot read ${f.path}: ${f.reason}`,
        hint:
          f.owner === null
            ? 'check the path and its permissions'
            : `${f.owner === 'root' ? `it belongs to root; if its application is another user, as root: chown USER ${shellWord(f.path)}; if not, ` : ''}run as its owner, into a backup directory of that user: sudo -u ${f.owner} dbbackup ...`,
      };
    case 'SOURCE_NOT_A_FILE':
      return {
        message: `${f.path} is ${f.kind}, not a regular file`,
        hint: f.beside
          ? 'SQLite would use it together with the database: look what it is, and move it away'
          : `name the database file itself${f.leadsTo ? `: ${shellWord(f.leadsTo)}` : ''}`,
      };
    case 'NOT_A_DATABASE':
      return {
        message: `${f.path} is not a SQLite database: ${f.reason}`,
        hint: 'an encrypted database (SQLCipher, SEE) looks like this too and is not supported; otherwise check the path; if this was your database, its beginning was overwritten: restore the last good copy',
      };
    case 'SOURCE_EMPTY':
      return {
        message: `${f.path} is empty (0 bytes)`,
        hint: 'an empty copy would protect nothing; check the path, and restore the last good copy if this was your database',
      };
    case 'SOURCE_CORRUPT':
      return {
        message: `${f.path} is structurally damaged: ${some(f.findings)}${f.keptAs ? `; what could be read was kept as the suspect copy ${f.keptAs}` : ''}`,
        hint: `${f.findings.every(isComputed) ? COMPUTED_ELSEWHERE : ''}stop the application, keep ${f.path} as it is for a rescue (sqlite3 ".recover"), and look at the newest good copy: dbbackup list, with the same --to or --profile`,
      };
    case 'SOURCE_LOCKED':
      return {
        message: `${f.path} is held by another process (waited ${f.waitedMs / 1000} s)`,
        hint: `a process holds it exclusively (locking_mode=EXCLUSIVE or a long transaction): fuser -v ${shellWord(f.path)} shows which; run again when it is done`,
      };
    case 'SOURCE_HOT_JOURNAL':
      return {
        message: `${f.path} has a hot rollback journal: its application crashed in the middle of a transaction`,
        hint: `start the application, or open it once for writing so that SQLite rolls back: sqlite3 ${shellWord(f.path)} 'SELECT count(*) FROM sqlite_schema'`,
      };
    case 'SOURCE_READONLY_DIRECTORY': {
      const unit = `under systemd add ReadWritePaths=${shellWord(f.directory)}`;
      const why = f.readOnly ? 'is on a file system that is mounted read-only' : 'cannot be written';
      const writable = f.isOurs
        ? `let ${f.owner} write there (as root: chown ${f.owner} ${shellWord(f.directory)})`
        : `run as the owner (sudo -u ${f.owner} dbbackup ...)`;
      return {
        message: `${f.path} is in WAL mode and idle, and its directory ${f.directory} ${why}, so SQLite cannot open it`,
        hint: `${f.readOnly ? `${unit}, elsewhere mount it for writing` : `${writable}, ${unit}`}, or keep the application running`,
      };
    }
    case 'SOURCE_REPLACED':
      return {
        message: `${f.path} was replaced by another file during the run`,
        hint: 'run again when the replacement is done; replacing a live database by rename endangers its WAL',
      };
    case 'SOURCE_HARD_LINKED':
      return {
        message: `${f.path} has ${f.links} names (hard links); each name would have a WAL of its own`,
        hint: `keep one name: find the others with find / -xdev -samefile ${shellWord(f.path)}`,
      };
    case 'SIDECAR_OWNER':
      return f.left.length > 0
        ? {
            message: `${f.left.join(' and ')} now belong to this user, and ${f.owner}, who owns the database, may be unable to write`,
            hint: `at once, as root: chown ${f.owner} ${f.left.map(shellWord).join(' ')}; then run dbbackup as ${f.owner}`,
          }
        : {
            message: `opening ${f.path} would create -wal and -shm files that ${f.owner}, its owner, could not write: the application would fail`,
            hint: `run as the owner: sudo -u ${f.owner} dbbackup ...`,
          };
    case 'SNAPSHOT_FAILED':
      return {
        message: `no snapshot of ${f.path}: ${f.reason}`,
        hint: / by SIGKILL/.test(f.reason) ? 'look for the out-of-memory killer (journalctl, dmesg), then run again' : 'mend that and run again',
      };
    case 'VERIFY_FAILED':
      if (f.died)
        return { message: `the copy could not be checked: ${some(f.findings)}`, hint: 'look for the out-of-memory killer (journalctl, dmesg), then run again' };
      return {
        message: `the copy did not pass its check although the source did: ${some(f.findings)}`,
        hint: 'the copy was discarded; suspect the backup disk or memory (dmesg, smartctl), then run again',
      };
    case 'PACK_FAILED':
      return { message: `the copy could not be packed: ${f.reason}`, hint: 'try that program by hand; --compress none packs nothing' };
    case 'HOOK_FAILED':
      return {
        message: `the hook ${f.hook} ${f.how}${f.output === '' ? '' : `: ${f.output}`}`,
        hint: f.hook === 'before' ? 'nothing was backed up; the log has what it printed' : 'the log has what it printed',
      };
    case 'INCLUDE_FAILED':
      return {
        message: `${f.total} included ${f.total === 1 ? 'path' : 'paths'} could not be archived: ${some(f.what)}`,
        hint: 'the database is backed up all the same; let this user read them, or correct --include',
      };
    case 'UPLOAD_FAILED':
      return {
        message: `not everything is off-site: ${some(f.failed)}`,
        hint: 'the copies here are good; the next run uploads what is missing, newest first',
      };
    case 'REMOTE_FAILED':
      return { message: `${f.shown}: ${f.reason}`, hint: 'look at its address, the credentials and the network; then run again' };
    case 'IDENTITY_MISSING':
      return f.identity === null
        ? { message: `${f.file} is sealed`, hint: 'give the secret key that opens it: --identity-file FILE' }
        : {
            message: `no key in ${f.identity} opens ${f.file}`,
            hint: 'give the identity file of one of the recipients that it was sealed for (encrypt-to at that time)',
          };
    case 'NO_SPACE': {
      // The private file in which it was met is gone by the time anybody reads this.
      const place = f.path.replace(/\/\.dbbackup\/tmp\/.*$/, '');
      return {
        message:
          f.neededBytes !== null && f.freeBytes !== null
            ? `not enough space at ${place}: ${bytes(f.neededBytes)} needed, ${bytes(f.freeBytes)} free`
            : `no space left at ${place} (disk full, no inodes left, or a quota)`,
        hint:
          f.prune === ''
            ? `make room on the file system of ${place}`
            : `make room, for example with fewer kept copies (--dry-run says which would go): ${f.prune}`,
      };
    }
    case 'WAL_PRESSURE':
      return {
        message: `stopped the snapshot: ${bytes(f.freeBytes)} free beside ${f.path}, whose WAL grew to ${bytes(f.walBytes)} meanwhile`,
        hint: 'make room on the file system of the database, or run when it writes less',
      };
    case 'TARGET_UNWRITABLE':
      return {
        message: `cannot use the ${f.state ? 'state' : 'backup'} directory ${f.path}: ${f.reason}`,
        hint: `choose another ${f.state ? '--state-dir' : '--to'}, or mend it and run: dbbackup check, with the same flags or --profile${f.there ? orReadOnly(f.path) : ''}`,
      };
    case 'TARGET_OWNER':
      return { message: `${f.path}: ${f.reason}`, hint: f.remedy };
    case 'NAME_TAKEN':
      return {
        message: `the copies named ${f.name} are of ${f.other}, not of ${f.source}`,
        hint: 'give this database its own --name, or its own --to; if it was moved: --accept-moved, once',
      };
    case 'LOCKED':
      return {
        message: `another run holds the lock of ${f.name}${f.holder ? ` (${f.holder})` : ''}`,
        hint: 'wait for it, or let this one wait: --lock-wait 10m',
      };
    case 'TIMEOUT':
      return {
        message: `stopped after ${Math.round(f.afterMs / 100) / 10} s${f.published ? `; ${f.published} was already made` : ''}${midwayIs(f)}${guardedIs(f)}`,
        hint:
          f.next ??
          `${f.back ? `${goBack(f.back)}; ` : ''}raise --timeout, or find out what made it slow: dbbackup history -v, with the same --to or --profile, shows the stages`,
      };
    case 'INTERRUPTED':
      if (f.signal === 'SIGKILL') {
        return {
          message: `the ${f.killed?.command ?? 'run'} was killed before it could finish${f.published ? `; its copy ${f.published} is there` : ''}`,
          hint: f.killed ? hintForKilled(f.killed) : 'look for the out-of-memory killer, a reboot or a power cut at that time (journalctl, dmesg)',
        };
      }
      return {
        message: `ended by ${f.signal}${f.published ? `; ${f.published} was already made` : midwayIs(f) || guardedIs(f) || '; nothing was left behind'}`,
        hint: f.next ?? (f.back ? goBack(f.back) : 'run again'),
      };
    case 'IO_ERROR':
      return { message: `${f.path}: ${f.reason}`, hint: f.remedy ?? 'look at dmesg and the health of the disk, then run again' };
    case 'SETTINGS':
      return {
        message: f.problems.map((p) => `${p.message} (${p.origin})`).join('; '),
        hint: f.hint ?? 'dbbackup check, with the same flags or --profile, shows every setting and where it comes from',
      };
    case 'USAGE':
      return { message: f.message, hint: f.hint };
    case 'COPY_NOT_FOUND':
      return {
        message: `${f.path}: ${f.reason}`,
        hint: f.missing
          ? 'check the name of the directory, and that its file system is mounted'
          : `check the directory and the name; what is there: ${listLine(f.to)}`,
      };
    case 'COPY_BAD':
      return {
        message: `${f.many === undefined ? `${f.file} does` : `${f.many} do`} not prove out: ${some(f.problems)}`,
        hint: f.onlyBeside
          ? 'find out how it came there, and remove it: the copy itself proves out'
          : f.isUnknown
            ? `nothing is known of it without its manifest (${f.file.replace(/\.db(\..*)?$/, '.json')}): bring that back, or make it readable, or take another copy (${listLine(f.to)}); if there is nothing else: copy the file elsewhere, unpack it if it is packed, and ask SQLite: sqlite3 FILE 'PRAGMA integrity_check'`
            : `take another one (${listLine(f.to)}), and look at the disk (dmesg, smartctl)${f.others === null ? '' : `; dbbackup verify --all ${placeFlag(f.to)} --name ${shellWord(f.others)} proves the others, and marks what is bad`}`,
      };
    case 'TARGET_EXISTS':
      return { message: `${f.path}: ${f.reason}`, hint: f.remedy ?? 'name a file that does not exist yet, or say --force to replace this one' };
    case 'OTHER_SOURCE':
      return { message: `${f.file} is a copy of ${f.source}, not of ${f.target}`, hint: 'name the right database or copy; if this is meant: --force' };
    case 'IN_USE':
      return {
        message:
          f.holders.length > 0
            ? `${f.path} is open in other processes: ${some(f.holders)}`
            : `${f.path} was written to while the backup point was made, by somebody who has closed it again`,
        hint: f.rescue
          ? rescueHint(f.rescue)
          : `stop what has it open (fuser, lsof), then run again${f.shareable ? '; or let it write meanwhile: --shared' : ''}`,
      };
    case 'RESTORE_FAILED':
      return { message: `${f.path} was not restored: ${f.reason}`, hint: f.state };
    case 'CHECK_FAILED':
      return f.when === 'before'
        ? { message: `${f.check} of ${f.path} fails already, before the command: ${f.message}`, hint: 'the command was not run; mend the database first' }
        : {
            message: `${f.check} of ${f.path} fails after the command: ${f.message}`,
            hint: afterCommand(f),
          };
    case 'COMMAND_FAILED':
      return {
        message: `the command ${f.how}`,
        hint: afterCommand(f),
      };
    case 'ROLLBACK_FAILED':
      return {
        message: `${f.path} could not be put back: ${f.reason}`,
        hint: `stop the application, and as soon as that is mended: ${restoreLine(f.back)}${f.setAside ? `; the failed state is kept at ${f.setAside}` : ''}`,
      };
    case 'OUTSIDE_WINDOW':
      return {
        message: `it is not the time: --window allows ${f.window}`,
        hint: f.next ? `the window opens next at ${f.next}` : 'the window never opens: look at --window',
      };
    case 'REHEARSAL_TOUCHED_SOURCE':
      return {
        message: `${f.path} itself was changed during the rehearsal`,
        hint: 'either the command does not use the scratch copy (give it {} or --set-env NAME, and look at what it did to the real database), or the application wrote meanwhile: then rehearse while it is stopped',
      };
    case 'NOTIFY_FAILED':
      return {
        message: `a message could not be delivered: ${f.reason}${f.kept ? '; it is kept and a later run sends it' : ''}`,
        hint: 'dbbackup check --send-test, with the same flags or --profile, tries every channel',
      };
    case 'INTERNAL':
      if (f.remedy !== undefined) return { message: f.message, hint: f.remedy };
      return {
        message: `a bug of dbbackup: ${f.message}`,
        hint: 'please report it to the people you have dbbackup from, with the last lines of the log; --verbose shows where it happened',
      };
  }
}

/** A sentence per code for README's tables and its troubleshooting section. */
export const CODE_DOCS: Record<FailureCode | WarningCode, string> = {
  SOURCE_MISSING: 'The database is not where the settings say.',
  SOURCE_UNREADABLE: 'The database cannot be read by this user, or its path cannot be followed.',
  SOURCE_NOT_A_FILE: 'The path names a directory, FIFO, device or socket.',
  NOT_A_DATABASE: 'The file has no SQLite header: another format, or encrypted.',
  SOURCE_EMPTY: 'The file has 0 bytes.',
  SOURCE_CORRUPT: 'SQLite found structural damage in the database. A copy that still passes is kept as `suspect`.',
  SOURCE_LOCKED: 'Another process held the database for longer than 5 s.',
  SOURCE_HOT_JOURNAL: 'The application crashed; its journal must be rolled back by opening the database once for writing.',
  SOURCE_READONLY_DIRECTORY: 'An idle WAL database can only be opened where its directory can be written.',
  SOURCE_REPLACED: 'The database file was exchanged while it was read.',
  SOURCE_HARD_LINKED: 'The database has several hard links.',
  SIDECAR_OWNER: 'Opening the database as this user would lock its owner out of `-wal` and `-shm`.',
  SNAPSHOT_FAILED: 'SQLite could not make the snapshot.',
  VERIFY_FAILED: 'The copy did not pass its check although the source did. It was discarded.',
  PACK_FAILED: 'The copy could not be compressed or sealed. It was discarded.',
  HOOK_FAILED: 'A hook failed. After `before` the run ended; after the others it is a remark.',
  INCLUDE_FAILED: 'Included files could not all be read. The database itself is backed up.',
  UPLOAD_FAILED: 'A destination did not get a copy. The copies in the directory are good.',
  REMOTE_FAILED: 'A destination could not be read.',
  IDENTITY_MISSING: 'The copy is sealed, and no key was given that opens it.',
  NO_SPACE: 'The disk is full, or a quota is reached. Nothing partial is left.',
  WAL_PRESSURE: "The snapshot was ended so that the growing WAL would not fill the application's disk.",
  TARGET_UNWRITABLE: 'The backup directory cannot be made, is no directory, or is read-only.',
  TARGET_OWNER: 'The backup directory belongs to another user, or others could swap it.',
  NAME_TAKEN: 'The directory holds copies of another database under this name.',
  LOCKED: 'Another run of this name is at work.',
  TIMEOUT: 'The run took longer than `timeout`.',
  INTERRUPTED: 'A signal ended the run; or it was killed (kill -9, power cut) and the next command noticed.',
  IO_ERROR: 'The system reported an input/output error.',
  SETTINGS: 'Settings do not parse, contradict one another, or are unknown.',
  USAGE: 'The command line is wrong.',
  COPY_NOT_FOUND: 'There is no good copy.',
  COPY_BAD: 'The bytes of a stored copy, or its manifest, no longer prove out.',
  TARGET_EXISTS: 'There is something already where a copy would be restored to.',
  OTHER_SOURCE: 'The copy was made of another database than the one it would replace.',
  IN_USE: 'Another process has the database open.',
  RESTORE_FAILED: 'The copy could not be put in place; the hint says what the database is now.',
  CHECK_FAILED: 'A check of `guard` did not pass, before or after the command.',
  COMMAND_FAILED: 'The guarded command failed; the hint says whether the database was rolled back.',
  ROLLBACK_FAILED: 'A database could not be put back as it was: a person is needed now.',
  OUTSIDE_WINDOW: '`guard --window` does not allow it now.',
  REHEARSAL_TOUCHED_SOURCE: 'The command of a rehearsal changed the real database.',
  NOTIFY_FAILED: 'A message could not be delivered; it is kept for a later run.',
  INTERNAL: 'A bug of dbbackup, or an installation that is broken.',
  CLOCK: 'A copy is dated more than an hour ahead of the clock: pruning waits until that is cleared up.',
  STATE_UNWRITABLE: 'History, log, outbox or metrics file could not be written. The copy is not affected.',
  SOURCE_ROLLBACK_MODE: 'The database is not in WAL mode: writers wait while the snapshot is taken.',
  SOURCE_NETWORK_FS: 'The database lies on a network file system, where locks are unreliable.',
  ROWS_VIOLATE: 'Rows break NOT NULL, CHECK or a foreign key. They do so in the source; the copy is faithful.',
  TABLES_UNCHECKED: 'Tables that need functions, collations or modules of the application could not be checked.',
  PAGE_COPY: 'The schema cannot be vacuumed by this SQLite build, so pages were copied instead.',
  SYNC_UNSUPPORTED: 'The file system does not support syncing a directory or changing a mode.',
  HEALED: 'What a killed run, prune or restore had begun was completed or taken back.',
  COMMITS_LOST: 'Others wrote to the database between the safety copy of a live restore and the restore itself: that is in neither.',
  HEAL_FAILED: 'What a killed run, prune or restore had begun could not be completed or taken back. The next command tries it again.',
  TARGET_NETWORK_FS: 'The backup directory cannot be locked by this file system; only the lock in `state-dir` holds.',
  COPY_SHRANK: 'The copy is half as large as the good one before it, or less.',
  TABLE_GONE: 'A table that the good copy before had is not there any more.',
  TABLE_EMPTY: 'A table that held thousands of rows is empty.',
  DESTINATION_BEHIND: 'A destination lacks copies; critical when its newest one is older than `max-age`.',
  COPIES_GONE: 'Copies that an earlier run had kept are gone from the backup directory, and dbbackup has not removed them.',
  COPIES_VANISHED: 'Copies that had arrived at a destination are gone or changed there. They are uploaded again.',
  SLOW_RUN: 'The run took longer than `warn-after`, or than three times the usual and a minute.',
  WAL_GREW: 'During the snapshot the WAL grew by more than the whole database.',
  SPACE_LOW: 'There is room for fewer than three more copies.',
  SPACE_TREND: 'At the present trend the backup directory is full within 14 days.',
  NOT_VERIFIED: 'No stored copy was proven by `verify` for 30 days.',
  FILES_CHANGED: 'Included files changed or vanished while they were read, or are of no kind that is kept.',
  UPLOAD_PRUNE: 'Old copies at a destination, or what broken-off uploads left there, could not be removed.',
  MEMORY_HIGH: 'A guarded command uses 80 % of its `--memory-limit`.',
  NOBODY_HEARS: 'No notification is set: a failure is only seen by who looks.',
  NOT_SEEN: 'Something that can only be known by acting.',
  UNDELIVERED: 'Messages wait in the outbox.',
  COPY_STALE: 'The newest good copy is older than `max-age`.',
  COPY_UNVERIFIED: 'A data file has no readable manifest.',
  LAST_RUN_FAILED: 'The last run did not end well.',
  LAST_RUN_DIED: 'The last run was killed and could not say so.',
};

/** The remark that a file system cannot do something which is asked of all of them (DESIGN, "Files"). */
export const unsupportedBy =
  (warn: (w: Warning) => void) =>
  (what: string): void =>
    warn(warning('SYNC_UNSUPPORTED', `${what} is not supported by this file system`));

/** What helps against an error of the system that is no sign of a dying disk. */
export function remedyFor(error: unknown): { remedy?: string } {
  switch (errnoOf(error)) {
    case 'EMFILE':
    case 'ENFILE':
      return { remedy: 'raise the limit of open files (ulimit -n, LimitNOFILE=), then run again' };
    case 'EACCES':
    case 'EPERM':
      return { remedy: 'look at the permissions of it and of the directories on the way to it, and run this as a user who may' };
    default:
      return {};
  }
}

/** The failure inside anything thrown: our own value, an error of the system, or a bug of ours. */
export function failureOf(error: unknown): Failure {
  if (error instanceof Failed) return error.failure;
  const e = error instanceof Error ? error : new Error(String(error));
  if ('syscall' in e && /^E[A-Z0-9]+$/.test(errnoOf(e))) {
    if (e.syscall === 'uv_cwd') {
      return { code: 'USAGE', message: 'the working directory is not there any more', hint: 'go to a directory that is there (cd), and run it again' };
    }
    const path = 'path' in e && typeof e.path === 'string' ? e.path : `system call ${String(e.syscall)}`;
    return { code: 'IO_ERROR', path, reason: errnoWords(e), ...remedyFor(e) };
  }
  return { code: 'INTERNAL', message: e.message, stack: e.stack ?? '' };
}

const ERRNO_WORDS: Record<string, string> = {
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EROFS: 'the file system is read-only',
  EIO: 'input/output error',
  ENOENT: 'no such file or directory',
  ENOTDIR: 'not a directory',
  EISDIR: 'is a directory',
  ELOOP: 'too many levels of symbolic links',
  ENAMETOOLONG: 'the name is too long',
  EMFILE: 'too many open files',
  ESTALE: 'stale network file handle',
  EDQUOT: 'the disk quota is used up',
  EBUSY: 'it is in use, or something is mounted there',
};

/** The errno or SQLite code of an error, or an empty text. */
export function errnoOf(error: unknown): string {
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'string') return '';
  // libuv has no name for some, a full quota (EDQUOT) among them: "Unknown system error -122".
  const unnamed = /^Unknown system error -(\d+)$/.exec(error.code)?.[1];
  return unnamed === undefined ? error.code : (Object.entries(constants.errno).find(([, number]) => number === Number(unnamed))?.[0] ?? error.code);
}

/** An errno in words, with the errno itself for searching; a failure in its own. */
export function errnoWords(error: unknown): string {
  if (error instanceof Failed) return Object.values(describe(error.failure)).join('; ');
  const code = errnoOf(error);
  // What the system says of itself is short; what we say in its stead is not in that list.
  const words = error instanceof Error && 'syscall' in error ? ERRNO_WORDS[code] : undefined;
  if (words) return `${words} (${code})`;
  return error instanceof Error ? error.message : String(error);
}

/** A disk, or a quota, was full when something was written at `path`: how much is wanted is not known. */
export const diskFull = (path: string): Failure => ({ code: 'NO_SPACE', path, neededBytes: null, freeBytes: null, prune: '' });

/**
 * The failure that a failed file operation below the backup directory means. EDQUOT and EFBIG are a full quota or
 * file-size limit (traps, 19): for the operator the same as a full disk.
 */
export function targetFailure(error: unknown, path: string): Failure {
  if (error instanceof Failed) return error.failure;
  switch (errnoOf(error)) {
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return diskFull(path);
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
    case 'ENOTDIR':
    case 'ENOENT':
    case 'ELOOP':
    case 'ENAMETOOLONG':
    case 'EISDIR':
      return { code: 'TARGET_UNWRITABLE', path, reason: errnoWords(error) };
    case '':
      return failureOf(error);
    default:
      return { code: 'IO_ERROR', path, reason: errnoWords(error), ...remedyFor(error) };
  }
}
