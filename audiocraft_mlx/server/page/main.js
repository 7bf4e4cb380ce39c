// Puts the parts together: what is made plays, events reach what shows them.

import { getHealth } from "./api.js";
import { isLive } from "./card.js";
import { byId, setText } from "./dom.js";
import { listen } from "./events.js";
import { history } from "./history.js";
import { startKeys } from "./keys.js";
import { startLayout } from "./layout.js";
import { make } from "./make.js";
import { models } from "./models.js";
import { missedPeaks } from "./peaks.js";
import { player, startPlayer } from "./player.js";
import { startReferences } from "./references.js";
import { unlock } from "./stream.js";

const USUAL_RATE = 32000; // samples per second, of the released models

/** The job that is to play as soon as it sounds: the last one that was asked for. */
let awaited = null;

models.start();
startPlayer();
startReferences();
make.start();
history.start();
startKeys();
startLayout();

make.addEventListener("asked", () => unlock(models.current?.sample_rate ?? USUAL_RATE));
make.addEventListener("made", ({ detail: job }) => {
  awaited = job.id;
  // Its events may have come before the answer, and newer.
  if (!history.cards.has(job.id)) history.update(job);
  playAwaited();
});
player.addEventListener("end", playAwaited);
player.addEventListener("change", () => {
  if (player.job?.id === awaited) awaited = null;
});

function playAwaited() {
  const job = history.cards.get(awaited)?.job;
  if (!job?.clips.length || !["running", "done"].includes(job.status)) return;
  // What is heard while it is made is heard to its end.
  if (player.playing && player.job.status === "running") return;
  player.play(job, job.clips[0], 0);
}

byId("stop").addEventListener("click", () => {
  const live = history.jobs.filter(isLive);
  const job = live.find(({ status }) => status === "running") ?? live[0];
  if (job) history.cards.get(job.id).delete();
});
history.addEventListener("change", () => (byId("stop").disabled = !history.jobs.some(isLive)));
// Not with its events alone: they may have come before the list could be read.
history.addEventListener("change", playAwaited);

async function refresh() {
  try {
    const [health] = await Promise.all([getHealth(), models.refresh(), history.refresh()]);
    setText(byId("hint"), health.hint ?? "");
    byId("hint").hidden = !health.hint;
    setText(byId("device"), health.device);
    byId("device").hidden = false;
    models.limit(health);
    make.limit(health);
    showConnected(true);
  } catch {
    showConnected(false);
  }
}

function catchUp() {
  missedPeaks();
  refresh();
}

function showConnected(connected) {
  byId("gone").hidden = connected;
  setText(byId("gone"), connected ? "" : "The server can’t be reached. Trying again …");
}

refresh();
listen(
  {
    job: (job) => history.update(job),
    removed: ({ id }) => history.remove(id),
    progress: (event) => history.updateProgress(event),
    peaks: (event) => history.addPeaks(event),
    models: (list) => models.show(list),
    reset: catchUp,
  },
  (connected) => {
    // Before it was connected, events were missed.
    if (connected) catchUp();
    else showConnected(false);
  },
);
