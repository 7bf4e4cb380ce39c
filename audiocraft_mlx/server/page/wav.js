// Samples → a 16-bit WAV file.

const HEADER = 44; // bytes

/** @param {AudioBuffer} audio @returns {Blob} */
export function toWav(audio) {
  const { numberOfChannels: channels, length, sampleRate } = audio;
  const size = 2 * channels * length;
  const view = new DataView(new ArrayBuffer(HEADER + size));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, HEADER - 8 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // integers
  view.setUint16(22, channels, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * channels * sampleRate, true); // bytes per second
  view.setUint16(32, 2 * channels, true); // bytes of a frame
  view.setUint16(34, 16, true); // bits
  text(36, "data");
  view.setUint32(40, size, true);
  for (let channel = 0; channel < channels; channel++) {
    const samples = audio.getChannelData(channel);
    for (let i = 0; i < length; i++) {
      const value = Math.max(-1, Math.min(1, samples[i]));
      view.setInt16(HEADER + 2 * (i * channels + channel), Math.round(value * 32767), true);
    }
  }
  return new Blob([view.buffer], { type: "audio/wav" });
}

/** What the browser can decode, as WAV. @param {Blob} file */
export async function decodeToWav(file) {
  const context = new OfflineAudioContext(1, 1, 32000);
  return toWav(await context.decodeAudioData(await file.arrayBuffer()));
}
