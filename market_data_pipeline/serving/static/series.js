// The page of a series: draws its bars and the features that the reader switches on, and keeps them up to date.

import { keepLive } from "./live.js";
import { SeriesChart } from "./chart.js";
import { UnreachableError, request } from "./request.js";

const NEWEST = 600; // bars at first: three sessions of 5-minute ones, as many as fit a wide screen
const OLDER = 1000; // more at a time as the reader goes back
const TABLE_ROWS = 30;
const CHOICE = "market-data-features";
const AT_FIRST = ["volatility_20", "trend_regime"];

const frame = document.getElementById("chart"); // absent while nothing is held
const boxes = [...document.querySelectorAll("#features input")];
const table = document.getElementById("bars-table");

let records = [];
let whole = false; // there are no older bars
let loading = false;
let chart = null;

function chosen() {
  return boxes.filter((box) => box.checked).map((box) => ({ name: box.value, kind: box.dataset.kind, labels: box.dataset.labels.split(" ") }));
}

function restoreChoice() {
  let names = AT_FIRST;
  try {
    names = JSON.parse(localStorage.getItem(CHOICE)) ?? AT_FIRST;
  } catch {
    // storage may be forbidden or hold something else
  }
  for (const box of boxes) box.checked = names.includes(box.value);
}

function choose() {
  try {
    localStorage.setItem(CHOICE, JSON.stringify(chosen().map(({ name }) => name)));
  } catch {
    // as above
  }
  chart.show(chosen());
  fillTable();
}

async function fetchRecords(parameters) {
  const { root, symbol, timeframe, source } = frame.dataset;
  const path = source === "features" ? "features/quant" : "bars";
  const query = new URLSearchParams({ timeframe, ...parameters });
  const address = `${root}api/v1/${path}/${encodeURIComponent(symbol)}?${query}`;
  const { ok, answer } = await request(address, async (response) => ({ ok: response.ok, answer: await response.json() }));
  if (!ok) throw new Error(answer.detail);
  return answer[source].map((record) => ({ ...record, time: Date.parse(record.ts) / 1000 }));
}

async function loadOlder() {
  if (whole || loading || !records.length) return;
  loading = true;
  try {
    const older = await fetchRecords({ limit: OLDER, end: records[0].ts });
    whole = older.length < OLDER;
    records = [...older, ...records];
    draw();
  } catch (error) {
    whole = true; // otherwise every move would request them again
    say(`Older bars could not be loaded: ${error.message}`);
  } finally {
    loading = false;
  }
}

// New bars, and corrections of the newest ones, without moving the chart.
async function loadNewer() {
  if (loading) return;
  if (!records.length) return loadFirst(); // the database was unreachable, or there were none
  const since = records[Math.max(records.length - 100, 0)];
  const newer = await fetchRecords({ limit: 1000, start: since.ts });
  records = [...records.filter(({ time }) => time < since.time), ...newer];
  draw();
}

function draw() {
  chart.setRecords(records);
  const [first, last] = [records[0], records.at(-1)];
  frame.setAttribute(
    "aria-label",
    `Candlestick chart of ${frame.dataset.symbol} ${frame.dataset.timeframe}: ${records.length} bars from ${first.ts} to ${last.ts}, last close ${last.close}`,
  );
  fillTable();
}

function say(sentence) {
  document.getElementById("readout").textContent = sentence;
}

function fillTable() {
  if (!table.open) return;
  const names = ["open", "high", "low", "close", "volume", ...chosen().map(({ name }) => name)];
  const cell = (tag, text, number) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (number) made.className = "number";
    return made;
  };
  const head = document.createElement("tr");
  for (const name of ["bar", ...names]) head.append(Object.assign(cell("th", name, name !== "bar"), { scope: "col" }));
  const body = records.slice(-TABLE_ROWS).reverse().map((record) => {
    const row = document.createElement("tr");
    row.append(Object.assign(cell("th", record.ts), { scope: "row" }));
    for (const name of names) {
      const made = cell("td", SeriesChart.words(record[name]), true);
      made.dataset.label = name;
      row.append(made);
    }
    return row;
  });
  table.querySelector("thead").replaceChildren(head);
  table.querySelector("tbody").replaceChildren(...body);
}

async function begin() {
  restoreChoice();
  const corrected = new Set([...document.querySelectorAll("#corrections-live tr[data-ts]")].map((row) => Number(row.dataset.ts)));
  chart = new SeriesChart(frame, document.getElementById("readout"), corrected, loadOlder);
  chart.show(chosen());
  for (const box of boxes) box.addEventListener("change", choose);
  document.getElementById("no-features")?.addEventListener("click", () => {
    for (const box of boxes) box.checked = false;
    choose();
  });
  table.addEventListener("toggle", fillTable);
  addEventListener("themechange", () => chart.paint());
  for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", () => chart.paint());
  await loadFirst();
}

async function loadFirst() {
  loading = true;
  try {
    records = await fetchRecords({ limit: NEWEST });
    whole = records.length < NEWEST;
    if (records.length) draw();
    else say("There are no bars with features yet.");
    requestAnimationFrame(() => (frame.dataset.drawn = records.length)); // after the chart's own, which paints
  } catch (error) {
    say(`The bars could not be loaded: ${error.message}`);
  } finally {
    loading = false;
  }
}

if (frame) begin();
keepLive({ after: () => frame && loadNewer().catch((error) => say(`Newer bars could not be loaded: ${error.message}`)) });

// --- names of symbols, where they are too many to stand in the page

const names = document.getElementById("symbols");
if (names.dataset.from) {
  const field = document.querySelector("input[list='symbols']");
  let typing = null;
  field.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(async () => {
      const typed = field.value.trim().toUpperCase();
      try {
        const found = await request(`${names.dataset.from}?${new URLSearchParams({ after: typed, limit: 20 })}`, (response) => response.json());
        const begun = (found.symbols ?? []).filter(({ symbol }) => symbol.startsWith(typed));
        names.replaceChildren(...begun.map(({ symbol }) => Object.assign(document.createElement("option"), { value: symbol })));
      } catch (error) {
        if (!(error instanceof UnreachableError)) throw error; // a name can be typed without them
      }
    }, 200);
  });
}
