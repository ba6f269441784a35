/* after.js: what commands found after the training: circuits, heads off, benchmarks, roles. */

const ROLE_NAMES = { entropy: "Entropy", previous_token: "Previous", first_token: "First", distance: "Distance", receiver_kurtosis: "Kurtosis", sentence_kurtosis: "Sentences", induction: "Induction", write: "Write", weight_change: "Weights" };
const ROLE_ROWS = 10; /* and the heads with events */
const ROLE_WIDE = ["first_token", "distance", "receiver_kurtosis", "sentence_kurtosis"]; /* columns that a phone has no room for: the page of a head has them */
const EDGE_CLASSES = { q: "s-new", k: "s-gain", v: "s-base", "": "s-plain" };
const roleTable = { sort: "write", down: true, all: false };

const points = (value, sign) => minus(`${sign && value > 0 ? "+" : ""}${(100 * value).toFixed(1)}`);
const pText = (value) => (isNumber(value) && value < 0.001 ? "< 0.001" : number(value));
const two = (value) => (isNumber(value) ? minus(value.toFixed(2)).replace("−0.00", "0.00") : "–");
const interval = ({ value, low, high }, sign) => `${points(value, sign)} [${points(low, sign)}, ${points(high, sign)}]`;

/* The parts of the section, each with what it draws of a run; the boxes are in the page before charts take their width. */
const AFTER = {
  circuits: [(run) => run.after.circuits.some((each) => each.families[chosen.family]), drawCircuits],
  ablation: [(run) => run.after.ablation.length > 0, drawAblation],
  evaluation: [(run) => run.after.evaluation.length + run.after.components.length > 0, drawEvaluation],
  roles: [(run) => run.after.roles.length > 0, drawRoles],
};

/* What is missing in every record, and the command that adds it. */
const COMMANDS = { circuits: ["circuits", "headwatch circuit"], ablation: ["heads off", "headwatch ablate"], evaluation: ["benchmarks", "headwatch evaluate"], roles: ["roles of heads", "headwatch roles"] };

function drawAfter() {
  for (const id in AFTER) byId(id).hidden = !runs.some(AFTER[id][0]);
  const missing = Object.keys(AFTER).filter((id) => !runs.some((run) => (id === "circuits" ? run.after.circuits.length : AFTER[id][0](run))));
  byId("after").hidden = !runs.some((run) => run.steps.length);
  byId("next").hidden = !missing.length;
  const next = byId("next"), code = (text) => element(next, "code", {}, text);
  next.replaceChildren("Not measured yet: ");
  missing.forEach((id, i) => { next.append(`${i ? "; " : ""}${COMMANDS[id][0]} (`); code(COMMANDS[id][1]); next.append(")"); });
  next.append(". Each command takes the trained model and "); code("--run FOLDER"); next.append(", and a new report then shows its result.");
  for (const id in AFTER) if (!byId(id).hidden) drawAfterPart(id);
}

function drawAfterPart(id) {
  const [has, drawIn] = AFTER[id], boxes = runs.map((run) => column(id, run, (block) => ({ body: element(block, "div") })).body);
  boxes.forEach((box) => box.replaceChildren());
  runs.forEach((run, r) => { if (has(run)) drawIn(boxes[r], run); else element(boxes[r], "p", { class: "facts" }, "Nothing of this kind is in this run’s record."); });
}

/* A table; `wide` are the numbers of columns that are left out on a phone. */
function tableOf(parent, heads, rows, wide = []) {
  const grid = element(element(parent, "div", { class: "scroll" }), "table", { class: "rows" });
  const line = element(element(grid, "thead"), "tr"), body = element(grid, "tbody");
  const kindOf = (k) => (wide.includes(k) ? { class: "narrow-off" } : {});
  heads.forEach((name, k) => element(line, "th", { scope: "col", ...kindOf(k) }, name));
  for (const { cells, kind } of rows) {
    const row = element(body, "tr", kind ? { class: kind } : {});
    cells.forEach((text, k) => element(row, k ? "td" : "th", k ? kindOf(k) : { scope: "row" }, text));
  }
  return grid;
}

