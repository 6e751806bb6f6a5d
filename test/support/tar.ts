/** Tar archives made by hand, byte by byte: what no library would write. And what a tree of files looks like. */
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';

export interface RawEntry {
  readonly name: string | Buffer;
  /** The type flag: 0 file, 1 hard link, 2 symbolic link, 3 and 4 devices, 5 directory, 6 FIFO. */
  readonly type?: string;
  readonly content?: string | Buffer;
  readonly link?: string;
  readonly mode?: number;
  /** What the header says of the size, where that is not the length of the content. */
  readonly size?: number;
  /** The field of the time as it stands in the header: eleven octal digits and a blank. */
  readonly mtime?: string;
}

const octal = (n: number, digits: number): string => `${n.toString(8).padStart(digits, '0')} `;

function padded(content: Buffer): Buffer {
  return Buffer.concat([content, Buffer.alloc((512 - (content.length % 512)) % 512)]);
}

/** The header and content of one entry. */
export function entry({ name, type = '0', content = '', link = '', mode = 0o644, size, mtime = octal(1_700_000_000, 11) }: RawEntry): Buffer {
  const body = Buffer.from(content);
  const header = Buffer.alloc(512);
  Buffer.from(name).copy(header, 0);
  header.write(octal(mode, 6), 100);
  header.write(octal(0, 6), 108);
  header.write(octal(0, 6), 116);
  header.write(octal(size ?? body.length, 11), 124);
  header.write(mtime, 136);
  header.write('        ', 148);
  header.write(type, 156, 'latin1');
  header.write(link, 157);
  header.write('ustar\x0000', 257);
  header.write(
    octal(
      header.reduce((sum, byte) => sum + byte, 0),
      6,
    ),
    148,
  );
  return Buffer.concat([header, padded(body)]);
}

/** A pax header for the entry after it. */
export function pax(records: Record<string, string>): Buffer {
  const lines = Object.entries(records).map(([key, value]) => {
    const rest = Buffer.byteLength(` ${key}=${value}\n`);
    let length = rest + String(rest).length;
    if (String(length).length + rest !== length) length = rest + String(length).length;
    return `${length} ${key}=${value}\n`;
  });
  return entry({ name: 'PaxHeader', type: 'x', content: lines.join('') });
}

export const END = Buffer.alloc(1024);
export const archive = (...parts: Buffer[]): Buffer => Buffer.concat([...parts, END]);

/** Everything below a directory but owners: name, kind, mode, time in milliseconds, and content or target, in the order of the bytes. */
export function treeOf(directory: string, below = ''): string[] {
  const names = readdirSync(Buffer.from(directory), 'latin1').sort();
  return names.flatMap((name) => {
    const path = Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(name, 'latin1')]);
    const stats = lstatSync(path);
    const look = `${below}${name} ${(stats.mode & 0o777).toString(8)} ${Math.floor(stats.mtimeMs)}`;
    if (stats.isSymbolicLink()) return [`${look} link ${readlinkSync(path, 'latin1')}`];
    if (stats.isDirectory()) return [`${look} directory`, ...treeOf(path.toString(), `${below}${name}/`)];
    return [`${look} file ${readFileSync(path).toString('hex')}`];
  });
}
