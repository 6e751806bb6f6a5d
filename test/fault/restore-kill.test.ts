import { testScenario } from './in-vitest.js';
import { restoreKill, restorePower } from './restore-kill.js';

testScenario(restoreKill);
testScenario(restorePower);
