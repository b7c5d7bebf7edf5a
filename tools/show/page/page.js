"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function element(tag, text, parent, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
}

// the partition graph: one drawing at a time, seen through a window that pans and zooms
const canvas = $("canvas");
let svg = null, shown = null, whole = null, view = null;

function show(name) {
  shown = name;
  canvas.innerHTML = data.drawings[name].svg;
  svg = canvas.querySelector("svg");
  const box = svg.viewBox.baseVal;
  whole = { x: box.x, y: box.y, w: box.width, h: box.height };
  svg.removeAttribute("width");
  svg.removeAttribute("height");
  svg.setAttribute("preserveAspectRatio", "xMidYMin meet");
  fit();
  $("fold").checked = name === "folded";
  const crumbs = $("crumbs");
  crumbs.textContent = "";
  if (name in data.blocks) {
    const back = element("a", "plan", crumbs);
    back.addEventListener("click", () => show("plan"));
    element("span", " ▸ " + data.blocks[name].title + ", every op", crumbs);
  } else {
    element("span", "plan", crumbs);
  }
  search();
}

function look() { svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${view.h}`); }

function fit() {
  const height = whole.w * canvas.clientHeight / canvas.clientWidth;
  view = { ...whole, h: Math.min(whole.h, Math.max(height, whole.w * 0.6)) };
  look();
}

function zoom(factor, x = 0.5, y = 0.5) {
  const w = view.w / factor, h = view.h / factor;
  view = { x: view.x + (view.w - w) * x, y: view.y + (view.h - h) * y, w, h };
  look();
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = canvas.getBoundingClientRect();
  zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}, { passive: false });

let held = null;
canvas.addEventListener("pointerdown", (event) => { held = { x: event.clientX, y: event.clientY, moved: false }; });
addEventListener("pointermove", (event) => {
  if (!held) return;
  const scale = Math.max(view.w / canvas.clientWidth, view.h / canvas.clientHeight);
  const dx = event.clientX - held.x, dy = event.clientY - held.y;
  held.moved = held.moved || Math.abs(dx) + Math.abs(dy) > 4;
  view.x -= dx * scale;
  view.y -= dy * scale;
  Object.assign(held, { x: event.clientX, y: event.clientY });
  look();
});
addEventListener("pointerup", (event) => {
  const clicked = held && !held.moved && event.target.closest && event.target.closest("#canvas g.node");
  held = null;
  if (clicked) choose(clicked);
});
for (const button of document.querySelectorAll("[data-zoom]"))
  button.addEventListener("click", () => Number(button.dataset.zoom) ? zoom(Number(button.dataset.zoom)) : fit());
$("fold").addEventListener("change", () => show($("fold").checked ? "folded" : "plan"));

function choose(node) {
  for (const old of canvas.querySelectorAll(".chosen")) old.classList.remove("chosen");
  node.classList.add("chosen");
  const cut = node.id.indexOf(":");
  const home = cut < 0 ? node.id : node.id.slice(0, cut), name = cut < 0 ? "" : node.id.slice(cut + 1);
  const block = data.blocks[data.drawings[shown].homes[home]];
  const found = block.items[name];
  describe(found || { title: block.title, facts: block.facts, moves: [], others: [] });
  if (shown !== data.drawings[shown].homes[home]) {
    const open = element("button", "open this block op by op", $("details"));
    open.addEventListener("click", () => show(data.drawings[shown].homes[home]));
  }
}

function describe(item) {
  const panel = $("details");
  panel.textContent = "";
  element("h3", item.title, panel);
  rows(panel, item.facts);
  if (item.moves.length) { element("h4", "sent", panel); rows(panel, item.moves); }
  if (item.others.length) {
    element("h4", "why: divided otherwise, a micro-batch would take longer by", panel);
    rows(panel, item.others);
  }
}

function rows(parent, list) {
  const table = element("table", undefined, parent);
  for (const cells of list) {
    const row = element("tr", undefined, table);
    for (const cell of cells) element("td", cell, row);
  }
}

function search() {
  const words = $("search").value.trim().toLowerCase();
  let hits = 0, first = null;
  for (const node of canvas.querySelectorAll("g.node")) {
    const hit = words && node.textContent.toLowerCase().includes(words);
    node.classList.toggle("hit", Boolean(hit));
    node.classList.toggle("dimmed", Boolean(words) && !hit);
    if (hit) { hits += 1; first = first || node; }
  }
  $("hits").textContent = words ? `${hits} found` : "";
  return first;
}
$("search").addEventListener("input", search);
$("search").addEventListener("keydown", (event) => {
  const first = event.key === "Enter" && search();
  if (!first) return;
  const box = first.getBBox(), group = canvas.querySelector("g.graph").getCTM(), own = svg.getCTM();
  const scale = group.a / own.a;
  view.x = whole.x + (box.x + box.width / 2) * scale + (group.e - own.e) / own.a - view.w / 2;
  view.y = whole.y + (box.y + box.height / 2) * scale + (group.f - own.f) / own.d - view.h / 2;
  look();
  choose(first);
});
show("plan");

// memory of the pipeline rank that is asked for
data.memory.forEach((_, rank) => { element("option", String(rank), $("rank")); });
$("rank").value = String(data.fullest);

function size(bytes) {
  for (const [unit, one] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (bytes >= one) return `${Number((bytes / one).toPrecision(3))} ${unit}`;
  return `${bytes} B`;
}

function hold() {
  const { second, ...kinds } = data.memory[Number($("rank").value)];
  const columns = { second };
  let below = second.map(() => 0);
  for (const [kind, bytes] of Object.entries(kinds)) {
    columns[`${kind} from`] = below;
    below = below.map((value, n) => value + bytes[n] / data.memoryUnit);
    columns[kind] = below;
    columns[`${kind} words`] = bytes.map(size);
  }
  for (const file of Bokeh.documents) {
    const source = file.get_model_by_name(data.memorySource);
    if (source) source.data = columns;
  }
}
$("rank").addEventListener("change", hold);

// the table of candidates: filters by column, sorted by a click on its head
const { columns, candidates } = data;
let order = { column: columns.length - 2, up: true };
const filters = columns.map((column) => {
  if (!column.filter) return null;
  const select = element("select", undefined, $("filters"));
  select.dataset.column = column.name;
  element("option", `any ${column.name}`, select).value = "";
  const values = [...new Set(candidates.map((row) => row.cells[columns.indexOf(column)]))];
  for (const value of values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }))) element("option", value, select);
  select.addEventListener("change", fill);
  return select;
});
const head = element("tr", undefined, document.querySelector("#candidates thead"));
columns.forEach((column, n) => {
  const cell = element("th", column.name, head, column.filter ? "" : "number");
  cell.addEventListener("click", () => { order = { column: n, up: order.column === n ? !order.up : true }; fill(); });
});
function fill() {
  const body = document.querySelector("#candidates tbody");
  body.textContent = "";
  const kept = candidates.filter((row) => filters.every((f, n) => !f || !f.value || f.value === row.cells[n]));
  const n = order.column;
  kept.sort((a, b) => (typeof a.keys[n] === "number" ? a.keys[n] - b.keys[n]
    : a.keys[n].localeCompare(b.keys[n], "en", { numeric: true })) * (order.up ? 1 : -1));
  for (const row of kept) {
    const made = element("tr", undefined, body, row.chosen ? "chosen" : "");
    row.cells.forEach((cell, k) => element("td", cell, made, columns[k].filter ? "" : "number"));
  }
}
fill();
