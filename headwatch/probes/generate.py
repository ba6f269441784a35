"""Draws a family's candidates until enough of them align, each pair once."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.families import FAMILIES, OPENERS, Family
from headwatch.probes.pair_set import ProbeSet
from headwatch.probes.tokenization import AlignedPair, MisalignedError, PairTokenizer, commonest, shorten

GIVE_UP_AFTER = 200  # candidates refused by the tokenizer with none kept: the family does not fit it


def generate(family: str | Sequence[str], tokenizer: Any, n_pairs: int = 64, seed: int = 0, **options: int) -> ProbeSet:
    """``n_pairs`` pairs of each built-in family, aligned under this tokenizer and padded on the left.

    Args:
        family: one of FAMILIES, or several.
        tokenizer: a Hugging Face tokenizer, left as it was.
        n_pairs: pairs per family. Sampling noise over pairs is large: 64 is meant as a lower bound for real runs.
        seed: the same seed gives the same pairs in every process; a family's pairs do not depend on the others.
        options: the families' difficulty: ``digits`` of addition and carry, ``entries`` of recall.

    Raises:
        UserError: an unknown family or option; the family has fewer distinct pairs than that; or the tokenizer cannot
            align it (with the number of candidates tried and the commonest reason).

    >>> ProbeSet.generate(["addition", "carry"], tokenizer, n_pairs=64)        # doctest: +SKIP
    ProbeSet(128 pairs x 16 tokens, addition 64, carry 64, tokenizer 'SmolLM2-135M', fingerprint ...)
    """
    chosen = choose_families(family)
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


def draw_family(
    family: Family, tokenizer: PairTokenizer, n_pairs: int, seed: int, settings: Mapping[str, int]
) -> ProbeSet:
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
) -> ProbeSet:
    """The pairs as one set, padded on the left to the longest."""
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
