"use strict";
/* marks.js: elements, scales, numbers. Strings from the data reach the page as text alone (textContent, setAttribute). */

const SVG = "http://www.w3.org/2000/svg";

function element(parent, tag, attributes, text) {
  const node = document.createElement(tag);
  for (const name in attributes || {}) node.setAttribute(name, attributes[name]);
  if (text !== undefined && text !== null) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

function mark(parent, tag, attributes, tip) {
  const node = document.createElementNS(SVG, tag);
  for (const name in attributes || {}) {
    const value = attributes[name];
    node.setAttribute(name, typeof value === "number" ? Math.round(value * 100) / 100 : value);
  }
  if (tip) node.tip = tip;
  if (parent) parent.appendChild(node);
  return node;
}

function label(parent, x, y, text, attributes) {
  const node = mark(parent, "text", Object.assign({ x, y }, attributes || {}));
  node.textContent = text;
  return node;
}

/* A title and, where there is room for it, a remark; where there is none the remark shows on hovering. */
function heading(svg, x, y, title, remark, room) {
  const node = label(svg, x, y, title + " ", { class: "strip-title" });
  if (!remark) return;
  const said = mark(node, "tspan");
  said.textContent = remark;
  if (node.getComputedTextLength() > room) { said.remove(); node.tip = remark; }
}

/* A chart keeps its <svg> (and so the keyboard's focus) and redraws what is in it, at the width that it has. */
function chart(parent, className, name) {
  const svg = mark(parent, "svg", { class: "chart " + className, role: "img", "aria-label": name });
  svg.width_ = () => Math.max(240, Math.round(svg.parentNode.clientWidth || 600));
  svg.begin = (height) => {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${svg.width_()} ${Math.ceil(height)}`);
  };
  return svg;
}

function linear(d0, d1, r0, r1) {
  const span = d1 - d0 || 1;
  const scale = (value) => r0 + ((value - d0) / span) * (r1 - r0);
  scale.invert = (at) => d0 + ((at - r0) / (r1 - r0 || 1)) * span;
  return scale;
}

function ticks(low, high, about) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-6; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const whole = (value) => (isNumber(value) ? value.toLocaleString("en-US") : "–");
function number(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return minus(value.toExponential(1));
  return minus(String(+value.toPrecision(size >= 1000 ? 4 : 3)));
}
function percent(value, sign) {
  if (!isNumber(value)) return "–";
  const text = (Math.abs(value) < 0.0995 ? (value * 100).toFixed(1) : (value * 100).toFixed(0)) + " %";
  return minus((sign && value > 0 ? "+" : "") + text);
}
const minus = (text) => text.replace("-", "−");
const count = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
const headName = (head) => `L${head[0]}.H${head[1]}`;
const keyOf = (head) => head[0] + "." + head[1];

/* Polyline through points [[x, y | null]]; a gap where there is no value. */
function path(points, step) {
  let text = "", open = false, before = null;
  for (const [x, y] of points) {
    if (!isNumber(y)) { open = false; continue; }
    const at = `${x.toFixed(1)} ${y.toFixed(1)}`;
    text += open ? (step ? `H${x.toFixed(1)}V${y.toFixed(1)}` : "L" + at) : "M" + at;
    open = true;
    before = [x, y];
  }
  return before ? text : "";
}

function area(upper, lower) {
  return upper.length < 2 ? "" : path(upper) + "L" + lower.slice().reverse().map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L") + "Z";
}

/* One tooltip for all marks that have a .tip; what it says is also in the tables or at the selected head. */
function tooltips() {
  const tip = document.getElementById("tip");
  document.addEventListener("pointermove", (event) => {
    const said = event.target && event.target.tip;
    tip.hidden = !said;
    if (!said) return;
    tip.textContent = typeof said === "function" ? said() : said;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
    tip.style.top = (event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18) + "px";
  });
  document.addEventListener("pointerleave", () => { tip.hidden = true; });
}
