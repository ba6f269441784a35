/* raster.js: one row per head: its spells as bars, and its share now. */

function drawRaster(svg, run, view, group, scales, now, picked) {
  const rows = groupRows(view, group), width = svg.width_(), left = 56, slot = 11; /* slot: where a spell that began at the last probe is drawn */
  const height = rows.length <= 60 ? 13 : rows.length <= 90 ? 10 : rows.length <= 200 ? 6 : 3;
  const withShares = height >= 10 && rows.some((row) => sharePath(view, view.lives.heads[row])), right = width - 14 - slot - (withShares ? 40 : 0);
  const top = 4, bottom = top + rows.length * height, every = Math.ceil(11 / height);
  svg.begin(bottom + 20);
  const x = linear(scales.first, scales.last, left, right);
  for (const tick of stepTicks(scales, width)) mark(svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom + 3 });
  xLabels(svg, x, stepTicks(scales, width), bottom + 15);
  rows.forEach((row, k) => {
    const head = view.lives.heads[row], y = top + k * height;
    const line = mark(svg, "g", { class: "life", "data-head": keyOf(head) });
    const hit = mark(line, "rect", { class: "row-hit" + (same(picked, head) ? " picked" : ""), x: 0, y, width, height }, headTip(view, head, now));
    hit.head = head;
    if (k % every === 0) label(line, left - 8, y + height / 2 + 3.8, headName(head), { "text-anchor": "end", "pointer-events": "none" });
    const shares = withShares && k % every === 0 && sharePath(view, head);
    if (shares) label(line, width, y + height / 2 + 3.8, percent(shares.values[lastAtMost(shares.probes, now)]), { "text-anchor": "end", "pointer-events": "none" });
    for (const bar of stretches(view.lives.lives[row])) drawStretch(line, bar, run.steps, x, y, height, slot);
  });
  const step = run.steps[now];
  if (step < scales.last) mark(svg, "rect", { class: "veil", x: x(step) + 3, y: top, width: Math.max(0, right - x(step)), height: bottom - top });
  if (withShares) label(svg, width, bottom + 15, "share", { "text-anchor": "end" });
  nowLine(svg, x(step), top - 4, bottom + 3);
}

function drawStretch(line, bar, steps, x, y, height, slot) {
  const x0 = x(steps[bar.from]), x1 = bar.to + 1 < steps.length ? x(steps[bar.to + 1]) : x(steps[bar.to]) + slot;
  const thin = bar.hue === "untested" || bar.outside, inset = height > 4 ? (thin ? height * 0.36 : height * 0.16) : 0.3;
  if (bar.hue) mark(line, "rect", { class: "bar f-" + bar.hue, x: x0, y: y + inset, width: Math.max(2, x1 - x0 - 0.6), height: height - 2 * inset, "pointer-events": "none" });
  else if (bar.gone && height > 4) mark(line, "line", { class: "gone", x1: x0 + 2, x2: x1, y1: y + height / 2, y2: y + height / 2, "pointer-events": "none" });
}

/* Runs of signs that look alike: {from, to (probe indices), hue, outside, gone}. */
function stretches(signs) {
  const found = [];
  for (let p = 0; p < signs.length; p++) {
    const { state, agrees } = life(signs[p]);
    const look = { hue: hue(signs[p]), outside: ACTIVE[state] === 1 && !agrees, gone: state === 3 || state === 5 };
    const last = found[found.length - 1];
    if (last && last.hue === look.hue && last.outside === look.outside && last.gone === look.gone) last.to = p;
    else found.push(Object.assign({ from: p, to: p }, look));
  }
  return found;
}
