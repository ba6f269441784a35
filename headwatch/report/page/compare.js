/* compare.js: several runs: which heads each added (dot matrix, words), and where their final shares differ. */

/* Heads that any run added up to now: a set a run, and all of them in the order of the dot matrix (most runs first). */
function addedHeads(runs, views, nows) {
  const added = views.map((view, r) => new Map(view ? groupRows(view, "joined").filter((row) => [...view.lives.lives[row].slice(0, nows[r] + 1)].some(isActive)).map((row) => [keyOf(view.lives.heads[row]), row]) : []));
  const all = new Map();
  views.forEach((view, r) => added[r].forEach((row, key) => { all.set(key, view.lives.heads[row]); }));
  const heads = [...all.values()].sort((a, b) => owners(b) - owners(a) || a[0] - b[0] || a[1] - b[1]);
  function owners(head) { return added.filter((set) => set.has(keyOf(head))).length; }
  return { added, heads, owners };
}

function drawAdded(svg, runs, views, nows, picked) {
  const { added, heads, owners } = addedHeads(runs, views, nows);
  const width = svg.width_(), left = 30, size = clamp((width - left - 140) / Math.max(1, heads.length), 4, 26), rowHeight = 24;
  const names = size >= 11, top = names ? 48 : 8;
  svg.begin(top + runs.length * rowHeight + 8);
  heads.forEach((head, k) => {
    const cx = left + (k + 0.5) * size;
    if (names) label(svg, 0, 0, headName(head), { transform: `translate(${(cx + 3).toFixed(1)} ${top - 6}) rotate(-60)` });
    const on = runs.map((_, r) => r).filter((r) => added[r].has(keyOf(head)));
    if (on.length > 1) mark(svg, "line", { class: "axis", x1: cx, x2: cx, y1: top + (on[0] + 0.5) * rowHeight, y2: top + (on[on.length - 1] + 0.5) * rowHeight });
    runs.forEach((run, r) => {
      const row = added[r].get(keyOf(head)), cy = top + (r + 0.5) * rowHeight, radius = Math.min(5.5, size * 0.38);
      const still = row !== undefined && isActive(views[r].lives.lives[row][nows[r]]);
      const dot = mark(svg, "circle", { class: row === undefined ? "cell" : "added s-new" + (still ? " f-new" : ""), cx, cy, r: row === undefined ? Math.min(2, radius) : radius }, `${headName(head)} · ${run.letter} ${run.name}\n${row === undefined ? "not added" : still ? "added, active now" : "added, no longer active"}`);
      if (row !== undefined && !still) dot.style.fill = "var(--paper)";
      dot.head = head;
    });
    if (picked && keyOf(picked) === keyOf(head)) mark(svg, "rect", { class: "pick", x: cx - size / 2, y: top, width: size, height: runs.length * rowHeight });
  });
  runs.forEach((run, r) => {
    const y = top + (r + 0.5) * rowHeight + 4;
    label(svg, 0, y, run.letter, { class: "strip-title" });
    const only = heads.filter((head) => owners(head) === 1 && added[r].has(keyOf(head))).length;
    label(svg, left + heads.length * size + 12, y, `${added[r].size} added, ${only} by this run alone`, {});
  });
}

/* "A and B: 3 of 9 heads in common (expected by chance 0.4)", a line a pair of runs. */
function overlaps(runs, views, nows) {
  const { added } = addedHeads(runs, views, nows), lines = [];
  for (let a = 0; a < runs.length; a++) {
    for (let b = a + 1; b < runs.length; b++) {
      const common = [...added[a].keys()].filter((key) => added[b].has(key)).length, union = added[a].size + added[b].size - common;
      if (!union) continue;
      const free = runs[a].model.n_layers * runs[a].model.n_heads - (views[a] ? groupRows(views[a], "base").length : 0);
      lines.push(`${runs[a].letter} and ${runs[b].letter}: ${common} of ${union} added heads in common; ${((added[a].size * added[b].size) / Math.max(1, free)).toFixed(1)} expected by chance among the ${free} heads outside the base’s set.`);
    }
  }
  return lines;
}

/* Which heads emerged in all runs and which in one alone, by name. */
function namedOverlaps(runs, views, nows) {
  const { added, heads, owners } = addedHeads(runs, views, nows);
  const listed = (found) => (found.length ? found.slice(0, 12).map(headName).join(", ") + (found.length > 12 ? ` and ${found.length - 12} more` : "") : "none");
  const lines = [[runs.length === 2 ? "Added by both" : `Added by all ${runs.length}`, heads.filter((head) => owners(head) === runs.length)]];
  runs.forEach((run, r) => lines.push([`Only by ${run.letter}`, heads.filter((head) => owners(head) === 1 && added[r].has(keyOf(head)))]));
  return lines.map(([name, found]) => `${name} (${found.length}): ${listed(found)}`);
}

/* Share (circuit rule: importance) of a head of a run at a probe; null where it is not known. */
function sizeAt(view, head, now) {
  const paths = view && (view.shares || view.importance);
  const row = paths ? pathRow(paths, head) : undefined;
  if (row === undefined) return null;
  const value = paths.rows[row][lastAtMost(paths.probes, now)];
  return isNumber(value) ? value * (view.shares ? 1e-4 : 1e-5) : null;
}

