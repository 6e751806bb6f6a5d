import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Test files that take long and are small: vitest begins with the largest files, and in the end two workers would wait for a third. */
const FIRST = [
  'test/fault/restore-kill.test.ts',
  'test/fault/kill.test.ts',
  'test/e2e/schedule.test.ts',
  'test/fault/guard-kill.test.ts',
  'test/fault/damaged.test.ts',
  'test/fault/restore-live.test.ts',
  'test/fault/tamper.test.ts',
  'test/fault/inject.test.ts',
  'test/fault/transport.test.ts',
  'test/e2e/offsite.test.ts',
  'test/fault/signals.test.ts',
  'test/fault/enospc.test.ts',
  'test/fault/power.test.ts',
  'test/fault/consistency.test.ts',
  'test/contract/build.test.ts',
  'test/contract/destinations.test.ts',
  'test/fault/uid.test.ts',
  'test/fault/odd-names.test.ts',
  'test/fault/deaf-output.test.ts',
  'test/fault/hostile-state.test.ts',
  'test/e2e/verify-hostile.test.ts',
].map((path) => fileURLToPath(new URL(path, import.meta.url)));

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const others = (await super.sort(files)).filter(({ moduleId }) => !FIRST.includes(moduleId));
    return [...FIRST.flatMap((path) => files.filter(({ moduleId }) => moduleId === path)), ...others];
  }
}

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Tests change the umask, the user and the time zone of their process, and load a native module. Each puts back what it changes, so that a
    // process can run several files: to start one for each, and to load all modules in it, is a minute of processor time.
    pool: 'forks',
    isolate: false,
    setupFiles: ['test/support/after-each-file.ts'],
    // Four files at a time, whatever the machine: each starts processes of its own and waits for them, and time limits must mean the same everywhere.
    fileParallelism: true,
    maxWorkers: 4,
    sequence: { sequencer: LongestFirst },
    // A command that hangs is ended, and said to hang, after 120 s (support/cli.ts): the test must live to tell it, on a slow machine too.
    testTimeout: 300_000,
    hookTimeout: 300_000,
    // A test that passes at the second try has found something.
    retry: 0,
  },
});
