/**
 * A message as Slack's incoming webhooks take it. The subject stands as text, so that a phone shows it; the rest in a code
 * block, in which nothing is formatted. Escaped as Slack's "Formatting text for app surfaces" wants it: & < > and nothing else.
 */
import { printableJson } from '../settings/values.js';
import type { Message } from './message.js';

/** Slack cuts at 40,000 characters and asks for at most 4,000. */
const LENGTH = 4000;
const FENCE = '```';
const MORE = '... (dbbackup history and the log have the rest)';

/** The JSON to be posted. */
export function slackBody(message: Message): string {
  const subject = escaped(message.subject);
  const text = `${subject}\n${FENCE}\n${fitting(message.text.trimEnd().split('\n'), LENGTH - subject.length - MORE.length - 10).join('\n')}\n${FENCE}`;
  // Only `<...>` is a mention or a link by itself, and that is escaped; these keep Slack from finding more on its own.
  return printableJson(JSON.stringify({ text, parse: 'none', link_names: false, unfurl_links: false, unfurl_media: false }));
}

/** A fence in a text would end the code block. */
const escaped = (text: string): string =>
  text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replace(/`{3,}/gu, (ticks) => "'".repeat(ticks.length));

/** As many lines, escaped, as fit: what matters comes first. A line is cut only where not even the first one fits. */
function fitting(lines: readonly string[], budget: number): string[] {
  const fit: string[] = [];
  let left = budget;
  for (const line of lines) {
    const whole = escaped(line);
    left -= whole.length + 1;
    if (left < 0)
      return fit.length > 0
        ? [...fit, MORE]
        : [
            escaped(
              Array.from(line)
                .slice(0, Math.floor(budget / 6))
                .join(''),
            ),
            MORE,
          ];
    fit.push(whole);
  }
  return fit;
}
