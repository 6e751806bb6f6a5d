/** From a parsed URL to what stores there. Nothing is started or looked at before it is asked for something. */
import type { Destination, Patience } from './destination.js';
import { PATIENCE } from './destination.js';
import { directoryDestination } from './directory.js';
import { RcloneDestination } from './rclone.js';
import { s3Destination } from './s3.js';
import type { DestinationUrl } from './url.js';

export interface OpenOptions {
  /** How long a silent server is waited for. */
  readonly patience?: Patience;
  /** Directories of this machine that the destination must not be, nor lie in: what went there would be no second copy. */
  readonly apartFrom?: readonly string[];
}

/** @param env what children of this destination get as their environment: the caller puts AWS_* and RCLONE_* of the env file into it */
export function openDestination(url: DestinationUrl, env: NodeJS.ProcessEnv, { patience = PATIENCE, apartFrom = [] }: OpenOptions = {}): Destination {
  switch (url.kind) {
    case 's3':
      return s3Destination(url, env, patience);
    case 'rclone':
      return new RcloneDestination(url, env, patience);
    case 'directory':
      return directoryDestination(url, env, apartFrom);
  }
}
