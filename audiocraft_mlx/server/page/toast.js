// Short messages at the bottom, and what a screen reader is told.

import { byId, el, setText } from "./dom.js";

const SHOWN = 8000; // ms

/**
 * @param {string} text
 * @param {{label: string, action: function(): void}} [offer] a button, as undo
 */
export function toast(text, offer = null) {
  const box = el("div", { class: "toast" }, el("span", {}, text));
  const close = () => box.remove();
  let timer = setTimeout(close, SHOWN);
  if (offer) {
    box.append(
      el("button", { type: "button", onclick: () => (close(), offer.action()) }, offer.label),
    );
  }
  // It stays while it is pointed at or has the focus.
  for (const event of ["pointerenter", "focusin"]) box.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) {
    box.addEventListener(event, () => (clearTimeout(timer), (timer = setTimeout(close, SHOWN))));
  }
  const toasts = byId("toasts");
  toasts.append(box);
  while (toasts.children.length > 3) toasts.firstElementChild.remove();
}

/** Tell screen readers. */
export const say = (text) => setText(byId("said"), text);

/** Run `action`; a failure is a message. @returns {Promise<boolean>} whether it went well */
export async function attempt(action) {
  try {
    await action();
    return true;
  } catch (error) {
    toast(error.message);
    return false;
  }
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page on plain http, other than localhost, has no clipboard.
    const field = el("textarea", { class: "hidden" });
    field.value = text;
    const focused = document.activeElement;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    focused?.focus();
  }
  toast("Copied");
}
