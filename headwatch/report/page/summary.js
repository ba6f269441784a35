/* summary.js: the header: each run's name, headline, alerts and a summary of each family. */

function badge(parent, run) { if (runs.length > 1) element(parent, "span", { class: "badge" }, run.letter); }

/* The run's name above its column, where there are several. */
function columnTitle(block, run) {
  if (runs.length < 2) return;
  const title = element(block, "p", { class: "column-title" });
  badge(title, run);
  element(title, "span", {}, run.name);
}

function drawTitles() {
  const titles = byId("titles");
  titles.replaceChildren();
  for (const run of runs) {
    const block = element(titles, "div"), view = viewOf(run), name = element(block, "h1", { class: "run-name" });
    badge(name, run);
    element(name, "span", {}, run.name);
    element(name, "span", { class: "status" + (["running", "failed", "interrupted"].includes(run.status) ? " " + run.status : "") }, run.status);
    element(block, "p", { class: "headline" }, view ? view.headline : missingText(run));
    if (run.lost) element(block, "p", { class: "facts" }, `Note: ${run.lost}.`);
    drawFacts(element(block, "p", { class: "facts" }), run);
    drawSummary(block, run);
    drawAlerts(block, run);
  }
}

const ALERT_NAMES = { reward_up_probes_down: "reward up, probes down", base_dropped: "base heads dropped", inexact: "inexact scores", insufficient_data: "too few pairs", insufficient_signal: "insufficient signal", unstable: "unstable scores of single heads" };
function drawAlerts(block, run) {
  if (!run.alerts.length) return;
  const list = element(block, "ul", { class: "alerts", "aria-label": "Alerts" });
  for (const alert of run.alerts.filter(({ now, level }) => now && level !== "status")) drawAlert(list, alert);
  const others = run.alerts.filter(({ now, level }) => !now || level === "status");
  if (!others.length) return;
  const more = element(block, "details", { class: "more-text" }), folded = element(more, "ul", { class: "alerts" });
  const kinds = [...new Set(others.map(({ kind }) => ALERT_NAMES[kind]).filter(Boolean))];
  more.prepend(element(null, "summary", {}, `${count(others.length, "more message")}${kinds.length ? `: ${kinds.join(", ")}` : ""}`));
  more.open = document.body.classList.contains("printing");
  for (const alert of others) drawAlert(folded, alert);
}

function drawAlert(list, alert) {
  const line = element(list, "li", { class: (alert.now ? "now " : "") + (alert.level === "status" ? "status-level" : "warning") });
  element(line, "b", {}, (alert.now ? "" : "Earlier ") + (alert.level === "status" ? "status: " : "alert: "));
  line.append(`${alert.family ? alert.family + ": " : ""}${alert.text} (${alert.first === alert.last ? "step " + whole(alert.first) : `steps ${whole(alert.first)} to ${whole(alert.last)}`})`);
}

/* One line per family, with its sentences folded: families are never pooled. */
const unfolded = new Set();
function drawSummary(block, run) {
  const list = element(block, "div", { class: "summary", role: "group", "aria-label": "Summary by probe family, at the last probe" });
  for (const [family, { summary, pairs }] of Object.entries(run.families)) {
    const key = run.letter + family, part = element(list, "details", { class: family === chosen.family ? "chosen" : "" }), name = element(part, "summary");
    part.open = unfolded.has(key) || document.body.classList.contains("printing"); /* the element is new at every drawing */
    part.addEventListener("toggle", () => { if (document.body.classList.contains("printing")) return; if (part.open) unfolded.add(key); else unfolded.delete(key); });
    element(name, "b", {}, family);
    element(name, "span", { class: summary.weight ? "" : "family-status" }, summary.line);
    element(part, "p", { class: "facts" }, count(pairs, "pair"));
    const sentences = element(part, "ul");
    for (const sentence of summary.sentences) element(sentences, "li", {}, sentence);
  }
  if (!list.childElementCount) { list.remove(); return; }
  const across = acrossFamilies(run);
  if (across) element(list.lastElementChild, "p", { class: "facts across" }, across);
}

/* The first pair of the chosen family: both prompts, each with its answer at the position of the metric. */
function drawPair() {
  const box = byId("pair"), run = runs.find((one) => one.examples[chosen.family]);
  box.replaceChildren();
  box.hidden = !run;
  if (!run) return;
  const example = run.examples[chosen.family], pairs = run.families[chosen.family] ? run.families[chosen.family].pairs : 1;
  element(box, "p", { class: "caption" }, `One of ${count(pairs, "probe pair")} of ${chosen.family} with the token that the metric reads`);
  const [from, to] = differing(example.clean, example.corrupted);
  for (const side of ["clean", "corrupted"]) {
    const line = element(box, "p"), prompt = element(null, "code"), text = example[side].replace(/\n/g, "⏎"), end = text.length - to;
    element(line, "span", { class: "side" }, side);
    prompt.append(text.slice(0, from));
    element(prompt, "mark", {}, text.slice(from, end));
    prompt.append(text.slice(end));
    line.append(prompt);
    if (example[side + "_answer"]) { line.append(" → "); element(line, "code", { class: "answer" }, example[side + "_answer"]); }
  }
}

/* How many characters two texts have in common at the beginning, and after the difference at the end. */
function differing(one, other) {
  const shortest = Math.min(one.length, other.length);
  let from = 0, to = 0;
  while (from < shortest && one[from] === other[from]) from += 1;
  while (to < shortest - from && one[one.length - 1 - to] === other[other.length - 1 - to]) to += 1;
  return [from, to];
}

/* Which heads emerged in every family and which in one only. */
function acrossFamilies(run) {
  const names = Object.keys(run.families), last = run.steps.length - 1;
  const emerged = names.map((name) => emergedHeads(run.families[name].rules.evidence, last));
  const all = [...new Set(emerged.flatMap((rows) => [...rows.keys()]))];
  if (names.length < 2 || !all.length) return "";
  const text = (keys) => listed(keys.map((key) => headName(key.split("."))), 8);
  const parts = [`in every family ${text(all.filter((key) => emerged.every((rows) => rows.has(key))))}`];
  names.forEach((name, i) => parts.push(`only on ${name} ${text([...emerged[i].keys()].filter((key) => emerged.every((rows, j) => i === j || !rows.has(key))))}`));
  return `Heads that ever emerged (evidence rule): ${parts.join("; ")}.`;
}

function drawFacts(facts, run) {
  const m = run.model, n = run.steps.length;
  element(facts, "b", {}, m.name);
  const shape = m.layers_with_heads ? `${m.layers_with_heads.length} of ${count(m.n_layers, "layer")} × ${count(m.n_heads, "head")}` : `${count(m.n_layers, "layer")} × ${count(m.n_heads, "head")}`;
  const probed = n ? (n === 1 ? `probed at step ${whole(run.steps[0])}` : `probed ${n} times, steps ${whole(run.steps[0])} to ${whole(run.steps[n - 1])}`) : "not probed yet";
  const cost = isNumber(run.cost.seconds) ? `${number(run.cost.seconds)} s per probe` : "";
  facts.append(` (${shape}), ` + [run.trainer, probed, cost].filter(Boolean).join(" · "));
}

/* Why there is no view of a run for the chosen family and rule. */
function missingText(run) {
  if (!run.steps.length) return "No probe has been taken yet.";
  return run.families[chosen.family] ? "This run has no circuits: it was scored by heads only." : `This run has no probes of the family ${chosen.family}.`;
}
