// Reads the NIfTI files that the server writes: little-endian, three dimensions, one file.

/** @typedef {Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | Float32Array | Float64Array} Voxels */

/** @type {Record<number, any>} the codes of NIfTI-1 */
const KINDS = { 2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 256: Int8Array, 512: Uint16Array, 768: Uint32Array };

/**
 * Voxels as stored, addressed along the patient's axes: i grows to the patient's right, j to the front, k to the head.
 * @typedef {object} Volume
 * @property {Voxels} data
 * @property {number[]} dims voxels along i, j, k
 * @property {number[]} strides steps in `data` for one step along i, j, k
 * @property {number} offset place in `data` of voxel (0, 0, 0)
 * @property {number[]} spacing in millimetres
 * @property {number[][]} affine 3 x 4, from (i, j, k) to the scanner's millimetres
 * @property {ArrayBuffer} file of which `data` is a part, not compressed
 */

/** @param {ArrayBuffer} buffer @returns {Promise<Volume>} */
export async function readNifti(buffer) {
  const start = new Uint8Array(buffer, 0, 2);
  if (start[0] === 0x1f && start[1] === 0x8b)
    buffer = await new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const header = new DataView(buffer, 0, 348);
  const Kind = KINDS[header.getInt16(70, true)];
  if (header.getInt32(0, true) !== 348 || !Kind) throw new Error("the page cannot read this kind of NIfTI");
  const size = [1, 2, 3].map((axis) => Math.max(1, header.getInt16(40 + 2 * axis, true)));
  const data = new Kind(buffer, header.getFloat32(108, true), size[0] * size[1] * size[2]);
  return alongPatient(data, size, header.getInt16(254, true) > 0 ? sform(header) : qform(header));
}

/** @param {DataView} header */
function sform(header) {
  return [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => header.getFloat32(280 + 16 * row + 4 * column, true)));
}

/** @param {DataView} header */
function qform(header) {
  const at = (/** @type {number} */ place) => header.getFloat32(place, true);
  const [b, c, d] = [at(256), at(260), at(264)];
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const turn = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const scale = [at(80), at(84), at(88) * (at(76) < 0 ? -1 : 1)];
  return turn.map((row, index) => [...row.map((value, column) => value * scale[column]), at(268 + 4 * index)]);
}

/**
 * @param {Voxels} data @param {number[]} size @param {number[][]} stored affine of the stored axes
 * @returns {Volume}
 */
function alongPatient(data, size, stored) {
  const length = (/** @type {number} */ axis) => Math.hypot(...stored.map((row) => row[axis]));
  const steps = [1, size[0], size[0] * size[1]];
  // The assignment of stored axes to the patient's that lies closest to them.
  const orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
  const fit = (/** @type {number[]} */ order) => order.reduce((sum, axis, row) => sum + Math.abs(stored[row][axis]) / length(axis), 0);
  const order = orders.reduce((best, candidate) => (fit(candidate) > fit(best) + 1e-6 ? candidate : best));
  const signs = order.map((axis, row) => (stored[row][axis] < 0 ? -1 : 1));
  const last = order.map((axis, index) => (signs[index] < 0 ? size[axis] - 1 : 0));
  return {
    data,
    file: /** @type {ArrayBuffer} */ (data.buffer),
    dims: order.map((axis) => size[axis]),
    strides: order.map((axis, index) => signs[index] * steps[axis]),
    offset: order.reduce((sum, axis, index) => sum + last[index] * steps[axis], 0),
    spacing: order.map(length),
    affine: stored.map((row) => [
      ...order.map((axis, index) => signs[index] * row[axis]),
      row[3] + order.reduce((sum, axis, index) => sum + last[index] * row[axis], 0),
    ]),
  };
}

/** @param {Volume} volume @param {number[]} place (i, j, k) @returns {number} */
export function valueAt({ data, strides, offset }, [i, j, k]) {
  return data[offset + i * strides[0] + j * strides[1] + k * strides[2]];
}

/** @param {Volume} volume @param {number[]} place (i, j, k) @returns {number[]} millimetres to the right, front and head */
export function millimetresAt({ affine }, [i, j, k]) {
  return affine.map(([a, b, c, d]) => a * i + b * j + c * k + d);
}

/** @param {Volume} a @param {Volume} b */
export function sameGrid(a, b) {
  return String(a.dims) === String(b.dims) && a.affine.every((row, r) => row.every((value, c) => Math.abs(value - b.affine[r][c]) < 1e-2));
}

/**
 * The grey values that all but the darkest and the brightest two per cent have, from a sample.
 * @param {Volume} volume @returns {[number, number]}
 */
export function robustRange({ data }) {
  const step = Math.max(1, Math.floor(data.length / 100000) | 1);
  const sample = [];
  for (let index = 0; index < data.length; index += step) if (Number.isFinite(data[index])) sample.push(data[index]);
  const sorted = Float64Array.from(sample).sort();
  const at = (/** @type {number} */ share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
  return at(0.98) > at(0.02) ? [at(0.02), at(0.98)] : [at(0), Math.max(at(1), at(0) + 1)];
}
