/* maps.js: layers by heads: activation frequency and effect. */

const CELL = 34; /* largest size of a cell */

function grid(svg, run, title, remark) {
  const { n_layers: layers, n_heads: heads } = run.model;
  const width = svg.width_(), left = 26, top = 20;
  const size = Math.min(CELL, Math.max(3, (width - left - 4) / layers), Math.max(5, 460 / heads));
  svg.begin(top + size * heads + 30);
  heading(svg, left, 12, title, remark, width - left - HELP_WIDTH);
  const every = Math.max(1, Math.ceil(20 / size)), down = Math.max(1, Math.ceil(12 / size));
  for (let l = 0; l < layers; l += every) label(svg, left + (l + 0.5) * size, top + heads * size + 13, l, { "text-anchor": "middle" });
  for (let h = 0; h < heads; h += down) label(svg, left - 6, top + (h + 0.5) * size + 4, h, { "text-anchor": "end" });
  label(svg, left, top + heads * size + 27, layers > 3 ? "layer →" : "layer", {});
  svg.headAt = (event) => {
    const box = svg.getBoundingClientRect(), k = width / box.width;
    const l = Math.floor(((event.clientX - box.left) * k - left) / size), h = Math.floor(((event.clientY - box.top) * k - top) / size);
    return l >= 0 && h >= 0 && isHeadOf(run, [l, h]) ? [l, h] : null;
  };
  return (head) => ({ x: left + head[0] * size, y: top + head[1] * size, width: Math.max(1, size - 1), height: Math.max(1, size - 1) });
}

function cell(svg, className, place) { return mark(svg, "rect", Object.assign({ class: className }, place)); }

function drawFrequency(svg, run, view, now, picked) {
  const place = grid(svg, run, "Activation frequency", "fraction of the probes up to now at which a head was active");
  for (const head of headsOf(run)) {
    const row = view ? rowOf(view.lives, head) : undefined, at = place(head);
    cell(svg, "cell", at).tip = headTip(view, head, now);
    if (row === undefined) continue;
    const sign = view.lives.lives[row][now], part = frequency(view, row, now);
    if (part > 0) {
      const fill = cell(svg, "fill f-" + (view.lives.group[row] === "base" ? "base" : "new"), at);
      fill.dataset.head = keyOf(head);
      fill.dataset.frequency = part.toFixed(3);
      fill.style.opacity = 0.12 + 0.88 * part;
    }
    if (isActive(sign)) cell(svg, "outline", inner(at));
    else if (hue(sign) === "untested") cellDot(svg, "fill f-untested", at, 0.14, 1);
  }
  drawPick(svg, place, picked, run);
}

function drawEffect(svg, run, view, picked) {
  const effect = view ? view.effect.effect : [];
  const place = grid(svg, run, "Effect on importance", effect.length ? `importance: ${view.effect.measure}; mean over the probes` : "needs a probe with signal after the base");
  for (const head of headsOf(run)) {
    const [l, h] = head, at = place(head), value = effect.length ? effect[l][h] : null;
    cell(svg, "cell", at).tip = `${headName(head)}\n${isNumber(value) ? effectText(view, head) : "no effect yet"}`;
    if (!isNumber(value)) continue;
    const unsure = view.effect.low && view.effect.low[l][h] <= 0 && view.effect.high[l][h] >= 0;
    cell(svg, `fill effect f-${value > 0 ? "gain" : "loss"}${unsure ? " unsure" : ""}`, unsure ? smaller(at) : at).style.opacity = Math.abs(value);
  }
  for (const head of view ? view.effect.changed : []) cellDot(svg, "changed", place(head), 0.13, 1.2);
  drawPick(svg, place, picked, run);
}

const hasEffect = (view, [l, h]) => view.effect.effect.length > 0 && isNumber(view.effect.effect[l][h]);

/* E of a head with its interval, where the record has one. */
function effectText(view, [l, h]) {
  const { effect, low, high } = view.effect;
  return `effect ${signed(effect[l][h])}${low && effect[l][h] ? ` (95\u00a0%: ${signed(low[l][h])} to ${signed(high[l][h])})` : ""}`;
}

const smaller = (p) => ({ x: p.x + p.width * 0.27, y: p.y + p.height * 0.27, width: p.width * 0.46, height: p.height * 0.46 });
const inner = (p) => ({ x: p.x + 0.7, y: p.y + 0.7, width: Math.max(0.5, p.width - 1.4), height: Math.max(0.5, p.height - 1.4) });

function drawPick(svg, place, picked, run) {
  if (!picked || !isHeadOf(run, picked)) return;
  const p = place(picked);
  mark(svg, "rect", { class: "pick", x: p.x - 2, y: p.y - 2, width: p.width + 4, height: p.height + 4 });
}
