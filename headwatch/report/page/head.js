/* head.js: a head's own page, a dialog: share, raw score and importance, changes since the base, edges, events. */

/* --- values of a head ----------------------------------------------------------------------------------------------- */

/* {probes, values} of a head in a table of paths; null where the report has none. */
function pathValues(paths, head) {
  const row = paths ? rowOf(paths, head) : undefined;
  return row === undefined ? null : { probes: paths.probes, values: scaled(paths.rows[row], paths.unit), row };
}

const scaled = (values, unit) => values.map((v) => (isNumber(v) ? v * unit : null));
const sumOf = (values, others, sign) => values.map((v, i) => (v === null || others[i] === null ? null : v + sign * others[i]));

/* {probes, values, low, high, raw, detectable}: share with its interval. A raw score is the share times the metric gap. */
function sharePath(view, head) {
  const kept = view && pathValues(view.shares, head);
  if (!kept) return null;
  const { probes, values, row } = kept, half = scaled(view.shares.half_widths[row], view.shares.unit);
  const raw = values.map((v, i) => { const gap = view.probe.gap[probes[i]]; return v === null || !isNumber(gap) ? null : v * gap * view.probe.direction; });
  return { probes, values, low: sumOf(values, half, -1), high: sumOf(values, half, 1), raw, detectable: view.shares.detectable[row] };
}

/* {probes, values, low, high}: the paper's importance; no low and high where the record has no resamples. */
function importancePath(run, head) {
  const family = run.families[chosen.family], paths = family && family.rules.circuit && family.rules.circuit.importance;
  const kept = pathValues(paths, head);
  if (!kept || !paths.low) return kept;
  const { probes, values, row } = kept;
  const end = (distances, sign) => sumOf(values, distances ? scaled(distances, paths.unit) : values.map(() => 0), sign); /* 0: all of them are 0 */
  return { probes, values, low: end(paths.low[row], -1), high: end(paths.high[row], 1) };
}

/* Names of the rows (sources) and columns (targets) of the edge matrix, in the order of Anatomy. */
function sourceName(index, heads) {
  if (!index) return "input";
  const layer = Math.floor((index - 1) / (heads + 1)), at = (index - 1) % (heads + 1);
  return at === heads ? `L${layer} MLP` : headName([layer, at]);
}

function targetName(index, layers, heads) {
  const layer = Math.floor(index / (3 * heads + 1)), at = index % (3 * heads + 1);
  if (layer >= layers) return "logits";
  return at === 3 * heads ? `L${layer} MLP` : `${headName([layer, Math.floor(at / 3)])} (${"qkv"[at % 3]})`;
}

/* {step, into, out} of a head at the last kept probe up to now: [name, mean |edge score|], strongest first. */
function edgesOf(run, head, now) {
  const family = run.families[chosen.family], edges = family && family.edges, row = edges ? rowOf(edges, head) : undefined;
  if (row === undefined) return null;
  let at = -1;
  edges.probes.forEach((probe, q) => { if (probe <= now && edges.out[row][q]) at = q; });
  if (at < 0) return null;
  const { n_layers: layers, n_heads: heads } = run.model;
  const grouped = (values, size) => Array.from({ length: values.length / size }, (_, i) => values.slice(i * size, (i + 1) * size));
  return {
    step: run.steps[edges.probes[at]],
    out: grouped(edges.out[row][at], 2).map(([target, v]) => [targetName(target, layers, heads), v * edges.unit]),
    into: grouped(edges.into[row][at], 3).map(([source, kind, v]) => [`${sourceName(source, heads)} → ${"qkv"[kind]}`, v * edges.unit]),
  };
}

/* --- charts --------------------------------------------------------------------------------------------------------- */

