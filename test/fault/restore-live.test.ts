import { testScenario } from './in-vitest.js';
import { restoreLive } from './restore-live.js';

testScenario(restoreLive);
