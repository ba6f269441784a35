/* help.js: the "?" of each chart: two sentences on how to read it. */

const HELP_WIDTH = 26; /* room of the "?" next to a chart's title */
const HELP = {
  course: "Line: heads that are active now and were not active in the base model. Bands: the same heads by the probe at which each first emerged; a band that stays wide is a group of heads that stays active. Hatched: probes with insufficient signal.",
  frequency: "A cell is a head: red if it was active in the base model, blue if it emerged in training, darker the more of the probes up to now it was active at. An outline marks the heads that are active now.",
  effect: "Change of a head’s importance since the base, from −1 (all of it lost) to +1 (all of it new). It can be large for a head of tiny share: a dot marks heads whose share changed significantly and materially.",
  comparison: "Each column is a head that emerged in at least one run; the map shows the difference of the shares. The differences are not tested: each run is one seed.",
  circuits: "Part of the metric gap that a circuit keeps when every other edge is corrupted, over its share of all edges (shaded: 95 % interval over the pairs); thin lines are random circuits with as many edges. CPR is the area under the curve (large: good), CMD the area between the curve and 1 (small: good). Below: the strongest edges, layers from left to right, wider for a larger mean |edge score|.",
  ablation: "A dot is the accuracy with these heads off and its 95 % interval over the problems; the dashed line is the model with all heads on. Grey: random sets of as many other heads; where these cost as much, the heads are not special.",
  evaluation: "Accuracy on benchmarks with its 95 % interval over the problems. Components: parts of the total |edge score| before and after training.",
  roles: "One row per head, mean over clean probe prompts: what it attends to (Previous, First: attention to the token before and to the first token) and what it writes along the answers’ difference (Write). A column’s name sorts, a head’s name opens its page, and “How to read this” defines every column.",
  lives: "Each row is a head, and each bar is a stretch of training in which it was active; on the right, its share of the metric gap now (shares need not add up to 100 %: what passes through several heads counts for each). Thin and grey parts: membership of the active set changed, but not significantly.",
  events: "Evidence rule: each row is a change of share that passed the paired test (q) and is at least 0.5 % of the base’s total |share|. A negative share works against the clean answer, so a dropped head with one has a positive change.",
  survival: "Fraction of the heads that are still active, by the number of steps since they became active, with 95 % interval. Ticks: heads still active at the last probe, whose end is not known.",
};

/* A "?" at the upper right of its parent; returns the paragraph that it opens. */
function help(parent, text) {
  const box = element(null, "details", { class: "help" }), note = element(null, "p", {}, text);
  element(box, "summary", { "aria-label": "How to read this" }, "?");
  box.append(note);
  if (parent.firstElementChild && /^H[23]$/.test(parent.firstElementChild.tagName)) parent.firstElementChild.after(box);
  else parent.prepend(box);
  parent.classList.add("helped");
  return note;
}

/* The "?" of the sections with one kind of chart, and of the rule. */
function sectionHelp() {
  for (const id of ["course", "comparison", "lives", "circuits", "ablation", "evaluation", "roles", "events", "survival"]) help(byId(id), HELP[id]);
  help(byId("rule-control"), "").id = "rule-note";
}
