/** The one redactor: every text that leaves the process, on whatever way, passes it. */

export type Redact = (text: string) => string;

/** Shorter ones would black out ordinary words and tell more than they hide. */
const SHORTEST = 4;

/** Where there are none. */
export const redactNothing: Redact = (text) => text;

/** Replaces every secret, longest first, so that a URL goes as a whole before its password does. */
export function redactor(secrets: readonly string[]): Redact {
  const known = [...new Set(secrets)].filter((s) => s.length >= SHORTEST).sort((a, b) => b.length - a.length);
  if (known.length === 0) return redactNothing;
  return (text) => known.reduce((t, secret) => t.replaceAll(secret, '***'), text);
}

/** All strings inside a JSON value, redacted before they are escaped, since escaping would hide a secret from a search. */
export function redactValue<T>(value: T, redact: Redact): T {
  if (redact === redactNothing) return value;
  return JSON.parse(JSON.stringify(value, (_, v: unknown) => (typeof v === 'string' ? redact(v) : v))) as T;
}

/** The same of a record for the history, which is looked up by its name: that stands in the names of files, and stays as it is. */
export const redactRecord = <T extends { readonly name: string | null }>(record: T, redact: Redact): T => ({
  ...redactValue(record, redact),
  name: record.name,
});
