// The list: what is being made, and what was.

import { getJob, listJobs, readRecipe } from "./api.js";
import { Card, hasAudio, isLive } from "./card.js";
import { showRecipe } from "./dialog.js";
import { byId, el, icon } from "./dom.js";
import { make } from "./make.js";
import { addPeaks } from "./peaks.js";
import { player } from "./player.js";
import { CLIP_TYPE } from "./references.js";
import { titleOf } from "./text.js";
import { say, toast } from "./toast.js";

const PAGE = 20;
const TYPING = 200; // ms after the last key until it is searched

/** Dispatches `change` when jobs have come, gone or changed. */
class History extends EventTarget {
  constructor() {
    super();
    /** @type {Map<string, Card>} */
    this.cards = new Map();
    this.query = "";
    this.favourite = false;
    this.before = null; // the next page
    this.loaded = false;
    this.asked = 0;
    /** @type {Set<string>} jobs that events told of since the first page was asked for: what it says is older */
    this.newer = new Set();
  }

  start() {
    player.order = () => this.#clips();
    player.addEventListener("change", () => this.#drawPlayer());
    player.addEventListener("time", () => player.clip && this.cards.get(player.job.id)?.draw(player.clip.id));
    this.seen = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) this.cards.get(target.dataset.id)?.show(isIntersecting);
      },
      { rootMargin: "200px" },
    );
    new IntersectionObserver((entries) => entries.at(-1).isIntersecting && this.#loadMore(), { rootMargin: "600px" }).observe(byId("end"));
    const search = byId("search");
    let timer;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#filter(search.value.trim(), this.favourite), TYPING);
    });
    const only = byId("only-favourites");
    only.addEventListener("click", () => {
      only.setAttribute("aria-pressed", String(!this.favourite));
      this.#filter(this.query, !this.favourite);
    });
    byId("list").addEventListener("deleted", (event) => this.remove(event.detail));
    setInterval(() => this.cards.forEach((card) => card.updateAge()), 60_000);
    startDrop();
  }

  /** Read the first page again; what is no longer there goes. */
  async refresh() {
    const asked = ++this.asked;
    this.newer.clear();
    const known = new Set(this.cards.keys());
    const page = await listJobs({ limit: PAGE, query: this.query, favourite: this.favourite });
    if (asked !== this.asked) return;
    const oldest = page.before === null ? -Infinity : page.jobs.at(-1).created;
    const there = new Set(page.jobs.map((job) => job.id));
    const filtered = this.query !== "" || this.favourite; // live jobs are shown all the same
    for (const [id, { job }] of [...this.cards]) {
      if (!there.has(id) && !this.newer.has(id) && job.created >= oldest && !(filtered && isLive(job))) this.remove(id);
    }
    // If its last job is new, there may be more between it and the cards; else those go on where they were read to.
    if (!this.loaded || page.before === null || !known.has(page.jobs.at(-1).id)) this.before = page.before;
    this.loaded = true;
    this.#putOlder(page.jobs);
    this.#changed();
    this.#loadMoreIfSeen();
  }

  /** A job is new, or has changed. */
  update(job) {
    this.newer.add(job.id);
    const had = this.cards.get(job.id)?.job;
    player.update(job);
    if (had?.status !== job.status) announce(job);
    if (job.status === "cancelled") player.forget(job.id);
    if (job.status === "failed") player.cut(job.id);
    if (!isLive(job) && !this.#matches(job)) {
      this.#drop(job.id);
    } else if (this.loaded) this.#put(job);
    this.#changed();
  }

  updateProgress({ id, progress, speed }) {
    const card = this.cards.get(id);
    if (card) card.updateState({ progress, speed });
    // What is made may be further down than what was read: many jobs wait.
    else if (this.loaded) getJob(id).then((job) => this.update(job), () => {});
  }

  addPeaks(event) {
    addPeaks(event);
    for (const card of this.cards.values()) card.draw(event.id);
  }

  remove(id) {
    this.newer.add(id);
    player.forget(id);
    this.#drop(id);
    this.#changed();
  }

  get jobs() {
    return [...this.cards.values()].map((card) => card.job);
  }

  /** @returns {?{name: string, duration: number}} */
  findClip(id) {
    for (const job of this.jobs) {
      const clip = job.clips.find((candidate) => candidate.id === id);
      if (clip) return { name: titleOf(job), duration: clip.duration };
    }
    return null;
  }

  /** Of a list: what events have told since is left as it is. */
  #putOlder(jobs) {
    for (const job of jobs) if (!this.newer.has(job.id)) this.#put(job);
  }

  #put(job) {
    let card = this.cards.get(job.id);
    if (card) card.update(job);
    else {
      card = new Card(job, (id) => this.findClip(id));
      card.element.dataset.id = job.id;
      this.cards.set(job.id, card);
      this.seen.observe(card.element);
    }
    this.#place(card);
  }

  /** Into its list: what is made first and then the queue, or the history from new to old. */
  #place(card) {
    const live = isLive(card.job);
    const list = byId(live ? "live" : "history");
    const rank = ({ job }) => (live ? (job.status === "running" ? -1 : (job.position ?? Infinity)) : -job.created);
    const others = [...list.children].filter((element) => element !== card.element);
    const after = others.find((element) => {
      const other = this.cards.get(element.dataset.id);
      const [mine, its] = [rank(card), rank(other)];
      return mine === its ? (live ? card.job.created < other.job.created : card.job.id > other.job.id) : mine < its;
    });
    const { element } = card;
    if (element.parentNode === list && element.nextElementSibling === (after ?? null)) return;
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    list.insertBefore(element, after ?? null);
    focused?.focus({ preventScroll: true });
  }

  #drop(id) {
    const card = this.cards.get(id);
    if (!card) return;
    const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
    const hadFocus = card.element.contains(document.activeElement);
    this.seen.unobserve(card.element);
    card.detach();
    this.cards.delete(id);
    // The focus goes to a neighbour, not to the top of the page.
    if (hadFocus) (next?.querySelector("button:not([hidden], :disabled)") ?? byId("search")).focus();
  }

  #matches(job) {
    const words = this.query.toLowerCase().split(/\s+/); // each of them, as the server does it
    const { prompt, sections } = job.recipe;
    const text = [job.title ?? "", prompt, ...sections.map((section) => section.text)].join("\n").toLowerCase();
    return (!this.favourite || job.favourite) && words.every((word) => text.includes(word));
  }

  #filter(query, favourite) {
    Object.assign(this, { query, favourite, before: null, loaded: false });
    for (const [id, { job }] of [...this.cards]) if (!isLive(job)) this.#drop(id);
    this.refresh().catch((error) => toast(error.message));
  }

  async #loadMore() {
    if (!this.before || this.loading) return;
    this.loading = true;
    const { asked, before } = this;
    try {
      const page = await listJobs({ before, limit: PAGE, query: this.query, favourite: this.favourite });
      if (this.asked === asked) {
        this.before = page.before;
        this.#putOlder(page.jobs);
        this.#changed();
      }
    } catch {
      // The line at the top says that the server is gone; the next scrolling tries again.
    }
    this.loading = false;
    if (this.before !== before) this.#loadMoreIfSeen();
  }

  #loadMoreIfSeen() {
    if (byId("end").getBoundingClientRect().top < innerHeight + 600) this.#loadMore();
  }

  #clips() {
    return [...document.querySelectorAll("#live > .card, #history > .card")].flatMap((element) => {
      const { job } = this.cards.get(element.dataset.id);
      return hasAudio(job) ? job.clips.map((clip) => ({ job, clip })) : [];
    });
  }

  #drawPlayer() {
    for (const id of new Set([this.playing, player.job?.id])) {
      const card = this.cards.get(id);
      card?.job.clips.forEach((clip) => card.draw(clip.id));
    }
    this.playing = player.job?.id;
  }

  #changed() {
    this.#showEmpty();
    this.dispatchEvent(new Event("change"));
  }

  #showEmpty() {
    const box = byId("empty");
    box.hidden = !this.loaded || this.cards.size > 0;
    if (box.hidden) return;
    const [title, text] =
      this.query || this.favourite
        ? ["Nothing found", this.favourite && !this.query ? "Clips with a star will be here." : "No prompt or title has these words."]
        : ["No clips yet", "Say what it should play and click Make. Or drop a file here to see how it was made."];
    box.replaceChildren(icon("logo"), el("b", {}, title), text);
  }
}

export const history = new History();

function announce(job) {
  const words = { running: "Being made", done: "Done", failed: `Failed: ${job.error ?? ""}`, cancelled: "Stopped" };
  if (words[job.status]) say(`${words[job.status]}: ${titleOf(job).slice(0, 80)}`);
}

/** A file that is dropped on the list shows how it was made. */
function startDrop() {
  const list = byId("list");
  const isFile = (event) => event.dataTransfer.types.includes("Files") && !event.dataTransfer.types.includes(CLIP_TYPE);
  list.addEventListener("dragover", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    list.classList.add("over");
  });
  list.addEventListener("dragleave", (event) => {
    if (!list.contains(event.relatedTarget)) list.classList.remove("over");
  });
  list.addEventListener("drop", async (event) => {
    list.classList.remove("over");
    if (!isFile(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    try {
      showRecipe(file.name, await readRecipe(file), (recipe) => make.fill(recipe, (id) => history.findClip(id)));
    } catch (error) {
      toast(error.message);
    }
  });
  // Elsewhere a dropped file would replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
}
