// The result that is open: its pictures, its organs, what it is compared with, and what of it can be downloaded.

import { $, button, element } from "./dom.js";
import * as correcting from "./correct.js";
import { asStl, readSurfaces } from "./glb.js";
import { attempt, complain, say } from "./messages.js";
import { drawOrgans } from "./organs.js";
import { stem } from "./scans.js";
import * as server from "./server.js";
import { Viewer } from "./viewer.js";
import { describeScan, nameOf, when } from "./worklist.js";

/** @type {Record<string, [number, number]>} width and level of the usual windows, in HU */
const WINDOWS = { Abdomen: [400, 40], Liver: [150, 60], Mediastinum: [350, 50], Lung: [1500, -600], Bone: [1500, 300] };

/** @type {any} {job, organs, statistics, hidden, changes, surfaces} */
let result = null;
/** @type {any[]} */
let jobs = [];
let received = 0; // bytes of the result that is loaded

/** @returns {string | undefined} id of the job whose result is open */
export const opened = () => result?.job.id;

export const viewer = new Viewer($("pictures"), {
  onPlace: (text) => ($("location").textContent = text),
  onWindow: showManualWindow,
  onView: (view) => setView(view),
});

const fileOf = (/** @type {any} */ job, /** @type {string} */ kind) => job.files.find((/** @type {any} */ file) => file.kind === kind);
const contents = async (/** @type {any} */ job, /** @type {string} */ kind) => (await server.file(job.id, fileOf(job, kind).name)).json();

/** A file of a result, with a word on how much of it has come. */
function arriving(/** @type {any} */ job, /** @type {string} */ kind) {
  return server.bytes(job.id, fileOf(job, kind).name, (bytes) => {
    received += bytes;
    say(`Loading the result: ${(received / (1 << 20)).toFixed(0)} MiB`);
  });
}

// The organs of a mask as they are drawn; those of another model than the server's keep a colour by their name.
async function organsOf(/** @type {any} */ job) {
  const { labels } = await contents(job, "labels");
  const known = new Map(server.about.organs.map((/** @type {any} */ organ) => [organ.name, organ.colour]));
  return Object.entries(labels).map(([name, id]) => ({ name, id, colour: known.get(name) ?? [200, 200, 200] }));
}

export async function open(/** @type {any} */ job) {
  if (!(await correcting.mayLeave())) return;
  correcting.stop();
  complain("");
  received = 0;
  history.replaceState(null, "", `#job=${job.id}`);
  const [scan, mask, statistics, organs] = await Promise.all([arriving(job, "scan"), arriving(job, "mask"), contents(job, "statistics"), organsOf(job)]);
  say("Opening the result");
  await new Promise((resolve) => setTimeout(resolve)); // so that it is read
  result = { job, organs, statistics, hidden: new Set(), changes: null, surfaces: null };
  setScreen("viewer");
  await viewer.open(scan, mask, organs, statistics.intensity_unit === "HU" ? "HU" : "");
  viewer.set({ opacity: $("opacity").value / 100, style: $("style").value, crosshair: $("crosshair").checked });
  $("scan-name").textContent = describeScan(job);
  $("warnings").replaceChildren(...job.warnings.map((/** @type {string} */ text) => element("li", {}, text)));
  const presets = job.modality === "CT" ? Object.entries(WINDOWS).map(([name, [width, level]]) => element("option", { value: name }, `${name} (W ${width}, L ${level})`)) : [];
  $("window").replaceChildren(...presets, element("option", { value: "" }, "Range of the scan"));
  applyWindow();
  $("earlier").replaceChildren();
  listEarlier();
  choose("this");
  offer(false, "");
  $("corrected").textContent = describeCorrection(job);
  const others = server.about.models.filter((/** @type {any} */ model) => model.name !== job.model);
  $("again-model").replaceChildren(...others.map((/** @type {any} */ model) => element("option", {}, model.name)));
  $("again-field").hidden = !others.length;
  redrawOrgans();
  drawDownloads();
  setView(innerWidth < 768 ? "axial" : "all");
  viewer.focus();
  say(`Done: ${describeScan(job)}`);
  loadSurfaces(job);
}

