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

// The organs of a result: what to show, volume, grey values, and where compared, the earlier result beside them.
export function organTable(table, organs, statistics, hidden, changes, onToggle) {
  const unit = statistics.intensity_unit === "HU" ? "HU" : "value";
  const columns = [header("Organ"), header("ml", "number"), header(`mean ${unit} ± SD`, "number")];
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
      const note = !measured.found ? "not found" : edges ? `cut by the scan's edge: ${edges}` : "";
      return element("tr", { className: measured.found ? "" : "absent" }, ...cells, element("td", {}, note));
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
