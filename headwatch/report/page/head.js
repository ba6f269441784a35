/* head.js: a head's own page, a dialog: share, raw score and importance, what changed since the base, edges, events. */

/* Row of a head in a table of paths ({heads, rows}); undefined where the report keeps none of it. */
function pathRow(paths, head) {
  if (!paths.rowOf) paths.rowOf = new Map(paths.heads.map((at, row) => [keyOf(at), row]));
  return paths.rowOf.get(keyOf(head));
}

/* {probes, share, low, high, raw, detectable} of a head; raw = share x metric gap, as the share is the one over the other. */
function headPath(view, head) {
  const paths = view && view.shares, row = paths ? pathRow(paths, head) : undefined;
  if (row === undefined) return null;
  const share = paths.rows[row].map((v) => (isNumber(v) ? v * 1e-4 : null)), reach = paths.reach[row].map((v) => (isNumber(v) ? v * 1e-4 : null));
  const off = (sign) => share.map((v, i) => (v === null || reach[i] === null ? null : v + sign * reach[i]));
  const raw = share.map((v, i) => { const gap = view.probe.gap[paths.probes[i]]; return v === null || !isNumber(gap) ? null : v * gap * view.probe.direction; });
  return { probes: paths.probes, share, low: off(-1), high: off(1), raw, detectable: paths.detectable[row] };
}

function importancePath(run, head) {
  const family = run.families[chosen.family], paths = family && family.rules.circuit && family.rules.circuit.importance;
  const row = paths ? pathRow(paths, head) : undefined;
  if (row === undefined) return null;
  const values = paths.rows[row].map((v) => (isNumber(v) ? v * 1e-5 : null));
  if (!paths.low) return { probes: paths.probes, values };
  const off = (reach, sign) => values.map((v, i) => (v === null || (reach && reach[i] === null) ? null : v + sign * (reach ? reach[i] : 0) * 1e-5));
  return { probes: paths.probes, values, low: off(paths.low[row], -1), high: off(paths.high[row], 1) };
}

/* Name of a source (row of the edge matrix) or a target (column), in the order that Anatomy gives them. */
function sourceName(index, heads) {
  if (!index) return "input";
  const layer = Math.floor((index - 1) / (heads + 1)), at = (index - 1) % (heads + 1);
  return at === heads ? `MLP ${layer}` : `L${layer}.H${at}`;
}
function targetName(index, layers, heads) {
  const layer = Math.floor(index / (3 * heads + 1)), at = index % (3 * heads + 1);
  if (layer >= layers) return "logits";
  return at === 3 * heads ? `MLP ${layer}` : `L${layer}.H${Math.floor(at / 3)} (${"qkv"[at % 3]})`;
}

/* {step, into, out} of a head at the last kept probe up to now: [name, mean |edge|], strongest first. */
function edgesOf(run, head, now) {
  const family = run.families[chosen.family], edges = family && family.edges, row = edges ? pathRow(edges, head) : undefined;
  if (row === undefined) return null;
  let at = -1;
  edges.probes.forEach((probe, q) => { if (probe <= now && edges.out[row][q]) at = q; });
  if (at < 0) return null;
  const { n_layers: layers, n_heads: heads } = run.model, unit = edges.scale * 1e-4, flat = (values, size) => values.reduce((rows, v, i) => (i % size ? rows[rows.length - 1].push(v) : rows.push([v]), rows), []);
  return {
    step: run.steps[edges.probes[at]],
    out: flat(edges.out[row][at], 2).map(([place, v]) => [targetName(place, layers, heads), v * unit]),
    into: flat(edges.into[row][at], 3).map(([place, kind, v]) => [`${sourceName(place, heads)} → ${"qkv"[kind]}`, v * unit]),
  };
}

