// Waveforms, as far as they are known.

import { getPeaks } from "./api.js";

const PER_SECOND = 50; // what the server counts with; GET …/peaks says it

/** @type {Map<string, {values: number[], perSecond: number, asked: boolean}>} */
const known = new Map();

const entry = (id) => known.get(id) ?? (known.set(id, { values: [], perSecond: PER_SECOND, asked: false }), known.get(id));

export const peaksOf = (clip) => entry(clip.id);

/** Those of an event. */
export function addPeaks({ id, start, peaks }) {
  const { values } = entry(id);
  peaks.forEach((peak, i) => (values[start + i] = peak));
}

/** Ask for them once. @returns {Promise<boolean>} whether there are new ones */
export async function loadPeaks(clip, again = false) {
  const found = entry(clip.id);
  if (found.asked && !again) return false;
  found.asked = true;
  try {
    const { peaks, per_second: perSecond } = await getPeaks(clip);
    found.perSecond = perSecond;
    peaks.forEach((peak, i) => (found.values[i] = peak));
    return true;
  } catch {
    found.asked = false; // the next look at the clip tries again
    return false;
  }
}
