/** Which stored copy the operator means: `latest`, a file of the directory, or a time. */
import { basename, dirname, resolve } from 'node:path';
import type { CopyFile } from './catalog.js';
import { isAhead, isPlainGood, parseCopyFile, readCopies, readCopy, scan, unverifiedCopy } from './catalog.js';
import { lookFailure } from './look-failure.js';
import { resolveName } from './names.js';
import type { Warning } from './outcome.js';
import { Failed, warning } from './outcome.js';
import { copiesIn, placeOf } from './place.js';
import type { Copy, CopyStatus } from './records.js';
import type { Config } from './settings/load.js';
import { lstatOrNull } from './system/files.js';

/** What a command works on: one name, and its copies in the order they were asked for. */
export interface Chosen {
  readonly name: string;
  readonly copies: readonly Copy[];
  /** What is newer than the one that was looked for, or as new as was asked for, and is not good; newest first. */
  readonly passedOver: readonly PassedOver[];
}

interface PassedOver {
  readonly file: string;
  readonly why: Exclude<CopyStatus, 'good'> | 'dated ahead';
}

const CODES: Record<PassedOver['why'], Warning['code']> = { bad: 'COPY_BAD', suspect: 'SOURCE_CORRUPT', unverified: 'COPY_UNVERIFIED', 'dated ahead': 'CLOCK' };

/** Who gets an older state than there seems to be is told so; null: there is nothing to tell. */
export function passedOverWarning({ copies, passedOver }: Chosen): Warning | null {
  const [first] = passedOver;
  if (!first) return null;
  const listed = passedOver.slice(0, 3).map(({ file, why }) => `${file} (${why})`);
  const more = passedOver.length > 3 ? `, and ${passedOver.length - 3} more` : '';
  return warning(CODES[first.why], `not taken, though newer than ${copies[0]?.file ?? 'it'}: ${listed.join(', ')}${more}`);
}

/**
 * Files by name (of data or manifest, bare or with the directory), or `latest`; nothing: latest. Throws `Failed` with
 * COPY_NOT_FOUND or USAGE.
 * @param now milliseconds since the epoch
 */
export function chooseCopies(config: Config, words: readonly string[], cwd: string, now: number): Chosen {
  requireDirectory(copiesIn(config));
  const files = words.filter((word) => word !== 'latest').map((word) => fileOf(config, word, cwd));
  const names = [...new Set(files.map((f) => f.name))];
  const given = config.nameGiven ? config.name : null;
  const other = names.find((n) => given !== null && n !== given);
  if (other !== undefined)
    throw new Failed({
      code: 'COPY_NOT_FOUND',
      path: placeOf(config),
      reason: `${other} is not ${given}, which --name or the profile says`,
      to: placeOf(config),
    });
  if (names.length > 1)
    throw new Failed({ code: 'USAGE', message: `these copies have several names: ${names.join(', ')}`, hint: 'name the copies of one at a time' });
  const name = names[0] ?? requireName(config);
  const latest = words.length === files.length && words.length > 0 ? null : newestBefore(config, name, Number.POSITIVE_INFINITY, now);
  if (latest && !latest.copy) {
    const reason = `there is no good copy of ${name}${others(copiesIn(config), name)}`;
    throw new Failed({ code: 'COPY_NOT_FOUND', path: placeOf(config), reason, to: placeOf(config) });
  }
  const copies = [...(latest?.copy ? [latest.copy] : []), ...files.map((f) => copyAt(config, f))];
  // Named twice, by its data and its manifest perhaps, it is one copy.
  const once = copies.filter((c, i) => copies.findIndex((other) => other.file === c.file) === i);
  return { name, copies: once, passedOver: latest?.passedOver ?? [] };
}

/** All copies of the name. Throws `Failed` with COPY_NOT_FOUND where there is none: a name that is wrong must not look like proof. */
export function chooseAll(config: Config): Chosen {
  requireDirectory(copiesIn(config));
  const name = requireName(config);
  const copies = everyCopy(config, name);
  if (copies.length === 0) throw new Failed({ code: 'COPY_NOT_FOUND', path: placeOf(config), reason: `there is no copy of ${name}`, to: placeOf(config) });
  return { name, copies, passedOver: [] };
}

function everyCopy(config: Config, name: string): Copy[] {
  try {
    return [...readCopies(copiesIn(config), name), ...notFiles(copiesIn(config), name)];
  } catch (error) {
    throw new Failed(lookFailure(placeOf(config), error), { cause: error });
  }
}

/** What is named like a copy's data and is no file: listings pass over it, but a manifest beside it says that there was one. */
const notFiles = (to: string, name: string): Copy[] => {
  const files = scan(to).filter((f) => f.name === name);
  const manifests = new Set(files.filter((f) => f.kind === 'manifest').map((f) => f.base));
  const owner = lstatOrNull(to)?.uid;
  return files
    .filter((f) => {
      const stats = f.kind === 'data' && manifests.has(f.base) ? lstatOrNull(`${to}/${f.file}`) : null;
      // What a third user put there is nobody's copy (see readCopy).
      return stats && !stats.isFile() && (stats.uid === 0 || stats.uid === owner);
    })
    .map((f) => unverifiedCopy(f, 0));
};

