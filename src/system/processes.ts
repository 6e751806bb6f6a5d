/** Facts about this process and its machine, read from the system once and handed on as values. */
import { readFileSync, readlinkSync, statfsSync } from 'node:fs';
import { hostname } from 'node:os';
import { readOrEmpty, statOf } from './proc.js';

/** Who runs: effective user, and whether it may give files away (CAP_CHOWN), which SQLite needs as root (traps, 1). */
export interface Identity {
  readonly uid: number;
  readonly canChown: boolean;
}

const CAP_CHOWN = 0n;

/** Reads who runs from the system. */
export function identity(): Identity {
  const uid = process.geteuid?.() ?? 0;
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(readOrEmpty('/proc/self/status').toString('utf8'))?.[1] ?? '0'}`);
  return { uid, canChown: uid === 0 && ((effective >> CAP_CHOWN) & 1n) === 1n };
}

/**
 * Whether a process holds a write lock on this byte of the file with this inode, or may do so: true also where that cannot be seen.
 * Only the inode is compared, since some file systems give `stat` another device than the kernel's list of locks has.
 */
export function mayBeLocked(ino: number, byte: number): boolean {
  let locks: string;
  try {
    locks = readFileSync('/proc/locks', 'utf8');
  } catch {
    return true;
  }
  return [...locks.matchAll(/ WRITE +-?\d+ [0-9a-f]+:[0-9a-f]+:(\d+) (\d+) (\d+|EOF)$/gm)].some(
    ([, inode, start, end]) => Number(inode) === ino && Number(start) <= byte && (end === 'EOF' || Number(end) >= byte),
  );
}

/** The user's name from /etc/passwd, or `#uid`, which sudo takes as well. Never os.userInfo: it throws (traps, 28). */
export function userName(uid: number): string {
  for (const line of readOrEmpty('/etc/passwd').toString('utf8').split('\n')) {
    const [name, , id] = line.split(':');
    if (name && Number(id) === uid && id !== '') return name;
  }
  return `'#${uid}'`;
}

/**
 * The groups of a user from /etc/passwd and /etc/group. `known`: all that these files have; of one that is not among them it cannot be
 * told here who is in it.
 */
export function groupsOf(uid: number): { readonly own: ReadonlySet<number>; readonly known: ReadonlySet<number> } {
  const [own, known] = [new Set<number>(), new Set<number>()];
  const names = new Set<string>();
  for (const line of readOrEmpty('/etc/passwd').toString('utf8').split('\n')) {
    const [name, , id, group] = line.split(':');
    if (!name || id === '' || Number(id) !== uid) continue;
    names.add(name);
    own.add(Number(group));
  }
  for (const line of readOrEmpty('/etc/group').toString('utf8').split('\n')) {
    const [name, , id, members = ''] = line.split(':');
    if (!name || !id) continue;
    known.add(Number(id));
    if (members.split(',').some((member) => names.has(member))) own.add(Number(id));
  }
  return { own, known };
}

/** How a file of root becomes one that this user may read, and nobody else: for hints. */
export const shutToOthers = (path: string, owner: number, uid: number): string =>
  owner === uid ? `chmod o-rwx ${shellWord(path)}` : `as root: chgrp "$(id -gn ${userName(uid)})" ${shellWord(path)} && chmod 640 ${shellWord(path)}`;

/** Whether a user may read and write a file that has, or would have, this owner, group and mode. Of groups that are not known here: no. */
export const mayReadWrite = (uid: number, file: { readonly uid: number; readonly gid: number; readonly mode: number }): boolean =>
  uid === file.uid || (file.mode & 0o006) === 0o006 || ((file.mode & 0o060) === 0o060 && groupsOf(uid).own.has(file.gid));

/** The home directory of a user from /etc/passwd, or null. */
export function homeOf(uid: number): string | null {
  for (const line of readOrEmpty('/etc/passwd').toString('utf8').split('\n')) {
    const [name, , id, , , home] = line.split(':');
    if (name && id !== '' && Number(id) === uid) return home || null;
  }
  return null;
}

export const hostName = (): string => hostname();

/** Tells one process from all others, across reboots, containers and reuse of its number. */
export interface ProcessId {
  readonly pid: number;
  readonly startTicks: string;
  readonly bootId: string;
  readonly pidNamespace: string;
}

const bootId = (): string => readOrEmpty('/proc/sys/kernel/random/boot_id').toString('utf8').trim();
const startTicks = (pid: number): string => statOf(pid)(22);
const pidNamespace = (): string => {
  try {
    return readlinkSync('/proc/self/ns/pid');
  } catch {
    return '';
  }
};

export const ownProcessId = (): ProcessId => ({ pid: process.pid, startTicks: startTicks(process.pid), bootId: bootId(), pidNamespace: pidNamespace() });

function mayBeThere(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}

/** True only when that process is certainly gone; a process of another container cannot be judged. */
export function isGone(id: ProcessId): boolean {
  if (id.bootId !== bootId()) return true;
  if (id.pidNamespace !== pidNamespace()) return false;
  const ticks = startTicks(id.pid);
  // Where /proc shows nobody's processes but one's own, the kernel says whether it is there.
  return ticks === '' ? !mayBeThere(id.pid) : ticks !== id.startTicks;
}

const NETWORK_FS: Record<number, string> = {
  26985: 'NFS',
  20859: 'SMB',
  4283649346: 'CIFS',
  4266872130: 'SMB2',
  16914839: '9P',
  12805120: 'Ceph',
  1397113167: 'AFS',
};

/** Free bytes for us, size in bytes, and the kind of a network file system; null when it cannot be asked. */
export function fileSystem(path: string): { freeBytes: number; sizeBytes: number; network: string | null } | null {
  try {
    const fs = statfsSync(path);
    // A file system without a size, such as /proc, has no free space to speak of.
    if (fs.blocks === 0) return null;
    return { freeBytes: fs.bavail * fs.bsize, sizeBytes: fs.blocks * fs.bsize, network: NETWORK_FS[fs.type] ?? null };
  } catch {
    return null;
  }
}

/** linux/magic.h. What the kernel shows there can be looked at, and no file of ours be made among it, whatever the permissions say. */
const KERNELS_OWN: Record<number, string> = { 40864: 'proc', 1650812274: 'sysfs', 1667723888: 'cgroup2', 1684170528: 'debugfs', 1953653091: 'tracefs' };

/** The name of the kernel's own file system that a directory is on, or null. Throws what the system says. */
export const kernelsOwn = (path: string): string | null => KERNELS_OWN[statfsSync(path).type] ?? null;

/** A word as a shell needs it quoted to be taken as it is. */
export const shellWord = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
