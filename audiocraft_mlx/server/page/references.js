// The audio that a clip is made from: one to continue or to edit, a melody or a style.

import { ApiError, addAudio } from "./api.js";
import { byId, el, icon, iconButton } from "./dom.js";
import { record, whyNot } from "./record.js";
import { clock, inSeconds } from "./text.js";
import { say } from "./toast.js";
import { decodeToWav } from "./wav.js";

const PART = 4; // seconds that are replaced, until something else is said
const WORDS = { continue: "Continue", edit: "Replace a part", melody: "Melody", style: "Style" };
export const CLIP_TYPE = "application/x-musicgen-clip"; // of a clip that is dragged

/** Dispatches `change`. */
class References extends EventTarget {
  constructor() {
    super();
    /** @type {Object<string, {id: string, name: string, duration: ?number, at: ?number, midi: ?boolean}>} by kind */
    this.chosen = {};
    this.allowed = new Set(["continue", "edit"]);
  }

  /** @param {string[]} conditions of the model */
  allow(conditions) {
    this.allowed = new Set(["continue", "edit", ...conditions]);
    for (const kind of ["melody", "style"]) byId(`kind-${kind}`).hidden = !this.allowed.has(kind);
    byId("kinds").hidden = !conditions.length;
    byId("drop-text").textContent = `Drop a file or a clip here${conditions.length ? "" : " to continue it"}, or`;
    if (!this.allowed.has(this.kind)) document.querySelector("[name=kind][value=continue]").checked = true;
    this.#changed();
  }

  get kind() {
    return document.querySelector("[name=kind]:checked").value;
  }

  /** What there is of it for this model. */
  get used() {
    return Object.entries(this.chosen).filter(([kind]) => this.allowed.has(kind));
  }

  /** @param {"continue"|"edit"|"melody"|"style"} kind @param {{id: string, name: string, duration: ?number, at: ?number}} audio */
  set(kind, audio) {
    this.chosen[kind] = audio;
    // No model takes both, and an edit is one alone.
    if (kind === "edit") this.chosen = { edit: withPart(audio) };
    else delete this.chosen.edit;
    if (kind === "melody" || kind === "style") delete this.chosen[kind === "melody" ? "style" : "melody"];
    document.querySelector(`[name=kind][value=${kind}]`).checked = true;
    this.#changed();
  }

  replaceAll(chosen) {
    this.chosen = chosen;
    this.#changed();
  }

  #remove(kind) {
    delete this.chosen[kind];
    this.#changed();
    byId("choose").focus();
  }

  #changed() {
    byId("reference-list").replaceChildren(...this.used.map(([kind, audio]) => this.#row(kind, audio)));
    this.dispatchEvent(new Event("change"));
  }

  #row(kind, audio) {
    const length = audio.duration === null ? "" : ` · ${clock(audio.duration)}`;
    const row = el(
      "li",
      { class: "reference", "data-kind": kind },
      icon(kind),
      el("div", {}, el("b", { title: audio.name }, audio.name), el("small", {}, `${WORDS[kind]}${length}`)),
      iconButton("close", `Remove: ${WORDS[kind]}`, () => this.#remove(kind)),
    );
    if (kind === "edit") {
      for (const [end, word] of [["from", "from"], ["to", "to"]]) {
        const time = el("input", { type: "number", name: "replace", min: "0", step: "any", inputmode: "decimal" });
        time.value = audio[end] ?? "";
        time.addEventListener("change", () => {
          audio[end] = time.value === "" ? null : time.valueAsNumber;
          this.dispatchEvent(new Event("change"));
        });
        row.append(el("label", { class: "at" }, word, time, "s"));
      }
    }
    if (kind === "continue") {
      const at = el("input", { type: "number", min: "0", step: "any", placeholder: "its end", inputmode: "decimal" });
      at.value = audio.at === null ? "" : Math.round(audio.at * 100) / 100;
      at.addEventListener("change", () => {
        audio.at = at.value === "" ? null : at.valueAsNumber;
        this.dispatchEvent(new Event("change"));
      });
      row.append(el("label", { class: "at" }, "from", at, "s"));
    }
    return row;
  }
}

/** An edit's audio with the seconds that are replaced: from where it was left. */
function withPart(audio) {
  if (audio.from !== undefined) return audio;
  const round = (seconds) => Math.round(seconds * 100) / 100;
  const end = audio.duration ?? PART;
  const from = audio.at ?? Math.max(0, (end - PART) / 2);
  return { ...audio, at: null, from: round(from), to: round(Math.min(end, from + PART)) };
}

export const references = new References();

/** Connect the box where audio is dropped, chosen and recorded. */
export function startReferences() {
  const [drop, choose, file, recorder] = ["drop", "choose", "file", "record"].map(byId);

  choose.addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files.length) add(file.files[0], file.files[0].name);
    file.value = "";
  });

  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.stopPropagation();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const clip = event.dataTransfer.getData(CLIP_TYPE);
    if (clip) references.set(references.kind, JSON.parse(clip));
    else if (event.dataTransfer.files.length) add(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });

  const reason = whyNot();
  recorder.disabled = reason !== null;
  if (reason) recorder.title = reason;
  const label = recorder.querySelector("span");
  let stop = null;
  const end = () => {
    const now = stop;
    stop = null;
    return now?.();
  };
  recorder.addEventListener("click", async () => {
    if (stop) return end();
    recorder.disabled = true;
    try {
      const finish = await record(end);
      const started = Date.now();
      const show = () => (label.textContent = `Stop ${clock((Date.now() - started) / 1000)}`);
      show();
      say("Recording");
      recorder.classList.add("recording");
      const timer = setInterval(show, 250);
      stop = async () => {
        clearInterval(timer);
        recorder.classList.remove("recording");
        label.textContent = "Record";
        await add(finish(), "Recording");
      };
      tell(null);
    } catch (error) {
      tell(error.name === "NotAllowedError" ? "The browser may not use the microphone." : `No recording: ${error.message}`);
    }
    recorder.disabled = false;
  });
}

function tell(text) {
  const note = byId("reference-state");
  note.hidden = text === null;
  note.textContent = text ?? "";
  if (text) say(text);
}

/** @param {Blob|Promise<Blob>} file */
async function add(file, name) {
  let { kind } = references;
  tell("Reading …");
  try {
    const given = await file;
    const audio = await upload(given, given instanceof File ? given.name.slice(0, 200) : null);
    const midi = audio.channels === 0;
    // Notes can be nothing else.
    if (midi) kind = "melody";
    if (!references.allowed.has(kind)) throw new Error("This model can’t follow a melody. Choose one that can.");
    references.set(kind, { id: audio.id, name, duration: audio.duration, at: null, midi });
    tell(null);
    say(`${name}, ${inSeconds(audio.duration)}`);
  } catch (error) {
    tell(error.message);
  }
}

async function upload(file, name) {
  try {
    return await addAudio(file, name);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status < 400 || error.status >= 500 || error.status === 413) throw error;
    // A format that the server can't read, but perhaps the browser.
    const wav = await decodeToWav(file).catch(() => null);
    if (!wav) throw error;
    return addAudio(wav, name);
  }
}
