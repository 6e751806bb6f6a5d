/** What sealing takes from others. */
export { Decrypter, Encrypter } from 'age-encryption';
