/* events.js: the event table (sort, filter) and the survival curves. */

const SHOWN = 200;
const table = { sort: "step", down: false, text: "", off: new Set(), all: false };
const COLUMNS = [["run", "Run", "l"], ["step", "Step", ""], ["head", "Head", "l"], ["kind", "What", "l"], ["before", "Share before", ""], ["now", "now", ""], ["change", "Change", ""], ["q", "q value", ""]];

function eventRows(runs, views) {
  return views.flatMap((view, r) => (view ? view.events.rows.map(([step, layer, head, kind, before, now, q, stability, p, low, high, rawBefore, rawNow, rawP, status]) => ({ run: r, step, head: [layer, head], kind, before, now, change: isNumber(before) && isNumber(now) ? now - before : null, q, stability, p, low, high, rawBefore, rawNow, rawP, status })) : []));
}

/* What an event rests on, in words. */
function eventEvidence(row) {
  const tested = isNumber(row.q);
  const said = [`${tested ? "share" : "importance"} ${percent(row.before)} → ${percent(row.now)}`];
  if (isNumber(row.low) && isNumber(row.high)) said.push(`change ${percent(row.change, true)} (95 %: ${percent(row.low, true)} to ${percent(row.high, true)})`);
  if (tested) said.push(`q ${number(row.q)}${isNumber(row.p) ? `, p ${number(row.p)}` : ""}`);
  else said.push(isNumber(row.stability) ? `kept by ${percent(row.stability)} of the resamples, not tested` : "not tested");
  if (isNumber(row.rawBefore) && isNumber(row.rawNow)) said.push(`raw score ${number(row.rawBefore)} → ${number(row.rawNow)}${isNumber(row.rawP) ? ` (p ${number(row.rawP)})` : ""}`);
  if (tested && row.status) said.push({ pending: "not confirmed yet", withdrawn: "withdrawn: the next probe did not see it" }[row.status] || row.status);
  return said.join("; ");
}

function drawEvents(body, runs, views, rule, nowStep, picked, choose) {
  const rows = eventRows(runs, views);
  if (!body.built) {
    body.built = true;
    body.filters = element(body, "div", { class: "filters" });
    const search = element(body.filters, "input", { type: "search", placeholder: "Find a head, e.g. L5.H2", "aria-label": "Find a head" });
    search.addEventListener("input", () => { table.text = search.value.trim().toLowerCase(); body.redraw(); });
    body.kinds = element(body.filters, "span", { class: "filters" });
    body.empty = element(body, "p", { class: "empty" });
    body.frame = element(body, "div", { class: "table", tabindex: "0", role: "region", "aria-label": "Events" });
  }
  body.redraw = () => drawEvents(body, runs, views, rule, nowStep, picked, choose);
  body.empty.hidden = rows.length > 0;
  body.frame.hidden = body.filters.hidden = rows.length === 0;
  body.empty.textContent = !runs.some((run) => run.steps.length) ? "No probe has been taken yet." : rule === "evidence" ? "No event: no head’s share changed with the evidence that an event needs." : "No event: the circuit’s heads did not change.";
  body.kinds.replaceChildren();
  for (const kind of [...new Set(rows.map((row) => row.kind))].sort()) {
    const button = element(body.kinds, "button", { type: "button", "aria-pressed": String(!table.off.has(kind)) });
    element(button, "span", { class: "kind " + kindClass(kind) }, `${kind} ${rows.filter((row) => row.kind === kind).length}`);
    button.addEventListener("click", () => { if (!table.off.delete(kind)) table.off.add(kind); body.redraw(); });
  }
  const value = { head: (row) => row.head[0] * 1e4 + row.head[1] }[table.sort] || ((row) => row[table.sort]);
  const kept = rows.filter((row) => !table.off.has(row.kind) && (!table.text || `${headName(row.head)} ${row.kind} ${row.step}`.toLowerCase().includes(table.text)));
  kept.sort((a, b) => { const p = value(a), q = value(b), order = p === null ? 1 : q === null ? -1 : p < q ? -1 : p > q ? 1 : 0; return (table.down ? -order : order) || a.step - b.step; });
  const columns = COLUMNS.filter(([key]) => (key !== "run" || runs.length > 1)).map(([key, name, side]) => (rule === "circuit" ? { before: [key, "Importance before", side], q: ["stability", "Stability", side] }[key] || [key, name, side] : [key, name, side]));
  const at = body.frame.scrollTop;
  body.frame.replaceChildren();
  const view = element(body.frame, "table"), headRow = element(element(view, "thead"), "tr"), tbody = element(view, "tbody");
  for (const [key, name, side] of columns) {
    const sorted = table.sort === key;
    const cell = element(headRow, "th", { class: side, scope: "col", "aria-sort": sorted ? (table.down ? "descending" : "ascending") : "none" });
    const button = element(cell, "button", { type: "button" }, name + (sorted ? (table.down ? " ↓" : " ↑") : ""));
    button.addEventListener("click", () => { table.down = sorted ? !table.down : false; table.sort = key; body.redraw(); });
  }
  for (const row of kept.slice(0, table.all ? kept.length : SHOWN)) {
    const line = element(tbody, "tr", { class: "event" + (row.step > nowStep ? " later" : "") + (picked && keyOf(picked) === keyOf(row.head) ? " picked" : "") });
    const said = { run: runs[row.run].letter, step: whole(row.step), head: headName(row.head), kind: row.kind, before: percent(row.before), now: percent(row.now), change: percent(row.change, true), q: number(row.q), stability: percent(row.stability) };
    for (const [key, , side] of columns) {
      const cell = element(line, "td", { class: side });
      if (key === "kind") element(cell, "span", { class: "kind " + kindClass(row.kind) }, row.kind + ({ pending: " (not confirmed yet)", withdrawn: " (withdrawn)" }[row.status] || ""));
      else if (key === "head") element(cell, "button", { type: "button", class: "link", "aria-label": `${said.head}: open its page`, title: eventEvidence(row) }, said.head).addEventListener("click", (event) => { event.stopPropagation(); openHead(row.head, row.step); });
      else cell.textContent = said[key];
    }
    line.addEventListener("click", () => choose(row.head, row.step));
  }
  if (!table.all && kept.length > SHOWN) {
    element(body.frame, "button", { class: "more", type: "button" }, `Show all ${whole(kept.length)} events`).addEventListener("click", () => { table.all = true; body.redraw(); });
  }
  body.frame.scrollTop = at;
}

