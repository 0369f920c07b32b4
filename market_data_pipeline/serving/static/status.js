// The status page: filters the matrix, moves through it by keyboard, and announces what an update changed.

import { keepLive } from "./live.js";

const WORDS = { outside: "outside RPO" };

const main = document.getElementById("main");
const search = document.getElementById("search"); // absent while there is nothing to show
const shown = new Set(); // which chips are pressed; none means everything
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

function matches(row) {
  const text = search.value.trim().toUpperCase();
  if (text && !row.dataset.symbol.toUpperCase().includes(text)) return false;
  return !shown.size || [...shown].some((name) => row.querySelector(`td.${name}`));
}

function filter() {
  const all = main.querySelectorAll(".matrix tbody tr");
  let count = 0;
  for (const row of all) {
    row.hidden = !matches(row);
    if (!row.hidden) count += 1;
  }
  for (const table of main.querySelectorAll("table.matrix")) table.hidden = !table.querySelector("tbody tr:not([hidden])");
  for (const tier of main.querySelectorAll("details.tier")) tier.hidden = !tier.querySelector("table.matrix:not([hidden])");
  const filtered = count < all.length;
  document.getElementById("nothing").hidden = count > 0;
  document.getElementById("shown").textContent = filtered ? `${count} of ${all.length} symbols` : "";
  rove();
}

function begin() {
  document.getElementById("filter").hidden = false;
  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", filter);
  for (const chip of main.querySelectorAll("button[data-show]")) {
    chip.addEventListener("click", () => {
      const pressed = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", String(pressed));
      if (pressed) shown.add(chip.dataset.show);
      else shown.delete(chip.dataset.show);
      filter();
    });
  }
  main.addEventListener("keydown", move);
  main.addEventListener("focusin", (event) => {
    const cell = event.target.closest?.(".matrix td a");
    if (cell) makeCurrent(cell);
  });
  for (const tier of main.querySelectorAll("details.tier")) tier.addEventListener("toggle", rove);
  filter();
}

// --- updates

function counts() {
  const chips = [...main.querySelectorAll("button[data-show]")];
  return new Map(chips.map((chip) => [chip.dataset.show, chip.querySelector("b").textContent]));
}

function announce(before) {
  const changed = [...counts()].filter(([name, count]) => before.get(name) !== count);
  if (!changed.length) return;
  const words = changed.map(([name, count]) => `${count} ${WORDS[name] ?? name.toLowerCase()}, previously ${before.get(name)}`);
  document.getElementById("changes").textContent = `Changed: ${words.join("; ")}.`;
}

if (search) begin();
keepLive({
  before: counts,
  after: (before) => {
    if (!search) return;
    filter();
    announce(before);
  },
});
