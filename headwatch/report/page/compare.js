/* compare.js: several runs: heads that emerged in each, and differences between their shares. */

const DIFFERENCE = { from: 0, to: 1 }; /* indices of the two runs on the map */

/* Heads that emerged in any run up to now: by run, in order (most runs first), and in how many runs. */
function emergedByRun(views, nows) {
  const emerged = views.map((view, r) => emergedHeads(view, nows[r])), all = new Map();
  views.forEach((view, r) => emerged[r].forEach((row, key) => { all.set(key, view.lives.heads[row]); }));
  const inRuns = (head) => emerged.filter((rows) => rows.has(keyOf(head))).length;
  const heads = [...all.values()].sort((a, b) => inRuns(b) - inRuns(a) || a[0] - b[0] || a[1] - b[1]);
  return { emerged, heads, inRuns };
}

function drawEmerged(svg, runs, views, nows, picked) {
  const { emerged, heads, inRuns } = emergedByRun(views, nows);
  const width = svg.width_(), left = 30, size = clamp((width - left - 170) / Math.max(1, heads.length), 4, 26), rowHeight = 24;
  const named = size >= 11, top = named ? 48 : 8, middle = (r) => top + (r + 0.5) * rowHeight;
  svg.begin(top + runs.length * rowHeight + 8);
  heads.forEach((head, k) => {
    const cx = left + (k + 0.5) * size, rows = runs.map((_, r) => emerged[r].get(keyOf(head)));
    if (named) label(svg, 0, 0, headName(head), { transform: `translate(${(cx + 3).toFixed(1)} ${top - 6}) rotate(-60)` });
    const present = rows.map((_, r) => r).filter((r) => rows[r] !== undefined);
    if (present.length > 1) mark(svg, "line", { class: "axis", x1: cx, x2: cx, y1: middle(present[0]), y2: middle(present[present.length - 1]) });
    runs.forEach((run, r) => {
      const row = rows[r], missing = row === undefined, radius = Math.min(5.5, size * 0.38), active = !missing && isActive(views[r].lives.lives[row][nows[r]]);
      const state = missing ? "did not emerge" : active ? "emerged, active now" : "emerged, no longer active";
      const dot = mark(svg, "circle", { class: missing ? "cell" : "emerged-head s-new" + (active ? " f-new" : ""), cx, cy: middle(r), r: missing ? Math.min(2, radius) : radius }, `${headName(head)} · ${run.letter} ${run.name}\n${state}`);
      if (!missing && !active) dot.style.fill = "var(--paper)";
      dot.head = head;
    });
    if (same(picked, head)) mark(svg, "rect", { class: "pick", x: cx - size / 2, y: top, width: size, height: runs.length * rowHeight });
  });
  runs.forEach((run, r) => {
    const only = heads.filter((head) => inRuns(head) === 1 && emerged[r].has(keyOf(head))).length;
    label(svg, 0, middle(r) + 4, run.letter, { class: "strip-title" });
    label(svg, left + heads.length * size + 12, middle(r) + 4, `${emerged[r].size} emerged, ${only} in this run only`, {});
  });
}

/* Which heads emerged in all runs and which in one only, by name. */
function namedOverlaps(runs, views, nows) {
  const { emerged, heads, inRuns } = emergedByRun(views, nows);
  const lines = [[runs.length === 2 ? "Emerged in both" : `Emerged in all ${runs.length}`, heads.filter((head) => inRuns(head) === runs.length)]];
  runs.forEach((run, r) => lines.push([`Only in ${run.letter}`, heads.filter((head) => inRuns(head) === 1 && emerged[r].has(keyOf(head)))]));
  return lines.map(([name, found]) => `${name} (${found.length}): ${listed(found.map(headName), 12)}`);
}

/* How many heads each two runs have in common, and how many chance would give. */
function overlaps(runs, views, nows) {
  const { emerged } = emergedByRun(views, nows), lines = [];
  for (let a = 0; a < runs.length; a++) {
    for (let b = a + 1; b < runs.length; b++) {
      const common = [...emerged[a].keys()].filter((key) => emerged[b].has(key)).length, union = emerged[a].size + emerged[b].size - common;
      if (!union) continue;
      const free = headsOf(runs[a]).length - (views[a] ? groupRows(views[a], "base").length : 0);
      lines.push(`${runs[a].letter} and ${runs[b].letter}: ${common} of ${union} emerged heads in common; ${((emerged[a].size * emerged[b].size) / Math.max(1, free)).toFixed(1)} expected by chance among the ${free} heads that are not base heads.`);
    }
  }
  return lines;
}

/* Share (circuit rule: importance) of a head of a run at a probe; null where it is not known. */
function valueAt(view, head, now) {
  const kept = view && pathValues(view.shares || view.importance, head);
  return kept ? kept.values[lastAtMost(kept.probes, now)] : null;
}

