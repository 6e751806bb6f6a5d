/** What tests use of destinations, as one file: test/support/destinations.ts has it built. */
export { DestinationError } from '../../src/destinations/destination.js';
export { openDestination } from '../../src/destinations/open.js';
export { destination } from '../../src/destinations/url.js';
