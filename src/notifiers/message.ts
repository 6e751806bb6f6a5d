/**
 * What a person is told, as text and HTML: pure, so that what is queued today and sent tomorrow is the same message.
 * Read by a tired operator on a phone: the verdict first, then what it means, what to do, and only then the details.
 * Every fact passes `redact` (no secret leaves by mail) and `printable` (no name can forge a header or turn text around).
 */
import { bytes, duration } from '../format.js';
import type { Warning } from '../outcome.js';
import type { RunRecord } from '../records.js';
import { redactValue } from '../redact.js';
import type { NotifyEvent } from '../settings/values.js';
import { printable } from '../settings/values.js';
import type { WarningNews } from './news.js';

/** A message as it is queued and sent. `name`: whose outbox it belongs to; null when no name was known. */
export interface Message {
  readonly id: string;
  /** RFC 3339, UTC. */
  readonly createdAt: string;
  readonly kind: NotifyEvent | 'status' | 'test';
  readonly name: string | null;
  readonly runId: string | null;
  readonly subject: string;
  readonly text: string;
  readonly html: string;
  /** Absent in what an older version queued, as is the record. */
  readonly host?: string | undefined;
  /** The run that it is about, redacted; lists of more than 100 entries are cut. */
  readonly record?: RunRecord | null | undefined;
}

/** What a message says besides the record. `newestGood` null: there is none to be found. `directory` null: not known. */
export interface MessageFacts {
  readonly id: string;
  readonly now: Date;
  readonly host: string;
  readonly newestGood: { readonly file: string; readonly ageSeconds: number } | null;
  /** Why that could not be looked for; null: it was. */
  readonly unseen: string | null;
  /** A command that shows what restoring the newest good copy would do; empty: none. */
  readonly restore: string;
  /** For whom commands are, and where the program is. */
  readonly user: string;
  readonly program: string;
  readonly logLines: readonly string[];
  /** The command line that tries again, ready to be pasted; empty: none. */
  readonly retry: string;
  readonly directory: string | null;
  readonly redact: (text: string) => string;
}

type Tone = 'bad' | 'partly' | 'good' | 'plain';

/** The message before it is text or HTML. Its strings are clean: only escaping is left to the renderers. */
interface Sheet {
  readonly tone: Tone;
  readonly verdict: string;
  readonly place: string;
  readonly lead: readonly string[];
  readonly todo: readonly string[];
  readonly rescue: readonly string[];
  readonly command: readonly string[];
  readonly remarks: readonly { readonly severity: Warning['severity']; readonly text: string }[];
  readonly remarksTitle: string;
  readonly details: readonly (readonly [label: string, value: string])[];
  readonly log: readonly string[];
}

const LOG_LINES = 30;
const LOG_LINE_LENGTH = 400;
const REMARKS = 20;
const TEXT_LENGTH = 2000;
const SUBJECT_LENGTH = 200;
const LIST_LENGTH = 100;

/**
 * The message about a run: it ended badly (`failure`: failed, incomplete or interrupted), well again (`recovery`), well with
 * something to be looked at (`warning`, which needs the news), or well (`success`).
 */
