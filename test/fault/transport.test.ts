import { testScenario } from './in-vitest.js';
import { transport } from './transport.js';

testScenario(transport);
