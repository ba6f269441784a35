/* lives.js: what a sign of the life raster means, and what the figures count from it. */

const STATES = ["inactive", "base", "retained", "dropped", "emerged", "pruned", "re-emerged"];
const ACTIVE = [0, 1, 1, 0, 1, 0, 1];

/* {state, agrees}: a digit is the state; a letter says that the active set itself disagrees, without evidence. */
function life(sign) {
  const code = sign.charCodeAt(0);
  return code < 97 ? { state: code - 48, agrees: true } : { state: code - 97, agrees: false };
}

function lifeWords(sign, view) {
  const { state, agrees } = life(sign);
  if (agrees) return STATES[state];
  return ACTIVE[state] ? STATES[state] + " (outside the active set, change not proven)" : (state ? STATES[state] + ", " : "") + "in the active set without evidence";
}

function isActive(sign) { return ACTIVE[life(sign).state] === 1; }

/* Colour class of an active stretch: base, new, back (re-emerged) or unproven. */
function hue(sign) {
  const { state, agrees } = life(sign);
  if (state === 1 || state === 2) return "base";
  if (state === 4) return "new";
  if (state === 6) return "back";
  return agrees ? "" : "unproven";
}

/* Index of each head ("layer.head") among the rows of a view's raster. */
function rowsOf(view) {
  if (!view.rowOf) {
    view.rowOf = new Map(view.lives.heads.map((head, row) => [keyOf(head), row]));
  }
  return view.rowOf;
}

/* Part of the probes up to `now` (an index) at which the head of this row is active. */
function frequency(view, row, now) {
  let active = 0;
  for (let p = 0; p <= now; p++) active += isActive(view.lives.lives[row][p]);
  return active / (now + 1);
}

/* The last probe of a run that is not after a step. */
function probeAt(run, step) {
  let index = 0;
  run.steps.forEach((s, i) => { if (s <= step) index = i; });
  return index;
}

/* Everything that can be said of one head of one run at a probe, a line each. */
function headLines(view, head, now) {
  const row = rowsOf(view).get(keyOf(head));
  const lines = [];
  if (row === undefined) lines.push("never active");
  else {
    lines.push(lifeWords(view.lives.lives[row][now]) + ` · active at ${percent(frequency(view, row, now))} of the probes`);
  }
  const path = headPath(view, head);
  if (path) {
    const at = lastAtMost(path.probes, now);
    lines.push(`share ${percent(path.share[0])} → ${percent(path.share[at])}${path.low[at] === null ? "" : ` (${percent(path.low[at])} to ${percent(path.high[at])})`}`);
  }
  if (view.effect.effect.length && isNumber(view.effect.effect[head[0]][head[1]])) lines.push(effectWords(view, head));
  if (view.stability && isNumber(view.stability.now[head[0]][head[1]])) lines.push(`kept by ${percent(view.stability.now[head[0]][head[1]])} of the resamples at the last probe`);
  return lines;
}

function lastAtMost(values, limit) {
  let found = 0;
  values.forEach((value, i) => { if (value <= limit) found = i; });
  return found;
}
