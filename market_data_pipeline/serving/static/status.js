// The status page: applies the filter at once, moves through the matrix by keyboard, announces what an update changed.
// The server filters: without scripts the form has a button.

import { keepLive } from "./live.js";

const WORDS = { outside: "outside RPO" };

const TYPING_MS = 200; // a reader who types on does not want the answer to what was typed

const main = document.getElementById("main");
const filter = document.getElementById("filter"); // absent while there is nothing to show
let current = null; // the cell that Tab reaches

// --- the matrix, by keyboard: one stop for Tab, arrows within (roving tabindex)

function rows() {
  return [...main.querySelectorAll(".matrix tbody tr")].filter((row) => row.checkVisibility());
}

function cellsOf(row) {
  return [...row.querySelectorAll("td a")];
}

function makeCurrent(cell) {
  if (current && current !== cell) current.tabIndex = -1;
  current = cell ?? null;
  if (current) current.tabIndex = 0;
}

function rove() {
  for (const cell of main.querySelectorAll(".matrix td a")) if (cell !== current) cell.tabIndex = -1;
  const reachable = current?.isConnected && current.checkVisibility();
  makeCurrent(reachable ? current : rows().length ? cellsOf(rows()[0])[0] : null);
}

function move(event) {
  const cell = event.target.closest?.(".matrix td a");
  if (!cell || event.altKey || event.metaKey) return;
  const all = rows();
  const row = all.indexOf(cell.closest("tr"));
  const cells = cellsOf(all[row]);
  const column = cells.indexOf(cell);
  const last = cells.length - 1;
  const [toRow, toColumn] =
    {
      ArrowRight: [row, column + 1],
      ArrowLeft: [row, column - 1],
      ArrowDown: [row + 1, column],
      ArrowUp: [row - 1, column],
      PageDown: [Math.min(row + 10, all.length - 1), column],
      PageUp: [Math.max(row - 10, 0), column],
      Home: event.ctrlKey ? [0, 0] : [row, 0],
      End: event.ctrlKey ? [all.length - 1, last] : [row, last],
    }[event.key] ?? [];
  if (toRow === undefined) return;
  event.preventDefault();
  const next = all[toRow] && cellsOf(all[toRow])[toColumn];
  if (!next) return;
  makeCurrent(next);
  next.focus();
}

// --- the filter

// The address of what the form asks for; what was not chosen is left out of it.
function wanted() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(filter)) {
    const chosen = name !== "order" || ![...filter.elements.order.options].find((one) => one.value === value).defaultSelected;
    if (value && (chosen || new URLSearchParams(location.search).has(name))) query.append(name, value);
  }
  return query.size ? `?${query}` : location.pathname;
}

function apply() {
  history.replaceState(history.state, "", wanted());
  update();
}

function begin() {
  document.getElementById("apply").hidden = true;
  let typing = null;
  filter.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    apply();
  });
  filter.addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(apply, event.target.type === "search" ? TYPING_MS : 0);
  });
  main.addEventListener("keydown", move);
  main.addEventListener("focusin", (event) => {
    const cell = event.target.closest?.(".matrix td a");
    if (cell) makeCurrent(cell);
  });
  main.addEventListener("toggle", rove, true);
  rove();
}

// --- updates

function counts() {
  const chips = [...main.querySelectorAll(".chip")];
  return new Map(chips.map((chip) => [chip.querySelector("input").value, chip.querySelector("b").textContent]));
}

function announce(before) {
  const changed = [...counts()].filter(([name, count]) => before.get(name) !== count);
  if (!changed.length) return;
  const words = changed.map(([name, count]) => `${count} ${WORDS[name] ?? name}, previously ${before.get(name)}`);
  document.getElementById("changes").textContent = `Changed: ${words.join("; ")}.`;
}

if (filter) begin();
const update = keepLive({
  before: counts,
  after: (before) => {
    if (!filter) return;
    rove();
    announce(before);
  },
});
const search = filter?.querySelector("[type=search]");
if (search && search.value !== search.defaultValue) apply(); // typed before this ran
