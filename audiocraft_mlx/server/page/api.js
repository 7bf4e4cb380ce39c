// Every route that the page calls, and what it sends and gets: the types of server/schema.py, field for field.

/**
 * @typedef {Object} JobSection
 * @property {number} start
 * @property {string} text
 * @property {number} fade
 */

/**
 * @typedef {Object} JobRequest
 * @property {string} prompt
 * @property {?string} model
 * @property {number} duration
 * @property {number} takes
 * @property {?number} seed
 * @property {?string} melody
 * @property {?string} melody_separation
 * @property {?string} style
 * @property {?number} style_coef
 * @property {?string} continue
 * @property {?number} continue_at
 * @property {?string} edit
 * @property {?string} replace
 * @property {?number} candidates
 * @property {?number} prompt_seconds
 * @property {JobSection[]} sections
 * @property {?string} negative
 * @property {?number} midi_track
 * @property {?string} chords
 * @property {boolean} loop
 * @property {?number} bars
 * @property {?number} bpm
 * @property {?number} beats_per_bar
 * @property {?number} temperature
 * @property {?number} top_k
 * @property {?number} top_p
 * @property {?number} cfg_coef
 * @property {?number} max_cfg_coef
 * @property {?number} min_cfg_coef
 * @property {?number[]} decoding_steps
 * @property {?string} span_arrangement
 * @property {string} format
 * @property {?number} bit_depth
 * @property {string} normalize
 * @property {?number} lufs
 * @property {?number} fade_out
 * @property {?string} ending
 * @property {boolean} stems
 */

/**
 * @typedef {Object} Progress
 * @property {number} done
 * @property {number} total
 */

/**
 * @typedef {Object} Clip
 * @property {string} id
 * @property {number} seed
 * @property {number} duration
 * @property {number} sample_rate
 * @property {number} channels
 * @property {string} audio
 * @property {string} stream
 * @property {string} peaks
 * @property {Object<string, string>} stems
 */

/**
 * @typedef {Object} Job
 * @property {string} id
 * @property {"queued"|"running"|"done"|"failed"|"cancelled"} status
 * @property {number} created
 * @property {?number} position
 * @property {?Progress} progress
 * @property {?number} speed
 * @property {?string} error
 * @property {?string} title
 * @property {boolean} favourite
 * @property {JobRequest} recipe
 * @property {string} command
 * @property {Clip[]} clips
 */

/**
 * @typedef {Object} JobPage
 * @property {Job[]} jobs
 * @property {?string} before
 */

/**
 * @typedef {Object} JobChange
 * @property {?boolean} favourite
 * @property {?string} title
 */

/**
 * @typedef {Object} Peaks
 * @property {number} per_second
 * @property {number[]} peaks
 */

/**
 * @typedef {Object} Audio
 * @property {string} id
 * @property {number} duration
 * @property {number} sample_rate
 * @property {number} channels
 */

/**
 * @typedef {Object} AudioRecipe
 * @property {?JobRequest} recipe
 * @property {?string} command
 */

/**
 * @typedef {Object} ModelInfo
 * @property {string} name
 * @property {"loaded"|"loading"|"on disk"|"to download"} state
 * @property {?number} gigabytes
 * @property {boolean} default
 * @property {("melody"|"style")[]} conditions
 * @property {boolean} fills_masks
 * @property {?number} max_duration
 * @property {?number} sample_rate
 * @property {?number} channels
 * @property {?string} error
 */

/**
 * @typedef {Object} Health
 * @property {"ok"} status
 * @property {string} version
 * @property {string} model
 * @property {string} device
 * @property {?string} hint
 * @property {number} waiting
 * @property {Object<string, number>} limits
 * @property {boolean} downloads
 * @property {boolean} token
 */

/**
 * @typedef {Object} ErrorBody
 * @property {string} message
 * @property {string} type
 * @property {?string} param
 * @property {?string} code
 */

/** The server's answer to a request that it refuses, or that it can't be reached (`status` 0). */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   * @param {?string} param the field at fault
   */
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

async function request(method, address, { json, body, type } = {}) {
  const headers = {};
  if (json !== undefined) headers["content-type"] = "application/json";
  if (type) headers["content-type"] = type;
  let response;
  try {
    response = await fetch(address, { method, headers, body: json === undefined ? body : JSON.stringify(json) });
  } catch {
    throw new ApiError("The server can’t be reached.", 0);
  }
  const answer = response.status === 204 ? null : await response.json().catch(() => null);
  if (!response.ok) {
    const error = answer?.error;
    throw new ApiError(
      error?.message ?? `The server answered ${response.status} ${response.statusText}`.trim(),
      response.status,
      error?.param ?? null,
    );
  }
  return answer;
}

const of = (job) => `api/jobs/${encodeURIComponent(job)}`;

/** @param {JobRequest} recipe @returns {Promise<Job>} */
export const makeJob = (recipe) => request("POST", "api/jobs", { json: recipe });

/** @returns {Promise<JobPage>} newest first */
export function listJobs({ before = null, limit = 20, query = "", favourite = false } = {}) {
  const search = new URLSearchParams({ limit });
  if (before) search.set("before", before);
  if (query) search.set("q", query);
  if (favourite) search.set("favourite", "true");
  return request("GET", `api/jobs?${search}`);
}

/** @param {string} id @returns {Promise<Job>} */
export const getJob = (id) => request("GET", of(id));

/** @param {string} id @param {Partial<JobChange>} change @returns {Promise<Job>} */
export const changeJob = (id, change) => request("PATCH", of(id), { json: change });

/** Cancels a live job, removes another one. @returns {Promise<?Job>} */
export const deleteJob = (id) => request("DELETE", of(id));

/** @returns {Promise<Job>} */
export const restoreJob = (id) => request("POST", `${of(id)}/restore`, { json: {} });

/** @param {Clip} clip @returns {Promise<Peaks>} */
export const getPeaks = (clip) => request("GET", clip.peaks);

/** @param {Blob} file @param {?string} name by which commands and tags call it @returns {Promise<Audio>} */
export const addAudio = (file, name) =>
  request("POST", name ? withQuery("api/audio", { name }) : "api/audio", { body: file, type: audioType(file) });

/** How an audio file was made. @param {Blob} file @returns {Promise<AudioRecipe>} */
export const readRecipe = (file) => request("POST", "api/recipe", { body: file, type: audioType(file) });

/** @returns {Promise<ModelInfo[]>} */
export const listModels = () => request("GET", "api/models");

/** @param {string} name @returns {Promise<ModelInfo>} */
export const loadModel = (name) =>
  request("POST", `api/models/${name.split("/").map(encodeURIComponent).join("/")}/load`, { json: {} });

/** @returns {Promise<Health>} */
export const getHealth = () => request("GET", "health");

/** @param {Clip} clip @param {"wav"|"flac"|"mp3"|"ogg"} format */
export const downloadAddress = (clip, format) => withQuery(clip.audio, { format, download: "1" });

/** @param {Clip} clip its samples as 16-bit integers, little-endian, interleaved */
export const pcmAddress = (clip) => withQuery(clip.stream, { format: "pcm" });

/** @param {string} address of a stem */
export const stemAddress = (address) => withQuery(address, { download: "1" });

export function withQuery(address, values) {
  const query = new URLSearchParams(values);
  return `${address}${address.includes("?") ? "&" : "?"}${query}`;
}

/** The server takes `audio/*` only; a browser calls some audio files video, or doesn't know them. */
function audioType(file) {
  return file.type.startsWith("audio/") ? file.type.split(";")[0] : "audio/octet-stream";
}
