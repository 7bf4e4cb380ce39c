// The form: what is to be made.

import { makeJob } from "./api.js";
import { curlCall, shellCommand } from "./command.js";
import { byId, el, memory, setText } from "./dom.js";
import { models } from "./models.js";
import { references } from "./references.js";
import { addSection, readSections, writeSections } from "./sections.js";
import { copy, say } from "./toast.js";

const EXAMPLES = [
  "a chill lo-fi beat with vinyl crackle and soft piano",
  "a solo cello in a large church, slow and warm",
  "80s synthwave with a driving bass",
];
const DEMO_EXAMPLES = [
  "a chill lo-fi beat with vinyl crackle and soft piano",
  "fast bossa nova with nylon guitar",
  "funk with saxophone and drums, 105 bpm",
  "string quartet in D minor",
];
const NUMBERS = ["duration", "takes", "temperature", "cfg_coef", "max_cfg_coef", "min_cfg_coef", "top_k", "top_p", "prompt_seconds", "style_coef", "midi_track", "bars", "bpm", "beats_per_bar", "lufs", "fade_out"];
const TEXTS = ["negative", "chords"];
const MENUS = ["melody_separation", "span_arrangement", "format", "bit_depth", "normalize", "ending"];
const START = { prompt: "", duration: 8, takes: 2, bars: 4, bpm: 100, format: "wav", normalize: "none" };
const LARGEST_SEED = 2 ** 32;

/** @param {string} text 8 or 1:02.5 */
const secondsOf = (text) => text.split(":").reduce((seconds, part) => 60 * seconds + Number(part), 0);

/** Dispatches `made` with the Job as its `detail`. */
class Make extends EventTarget {
  token = false; // whether the server needs one

