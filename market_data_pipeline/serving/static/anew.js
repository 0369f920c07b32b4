// Loads a page again whose kind has changed, and puts the reader back to where they were.

const KEY = "market-data-place";

export function loadAnew(sentence) {
  const at = document.activeElement;
  const focus = at?.id ? `#${CSS.escape(at.id)}` : at?.hasAttribute("href") ? `a[href="${CSS.escape(at.getAttribute("href"))}"]` : null;
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ path: location.pathname, focus, sentence }));
  } catch {
    // storage may be forbidden; the reader then begins at the top
  }
  location.reload(); // the browser keeps the scroll position itself
}

export function putBack() {
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
