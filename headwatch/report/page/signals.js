/* signals.js: small charts of what stands beside the lives: chance, turnover, agreement, drift, spread, layers. */

const SIGNALS = [
  { id: "membership", title: "Changes of the active set", remark: "heads in or out since the base, evidence or not", note: (v) => (v && v.noise.high.some(isNumber) ? `Shaded: what two ${chosen.rule === "circuit" ? "halves" : "samples"} of one probe’s pairs differ by (95 %). A count inside it says nothing.` : "Its null band was not recorded for this rule."), line: (v) => v.noise.membership, band: (v) => [v.noise.low, v.noise.high], words: whole },
  { id: "turnover", title: "Turnover", remark: "heads gained and lost since the probe before", note: "By the chosen rule’s lives.", bars: (v) => [v.turnover.gained, v.turnover.lost], words: whole },
  { id: "split", title: "Agreement of two halves of the pairs", remark: "rank correlation of mean head scores", note: "Near 1: the ranking of heads does not hang on which pairs were drawn.", line: (v) => v.noise.split_half, range: [0, 1], words: number },
  { id: "kl", title: "KL of the probe answers from the base model", remark: "nats, mean over the pairs", note: "How far the model has moved on the probes, whatever the reward says.", line: (v) => v.probe.kl, words: number },
  { id: "entropy", title: "Spread of importance over heads", remark: "entropy, 1: all alike", note: "", line: (v) => v.concentration.entropy, range: [0, 1], more: (v, p) => `excess kurtosis ${number(v.concentration.kurtosis[p])}${isNumber(v.concentration.intensity[p]) ? `, sum of |raw score| ${number(v.concentration.intensity[p])}` : ""}`, words: number },
  { id: "layers", title: "Where in depth", remark: "heads that emerged (up) and base heads dropped (down) up to now", note: "", layers: true, words: whole },
];

function layerProfile(run, view, now) {
  const up = new Array(run.model.n_layers).fill(0), down = up.slice();
  view.lives.heads.forEach(([layer], row) => {
    const lives = view.lives.lives[row], group = view.lives.group[row];
    if (group === "joined" && [...lives.slice(0, now + 1)].some(isActive)) up[layer] += 1;
    if (group === "base" && life(lives[now]).state === 3) down[layer] += 1;
  });
  return [up, down];
}

/* One scale a signal for all runs, so that columns can be compared by eye. */
function signalDomain(signal, runs, views) {
  if (signal.range) return signal.range;
  const values = [0];
  views.forEach((view, r) => {
    if (!view) return;
    if (signal.line) values.push(...signal.line(view).filter(isNumber));
    if (signal.band) values.push(...signal.band(view)[1].filter(isNumber));
    const bars = signal.bars ? signal.bars(view) : signal.layers ? layerProfile(runs[r], view, runs[r].steps.length - 1) : null;
    if (bars) values.push(...bars[0], ...bars[1].map((n) => -n));
  });
  const low = Math.min(...values), high = Math.max(...values);
  return [low, high > low ? high : low + 1];
}

/* Whether any run has something to show for this signal. */
function signalKnown(signal, views) {
  return views.some((view) => view && (signal.line ? signal.line(view).some(isNumber) : true));
}