/* --- circuits ------------------------------------------------------------------------------------------------------- */

function drawCircuits(box, run) {
  const found = run.after.circuits.filter((each) => each.families[chosen.family]), colours = found.map((each, i) => (i === found.length - 1 ? "new" : "base"));
  drawFaithfulness(chart(box, "faithfulness", `Faithfulness of circuits of ${chosen.family} over their share of the edges, ${run.name}`), found, colours);
  legend(box, [...found.map((each, i) => [colours[i], each.model, ""]), ["untested", "random circuits of that size", ""]]);
  const with_ = (value, random) => `${two(value)}${random.length ? ` (${two(random.reduce((sum, each) => sum + each, 0) / random.length)})` : ""}`;
  tableOf(box, ["Circuit of", "edges", "heads", "keeps", "CPR (random)", "CMD (random)"], found.map((each) => {
    const own = each.families[chosen.family], row = own.curve.find(([, edges]) => edges === own.edges);
    const keeps = row ? `${two(row[3])} [${two(row[4])}, ${two(row[5])}]` : "–";
    return { cells: [each.model, `${whole(own.edges)} of ${whole(own.real_edges)}`, whole(own.heads), keeps, with_(own.cpr, own.random_cpr), with_(own.cmd, own.random_cmd)] };
  }), [2, 5]);
  const weak = found.filter((each) => each.families[chosen.family].signal === "insufficient signal").map((each) => each.model);
  if (weak.length) element(box, "p", { class: "facts" }, `Insufficient signal: in ${listed(weak, 6)} the metric differs too little between clean and corrupted prompts for these numbers.`);
  found.slice().reverse().forEach((each, i) => {
    const own = each.families[chosen.family];
    if (!own.drawing) return;
    const narrow = box.clientWidth < 600 && own.drawing.size[0] > box.clientWidth, folded = i > 0 || narrow, part = element(box, folded ? "details" : "div", { class: "more-text" });
    if (folded) part.open = document.body.classList.contains("printing");
    drawCircuit(part, each.model, own, folded);
  });
}

function drawFaithfulness(svg, found, colours) {
  const width = svg.width_(), top = 26, bottom = 186, right = width - 16, rows = found.map((each) => each.families[chosen.family].curve);
  const values = rows.flatMap((curve) => curve.flatMap((row) => [...row.slice(3, 6), ...row[6]])).filter(isNumber);
  svg.begin(bottom + 34);
  const low = Math.max(-1, Math.min(-0.1, ...values)), high = Math.min(2, Math.max(1.1, ...values)), first = Math.min(...rows.map((curve) => curve[0][0] || 1e-3));
  const log = linear(Math.log10(Math.min(first, 0.5)), 0, LEFT, right), x = (size) => log(Math.log10(Math.max(size, first))), scale = linear(low, high, bottom, top), y = (v) => (isNumber(v) ? clamp(scale(v), top, bottom) : null);
  heading(svg, LEFT, 10, "Faithfulness", "part of the metric gap that a circuit keeps", right - LEFT);
  gridLines(svg, scale, ticks(low, high, 4), right, number);
  for (const size of [0.001, 0.01, 0.1, 1]) if (size >= first) label(svg, x(size), bottom + 15, `${number(size * 100)} %`, { "text-anchor": size === 1 ? "end" : "middle" });
  label(svg, (LEFT + right) / 2, bottom + 30, "share of the edges", { "text-anchor": "middle" });
  rows.forEach((curve, i) => {
    mark(svg, "path", { class: `band f-${colours[i]} interval`, d: area(curve.map((row) => [x(row[0]), y(row[5])]), curve.map((row) => [x(row[0]), y(row[4])])) });
    for (let control = 0; control < curve[0][6].length; control++) mark(svg, "path", { class: "line random", d: path(curve.map((row) => [x(row[0]), y(row[6][control])])) });
  });
  rows.forEach((curve, i) => {
    mark(svg, "path", { class: `line s-${colours[i]}`, d: path(curve.map((row) => [x(row[0]), y(row[3])])) });
    for (const row of curve) if (isNumber(row[3])) mark(svg, "circle", { class: `f-${colours[i]}`, cx: x(row[0]), cy: y(row[3]), r: 2.6 }, `${found[i].model}: ${count(row[1], "edge")}, ${count(row[2], "head")}\nfaithfulness ${number(row[3])} (${number(row[4])} to ${number(row[5])})${row[6].length ? `\nrandom ${row[6].map(number).join(", ")}` : ""}`);
  });
}

