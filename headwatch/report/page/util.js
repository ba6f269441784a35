"use strict";
/* util.js: HTML elements, numbers as text, names of heads. Strings from the data are only ever set as text. */

const byId = (id) => document.getElementById(id);

function element(parent, tag, attributes, text) {
  const node = document.createElement(tag);
  for (const name in attributes || {}) node.setAttribute(name, attributes[name]);
  if (text !== undefined && text !== null) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const minus = (text) => text.replace(/-/g, "−");
const whole = (value) => (isNumber(value) ? value.toLocaleString("en-US") : "–");
const count = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;

function number(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return minus(value.toExponential(1));
  return minus(String(+value.toPrecision(size >= 1000 ? 4 : 3)));
}

const signed = (value) => (value > 0 ? "+" : "") + number(value);

function percent(value, withSign) {
  if (!isNumber(value)) return "–";
  const text = (value * 100).toFixed(Math.abs(value) < 0.0995 ? 1 : 0);
  if (+text === 0) return text.replace("-", "") + " %";
  return minus((withSign && value > 0 ? "+" : "") + text) + " %";
}

/* The text without line breaks before a percent sign or next to an inequality sign. */
const unbroken = (text) => text.replace(/ (?=[%≤])|(?<=≤) /g, "\u00a0");

/* The first `most` names, and how many more there are. */
function listed(names, most) {
  if (!names.length) return "none";
  return names.slice(0, most).join(", ") + (names.length > most ? ` and ${names.length - most} more` : "");
}

const headName = (head) => `L${head[0]}.H${head[1]}`;
const keyOf = (head) => head[0] + "." + head[1];
const same = (one, other) => Boolean(one && other) && keyOf(one) === keyOf(other);
/* A hybrid model has layers without attention heads. */
const hasHeads = (run, layer) => layer < run.model.n_layers && (!run.model.layers_with_heads || run.model.layers_with_heads.includes(layer));
const isHeadOf = (run, head) => hasHeads(run, head[0]) && head[1] < run.model.n_heads;

function headsOf(run) {
  const heads = [];
  for (let l = 0; l < run.model.n_layers; l++) for (let h = 0; hasHeads(run, l) && h < run.model.n_heads; h++) heads.push([l, h]);
  return heads;
}

/* The head next to one on the maps, at most at their edge; layers without heads are skipped. */
function neighbour(run, [layer, head], dx, dy) {
  let l = layer + dx;
  while (l >= 0 && l < run.model.n_layers && !hasHeads(run, l)) l += dx || 1;
  return [hasHeads(run, l) ? l : layer, clamp(head + dy, 0, run.model.n_heads - 1)];
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/* Index of the last of some ascending values that is not above a limit; 0 where there is none. */
function lastAtMost(values, limit) {
  let found = 0;
  values.forEach((value, i) => { if (value <= limit) found = i; });
  return found;
}

/* One tooltip for all marks that have a .tip; its content is also in the tables or at the chosen head. */
function tooltips() {
  const box = byId("tip");
  document.addEventListener("pointermove", (event) => {
    const tip = event.target && event.target.tip;
    box.hidden = !tip;
    if (!tip) return;
    box.textContent = typeof tip === "function" ? tip() : tip;
    const size = box.getBoundingClientRect();
    box.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - size.width - 6)) + "px";
    box.style.top = (event.clientY + 18 + size.height > innerHeight ? event.clientY - size.height - 10 : event.clientY + 18) + "px";
  });
  document.addEventListener("pointerleave", () => { box.hidden = true; });
}
