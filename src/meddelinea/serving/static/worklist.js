// The scans on the server, and those on their way to it.

import { button, element } from "./dom.js";
import { thumbnail } from "./server.js";

/** @param {number} seconds since 1970 */
export function when(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

// Names of files are kept for this tab, and are not sent.
const names = new Map(Object.entries(JSON.parse(sessionStorage.getItem("names") ?? "{}")));

/** @param {string} id of a job @param {string} name of its file */
export function remember(id, name) {
  names.set(id, name);
  sessionStorage.setItem("names", JSON.stringify(Object.fromEntries(names)));
}

/** @param {Set<string>} ids of the jobs that there are */
export function forgetOthers(ids) {
  const gone = [...names.keys()].filter((id) => !ids.has(id));
  for (const id of gone) names.delete(id);
  if (gone.length) sessionStorage.setItem("names", JSON.stringify(Object.fromEntries(names)));
}

/** @param {any} job @returns {string | undefined} */
export const nameOf = (job) => names.get(job.id);

/** @param {any} job */
export function describeScan(job) {
  const grid = job.shape.length ? `${job.modality}, ${job.shape.join(" × ")}` : "";
  return [nameOf(job) ?? `scan ${job.id.slice(0, 4)}`, grid].filter(Boolean).join(": ");
}

/** @param {any} job @returns {string} */
export function describeState(job) {
  if (job.state === "queued") return job.waiting_before ? `waiting: ${job.waiting_before} before it` : "waiting";
  if (job.state === "running") return job.slices ? `segmenting: ${job.slices_done} of ${job.slices} slices` : "reading the scan";
  return job.message ? `${job.state}: ${job.message}` : job.state;
}

export const active = (/** @type {any} */ job) => job.state === "queued" || job.state === "running";

/** @type {Map<string, {row: HTMLElement, state: HTMLElement, kind: string}>} rows that stay, for who points at them */
const rows = new Map();

/**
 * @param {HTMLTableElement} table
 * @param {any[]} jobs
 * @param {{name: string, share: number}[]} sending
 * @param {string | undefined} open id of the job whose result is open
 * @param {{open: (job: any) => void, cancel: (job: any) => void, remove: (job: any) => void}} actions
 */
export function drawWorklist(table, jobs, sending, open, actions) {
  const drawn = sending.map(({ name, share }) =>
    element("tr", {}, element("td", {}, name), element("td", {}, "now"), element("td", {}, share ? `sending: ${Math.round(100 * share)} %` : "to be sent"), element("td", {})),
  );
  for (const job of jobs) {
    const className = `${active(job) ? "active" : job.state}${job.id === open ? " open" : ""}`;
    const kind = `${className} ${describeScan(job)}`;
    if (rows.get(job.id)?.kind !== kind) rows.set(job.id, { kind, ...rowOf(job, className, actions) });
    const { row, state } = /** @type {any} */ (rows.get(job.id));
    const text = describeState(job);
    if (state.firstChild?.textContent !== text) state.replaceChildren(text, ...progressOf(job));
    drawn.push(row);
  }
  if (!drawn.length) drawn.push(element("tr", {}, element("td", { colSpan: 4 }, "none yet")));
  const [body] = table.tBodies;
  if (drawn.length !== body.children.length || drawn.some((row, index) => row !== body.children[index])) {
    const focus = document.activeElement?.getAttribute("data-key");
    body.replaceChildren(...drawn);
    if (focus) /** @type {HTMLElement | null} */ (body.querySelector(`[data-key="${focus}"]`))?.focus();
  }
}

/** @param {any} job */
function progressOf(job) {
  if (job.state !== "running" || !job.slices) return [];
  return [element("progress", { max: job.slices, value: job.slices_done, "aria-label": describeScan(job) })];
}

// A place that stays empty where a job has no picture.
function pictureOf(/** @type {any} */ job) {
  const place = element("span", { className: "thumbnail" });
  const show = async () => {
    const picture = element("img", { alt: "", src: URL.createObjectURL(await thumbnail(job.id)) });
    picture.onload = () => URL.revokeObjectURL(picture.src);
    place.append(picture);
  };
  if (job.state === "done") show().catch(() => {});
  return place;
}

/** @param {any} job @param {string} className @param {{open: any, cancel: any, remove: any}} actions */
function rowOf(job, className, actions) {
  const act = (/** @type {string} */ text, /** @type {(job: any) => void} */ action) =>
    button(text, () => action(job), { "aria-label": `${text} ${describeScan(job)} of ${when(job.created)}`, "data-key": `${text} ${job.id}` });
  const buttons = [
    ...(job.state === "done" ? [act("Open", actions.open)] : []),
    active(job) ? act("Cancel", actions.cancel) : act("Delete", actions.remove),
  ];
  const state = element("td", {});
  const cells = [element("td", { className: "name" }, element("div", {}, pictureOf(job), describeScan(job))), element("td", {}, when(job.created)), state];
  return { state, row: element("tr", { className }, ...cells, element("td", { className: "actions" }, ...buttons)) };
}