/* A line over the steps, with its interval where there is one; dots in the colour of the head's state. */
function drawPath(svg, title, remark, run, view, head, { probes, values, low, high }, domain, scales, now, text) {
  const width = svg.width_(), top = 26, bottom = low ? 150 : 96, right = width - 58;
  svg.begin(bottom + 22);
  heading(svg, LEFT, 12, title, remark, width - LEFT);
  const x = linear(scales.first, scales.last, LEFT, right), y = linear(domain[0], domain[1], bottom, top), at = (i) => x(run.steps[probes[i]]);
  gridLines(svg, y, ticks(domain[0], domain[1], low ? 4 : 3), right, (tick) => (text === percent ? number(tick * 100) + " %" : text(tick)));
  xLabels(svg, x, stepTicks(scales, width), bottom + 15);
  const known = values.map((_, i) => i).filter((i) => low && low[i] !== null);
  if (known.length === 1) mark(svg, "line", { class: "s-ink interval", x1: at(known[0]), x2: at(known[0]), y1: y(low[known[0]]), y2: y(high[known[0]]) });
  else if (known.length) mark(svg, "path", { class: "band f-new interval", d: area(known.map((i) => [at(i), y(high[i])]), known.map((i) => [at(i), y(low[i])])) });
  mark(svg, "path", { class: "line plain own", d: path(values.map((v, i) => [at(i), v === null ? null : y(v)])) });
  const row = view ? rowOf(view.lives, head) : undefined;
  values.forEach((v, i) => {
    if (v === null) return;
    const sign = row === undefined ? "0" : view.lives.lives[row][probes[i]];
    mark(svg, "circle", { class: "f-" + (hue(sign) || "untested"), cx: at(i), cy: y(v), r: isActive(sign) ? 3 : 2 }, `Step ${whole(run.steps[probes[i]])}: ${text(v)}${low ? ` (${text(low[i])} to ${text(high[i])})` : ""}\n${stateText(sign)}`);
  });
  const last = lastAtMost(probes, now);
  if (isNumber(values[last])) endLabel(svg, right + 6, y(values[last]), top, bottom, text(values[last]));
  nowLine(svg, x(run.steps[now]), top - 2, bottom);
}

function domainOf(lists, pad) {
  const values = lists.flat().filter(isNumber), low = Math.min(0, ...values), high = Math.max(0, ...values), room = (high - low || pad) * 0.06;
  return [low < 0 ? low - room : 0, high > 0 ? high + room : low < 0 ? 0 : pad];
}

/* One domain for all runs: of paths with their intervals, or of another of their fields. */
const pathDomain = (paths, pad, field) => domainOf(paths.flatMap((p) => (p ? (field ? [p[field]] : [p.values, p.low || [], p.high || []]) : [])), pad);

/* --- tables --------------------------------------------------------------------------------------------------------- */

const finePercent = (v) => (isNumber(v) ? `${signed(+(v * 100).toPrecision(3))} %` : "–");

/* Change of share, raw score and importance since the base, with interval, p and q, at the last kept probe up to now. */
function drawChanges(parent, run, view, head, now) {
  const found = view.since_base, row = found ? rowOf(found, head) : undefined;
  if (chosen.rule !== "evidence") return;
  const title = element(parent, "h3", {}, "Change since the base ");
  if (row === undefined) { element(parent, "p", { class: "facts" }, found ? "Not kept for this head." : "There is no probe with signal after the base yet."); return; }
  element(title, "small", {}, "paired, on the same pairs");
  const q = Math.max(0, found.probes.filter((probe) => probe <= now).length - 1), probe = found.probes[q];
  element(parent, "p", { class: "facts" }, `At step ${whole(run.steps[probe])}${probe > now ? ", the first kept probe" : probe < now ? ", the last kept probe up to now" : ""}. q is corrected over the heads, for each measure separately.`);
  const grid = element(element(parent, "div", { class: "scroll" }), "table", { class: "changes" });
  const names = element(element(grid, "thead"), "tr"), body = element(grid, "tbody");
  const kindOf = (k) => (k === 3 ? { class: "narrow-off" } : {}); /* p, where there is room */
  ["", "change", "95 % interval", "p", "q"].forEach((name, k) => element(names, "th", { scope: "col", ...kindOf(k) }, name));
  for (const [name, of, text] of [["Share of the metric gap", "share", finePercent], ["Raw score", "raw", number], ["Fraction of all |share|", "importance", finePercent]]) {
    const [change, half, p, qValue] = found[of][row].slice(4 * q, 4 * q + 4), line = element(body, "tr");
    element(line, "th", { scope: "row" }, name);
    [text(change), isNumber(half) ? `${text(change - half)} to ${text(change + half)}` : "–", number(p), number(qValue)].forEach((value, k) => element(line, "td", kindOf(k + 1), value));
  }
}

