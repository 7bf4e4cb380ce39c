// A waveform: drawn from peaks, sought in by click, drag and arrow keys.

import { el } from "./dom.js";
import { clock } from "./text.js";

const BAR = 3; // CSS pixels
const GAP = 2;
const FULL = 0.94; // of the height, for the loudest peak
const QUIETEST = 64; // of 255: what is never drawn as loud
const STEP = 1; // seconds, of an arrow key

const colours = {};
function readColours() {
  // A property of the page's own is as it was written, `light-dark(…)`; a colour made of it is one of the two.
  const probe = el("span", { hidden: true });
  document.body.append(probe);
  for (const name of ["wave", "accent", "line", "ink"]) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

/** @type {Set<Waveform>} */
const attached = new Set();
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) target.waveform.draw();
});
document.addEventListener("theme", () => {
  readColours();
  for (const waveform of attached) waveform.draw();
});

export class Waveform {
  /** @param {string} label @param {function(number): void} seek with seconds */
  constructor(label, seek) {
    this.canvas = el("canvas", {});
    this.element = el("div", { class: "wave", role: "slider", tabindex: "0", "aria-label": label, "aria-valuemin": "0" }, this.canvas);
    this.element.waveform = this;
    this.duration = 0;
    this.made = 0; // seconds that can be played
    this.position = null; // seconds; null: never played
    this.peaks = { values: [], perSecond: 1 };
    this.enabled = false;
    this.element.addEventListener("click", (event) => {
      if (!this.enabled) return;
      const box = this.element.getBoundingClientRect();
      seek(Math.min(((event.clientX - box.left) / box.width) * this.duration, this.made));
    });
    this.element.addEventListener("keydown", (event) => {
      const to = {
        ArrowRight: (this.position ?? 0) + STEP,
        ArrowLeft: (this.position ?? 0) - STEP,
        Home: 0,
        End: this.made,
      }[event.key];
      if (to === undefined || !this.enabled || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      seek(Math.max(0, Math.min(to, this.made)));
    });
    attached.add(this);
    sizes.observe(this.element);
  }

  remove() {
    attached.delete(this);
    sizes.unobserve(this.element);
  }

  /**
   * @param {{values: number[], perSecond: number}} peaks
   * @param {number} duration seconds that the clip will have
   * @param {boolean} done
   */
  show(peaks, duration, done) {
    this.peaks = peaks;
    this.duration = duration;
    this.made = done ? duration : Math.min(duration, peaks.values.length / peaks.perSecond);
    this.enabled = this.made > 0;
    this.element.setAttribute("aria-disabled", String(!this.enabled));
    this.element.setAttribute("aria-valuemax", duration.toFixed(1));
    this.#describe();
    this.draw();
  }

  setPosition(seconds) {
    if (this.position === seconds) return;
    this.position = seconds;
    this.#describe();
    this.draw();
  }

  #describe() {
    const now = this.position ?? 0;
    this.element.setAttribute("aria-valuenow", now.toFixed(1));
    this.element.setAttribute("aria-valuetext", `${clock(now)} of ${clock(this.duration)}`);
  }

  draw() {
    const width = this.element.clientWidth;
    const height = this.element.clientHeight;
    if (!width || !this.duration) return;
    if (!colours.wave) readColours();
    const scale = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);

    const { values, perSecond } = this.peaks;
    // Quiet music is drawn larger, silence isn't.
    const loudest = values.reduce((most, peak) => Math.max(most, peak), QUIETEST);
    const bars = Math.max(1, Math.floor((width + GAP) / (BAR + GAP)));
    const perBar = (this.duration * perSecond) / bars;
    const played = this.position === null ? -1 : (this.position / this.duration) * width;
    for (let bar = 0; bar < bars; bar++) {
      const first = Math.floor(bar * perBar);
      const last = Math.max(first + 1, Math.floor((bar + 1) * perBar));
      let peak = -1;
      for (let i = first; i < last && i < values.length; i++) peak = Math.max(peak, values[i] ?? 0);
      const x = bar * (BAR + GAP);
      const tall = peak < 0 ? BAR : Math.max(BAR, (peak / loudest) ** 0.8 * height * FULL);
      pen.fillStyle = peak < 0 ? colours.line : x + BAR / 2 <= played ? colours.accent : colours.wave;
      pen.beginPath();
      pen.roundRect(x, (height - tall) / 2, BAR, tall, BAR / 2);
      pen.fill();
    }
    if (played > 0 && played < width) {
      pen.fillStyle = colours.ink;
      pen.fillRect(played - 0.75, 0, 1.5, height);
    }
  }
}
