// A page that says why there is nothing to show: checks whether that has changed, and then reloads.

import { reload, restorePlace } from "./reload.js";
import { UnreachableError, request } from "./request.js";

const LOST_MS = 2_000; // a restarted database answers within seconds
const LONGEST_MS = 30_000; // as often as the other pages update

const { status } = document.getElementById("main").dataset;
let wait = status === "503" ? LOST_MS : LONGEST_MS;
let timer;

async function look() {
  clearTimeout(timer);
  if (document.visibilityState === "visible") {
    try {
      const options = { method: "HEAD", headers: { accept: "text/html" }, cache: "no-store" };
      const found = await request(location.href, (response) => String(response.status), options);
      if (found !== status) return reload("The page is available now.");
    } catch (error) {
      if (!(error instanceof UnreachableError)) throw error; // the API cannot be reached either
    }
    wait = Math.min(2 * wait, LONGEST_MS);
  }
  timer = setTimeout(look, wait);
}

restorePlace();
document.addEventListener("visibilitychange", look);
timer = setTimeout(look, wait);
