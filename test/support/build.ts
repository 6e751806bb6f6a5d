/**
 * `npm run build`: makes `dist/`, a file for each kind of process, with the JavaScript packages in it. To find and load three hundred
 * small files takes longer than to copy a small database. Outside stay better-sqlite3, which is not JavaScript alone, and the S3
 * client, which is large and loaded in a process of its own.
 *
 *   main.js, app.js            what bin/dbbackup.js starts; app.js loads the next two
 *   app.code.js, app.code.v8   the program, and what V8 made of it while it made a copy (src/precompiled.ts)
 *   sqlite-worker.js, …        the children
 *   THIRD-PARTY.txt            the licences of the packages inside
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { type BuildOptions, build } from 'esbuild';
import { ROOT, SCRIPTS } from '../../src/own-files.js';
import { WRAPPER } from '../../src/precompiled.js';

const DIST = join(ROOT, 'dist');

const shared = {
  bundle: true,
  platform: 'node',
  target: 'node20.12',
  // CommonJS starts faster: the other loader alone takes 10 ms of a process, and reads every CommonJS package twice.
  format: 'cjs',
  supported: { 'dynamic-import': false },
  define: { 'import.meta.dirname': '__dirname', 'import.meta.filename': '__filename' },
  external: ['better-sqlite3', '@aws-sdk/*'],
  logLevel: 'warning',
  metafile: true,
  absWorkingDir: ROOT,
} as const satisfies BuildOptions;

/** The name, version and licence of each package that is in the bundles. */
function notices(inputs: readonly string[]): string {
  const packages = [...new Set(inputs.flatMap((path) => /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []))].sort();
  return packages
    .map((path) => {
      const directory = resolve(ROOT, path);
      const { name, version, license } = JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8')) as Record<string, string>;
      const text = readdirSync(directory).find((file) => /^(licen[cs]e|copying)/i.test(file));
      return `${name} ${version} (${license})\n\n${text === undefined ? '' : readFileSync(join(directory, text), 'utf8').trim()}`;
    })
    .join(`\n\n${'-'.repeat(80)}\n\n`);
}

rmSync(DIST, { recursive: true, force: true });
mkdirSync(DIST);
// The sources are modules, what is made of them is not.
writeFileSync(join(DIST, 'package.json'), '{ "type": "commonjs" }\n');
const children = Object.entries(SCRIPTS).map(([name, source]) => ({ out: name, in: join(ROOT, 'src', source) }));
const results = [
  await build({
    ...shared,
    entryPoints: [{ out: 'main', in: 'src/main.ts' }, { out: 'precompiled', in: 'src/precompiled.ts' }, ...children],
    external: [...shared.external, './app.js'],
    outdir: DIST,
  }),
  await build({
    ...shared,
    entryPoints: ['src/app.ts'],
    outfile: join(DIST, 'app.code.js'),
    // Without the comments of 40 packages: half as long, and in plain ASCII, of which V8 keeps one byte a character.
    minifyWhitespace: true,
    charset: 'ascii',
    lineLimit: 160,
    banner: { js: WRAPPER[0] },
    footer: { js: WRAPPER[1] },
  }),
];
writeFileSync(join(DIST, 'app.js'), "module.exports = require('./precompiled.js').load(require('node:path').join(__dirname, 'app.code.js')).exports;\n");
writeFileSync(join(DIST, 'THIRD-PARTY.txt'), `${notices(results.flatMap(({ metafile }) => Object.keys(metafile.inputs)))}\n`);

const warm = spawnSync(process.execPath, ['--import', 'tsx', join(import.meta.dirname, 'warm.ts')], {
  cwd: ROOT,
  stdio: ['ignore', 'ignore', 'pipe'],
  encoding: 'utf8',
});
if (warm.status !== 0) throw new Error(`test/support/warm.ts ended with ${warm.status ?? warm.signal}: ${warm.stderr}`);
