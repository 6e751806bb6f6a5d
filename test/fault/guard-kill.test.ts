import { guardKill } from './guard-kill.js';
import { testScenario } from './in-vitest.js';

testScenario(guardKill);
