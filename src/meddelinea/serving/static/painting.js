// Painting on a mask: strokes that can be taken back, and slices filled between those that were painted.

import { PLANES } from "./slices.js";

/** @typedef {import("./nifti.js").Volume} Volume */
/**
 * @typedef {object} Brush
 * @property {number} id of the organ
 * @property {boolean} erase takes the organ away, and nothing else
 * @property {number} radius in millimetres
 * @property {boolean} keep leaves other organs as they are
 */

export class Painting {
  /** @type {Map<number, number>[]} strokes: place in the data -> id before, or after where it was taken back */
  #done = [];
  /** @type {Map<number, number>[]} */
  #undone = [];
  /** @type {Map<number, number> | null} */
  #stroke = null;
  /** @type {Map<number, number>} place in the data -> id of the mask as it was, where it is another now */
  #before = new Map();
  /** @type {Map<string, Set<number>>} plane and organ -> slices that were painted */
  #slices = new Map();

  /** @param {Volume} volume a mask, which is painted on */
  constructor(volume) {
    this.volume = volume;
  }

  begin() {
    this.#stroke = new Map();
  }

  /** @param {string} plane @param {number[]} place voxel (i, j, k) @param {Brush} brush */
  dab(plane, place, { id, erase, radius, keep }) {
    const { across, down, through } = PLANES[plane];
    const { dims, spacing } = this.volume;
    const [reachX, reachY] = [across, down].map((axis) => Math.floor(radius / spacing[axis]));
    for (let x = -reachX; x <= reachX; x++)
      for (let y = -reachY; y <= reachY; y++) {
        const voxel = [...place];
        voxel[across] += x;
        voxel[down] += y;
        if (Math.hypot(x * spacing[across], y * spacing[down]) > radius || voxel.some((at, axis) => at < 0 || at >= dims[axis])) continue;
        this.#put(this.#index(voxel), id, erase, keep);
      }
    const key = `${plane} ${id}`;
    if (!this.#slices.has(key)) this.#slices.set(key, new Set());
    this.#slices.get(key)?.add(place[through]);
  }

  end() {
    if (!this.#stroke?.size) return;
    this.#done.push(this.#stroke);
    this.#undone = [];
    this.#stroke = null;
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  undo() {
    this.#swap(this.#done, this.#undone);
  }

  redo() {
    this.#swap(this.#undone, this.#done);
  }

  /**
   * Give an organ, in the slices between two that were painted, a shape between theirs: where the mean of both distances
   * to its border is inside. Slices without the organ end nothing.
   * @param {string} plane @param {number} id @param {boolean} keep
   * @returns {number} slices that were filled
   */
  fillBetween(plane, id, keep) {
    const { through } = PLANES[plane];
    const painted = [...(this.#slices.get(`${plane} ${id}`) ?? [])].sort((one, other) => one - other);
    this.begin();
    let filled = 0;
    for (let at = 1; at < painted.length; at++) {
      const [first, last] = [painted[at - 1], painted[at]];
      if (last - first < 2) continue;
      const [below, above] = [first, last].map((slice) => this.#distances(plane, slice, id));
      if (!below || !above) continue;
      for (let slice = first + 1; slice < last; slice++, filled++) {
        const share = (slice - first) / (last - first);
        this.#each(plane, slice, (index, number) => {
          const inside = (1 - share) * below[number] + share * above[number] < 0;
          this.#put(index, id, !inside, keep);
        });
      }
    }
    this.end();
    return filled;
  }

  /** @returns {{id: number, added: number, removed: number}[]} voxels of each organ that is not as it was */
  changes() {
    /** @type {Map<number, {id: number, added: number, removed: number}>} */
    const found = new Map();
    const of = (/** @type {number} */ id) => {
      const entry = found.get(id) ?? { id, added: 0, removed: 0 };
      found.set(id, entry);
      return entry;
    };
    for (const [index, before] of this.#before) {
      if (before) of(before).removed++;
      if (this.volume.data[index]) of(this.volume.data[index]).added++;
    }
    return [...found.values()];
  }

  #index(/** @type {number[]} */ [i, j, k]) {
    const { offset, strides } = this.volume;
    return offset + i * strides[0] + j * strides[1] + k * strides[2];
  }

  #put(/** @type {number} */ index, /** @type {number} */ id, /** @type {boolean} */ erase, /** @type {boolean} */ keep) {
    const now = this.volume.data[index];
    if (erase ? now !== id : now === id || (keep && now)) return;
    if (!this.#stroke?.has(index)) this.#stroke?.set(index, now);
    this.#set(index, erase ? 0 : id);
  }

  #set(/** @type {number} */ index, /** @type {number} */ value) {
    const before = this.#before.get(index) ?? this.volume.data[index];
    this.volume.data[index] = value;
    if (before === value) this.#before.delete(index);
    else this.#before.set(index, before);
  }

  #swap(/** @type {Map<number, number>[]} */ from, /** @type {Map<number, number>[]} */ to) {
    const stroke = from.pop();
    if (!stroke) return;
    const other = new Map();
    for (const [index, value] of stroke) {
      other.set(index, this.volume.data[index]);
      this.#set(index, value);
    }
    to.push(other);
  }

  /** @param {string} plane @param {number} slice @param {(index: number, number: number) => void} visit by rows */
  #each(plane, slice, visit) {
    const { across, down, through } = PLANES[plane];
    const { dims } = this.volume;
    const voxel = [0, 0, 0];
    voxel[through] = slice;
    for (let y = 0, number = 0; y < dims[down]; y++)
      for (let x = 0; x < dims[across]; x++) {
        voxel[across] = x;
        voxel[down] = y;
        visit(this.#index(voxel), number++);
      }
  }

  /** Millimetres from an organ's border in a slice, below 0 inside; null where the slice does not show it. */
  #distances(/** @type {string} */ plane, /** @type {number} */ slice, /** @type {number} */ id) {
    const { across, down } = PLANES[plane];
    const { dims, spacing, data } = this.volume;
    const [width, height] = [dims[across], dims[down]];
    const inside = new Uint8Array(width * height);
    this.#each(plane, slice, (index, number) => (inside[number] = Number(data[index] === id)));
    if (!inside.includes(1)) return null;
    const to = [0, 1].map((value) => chamfer(inside, value, width, height, spacing[across], spacing[down]));
    return Float32Array.from(inside, (is, number) => (is ? -to[0][number] : to[1][number]));
  }
}

/**
 * About how far each pixel is from the nearest one that has a value, by two sweeps over its neighbours.
 * @param {Uint8Array} pixels @param {number} value @param {number} width @param {number} height
 * @param {number} stepX millimetres @param {number} stepY
 */
function chamfer(pixels, value, width, height, stepX, stepY) {
  const far = Float32Array.from(pixels, (pixel) => (pixel === value ? 0 : 1e6));
  const around = [[-1, 0], [-1, -1], [0, -1], [1, -1]].map(([x, y]) => ({ x, y, mm: Math.hypot(x * stepX, y * stepY) }));
  for (const sign of [1, -1])
    for (let at = 0; at < pixels.length; at++) {
      const number = sign > 0 ? at : pixels.length - 1 - at;
      const [x, y] = [number % width, Math.floor(number / width)];
      for (const step of around) {
        const [atX, atY] = [x + sign * step.x, y + sign * step.y];
        if (atX >= 0 && atX < width && atY >= 0 && atY < height) far[number] = Math.min(far[number], far[atY * width + atX] + step.mm);
      }
    }
  return far;
}
