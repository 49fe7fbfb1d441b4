// Where to look: the middle of an organ, and the places where the mask is most doubtful.

/** @typedef {import("./nifti.js").Volume} Volume */

/**
 * @param {Volume} mask
 * @param {number | null} id of an organ; null for all of them
 * @returns {number[] | null} the voxel of the organ nearest to its middle in the axial slice that shows most of it
 */
export function middleOf({ data, dims, strides, offset }, id) {
  const inside = (/** @type {number} */ value) => (id === null ? value > 0 : value === id);
  const [columns, rows, slices] = dims;
  let [best, most] = [-1, 0];
  for (let k = 0; k < slices; k++) {
    let area = 0;
    for (let j = 0; j < rows; j++)
      for (let i = 0, at = offset + j * strides[1] + k * strides[2]; i < columns; i++, at += strides[0]) if (inside(data[at])) area += 1;
    if (area > most) [best, most] = [k, area];
  }
  if (best < 0) return null;
  /** @type {number[][]} */
  const marked = [];
  for (let j = 0; j < rows; j++)
    for (let i = 0; i < columns; i++) if (inside(data[offset + i * strides[0] + j * strides[1] + best * strides[2]])) marked.push([i, j]);
  const [x, y] = [0, 1].map((axis) => marked.reduce((sum, place) => sum + place[axis], 0) / marked.length);
  const away = (/** @type {number[]} */ [i, j]) => (i - x) ** 2 + (j - y) ** 2;
  return [...marked.reduce((nearest, place) => (away(place) < away(nearest) ? place : nearest)), best];
}

const BLOCK_MM = 12;
const APART_MM = 25;
const MOST_PLACES = 20;

/**
 * @param {Volume} uncertainty in per cent
 * @param {number} least per cent from which a voxel counts
 * @returns {number[][]} voxels, the most doubtful surroundings first
 */
export function doubtfulPlaces({ data, dims, strides, offset, spacing }, least) {
  const size = spacing.map((mm) => Math.max(1, Math.round(BLOCK_MM / mm)));
  const [columns, rows] = dims.map((length, axis) => Math.ceil(length / size[axis]));
  /** @type {Map<number, number[]>} block -> weight, and the sums of its voxels' places by their weights */
  const blocks = new Map();
  for (let k = 0; k < dims[2]; k++)
    for (let j = 0; j < dims[1]; j++)
      for (let i = 0, at = offset + j * strides[1] + k * strides[2]; i < dims[0]; i++, at += strides[0]) {
        const weight = data[at] - least;
        if (weight <= 0) continue;
        const block = Math.floor(i / size[0]) + columns * (Math.floor(j / size[1]) + rows * Math.floor(k / size[2]));
        const sums = blocks.get(block);
        if (sums) [weight, weight * i, weight * j, weight * k].forEach((value, index) => (sums[index] += value));
        else blocks.set(block, [weight, weight * i, weight * j, weight * k]);
      }
  const ranked = [...blocks.values()].sort((a, b) => b[0] - a[0]);
  /** @type {number[][]} */
  const places = [];
  for (const [weight, ...sums] of ranked) {
    const place = sums.map((sum) => Math.round(sum / weight));
    const far = places.every((other) => Math.hypot(...place.map((at, axis) => (at - other[axis]) * spacing[axis])) > APART_MM);
    if (far) places.push(place);
    if (places.length === MOST_PLACES) break;
  }
  return places;
}
