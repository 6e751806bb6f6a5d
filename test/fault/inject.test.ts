import { testScenario } from './in-vitest.js';
import { inject } from './inject.js';

testScenario(inject);
