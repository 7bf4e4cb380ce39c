// The models, and the menu of them.

import { listModels, loadModel } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { attempt } from "./toast.js";

const gigabytes = (size) => (size === null ? "" : `, ${size < 0.1 ? `${Math.round(size * 1000)} MB` : `${size.toFixed(1)} GB`}`);
const WORDS = {
  loaded: () => "loaded",
  loading: () => "loading …",
  "on disk": (model) => `on disk${gigabytes(model.gigabytes)}`,
  "to download": (model) => `to download${gigabytes(model.gigabytes)}`,
};

/** Dispatches `change`: another list or another choice. */
class Models extends EventTarget {
  constructor() {
    super();
    /** @type {import("./api.js").ModelInfo[]} */
    this.list = [];
    this.wanted = null; // chosen before the list was there
    this.downloads = false; // whether the server may
  }

  /** @returns {?import("./api.js").ModelInfo} the chosen one */
  get current() {
    return this.list.find((model) => model.name === byId("model").value) ?? null;
  }

  choose(name) {
    this.wanted = name;
    const fallback = this.list.find((model) => model.default) ?? this.list[0];
    const model = this.list.find((candidate) => candidate.name === name) ?? fallback;
    if (model) byId("model").value = model.name;
    this.#changed();
  }

  show(list) {
    const chosen = byId("model").value || this.wanted;
    this.list = list;
    byId("model").replaceChildren(
      ...list.map((model) => el("option", { value: model.name }, `${model.name} — ${WORDS[model.state](model)}`)),
    );
    this.choose(chosen);
  }

  /** @param {import("./api.js").Health} health */
  limit({ downloads }) {
    this.downloads = downloads;
    this.#changed();
  }

  async refresh() {
    this.show(await listModels());
  }

  #changed() {
    const model = this.current;
    const note = byId("model-state");
    note.hidden = !model || (!model.error && model.state === "loaded");
    byId("load").hidden = !model || model.state !== "on disk";
    if (model) {
      const absent = this.downloads
        ? "It is downloaded when it is first used."
        : "It isn’t on the server’s disk: to download it, start the server with --allow-downloads.";
      const text = { loading: "It is being loaded.", "to download": absent }[model.state];
      setText(note.firstElementChild, model.error ?? text ?? "");
      note.hidden ||= !text && !model.error && byId("load").hidden;
    }
    this.dispatchEvent(new Event("change"));
  }

  start() {
    byId("model").addEventListener("change", () => this.choose(byId("model").value));
    byId("load").addEventListener("click", () => attempt(() => loadModel(this.current.name)));
  }
}

export const models = new Models();
