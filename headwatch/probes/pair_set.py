"""ProbeSet: frozen pairs of clean and corrupted prompts, and where the metric is read."""

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwatch.errors import UserError
from headwatch.probes.families import FAMILIES, OPENERS
from headwatch.probes.validation import (
    as_integers,
    check_answer_shape,
    check_read_shape,
    check_reads,
    check_tokens,
    warn_of_equal_answers,
)

DEFAULT_FAMILIES = ("addition", "recall")  # one with arithmetic, and the control without


@dataclass(frozen=True, eq=False, repr=False)
class ProbeSet:
    """N pairs of prompts of equal token length that differ in some tokens, frozen and fingerprinted.

    Attributes:
        clean, corrupted: token ids [N, T].
        attention_mask: [N, T], 1 = real, the same for both sides; each row's real positions are one contiguous run.
        answers: [N, 2], the (clean, corrupted) answer token, -1 where a pair has none (pairs read by "kl" or "nll").
        read_positions: [N, P], columns of T at which the metric is read, -1 at the end where a pair has fewer.
        targets: [N, P], the clean continuation's token at each read position (for "nll"), -1 where there is none.
        families: the family of each pair.
        texts: the (clean, corrupted) prompt of each pair as it is fed, shared answer start included; may be empty.
        tokenizer_name: for display.
        rejected: one line for each candidate that was drawn and did not align.
        vocabulary: digest of the tokenizer's vocabulary ("" where unknown), which tells tokenizers apart.

    All tensors are int64 on the CPU. Raises UserError when they do not fit together.
    """

    clean: Tensor
    corrupted: Tensor
    attention_mask: Tensor
    answers: Tensor
    read_positions: Tensor
    targets: Tensor
    families: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    tokenizer_name: str = ""
    rejected: tuple[str, ...] = ()
    vocabulary: str = ""

    def __post_init__(self) -> None:
        check_tokens(self.clean, self.corrupted, self.attention_mask)
        check_reads(self)

    @classmethod
    def generate(
        cls, family: str | Sequence[str], tokenizer: Any, n_pairs: int = 64, seed: int = 0, **options: int
    ) -> "ProbeSet":
        """``n_pairs`` pairs of each built-in family, aligned under this tokenizer and padded on the left.

        Args:
            family: one of FAMILIES, or several.
            tokenizer: a Hugging Face tokenizer, left as it was.
            n_pairs: pairs a family. Sampling noise over pairs is large: 64 is meant as a lower bound for real runs.
            seed: the same seed gives the same pairs in every process; a family's pairs do not depend on the others.
            options: the families' difficulty: ``digits`` of addition and carry, ``entries`` of recall.

        Raises UserError for an unknown family or option, when the family has fewer distinct pairs than that, and when
        the tokenizer cannot align it (with the number of candidates tried and the commonest reason).

        >>> ProbeSet.generate(["addition", "carry"], tokenizer, n_pairs=64)        # doctest: +SKIP
        ProbeSet(128 pairs x 16 tokens, addition 64, carry 64, tokenizer 'SmolLM2-135M', fingerprint ...)
        """
        from headwatch.probes.generate import generate  # it builds ProbeSets

        return generate(family, tokenizer, n_pairs, seed, options)

    @classmethod
    def from_token_ids(
        cls,
        clean: Any,
        corrupted: Any,
        attention_mask: Any = None,
        answers: Any = None,
        read_positions: Any = None,
        targets: Any = None,
        families: str | Sequence[str] | None = None,
        *,
        texts: Sequence[Sequence[str]] | None = None,
        tokenizer_name: str = "",
        vocabulary: str = "",
        rejected: Sequence[str] = (),
    ) -> "ProbeSet":
        """A set from token ids [N, T] (tensors, arrays or lists); the arguments are the attributes.

        Defaults: every position real; no answers; the metric read at each row's last real position; a target is the
        clean answer, or, with several read positions, the clean token that follows each (the answer after the last
        real one); family "custom"; no texts.
        Raises UserError naming the argument, the rows and what is wrong.
        """
        clean, corrupted = as_integers("clean", clean), as_integers("corrupted", corrupted)
        mask = torch.ones_like(clean) if attention_mask is None else as_integers("attention_mask", attention_mask)
        check_tokens(clean, corrupted, mask)
        n, width = clean.shape
        answers = torch.full((n, 2), -1) if answers is None else as_integers("answers", answers)
        check_answer_shape(answers, n)
        warn_of_equal_answers(answers)
        if read_positions is None:
            reads = (mask * torch.arange(width)).argmax(1, keepdim=True)
        else:
            reads = as_integers("read_positions", read_positions)
            reads = reads[:, None] if reads.ndim == 1 else reads
        check_read_shape(reads, n)
        if targets is None:
            targets = _following(clean, mask, answers, reads)
        else:
            targets = as_integers("targets", targets)
            targets = targets[:, None] if targets.ndim == 1 else targets
        names = "custom" if families is None else families
        return cls(
            clean,
            corrupted,
            mask,
            answers,
            reads,
            targets,
            (names,) * n if isinstance(names, str) else tuple(names),
            (("", ""),) * n if texts is None else tuple((one, other) for one, other in texts),
            tokenizer_name,
            tuple(rejected),
            vocabulary,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], tokenizer: Any = None) -> "ProbeSet":
        """A frozen set (.safetensors or .json, from ``save``) or your own pairs (.jsonl; text needs the tokenizer).

        A tokenizer given with a frozen set must read its prompts as the tokens that were frozen.
        Raises UserError for a file that is missing, damaged or of another kind, and for bad lines of a JSONL (with
        line number, what is wrong and the text). The formats are in docs/reference/probes.md.
        """
        from headwatch.probes.file_format import load  # it builds ProbeSets

        return load(path, tokenizer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Freeze the set in a file (.safetensors or .json); ``load`` gives it back with the same fingerprint."""
        from headwatch.probes.file_format import save

        save(self, path)

    @classmethod
    def resolve(
        cls, probes: Any, tokenizer: Any, n_pairs: int = 64, seed: int = 0, openers: "ProbeSet | None" = None
    ) -> "ProbeSet":
        """The set that a ``probes`` argument means: a ProbeSet, family name(s), a path, or None for DEFAULT_FAMILIES.

        openers: the pairs of the family "openers", where it is named: they are made from questions, by `Openers.make`.
        Raises UserError when it is none of these, or a set that this tokenizer reads as other tokens.
        """
        if isinstance(probes, ProbeSet):
            from headwatch.probes.file_format import check_tokenizer

            check_tokenizer(probes, tokenizer)
            return probes
        if probes is None:
            return cls.generate(DEFAULT_FAMILIES, tokenizer, n_pairs, seed)
        if names_openers(probes) and openers is not None:
            from headwatch.probes.generate import with_openers

            return with_openers([probes] if isinstance(probes, str) else probes, tokenizer, n_pairs, seed, openers)
        if isinstance(probes, list | tuple) and all(isinstance(name, str) for name in probes):
            return cls.generate(probes, tokenizer, n_pairs, seed)
        if isinstance(probes, str) and (probes in FAMILIES or probes == OPENERS):
            return cls.generate(probes, tokenizer, n_pairs, seed)
        if isinstance(probes, os.PathLike) or (isinstance(probes, str) and Path(probes).exists()):
            return cls.load(probes, tokenizer)
        if isinstance(probes, str):
            close = difflib.get_close_matches(probes, (*FAMILIES, OPENERS), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"probes={probes!r}: neither a family ({_NAMES}) nor a file that exists{hint}")
        raise UserError(f"probes={probes!r}: give a ProbeSet, a family name or a list of them ({_NAMES}), or a path")

    @classmethod
    def concat(cls, sets: Sequence["ProbeSet"], pad_id: int = 0) -> "ProbeSet":
        """The sets one after another, the narrower ones padded on the left with ``pad_id``; all of one tokenizer."""
        if not sets:
            raise UserError("concat: no probe sets given")
        if len({(one.vocabulary or one.tokenizer_name) for one in sets}) > 1:
            names = ", ".join(repr(one.tokenizer_name) for one in sets)
            raise UserError(f"concat: the probe sets come from different tokenizers ({names}); make them with one")
        if len(sets) == 1:
            return sets[0]
        width = max(one.clean.shape[1] for one in sets)
        reads = max(one.read_positions.shape[1] for one in sets)

        def left(name: str, value: int) -> Tensor:
            pad = torch.nn.functional.pad
            parts = [getattr(one, name) for one in sets]
            return torch.cat([pad(part, (width - part.shape[1], 0), value=value) for part in parts])

        def right(parts: list[Tensor]) -> Tensor:
            pad = torch.nn.functional.pad
            return torch.cat([pad(part, (0, reads - part.shape[1]), value=-1) for part in parts])

        return cls(
            left("clean", pad_id),
            left("corrupted", pad_id),
            left("attention_mask", 0),
            torch.cat([one.answers for one in sets]),
            right([_shifted(one.read_positions, width - one.clean.shape[1]) for one in sets]),
            right([one.targets for one in sets]),
            tuple(name for one in sets for name in one.families),
            tuple(pair for one in sets for pair in one.texts),
            sets[0].tokenizer_name,
            tuple(line for one in sets for line in one.rejected),
            sets[0].vocabulary,
        )

    def select(self, which: str | int | slice | Sequence[int] | Tensor) -> "ProbeSet":
        """The pairs of a family, or at these indices or this boolean mask, without columns that all of them pad.

        So a family selected from a generated set is the set that it would have been alone; ``rejected`` stays behind.
        """
        if isinstance(which, str):
            rows = torch.tensor([i for i, name in enumerate(self.families) if name == which], dtype=torch.long)
            if len(rows) == 0:
                raise UserError(f"no pair of family {which!r}: this set has {', '.join(self.family_names)}")
        else:
            if which is None or isinstance(which, bool):
                raise UserError(f"select: {which!r}; give a family, indices or a boolean mask")
            try:
                index = torch.as_tensor(list(which)) if isinstance(which, Sequence) else which
                rows = torch.arange(len(self))[index].reshape(-1)
            except (IndexError, TypeError, ValueError) as error:
                raise UserError(f"select: {which!r} does not index {len(self)} pairs ({error})") from error
            if len(rows) == 0:
                raise UserError(f"select: {which!r} selects none of the {len(self)} pairs")
        columns = self.attention_mask[rows].any(0).nonzero()[:, 0]
        used = slice(int(columns[0]), int(columns[-1]) + 1)
        reads = _shifted(self.read_positions[rows], -used.start)
        count = max(1, int((reads >= 0).sum(1).max()))
        return replace(
            self,
            clean=self.clean[rows, used].contiguous(),
            corrupted=self.corrupted[rows, used].contiguous(),
            attention_mask=self.attention_mask[rows, used].contiguous(),
            answers=self.answers[rows],
            read_positions=reads[:, :count].contiguous(),
            targets=self.targets[rows, :count].contiguous(),
            families=tuple(self.families[i] for i in rows.tolist()),
            texts=tuple(self.texts[i] for i in rows.tolist()),
            rejected=(),
        )

    @property
    def family_names(self) -> tuple[str, ...]:
        """The distinct families, in order of first appearance."""
        return tuple(dict.fromkeys(self.families))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over everything that is scored: all tensors, the families and the tokenizer.

        The tokenizer counts by its vocabulary, or by its name where that is unknown: the same one loaded from another
        folder gives the same fingerprint.
        """
        digest = hashlib.sha256()
        for name in TENSORS:
            tensor = getattr(self, name)
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().astype("<i8").tobytes())
        digest.update(json.dumps([self.families, self.vocabulary or self.tokenizer_name]).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.families)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in Counter(self.families).items())
        return (
            f"ProbeSet({len(self)} pairs x {self.clean.shape[1]} tokens, {counts}, "
            f"tokenizer {self.tokenizer_name!r}, fingerprint {self.fingerprint})"
        )


_NAMES = ", ".join((*FAMILIES, OPENERS))
TENSORS = ("clean", "corrupted", "attention_mask", "answers", "read_positions", "targets")


def names_openers(probes: Any) -> bool:
    """Whether a ``probes`` argument names the opener family."""
    return probes == OPENERS if isinstance(probes, str) else isinstance(probes, list | tuple) and OPENERS in probes


def _shifted(positions: Tensor, by: int) -> Tensor:
    return torch.where(positions >= 0, positions + by, positions)


def _following(clean: Tensor, mask: Tensor, answers: Tensor, reads: Tensor) -> Tensor:
    """The clean continuation at each read position [N, P]: see ProbeSet.from_token_ids on defaults."""
    if reads.shape[1:] == (1,):
        return answers[:, :1].clone()
    width = clean.shape[1]
    following = (reads + 1).clamp(0, width - 1)
    inside = (reads >= 0) & (reads + 1 < width) & mask.gather(1, following).bool()
    targets = torch.where(inside, clean.gather(1, following), answers[:, :1])
    return torch.where(reads >= 0, targets, -1)
