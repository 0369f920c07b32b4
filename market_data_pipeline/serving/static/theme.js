// The colour scheme: the system's unless the reader chose one. Runs before the first paint, so that nothing flashes.
"use strict";
(() => {
  const KEY = "market-data-theme";
  const CHOICES = ["auto", "light", "dark"];
  const root = document.documentElement;
  let choice = "auto";

  function apply() {
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
  }

  try {
    const stored = localStorage.getItem(KEY);
    if (CHOICES.includes(stored)) choice = stored;
  } catch {
    // storage may be forbidden; a choice then lasts as long as the page
  }
  apply();

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => (button.textContent = `Theme: ${choice}`);
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      try {
        localStorage.setItem(KEY, choice);
      } catch {
        // as above
      }
      apply();
      label();
      dispatchEvent(new Event("themechange"));
    });
  });
})();
