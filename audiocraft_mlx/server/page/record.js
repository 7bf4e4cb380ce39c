// The microphone → a WAV file. What browsers record (WebM, MP4) is decoded here, since servers may not read it.

import { decodeToWav } from "./wav.js";

/** Why there is no recording here, or null. */
export const whyNot = () =>
  navigator.mediaDevices && window.MediaRecorder ? null : "Recording needs https, or a server on this computer (localhost).";

/**
 * @param {function(): void} ended called when it stops by itself: the microphone was unplugged
 * @returns {Promise<function(): Promise<Blob>>} ends the recording, and returns it as WAV
 */
export async function record(ended) {
  const stream = await navigator.mediaDevices.getUserMedia({
    // Made for speech, these take music apart.
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  let finishing = false;
  const stopped = new Promise((resolve) => recorder.addEventListener("stop", resolve));
  stopped.then(() => finishing || ended());
  recorder.start();
  return async () => {
    finishing = true;
    if (recorder.state !== "inactive") recorder.stop();
    await stopped;
    for (const track of stream.getTracks()) track.stop();
    return decodeToWav(new Blob(parts, { type: recorder.mimeType }));
  };
}
