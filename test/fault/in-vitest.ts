/** A scenario as a vitest test, at its CI count. */
import { expect, test } from 'vitest';
import { cannot } from '../support/cli.js';
import type { Scenario } from './harness.js';

/** Fixed, so that a red build stays red until somebody mends it; the soak draws a new one each time. */
const SEED = Number(process.env['FAULT_SEED'] ?? 20261121);

export function testScenario(scenario: Scenario): void {
  const reason = cannot(...scenario.needs);
  const title = `${scenario.name}: ${scenario.promise} (${scenario.ci} rounds, seed ${SEED})`;
  if (reason) {
    process.stderr.write(`not run here: ${scenario.name}: ${reason}\n`);
    test.skip(`${title}: ${reason}`, () => undefined);
    return;
  }
  test(title, { timeout: 600_000 }, async () => {
    const notes: string[] = [];
    const failures = await scenario.play({ count: scenario.ci, seed: SEED, note: (t) => notes.push(t) });
    if (notes.length > 0) process.stdout.write(`${scenario.name}: ${notes.join('; ')}\n`);
    expect(failures.map((f) => `round ${f.round}: ${f.why}`)).toEqual([]);
  });
}
