/* maps.js: layers across, heads down: activation frequency and effect. */

function grid(svg, run, title, remark) {
  const { n_layers: layers, n_heads: heads } = run.model;
  const width = svg.width_(), left = 26, top = 20;
  const size = Math.min(24, Math.max(3, (width - left - 4) / layers), Math.max(5, 520 / heads));
  svg.begin(top + size * heads + 30);
  heading(svg, left, 12, title, remark, width - left);
  const every = Math.max(1, Math.ceil(20 / size)), down = Math.max(1, Math.ceil(12 / size));
  for (let l = 0; l < layers; l += every) label(svg, left + (l + 0.5) * size, top + heads * size + 13, l, { "text-anchor": "middle" });
  for (let h = 0; h < heads; h += down) label(svg, left - 6, top + (h + 0.5) * size + 4, h, { "text-anchor": "end" });
  label(svg, left, top + heads * size + 27, layers > 3 ? "layer →" : "layer", {});
  const place = (head) => ({ x: left + head[0] * size, y: top + head[1] * size, width: Math.max(1, size - 1), height: Math.max(1, size - 1) });
  svg.headAt = (event) => {
    const box = svg.getBoundingClientRect(), k = width / box.width;
    const l = Math.floor(((event.clientX - box.left) * k - left) / size), h = Math.floor(((event.clientY - box.top) * k - top) / size);
    return l >= 0 && l < layers && h >= 0 && h < heads ? [l, h] : null;
  };
  return { layers, heads, place };
}

function drawFrequency(svg, run, view, now, picked) {
  const { layers, heads, place } = grid(svg, run, "Activation frequency", "part of the probes up to now at which a head was active");
  const rows = view ? rowsOf(view) : new Map();
  for (let l = 0; l < layers; l++) {
    for (let h = 0; h < heads; h++) {
      const head = [l, h], row = rows.get(keyOf(head));
      mark(svg, "rect", Object.assign({ class: "cell" }, place(head)), () => headName(head) + "\n" + (view ? headLines(view, head, now).join("\n") : ""));
      if (row === undefined) continue;
      const sign = view.lives.lives[row][now], group = view.lives.group[row], share = frequency(view, row, now);
      if (share > 0) {
        const fill = mark(svg, "rect", Object.assign({ class: "fill f-" + (group === "base" ? "base" : "new"), "data-head": keyOf(head), "data-frequency": share.toFixed(3) }, place(head)));
        fill.style.opacity = 0.12 + 0.88 * share;
      }
      if (isActive(sign)) mark(svg, "rect", Object.assign({ class: "outline" }, inner(place(head))));
      else if (hue(sign) === "unproven") { const p = place(head); mark(svg, "circle", { class: "fill f-unproven", cx: p.x + p.width / 2, cy: p.y + p.height / 2, r: Math.max(1, p.width * 0.14) }); }
    }
  }
  pick(svg, place, picked, run);
}

function drawEffect(svg, run, view, picked) {
  const effect = view ? view.effect.effect : [];
  const { layers, heads, place } = grid(svg, run, "Effect on importance", effect.length ? `importance: ${view.effect.measure}; mean over the probes` : "not known before a second probe");
  for (let l = 0; l < layers; l++) {
    for (let h = 0; h < heads; h++) {
      const head = [l, h], value = effect.length ? effect[l][h] : null;
      mark(svg, "rect", Object.assign({ class: "cell" }, place(head)), `${headName(head)}\n${isNumber(value) ? effectWords(view, head) : "effect not known yet"}`);
      if (!isNumber(value)) continue;
      const unsure = view.effect.low && view.effect.low[l][h] <= 0 && view.effect.high[l][h] >= 0, cell = place(head);
      const fill = mark(svg, "rect", Object.assign({ class: `fill effect f-${value > 0 ? "gain" : "loss"}${unsure ? " unsure" : ""}` }, unsure ? smaller(cell) : cell));
      fill.style.opacity = Math.abs(value);
    }
  }
  for (const head of view ? view.effect.changed : []) { const p = place(head); mark(svg, "circle", { class: "proven", cx: p.x + p.width / 2, cy: p.y + p.height / 2, r: Math.max(1.2, p.width * 0.13) }); }
  pick(svg, place, picked, run);
}

/* E of a head with its interval, where the record has one. */
function effectWords(view, [l, h]) {
  const signed = (v) => (v > 0 ? "+" : "") + number(v), { effect, low, high } = view.effect;
  return `effect ${signed(effect[l][h])}${low && effect[l][h] ? ` (95 %: ${signed(low[l][h])} to ${signed(high[l][h])})` : ""}`;
}

const smaller = (p) => ({ x: p.x + p.width * 0.27, y: p.y + p.height * 0.27, width: p.width * 0.46, height: p.height * 0.46 });
const inner = (p) => ({ x: p.x + 0.7, y: p.y + 0.7, width: Math.max(0.5, p.width - 1.4), height: Math.max(0.5, p.height - 1.4) });

function pick(svg, place, picked, run) {
  if (!picked || picked[0] >= run.model.n_layers || picked[1] >= run.model.n_heads) return;
  const p = place(picked);
  mark(svg, "rect", { class: "pick", x: p.x - 2, y: p.y - 2, width: p.width + 4, height: p.height + 4 });
}
