// The open result in its planes and in 3D: where the cross-hair is, and what lies over the scan.

import { button, element } from "./dom.js";
import { listen } from "./gestures.js";
import { differenceLayer, doubtLayer, maskLayer, UNSURE } from "./layers.js";
import { millimetresAt, readNifti, robustRange, sameGrid, valueAt } from "./nifti.js";
import { doubtfulPlaces, middleOf } from "./places.js";
import { Plane } from "./plane.js";
import { PLANES } from "./slices.js";
import { Solid } from "./solid.js";

/** @typedef {import("./nifti.js").Volume} Volume */
/** @typedef {import("./plane.js").Layer} Layer */
/** @typedef {import("./layers.js").Organ} Organ */
/** @typedef {import("./layers.js").Mask} Mask */

export class Viewer {
  /** @type {import("./plane.js").Scene | null} */
  #scene = null;
  /** @type {Map<string, Plane>} */
  #planes = new Map();
  /** @type {Plane} beside the plane that is enlarged, with the earlier result */
  #twin;
  /** @type {Solid | null} */
  #solid = null;
  /** @type {ArrayBuffer | null} surfaces that are drawn as soon as 3D is seen */
  #surfaces = null;
  /** @type {Mask | null} */
  #mask = null;
  /** @type {Mask | null} */
  #earlier = null;
  /** @type {Volume | null} */
  #uncertainty = null;
  /** @type {Record<string, Layer | null>} */
  #layers = {};
  /** @type {number[][] | null} */
  #doubtful = null;
  #hidden = new Set();
  #shown = "this";
  #unit = "";
  #view = "all";
  #next = 0;
  #requested = false;
  /** @type {Mask | null} the mask as it was, while it is corrected */
  #kept = null;
  tool = "cross";
  /** @type {{begin: () => void, dab: (plane: string, place: number[]) => void, end: () => void} | null} */
  brush = null;

