/** What `upload` may say, and what it makes of it. */
import { describe, expect, test } from 'vitest';
import { destination } from '../../src/destinations/url.js';

const NOTHING = { endpoint: null, region: null, storageClass: null };

describe('destinations that are', () => {
  test.each([
    ['s3://copies', { kind: 's3', bucket: 'copies', prefix: '', ...NOTHING, shown: 's3://copies' }],
    ['s3://copies/', { kind: 's3', bucket: 'copies', prefix: '', ...NOTHING, shown: 's3://copies' }],
    ['s3://copies//srv 1/größe#1/', { kind: 's3', bucket: 'copies', prefix: 'srv 1/größe#1', ...NOTHING, shown: 's3://copies/srv 1/größe#1' }],
    [
      's3://copies/a%20b?storage-class=STANDARD_IA&region=eu-central-1&endpoint=https%3A%2F%2FS3.example.org%3A443%2F',
      {
        kind: 's3',
        bucket: 'copies',
        prefix: 'a%20b',
        endpoint: 'https://s3.example.org',
        region: 'eu-central-1',
        storageClass: 'STANDARD_IA',
        shown: 's3://copies/a%20b?endpoint=https://s3.example.org&region=eu-central-1&storage-class=STANDARD_IA',
      },
    ],
    [
      's3://copies?endpoint=http://[::1]:9000/storage/v1/s3/',
      {
        kind: 's3',
        bucket: 'copies',
        prefix: '',
        ...NOTHING,
        endpoint: 'http://[::1]:9000/storage/v1/s3',
        shown: 's3://copies?endpoint=http://[::1]:9000/storage/v1/s3',
      },
    ],
    ['rclone:box:', { kind: 'rclone', remote: 'box:', shown: 'rclone:box:' }],
    ['rclone:my box:copies/app/', { kind: 'rclone', remote: 'my box:copies/app', shown: 'rclone:my box:copies/app' }],
    ['rclone:box:/', { kind: 'rclone', remote: 'box:/', shown: 'rclone:box:/' }],
    ['rclone:box:/srv/a:b', { kind: 'rclone', remote: 'box:/srv/a:b', shown: 'rclone:box:/srv/a:b' }],
    ['file:///mnt/disk/', { kind: 'directory', path: '/mnt/disk', shown: 'file:///mnt/disk' }],
    ['file:///mnt/a b%20c%23%25', { kind: 'directory', path: '/mnt/a b c#%', shown: 'file:///mnt/a b c%23%25' }],
  ])('%s', (raw, expected) => {
    const url = destination(raw);
    expect(url).toEqual(expected);
    expect(destination(url.shown)).toEqual(url);
  });
});

describe('what is refused, without being repeated', () => {
  const FORM = 'must be s3://BUCKET[/PREFIX][?endpoint=URL&region=R&storage-class=C], rclone:REMOTE:PATH or file:///DIRECTORY';
  test.each([
    ['', 'is empty'],
    ['/mnt/canary', FORM],
    ['S3://canary', FORM],
    ['https://canary/x', FORM],
    ['s3://', 'names no bucket'],
    ['s3://ca', 'names no bucket'],
    ['s3:///canary', 'names no bucket'],
    ['s3://canary!/x', 'names no bucket'],
    ['s3://key:canary@bucket/x', 'must hold no user, password or key'],
    ['s3://canary@bucket/x', 'must hold no user, password or key'],
    ['s3://bucket/canary/../x', 'empty segment'],
    ['s3://bucket/canary//x', 'empty segment'],
    ['s3://bucket/./canary', 'empty segment'],
    [`s3://bucket/${'x'.repeat(701)}`, '700 bytes'],
    ['s3://bucket?secret=canary', 'credentials belong in the env file'],
    ['s3://bucket?AWS_SECRET_ACCESS_KEY=canary', 'credentials belong in the env file'],
    ['s3://bucket?canary', 'and nothing else'],
    ['s3://bucket?region=canary&region=canary', 'says region twice'],
    ['s3://bucket?region=', 'region that is none'],
    ['s3://bucket?region=canary/x', 'region that is none'],
    ['s3://bucket?storage-class=canary', 'storage class that is none'],
    ['s3://bucket?endpoint=', 'endpoint that is none'],
    ['s3://bucket?endpoint=canary', 'endpoint that is none'],
    ['s3://bucket?endpoint=ftp://canary', 'endpoint that is none'],
    ['s3://bucket?endpoint=https://user:canary@host', 'must hold no user, password or key'],
    ['s3://bucket?endpoint=https://host/%3Fcanary', 'more than a host'],
    ['s3://bucket?endpoint=https://host/?canary', 'more than a host'],
    ['rclone:', 'must be rclone:REMOTE:PATH'],
    ['rclone:canary', 'must be rclone:REMOTE:PATH'],
    ['rclone:-canary:x', 'must be rclone:REMOTE:PATH'],
    ['rclone::sftp,pass=canary:x', 'must be rclone:REMOTE:PATH'],
    ['rclone:box,pass=canary:x', 'must be rclone:REMOTE:PATH'],
    ['rclone:box/canary:x', 'must be rclone:REMOTE:PATH'],
    ['rclone:box :canary', 'must be rclone:REMOTE:PATH'],
    ['rclone:box:canary/../x', 'has .. in its path'],
    ['file://canary/x', 'must begin with file:///'],
    ['file:///', 'names no directory'],
    ['file:///canary/../x', 'has .. in its path'],
    ['file:///canary/%2e%2e/x', 'has .. in its path'],
    ['file:///canary%', 'percent-encoded'],
    ['file:///canary?x', 'has a ? or #'],
    ['file:///canary%0a', 'control'],
    ['file:///canary%20', 'blanks'],
    [' s3://canary', 'blanks'],
    ['s3://canary/x\u202e', 'control or bidirectional'],
    ['rclone:box:canary\n', 'control or bidirectional'],
  ])('%j', (raw, message) => {
    expect(() => destination(raw)).toThrow(message);
    expect(() => destination(raw)).not.toThrow(/canary/i);
  });
});
