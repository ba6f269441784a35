/* page.js: what is chosen (family, rule, now, head), the header, and the order in which everything is drawn. */

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const steps = [...new Set(runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
let touched = false; /* whether the reader has chosen anything: until then the address stays as it was */
const chosen = { family: data.families[0], rule: data.rules[0], now: steps.length - 1, head: null, open: false };
const byId = (id) => document.getElementById(id);
const RULE_WORDS = { evidence: "Evidence", circuit: "Circuit (the paper’s)" };

runs.forEach((run, index) => { run.letter = index < 26 ? String.fromCharCode(65 + index) : String(index + 1); });

function viewOf(run) {
  const family = run.families[chosen.family], view = family && family.rules[chosen.rule];
  if (view) view.probe = family.probe;
  return view || null;
}

/* What is chosen stands in the address (#family=...&rule=...&step=...&pick=L5.H2&theme=...), so that a view can be
   passed on; head=L5.H2 instead of pick opens the head's own page. */
function recall() {
  const asked = new URLSearchParams(location.hash.slice(1)), step = asked.get("step"), named = asked.get("head") || asked.get("pick") || "";
  const head = /^[La]?(\d+)\.[Hh]?(\d+)$/.exec(named);
  if (data.families.includes(asked.get("family"))) chosen.family = asked.get("family");
  if (data.rules.includes(asked.get("rule"))) chosen.rule = asked.get("rule");
  if (step !== null && steps.length) chosen.now = lastAtMost(steps, +step);
  const known = head && runs.some((run) => +head[1] < run.model.n_layers && +head[2] < run.model.n_heads);
  chosen.head = known ? [+head[1], +head[2]] : mostChanged();
  chosen.open = Boolean(known && asked.get("head") && steps.length);
  if (["light", "dark"].includes(asked.get("theme"))) document.documentElement.dataset.theme = asked.get("theme");
}

let written = location.hash;
function remember(anew) {
  const kept = new URLSearchParams({ family: chosen.family || "", rule: chosen.rule, step: steps.length ? steps[chosen.now] : 0 });
  if (chosen.head) kept.set(chosen.open ? "head" : "pick", headName(chosen.head));
  if (new URLSearchParams(location.hash.slice(1)).has("theme")) kept.set("theme", document.documentElement.dataset.theme);
  if (!touched || "#" + kept === location.hash) { written = location.hash; return; }
  try { history[anew ? "pushState" : "replaceState"](null, "", "#" + kept); written = location.hash; } catch (refused) { /* a frame without an address of its own */ }
}

/* --- choosing ------------------------------------------------------------------------------------------------------ */

function choices(id, values, words, chosenValue, choose) {
  byId(id + "-control").hidden = values.length < 2;
  for (const value of values) {
    const wrap = element(byId(id), "label"), input = element(wrap, "input", { type: "radio", name: id, value });
    input.checked = value === chosenValue;
    input.addEventListener("change", () => { touched = true; choose(value); });
    element(wrap, "span", {}, words(value));
  }
}

const stepWords = () => (steps.length ? `step ${whole(steps[chosen.now])} of ${whole(steps[steps.length - 1])}` : "");

function controls() {
  choices("family", data.families, (f) => f, chosen.family, (family) => { chosen.family = family; chosen.head = mostChanged(); draw(); });
  choices("rule", data.rules, (r) => RULE_WORDS[r] || r, chosen.rule, (rule) => { chosen.rule = rule; draw(); });
  const slider = byId("now");
  slider.max = Math.max(0, steps.length - 1);
  slider.value = chosen.now;
  byId("now-control").hidden = steps.length < 2;
  slider.addEventListener("input", () => setNow(+slider.value));
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("headwatch-theme", root.dataset.theme); } catch (refused) { /* a sandboxed frame has no storage */ }
  });
}

/* The controls show what is chosen, where it was not chosen by them. */
function sync() {
  for (const id of ["family", "rule"]) document.querySelectorAll(`#${id} input`).forEach((input) => { input.checked = input.value === chosen[id]; });
  byId("now").value = chosen.now;
}

let waiting = 0;
function setNow(index) {
  touched = true;
  chosen.now = clamp(index, 0, steps.length - 1);
  byId("now").value = chosen.now;
  if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); });
}

