/** `dbbackup history`: runs, newest first, also failed, interrupted and dry ones. */
import type { Context } from '../context.js';
import { bytes, duration, table } from '../format.js';
import { History, historyPath } from '../history.js';
import { lookFailure } from '../look-failure.js';
import type { ExitCode } from '../outcome.js';
import { Failed } from '../outcome.js';
import type { Output } from '../output.js';
import type { RunRecord } from '../records.js';
import { SCHEMA_VERSION } from '../records.js';
import type { Config } from '../settings/load.js';
import { lstatOrNull, realOrSame } from '../system/files.js';

const ON_A_TERMINAL = 20;

/** @param options.limit how many; null: 20 on a terminal, all elsewhere */
export function history(ctx: Context, config: Config, options: { limit: number | null }): ExitCode {
  const { output } = ctx;
  const limit = options.limit ?? (output.isTerminal && !output.options.json ? ON_A_TERMINAL : null);
  let runs: RunRecord[];
  const to = lstatOrNull(realOrSame(config.to));
  if (to && !to.isDirectory()) throw new Failed({ code: 'COPY_NOT_FOUND', path: config.to, reason: 'it is no directory', to: config.to, missing: true });
  try {
    const opened = History.openToRead(config.stateDir, config.to);
    runs = opened?.runs(config.nameGiven ? config.name : null, limit) ?? [];
    opened?.close();
  } catch (error) {
    throw new Failed(lookFailure(historyPath(config.stateDir), error), { cause: error });
  }
  // A disk may not be mounted, or the name be wrong: "no runs" would sound as if all were known.
  if (!to && !lstatOrNull(config.stateDir)) output.info(`there is no directory ${config.to}: is it mounted, and is this its name?`);
  else if (runs.length === 0) output.info(`no runs ${config.nameGiven && config.name !== null ? `of ${config.name} ` : ''}are recorded in ${config.stateDir}`);
  else if (output.options.verbose) output.data(runs.flatMap((r) => atLength(output, r)));
  else {
    const rows = runs.map((r) => [
      output.time(r.startedAt),
      r.name ?? '-',
      r.dryRun ? `${r.command} (dry)` : r.command,
      r.status,
      r.exitCode === null ? '-' : String(r.exitCode),
      r.durationMs === null ? '-' : duration(r.durationMs),
      r.error?.code ?? r.copy?.file ?? '',
    ]);
    output.data(table(['STARTED', 'NAME', 'COMMAND', 'STATUS', 'EXIT', 'TOOK', 'COPY OR ERROR'], rows, '    >>'));
  }
  output.document({ schemaVersion: SCHEMA_VERSION, command: 'history', runs });
  return 0;
}

/** A run with all that it said, and how long each stage took: what `--verbose` is for. */
function atLength(output: Output, r: RunRecord): string[] {
  const took = r.durationMs === null ? '' : `, ${duration(r.durationMs)}`;
  const { error } = r;
  return [
    `${output.time(r.startedAt)}  ${r.name ?? '-'}  ${r.command}${r.dryRun ? ' (dry)' : ''}: ${r.status}${r.exitCode === null ? '' : `, exit ${r.exitCode}`}${took}`,
    ...(r.copy ? [`  ${r.copy.file} (${bytes(r.copy.sizeBytes)}, ${r.copy.status})`] : []),
    ...(r.stages.length > 0 ? [`  ${r.stages.map((s) => `${s.name} ${duration(s.durationMs)}${s.status === 'ok' ? '' : ` (${s.status})`}`).join(', ')}`] : []),
    ...r.warnings.map((w) => `  ${w.severity} ${w.code}: ${w.message}`),
    ...(error ? [`  error ${error.code}${error.stage === null ? '' : ` (${error.stage})`}: ${error.message}`, `  hint: ${error.hint}`] : []),
  ];
}
