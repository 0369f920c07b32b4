// Updates the parts of a page that carry `data-live`, without losing focus, scroll or the reader's choices.
// The server renders everything that is shown; without scripts the status page reloads itself.

import { reload, restorePlace } from "./reload.js";

const KEPT = new Set(["tabindex", "hidden", "open", "aria-pressed"]); // the reader's, not the server's

const trouble = document.getElementById("trouble");
const pause = document.getElementById("pause");
let paused = false;

// `before()` returns what `after(before)` compares with the updated page.
export function keepLive({ before = () => null, after = () => {} } = {}) {
  const update = async () => {
    try {
      const response = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
      if (!response.ok) {
        complain(response.status === 503 ? "The database cannot be reached." : `The API answered ${response.status}.`);
        return;
      }
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const was = before();
      if (!put(page)) return;
      trouble.hidden = true;
      after(was);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      complain("The API cannot be reached.");
    }
  };
  const due = () => {
    if (!paused && document.visibilityState === "visible") update();
  };
  const pausing = document.getElementById("pausing");
  pausing.hidden = false;
  restorePlace();
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume updates" : "Pause updates";
    due();
  });
  document.addEventListener("visibilitychange", due);
  setInterval(due, pausing.dataset.seconds * 1000);
}

function put(page) {
  const kind = (one) => one.getElementById("main").dataset.kind;
  const live = [...document.querySelectorAll("[data-live]")];
  const fresh = new Map([...page.querySelectorAll("[data-live]")].map((part) => [part.id, part]));
  if (kind(page) !== kind(document) || live.length !== fresh.size || live.some((part) => !fresh.has(part.id))) {
    reload("The page has changed and was reloaded."); // a tier, the first bars or their features appeared or disappeared
    return false;
  }
  for (const part of live) {
    Idiomorph.morph(part, fresh.get(part.id), {
      ignoreActiveValue: true,
      callbacks: { beforeAttributeUpdated: (name) => !KEPT.has(name) },
    });
  }
  return true;
}

function complain(sentence) {
  const text = `${sentence} This page shows the state of ${document.querySelector("#updated time").textContent}.`;
  if (trouble.textContent !== text) trouble.textContent = text;
  trouble.hidden = false;
}