function chooseHead(head, step, anew) {
  if (!head) return;
  touched = true;
  chosen.head = head;
  if (isNumber(step) && steps[chosen.now] < step) chosen.now = steps.indexOf(step);
  byId("now").value = chosen.now;
  draw(anew);
}

/* The head to start with: the one whose last event changed its share most. */
function mostChanged() {
  const rows = eventRows(runs, runs.map(viewOf)).filter((row) => isNumber(row.change));
  rows.sort((a, b) => Math.abs(b.change) - Math.abs(a.change));
  if (rows.length) return rows[0].head;
  const view = runs.map(viewOf).find((v) => v && v.lives.heads.length);
  return view ? view.lives.heads[0] : null;
}

/* --- sections ------------------------------------------------------------------------------------------------------- */

const built = new Map();
function column(id, run, make) {
  const key = id + run.letter;
  if (!built.has(key)) {
    const block = element(document.querySelector(`#${id} .columns`), "div");
    if (runs.length > 1) { const title = element(block, "p", { class: "column-title" }); badge(title, run); element(title, "span", {}, run.name); }
    built.set(key, Object.assign(make(block), { block }));
  }
  return built.get(key);
}

/* A chart in which the arrow keys choose a head, and Enter opens its page. */
function keys(svg, move) {
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-label", svg.getAttribute("aria-label") + ". Arrow keys choose a head, Enter opens its page.");
  svg.addEventListener("dblclick", () => openHead(chosen.head));
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); openHead(chosen.head); }
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) { event.preventDefault(); move(way[0], way[1]); }
  });
}

function courseColumn(run) {
  return column("course", run, (block) => {
    const svg = chart(block, "course", `Course of training of ${run.name}: newly active heads, retained base heads, reward or loss, and probe accuracy over the training step`);
    const persistence = element(block, "div", { class: "facts persistence" }), coupling = element(block, "p", { class: "facts" });
    const follow = (event) => { if (event.buttons & 1) { const at = svg.stepAt(event.clientX); setNow(steps.reduce((best, s, i) => (Math.abs(s - at) < Math.abs(steps[best] - at) ? i : best), 0)); } };
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointermove", follow);
    return { svg, persistence, coupling };
  });
}

function whereColumn(run) {
  return column("where", run, (block) => {
    const { n_layers: layers, n_heads: heads } = run.model;
    const maps = element(block, "div", { class: "maps" }); /* side by side where a small model leaves room */
    const shapes = ["activation frequency of", "effect on importance of"].map((what) => chart(element(maps, "div", { style: `flex: 1 1 ${Math.max(250, layers * 24 + 40)}px` }), "map", `Layers by heads: ${what} ${run.name}`));
    shapes.forEach((svg) => {
      svg.addEventListener("click", (event) => chooseHead(svg.headAt(event)));
      keys(svg, (dx, dy) => { const [l, h] = chosen.head || [0, 0]; chooseHead([clamp(l + dx, 0, layers - 1), clamp(h + dy, 0, heads - 1)]); });
    });
    const [first, second] = shapes;
    legend(first.parentNode, [["base", "base head", "ramp"], ["new", "joined in training", "ramp"], ["", "active now", "swatch-outline"], ["unproven", "in the set without evidence", "round evidence-only"]]);
    legend(second.parentNode, [["loss", "−1: importance lost", "ramp"], ["gain", "+1: importance gained", "ramp"], ["gain", "small: its 95 % interval contains 0", "speck with-interval"], ["", "share changed significantly and materially", "round proven evidence-only"]]);
    const inspector = element(block, "p", { class: "inspector", "aria-live": "polite" });
    const share = chart(block, "share", `Share of the chosen head over the steps of ${run.name}, with its 95 % interval`);
    const own = element(block, "button", { type: "button", class: "more own-page" }, "Open the head’s own page");
    own.addEventListener("click", () => openHead(chosen.head));
    return { first, second, inspector, share, own };
  });
}

function legend(parent, entries) {
  const box = element(parent, "div", { class: "legend" });
  for (const [color, text, shape] of entries) {
    const entry = element(box, "span"), swatch = element(entry, "i", { class: shape });
    if (shape === "ramp") swatch.style.background = color === "loss" ? `linear-gradient(90deg, var(--${color}), var(--cell))` : `linear-gradient(90deg, var(--cell), var(--${color}))`;
    else if (color) swatch.style.background = `var(--${color})`;
    entry.append(text);
  }
}

