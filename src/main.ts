/**
 * The composition root: the only reader of argv and the environment, the only setter of the exit code. Everything else
 * takes what it needs as an argument. It is small, so that the SQLite child of a run is under way before the rest is loaded (app.ts).
 */
import { isJournal } from './system/journal.js';
import { END_SIGNALS } from './system/signals.js';
import type { StartedWorker } from './system/start-worker.js';
import { startWorker } from './system/start-worker.js';

/** The environment without what is ours: settings, secrets, and credentials meant for other parts. */
function withoutSettings(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const ours = /^(DBBACKUP_|AWS_|RCLONE_)|^CREDENTIALS_DIRECTORY$/;
  return Object.fromEntries(Object.entries(env).filter(([key]) => !ours.test(key)));
}

/**
 * A run needs a SQLite child, whose start takes as long as loading everything here: started first, it costs nothing. It
 * opens nothing before it is asked to.
 */
function startEarly(argv: readonly string[]): StartedWorker | null {
  const makesNoCopy = ['-h', '--help', '-n', '--dry-run', '--all-profiles'];
  if (argv.find((word) => !word.startsWith('-')) !== 'run' || argv.some((word) => makesNoCopy.includes(word))) return null;
  try {
    return startWorker(withoutSettings(process.env));
  } catch {
    // The run meets the same reason and tells it.
    return null;
  }
}

// Whatever we or our children create is ours alone.
const umask = process.umask(0o077);
const argv = process.argv.slice(2);
/** Aborts with the name of the first signal that comes; later ones change nothing. */
const signals = new AbortController();
for (const signal of END_SIGNALS) process.on(signal, () => signals.abort(signal));
const earlyWorker = startEarly(argv);

async function start(): Promise<void> {
  const { app } = await import('./app.js');
  process.exitCode = await app({
    argv,
    script: process.argv[1] ?? 'dbbackup',
    env: process.env,
    childEnv: withoutSettings(process.env),
    umask,
    journal: isJournal(process.env['JOURNAL_STREAM'], 2),
    signals: signals.signal,
    earlyWorker,
    // biome-ignore lint/nursery/noJsRestrictedProperties: after an uncaught error nothing can be relied on any more, and 70 must be said
    leave: (code) => process.exit(code),
  });
  earlyWorker?.child.kill('SIGKILL');
  await earlyWorker?.ended;
}

/** What cannot be rendered by what was not loaded, or has not ended. */
const broken = (what: string): void => {
  process.exitCode = 70;
  process.stderr.write(`dbbackup: error INTERNAL: ${what}. Hint: install dbbackup again; if that does not help, it is a bug: report it with these lines\n`);
  earlyWorker?.child.kill('SIGKILL');
};
// A command that came to no end of its own must not look like one that went well.
const unended = (): void => broken('the command came to no end');
process.once('beforeExit', unended);
void start()
  .catch((error: unknown) => broken(error instanceof Error ? (error.stack ?? error.message) : String(error)))
  .finally(() => process.off('beforeExit', unended));
