/** S3 as a destination: what its child (s3-child.ts) needs to know of the place. */
import { ChildDestination } from './child.js';
import type { S3Target } from './child-protocol.js';
import type { Destination, Patience } from './destination.js';
import type { S3Url } from './url.js';

/** Nothing is started or asked yet. */
export function s3Destination(url: S3Url, env: NodeJS.ProcessEnv, patience: Patience): Destination {
  const target: S3Target = {
    bucket: url.bucket,
    prefix: url.prefix === '' ? '' : `${url.prefix}/`,
    endpoint: url.endpoint,
    region: url.region,
    storageClass: url.storageClass,
    // A server of one's own rarely has a DNS name for each bucket.
    forcePathStyle: [url.endpoint, env['AWS_ENDPOINT_URL_S3'], env['AWS_ENDPOINT_URL']].some(Boolean),
    shown: url.shown,
    connectMs: patience.connectMs,
    idleMs: patience.idleMs,
  };
  return new ChildDestination('s3-child', target, env);
}