function livesColumn(run) {
  return column("lives", run, (block) => {
    const panels = element(block, "div", { class: "panels" }), empty = element(block, "p", { class: "empty" }), shown = {};
    for (const group in GROUPS) {
      const panel = element(panels, "div"), title = element(panel, "h3"), svg = chart(panel, "raster", `${GROUPS[group]} of ${run.name}, one row a head`);
      svg.addEventListener("click", (event) => chooseHead(event.target.head));
      keys(svg, (dx, dy) => {
        const view = viewOf(run), rows = view ? groupRows(view, group) : [];
        if (!rows.length) return;
        const at = rows.findIndex((row) => chosen.head && keyOf(view.lives.heads[row]) === keyOf(chosen.head));
        chooseHead(view.lives.heads[rows[clamp(at + dy + dx, 0, rows.length - 1)]]);
      });
      shown[group] = { panel, title, svg };
    }
    return { shown, empty };
  });
}

function signalsColumn(run) { return column("signals", run, (block) => ({ charts: element(block, "div", { class: "panels" }) })); }

function draw(anew) {
  const views = runs.map(viewOf), scales = courseScales(runs, views), nowStep = steps.length ? steps[chosen.now] : 0;
  const nows = runs.map((run) => probeAt(run, nowStep));
  byId("now-text").textContent = stepWords();
  byId("now").setAttribute("aria-valuetext", stepWords());
  byId("print-state").textContent = steps.length ? `Shown: family ${chosen.family}${data.families.length > 1 ? ` (of ${data.families.join(", ")})` : ""}, ${chosen.rule} rule, ${stepWords()}.` : "";
  document.body.dataset.rule = chosen.rule;
  document.body.dataset.interval = views.some((view) => view && view.effect.low) ? "yes" : "no";
  drawTitles();
  drawNote(views, nows);
  drawLedger(views, nows);
  const paths = views.map((view) => (chosen.head ? headPath(view, chosen.head) : null)), domain = domainOf(paths.flatMap((p) => (p ? [p.low, p.high] : [])), 0.01);
  /* All columns first: what a chart is drawn at is the width that it has beside the others. */
  const columns = runs.map((run) => [courseColumn(run), whereColumn(run), livesColumn(run), signalsColumn(run)]);
  runs.forEach((run, r) => {
    const view = views[r], now = nows[r], [course, where, lives, signals] = columns[r];
    drawCourse(course.svg, run, view, scales, now);
    const weak = view && view.cohorts.signal.includes(false) ? "Hatched: probes with insufficient signal; heads keep the state they had. " : "";
    course.coupling.textContent = weak + (view ? view.coupling.map(couplingWords).join(" ") : "");
    drawPersistence(course.persistence, run, view, now);
    drawFrequency(where.first, run, view, now, chosen.head);
    drawEffect(where.second, run, view, chosen.head);
    where.inspector.replaceChildren();
    if (chosen.head && view && chosen.head[0] < run.model.n_layers && chosen.head[1] < run.model.n_heads) {
      element(where.inspector, "b", {}, headName(chosen.head));
      where.inspector.append(" · " + headLines(view, chosen.head, now).join(" · "));
    }
    if (paths[r]) drawPath(where.share, `Share of ${headName(chosen.head)}`, "95 % interval", run, view, chosen.head, Object.assign({ values: paths[r].share }, paths[r]), domain, scales, now, percent);
    else {
      const weight = view && chosen.head ? importancePath(run, chosen.head) : null;
      if (weight) drawPath(where.share, `Importance of ${headName(chosen.head)}`, "the paper’s: part of all |edge score|", run, view, chosen.head, weight, domainOf([weight.values, weight.low || [], weight.high || []], 0.001), scales, now, percent);
      else where.share.begin(1);
    }
    where.own.hidden = !chosen.head || !view;
    drawSignals(signals.charts, run, view, runs, views, scales, now);
    const known = view && view.lives.heads.length > 0;
    lives.empty.textContent = known ? "" : view ? "No head has been active yet." : missing(run);
    for (const group in GROUPS) {
      const { panel, title, svg } = lives.shown[group], n = known ? groupRows(view, group).length : 0;
      panel.hidden = !n;
      if (!n) { svg.replaceChildren(); continue; }
      title.textContent = GROUPS[group] + " ";
      element(title, "small", {}, whole(n));
      drawRaster(svg, run, view, group, scales, now, chosen.head);
    }
  });
  drawEvents(document.querySelector("#events .body"), runs, views, chosen.rule, nowStep, chosen.head, chooseHead);
  drawSurvivals(views);
  drawComparison(runs, views, nows, chosen, chooseHead);
  drawHeadPage(views, nows, scales);
  remember(anew);
}

