/** What systemd itself makes of a calendar expression. */
import { execFile } from 'node:child_process';
import { findProgram } from './programs.js';

/** `at`: RFC 3339, UTC; null: never. `refused`: systemd's own words. */
export type Elapse = { readonly at: string | null } | { readonly refused: string };

const LIMIT_MS = 10_000;

/**
 * When a calendar expression is due next by the time zone of the machine, which is the one of cron and of the timers; null
 * where there is no systemd-analyze, or none that gives an answer. Rejects with the signal's reason.
 */
export async function nextElapse(calendar: string, env: NodeJS.ProcessEnv, signal: AbortSignal): Promise<Elapse | null> {
  const program = findProgram('systemd-analyze', env);
  if (program === null) return null;
  // A TZ of the caller's is none of theirs.
  const plain = { PATH: env['PATH'], LC_ALL: 'C' };
  const answer = await new Promise<{ readonly ok: boolean; readonly text: string } | null>((done) => {
    execFile(program, ['calendar', calendar], { env: plain, timeout: LIMIT_MS, signal }, (error, stdout, stderr) => {
      if (!error) done({ ok: true, text: stdout });
      else done(typeof error.code === 'number' ? { ok: false, text: stderr.trim() } : null);
    });
  });
  signal.throwIfAborted();
  if (!answer) return null;
  if (!answer.ok) return { refused: answer.text };
  const [, day, time] = /^ *\(in UTC\): \w+ (\S+) (\S+) UTC$/m.exec(answer.text) ?? /^ *Next elapse: \w+ (\S+) (\S+) UTC$/m.exec(answer.text) ?? [];
  if (day !== undefined) return { at: `${day}T${time}Z` };
  return /^ *Next elapse: never$/m.test(answer.text) ? { at: null } : null;
}
