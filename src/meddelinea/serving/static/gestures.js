// What the mouse, the fingers and the keys do on a plane.

import { PLANES } from "./slices.js";

/** @typedef {import("./plane.js").Plane} Plane */
/** @typedef {import("./viewer.js").Viewer} Viewer */

const CLICK_PX = 5; // a finger or a mouse that moves less has clicked
const WHEEL_PX = 40; // of a trackpad, a slice
const DAB_PX = 2; // between two dabs of a brush that moves fast
const WINDOW_PX = 200; // a drag that widens the window e times, or moves it by its half

/** @param {Plane} plane @param {Viewer} viewer @param {(plane: Plane) => void} onEnlarge */
export function listen(plane, viewer, onEnlarge) {
  const { canvas } = plane;
  canvas.addEventListener("dblclick", () => onEnlarge(plane));
  canvas.addEventListener("contextmenu", (/** @type {Event} */ event) => event.preventDefault());
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => press(event, plane, viewer));
  canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => drag(event, plane, viewer));
  for (const kind of ["pointermove", "pointerleave"])
    canvas.addEventListener(kind, (/** @type {PointerEvent} */ event) => {
      plane.pointer = kind === "pointermove" ? [event.offsetX, event.offsetY] : null;
      if (viewer.brush) viewer.paint();
    });
  let wheel = 0;
  canvas.addEventListener(
    "wheel",
    (/** @type {WheelEvent} */ event) => {
      event.preventDefault();
      if (event.ctrlKey) {
        plane.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY / 300));
        return viewer.paint();
      }
      // A notch of a wheel is a slice; a trackpad sends many small steps.
      const fine = event.deltaMode === 0 && Math.abs(event.deltaY) < WHEEL_PX;
      wheel = fine ? wheel + event.deltaY : Math.sign(event.deltaY) * WHEEL_PX;
      const steps = Math.trunc(wheel / WHEEL_PX);
      wheel -= steps * WHEEL_PX;
      if (steps) viewer.step(plane.through, -steps);
    },
    { passive: false },
  );
}

// Left drags with the tool, right changes grey values, the middle button moves the picture. A finger that goes up and
// down scrolls a page that is longer than its window; so nothing is done before it moves sideways or is lifted.
/** @param {PointerEvent} start @param {Plane} plane @param {Viewer} viewer */
function drag(start, plane, viewer) {
  if (!viewer.scene) return;
  const { canvas, shift } = plane;
  const { scan, cross, window } = viewer.scene;
  const tool = ["", "move", "window"][start.button] || (start.shiftKey ? "move" : viewer.tool);
  if (tool === "brush") return stroke(start, plane, viewer);
  /** @type {Record<string, (dx: number, dy: number, event: PointerEvent) => void>} */
  const tools = {
    cross: (dx, dy, event) => point(event, plane, viewer),
    move: (dx, dy) => {
      plane.shift = [shift[0] + dx, shift[1] + dy];
      viewer.paint();
    },
    slices: (dx, dy) => {
      const perSlice = Math.min(12, Math.max(2, (0.8 * canvas.clientHeight) / scan.dims[plane.through]));
      viewer.goTo(plane.through, cross[plane.through] + Math.round((Math.abs(dx) > Math.abs(dy) ? dx : -dy) / perSlice));
    },
    window: (dx, dy) => {
      const width = window[1] - window[0];
      const level = window[0] + width / 2 + (width * dy) / (2 * WINDOW_PX);
      const half = (width * Math.exp(dx / WINDOW_PX)) / 2;
      viewer.set({ window: [level - half, level + half] });
      viewer.onWindow(level - half, level + half);
    },
  };
  let moved = false;
  const move = (/** @type {PointerEvent} */ event) => {
    const [dx, dy] = [event.clientX - start.clientX, event.clientY - start.clientY];
    moved ||= Math.hypot(dx, dy) > CLICK_PX;
    if (moved) tools[tool](dx, dy, event);
  };
  const end = (/** @type {PointerEvent} */ event) => {
    for (const [kind, listener] of listeners) canvas.removeEventListener(kind, listener);
    if (event.type === "pointerup" && !moved && start.button === 0) point(event, plane, viewer);
  };
  /** @type {[string, any][]} */
  const listeners = [["pointermove", move], ["pointerup", end], ["pointercancel", end]];
  for (const [kind, listener] of listeners) canvas.addEventListener(kind, listener);
  canvas.setPointerCapture(start.pointerId);
  if (start.pointerType !== "touch" && start.button === 0 && tool === "cross") point(start, plane, viewer);
}

/** @param {PointerEvent} start @param {Plane} plane @param {Viewer} viewer */
function stroke(start, plane, viewer) {
  const { canvas } = plane;
  const { brush } = viewer;
  if (!brush) return;
  const placeOf = (/** @type {PointerEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let last = placeOf(start);
  const move = (/** @type {PointerEvent} */ event) => {
    const next = placeOf(event);
    const steps = Math.max(1, Math.ceil(Math.hypot(next[0] - last[0], next[1] - last[1]) / DAB_PX));
    for (let step = 1; step <= steps; step++) {
      const [x, y] = [0, 1].map((axis) => last[axis] + ((next[axis] - last[axis]) * step) / steps);
      const voxel = plane.voxelAt(x, y);
      if (voxel) brush.dab(plane.name, voxel);
    }
    last = next;
    viewer.repaint();
  };
  const end = () => {
    for (const [kind, listener] of listeners) canvas.removeEventListener(kind, listener);
    brush.end();
  };
  /** @type {[string, any][]} */
  const listeners = [["pointermove", move], ["pointerup", end], ["pointercancel", end]];
  for (const [kind, listener] of listeners) canvas.addEventListener(kind, listener);
  canvas.setPointerCapture(start.pointerId);
  brush.begin();
  move(start);
}

/** @param {PointerEvent} event @param {Plane} plane @param {Viewer} viewer */
function point(event, plane, viewer) {
  const box = plane.canvas.getBoundingClientRect();
  const cross = plane.voxelAt(event.clientX - box.left, event.clientY - box.top);
  if (cross) viewer.set({ cross });
}

/** @param {KeyboardEvent} event @param {Plane} plane @param {Viewer} viewer */
function press(event, plane, viewer) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { across, down, through } = PLANES[plane.name];
  const zoom = (/** @type {number} */ factor) => plane.zoomAt(plane.canvas.clientWidth / 2, plane.canvas.clientHeight / 2, factor);
  /** @type {Record<string, () => void>} the patient's right, or front, is at the picture's left */
  const keys = {
    ArrowLeft: () => viewer.step(across, 1),
    ArrowRight: () => viewer.step(across, -1),
    ArrowUp: () => viewer.step(down, 1),
    ArrowDown: () => viewer.step(down, -1),
    PageUp: () => viewer.step(through, 1),
    PageDown: () => viewer.step(through, -1),
    "+": () => zoom(1.25),
    "-": () => zoom(0.8),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
  viewer.paint();
}
