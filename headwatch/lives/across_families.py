"""Lives over several families: told apart, then put side by side. Nothing is pooled. Pure numpy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwatch.errors import UserError
from headwatch.lives.events import Event
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import NEWLY_ACTIVE, OF_BASE, is_in


@dataclass(frozen=True)
class CombinedEvent:
    """The same change of the same head in one family or more, each with its own evidence.

    kind, number: what happened, and which time in that family (a head's second "pruned" joins other second ones).
    step: the earliest. events: one a family, by step. silent: families in which it did not happen (so far).
    """

    layer: int
    head: int
    kind: str
    number: int
    step: int
    events: tuple[Event, ...]
    silent: tuple[str, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """Families in which it happened, the earliest first."""
        return tuple(event.family for event in self.events)


@dataclass(frozen=True)
class CombinedLife:
    """One head's state in every family at the last probe. in_base, active: the families of which it is so."""

    layer: int
    head: int
    states: dict[str, str]
    in_base: tuple[str, ...]
    emerged: tuple[str, ...]
    active: tuple[str, ...]


def _by_family(histories: Mapping[str, HeadHistory] | Iterable[HeadHistory]) -> dict[str, HeadHistory]:
    given = list(histories.values() if isinstance(histories, Mapping) else histories)
    named = {history.family: history for history in given}
    if len(named) != len(given):
        raise UserError(f"families={[h.family for h in given]!r}: give one history for each family, of one rule")
    if len({(history.rule, history.n_layers, history.n_heads) for history in given}) > 1:
        raise UserError("histories of different rules or models cannot be put side by side: give those of one run")
    return named


def combined(histories: Mapping[str, HeadHistory] | Iterable[HeadHistory]) -> list[CombinedEvent]:
    """Every event of every family, those of the same head, kind and number together; by step, layer, head."""
    named = _by_family(histories)
    groups: dict[tuple[int, int, str, int], list[Event]] = {}
    for history in named.values():
        times: dict[tuple[int, int, str], int] = {}
        for event in history.events:
            what = (event.layer, event.head, event.kind)
            times[what] = times.get(what, 0) + 1
            groups.setdefault((*what, times[what]), []).append(event)
    found = []
    for (layer, head, kind, number), events in groups.items():
        events.sort(key=lambda event: event.step)
        silent = tuple(family for family in named if family not in {event.family for event in events})
        found.append(CombinedEvent(layer, head, kind, number, events[0].step, tuple(events), silent))
    return sorted(found, key=lambda event: (event.step, event.layer, event.head))


def combined_lives(histories: Mapping[str, HeadHistory] | Iterable[HeadHistory]) -> list[CombinedLife]:
    """Every head that is of the base or ever emerged in some family, with its state in each."""
    named = {family: history for family, history in _by_family(histories).items() if history.steps}

    def families(at: Mapping[str, NDArray[np.bool_]], layer: int, head: int) -> tuple[str, ...]:
        return tuple(family for family, where in at.items() if where[layer, head])

    base: dict[str, NDArray[np.bool_]] = {
        family: np.asarray(is_in(history.state, OF_BASE).any(axis=0)) for family, history in named.items()
    }
    emerged: dict[str, NDArray[np.bool_]] = {
        family: np.asarray(is_in(history.state, NEWLY_ACTIVE).any(axis=0)) for family, history in named.items()
    }
    active: dict[str, NDArray[np.bool_]] = {family: history.active[-1, :, :] for family, history in named.items()}
    present = [where for at in (base, emerged) for where in at.values()]
    return [
        CombinedLife(
            int(layer),
            int(head),
            {family: history.label(int(layer), int(head)) for family, history in named.items()},
            families(base, layer, head),
            families(emerged, layer, head),
            families(active, layer, head),
        )
        for layer, head in (np.argwhere(np.any(present, axis=0)) if present else [])
    ]
