// Elements. Text always goes in as text: no HTML is ever made of a string.

const SVG = "http://www.w3.org/2000/svg";

/** @returns {HTMLElement} the element with this id */
export const byId = (id) => document.getElementById(id);

/**
 * @param {string} tag
 * @param {Object} attributes by name; `on…` are listeners, false and null are left out
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** @param {string} name of a symbol in index.html, without its `icon-` */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "use"));
  return setIcon(svg, name);
}

export function setIcon(svg, name) {
  const address = `#icon-${name}`;
  if (svg.firstElementChild.getAttribute("href") !== address) svg.firstElementChild.setAttribute("href", address);
  svg.classList.toggle("waiting", name === "wait");
  return svg;
}

/** A button with an icon and, unless it is `label` alone, a text. */
export function iconButton(name, label, onclick, { text = "", ...attributes } = {}) {
  return el(
    "button",
    { type: "button", class: text ? null : "icon", "aria-label": text ? null : label, title: label, onclick, ...attributes },
    icon(name),
    ...(text ? [el("span", {}, text)] : []),
  );
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** localStorage, which may be switched off. */
export const memory = {
  get(name) {
    try {
      return JSON.parse(localStorage.getItem(name));
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(name, JSON.stringify(value));
    } catch {
      // It holds until the page is closed.
    }
  },
};
