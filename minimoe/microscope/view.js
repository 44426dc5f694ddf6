/* What the page shows, and what its controls do. */
"use strict";

const SLICE_MS = 16; // of computing, between two looks at what the reader did
const LONGEST_TEXT = 100000; // characters; of a longer text the end is read
const MODE_NAMES = { float: "float", int8: "int8", w8a8: "int8 × int8", fp4: "FP4" };
const PER_CENT = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

const $ = (id) => document.getElementById(id);
const pause = () => new Promise((go) => setTimeout(go, 0));

function make(tag, text = "", attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* The model's reading of some tokens under some settings: a record for each, and the cache. */
class Reading {
  constructor(model, settings) {
    Object.assign(this, { model, settings, tokens: [], steps: [], cache: model.newCache() });
  }

  /* Reads `tokens`, of which the longest beginning that was read before is kept. */
  async read(tokens) {
    let kept = 0;
    while (kept < this.tokens.length && this.tokens[kept] === tokens[kept]) kept++;
    kept = Math.min(kept, tokens.length - 1); // the last is read again: its scores are needed
    this.tokens = tokens.slice();
    this.steps.length = this.cache.length = Math.max(kept, 0);
    let began = performance.now();
    for (const token of tokens.slice(kept)) {
      this.model.use(this.settings().mode);
      const { hidden, routes } = this.model.step(token, this.cache, this.settings().edits);
      this.logits = this.model.logits(hidden);
      this.steps.push({ token, routes, likeliest: largestOf(this.logits), nll: null, probabilities: softmax(this.logits.slice()) });
      if (performance.now() - began > SLICE_MS) {
        await pause();
        began = performance.now();
      }
    }
  }

  forget() {
    this.tokens = [];
  }

  /* Assignments of each expert of each layer, as shares of the layer's. */
  loads() {
    const { num_layers, num_experts, top_k } = this.model.config;
    const loads = Array.from({ length: num_layers }, () => new Float32Array(num_experts));
    for (const { routes } of this.steps)
      routes.forEach(({ experts }, layer) => experts.forEach((e) => (loads[layer][e] += 1 / (this.steps.length * top_k))));
    return loads;
  }

  bitsPerToken() {
    let bits = 0;
    for (let i = 1; i < this.steps.length; i++) bits -= Math.log2(this.steps[i - 1].probabilities[this.steps[i].token]);
    return bits / Math.max(1, this.steps.length - 1);
  }
}

const app = { busy: false, dirty: false, writing: false, picked: null, chips: [], tokens: [], cut: 0, left: 0 };

function noEdits({ num_layers, num_experts }) {
  return Array.from({ length: num_layers }, () => ({ bias: new Float32Array(num_experts), off: new Array(num_experts).fill(false) }));
}

const isEdited = () => app.edits.some(({ bias, off }) => bias.some((b) => b !== 0) || off.some(Boolean));
const differs = () => app.mode !== "float" || isEdited();

/* Reads header and weights, and draws the page for the first time. */
function start() {
  app.header = JSON.parse($("header").textContent);
  app.model = new Model(app.header, bytesOf($("weights").textContent));
  app.tokenizer = new Tokenizer(app.header.tokenizer);
  app.config = app.model.config;
  app.edits = noEdits(app.config);
  app.mode = "float";
  app.now = new Reading(app.model, () => ({ mode: app.mode, edits: app.edits }));
  app.plain = new Reading(app.model, () => ({ mode: "float", edits: null }));
  drawControls();
  $("text").value = app.header.samples[0].text;
  readText();
  compare();
}

function hue(expert) {
  const { num_experts } = app.config;
  return Math.round((expert * 360) / num_experts + (expert % 2 ? 0 : 8));
}

function drawControls() {
  const { config, header } = app, { total, active } = header.params;
  $("facts").textContent = `${(total / 1e6).toFixed(2)} million parameters, ${(active / 1e6).toFixed(2)} million active on a token; ` +
    `${config.num_layers} layers, ${config.top_k} of ${config.num_experts} experts each` +
    `${app.model.layers[0].shared ? ", and a shared one that all tokens use" : ""}; it reads ${config.context_length} tokens at once.`;
  $("legend").textContent = `Below a token, a row for each layer, the first on top: the numbers of its ${config.top_k} experts, ` +
    "the one with the larger weight first. ⊢ begins a text, · is a space, ↵ a line end; ‹f0 9f› are bytes of an unfinished character.";
  for (const { domain, text } of header.samples) {
    const button = make("button", domain, { type: "button" });
    button.onclick = () => { stopWriting(); $("text").value = text; readText(); };
    $("samples").append(button);
  }
  for (const mode of MODES) {
    const input = make("input", "", { type: "radio", name: "mode", value: mode });
    input.checked = mode === app.mode;
    input.onchange = () => { app.mode = mode; changed(); compare(); };
    $("modes").append(make("label", "", {}, input, ` ${MODE_NAMES[mode]}`));
  }
  for (const id of ["left", "right"]) {
    header.samples.forEach(({ domain }, i) => $(id).append(make("option", domain, { value: i })));
    $(id).append(make("option", "the text above", { value: "text" }));
    $(id).onchange = compare;
  }
  const second = header.samples.findIndex(({ domain }) => domain === "python");
  $("right").value = second > 0 ? second : Math.min(1, header.samples.length - 1);
  for (let i = 0; i < config.num_layers; i++) $("layer").append(make("option", `${i + 1}`, { value: i }));
  $("layer").value = config.num_layers - 1;
  $("layer").onchange = compare;
  drawLoadButtons();
  connect();
}

function connect() {
  $("text").oninput = () => { stopWriting(); readText(); };
  $("text").onpaste = (event) => { app.pastedReturns = event.clipboardData.getData("text").includes("\r"); };
  $("temperature").oninput = () => { $("temperature-value").textContent = (+$("temperature").value).toFixed(2); };
  $("write").onclick = () => (app.writing ? stopWriting() : write());
  $("off").onchange = () => { edit((one, e) => (one.off[e] = $("off").checked)); };
  $("bias").oninput = () => { edit((one, e) => (one.bias[e] = +$("bias").value)); };
  $("reset").onclick = () => { app.edits = noEdits(app.config); changed(); };
  $("close").onclick = () => { const { layer, expert } = app.picked; pick(null); app.buttons[layer][expert].focus(); };
  document.onkeydown = (event) => {
    if (event.key === "Escape") stopWriting();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("write").click();
  };
}

/* Text to tokens; the model reads the end of what is too long. */
function readText() {
  const whole = $("text").value, text = whole.slice(-LONGEST_TEXT);
  const tokens = app.tokenizer.encode(text), room = app.config.context_length - 1;
  app.cut = Math.max(0, tokens.length - room);
  app.unread = whole.length - text.length;
  app.tokens = [app.tokenizer.eot, ...tokens.slice(app.cut)];
  refresh();
}

function changed() {
  app.now.forget();
  refresh();
}

/* Computes and draws; what is asked for meanwhile is done after. */
async function refresh() {
  if (app.busy) return void (app.dirty = true);
  app.busy = true;
  do {
    app.dirty = false;
    await compute();
    draw();
  } while (app.dirty);
  app.busy = false;
}

async function compute() {
  const { tokens } = app; // the reader may type meanwhile
  await app.now.read(tokens);
  if (differs()) await app.plain.read(tokens);
}

/* Tokens one after the other. When the context is full, its later half is read again and the first is let go. */
async function write() {
  while (app.busy) await pause();
  Object.assign(app, { busy: true, writing: true, left: Math.max(1, Math.min(1000, Math.round(+$("count").value) || 1)) });
  $("write").textContent = "Stop";
  await compute();
  const began = performance.now();
  let written = 0, drawn = performance.now(), ended = false;
  while (app.writing && app.left-- > 0) {
    const token = sample(app.now.logits, +$("temperature").value);
    if ((ended = token === app.tokenizer.eot)) break;
    append(token);
    await compute();
    written++;
    if (performance.now() - drawn > SLICE_MS) {
      draw();
      await pause();
      drawn = performance.now();
    }
  }
  const seconds = (performance.now() - began) / 1000;
  if (written) $("speed").textContent = `${Math.round(written / seconds)} tokens/s in this browser, drawing included`;
  Object.assign(app, { busy: false, writing: false });
  $("write").textContent = "Write on";
  draw();
  if (ended) $("notice").textContent = "The model ended the text here.";
  if (app.dirty) refresh();
}

function append(token) {
  if (app.tokens.length === app.config.context_length) {
    const half = app.config.context_length >> 1;
    app.cut += app.tokens.length - 1 - half;
    app.tokens = [app.tokenizer.eot, ...app.tokens.slice(-half)];
  }
  app.tokens = [...app.tokens, token];
  app.written = [...(app.written || []), token];
  if (!app.before) app.before = $("text").value;
  $("text").value = app.before + app.tokenizer.decode(app.written);
}

function stopWriting() {
  app.writing = false;
  app.written = app.before = null;
}

/* One expert of one layer is looked at, or none (null). */
function pick(place) {
  app.picked = place;
  refresh();
}

function edit(change) {
  const { layer, expert } = app.picked;
  change(app.edits[layer], expert);
  changed();
}

function draw() {
  drawNotice();
  drawTokens();
  drawLoads();
  drawExpert();
  drawNext();
  drawChanges();
}

function drawNotice() {
  const said = [];
  if (app.unread) said.push(`The text has more than ${LONGEST_TEXT.toLocaleString("en")} characters: the first ${app.unread.toLocaleString("en")} were not read.`);
  if (app.cut)
    said.push(`The model reads ${app.config.context_length} tokens at once. ` +
      `Cut: the first ${app.cut.toLocaleString("en")} tokens; shown: the last ${(app.tokens.length - 1).toLocaleString("en")}.`);
  if (app.pastedReturns) said.push("A text box keeps no carriage returns: line ends CRLF became LF.");
  const text = said.join(" ");
  if ($("notice").textContent !== text) $("notice").textContent = text;
  $("mode-note").textContent = MODE_NOTES[app.mode](app.header.stored);
}

const MODE_NOTES = {
  float: (stored) => (stored === "int8"
    ? "float: this model was stored in int8, and has no finer weights than its codes times their scales. They are multiplied as floats, as int8 does too."
    : "float: the weights, rounded to bfloat16 to keep this file small, multiplied as floats."),
  int8: (stored) => "int8: a weight is a whole number from −127 to 127 times the scale of its row; activations stay floats (recipe int8)." +
    (stored === "int8" ? " This model was stored so: nothing differs from float." : ""),
  w8a8: () => "int8 × int8: activations too are whole numbers, with one scale a token (recipe int8-w8a8). Routers stay in float. " +
    "Here the logits are not quite those of JAX: a value close to the middle of two whole numbers goes up in one and down in the other, " +
    "and later layers widen that. JAX differs from itself as much when it adds in another order.",
  fp4: () => "FP4: the experts' weights in 4 bits, 16 values of which 32 share a power of two (recipe mxfp4). The rest is as in float.",
};

const sameExperts = (a, b) => a.every((e) => b.includes(e));

/* Places at which the settings changed an expert, or the likeliest next token. */
function changesAt(i) {
  const now = app.now.steps[i], plain = differs() ? app.plain.steps[i] : now;
  return {
    layers: now.routes.map((route, l) => !sameExperts(route.experts, plain.routes[l].experts)),
    word: now.likeliest !== plain.likeliest, now, plain,
  };
}

function drawTokens() {
  const { steps } = app.now, picked = app.picked, box = $("tokens");
  box.classList.toggle("picking", picked !== null);
  steps.forEach((step, i) => {
    const moved = changesAt(i).layers.some(Boolean);
    let chip = app.chips[i];
    if (!chip || chip.step !== step || chip.moved !== moved) {
      const element = drawToken(step, i, moved);
      if (chip) chip.element.replaceWith(element);
      else box.append(element);
      chip = app.chips[i] = { step, moved, element };
    }
    chip.element.classList.toggle("taken", picked !== null && step.routes[picked.layer].experts.includes(picked.expert));
  });
  for (const { element } of app.chips.splice(steps.length)) element.remove();
  if (app.writing) box.scrollTop = box.scrollHeight;
}

function drawToken(step, i, moved) {
  const chip = make("div", "", { class: moved ? "token moved" : "token" }, make("b", app.tokenizer.show(step.token)));
  const said = step.routes.map(({ experts, weights }, layer) => {
    const row = make("span");
    experts.forEach((expert) => {
      const cell = make("i", `${expert}`, { class: "hue" });
      cell.style.setProperty("--hue", hue(expert));
      cell.onclick = () => pick({ layer, expert });
      row.append(cell);
    });
    chip.append(row);
    return `layer ${layer + 1}: ` + experts.map((e, k) => `${e} (${weights[k].toFixed(2)})`).join(", ");
  });
  chip.title = `token ${i}; expert (weight) in ${said.join("; ")}`;
  return chip;
}

function drawLoadButtons() {
  const { num_layers, num_experts } = app.config;
  app.buttons = Array.from({ length: num_layers }, (_, layer) => {
    const row = Array.from({ length: num_experts }, (_, expert) => {
      const fill = make("i", "", { class: "hue" }), label = make("span", `${expert}`, {}, make("small"));
      const button = make("button", "", { type: "button", tabindex: layer || expert ? -1 : 0 }, fill, label);
      fill.style.setProperty("--hue", hue(expert));
      button.onclick = () => pick({ layer, expert });
      button.onkeydown = (event) => moveFocus(event, layer, expert);
      return button;
    });
    $("load").append(make("div", "", { class: "layer" }, make("b", `L${layer + 1}`),
      make("div", "", { class: "experts", role: "group", "aria-label": `layer ${layer + 1}` }, ...row)));
    return row;
  });
}

/* The arrow keys walk over layers and experts; one of the buttons is in the order of the tabulator key. */
function moveFocus(event, layer, expert) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const button = step && app.buttons[layer + step[0]] && app.buttons[layer + step[0]][expert + step[1]];
  if (!button) return;
  event.preventDefault();
  app.buttons[layer][expert].tabIndex = -1;
  button.tabIndex = 0;
  button.focus();
}

