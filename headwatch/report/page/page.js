/* page.js: what is chosen (family, rule, now, head), the controls, and the sections of the page. */

const data = JSON.parse(byId("data").textContent);
const runs = data.runs;
const steps = [...new Set(runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
const chosen = { family: data.opens_on, rule: data.rules[0], now: steps.length - 1, head: null, open: false, oneAxis: false };
const RULE_LABELS = { evidence: "Evidence (tested)", circuit: "Circuit (the paper’s)" };

runs.forEach((run, index) => { run.letter = index < 26 ? String.fromCharCode(65 + index) : String(index + 1); });

/* A run's data of the chosen family and rule; null where it has none. */
function viewOf(run) {
  const family = run.families[chosen.family], view = family && family.rules[chosen.rule];
  if (view) view.probe = family.probe;
  return view || null;
}

/* --- address -------------------------------------------------------------------------------------------------------- */

/* The address holds the choices (#family=...&rule=...&step=...&pick=L5.H2&theme=...), so that a view can be shared.
   head=L5.H2 in place of pick opens the head's own page. */
let touched = false; /* whether the reader has chosen anything; until then the address is not changed */
let writtenAddress = location.hash;

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1)), step = asked.get("step");
  const found = /^[La]?(\d+)\.[Hh]?(\d+)$/.exec(asked.get("head") || asked.get("pick") || ""), head = found && [+found[1], +found[2]];
  if (data.families.includes(asked.get("family"))) chosen.family = asked.get("family");
  if (data.rules.includes(asked.get("rule"))) chosen.rule = asked.get("rule");
  if (step !== null && steps.length) chosen.now = lastAtMost(steps, +step);
  const known = head && runs.some((run) => isHeadOf(run, head));
  chosen.head = known ? head : mostChanged();
  chosen.open = Boolean(known && asked.get("head") && steps.length);
  if (["light", "dark"].includes(asked.get("theme"))) document.documentElement.dataset.theme = asked.get("theme");
}

function writeAddress(newEntry) {
  const kept = new URLSearchParams({ family: chosen.family || "", rule: chosen.rule, step: steps.length ? steps[chosen.now] : 0 });
  if (chosen.head) kept.set(chosen.open ? "head" : "pick", headName(chosen.head));
  if (new URLSearchParams(location.hash.slice(1)).has("theme")) kept.set("theme", document.documentElement.dataset.theme);
  if (!touched || "#" + kept === location.hash) { writtenAddress = location.hash; return; }
  try { history[newEntry ? "pushState" : "replaceState"](null, "", "#" + kept); writtenAddress = location.hash; } catch (refused) { /* a frame without an address of its own */ }
}

/* --- choosing ------------------------------------------------------------------------------------------------------- */

function radioButtons(id, values, text, chosenValue, choose) {
  byId(id + "-control").hidden = values.length < 2;
  for (const value of values) {
    const wrap = element(byId(id), "label"), input = element(wrap, "input", { type: "radio", name: id, value });
    input.checked = value === chosenValue;
    input.addEventListener("change", () => { touched = true; choose(value); });
    element(wrap, "span", {}, text(value));
  }
}

const stepText = () => (steps.length ? `step ${whole(steps[chosen.now])} of ${whole(steps[steps.length - 1])}` : "");