/* A line over the steps with an interval where there is one; dots coloured by the head's life. */
function drawPath(svg, title, remark, run, view, head, path_, domain, scales, now, words) {
  const width = svg.width_(), top = 26, bottom = path_.low ? 150 : 96, right = width - 58;
  svg.begin(bottom + 22);
  heading(svg, LEFT, 12, title, remark, width - LEFT);
  const x = linear(scales.first, scales.last, LEFT, right), y = linear(domain[0], domain[1], bottom, top), at = (i) => x(run.steps[path_.probes[i]]);
  for (const tick of ticks(domain[0], domain[1], path_.low ? 4 : 3)) {
    mark(svg, "line", { class: tick === 0 ? "axis" : "grid", x1: LEFT, x2: right, y1: y(tick), y2: y(tick) });
    label(svg, LEFT - 6, y(tick) + 3.5, words === percent ? number(tick * 100) + " %" : words(tick), { "text-anchor": "end" });
  }
  for (const tick of stepTicks(scales, width / 110)) label(svg, x(tick), bottom + 15, whole(tick), { "text-anchor": "middle" });
  const { values } = path_, known = values.map((_, i) => i).filter((i) => path_.low && path_.low[i] !== null);
  if (known.length === 1) mark(svg, "line", { class: "s-ink interval", x1: at(known[0]), x2: at(known[0]), y1: y(path_.low[known[0]]), y2: y(path_.high[known[0]]) });
  else if (known.length) mark(svg, "path", { class: "band f-new interval", d: area(known.map((i) => [at(i), y(path_.high[i])]), known.map((i) => [at(i), y(path_.low[i])])) });
  mark(svg, "path", { class: "line plain own", d: path(values.map((v, i) => [at(i), v === null ? null : y(v)])) });
  const row = view ? rowsOf(view).get(keyOf(head)) : undefined;
  values.forEach((v, i) => {
    if (v === null) return;
    const sign = row === undefined ? "0" : view.lives.lives[row][path_.probes[i]];
    mark(svg, "circle", { class: "f-" + (hue(sign) || "unproven"), cx: at(i), cy: y(v), r: isActive(sign) ? 3 : 2 }, `Step ${whole(run.steps[path_.probes[i]])}: ${words(v)}${path_.low ? ` (${words(path_.low[i])} to ${words(path_.high[i])})` : ""}\n${lifeWords(sign)}`);
  });
  const i = lastAtMost(path_.probes, now);
  if (isNumber(values[i])) label(svg, right + 6, clamp(y(values[i]), top + 4, bottom) + 4, words(values[i]), { class: "end" });
  mark(svg, "line", { class: "now", x1: x(run.steps[now]), x2: x(run.steps[now]), y1: top - 2, y2: bottom });
}

function domainOf(lists, pad) {
  const values = lists.flat().filter(isNumber), low = Math.min(0, ...values), high = Math.max(0, ...values), room = (high - low || pad) * 0.06;
  return [low < 0 ? low - room : 0, high > 0 ? high + room : low < 0 ? 0 : pad];
}

const fine = (v) => (isNumber(v) ? `${v > 0 ? "+" : ""}${number(+(v * 100).toPrecision(3))} %` : "–");

/* Change, interval, p and q of the share, the raw score and the importance since the base, at the last probe kept. */
function changesOf(parent, run, view, head, now) {
  const found = view.since_base, row = found ? pathRow(found, head) : undefined;
  if (chosen.rule !== "evidence") return;
  element(parent, "h3", {}, "Change since the base ").append(row === undefined ? "" : element(null, "small", {}, `paired, over the same pairs`));
  if (row === undefined) { element(parent, "p", { class: "facts" }, found ? "Not kept for this head." : "There is no probe with signal after the base yet."); return; }
  const q = Math.max(0, found.probes.filter((probe) => probe <= now).length - 1), step = run.steps[found.probes[q]];
  const table_ = element(element(parent, "div", { class: "scroll" }), "table", { class: "changes" });
  element(table_, "caption", {}, `At step ${whole(step)}${found.probes[q] > now ? ", the first that is kept" : found.probes[q] < now ? ", the last one kept up to now" : ""}. Each q is over the heads, for this measure alone.`);
  const head_ = element(element(table_, "thead"), "tr"), body = element(table_, "tbody");
  for (const name of ["", "change", "95 % interval", "p", "q"]) element(head_, "th", { scope: "col" }, name);
  for (const [name, of, words] of [["Share of the work", "share", fine], ["Raw score", "raw", number], ["Part of all |share|", "importance", fine]]) {
    const [change, reach, p, q_] = found[of][row].slice(4 * q, 4 * q + 4), line = element(body, "tr");
    element(line, "th", { scope: "row" }, name);
    for (const text of [words(change), isNumber(reach) ? `${words(change - reach)} to ${words(change + reach)}` : "–", number(p), number(q_)]) element(line, "td", {}, text);
  }
}

