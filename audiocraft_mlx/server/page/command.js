// The shell command and the curl call that do what the form says.

/** @typedef {import("./api.js").JobRequest} JobRequest */

const OPTIONS = {
  model: "-m",
  duration: "-d",
  seed: "--seed",
  style_coef: "--style-coef",
  prompt_seconds: "--prompt-seconds",
  melody_separation: "--melody-separation",
  midi_track: "--midi-track",
  chords: "--chords",
  bars: "--bars",
  bpm: "--bpm",
  beats_per_bar: "--beats-per-bar",
  temperature: "--temperature",
  top_k: "--top-k",
  top_p: "--top-p",
  cfg_coef: "--cfg-coef",
  max_cfg_coef: "--max-cfg-coef",
  min_cfg_coef: "--min-cfg-coef",
  decoding_steps: "--decoding-steps",
  span_arrangement: "--span-arrangement",
  format: "--format",
  bit_depth: "--bit-depth",
  normalize: "--normalize",
  lufs: "--lufs",
  fade_out: "--fade-out",
  ending: "--ending",
};
const DEFAULTS = { duration: 8, format: "wav", normalize: "none" };

/** @param {string} text @returns {string} one word for a POSIX shell */
export const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/**
 * @param {Partial<JobRequest>} recipe
 * @param {Object<string, string>} names of the audio, by kind
 */
export function shellCommand(recipe, names) {
  const words = ["musicgen-mlx"];
  // A prompt that begins with a dash would be read as an option.
  const dashed = recipe.prompt?.startsWith("-");
  if (recipe.prompt && !dashed) words.push(`'${recipe.prompt.replaceAll("'", `'\\''`)}'`);
  for (const [field, option] of Object.entries(OPTIONS)) {
    if (field === "duration" && (recipe.edit || recipe.bars !== undefined)) continue; // the part or the bars are it
    const value = recipe[field];
    if (value !== undefined && value !== DEFAULTS[field]) words.push(option, quote(String(value)));
  }
  for (const { start, text, fade } of recipe.sections ?? []) {
    words.push("--section", quote(`${start}${fade ? `~${fade}` : ""}: ${text}`));
  }
  // One that begins with a dash would be read as an option.
  if (recipe.negative) words.push(recipe.negative.startsWith("-") ? quote(`--negative=${recipe.negative}`) : `--negative ${quote(recipe.negative)}`);
  if (recipe.loop) words.push("--loop");
  if (recipe.takes > 1) words.push("-n", String(recipe.takes));
  if (recipe.replace) words.push("--replace", quote(recipe.replace));
  for (const kind of ["melody", "style", "continue", "edit"]) {
    if (recipe[kind]) words.push(`--${kind}`, quote(names[kind] ?? `${kind}.wav`));
  }
  if (recipe.stems) words.push("--stems");
  if (dashed) words.push("--", quote(recipe.prompt));
  return words.join(" ");
}

/** @param {Partial<JobRequest>} recipe @param {Location} place of the server @param {boolean} token whether it needs one */
export function curlCall(recipe, place, token) {
  const base = place.href.replace(/[?#].*$/, "").replace(/[^/]*$/, "");
  // Which one is hidden from scripts.
  const header = token ? ` -H "Authorization: Bearer $TOKEN"` : "";
  return `curl ${base}api/jobs${header} --json ${quote(JSON.stringify(recipe))}`;
}
