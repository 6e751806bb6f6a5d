/**
 * `npm run build`: makes `dist/`, a file for each kind of process, with the JavaScript packages in it, and one for each of `libraries/`.
 * To find and load hundreds of small files takes longer than to copy a small database. Outside stays what is not JavaScript: the
 * compiled part of better-sqlite3.
 *
 *   main.js                          what bin/dbbackup.js starts; it loads app.js
 *   NAME.code.js, NAME.code.v8       a part of the program, and what V8 made of it while it was at work (warm.ts)
 *   NAME.js                          loads these two (src/precompiled.ts)
 *   THIRD-PARTY.txt                  the licences of the packages inside
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { type BuildOptions, build, type Plugin } from 'esbuild';
import { ROOT, SCRIPTS } from '../../src/own-files.js';
import { WRAPPER } from '../../src/precompiled.js';

const DIST = join(ROOT, 'dist');

/** Packages that most commands do without, one part for each file. */
const LIBRARIES = readdirSync(join(ROOT, 'src/libraries')).map((file) => basename(file, '.ts'));

/** What is loaded with what V8 made of it: the program, its children, and packages. */
const PARTS = { app: 'app.ts', ...SCRIPTS, ...Object.fromEntries(LIBRARIES.map((name) => [name, `libraries/${name}.ts`])) };

/** better-sqlite3 asks two more packages where its compiled part is, which look in ten places. npm puts it into one. */
const compiledPart: Plugin = {
  name: 'compiled-part',
  setup: ({ onResolve, onLoad }) => {
    const here = { namespace: 'compiled-part' };
    onResolve({ filter: /^bindings$/ }, () => ({ ...here, path: 'bindings' }));
    onLoad({ ...here, filter: /./ }, () => ({ contents: "module.exports = (name) => require('better-sqlite3/build/Release/' + name);" }));
  },
};

const apart: Plugin = {
  name: 'apart',
  setup: ({ onResolve }) => {
    onResolve({ filter: /\/libraries\/\w+\.js$/ }, ({ path }) => ({ path: `./${basename(path)}`, external: true }));
  },
};

const shared = {
  bundle: true,
  platform: 'node',
  target: 'node20.12',
  // Strict as a whole, since the sources are: the packages inside run so, too.
  // CommonJS starts faster: the other loader alone takes 10 ms of a process, and reads every CommonJS package twice.
  format: 'cjs',
  supported: { 'dynamic-import': false },
  // winston has a second half for those who develop it.
  define: { 'import.meta.dirname': '__dirname', 'import.meta.filename': '__filename', 'process.env.NODE_ENV': '"production"' },
  external: ['./app.js'],
  plugins: [compiledPart, apart],
  logLevel: 'warning',
  metafile: true,
  absWorkingDir: ROOT,
  outdir: DIST,
} as const satisfies BuildOptions;

/** The name, version and licence of each package that is in the bundles. */
function notices(inputs: readonly string[]): string {
  const packages = [...new Set(inputs.flatMap((path) => /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []))].sort();
  return packages
    .map((path) => {
      const directory = resolve(ROOT, path);
      const { name, version, license } = JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8')) as Record<string, string>;
      const texts = readdirSync(directory).filter((file) => /^(licen[cs]e|copying|notice)/i.test(file));
      // A few of Amazon's come without the text; those beside them have it.
      const licence = texts.length > 0 ? texts.map((file) => readFileSync(join(directory, file), 'utf8').trim()) : [`Its package has no text of ${license}.`];
      return [`${name} ${version} (${license})`, ...licence].join('\n\n');
    })
    .join(`\n\n${'-'.repeat(80)}\n\n`);
}

rmSync(DIST, { recursive: true, force: true });
mkdirSync(DIST);
// The sources are modules, what is made of them is not.
writeFileSync(join(DIST, 'package.json'), '{ "type": "commonjs" }\n');
const results = [
  await build({ ...shared, entryPoints: ['src/main.ts', 'src/precompiled.ts'] }),
  await build({
    ...shared,
    entryPoints: Object.entries(PARTS).map(([name, source]) => ({ out: `${name}.code`, in: join('src', source) })),
    // Of packages that come in two ways the newer one, of which esbuild leaves out what is not used.
    mainFields: ['module', 'main'],
    // Without comments: half as long, and in plain ASCII, of which V8 keeps one byte a character.
    minifyWhitespace: true,
    charset: 'ascii',
    lineLimit: 160,
    banner: { js: WRAPPER[0] },
    footer: { js: WRAPPER[1] },
  }),
];
for (const name of Object.keys(PARTS)) {
  writeFileSync(
    join(DIST, `${name}.js`),
    `module.exports = require('./precompiled.js').load(require('node:path').join(__dirname, '${name}.code.js')).exports;\n`,
  );
}
writeFileSync(join(DIST, 'THIRD-PARTY.txt'), `${notices(results.flatMap(({ metafile }) => Object.keys(metafile.inputs)))}\n`);

// Below dist/, where an interrupted build leaves nothing that the next one does not take away. Without our environment: V8's flags in it would make
// what is compiled useless to everybody else.
const scratch = join(DIST, 'scratch');
mkdirSync(scratch, { mode: 0o700 });
const warm = spawnSync(process.execPath, ['--import', 'tsx', join(import.meta.dirname, 'warm.ts'), 'program', scratch], {
  cwd: ROOT,
  env: { PATH: process.env['PATH'] },
  stdio: ['ignore', 'ignore', 'pipe'],
  encoding: 'utf8',
  timeout: 120_000,
});
rmSync(scratch, { recursive: true });
// It starts without, too, only more slowly.
const remarks = warm.stderr.split('\n').filter((line) => warm.status !== 0 || line.startsWith('build: '));
if (warm.status !== 0) remarks.unshift(`build: nothing is kept of what V8 compiled: warm.ts ended with ${warm.status ?? warm.signal}`);
for (const line of remarks) process.stderr.write(`${line}\n`);
