// A job in the list: its prompt, its state, and a waveform for each take.

import { changeJob, deleteJob, downloadAddress, makeJob, restoreJob, stemAddress } from "./api.js";
import { askTitle } from "./dialog.js";
import { el, icon, iconButton, setIcon, setText } from "./dom.js";
import { make } from "./make.js";
import { openMenu } from "./menu.js";
import { models } from "./models.js";
import { loadPeaks, peaksOf } from "./peaks.js";
import { player } from "./player.js";
import { CLIP_TYPE, references } from "./references.js";
import { ago, clock, inSeconds, shortModel, titleOf } from "./text.js";
import { attempt, copy, toast } from "./toast.js";
import { Waveform } from "./waveform.js";

const FORMATS = { wav: "WAV", flac: "FLAC", mp3: "MP3", ogg: "Ogg" };

export const isLive = (job) => job.status === "queued" || job.status === "running";
/** Whether there is audio of it, or will be. */
export const hasAudio = (job) => job.status === "running" || job.status === "done";

export class Card {
  /**
   * @param {import("./api.js").Job} job
   * @param {function(string): ?{name: string, duration: number}} findClip by its id
   */
  constructor(job, findClip) {
    this.findClip = findClip;
    this.visible = false;
    this.stopping = false; // until the server says that it is
    /** @type {Map<string, ClipRow>} */
    this.rows = new Map();
    this.title = el("h3", { class: "card-title", dir: "auto", id: `title-${job.id}` });
    this.title.addEventListener("click", () => this.#isLong() && this.title.classList.toggle("open"));
    this.meta = el("p", { class: "card-meta" });
    this.favourite = iconButton("star", "Favourite", () => attempt(() => changeJob(this.job.id, { favourite: !this.job.favourite })), {
      "aria-pressed": "false",
    });
    this.favourite.classList.add("favourite");
    this.again = iconButton("again", "Again: the same settings and seed", () => attempt(() => makeJob(asked(this.job.recipe))));
    this.remove = iconButton("bin", "Delete", () => this.delete());
    this.more = iconButton("more", "More", () => this.#menu(), { "aria-haspopup": "menu", "aria-expanded": "false" });
    this.state = el("p", { class: "card-state" });
    this.bar = el("i", {});
    this.progress = el("div", { class: "progress", role: "progressbar", "aria-label": "Progress", "aria-valuemin": "0", "aria-valuemax": "100" }, this.bar);
    this.clips = el("div", {});
    this.element = el(
      "article",
      { class: "card", "aria-labelledby": `title-${job.id}` },
      el("div", { class: "card-head" }, this.title, this.meta, el("div", { class: "card-tools" }, this.favourite, this.again, this.remove, this.more)),
      this.clips,
      this.progress,
      this.state,
    );
    this.update(job);
  }

  /** @param {import("./api.js").Job} job */
  update(job) {
    this.job = job;
    this.element.className = `card ${job.status}`;
    this.element.dataset.status = job.status;
    setText(this.title, titleOf(job));
    this.title.title = titleOf(job);
    this.title.classList.toggle("long", this.#isLong());
    this.updateAge();
    this.favourite.setAttribute("aria-pressed", String(job.favourite));
    const live = isLive(job);
    if (!live) this.stopping = false;
    this.favourite.hidden = this.again.hidden = this.more.hidden = live;
    this.remove.title = live ? "Stop" : "Delete";
    this.remove.setAttribute("aria-label", live ? "Stop" : "Delete");
    setIcon(this.remove.firstElementChild, live ? "stop" : "bin");
    this.progress.hidden = job.status !== "running";
    this.updateState(job);
    this.#updateClips();
  }

  /** @param {Pick<import("./api.js").Job, "progress"|"speed">} now */
  updateState({ progress, speed }) {
    Object.assign(this.job, { progress, speed });
    const { status, position, error } = this.job;
    const part = progress && progress.total ? progress.done / progress.total : 0;
    this.bar.style.transform = `scaleX(${part})`;
    this.progress.setAttribute("aria-valuenow", String(Math.floor(100 * part)));
    const text = {
      queued: position ? `In the queue, ${position} before it` : "Next in the queue",
      running: progress ? `${Math.floor(100 * part)} %${speed >= 0.05 ? ` · ${speed.toFixed(1)} × as fast as it plays` : ""}` : "Starting …",
      failed: error ?? "It failed.",
      cancelled: "Stopped",
      done: "",
    }[status];
    this.state.hidden = !text;
    this.state.classList.toggle("failed", status === "failed");
    setText(this.state, text);
  }

  updateAge() {
    const { recipe, created } = this.job;
    setText(this.meta, [recipe.model && shortModel(recipe.model), inSeconds(recipe.duration), ago(created)].filter(Boolean).join(" · "));
  }

  /** Peaks of a clip have come, or the player has moved. */
  draw(clip) {
    this.rows.get(clip)?.draw();
  }

  /** It can be seen, or no longer. */
  show(visible) {
    this.visible = visible;
    if (visible) for (const row of this.rows.values()) row.load();
  }

  async delete() {
    const { job } = this;
    if (this.stopping) return; // once more would remove it
    this.stopping = isLive(job);
    if (this.stopping) player.forget(job.id); // before its stream breaks off
    const went = await attempt(async () => {
      const answer = await deleteJob(job.id);
      // A job that was done before the server could stop it has been removed.
      if (isLive(job) && answer?.status === "cancelled") return;
      toast("Deleted", { label: "Undo", action: () => attempt(() => restoreJob(job.id)) });
      this.element.dispatchEvent(new CustomEvent("deleted", { bubbles: true, detail: job.id }));
    });
    if (!went) this.stopping = false;
  }

  detach() {
    for (const row of this.rows.values()) row.detach();
    this.element.remove();
  }

  #updateClips() {
    const clips = hasAudio(this.job) ? this.job.clips : [];
    const kept = new Set(clips.map((clip) => clip.id));
    for (const [id, row] of this.rows) {
      if (kept.has(id)) continue;
      row.detach();
      this.rows.delete(id);
    }
    clips.forEach((clip, i) => {
      if (!this.rows.has(clip.id)) {
        this.rows.set(clip.id, new ClipRow(this));
        this.clips.append(this.rows.get(clip.id).element);
      }
      this.rows.get(clip.id).update(clip, clips.length > 1 ? i + 1 : null);
    });
  }

  #isLong() {
    return titleOf(this.job).length > 90;
  }

  #menu() {
    const { job } = this;
    openMenu(this.more, [
      { icon: "edit", label: "Use these settings", action: () => make.fill(job.recipe, this.findClip) },
      { icon: "copy", label: "Copy the command", action: () => copy(job.command) },
      { icon: "copy", label: "Copy the prompt", action: () => copy(job.recipe.prompt) },
      null,
      { icon: "edit", label: "Title …", action: () => askTitle(titleOf(job), (title) => attempt(() => changeJob(job.id, { title }))) },
    ]);
  }
}

