// Correcting the mask that is open: what is painted, and sending it as a result of its own.

import { $, confirmed, element } from "./dom.js";
import { say } from "./messages.js";
import { Painting } from "./painting.js";
import { openWhenDone } from "./queue.js";
import * as server from "./server.js";
import { remember, nameOf } from "./worklist.js";

/** @typedef {import("./viewer.js").Viewer} Viewer */

/** @type {{job: any, organs: any[], viewer: Viewer, painting: Painting, plane: string} | null} what is corrected */
let open = null;

/** Whether leaving the result would lose what was painted. */
export const unsaved = () => Boolean(open?.painting.canUndo);

/** @param {any} job @param {any[]} organs @param {Viewer} viewer */
export async function begin(job, organs, viewer) {
  const volume = await viewer.beginCorrection();
  if (!volume) return;
  open = { job, organs, viewer, painting: new Painting(volume), plane: "axial" };
  viewer.brush = {
    begin: () => open?.painting.begin(),
    dab: (plane, place) => {
      if (!open) return;
      open.plane = plane;
      open.painting.dab(plane, place, brush());
    },
    end: () => {
      open?.painting.end();
      tell();
    },
  };
  $("brush-organ").replaceChildren(...organs.map((organ) => element("option", { value: organ.id }, organ.name)));
  $("comment").value = "";
  setOpen(true);
  resize();
  tell();
}

/** End without keeping anything. */
export function stop() {
  if (!open) return;
  open.viewer.endCorrection();
  open = null;
  setOpen(false);
}

/** @returns {Promise<boolean>} whether what was painted, if anything, may be lost */
export async function mayLeave() {
  return !unsaved() || confirmed("Leave the mask that you have corrected? What you painted is lost.", "Leave it");
}

export async function discard() {
  if (await mayLeave()) stop();
}

function setOpen(/** @type {boolean} */ on) {
  $("correcting").hidden = !on;
  $("correct").hidden = on;
  document.body.classList.toggle("painting", on);
  $("tool").querySelector('[value="brush"]').hidden = !on;
  $("tool").value = on ? "brush" : "cross";
  $("tool").dispatchEvent(new Event("change"));
}

const radius = () => Number($("brush-size").value) / 2;
const brush = () => ({ id: Number($("brush-organ").value), erase: $("eraser").checked, radius: radius(), keep: $("keep-others").checked });

export function resize() {
  $("brush-size-value").textContent = `${$("brush-size").value} mm`;
  open?.viewer.set({ brushMm: radius() });
}

function tell() {
  if (!open) return;
  const { painting, organs } = open;
  const ml = Math.abs(painting.volume.spacing.reduce((product, mm) => product * mm, 1)) / 1000;
  const parts = painting.changes().map(({ id, added, removed }) => {
    const signed = [added && `+${(added * ml).toFixed(1)}`, removed && `−${(removed * ml).toFixed(1)}`].filter(Boolean).join(" ");
    return `${organs.find((organ) => organ.id === id)?.name ?? `id ${id}`} ${signed} ml`;
  });
  $("painted").textContent = parts.join("; ") || "Nothing is changed yet.";
  $("undo").disabled = !painting.canUndo;
  $("redo").disabled = !painting.canRedo;
  $("save-correction").disabled = !parts.length;
  open.viewer.repaint();
}

export function undo() {
  open?.painting.undo();
  tell();
}

export function redo() {
  open?.painting.redo();
  tell();
}

export function fill() {
  if (!open) return;
  const { id, keep } = brush();
  const filled = open.painting.fillBetween(open.plane, id, keep);
  tell();
  if (!filled) say(`Nothing to fill: paint the organ in two ${open.plane} slices that are not neighbours`);
}

export async function save() {
  if (!open) return;
  const { job, painting } = open;
  say("Sending the corrected mask");
  const packed = new Blob([painting.volume.file]).stream().pipeThrough(new CompressionStream("gzip"));
  const made = await server.correct(job.id, await new Response(packed).blob(), $("comment").value);
  const name = nameOf(job);
  if (name) remember(made.id, name);
  stop();
  openWhenDone(made);
}
