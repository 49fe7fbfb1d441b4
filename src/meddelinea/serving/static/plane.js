// One plane on a canvas: a slice of the scan, what is laid over it, and the cross-hair.

import { button, element } from "./dom.js";
import { outlines, paintGrey, paintPairs, paintValues, PLANES, Slice } from "./slices.js";

/** @typedef {import("./nifti.js").Volume} Volume */
/**
 * What lies over the scan: values with a colour each, or with `other`, pairs of values.
 * @typedef {object} Layer
 * @property {Volume} volume
 * @property {Volume} [other]
 * @property {Uint32Array} palette
 * @property {boolean} outlined whether its values are ids, whose outlines can be drawn
 */
/**
 * What all planes show.
 * @typedef {object} Scene
 * @property {Volume} scan
 * @property {Layer | null} layer
 * @property {[number, number]} window grey values shown black and white
 * @property {number[]} cross voxel (i, j, k)
 * @property {number} opacity 0 to 1
 * @property {"both" | "outline" | "fill"} style
 * @property {boolean} crosshair
 * @property {number} brushMm radius of the brush; 0 where nothing is painted
 */

const GAP = 14; // around the cross-hair's middle, which stays free, in CSS pixels
const OUTLINE = 1.5;
const DARK = "rgb(0 0 0 / 0.55)";
const css = (/** @type {number} */ colour) => `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;

/** A picture that is painted again only where what it shows has changed. */
class Picture {
  #key = "";
  #canvas = document.createElement("canvas");

  /** @param {Slice} slice @param {any[]} key @param {(pixels: Uint32Array) => void} paint */
  of(slice, key, paint) {
    const { width, height } = slice;
    const text = key.join();
    if (text === this.#key) return this.#canvas;
    this.#key = text;
    Object.assign(this.#canvas, { width, height });
    const image = new ImageData(width, height);
    paint(new Uint32Array(image.data.buffer));
    this.#canvas.getContext("2d")?.putImageData(image, 0, 0);
    return this.#canvas;
  }

  forget() {
    this.#key = "";
  }
}

export class Plane {
  zoom = 1;
  shift = [0, 0]; // CSS pixels
  /** @type {number[] | null} where the mouse is, in CSS pixels */
  pointer = null;
  #grey = new Picture();
  #over = new Picture();
  #outlined = { key: "", lines: new Map() };
  /** @type {Scene | null} */
  #scene = null;
  #edges;

  /**
   * @param {string} name of the plane
   * @param {object} actions
   * @param {(plane: Plane, index: number) => void} actions.onSlice the slider asks for a slice
   * @param {(plane: Plane) => void} actions.onEnlarge
   */
  constructor(name, { onSlice, onEnlarge }, id = name) {
    const title = name[0].toUpperCase() + name.slice(1);
    this.name = name;
    this.canvas = element("canvas", { id, tabIndex: 0, role: "application", "aria-label": `${title} plane`, "aria-describedby": "keys" });
    this.title = element("span", { className: "title" }, title);
    this.number = element("span", { id: `${id}-slice` });
    this.slider = element("input", { type: "range", min: 1, max: 1, value: 1, "aria-label": `${title} slice` });
    this.slider.addEventListener("input", () => onSlice(this, Number(this.slider.value) - 1));
    this.#edges = ["left", "right", "top", "bottom"].map((side) => element("span", { className: `edge ${side}`, ariaHidden: "true" }));
    const enlarge = button("", () => onEnlarge(this), { className: "enlarge", title: "Enlarge, or back to all (double click)", "aria-label": `Enlarge the ${name} plane` });
    const caption = element("div", { className: "caption" }, this.title, " ", this.number);
    this.frame = element("div", { className: "pane" }, this.canvas, caption, ...this.#edges, enlarge, this.slider);
    this.frame.dataset.pane = id;
    new ResizeObserver(() => this.#scene && this.draw(this.#scene)).observe(this.frame);
  }

  get through() {
    return PLANES[this.name].through;
  }

  /** Forget the pictures of the scan that was open. */
  reset() {
    this.zoom = 1;
    this.shift = [0, 0];
    this.#grey.forget();
    this.#over.forget();
    this.#outlined.key = "";
  }

  /** Where a voxel's corner nearest to the picture's top left lies, and the size of a voxel, in CSS pixels. */
  #placed(/** @type {Scene} */ { scan }) {
    const { across, down } = PLANES[this.name];
    const size = [across, down].map((axis) => scan.dims[axis] * scan.spacing[axis]);
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const perMm = Math.min(width / size[0], height / size[1]) * this.zoom;
    return {
      left: width / 2 + this.shift[0] - (size[0] * perMm) / 2,
      top: height / 2 + this.shift[1] - (size[1] * perMm) / 2,
      stepX: perMm * scan.spacing[across],
      stepY: perMm * scan.spacing[down],
      perMm,
    };
  }

  /** @param {number} x @param {number} y in CSS pixels @returns {number[] | null} the voxel there; null beside the scan */
  voxelAt(x, y) {
    if (!this.#scene) return null;
    const { scan, cross } = this.#scene;
    const { across, down } = PLANES[this.name];
    const { left, top, stepX, stepY } = this.#placed(this.#scene);
    const place = [...cross];
    place[across] = scan.dims[across] - 1 - Math.floor((x - left) / stepX);
    place[down] = scan.dims[down] - 1 - Math.floor((y - top) / stepY);
    return place.every((at, axis) => at >= 0 && at < scan.dims[axis]) ? place : null;
  }

  /** Zoom so that what lies at (x, y) stays there. */
  zoomAt(/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ factor) {
    const zoom = Math.min(20, Math.max(0.5, this.zoom * factor));
    const middle = [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    this.shift = [x, y].map((at, axis) => at - middle[axis] - ((at - middle[axis] - this.shift[axis]) * zoom) / this.zoom);
    this.zoom = zoom;
  }

  draw(/** @type {Scene} */ scene) {
    this.#scene = scene;
    const { canvas, name } = this;
    const { scan, cross, layer } = scene;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) }); // which clears it
    const context = canvas.getContext("2d");
    if (!context) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingQuality = "high";

    const index = cross[this.through];
    const { left, top, stepX, stepY, perMm } = this.#placed(scene);
    const slice = new Slice(scan, name, index);
    const lay = (/** @type {HTMLCanvasElement} */ picture) => context.drawImage(picture, left, top, slice.width * stepX, slice.height * stepY);
    lay(this.#grey.of(slice, [name, index, ...scene.window], (pixels) => paintGrey(slice, pixels, ...scene.window)));
    if (layer && scene.opacity > 0) this.#overlay(context, scene, layer, lay, (x, y) => [left + x * stepX, top + y * stepY]);
    if (scene.crosshair) this.#crosshair(context, scene, left, top, stepX, stepY);
    this.#scale(context, perMm, height);
    if (scene.brushMm && this.pointer) this.#brush(context, scene.brushMm * perMm);

    this.number.textContent = `${index + 1} / ${scan.dims[this.through]}`;
    this.slider.max = scan.dims[this.through];
    this.slider.value = index + 1;
    this.#edges.forEach((edge, side) => (edge.textContent = PLANES[name].edges[side]));
  }

  /**
   * @param {CanvasRenderingContext2D} context @param {Scene} scene @param {Layer} layer
   * @param {(picture: HTMLCanvasElement) => void} lay @param {(x: number, y: number) => number[]} place
   */
  #overlay(context, scene, layer, lay, place) {
    const index = scene.cross[this.through];
    const slice = new Slice(layer.volume, this.name, index);
    const key = [this.name, index, identity(layer)];
    if (!layer.outlined || scene.style !== "outline") {
      context.globalAlpha = scene.opacity;
      lay(
        this.#over.of(slice, key, (pixels) =>
          layer.other ? paintPairs(slice, new Slice(layer.other, this.name, index), pixels, layer.palette) : paintValues(slice, pixels, layer.palette),
        ),
      );
      context.globalAlpha = 1;
    }
    if (!layer.outlined || scene.style === "fill") return;
    if (this.#outlined.key !== key.join()) this.#outlined = { key: key.join(), lines: outlines(slice) };
    context.globalAlpha = Math.min(1, 3 * scene.opacity);
    context.lineWidth = OUTLINE;
    context.lineCap = "round";
    for (const [id, ends] of this.#outlined.lines) {
      if (!(layer.palette[id] >>> 24)) continue;
      context.strokeStyle = css(layer.palette[id]);
      context.beginPath();
      for (let at = 0; at < ends.length; at += 4) {
        const [from, to] = [place(ends[at], ends[at + 1]), place(ends[at + 2], ends[at + 3])];
        context.moveTo(from[0], from[1]);
        context.lineTo(to[0], to[1]);
      }
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /**
   * @param {CanvasRenderingContext2D} context @param {Scene} scene
   * @param {number} left @param {number} top @param {number} stepX @param {number} stepY
   */
  #crosshair(context, { scan, cross }, left, top, stepX, stepY) {
    const { across, down } = PLANES[this.name];
    const x = Math.round(left + (scan.dims[across] - 0.5 - cross[across]) * stepX) + 0.5;
    const y = Math.round(top + (scan.dims[down] - 0.5 - cross[down]) * stepY) + 0.5;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    context.strokeStyle = "rgb(255 220 90 / 0.75)";
    context.lineWidth = 1;
    context.beginPath();
    for (const [fromX, fromY, toX, toY] of [[0, y, x - GAP, y], [x + GAP, y, width, y], [x, 0, x, y - GAP], [x, y + GAP, x, height]])
      if (fromX <= toX && fromY <= toY) {
        context.moveTo(fromX, fromY);
        context.lineTo(toX, toY);
      }
    context.stroke();
  }

  #brush(/** @type {CanvasRenderingContext2D} */ context, /** @type {number} */ radius) {
    const [x, y] = this.pointer ?? [0, 0];
    for (const [colour, width] of /** @type {[string, number][]} */ ([[DARK, 3], ["#fff", 1]])) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.arc(x, y, Math.max(1, radius), 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {number} perMm @param {number} height */
  #scale(context, perMm, height) {
    const mm = [100, 50, 20, 10, 5].find((length) => length * perMm < 110) ?? 2;
    const [x, y] = [12, height - 34];
    context.fillStyle = DARK;
    context.fillRect(x - 1, y - 1, mm * perMm + 2, 4);
    context.fillStyle = "#fff";
    context.fillRect(x, y, mm * perMm, 2);
    context.font = "11px system-ui, sans-serif";
    context.strokeStyle = DARK;
    context.lineWidth = 3;
    const text = mm >= 10 ? `${mm / 10} cm` : `${mm} mm`;
    context.strokeText(text, x, y - 5);
    context.fillText(text, x, y - 5);
  }
}

/** @type {WeakMap<Layer, number>} */
const identities = new WeakMap();
let known = 0;
function identity(/** @type {Layer} */ layer) {
  if (!identities.has(layer)) identities.set(layer, ++known);
  return identities.get(layer);
}
