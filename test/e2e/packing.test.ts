/** Smaller and sealed copies as the operator meets them, read by the programs that everybody has. */
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import Database from 'better-sqlite3';
import { beforeAll, describe, expect, test } from 'vitest';
import type { Manifest } from '../../src/records.js';
import { breakRows, cannot, damage, dbbackup, makeDatabase, PATH, pathOf, pathWith, type Result, readJson, tempDirectory } from '../support/cli.js';
import { type Key, makeKey, secretsOf, unpackedBy } from '../support/packed.js';
import { differences } from '../support/rows.js';
import { everything, modeOf, type Scene, scene } from './scene.js';
import * as shapes from './shapes.js';
import { problemsIn } from './shapes.js';

const reason = cannot('age', 'zstd', 'gunzip', 'setpriv');
if (reason) process.stderr.write(`not run here: packed copies: ${reason}\n`);

let key: Key;
let other: Key;
beforeAll(async () => {
  key = await makeKey();
  other = await makeKey();
});

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
const isData = (file: string): boolean => /-\d{8}T\d{6}Z(-\d+)?\.db/.test(file);
const copiesIn = (to: string): string[] => (existsSync(to) ? readdirSync(to).filter(isData).sort() : []);
const manifestPath = (s: Scene, file: string): string => join(s.to, `${file.replace(/\.db.*$/, '')}.json`);
const manifestOf = (s: Scene, file: string): Manifest => readJson(manifestPath(s, file)) as Manifest;
const temp = (s: Scene): string[] => (existsSync(join(s.state, 'tmp')) ? readdirSync(join(s.state, 'tmp')) : []);
const codes = (r: Result): string[] => (r.json.warnings ?? []).map((w) => w.code);
const identity = (k: Key): string[] => ['--identity-file', k.path];

function change(path: string): void {
  const db = new Database(path);
  db.exec("DELETE FROM invoice WHERE id % 2 = 0; INSERT INTO beat (at) VALUES ('later')");
  db.close();
}

/** A copy, made; everything said about it is looked at elsewhere. */
async function packed(s: Scene, flags: readonly string[], options = {}): Promise<{ run: Result; file: string; manifest: Manifest; path: string }> {
  const run = await s.run([...flags, '--json'], options);
  expect(run.code, run.stderr).toBe(0);
  const file = run.json.copy?.file ?? '';
  return { run, file, manifest: manifestOf(s, file), path: join(s.to, file) };
}

