/* lives.js: the signs of the life raster, and what is read from them. */

const STATES = ["inactive", "base", "retained", "dropped", "emerged", "pruned", "re-emerged"];
const ACTIVE = [0, 1, 1, 0, 1, 0, 1];
const GROUPS = { base: "Base heads", joined: "Heads that emerged in training", crossed: "Heads that entered the active set without evidence" };

/* {state, agrees}: a digit is the state; a letter is the state where membership of the active set disagrees. */
function life(sign) {
  const code = sign.charCodeAt(0);
  return code < 97 ? { state: code - 48, agrees: true } : { state: code - 97, agrees: false };
}

const isActive = (sign) => ACTIVE[life(sign).state] === 1;

function stateText(sign) {
  const { state, agrees } = life(sign);
  if (agrees) return STATES[state];
  if (ACTIVE[state]) return STATES[state] + " (outside the active set, loss not significant)";
  return (state ? STATES[state] + ", " : "") + "in the active set without evidence";
}

/* Colour of a stretch: base, new, back (re-emerged), untested (a member without evidence) or none. */
function hue(sign) {
  const { state, agrees } = life(sign);
  if (state === 1 || state === 2) return "base";
  if (state === 4) return "new";
  if (state === 6) return "back";
  return agrees ? "" : "untested";
}

/* Row of a head in a table with a list of heads (raster, paths, edges); undefined where it is not in it. */
function rowOf(table, head) {
  if (!table.rowOf) table.rowOf = new Map(table.heads.map((at, row) => [keyOf(at), row]));
  return table.rowOf.get(keyOf(head));
}

/* Rows of a group in their order, by first activity; base heads, all active from the start, by |share| at the last probe. */
function groupRows(view, group) {
  const rows = view.lives.heads.map((_, row) => row).filter((row) => view.lives.group[row] === group);
  if (group !== "base") return rows;
  const sizes = new Map(rows.map((row) => { const path = sharePath(view, view.lives.heads[row]), last = path && path.values[path.values.length - 1]; return [row, isNumber(last) ? Math.abs(last) : -1]; }));
  return rows.sort((a, b) => sizes.get(b) - sizes.get(a) || a - b);
}

const activeUpTo = (view, row, now) => [...view.lives.lives[row].slice(0, now + 1)].filter(isActive).length;

/* Fraction of the probes up to `now` (an index) at which the head of a row is active. */
const frequency = (view, row, now) => activeUpTo(view, row, now) / (now + 1);

/* Heads that emerged up to a probe: key -> row. */
function emergedHeads(view, now) {
  const rows = view ? groupRows(view, "joined").filter((row) => activeUpTo(view, row, now)) : [];
  return new Map(rows.map((row) => [keyOf(view.lives.heads[row]), row]));
}

/* State, share, effect and stability of a head at a probe, as a list of texts. */
function headTexts(view, head, now) {
  const row = rowOf(view.lives, head), shares = sharePath(view, head), stable = view.stability && view.stability.now[head[0]][head[1]];
  const texts = [row === undefined ? "never active" : `${stateText(view.lives.lives[row][now])} · active at ${percent(frequency(view, row, now))} of the probes`];
  if (shares) {
    const at = lastAtMost(shares.probes, now);
    texts.push(`share ${at ? `${percent(shares.values[0])} → ` : ""}${percent(shares.values[at])}${shares.low[at] === null ? "" : ` (${percent(shares.low[at])} to ${percent(shares.high[at])})`}`);
  }
  if (hasEffect(view, head)) texts.push(effectText(view, head));
  if (isNumber(stable)) texts.push(`kept by ${percent(stable)} of the resamples at the last probe`);
  return texts;
}

const headTip = (view, head, now) => () => [headName(head), ...(view ? headTexts(view, head, now) : [])].join("\n");
