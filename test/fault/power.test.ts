import { testScenario } from './in-vitest.js';
import { power } from './power.js';

testScenario(power);
