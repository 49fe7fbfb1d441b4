// What can lie over a scan: a mask, where it may be wrong, and where two masks differ.

import { rgba } from "./slices.js";

/** @typedef {import("./nifti.js").Volume} Volume */
/** @typedef {import("./plane.js").Layer} Layer */
/** @typedef {{name: string, id: number, colour: number[]}} Organ */
/** @typedef {{volume: Volume, organs: Organ[]}} Mask */

/** Per cent, from which doubt is seen, and from which it is brightest. */
export const UNSURE = [20, 60];
const DIFFERENT = rgba(255, 255, 0);

/** @param {Mask} mask @param {Set<string>} hidden names of organs that are not drawn @returns {Layer} */
export function maskLayer({ volume, organs }, hidden) {
  const palette = new Uint32Array(256);
  for (const { name, id, colour } of organs) if (!hidden.has(name)) palette[id] = rgba(colour[0], colour[1], colour[2]);
  return { volume, palette, outlined: true };
}

/** @param {Volume} volume in per cent @returns {Layer} */
export function doubtLayer(volume) {
  const palette = new Uint32Array(256);
  for (let percent = UNSURE[0]; percent < 256; percent++) {
    const share = Math.min(1, (percent - UNSURE[0]) / (UNSURE[1] - UNSURE[0]));
    palette[percent] = rgba(255, Math.round(70 + 180 * share), Math.round(20 + 100 * share), Math.round(90 + 165 * share));
  }
  return { volume, palette, outlined: false };
}

/** @param {Mask} mask @param {Mask} earlier on the same grid @returns {Layer} */
export function differenceLayer(mask, earlier) {
  const [here, there] = [mask, earlier].map(({ organs }) => new Map(organs.map((organ) => [organ.id, organ.name])));
  const palette = new Uint32Array(1 << 16);
  for (let pair = 0; pair < palette.length; pair++) if (here.get(pair >> 8) !== there.get(pair & 255)) palette[pair] = DIFFERENT;
  return { volume: mask.volume, other: earlier.volume, palette, outlined: false };
}
