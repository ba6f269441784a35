"""The probe set that a `probes` argument means: a set, family names, a file, or the default families."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.families import FAMILIES, OPENERS
from headwatch.probes.file_format import check_tokenizer, load
from headwatch.probes.generate import choose_families, generate
from headwatch.probes.pair_set import ProbeSet
from headwatch.probes.tokenization import PairTokenizer

DEFAULT_FAMILIES = ("addition", "recall")  # one with arithmetic, and the control without

_NAMES = ", ".join((*FAMILIES, OPENERS))


def resolve(probes: Any, tokenizer: Any, n_pairs: int = 64, seed: int = 0, openers: ProbeSet | None = None) -> ProbeSet:
    """The set that a ``probes`` argument means: a ProbeSet, family name(s), a path, or None for DEFAULT_FAMILIES.

    openers: the pairs of the family "openers", where it is named: they are made from questions, by `Openers.make`.

    Raises:
        UserError: it is none of these, or a set that this tokenizer reads as other tokens.
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
    """Families of which one is "openers", whose pairs are given, as one set in the order of the names."""
    choose_families([name for name in families if name != OPENERS] or list(FAMILIES))
    if list(families).count(OPENERS) > 1:
        raise UserError(f"family {OPENERS!r} is named {list(families).count(OPENERS)} times: name each family once")
    parts = [openers if name == OPENERS else generate(name, tokenizer, n_pairs, seed) for name in families]
    return ProbeSet.concat(parts, pad_id=PairTokenizer(tokenizer).pad_id)
