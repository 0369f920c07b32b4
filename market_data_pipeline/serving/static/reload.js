// Reloads a page whose structure has changed, and returns the reader to where they were.

const KEY = "market-data-place";

export function reload(sentence) {
  const at = document.activeElement;
  const focus = at?.id ? `#${CSS.escape(at.id)}` : at?.hasAttribute("href") ? `a[href="${CSS.escape(at.getAttribute("href"))}"]` : null;
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ path: location.pathname, focus, sentence }));
  } catch {
    // storage may be forbidden; the reader then starts at the top
  }
  location.reload(); // the browser keeps the scroll position itself
}

export function restorePlace() {
  let place = null;
  try {
    place = JSON.parse(sessionStorage.getItem(KEY));
    sessionStorage.removeItem(KEY);
  } catch {
    // as above
  }
  if (place?.path !== location.pathname) return;
  if (place.focus) document.querySelector(place.focus)?.focus({ preventScroll: true });
  document.getElementById("changes").textContent = place.sentence;
}
