import { damaged } from './damaged.js';
import { testScenario } from './in-vitest.js';

testScenario(damaged);
