/** Under systemd each line on stderr begins with its priority, and nowhere else: the journal is known by the socket, not by a variable alone. */
import { renameSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { dbbackup } from '../support/cli.js';
import { linesOf, scene } from './scene.js';

/** What systemd sets: device and inode of what stderr is, in decimal. */
const AS_JOURNAL = 'JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr)';
/** Standard error is a socket here, as the journal's is. */
const socket = ['sh', '-c', `${AS_JOURNAL} exec "$0" "$@"`];
const pipe = ['sh', '-c', `{ { ${AS_JOURNAL} "$0" "$@" >&3; echo "exit $?" >&4; } 2>&1 | cat >&2; } 3>&1 4>&1`];

describe('on the journal', () => {
  test('stages, warnings and errors have the priorities of sd-daemon(3)', async () => {
    const s = scene();
    const run = await s.run(['--verbose'], { through: socket });
    expect(run.code, run.stderr).toBe(0);
    const lines = linesOf(run.stderr);
    for (const stage of ['inspect', 'snapshot', 'publish']) expect(lines).toContainEqual(expect.stringMatching(new RegExp(`^<6>${stage} `)));
    expect(lines).toContainEqual(expect.stringMatching(/^<4>dbbackup: warning SOURCE_ROLLBACK_MODE: /));
    expect(lines.filter((line) => !/^<[346]>\S/.test(line))).toEqual([]);
    // Data is not for the journal to sort.
    expect(run.stdout).toBe(`${s.to}/${run.stdout.split('/').at(-1)}`);
    renameSync(s.source, `${s.source}.gone`);
    const failed = await s.run(['--include', '/nowhere'], { through: socket });
    expect([failed.code, linesOf(failed.stderr)]).toEqual([1, [expect.stringMatching(/^<3>dbbackup: error SOURCE_MISSING /)]]);
  });

  test('so have a command line that is wrong, and a pipe that is said to be it', async () => {
    const usage = await dbbackup(['run', '--nonsense'], { through: socket });
    expect([usage.code, linesOf(usage.stderr)]).toEqual([64, [expect.stringMatching(/^<3>dbbackup: error USAGE/)]]);
    const piped = await dbbackup(['run', '--nonsense'], { through: pipe });
    expect([piped.stdout, linesOf(piped.stderr)]).toEqual(['exit 64\n', [expect.stringMatching(/^<3>dbbackup: error USAGE/)]]);
  });

  test.each(['1:1', 'nonsense', ''])('the variable %j of somebody else changes nothing', async (stream) => {
    const usage = await dbbackup(['run', '--nonsense'], { env: { JOURNAL_STREAM: stream } });
    expect(usage.stderr).toMatch(/^dbbackup: error USAGE/);
  });

  test('nor does the right one where stderr was led elsewhere', async () => {
    const elsewhere = ['sh', '-c', `export ${AS_JOURNAL}; exec "$0" "$@" 2>&1`];
    // Standard output is another socket.
    const usage = await dbbackup(['run', '--nonsense'], { through: elsewhere });
    expect([usage.stderr, usage.stdout]).toEqual(['', expect.stringMatching(/^dbbackup: error USAGE/)]);
  });
});
