/** What vitest does around every test file, whichever process runs it. */
import { afterAll } from 'vitest';
import { cleanUp } from './cli.js';

afterAll(cleanUp);
