"use strict";
// Labels cells by number keys. What was said is kept by the browser if it allows, and leaves the page as a file.
const $ = (id) => document.getElementById(id);
const make = (tag, ...children) => { const one = document.createElement(tag); one.append(...children); return one; };
const data = JSON.parse($("data").textContent);
const key = `plateloom:${data.token}`;
const state = { answers: {}, past: [], who: "", exported: true };
const shown = data.channels.map(() => ({ on: true, gain: 1 }));
const planes = new Map();
let current = 0;
let storage = true;

function keep() {
  try { localStorage.setItem(key, JSON.stringify(state)); } catch { storage = false; }
  if (!storage) tell("This browser does not keep labels when the page is closed. Export them before.");
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(key) ?? "{}");
    if (kept && typeof kept.answers === "object") Object.assign(state, kept);
  } catch { storage = false; }
}

function tell(text) { $("note").textContent = text; $("note").hidden = !text; }

// The gray values of a cell's channels.
async function load(cell) {
  if (!planes.has(cell)) {
    planes.set(cell, Promise.all([...data.cells[cell].planes, data.cells[cell].outlines].map(async (address, i) => {
      const image = new Image();
      image.src = address;
      await image.decode();
      if (i === data.channels.length) return image;
      const canvas = make("canvas");
      canvas.width = canvas.height = data.side;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, data.side, data.side).data;
    })));
  }
  return planes.get(cell);
}

async function draw(canvas, cell, { views = shown, outlines = false, bar = false } = {}) {
  const parts = await load(cell);
  const mixed = new ImageData(data.side, data.side);
  const alone = views.filter((view) => view.on).length === 1;
  data.channels.forEach((channel, c) => {
    if (!views[c].on) return;
    const color = alone ? [255, 255, 255] : [1, 3, 5].map((i) => parseInt(channel.color.slice(i, i + 2), 16));
    for (let i = 0; i < mixed.data.length; i += 4) {
      const value = Math.min(255, parts[c][i] * views[c].gain) / 255;
      for (let k = 0; k < 3; k++) mixed.data[i + k] += value * color[k]; // the array clips at 255
    }
  });
  for (let i = 3; i < mixed.data.length; i += 4) mixed.data[i] = 255;
  const small = make("canvas");
  small.width = small.height = data.side;
  small.getContext("2d").putImageData(mixed, 0, 0);
  if (canvas === $("view") && cell !== current) return; // another cell's turn has come meanwhile
  const context = canvas.getContext("2d");
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  if (outlines) context.drawImage(parts[data.channels.length], 0, 0, canvas.width, canvas.height);
  if (bar) drawBar(context, canvas.width);
}

function drawBar(context, side) {
  const length = data.bar.share * side, x = side - length - 16, y = side - 20;
  context.fillStyle = "#fff";
  context.strokeStyle = "#000";
  context.lineWidth = 4;
  context.fillRect(x, y, length, 6);
  context.font = "600 19px sans-serif";
  context.textAlign = "center";
  context.strokeText(data.bar.text, x + length / 2, y - 8);
  context.fillText(data.bar.text, x + length / 2, y - 8);
}

const answered = (cell) => state.answers[cell + 1];

function refresh() {
  const answers = Object.values(state.answers), total = data.cells.length;
  const unsure = answers.filter((answer) => answer.class === "").length;
  $("bar").value = answers.length;
  $("progress").textContent = `${answers.length} of ${total}` + (unsure ? `, ${unsure} unsure` : "");
  const mine = answered(current);
  data.classes.forEach((name, i) => {
    const button = $("classes").children[i];
    button.setAttribute("aria-pressed", mine?.class === name);
    button.lastChild.textContent = answers.filter((answer) => answer.class === name).length;
  });
  $("unsure").setAttribute("aria-pressed", mine?.class === "");
  $("undo").disabled = !state.past.length;
  $("export").disabled = !answers.length;
  $("place").textContent = `cell ${current + 1} of ${total}`;
  data.cells.forEach((_, cell) => {
    const tile = $("gallery").children[cell], answer = answered(cell);
    tile.className = answer ? (answer.class === "" ? "unsure" : "labeled") : "";
    tile.style.setProperty("--color", answer?.class ? data.colors[data.classes.indexOf(answer.class)] : "");
    tile.lastChild.hidden = !answer;
    tile.lastChild.textContent = answer?.class ? data.classes.indexOf(answer.class) + 1 : "?";
    tile.setAttribute("aria-current", cell === current);
    tile.setAttribute("aria-label", `cell ${cell + 1}, ${answer ? answer.class || "unsure" : "no label"}`);
  });
  if (answers.length === total && !state.exported) tell("Every cell has its label. Now export them.");
  return draw($("view"), current, { outlines: $("outlines").checked, bar: true });
}

