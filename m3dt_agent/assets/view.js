// What a page of `m3dt view` does: tables sort and filter, figures are drawn, the panel shows the task whose row was clicked.
// Text from files only ever becomes text: nothing here writes HTML.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
const BASE = {
  font: { family: "system-ui, sans-serif", size: 12, color: "#222" },
  margin: { l: 56, r: 16, t: 36, b: 44 },
  paper_bgcolor: "#fff",
  plot_bgcolor: "#fff",
  hoverlabel: { align: "left" },
};

const all = (selector, from = document) => [...from.querySelectorAll(selector)];

// -- tables ----------------------------------------------------------------------------------------------------------------

function sortKey(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
  const text = cell.textContent;
  return text === "-" || text === "" ? null : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(table, column) {
  const headers = all("thead th", table);
  const up = headers[column].getAttribute("aria-sort") !== "ascending";
  headers.forEach((header) => header.removeAttribute("aria-sort"));
  headers[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [sortKey(row, column), row]);
  keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : up ? compare(a, b) : compare(b, a)));
  body.append(...keyed.map(([, row]) => row));
}

function filter(field) {
  const table = document.getElementById(field.dataset.table);
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.querySelector(`output[data-count="${field.dataset.table}"]`).value = `${shown} of ${rows.length}`;
}

// -- figures ---------------------------------------------------------------------------------------------------------------

function draw(place, traces, layout) {
  const title = layout.title && { x: 0, xref: "paper", xanchor: "left", font: { size: 13 }, ...layout.title };
  return Plotly.react(place, traces, { ...BASE, ...layout, title }, CONFIG);
}

function show(task) {
  if (!Object.hasOwn(DATA.panels.tasks, task)) return;
  const found = DATA.panels.tasks[task];
  document.getElementById("chosen").textContent = task;
  for (const row of all("tr[data-key]")) row.setAttribute("aria-selected", String(row.dataset.key === task));
  for (const figure of all("figure[data-of]")) figure.hidden = figure.dataset.of !== task;
  for (const place of all("[data-slot]")) {
    const traces = found[place.dataset.slot];
    place.hidden = traces === undefined;
    if (traces !== undefined) draw(place, traces, DATA.panels.layouts[place.dataset.slot]);
  }
}

for (const table of all("table")) {
  all("thead th", table).forEach((header, column) => header.addEventListener("click", () => sortBy(table, column)));
  table.tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row !== null) show(row.dataset.key);
  });
}
for (const field of all("input[data-table]")) field.addEventListener("input", () => filter(field));
for (const place of all("[data-plot]")) {
  const figure = DATA.plots[place.dataset.plot];
  draw(place, figure.data, figure.layout);
}
if (document.getElementById("panel") !== null) {
  const drawn = document.querySelector("figure[data-of]:has(img)");
  show(drawn === null ? Object.keys(DATA.panels.tasks)[0] : drawn.dataset.of);
}