function drawLoads() {
  const loads = app.now.loads(), most = Math.max(...loads.map((row) => Math.max(...row)));
  app.buttons.forEach((row, layer) => row.forEach((button, expert) => {
    const share = loads[layer][expert], { bias, off } = app.edits[layer];
    button.firstChild.style.height = `${(100 * share) / most}%`;
    button.querySelector("small").textContent = PER_CENT(share);
    button.classList.toggle("off", off[expert]);
    button.classList.toggle("biased", bias[expert] !== 0);
    const chosen = app.picked !== null && app.picked.layer === layer && app.picked.expert === expert;
    button.setAttribute("aria-pressed", `${chosen}`);
    const state = `${off[expert] ? ", switched off" : ""}${bias[expert] ? `, bias ${bias[expert].toFixed(2)} added` : ""}`;
    button.setAttribute("aria-label", `layer ${layer + 1}, expert ${expert}: ${PER_CENT(share)} of the assignments${state}`);
  }));
}

function drawExpert() {
  const picked = app.picked;
  $("expert").hidden = picked === null;
  if (picked === null) return;
  const { layer, expert } = picked, { bias, off } = app.edits[layer], { num_experts, top_k } = app.config;
  const taken = app.now.steps.filter(({ routes }) => routes[layer].experts.includes(expert));
  $("expert-title").textContent = `Expert ${expert} of layer ${layer + 1}`;
  $("expert-takes").textContent = `It takes ${taken.length} of ${app.now.steps.length} tokens:`;
  const counts = new Map();
  for (const { token } of taken) counts.set(token, (counts.get(token) || 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  $("expert-tokens").replaceChildren(...sorted.flatMap(([token, count]) => [make("code", app.tokenizer.show(token)), count > 1 ? `×${count} ` : " "]));
  $("off").checked = off[expert];
  $("off").disabled = !off[expert] && off.filter(Boolean).length >= num_experts - top_k;
  $("bias").value = bias[expert];
  $("bias-value").textContent = `${bias[expert] < 0 ? "−" : "+"}${Math.abs(bias[expert]).toFixed(2)}`;
  $("bias-effect").textContent = isEdited() ? effectOn(layer, expert) : "";
}

/* The bias moves traffic; in its own layer it moves no affinity, and no weight of a token that keeps its experts. */
function effectOn(layer, expert) {
  const before = app.plain.loads()[layer][expert], after = app.now.loads()[layer][expert];
  let affinity = 0, weight = 0, kept = 0;
  app.now.steps.forEach(({ routes }, i) => {
    const now = routes[layer], plain = app.plain.steps[i].routes[layer];
    now.affinities.forEach((value, e) => (affinity = Math.max(affinity, Math.abs(value - plain.affinities[e]))));
    if (!sameExperts(now.experts, plain.experts)) return;
    kept += 1;
    now.experts.forEach((e, k) => (weight = Math.max(weight, Math.abs(now.weights[k] - plain.weights[plain.experts.indexOf(e)]))));
  });
  return `Its share: ${PER_CENT(before)}, now ${PER_CENT(after)}. In layer ${layer + 1}, no affinity moved by more than ${affinity.toFixed(4)}; ` +
    `${kept} of ${app.now.steps.length} tokens kept their experts, and none of their weights moved by more than ${weight.toFixed(4)}.` +
    (app.mode === "float" ? "" : " Part of that is the other arithmetic.");
}

function drawNext() {
  const { probabilities } = app.now.steps[app.now.steps.length - 1];
  const best = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 10);
  best.forEach((token, i) => {
    const bar = $("next").children[i] || $("next").appendChild(make("button", "", { type: "button", class: "bar" }, make("code"), make("span", "", { class: "track" }, make("i")), make("span")));
    const [name, track, share] = bar.children;
    name.textContent = token === app.tokenizer.eot ? "⊣ end of text" : app.tokenizer.show(token);
    track.firstChild.style.width = `${100 * probabilities[token]}%`;
    share.textContent = PER_CENT(probabilities[token]);
    bar.disabled = token === app.tokenizer.eot || app.writing;
    bar.onclick = () => { append(token); refresh(); };
  });
}

function drawChanges() {
  $("words").replaceChildren();
  if (!differs()) {
    $("changed").textContent = "Nothing is changed. Take other arithmetic, switch an expert off, or move a bias: the page then reads the text both ways.";
    return;
  }
  const { steps } = app.now, found = steps.map((_, i) => changesAt(i));
  const routes = found.reduce((sum, { layers }) => sum + layers.filter(Boolean).length, 0);
  const words = found.filter(({ word }) => word);
  $("changed").textContent = `Against float with nothing changed: ${routes} of ${steps.length * app.config.num_layers} choices of experts differ (≠ marks their tokens), ` +
    `and ${words.length} of ${steps.length} likeliest next tokens. Bits per token: ${app.plain.bitsPerToken().toFixed(3)}, now ${app.now.bitsPerToken().toFixed(3)}.`;
  for (const { now, plain } of words.slice(0, 40)) {
    const word = (token) => make("code", app.tokenizer.show(token));
    $("words").append(make("li", "after ", {}, word(now.token), ": ", word(plain.likeliest), " became ", word(now.likeliest)));
  }
}

/* Reads two texts under the present settings and draws where their tokens go. */
async function compare() {
  while (app.comparing) await pause();
  app.comparing = true;
  const sides = [];
  for (const side of ["left", "right"]) {
    const chosen = $(side).value, text = chosen === "text" ? $("text").value : app.header.samples[chosen].text;
    const reading = new Reading(app.model, () => ({ mode: app.mode, edits: app.edits }));
    const tokens = app.tokenizer.encode(text.slice(-LONGEST_TEXT));
    await reading.read([app.tokenizer.eot, ...tokens.slice(0, app.config.context_length - 1)]);
    sides.push({ name: $(side).selectedOptions[0].textContent, reading, loads: reading.loads() });
  }
  drawPairs(sides);
  drawColoured(sides, +$("layer").value);
  app.comparing = false;
}

function drawPairs([left, right]) {
  const most = Math.max(...[left, right].flatMap(({ loads }) => loads.flatMap((row) => [...row])));
  const moved = left.loads.map((row, l) => row.reduce((sum, share, e) => sum + Math.abs(share - right.loads[l][e]) / 2, 0));
  $("distance").textContent = "To give both texts the same loads, this share of the assignments would have to move: " +
    moved.map((share, l) => `layer ${l + 1} ${PER_CENT(share)}`).join(", ") + ".";
  $("pairs").replaceChildren(...left.loads.map((row, layer) => {
    const cells = Array.from(row, (share, expert) => {
      const twins = [["first", share], ["second", right.loads[layer][expert]]].map(([side, value]) => {
        const bar = make("i", "", { class: side }, make("small", `${Math.round(100 * value)}`));
        bar.style.height = `${(100 * value) / most}%`;
        return bar;
      });
      const said = `expert ${expert}: ${left.name} ${PER_CENT(share)}, ${right.name} ${PER_CENT(right.loads[layer][expert])}`;
      return make("div", "", { title: said, role: "img", "aria-label": said }, make("div", "", { class: "twin" }, ...twins), numberOf(expert));
    });
    return make("div", "", {}, make("h3", `Layer ${layer + 1}`), make("div", "", { class: "experts" }, ...cells));
  }));
}

/* An expert's number on its colour. */
function numberOf(expert) {
  const number = make("small", `${expert}`, { class: "hue number" });
  number.style.setProperty("--hue", hue(expert));
  return number;
}

/* Each token on the colour of the expert with the largest weight; its number stands where it changes, and begins a line. */
function drawColoured(sides, layer) {
  ["left-text", "right-text"].forEach((id, side) => {
    let last = null;
    const spans = sides[side].reading.steps.slice(1).map(({ token, routes }) => {
      const expert = routes[layer].experts[0], text = app.tokenizer.show(token).replace(/·/g, " ").replace(/↵/g, "↵\n");
      const span = make("span", "", { class: "hue" }, ...(expert === last ? [] : [make("sup", `${expert}`)]), text);
      span.style.setProperty("--hue", hue(expert));
      last = text.endsWith("\n") ? null : expert;
      return span;
    });
    $(id).replaceChildren(...spans);
    $(`${id}-name`).textContent = sides[side].name;
  });
}

start();