/* Layers by heads: the second run's share minus the first's, now. Outlined: emerged in one of the two, or in both. */
function drawDifference(svg, runs, views, nows, pair, picked) {
  const [a, b] = pair, { added } = addedHeads(runs, views, nows);
  const what = views[a] && views[a].shares ? "share" : "importance";
  const { layers, heads, place } = grid(svg, runs[a], `Difference of ${what}, ${runs[b].letter} − ${runs[a].letter}`, "now; no test: one seed each");
  const differences = [];
  for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
    const one = sizeAt(views[a], [l, h], nows[a]), other = sizeAt(views[b], [l, h], nows[b]);
    differences.push([[l, h], one === null || other === null ? null : other - one, one, other]);
  }
  const most = Math.max(1e-9, ...differences.map(([, d]) => Math.abs(d || 0)));
  for (const [head, difference, one, other] of differences) {
    const key = keyOf(head), by = [added[a].has(key) ? runs[a].letter : "", added[b].has(key) ? runs[b].letter : ""].filter(Boolean);
    mark(svg, "rect", Object.assign({ class: "cell" }, place(head)), `${headName(head)}\n${what} ${percent(one)} in ${runs[a].letter}, ${percent(other)} in ${runs[b].letter}${difference === null ? "" : `: ${percent(difference, true)}`}${by.length ? `\nadded by ${by.join(" and ")}` : ""}`);
    if (difference) mark(svg, "rect", Object.assign({ class: "fill difference f-" + (difference > 0 ? "gain" : "loss") }, place(head))).style.opacity = Math.abs(difference) / most;
    if (by.length) mark(svg, "rect", Object.assign({ class: "outline s-new" + (by.length === 2 ? "" : " one") }, inner(place(head))));
  }
  pick(svg, place, picked, runs[a]);
  return most;
}

const pairOfRuns = { a: 0, b: 1 };
function drawComparison(runs, views, nows, chosen, choose) {
  const section = document.getElementById("added");
  section.hidden = runs.length < 2;
  if (section.hidden) return;
  const body = section.querySelector(".body");
  if (!body.lines) {
    const said = element(body, "div"), moved = element(body, "div");
    body.matrix = element(said, "div");
    body.svg = chart(element(body.matrix, "div"), "added-heads", "Heads added by each run, a column a head, a row a run");
    body.svg.addEventListener("click", (event) => choose(event.target.head));
    legend(body.matrix, [["new", "added, active now", "round"], ["", "added, no longer active", "round hollow"]]);
    body.lines = element(said, "div", { class: "facts" });
    body.pairs = element(moved, "div", { class: "filters" });
    body.difference = element(moved, "div");
    body.map = chart(element(body.difference, "div"), "map difference-map", "Layers by heads: difference of shares between two runs");
    body.map.addEventListener("click", (event) => choose(body.map.headAt(event)));
    legend(body.difference, [["loss", "smaller", "ramp"], ["gain", "larger", "ramp"], ["new", "added by both", "swatch-outline both"], ["new", "added by one", "swatch-outline one"]]);
    if (runs.length > 2) for (const [side, text] of [["a", "Difference from run"], ["b", "to run"]]) {
      const wrap = element(body.pairs, "label", { class: "caption" }, text + " "), list = element(wrap, "select");
      runs.forEach((run, r) => element(list, "option", { value: r }, `${run.letter} ${run.name}`));
      list.value = pairOfRuns[side];
      list.addEventListener("change", () => { pairOfRuns[side] = +list.value; choose(chosen.head); });
    }
  }
  body.lines.replaceChildren();
  const shape = (run) => run.model.n_layers + "×" + run.model.n_heads, differ = new Set(runs.map(shape)).size > 1;
  const some = !differ && addedHeads(runs, views, nows).heads.length > 0;
  body.matrix.hidden = !some;
  const pair = [pairOfRuns.a, pairOfRuns.b];
  body.difference.hidden = body.pairs.hidden = differ || !views[pair[0]] || !views[pair[1]] || pair[0] === pair[1];
  if (runs.length > 2 && !differ) body.pairs.hidden = false;
  if (differ) { element(body.lines, "p", {}, `The runs’ models differ in shape (${runs.map(shape).join(", ")} layers × heads), so their heads cannot be matched by name.`); return; }
  if (some) {
    drawAdded(body.svg, runs, views, nows, chosen.head);
    for (const line of namedOverlaps(runs, views, nows)) element(body.lines, "p", {}, line);
  } else element(body.lines, "p", {}, "No run has added a head.");
  for (const line of overlaps(runs, views, nows)) element(body.lines, "p", {}, line);
  if (new Set(runs.map((run) => run.probes.fingerprint)).size > 1) element(body.lines, "p", {}, "The runs were probed with different pairs (fingerprints differ): part of what differs between them may be the pairs.");
  if (!body.difference.hidden) drawDifference(body.map, runs, views, nows, pair, chosen.head);
}