export async function correct() {
  choose("this");
  await correcting.begin(result.job, result.organs, viewer);
}

/** @param {any} job @returns {string} what a person changed; empty for a mask of a model */
function describeCorrection({ kind, changes, comment }) {
  if (kind !== "correction") return "";
  const parts = Object.entries(changes ?? {}).flatMap(([name, { added_ml, removed_ml }]) => {
    const signed = [added_ml && `+${added_ml.toFixed(1)}`, removed_ml && `−${removed_ml.toFixed(1)}`].filter(Boolean).join(" ");
    return signed ? [`${name} ${signed} ml`] : [];
  });
  return `Corrected by a person: ${parts.join("; ") || "no voxel changed"}.${comment ? ` “${comment}”` : ""}`;
}

// The surfaces are made when they are first asked for, which the planes need not wait for.
async function loadSurfaces(/** @type {any} */ job) {
  viewer.solidNote.textContent = "making the surfaces …";
  const glb = await server.surfaces(job.id).catch(() => null);
  if (result?.job.id !== job.id) return;
  result.surfaces = glb;
  await viewer.showSurfaces(glb);
  drawDownloads();
}

export function close() {
  correcting.stop();
  result = null;
  viewer.close();
  history.replaceState(null, "", location.pathname);
  setScreen("list");
}

export function setScreen(/** @type {string} */ name) {
  document.body.dataset.screen = name;
  $("screen").textContent = name === "viewer" ? "Worklist" : "Back to the result";
  $("screen").hidden = !result;
}

export function setView(/** @type {string} */ view) {
  for (const radio of document.querySelectorAll('input[name="view"]')) /** @type {any} */ (radio).checked = /** @type {any} */ (radio).value === view;
  const beside = $("beside").checked && !$("beside-field").hidden;
  viewer.setView(beside && (view === "all" || view === "solid") ? "axial" : view, beside);
}

export function applyWindow() {
  $("manual")?.remove();
  const preset = WINDOWS[$("window").value];
  viewer.setWindow(preset && [preset[1] - preset[0] / 2, preset[1] + preset[0] / 2]);
}

export function applyOpacity() {
  $("opacity-value").textContent = `${$("opacity").value} %`;
  viewer.set({ opacity: $("opacity").value / 100 });
}

function showManualWindow(/** @type {number} */ low, /** @type {number} */ high) {
  if (!$("manual")) $("window").append(element("option", { id: "manual", value: "manual" }));
  const digits = high - low < 10 ? 2 : 0;
  $("manual").textContent = `W ${(high - low).toFixed(digits)}, L ${((low + high) / 2).toFixed(digits)}`;
  $("window").value = "manual";
}

function redrawOrgans() {
  drawOrgans($("organs"), $("marks"), result, {
    toggle: (name) => hide(result.hidden.has(name) ? [...result.hidden].filter((other) => other !== name) : [...result.hidden, name]),
    solo: (name) => {
      const others = result.organs.map((/** @type {any} */ organ) => organ.name).filter((/** @type {string} */ other) => other !== name);
      const alone = !result.hidden.has(name) && others.every((/** @type {string} */ other) => result.hidden.has(other));
      hide(alone ? [] : others);
    },
    goTo: (organ) => viewer.goToOrgan(organ.id),
  });
}

export function hide(/** @type {string[]} */ names) {
  result.hidden = new Set(names);
  viewer.hide(result.hidden);
  redrawOrgans();
}

