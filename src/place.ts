/** Where the copies are that a command reads: the backup directory, or with --from a destination, as if it were a directory. */
import type { Readable } from 'node:stream';
import type { Config } from './settings/load.js';

/** A destination whose manifests were fetched (see remote.ts). */
export interface RemoteCopies {
  /** How it is named to people. */
  readonly shown: string;
  /** Manifests, and in place of data empty files of its size. */
  readonly directory: string;
  /** The bytes of a file. */
  open(file: string, signal: AbortSignal): Promise<Readable>;
}

/** The directory that listings read. */
export const copiesIn = (config: Config): string => config.from?.directory ?? config.to;

/** What a destination says, without its own name in front, where that is said anyway. */
export const withoutName = (message: string, shown: string): string => (message.startsWith(`${shown}: `) ? message.slice(shown.length + 2) : message);

/** What is said to people instead. */
export const placeOf = (config: Config): string => config.from?.shown ?? config.to;
