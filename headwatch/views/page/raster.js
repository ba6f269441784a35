/* raster.js: one row a head, its active stretches as bars; and which heads each run added. */

const GROUPS = { base: "Heads of the base model", joined: "Heads that joined in training", crossed: "Crossed the set’s edge without evidence" };

function groupRows(view, group) {
  return view.lives.heads.map((_, row) => row).filter((row) => view.lives.group[row] === group);
}

function drawRaster(svg, run, view, group, scales, now, picked) {
  const rows = groupRows(view, group), width = svg.width_(), left = 56, right = width - 14;
  const height = rows.length <= 40 ? 13 : rows.length <= 90 ? 10 : rows.length <= 200 ? 6 : 3;
  const top = 4, bottom = top + rows.length * height;
  svg.begin(bottom + 20);
  const x = linear(scales.first, scales.last, left, right);
  const every = Math.ceil(11 / height);
  for (const tick of stepTicks(scales, width / 110)) {
    mark(svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom + 3 });
    label(svg, x(tick), bottom + 15, whole(tick), { "text-anchor": "middle" });
  }
  rows.forEach((row, k) => {
    const head = view.lives.heads[row], lives = view.lives.lives[row], y = top + k * height;
    const line = mark(svg, "g", { class: "life", "data-head": keyOf(head) });
    const hit = mark(line, "rect", { class: "row-hit" + (picked && keyOf(picked) === keyOf(head) ? " picked" : ""), x: 0, y, width, height }, () => headName(head) + "\n" + headLines(view, head, now).join("\n"));
    hit.head = head;
    if (k % every === 0) label(line, left - 8, y + height / 2 + 3.8, headName(head), { "text-anchor": "end", "pointer-events": "none" });
    for (const bar of stretches(lives)) {
      const x0 = x(run.steps[bar.from]), x1 = bar.to + 1 < run.steps.length ? x(run.steps[bar.to + 1]) : Math.max(x(run.steps[bar.to]), x0) + (run.steps.length > 1 ? 3 : 8);
      const thin = bar.hue === "unproven" || bar.outside;
      const inset = height > 4 ? (thin ? height * 0.36 : height * 0.16) : 0.3;
      if (bar.hue) mark(line, "rect", { class: "bar f-" + bar.hue, x: x0, y: y + inset, width: Math.max(2, x1 - x0 - 0.6), height: height - 2 * inset, "pointer-events": "none" });
      else if (bar.gone && height > 4) mark(line, "line", { class: "gone", x1: x0 + 2, x2: x1, y1: y + height / 2, y2: y + height / 2, "pointer-events": "none" });
    }
  });
  const step = run.steps[now];
  if (step < scales.last) mark(svg, "rect", { class: "veil", x: x(step) + 3, y: top, width: Math.max(0, right - x(step)), height: bottom - top });
  mark(svg, "line", { class: "now", x1: x(step), x2: x(step), y1: top - 4, y2: bottom + 3 });
}

/* Runs of equal looks: {from, to (probe indices), hue, outside, gone}. */
function stretches(lives) {
  const found = [];
  for (let p = 0; p < lives.length; p++) {
    const { state, agrees } = life(lives[p]);
    const look = { hue: hue(lives[p]), outside: ACTIVE[state] === 1 && !agrees, gone: state === 3 || state === 5 };
    const last = found[found.length - 1];
    if (last && last.hue === look.hue && last.outside === look.outside && last.gone === look.gone) last.to = p;
    else found.push(Object.assign({ from: p, to: p }, look));
  }
  return found;
}

/* Heads that any run added, as a dot matrix: a column a head, a row a run. Returns what to say about overlaps. */
function addedHeads(runs, views, nows) {
  const added = views.map((view, r) => new Map(view ? groupRows(view, "joined").filter((row) => [...view.lives.lives[row].slice(0, nows[r] + 1)].some(isActive)).map((row) => [keyOf(view.lives.heads[row]), row]) : []));
  const all = new Map();
  views.forEach((view, r) => added[r].forEach((row, key) => { all.set(key, view.lives.heads[row]); }));
  const heads = [...all.values()].sort((a, b) => owners(b) - owners(a) || a[0] - b[0] || a[1] - b[1]);
  function owners(head) { return added.filter((set) => set.has(keyOf(head))).length; }
  return { added, heads, owners };
}

function drawAdded(svg, runs, views, nows, picked) {
  const { added, heads, owners } = addedHeads(runs, views, nows);
  const width = svg.width_(), left = 30, size = clamp((width - left - 140) / Math.max(1, heads.length), 4, 26), rowHeight = 24;
  const names = size >= 11, top = names ? 48 : 8;
  svg.begin(top + runs.length * rowHeight + 8);
  heads.forEach((head, k) => {
    const cx = left + (k + 0.5) * size;
    if (names) label(svg, 0, 0, headName(head), { transform: `translate(${(cx + 3).toFixed(1)} ${top - 6}) rotate(-60)` });
    const on = runs.map((_, r) => r).filter((r) => added[r].has(keyOf(head)));
    if (on.length > 1) mark(svg, "line", { class: "axis", x1: cx, x2: cx, y1: top + (on[0] + 0.5) * rowHeight, y2: top + (on[on.length - 1] + 0.5) * rowHeight });
    runs.forEach((run, r) => {
      const row = added[r].get(keyOf(head)), cy = top + (r + 0.5) * rowHeight, radius = Math.min(5.5, size * 0.38);
      const still = row !== undefined && isActive(views[r].lives.lives[row][nows[r]]);
      const dot = mark(svg, "circle", { class: row === undefined ? "cell" : "added s-new" + (still ? " f-new" : ""), cx, cy, r: row === undefined ? Math.min(2, radius) : radius }, `${headName(head)} · ${run.letter} ${run.name}\n${row === undefined ? "not added" : still ? "added, active now" : "added, no longer active"}`);
      if (row !== undefined && !still) dot.style.fill = "var(--paper)";
      dot.head = head;
    });
    if (picked && keyOf(picked) === keyOf(head)) mark(svg, "rect", { class: "pick", x: cx - size / 2, y: top, width: size, height: runs.length * rowHeight });
  });
  runs.forEach((run, r) => {
    const y = top + (r + 0.5) * rowHeight + 4;
    label(svg, 0, y, run.letter, { class: "strip-title" });
    const only = heads.filter((head) => owners(head) === 1 && added[r].has(keyOf(head))).length;
    label(svg, left + heads.length * size + 12, y, `${added[r].size} added, ${only} by this run alone`, {});
  });
}

/* "A and B: 3 of 9 heads in common (expected by chance 0.4)", a line a pair of runs. */
function overlaps(runs, views, nows) {
  const { added } = addedHeads(runs, views, nows), lines = [];
  for (let a = 0; a < runs.length; a++) {
    for (let b = a + 1; b < runs.length; b++) {
      const common = [...added[a].keys()].filter((key) => added[b].has(key)).length, union = added[a].size + added[b].size - common;
      if (!union) continue;
      const free = runs[a].model.n_layers * runs[a].model.n_heads - (views[a] ? groupRows(views[a], "base").length : 0);
      lines.push(`${runs[a].letter} and ${runs[b].letter}: ${common} of ${union} added heads in common; ${((added[a].size * added[b].size) / Math.max(1, free)).toFixed(1)} expected by chance among the ${free} heads outside the base’s set.`);
    }
  }
  return lines;
}
