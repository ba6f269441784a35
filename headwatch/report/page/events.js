/* events.js: the event table (sort, filter) and the survival curves. */

const SHOWN = 200;
const table = { sort: "step", down: false, text: "", off: new Set(), all: false };
const COLUMNS = [["run", "Run", "l"], ["step", "Step", ""], ["head", "Head", "l"], ["kind", "Event", "l"], ["before", "Share before", ""], ["now", "Share now", ""], ["change", "Change", ""], ["q", "q value", ""]];
const CIRCUIT_COLUMNS = { before: ["before", "Importance before", ""], now: ["now", "Importance now", ""], q: ["stability", "Stability", ""] };

function eventRows(runs, views) {
  return views.flatMap((view, r) => (view ? view.events.rows.map(([step, layer, head, kind, before, now, q, stability, p, low, high, rawBefore, rawNow, rawP, status, patchedBefore, patchedNow, patchedP, patching]) => ({ run: r, step, head: [layer, head], kind, before, now, change: isNumber(before) && isNumber(now) ? now - before : null, q, stability, p, low, high, rawBefore, rawNow, rawP, status, patchedBefore, patchedNow, patchedP, patching })) : []));
}

const eventsOf = (run, view, head) => eventRows([run], [view]).filter((row) => same(row.head, head));

/* The evidence of an event, in one line. */
function eventEvidence(row) {
  const tested = isNumber(row.q);
  const parts = [`${tested ? "share" : "importance"} ${percent(row.before)} → ${percent(row.now)}`];
  if (isNumber(row.low) && isNumber(row.high)) parts.push(`change ${percent(row.change, true)} (95 %: ${percent(row.low, true)} to ${percent(row.high, true)})`);
  if (tested) parts.push(`q ${number(row.q)}${isNumber(row.p) ? `, p ${number(row.p)}` : ""}`);
  else parts.push(isNumber(row.stability) ? `kept by ${percent(row.stability)} of the resamples, not tested` : "not tested");
  if (isNumber(row.rawBefore) && isNumber(row.rawNow)) parts.push(`raw score ${number(row.rawBefore)} → ${number(row.rawNow)}${isNumber(row.rawP) ? ` (p ${number(row.rawP)})` : ""}`);
  if (isNumber(row.patchedNow)) parts.push(`share by exact patching ${isNumber(row.patchedBefore) ? `${percent(row.patchedBefore)} → ` : ""}${percent(row.patchedNow)}${isNumber(row.patchedP) ? ` (p ${number(row.patchedP)})` : ""}${row.patching === "contradicts" ? ", which contradicts the event" : ""}`);
  if (tested && row.status) parts.push({ pending: "not confirmed yet", withdrawn: "withdrawn: not found at the next probe" }[row.status] || row.status);
  return parts.join("; ");
}

function drawEvents(body, runs, views, rule, nowStep, picked, choose) {
  const rows = eventRows(runs, views), redraw = () => drawEvents(body, runs, views, rule, nowStep, picked, choose);
  if (!body.frame) buildEvents(body);
  body.redraw = redraw;
  body.empty.hidden = rows.length > 0;
  body.frame.hidden = body.filters.hidden = rows.length === 0;
  body.empty.textContent = !runs.some((run) => run.steps.length) ? "No probe has been taken yet." : rule === "evidence" ? "No events: no change of a share met the conditions for an event." : "No events: the heads of the circuit did not change.";
  drawKinds(body.kinds, rows, redraw);
  const kept = sortedEvents(rows), columns = COLUMNS.filter(([key]) => key !== "run" || runs.length > 1).map((column) => (rule === "circuit" && CIRCUIT_COLUMNS[column[0]]) || column);
  const scrolled = body.frame.scrollTop;
  body.frame.replaceChildren();
  const view = element(body.frame, "table"), head = element(element(view, "thead"), "tr"), tbody = element(view, "tbody");
  for (const column of columns) drawColumnHead(head, column, redraw);
  for (const row of kept.slice(0, table.all ? kept.length : SHOWN)) {
    const line = element(tbody, "tr", { class: "event" + (row.step > nowStep ? " later" : "") + (same(picked, row.head) ? " picked" : "") });
    drawEventCells(line, row, columns, runs);
    line.addEventListener("click", () => choose(row.head, row.step));
  }
  if (!table.all && kept.length > SHOWN) {
    element(body.frame, "button", { class: "more", type: "button" }, `Show all ${whole(kept.length)} events`).addEventListener("click", () => { table.all = true; redraw(); });
  }
  body.frame.scrollTop = scrolled;
}

function buildEvents(body) {
  body.filters = element(body, "div", { class: "filters" });
  const search = element(body.filters, "input", { type: "search", placeholder: "Find a head, e.g. L5.H2", "aria-label": "Find a head" });
  search.addEventListener("input", () => { table.text = search.value.trim().toLowerCase(); body.redraw(); });
  body.kinds = element(body.filters, "span", { class: "filters" });
  body.empty = element(body, "p", { class: "empty" });
  body.frame = element(body, "div", { class: "table", tabindex: "0", role: "region", "aria-label": "Events" });
}