export function composeRun(record: RunRecord, kind: NotifyEvent, facts: MessageFacts, news: WarningNews | null = null): Message {
  const clean = cleaner(facts);
  const who = record.name ?? record.profile;
  const subject = (verdict: string, code: string | null): string =>
    ['dbbackup:', who, record.command === 'run' ? null : record.command, verdict, 'on', facts.host].filter((w) => w !== null).join(' ') +
    (code ? `: ${code}` : '');
  const head = (words: string): string => clean(who === null ? words : `${who}: ${words}`);
  const copy = record.copy;
  const base = {
    place: placeOf(facts, clean),
    command: [],
    rescue: [],
    remarks: remarksOf(record.warnings, clean),
    remarksTitle: 'Warnings of this run',
    details: detailsOf(record, facts, clean),
    log: logOf(facts, clean),
  };

  if (kind !== 'failure') {
    const made = copy
      ? `The new copy is ${copy.file} (${bytes(copy.sizeBytes)}), ${copy.status === 'good' ? 'checked and good' : copy.status}.`
      : newestOf(record, facts);
    const well = { ...base, todo: [], log: [] };
    if (kind === 'warning' && news) {
      const { tone, words, verdict, code, lead } = inWords(news);
      const told = [...news.appeared, ...news.still.map((s) => s.warning)];
      const others = record.warnings.filter((w) => !told.some((t) => t.code === w.code && t.message === w.message));
      return message(facts, kind, record, subject(words, code), {
        ...well,
        tone,
        verdict: head(verdict),
        lead: [...lead, made].map(clean),
        remarks: remarksOf(others, clean),
        remarksTitle: 'Other warnings of this run',
      });
    }
    const [words, verdict] = kind === 'recovery' ? ['RECOVERED', 'backups work again'] : ['OK', 'backup made'];
    // Green is for nights that leave nothing to look at.
    const grave = record.warnings.find((w) => w.severity === 'critical');
    return message(facts, kind, record, subject(words, grave?.code ?? null), {
      ...well,
      tone: grave ? 'partly' : 'good',
      verdict: head(grave ? `${verdict}, but there is something critical to look at` : verdict),
      lead: [...(grave ? [clean(`CRITICAL ${grave.code}: ${grave.message}`)] : []), clean(made)],
    });
  }

  const error = record.error;
  const stage = error?.stage ?? record.stages.find((s) => s.status === 'failed')?.name ?? null;
  // What restore and guard make or bring back on their way is not what people wait for.
  const good = record.command === 'run' && copy?.status === 'good';
  const rolledBack = record.status === 'rolled_back';
  const what = record.command === 'run' ? 'backup' : record.command;
  const said = error ? [`${error.code}: ${error.message}`] : ['The run did not end well and recorded no reason: see the log.'];
  const exists = good ? `A good new copy exists: ${copy.file} (${bytes(copy.sizeBytes)}).` : '';

  let verdict: string;
  let lead: string[];
  if (good && record.status === 'interrupted') {
    verdict = 'a good copy was made, then the run was interrupted';
    lead = [`${exists} Only the steps after it are missing.`, ...said];
  } else if (good) {
    verdict = `a good copy was made, but ${stage === null || stage === 'publish' ? 'a later step' : stage} failed`;
    lead = [`${exists} What failed came after it: nothing is wrong with this copy.`, ...said];
  } else {
    verdict = `${what} ${rolledBack ? 'was ROLLED BACK' : record.status === 'interrupted' ? 'was INTERRUPTED' : 'FAILED'}`;
    const suspect = copy?.status === 'suspect' ? ` What could be read was kept as the suspect copy ${copy.file}: it does not replace a good one.` : '';
    lead = [
      ...said,
      rolledBack ? 'The database is what it was before the command.' : '',
      `${record.command === 'run' ? 'No good new copy was made. ' : ''}${newestOf(record, facts)}${suspect}`,
    ];
  }
  const sheet: Sheet = {
    ...base,
    tone: good ? 'partly' : 'bad',
    verdict: head(verdict),
    lead: lead.map(clean),
    todo: error ? [clean(error.hint)] : [],
    rescue: error && isAboutTheDatabase(error.code) ? linesOf(facts.redact(facts.restore)).map(clean) : [],
    // The hint has the line that would work.
    command: error?.code === 'TARGET_OWNER' ? [] : commandOf(facts, clean),
  };
  const word = rolledBack ? 'ROLLED BACK' : record.status === 'interrupted' ? 'INTERRUPTED' : record.status === 'incomplete' ? 'INCOMPLETE' : 'FAILED';
  return message(facts, kind, record, subject(word, error && error.code !== word ? error.code : null), sheet);
}

/** It is gone or damaged: what there is instead is what counts. */
const isAboutTheDatabase = (code: string): boolean => ['SOURCE_MISSING', 'SOURCE_EMPTY', 'SOURCE_CORRUPT', 'NOT_A_DATABASE'].includes(code);

/** A message about warnings in words, the gravest first. */
function inWords(news: WarningNews): { tone: Tone; words: string; verdict: string; code: string | null; lead: string[] } {
  const now = bySeverity([...news.appeared, ...news.still.map((s) => s.warning)]);
  const [first] = now;
  const isCritical = first?.severity === 'critical';
  const said = (w: Warning): string => `${w.severity === 'critical' ? 'CRITICAL ' : ''}${w.code}: ${w.message}`;
  const lead = [
    ...bySeverity(news.appeared).map(said),
    ...news.still.map(({ warning, since }) => `Still so, since ${utc(since)}: ${said(warning)}`),
    ...news.ended.map((w) => `No longer so: ${w.code}: ${w.message}`),
  ];
  if (first) {
    const verdict = `a good copy was made, but there is ${isCritical ? 'something critical' : 'something'} to look at`;
    return { tone: isCritical ? 'bad' : 'partly', words: isCritical ? 'CRITICAL' : 'WARNING', verdict, code: first.code, lead };
  }
  return { tone: 'good', words: 'WARNING ENDED', verdict: 'a warning has ended', code: news.ended[0]?.code ?? null, lead };
}

