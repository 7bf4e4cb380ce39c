// Plays a clip while it is made: PCM as it comes, in pieces that are scheduled one behind the other.
//
// The context has the clip's own sample rate, so that pieces aren't resampled one by one, and each piece starts on
// the sample after the one before: there is no gap to hear.

import { pcmAddress } from "./api.js";

const LEAD = 0.03; // seconds between scheduling and sounding
const LATEST = 0.008; // seconds before it sounds that a piece can still be scheduled: two blocks of the context
const SHORTEST = 0.04; // seconds of a piece, unless it is the last one

// As the command's --play, it starts when it won't stop in between, as far as the speed so far tells. On a machine that
// is too slow for that the first sound comes soon all the same. Where it stops then, it goes on when it won't stop
// again, or with a certain length of audio that doubles each time: the pauses are few, and none is endless.
const CHUNK = 1; // seconds of the server's longest chunk
const MARGIN = 0.9; // the speed may drop; with each pause it did
const SLACK = 0.1; // seconds that a piece may be late
const LONG_FIRST = 0.25; // seconds of a first piece that is enough to start with
const SOON = 0.9; // seconds from asking for it to the first sound
const SPEED_SHOWS = 0.2; // seconds from the first piece, after a time in the queue
const WORTH = 2; // seconds more that are worth it if it doesn't stop then
const AFTER_PAUSE = 3; // seconds of audio that are enough after the first pause

/** @type {Map<number, AudioContext>} */
const contexts = new Map();

function contextOf(rate) {
  if (!contexts.has(rate)) contexts.set(rate, new AudioContext({ sampleRate: rate }));
  return contexts.get(rate);
}

/** Let audio of this rate sound later: to be called inside a click or a key press. */
export const unlock = (rate) => contextOf(rate).resume();

/** Dispatches `change`, and `end` when all has been played. */
export class StreamSound extends EventTarget {
  /** @param {import("./api.js").Clip} clip */
  constructor(clip) {
    super();
    this.rate = clip.sample_rate;
    this.channels = Array.from({ length: clip.channels }, () => new Float32Array(Math.round(clip.duration * clip.sample_rate)));
    this.context = contextOf(this.rate);
    this.gain = new GainNode(this.context);
    this.gain.connect(this.context.destination);
    this.expected = Math.round(clip.duration * clip.sample_rate); // samples
    this.received = 0;
    this.complete = false;
    this.playing = false;
    this.waiting = false; // for samples
    this.asked = performance.now();
    this.heard = false; // whether it has started
    this.pauses = 0; // since then, because nothing was there
    this.next = 0; // the first sample that isn't scheduled
    this.origin = null; // the context's frame at which sample 0 is, or would have been, played
    /** @type {Set<AudioBufferSourceNode>} */
    this.nodes = new Set();
    this.abort = new AbortController();
    this.#read(pcmAddress(clip));
  }

  get time() {
    if (this.origin === null) return this.next / this.rate;
    const now = this.context.currentTime - this.origin / this.rate;
    return Math.max(this.started, Math.min(now, this.next / this.rate));
  }

  /** Seconds that can be played. */
  get available() {
    return this.received / this.rate;
  }

  set volume(value) {
    this.gain.gain.value = value;
  }

  play() {
    this.context.resume();
    if (this.playing) return;
    this.playing = true;
    this.#schedule();
    this.#changed();
  }

  pause() {
    const now = this.time;
    this.playing = this.waiting = false;
    this.#moveTo(now);
    this.#changed();
  }

  seek(seconds) {
    this.#moveTo(seconds);
    this.#schedule();
    this.#changed();
  }

  /** No more comes: what is there can be played. */
  cut() {
    this.abort.abort();
  }

  /** For good. */
  stop() {
    this.playing = false;
    this.#silence();
    this.gain.disconnect();
    this.abort.abort();
  }

