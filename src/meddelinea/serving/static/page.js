// The page: its controls, and what they do.

import * as correcting from "./correct.js";
import { $, element } from "./dom.js";
import { UNSURE } from "./layers.js";
import * as learning from "./learning.js";
import { attempt, complain } from "./messages.js";
import * as queue from "./queue.js";
import * as result from "./result.js";
import { chosenFiles, droppedFiles } from "./scans.js";
import * as server from "./server.js";

const { viewer } = result;
const viewChosen = () => /** @type {any} */ (document.querySelector('input[name="view"]:checked'))?.value ?? "all";

async function begin() {
  const about = await server.info();
  $("login").hidden = true;
  complain("");
  $("model").textContent = `Model ${about.model}: ${about.organs.length} organs in ${about.modalities.join(" and ")}.`;
  $("version").textContent = about.version;
  $("keeping").textContent = `Scans and results are deleted ${about.keep_hours} hours after they are done. Names of files are not sent; this tab remembers those that it sent.`;
  $("modality-field").hidden = about.modalities.length < 2;
  $("modality").replaceChildren(element("option", { value: "" }, "as in the file"), ...about.modalities.map((/** @type {string} */ name) => element("option", { value: name }, name)));
  learning.showModels();
  const wanted = new URLSearchParams(location.hash.slice(1)).get("job");
  queue.follow({ open, opened: result.opened, close: result.close, changed: result.jobsChanged }, wanted);
}

async function open(/** @type {any} */ job) {
  await result.open(job);
  queue.drawJobs();
}

for (const input of [$("file"), $("folder")])
  input.addEventListener("change", () => {
    const files = chosenFiles(input.files);
    input.value = ""; // so that the same file can be chosen again
    attempt(() => queue.add(files));
  });
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // else the browser would open the file in the page's place
    document.body.classList.toggle("over", kind === "dragover");
  });
document.addEventListener("drop", (event) => attempt(() => event.dataTransfer && queue.add(droppedFiles(event.dataTransfer))));
document.addEventListener("visibilitychange", () => queue.wake());
$("cancel").addEventListener("click", () => attempt(queue.cancelWork));
$("trouble-close").addEventListener("click", () => complain(""));
$("login").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  server.setToken($("token").value.trim());
  $("token").value = "";
  attempt(begin);
});
$("screen").addEventListener("click", () => result.setScreen(document.body.dataset.screen === "viewer" ? "list" : "viewer"));
$("opacity").addEventListener("input", result.applyOpacity);
$("style").addEventListener("change", () => viewer.set({ style: $("style").value }));
$("crosshair").addEventListener("change", () => viewer.set({ crosshair: $("crosshair").checked }));
$("tool").addEventListener("change", () => (viewer.tool = $("tool").value));
$("reset").addEventListener("click", () => {
  viewer.reset();
  $("window").selectedIndex = 0;
  result.applyWindow();
});
$("window").addEventListener("change", result.applyWindow);
$("earlier").addEventListener("change", () => attempt(() => result.compareWith($("earlier").value)));
$("beside").addEventListener("change", () => result.setView(viewChosen()));
$("next-doubt").addEventListener("click", result.nextDoubt);
$("all").addEventListener("click", () => result.hide([]));
$("none").addEventListener("click", result.hideAll);
$("learn-start").addEventListener("click", () => attempt(learning.start));
$("again").addEventListener("click", () => attempt(async () => queue.openWhenDone(await server.again(result.opened() ?? "", $("again-model").value))));
$("correct").addEventListener("click", () => attempt(result.correct));
$("brush-size").addEventListener("input", correcting.resize);
$("undo").addEventListener("click", correcting.undo);
$("redo").addEventListener("click", correcting.redo);
$("fill").addEventListener("click", correcting.fill);
$("save-correction").addEventListener("click", () => attempt(correcting.save));
$("discard").addEventListener("click", correcting.discard);
addEventListener("beforeunload", (event) => correcting.unsaved() && event.preventDefault());
$("help-open").addEventListener("click", () => $("help").showModal());
for (const radio of document.querySelectorAll('input[name="view"]')) radio.addEventListener("change", () => result.setView(/** @type {any} */ (radio).value));
for (const radio of document.querySelectorAll('input[name="shown"]')) radio.addEventListener("change", () => attempt(() => result.show(/** @type {any} */ (radio).value)));
$("legend-low").textContent = `${UNSURE[0]} %`;
$("legend-high").textContent = `${UNSURE[1]} % and more`;

// Keys of the pictures, for when they have the focus; those that move the cross-hair are the planes' own.
/** @type {Record<string, () => void>} */
const KEYS = {
  "?": () => $("help").showModal(),
  r: () => $("reset").click(),
  x: () => $("crosshair").click(),
  u: () => result.choose($("doubt").hidden ? "uncertainty" : "this"),
  n: result.nextDoubt,
  h: () => {
    $("opacity").value = $("opacity").value > 0 ? 0 : $("opacity").defaultValue;
    result.applyOpacity();
  },
  Escape: () => result.setView("all"),
  a: () => result.setView("axial"),
  c: () => result.setView("coronal"),
  s: () => result.setView("sagittal"),
  d: () => result.setView("solid"),
  "[": () => scaleBrush(0.8),
  "]": () => scaleBrush(1.25),
};
function scaleBrush(/** @type {number} */ factor) {
  const size = Number($("brush-size").value);
  $("brush-size").value = factor > 1 ? Math.max(size + 1, Math.round(size * factor)) : Math.min(size - 1, Math.round(size * factor));
  correcting.resize();
}
$("pictures").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if ((event.ctrlKey || event.metaKey) && /^[zy]$/i.test(event.key)) {
    event.preventDefault();
    return event.key.toLowerCase() === "y" || event.shiftKey ? correcting.redo() : correcting.undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const preset = Number(event.key) - 1;
  if (preset >= 0 && preset < $("window").options.length) {
    $("window").selectedIndex = preset;
    result.applyWindow();
  } else if (event.key in KEYS) KEYS[event.key]();
  else return;
  event.preventDefault();
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  server.setToken(given);
  history.replaceState(null, "", location.pathname); // out of sight and out of the history
}
attempt(begin);
