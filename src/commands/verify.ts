/** `dbbackup verify`: proves stored copies again, from their bytes alone, and writes the verdict into their manifests. */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import type { Acting } from '../acting.js';
import { act } from '../acting.js';
import { isFailure } from '../artifacts.js';
import { baseOf, readManifestText, sizesProblem } from '../catalog.js';
import type { Chosen } from '../choose.js';
import { chooseAll, chooseCopies, passedOverWarning } from '../choose.js';
import type { VerifyFlags } from '../cli.js';
import type { Context } from '../context.js';
import { bytes, duration, plural, table } from '../format.js';
import { RunLog } from '../log.js';
import { mark } from '../marking.js';
import type { ExitCode, Failure } from '../outcome.js';
import { describe, Failed, failureOf, warning } from '../outcome.js';
import { isPlain, packedAs } from '../packing.js';
import { copiesIn, placeOf } from '../place.js';
import { forgetProven, noteProven } from '../proven.js';
import type { Verdict } from '../recorder.js';
import { Recorder } from '../recorder.js';
import type { Copy, CopyStatus, RunRecord, VerifyResult } from '../records.js';
import type { Config } from '../settings/load.js';
import { inspectTarget } from '../stages/inspect.js';
import type { Proof, ProveInput } from '../stages/prove.js';
import { prove } from '../stages/prove.js';
import { lstatOrNull, removeTree, sizeOf } from '../system/files.js';
import { fileSystem } from '../system/processes.js';
import { saveDryRun } from './dry-run.js';

/** Proves the chosen copies; exit 1 when one of them fails. */
export async function verify(ctx: Context, config: Config, flags: VerifyFlags, options: { dryRun: boolean }): Promise<ExitCode> {
  if (flags.all && flags.copies.length > 0) throw new Failed({ code: 'USAGE', message: '--all and named copies exclude one another', hint: 'give one' });
  const found = choose(ctx, config, flags);
  if (isFailure(found)) {
    // On a timer nobody reads what it prints: told like a run that fails at the door, where there is something to remember it by.
    if (options.dryRun || config.from || flags.copies.length > 0 || !hasState(config)) throw new Failed(found);
    return await act(ctx, config, 'verify', config.name ?? '', (acting) => {
      acting.setDocument((record) => documentOf(record, []));
      return Promise.resolve({ failure: found, stage: null });
    });
  }
  const { name, copies: chosen, passedOver } = found;
  const copies = flags.all ? [...chosen].sort(leastRecentlyVerified) : chosen;
  if (options.dryRun) return dryRun(ctx, config, name, copies);
  return await act(ctx, config, 'verify', name, async (acting) => {
    const results: VerifyResult[] = [];
    const remark = passedOverWarning({ name, copies: chosen, passedOver });
    if (remark) acting.recorder.warn(remark);
    acting.setDocument((record) => documentOf(record, results));
    await acting.begin({ lock: false });
    const began = ctx.clock.monotonic();
    let unmarked: Failure | null = null;
    let unproven: Failure | null = null;
    const proven: Verified[] = [];
    const total = copies.reduce((sum, c) => sum + c.sizeBytes, 0);
    let left: readonly Copy[] = copies;
    const work = async (): Promise<void> => {
      let done = 0;
      for (const copy of copies) {
        // The first one always: a machine under load must not be one on which nothing is ever proven.
        if (left.length < copies.length && flags.maxTimeMs !== null && ctx.clock.monotonic() - began >= flags.maxTimeMs) break;
        const verified = await verifyOne(acting, copy, (now) => ctx.output.progress('verify', done + now, total));
        left = left.slice(1);
        done += copy.sizeBytes;
        if (verified) results.push(verified.result);
        if (verified && !verified.unproven) proven.push(verified);
        unproven ??= verified?.unproven ?? null;
        unmarked ??= verified?.unmarked ?? null;
        acting.recorder.add({ results: [...results] });
      }
    };
    const note = (): string =>
      `${plural(proven.length, 'copy', 'copies')} ${proven.every((v) => v.result.status === 'good') ? 'proven' : 'looked at'}: ${count(proven)}`;
    try {
      await acting.recorder.stage('verify', work, note);
    } finally {
      // Ended in the middle, it has found what it has found.
      print(ctx, results);
    }
    if (left.length > 0)
      ctx.output.info(`${plural(left.length, 'copy', 'copies')} left for the next time: --max-time ${duration(flags.maxTimeMs ?? 0)} is over`);
    return { failure: failureFrom(proven, placeOf(config), flags.all ? null : name) ?? unproven ?? unmarked, stage: 'verify' };
  });
}

