"""Resolve a `probes` argument: a set, family names, a file, or the default families."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.families import FAMILIES, OPENERS
from headwatch.probes.file_format import check_tokenizer, load
from headwatch.probes.generate import choose_families, generate, refuse_repeated
from headwatch.probes.pair_set import ProbeSet
from headwatch.probes.tokenization import PairTokenizer

DEFAULT_FAMILIES = ("addition", "recall")  # arithmetic, and a control without it

_NAMES = ", ".join((*FAMILIES, OPENERS))


def resolve(probes: Any, tokenizer: Any, n_pairs: int = 64, seed: int = 0, openers: ProbeSet | None = None) -> ProbeSet:
    """Turn a ``probes`` argument into a set. Public as `ProbeSet.resolve`.

    Args:
        probes: a ProbeSet, a family name or a list of them, the path of a file, or None for DEFAULT_FAMILIES.
        tokenizer: see `generate` and `load`; may be None for a ProbeSet.
        n_pairs, seed: for family names, see `generate`.
        openers: the pairs of the family "openers", where it is named, from `Openers.make`.

    Raises:
        UserError: another value, or a set for which this tokenizer gives other tokens.
    """
    if isinstance(probes, ProbeSet):
        check_tokenizer(probes, tokenizer)
        return probes
    if probes is None:
        return generate(DEFAULT_FAMILIES, tokenizer, n_pairs, seed)
    if names_openers(probes) and openers is not None:
        return with_openers([probes] if isinstance(probes, str) else probes, tokenizer, n_pairs, seed, openers)
    if isinstance(probes, list | tuple) and all(isinstance(name, str) for name in probes):
        return generate(probes, tokenizer, n_pairs, seed)
    if isinstance(probes, str) and (probes in FAMILIES or probes == OPENERS):
        return generate(probes, tokenizer, n_pairs, seed)
    if isinstance(probes, os.PathLike) or (isinstance(probes, str) and Path(probes).exists()):
        return load(probes, tokenizer)
    if isinstance(probes, str):
        close = difflib.get_close_matches(probes, (*FAMILIES, OPENERS), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"probes={probes!r}: neither a family ({_NAMES}) nor a file that exists{hint}")
    raise UserError(f"probes={probes!r}: give a ProbeSet, a family name or a list of them ({_NAMES}), or a path")


def names_openers(probes: Any) -> bool:
    """Whether a ``probes`` argument names the opener family."""
    return probes == OPENERS if isinstance(probes, str) else isinstance(probes, list | tuple) and OPENERS in probes


def with_openers(families: Sequence[str], tokenizer: Any, n_pairs: int, seed: int, openers: ProbeSet) -> ProbeSet:
    """Generate the named families and insert the given pairs for "openers", in the order of the names."""
    choose_families([name for name in families if name != OPENERS] or list(FAMILIES))
    refuse_repeated(OPENERS, families)
    parts = [openers if name == OPENERS else generate(name, tokenizer, n_pairs, seed) for name in families]
    return ProbeSet.concat(parts, pad_id=PairTokenizer(tokenizer).pad_id)
