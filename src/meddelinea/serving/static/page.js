// The page: what is sent, what is watched, what is shown.

import * as server from "./server.js";
import { describeScan, element, jobTable, organTable, when } from "./tables.js";
import { View } from "./view.js";

const POLL_MS = 300;
const WINDOWS = { "Abdomen (-160 to 240 HU)": [-160, 240], "Lung (-1350 to 150 HU)": [-1350, 150], "Bone (-450 to 1050 HU)": [-450, 1050] };

const $ = (id) => document.getElementById(id);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let about; // what the server says of itself
let view; // made with the first result
let result; // the result that is open: {job, organs, statistics, hidden, changes}
let stopWork = null; // ends the upload or the job that is watched
const names = new Map(); // job id -> file name, for the scans that this tab sent

function say(status, trouble = "") {
  $("status").textContent = status;
  $("trouble").textContent = trouble;
}

async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (error.status === 401) {
      $("login").hidden = false;
      $("token").focus();
    }
    say("", error.message);
    return undefined;
  }
}

async function begin() {
  about = await server.info();
  $("login").hidden = true;
  say("");
  $("model").textContent = `Model ${about.model}: ${about.organs.length} organs in ${about.modalities.join(" and ")}.`;
  $("version").textContent = about.version;
  $("keeping").textContent = `Scans and results are deleted ${about.keep_hours} hours after they are done. Names of files are not sent.`;
  $("modality-field").hidden = about.modalities.length < 2;
  $("modality").append(...about.modalities.map((name) => element("option", { value: name }, name)));
  await listJobs();
  const id = new URLSearchParams(location.hash.slice(1)).get("job");
  if (id) await follow(await server.job(id));
}

async function listJobs() {
  const jobs = await server.jobs();
  jobTable($("jobs"), jobs, names, result?.job.id, {
    open: (job) => busyAlready() || attempt(() => follow(job)),
    cancel: (job) => attempt(async () => void (await server.cancel(job.id), await listJobs())),
    remove: (job) => attempt(async () => void (await server.remove(job.id), await listJobs())),
  });
  return jobs;
}

function busyAlready() {
  if (stopWork) say($("status").textContent, "one scan is on its way; wait for it or cancel it");
  return Boolean(stopWork);
}

async function send(scan) {
  if (busyAlready()) return;
  if (scan.size > about.upload_bytes)
    return void say("", `the file has ${scan.size >> 20} MiB; the server takes ${about.upload_bytes >> 20} MiB`);
  busy(0, `Sending ${scan.name}`);
  const upload = server.upload(scan, $("modality").value, (share) => busy(share, `Sending: ${Math.round(100 * share)} %`));
  stopWork = upload.abort;
  let job;
  try {
    job = await upload.done;
  } finally {
    idle();
  }
  names.set(job.id, scan.name);
  await listJobs();
  await follow(job);
}

function busy(share, text) {
  $("work").hidden = false;
  if (share === null) $("progress").removeAttribute("value");
  else $("progress").value = share;
  say(text);
}

function idle() {
  stopWork = null;
  $("work").hidden = true;
}

// Watches a job to its end, then shows its result.
async function follow(job) {
  history.replaceState(null, "", `#job=${job.id}`);
  try {
    stopWork = () => attempt(() => server.cancel(job.id));
    while (job.state === "queued" || job.state === "running") {
      if (job.state === "queued") busy(null, `Waiting: ${job.waiting_before} before this scan`);
      else if (job.slices === 0) busy(null, "Reading the scan");
      else busy(job.slices_done / job.slices, `Segmenting: ${job.slices_done} of ${job.slices} slices`);
      await wait(POLL_MS);
      job = await server.job(job.id);
    }
  } finally {
    idle();
  }
  if (job.state === "done") {
    say("Loading the result");
    await show(job);
    say(`Done: ${describeScan(job, names)}`);
  } else {
    say("", `${job.state}${job.message ? `: ${job.message}` : ""}`);
  }
  await listJobs();
}

const nameOf = (job, kind) => job.files.find((file) => file.kind === kind).name;
const bytes = async (job, kind) => (await server.file(job.id, nameOf(job, kind))).arrayBuffer();
const contents = async (job, kind) => (await server.file(job.id, nameOf(job, kind))).json();

// The organs of a mask as they are drawn; those of another model than the server's keep a colour by their name.
async function organsOf(job) {
  const { labels } = await contents(job, "labels");
  const known = new Map(about.organs.map((organ) => [organ.name, organ.colour]));
  return Object.entries(labels).map(([name, id]) => ({ name, id, colour: known.get(name) ?? [200, 200, 200] }));
}