function hasState({ stateDir }: Config): boolean {
  try {
    return lstatOrNull(stateDir) !== null;
  } catch {
    // Who may not look cannot keep anything there either.
    return false;
  }
}

/** The copies that are meant. @throws Failed for a command line that means none */
function choose(ctx: Context, config: Config, flags: VerifyFlags): Chosen | Failure {
  const target = inspectTarget(config.to, config.stateDir, ctx.identity, ctx.again);
  if (isFailure(target)) return target;
  try {
    return flags.all ? chooseAll(config) : chooseCopies(config, flags.copies, ctx.cwd, ctx.clock.now().getTime());
  } catch (error) {
    const failure = failureOf(error);
    if (failure.code === 'USAGE' || failure.code === 'INTERNAL') throw error;
    return failure;
  }
}

/** Never verified first, then the one whose proof is oldest, then the oldest copy. */
const leastRecentlyVerified = (a: Copy, b: Copy): number =>
  (a.verifiedAt ?? '').localeCompare(b.verifiedAt ?? '') || a.createdAt.localeCompare(b.createdAt) || a.file.localeCompare(b.file);

/**
 * `onlyBeside`: the copy proves out, and something lies beside it. `isUnknown`: it has no manifest that can be read. `unmarked`: why the verdict could not be written down. `unproven`: why there
 * is none: the disk is too small for this copy, say.
 */
interface Verified {
  readonly result: VerifyResult;
  readonly onlyBeside: boolean;
  readonly isUnknown: boolean;
  readonly unmarked: Failure | null;
  readonly unproven: Failure | null;
}

/** Null: it was pruned meanwhile. */
async function verifyOne(acting: Acting, copy: Copy, progress: (done: number) => void): Promise<Verified | null> {
  const { ctx, config, workspace, pool, tools, signal, recorder } = acting;
  const base = baseOf(copy.file);
  const freeBytes = fileSystem(workspace.directory)?.freeBytes ?? null;
  const neededBytes = spaceFor(config, copy, base);
  // What keeps it from being proven says nothing of the others, nor of this one: it is not marked.
  const notProven = (why: Failure): Verified => {
    const problems = [`not proven: ${describe(why).message}`];
    return { result: { file: copy.file, status: 'unverified', proved: 'bytes', problems }, onlyBeside: false, isUnknown: false, unmarked: null, unproven: why };
  };
  if (freeBytes !== null && freeBytes < neededBytes) return notProven({ code: 'NO_SPACE', path: workspace.directory, neededBytes, freeBytes, prune: '' });
  const proof = await proveOr(acting, {
    to: copiesIn(config),
    open: config.from?.open ?? null,
    files: 'prove',
    file: copy.file,
    target: workspace.data,
    pool,
    tools,
    identity: config.identity,
    signal,
    progress,
    // What is asked of verify is whether it still holds.
    checkedBefore: () => null,
  });
  if ('code' in proof) return notProven(proof);
  if (proof.content) noteProven(acting, proof.content);
  if (proof.refuted) forgetProven(acting, proof.refuted);
  for (const suffix of ['', '-wal', '-shm', '-journal']) removeTree(workspace.data + suffix);
  if (proof.gone) return null;
  const status = statusFrom(proof);
  for (const problem of proof.problems) ctx.output.detail(`${copy.file}: ${problem}`);
  if (proof.proved === 'bytes' && proof.problems.length === 0) {
    const { message, hint } = describe({ code: 'IDENTITY_MISSING', file: copy.file, identity: config.identity?.path ?? null });
    recorder.warn(warning('IDENTITY_MISSING', `${message}: proven are its bytes alone; ${hint}`));
  }
  const { onlyBeside } = proof;
  const isUnknown = proof.manifest === null;
  const result = { file: copy.file, status, proved: proof.proved, problems: proof.problems };
  // What lies at a destination is not ours to change: the verdict is only told. And a copy is none the worse for what lies beside it.
  if (config.from || onlyBeside) return { result, onlyBeside, isUnknown, unmarked: null, unproven: null };
  let unmarked: Failure | null = null;
  if (proof.manifest) unmarked = await mark(acting, proof, base, status);
  else recorder.warn(warning('COPY_UNVERIFIED', `${copy.file} cannot be marked: ${proof.problems.join('; ')}`));
  return { result, onlyBeside, isUnknown, unmarked, unproven: null };
}

