import { testScenario } from './in-vitest.js';
import { tamper } from './tamper.js';

testScenario(tamper);
