/* marks.js: SVG marks, scales and axes. */

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 40; /* where the plot area of a chart over steps begins */

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

/* A title and a remark; the remark becomes a tooltip where there is no room for it. */
function heading(svg, x, y, title, remark, room) {
  const node = label(svg, x, y, title + " ", { class: "strip-title" });
  if (!remark) return;
  const span = mark(node, "tspan");
  span.textContent = remark;
  if (node.getComputedTextLength() > room) { span.remove(); node.tip = remark; }
}

/* A chart keeps its <svg>, and so the keyboard focus; `begin` empties it for drawing at its current width. */
function chart(parent, className, name) {
  const svg = mark(parent, "svg", { class: "chart " + className, role: "img", "aria-label": name });
  svg.width_ = () => Math.max(240, Math.round(svg.parentNode.clientWidth || 600));
  svg.begin = (height) => {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${svg.width_()} ${Math.ceil(height)}`);
  };
  return svg;
}

/* --- scales and axes ------------------------------------------------------------------------------------------------ */

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

const stepTicks = (scales, width) => ticks(scales.first, scales.last, width / 110).filter(Number.isInteger);

/* Grid lines with their values on the left. */
function gridLines(svg, y, values, right, text) {
  for (const value of values) {
    mark(svg, "line", { class: value === 0 ? "axis" : "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) });
    label(svg, LEFT - 6, y(value) + 3.5, text(value), { "text-anchor": "end" });
  }
}

function xLabels(svg, x, values, y) {
  for (const value of values) label(svg, x(value), y, whole(value), { "text-anchor": "middle" });
}

/* The value of a curve at "now", to the right of the plot. */
function endLabel(svg, x, y, top, bottom, text) {
  label(svg, x, clamp(y, top + 4, bottom) + 4, text, { class: "end" });
}

function nowLine(svg, x, top, bottom) {
  mark(svg, "line", { class: "now", x1: x, x2: x, y1: top, y2: bottom });
}

/* --- paths ---------------------------------------------------------------------------------------------------------- */

/* Polyline through points [[x, y | null]], a step function on request; a gap where there is no value. */
function path(points, step) {
  let text = "", open = false;
  for (const [x, y] of points) {
    if (!isNumber(y)) { open = false; continue; }
    const at = `${x.toFixed(1)} ${y.toFixed(1)}`;
    text += open ? (step ? `H${x.toFixed(1)}V${y.toFixed(1)}` : "L" + at) : "M" + at;
    open = true;
  }
  return text;
}

function area(upper, lower) {
  return upper.length < 2 ? "" : path(upper) + "L" + lower.slice().reverse().map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L") + "Z";
}

/* A filled circle in the middle of a map cell. */
function cellDot(svg, className, cell, part, least) {
  mark(svg, "circle", { class: className, cx: cell.x + cell.width / 2, cy: cell.y + cell.height / 2, r: Math.max(least, cell.width * part) });
}

/* --- legends -------------------------------------------------------------------------------------------------------- */

/* entries: [colour variable, text, shape]. */
function legend(parent, entries) {
  const box = element(parent, "div", { class: "legend" });
  for (const [color, text, shape] of entries) {
    const entry = element(box, "span"), swatch = element(entry, "i", { class: shape });
    const ends = ["var(--cell)", `var(--${color})`];
    if (shape === "ramp") swatch.style.background = `linear-gradient(90deg, ${(color === "loss" ? ends.reverse() : ends).join(", ")})`;
    else if (color) swatch.style.background = ends[1];
    entry.append(text);
  }
}
