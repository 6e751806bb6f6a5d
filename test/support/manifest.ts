/**
 * Manifests made by hand: for copies in a state, or of an age, that no run would give them. The one place in the tests that
 * knows all fields and what the files of a copy are called.
 */
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseCopyFile, renderManifest, rfc3339 } from '../../src/catalog.js';
import { type Manifest, SCHEMA_VERSION } from '../../src/records.js';

/** All that a manifest says but its own sum, which `textOf` gives it. */
export type Said = Omit<Manifest, 'selfSha256'>;
/** Fields said otherwise, also as no run would say them. */
export type Otherwise = { readonly [K in keyof Said]?: unknown };

export const dataFileOf = (base: string): string => `${base}.db`;
export const manifestFileOf = (base: string): string => `${base}.json`;

/** What a good manifest of a copy says whose data file holds `content`. `base`: `NAME-STAMP`, or `NAME-STAMP-N`. */
export function manifestOf(base: string, content: string | Buffer): Said {
  const file = dataFileOf(base);
  const named = parseCopyFile(file);
  if (!named) throw new Error(`${file} is no name of a copy`);
  const sha256 = createHash('sha256').update(content).digest('hex');
  const sizeBytes = Buffer.byteLength(content);
  const createdAt = rfc3339(named.createdAt);
  return {
    schemaVersion: SCHEMA_VERSION,
    file,
    manifest: manifestFileOf(base),
    name: named.name,
    createdAt,
    sizeBytes,
    sha256,
    status: 'good',
    verifiedAt: createdAt,
    method: 'vacuum-into',
    source: '/srv/app.db',
    tags: [],
    runId: '00000000-0000-4000-8000-000000000000',
    tool: 'dbbackup 0.1.0',
    sqlite: '3.53.0',
    configuredPath: '/srv/app.db',
    realPath: '/srv/app.db',
    journalMode: 'wal',
    pageSize: 4096,
    pageCount: 1,
    userVersion: 0,
    applicationId: 0,
    schemaHash: 'b'.repeat(64),
    rows: {},
    plainSizeBytes: sizeBytes,
    plainSha256: sha256,
    compress: 'none',
    encrypted: false,
    sealed: null,
    pathProof: null,
    files: null,
    checks: [],
    violations: { check: 0, notNull: 0, foreignKey: 0 },
    durationMs: 1,
  };
}

/** A manifest as a run writes it, its own sum included, so that what is wrong with it is what it says. */
export const textOf = (said: Said, otherwise: Otherwise = {}): string => renderManifest({ ...said, ...otherwise } as Said);

/** Puts the two files of a copy into a directory that is there. Returns the data file's name. */
export function plantCopy(to: string, base: string, content: string | Buffer, otherwise: Otherwise = {}): string {
  const said = manifestOf(base, content);
  writeFileSync(join(to, said.file), content, { mode: 0o600 });
  writeFileSync(join(to, manifestFileOf(base)), textOf(said, otherwise), { mode: 0o600 });
  return said.file;
}