function drawEdges(parent, run, head, now) {
  const edges = edgesOf(run, head, now), title = element(parent, "h3", {}, "Strongest edges ");
  if (!edges) { element(parent, "p", { class: "facts" }, run.families[chosen.family].edges ? "Not kept for this head." : "This run was scored by heads only, without edges."); return; }
  element(title, "small", {}, `mean |edge score| over the pairs at step ${whole(edges.step)}; without sign`);
  const pair = element(parent, "div", { class: "edge-pair" });
  edgeTable(pair, "Reads from", edges.into);
  edgeTable(pair, "Writes to", edges.out);
}

function edgeTable(parent, caption, rows) {
  const grid = element(element(parent, "div"), "table", { class: "edges" }), body = element(grid, "tbody");
  element(grid, "caption", {}, caption);
  const most = Math.max(...rows.map(([, v]) => v), 0);
  for (const [name, value] of rows) {
    const line = element(body, "tr");
    element(line, "th", { scope: "row" }, name);
    element(element(line, "td"), "i").style.width = `${Math.round((value / most) * 90)}px`;
    element(line, "td", { class: "value" }, number(value));
  }
  if (!rows.length) element(element(body, "tr"), "td", {}, "none above the smallest value kept");
}

function drawHeadEvents(parent, run, view, head) {
  const rows = eventsOf(run, view, head);
  element(parent, "h3", {}, "Events");
  if (!rows.length) { element(parent, "p", { class: "facts" }, chosen.rule === "evidence" ? "None: no change of this head met the conditions for an event." : "None: the head did not enter or leave the circuit."); return; }
  const list = element(parent, "ul", { class: "plain-list" });
  for (const row of rows) {
    const line = element(list, "li");
    element(line, "span", { class: "kind " + kindClass(row.kind) }, row.kind);
    line.append(` at step ${whole(row.step)}: ${eventEvidence(row)}`);
  }
}

/* State and events of the head in the other families, each by its own test. */
function drawOtherFamilies(parent, run, head, now) {
  for (const [family, { rules }] of Object.entries(run.families)) {
    const view = rules[chosen.rule];
    if (family === chosen.family || !view) continue;
    const row = rowOf(view.lives, head), events = eventsOf(run, view, head).map((e) => `${e.kind} at step ${whole(e.step)} (${eventEvidence(e)})`);
    element(parent, "p", { class: "facts" }, `On ${family}: ${row === undefined ? "never active" : stateText(view.lives.lives[row][now])}${events.length ? ". " + events.join(". ") : ", no events"}.`);
  }
}

/* --- the page ------------------------------------------------------------------------------------------------------- */

const headDialog = () => byId("head-page");

function drawHeadPage(views, nows, scales) {
  const dialog = headDialog(), head = chosen.head;
  if (!chosen.open || !head) { if (dialog.open) dialog.close(); return; }
  if (!dialog.open) dialog.showModal();
  byId("head-title").textContent = `Head ${head[1]} of layer ${head[0]}`;
  byId("head-about").textContent = `${headName(head)} · ${chosen.family} · ${chosen.rule} rule`;
  byId("head-step").max = Math.max(0, steps.length - 1);
  byId("head-step").value = chosen.now;
  byId("head-step").setAttribute("aria-valuetext", stepText());
  byId("head-step-text").textContent = `step ${whole(steps.length ? steps[chosen.now] : 0)}`;
  const body = byId("head-body");
  body.replaceChildren();
  const shares = views.map((view) => sharePath(view, head)), weights = runs.map((run) => importancePath(run, head));
  const domains = { share: pathDomain(shares, 0.01), raw: pathDomain(shares, 0.1, "raw"), importance: pathDomain(weights, 0.001) };
  const blocks = runs.map(() => element(body, "div"));
  runs.forEach((run, r) => {
    columnTitle(blocks[r], run);
    drawHeadOfRun(blocks[r], run, views[r], nows[r], head, shares[r], weights[r], domains, scales[r]);
  });
}

