/** `guard --rehearse`: COMMAND on a scratch copy, and what it changed there. Nothing is published, nothing rolled back. */
import type { Acting } from './acting.js';
import { act } from './acting.js';
import type { SourceState } from './artifacts.js';
import { commandInput, endCommand } from './commanding.js';
import { contentState } from './content-state.js';
import type { Context } from './context.js';
import { snapshotStage, verifyStage } from './copying.js';
import { bytes, duration, table } from './format.js';
import { beginGuard } from './guard.js';
import type { Guarding } from './guarding.js';
import { checkDatabase, checksNote, tablesOf } from './guarding.js';
import type { ExitCode } from './outcome.js';
import { Failed } from './outcome.js';
import type { TableRows } from './records.js';
import type { Config } from './settings/load.js';
import { runCommand } from './stages/command.js';
import type { CheckedLive } from './system/worker-protocol.js';

/** Runs COMMAND on a scratch copy and returns the exit code. */
export const rehearse = (ctx: Context, config: Config, name: string, guarding: Guarding): Promise<ExitCode> =>
  act(ctx, config, 'guard', name, async (acting) => {
    const { recorder } = acting;
    const source = await beginGuard(acting, guarding);
    await makeScratch(acting, source);
    const scratch = { file: acting.workspace.data, shown: `the scratch copy of ${source.path}`, queries: guarding.queries } as const;
    const before = await recorder.stage('check', () => check(acting, { ...scratch, when: 'before' }), checksNote);
    const untouched = contentState(source.realPath);
    acting.note();
    const onScratch = async (): Promise<void> => {
      await recorder.stage(
        'command',
        () => command(acting, guarding),
        (d) => `exited with 0 after ${duration(d)}`,
      );
      tell(acting, before, await recorder.stage('check', () => check(acting, { ...scratch, when: 'after' }), checksNote));
    };
    const error = await onScratch().then(
      () => null,
      (e: unknown) => e,
    );
    // Louder than whatever else went wrong.
    if (contentState(source.realPath) !== untouched) throw new Failed({ code: 'REHEARSAL_TOUCHED_SOURCE', path: source.path });
    if (error !== null) throw error;
    return { failure: null, stage: null };
  });

/** A snapshot, proven, in the workspace of the run, which goes when the run ends. */
async function makeScratch(acting: Acting, source: SourceState): Promise<void> {
  const snapshot = await snapshotStage(acting, source, (s) => `${s.method}, the scratch copy`);
  await verifyStage(acting, snapshot, (v) => `${v.verdict}: ${bytes(v.sizeBytes)}`);
  // As the command will find the real one.
  if (source.journalMode === 'wal') await acting.pool.worker(0).ask({ op: 'set-wal', file: acting.workspace.data });
}

async function check(acting: Acting, input: Parameters<typeof checkDatabase>[1]): Promise<CheckedLive> {
  try {
    return await checkDatabase(acting, input);
  } catch (error) {
    if (!(error instanceof Failed) || error.failure.code !== 'CHECK_FAILED') throw error;
    throw new Failed({ ...error.failure, untouched: true }, { cause: error });
  }
}

async function command(acting: Acting, guarding: Guarding): Promise<number> {
  const end = await runCommand(commandInput(acting, guarding.flags, acting.workspace.data));
  acting.recorder.add({ child: end.child });
  const how = await endCommand(end, acting.workspace.data);
  acting.signal.throwIfAborted();
  if (how !== null) throw new Failed({ code: 'COMMAND_FAILED', how, rolledBack: false, untouched: true });
  return end.child.durationMs;
}

function tell(acting: Acting, before: CheckedLive, after: CheckedLive): void {
  const tables = tablesOf(before.tables, after.tables);
  acting.recorder.add({ tables });
  const { output } = acting.ctx;
  // With --json standard output carries the document alone.
  for (const line of differences(tables, before, after))
    if (output.options.json) output.info(line);
    else output.data(line);
}

/** What changed, as lines: rows of all tables, then the schema as SQL, `-` for what is gone and `+` for what is new. */
export function differences(tables: readonly TableRows[], before: CheckedLive, after: CheckedLive): string[] {
  const rows = (n: number | null): string => (n === null ? '-' : String(n));
  const change = (t: TableRows): string => {
    if (t.rowsBefore === null) return 'added';
    if (t.rowsAfter === null) return 'removed';
    const more = t.rowsAfter - t.rowsBefore;
    return more === 0 ? '' : more > 0 ? `+${more}` : String(more);
  };
  const lines = table(
    ['TABLE', 'ROWS BEFORE', 'ROWS AFTER', 'CHANGE'],
    tables.map((t) => [t.name, rows(t.rowsBefore), rows(t.rowsAfter), change(t)]),
    '<>><',
  );
  const objects = (of: CheckedLive): Map<string, string | null> => new Map(of.schema.map((o) => [`${o.type} ${o.name}`, o.sql]));
  const [old, now] = [objects(before), objects(after)];
  const marked = (mark: string, object: string, sql: string | null): string[] =>
    (sql === null ? [`${object} (made by SQLite)`] : `${sql};`.split('\n')).map((l) => `${mark} ${l}`);
  const schema = [...new Set([...old.keys(), ...now.keys()])].flatMap((object) => {
    const [was, is] = [old.get(object), now.get(object)];
    if (was === is) return [];
    return [...(was === undefined ? [] : marked('-', object, was)), ...(is === undefined ? [] : marked('+', object, is))];
  });
  return [...lines, schema.length === 0 ? 'The schema is the same.' : 'The schema changed:', ...schema];
}
