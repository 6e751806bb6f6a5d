/** COMMAND for `guard` and its rehearsal: its words, its environment, and the end of what it leaves behind. */
import { setTimeout as after } from 'node:timers/promises';
import type { Acting } from './acting.js';
import type { GuardFlags } from './cli.js';
import type { Context } from './context.js';
import { Failed } from './outcome.js';
import type { CommandEnd, CommandInput } from './stages/command.js';
import { holdersOf, nameHolders } from './system/holders.js';
import type { ProcessTree } from './system/process-tree.js';
import { canStart } from './system/programs.js';

const PLACE = '{}';
/** `{}`, `--db={}`, `sqlite:{}`, `file:///{}`: a word that can only mean a place, in a script or JSON as well. */
const PLACE_WORD = /^(|[\w.+/-]*[=:]\/*)\{\}$/;

/** Whether a word of the command names the place of the database. */
export const hasPlace = (words: readonly string[]): boolean => words.some((w) => w.includes(PLACE));

/**
 * The words with the path of the database in place of `{}`. In a rehearsal that has no --set-env, in every word; otherwise
 * only where the word is nothing else, so that a script with `{}` in it is left alone.
 */
const withPlace = (flags: GuardFlags, path: string): string[] =>
  flags.words.map((word) => (PLACE_WORD.test(word) || (flags.rehearse && flags.setEnv === null) ? word.replaceAll(PLACE, () => path) : word));

/** A `{}` that only a rehearsal would have replaced. */
export const keepsPlace = (flags: GuardFlags, path: string): boolean => hasPlace(withPlace(flags, path));

/** How COMMAND is run on a database. */
export const commandInput = (acting: Acting, flags: GuardFlags, path: string): CommandInput => ({
  words: withPlace(flags, path),
  env: flags.setEnv === null ? acting.ctx.childEnv : { ...acting.ctx.childEnv, [flags.setEnv]: path },
  umask: acting.ctx.umask,
  stdoutTo: acting.ctx.output.options.json ? 'stderr' : 'stdout',
  timeoutMs: flags.commandTimeoutMs,
  memoryLimitBytes: flags.memoryLimitBytes,
  signal: acting.signal,
  runId: acting.recorder.runId,
  monotonic: () => acting.ctx.clock.monotonic(),
  warn: (w) => acting.recorder.warn(w),
});

/** COMMAND_FAILED where no such program is to be found: seen before anything is done. */
export function requireProgram(ctx: Context, words: readonly string[]): void {
  const [program = ''] = words;
  if (canStart(program, ctx.cwd, ctx.childEnv) || PLACE_WORD.test(program)) return;
  throw new Failed({ code: 'COMMAND_FAILED', how: `cannot be started: there is no executable ${program}`, rolledBack: false, untouched: true });
}

/** What a command that ended well may still need to let go of the database. */
const LET_GO_MS = 5000;
const LOOK_MS = 50;

/**
 * After the end of a command: processes of it that still have the database open make it a failure. Where it failed, all
 * that it left is ended, TERM first, KILL five seconds later, since nothing may write during the roll-back. Returns how it
 * failed, or null. What it left without the database goes on.
 */
export async function endCommand({ how, tree }: CommandEnd, path: string): Promise<string | null> {
  if (how !== null) {
    await endAll(tree);
    return how;
  }
  const holding = (): ReturnType<typeof holdersOf> => {
    const holders = holdersOf(path);
    const members = holders.length > 0 ? new Set(tree.members(true)) : new Set<number>();
    return holders.filter((h) => members.has(h.pid));
  };
  if (await comes(() => holding().length === 0, LET_GO_MS)) return null;
  const left = nameHolders(holding()).join(', ');
  await endAll(tree);
  return `left processes behind that have the database open: ${left}`;
}

async function endAll(tree: ProcessTree): Promise<void> {
  const gone = (): boolean => tree.members(true).length === 0;
  if (gone()) return;
  tree.signal('SIGTERM');
  if (await comes(gone, LET_GO_MS)) return;
  tree.signal('SIGKILL');
  await comes(gone, LET_GO_MS);
}

async function comes(look: () => boolean, withinMs: number): Promise<boolean> {
  for (let waited = 0; ; waited += LOOK_MS) {
    if (look()) return true;
    if (waited >= withinMs) return false;
    await after(LOOK_MS);
  }
}
