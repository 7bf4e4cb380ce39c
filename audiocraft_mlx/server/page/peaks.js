// Waveforms, as far as they are known.

import { getPeaks } from "./api.js";

const PER_SECOND = 50; // what the server counts with; GET …/peaks says it

/** @type {Map<string, {values: number[], perSecond: number, asked: ?{done: boolean}}>} */
const known = new Map();

const entry = (id) => known.get(id) ?? (known.set(id, { values: [], perSecond: PER_SECOND, asked: null }), known.get(id));

export const peaksOf = (clip) => entry(clip.id);

/** Those of an event. */
export function addPeaks({ id, start, peaks }) {
  const { values } = entry(id);
  peaks.forEach((peak, i) => (values[start + i] = peak));
}

/** Events were missed: those of clips that weren't done are asked for again. */
export function missedPeaks() {
  for (const found of known.values()) if (!found.asked?.done) found.asked = null;
}

/**
 * Ask for them once, and once more when the clip is done: its level or its end may have been changed then.
 * @returns {Promise<boolean>} whether there are new ones
 */
export async function loadPeaks(clip, done) {
  const found = entry(clip.id);
  if (found.asked && (found.asked.done || !done)) return false;
  const asked = (found.asked = { done });
  try {
    const { peaks, per_second: perSecond } = await getPeaks(clip);
    if (found.asked !== asked) return false; // they were asked for again
    found.perSecond = perSecond;
    peaks.forEach((peak, i) => (found.values[i] = peak));
    return true;
  } catch {
    if (found.asked === asked) found.asked = null; // the next look at the clip tries again
    return false;
  }
}
