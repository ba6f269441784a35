/* course.js: charts over the training step, stacked on one x axis. */

const RIGHT = 92, PLOT = { cohorts: 168, none: 62, retained: 46, small: 52 }, ALONE = { cohorts: 224, none: 84, retained: 60, small: 64 };
const CURVES = { reward: "Reward", loss: "Loss", accuracy: "Training accuracy" };

/* The scales of each run: its own charts and its own step axis, unless one axis for all is chosen. */
function runScales(runs, views) {
  const all = courseScales(runs, views);
  return runs.map((run, r) => {
    const view = views[r], known = (values) => Boolean(view) && values.some(isNumber);
    const curves = all.curves.filter((name) => run.training[name]);
    const probed = [...(view && known(view.probe.accuracy) ? ["probe"] : []), ...(view && known(view.probe.gap) ? ["gap"] : [])];
    return Object.assign({}, all, { curves, probed }, chosen.oneAxis ? {} : { first: Math.min(0, run.steps[0] || 0), last: Math.max(1, lastStep(run)) });
  });
}

/* The last step that was probed or logged. */
function lastStep(run) {
  return Math.max(run.steps[run.steps.length - 1] || 0, ...Object.values(run.training).map((curve) => Math.max(...curve.steps)));
}

/* Which charts there are and their domains, the same for all runs so that columns can be compared by eye. */
function courseScales(runs, views) {
  const top = (values) => Math.max(0, ...values.filter(isNumber));
  const newly = Math.max(...views.map((v) => (v ? top(v.cohorts.newly_active) : 0)));
  const retained = Math.max(...views.map((v) => (v ? top(v.cohorts.retained) : 0)));
  const curves = Object.keys(CURVES).filter((name) => runs.some((run) => run.training[name]));
  const domain = { probe: [0, 1] };
  for (const name of curves) {
    const values = runs.flatMap((run) => (run.training[name] ? run.training[name].values : [])).filter(isNumber);
    const low = Math.min(...values, Infinity), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * 0.06;
    domain[name] = [low >= 0 && low < 0.5 * high ? 0 : low - pad, high + pad];
  }
  const gaps = views.flatMap((v) => (v ? v.probe.gap : [])).filter(isNumber);
  domain.gap = [Math.min(0, ...gaps), Math.max(...gaps, 0) * 1.06 || 1];
  const last = Math.max(1, ...runs.map(lastStep));
  /* Base heads have an axis of their own where they would flatten the new ones. */
  return { alone: runs.length === 1, none: !newly, newly: Math.max(newly, 1), retained: Math.max(retained, 1), apart: newly > 0 && retained > 2.5 * newly, curves, domain, first: Math.min(0, ...runs.map((r) => r.steps[0] || 0)), last };
}