  start() {
    const form = byId("make");
    const mac = /Mac|iPhone|iPad/.test(navigator.platform);
    byId("make-key").textContent = mac ? "⌘ ↵" : "Ctrl ↵";
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    form.addEventListener("input", (event) => {
      this.#fault(null);
      if (event.target.id === "duration-slider") byId("duration").value = event.target.value;
      if (event.target.id === "duration") byId("duration-slider").value = event.target.value;
      this.#changed();
    });
    for (const [id, by] of [["fewer", -1], ["more-takes", 1]]) {
      byId(id).addEventListener("click", () => {
        const takes = byId("takes");
        takes.value = Math.max(1, Math.min((takes.valueAsNumber || 1) + by, Number(takes.max) || Infinity));
        this.#changed();
      });
    }
    byId("add-section").addEventListener("click", () => addSection(byId("duration").valueAsNumber || START.duration));
    byId("die").addEventListener("click", () => {
      byId("seed").value = Math.floor(Math.random() * LARGEST_SEED);
      this.#changed();
    });
    byId("pin").addEventListener("click", () => {
      this.#pin(byId("pin").getAttribute("aria-pressed") !== "true");
      this.#changed();
    });
    byId("copy-shell").addEventListener("click", () => copy(byId("shell").textContent));
    byId("copy-curl").addEventListener("click", () => copy(byId("curl").textContent));
    models.addEventListener("change", () => this.#modelChanged());
    references.addEventListener("change", () => this.#changed());

    const draft = memory.get("draft");
    this.#write({ ...START, ...draft?.recipe });
    this.#pin(draft?.pinned ?? false);
    references.replaceAll(draft?.references ?? {});
  }

  /** @param {import("./api.js").Health} health */
  limit({ limits, token }) {
    this.token = token;
    if (limits.takes) byId("takes").max = limits.takes;
    if (limits.duration) byId("duration").max = limits.duration;
    this.#modelChanged();
  }

  /** @returns {Partial<import("./api.js").JobRequest>} without what is left to the model */
  read() {
    const recipe = { prompt: byId("prompt").value };
    if (models.current) recipe.model = models.current.name;
    for (const name of NUMBERS) {
      const field = byId(name);
      if (field.value !== "" && !this.#unused(field)) recipe[name] = field.valueAsNumber;
    }
    for (const name of MENUS) {
      const field = byId(name);
      if (field.value !== "" && !this.#unused(field)) recipe[name] = name === "bit_depth" ? Number(field.value) : field.value;
    }
    const sections = readSections();
    if (sections.length && !this.#unused(byId("section-list"))) recipe.sections = sections;
    for (const name of TEXTS) {
      const text = byId(name).value.trim();
      if (text !== "" && !this.#unused(byId(name))) recipe[name] = text;
    }
    const steps = byId("decoding_steps").value.trim();
    if (steps !== "" && !this.#unused(byId("decoding_steps"))) recipe.decoding_steps = steps.split(",").map((count) => (Number.isNaN(Number(count)) ? count : Number(count)));
    const seed = byId("seed").value.trim();
    if (seed !== "") recipe.seed = Number.isNaN(Number(seed)) ? seed : Number(seed); // the server refuses a text
    if (byId("stems").checked) recipe.stems = true;
    if (byId("loop-clip").checked) recipe.loop = true;
    for (const [kind, audio] of references.used) {
      recipe[kind] = audio.id;
      if (kind === "continue" && audio.at !== null) recipe.continue_at = audio.at;
      if (kind === "edit") recipe.replace = `${audio.from ?? ""}-${audio.to ?? ""}`;
    }
    return recipe;
  }

  /**
   * Put a recipe into the form.
   * @param {import("./api.js").JobRequest} recipe
   * @param {function(string): ?{name: string, duration: number}} find a clip by its id
   */
  fill(recipe, find) {
    const chosen = {};
    for (const kind of ["continue", "edit", "melody", "style"]) {
      if (!recipe[kind]) continue;
      const clip = find(recipe[kind]);
      const at = kind === "continue" ? (recipe.continue_at ?? null) : null;
      const midi = kind === "melody" && (recipe.midi_track ?? null) !== null;
      chosen[kind] = { id: recipe[kind], name: clip?.name ?? "Audio", duration: clip?.duration ?? null, at, midi };
      if (kind === "edit") [chosen.edit.from, chosen.edit.to] = (recipe.replace ?? "").split("-").map(secondsOf);
    }
    this.#write(recipe);
    this.#pin(recipe.seed !== null && recipe.seed !== undefined);
    references.replaceAll(chosen);
    if (recipe.model) models.choose(recipe.model);
    byId("prompt").focus();
  }

  #write(recipe) {
    writeSections(recipe.sections);
    for (const name of ["prompt", "seed", "decoding_steps", ...TEXTS, ...NUMBERS, ...MENUS]) byId(name).value = recipe[name] ?? START[name] ?? "";
    if (recipe.ending === "cut") byId("ending").value = ""; // the same as none
    byId("duration-slider").value = byId("duration").value;
    byId("stems").checked = recipe.stems ?? false;
    byId("loop-clip").checked = recipe.loop ?? false;
    if (recipe.model) models.choose(recipe.model);
  }

  async submit() {
    const button = byId("make-button");
    if (button.disabled) return;
    this.#fault(null);
    // What is no number has no value: it would be left to the model.
    const wrong = NUMBERS.map(byId).find((field) => field.validity.badInput && !this.#unused(field));
    if (wrong) return this.#fault({ message: `${wrong.name}: this is no number`, param: wrong.name });
    const recipe = this.read();
    button.disabled = true;
    const asked = makeJob(recipe);
    this.dispatchEvent(new Event("asked")); // while it is on its way
    try {
      const job = await asked;
      if (byId("pin").getAttribute("aria-pressed") !== "true") byId("seed").value = "";
      this.#changed();
      this.dispatchEvent(new CustomEvent("made", { detail: job }));
      say("Queued");
    } catch (error) {
      this.#fault(error);
    }
    button.disabled = false;
  }

  /** Show what is wrong, at the field if the server names one. */
  #fault(error) {
    const box = byId("make-error");
    for (const field of document.querySelectorAll("#make [aria-invalid]")) {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }
    box.hidden = !error;
    setText(box, error?.message ?? "");
    if (!error) return;
    const field = error.param && document.querySelector(`#make [name="${CSS.escape(error.param)}"]`);
    if (!field) return;
    if (byId("more").contains(field)) byId("more").open = true;
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", "make-error");
    field.focus();
  }

  #modelChanged() {
    const model = models.current;
    const longest = Math.min(model?.max_duration ?? 30, Number(byId("duration").max) || Infinity);
    byId("duration-slider").max = Math.max(1, Math.floor(longest));
    byId("duration-slider").value = byId("duration").value;
    const examples = model?.name === "demo" ? DEMO_EXAMPLES : EXAMPLES;
    if (byId("examples").textContent !== examples.join("")) {
      byId("examples").replaceChildren(
        ...examples.map((text) =>
          el("button", { type: "button", onclick: () => ((byId("prompt").value = text), this.#changed(), byId("prompt").focus()) }, text),
        ),
      );
    }
    const allowed = (model?.conditions ?? []).join();
    if (allowed !== this.allowed) references.allow(model?.conditions ?? []);
    this.allowed = allowed;
    this.#changed();
  }

  #changed() {
    const used = new Set(references.used.map(([kind]) => kind));
    // Of a melody there is sound or notes.
    if (references.chosen.melody?.midi && used.delete("melody")) used.add("midi");
    else if (references.allowed.has("melody") && !used.has("melody")) used.add("chords");
    if (used.has("chords") && byId("chords").value.trim() !== "") used.add("tempo");
    if (byId("loop-clip").checked) used.add("loop").add("tempo");
    this.#showBars();
    for (const field of document.querySelectorAll("[data-needs]")) field.hidden = !used.has(field.dataset.needs);
    const by = models.current?.fills_masks ? "masks" : "steps";
    for (const field of document.querySelectorAll("[data-by]")) field.hidden = field.dataset.by !== by;
    byId("lufs-field").hidden = byId("normalize").value !== "loudness";
    const format = byId("format").value;
    for (const option of byId("bit_depth").options) {
      option.disabled = !{ wav: ["", "24", "32"], flac: ["", "24"] }[format]?.includes(option.value) && option.value !== "";
      if (option.disabled && option.selected) byId("bit_depth").value = "";
    }
    const recipe = this.read();
    setText(byId("shell"), shellCommand(recipe, Object.fromEntries(references.used.map(([kind, { name }]) => [kind, name]))));
    setText(byId("curl"), curlCall(recipe, location, this.token));
    const pinned = byId("pin").getAttribute("aria-pressed") === "true";
    memory.set("draft", { recipe: { ...recipe, model: byId("model").value || models.wanted }, references: references.chosen, pinned });
  }

  /** The bars of a loop are its length. */
  #showBars() {
    const [bars, bpm] = ["bars", "bpm"].map((id) => byId(id).valueAsNumber);
    const given = byId("loop-clip").checked && byId("bars").value !== "";
    for (const id of ["duration", "duration-slider"]) {
      byId(id).disabled = given;
      if (given && bars * bpm > 0) byId(id).value = Math.round((bars * (byId("beats_per_bar").valueAsNumber || 4) * 60 * 1000) / bpm) / 1000;
    }
  }

  #pin(on) {
    byId("pin").setAttribute("aria-pressed", String(on));
    if (on && byId("seed").value === "") byId("die").click();
  }

  #unused(field) {
    const holder = field.closest("[hidden]");
    return holder !== null && byId("make").contains(holder);
  }
}

export const make = new Make();
