// A menu below a button.

import { el, icon } from "./dom.js";

/**
 * @param {HTMLElement} button
 * @param {(null|{icon: string, label: string, action?: function(): void, href?: string})[]} items
 *     null is a line; `href` is a file to download
 */
export function openMenu(button, items) {
  const menu = el("div", { class: "menu", popover: "auto", role: "menu", "aria-label": button.getAttribute("aria-label") });
  for (const item of items) {
    if (!item) {
      menu.append(el("hr", {}));
      continue;
    }
    const content = [icon(item.icon), item.label];
    menu.append(
      item.href
        ? el("a", { role: "menuitem", tabindex: "-1", href: item.href, download: true, onclick: () => menu.hidePopover() }, ...content)
        : el("button", { role: "menuitem", tabindex: "-1", type: "button", onclick: () => (menu.hidePopover(), item.action()) }, ...content),
    );
  }
  const entries = [...menu.querySelectorAll("[role=menuitem]")];
  menu.addEventListener("keydown", (event) => {
    const at = entries.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: entries.length - 1 }[event.key];
    if (event.key === "Tab") menu.hidePopover();
    if (to === undefined) return;
    event.preventDefault();
    entries.at(to % entries.length).focus();
  });
  menu.addEventListener("toggle", (event) => {
    button.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "closed") menu.remove();
  });

  document.body.append(menu);
  menu.showPopover();
  const place = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const below = place.bottom + 4 + height < innerHeight;
  menu.style.left = `${Math.max(8, Math.min(place.right - width, innerWidth - width - 8))}px`;
  menu.style.top = `${Math.max(8, below ? place.bottom + 4 : place.top - 4 - height)}px`;
  entries[0].focus();
}
