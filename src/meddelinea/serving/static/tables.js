// Tables and lists of the page, made of elements and text, never of markup from a reply.

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

const header = (text, className = "") => element("th", { scope: "col", className }, text);
const number = (text) => element("td", { className: "number" }, text);
const millilitres = (value) => (value === null || value === undefined ? "unknown" : value.toFixed(1));

// Why a person should look at an organ's mask.
const REASONS = { not_found: "not found", low_expected_dice: "to be reviewed: the model is unsure of this mask" };

// The organs of a result: what to show, volume, grey values, and where compared, the earlier result beside them.
export function organTable(table, organs, statistics, hidden, changes, onToggle) {
  const unit = statistics.intensity_unit === "HU" ? "HU" : "value";
  const level = statistics.interval_level;
  const columns = [header("Organ"), header("ml", "number")];
  if (level) columns.push(header(`${Math.round(100 * level)} % interval`, "number"));
  columns.push(header(`mean ${unit} ± SD`, "number"));
  if (changes) columns.push(header("earlier ml", "number"), header("change ml", "number"), header("Dice", "number"));
  table.tHead.replaceChildren(element("tr", {}, ...columns, header("Note")));
  table.tBodies[0].replaceChildren(
    ...organs.map((organ) => {
      const measured = statistics.organs[organ.name];
      const box = element("input", { type: "checkbox", checked: !hidden.has(organ.name), disabled: !measured.found });
      box.addEventListener("change", () => onToggle(organ.name, box.checked));
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = `rgb(${organ.colour.join(" ")})`;
      swatch.setAttribute("aria-hidden", "true");
      const cells = [
        element("th", { scope: "row" }, element("label", {}, box, swatch, organ.name)),
        number(measured.found ? millilitres(measured.volume_ml) : ""),
        ...(level ? [number(measured.interval_ml ? measured.interval_ml.map(millilitres).join(" – ") : "")] : []),
        number(measured.found ? `${measured.mean_intensity.toFixed(0)} ± ${measured.sd_intensity.toFixed(0)}` : ""),
      ];
      if (changes) {
        const change = changes[organ.name];
        const both = change && change.earlier_ml !== null && change.volume_ml !== null;
        cells.push(
          number(millilitres(change?.earlier_ml)),
          number(both ? (change.volume_ml - change.earlier_ml).toFixed(1) : ""),
          number(change && change.dice !== null ? change.dice.toFixed(3) : ""),
        );
      }
      const edges = measured.touches_edge.join(", ");
      const remarks = measured.review_reasons.map((reason) => REASONS[reason] ?? reason);
      if (edges) remarks.push(`cut by the scan's edge: ${edges}`);
      const className = !measured.found ? "absent" : measured.needs_review ? "review" : "";
      return element("tr", { className }, ...cells, element("td", {}, remarks.join("; ")));
    }),
  );
}

export function when(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

export function describeScan(job, names) {
  const grid = job.shape.length ? `${job.modality}, ${job.shape.join(" × ")}` : "";
  return [names.get(job.id), grid].filter(Boolean).join(": ") || "not read yet";
}

// The jobs of the server; names are known for those that this tab sent.
export function jobTable(table, jobs, names, open, actions) {
  const rows = jobs.map((job) => {
    const buttons = [];
    const button = (text, action) => {
      const made = element("button", { type: "button" }, text);
      made.setAttribute("aria-label", `${text} the job of ${when(job.created)}`);
      made.addEventListener("click", () => action(job));
      buttons.push(made, " ");
    };
    if (job.state === "done") button("Open", actions.open);
    if (job.state === "queued" || job.state === "running") button("Cancel", actions.cancel);
    else button("Delete", actions.remove);
    const progress = job.state === "running" && job.slices ? `: ${job.slices_done} of ${job.slices} slices` : "";
    const state = `${job.state}${progress}${job.message ? `: ${job.message}` : ""}`;
    const cells = [when(job.created), describeScan(job, names), state].map((text) => element("td", {}, text));
    return element("tr", { className: job.id === open ? "open" : "" }, ...cells, element("td", {}, ...buttons));
  });
  if (!rows.length) rows.push(element("tr", {}, element("td", { colSpan: 4 }, "none yet")));
  table.tBodies[0].replaceChildren(...rows);
}
