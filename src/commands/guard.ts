/** `dbbackup guard -- COMMAND...`: usage, then the guard itself, its rehearsal, or with --dry-run its plan. */
import { randomUUID } from 'node:crypto';
import { join, resolve } from 'node:path';
import { isFailure } from '../artifacts.js';
import type { GuardFlags } from '../cli.js';
import { hasPlace, requireProgram } from '../commanding.js';
import type { Context } from '../context.js';
import { foreseeLock, foreseeWarnings } from '../foresight.js';
import { bytes } from '../format.js';
import { guardCommand, wayBackProblem, windowProblem } from '../guard.js';
import type { Guarding } from '../guarding.js';
import { holderProblem, notASelect } from '../guarding.js';
import { RunLog } from '../log.js';
import type { ExitCode, Failure } from '../outcome.js';
import { critical, describe, errnoWords, exitCodeOf, Failed, failureOf } from '../outcome.js';
import { foresee, hasProblems, isSkip } from '../plan.js';
import { Recorder } from '../recorder.js';
import { rehearse } from '../rehearsal.js';
import { withRoomLine } from '../room.js';
import { inspect } from '../run.js';
import type { Config } from '../settings/load.js';
import { looksLikeSelect, splitStatements } from '../statements.js';
import { readSmall } from '../system/files.js';
import { shellWord } from '../system/processes.js';
import type { Window } from '../window.js';
import { parseWindow } from '../window.js';
import { saveDryRun } from './dry-run.js';

const CHECK_FILE_MAX = 1_000_000;

/** Guards a command, rehearses it, or with `dryRun` prints what it would do. */
export async function guard(ctx: Context, config: Config, flags: GuardFlags, options: { dryRun: boolean }): Promise<ExitCode> {
  const { database, name } = config;
  if (database === null || name === null) throw usage('no database was given', 'dbbackup guard --database FILE --to DIR -- COMMAND');
  const guarding = parse(ctx, database, flags);
  if (options.dryRun) return dryRun(ctx, config, name, guarding);
  return flags.rehearse ? await rehearse(ctx, config, name, guarding) : await guardCommand(ctx, config, name, guarding);
}

const usage = (message: string, hint: string): Failed => new Failed({ code: 'USAGE', message, hint });

/** Everything that is wrong with the words alone. Throws `Failed` with USAGE. */
function parse(ctx: Context, database: string, flags: GuardFlags): Guarding {
  const dashes = ctx.invocation.indexOf('--');
  const behind = dashes < 0 ? [] : ctx.invocation.slice(dashes + 1);
  if (flags.words.length > behind.length) {
    throw usage(`"${flags.words[0]}" stands before --`, 'the database is given as --database FILE, and the command after --: dbbackup guard ... -- COMMAND');
  }
  if (flags.words.length === 0 || flags.words[0] === '') throw usage('there is no command to guard', 'give it after --: dbbackup guard ... -- npm run migrate');
  if (flags.setEnv !== null && !/^[A-Za-z_]\w*$/.test(flags.setEnv))
    throw usage(`"${flags.setEnv}" is no name of an environment variable`, '--set-env DATABASE_PATH');
  if (flags.rehearse && flags.setEnv === null && !hasPlace(flags.words)) {
    throw usage('a rehearsal must tell the command where the scratch copy is', 'put {} in its words, or name an environment variable: --set-env DATABASE_PATH');
  }
  return {
    database,
    flags,
    queries: [...flags.checks.flatMap((sql) => toQueries(sql, '--check')), ...flags.checkFiles.flatMap((f) => readChecks(ctx, f))],
    window: toWindow(flags),
  };
}

function toQueries(sql: string, origin: string): string[] {
  const queries = splitStatements(sql);
  if (queries.length === 0) throw usage(`${origin} holds no statement`, 'give a SELECT that returns the rows that must not be there');
  for (const query of queries) if (!looksLikeSelect(query)) throw notASelect(query);
  return queries;
}

