/** From a parsed URL to what stores there. Nothing is started or looked at before it is asked for something. */
import type { Destination, Patience } from './destination.js';
import { PATIENCE } from './destination.js';
import { DirectoryDestination } from './directory.js';
import { RcloneDestination } from './rclone.js';
import { S3Destination } from './s3.js';
import type { DestinationUrl } from './url.js';

/**
 * @param env what children of this destination get as their environment: the caller puts AWS_* and RCLONE_* of the env file into it
 * @param patience how long a silent server is waited for
 */
export function openDestination(url: DestinationUrl, env: NodeJS.ProcessEnv, patience: Patience = PATIENCE): Destination {
  switch (url.kind) {
    case 's3':
      return new S3Destination(url, env, patience);
    case 'rclone':
      return new RcloneDestination(url, env, patience);
    case 'directory':
      return new DirectoryDestination(url);
  }
}
