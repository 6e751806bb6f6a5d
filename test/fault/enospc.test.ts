import { enospc } from './enospc.js';
import { testScenario } from './in-vitest.js';

testScenario(enospc);
