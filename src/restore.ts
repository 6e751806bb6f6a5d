/** The two ways of a restore, each on one screen: into a new file, and into a database. */
import { lstatSync, readdirSync, realpathSync, renameSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Acting, BodyResult } from './acting.js';
import { act } from './acting.js';
import { baseOf, isCopyOf, parseCopyFile, readManifest, sizesProblem } from './catalog.js';
import type { Chosen } from './choose.js';
import { passedOverWarning } from './choose.js';
import { outerState } from './content-state.js';
import type { Context } from './context.js';
import { bytes } from './format.js';
import { withFiles } from './included.js';
import type { ExitCode, Failure, Warning } from './outcome.js';
import { critical, describe, errnoOf, errnoWords, Failed, failureOf, warning } from './outcome.js';
import { packedAs } from './packing.js';
import { copiesIn, placeOf } from './place.js';
import type { Copy, Manifest } from './records.js';
import { lookAtTarget, proveInto, provenFile, putBack, refuseHolders, spaceProblem, syncParent } from './restoring.js';
import type { Config } from './settings/load.js';
import { makeStaging, STAGED } from './staging.js';
import { directoryProblem, lstatOrNull, publish, remove } from './system/files.js';
import { syncLargeFile } from './system/syncing.js';
import { makeTaggedCopy } from './tagged.js';
import { stateDirOf } from './workspace.js';

export interface Restoring {
  readonly chosen: Chosen;
  /** The file or database, an absolute path. */
  readonly target: string;
  readonly force: boolean;
  /** Where included files go, a new or empty directory, absolute; null: they stay in the copy. */
  readonly filesTo: string | null;
}

/** Everything that can be refused beforehand, without touching anything. Throws `Failed`. */
export function inspectRestore(ctx: Context, config: Config, way: 'output' | 'into', input: Restoring): { copy: Copy; manifest: Manifest } {
  const [copy] = input.chosen.copies;
  if (!copy) throw new Failed({ code: 'COPY_NOT_FOUND', path: placeOf(config), reason: 'there is no such copy', to: placeOf(config) });
  const manifest = readManifest(copiesIn(config), baseOf(copy.file));
  if ('unreadable' in manifest)
    throw new Failed({ code: 'COPY_BAD', isUnknown: true, file: copy.file, problems: [manifest.unreadable], to: placeOf(config), others: copy.name });
  if (copy.status === 'bad')
    throw new Failed({ code: 'COPY_BAD', file: copy.file, problems: badBecause(copiesIn(config), manifest), to: placeOf(config), others: copy.name });
  const impossible = sizesProblem(manifest);
  if (impossible !== null) throw new Failed({ code: 'COPY_BAD', file: copy.file, problems: [impossible], to: placeOf(config), others: copy.name });
  refuseInside(config, input.target, way === 'into' && isCopyOf(manifest, input.target, input.target));
  if (input.filesTo !== null) inspectFiles(config, input.filesTo, copy, manifest, input.target);
  if (way === 'output') inspectOutput(input.target, input.force);
  else {
    lookAtTarget({ ctx, config }, input.target, manifest.pageSize);
    if (!input.force && !isCopyOf(manifest, input.target, input.target)) {
      throw new Failed({
        code: 'OTHER_SOURCE',
        file: copy.file,
        source: manifest.configuredPath ?? 'another database (its path is sealed)',
        target: input.target,
      });
    }
  }
  return { copy, manifest };
}

/** Not over a copy, a manifest or our own state, and nothing of another kind among them. `isItsPlace`: a database that lives there gets it back. */
function refuseInside(config: Config, target: string, isItsPlace = false): void {
  let directory = dirname(target);
  try {
    directory = realpathSync(directory);
  } catch {
    // It is not there: said below.
  }
  for (const ours of [config.to, config.stateDir, stateDirOf(config.to)].filter((d) => lstatOrNull(d))) {
    const real = realpathSync(ours);
    if (directory !== real && !directory.startsWith(`${real}/`)) continue;
    if (isItsPlace && ours === config.to && parseCopyFile(basename(target)) === null) continue;
    throw new Failed({
      code: 'RESTORE_FAILED',
      path: target,
      reason: `it lies in ${ours}, among the copies`,
      state: 'nothing was changed; name a place elsewhere',
    });
  }
}

/** The files go where there is nothing yet. Their unpacking itself looks again, and closer. */
function inspectFiles(config: Config, directory: string, copy: Copy, manifest: Manifest, target: string): void {
  const refuse = (reason: string): Failed => new Failed({ code: 'RESTORE_FAILED', path: directory, reason, state: 'nothing was changed' });
  if (!manifest.files) throw refuse(`${copy.file} has no included files (--files-to)`);
  refuseInside(config, directory);
  if (target === directory || target.startsWith(`${directory}/`)) throw refuse(`${target} would lie in it, and it must be empty: name another --files-to`);
  const there = lstatOrNull(directory);
  if (there && !there.isDirectory()) throw refuse(there.isSymbolicLink() ? (directoryProblem(directory) ?? '') : 'it is no directory');
  if (there && readdirSync(directory).length > 0) throw refuse('it is not empty: name a new or an empty directory');
  const beside = there ? null : directoryProblem(dirname(directory));
  if (beside !== null) throw refuse(beside);
}