/** A program that is missing, or a file that cannot be read just now, is one copy's affair; what concerns the run is thrown. */
async function proveOr(acting: Acting, input: ProveInput): Promise<Proof | Failure> {
  try {
    return await prove(input);
  } catch (error) {
    const failure = failureOf(error);
    if (acting.signal.aborted || !(failure.code === 'SETTINGS' || (failure.code === 'IO_ERROR' && failure.path === join(input.to, input.file)))) throw error;
    for (const suffix of ['', '-wal', '-shm', '-journal']) removeTree(input.target + suffix);
    return failure;
  }
}

/**
 * The smaller one of what is there and what the manifest says: where the two differ nothing is copied, and neither one rotten
 * digit in a manifest nor a sparse file may end it all. What unpacking makes is known as far as the manifest is the one that was written.
 */
function spaceFor(config: Config, copy: Copy, base: string): number {
  if (copy.manifest === null) return 0;
  if (isPlain(packedAs(copy.file))) return Math.min(copy.sizeBytes, sizeOf(join(copiesIn(config), copy.file)));
  const read = readManifestText(copiesIn(config), base);
  if ('unreadable' in read || !read.whole() || sizesProblem(read.manifest) !== null) return 0;
  return packedAs(read.manifest.file).encrypted && !config.identity ? 0 : read.manifest.plainSizeBytes;
}

/** A copy of a damaged source stays suspect, however well it proves out. */
function statusFrom(proof: Proof): CopyStatus {
  if (!proof.manifest) return 'unverified';
  if (proof.problems.length > 0) return 'bad';
  return (proof.manifest.checks ?? []).some((c) => c.name.startsWith('source ') && !c.ok) ? 'suspect' : 'good';
}

const fails = (r: VerifyResult): boolean => r.status === 'bad' || r.status === 'unverified';

function failureFrom(proven: readonly Verified[], to: string, others: string | null): Failure | null {
  const failing = proven.filter((v) => fails(v.result));
  const failed = failing.map((v) => v.result);
  const [first] = failed;
  if (!first) return null;
  const onlyBeside = failing.every((v) => v.onlyBeside);
  const isUnknown = failing.every((v) => v.isUnknown);
  return failed.length === 1
    ? { code: 'COPY_BAD', onlyBeside, isUnknown, file: first.file, problems: first.problems, to, others }
    : {
        code: 'COPY_BAD',
        file: first.file,
        onlyBeside,
        many: `${failed.length} of ${proven.length} copies`,
        problems: failed.map((f) => `${f.file}: ${f.problems[0] ?? ''}`),
        to,
        others,
      };
}

function count(proven: readonly Verified[]): string {
  const by = (status: CopyStatus): number => proven.filter((v) => v.result.status === status).length;
  return (
    (['good', 'suspect', 'bad', 'unverified'] as const)
      .filter((s) => by(s) > 0)
      .map((s) => `${by(s)} ${s}`)
      .join(', ') || 'none'
  );
}

function print(ctx: Context, results: readonly VerifyResult[]): void {
  const shown = ctx.output.options.quiet ? results.filter(fails) : results;
  if (shown.length === 0) return;
  // Of what has no verdict nothing is proven.
  const proved = (r: VerifyResult): string => (r.status === 'unverified' ? '-' : r.proved);
  ctx.output.data(
    table(
      ['STATUS', 'FILE', 'PROVED', 'PROBLEMS'],
      shown.map((r) => [r.status, r.file, proved(r), r.problems.join('; ') || '-']),
    ),
  );
}

const documentOf = (record: RunRecord, results: readonly VerifyResult[]): object => ({
  schemaVersion: record.schemaVersion,
  command: 'verify',
  ok: record.exitCode === 0,
  results,
  runId: record.runId,
  name: record.name,
  exitCode: record.exitCode,
  warnings: record.warnings,
  error: record.error,
});

function dryRun(ctx: Context, config: Config, name: string, copies: readonly Copy[]): ExitCode {
  const recorder = new Recorder(ctx, new RunLog({}, () => ctx.clock.now(), ctx.output.redact), randomUUID(), {
    command: 'verify',
    name,
    profile: config.profile,
    dryRun: true,
  });
  for (const copy of copies) {
    ctx.output.result(
      `would prove ${copy.file} (${bytes(copy.sizeBytes)}, ${copy.verifiedAt === null ? 'never verified' : `verified ${ctx.output.time(copy.verifiedAt)}`})`,
    );
  }
  const verdict: Verdict = { status: 'ok', exitCode: 0, failure: null, failedStage: null };
  return saveDryRun(ctx, config, recorder, verdict, (record) => ({ ...record, ok: true, results: [], plan: { files: copies.map((c) => c.file) } }));
}
