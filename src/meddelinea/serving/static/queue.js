// The scans on their way: sending them, and looking at the server for how far each is.

import { $, confirmed } from "./dom.js";
import * as learning from "./learning.js";
import { askForToken, attempt, complain, say } from "./messages.js";
import { scansAmong } from "./scans.js";
import * as server from "./server.js";
import { active, describeScan, describeState, drawWorklist, forgetOthers, remember } from "./worklist.js";

/** @typedef {import("./scans.js").Scan} Scan */
/** @typedef {import("./scans.js").Found} Found */
/**
 * What is done with results.
 * @typedef {object} Results
 * @property {(job: any) => Promise<void>} open
 * @property {() => string | undefined} opened id of the job whose result is open
 * @property {() => void} close
 * @property {(jobs: any[]) => void} changed there are other jobs than before
 */

const BUSY_MS = 400; // between two looks at the server, while a scan is on its way,
const IDLE_MS = 4000; // while none is,
const MOST_MS = 10000; // and at most, where the server does not answer or nobody looks

/** @type {Results} */
let results;
/** @type {any[]} */
let jobs = [];
/** @type {{scan: Scan, share: number, abort: (() => void) | null}[]} scans on their way to the server, the first of them now */
const sending = [];
/** @type {string | null} the job whose result is to be opened when it is done */
let awaited = null;
/** Look at the server now. */
export let wake = () => {};
let watching = false;

/**
 * Begins to look at the server, again and again.
 * @param {Results} given @param {string | null} wanted id of a job whose result is to be opened
 */
export function follow(given, wanted) {
  results = given;
  awaited = wanted;
  if (!watching) watch();
  wake();
}

async function watch() {
  watching = true;
  for (let failures = 0; ; ) {
    let rest = MOST_MS;
    try {
      const before = jobs;
      const wanted = awaited; // a job that is sent meanwhile is not in the answer
      jobs = await server.jobs();
      if (failures) $("connection").textContent = "";
      failures = 0;
      attempt(() => update(before, wanted));
      if (document.body.dataset.screen === "list" || learning.learning()) await learning.refresh();
      if (sending.length || jobs.some(active) || learning.learning()) rest = BUSY_MS;
      else if (!document.hidden) rest = IDLE_MS;
    } catch (error) {
      const { status, message } = /** @type {any} */ (error);
      if (status === 401) {
        askForToken();
        break;
      }
      failures += 1;
      rest = Math.min(MOST_MS, BUSY_MS * 2 ** failures);
      $("connection").textContent = status ? message : "The server does not answer. Connecting again …";
    }
    await new Promise((resolve) => {
      wake = () => resolve(undefined);
      setTimeout(wake, rest);
    });
  }
  watching = false;
}

function update(/** @type {any[]} */ before, /** @type {string | null} */ wanted) {
  forgetOthers(new Set(jobs.map((job) => job.id)));
  drawJobs();
  drawProgress();
  const opened = results.opened();
  if (opened && !jobs.some((job) => job.id === opened)) {
    results.close();
    complain("the open result was deleted");
  }
  results.changed(jobs);
  for (const job of jobs) {
    const ended = !active(job) && before.some((other) => other.id === job.id && active(other));
    if (ended && job.id !== awaited) tell(job);
  }
  if (!awaited || awaited !== wanted || sending.length) return;
  const job = jobs.find((candidate) => candidate.id === awaited);
  if (job && active(job)) return;
  awaited = null;
  if (!job) {
    history.replaceState(null, "", location.pathname);
    complain("no such job; finished jobs are deleted after some time");
  } else if (job.state === "done") attempt(() => results.open(job));
  else tell(job);
}

function tell(/** @type {any} */ job) {
  const text = `${describeScan(job)}: ${describeState(job)}`;
  if (job.state === "done") say(text);
  else complain(text);
}