function drawCircuit(parent, model, { drawing, edges, heads }, folded) {
  const text = `Circuit of ${model}: ${drawing.edges.length === edges ? "" : `the ${drawing.edges.length} strongest of `}${count(edges, "edge")}, ${count(heads, "head")}`;
  element(parent, folded ? "summary" : "p", { class: "facts" }, text);
  legend(parent, [["new", "into a query", ""], ["gain", "into a key", ""], ["base", "into a value", ""], ["faint", "into an MLP or the logits", ""]]);
  const [width, height] = drawing.size, [nodeWidth, nodeHeight] = drawing.node;
  const frame = element(parent, "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": text });
  const svg = mark(frame, "svg", { class: "circuit", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": text });
  for (const [kind, part, d, note] of drawing.edges) mark(svg, "path", { class: EDGE_CLASSES[kind], d, "stroke-width": 0.7 + 4.3 * part, "stroke-opacity": 0.35 + 0.5 * part }, note);
  for (const [name, x, y] of drawing.nodes) {
    const head = /^L(\d+)\.H(\d+)$/.exec(name), node = mark(svg, "g", head ? { class: "head-node" } : {});
    mark(node, "rect", { x, y: y - nodeHeight / 2, width: nodeWidth, height: nodeHeight, rx: 4 });
    label(node, x + nodeWidth / 2, y + 4, name, { "text-anchor": "middle" });
    if (head) node.addEventListener("click", () => openHead([+head[1], +head[2]]));
  }
}

/* --- heads off ------------------------------------------------------------------------------------------------------ */

function drawAblation(box, run) {
  for (const { model, suites, groups } of run.after.ablation) {
    for (const [group, heads] of Object.entries(groups)) element(box, "p", { class: "facts" }, `${model}, ${group}: ${listed(heads, 12)}`);
    for (const [suite, found] of Object.entries(suites)) {
      element(box, "p", { class: "facts" }, `${suite}${isNumber(found.problems) ? `, ${count(found.problems, "problem")}` : ""}`);
      drawArms(chart(box, "arms", `Accuracy of ${model} on ${suite} with heads off`), found.arms);
      tableOf(box, ["", "heads", "right, %", "change, points", "p", "newly right", "newly wrong"], found.arms.filter((arm) => arm.random === null).map((arm) => {
        const other = arm.against_none;
        return { cells: [arm.label, whole(arm.heads.length), interval(arm.pass1), ...(other ? [interval(other.difference, true), pText(other.p_value), whole(other.newly_right), whole(other.newly_wrong)] : ["", "", "", ""])] };
      }), [1, 4, 5, 6]);
      for (const note of found.notes) element(box, "p", { class: "facts" }, unbroken(note));
    }
  }
}

/* One line per arm; all random sets of a group share one line. */
function drawArms(svg, arms) {
  const lines = [];
  for (const arm of arms) {
    const last = lines[lines.length - 1];
    if (arm.random !== null && last && last.random && last.group === arm.group && last.factor === arm.factor) last.arms.push(arm);
    else lines.push({ name: arm.label.replace(/, set \d+$/, ""), random: arm.random !== null, group: arm.group, factor: arm.factor, arms: [arm] });
  }
  const width = svg.width_(), row = 24, top = 20, left = Math.min(150, width * 0.34), right = width - 20, bottom = top + row * lines.length + 6;
  svg.begin(bottom + 20);
  const values = arms.flatMap((arm) => [arm.pass1.low, arm.pass1.high]), x = linear(Math.max(0, Math.min(...values) - 0.05), Math.min(1, Math.max(...values) + 0.05), left, right);
  for (const tick of ticks(x.invert(left), x.invert(right), width / 110)) {
    mark(svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom });
    label(svg, x(tick), bottom + 15, `${number(tick * 100)} %`, { "text-anchor": "middle" });
  }
  mark(svg, "line", { class: "s-base none", x1: x(arms[0].pass1.value), x2: x(arms[0].pass1.value), y1: top, y2: bottom });
  heading(svg, left, 10, "Right answers", "95 % interval over the problems", right - left);
  lines.forEach((line, i) => {
    const y = top + row * i + 14, colour = line.random ? "untested" : line.group ? "new" : "base";
    label(svg, left - 10, y + 4, line.name.length > 20 ? line.name.slice(0, 19) + "…" : line.name, { "text-anchor": "end" }).tip = line.name;
    for (const arm of line.arms) {
      const { value, low, high } = arm.pass1, tip = `${arm.label}: ${interval(arm.pass1)} %\n${listed(arm.heads, 12)}`;
      if (!line.random) mark(svg, "line", { class: `s-${colour} interval`, x1: x(low), x2: x(high), y1: y, y2: y });
      mark(svg, "circle", { class: `f-${colour}`, cx: x(value), cy: y, r: line.random ? 3 : 4 }, tip);
    }
  });
}

