// Dialogs: how a file was made, a new title, the keys.

import { el } from "./dom.js";
import { copy } from "./toast.js";
import { inSeconds } from "./text.js";

/** @param {string} title @param {Node[]} content @param {HTMLElement[]} buttons each closes it */
function open(title, content, buttons) {
  const box = el("dialog", { "aria-label": title }, el("h2", {}, title), ...content);
  box.append(el("div", { class: "dialog-buttons" }, ...buttons));
  box.addEventListener("click", (event) => {
    if (event.target === box || buttons.includes(event.target)) box.close();
  });
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

const button = (label, onclick = () => {}, kind = null) => el("button", { type: "button", class: kind, onclick }, label);

const NAMES = {
  prompt: "Prompt",
  sections: "Then",
  negative: "Not",
  model: "Model",
  duration: "Length",
  seed: "Seed",
  temperature: "Temperature",
  top_k: "Top-k",
  top_p: "Top-p",
  cfg_coef: "Guidance",
  max_cfg_coef: "Guidance at first",
  min_cfg_coef: "Guidance at the end",
  decoding_steps: "Iterations",
  span_arrangement: "Masked frames",
  style_coef: "Prompt over style",
  prompt_seconds: "Continues the last",
  melody: "Melody",
  midi_track: "MIDI track",
  chords: "Chords",
  loop: "Loop",
  bars: "Bars",
  bpm: "Beats per minute",
  beats_per_bar: "Beats of a bar",
  style: "Style",
  continue: "Continues",
  edit: "Edits",
  replace: "Replaces",
  normalize: "Level",
  fade_out: "Fade out",
  ending: "Ending",
};
const IN_SECONDS = new Set(["duration", "prompt_seconds", "fade_out"]);

/**
 * @param {string} file its name
 * @param {import("./api.js").AudioRecipe} made
 * @param {function(import("./api.js").JobRequest): void} use
 */
export function showRecipe(file, made, use) {
  const { recipe, command } = made;
  if (!recipe) {
    open(file, [el("p", {}, "Nothing in its tags says how it was made.")], [button("Close")]);
    return;
  }
  const list = el("dl", {});
  for (const [field, name] of Object.entries(NAMES)) {
    const value = recipe[field];
    if (value === null || value === undefined || value === "" || value === "none" || value === false) continue;
    if (field === "sections") {
      for (const { start, text } of value) list.append(el("dt", {}, name), el("dd", {}, `${inSeconds(start)}: ${text}`));
      continue;
    }
    list.append(el("dt", {}, name), el("dd", {}, IN_SECONDS.has(field) ? inSeconds(value) : value === true ? "yes" : String(value)));
  }
  const content = [list];
  const buttons = [button("Close"), button("Use these settings", () => use(recipe), "primary")];
  if (command) {
    content.push(el("div", { class: "command" }, el("pre", { tabindex: "0", role: "region", "aria-label": "Shell command" }, command)));
    buttons.splice(1, 0, button("Copy the command", () => copy(command)));
  }
  open(file, content, buttons);
}

/** @param {string} title @param {function(string): void} done */
export function askTitle(title, done) {
  const field = el("input", { type: "text", maxlength: "200", "aria-label": "Title" });
  field.value = title;
  const finish = () => done(field.value.trim());
  const box = open("Title", [field], [button("Cancel"), button("Save", finish, "primary")]);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    box.close();
    finish();
  });
  field.select();
}

/** @param {[string, string][]} keys key and what it does */
export function showKeys(keys) {
  const list = el("dl", {});
  for (const [key, what] of keys) list.append(el("dt", {}, el("kbd", {}, key)), el("dd", {}, what));
  open("Keys", [list], [button("Close", undefined, "primary")]);
}