export function drawJobs() {
  drawWorklist($("jobs"), jobs, sending.map(({ scan, share }) => ({ name: scan.name, share })), results.opened(), {
    open: (job) => attempt(() => results.open(job)),
    cancel: (job) => attempt(() => cancel(job)),
    remove: (job) => attempt(() => remove(job)),
  });
  const waiting = jobs.filter(active).length + sending.length;
  $("worklist-count").textContent = waiting ? ` (${waiting} on the way)` : "";
}

function drawProgress() {
  const running = jobs.find((job) => job.state === "running") ?? jobs.findLast((job) => job.state === "queued");
  const [first] = sending;
  $("work").hidden = !first && !running;
  if (!first && !running) return void (/^(Sending|Waiting|Reading|Segmenting)/.test($("status").textContent) && say(""));
  const more = jobs.filter((job) => job.state === "queued" && job !== running).length;
  const then = more ? `, ${more} more waiting` : "";
  $("progress").removeAttribute("value");
  if (first) {
    $("progress").value = first.share;
    say(`Sending ${first.scan.name}: ${Math.round(100 * first.share)} %${sending.length > 1 ? `, ${sending.length - 1} more to send` : ""}`);
  } else if (running.state === "queued") say(`Waiting: ${running.waiting_before} before this scan${then}`);
  else if (!running.slices) say(`Reading the scan${then}`);
  else {
    $("progress").value = running.slices_done / running.slices;
    say(`Segmenting: ${running.slices_done} of ${running.slices} slices${then}`);
  }
}

async function cancel(/** @type {any} */ job) {
  if (!(await confirmed(`Cancel ${describeScan(job)}? What is segmented of it is lost.`, "Cancel it"))) return;
  await server.cancel(job.id);
  wake();
}

async function remove(/** @type {any} */ job) {
  if (!(await confirmed(`Delete ${describeScan(job)} and its results from the server? This cannot be undone.`, "Delete"))) return;
  await server.remove(job.id);
  if (results.opened() === job.id) results.close();
  wake();
}

export async function cancelWork() {
  if (sending.length) {
    sending.splice(1);
    return sending[0].abort?.();
  }
  const running = jobs.find((job) => job.state === "running") ?? jobs.findLast((job) => job.state === "queued");
  if (running) await cancel(running);
}

/** @param {any} job that the server has just made, whose result is to be opened */
export function openWhenDone(job) {
  jobs = [job, ...jobs]; // as the next look will find it
  awaited = job.id;
  wake();
}

/* Sending. */

/** @param {Found[] | Promise<Found[]>} given */
export async function add(given) {
  complain("");
  const files = await given;
  if (!files.length) return;
  say(files.length > 1 ? `Reading ${files.length} files` : "");
  const scans = await scansAmong(files);
  const tooLarge = scans.filter(({ content }) => content.size > server.about.upload_bytes);
  for (const { name, content } of tooLarge) complain(`${name} has ${content.size >> 20} MiB; the server takes ${server.about.upload_bytes >> 20} MiB`);
  const begun = sending.length > 0;
  sending.push(...scans.filter((scan) => !tooLarge.includes(scan)).map((scan) => ({ scan, share: 0, abort: null })));
  if (!begun) await sendAll();
}

async function sendAll() {
  const refused = [];
  let first = null;
  for (; sending.length; sending.shift()) {
    const entry = sending[0];
    const upload = server.upload(entry.scan.content, $("modality").value, $("model-choice").value, (share) => {
      entry.share = share;
      drawProgress();
    });
    entry.abort = upload.abort;
    wake();
    try {
      const job = await upload.done;
      remember(job.id, entry.scan.name);
      jobs = [job, ...jobs]; // as the next look will find it
      first ??= job.id;
    } catch (error) {
      if (/** @type {any} */ (error).status === 401) askForToken();
      refused.push(`${entry.scan.name}: ${/** @type {Error} */ (error).message}`);
    }
  }
  drawProgress();
  if (refused.length) complain(refused.join("\n"));
  // A result that is being read is not put away for one that comes.
  if (first && document.body.dataset.screen === "list") {
    awaited = first;
    history.replaceState(null, "", `#job=${first}`);
  }
  wake();
}