/** What `status --notify` tells: every problem, the critical ones first. */
export function composeStatus(name: string | null, problems: readonly Warning[], facts: MessageFacts): Message {
  const clean = cleaner(facts);
  const first = bySeverity(problems)[0];
  const sheet: Sheet = {
    tone: first?.severity === 'critical' ? 'bad' : 'partly',
    verdict: clean(`${name === null ? '' : `${name}: `}backups need attention`),
    place: placeOf(facts, clean),
    lead: [...(first ? [clean(`${first.code}: ${first.message}`)] : []), clean(newestOf(null, facts))],
    todo: [],
    rescue: [],
    command: commandOf(facts, clean),
    remarks: problems.length > 1 ? remarksOf(problems, clean) : [],
    remarksTitle: 'All problems',
    details: rows(
      [
        ['Backups in', facts.directory],
        ['Newest good', newestShort(facts)],
        ['Host', facts.host],
        ['Commands as', facts.user],
        ['Program', facts.program],
      ],
      clean,
    ),
    log: logOf(facts, clean),
  };
  return message(
    facts,
    'status',
    { name, runId: null },
    `dbbackup: ${name === null ? '' : `${name} `}UNHEALTHY on ${facts.host}${first ? `: ${first.code}` : ''}`,
    sheet,
  );
}

/** What `check --send-test` sends: that messages arrive, and from where. */
export function composeTest(name: string | null, facts: MessageFacts): Message {
  const clean = cleaner(facts);
  const sheet: Sheet = {
    tone: 'plain',
    verdict: clean(`${name === null ? '' : `${name}: `}test message`),
    place: placeOf(facts, clean),
    lead: [
      'Messages of dbbackup reach you. This one says nothing about your backups, and nothing is to be done.',
      facts.newestGood ? clean(newestOf(null, facts)) : '',
    ],
    todo: [],
    rescue: [],
    command: [],
    remarks: [],
    remarksTitle: '',
    details: rows(
      [
        ['Backups in', facts.directory],
        ['Host', facts.host],
      ],
      clean,
    ),
    log: [],
  };
  return message(facts, 'test', { name, runId: null }, `dbbackup: ${name === null ? '' : `${name} `}TEST on ${facts.host}`, sheet);
}

type About = RunRecord | { readonly name: string | null; readonly runId: null };

function message(facts: MessageFacts, kind: Message['kind'], of: About, subject: string, sheet: Sheet): Message {
  const title = clip(printable(facts.redact(subject)), SUBJECT_LENGTH);
  return {
    id: facts.id,
    createdAt: facts.now.toISOString(),
    kind,
    name: of.name,
    runId: of.runId,
    subject: title,
    text: toText(sheet),
    html: toHtml(title, sheet),
    host: printable(facts.redact(facts.host)),
    record: 'command' in of ? shortened(redactValue(of, facts.redact)) : null,
  };
}

/** What waits in the outbox has to stay small, also where ten thousand copies were kept or a message has no end. */
const shortened = (record: RunRecord): RunRecord =>
  JSON.parse(
    JSON.stringify(record, (_, value: unknown) =>
      Array.isArray(value) ? value.slice(0, LIST_LENGTH) : typeof value === 'string' ? clip(value, TEXT_LENGTH) : value,
    ),
  ) as RunRecord;

type Clean = (text: string) => string;

/** Redacting comes first: a secret that was cut or escaped would no longer be found. */
const cleaner =
  (facts: MessageFacts): Clean =>
  (text) =>
    printable(clip(facts.redact(text), TEXT_LENGTH));

const linesOf = (text: string): string[] => text.split(/\r\n|\n|\r/u).filter((line) => line.trim() !== '');

const placeOf = (facts: MessageFacts, clean: Clean): string => clean(`on ${facts.host}, ${utc(facts.now.toISOString())}`);
const commandOf = (facts: MessageFacts, clean: Clean): string[] => linesOf(facts.redact(facts.retry)).map(clean);
const logOf = (facts: MessageFacts, clean: Clean): string[] => {
  const lines = facts.logLines.flatMap((line) => linesOf(facts.redact(line))).slice(-LOG_LINES);
  return lines.map((line) => clip(clean(line), LOG_LINE_LENGTH));
};

