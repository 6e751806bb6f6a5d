/** The stage `upload` of a run: its time limit, its line, its place in the record. */
import type { Acting } from './acting.js';
import { plural } from './format.js';
import type { Failure } from './outcome.js';
import { Failed } from './outcome.js';
import type { UploadResult } from './records.js';
import { again } from './retry.js';
import type { Uploaded } from './stages/upload.js';
import { upload } from './stages/upload.js';

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
  const limit = new AbortController();
  const over = new Failed({ code: 'TIMEOUT', afterMs: settings.timeoutMs, published: null });
  const timer = setTimeout(() => limit.abort(over), Math.min(settings.timeoutMs, 0x7fffffff));
  const { openDestination } = await import('./destinations/open.js');
  const env = { ...ctx.childEnv, ...settings.env };
  const input = {
    ...config,
    name,
    made,
    ledger: acting.ledger(),
    startedAt: recorder.startedAt,
    now: () => ctx.clock.now(),
    open: (url: (typeof settings.to)[number]) => openDestination(url, env, { apartFrom: [config.to] }),
    signal: AbortSignal.any([ctx.signal, limit.signal]),
    warn: recorder.warn.bind(recorder),
    progress: (done: number, total: number) => ctx.output.progress('upload', done, total),
  };
  try {
    const results: UploadResult[] = [];
    let failure: Failure | null = null;
    for (let attempt = 1, to = settings.to; ; attempt++) {
      const last = await recorder.stage('upload', () => upload({ ...input, upload: { ...settings, to } }), note);
      failure = last.failure;
      for (const r of last.results) replaceResult(results, r);
      recorder.setUploads([...results], failure);
      to = settings.to.filter((url) => results.some((r) => r.destination === url.shown && r.error?.code === 'UPLOAD_UNREACHABLE'));
      if (!failure || to.length === 0 || attempt > config.retries.count || input.signal.aborted) break;
      await again({ ...acting, signal: input.signal }, attempt, failure);
      recorder.nextAttempt();
    }
    for (const r of results) for (const p of r.pruned) ctx.output.detail(`removed ${p.file} at ${r.destination}: ${p.reason}`);
    return failure;
  } finally {
    clearTimeout(timer);
  }
}
