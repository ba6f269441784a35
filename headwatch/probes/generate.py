"""Generate probe sets: draw candidates of a family until enough distinct pairs align."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.families import FAMILIES, OPENERS, Family
from headwatch.probes.padding import pad_left
from headwatch.probes.pair_set import ProbeSet, Provenance
from headwatch.probes.tokenization import AlignedPair, MisalignedError, PairTokenizer, most_common, shorten

MAX_REJECTED = 200  # candidates rejected before the first one aligns: the family does not fit the tokenizer


def generate(family: str | Sequence[str], tokenizer: Any, n_pairs: int = 64, seed: int = 0, **options: int) -> ProbeSet:
    """Generate pairs of built-in families. Public as `ProbeSet.generate`.

    Args:
        family: one name, or several: "addition", "carry", "sums", "word_problem", "linear_equation", "recall".
        tokenizer: a Hugging Face tokenizer (or a processor that contains one); it is not changed.
        n_pairs: pairs per family. Use 64 or more in real runs: sampling noise over pairs is large.
        seed: the same seed gives the same pairs in every process. A family's pairs do not depend on the other families.
        **options: difficulty: ``digits`` of addition and carry, ``entries`` of recall.

    Returns:
        A set of n_pairs pairs per family, in the order of the names, padded on the left.

    Raises:
        UserError: an unknown family or option; too few distinct pairs in a family; or a tokenizer that cannot align it
            (with the number of candidates tried and the most common reason).

    >>> hw.ProbeSet.generate(["addition", "carry"], tokenizer, n_pairs=64)        # doctest: +SKIP
    ProbeSet(128 pairs x 16 tokens, addition 64, carry 64, tokenizer 'SmolLM2-135M', fingerprint ...)
    """
    chosen = choose_families(family)
    for name, value in (("n_pairs", n_pairs), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name}={value!r}: give a whole number")
    if n_pairs < 1:
        raise UserError(f"n_pairs={n_pairs}: give 1 or more pairs per family (the default is 64)")
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
    """The families of these names.

    Raises:
        UserError: no name, an unknown one, or one that is repeated.
    """
    if not isinstance(names, str | Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"family={names!r}: give a name or a list of names: {', '.join(FAMILIES)}")
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise UserError(f"families=[]: name at least one of {', '.join(FAMILIES)}")
    for name in names:
        if name == OPENERS:
            raise UserError(
                f"family {name!r} is made from questions, by HeadWatchCallback(probes=[..., {name!r}]) when training "
                "begins, or by hw.Openers(...).make(tokenizer, ...)"
            )
        if name not in FAMILIES:
            raise UserError(f"family {name!r} is unknown: choose from {', '.join(FAMILIES)}")
        refuse_repeated(name, names)
    return [FAMILIES[name] for name in names]


def refuse_repeated(name: str, names: Sequence[str]) -> None:
    """UserError if a family is named more than once."""
    if (times := list(names).count(name)) > 1:
        raise UserError(f"family {name!r} is named {times} times: name each family once")


def draw_family(
    family: Family, tokenizer: PairTokenizer, n_pairs: int, seed: int, settings: Mapping[str, int]
) -> ProbeSet:
    """Generate n_pairs distinct pairs of one family, the same in every process.

    A clean prompt is reused, with another corruption, only when the family has too few clean prompts.
    """
    # Seeded by family, so that a family's pairs do not depend on the other families. `random` hashes a text seed with
    # SHA-512, not with Python's salted hash.
    rng = random.Random(f"headwatch {family.name} {seed}")
    kept: dict[str, AlignedPair] = {}  # by clean prompt
    spare: list[AlignedPair] = []
    seen: set[tuple[str, str]] = set()
    rejected: list[str] = []
    reasons: list[str] = []
    draws = 0
    while len(kept) < n_pairs and draws < 20 * n_pairs + 500 and (kept or len(reasons) < MAX_REJECTED):
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
            reasons.append(error.reason)
            rejected.append(f"{family.name}: {error}: {candidate.clean!r} / {candidate.corrupted!r}")
            continue
        if candidate.clean in kept:
            spare.append(pair)
        else:
            kept[candidate.clean] = pair
    pairs = (list(kept.values()) + spare)[:n_pairs]
    if len(pairs) < n_pairs:
        raise UserError(_too_few(family, tokenizer, n_pairs, len(pairs), reasons, rejected, settings))
    return from_pairs(pairs, [family.name] * n_pairs, tokenizer, rejected)


def from_pairs(
    pairs: Sequence[AlignedPair],
    families: Sequence[str],
    tokenizer: PairTokenizer | None,
    rejected: Sequence[str] = (),
) -> ProbeSet:
    """A set of aligned pairs, padded on the left to the longest."""
    pad_id = tokenizer.pad_id if tokenizer else 0
    clean, mask = pad_left([pair.clean for pair in pairs], pad_id)
    corrupted, _ = pad_left([pair.corrupted for pair in pairs], pad_id)
    texts = [pair.texts for pair in pairs]
    named = (tokenizer.name, tokenizer.vocabulary) if tokenizer else ("", "")
    return ProbeSet.from_token_ids(
        clean,
        corrupted,
        mask,
        answers=[pair.answer for pair in pairs],
        families=families,
        provenance=Provenance(texts, *named, rejected),
    )


def _too_few(
    family: Family,
    tokenizer: PairTokenizer,
    n_pairs: int,
    found: int,
    reasons: Sequence[str],
    rejected: Sequence[str],
    settings: Mapping[str, int],
) -> str:
    """The error message for too few pairs: because of the tokenizer, or because the family is small."""
    if len(reasons) > found:
        return (
            f"family {family.name!r}: tokenizer {tokenizer.name!r} aligned {found} of {found + len(reasons)} "
            f"candidates and {n_pairs} pairs are needed; most common reason: {most_common(reasons)}, e.g. "
            f"{shorten(rejected[0], 160)}"
        )
    described = "".join(f" with {name}={value}" for name, value in settings.items())
    return (
        f"n_pairs={n_pairs}: family {family.name!r}{described} has too few distinct pairs ({found} found): "
        f"ask for at most {found}{' or raise ' + ' or '.join(settings) if settings else ''}"
    )


def _list(families: Sequence[Family]) -> str:
    return ("family " if len(families) == 1 else "families ") + ", ".join(family.name for family in families)