function edgeTable(parent, caption, rows) {
  const box = element(parent, "div"), table_ = element(box, "table", { class: "edges" });
  element(table_, "caption", {}, caption);
  const most = Math.max(...rows.map(([, v]) => v), 0);
  for (const [name, value] of rows) {
    const line = element(element(table_, "tbody"), "tr");
    element(line, "th", { scope: "row" }, name);
    const cell = element(line, "td"), bar = element(cell, "i");
    bar.style.width = `${Math.round((value / most) * 90)}px`;
    element(line, "td", { class: "value" }, number(value));
  }
  if (!rows.length) element(element(table_, "tbody"), "tr").appendChild(element(null, "td", {}, "none above the smallest value kept"));
}

/* The head's state and last event in the other families: beside each other, each by its own test. */
function otherFamilies(parent, run, head, now) {
  for (const [family, of] of Object.entries(run.families)) {
    const view = of.rules[chosen.rule];
    if (family === chosen.family || !view) continue;
    const row = rowsOf(view).get(keyOf(head)), events = eventRows([run], [view]).filter((e) => keyOf(e.head) === keyOf(head));
    element(parent, "p", { class: "facts" }, `On ${family}: ${row === undefined ? "never active" : lifeWords(view.lives.lives[row][now])}${events.length ? ". " + events.map((e) => `${e.kind} at step ${whole(e.step)} (${eventEvidence(e)})`).join(". ") : ", no event"}.`);
  }
}

function headEvents(parent, run, r, view) {
  const rows = eventRows([run], [view]).filter((row) => keyOf(row.head) === keyOf(chosen.head));
  element(parent, "h3", {}, "Events");
  if (!rows.length) { element(parent, "p", { class: "facts" }, chosen.rule === "evidence" ? "None: no change of this head’s life had the evidence that an event needs." : "None: it did not enter or leave the circuit."); return; }
  const list = element(parent, "ul", { class: "plain-list" });
  for (const row of rows) {
    const line = element(list, "li");
    element(line, "span", { class: "kind " + kindClass(row.kind) }, row.kind);
    line.append(` at step ${whole(row.step)}: ${eventEvidence(row)}`);
  }
}

const headDialog = () => byId("head-page");