class ClipRow {
  /** @param {Card} card */
  constructor(card) {
    this.card = card;
    this.play = iconButton("play", "Play", () => this.#toggle());
    this.play.classList.add("play");
    this.wave = new Waveform("Position", (seconds) => player.play(this.card.job, this.clip, seconds));
    this.wave.element.draggable = true;
    this.wave.element.addEventListener("dragstart", (event) => this.#drag(event));
    this.time = el("span", { class: "time" });
    this.name = el("span", {});
    this.tools = el(
      "div",
      { class: "clip-tools" },
      iconButton("vary", "Vary: the next seed", () => this.#vary(), { text: "Vary" }),
      iconButton("continue", "Continue from where it was left", () => this.#use("continue"), { text: "Continue" }),
      (this.more = iconButton("download", "Download and more", () => this.#menu(), { "aria-haspopup": "menu", "aria-expanded": "false" })),
    );
    this.element = el("div", { class: "clip", role: "group" }, this.play, this.wave.element, el("div", { class: "clip-foot" }, this.time, this.name, this.tools));
  }

  /** @param {import("./api.js").Clip} clip @param {?number} take */
  update(clip, take) {
    this.clip = clip;
    this.element.setAttribute("aria-label", take ? `Take ${take}` : "Clip");
    setText(this.name, [take && `take ${take}`, `seed ${clip.seed}`].filter(Boolean).join(" · "));
    this.tools.hidden = this.card.job.status !== "done";
    if (this.card.visible) this.load();
    this.draw();
  }

  async load() {
    if (await loadPeaks(this.clip, this.card.job.status === "done")) this.draw();
  }

  draw() {
    const done = this.card.job.status === "done";
    const current = player.isCurrent(this.clip);
    this.wave.position = player.cursor(this.clip);
    this.wave.show(peaksOf(this.clip), this.clip.duration, done);
    this.element.classList.toggle("current", current);
    this.play.disabled = !this.wave.enabled;
    setIcon(this.play.firstElementChild, !current ? "play" : player.sound.waiting ? "wait" : player.playing ? "pause" : "play");
    this.play.setAttribute("aria-label", current && player.playing ? "Pause" : "Play");
    const cursor = this.wave.position;
    setText(this.time, cursor === null ? clock(this.clip.duration) : `${clock(cursor)} / ${clock(this.clip.duration)}`);
  }

  detach() {
    this.wave.remove();
    this.element.remove();
  }

  #toggle() {
    if (player.isCurrent(this.clip)) player.toggle();
    else player.play(this.card.job, this.clip);
  }

  #vary() {
    const { recipe, clips } = this.card.job;
    attempt(() => makeJob({ ...asked(recipe), seed: (this.clip.seed + clips.length) % 2 ** 32 }));
  }

  #use(kind) {
    const at = kind === "melody" || kind === "style" ? null : player.cursor(this.clip);
    references.set(kind, this.#reference(at));
    const { recipe } = this.card.job;
    const prompt = document.getElementById("prompt");
    if (!prompt.value.trim()) {
      prompt.value = recipe.prompt;
      prompt.dispatchEvent(new Event("input", { bubbles: true }));
    }
    document.getElementById("references").scrollIntoView({ block: "nearest" });
    if (kind === "edit") return document.querySelector("[name=replace]").focus({ preventScroll: true });
    document.getElementById("make-button").focus({ preventScroll: true });
  }

  /** @param {?number} at seconds; null or 0: all of it is kept */
  #reference(at) {
    return { id: this.clip.id, name: titleOf(this.card.job), duration: this.clip.duration, at: at || null };
  }

  #menu() {
    const conditions = models.current?.conditions ?? [];
    const words = { melody: "Use its melody", style: "Use its style" };
    const { stems } = this.clip;
    openMenu(this.more, [
      ...Object.entries(FORMATS).map(([format, label]) => ({ icon: "download", label, href: downloadAddress(this.clip, format) })),
      ...(Object.keys(stems).length ? [null] : []),
      ...Object.entries(stems).map(([name, address]) => ({ icon: "download", label: `Stem: ${name}`, href: stemAddress(address) })),
      ...(conditions.length ? [null] : []),
      ...conditions.map((kind) => ({ icon: kind, label: words[kind], action: () => this.#use(kind) })),
      null,
      { icon: "edit", label: "Replace a part …", action: () => this.#use("edit") },
      { icon: "copy", label: "Copy the seed", action: () => copy(String(this.clip.seed)) },
    ]);
  }

  /** Onto the box for audio, or (in Chromium) out of the browser as a file. */
  #drag(event) {
    if (this.card.job.status !== "done") {
      event.preventDefault();
      return;
    }
    const { format } = this.card.job.recipe;
    const name = titleOf(this.card.job).replace(/[^\p{L}\p{N} ]+/gu, "").slice(0, 60).trim() || "clip";
    event.dataTransfer.effectAllowed = "copy";
    event.dataTransfer.setData(CLIP_TYPE, JSON.stringify(this.#reference(null)));
    event.dataTransfer.setData("DownloadURL", `audio/${format}:${name}.${format}:${new URL(this.clip.audio, location)}`);
    event.dataTransfer.setDragImage(icon("melody"), 0, 0);
  }
}

/** A recipe as it is asked for again: without what is left to the model. */
const asked = (recipe) => Object.fromEntries(Object.entries(recipe).filter(([, value]) => value !== null));