/* --- benchmarks and components -------------------------------------------------------------------------------------- */

function drawEvaluation(box, run) {
  const rows = run.after.evaluation.flatMap(({ model, suites }) => Object.entries(suites).map(([suite, found]) => {
    const most = Math.max(...Object.keys(found.pass).map(Number));
    return { cells: [model, suite, `${whole(found.problems)} × ${whole(found.samples)}`, interval(found.pass["1"] || found.pass[most]), most > 1 ? `@${most}: ${interval(found.pass[most])}` : "–"] };
  }));
  if (rows.length) tableOf(box, ["Model", "benchmark", "problems × samples", "pass@1, %", "pass@k, %"], rows);
  for (const { model, families } of run.after.components) {
    const parts = families[chosen.family];
    if (!parts) continue;
    element(box, "p", { class: "facts" }, `${model} on ${chosen.family}: parts of the total |edge score|`);
    tableOf(box, ["Component", "before", "after"], Object.entries(parts).map(([name, [before, now]]) => ({ cells: [name, percent(before), percent(now)] })));
  }
}

/* --- roles ---------------------------------------------------------------------------------------------------------- */

function drawRoles(box, run) {
  for (const roles of run.after.roles) {
    element(box, "p", { class: "facts" }, `${roles.model}${roles.base ? `, weights against ${roles.base}` : ""}: means over ${count(roles.prompts, roles.on_texts ? "text" : "prompt")}${roles.omitted ? `; ${count(roles.omitted, "head")} omitted` : ""}`);
    const events = new Set(Object.values(run.families).flatMap((family) => (family.rules.evidence ? family.rules.evidence.events.rows.map((row) => `L${row[1]}.H${row[2]}`) : [])));
    const names = ["head", ...roles.columns], at = Math.max(0, names.indexOf(roleTable.sort)), value = (row) => (at ? Math.abs(row[at] === null ? -1 : row[at]) : +row[0].replace(/L(\d+)\.H(\d+)/, (_, l, h) => l * 1e4 + +h));
    const sorted = roles.rows.slice().sort((a, b) => (roleTable.down ? value(b) - value(a) : value(a) - value(b)));
    const frame = element(box, "div", { class: "scroll" }), grid = element(frame, "table", { class: "rows" }), top = element(element(grid, "thead"), "tr"), body = element(grid, "tbody");
    names.forEach((name, k) => {
      const cell = element(top, "th", { scope: "col", ...(ROLE_WIDE.includes(name) ? { class: "narrow-off" } : {}), "aria-sort": k === at ? (roleTable.down ? "descending" : "ascending") : "none" });
      const button = element(cell, "button", { type: "button", class: "plain" }, (k ? ROLE_NAMES[name] || name : "Head") + (k === at ? (roleTable.down ? " ↓" : " ↑") : ""));
      button.addEventListener("click", () => { roleTable.down = k === at ? !roleTable.down : k > 0; roleTable.sort = name; drawAfterPart("roles"); });
    });
    const shown = sorted.filter((row, i) => roleTable.all || i < ROLE_ROWS || (events.has(row[0]) && events.size <= ROLE_ROWS));
    for (const row of shown) {
      const line = element(body, "tr"), found = /^L(\d+)\.H(\d+)$/.exec(row[0]), cell = element(line, "th", { scope: "row" });
      element(cell, "button", { type: "button", class: "link", "aria-label": `${row[0]}: open its page` }, row[0]).addEventListener("click", () => openHead([+found[1], +found[2]]));
      if (events.has(row[0])) element(cell, "span", { class: "with-event", title: "has an event by the evidence rule" }, " ●");
      row.slice(1).forEach((v, k) => element(line, "td", ROLE_WIDE.includes(roles.columns[k]) ? { class: "narrow-off" } : {}, number(v)));
    }
    if (shown.length < sorted.length) element(box, "button", { class: "more", type: "button" }, `Show all ${whole(sorted.length)} heads`).addEventListener("click", () => { roleTable.all = true; drawAfterPart("roles"); });
    if (events.size) element(box, "p", { class: "facts" }, "● has an event by the evidence rule. Sorted by absolute value.");
  }
}