function drawCourse(svg, run, view, scales, now) {
  const width = svg.width_(), right = width - RIGHT, x = linear(scales.first, scales.last, LEFT, right);
  if (!view && !scales.curves.length) { svg.begin(1); return; }
  const heights = scales.alone ? ALONE : PLOT;
  let y = 8;
  const places = [...(view && view.lives.heads.length ? ["cohorts"] : []), ...(scales.apart && view && view.lives.heads.length ? ["retained"] : []), ...scales.curves, ...scales.probed].map((name) => {
    const top = y + 20;
    y = top + (name === "cohorts" && scales.none ? heights.none : heights[name] || heights.small) + 10;
    return { name, top, bottom: y - 10 };
  });
  const foot = y - 4, bottom = foot - 6;
  svg.begin(foot + 34);
  drawHatching(svg);
  const texts = []; /* drawn last, above the veil and the line of "now" */
  for (const place of places) drawStrip(svg, place, run, view, scales, x, right, now, texts);
  if (view) drawWeakBands(svg, run, view, x, places[0].top, bottom);
  for (const tick of stepTicks(scales, width)) mark(svg, "line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: foot - 2 });
  xLabels(svg, x, stepTicks(scales, width), foot + 11);
  label(svg, x(scales.last), foot + 26, "training step", { "text-anchor": "end" });
  const step = view ? run.steps[now] : null;
  if (isNumber(step)) {
    for (const place of step < scales.last ? places : []) mark(svg, "rect", { class: "veil", x: x(step), y: place.top - 2, width: right - x(step) + 3, height: place.bottom - place.top + 2 });
    nowLine(svg, x(step), places[0].top - 2, bottom);
  }
  texts.forEach((draw) => draw());
  svg.stepAt = (clientX) => { const box = svg.getBoundingClientRect(); return x.invert(((clientX - box.left) / box.width) * width); };
}

/* [title, remark] of a strip. */
function stripTitle(name, run, view, scales) {
  const curve = run.training[name];
  const remark = { cohorts: "by step of first emergence" + (scales.apart ? "" : "; dashed: base heads still active"), gap: view ? view.probe.unit : "" }[name] || "";
  const title = { cohorts: "Newly active heads", retained: "Base heads still active", probe: "Probe accuracy", gap: "Metric gap" }[name];
  if (title) return [title, remark];
  const about = curve ? [curve.key === name ? "" : curve.key, curve.logs_per_point > 1 ? `mean of ${curve.logs_per_point} logs per point` : ""] : [];
  return [CURVES[name], about.filter(Boolean).join(", ")];
}

function drawStrip(svg, place, run, view, scales, x, right, now, texts) {
  const { name, top, bottom } = place, counts = name === "cohorts" || name === "retained", curve = run.training[name];
  const [title, remark] = stripTitle(name, run, view, scales);
  texts.push(() => heading(svg, LEFT, top - 7, title, remark, right + RIGHT - LEFT));
  const domain = scales.domain[name] || [0, name === "retained" ? scales.retained : scales.apart ? scales.newly : Math.max(scales.newly, scales.retained)];
  const y = linear(domain[0], domain[1], bottom, top);
  gridLines(svg, y, ticks(domain[0], domain[1], (bottom - top) / (name === "cohorts" ? 42 : 26)).filter((tick) => !counts || Number.isInteger(tick)), right, number);
  if (counts) { if (view) drawCounts(svg, name, place, view, scales, x, y, right, now); return; }
  const steps = curve ? curve.steps : run.steps;
  const values = curve ? curve.values : view && name === "probe" ? view.probe.accuracy : view && name === "gap" ? view.probe.gap : [];
  mark(svg, "path", { class: "line plain series", "data-series": name, d: path(values.map((v, i) => [x(steps[i]), isNumber(v) ? y(v) : null])) });
  if (values.length <= 40) values.forEach((v, i) => { if (isNumber(v)) mark(svg, "circle", { class: "dot", cx: x(steps[i]), cy: y(v), r: values.length === 1 ? 3 : 1.6 }, `${title} at step ${whole(steps[i])}: ${number(v)}`); });
  const at = curve ? lastAtMost(steps, run.steps[now] === run.steps[run.steps.length - 1] ? Infinity : run.steps[now]) : now;
  if (isNumber(values[at])) endLabel(svg, right + 8, y(values[at]), top, bottom, name === "probe" ? percent(values[at]) : number(values[at]));
}

function drawCounts(svg, name, place, view, scales, x, y, right, now) {
  const { newly_active: newly, retained, steps } = view.cohorts, single = steps.length === 1, ends = [];
  const line = (values) => path(values.map((v, i) => [x(steps[i]), y(v)]));
  if (name === "cohorts") {
    drawCohorts(svg, view.cohorts, x, y, now);
    mark(svg, "path", { class: "line newly", d: line(newly) });
    if (steps.length <= 60) newly.forEach((n, i) => mark(svg, "circle", { class: "dot", cx: x(steps[i]), cy: y(n), r: single ? 3 : 1.8 }, `Step ${whole(steps[i])}: ${count(n, "head")} newly active, ${count(retained[i], "base head")} active`));
    ends.push({ y: y(newly[now]), text: `${newly[now]} newly active`, fill: "var(--ink)" });
  }
  if ((name === "retained") === scales.apart) {
    mark(svg, "path", { class: "line retained", d: line(retained) });
    if (single) mark(svg, "circle", { class: "f-base", cx: x(steps[0]), cy: y(retained[0]), r: 3 });
    ends.push({ y: y(retained[now]), text: `${retained[now]} retained`, fill: "var(--base)" });
  }
  ends.sort((a, b) => a.y - b.y);
  if (ends.length > 1 && ends[1].y - ends[0].y < 14) { const middle = (ends[0].y + ends[1].y) / 2; ends[0].y = middle - 7; ends[1].y = middle + 7; }
  const over = Math.max(0, ...ends.map((end) => end.y - place.bottom + 2));
  for (const end of ends) label(svg, right + 8, end.y - over + 4, end.text, { class: "end" }).style.fill = end.fill;
}

function drawCohorts(svg, { cohorts, steps }, x, y, now) {
  const below = steps.map(() => 0), points = () => below.map((v, i) => [x(steps[i]), y(v)]);
  cohorts.forEach((cohort, k) => {
    const lower = points();
    cohort.active.forEach((n, i) => { below[i] += n; });
    const band = mark(svg, "path", { class: "cohort", "data-step": cohort.step, d: area(points(), lower) }, `First emerged at step ${whole(cohort.step)}\nat most ${count(Math.max(...cohort.active), "head")}, ${cohort.active[now]} active at step ${whole(steps[now])}`);
    band.style.fill = ramp(cohorts.length > 1 ? k / (cohorts.length - 1) : 0);
  });
}

/* Early cohorts dark, late ones light, which also holds in greyscale. */
function ramp(t) {
  return t <= 0.5 ? `color-mix(in oklab, var(--ramp-0) ${100 - 200 * t}%, var(--ramp-1))` : `color-mix(in oklab, var(--ramp-1) ${200 - 200 * t}%, var(--ramp-2))`;
}

function drawHatching(svg) {
  const pattern = mark(mark(svg, "defs"), "pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  const stripe = mark(pattern, "line", { x1: 0, y1: 0, x2: 0, y2: 6, "stroke-width": 1.6 });
  stripe.style.stroke = "var(--rule)";
}

/* Hatching around every probe with insufficient signal, halfway to its neighbours. */
function drawWeakBands(svg, run, view, x, top, bottom) {
  view.cohorts.signal.forEach((good, i) => {
    if (good) return;
    const s = run.steps, from = i ? (s[i - 1] + s[i]) / 2 : s[i], to = i + 1 < s.length ? (s[i] + s[i + 1]) / 2 : s[i];
    mark(svg, "rect", { class: "weak", x: x(from), y: top, width: Math.max(6, x(to) - x(from)), height: bottom - top });
  });
}

/* Persistence: how many of the heads that emerged up to now are active, in all and by step of first emergence. */
function drawPersistence(box, run, view, now) {
  box.replaceChildren();
  const cohorts = (view ? view.cohorts.cohorts : []).map(({ step, active }) => ({ step, at: run.steps.indexOf(step), active }))
    .filter(({ at }) => at >= 0 && at <= now).map(({ step, at, active }) => ({ step, all: active[at], left: active[now] }));
  if (!cohorts.length) return;
  const sum = (name) => cohorts.reduce((n, cohort) => n + cohort[name], 0), all = sum("all"), left = sum("left");
  const line = element(box, "p", {}, `Persistence: ${left} of ${count(all, "head")} that ever emerged ${left === 1 ? "is" : "are"} active at step ${whole(run.steps[now])} (${percent(left / all)}).`);
  if (cohorts.length < 2) { line.append(` All first emerged at step ${whole(cohorts[0].step)}.`); return; }
  const more = element(box, "details"), list = element(more, "ul", { class: "plain-list" });
  more.prepend(element(null, "summary", {}, "by cohort"));
  more.open = document.body.classList.contains("printing"); /* the element is new at every drawing */
  for (const { step, all: n, left: m } of cohorts) element(list, "li", {}, `since step ${whole(step)}: ${m} of ${n} (${percent(m / n)})`);
}
