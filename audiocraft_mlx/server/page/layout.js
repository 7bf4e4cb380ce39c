// The height of the left column on a desk: what the window has left for it, so that Make stays in sight.

import { byId } from "./dom.js";

const MARGIN = 14; // CSS pixels
const oneColumn = matchMedia("(max-width: 820px)"); // as in page.css

export function startLayout() {
  const make = document.querySelector(".make");
  const player = byId("player");
  const fit = () => {
    const top = Math.max(MARGIN, make.parentElement.getBoundingClientRect().top);
    const height = innerHeight - top - player.offsetHeight - MARGIN;
    make.style.maxHeight = oneColumn.matches ? "" : `${Math.max(200, height)}px`;
  };
  // It opens at the end of the column, which is out of sight.
  const commands = byId("commands");
  commands.addEventListener("toggle", () => commands.open && commands.scrollIntoView({ block: "nearest" }));
  addEventListener("scroll", fit, { passive: true });
  addEventListener("resize", fit);
  // The lines at the top come and go; the player has its room while it is hidden, too.
  const sizes = new ResizeObserver(fit);
  for (const element of [document.body, player]) sizes.observe(element);
}