  /**
   * @param {HTMLElement} pictures
   * @param {object} actions
   * @param {(text: string) => void} actions.onPlace what there is at the cross-hair
   * @param {(low: number, high: number) => void} actions.onWindow grey values were changed by dragging
   * @param {(view: string) => void} actions.onView a plane was enlarged, or all are shown again
   */
  constructor(pictures, { onPlace, onWindow, onView }) {
    this.onPlace = onPlace;
    this.onWindow = onWindow;
    this.pictures = pictures;
    const actions = {
      onSlice: (/** @type {Plane} */ plane, /** @type {number} */ index) => this.goTo(plane.through, index),
      onEnlarge: (/** @type {Plane} */ plane) => onView(this.#view === "all" ? plane.name : "all"),
    };
    for (const name of Object.keys(PLANES)) this.#planes.set(name, new Plane(name, actions));
    this.#twin = new Plane("axial", actions, "twin");
    const canvas = element("canvas", { id: "solid", tabIndex: 0, role: "application", "aria-label": "Organs in three dimensions", "aria-describedby": "keys" });
    this.solidCanvas = canvas;
    this.solidNote = element("p", { id: "solid-note", className: "note" });
    const enlarge = button("", () => onView(this.#view === "all" ? "solid" : "all"), { className: "enlarge", title: "Enlarge, or back to all", "aria-label": "Enlarge 3D" });
    const solid = element("div", { className: "pane" }, canvas, element("div", { className: "caption" }, element("span", { className: "title" }, "3D")), this.solidNote, enlarge);
    solid.dataset.pane = "solid";
    for (const plane of this.#all()) listen(plane, this, actions.onEnlarge);
    pictures.append(...[...this.#planes.values()].map((plane) => plane.frame), this.#twin.frame, solid);
  }

  #all() {
    return [...this.#planes.values(), this.#twin];
  }

  /**
   * @param {ArrayBuffer} scan NIfTI @param {ArrayBuffer} mask NIfTI @param {Organ[]} organs @param {string} unit of the grey values, where they have one
   */
  async open(scan, mask, organs, unit) {
    const [volume, ids] = await Promise.all([readNifti(scan), readNifti(mask)]);
    this.#mask = { volume: ids, organs };
    this.#earlier = this.#uncertainty = this.#doubtful = this.#kept = null;
    this.#layers = {};
    this.#hidden = new Set();
    this.#shown = "this";
    this.#unit = unit;
    this.#next = 0;
    const middle = middleOf(ids, null) ?? volume.dims.map((length) => length >> 1);
    const settings = { opacity: 0.3, style: /** @type {const} */ ("both"), crosshair: true, brushMm: 0 };
    this.#scene = { ...settings, scan: volume, layer: null, window: robustRange(volume), cross: middle };
    for (const plane of this.#all()) plane.reset();
    this.#solid?.clear();
    this.paint();
  }

  close() {
    this.#scene = this.#mask = this.#earlier = this.#uncertainty = this.#kept = null;
    this.#layers = {};
    this.#solid?.clear();
  }

  /** @param {ArrayBuffer | null} glb the surfaces of this result; null where there are none */
  async showSurfaces(glb) {
    this.solidNote.textContent = glb ? "" : "no surfaces of this result";
    this.#surfaces = glb;
    await this.#drawSolid();
  }

  async #drawSolid() {
    if (!this.#mask || !this.solidCanvas.clientWidth) return; // NiiVue cannot draw on what is not seen
    const glb = this.#surfaces;
    this.#surfaces = null;
    if (!glb) return this.#solid?.draw();
    try {
      this.#solid ??= await Solid.on(this.solidCanvas);
      this.#solid.show(glb, new Map(this.#mask.organs.map((organ) => [organ.name, organ.colour])), this.#hidden);
    } catch (error) {
      this.solidNote.textContent = `not drawn: ${/** @type {Error} */ (error).message}`;
    }
  }

  /** @param {ArrayBuffer} buffer NIfTI, in per cent */
  async setUncertainty(buffer) {
    this.#uncertainty = await readNifti(buffer);
    this.#layers = {};
    this.paint();
  }

  get hasUncertainty() {
    return this.#uncertainty !== null;
  }

  /**
   * @param {ArrayBuffer} buffer NIfTI @param {Organ[]} organs
   * @returns {Promise<boolean>} whether it lies on the same grid, and can be shown
   */
  async setEarlier(buffer, organs) {
    const volume = await readNifti(buffer);
    if (!this.#mask || !sameGrid(volume, this.#mask.volume)) return false;
    this.#earlier = { volume, organs };
    this.#layers = {};
    this.paint();
    return true;
  }

  /** @returns {Promise<Volume | null>} a copy of the mask to be changed, which is shown in its place until `endCorrection` */
  async beginCorrection() {
    if (!this.#mask) return null;
    this.#kept = this.#mask;
    this.#mask = { ...this.#mask, volume: await readNifti(this.#mask.volume.file.slice(0)) };
    this.repaint();
    return this.#mask.volume;
  }

  endCorrection() {
    if (this.#kept) this.#mask = this.#kept;
    this.#kept = this.brush = null;
    this.set({ brushMm: 0 });
    this.repaint();
  }

  /** Paint again what lies over the scan: its voxels have changed. */
  repaint() {
    this.#layers = {};
    this.paint();
  }

  dropEarlier() {
    this.#earlier = null;
    this.#layers = {};
    this.show("this");
  }

  /** @param {string} which `this`, `uncertainty`, `earlier`, `difference` or `nothing` */
  show(which) {
    this.#shown = which;
    this.paint();
  }

  /** @param {Set<string>} names */
  hide(names) {
    this.#hidden = names;
    this.#layers = {};
    this.#solid?.hide(names);
    this.paint();
  }

  /** @param {Partial<import("./plane.js").Scene>} changes */
  set(changes) {
    if (!this.#scene) return;
    Object.assign(this.#scene, changes);
    this.paint();
  }

  /** @param {[number, number] | undefined} window none: that of the scan itself */
  setWindow(window) {
    if (this.#scene) this.set({ window: window ?? robustRange(this.#scene.scan) });
  }

  /** @param {string} view `all`, a plane or `solid` @param {boolean} beside with the earlier result beside the plane */
  setView(view, beside = false) {
    this.#view = view;
    this.pictures.dataset.view = view;
    this.pictures.classList.toggle("beside", beside);
    if (view in PLANES) {
      this.#twin.name = view;
      this.#twin.title.textContent = this.#twin.canvas.ariaLabel = `${view[0].toUpperCase()}${view.slice(1)}, the other result`;
    }
    this.paint();
    requestAnimationFrame(() => this.#drawSolid());
  }

  /** Back to the whole slice in each plane. */
  reset() {
    for (const plane of this.#all()) Object.assign(plane, { zoom: 1, shift: [0, 0] });
    this.#solid?.reset();
    this.paint();
  }

  /** @param {number} id of an organ of the mask that is shown */
  goToOrgan(id) {
    const mask = this.#shown === "earlier" ? this.#earlier : this.#mask;
    const place = mask && middleOf(mask.volume, id);
    if (place) this.set({ cross: place });
  }

  /** @returns {string} which of the doubtful places it is */
  goToNextDoubt() {
    if (!this.#uncertainty) return "";
    this.#doubtful ??= doubtfulPlaces(this.#uncertainty, UNSURE[0]);
    if (!this.#doubtful.length) return "no doubtful place";
    const number = this.#next++ % this.#doubtful.length;
    this.set({ cross: this.#doubtful[number] });
    return `${number + 1} of ${this.#doubtful.length}`;
  }

  focus() {
    (this.#planes.get(this.#view) ?? this.#planes.get("axial"))?.canvas.focus({ preventScroll: true });
  }

  /** @param {string} which @returns {Layer | null} */
  #layer(which) {
    if (which in this.#layers) return this.#layers[which];
    return (this.#layers[which] = this.#makeLayer(which));
  }

  #makeLayer(/** @type {string} */ which) {
    if (which === "this" && this.#mask) return maskLayer(this.#mask, this.#hidden);
    if (which === "earlier" && this.#earlier) return maskLayer(this.#earlier, this.#hidden);
    if (which === "uncertainty" && this.#uncertainty) return doubtLayer(this.#uncertainty);
    return which === "difference" && this.#mask && this.#earlier ? differenceLayer(this.#mask, this.#earlier) : null;
  }

  paint() {
    if (!this.#scene || this.#requested) return;
    this.#requested = true;
    requestAnimationFrame(() => {
      this.#requested = false;
      if (!this.#scene) return;
      this.#scene.layer = this.#layer(this.#shown);
      for (const plane of this.#planes.values()) plane.draw(this.#scene);
      if (this.#earlier) this.#twin.draw({ ...this.#scene, layer: this.#layer("earlier") });
      this.onPlace(this.#describe());
    });
  }

  #describe() {
    if (!this.#scene || !this.#mask) return "";
    const { scan, cross } = this.#scene;
    const value = valueAt(scan, cross);
    const rounded = Number.isInteger(value) ? value : value.toPrecision(4);
    const parts = [this.#unit ? `${rounded} ${this.#unit}` : `value ${rounded}`];
    if (this.#shown === "uncertainty" && this.#uncertainty) parts.unshift(`wrong with a probability of ${valueAt(this.#uncertainty, cross)} %`);
    else {
      const mask = this.#shown === "earlier" && this.#earlier ? this.#earlier : this.#mask;
      parts.unshift(mask.organs.find((organ) => organ.id === valueAt(mask.volume, cross))?.name ?? "no organ");
    }
    for (const [name, { through }] of Object.entries(PLANES)) parts.push(`${name} ${cross[through] + 1} of ${scan.dims[through]}`);
    const mm = millimetresAt(scan, cross).map((at, axis) => `${["RL", "AP", "HF"][axis][at < 0 ? 1 : 0]} ${Math.abs(at).toFixed(0)}`);
    return `${parts.join(", ")}; in the scanner ${mm.join(" ")} mm`;
  }

  /** What the planes show; null where no result is open. */
  get scene() {
    return this.#scene;
  }

  goTo(/** @type {number} */ axis, /** @type {number} */ index) {
    if (!this.#scene) return;
    const cross = [...this.#scene.cross];
    cross[axis] = Math.min(this.#scene.scan.dims[axis] - 1, Math.max(0, index));
    this.set({ cross });
  }

  step(/** @type {number} */ axis, /** @type {number} */ by) {
    if (this.#scene) this.goTo(axis, this.#scene.cross[axis] + by);
  }
}
