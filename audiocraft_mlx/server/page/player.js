// What plays: one clip at a time, at the bottom of the page.

import { byId, memory, setIcon, setText } from "./dom.js";
import { FileSound } from "./file.js";
import { StreamSound } from "./stream.js";
import { clock, titleOf } from "./text.js";

/** Dispatches `change` (another clip, playing or not), `time` and `end`. */
class Player extends EventTarget {
  constructor() {
    super();
    /** @type {?import("./api.js").Job} */
    this.job = null;
    /** @type {?import("./api.js").Clip} */
    this.clip = null;
    this.sound = null;
    this.ended = false;
    /** @type {Map<string, number>} where each clip was left, in seconds */
    this.cursors = new Map();
    this.loop = memory.get("loop") ?? false;
    this.volume = memory.get("volume") ?? 1;
    /** @type {function(): {job: import("./api.js").Job, clip: import("./api.js").Clip}[]} in the page's order */
    this.order = () => [];
  }

  get playing() {
    return this.sound?.playing ?? false;
  }

  isCurrent(clip) {
    return this.clip?.id === clip.id;
  }

  /** Where a clip would go on, in seconds; null: it was never played. */
  cursor(clip) {
    return this.isCurrent(clip) && this.sound ? this.sound.time : (this.cursors.get(clip.id) ?? null);
  }

  /** @param {?number} from seconds; null: where it was left */
  play(job, clip, from = null) {
    const start = from ?? this.cursors.get(clip.id) ?? 0;
    if (!this.isCurrent(clip) || this.ended) this.#open(job, clip, start >= clip.duration - 0.05 ? 0 : start);
    else if (from !== null) this.sound.seek(from);
    this.sound.play();
    this.#changed();
  }

  toggle() {
    if (!this.clip) {
      const [first] = this.order();
      if (first) this.play(first.job, first.clip);
    } else if (this.playing) this.sound.pause();
    else this.play(this.job, this.clip);
  }

  seek(seconds) {
    if (!this.clip) return;
    const to = Math.max(0, Math.min(seconds, this.sound.available));
    if (this.ended) this.#open(this.job, this.clip, to);
    else this.sound.seek(to);
    this.#changed();
  }

  /** @param {1|-1} by */
  skip(by) {
    const clips = this.order();
    const at = clips.findIndex(({ clip }) => this.isCurrent(clip));
    const to = clips[at < 0 ? 0 : at + by];
    if (to) this.play(to.job, to.clip, 0);
  }

  setVolume(value) {
    this.volume = value;
    if (this.sound) this.sound.volume = value;
    memory.set("volume", value);
  }

  setLoop(on) {
    this.loop = on;
    memory.set("loop", on);
    this.#changed();
  }

  /** The job of the clip has changed. */
  update(job) {
    if (job.id !== this.job?.id) return;
    this.job = job;
    this.#changed();
  }

  /** Its job has failed: what came so far can be heard, once. */
  cut(id) {
    if (id !== this.job?.id) return;
    if (this.ended) this.forget(id);
    else this.sound.cut?.();
  }

  /** Its job is gone. */
  forget(id) {
    if (id !== this.job?.id) return;
    this.sound.stop();
    this.sound = this.job = this.clip = null;
    this.#changed();
  }

  #open(job, clip, start) {
    if (this.sound) {
      if (!this.ended) this.cursors.set(this.clip.id, this.sound.time);
      this.sound.stop();
    }
    const sound = job.status === "done" ? new FileSound(clip, job.recipe.format, job.recipe.loop) : new StreamSound(clip);
    Object.assign(this, { job, clip, sound, ended: false });
    sound.volume = this.volume;
    if (start) sound.seek(start);
    sound.addEventListener("change", () => this.sound === sound && this.#changed());
    sound.addEventListener("end", () => this.sound === sound && this.#finished());
  }

  #finished() {
    // A stream may end before its first sample: its job failed, or the server is gone.
    if (this.loop && this.sound.available > 0) {
      this.play(this.job, this.clip, 0);
      return;
    }
    this.cursors.delete(this.clip.id);
    if (this.job.status === "failed") this.forget(this.job.id);
    else {
      this.ended = true;
      this.#changed();
    }
    this.dispatchEvent(new Event("end"));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
    this.#tick();
  }

  #tick() {
    this.dispatchEvent(new Event("time"));
    if (this.playing && !this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = null;
        this.#tick();
      });
    }
  }
}

export const player = new Player();

/** Connect the bar at the bottom. */
export function startPlayer() {
  const bar = byId("player");
  const [play, seek, volume, loop] = ["play", "seek", "volume", "loop"].map(byId);
  const [title, time, length] = ["now-title", "now-time", "now-length"].map(byId);
  byId("previous").addEventListener("click", () => player.skip(-1));
  byId("next").addEventListener("click", () => player.skip(1));
  play.addEventListener("click", () => player.toggle());
  seek.addEventListener("input", () => player.seek(seek.valueAsNumber));
  volume.value = player.volume;
  volume.addEventListener("input", () => player.setVolume(volume.valueAsNumber));
  loop.addEventListener("click", () => player.setLoop(!player.loop));

  player.addEventListener("change", () => {
    bar.hidden = !player.clip;
    document.body.classList.toggle("has-player", !bar.hidden);
    loop.setAttribute("aria-pressed", String(player.loop));
    if (!player.clip) {
      document.title = "MusicGen MLX";
      return;
    }
    const name = titleOf(player.job);
    const take = player.job.clips.findIndex((clip) => player.isCurrent(clip)) + 1;
    setText(title, player.job.clips.length > 1 ? `${name} · take ${take}` : name);
    setText(length, clock(player.clip.duration));
    seek.max = player.clip.duration;
    setIcon(play.firstElementChild, player.sound.waiting ? "wait" : player.playing ? "pause" : "play");
    play.setAttribute("aria-label", player.playing ? "Pause" : "Play");
    document.title = player.playing ? `▶ ${name}` : "MusicGen MLX";
    tellSystem(name);
  });
  player.addEventListener("time", () => {
    if (!player.clip) return;
    const now = player.ended ? player.sound.available : player.sound.time;
    setText(time, clock(now));
    seek.value = now;
    seek.setAttribute("aria-valuetext", `${clock(now)} of ${clock(player.clip.duration)}`);
  });
  startSystemKeys();
}

/** The keyboard's and the lock screen's buttons. */
function startSystemKeys() {
  if (!navigator.mediaSession) return;
  const actions = {
    play: () => player.toggle(),
    pause: () => player.toggle(),
    nexttrack: () => player.skip(1),
    previoustrack: () => player.skip(-1),
  };
  for (const [name, action] of Object.entries(actions)) navigator.mediaSession.setActionHandler(name, action);
}

function tellSystem(title) {
  if (!navigator.mediaSession) return;
  if (navigator.mediaSession.metadata?.title !== title) {
    navigator.mediaSession.metadata = new MediaMetadata({ title, artist: "MusicGen MLX" });
  }
  navigator.mediaSession.playbackState = player.playing ? "playing" : "paused";
}
