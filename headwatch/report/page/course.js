/* course.js: strips over the training step, one under the other on one x axis. */

const LEFT = 40, RIGHT = 92, PLOT = { cohorts: 168, retained: 46, small: 52 }, ALONE = { cohorts: 224, retained: 60, small: 64 };

/* What the strips of all runs share: domains, and which strips there are, so that columns can be compared by eye. */
function courseScales(runs, views) {
  const top = (values) => Math.max(0, ...values.filter(isNumber));
  const bottom = (values) => Math.min(...values.filter(isNumber), Infinity);
  const newly = Math.max(...views.map((v) => (v ? top(v.cohorts.newly_active) : 0)));
  const retained = Math.max(...views.map((v) => (v ? top(v.cohorts.retained) : 0)));
  const curves = ["reward", "loss", "accuracy"].filter((name) => runs.some((run) => run.training[name]));
  const domain = {};
  for (const name of curves) {
    const values = runs.flatMap((run) => (run.training[name] ? run.training[name].values : [])).filter(isNumber);
    const low = bottom(values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * 0.06;
    domain[name] = [low >= 0 && low < 0.5 * high ? 0 : low - pad, high + pad];
  }
  const gaps = views.flatMap((v) => (v ? v.probe.gap : [])).filter(isNumber);
  domain.probe = [0, 1];
  domain.gap = [Math.min(0, ...gaps), Math.max(...gaps, 0) * 1.06 || 1];
  const last = Math.max(1, ...runs.map((run) => run.steps[run.steps.length - 1] || 0), ...runs.flatMap((run) => curves.map((name) => (run.training[name] ? Math.max(...run.training[name].steps) : 0))));
  /* Base heads on an axis of their own where they would flatten the new ones. */
  return { alone: runs.length === 1, newly: Math.max(newly, 1), retained: Math.max(retained, 1), apart: newly > 0 && retained > 2.5 * newly, curves, domain, first: Math.min(0, ...runs.map((r) => r.steps[0] || 0)), last };
}

function drawCourse(svg, run, view, scales, now) {
  const width = svg.width_(), right = width - RIGHT;
  const x = linear(scales.first, scales.last, LEFT, right);
  const height = scales.alone ? ALONE : PLOT;
  const strips = [["cohorts", height.cohorts]];
  if (scales.apart) strips.push(["retained", height.retained]);
  for (const name of scales.curves) strips.push([name, height.small]);
  strips.push(["probe", height.small], ["gap", height.small]);
  let y = 8;
  const places = strips.map(([name, height]) => { const top = y + 20; y = top + height + 10; return { name, top, bottom: top + height }; });
  const foot = y - 4;
  svg.begin(foot + 34);
  hatching(svg);
  const stepNow = view ? run.steps[now] : null;
  const over = []; /* words, drawn last: over the veil and the line of "now" */
  for (const place of places) drawStrip(svg, place, run, view, scales, x, right, now, over);
  if (view) weakBands(svg, run, view, x, places[0].top, foot - 6);
  for (const tick of stepTicks(scales, width / 110)) {
    mark(svg, "line", { class: "axis", x1: x(tick), x2: x(tick), y1: foot - 6, y2: foot - 2 });
    label(svg, x(tick), foot + 11, whole(tick), { "text-anchor": "middle" });
  }
  label(svg, x(scales.last), foot + 26, "training step", { "text-anchor": "end" });
  if (isNumber(stepNow)) {
    for (const place of stepNow < scales.last ? places : []) mark(svg, "rect", { class: "veil", x: x(stepNow), y: place.top - 2, width: right - x(stepNow) + 3, height: place.bottom - place.top + 2 });
    mark(svg, "line", { class: "now", x1: x(stepNow), x2: x(stepNow), y1: places[0].top - 2, y2: foot - 6 });
  }
  over.forEach((drawn) => drawn());
  svg.stepAt = (clientX) => { const box = svg.getBoundingClientRect(); return x.invert(((clientX - box.left) / box.width) * width); };
}

function stepTicks(scales, about) { return ticks(scales.first, scales.last, about).filter(Number.isInteger); }

function drawStrip(svg, place, run, view, scales, x, right, now, over) {
  const { name, top, bottom } = place;
  const curve = run.training[name];
  const titles = { cohorts: ["Newly active heads", "by step of first emergence"], retained: ["Base heads still active", ""], probe: ["Probe accuracy", ""], gap: ["Metric gap", view ? view.probe.unit : ""] };
  const nice = { reward: "Reward", loss: "Loss", accuracy: "Training accuracy" };
  const said = titles[name] || [nice[name], curve ? [curve.key === name ? "" : curve.key, curve.logs_a_point > 1 ? `mean of ${curve.logs_a_point} logs a point` : ""].filter(Boolean).join(", ") : ""];
  if (name === "cohorts" && !scales.apart) said[1] += "; dashed: base heads still active";
  over.push(() => heading(svg, LEFT, top - 7, said[0], said[1], right + RIGHT - LEFT));
  const domain = scales.domain[name] || [0, name === "retained" ? scales.retained : scales.apart ? scales.newly : Math.max(scales.newly, scales.retained)];
  const y = linear(domain[0], domain[1], bottom, top);
  const integer = name === "cohorts" || name === "retained";
  for (const tick of ticks(domain[0], domain[1], (bottom - top) / (name === "cohorts" ? 42 : 26))) {
    if (integer && tick !== Math.round(tick)) continue;
    mark(svg, "line", { class: tick === 0 ? "axis" : "grid", x1: LEFT, x2: right, y1: y(tick), y2: y(tick) });
    label(svg, LEFT - 6, y(tick) + 3.5, number(tick), { "text-anchor": "end" });
  }
  if (name === "cohorts" || name === "retained") { if (view) drawCounts(svg, name, place, run, view, scales, x, y, right, now); return; }
  const steps = curve ? curve.steps : run.steps;
  const values = curve ? curve.values : view && name === "probe" ? view.probe.accuracy : view && name === "gap" ? view.probe.gap : [];
  if (!values.some(isNumber)) { over.push(() => label(svg, (LEFT + right) / 2, (top + bottom) / 2 + 4, "not logged", { "text-anchor": "middle" })); return; }
  mark(svg, "path", { class: "line plain series", "data-series": name, d: path(values.map((v, i) => [x(steps[i]), isNumber(v) ? y(v) : null])) });
  if (values.length <= 40) values.forEach((v, i) => { if (isNumber(v)) mark(svg, "circle", { class: "dot", cx: x(steps[i]), cy: y(v), r: values.length === 1 ? 3 : 1.6 }, `${said[0]} at step ${whole(steps[i])}: ${number(v)}`); });
  const at = curve ? lastAtMost(steps, run.steps[now] === run.steps[run.steps.length - 1] ? Infinity : run.steps[now]) : now;
  if (isNumber(values[at])) label(svg, right + 8, clamp(y(values[at]), top + 4, bottom) + 4, name === "probe" ? percent(values[at]) : number(values[at]), { class: "end" });
}

function drawCounts(svg, name, place, run, view, scales, x, y, right, now) {
  const { cohorts, newly_active: newly, retained, steps } = view.cohorts;
  const line = (values) => path(values.map((v, i) => [x(steps[i]), y(v)]));
  const single = steps.length === 1;
  if (name === "cohorts") {
    const below = steps.map(() => 0);
    cohorts.forEach((cohort, k) => {
      const lower = below.map((v, i) => [x(steps[i]), y(v)]);
      cohort.active.forEach((n, i) => { below[i] += n; });
      const upper = below.map((v, i) => [x(steps[i]), y(v)]);
      const band = mark(svg, "path", { class: "cohort", "data-step": cohort.step, d: area(upper, lower) }, `First emerged at step ${whole(cohort.step)}\n${count(Math.max(...cohort.active), "head")} at most, ${cohort.active[now]} active at step ${whole(steps[now])}`);
      band.style.fill = ramp(cohorts.length > 1 ? k / (cohorts.length - 1) : 0);
    });
    mark(svg, "path", { class: "line newly", d: line(newly) });
    if (steps.length <= 60) newly.forEach((n, i) => mark(svg, "circle", { class: "dot", cx: x(steps[i]), cy: y(n), r: single ? 3 : 1.8 }, `Step ${whole(steps[i])}: ${count(n, "head")} newly active, ${retained[i]} base heads active`));
  }
  const shows = [];
  if (name === "cohorts") shows.push({ y: y(newly[now]), text: `${newly[now]} newly active`, fill: "var(--ink)" });
  if ((name === "retained") === scales.apart) {
    mark(svg, "path", { class: "line retained", d: line(retained) });
    if (single) mark(svg, "circle", { class: "f-base", cx: x(steps[0]), cy: y(retained[0]), r: 3 });
    shows.push({ y: y(retained[now]), text: `${retained[now]} retained`, fill: "var(--base)" });
  }
  shows.sort((a, b) => a.y - b.y);
  if (shows.length > 1 && shows[1].y - shows[0].y < 14) { const middle = (shows[0].y + shows[1].y) / 2; shows[0].y = middle - 7; shows[1].y = middle + 7; }
  for (const show of shows) { label(svg, right + 8, Math.min(show.y, place.bottom - 2) + 4, show.text, { class: "end" }).style.fill = show.fill; }
}

/* Early cohorts dark, late ones light: an order that survives any colour vision and a grey print. */
function ramp(t) {
  return t <= 0.5 ? `color-mix(in oklab, var(--ramp-0) ${100 - 200 * t}%, var(--ramp-1))` : `color-mix(in oklab, var(--ramp-1) ${200 - 200 * t}%, var(--ramp-2))`;
}

function hatching(svg) {
  const pattern = mark(mark(svg, "defs"), "pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  const stripe = mark(pattern, "line", { x1: 0, y1: 0, x2: 0, y2: 6, "stroke-width": 1.6 });
  stripe.style.stroke = "var(--rule)";
}

/* Hatched from halfway before to halfway after every probe that said "insufficient signal". */
function weakBands(svg, run, view, x, top, bottom) {
  view.cohorts.signal.forEach((good, i) => {
    if (good) return;
    const s = run.steps, from = i ? (s[i - 1] + s[i]) / 2 : s[i], to = i + 1 < s.length ? (s[i] + s[i + 1]) / 2 : s[i];
    mark(svg, "rect", { class: "weak", x: x(from), y: top, width: Math.max(6, x(to) - x(from)), height: bottom - top });
  });
}

function clamp(value, low, high) { return Math.max(low, Math.min(high, value)); }

/* Persistence up to now: how many of the heads that ever emerged are active, in all and by the step of first emergence. */
function drawPersistence(box, run, view, now) {
  box.replaceChildren();
  const born = view ? view.cohorts.cohorts.map(({ step, active }) => ({ step, at: run.steps.indexOf(step), active })).filter((c) => c.at >= 0 && c.at <= now) : [];
  if (!born.length) return;
  const told = born.map(({ step, at, active }) => ({ step, all: active[at], left: active[now] }));
  const sum = (name) => told.reduce((n, cohort) => n + cohort[name], 0), all = sum("all"), left = sum("left");
  const said = element(box, "p", {}, `Persistence: ${left} of ${count(all, "head")} that ever emerged ${left === 1 ? "is" : "are"} active at step ${whole(run.steps[now])} (${percent(left / all)}).`);
  if (told.length < 2) { said.append(` All first emerged at step ${whole(told[0].step)}.`); return; }
  const more = element(box, "details"), list = element(more, "ul", { class: "plain-list" });
  more.prepend(element(null, "summary", {}, "by cohort"));
  more.open = document.body.classList.contains("printing");  // made anew at every drawing
  for (const { step, all: n, left: m } of told) element(list, "li", {}, `since step ${whole(step)}: ${m} of ${n} (${percent(m / n)})`);
}
