/** What dry runs have in common: the printed decision, and a row in a history that is there and ours already. */
import type { Context } from '../context.js';
import { History, historyPath, historyWarning } from '../history.js';
import type { ExitCode } from '../outcome.js';
import type { Output } from '../output.js';
import type { Recorder, Verdict } from '../recorder.js';
import type { RunRecord } from '../records.js';
import { redactRecord } from '../redact.js';
import type { Decision } from '../retention.js';
import type { Config } from '../settings/load.js';
import { lstatOrNull } from '../system/files.js';

/** One line per copy: removed or kept, and why. */
export function printDecision(output: Output, decision: Decision): void {
  for (const { file, reason } of decision.remove) output.result(`would remove ${file}: ${reason}`);
  for (const { file, reasons } of decision.keep) output.result(`would keep ${file}: ${reasons.join('; ')}`);
}

/**
 * Finishes a dry run: its row where a history is ours already, its document, its exit code.
 * @param documentOf what --json prints, from the record
 */
export function saveDryRun(ctx: Context, config: Config, recorder: Recorder, verdict: Verdict, documentOf: (record: RunRecord) => object = (r) => r): ExitCode {
  const { user, system } = process.cpuUsage();
  const resources = { cpuMs: Math.round((user + system) / 1000), peakAnonBytes: 0 };
  try {
    const there = lstatOrNull(historyPath(config.stateDir));
    if (there?.isFile() && there.uid === ctx.identity.uid) {
      const history = History.openToWrite(config.stateDir, config.to);
      history.save(redactRecord(recorder.record(verdict, resources), ctx.output.redact));
      history.close();
    }
  } catch (error) {
    // A directory that cannot be looked into is the failure that is being reported already.
    if (!verdict.failure) recorder.warn(historyWarning(config.stateDir, 'written', error));
  }
  ctx.output.document(documentOf(recorder.record(verdict, resources)));
  return verdict.exitCode;
}