/* Layers by heads: the second run's share minus the first's, now. Outlined: emerged in one of the two, or in both. */
function drawDifference(svg, runs, views, nows, [a, b], picked) {
  const { emerged } = emergedByRun(views, nows), what = views[a] && views[a].shares ? "share" : "importance";
  const place = grid(svg, runs[a], `Difference of ${what}, ${runs[b].letter} − ${runs[a].letter}`, "now; not tested, one seed each");
  const rows = headsOf(runs[a]).map((head) => ({ head, one: valueAt(views[a], head, nows[a]), other: valueAt(views[b], head, nows[b]) }));
  for (const row of rows) row.difference = row.one === null || row.other === null ? null : row.other - row.one;
  const most = Math.max(1e-9, ...rows.map((row) => Math.abs(row.difference || 0)));
  for (const { head, one, other, difference } of rows) {
    const by = [a, b].filter((r) => emerged[r].has(keyOf(head))).map((r) => runs[r].letter);
    cell(svg, "cell", place(head)).tip = `${headName(head)}\n${what} ${percent(one)} in ${runs[a].letter}, ${percent(other)} in ${runs[b].letter}${difference === null ? "" : `: ${percent(difference, true)}`}${by.length ? `\nemerged in ${by.join(" and ")}` : ""}`;
    if (difference) cell(svg, "fill difference f-" + (difference > 0 ? "gain" : "loss"), place(head)).style.opacity = Math.abs(difference) / most;
    if (by.length) cell(svg, "outline s-new" + (by.length === 2 ? "" : " one"), inner(place(head)));
  }
  drawPick(svg, place, picked, runs[a]);
}

function buildComparison(body, runs, choose) {
  const left = element(body, "div"), right = element(body, "div");
  body.matrix = element(left, "div");
  body.svg = chart(element(body.matrix, "div"), "emerged-heads", "Heads that emerged in each run, one column per head, one row per run");
  body.svg.addEventListener("click", (event) => choose(event.target.head));
  legend(body.matrix, [["new", "emerged, active now", "round"], ["", "emerged, no longer active", "round hollow"]]);
  body.lines = element(left, "div", { class: "facts" });
  body.choice = element(right, "div", { class: "filters" });
  body.difference = element(right, "div");
  body.map = chart(element(body.difference, "div"), "map difference-map", "Layers by heads: difference of share between two runs");
  body.map.addEventListener("click", (event) => choose(body.map.headAt(event)));
  legend(body.difference, [["loss", "smaller", "ramp"], ["gain", "larger", "ramp"], ["new", "emerged in both", "swatch-outline both"], ["new", "emerged in one", "swatch-outline one"]]);
  if (runs.length > 2) for (const [side, text] of [["from", "Difference from run"], ["to", "to run"]]) {
    const wrap = element(body.choice, "label", { class: "caption" }, text + " "), list = element(wrap, "select");
    runs.forEach((run, r) => element(list, "option", { value: r }, `${run.letter} ${run.name}`));
    list.value = DIFFERENCE[side];
    list.addEventListener("change", () => { DIFFERENCE[side] = +list.value; choose(chosen.head); });
  }
}

function drawComparison(runs, views, nows, picked, choose) {
  const section = byId("comparison"), body = section.querySelector(".body");
  section.hidden = runs.length < 2;
  if (section.hidden) return;
  if (!body.lines) buildComparison(body, runs, choose);
  body.lines.replaceChildren();
  const line = (text) => element(body.lines, "p", {}, text), shape = (run) => run.model.n_layers + "×" + run.model.n_heads;
  const comparable = new Set(runs.map(shape)).size === 1, pair = [DIFFERENCE.from, DIFFERENCE.to];
  const some = comparable && emergedByRun(views, nows).heads.length > 0;
  body.matrix.hidden = !some;
  body.difference.hidden = !comparable || !views[pair[0]] || !views[pair[1]] || pair[0] === pair[1];
  body.choice.hidden = !comparable || runs.length < 3;
  if (!comparable) { line(`The runs’ models differ in shape (${runs.map(shape).join(", ")} layers × heads), so their heads cannot be matched.`); return; }
  if (some) {
    drawEmerged(body.svg, runs, views, nows, picked);
    namedOverlaps(runs, views, nows).forEach(line);
  } else line("No head has emerged in any run.");
  overlaps(runs, views, nows).forEach(line);
  if (new Set(runs.map((run) => run.probes.fingerprint)).size > 1) line("The runs were probed with different pairs (their fingerprints differ): some differences between them may be due to the pairs.");
  if (!body.difference.hidden) drawDifference(body.map, runs, views, nows, pair, picked);
}
