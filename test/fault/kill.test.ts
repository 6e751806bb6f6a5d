import { testScenario } from './in-vitest.js';
import { kill } from './kill.js';

testScenario(kill);
