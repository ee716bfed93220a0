// Light, dark, or the system's choice; it runs before anything is drawn, so that the page does not
// flash.
"use strict";

{
  const THEMES = ["auto", "light", "dark"];
  const KEY = "optpolined-theme";

  const kept = () => {
    try {
      const theme = localStorage.getItem(KEY);
      return THEMES.includes(theme) ? theme : "auto";
    } catch {
      return "auto"; // storage may be disabled
    }
  };

  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  };

  apply(kept());
  addEventListener("DOMContentLoaded", () => {
    apply(kept());
    document.getElementById("theme").addEventListener("click", () => {
      const { theme } = document.documentElement.dataset;
      const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      apply(next);
      try {
        localStorage.setItem(KEY, next);
      } catch {
        // then the choice lasts as long as the page
      }
    });
  });
}