function badBecause(directory: string, manifest: Manifest): string[] {
  const said = Array.isArray(manifest.checks) ? manifest.checks.filter((c) => !c.ok && c.name === 'verify').map((c) => c.message) : [];
  if (said.length > 0) return said;
  const { files } = manifest;
  const sizeOf = (file: string): number | undefined => lstatOrNull(join(directory, file))?.size;
  if (!files || sizeOf(manifest.file) !== manifest.sizeBytes || sizeOf(files.file) === files.sizeBytes)
    return ['its size is not the one in the manifest, or it was found bad before'];
  const what = sizeOf(files.file) === undefined ? 'is not there' : 'has another size than its manifest says';
  return [`${files.file} ${what}; ${manifest.file} itself has its size: the README says how to restore it by hand`];
}

/** A file that is there is replaced by --force alone, and what is no regular file never. */
function inspectOutput(target: string, force: boolean): void {
  const there = lstatOrNull(target);
  if (there && !there.isFile()) {
    const kind = there.isSymbolicLink() ? 'a symbolic link' : there.isDirectory() ? 'a directory' : there.isFIFO() ? 'a FIFO' : 'a device or a socket';
    throw new Failed({ code: 'SOURCE_NOT_A_FILE', path: target, kind });
  }
  if (there && !force) throw new Failed({ code: 'TARGET_EXISTS', path: target, reason: 'there is a file already' });
  for (const suffix of ['-wal', '-journal']) {
    // SQLite would read them with the new file (traps, 36); they may hold what somebody still needs.
    if (!lstatOrNull(target + suffix)) continue;
    throw new Failed({
      code: 'TARGET_EXISTS',
      path: target + suffix,
      reason: 'it belongs to another database of that name and would be read with the new one',
      remedy: 'use --into, which sets it aside, or move it away',
    });
  }
  const reason = directoryProblem(dirname(target));
  if (reason !== null) {
    throw new Failed({
      code: 'RESTORE_FAILED',
      path: target,
      reason,
      state: 'nothing was changed; make the directory, or mend the path',
    });
  }
}

/** `restore -o FILE`: a plain file, proven, 0600, whole or not at all. */
export const restoreToFile = (ctx: Context, config: Config, input: Restoring): Promise<ExitCode> =>
  act(ctx, config, 'restore', input.chosen.name, async (acting) => {
    const { recorder, signal } = acting;
    recorder.add({ restored: null });
    const { copy, manifest } = await look(acting, 'output', input);
    await acting.begin({ lock: false, workspace: false });
    const problem = spaceProblem(config, manifest, input.target, null, input.filesTo);
    if (problem) throw new Failed(problem);
    const staging = await makeStaging(dirname(input.target), signal, input.target);
    try {
      const file = join(staging.directory, STAGED);
      await proveInto(acting, manifest, file);
      await withFiles(acting, manifest, input.filesTo, async (putFiles) => {
        await recorder.stage(
          'restore',
          async () => {
            await syncLargeFile(file, signal);
            signal.throwIfAborted();
            giveName(file, input);
            syncParent(acting, input.target);
          },
          () => `${copy.file} to ${input.target}`,
        );
        recorder.addRestored({ file: copy.file, target: input.target });
        await putFiles();
      });
    } finally {
      staging.remove();
    }
    return done(acting, copy, input.target, null, []);
  });

function giveName(file: string, input: Restoring): void {
  // The proof took its time: what lies there now is what counts.
  inspectOutput(input.target, input.force);
  try {
    if (input.force && lstatOrNull(input.target)) {
      refuseHolders(input.target);
      renameSync(file, input.target);
    } else {
      publish(file, input.target);
      // Before the names are synced: with a second one it could not be backed up, should it become a database again.
      remove(file);
    }
  } catch (error) {
    if (error instanceof Failed) throw error;
    if (errnoOf(error) === 'EEXIST') throw new Failed({ code: 'TARGET_EXISTS', path: input.target, reason: 'somebody made it meanwhile' }, { cause: error });
    throw new Failed({ code: 'RESTORE_FAILED', path: input.target, reason: errnoWords(error), state: 'nothing was changed' }, { cause: error });
  }
}

