/**
 * Where the kernel says that a directory lies on a network file system: there are no reliable locks there, so state may not lie there, while
 * copies may. A server for each kind would be needed to mount one; so the kernel's answer to statfs(2) is changed on its way to us.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { scene, tree } from '../e2e/scene.js';
import { cannot } from '../support/cli.js';
import { mustBeWhole } from './proof.js';

/** linux/magic.h */
const KINDS = { NFS: 0x6969, SMB: 0x517b, CIFS: 0xff534d42, SMB2: 0xfe534d42, '9P': 0x01021997, Ceph: 0x00c36400, AFS: 0x5346414f } as const;

/** Words to put before a command, for which these paths are on such a file system. */
function on(kind: keyof typeof KINDS, ...paths: string[]): string[] {
  const type = Buffer.alloc(8);
  type.writeUInt32LE(KINDS[kind]);
  const inject = `inject=statfs:poke_exit=@arg2=${type.toString('hex')}`;
  return ['strace', '-f', '-qq', '-o', '/dev/null', ...paths.flatMap((path) => ['-P', path]), '-e', 'trace=statfs', '-e', inject, '--'];
}

const [program = '', ...words] = [...on('NFS', '/'), 'true'];
const canPoke = (): string | null => (spawnSync(program, words).status === 0 ? null : 'this needs a strace that can change what a call answers (5.11)');
const reason = cannot('strace') ?? canPoke();
if (reason) process.stderr.write(`not run here: network file systems: ${reason}\n`);

test.skipIf(reason).each(Object.keys(KINDS) as (keyof typeof KINDS)[])(
  'state on %s is refused, by what looks beforehand and by what acts, and nothing is made',
  async (kind) => {
    const s = scene({ journal: 'wal' });
    const state = join(s.home, 'state');
    mkdirSync(state);
    const before = tree(s.home);
    const through = on(kind, state);
    const more = ['--state-dir', state, '--json'];
    for (const dry of [['--dry-run'], []]) {
      const run = await s.run([...dry, ...more], { through });
      expect([run.code, run.json.error?.code], run.stderr).toEqual([78, 'SETTINGS']);
      expect(run.json.error?.message).toContain(`the state directory ${state} lies on ${kind}`);
    }
    expect(tree(s.home)).toEqual(before);
  },
);

test.skipIf(reason)('where the backup directory lies on one, its state must lie elsewhere: then copies are made there', async () => {
  const s = scene({ journal: 'wal' });
  mkdirSync(s.to, { mode: 0o700 });
  const through = on('NFS', s.to, s.state);
  const refused = await s.run(['--json'], { through });
  expect([refused.code, refused.json.error?.code], refused.stderr).toEqual([78, 'SETTINGS']);
  expect(refused.json.error?.message).toContain(`the state directory ${s.state} lies on NFS`);
  const check = await s.ask('check', [s.source, '--json'], { through });
  expect([check.code, check.json.problems?.map(({ message }) => message)], check.stderr).toEqual([
    1,
    expect.arrayContaining([expect.stringContaining(`the state directory ${s.state} lies on NFS`)]),
  ]);
  // Nor any state, on that file system.
  expect(readdirSync(s.to)).toEqual([]);
  const run = await s.run(['--state-dir', join(s.home, 'state'), '--json'], { through });
  expect([run.code, run.json.copy?.status, run.json.warnings], run.stderr).toEqual([0, 'good', []]);
  mustBeWhole(s.to, 'after the run');
});

test.skipIf(reason)('a database on one is copied, with a remark', async () => {
  const s = scene({ journal: 'wal' });
  const run = await s.run(['--json'], { through: on('NFS', s.source) });
  const remark = { code: 'SOURCE_NETWORK_FS', severity: 'warning', message: expect.stringContaining(`${s.source} lies on NFS`) as string };
  expect([run.code, run.json.copy?.status, run.json.warnings], run.stderr).toEqual([0, 'good', [remark]]);
});
