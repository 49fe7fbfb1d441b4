// The scans among files and folders that are dropped or chosen: each image file is one, and each DICOM series is one,
// which is packed into a zip. No name of a file is sent.

/** @typedef {{name: string, content: Blob}} Scan */
/** @typedef {{file: File, path: string}} Found a file, and where it lies among what was chosen */

const IMAGE = /\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|zip)$/i;
const ENDINGS = /\.(nii\.gz|nii|nrrd|mha|zip|dcm)$/i;
const HEAD_BYTES = 1 << 16; // in which a DICOM file names its series
const SERIES = [0x20, 0x00, 0x0e, 0x00]; // the tag (0020,000E), SeriesInstanceUID, as it is stored

/** @param {string} name of a file @returns {string} without what says its kind */
export const stem = (name) => name.replace(ENDINGS, "");

/**
 * All files of a drop, of its folders too.
 * @param {DataTransfer} transfer @returns {Promise<Found[]>}
 */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  return entries.length ? (await Promise.all(entries.map(filesOf))).flat() : chosenFiles(transfer.files);
}

/** @param {Iterable<File>} files @returns {Found[]} */
export const chosenFiles = (files) => [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/** @param {any} entry @returns {Promise<Found[]>} */
async function filesOf(entry) {
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path: entry.fullPath }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A reader gives a hundred entries at a time.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(filesOf))).flat();
    found.push(...some);
  }
}

/**
 * @param {Found[]} found
 * @returns {Promise<Scan[]>} scans to send; where none is known as one, all that there is, for the server to judge
 */
export async function scansAmong(found) {
  /** @type {Scan[]} */
  const scans = [];
  /** @type {Map<string, Found[]>} */
  const series = new Map();
  const others = [];
  for (const one of found) {
    if (IMAGE.test(one.file.name)) scans.push({ name: one.file.name, content: one.file });
    else {
      const uid = await seriesOf(one.file);
      if (uid === null) others.push(one);
      else if (series.has(uid)) series.get(uid)?.push(one);
      else series.set(uid, [one]);
    }
  }
  for (const slices of series.values()) scans.push(await together(slices));
  // What lies beside scans in a folder, such as a viewer's own files, is left out.
  return scans.length || !others.length ? scans : [await together(others)];
}

/** @param {Found[]} slices @returns {Promise<Scan>} */
async function together(slices) {
  const [{ file, path }] = slices;
  if (slices.length === 1) return { name: file.name, content: file };
  return { name: path.split("/").at(-2) || stem(file.name), content: await zip(slices.map((slice) => slice.file)) };
}

/** @param {File} file @returns {Promise<string | null>} null where it is no DICOM file with an image of a series */
async function seriesOf(file) {
  const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  if (file.name.toUpperCase() === "DICOMDIR" || String.fromCharCode(...head.slice(128, 132)) !== "DICM") return null;
  for (let at = 132; at < head.length - 8; at++)
    if (SERIES.every((byte, index) => head[at + index] === byte)) {
      const explicit = head[at + 4] === 0x55 && head[at + 5] === 0x49; // "UI", then a length of two bytes, not of four
      const length = explicit ? head[at + 6] | (head[at + 7] << 8) : head[at + 4] | (head[at + 5] << 8);
      return String.fromCharCode(...head.slice(at + 8, at + 8 + length)).replace(/\0+$/, "");
    }
  return ""; // compressed as a whole, or odd: all such files are taken for one series
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

/** @param {Uint8Array} bytes */
function checksum(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

/**
 * A zip without compression, of files under 4 GiB in all.
 * @param {File[]} files @returns {Promise<Blob>}
 */
async function zip(files) {
  const [members, listing] = [/** @type {BlobPart[]} */ ([]), /** @type {BlobPart[]} */ ([])];
  let offset = 0;
  for (const [index, file] of files.entries()) {
    const name = new TextEncoder().encode(`${String(index).padStart(6, "0")}.dcm`);
    const crc = checksum(new Uint8Array(await file.arrayBuffer()));
    // version, flags, method, time, date (1 January 1980), checksum, packed and unpacked size, length of the name, extra
    const common = [[2, 20], [2, 0], [2, 0], [2, 0], [2, 0x21], [4, crc], [4, file.size], [4, file.size], [2, name.length], [2, 0]];
    const local = record([[4, 0x04034b50], ...common]);
    members.push(local, name, file);
    // then comment, disk, attributes, place of the member
    listing.push(record([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), name);
    offset += local.byteLength + name.length + file.size;
  }
  const size = new Blob(listing).size;
  const end = record([[4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]]);
  return new Blob([...members, ...listing, end]);
}

/** @param {number[][]} fields size in bytes and value of each @returns {ArrayBuffer} */
function record(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
}
