/** `npm run docs`: makes the generated sections of README.md anew from the code. */
import { readFileSync, writeFileSync } from 'node:fs';
import { render } from './docs.js';

const README = new URL('../../README.md', import.meta.url);

const before = readFileSync(README, 'utf8');
const after = render(before);
if (after !== before) writeFileSync(README, after);
console.log(after === before ? 'README.md is up to date' : 'README.md was brought up to date');
