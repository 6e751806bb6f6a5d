import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Tests change directories, umasks and signals of their process, and load a native module: a process per file.
    pool: 'forks',
    // Three files at a time, whatever the machine: each starts processes of its own and waits for them, and time limits must mean the same everywhere.
    fileParallelism: true,
    maxWorkers: 3,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // A test that passes at the second try has found something.
    retry: 0,
  },
});