function drawSignal(svg, signal, run, view, domain, scales, now) {
  const width = svg.width_(), top = 26, bottom = 104, right = width - 46;
  svg.begin(bottom + (signal.layers ? 34 : 22));
  heading(svg, LEFT, 12, signal.title, "", width - LEFT);
  const y = linear(domain[0], domain[1], bottom, top);
  for (const tick of ticks(domain[0], domain[1], 3)) {
    if (signal.words === whole && tick !== Math.round(tick)) continue;
    mark(svg, "line", { class: tick === 0 ? "axis" : "grid", x1: LEFT, x2: right, y1: y(tick), y2: y(tick) });
    label(svg, LEFT - 6, y(tick) + 3.5, number(Math.abs(tick)), { "text-anchor": "end" });
  }
  const layers = run.model.n_layers, x = signal.layers ? linear(-0.5, layers - 0.5, LEFT, right) : linear(scales.first, scales.last, LEFT, right);
  const marked = signal.layers ? ticks(0, layers - 1, width / 60).filter(Number.isInteger) : stepTicks(scales, width / 110);
  for (const tick of marked) label(svg, x(tick), bottom + 15, whole(tick), { "text-anchor": "middle" });
  if (signal.layers) label(svg, right, bottom + 29, "layer", { "text-anchor": "end" });
  if (!view) return;
  const steps = run.steps, at = (p) => x(steps[p]);
  if (signal.band) {
    const [low, high] = signal.band(view), known = steps.map((_, p) => p).filter((p) => isNumber(low[p]) && isNumber(high[p]));
    mark(svg, "path", { class: "band f-unproven chance", d: area(known.map((p) => [at(p), y(high[p])]), known.map((p) => [at(p), y(low[p])])) }, "what the sample of pairs alone does (95 %)");
  }
  if (signal.bars || signal.layers) {
    const [up, down] = signal.layers ? layerProfile(run, view, now) : signal.bars(view);
    const room = signal.layers ? (right - LEFT) / layers : (right - LEFT) / Math.max(1, steps.length);
    const wide = clamp(room * 0.7, 1, 14);
    if (![...up, ...down].some((n) => n)) label(svg, (LEFT + right) / 2, y(0) - 8, "none so far", { "text-anchor": "middle" });
    up.forEach((n, i) => {
      const middle = signal.layers ? x(i) : at(i), said = signal.layers ? `Layer ${i}: ${n} emerged, ${down[i]} dropped` : `Step ${whole(steps[i])}: ${n} gained, ${down[i]} lost`;
      if (n) mark(svg, "rect", { class: "bar up f-new", x: middle - wide / 2, y: y(n), width: wide, height: y(0) - y(n) }, said);
      if (down[i]) mark(svg, "rect", { class: "bar down f-base", x: middle - wide / 2, y: y(0), width: wide, height: y(-down[i]) - y(0) }, said);
    });
    if (signal.layers) return;
  } else {
    const values = signal.line(view);
    mark(svg, "path", { class: "line plain signal", "data-signal": signal.id, d: path(values.map((v, p) => [at(p), isNumber(v) ? y(v) : null])) });
    if (values.length <= 60) values.forEach((v, p) => { if (isNumber(v)) mark(svg, "circle", { class: "dot", cx: at(p), cy: y(v), r: values.length === 1 ? 3 : 1.8 }, `Step ${whole(steps[p])}: ${signal.words(v)}${signal.band && isNumber(signal.band(view)[0][p]) ? ` (by chance ${number(signal.band(view)[0][p])} to ${number(signal.band(view)[1][p])})` : ""}${signal.more ? "\n" + signal.more(view, p) : ""}`); });
    if (isNumber(values[now])) label(svg, right + 6, clamp(y(values[now]), top + 4, bottom) + 4, signal.words(values[now]), { class: "end" });
  }
  mark(svg, "line", { class: "now", x1: at(now), x2: at(now), y1: top - 2, y2: bottom });
}

function drawSignals(block, run, view, runs, views, scales, now) {
  if (!block.charts) {
    block.charts = SIGNALS.map((signal) => {
      const box = element(block, "div"), svg = chart(box, "signal", `${signal.title} of ${run.name}: ${signal.remark}`);
      return { box, svg, note: element(box, "p", { class: "facts" }) };
    });
  }
  SIGNALS.forEach((signal, k) => {
    block.charts[k].box.hidden = !signalKnown(signal, views);
    block.charts[k].note.textContent = `${signal.remark[0].toUpperCase()}${signal.remark.slice(1)}. ${typeof signal.note === "function" ? signal.note(view) : signal.note}`;
  });
  SIGNALS.forEach((signal, k) => { if (!block.charts[k].box.hidden) drawSignal(block.charts[k].svg, signal, run, view, signalDomain(signal, runs, views), scales, now); });
}
