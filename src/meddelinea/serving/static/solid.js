// The organs' surfaces in three dimensions, drawn by NiiVue.

import { readSurfaces } from "./glb.js";

const OPTIONS = {
  backColor: [0, 0, 0, 1], crosshairWidth: 0, isOrientCube: true, dragAndDropEnabled: false, show3Dcrosshair: false,
  viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", logLevel: "error", loadingText: "",
};
const FROM = [180, 10]; // in front of the patient, a little above
const STEPS = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };

export class Solid {
  #viewer;

  /** @param {any} viewer */
  constructor(viewer) {
    this.#viewer = viewer;
  }

  /** @param {HTMLCanvasElement} canvas @returns {Promise<Solid>} fails where the browser has no WebGL 2 */
  static async on(canvas) {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2");
    const { Niivue, SLICE_TYPE } = globalThis.niivue;
    const viewer = new Niivue({ ...OPTIONS, sliceType: SLICE_TYPE.RENDER });
    const solid = new Solid(viewer);
    canvas.addEventListener("keydown", (event) => solid.#turn(event));
    await viewer.attachToCanvas(canvas);
    return solid;
  }

  /** @param {ArrayBuffer} glb surfaces named by their organs @param {Map<string, number[]>} colours @param {Set<string>} hidden */
  show(glb, colours, hidden) {
    const { NVMesh } = globalThis.niivue;
    this.clear();
    for (const { name, points, triangles } of readSurfaces(glb)) {
      const colour = new Uint8Array([...(colours.get(name) ?? [200, 200, 200]), 255]);
      this.#viewer.addMesh(new NVMesh(points, triangles, name, colour, 1, !hidden.has(name), this.#viewer.gl));
    }
    this.reset();
  }

  clear() {
    while (this.#viewer.meshes.length) this.#viewer.removeMesh(this.#viewer.meshes.at(-1));
  }

  /** @param {Set<string>} names */
  hide(names) {
    for (const mesh of this.#viewer.meshes) mesh.visible = !names.has(mesh.name);
    this.draw();
  }

  reset() {
    this.#viewer.scene.volScaleMultiplier = 1;
    this.#viewer.setRenderAzimuthElevation(...FROM);
  }

  draw() {
    this.#viewer.resizeListener();
    this.#viewer.drawScene();
  }

  #turn(/** @type {KeyboardEvent} */ event) {
    event.stopImmediatePropagation(); // NiiVue has keys of its own; the page's are above the canvas
    const step = STEPS[/** @type {keyof typeof STEPS} */ (event.key)];
    if (!step && !this.#viewer.canvas.parentElement.dispatchEvent(new KeyboardEvent("keydown", event))) event.preventDefault();
    if (!step) return;
    event.preventDefault();
    const { renderAzimuth, renderElevation } = this.#viewer.scene;
    this.#viewer.setRenderAzimuthElevation(renderAzimuth + step[0], renderElevation + step[1]);
  }
}