function couplingWords(c) {
  const known = isNumber(c.rho) ? `rank correlation ${number(c.rho)} over ${c.probes} probes; of their changes between probes, which a common trend does not feed, ${number(c.rho_changes)}.` : `no correlation can be told over ${count(c.probes, "probe")}${c.probes < 3 ? "" : ": one of the two never changes"}.`;
  return `Newly active heads beside ${c.key}: ${known}${c.lagged ? " Tested, of the changes: " + c.lagged : ""}`;
}

function drawNote(views, nows) {
  const note = byId("rule-note"), settings = (runs[0] && runs[0].evidence) || {};
  if (chosen.rule === "evidence") {
    note.textContent = `Evidence rule: every head is compared with itself on the same frozen pairs. A change counts when it survives the correction over the heads (q ≤ ${number(settings.q)}) and moves at least ${percent(settings.material)} of the base’s total share.`;
    return;
  }
  const kept = views.map((view, r) => (view && view.stability ? `${runs.length > 1 ? runs[r].letter + " " : ""}${percent(view.stability.mean[nows[r]])}` : null)).filter(Boolean);
  note.textContent = `Circuit rule, the paper’s counterpart: heads of the top-scoring edges. Membership is not tested, and much of it changes with the sample of pairs alone. ` + (kept.length ? `Stability (resamples of the pairs that keep an active head, mean, now): ${kept.join(", ")}.` : "Stability was not measured in this run.");
}

function drawLedger(views, nows) {
  const box = byId("ledger");
  box.replaceChildren();
  if (!views.some((view) => view && view.lives.heads.length)) return;
  const grid = element(element(box, "div", { class: "scroll" }), "table"), head = element(element(grid, "thead"), "tr"), body = element(grid, "tbody");
  const names = ["Active now", "Retained", "Dropped", "Emerged", "Re-emerged", "Pruned"];
  if (chosen.rule === "evidence") names.push("Stronger", "Weaker");
  const told = { Stronger: "All heads whose |share| is significantly and materially larger than at the base, active or not", Weaker: "All heads whose |share| is significantly and materially smaller than at the base, active or not" };
  for (const name of (runs.length > 1 ? ["Run"] : []).concat(names)) element(head, "th", told[name] ? { scope: "col", title: told[name] } : { scope: "col" }, name);
  views.forEach((view, r) => {
    if (!view) return;
    const line = element(body, "tr");
    if (runs.length > 1) { const cell = element(line, "td", { class: "name" }); badge(cell, runs[r]); cell.append(runs[r].name); }
    const states = new Array(7).fill(0);
    view.lives.lives.forEach((lives) => { states[life(lives[nows[r]]).state] += 1; });
    const base = states[1] + states[2] + states[3], kept = states[1] + states[2];
    const cells = [[kept + states[4] + states[6], "", ""], [kept, "k-base", ` of ${base}`], [states[3], "k-base", ""], [states[4], "k-new", ""], [states[6], "k-back", ""], [states[5], "k-new", ""]];
    if (chosen.rule === "evidence") cells.push([view.changes.strengthened[nows[r]], "", ""], [view.changes.weakened[nows[r]], "", ""]);
    for (const [n, color, from] of cells) {
      const cell = element(line, "td", { class: n ? color : "zero" }, whole(n));
      if (from) element(cell, "span", { class: "from" }, from);
    }
  });
}

