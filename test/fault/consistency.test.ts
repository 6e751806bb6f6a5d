import { consistency } from './consistency.js';
import { testScenario } from './in-vitest.js';

testScenario(consistency);