// In a tab of its own: the server hands out files for saving alone, and to whom has its token.
function openPage(/** @type {string} */ page) {
  const link = element("a", { href: URL.createObjectURL(new Blob([page], { type: "text/html" })), target: "_blank", rel: "noopener" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function drawDownloads() {
  const { job, surfaces } = result;
  const save = (/** @type {Blob} */ blob, /** @type {string} */ name) => {
    const known = nameOf(job);
    const link = element("a", { href: URL.createObjectURL(blob), download: `${known ? stem(known) : job.id.slice(0, 4)}_${name}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const item = (/** @type {string} */ title, /** @type {() => Promise<void> | void} */ action) => element("li", {}, button(title, () => attempt(action)));
  const files = job.files.map((/** @type {any} */ file) => item(file.title, async () => save(await (await server.file(job.id, file.name)).blob(), file.name)));
  const report = job.files.find((/** @type {any} */ file) => file.name.endsWith(".html"));
  if (report) files.unshift(item("Open the report", async () => openPage(await (await server.file(job.id, report.name)).text())));
  if (surfaces) {
    files.push(item("Surfaces of all organs (GLB)", () => save(new Blob([surfaces], { type: "model/gltf-binary" }), "surfaces.glb")));
    const choice = element("select", { "aria-label": "Organ whose surface is saved" }, ...readSurfaces(surfaces).map(({ name }) => element("option", {}, name)));
    const stl = item("Surface (STL)", () => {
      const surface = readSurfaces(surfaces).find(({ name }) => name === choice.value);
      if (surface) save(asStl(surface), `${surface.name.replaceAll(" ", "_")}.stl`);
    });
    stl.append(" ", choice);
    files.push(stl);
  }
  $("downloads").replaceChildren(...files);
}

/* Another result of the same scan. */

/** @param {any[]} all */
export function jobsChanged(all) {
  jobs = all;
  listEarlier();
}

function listEarlier() {
  if (!result) return;
  const { job } = result;
  const others = jobs.filter((other) => other.state === "done" && other.scan === job.scan && other.id !== job.id);
  const wanted = ["", ...others.map((other) => other.id)];
  const listed = [...$("earlier").options].map((option) => option.value);
  if (listed.length === wanted.length && listed.every((id, index) => id === wanted[index])) return;
  const chosen = $("earlier").value;
  const first = element("option", { value: "" }, others.length ? "no other result" : "no other result of this scan yet");
  $("earlier").replaceChildren(first, ...others.map((other) => element("option", { value: other.id }, `${nameOf(other) ?? ""} ${when(other.created)}`.trim())));
  $("earlier").disabled = !others.length;
  $("earlier").value = wanted.includes(chosen) ? chosen : "";
}

// Which choices there are beside this result and its uncertainty.
function offer(/** @type {boolean} */ earlier, /** @type {string} */ note) {
  $("earlier-choice").hidden = $("difference-choice").hidden = $("beside-field").hidden = !earlier;
  $("compared").textContent = note;
}

export async function compareWith(/** @type {string} */ id) {
  choose("this");
  viewer.dropEarlier();
  result.changes = null;
  $("beside").checked = false;
  offer(false, "");
  if (id) {
    const other = await server.job(id);
    const [changes, mask, organs] = await Promise.all([server.compare(result.job.id, id), arriving(other, "mask"), organsOf(other)]);
    result.changes = changes;
    const drawn = await viewer.setEarlier(mask, organs);
    const same = Object.values(changes).every(({ dice, volume_ml, earlier_ml }) => (dice ?? 1) === 1 && volume_ml === earlier_ml);
    offer(drawn, same ? "The two results are the same, voxel for voxel." : drawn ? "" : "The two lie on different grids: they are compared in numbers alone.");
    say("");
  }
  setView(document.querySelector('input[name="view"]:checked')?.value ?? "all");
  redrawOrgans();
}

export function choose(/** @type {string} */ shown) {
  $("shown").querySelector(`input[value="${shown}"]`).checked = true;
  attempt(() => show(shown));
}

export async function show(/** @type {string} */ shown) {
  $("doubt").hidden = shown !== "uncertainty";
  viewer.show(shown);
  if (shown !== "uncertainty" || viewer.hasUncertainty) return;
  const { job } = result;
  const buffer = await arriving(job, "uncertainty");
  if (result?.job.id === job.id) await viewer.setUncertainty(buffer);
  say("");
}

export function nextDoubt() {
  $("doubt-number").textContent = viewer.goToNextDoubt();
}

export const hideAll = () => hide(result.organs.map((/** @type {any} */ organ) => organ.name));