function drawKinds(box, rows, redraw) {
  box.replaceChildren();
  for (const kind of [...new Set(rows.map((row) => row.kind))].sort()) {
    const button = element(box, "button", { type: "button", "aria-pressed": String(!table.off.has(kind)) });
    element(button, "span", { class: "kind " + kindClass(kind) }, `${kind} ${rows.filter((row) => row.kind === kind).length}`);
    button.addEventListener("click", () => { if (!table.off.delete(kind)) table.off.add(kind); redraw(); });
  }
}

/* The events that pass the filters, in the chosen order; missing values last. */
function sortedEvents(rows) {
  const value = table.sort === "head" ? (row) => row.head[0] * 1e4 + row.head[1] : (row) => row[table.sort];
  const kept = rows.filter((row) => !table.off.has(row.kind) && (!table.text || `${headName(row.head)} ${row.kind} ${row.step}`.toLowerCase().includes(table.text)));
  return kept.sort((a, b) => { const p = value(a), q = value(b), order = p === null ? 1 : q === null ? -1 : p < q ? -1 : p > q ? 1 : 0; return (table.down ? -order : order) || a.step - b.step; });
}

function drawColumnHead(head, [key, name, side], redraw) {
  const sorted = table.sort === key;
  const cell = element(head, "th", { class: `${side} c-${key}`, scope: "col", "aria-sort": sorted ? (table.down ? "descending" : "ascending") : "none" });
  const button = element(cell, "button", { type: "button" }, name + (sorted ? (table.down ? " ↓" : " ↑") : ""));
  button.addEventListener("click", () => { table.down = sorted ? !table.down : false; table.sort = key; redraw(); });
}

function drawEventCells(line, row, columns, runs) {
  const name = headName(row.head);
  const texts = { run: runs[row.run].letter, step: whole(row.step), before: percent(row.before), now: percent(row.now), change: percent(row.change, true), q: number(row.q), stability: percent(row.stability) };
  for (const [key, , side] of columns) {
    const cell = element(line, "td", { class: `${side} c-${key}` }, texts[key]);
    if (key === "kind") element(cell, "span", { class: "kind " + kindClass(row.kind) }, row.kind + ({ pending: " (not confirmed yet)", withdrawn: " (withdrawn)" }[row.status] || "") + (row.patching === "contradicts" ? " (contradicted by exact patching)" : ""));
    if (key === "head") element(cell, "button", { type: "button", class: "link", "aria-label": `${name}: open its page`, title: eventEvidence(row) }, name).addEventListener("click", (event) => { event.stopPropagation(); openHead(row.head, row.step); });
  }
}

/* A class name from a fixed list: the kind comes from a file. */
function kindClass(kind) {
  return { emerged: "emerged", pruned: "pruned", "re-emerged": "re-emerged", dropped: "dropped", returned: "retained" }[kind] || "";
}

/* --- survival ------------------------------------------------------------------------------------------------------- */

function drawSurvival(svg, view, last) {
  const width = svg.width_(), top = 10, bottom = 190, right = width - 92, x = linear(0, last, LEFT, right), y = linear(0, 1, bottom, top);
  svg.begin(232);
  gridLines(svg, y, [0, 0.25, 0.5, 0.75, 1], right, (value) => `${value * 100} %`);
  xLabels(svg, x, ticks(0, last, width / 110), bottom + 16);
  label(svg, width < 320 ? width : right, bottom + 32, "steps since the head became active", { "text-anchor": "end" });
  const ends = [];
  for (const [group, color] of [["base", "base"], ["emerged", "new"]]) {
    const curve = view.survival[group];
    if (!curve) continue;
    mark(svg, "path", { class: "band f-" + color, d: bandPath(curve, x, y) });
    mark(svg, "path", { class: "line survival s-" + color, "data-group": group, d: path(curve.time.map((time, k) => [x(time), isNumber(curve.survival[k]) ? y(curve.survival[k]) : null]), true) }, `${count(curve.spells, "first spell")} of ${group} heads\nmedian ${isNumber(curve.median) ? count(curve.median, "step") : "not reached: more than half last longer"}`);
    curve.time.forEach((time, k) => { if (curve.censored[k]) mark(svg, "line", { class: "censored s-" + color, x1: x(time), x2: x(time), y1: y(curve.survival[k]) - 5, y2: y(curve.survival[k]) + 5 }, `${count(curve.censored[k], "head")} active for ${whole(time)} steps and still active at the last probe`); });
    ends.push({ y: Math.min(y(curve.survival[curve.survival.length - 1]), bottom - 10), x: x(curve.time[curve.time.length - 1]), text: `${group} (${curve.spells})`, color });
  }
  ends.sort((a, b) => a.y - b.y);
  if (ends.length > 1 && ends[1].y - ends[0].y < 14) ends[1].y = ends[0].y + 14;
  for (const end of ends) label(svg, end.x + 8, end.y + 4, end.text, { class: "end" }).style.fill = `var(--${end.color})`;
}

function bandPath(curve, x, y) {
  const corners = (values) => values.flatMap((v, k) => (k ? [[x(curve.time[k]), y(values[k - 1] ?? 1)], [x(curve.time[k]), y(v ?? 1)]] : [[x(0), y(v ?? 1)]]));
  return area(corners(curve.upper), corners(curve.lower));
}
