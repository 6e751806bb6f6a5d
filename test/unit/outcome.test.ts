import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { errnoOf, failureOf, restoreLine, targetFailure } from '../../src/outcome.js';

/** As Node makes it for an errno that libuv has no name for. */
const unnamed = (number: number): Error =>
  Object.assign(new Error(`Unknown system error -${number}, scandir '/b'`), {
    code: `Unknown system error -${number}`,
    errno: -number,
    syscall: 'scandir',
    path: '/b',
  });

test('an errno that libuv has no name for has its own all the same, and is no bug of ours', () => {
  expect(errnoOf(unnamed(122))).toBe('EDQUOT');
  expect(failureOf(unnamed(122))).toEqual({ code: 'IO_ERROR', path: '/b', reason: 'the disk quota is used up (EDQUOT)' });
  expect(targetFailure(unnamed(122), '/b')).toMatchObject({ code: 'NO_SPACE', path: '/b' });
  // One that this system does not know either stays what it was.
  expect(errnoOf(unnamed(99_999))).toBe('Unknown system error -99999');
});

test('an errno with a name keeps it', () => {
  try {
    readFileSync('/nowhere/at/all');
  } catch (error) {
    expect(errnoOf(error)).toBe('ENOENT');
  }
  expect.assertions(1);
});

test('the line that goes back names the profile, whose settings the safety copy and the messages need as well', () => {
  const back = { copy: 'app-20261121T031700Z.db.age', target: '/srv/my app.db', to: '/b', stateDir: null, name: 'app' };
  expect(restoreLine({ ...back, profile: null })).toBe(
    "dbbackup restore app-20261121T031700Z.db.age --into '/srv/my app.db' --to /b --name app --identity-file YOUR-KEY-FILE --yes",
  );
  expect(restoreLine({ ...back, copy: 'app-20261121T031700Z.db', profile: 'shop' })).toBe(
    "dbbackup restore app-20261121T031700Z.db --into '/srv/my app.db' -P shop --to /b --name app --yes",
  );
});
