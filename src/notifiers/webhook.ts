/** A message as one JSON document, for whatever program listens. Fields are only ever added (README, "Being told"). */
import { SCHEMA_VERSION } from '../records.js';
import { printableJson } from '../settings/values.js';
import type { Message } from './message.js';

/** The JSON to be posted. Characters that could make a terminal lie are escaped, which parses to the same. */
export function webhookBody(message: Message): string {
  const record = message.record ?? null;
  return printableJson(
    JSON.stringify({
      schemaVersion: SCHEMA_VERSION,
      event: message.kind,
      name: message.name,
      host: message.host ?? null,
      runId: message.runId,
      status: record?.status ?? null,
      exitCode: record?.exitCode ?? null,
      subject: message.subject,
      text: message.text,
      record,
    }),
  );
}
