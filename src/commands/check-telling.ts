/** The part of `check` that is about people: what can be known of each channel without sending, or with --send-test by sending. */
import { randomUUID } from 'node:crypto';
import type { Context } from '../context.js';
import { CHANNEL_WORDS, sendNow } from '../notifiers/delivery.js';
import { lookUpHost } from '../notifiers/http.js';
import { verifyMailServer } from '../notifiers/mail.js';
import { composeTest } from '../notifiers/message.js';
import type { Letter } from '../notifiers/outbox.js';
import { ping } from '../notifiers/ping.js';
import { notifyFailure } from '../notifiers/undelivered.js';
import type { Warning } from '../outcome.js';
import { critical, describe, warning } from '../outcome.js';
import type { Config, MailSettings, Telling } from '../settings/load.js';
import { lettersToAll, messageFacts } from '../stages/report.js';

/** Adds a problem for each channel that cannot be used, all of them side by side; a test goes to every one. */
export async function checkTelling(ctx: Context, config: Config, name: string, sendTest: boolean, problems: Warning[]): Promise<void> {
  const { telling } = config;
  if (Object.values(telling).every((channel) => channel === null)) {
    problems.push(
      sendTest
        ? critical('NOBODY_HEARS', 'there is nobody to send a test to: set mail-to and smtp-url, slack-webhook, webhook or ping-url')
        : warning('NOBODY_HEARS', 'no mail-to, slack-webhook, webhook or ping-url is set: a failure will only be seen by who looks'),
    );
    return;
  }
  const found = sendTest ? await sendTests(ctx, config, name) : await lookAtAll(ctx, telling);
  problems.push(...found.filter((problem) => problem !== null));
}

type Found = readonly (Warning | null)[];

/** Mail servers are talked to, since they can be without a mail being sent; of the others the host is looked up. */
const lookAtAll = ({ signal, childEnv: env }: Context, { mail, slack, webhook, ping: pingUrl }: Telling): Promise<Found> =>
  Promise.all([
    mail && problemOf('the mail server cannot be used: ', verifyMailServer(mail, { signal, env })),
    slack && problemOf('', lookUpHost(CHANNEL_WORDS.slack, slack.url, { signal })),
    webhook && problemOf('', lookUpHost(CHANNEL_WORDS.webhook, webhook.url, { signal })),
    pingUrl && problemOf('', lookUpHost('ping', pingUrl, { signal })),
  ]);

async function problemOf(words: string, look: Promise<unknown>): Promise<Warning | null> {
  try {
    await look;
    return null;
  } catch (error) {
    return critical('NOTIFY_FAILED', `${words}${notifyFailure(error).reason}`);
  }
}

async function sendTests(ctx: Context, config: Config, name: string): Promise<Found> {
  const { telling } = config;
  const test = async (letter: Letter): Promise<Warning | null> => {
    const { failure } = await sendNow(letter, telling, ctx, ctx.signal);
    if (failure) return critical('NOTIFY_FAILED', `the test message: ${describe(failure).message}`);
    ctx.output.info(`a test message was sent to ${whom(letter, telling)}`);
    return null;
  };
  const pinged = async (url: URL): Promise<Warning | null> => {
    // An entry in its log: start, success or failure would say something about a run that there was not.
    const problem = await problemOf(
      'the test message: ',
      ping(url, 'log', randomUUID(), ['dbbackup check --send-test'], { signal: ctx.signal, now: ctx.clock.now() }),
    );
    if (!problem) ctx.output.info(`a test message was sent to the ping at ${url.host}`);
    return problem;
  };
  const message = composeTest(name, messageFacts(ctx, { ...config, name }, []));
  return Promise.all([...lettersToAll(telling, message, true).map(test), telling.ping && pinged(telling.ping)]);
}

function whom({ channel }: Letter, telling: Telling): string {
  const addressesOf = ({ to, critical: worst }: MailSettings): string => [...new Set([...to, ...worst])].join(', ');
  const settings = telling[channel];
  if (!settings) return channel;
  return 'route' in settings ? addressesOf(settings) : `the ${CHANNEL_WORDS[channel]} at ${settings.url.host}`;
}