function drawHeadOfRun(block, run, view, now, head, share, weight, domains, scales) {
  if (!view) { element(block, "p", { class: "empty" }, missingText(run)); return; }
  if (!isHeadOf(run, head)) { element(block, "p", { class: "empty" }, `This run’s model has no such head: ${count(run.model.n_layers, "layer")} of ${count(run.model.n_heads, "head")}${run.model.layers_with_heads ? `, in ${run.model.layers_with_heads.length} layers` : ""}.`); return; }
  const name = headName(head);
  element(block, "p", { class: "facts" }, unbroken(headTexts(view, head, now).join(" · ")));
  if (share) {
    const detectable = share.detectable[lastAtMost(share.probes, now)] === "1";
    drawPath(chart(block, "head-share", `Share of ${name} over the steps of ${run.name}, with its 95 % interval`), "Share of the metric gap", "95 % interval over the pairs", run, view, head, share, domains.share, scales, now, percent);
    if (isNumber(share.values[lastAtMost(share.probes, now)])) element(block, "p", { class: "facts detectable" }, `Detection power: the loss of this head now would ${detectable ? "be detected" : "not be detected: too few pairs for its variation between pairs, or too small a share"}.`);
    drawPath(chart(block, "head-raw", `Raw score of ${name} over the steps of ${run.name}`), "Raw score", `estimated effect of corrupting the head on ${view.probe.unit || "the metric"}`, run, view, head, { probes: share.probes, values: share.raw }, domains.raw, scales, now, number);
  } else if (chosen.rule === "evidence") element(block, "p", { class: "facts" }, "The report has no values of this head: it was never active and did not change, and the model has more heads than fit.");
  drawChanges(block, run, view, head, now);
  if (weight) drawPath(chart(block, "head-importance", `Importance of ${name} over the steps of ${run.name}${weight.low ? ", with its 95 % interval" : ""}`), "Importance", `the paper’s: fraction of all |edge score|${weight.low ? "; 95 % of resamples" : ""}`, run, view, head, weight, domains.importance, scales, now, percent);
  drawEdges(block, run, head, now);
  drawHeadRoles(block, run, head);
  drawHeadEvents(block, run, view, head);
  drawOtherFamilies(block, run, head, now);
}

/* The heads in the order of "previous" and "next": as in the raster, then the others. */
function headOrder() {
  const found = new Map();
  for (const heads of [...runs.map((run) => { const view = viewOf(run); return view ? view.lives.heads : []; }), ...runs.map(headsOf)]) {
    for (const head of heads) if (!found.has(keyOf(head))) found.set(keyOf(head), head);
  }
  return [...found.values()];
}

function turnHead(by) {
  const order = headOrder(), at = order.findIndex((head) => same(head, chosen.head));
  chooseHead(order[(at + by + order.length) % order.length]);
}

function openHead(head, step) {
  if (!head) return;
  const before = chosen.open;
  chosen.open = true;
  chooseHead(head, step, !before);
  if (!before) byId("head-step").focus();
}

function headControls() {
  const dialog = headDialog(), slider = byId("head-step");
  slider.addEventListener("input", () => setNow(+slider.value));
  byId("head-previous").addEventListener("click", () => turnHead(-1));
  byId("head-next").addEventListener("click", () => turnHead(1));
  byId("head-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { if (chosen.open) { chosen.open = false; touched = true; writeAddress(); } });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n" || event.key === "p") { event.preventDefault(); turnHead(event.key === "n" ? 1 : -1); }
  });
}