function controls() {
  radioButtons("family", data.families, (f) => f, chosen.family, (family) => { chosen.family = family; chosen.head = mostChanged(); draw(); });
  radioButtons("rule", data.rules, (r) => RULE_LABELS[r] || r, chosen.rule, (rule) => { chosen.rule = rule; draw(); });
  const ends = runs.map((run) => lastStep(run));
  byId("axis-control").hidden = new Set(ends).size < 2;
  byId("axis").addEventListener("change", () => { chosen.oneAxis = byId("axis").checked; draw(); });
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

/* Set the controls after the choice was changed by the address. */
function syncControls() {
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

function chooseHead(head, step, newEntry) {
  if (!head) return;
  touched = true;
  chosen.head = head;
  if (isNumber(step) && steps[chosen.now] < step) chosen.now = steps.indexOf(step);
  byId("now").value = chosen.now;
  draw(newEntry);
}

/* The head chosen at first: the one with the event of largest change, or else of the changed ones the one of largest share, or else the first of the raster. */
function mostChanged() {
  const rows = eventRows(runs, runs.map(viewOf)).filter((row) => isNumber(row.change));
  rows.sort((a, b) => Math.abs(b.change) - Math.abs(a.change));
  if (rows.length) return rows[0].head;
  const view = runs.map(viewOf).find((v) => v && v.lives.heads.length), share = (head) => Math.abs(valueAt(view, head, Infinity) || 0);
  if (view && view.effect.changed && view.effect.changed.length) return view.effect.changed.slice().sort((a, b) => share(b) - share(a))[0];
  return view ? view.lives.heads[groupRows(view, "base")[0] || 0] : null;
}

/* In such a chart the arrow keys choose a head, and Enter opens its page. */
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

/* --- columns of the sections, one per run, built once --------------------------------------------------------------- */

const built = new Map();
function column(id, run, make) {
  const key = id + run.letter;
  if (!built.has(key)) {
    const block = element(document.querySelector(`#${id} .columns`), "div");
    columnTitle(block, run);
    built.set(key, Object.assign(make(block), { block }));
  }
  return built.get(key);
}

function courseColumn(run) {
  return column("course", run, (block) => {
    const svg = chart(block, "course", `Course of training of ${run.name}: newly active heads, retained base heads, reward or loss, and probe accuracy by training step`);
    const more = element(block, "details", { class: "more-text" });
    element(more, "summary", {}, "Persistence and coupling with the reward");
    const persistence = element(more, "div", { class: "facts persistence" }), coupling = element(more, "p", { class: "facts" });
    const follow = (event) => { if (event.buttons & 1) { const at = svg.stepAt(event.clientX); setNow(steps.reduce((best, s, i) => (Math.abs(s - at) < Math.abs(steps[best] - at) ? i : best), 0)); } };
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointermove", follow);
    return { svg, more, persistence, coupling };
  });
}

function whereColumn(run) {
  return column("where", run, (block) => {
    const layers = run.model.n_layers;
    const maps = element(block, "div", { class: "maps" }), width = clamp(layers * CELL + 40, 200, 700);
    const [first, second] = [["activation frequency", HELP.frequency], ["effect on importance", HELP.effect]].map(([what, text]) => {
      const box = element(maps, "div", { class: "helped", style: `flex: 1 1 ${width}px` });
      help(box, text);
      return chart(box, "map", `Layers by heads: ${what} in ${run.name}`);
    });
    for (const svg of [first, second]) {
      svg.addEventListener("click", (event) => chooseHead(svg.headAt(event)));
      keys(svg, (dx, dy) => chooseHead(neighbour(run, chosen.head || [0, 0], dx, dy)));
    }
    legend(first.parentNode, [["base", "base head", "ramp"], ["new", "emerged in training", "ramp"], ["", "active now", "swatch-outline"], ["untested", "in the active set without evidence", "round evidence-only"]]);
    legend(second.parentNode, [["loss", "−1: importance lost", "ramp"], ["gain", "+1: importance gained", "ramp"], ["gain", "small: 95 % interval contains 0", "speck with-interval"], ["", "share changed significantly and materially", "round changed evidence-only"]]);
    const inspector = element(block, "p", { class: "inspector", "aria-live": "polite" });
    const share = chart(block, "share", `Share of the chosen head over the steps of ${run.name}, with its 95 % interval`);
    const own = element(block, "button", { type: "button", class: "more own-page" }, "Open the page of this head");
    own.addEventListener("click", () => openHead(chosen.head));
    return { first, second, inspector, share, own };
  });
}

function livesColumn(run) {
  return column("lives", run, (block) => {
    const panels = element(block, "div", { class: "panels" }), groups = {};
    for (const group in GROUPS) {
      const panel = element(panels, "div"), title = element(panel, "h3"), svg = chart(panel, "raster", `${GROUPS[group]} in ${run.name}, one row per head`);
      svg.addEventListener("click", (event) => chooseHead(event.target.head));
      keys(svg, (dx, dy) => {
        const view = viewOf(run), rows = view ? groupRows(view, group) : [];
        if (!rows.length) return;
        const at = rows.findIndex((row) => same(chosen.head, view.lives.heads[row]));
        chooseHead(view.lives.heads[rows[clamp(at + dy + dx, 0, rows.length - 1)]]);
      });
      groups[group] = { panel, title, svg };
    }
    return { groups };
  });
}

function signalsColumn(run) { return column("signals", run, (block) => ({ charts: element(block, "div", { class: "panels" }) })); }

/* --- drawing -------------------------------------------------------------------------------------------------------- */

function draw(newEntry) {
  const views = runs.map(viewOf), scales = runScales(runs, views), nowStep = steps.length ? steps[chosen.now] : 0;
  const nows = runs.map((run) => lastAtMost(run.steps, nowStep)), picked = chosen.head;
  byId("now-text").textContent = stepText();
  byId("now").setAttribute("aria-valuetext", stepText());
  byId("print-state").textContent = steps.length ? `Shown: family ${chosen.family}${data.families.length > 1 ? ` (of ${data.families.join(", ")})` : ""}, ${chosen.rule} rule, ${stepText()}.` : "";
  document.body.dataset.rule = chosen.rule;
  document.body.dataset.interval = views.some((view) => view && view.effect.low) ? "yes" : "no";
  drawTitles();
  drawNote(views, nows);
  drawStateCounts(views, nows);
  const shares = views.map((view) => (picked ? sharePath(view, picked) : null)), domain = domainOf(shares.flatMap((p) => (p ? [p.low, p.high] : [])), 0.01);
  /* All columns are built first: a chart takes its width from the layout. */
  const columns = runs.map((run) => [courseColumn(run), whereColumn(run), livesColumn(run), signalsColumn(run)]);
  for (const id of ["where", "lives"]) byId(id).hidden = !views.some((view) => view && view.lives.heads.length);
  byId("top").classList.toggle("alone", byId("where").hidden);
  drawPair();
  runs.forEach((run, r) => {
    const view = views[r], now = nows[r], [course, where, lives, signals] = columns[r];
    drawCourse(course.svg, run, view, scales[r], now);
    drawPersistence(course.persistence, run, view, now);
    const weak = view && view.cohorts.signal.includes(false) ? "Hatched: probes with insufficient signal; heads keep their previous state. " : "";
    course.coupling.textContent = weak + (view ? view.coupling.join(" ") : "");
    course.more.hidden = !course.coupling.textContent && !course.persistence.childElementCount;
    drawWhere(where, run, view, now, picked, shares[r], domain, scales[r]);
    drawLives(lives, run, view, now, picked, scales[r]);
    drawSignals(signals.charts, run, view, runs, views, scales[r], now);
  });
  drawEvents(document.querySelector("#events .body"), runs, views, chosen.rule, nowStep, picked, chooseHead);
  drawSurvivals(views);
  drawAfter();
  drawComparison(runs, views, nows, picked, chooseHead);
  drawHeadPage(views, nows, scales);
  writeAddress(newEntry);
}

function drawWhere(where, run, view, now, picked, share, domain, scales) {
  const active = Boolean(view) && view.lives.heads.length > 0, compared = Boolean(view) && view.effect.effect.length > 0;
  where.block.hidden = !active && !compared;
  where.first.parentNode.hidden = !active;
  where.second.parentNode.hidden = !compared;
  if (active) drawFrequency(where.first, run, view, now, picked);
  if (compared) drawEffect(where.second, run, view, picked);
  where.inspector.replaceChildren();
  where.own.hidden = !picked || !view || where.block.hidden;
  where.share.begin(1);
  if (!picked || !view) return;
  const name = headName(picked);
  if (isHeadOf(run, picked)) {
    element(where.inspector, "b", {}, name);
    where.inspector.append(" · " + unbroken(headTexts(view, picked, now).join(" · ")));
  }
  const weight = share ? null : importancePath(run, picked);
  if (share) drawPath(where.share, `Share of ${name}`, "95 % interval", run, view, picked, share, domain, scales, now, percent);
  if (weight) drawPath(where.share, `Importance of ${name}`, "the paper’s: fraction of all |edge score|", run, view, picked, weight, pathDomain([weight], 0.001), scales, now, percent);
}

function drawLives(lives, run, view, now, picked, scales) {
  const some = view && view.lives.heads.length > 0;
  lives.block.hidden = !some;
  for (const group in GROUPS) {
    const { panel, title, svg } = lives.groups[group], n = some ? groupRows(view, group).length : 0;
    panel.hidden = !n;
    if (!n) { svg.replaceChildren(); continue; }
    title.textContent = GROUPS[group] + " ";
    element(title, "small", {}, whole(n) + (group === "base" && chosen.rule === "evidence" && n > 1 ? ", the largest share first" : ""));
    drawRaster(svg, run, view, group, scales, now, picked);
  }
}

/* What the chosen rule is, in two sentences. */
function drawNote(views, nows) {
  const note = byId("rule-note"), settings = (runs[0] && runs[0].evidence) || {};
  if (chosen.rule === "evidence") {
    note.textContent = unbroken(`Evidence rule: each head is compared with itself on the same frozen pairs. A change counts if it is significant after correction over the heads (q ≤ ${number(settings.q)}) and material (at least ${percent(settings.min_change)} of the base’s total |share|).`);
    return;
  }
  const means = views.map((view, r) => (view && view.stability ? `${runs.length > 1 ? runs[r].letter + " " : ""}${percent(view.stability.mean[nows[r]])}` : null)).filter(Boolean);
  note.textContent = "Circuit rule (the paper’s): heads of the top-scoring edges. Membership is not tested, and much of it changes with the sample of pairs alone. " + (means.length ? `Stability now (resamples of the pairs that keep an active head, mean): ${means.join(", ")}.` : "Stability was not measured in this run.");
}

function drawStateCounts(views, nows) {
  const box = byId("state-counts");
  box.replaceChildren();
  if (!views.some((view) => view && view.lives.heads.length)) return;
  const names = ["Active now", "Retained", "Dropped", "Emerged", "Re-emerged", "Pruned", ...(chosen.rule === "evidence" ? ["Stronger", "Weaker"] : [])];
  const titles = { Stronger: "All heads whose |share| is significantly and materially larger than in the base, active or not", Weaker: "All heads whose |share| is significantly and materially smaller than in the base, active or not" };
  views.forEach((view, r) => {
    if (!view) return;
    const list = element(box, "ul", { "aria-label": runs[r].name });
    if (runs.length > 1) badge(element(list, "li", { class: "name" }), runs[r]);
    stateCounts(view, nows[r]).forEach(([n, color, of], k) => {
      const item = element(list, "li", titles[names[k]] ? { title: titles[names[k]] } : {}), value = element(item, "b", { class: n ? color : "zero" }, whole(n));
      if (of) element(value, "span", { class: "of" }, of);
      element(item, "span", {}, names[k]);
    });
  });
}

/* [number, colour class, remark] of each column. */
function stateCounts(view, now) {
  const n = Object.fromEntries(STATES.map((state) => [state, 0]));
  view.lives.lives.forEach((signs) => { n[STATES[life(signs[now]).state]] += 1; });
  const kept = n.base + n.retained;
  const counts = [[kept + n.emerged + n["re-emerged"], "", ""], [kept, "k-base", ` of ${kept + n.dropped}`], [n.dropped, "k-base", ""], [n.emerged, "k-new", ""], [n["re-emerged"], "k-back", ""], [n.pruned, "k-new", ""]];
  if (chosen.rule === "evidence") counts.push([view.changes.strengthened[now], "", ""], [view.changes.weakened[now], "", ""]);
  return counts;
}

function drawSurvivals(views) {
  const some = views.some((view) => view && view.survival.emerged);
  byId("survival").hidden = !some;
  byId("bottom").style.gridTemplateColumns = some ? "" : "1fr";
  if (!some) return;
  const lasts = views.map((view) => Math.max(...(view ? Object.values(view.survival).flatMap((curve) => curve.time) : []), 1)), longest = Math.max(...lasts);
  const columns = runs.map((run) => column("survival", run, (block) => ({ svg: chart(block, "survivals", `Survival of heads of ${run.name}`), text: element(block, "p", { class: "facts" }) })));
  runs.forEach((run, r) => {
    const { svg, text } = columns[r], view = views[r], curves = view ? Object.entries(view.survival) : [];
    const flat = curves.every(([, curve]) => curve.survival.every((value) => value === 1));
    svg.replaceChildren();
    svg.toggleAttribute("hidden", !curves.length || flat);
    if (!curves.length) { text.textContent = "No spell has been observed over time yet."; return; }
    if (flat) { text.textContent = `No first spell has ended yet: ${curves.map(([group, { spells }]) => `${group} ${whole(spells)} of ${whole(spells)} active`).join(", ")}.`; return; }
    drawSurvival(svg, view, chosen.oneAxis ? longest : lasts[r]);
    const gaps = run.steps.slice(1).map((s, i) => s - run.steps[i]);
    text.textContent = `Ends are known to within ${gaps.length ? whole(Math.max(...gaps)) : "–"} steps, the interval between probes.`;
  });
}

function drawDetails() {
  for (const run of runs) {
    const { block } = column("details", run, () => ({})), list = element(block, "dl");
    const add = (name, value) => { if (value !== null && value !== undefined && value !== "") { element(list, "dt", {}, name); element(list, "dd", {}, value); } };
    const m = run.model, p = run.probes;
    add("Model", m.name);
    add("Shape", `${count(m.n_layers, "layer")}${m.layers_with_heads ? ` (${m.layers_with_heads.length} with attention heads)` : ""}, ${count(m.n_heads, "query head")}` + (m.n_kv_heads ? `, ${count(m.n_kv_heads, "key/value head")}` : "") + (m.head_dim ? `, head width ${m.head_dim}` : "") + (m.d_model ? `, model width ${whole(m.d_model)}` : ""));
    add("Trainer", run.trainer);
    add("Probed", run.steps.length ? `${count(run.steps.length, "time")}, steps ${whole(run.steps[0])} to ${whole(run.steps[run.steps.length - 1])}` : "");
    add("Time of a probe", isNumber(run.cost.seconds) ? `${number(run.cost.seconds)} s` : "");
    add("Status", run.status);
    add("Lost", run.lost);
    add("Created", run.created);
    add("W&B", run.wandb);
    add("Probes", `${count(p.n_pairs, "pair")} of ${p.families.join(", ")}; tokenizer ${p.tokenizer}`);
    add("Fingerprint", p.fingerprint);
    add("Peak memory of a probe", isNumber(run.cost.peak_memory_mb) ? `${whole(Math.round(run.cost.peak_memory_mb))} MB` : "");
    add("Completeness error", isNumber(run.cost.completeness_error) ? number(run.cost.completeness_error) + " (last probe)" : "");
    add("headwatch", run.headwatch_version);
    add("Versions", Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(", "));
    element(block, "h3", {}, "Settings");
    element(block, "pre", {}, JSON.stringify(run.settings, null, 1));
  }
}

/* --- start ---------------------------------------------------------------------------------------------------------- */

function listen() {
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(draw); } });
  byId("checks").addEventListener("toggle", () => { if (byId("checks").open && !document.body.classList.contains("printing")) draw(); });
  addEventListener("hashchange", () => { if (location.hash !== writtenAddress) { readAddress(); syncControls(); draw(); } });
  /* For print: every section open, all events, charts at the width of a sheet. */
  addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = true; }); table.all = true; document.body.classList.add("printing"); draw(); });
  addEventListener("afterprint", () => { document.body.classList.remove("printing"); draw(); });
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey;
    if (typing || steps.length < 2 || (event.key !== "," && event.key !== ".")) return;
    setNow(chosen.now + (event.key === "." ? 1 : -1));
  });
}

function start() {
  try { const kept = localStorage.getItem("headwatch-theme"); if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept; } catch (refused) { /* no storage */ }
  document.body.dataset.runs = runs.length;
  byId("written").textContent = data.written;
  byId("footer").textContent = `Written by headwatch ${data.headwatch_version}. This page contains its data and loads nothing else.`;
  readAddress();
  const lives = byId("lives-legend");
  legend(lives, [["base", "base head active", ""], ["new", "emerged", ""], ["back", "re-emerged", ""], ["untested", "in the active set without evidence", "evidence-only"]]);
  element(lives, "span", { class: "evidence-only" }, "thin: outside the active set, loss not significant");
  element(lives, "span", {}, "dotted: dropped or pruned");
  controls();
  headControls();
  sectionHelp();
  tooltips();
  drawDetails();
  draw();
  listen();
  document.documentElement.dataset.ready = "yes";
}

addEventListener("error", (event) => {
  document.documentElement.dataset.error = event.message;
  byId("failure").hidden = false;
  byId("failure").textContent = "This page’s script stopped: " + event.message;
});
start();