  async #read(address) {
    const size = 2 * this.channels.length; // bytes of a frame
    let rest = new Uint8Array(0);
    try {
      const response = await fetch(address, { signal: this.abort.signal });
      if (!response.ok) throw new Error(`The server answered ${response.status}`);
      const reader = response.body.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const bytes = new Uint8Array(rest.length + value.length);
        bytes.set(rest);
        bytes.set(value, rest.length);
        const whole = bytes.length - (bytes.length % size);
        rest = bytes.slice(whole);
        this.#append(new DataView(bytes.buffer, 0, whole));
        this.#schedule();
      }
    } catch (error) {
      if (error.name !== "AbortError") this.failed = true;
    }
    this.complete = true;
    this.#schedule();
    this.#changed();
  }

  #append(view) {
    const count = this.channels.length;
    const frames = view.byteLength / (2 * count);
    this.channels = this.channels.map((samples, channel) => {
      let all = samples;
      if (this.received + frames > all.length) {
        all = new Float32Array(2 * (this.received + frames));
        all.set(samples);
      }
      for (let i = 0; i < frames; i++) all[this.received + i] = view.getInt16(2 * (i * count + channel), true) / 32768;
      return all;
    });
    this.received += frames;
    if (!frames) return;
    this.latest = performance.now();
    this.first ??= { time: this.latest, frames };
  }

  /** Seconds of audio to have at the latest piece so that it doesn't stop, at the speed so far. */
  get #needed() {
    const passed = (this.latest - this.first.time) / 1000;
    const slowdown = (passed * this.rate) / (this.received - this.first.frames) / MARGIN ** (1 + this.pauses);
    const missing = Math.max(0, this.expected - this.received) / this.rate;
    const chunk = Math.min(CHUNK, missing);
    return Math.max(chunk * slowdown, chunk + missing * (slowdown - 1));
  }

  /** Seconds until it starts if nothing comes before; 0 or less: now. */
  get #delay() {
    if (this.complete) return 0;
    const now = performance.now();
    const ready = (this.received - this.next) / this.rate;
    const speedIsKnown = this.received > this.first.frames;
    if (!speedIsKnown && ready >= LONG_FIRST) return 0;
    const needed = speedIsKnown ? this.#needed : Infinity;
    // What is still missing is made while it waits.
    const smooth = needed + SLACK - ready - (now - this.latest) / 1000;
    if (this.heard) {
      const enough = AFTER_PAUSE * 2 ** Math.max(0, this.pauses - 1);
      if (needed > enough) return ready >= enough ? 0 : Infinity;
      return smooth;
    }
    const soon = Math.max(this.asked / 1000 + SOON, this.first.time / 1000 + SPEED_SHOWS) - now / 1000;
    return smooth <= soon + WORTH ? smooth : soon;
  }

  #schedule() {
    clearTimeout(this.timer);
    if (!this.playing) return;
    const now = this.context.currentTime * this.rate;
    const frames = this.received - this.next;
    // Too late: the one before has ended.
    if (this.origin !== null && frames > 0 && now + LATEST * this.rate > this.origin + this.next) this.#stopped();
    if (frames < (this.complete ? 1 : SHORTEST * this.rate)) {
      if (this.complete && this.received === this.next && !this.nodes.size) this.#finish();
      else if (this.origin === null) this.#wait(true);
      return;
    }
    if (this.origin === null) {
      const delay = this.#delay;
      if (delay > 0) {
        this.#wait(true);
        if (delay < Infinity) this.timer = setTimeout(() => this.#schedule(), 1000 * delay);
        return;
      }
      this.origin = Math.ceil(now + LEAD * this.rate) - this.next;
      this.started = this.next / this.rate;
      this.heard = true;
      this.#wait(false);
    }
    const buffer = new AudioBuffer({ length: frames, numberOfChannels: this.channels.length, sampleRate: this.rate });
    this.channels.forEach((samples, channel) => buffer.copyToChannel(samples.subarray(this.next, this.received), channel));
    const node = new AudioBufferSourceNode(this.context, { buffer });
    node.connect(this.gain);
    node.start((this.origin + this.next) / this.rate);
    node.onended = () => this.#ended(node);
    this.nodes.add(node);
    this.next = this.received;
  }

  #ended(node) {
    if (!this.nodes.delete(node) || this.nodes.size || !this.playing) return;
    if (!this.complete) {
      this.#stopped();
      this.#wait(true);
    } else if (this.next < this.received) this.#schedule();
    else this.#finish();
  }

  /** Nothing was there to go on with. */
  #stopped() {
    this.origin = null;
    this.pauses += 1;
  }

  #finish() {
    this.playing = this.waiting = false;
    this.origin = null;
    this.dispatchEvent(new Event("end"));
  }

  #moveTo(seconds) {
    this.#silence();
    this.next = Math.max(0, Math.min(Math.round(seconds * this.rate), this.received));
    this.origin = null;
  }

  #silence() {
    for (const node of this.nodes) {
      node.onended = null;
      node.stop();
      node.disconnect();
    }
    this.nodes.clear();
  }

  #wait(waiting) {
    if (this.waiting === waiting) return;
    this.waiting = waiting;
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
