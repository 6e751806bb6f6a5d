/**
 * `npm run soak`: every fault scenario at its full count, and a dated table of what came of it.
 *
 *   npm run soak -- --only kill,power     these alone
 *   npm run soak -- --scale 0.1           a tenth of the rounds
 *   npm run soak -- --seed 7              the same rounds again
 *   npm run soak -- --only kill --seed 7 --round 31    one round, to look at a failure
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { cannot, ROOT, readJson } from '../support/cli.js';
import { consistency } from './consistency.js';
import { damaged } from './damaged.js';
import { enospc } from './enospc.js';
import { guardKill } from './guard-kill.js';
import type { Failure, Scenario } from './harness.js';
import { inject } from './inject.js';
import { kill } from './kill.js';
import { power } from './power.js';
import { restoreKill, restorePower } from './restore-kill.js';
import { restoreLive } from './restore-live.js';
import { signals } from './signals.js';
import { tamper } from './tamper.js';
import { transport } from './transport.js';

const VERSION = String((readJson(join(ROOT, 'package.json')) as { version?: unknown }).version);

const SCENARIOS: readonly Scenario[] = [
  consistency,
  kill,
  power,
  damaged,
  enospc,
  inject,
  signals,
  tamper,
  restoreLive,
  restoreKill,
  restorePower,
  guardKill,
  transport,
];

interface Row {
  readonly scenario: string;
  readonly count: string;
  readonly failures: string;
  readonly seconds: string;
  readonly seed: string;
  readonly seen: string;
}

const { values } = parseArgs({
  options: { only: { type: 'string' }, scale: { type: 'string', default: '1' }, seed: { type: 'string' }, round: { type: 'string' } },
});
const wanted = values.only?.split(',') ?? SCENARIOS.map((s) => s.name);
const unknown = wanted.filter((w) => !SCENARIOS.some((s) => s.name === w));
const scale = Number(values.scale);
const seed = values.seed === undefined ? Date.now() % 1_000_000_000 : Number(values.seed);
const only = values.round === undefined ? undefined : Number(values.round);

if (unknown.length > 0 || !(scale > 0) || !Number.isSafeInteger(seed)) {
  process.stderr.write(`soak: cannot understand ${process.argv.slice(2).join(' ')}; scenarios: ${SCENARIOS.map((s) => s.name).join(', ')}\n`);
  process.exitCode = 64;
} else {
  process.exitCode = await soak();
}

async function soak(): Promise<number> {
  const began = new Date();
  const rows: Row[] = [];
  const failures: { scenario: string; failure: Failure }[] = [];
  for (const scenario of SCENARIOS.filter((s) => wanted.includes(s.name))) {
    const { row, failed } = await one(scenario);
    rows.push(row);
    failures.push(...failed.map((failure) => ({ scenario: scenario.name, failure })));
  }
  print(began, rows, failures);
  return failures.length === 0 ? 0 : 1;
}

async function one(scenario: Scenario): Promise<{ row: Row; failed: readonly Failure[] }> {
  const reason = cannot(...scenario.needs);
  if (reason) return { row: { scenario: scenario.name, count: '0', failures: '-', seconds: '-', seed: '-', seen: `not run: ${reason}` }, failed: [] };
  const count = only === undefined ? Math.max(1, Math.round(scenario.soak * scale)) : 1;
  const began = performance.now();
  const notes: string[] = [];
  let saidAt = 0;
  const failed = await scenario.play({
    count,
    seed,
    only,
    note: (text) => notes.push(text),
    progress: (done, bad) => {
      if (performance.now() - saidAt < 10_000 && done < count) return;
      saidAt = performance.now();
      process.stderr.write(`${scenario.name}: ${done} of ${count}, ${bad} failed\n`);
    },
  });
  for (const f of failed) process.stderr.write(`${scenario.name} round ${f.round}: ${f.why}\n`);
  const seconds = ((performance.now() - began) / 1000).toFixed(0);
  return {
    row: { scenario: scenario.name, count: String(count), failures: String(failed.length), seconds, seed: String(seed), seen: notes.join('; ') },
    failed,
  };
}

function print(began: Date, rows: readonly Row[], failures: readonly { scenario: string; failure: Failure }[]): void {
  const headings: Row = { scenario: 'scenario', count: 'count', failures: 'failures', seconds: 'seconds', seed: 'seed', seen: 'seen' };
  const keys = Object.keys(headings) as (keyof Row)[];
  const width = (key: keyof Row): number => Math.max(...[headings, ...rows].map((r) => r[key].length));
  const line = (row: Row): string => `| ${keys.map((k) => row[k].padEnd(width(k))).join(' | ')} |`;
  process.stdout.write(`\n${began.toISOString()}, Node ${process.version}, dbbackup ${VERSION}, scale ${scale}\n\n`);
  process.stdout.write(`${line(headings)}\n| ${keys.map((k) => '-'.repeat(width(k))).join(' | ')} |\n${rows.map(line).join('\n')}\n`);
  for (const { scenario, failure } of failures) process.stdout.write(`\n${scenario} round ${failure.round}: ${failure.why}\n`);
}