async function show(job) {
  const [scan, mask, uncertainty, statistics, organs] = await Promise.all([
    bytes(job, "scan"),
    bytes(job, "mask"),
    bytes(job, "uncertainty"),
    contents(job, "statistics"),
    organsOf(job),
  ]);
  $("result").hidden = false;
  view ??= await View.on($("planes"), $("solid"), (text) => ($("location").textContent = text));
  result = { job, organs, statistics, hidden: new Set(), changes: null };
  await view.open(scan, mask, uncertainty, organs);
  document.querySelector('input[name="shown"][value="this"]').checked = true;
  view.setOpacity($("opacity").value / 100);
  $("warnings").replaceChildren(...job.warnings.map((text) => element("li", {}, text)));
  const windows = job.modality === "CT" ? WINDOWS : {};
  $("window").replaceChildren(...[...Object.keys(windows), "From the scan"].map((name) => element("option", {}, name)));
  applyWindow();
  $("downloads").replaceChildren(...job.files.map((file) => element("li", {}, downloadButton(job, file))));
  drawOrgans();
  await listEarlier();
  $("result-heading").focus({ preventScroll: true });
}

function applyWindow() {
  view.setWindow(...(WINDOWS[$("window").value] ?? []));
}

function drawOrgans() {
  organTable($("organs"), result.organs, result.statistics, result.hidden, result.changes, (name, visible) => {
    if (visible) result.hidden.delete(name);
    else result.hidden.add(name);
    view.hide(result.hidden);
  });
}

function hideOrgans(hidden) {
  result.hidden = new Set(hidden);
  view.hide(result.hidden);
  drawOrgans();
}

function downloadButton(job, file) {
  const button = element("button", { type: "button" }, file.title);
  button.addEventListener("click", () =>
    attempt(async () => {
      const blob = await (await server.file(job.id, file.name)).blob();
      const stem = names.get(job.id)?.replace(/\.(nii|nii\.gz|nrrd|zip|dcm)$/i, "");
      const link = element("a", { href: URL.createObjectURL(blob), download: stem ? `${stem}_${file.name}` : file.name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }),
  );
  return button;
}

async function listEarlier() {
  const { job } = result;
  const others = (await server.jobs()).filter((other) => other.state === "done" && other.scan === job.scan && other.id !== job.id);
  const first = element("option", { value: "" }, others.length ? "no other result" : "no other result of this scan yet");
  $("earlier").replaceChildren(first, ...others.map((other) => element("option", { value: other.id }, when(other.created))));
  $("earlier").disabled = !others.length;
  offer(false, false);
}

// Which choices there are beside this result and its uncertainty.
function offer(earlier, difference) {
  $("earlier-choice").hidden = !earlier;
  $("difference-choice").hidden = !difference;
}

async function compareWith(id) {
  document.querySelector('input[name="shown"][value="this"]').checked = true;
  view.dropEarlier();
  result.changes = null;
  offer(false, false);
  if (id) {
    const other = await server.job(id);
    const [changes, mask, organs] = await Promise.all([server.compare(result.job.id, id), bytes(other, "mask"), organsOf(other)]);
    result.changes = changes;
    offer(true, await view.addEarlier(mask, organs));
  }
  drawOrgans();
}

function setOpacity() {
  $("opacity-value").textContent = `${$("opacity").value} %`;
  view?.setOpacity($("opacity").value / 100);
}

function setView(name) {
  $("pictures").dataset.view = name;
  view.setPlane(name);
}

$("file").addEventListener("change", () => {
  const [scan] = $("file").files;
  $("file").value = ""; // so that the same file can be chosen again
  if (scan) attempt(() => send(scan));
});
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // else the browser would open the file in the page's place
    $("drop").classList.toggle("over", kind === "dragover");
  });
document.addEventListener("drop", (event) => {
  const { files } = event.dataTransfer;
  if (files.length === 1) attempt(() => send(files[0]));
  else say("", "drop one file; zip the folder of a DICOM series");
});
$("cancel").addEventListener("click", () => stopWork?.());
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  server.setToken($("token").value.trim());
  $("token").value = "";
  attempt(begin);
});
$("opacity").addEventListener("input", setOpacity);
$("window").addEventListener("change", applyWindow);
$("earlier").addEventListener("change", () => attempt(() => compareWith($("earlier").value)));
$("all").addEventListener("click", () => hideOrgans([]));
$("none").addEventListener("click", () => hideOrgans(result.organs.map((organ) => organ.name)));
for (const radio of document.querySelectorAll('input[name="view"]')) radio.addEventListener("change", () => setView(radio.value));
for (const radio of document.querySelectorAll('input[name="shown"]')) radio.addEventListener("change", () => view.show(radio.value));

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  server.setToken(given);
  history.replaceState(null, "", location.pathname); // out of sight and out of the history
}
attempt(begin);
