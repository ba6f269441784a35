/* signals.js: small charts: null band of membership changes, turnover, agreement, KL, distribution, layers. */

const SIGNALS = [
  { id: "membership", title: "Changes of the active set", remark: "Heads that entered or left since the base, whatever the evidence.", note: bandNote, line: (v) => v.noise.membership, band: (v) => [v.noise.low, v.noise.high], text: whole },
  { id: "turnover", title: "Turnover", remark: "Heads gained and lost since the previous probe, by the chosen rule.", bars: (v) => [v.turnover.gained, v.turnover.lost], text: whole },
  { id: "split", title: "Agreement of two halves of the pairs", remark: "Rank correlation of mean head scores. Near 1: the ranking of heads hardly depends on the sample of pairs.", line: (v) => v.noise.split_half, range: [0, 1], text: number },
  { id: "kl", title: "KL of the probe answers from the base model", remark: "Nats, mean over the pairs: how far the model has moved on the probes, independently of the reward.", line: (v) => v.probe.kl, text: number },
  { id: "entropy", title: "Distribution of importance over heads", remark: "Entropy; 1: uniform.", line: (v) => v.concentration.entropy, range: [0, 1], more: concentrationText, text: number },
  { id: "layers", title: "Layers of emerged and dropped heads", remark: "Heads that emerged (up) and base heads dropped (down) up to now.", layers: true, text: whole },
];

function bandNote(view) {
  if (!view || !view.noise.high.some(isNumber)) return "No null band was recorded for this rule.";
  return `Shaded: null band, 95 % of the changes between two ${chosen.rule === "circuit" ? "halves" : "samples"} of one probe’s pairs. A count inside it is no evidence of change.`;
}

function concentrationText({ concentration }, p) {
  const intensity = concentration.intensity[p];
  return `\nexcess kurtosis ${number(concentration.kurtosis[p])}${isNumber(intensity) ? `, sum of |raw score| ${number(intensity)}` : ""}`;
}

function layerProfile(run, view, now) {
  const up = new Array(run.model.n_layers).fill(0), down = up.slice();
  view.lives.heads.forEach(([layer], row) => {
    const group = view.lives.group[row];
    if (group === "joined" && activeUpTo(view, row, now)) up[layer] += 1;
    if (group === "base" && STATES[life(view.lives.lives[row][now]).state] === "dropped") down[layer] += 1;
  });
  return [up, down];
}

/* One scale per signal for all runs, so that columns can be compared by eye. */
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

/* Whether a run has data for this signal. */
const signalKnown = (signal, view) => Boolean(view) && (signal.line ? signal.line(view).some(isNumber) : signal.bars ? signal.bars(view).flat().some(Boolean) : view.lives.heads.length > 0);

function drawSignal(svg, signal, run, view, domain, scales, now) {
  const plot = { svg, width: svg.width_(), top: 26, bottom: 104 }, layers = run.model.n_layers;
  plot.right = plot.width - 46;
  svg.begin(plot.bottom + (signal.layers ? 34 : 22));
  heading(svg, LEFT, 12, signal.title, "", plot.width - LEFT - HELP_WIDTH);
  plot.y = linear(domain[0], domain[1], plot.bottom, plot.top);
  plot.x = signal.layers ? linear(-0.5, layers - 0.5, LEFT, plot.right) : linear(scales.first, scales.last, LEFT, plot.right);
  gridLines(svg, plot.y, ticks(domain[0], domain[1], 3).filter((tick) => signal.text !== whole || Number.isInteger(tick)), plot.right, (tick) => number(Math.abs(tick)));
  xLabels(svg, plot.x, signal.layers ? ticks(0, layers - 1, plot.width / 60).filter(Number.isInteger) : stepTicks(scales, plot.width), plot.bottom + 15);
  if (signal.layers) label(svg, plot.right, plot.bottom + 29, "layer", { "text-anchor": "end" });
  if (!view) return;
  if (signal.band) drawBand(plot, signal.band(view), run.steps);
  if (signal.bars || signal.layers) drawBars(plot, signal, run, view, now);
  else drawLine(plot, signal, run, view, now);
  if (!signal.layers) nowLine(svg, plot.x(run.steps[now]), plot.top - 2, plot.bottom);
}

function drawBand({ svg, x, y }, [low, high], steps) {
  const known = steps.map((_, p) => p).filter((p) => isNumber(low[p]) && isNumber(high[p]));
  const edge = (values) => known.map((p) => [x(steps[p]), y(values[p])]);
  mark(svg, "path", { class: "band f-untested chance", d: area(edge(high), edge(low)) }, "null band: 95 % of the changes by the sample of pairs alone");
}

function drawBars({ svg, x, y, right }, signal, run, view, now) {
  const [up, down] = signal.layers ? layerProfile(run, view, now) : signal.bars(view), steps = run.steps;
  const width = clamp(((right - LEFT) / Math.max(1, up.length)) * 0.7, 1, 14);
  if (![...up, ...down].some((n) => n)) label(svg, (LEFT + right) / 2, y(0) - 8, "none so far", { "text-anchor": "middle" });
  up.forEach((n, i) => {
    const left = x(signal.layers ? i : steps[i]) - width / 2, tip = signal.layers ? `Layer ${i}: ${n} emerged, ${down[i]} dropped` : `Step ${whole(steps[i])}: ${n} gained, ${down[i]} lost`;
    if (n) mark(svg, "rect", { class: "bar up f-new", x: left, y: y(n), width, height: y(0) - y(n) }, tip);
    if (down[i]) mark(svg, "rect", { class: "bar down f-base", x: left, y: y(0), width, height: y(-down[i]) - y(0) }, tip);
  });
}

function drawLine({ svg, x, y, top, bottom, right }, signal, run, view, now) {
  const values = signal.line(view), steps = run.steps;
  mark(svg, "path", { class: "line plain signal", "data-signal": signal.id, d: path(values.map((v, p) => [x(steps[p]), isNumber(v) ? y(v) : null])) });
  const tip = (v, p) => {
    const band = signal.band && signal.band(view);
    return `Step ${whole(steps[p])}: ${signal.text(v)}${band && isNumber(band[0][p]) ? ` (null band ${number(band[0][p])} to ${number(band[1][p])})` : ""}${signal.more ? signal.more(view, p) : ""}`;
  };
  if (values.length <= 60) values.forEach((v, p) => { if (isNumber(v)) mark(svg, "circle", { class: "dot", cx: x(steps[p]), cy: y(v), r: values.length === 1 ? 3 : 1.8 }, tip(v, p)); });
  if (isNumber(values[now])) endLabel(svg, right + 6, y(values[now]), top, bottom, signal.text(values[now]));
}

function drawSignals(block, run, view, runs, views, scales, now) {
  block.charts = block.charts || SIGNALS.map((signal) => {
    const box = element(block, "div", { class: "helped" }), note = help(box, "");
    return { box, svg: chart(box, "signal", `${signal.title} of ${run.name}: ${signal.remark}`), note };
  });
  SIGNALS.forEach((signal, k) => {
    const { box, note } = block.charts[k];
    box.hidden = !signalKnown(signal, view);
    note.textContent = signal.remark + (signal.note ? " " + signal.note(view) : "");
  });
  /* Drawn after all notes are in place: a chart takes its width from the layout. */
  SIGNALS.forEach((signal, k) => { if (!block.charts[k].box.hidden) drawSignal(block.charts[k].svg, signal, run, view, signalDomain(signal, runs, views), scales, now); });
}