/* A class name from a fixed list, whatever the file says. */
function kindClass(kind) {
  return { emerged: "emerged", pruned: "pruned", "re-emerged": "re-emerged", dropped: "dropped", returned: "retained" }[kind] || "";
}

function drawSurvival(svg, view, last) {
  const width = svg.width_(), top = 10, bottom = 190, right = width - 92, x = linear(0, last, LEFT, right), y = linear(0, 1, bottom, top);
  svg.begin(232);
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    mark(svg, "line", { class: tick ? "grid" : "axis", x1: LEFT, x2: right, y1: y(tick), y2: y(tick) });
    label(svg, LEFT - 6, y(tick) + 3.5, percent(tick).replace(".0", ""), { "text-anchor": "end" });
  }
  for (const tick of ticks(0, last, width / 110)) label(svg, x(tick), bottom + 16, whole(tick), { "text-anchor": "middle" });
  label(svg, right, bottom + 32, "steps since the head became active", { "text-anchor": "end" });
  const ends = [];
  for (const [group, color, name] of [["base", "base", "base"], ["emerged", "new", "emerged"]]) {
    const curve = view.survival[group];
    if (!curve) continue;
    const to = (values) => stepPath(curve.time, values, x, y);
    mark(svg, "path", { class: "band f-" + color, d: bandPath(curve, x, y) });
    mark(svg, "path", { class: "line survival s-" + color, "data-group": group, d: to(curve.survival) }, `${count(curve.spells, "first spell")} of ${name} heads\nmedian ${isNumber(curve.median) ? count(curve.median, "step") : "not reached: more than half go on"}`);
    curve.time.forEach((time, k) => { if (curve.censored[k]) mark(svg, "line", { class: "censored s-" + color, x1: x(time), x2: x(time), y1: y(curve.survival[k]) - 5, y2: y(curve.survival[k]) + 5 }, `${count(curve.censored[k], "head")} still active after ${whole(time)} steps, when last seen`); });
    ends.push({ y: y(curve.survival[curve.survival.length - 1]), x: x(curve.time[curve.time.length - 1]), text: `${name} (${curve.spells})`, color });
  }
  ends.sort((a, b) => a.y - b.y);
  if (ends.length > 1 && ends[1].y - ends[0].y < 14) ends[1].y = ends[0].y + 14;
  for (const end of ends) label(svg, end.x + 8, end.y + 4, end.text, { class: "end" }).style.fill = `var(--${end.color})`;
}

function stepPath(times, values, x, y) {
  return path(times.map((time, k) => [x(time), isNumber(values[k]) ? y(values[k]) : null]), true);
}

function bandPath(curve, x, y) {
  const corners = (values) => values.flatMap((v, k) => (k ? [[x(curve.time[k]), y(values[k - 1] ?? 1)], [x(curve.time[k]), y(v ?? 1)]] : [[x(0), y(v ?? 1)]]));
  return area(corners(curve.upper), corners(curve.lower));
}
