"""Groups of heads to intervene on: named, of a recorded run, of a circuit, or random ones matched to them."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from headwatch.circuits.circuit import Circuit
from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import ACTIVE, NEWLY_ACTIVE, OF_BASE, HeadState, is_in
from headwatch.model.head_names import Head, head_name
from headwatch.record.find_runs import find_runs
from headwatch.record.replay import history_from_run
from headwatch.record.run_folder import RunFolder

WHICH = {
    "emerged": NEWLY_ACTIVE,
    "retained": (HeadState.BASE, HeadState.RETAINED),
    "dropped": (HeadState.DROPPED,),
    "pruned": (HeadState.PRUNED,),
    "active": ACTIVE,
    "base": OF_BASE,
}
"""Group -> states at the last probe. "emerged" are the heads that emerged and stayed."""


def heads_of_run(
    folder: str | Path, which: str, family: str | None = None, rule: str = "evidence", top: int | None = None
) -> list[Head]:
    """The heads of a recorded run that are in a group at its last probe, the strongest first.

    Args:
        folder: a run folder, or an output_dir that contains one.
        which: a key of WHICH.
        family: a probe family of the run; None is the first.
        rule: "evidence" or "circuit".
        top: the strongest so many, by importance at the last probe (at the first one, for heads that are not active).

    Raises:
        UserError: there is no such run or family, or no head in the group.
    """
    if which not in WHICH:
        raise UserError(f"--which {which!r} is unknown: use one of {', '.join(WHICH)}")
    runs = find_runs(folder)
    if len(runs) > 1:
        raise UserError(f"--run {folder} holds {len(runs)} runs: give one of {', '.join(str(r.path) for r in runs)}")
    history = history_from_run(runs[0], family, rule)
    if not history.steps:
        raise UserError(f"--run {folder}: no probe in it yet")
    inside = is_in(history.state[-1], WHICH[which])
    if not inside.any():
        raise UserError(
            f"--run {folder} --which {which}: no such head at step {history.steps[-1]} (family {history.family!r}, "
            f"{rule} rule){_elsewhere(runs[0], which, history.family, rule)}"
        )
    return _strongest(inside, _strength(history), top)


def _elsewhere(run: RunFolder, which: str, family: str, rule: str) -> str:
    """The other families of a run that have heads of a group, as the end of a message."""
    found = []
    for other in run.families:
        history = history_from_run(run, other, rule)
        if other != family and history.steps and (number := int(is_in(history.state[-1], WHICH[which]).sum())):
            found.append(f"--family {other} has {number}")
    return f"; {', '.join(found)}" if found else ""


def heads_of_circuit(path: str | Path, top: int | None = None) -> list[Head]:
    """The heads of a circuit file, the most important first."""
    circuit = Circuit.from_json(path)
    inside = np.zeros(circuit.importance.shape, np.bool_)
    for head in circuit.heads:
        inside[head] = True
    if not inside.any():
        raise UserError(f"--circuit {path}: no attention head in it")
    return _strongest(inside, circuit.importance, top)


def matched_sets(
    heads: Sequence[Head], shape: tuple[int, int], n_sets: int, seed: int = 0, avoid: Iterable[Head] = ()
) -> list[list[Head]]:
    """Random sets of other heads, matched to `heads` in size and in the number per layer.

    A layer with too few other heads gives all of them, and the rest comes from the nearest layers.

    Args:
        heads: the heads to match.
        shape: (L, H) of the model.
        n_sets: number of sets; they are distinct while there are enough heads.
        seed: of the draw.
        avoid: heads that no set may contain, in addition to `heads`.

    Raises:
        UserError: the model has too few other heads.
    """
    n_layers, n_heads = shape
    taken = {*heads, *avoid}
    wanted = Counter(layer for layer, _ in heads)
    if n_layers * n_heads - len(taken) < len(heads):
        raise UserError(
            f"--random: {len(heads)} heads are too many to match: the model has {n_layers * n_heads} heads, and "
            f"{len(taken)} of them are not to be drawn; give fewer heads (--top), or --random 0"
        )
    found: list[list[Head]] = []
    for number in range(n_sets):
        for attempt in range(100):
            rng = random.Random(f"headwatch matched {seed} {number} {attempt}")
            drawn = _matched(wanted, taken, shape, rng)
            if drawn not in found:
                break
        found.append(drawn)
    return found


def _matched(wanted: Counter[int], taken: set[Head], shape: tuple[int, int], rng: random.Random) -> list[Head]:
    n_layers, n_heads = shape
    free = {layer: [h for h in range(n_heads) if (layer, h) not in taken] for layer in range(n_layers)}
    drawn: list[Head] = []
    short: list[int] = []
    for layer, n in sorted(wanted.items()):
        chosen = rng.sample(free[layer], min(n, len(free[layer])))
        free[layer] = [h for h in free[layer] if h not in chosen]
        drawn += [(layer, h) for h in chosen]
        short += [layer] * (n - len(chosen))
    for layer in short:
        near = min((other for other in free if free[other]), key=lambda other: (abs(other - layer), other))
        head = rng.choice(free[near])
        free[near].remove(head)
        drawn.append((near, head))
    return sorted(drawn)


def names_of(heads: Iterable[Head]) -> list[str]:
    """Canonical names."""
    return [head_name(*head) for head in heads]


def _strength(history: HeadHistory) -> np.ndarray:
    """Importance at the last probe with signal, plus a little of the first, which orders inactive heads, [L, H]."""
    importance = np.nan_to_num(history.importance)
    used = [index for index in range(len(importance)) if importance[index].any()]
    return importance[used[-1]] + 1e-6 * importance[used[0]] if used else importance[-1]


def _strongest(inside: np.ndarray, strength: np.ndarray, top: int | None) -> list[Head]:
    places = np.argwhere(inside)
    order = np.argsort(-strength[inside], kind="stable")
    return [(int(layer), int(head)) for layer, head in places[order][:top]]
