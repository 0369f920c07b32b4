// Updates the parts of a page that carry `data-live`, without losing focus, scroll or the reader's choices.
// The server renders everything that is shown; without scripts the status page reloads itself.

import { reload, restorePlace } from "./reload.js";
import { PATIENCE_SECONDS, UnreachableError, request } from "./request.js";

const KEPT = new Set(["tabindex", "hidden", "open", "aria-pressed"]); // the reader's, not the server's

const trouble = document.getElementById("trouble");
const pause = document.getElementById("pause");
const age = document.getElementById("age");
const AGE_MS = 5_000; // between two looks at how old the page is
let paused = false;
let updatedAt = performance.now();
let seenSince = updatedAt;

// `before()` returns what `after(before)` compares with the updated page. Returns what updates the page now.
export function keepLive({ before = () => null, after = () => {} } = {}) {
  let asked = 0;
  const update = async () => {
    const mine = ++asked;
    try {
      const { response, text } = await request(
        location.href, async (response) => ({ response, text: await response.text() }), { headers: { accept: "text/html" }, cache: "no-store" });
      if (mine !== asked) return; // another answer was requested since
      const page = new DOMParser().parseFromString(text, "text/html");
      if (!response.ok) {
        const reason = page.querySelector("[data-reason]")?.dataset.reason; // a page that says why it cannot be shown
        complain(reason ?? `The API answered ${response.status}.`);
        return;
      }
      const was = before();
      if (!put(page)) return;
      updatedAt = performance.now();
      trouble.hidden = true;
      showAge();
      after(was);
    } catch (error) {
      if (!(error instanceof UnreachableError)) throw error;
      if (mine === asked) complain(error.message);
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
  document.addEventListener("visibilitychange", () => (seenSince = performance.now()));
  setInterval(showAge, AGE_MS);
  return update;
}

// How long ago the page was updated, and a warning once that is longer than an update may take.
function showAge() {
  const now = performance.now();
  const longest = (Number(document.getElementById("pausing").dataset.seconds) + PATIENCE_SECONDS) * 1000;
  const seconds = Math.floor((now - updatedAt) / 1000);
  age.textContent = seconds * 1000 < AGE_MS ? "" : ` (${seconds < 120 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`} ago)`;
  // A hidden tab does not update; it has the time for an update once it is seen again.
  const isOld = !paused && document.visibilityState === "visible" && now - Math.max(updatedAt, seenSince) > longest;
  age.classList.toggle("old", isOld);
  if (isOld && trouble.hidden) complain("This page could not be updated.");
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
