// Keys that work everywhere on the page. In a text field only those with Ctrl or Cmd do.

import { showKeys } from "./dialog.js";
import { byId } from "./dom.js";
import { history } from "./history.js";
import { make } from "./make.js";
import { player } from "./player.js";

const SECONDS = 5; // of Shift + arrow

const KEYS = {
  " ": () => player.toggle(),
  n: () => player.skip(1),
  p: () => player.skip(-1),
  l: () => player.setLoop(!player.loop),
  f: () => history.cards.get(player.job?.id)?.favourite.click(),
  m: () => byId("prompt").focus(),
  "/": () => byId("search").focus(),
  "?": () => showHelp(),
};
const MOVES = { ArrowRight: SECONDS, ArrowLeft: -SECONDS };

const HELP = [
  ["Ctrl/⌘ ↵", "Make"],
  ["Ctrl/⌘ ⇧ ↵", "Stop"],
  ["Space", "Play or pause"],
  ["N, P", "Next, previous clip"],
  ["⇧ ←, ⇧ →", "5 s back, 5 s on"],
  ["←, →", "On a waveform: 1 s"],
  ["L", "Loop"],
  ["F", "Favourite: what plays"],
  ["M", "To the prompt"],
  ["/", "To the search"],
  ["?", "These keys"],
];

const showHelp = () => showKeys(HELP);

/** Whether the element needs the key itself. */
function takes(element, key) {
  if (element.matches("textarea, select, input:not([type=range], [type=checkbox], [type=radio])")) return true;
  return key === " " && element.matches("button, a, summary, input") && element !== clicked;
}

/** The button that has the focus because it was clicked: the space bar isn't meant for it. */
let clicked = null;

function followFocus() {
  addEventListener("pointerdown", (event) => (clicked = event.target.closest("button")));
  addEventListener("focusin", (event) => event.target !== clicked && (clicked = null));
  // A button is pressed when the space bar comes up.
  addEventListener("keyup", (event) => event.key === " " && event.target === clicked && event.preventDefault());
}

export function startKeys() {
  followFocus();
  byId("help").addEventListener("click", showHelp);
  addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open], .menu")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (event.shiftKey) byId("stop").click();
      else make.submit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || takes(event.target, event.key)) return;
    if (event.shiftKey && event.key in MOVES && player.clip) {
      event.preventDefault();
      player.seek(player.sound.time + MOVES[event.key]);
    } else if (KEYS[event.key]) {
      event.preventDefault();
      KEYS[event.key]();
    }
  });
}