// Each has a place of its own.
describe.skipIf(reason)('packed copies', { concurrent: true }, () => {
  describe.each([
    ['gzip', false, '.gz'],
    ['zstd', false, '.zst'],
    ['none', true, '.age'],
    ['gzip', true, '.gz.age'],
    ['zstd', true, '.zst.age'],
  ] as const)('compress %s, sealed: %s', (compress, sealed, suffix) => {
    const flags = (): string[] => ['--compress', compress, ...(sealed ? ['--encrypt-to', key.recipient] : [])];
    const s = scene({ journal: 'wal', bytes: 60_000 });
    const plain = join(tempDirectory('plain'), 'app.db');

    const isMade = async (): Promise<void> => {
      copyFileSync(s.source, plain);
      const dry = await s.run([...flags(), '--dry-run', '--json']);
      expect([dry.code, dry.json.plan?.file]).toEqual([0, expect.stringMatching(new RegExp(`^app-\\d{8}T\\d{6}Z\\.db${suffix.replaceAll('.', '\\.')}$`))]);
      const { run, file, manifest, path } = await packed(s, flags());
      expect(file.replace(/^app-\d{8}T\d{6}Z/, '')).toBe(`.db${suffix}`);
      expect(run.json.stages?.map((x) => x.name)).toContain('pack');
      expect(problemsIn(run.json, shapes.run)).toEqual([]);
      expect(problemsIn(manifest, sealed ? shapes.sealedManifest : shapes.manifest)).toEqual([]);
      expect(manifest).toMatchObject({ compress, encrypted: sealed, sizeBytes: readFileSync(path).length, sha256: sha256(readFileSync(path)) });
      expect(readdirSync(s.to).sort()).toEqual(['.dbbackup', file, basename(manifestPath(s, file))].sort());
      expect([modeOf(path), temp(s)]).toEqual(['600', []]);
      const list = await s.ask('list', ['--json']);
      expect(list.json.copies?.map((c) => [c.file, c.status])).toEqual([[file, 'good']]);
      expect(problemsIn(list.json, shapes.listDocument)).toEqual([]);
      const status = await s.ask('status', ['--json']);
      expect([status.code, status.json.newestGood?.file]).toEqual([0, file]);
      // The bytes of a copy that was not packed, of the same database.
      const elsewhere = await dbbackup(['run', s.source, '--to', join(s.home, 'plain'), '--json']);
      const bytes = unpackedBy(path, key);
      expect(sha256(bytes)).toBe(elsewhere.json.copy?.sha256);
      expect(sha256(bytes)).toBe(sealed ? secretsOf(manifest, key)['plainSha256'] : manifest.plainSha256);
      expect(bytes.length).toBe(manifest.plainSizeBytes);
    };

    const provesOut = async (): Promise<void> => {
      const [file = ''] = copiesIn(s.to);
      const before = manifestOf(s, file);
      const bare = await s.ask('verify', ['--json']);
      expect(bare.code, bare.stderr).toBe(0);
      expect(problemsIn(bare.json, shapes.verifyDocument)).toEqual([]);
      expect(bare.json.results).toEqual([{ file, status: 'good', proved: sealed ? 'bytes' : 'full', problems: [] }]);
      expect(codes(bare)).toEqual(sealed ? ['IDENTITY_MISSING'] : []);
      expect(Date.parse(manifestOf(s, file).verifiedAt ?? '')).toBeGreaterThan(Date.parse(before.verifiedAt ?? ''));
      if (sealed) {
        const full = await s.ask('verify', ['--json', ...identity(key)]);
        expect([full.code, full.json.results, codes(full)]).toEqual([0, [{ file, status: 'good', proved: 'full', problems: [] }], []]);
        expect(problemsIn(manifestOf(s, file), shapes.sealedManifest)).toEqual([]);
      }
      expect(temp(s)).toEqual([]);
    };

    const comesBack = async (): Promise<void> => {
      const [file = ''] = copiesIn(s.to);
      const keys = sealed ? identity(key) : [];
      const out = join(s.home, 'out.db');
      expect((await s.ask('restore', ['-o', out, ...keys])).code).toBe(0);
      expect([differences(out, plain), modeOf(out)]).toEqual([[], '600']);

      change(s.source);
      expect(differences(s.source, plain)).not.toEqual([]);
      const into = ['restore', '--into', s.source, '--yes', '--json', ...keys];
      const live = await dbbackup([...into, file, '--to', s.to, ...flags()]);
      expect([live.code, live.json.restored?.setAside], live.stderr).toEqual([0, []]);
      expect(differences(s.source, plain)).toEqual([]);
      // What was there before is kept as the others are.
      const safety = live.json.restored?.safetyCopy ?? '';
      expect(safety.endsWith(`.db${suffix}`), safety).toBe(true);
      const manifest = manifestOf(s, safety);
      expect(problemsIn(manifest, sealed ? shapes.sealedManifest : shapes.manifest)).toEqual([]);
      expect(manifest.tags).toEqual(['before-restore']);
      const before = join(s.home, 'before.db');
      writeFileSync(before, unpackedBy(join(s.to, safety), key));
      expect(differences(before, plain)).toEqual(expect.arrayContaining([expect.stringMatching(/^beat: 1 rows only here/)]));

      for (const suffix of ['', '-wal', '-shm']) rmSync(s.source + suffix, { force: true });
      const offline = await dbbackup([...into, file, '--to', s.to, ...flags()]);
      expect([offline.code, offline.json.restored?.safetyCopy], offline.stderr).toEqual([0, null]);
      expect(differences(s.source, plain)).toEqual([]);
      expect([temp(s), readdirSync(dirname(s.source)).filter((f) => f.startsWith('.'))]).toEqual([[], []]);
    };

    test('is made, read by the programs of Debian, proves out as far as the keys go, and comes back', async () => {
      await isMade();
      await provesOut();
      // Back into a new file all of them come in offsite.test.ts; into a database one of each kind.
      if (compress === 'zstd' || (compress === 'none' && sealed)) await comesBack();
    });
  });

  describe('guard', () => {
    test.each(['none', 'zstd'])('rolls back without any key, with compress %s, and its backup point is sealed', async (compress) => {
      const s = scene({ journal: 'wal' });
      const plain = join(s.home, 'plain.db');
      copyFileSync(s.source, plain);
      const spoil = 'node_modules/better-sqlite3';
      const script = `const db = new (require('${join(import.meta.dirname, '../..', spoil)}'))(process.argv[1]); db.exec('DELETE FROM invoice'); process.exitCode = 3`;
      const flags = ['--database', s.source, '--encrypt-to', key.recipient, '--compress', compress, '--json'];
      const guard = await s.ask('guard', [...flags, '--', process.execPath, '-e', script, '{}']);
      expect([guard.code, guard.json.rolledBack, guard.json.child?.exitCode], guard.stderr).toEqual([1, true, 3]);
      expect(differences(s.source, plain)).toEqual([]);
      const file = guard.json.backupPoint ?? '';
      expect(file).toMatch(compress === 'zstd' ? /\.db\.zst\.age$/ : /\.db\.age$/);
      expect(manifestOf(s, file)).toMatchObject({ tags: ['before-guard'], encrypted: true, source: null });
      expect(unpackedBy(join(s.to, file), key).subarray(0, 15).toString()).toBe('SQLite format 3');
      expect(temp(s)).toEqual([]);
    });
  });

  describe('who seals and who opens', () => {
    /** The program, which writes down that it was called. */
    const counting = (log: string): string => pathWith('age', `echo "$@" >> '${log}'\nexec /usr/bin/env -i PATH='${PATH}' age "$@"`);

    test('the library seals where the program is not, and the program opens it', async () => {
      const s = scene();
      const { path, manifest } = await packed(s, ['--encrypt-to', key.recipient], { env: { PATH: pathOf() } });
      expect(sha256(unpackedBy(path, key))).toBe(secretsOf(manifest, key)['plainSha256']);
      const log = join(s.home, 'log');
      const verify = await s.ask('verify', ['--json', ...identity(key)], { env: { PATH: counting(log) } });
      expect([verify.code, verify.json.results?.[0]?.proved, readFileSync(log, 'utf8')]).toEqual([0, 'full', `-d -i ${key.path}\n`]);
    });

    test('the program seals, and the library opens it where the program is not', async () => {
      const s = scene();
      const log = join(s.home, 'log');
      const { file } = await packed(s, ['--encrypt-to', key.recipient], { env: { PATH: counting(log) } });
      expect(readFileSync(log, 'utf8')).toBe(`-r ${key.recipient}\n`);
      const verify = await s.ask('verify', ['--json', ...identity(key)], { env: { PATH: pathOf() } });
      expect(verify.json.results).toEqual([{ file, status: 'good', proved: 'full', problems: [] }]);
      const out = join(s.home, 'out.db');
      expect((await s.ask('restore', ['-o', out, ...identity(key)], { env: { PATH: pathOf() } })).code).toBe(0);
      expect(differences(out, s.source)).toEqual([]);
    });

    test('several: flags, a file of them, and one that the program cannot do', async () => {
      const s = scene();
      const hybrid = await makeKey('hybrid');
      const file = join(s.home, 'recipients');
      writeFileSync(file, `# who may read\n\n${other.recipient}\r\n${hybrid.recipient}\n`);
      const two = await packed(s, ['--encrypt-to', key.recipient, '--encrypt-to', other.recipient, '--encrypt-to', key.recipient]);
      expect(readFileSync(two.path, 'latin1').match(/^-> X25519 /gm)).toHaveLength(2);
      const log = join(s.home, 'log');
      const three = await packed(s, ['--encrypt-to', key.recipient, '--encrypt-to', file], { env: { PATH: counting(log) } });
      // Not asked: it would refuse one of them.
      expect(existsSync(log)).toBe(false);
      for (const k of [key, other]) {
        expect(unpackedBy(two.path, k).equals(unpackedBy(three.path, k))).toBe(true);
        expect(secretsOf(three.manifest, k)).toMatchObject({ source: s.source });
      }
      const verify = await s.ask('verify', [three.file, '--json', ...identity(hybrid)]);
      expect([verify.code, verify.json.results?.[0]?.proved], verify.stderr).toEqual([0, 'full']);
      // One file of identities, one of which fits.
      const keys = join(s.home, 'keys');
      writeFileSync(keys, `${(await makeKey()).secret}\n${hybrid.secret}\n${other.secret}\n`, { mode: 0o600 });
      expect((await s.ask('verify', [two.file, '--json', '--identity-file', keys])).json.results?.[0]).toMatchObject({ status: 'good', proved: 'full' });
    });

    test('a key of somebody else proves the bytes, and restores nothing', async () => {
      const s = scene();
      const { file } = await packed(s, ['--compress', 'gzip', '--encrypt-to', key.recipient]);
      const verify = await s.ask('verify', ['--json', ...identity(other)]);
      expect([verify.code, verify.json.results, codes(verify)]).toEqual([0, [{ file, status: 'good', proved: 'bytes', problems: [] }], ['IDENTITY_MISSING']]);
      expect(verify.json.warnings?.[0]?.message).toContain(`no key in ${other.path} opens ${file}`);
      const before = readFileSync(s.source);
      for (const [keys, said] of [
        [identity(other), `no key in ${other.path} opens`],
        [[], 'is sealed'],
      ] as const) {
        const out = await s.ask('restore', ['-o', join(s.home, 'out.db'), '--json', ...keys]);
        const into = await s.ask('restore', ['--into', s.source, '--yes', '--json', ...keys]);
        for (const r of [out, into])
          expect([r.code, r.json.error?.code, r.json.error?.message]).toEqual([1, 'IDENTITY_MISSING', expect.stringContaining(said)]);
      }
      expect([existsSync(join(s.home, 'out.db')), readFileSync(s.source).equals(before), copiesIn(s.to), temp(s)]).toEqual([false, true, [file], []]);
    });
  });

  describe('a sealed copy tells nothing of its content', () => {
    const ROWS = 31_337;
    function withCanaries(): Scene {
      const s = scene({ journal: 'wal' });
      renameSync(dirname(s.source), join(s.home, 'cAnArY-directory'));
      const source = join(s.home, 'cAnArY-directory/app.db');
      const db = new Database(source);
      db.exec(`CREATE TABLE "cAnArY-table" (cAnArY_column CHECK (cAnArY_column > 0));
      WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${ROWS}) INSERT INTO "cAnArY-table" SELECT i FROM n`);
      db.close();
      breakRows(source);
      return { ...s, source, run: (more = [], options = {}) => dbbackup(['run', source, '--to', s.to, ...more], options) };
    }

    function expectNothing(text: string, secrets: Record<string, unknown>): void {
      const open = text.replace(/"sealed": "[^"]+"/, '');
      expect(open.length).toBeLessThan(text.length);
      expect(open).not.toMatch(/canary|"customer"|"invoice"/i);
      expect(open).not.toMatch(new RegExp(`(?<![0-9a-f])${ROWS}(?![0-9a-f])`));
      for (const field of ['plainSha256', 'schemaHash', 'realPath']) expect(open).not.toContain(String(secrets[field]));
      for (const word of ['cAnArY', String(ROWS)]) expect(open).not.toContain(Buffer.from(word).toString('base64').slice(0, -2));
    }

    test('not when it is made, and not when it was verified and found damaged', async () => {
      const s = withCanaries();
      const { file, manifest, path } = await packed(s, ['--compress', 'zstd', '--encrypt-to', key.recipient]);
      expect(problemsIn(manifest, shapes.sealedManifest)).toEqual([]);
      const secrets = secretsOf(manifest, key);
      expect(secrets).toMatchObject({ source: s.source, configuredPath: s.source, realPath: s.source, rows: { 'cAnArY-table': ROWS } });
      const text = (): string => readFileSync(manifestPath(s, file), 'latin1');
      expectNothing(text(), secrets);
      expect(readFileSync(path, 'latin1')).not.toMatch(/canary|SQLite format/i);
      expect((await s.ask('verify', identity(key))).code).toBe(0);
      expectNothing(text(), secrets);
      // Whole, but of another content: each difference would name a table.
      const forged = join(s.home, 'forged.db');
      makeDatabase(forged, { bytes: 10_000 });
      const elsewhere = await dbbackup(['run', forged, '--to', join(s.home, 'b2'), '--compress', 'zstd', '--encrypt-to', key.recipient, '--json']);
      const strange = readJson(join(s.home, 'b2', elsewhere.json.copy?.manifest ?? '')) as Manifest;
      copyFileSync(join(s.home, 'b2', strange.file), path);
      const said = { ...manifestOf(s, file), sizeBytes: strange.sizeBytes, sha256: strange.sha256, plainSizeBytes: strange.plainSizeBytes };
      writeFileSync(manifestPath(s, file), `${JSON.stringify(said, null, 1)}\n`);
      const bad = await s.ask('verify', [file, '--json', ...identity(key)]);
      expect([bad.code, bad.json.results?.[0]?.status]).toEqual([1, 'bad']);
      expectNothing(text(), secrets);
      expect(problemsIn({ ...manifestOf(s, file), status: 'good' }, shapes.sealedManifest)).toEqual([]);
    });

    test('and yet its name is taken for others, and a database that moved is known again', async () => {
      const s = withCanaries();
      const { file } = await packed(s, ['--encrypt-to', key.recipient]);
      const stranger = join(s.home, 'app.db');
      copyFileSync(s.source, stranger);
      const taken = await dbbackup(['run', stranger, '--to', s.to, '--json']);
      expect([taken.code, taken.json.error?.code]).toEqual([1, 'NAME_TAKEN']);
      expect(taken.stdout + taken.stderr).not.toContain('cAnArY');
      // The path says the same, and leads elsewhere; then the file is the same, over another path.
      renameSync(dirname(s.source), join(s.home, 'moved'));
      symlinkSync(join(s.home, 'moved'), dirname(s.source));
      expect((await s.run(['--encrypt-to', key.recipient])).code).toBe(0);
      expect((await dbbackup(['run', join(s.home, 'moved/app.db'), '--to', s.to, '--encrypt-to', key.recipient])).code).toBe(0);
      const wrong = await s.ask('restore', [file, '--into', stranger, '--yes', '--json', ...identity(key)]);
      expect([wrong.code, wrong.json.error?.code]).toEqual([1, 'OTHER_SOURCE']);
      expect(differences(stranger, join(s.home, 'moved/app.db'))).toEqual([]);
    });
  });

  describe('keys in the wrong place', () => {
    /** Everything that was said and written. */
    const expectUnsaid = (s: Scene, canary: string, ...results: readonly Result[]): void => {
      for (const r of results) expect(r.stdout + r.stderr).not.toContain(canary);
      expect(everything(s.to)).not.toContain(canary);
    };

    test('a secret key as a recipient, or as a file, is refused and never said', async () => {
      const s = scene();
      expect((await s.run()).code).toBe(0);
      const canary = key.secret.slice(20, 50);
      const file = join(s.home, 'recipients');
      writeFileSync(file, `${other.recipient}\n${key.secret}\n`, { mode: 0o600 });
      const results = [
        await s.run(['--encrypt-to', key.secret, '--json', '--verbose']),
        await s.run(['--verbose'], { env: { DBBACKUP_ENCRYPT_TO: `${other.recipient},${key.secret.toLowerCase()}` } }),
        await s.run(['--encrypt-to', file, '--json', '--verbose']),
        await s.run(['--encrypt-to', `./${key.secret}`, '--verbose']),
        await dbbackup(['check', s.source, '--to', s.to, '--encrypt-to', key.secret, '--json']),
        await s.ask('verify', ['--identity-file', key.secret, '--verbose']),
        await s.ask('verify', ['--identity-file', `/nowhere/${key.secret}`, '--json']),
      ];
      expect(results.map((r) => r.code)).toEqual([78, 78, 78, 78, 78, 78, 78]);
      expectUnsaid(s, canary, ...results);
      expectUnsaid(s, canary.toLowerCase(), ...results);
      const history = await s.ask('history', ['--json']);
      expect(history.json.runs?.[0]?.error?.code).toBe('SETTINGS');
      expectUnsaid(s, canary, history);
    });

    test('one that is used is said nowhere', async () => {
      const s = scene();
      const canary = key.secret.slice(20, 50);
      const { path } = await packed(s, ['--encrypt-to', key.recipient, '--verbose']);
      const log = join(s.home, 'seen');
      const env = { PATH: pathWith('age', `{ tr '\\0' '\\n' < /proc/$$/environ; echo "$@"; } >> '${log}'; echo 'age: error: ${key.secret}' >&2; exit 1`) };
      const results = [
        await s.ask('verify', ['--json', '--verbose', ...identity(key)]),
        await s.ask('restore', ['-o', join(s.home, 'out.db'), '--verbose', ...identity(key)]),
        await dbbackup(['check', s.source, '--to', s.to, '--json', ...identity(key)]),
        // Even a program that repeats it does not make it known.
        await s.ask('verify', ['--json', '--verbose', ...identity(key)], { env: { ...env, DBBACKUP_MAX_AGE: '1d' } }),
      ];
      expect(results.map((r) => r.code)).toEqual([0, 0, 0, 1]);
      expect(results[3]?.json.error?.message).toContain('age: error: ***');
      expect(readFileSync(log, 'utf8')).not.toMatch(new RegExp(`DBBACKUP_|${canary}`));
      expectUnsaid(s, canary, ...results);
      damage(path, 0, Buffer.from('x'));
      expectUnsaid(s, canary, await s.ask('verify', ['--json', ...identity(key)]));
    });

    test('zstd that cannot be had is a settings error with the way out', async () => {
      const s = scene();
      const { path } = await packed(s, ['--compress', 'zstd']);
      const env = { PATH: pathOf() };
      const without = [
        await s.run(['--compress', 'zstd', '--json'], { env }),
        await s.ask('verify', ['--json'], { env }),
        await s.ask('restore', ['-o', join(s.home, 'o.db'), '--json'], { env }),
      ];
      // Node itself can do it from 22.15 on.
      const native = 'createZstdCompress' in (await import('node:zlib'));
      expect(without.map((r) => r.code)).toEqual(native ? [0, 0, 0] : [78, 78, 78]);
      if (!native) for (const r of without) expect(r.json.error?.message).toMatch(/needs the program zstd \(apt install zstd\), or Node 22\.15/);
      if (!native) expect(without[0]?.json.error?.message).toContain('say gzip');
      // What cannot be read here is no worse for that.
      expect((await s.ask('list', ['--json'])).json.copies?.map((c) => c.status)).toEqual(native ? ['good', 'good'] : ['good']);
      expect(existsSync(path)).toBe(true);
      mkdirSync(join(s.home, 'x'));
      expect((await s.ask('restore', ['-o', join(s.home, 'x/o.db')])).code).toBe(0);
    });
  });
});
