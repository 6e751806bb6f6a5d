/** The stage `upload` of a run: its time limit, its line, its place in the record. */
import type { Acting } from './acting.js';
import type { DestinationUrl } from './destinations/url.js';
import { plural } from './format.js';
import { historyWarning } from './history.js';
import type { Failure } from './outcome.js';
import { Failed } from './outcome.js';
import type { UploadResult } from './records.js';
import { again } from './retry.js';
import type { Uploaded } from './stages/upload.js';
import { Books, upload, uploadFailure } from './stages/upload.js';

const note = ({ results }: Uploaded): string =>
  results.map((r) => `${r.destination}: ${r.error ? `FAILED, ${r.error.message}` : plural(r.uploaded.length, 'copy', 'copies')}`).join('; ');

/** The last attempt counts, with all that arrived before it. */
function replaceResult(results: UploadResult[], now: UploadResult): void {
  const at = results.findIndex((r) => r.destination === now.destination);
  const before = results[at];
  if (before) results[at] = { ...now, uploaded: [...before.uploaded, ...now.uploaded] };
  else results.push(now);
}

/** Uploads to what is configured. UPLOAD_FAILED where a destination lacks something, or null. Throws a signal's `Failed`. */
export async function uploadStage(acting: Acting, made: string): Promise<Failure | null> {
  const { ctx, config, name, recorder } = acting;
  const settings = config.upload;
  // A run that was ended in its prune has no time for this; the next one has.
  if (settings.to.length === 0 || acting.signal.aborted) return null;
  acting.stopClock();
  const limits = new Limits(settings.timeoutMs);
  const { openDestination } = await import('./destinations/open.js');
  const env = { ...ctx.childEnv, ...settings.env };
  const results: UploadResult[] = [];
  const input = {
    ...config,
    name,
    made,
    scratch: acting.workspace.directory,
    books: new Books(acting.ledger(), (error) => recorder.warn(historyWarning(config.stateDir, 'written', error))),
    startedAt: recorder.startedAt,
    now: () => ctx.clock.now(),
    open: (url: DestinationUrl) => openDestination(url, env, { apartFrom: [config.to] }),
    signal: ctx.signal,
    limit: (url: DestinationUrl) => limits.of(url),
    done: (result: UploadResult) => {
      replaceResult(results, result);
      recorder.setUploads([...results], null);
    },
    warn: recorder.warn.bind(recorder),
    progress: (done: number, total: number) => ctx.output.progress('upload', done, total),
  };
  try {
    for (let attempt = 1, to = settings.to; ; attempt++) {
      const { failure } = await recorder.stage('upload', () => upload({ ...input, upload: { ...settings, to } }), note);
      recorder.setUploads([...results], failure);
      const silent = results.filter((r) => r.error?.code === 'UPLOAD_UNREACHABLE').map((r) => r.destination);
      to = settings.to.filter((url) => silent.includes(url.shown) && !limits.of(url).aborted);
      // They began in this order, so the time of the last one ends last.
      const last = to.at(-1);
      if (!failure || !last || attempt > config.retries.count || ctx.signal.aborted) break;
      try {
        await again({ recorder, config, signal: AbortSignal.any([ctx.signal, limits.of(last)]) }, attempt, failure);
      } catch (error) {
        if (ctx.signal.aborted) throw error;
        // upload-timeout ends the wait, and what the last attempt failed with is why something is missing.
        break;
      }
      recorder.nextAttempt();
    }
    for (const r of results) for (const p of r.pruned) ctx.output.detail(`removed ${p.file} at ${r.destination}: ${p.reason}`);
    // Of all of them: one that is not worth another attempt has failed all the same.
    return uploadFailure(results);
  } finally {
    limits.clear();
  }
}

/** `upload-timeout`, for each destination its own: one that stalls takes nothing from the next. It counts from the first attempt on. */
class Limits {
  readonly #timeoutMs: number;
  readonly #begun = new Map<string, { readonly signal: AbortSignal; readonly timer: NodeJS.Timeout }>();

  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  of({ shown }: DestinationUrl): AbortSignal {
    const begun = this.#begun.get(shown);
    if (begun) return begun.signal;
    const controller = new AbortController();
    const over = new Failed({ code: 'TIMEOUT', afterMs: this.#timeoutMs, published: null });
    const timer = setTimeout(() => controller.abort(over), Math.min(this.#timeoutMs, 0x7fffffff));
    this.#begun.set(shown, { signal: controller.signal, timer });
    return controller.signal;
  }

  clear(): void {
    for (const { timer } of this.#begun.values()) clearTimeout(timer);
  }
}

/** From now on a copy of this run is owed to the destinations, also when it is killed before it comes to them. Needs `begin`. */
export function oweUploads(acting: Acting): void {
  const { config, name, recorder } = acting;
  try {
    for (const url of config.upload.to) acting.ledger()?.destinationSince(url.shown, name, recorder.startedAt);
  } catch (error) {
    recorder.warn(historyWarning(config.stateDir, 'written', error));
  }
}