/** `restore --into DATABASE`: a tagged copy of the present state where that can be had, then the chosen one in its place. */
export const restoreInto = (ctx: Context, config: Config, input: Restoring): Promise<ExitCode> =>
  act(ctx, config, 'restore', input.chosen.name, async (acting) => {
    const { recorder } = acting;
    recorder.add({ restored: null });
    await look(acting, 'into', input);
    await acting.begin();
    // Under the lock once more: the copy may have been pruned, the database replaced.
    const { copy, manifest } = inspectRestore(ctx, config, 'into', input);
    const target = lookAtTarget(acting, input.target, manifest.pageSize);
    const problem = spaceProblem(config, manifest, input.target, target, input.filesTo);
    if (problem) throw new Failed(problem);
    if (target.state) recorder.setSource(target.state);
    // Should it be killed before it has come to its target, that is known.
    acting.note();
    // Before anything is made: a copy that does not prove out leaves no trace.
    if (target.how === 'live') await proveInto(acting, manifest, provenFile(acting));
    return await withFiles(acting, manifest, input.filesTo, async (putFiles) => {
      const seen = target.state && target.how === 'live' ? { seen: outerState(target.state.realPath) } : {};
      const safety = target.state && target.how === 'live' ? await safetyCopy(acting, target.state) : null;
      recorder.add({ restored: { file: copy.file, target: input.target, safetyCopy: safety?.file ?? null, setAside: [] } });
      acting.note();
      try {
        // No good copy of a live database can be had: then it is damaged.
        const damaged = target.how === 'live' && safety?.status !== 'good';
        const { setAside } = await putBack(acting, { manifest, target: input.target, damaged, proven: target.how === 'live', ...seen });
        await putFiles();
        return done(acting, copy, input.target, safety, setAside);
      } catch (error) {
        return await undo(acting, input.target, safety, error);
      }
    });
  });

const look = async (acting: Acting, way: 'output' | 'into', input: Restoring): Promise<{ copy: Copy; manifest: Manifest }> =>
  await acting.recorder.stage(
    'inspect',
    () => {
      const remark = passedOverWarning(input.chosen);
      if (remark) acting.recorder.warn(remark);
      return inspectRestore(acting.ctx, acting.config, way, input);
    },
    ({ copy }) =>
      `${copy.file}, made ${acting.ctx.output.time(copy.createdAt)} of ${copy.source ?? 'a database that only the sealed part of the manifest names'}`,
  );

/** Null where the database turns out to be damaged: then its files are set aside as they are. */
async function safetyCopy(acting: Acting, state: NonNullable<ReturnType<typeof lookAtTarget>['state']>): Promise<Manifest | null> {
  try {
    const { manifest } = await makeTaggedCopy(acting, state, 'before-restore');
    return manifest;
  } catch (error) {
    if (!(error instanceof Failed) || error.failure.code !== 'SOURCE_CORRUPT') throw error;
    acting.recorder.warn(warning('SOURCE_CORRUPT', `${state.path} is structurally damaged: there can be no safety copy of it`));
    return null;
  }
}

/** The copy went in, and what is there now does not pass: the state before, if there is a copy of it. */
async function undo(acting: Acting, target: string, safety: Manifest | null, error: unknown): Promise<BodyResult> {
  if (!(error instanceof Failed) || error.failure.code !== 'ROLLBACK_FAILED' || !safety) throw error;
  const { failure } = error;
  try {
    await putBack(acting, { manifest: safety, target, isWayBack: true });
  } catch (again) {
    const why = failureOf(again);
    acting.recorder.warn(critical(why.code, `the state before could not be put back: ${describe(why).message}`));
    return { failure: { ...failure, back: { ...failure.back, copy: safety.file } }, stage: 'restore' };
  }
  const state = `the database was put back to what it was before; look at its disk (dmesg, smartctl)`;
  const restored: Failure = { code: 'RESTORE_FAILED', path: target, reason: failure.reason, state };
  return { failure: restored, stage: 'restore' };
}

/** It proves out as what it is: what could be read of a damaged database. */
export const suspectWarning = (copy: Copy): Warning =>
  critical('SOURCE_CORRUPT', `${copy.file} is suspect: its database was structurally damaged when it was made, and rows may be missing in it`);

function done(acting: Acting, copy: Copy, target: string, safety: Manifest | null, setAside: readonly string[]): BodyResult {
  const { recorder, ctx } = acting;
  if (copy.status === 'suspect') recorder.warn(suspectWarning(copy));
  recorder.setCopy(copy);
  recorder.addRestored({ file: copy.file, target, safetyCopy: safety?.file ?? null, setAside });
  if (safety) {
    const isBare = packedAs(copy.file).encrypted && !packedAs(safety.file).encrypted;
    ctx.output.info(`the state before is kept as ${safety.file}, for 30 days${isBare ? ', and not sealed as the copy is: encrypt-to is not set' : ''}`);
  }
  if (setAside.length > 0) ctx.output.info(`the old files are kept in ${dirname(setAside[0] ?? '')}`);
  ctx.output.result(`${target} (${bytes(lstatSync(target).size)})`);
  return { failure: null, stage: null };
}
