/* summary.js: the header: each run's name, headline, alerts and, family by family, what its statistics carry. */

function badge(parent, run) { if (runs.length > 1) element(parent, "span", { class: "badge" }, run.letter); }

function drawTitles() {
  const titles = byId("titles");
  titles.replaceChildren();
  for (const run of runs) {
    const block = element(titles, "div"), view = viewOf(run), name = element(block, "h1", { class: "run-name" });
    badge(name, run);
    element(name, "span", {}, run.name);
    element(name, "span", { class: "status" + (["running", "failed"].includes(run.status) ? " " + run.status : "") }, run.status);
    element(block, "p", { class: "headline" }, view ? view.headline : missing(run));
    drawAlerts(block, run);
    drawSummary(block, run);
    drawFacts(element(block, "p", { class: "facts" }), run);
  }
}

function drawAlerts(block, run) {
  if (!run.alerts.length) return;
  const list = element(block, "ul", { class: "alerts", "aria-label": "Alerts" });
  for (const alert of run.alerts) {
    const line = element(list, "li", { class: (alert.now ? "now " : "") + (alert.level === "status" ? "status-level" : "warning") });
    element(line, "b", {}, (alert.now ? "" : "Earlier ") + (alert.level === "status" ? "status: " : "alert: "));
    line.append(`${alert.family ? alert.family + ": " : ""}${alert.text} (${alert.first === alert.last ? "step " + whole(alert.first) : `steps ${whole(alert.first)} to ${whole(alert.last)}`})`);
  }
}

/* A block a family: families are told apart and never pooled. */
function drawSummary(block, run) {
  const list = element(block, "div", { class: "summary", role: "group", "aria-label": "Summary by probe family, at the last probe" });
  for (const [family, { summary, pairs }] of Object.entries(run.families)) {
    const one = element(list, "div", { class: family === chosen.family ? "chosen" : "" }), name = element(one, "h2", {}, family);
    element(name, "small", {}, count(pairs, "pair"));
    if (summary.status !== "ok") element(name, "span", { class: "family-status" }, summary.status);
    const said = element(one, "ul");
    for (const sentence of summary.sentences) element(said, "li", {}, sentence);
  }
  if (!list.childElementCount) { list.remove(); return; }
  const across = acrossFamilies(run);
  if (across) element(block, "p", { class: "facts across" }, across);
}

/* Which heads emerged in every family and which in one: families stand side by side, their numbers are never added up. */
function acrossFamilies(run) {
  const names = Object.keys(run.families), sets = names.map((name) => joinedHeads(run.families[name].rules.evidence));
  const all = [...new Set(sets.flatMap((set) => [...set]))];
  if (names.length < 2 || !all.length) return "";
  const listed = (found) => (found.length ? found.slice(0, 8).map((key) => "L" + key.replace(".", ".H")).join(", ") + (found.length > 8 ? ` and ${found.length - 8} more` : "") : "none");
  const lines = [`in every family ${listed(all.filter((key) => sets.every((set) => set.has(key))))}`];
  names.forEach((name, i) => lines.push(`on ${name} alone ${listed([...sets[i]].filter((key) => sets.every((set, j) => i === j || !set.has(key))))}`));
  return `Ever emerged (evidence rule): ${lines.join("; ")}.`;
}
const joinedHeads = (view) => new Set(view ? groupRows(view, "joined").map((row) => keyOf(view.lives.heads[row])) : []);

function drawFacts(facts, run) {
  const m = run.model, n = run.steps.length;
  element(facts, "b", {}, m.name);
  const shape = `${count(m.n_layers, "layer")} × ${count(m.n_heads, "head")}`;
  const probed = n ? (n === 1 ? `probed at step ${whole(run.steps[0])}` : `probed ${n} times, steps ${whole(run.steps[0])} to ${whole(run.steps[n - 1])}`) : "not probed yet";
  const cost = isNumber(run.cost.seconds) ? `${number(run.cost.seconds)} s a probe` : "";
  facts.append(` (${shape}), ` + [run.trainer, probed, cost, run.probes.fingerprint ? "probes " + run.probes.fingerprint : "", run.headwatch_version ? "headwatch " + run.headwatch_version : ""].filter(Boolean).join(" · "));
}

function missing(run) {
  if (!run.steps.length) return "No probe has been taken yet.";
  return run.families[chosen.family] ? `This run holds no circuits: it was scored by heads only.` : `This run has no probes of the family ${chosen.family}.`;
}