const bySeverity = (warnings: readonly Warning[]): Warning[] => [
  ...warnings.filter((w) => w.severity === 'critical'),
  ...warnings.filter((w) => w.severity !== 'critical'),
];

function remarksOf(warnings: readonly Warning[], clean: Clean): Sheet['remarks'] {
  const shown = bySeverity(warnings)
    .slice(0, REMARKS)
    .map((w) => ({ severity: w.severity, text: clean(`${w.code}: ${w.message}`) }));
  const more = warnings.length - shown.length;
  return more > 0 ? [...shown, { severity: 'warning', text: `and ${more} more` }] : shown;
}

/** Where to restore from now: the first question after "what failed". */
function newestOf(record: RunRecord | null, facts: MessageFacts): string {
  const newest = facts.newestGood;
  if (newest) return record?.copy?.file === newest.file ? '' : `The newest good copy is ${newest.file}, ${age(newest.ageSeconds)}.`;
  if (facts.directory === null) return 'Which copies there are could not be looked up: the backup directory is not known.';
  if (facts.unseen !== null) return `Which copies there are could not be looked up: ${facts.unseen}.`;
  return `There is NO good copy to be found in ${facts.directory}.`;
}

const newestShort = (facts: MessageFacts): string | null =>
  facts.newestGood ? `${facts.newestGood.file}, ${age(facts.newestGood.ageSeconds)}` : facts.directory === null || facts.unseen !== null ? null : 'none';

function detailsOf(record: RunRecord, facts: MessageFacts, clean: Clean): Sheet['details'] {
  const error = record.error;
  const stages = record.stages.map(
    (s) => `${s.name} ${s.status === 'ok' ? duration(s.durationMs) : s.status === 'failed' ? `FAILED after ${duration(s.durationMs)}` : s.status}`,
  );
  return rows(
    [
      ['Failed at', error ? (error.stage ?? betweenStages(record, error.code)) : null],
      ['Source', record.source?.path ?? record.copy?.source ?? null],
      ['Backups in', facts.directory],
      [
        'Command',
        record.child
          ? `${record.child.signal ? `ended by ${record.child.signal}` : `exit code ${record.child.exitCode}`} after ${duration(record.child.durationMs)}`
          : null,
      ],
      ['Backup point', record.backupPoint ?? null],
      ['Restored to', record.restored?.target ?? null],
      ['State before', record.restored?.safetyCopy ?? null],
      ['Set aside', record.setAside ?? (record.restored?.setAside.join(', ') || null)],
      [record.command === 'restore' ? 'Copy' : 'New copy', record.copy ? `${record.copy.file}, ${bytes(record.copy.sizeBytes)}, ${record.copy.status}` : null],
      ['Newest good', newestShort(facts)],
      ['Stages', stages.join(', ') || null],
      ['Took', record.durationMs === null ? null : duration(record.durationMs)],
      ['Started', utc(record.startedAt)],
      ['Host', facts.host],
      ['Commands as', facts.user],
      ['Program', facts.program],
      ['Profile', record.profile],
      ['Run', record.runId],
      ['Exit code', record.exitCode === null ? null : String(record.exitCode)],
    ],
    clean,
  );
}

function betweenStages(record: RunRecord, code: string): string {
  if (code === 'HOOK_FAILED') return 'the hook before';
  return record.stages.length === 0 && record.status === 'failed' ? 'before the first stage' : 'not recorded';
}

const rows = (all: readonly (readonly [string, string | null])[], clean: Clean): Sheet['details'] =>
  all.flatMap(([label, value]) => (value === null ? [] : [[label, clean(value)] as const]));

const RESCUE = 'What the newest good copy would bring back; changes nothing';

function toText(sheet: Sheet): string {
  const section = (title: string, lines: readonly string[]): string[] =>
    lines.length === 0 ? [] : ['', title.toUpperCase(), ...lines.map((line) => `  ${line}`)];
  const width = Math.max(0, ...sheet.details.map(([label]) => label.length));
  const lines = [
    sheet.verdict,
    sheet.place,
    ...sheet.lead.filter(Boolean).flatMap((p) => ['', p]),
    ...section('What to do', sheet.todo),
    ...section(RESCUE, sheet.rescue),
    ...section(sheet.todo.length > 0 ? 'Then try again' : 'Try', sheet.command),
    ...section(
      sheet.remarksTitle,
      sheet.remarks.map((r) => `${r.severity === 'critical' ? 'CRITICAL ' : ''}${r.text}`),
    ),
    ...section(
      'Details',
      sheet.details.map(([label, value]) => `${label.padEnd(width)}  ${value}`),
    ),
    ...section('Last log lines', sheet.log),
  ];
  return `${lines.join('\n')}\n`;
}