function drawHeadPage(views, nows, scales) {
  const dialog = headDialog();
  if (!chosen.open || !chosen.head) { if (dialog.open) dialog.close(); return; }
  if (!dialog.open) dialog.showModal();
  const head = chosen.head, stepNow = steps.length ? steps[chosen.now] : 0;
  byId("head-title").textContent = `Head ${head[1]} of layer ${head[0]}`;
  byId("head-about").textContent = `${headName(head)} · ${chosen.family} · ${(RULE_WORDS[chosen.rule] || chosen.rule).toLowerCase()} rule`;
  byId("head-step").max = Math.max(0, steps.length - 1);
  byId("head-step").value = chosen.now;
  byId("head-step").setAttribute("aria-valuetext", stepWords());
  byId("head-step-text").textContent = `step ${whole(stepNow)}`;
  const body = byId("head-body");
  body.replaceChildren();
  const paths = views.map((view) => headPath(view, head)), weights = runs.map((run) => importancePath(run, head));
  const shareDomain_ = domainOf(paths.flatMap((p) => (p ? [p.low, p.high, p.share] : [])), 0.01), rawDomain = domainOf(paths.map((p) => (p ? p.raw : [])), 0.1), weightDomain = domainOf(weights.flatMap((p) => (p ? [p.values, p.low || [], p.high || []] : [])), 0.001);
  const blocks = runs.map(() => element(body, "div"));
  runs.forEach((run, r) => {
    const block = blocks[r], view = views[r], now = nows[r];
    if (runs.length > 1) { const title = element(block, "p", { class: "column-title" }); badge(title, run); element(title, "span", {}, run.name); }
    if (!view) { element(block, "p", { class: "empty" }, missing(run)); return; }
    if (head[0] >= run.model.n_layers || head[1] >= run.model.n_heads) { element(block, "p", { class: "empty" }, `This run’s model has ${count(run.model.n_layers, "layer")} of ${count(run.model.n_heads, "head")}.`); return; }
    element(block, "p", { class: "facts" }, headLines(view, head, now).join(" · "));
    const path_ = paths[r], weight = weights[r];
    if (path_) {
      drawPath(chart(block, "head-share", `Share of ${headName(head)} over the steps of ${run.name}, with its 95 % interval`), "Share of the work", "95 % interval over the pairs", run, view, head, Object.assign({ values: path_.share }, path_), shareDomain_, scales, now, percent);
      const last = lastAtMost(path_.probes, now);
      if (isNumber(path_.share[last])) element(block, "p", { class: "facts detectable" }, `If it stopped working now, these pairs ${path_.detectable[last] === "1" ? "would tell it" : "would not tell it: too few, for how much it differs from pair to pair, or too small a share"}.`);
      drawPath(chart(block, "head-raw", `Raw score of ${headName(head)} over the steps of ${run.name}`), "Raw score", `what corrupting the head would do to ${view.probe.unit || "the metric"}`, run, view, head, { probes: path_.probes, values: path_.raw }, rawDomain, scales, now, number);
    } else if (chosen.rule === "evidence") element(block, "p", { class: "facts" }, "This report keeps no path of this head: it was never active and did not change, and the model has more heads than there is room for.");
    changesOf(block, run, view, head, now);
    if (weight) drawPath(chart(block, "head-importance", `Importance of ${headName(head)} over the steps of ${run.name}${weight.low ? ", with its 95 % interval" : ""}`), "Importance", `the paper’s: part of all |edge score|${weight.low ? "; 95 % of resamples" : ""}`, run, view, head, weight, weightDomain, scales, now, percent);
    const edges = edgesOf(run, head, now);
    element(block, "h3", {}, "Strongest edges ").append(edges ? element(null, "small", {}, `mean |edge score| over the pairs at step ${whole(edges.step)}; signs are lost`) : "");
    if (edges) { const pair = element(block, "div", { class: "edge-pair" }); edgeTable(pair, "Reads from", edges.into); edgeTable(pair, "Writes to", edges.out); }
    else element(block, "p", { class: "facts" }, run.families[chosen.family].edges ? "Not kept for this head." : "This run was scored by heads only, without edges.");
    headEvents(block, run, r, view);
    otherFamilies(block, run, head, now);
  });
}

/* The heads in the order in which previous and next go: as in the raster, then the others. */
function headOrder() {
  const seen = new Map();
  runs.forEach((run) => { const view = viewOf(run); if (view) view.lives.heads.forEach((head) => seen.set(keyOf(head), head)); });
  for (let l = 0; l < Math.max(...runs.map((run) => run.model.n_layers)); l++) for (let h = 0; h < Math.max(...runs.map((run) => run.model.n_heads)); h++) if (!seen.has(l + "." + h)) seen.set(l + "." + h, [l, h]);
  return [...seen.values()];
}

function turnHead(by) {
  const order = headOrder(), at = order.findIndex((head) => keyOf(head) === keyOf(chosen.head));
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
  dialog.addEventListener("close", () => { if (chosen.open) { chosen.open = false; touched = true; remember(); } });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n" || event.key === "p") { event.preventDefault(); turnHead(event.key === "n" ? 1 : -1); }
  });
}
