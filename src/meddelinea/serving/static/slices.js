// Slices of a volume as pictures, and the outlines of what a mask marks in them.

/** @typedef {import("./nifti.js").Volume} Volume */

/**
 * Each plane in the radiologist's convention: the patient's right, or front, is at the picture's left; front, or head, at
 * its top. So both axes of a picture run against the volume's.
 * @type {Record<string, {across: number, down: number, through: number, edges: string[]}>} edges: left, right, top, bottom
 */
export const PLANES = {
  axial: { across: 0, down: 1, through: 2, edges: ["R", "L", "A", "P"] },
  coronal: { across: 0, down: 2, through: 1, edges: ["R", "L", "H", "F"] },
  sagittal: { across: 1, down: 2, through: 0, edges: ["A", "P", "H", "F"] },
};

/** Pixel (x, y) of a slice is `data[start + x * right + y * down]`. */
export class Slice {
  /** @param {Volume} volume @param {string} plane @param {number} index */
  constructor(volume, plane, index) {
    const { across, down, through } = PLANES[plane];
    const { dims, strides } = volume;
    this.data = volume.data;
    this.width = dims[across];
    this.height = dims[down];
    this.start = volume.offset + index * strides[through] + (this.width - 1) * strides[across] + (this.height - 1) * strides[down];
    this.right = -strides[across];
    this.down = -strides[down];
  }
}

export const rgba = (/** @type {number} */ r, /** @type {number} */ g, /** @type {number} */ b, a = 255) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** @param {Slice} slice @param {Uint32Array} pixels @param {number} low shown black @param {number} high shown white */
export function paintGrey({ data, width, height, start, right, down }, pixels, low, high) {
  const scale = 255 / Math.max(high - low, 1e-9);
  for (let y = 0, pixel = 0; y < height; y++)
    for (let x = 0, at = start + y * down; x < width; x++, at += right) {
      const grey = (data[at] - low) * scale;
      const level = grey < 0 ? 0 : grey > 255 ? 255 : grey | 0; // not a number is black
      pixels[pixel++] = 0xff000000 | (level << 16) | (level << 8) | level;
    }
}

/** @param {Slice} slice @param {Uint32Array} pixels @param {Uint32Array} palette colour of each of the values 0 to 255 */
export function paintValues({ data, width, height, start, right, down }, pixels, palette) {
  for (let y = 0, pixel = 0; y < height; y++)
    for (let x = 0, at = start + y * down; x < width; x++, at += right) pixels[pixel++] = palette[data[at]];
}

/**
 * @param {Slice} one @param {Slice} other of the same size
 * @param {Uint32Array} pixels @param {Uint32Array} palette colour of each pair of values, at 256 * one + other
 */
export function paintPairs(one, other, pixels, palette) {
  for (let y = 0, pixel = 0; y < one.height; y++)
    for (let x = 0; x < one.width; x++)
      pixels[pixel++] = palette[256 * one.data[one.start + x * one.right + y * one.down] + other.data[other.start + x * other.right + y * other.down]];
}

// Middles of a cell's sides, top, right, bottom and left, and the sides that an outline joins for each set of corners
// inside: 1 top left, 2 top right, 4 bottom right, 8 bottom left.
const MIDDLES = [[1, 0.5], [1.5, 1], [1, 1.5], [0.5, 1]];
const JOINED = [[], [3, 0], [0, 1], [3, 1], [1, 2], [3, 0, 1, 2], [0, 2], [3, 2], [2, 3], [2, 0], [0, 1, 2, 3], [2, 1], [1, 3], [1, 0], [0, 3], []];

/**
 * The outline of each id in a slice of a mask, by marching squares.
 * @param {Slice} slice @returns {Map<number, number[]>} id -> x, y of one end and of the other of each piece, in pixels
 */
export function outlines({ data, width, height, start, right, down }) {
  const found = new Map();
  const at = (/** @type {number} */ x, /** @type {number} */ y) =>
    x < 0 || y < 0 || x >= width || y >= height ? 0 : data[start + x * right + y * down];
  for (let y = -1; y < height; y++) {
    let [a, d] = [0, 0];
    for (let x = -1; x < width; x++) {
      const [b, c] = [at(x + 1, y), at(x + 1, y + 1)];
      if (a !== b || a !== c || a !== d)
        for (const id of new Set([a, b, c, d])) {
          if (!id) continue;
          const sides = JOINED[Number(a === id) | (Number(b === id) << 1) | (Number(c === id) << 2) | (Number(d === id) << 3)];
          if (!found.has(id)) found.set(id, []);
          for (const side of sides) found.get(id).push(x + MIDDLES[side][0], y + MIDDLES[side][1]);
        }
      [a, d] = [b, c];
    }
  }
  return found;
}