const TONES: Record<Tone, string> = { bad: '#b3261e', partly: '#8a5200', good: '#1b6e3c', plain: '#44546a' };

const escapeHtml = (text: string): string => text.replace(/[&<>"']/gu, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c] ?? '&#39;');

/**
 * Inline styles only: mail programs drop the rest. No colour of text or page is set outside the verdict, so that a dark
 * mail program shows its own; greys are translucent for the same reason. Nothing is loaded from anywhere.
 */
function toHtml(title: string, sheet: Sheet): string {
  const e = escapeHtml;
  const section = (name: string, body: string): string =>
    body === '' ? '' : `<h2 style="font-size:13px;letter-spacing:.06em;text-transform:uppercase;opacity:.7;margin:24px 0 6px">${e(name)}</h2>${body}`;
  const code = (lines: readonly string[], fontSize: number): string =>
    lines.length === 0
      ? ''
      : `<pre style="font:${fontSize}px/1.45 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;word-break:break-word;background:rgba(128,128,128,.16);border-radius:6px;padding:10px 12px;margin:0">${lines.map(e).join('\n')}</pre>`;
  const paragraphs = (texts: readonly string[], size: number): string =>
    texts.map((p) => `<p style="font-size:${size}px;margin:12px 0 0;overflow-wrap:anywhere">${e(p)}</p>`).join('');
  const remark = (r: Sheet['remarks'][number]): string =>
    `<li style="margin:4px 0;overflow-wrap:anywhere">${r.severity === 'critical' ? `<b style="background:${TONES.bad};color:#fff;border-radius:4px;padding:0 5px">critical</b> ` : ''}${e(r.text)}</li>`;
  const row = ([label, value]: Sheet['details'][number]): string =>
    `<tr><td style="opacity:.7;padding:3px 14px 3px 0;vertical-align:top;width:1%;min-width:84px">${e(label)}</td><td style="padding:3px 0;vertical-align:top;overflow-wrap:anywhere;word-break:break-word">${e(value)}</td></tr>`;

  return [
    '<!doctype html>',
    '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">',
    `<meta name="color-scheme" content="light dark"><meta name="supported-color-schemes" content="light dark"><title>${e(title)}</title></head>`,
    '<body style="margin:0;padding:16px"><div style="max-width:680px;margin:0 auto;font:15px/1.5 -apple-system,BlinkMacSystemFont,Segoe UI,Roboto,Helvetica,Arial,sans-serif">',
    `<div style="background:${TONES[sheet.tone]};color:#fff;border-radius:8px;padding:14px 16px">`,
    `<div style="font-size:20px;line-height:1.3;font-weight:bold;overflow-wrap:anywhere">${e(sheet.verdict)}</div>`,
    `<div style="font-size:14px;margin-top:4px;overflow-wrap:anywhere">${e(sheet.place)}</div></div>`,
    paragraphs(sheet.lead.filter(Boolean), 17),
    section('What to do', paragraphs(sheet.todo, 15).replace('margin:12px 0 0', 'margin:0')),
    section(RESCUE, code(sheet.rescue, 14)),
    section(sheet.todo.length > 0 ? 'Then try again' : 'Try', code(sheet.command, 14)),
    section(sheet.remarksTitle, sheet.remarks.length === 0 ? '' : `<ul style="margin:0;padding-left:20px">${sheet.remarks.map(remark).join('')}</ul>`),
    section(
      'Details',
      sheet.details.length === 0
        ? ''
        : `<table role="presentation" style="border-collapse:collapse;width:100%;font-size:14px">${sheet.details.map(row).join('')}</table>`,
    ),
    section('Last log lines', code(sheet.log, 12)),
    '</div></body></html>',
    '',
  ]
    .filter((part, i, all) => part !== '' || i === all.length - 1)
    .join('\n');
}

/** Cut by characters, never inside a surrogate pair. */
function clip(text: string, length: number): string {
  if (text.length <= length) return text;
  return `${Array.from(text).slice(0, length).join('')}...`;
}

const utc = (time: string): string => `${time.slice(0, 19).replace('T', ' ')} UTC`;

function age(seconds: number): string {
  if (seconds < -60) return 'dated in the future';
  if (seconds < 120) return `${Math.max(0, Math.floor(seconds))} s old`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min old`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h old`;
  return `${Math.floor(seconds / 86_400)} days old`;
}
