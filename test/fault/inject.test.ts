import { inject } from './inject.js';
import { testScenario } from './in-vitest.js';

testScenario(inject);
