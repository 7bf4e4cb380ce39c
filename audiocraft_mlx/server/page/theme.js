// Light or dark: the system's, or what the toggle was last set to. Not a module: it runs before the first paint.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const saved = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage is switched off
    }
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  if (["light", "dark"].includes(saved())) root.dataset.theme = saved();

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const changed = () => {
      button.setAttribute("aria-pressed", String(isDark()));
      document.dispatchEvent(new Event("theme"));
    };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem("theme", root.dataset.theme);
      } catch {
        // It holds until the page is closed.
      }
      changed();
    });
    system.addEventListener("change", changed);
    changed();
  });
})();
