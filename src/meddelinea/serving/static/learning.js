// The models of the server, and learning a new one from corrected scans.

import { $, button, confirmed, element } from "./dom.js";
import { attempt } from "./messages.js";
import * as server from "./server.js";

/** @type {any[]} jobs that learn or have learnt, the latest first */
let learnings = [];

const active = (/** @type {any} */ job) => job.state === "queued" || job.state === "running";
const percent = (/** @type {number} */ dice) => dice.toFixed(3);

/** Whether the server learns, or is about to. */
export const learning = () => learnings.some(active);

/** Look at what can be learnt from, and what was. */
export async function refresh() {
  const running = learning();
  const [datasets, found] = await Promise.all([server.datasets(), server.learnings()]);
  learnings = found;
  if (running && !learning()) {
    await server.info();
    showModels();
  }
  draw(datasets);
}

/** Offer the server's models, as it last told of them, for the next scan. */
export function showModels() {
  const { models, model } = server.about;
  const chosen = $("model-choice").value || model;
  $("model-choice").replaceChildren(
    ...models.map((/** @type {any} */ each) => element("option", { value: each.name }, each.learnt ? `${each.name}, learnt here` : each.name)),
  );
  $("model-choice").value = models.some((/** @type {any} */ each) => each.name === chosen) ? chosen : model;
  $("model-field").hidden = models.length < 2;
}

/** @param {any[]} datasets the one that was changed last first */
function draw(datasets) {
  const [dataset] = datasets;
  $("learn").hidden = !dataset && !learnings.length;
  const cases = dataset?.cases.length ?? 0;
  $("learn-from").textContent = dataset ? `${cases} corrected ${cases === 1 ? "scan" : "scans"} of ${dataset.modality}, ${dataset.organs.length} organs` : "No corrected scan is left.";
  $("learn-start").disabled = !dataset || learning();
  const lines = learnings.map((job) => element("li", {}, ...describe(job)));
  if (String([...$("learnings").children].map((line) => line.textContent)) === String(lines.map((line) => line.textContent))) return;
  $("learnings").replaceChildren(...lines);
}

/** @param {any} job @returns {(string | Node)[]} */
function describe(job) {
  if (job.state === "queued") return ["Learning waits ", cancel(job)];
  if (job.state === "running") return [`Learning: ${job.stage || "begins"}${job.slices ? `, step ${job.slices_done} of ${job.slices}` : ""} `, cancel(job)];
  if (job.state !== "done") return [`Learning ${job.state}${job.message ? `: ${job.message}` : ""}`];
  const { model, before, check, dice, dice_before } = job.learnt;
  const compared = "mean" in dice ? `Dice ${percent(dice.mean)} beside ${percent(dice_before.mean)} of ${before} (${check})` : `not compared with ${before}: ${check.replace("none: ", "")}`;
  return [model ? `${model} is offered: ${compared}` : `${before} is kept: the new model is no better, ${compared}`];
}

function cancel(/** @type {any} */ job) {
  return button("Cancel", () => attempt(() => server.cancel(job.id)), { "aria-label": "Cancel learning" });
}

export async function start() {
  if (!(await confirmed("Learn from the corrected scans? It takes minutes, and no scan is segmented meanwhile.", "Learn"))) return;
  await server.learn($("model-choice").value);
  await refresh();
}
