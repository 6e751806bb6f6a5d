/** What archives take from others. */
export { extract, pack } from 'tar-stream';
