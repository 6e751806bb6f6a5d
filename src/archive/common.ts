/** What packing and unpacking share: the error, names as the file system has them, and files reached through a descriptor. */
import { isUtf8 } from 'node:buffer';

import { errnoWords } from '../outcome.js';

export type ArchiveErrorCode =
  /** A path that was to be archived is not there, is no file or directory, or cannot be opened at all. */
  | 'ROOT_UNUSABLE'
  /** The stream is no tar archive, or not a whole one. */
  | 'NOT_AN_ARCHIVE'
  /** An entry of the archive must not be unpacked. */
  | 'ENTRY_REFUSED'
  /** The directory to unpack into is not new, not empty, or somebody else's. */
  | 'DIRECTORY_UNUSABLE'
  /** The system refused an operation while an entry was unpacked; `cause` is its error. */
  | 'UNPACK_FAILED';

/** An archive that cannot be made, read or unpacked. `message`: what failed, on what; `hint`: what to do next. No secrets in either. */
export class ArchiveError extends Error {
  readonly code: ArchiveErrorCode;
  readonly hint: string;
  /** Of ROOT_UNUSABLE: the path as it was given, and why. */
  readonly root: { readonly path: string; readonly reason: string } | null;
  constructor(code: ArchiveErrorCode, message: string, hint: string, options: { cause?: unknown; root?: ArchiveError['root'] } = {}) {
    super(message, options);
    this.root = options.root ?? null;
    this.name = 'ArchiveError';
    this.code = code;
    this.hint = hint;
  }
}

/**
 * A path or name as the file system has it: one character for each byte (latin1). Linux does not ask names to be UTF-8, and a
 * string decoded as UTF-8 would no longer find the file. Compared as text, these sort by their bytes.
 */
export type ByteName = string;

export const bytesOf = (name: ByteName): Buffer => Buffer.from(name, 'latin1');

/** The text that the bytes spell, or null when they are not valid UTF-8. */
export function textOf(name: ByteName): string | null {
  const bytes = bytesOf(name);
  return isUtf8(bytes) ? bytes.toString('utf8') : null;
}

/** For people: the text, or where there is none, bytes beyond ASCII as `\xE9`. Control characters stay: whoever prints it escapes them. */
export const shown = (name: ByteName): string =>
  textOf(name) ?? name.replace(/[^ -~]/g, (c) => `\\x${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`);

/**
 * A name within an open directory, for calls that take a path: Node has no openat(2). The kernel goes to the very directory that
 * was opened, whatever stands under its path by now, so nobody can slip a link into the way (proc(5), /proc/pid/fd).
 */
export const inside = (directory: number, name: ByteName): Buffer => bytesOf(`/proc/self/fd/${directory}/${name}`);

/** What is neither a file nor a directory. */
export function kindOf(stats: { isSocket(): boolean; isFIFO(): boolean }): string {
  if (stats.isSocket()) return 'a socket';
  if (stats.isFIFO()) return 'a FIFO';
  return 'a device';
}

/** An error of the system in words, without the path below /proc by which the file was reached. */
export const reasonOf = (error: unknown): string => errnoWords(error).replace(/, [a-z_]+( '.*)?$/s, '');
