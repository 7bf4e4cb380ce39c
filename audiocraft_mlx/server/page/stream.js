// Plays a clip while it is made: PCM as it comes, in pieces that are scheduled one behind the other.
//
// The context has the clip's own sample rate, so that pieces aren't resampled one by one, and each piece starts on
// the sample after the one before: there is no gap to hear.

import { pcmAddress } from "./api.js";

const LEAD = 0.03; // seconds between scheduling and sounding
const LATEST = 0.008; // seconds before it sounds that a piece can still be scheduled: two blocks of the context
const SHORTEST = 0.04; // seconds of a piece, unless it is the last one

// As the command's --play, it starts when there is enough that it won't stop in between; but with LONGEST_WAIT it
// starts in any case, on a machine that is slower than the music.
const CHUNK = 1; // seconds of the server's longest chunk
const MARGIN = 0.9; // the speed may drop
const LONG_FIRST = 0.25; // seconds of a first piece that tells how fast the next ones are
const LONGEST_WAIT = 3; // seconds

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
    if (frames) this.first ??= { time: performance.now(), frames };
  }

  /** Seconds to have before it starts, at the speed so far. */
  get #needed() {
    if (this.complete || !this.first) return 0;
    if (this.first.frames === this.received) return LONG_FIRST;
    const passed = (performance.now() - this.first.time) / 1000;
    const slowdown = (passed * this.rate) / (this.received - this.first.frames) / MARGIN;
    const missing = Math.max(0, this.expected - this.received) / this.rate;
    const chunk = Math.min(CHUNK, missing);
    return Math.min(LONGEST_WAIT, Math.max(chunk * slowdown, chunk + missing * (slowdown - 1)));
  }

  #schedule() {
    if (!this.playing) return;
    const now = this.context.currentTime * this.rate;
    const frames = this.received - this.next;
    if (this.origin !== null && frames > 0 && now + LATEST * this.rate > this.origin + this.next) {
      this.origin = null; // too late: the one before has ended
    }
    if (frames < (this.complete ? 1 : Math.max(SHORTEST, this.origin === null ? this.#needed : 0) * this.rate)) {
      if (this.complete && this.received === this.next && !this.nodes.size) this.#finish();
      else if (this.origin === null) this.#wait(true);
      return;
    }
    if (this.origin === null) {
      this.origin = Math.ceil(now + LEAD * this.rate) - this.next;
      this.started = this.next / this.rate;
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
      this.origin = null;
      this.#wait(true);
    } else if (this.next < this.received) this.#schedule();
    else this.#finish();
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
