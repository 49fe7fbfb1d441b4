// The organs of a result: seen or not, where they are, their volume and grey values, and an earlier result beside them.

import { button, element } from "./dom.js";

const header = (/** @type {string} */ text, className = "", title = "") => element("th", { scope: "col", className, title }, text);
const number = (/** @type {string} */ text, title = "") => element("td", { className: "number", title }, text);
const millilitres = (/** @type {number | null | undefined} */ value) => (value === null || value === undefined ? "unknown" : value.toFixed(1));

// Why a person should look at an organ's mask: a mark, and what it means.
const REASONS = { not_found: ["not found", ""], low_expected_dice: ["!", "to be reviewed: the model is unsure of this mask"] };

// The letters that stand at the edges of the pictures.
const EDGES = { left: "L", right: "R", front: "A", back: "P", head: "H", feet: "F" };

/** @param {any} measured @returns {string[][]} mark and meaning of what is to be known of an organ's mask */
function remarksOn(measured) {
  const remarks = measured.review_reasons.map((/** @type {keyof typeof REASONS} */ reason) => REASONS[reason] ?? ["!", reason]);
  for (const edge of measured.touches_edge) remarks.push([EDGES[/** @type {keyof typeof EDGES} */ (edge)], `cut by the scan's edge: ${edge}`]);
  return remarks;
}

const marked = (/** @type {string[]} */ [mark, meaning]) =>
  element("span", { className: "mark", title: meaning }, element("span", { ariaHidden: String(Boolean(meaning)) }, mark), element("span", { className: "unseen" }, `${meaning}; `));

/**
 * @param {HTMLTableElement} table
 * @param {HTMLElement} key what the marks in the table mean
 * @param {any} result `organs`, `statistics`, the names `hidden`, and `changes` where it is compared
 * @param {{toggle: (name: string) => void, solo: (name: string) => void, goTo: (organ: any) => void}} actions
 */
export function drawOrgans(table, key, { organs, statistics, hidden, changes }, actions) {
  const focus = document.activeElement?.getAttribute("data-key");
  const level = statistics.interval_level ? `${Math.round(100 * statistics.interval_level)} %` : "";
  const unit = statistics.intensity_unit === "HU" ? "HU" : "value";
  const volume = header("ml", "number", level ? `volume, and the interval that holds it with ${level}` : "volume");
  if (level) volume.append(element("small", {}, `${level} interval`));
  const columns = [header("Organ"), header("Note"), volume, header(`mean ${unit} ± SD`, "number")];
  if (changes) columns.push(header("earlier ml", "number"), header("change ml", "number"), header("Dice", "number"));
  table.tHead?.replaceChildren(element("tr", {}, ...columns));

  const rows = organs.map((/** @type {any} */ organ) => {
    const measured = statistics.organs[organ.name] ?? { found: false, review_reasons: [], touches_edge: [] };
    const seen = !hidden.has(organ.name);
    const swatch = element("span", { className: "swatch", ariaHidden: "true" });
    swatch.style.background = `rgb(${organ.colour.join(" ")})`;
    const eye = button(seen ? "●" : "○", () => actions.toggle(organ.name), { className: "icon", title: "show or hide", disabled: !measured.found, "aria-pressed": String(seen), "aria-label": `show ${organ.name}`, "data-key": `eye ${organ.name}` });
    const go = button(organ.name, () => actions.goTo(organ), { className: "go", title: "go to its middle", disabled: !measured.found, "data-key": `go ${organ.name}` });
    const solo = button("◎", () => actions.solo(organ.name), { className: "icon", title: "show it alone, or all again", disabled: !measured.found, "aria-label": `show ${organ.name} alone`, "data-key": `solo ${organ.name}` });
    const volume = number(measured.found ? millilitres(measured.volume_ml) : "");
    if (measured.interval_ml) volume.append(element("small", {}, measured.interval_ml.map(millilitres).join(" – ")));
    const cells = [
      element("th", { scope: "row" }, element("div", {}, eye, solo, swatch, go)),
      element("td", { className: "remarks" }, ...remarksOn(measured).map(marked)),
      volume,
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
    const className = !measured.found ? "absent" : measured.needs_review ? "review" : "";
    return element("tr", { className }, ...cells);
  });
  table.tBodies[0].replaceChildren(...rows);
  const legend = new Map(organs.flatMap((/** @type {any} */ organ) => (statistics.organs[organ.name] ? remarksOn(statistics.organs[organ.name]) : [])));
  key.textContent = [...legend].filter(([, meaning]) => meaning).map((remark) => remark.join(" ")).join("; ");
  if (focus) /** @type {HTMLElement | null} */ (table.querySelector(`[data-key="${focus}"]`))?.focus();
}