/* In the page of a head: its roles, and its attention on the first clean prompt of the family. */
function drawHeadRoles(parent, run, head) {
  const name = headName(head);
  for (const roles of run.after.roles) {
    const row = roles.rows.find((each) => each[0] === name);
    if (!row) continue;
    element(element(parent, "h3", {}, "Role "), "small", {}, `${roles.model}, mean over ${count(roles.prompts, roles.on_texts ? "text" : "clean prompt")}`);
    element(parent, "p", { class: "facts" }, roles.columns.map((each, k) => `${ROLE_NAMES[each] || each}\u00a0${number(row[k + 1])}`).join(" · "));
    const pattern = roles.patterns.find((each) => each.head === name && each.family === chosen.family);
    if (pattern) drawPattern(parent, name, pattern);
  }
}

function drawPattern(parent, name, { tokens, rows, family }) {
  const shown = tokens.map((token) => { const text = token.replace(/\n/g, "⏎").replace(/ /g, "·"); return text.length > 12 ? text.slice(0, 11) + "…" : text; });
  const text = `Attention of ${name} on a clean prompt of ${family}; rows attend to columns, dark: much`;
  element(parent, "p", { class: "facts" }, text + ".");
  const cell = 13, side = cell * tokens.length, left = 12 + 6.6 * Math.max(...shown.map((each) => each.length)), width = left + side + 8, height = left + side + 4;
  const svg = mark(element(parent, "div", { class: "scroll" }), "svg", { class: "pattern", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": text });
  mark(svg, "path", { class: "frame", d: `M${left} ${left}h${side}v${side}h${-side}zl${side} ${side}` });
  shown.forEach((each, i) => {
    const middle = left + cell * (i + 0.5) + 3.5;
    label(svg, left - 6, middle, each, { "text-anchor": "end" });
    label(svg, 0, 0, each, { transform: `translate(${middle} ${left - 6}) rotate(-90)` });
    rows[i].forEach((value, j) => { if (value) mark(svg, "rect", { class: "f-new", x: left + cell * j, y: left + cell * i, width: cell, height: cell, "fill-opacity": Math.min(1, value / 100) }, `${each} to ${shown[j]}: ${number(value / 100)}`); });
  });
}
