// Numbers as people read them.

/** 75.4 → "1:15" */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** 8 → "8 s", 7.25 → "7.3 s" */
export const inSeconds = (seconds) => `${Math.round(seconds * 10) / 10} s`;

/** @param {number} created seconds since 1970 */
export function ago(created) {
  const passed = Date.now() / 1000 - created;
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(created * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

/** "facebook/musicgen-small" → "musicgen-small" */
export const shortModel = (name) => name.split("/").pop();

/** @param {import("./api.js").Job} job */
export const titleOf = (job) => job.title || job.recipe.prompt.trim() || referenceTitle(job.recipe);

function referenceTitle(recipe) {
  if (recipe.continue) return "A continuation";
  if (recipe.melody) return "A melody";
  if (recipe.chords) return recipe.chords;
  return recipe.style ? "A style" : "Untitled";
}
