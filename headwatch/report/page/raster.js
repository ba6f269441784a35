/* raster.js: one row a head, its active stretches as bars. */

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
