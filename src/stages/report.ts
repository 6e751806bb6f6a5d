/**
 * The last stage, always: people are told. Which messages a finished run calls for is decided from its record and the
 * history (`notifiers/news.ts`), who gets them from the settings, here; `notifiers/delivery.ts` sees to it that they arrive.
 */
import { randomUUID } from 'node:crypto';
import { newestGood } from '../catalog.js';
import type { Context } from '../context.js';
import type { Message, MessageFacts } from '../notifiers/message.js';
import { composeRun } from '../notifiers/message.js';
import type { Occasion } from '../notifiers/news.js';
import { isCritical } from '../notifiers/news.js';
import type { Audience, Letter } from '../notifiers/outbox.js';
import type { Whereabouts } from '../outcome.js';
import { errnoWords, restoreLine } from '../outcome.js';
import type { RunRecord } from '../records.js';
import type { MailSettings, NotifyEvent, Telling } from '../settings/load.js';
import { CHANNELS } from '../settings/values.js';
import { realOrSame } from '../system/files.js';
import { shellWord, userName } from '../system/processes.js';
import { whereabouts } from '../workspace.js';

/** Whether the command at work now is the one to try again: not where it only tells of another. */
export type Again = 'this command' | 'nothing';

/** What a message says besides the record. */
export function messageFacts(
  ctx: Context,
  about: Whereabouts & { readonly name: string | null; readonly profile: string | null; readonly database: string | null },
  logLines: readonly string[],
  again: Again = 'this command',
): MessageFacts {
  const now = ctx.clock.now();
  const { to, stateDir, name, profile, database } = about;
  const newest = to === null || name === null ? null : newestOf(to, name, now);
  const copy = newest !== null && 'file' in newest ? newest : null;
  const at = to === null || stateDir === null ? { to, stateDir: null } : whereabouts(to, stateDir);
  return {
    id: randomUUID(),
    now,
    host: ctx.host,
    newestGood: copy,
    unseen: newest !== null && 'unseen' in newest ? newest.unseen : null,
    restore: copy && database !== null ? restoreLine({ ...at, copy: copy.file, target: realOrSame(database), name, profile }, '--dry-run') : '',
    user: userName(ctx.identity.uid),
    program: ctx.invocation[0] ?? 'dbbackup',
    logLines,
    retry: again === 'this command' ? retryLine(ctx) : '',
    directory: to,
    redact: ctx.output.redact,
  };
}

/** The command line once more, for a person: relative paths in it count from there, and --quiet would leave him without an answer. */
function retryLine({ cwd, again, identity }: Context): string {
  const end = again.includes('--') ? again.indexOf('--') : again.length;
  const words = again.filter((word, i) => i > end || !['-q', '--quiet'].includes(word));
  // Whoever reads the mail is not whom the backups belong to, mostly.
  const who = identity.uid === 0 ? [] : ['sudo', '-u', userName(identity.uid)];
  return `cd ${shellWord(cwd)} && ${[...who, ...words.map(shellWord)].join(' ')}`;
}

function newestOf(to: string, name: string, now: Date): MessageFacts['newestGood'] | { readonly unseen: string } {
  try {
    const copy = newestGood(to, name, now.getTime());
    return copy && { file: copy.file, ageSeconds: Math.max(0, Math.round((now.getTime() - Date.parse(copy.createdAt)) / 1000)) };
  } catch (error) {
    return { unseen: errnoWords(error) };
  }
}

/** The messages that a finished run calls for, one for each channel and audience that is to hear of it. */
export function lettersFor(
  ctx: Context,
  telling: Telling,
  record: RunRecord,
  occasion: Occasion,
  about: Whereabouts & { readonly database: string | null; readonly logLines: readonly string[]; readonly again?: Again },
): Letter[] {
  const composed = new Map<NotifyEvent, Message>();
  const compose = (event: NotifyEvent): Message => {
    const message = composed.get(event) ?? composeRun(record, event, messageFacts(ctx, { ...record, ...about }, about.logLines, about.again), occasion.news);
    composed.set(event, message);
    return message;
  };
  return CHANNELS.flatMap((channel) => {
    const settings = telling[channel];
    const event = settings && occasion.events.find((e) => settings.on.has(e));
    const regular = event ? compose(event) : null;
    if (channel !== 'mail') return regular ? [{ channel, audience: 'everyone', message: regular } as const] : [];
    const grave = occasion.events.includes('failure') ? 'failure' : occasion.news && isCritical(occasion.news) ? 'warning' : null;
    return mailLetters(telling.mail, regular, grave && telling.mail && telling.mail.critical.length > 0 ? compose(grave) : null);
  });
}

/** The same message goes to both in one mail; of two, who is in both gets the grave one. */
function mailLetters(mail: MailSettings | null, regular: Message | null, grave: Message | null): Letter[] {
  const letter = (audience: Audience, message: Message | null): Letter[] => (message ? [{ channel: 'mail', audience, message }] : []);
  if (!mail || mail.to.length === 0) return letter('critical', grave);
  if (regular === grave) return letter('everyone', regular);
  const without = grave ? mail.to.filter((address) => mail.critical.includes(address)) : [];
  const toThem = letter('regular', regular).map((one) => (without.length > 0 ? { ...one, without } : one));
  return [...(without.length < mail.to.length ? toThem : []), ...letter('critical', grave)];
}

/** One message to all channels that are set. `grave`: also for those who want to know of nothing else. */
export function lettersToAll(telling: Telling, message: Message, grave: boolean): Letter[] {
  return CHANNELS.flatMap((channel): Letter[] => {
    if (!telling[channel]) return [];
    if (channel === 'mail') return mailLetters(telling.mail, message, grave ? message : null);
    return [{ channel, audience: 'everyone', message }];
  });
}