function go(cell) {
  current = Math.max(0, Math.min(data.cells.length - 1, cell));
  return refresh();
}

function answer(name) {
  state.past.push({ cell: current, before: answered(current) ?? null });
  state.answers[current + 1] = { class: name, when: new Date().toISOString() };
  state.exported = false;
  tell("");
  keep();
  const open = data.cells.map((_, i) => (current + 1 + i) % data.cells.length).find((cell) => !answered(cell));
  return go(open ?? current);
}

function undo() {
  const last = state.past.pop();
  if (!last) return;
  if (last.before) state.answers[last.cell + 1] = last.before;
  else delete state.answers[last.cell + 1];
  state.exported = false;
  tell("");
  keep();
  return go(last.cell);
}

// All channels, then each alone, then all again.
function cycle() {
  const on = shown.filter((view) => view.on).length;
  const next = on === 1 ? shown.findIndex((view) => view.on) + 1 : 0;
  shown.forEach((view, c) => { view.on = next >= shown.length || c === next; });
  document.querySelectorAll("#channels input[type=checkbox]").forEach((box, c) => { box.checked = shown[c].on; });
  return refresh();
}

function save() {
  const labels = Object.entries(state.answers).map(([cell, said]) => ({ cell: Number(cell), ...said }));
  labels.sort((a, b) => (a.when < b.when ? -1 : a.when > b.when ? 1 : a.cell - b.cell));
  const found = { format: "plateloom-annotation-1", screen: data.screen, round: data.round, token: data.token, who: state.who, labels };
  const text = JSON.stringify(found, null, 1) + "\n";
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const words = [data.screen, "round", String(data.round).padStart(2, "0"), state.who].filter(Boolean);
  link.download = words.join("-").replace(/[^A-Za-z0-9._-]+/g, "_") + ".json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  $("text").value = text;
  $("copy").hidden = false;
  state.exported = true;
  keep();
  if (storage) tell(`Saved as ${link.download}, where your browser keeps downloads. Next: plateloom annotate SCREEN --import ${link.download}`);
}

function build() {
  data.classes.forEach((name, i) => {
    const button = make("button", make("kbd", String(i + 1)), make("span", name), make("span", "0"));
    button.type = "button";
    button.style.setProperty("--color", data.colors[i]);
    button.addEventListener("click", () => answer(name));
    $("classes").append(button);
  });
  data.channels.forEach((channel, c) => {
    const box = make("input"), gain = make("input"), swatch = make("span");
    Object.assign(box, { type: "checkbox", checked: true });
    Object.assign(gain, { type: "range", min: -2, max: 2, step: 0.1, value: 0, title: "brightness" });
    gain.setAttribute("aria-label", `brightness of ${channel.name}`);
    swatch.className = "swatch";
    swatch.style.setProperty("--color", channel.color);
    box.addEventListener("change", () => { shown[c].on = box.checked; refresh(); });
    gain.addEventListener("input", () => { shown[c].gain = 2 ** Number(gain.value); refresh(); });
    $("channels").append(make("label", box, swatch, channel.name), gain);
  });
  data.cells.forEach((_, cell) => {
    const canvas = make("canvas"), tile = make("button", canvas, make("b"));
    canvas.width = canvas.height = 140;
    tile.type = "button";
    tile.addEventListener("click", () => go(cell));
    $("gallery").append(tile);
    draw(canvas, cell, { views: data.channels.map(() => ({ on: true, gain: 1 })) });
  });
  $("unsure").addEventListener("click", () => answer(""));
  $("undo").addEventListener("click", undo);
  $("previous").addEventListener("click", () => go(current - 1));
  $("next").addEventListener("click", () => go(current + 1));
  $("cycle").addEventListener("click", cycle);
  $("outlines").addEventListener("change", refresh);
  $("export").addEventListener("click", save);
  $("who").value = state.who;
  $("who").addEventListener("input", () => { state.who = $("who").value.trim(); keep(); });
  $("who").addEventListener("keydown", (event) => { if (event.key === "Enter") $("who").blur(); }); // back to the number keys
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === $("who") || event.target === $("text")) return;
  const actions = {
    u: undo, Backspace: undo, 0: () => answer(""), c: cycle,
    ArrowLeft: () => go(current - 1), ArrowRight: () => go(current + 1),
    o: () => { $("outlines").checked = !$("outlines").checked; refresh(); },
  };
  data.classes.forEach((name, i) => { actions[i + 1] = () => answer(name); });
  if (!Object.hasOwn(actions, event.key) || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  if (!event.repeat || event.key.startsWith("Arrow")) actions[event.key]();
});

addEventListener("beforeunload", (event) => { if (!storage && !state.exported) event.preventDefault(); });

restore();
build();
const open = data.cells.findIndex((_, cell) => !answered(cell));
go(open < 0 ? 0 : open);
