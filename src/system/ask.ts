/** A question to a person at a terminal. */
import { printable } from '../settings/values.js';

/** True for yes, false for anything else; null when nobody is there to ask: standard input or error is no terminal. */
export async function askYes(question: string, signal: AbortSignal): Promise<boolean | null> {
  if (process.stdin.isTTY !== true || process.stderr.isTTY !== true) return null;
  // Only here: what most commands do without is not loaded for them.
  const { createInterface } = await import('node:readline/promises');
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  try {
    // At a prompt the terminal makes no signal of Ctrl-C: it is one all the same.
    lines.once('SIGINT', () => process.kill(process.pid, 'SIGINT'));
    // Ctrl-D closes it, and leaves the question without an answer for ever.
    const closed = new Promise<string>((done) => lines.once('close', () => done('')));
    return /^y(es)?$/i.test((await Promise.race([lines.question(`${printable(question)} [y/N] `, { signal }), closed])).trim());
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    lines.close();
  }
}
