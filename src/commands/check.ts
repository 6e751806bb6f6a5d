/** `dbbackup check`: everything a run needs, looked at as a dry run does, and what could not be seen. */
import { isFailure } from '../artifacts.js';
import type { Context } from '../context.js';
import { bytes, table } from '../format.js';
import { verifyMailServer } from '../notifiers/mail.js';
import { composeTest } from '../notifiers/message.js';
import type { ExitCode, Warning } from '../outcome.js';
import { critical, describe, Failed, failureOf, warning } from '../outcome.js';
import { hasProblems, isSkip, planRun } from '../plan.js';
import { SCHEMA_VERSION } from '../records.js';
import { inspect } from '../run.js';
import type { Config, ShownSetting } from '../settings/load.js';
import { messageFacts, sendNow } from '../stages/report.js';
import { findSetpriv } from '../system/workers.js';

/** Looks, prints the settings and every problem. Exit 1 when one of them is critical. */
export async function check(ctx: Context, config: Config, shown: readonly ShownSetting[], options: { sendTest: boolean }): Promise<ExitCode> {
  const { output } = ctx;
  const { database, name } = config;
  if (database === null || name === null) throw new Failed({ code: 'USAGE', message: 'no database was given', hint: 'dbbackup check FILE --to DIR' });
  const problems: Warning[] = [];
  const facts = inspect(ctx, config, database, name, 'newest');
  const plan = planRun({ ...config, ifOlderThanMs: null }, name, facts, ctx.clock.now());
  if (hasProblems(plan)) {
    for (const p of plan.problems) {
      const { message, hint } = describe(p);
      problems.push(critical(p.code, `${message}. Hint: ${hint}`));
    }
  } else if (!isSkip(plan)) problems.push(...plan.warnings);
  if (findSetpriv() === null) problems.push(critical('SNAPSHOT_FAILED', 'setpriv (package util-linux) is not installed, and a run needs it'));
  await checkMail(ctx, config, name, options.sendTest, problems);
  problems.push(
    warning('NOT_SEEN', 'only opening the database shows whether another process holds it exclusively, a crash left a hot journal, or its pages are damaged'),
  );

  const ok = problems.every((p) => p.severity !== 'critical');
  output.data(
    ...table(
      ['SETTING', 'VALUE', 'FROM'],
      shown.map((s) => [s.name, s.value, s.origin]),
    ),
  );
  output.data('');
  if (!isFailure(facts.source))
    output.data(`source: ${facts.source.realPath}, ${bytes(facts.source.sizeBytes)}, ${facts.source.journalMode} mode, owner ${facts.source.owner}`);
  if (!isFailure(facts.target)) {
    output.data(
      `directory: ${config.to}${facts.target.exists ? '' : ' (will be made)'}${facts.target.freeBytes === null ? '' : `, ${bytes(facts.target.freeBytes)} free`}`,
    );
  }
  for (const p of problems) output.data(`${p.severity} ${p.code}: ${p.message}`);
  output.data(ok ? 'ok: a run can begin' : 'NOT OK');
  output.document({ schemaVersion: SCHEMA_VERSION, command: 'check', ok, settings: shown, problems });
  return ok ? 0 : 1;
}

async function checkMail(ctx: Context, config: Config, name: string, sendTest: boolean, problems: Warning[]): Promise<void> {
  const { mail } = config;
  if (!mail) {
    problems.push(
      sendTest
        ? critical('NOBODY_HEARS', 'there is nobody to send a test to: set mail-to and smtp-url')
        : warning('NOBODY_HEARS', 'no mail-to is set: a failure will only be seen by who looks'),
    );
    return;
  }
  if (sendTest) {
    const { failure } = await sendNow(composeTest(name, messageFacts(ctx, config.to, name, [])), mail, ctx, ctx.signal);
    if (failure) problems.push(critical('NOTIFY_FAILED', `the test message: ${describe(failure).message}`));
    else ctx.output.info(`a test message was sent to ${mail.to.join(', ')}`);
    return;
  }
  try {
    await verifyMailServer(mail, { signal: ctx.signal, env: ctx.childEnv });
  } catch (error) {
    const failure = failureOf(error);
    problems.push(
      critical('NOTIFY_FAILED', `the mail server cannot be used: ${failure.code === 'NOTIFY_FAILED' ? failure.reason : describe(failure).message}`),
    );
  }
}
