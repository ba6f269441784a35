"""Draws a family's candidates until enough of them align, each pair once."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headwatch.errors import UserError
from headwatch.probes.families import FAMILIES, OPENERS, Family
from headwatch.probes.tokenization import AlignedPair, MisalignedError, PairTokenizer, commonest, shorten

if TYPE_CHECKING:
    from headwatch.probes.pair_set import ProbeSet

GIVE_UP_AFTER = 200  # candidates refused by the tokenizer with none kept: the family does not fit it


def generate(
    families: str | Sequence[str], tokenizer: Any, n_pairs: int, seed: int, options: Mapping[str, int]
) -> "ProbeSet":
    """ProbeSet.generate's work: see there."""
    chosen = choose_families(families)
    for name, value in (("n_pairs", n_pairs), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name}={value!r}: give a whole number")
    if n_pairs < 1:
        raise UserError(f"n_pairs={n_pairs}: give 1 or more pairs a family (the default is 64)")
    known = {name for family in chosen for name in family.options}
    for name in options:
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise UserError(f"{name}={options[name]!r}: no option of {_list(chosen)}; their options: {names}")
    settings = [family.settings(options) for family in chosen]
    pair_tokenizer = PairTokenizer(tokenizer)
    from headwatch.probes.pair_set import ProbeSet

    drawn = [
        draw_family(family, pair_tokenizer, n_pairs, seed, setting)
        for family, setting in zip(chosen, settings, strict=True)
    ]
    return ProbeSet.concat(drawn, pad_id=pair_tokenizer.pad_id)


def choose_families(names: str | Sequence[str]) -> list[Family]:
    """The families of these names; UserError for an unknown or repeated one, or none at all."""
    if not isinstance(names, str | Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"family={names!r}: give a name or a list of names: {', '.join(FAMILIES)}")
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise UserError(f"families=[]: name at least one of {', '.join(FAMILIES)}")
    for name in wanted:
        if name == OPENERS:
            raise UserError(
                f"family {name!r} is made from questions, by HeadWatchCallback(probes=[..., {name!r}]) when training "
                "begins, or by hw.Openers(...).make(tokenizer, ...)"
            )
        if name not in FAMILIES:
            raise UserError(f"family {name!r} is unknown: choose from {', '.join(FAMILIES)}")
        if wanted.count(name) > 1:
            raise UserError(f"family {name!r} is named {wanted.count(name)} times: name each family once")
    return [FAMILIES[name] for name in wanted]


def with_openers(families: Sequence[str], tokenizer: Any, n_pairs: int, seed: int, openers: "ProbeSet") -> "ProbeSet":
    """Families of which one is "openers", whose pairs are given, as one set in the order of the names."""
    from headwatch.probes.pair_set import ProbeSet

    choose_families([name for name in families if name != OPENERS] or list(FAMILIES))
    if list(families).count(OPENERS) > 1:
        raise UserError(f"family {OPENERS!r} is named {list(families).count(OPENERS)} times: name each family once")
    parts = [openers if name == OPENERS else generate(name, tokenizer, n_pairs, seed, {}) for name in families]
    return ProbeSet.concat(parts, pad_id=PairTokenizer(tokenizer).pad_id)


def draw_family(
    family: Family, tokenizer: PairTokenizer, n_pairs: int, seed: int, settings: Mapping[str, int]
) -> "ProbeSet":
    """A set of ``n_pairs`` distinct pairs of one family, the same in every process.

    A clean prompt comes back with another corruption only when the family has too few clean prompts.
    """
    # Seeded by family, so that a family's pairs do not depend on which others are asked for. A text seed goes through
    # SHA-512, not through Python's salted hash.
    rng = random.Random(f"headwatch {family.name} {seed}")
    kept: dict[str, AlignedPair] = {}  # by clean prompt
    spare: list[AlignedPair] = []
    seen: set[tuple[str, str]] = set()
    rejected: list[str] = []
    kinds: list[str] = []
    draws = 0
    while len(kept) < n_pairs and draws < 20 * n_pairs + 500 and (kept or len(kinds) < GIVE_UP_AFTER):
        draws += 1
        candidate = family.draw(rng, **settings)
        if (candidate.clean, candidate.corrupted) in seen:
            continue
        seen.add((candidate.clean, candidate.corrupted))
        if candidate.clean in kept and len(spare) >= n_pairs:
            continue
        try:
            pair = tokenizer.align(candidate)
        except MisalignedError as error:
            kinds.append(error.kind)
            rejected.append(f"{family.name}: {error}: {candidate.clean!r} / {candidate.corrupted!r}")
            continue
        if candidate.clean in kept:
            spare.append(pair)
        else:
            kept[candidate.clean] = pair
    pairs = (list(kept.values()) + spare)[:n_pairs]
    if len(pairs) < n_pairs:
        raise UserError(_shortage(family, tokenizer, n_pairs, len(pairs), kinds, rejected, settings))
    return pad(pairs, [family.name] * n_pairs, tokenizer, tuple(rejected))


def pad(
    pairs: Sequence[AlignedPair],
    families: Sequence[str],
    tokenizer: PairTokenizer | None,
    rejected: tuple[str, ...] = (),
) -> "ProbeSet":
    """The pairs as one set, padded on the left to the longest."""
    from headwatch.probes.pair_set import ProbeSet

    width = max(len(pair.clean) for pair in pairs)
    pad_id = tokenizer.pad_id if tokenizer else 0

    def rows(side: str) -> list[list[int]]:
        return [[pad_id] * (width - len(ids)) + ids for ids in (getattr(pair, side) for pair in pairs)]

    return ProbeSet.from_token_ids(
        rows("clean"),
        rows("corrupted"),
        [[0] * (width - len(pair.clean)) + [1] * len(pair.clean) for pair in pairs],
        answers=[pair.answer for pair in pairs],
        families=families,
        texts=[pair.texts for pair in pairs],
        tokenizer_name=tokenizer.name if tokenizer else "",
        vocabulary=tokenizer.vocabulary if tokenizer else "",
        rejected=rejected,
    )


def _shortage(
    family: Family,
    tokenizer: PairTokenizer,
    wanted: int,
    found: int,
    kinds: Sequence[str],
    rejected: Sequence[str],
    settings: Mapping[str, int],
) -> str:
    if len(kinds) > found:
        return (
            f"family {family.name!r}: tokenizer {tokenizer.name!r} aligned {found} of {found + len(kinds)} candidates "
            f"and {wanted} pairs are needed; commonest reason: {commonest(kinds)}, e.g. {shorten(rejected[0], 160)}"
        )
    described = "".join(f" with {name}={value}" for name, value in settings.items())
    return (
        f"n_pairs={wanted}: family {family.name!r}{described} has too few distinct pairs ({found} found): "
        f"ask for at most {found}{' or raise ' + ' or '.join(settings) if settings else ''}"
    )


def _list(families: Sequence[Family]) -> str:
    return ("family " if len(families) == 1 else "families ") + ", ".join(family.name for family in families)