function drawSurvivals(views) {
  const some = views.some((view) => view && view.survival.emerged);
  byId("survival").hidden = !some;
  byId("bottom").style.gridTemplateColumns = some ? "" : "1fr";
  if (!some) return;
  const last = Math.max(...views.flatMap((view) => (view ? Object.values(view.survival).flatMap((curve) => curve.time) : [])), 1);
  const places = runs.map((run) => column("survival", run, (block) => ({ svg: chart(block, "survivals", `Survival of heads of ${run.name}`), text: element(block, "p", { class: "facts" }) })));
  runs.forEach((run, r) => {
    const place = places[r];
    place.svg.replaceChildren();
    const view = views[r], some = view && Object.keys(view.survival).length > 0;
    if (some) drawSurvival(place.svg, view, last);
    const gaps = run.steps.slice(1).map((s, i) => s - run.steps[i]);
    place.text.textContent = some ? `First spells, 95 % interval; ticks: still active when last seen. Ends known only to within ${gaps.length ? whole(Math.max(...gaps)) : "–"} steps, the distance between probes.` : "No head has had time to live or die.";
  });
}

function drawDetails() {
  for (const run of runs) {
    const { block } = column("details", run, () => ({})), list = element(block, "dl");
    const add = (name, value) => { if (value !== null && value !== undefined && value !== "") { element(list, "dt", {}, name); element(list, "dd", {}, value); } };
    const m = run.model, p = run.probes;
    add("Model", m.name);
    add("Shape", `${count(m.n_layers, "layer")}, ${count(m.n_heads, "query head")}` + (m.n_kv_heads ? `, ${count(m.n_kv_heads, "key/value head")}` : "") + (m.head_dim ? `, head width ${m.head_dim}` : "") + (m.d_model ? `, model width ${whole(m.d_model)}` : ""));
    add("Trainer", run.trainer);
    add("Status", run.status);
    add("Begun", run.created);
    add("W&B", run.wandb);
    add("Probes", `${count(p.n_pairs, "pair")} of ${p.families.join(", ")}; tokenizer ${p.tokenizer}`);
    add("Fingerprint", p.fingerprint);
    add("Peak memory of a probe", isNumber(run.cost.peak_memory_mb) ? `${whole(Math.round(run.cost.peak_memory_mb))} MB` : "");
    add("Completeness error", isNumber(run.cost.completeness_error) ? number(run.cost.completeness_error) + " (last probe)" : "");
    add("Versions", Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(", "));
    if (run.examples.length) element(block, "h3", {}, "A pair of each family");
    for (const example of run.examples) { element(block, "p", { class: "facts" }, example.family); element(block, "pre", { class: "example" }, "clean      " + example.clean + "\ncorrupted  " + example.corrupted); }
    element(block, "h3", {}, "Settings");
    element(block, "pre", {}, JSON.stringify(run.settings, null, 1));
  }
}

function start() {
  try { const kept = localStorage.getItem("headwatch-theme"); if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept; } catch (refused) { /* no storage */ }
  document.body.dataset.runs = runs.length;
  byId("written").textContent = data.written;
  byId("footer").textContent = `Written by headwatch ${data.headwatch_version}. This page holds its data and asks for nothing from outside.`;
  recall();
  legend(byId("lives-legend"), [["base", "base head active", ""], ["new", "emerged", ""], ["back", "re-emerged", ""], ["unproven", "in the set without evidence", "evidence-only"]]);
  element(byId("lives-legend"), "span", { class: "evidence-only" }, "thin: outside the set, loss not proven");
  element(byId("lives-legend"), "span", {}, "dotted: dropped or pruned");
  controls();
  headControls();
  tooltips();
  drawDetails();
  draw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(draw); } });
  addEventListener("hashchange", () => { if (location.hash !== written) { recall(); sync(); draw(); } });
  /* For paper: everything open, all events, and charts drawn at the width that a sheet has. */
  addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = true; }); table.all = true; document.body.classList.add("printing"); draw(); });
  addEventListener("afterprint", () => { document.body.classList.remove("printing"); draw(); });
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey;
    if (typing || steps.length < 2 || (event.key !== "," && event.key !== ".")) return;
    setNow(chosen.now + (event.key === "." ? 1 : -1));
  });
  document.documentElement.dataset.ready = "yes";
}

addEventListener("error", (event) => {
  document.documentElement.dataset.error = event.message;
  byId("failure").hidden = false;
  byId("failure").textContent = "This page’s script stopped: " + event.message;
});
start();
