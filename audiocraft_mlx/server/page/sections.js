// The form's sections: texts that follow the prompt.

import { byId, el, iconButton } from "./dom.js";

/** @typedef {import("./api.js").JobSection} JobSection */

const GAP = 4; // seconds between a section and the next one that is added

const list = () => byId("section-list");
const numberOf = (row, name) => row.querySelector(`[data-part=${name}]`).valueAsNumber || 0;

/** @returns {JobSection[]} in the order of their beginnings */
export function readSections() {
  const sections = [...list().children].map((row) => ({
    start: numberOf(row, "start"),
    text: row.querySelector("[data-part=text]").value,
    fade: numberOf(row, "fade"),
  }));
  return sections.sort((a, b) => a.start - b.start);
}

/** @param {?JobSection[]} sections */
export function writeSections(sections) {
  list().replaceChildren(...(sections ?? []).map(row));
}

/** Add an empty one, and go to its text. @param {number} duration of the clip */
export function addSection(duration) {
  const last = Math.max(0, ...readSections().map(({ start }) => start));
  // Half of what is left, where a whole gap doesn't fit.
  const start = last + GAP < duration ? last + GAP : Math.round((last + Math.max(duration - last, 0) / 2) * 10) / 10;
  const added = row({ start, text: "", fade: 0 });
  list().append(added);
  added.querySelector("[data-part=text]").focus();
  changed();
}

/** @param {JobSection} section */
function row({ start, text, fade }) {
  const remove = iconButton("close", "Remove this section", () => {
    const next = item.nextElementSibling?.querySelector("[data-part=text]") ?? byId("add-section");
    item.remove();
    next.focus();
    changed();
  });
  const item = el(
    "li",
    {},
    el("label", { class: "time" }, "From ", field("start", start), " s"),
    el("label", { class: "time" }, "fade ", field("fade", fade || ""), " s"),
    remove,
    el("input", { type: "text", name: "sections", "data-part": "text", "aria-label": "What it plays then", placeholder: "drums come in", value: text, autocomplete: "off" }),
  );
  return item;
}

function field(part, value) {
  return el("input", { type: "number", "data-part": part, min: "0", step: "any", inputmode: "decimal", placeholder: "0", value: String(value) });
}

/** The form listens to its fields. */
function changed() {
  list().dispatchEvent(new Event("input", { bubbles: true }));
}
