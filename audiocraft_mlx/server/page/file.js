// Plays a finished clip. An audio element asks for the parts that it needs, and sounds on a phone that is muted.

import { withQuery } from "./api.js";

const TYPES = { wav: "audio/wav", flac: "audio/flac", mp3: "audio/mpeg", ogg: "audio/ogg" };

/** Dispatches `change`, and `end` when all has been played. */
export class FileSound extends EventTarget {
  /** @param {import("./api.js").Clip} clip @param {string} format of its file @param {boolean} loops without end */
  constructor(clip, format, loops = false) {
    super();
    this.available = clip.duration;
    this.complete = true;
    this.wanted = false; // whether it is to play
    this.element = new Audio();
    this.element.preload = "auto";
    this.element.loop = loops;
    // Safari plays no Ogg.
    const plays = this.element.canPlayType(TYPES[format] ?? "");
    this.element.src = plays ? clip.audio : withQuery(clip.audio, { format: "wav" });
    const changed = () => this.dispatchEvent(new Event("change"));
    for (const event of ["playing", "pause", "waiting", "seeked", "canplay"]) this.element.addEventListener(event, changed);
    this.element.addEventListener("ended", () => {
      this.wanted = false;
      this.dispatchEvent(new Event("end"));
    });
    this.element.addEventListener("error", () => {
      this.failed = true;
      this.wanted = false;
      changed();
    });
  }

  get time() {
    return this.element.currentTime;
  }

  get playing() {
    return this.wanted;
  }

  get waiting() {
    return this.wanted && !this.failed && this.element.readyState < HTMLMediaElement.HAVE_FUTURE_DATA && !this.element.ended;
  }

  set volume(value) {
    this.element.volume = value;
  }

  play() {
    this.wanted = true;
    if (this.failed) {
      this.failed = false;
      const { time } = this;
      this.element.load();
      this.seek(time);
    }
    this.element.play().catch((error) => {
      if (error.name === "AbortError") return; // it was paused, or loaded again, at once
      this.wanted = false; // the browser wants a click first, or there is nothing that it can play
      this.dispatchEvent(new Event("change"));
    });
  }

  pause() {
    this.wanted = false;
    this.element.pause();
  }

  seek(seconds) {
    this.element.currentTime = seconds; // before its length is known: where it starts
  }

  stop() {
    this.wanted = false;
    this.element.pause();
    this.element.removeAttribute("src");
    this.element.load();
  }
}