function readChecks(ctx: Context, file: string): string[] {
  const path = resolve(ctx.cwd, file);
  let sql: string;
  try {
    sql = readSmall(path, CHECK_FILE_MAX, 'follow').bytes.toString('utf8');
  } catch (error) {
    throw usage(`cannot read the checks in ${path}: ${errnoWords(error)}`, 'check the path of --check-file');
  }
  return toQueries(sql, path);
}

function toWindow({ window }: GuardFlags): Window | null {
  if (window === null) return null;
  try {
    return parseWindow(window);
  } catch (error) {
    throw usage(
      `--window "${window}" ${error instanceof Error ? error.message : String(error)}`,
      '--window "02:00-04:00 Sun,Wed Asia/Tokyo"; without a zone UTC is meant',
    );
  }
}

/** Every problem that can be seen beforehand, and the plan. */
function dryRun(ctx: Context, config: Config, name: string, guarding: Guarding): ExitCode {
  const { output } = ctx;
  const { flags } = guarding;
  const recorder = new Recorder(ctx, new RunLog({}, () => ctx.clock.now(), output.redact), randomUUID(), {
    command: 'guard',
    name,
    profile: config.profile,
    dryRun: true,
  });
  recorder.add({ backupPoint: null, child: null, checks: [], tables: [], rolledBack: false, setAside: null });
  const facts = inspect(ctx, config, guarding.database, name, 'newest');
  const { source, target } = facts;
  if (!isFailure(source)) recorder.setSource(source);
  const plan = foresee({ ...config, ifOlderThanMs: null }, name, facts, ctx.clock.now(), isFailure(target) ? [] : foreseeLock(ctx, config, name));
  if (isSkip(plan)) throw new Error('a guard has nothing to skip');
  const program = attempt(() => requireProgram(ctx, flags.words));
  const problems: (Failure | null)[] = [windowProblem(ctx, guarding), program, ...(hasProblems(plan) ? plan.problems : [])];
  if (!hasProblems(plan)) problems.push(flags.rehearse ? null : wayBackProblem(plan.source, plan.neededBytes, config));
  if (!isFailure(source)) problems.push(holderProblem(source, flags.shared));
  const [met, ...others] = problems.filter((p) => p !== null);
  if (met) {
    const first = withRoomLine(met, config, name, ctx.clock.now());
    output.error(first, 'inspect');
    for (const problem of others) recorder.warn(critical(problem.code, describe(problem).message));
    return saveDryRun(ctx, config, recorder, { status: 'failed', exitCode: exitCodeOf(first, false), failure: first, failedStage: 'inspect' });
  }
  if (hasProblems(plan)) throw new Error('a problem that is no failure');
  for (const w of [...plan.warnings, ...foreseeWarnings(ctx, config, name)]) recorder.warn(w);
  const freeBytes = isFailure(target) ? null : target.freeBytes;
  recorder.setPlan({ file: plan.file, neededBytes: plan.neededBytes, freeBytes });
  const command = flags.words.map(shellWord).join(' ');
  const checks = `integrity_check, foreign_key_check and ${guarding.queries.length} of your own`;
  if (flags.rehearse) {
    output.result(`would make a scratch copy of ${plan.source.path} (up to ${bytes(plan.neededBytes)}), check it (${checks}), and run on it: ${command}`);
    output.result('would print what that changed; nothing is published, the database is not touched');
  } else {
    output.result(`would check ${plan.source.path} (${checks})`);
    output.result(`would make the backup point ${join(config.to, plan.file)} (up to ${bytes(plan.neededBytes)})`);
    output.result(`would run: ${command}`);
    output.result(
      `would check again, and put the database back if the command or a check fails${flags.shared && !flags.yes ? ', if a person agrees to that' : ''}`,
    );
  }
  return saveDryRun(ctx, config, recorder, { status: 'ok', exitCode: 0, failure: null, failedStage: null });
}

function attempt(work: () => void): Failure | null {
  try {
    work();
    return null;
  } catch (error) {
    return failureOf(error);
  }
}