/** The newest good copy made at or before a time. */
export function chooseByTime(config: Config, timestamp: string, now: number): Chosen {
  requireDirectory(copiesIn(config));
  const name = requireName(config);
  const at = parseTime(timestamp);
  const { copy, passedOver } = newestBefore(config, name, at, now);
  if (copy) return { name, copies: [copy], passedOver };
  throw new Failed({
    code: 'COPY_NOT_FOUND',
    path: placeOf(config),
    reason: `there is no good copy of ${name} made at or before ${new Date(at).toISOString()}`,
    to: placeOf(config),
  });
}

/** The newest copy that `latest` means, made at or before a time, and what it was looked for behind. */
function newestBefore(config: Config, name: string, at: number, now: number): { copy: Copy | null; passedOver: PassedOver[] } {
  const passedOver: PassedOver[] = [];
  for (const file of scan(copiesIn(config))) {
    if (file.kind !== 'data' || file.name !== name || file.createdAt > at) continue;
    const copy = readCopy(copiesIn(config), file);
    if (!copy) continue;
    const ahead = isAhead(copy, now);
    if (isPlainGood(copy) && !ahead) return { copy, passedOver };
    // A tagged one is not passed over: it is of another kind.
    if (copy.tags.length === 0) passedOver.push({ file: copy.file, why: copy.status === 'good' ? 'dated ahead' : copy.status });
  }
  return { copy: null, passedOver };
}

/** RFC 3339, also as a terminal shows it; or a date: the end of that day, UTC; or the stamp of a copy's name. Milliseconds since the epoch. */
function parseTime(text: string): number {
  const stamp = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(text);
  const [, y, mo, d, h, mi, s] = stamp ?? [];
  const at = /^\d{4}-\d\d-\d\d$/.test(text)
    ? Date.parse(`${text}T23:59:59.999Z`)
    : stamp
      ? Date.parse(`${y}-${mo}-${d}T${h}:${mi}:${s}Z`)
      : /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)? ?([Zz]|[+-]\d\d:\d\d)$/.test(text)
        ? Date.parse(text.replace(' ', 'T').replace(' ', '').toUpperCase())
        : Number.NaN;
  // A day that no month has would silently become one of the next month.
  const day = /^(\d{4})-?(\d\d)-?(\d\d)/.exec(text)?.slice(1).join('-') ?? '';
  const exists = new Date(`${day}T00:00:00Z`);
  if (!Number.isNaN(at) && !Number.isNaN(exists.getTime()) && exists.toISOString().startsWith(day)) return at;
  throw new Failed({
    code: 'USAGE',
    message: `--timestamp "${text}" is no time`,
    hint: 'write it like 2026-11-21T03:17:00Z, 2026-11-21T04:17:00+01:00, or 2026-11-21 for the end of that day (UTC)',
  });
}

function requireDirectory(to: string): void {
  if (!lstatOrNull(to)) throw new Failed({ code: 'COPY_NOT_FOUND', path: to, reason: 'there is no such directory', to, missing: true });
}

function requireName(config: Config): string {
  const name = resolveName(config);
  if (name === null) throw new Failed({ code: 'COPY_NOT_FOUND', path: placeOf(config), reason: 'it holds no copies', to: placeOf(config) });
  return name;
}

/** What there is instead: it can be asked for by its name. */
function others(to: string, name: string): string {
  const [first] = readCopies(to, name).filter((c) => c.status === 'suspect' || (c.status === 'good' && c.tags.length > 0));
  return first ? ` that is not tagged; by name there would be ${first.file} (${[first.status, ...first.tags].join(', ')})` : '';
}

function fileOf(config: Config, word: string, cwd: string): CopyFile {
  const file = basename(word);
  const bare = file === word;
  if (!bare && dirname(resolve(cwd, word)) !== copiesIn(config)) {
    throw new Failed({ code: 'COPY_NOT_FOUND', path: word, reason: `it is not in ${placeOf(config)}`, to: placeOf(config) });
  }
  const named = parseCopyFile(file);
  // The manifest stands for its copy.
  const parsed = named?.kind === 'manifest' ? scan(copiesIn(config)).find((f) => f.kind === 'data' && f.base === named.base) : named;
  if (parsed?.kind !== 'data') throw new Failed({ code: 'COPY_NOT_FOUND', path: word, reason: 'no copy has such a name', to: placeOf(config) });
  return parsed;
}

function copyAt(config: Config, file: CopyFile): Copy {
  const copy = readCopy(copiesIn(config), file);
  const to = placeOf(config);
  if (!copy) throw new Failed({ code: 'COPY_NOT_FOUND', path: config.from ? file.file : `${to}/${file.file}`, reason: 'there is no such copy', to });
  return copy;
}
