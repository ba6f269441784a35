"""ProbeSet: frozen pairs of clean and corrupted prompts, and the positions at which the metric is read."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwatch.errors import UserError
from headwatch.probes.validation import (
    as_integers,
    check_answer_shape,
    check_read_shape,
    check_reads,
    check_tokens,
    warn_of_equal_answers,
)


@dataclass(frozen=True)
class Provenance:
    """Where the token ids of a set come from; each field is an attribute of `ProbeSet`, described there."""

    texts: Sequence[Sequence[str]] | None = None
    tokenizer_name: str = ""
    vocabulary: str = ""
    rejected: Sequence[str] = ()


@dataclass(frozen=True, eq=False, repr=False)
class ProbeSet:
    """N pairs of prompts of equal token length that differ in some tokens, frozen and fingerprinted.

    All tensors are int64 on the CPU.

    Attributes:
        clean, corrupted: token ids [N, T].
        attention_mask: [N, T], 1 = real, the same for both sides; each row's real positions are one contiguous run.
        answers: [N, 2], the (clean, corrupted) answer token, -1 where a pair has none (pairs read by "kl" or "nll").
        read_positions: [N, P], columns of T at which the metric is read, -1 at the end where a pair has fewer.
        targets: [N, P], the clean continuation's token at each read position (for "nll"), -1 where there is none.
        families: the family of each pair.
        texts: the (clean, corrupted) input text of each pair, with the shared start of the answers; may be empty.
        tokenizer_name: for display.
        rejected: one line per candidate that could not be aligned.
        vocabulary: digest of the tokenizer's vocabulary ("" where unknown), which identifies the tokenizer.

    Raises:
        UserError: shapes or values are inconsistent.
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
        check_reads(
            self.clean,
            self.attention_mask,
            self.answers,
            self.read_positions,
            self.targets,
            self.families,
            self.texts,
        )

    if TYPE_CHECKING:  # attached in headwatch/probes/__init__.py, from files that import this one

        @staticmethod
        def generate(
            family: str | Sequence[str], tokenizer: Any, n_pairs: int = 64, seed: int = 0, **options: int
        ) -> "ProbeSet":
            """See `headwatch.probes.generate.generate`."""

        @staticmethod
        def load(path: str | os.PathLike[str], tokenizer: Any = None) -> "ProbeSet":
            """See `headwatch.probes.file_format.load`."""

        @staticmethod
        def resolve(
            probes: Any, tokenizer: Any, n_pairs: int = 64, seed: int = 0, openers: "ProbeSet | None" = None
        ) -> "ProbeSet":
            """See `headwatch.probes.resolve.resolve`."""

        def save(self, path: str | os.PathLike[str]) -> None:
            """See `headwatch.probes.file_format.save`."""

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
        provenance: Provenance | None = None,
    ) -> "ProbeSet":
        """A set from token ids.

        Args:
            clean, corrupted: integer tensors, arrays or lists [N, T].
            attention_mask: [N, T], 1 = real; None: every position is real.
            answers: (clean, corrupted) answer token ids [N, 2]; None: no answers.
            read_positions: [N, P] or [N], columns at which the metric is read; None: each row's last real position.
            targets: [N, P] or [N], see `ProbeSet`; None: the clean answer, or, with several read positions, the clean
                token that follows each (the answer after the last real position).
            families: one name, or one per pair; None is "custom".
            provenance: texts, tokenizer and rejected candidates, where known.

        Raises:
            UserError: an argument is invalid (the message names it, the rows and the reason).

        >>> probes = ProbeSet.from_token_ids([[1, 2, 3]], [[1, 5, 3]], answers=[[7, 8]])
        >>> probes.read_positions.tolist()
        [[2]]
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
        source = provenance or Provenance()
        return cls(
            clean,
            corrupted,
            mask,
            answers,
            reads,
            targets,
            (names,) * n if isinstance(names, str) else tuple(names),
            (("", ""),) * n if source.texts is None else tuple((one, other) for one, other in source.texts),
            source.tokenizer_name,
            tuple(source.rejected),
            source.vocabulary,
        )

    @classmethod
    def concat(cls, sets: Sequence["ProbeSet"], pad_id: int = 0) -> "ProbeSet":
        """The pairs of several sets as one set, padded on the left to the widest.

        Args:
            sets: sets of one tokenizer, in order.
            pad_id: token id of the padding.

        Raises:
            UserError: no sets, or sets of different tokenizers.
        """
        if not sets:
            raise UserError("concat: no probe sets given")
        if len({(one.vocabulary or one.tokenizer_name) for one in sets}) > 1:
            names = ", ".join(repr(one.tokenizer_name) for one in sets)
            raise UserError(f"concat: the probe sets come from different tokenizers ({names}); make them with one")
        if len(sets) == 1:
            return sets[0]
        width = max(one.clean.shape[1] for one in sets)
        reads = max(one.read_positions.shape[1] for one in sets)

        pad = torch.nn.functional.pad

        def left(name: str, value: int) -> Tensor:
            parts = [getattr(one, name) for one in sets]
            return torch.cat([pad(part, (width - part.shape[1], 0), value=value) for part in parts])

        def right(parts: list[Tensor]) -> Tensor:
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
        """Some of the pairs, without the columns that are padding in all of them and without ``rejected``.

        A family selected from a generated set equals that family generated alone.

        Args:
            which: a family, an index, several indices, a slice or a boolean mask.

        Raises:
            UserError: it selects nothing.
        """
        rows = self._rows(which)
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

    def _rows(self, which: str | int | slice | Sequence[int] | Tensor) -> Tensor:
        """Indices [n] of the pairs that `select` returns; n >= 1."""
        if isinstance(which, str):
            rows = torch.tensor([i for i, name in enumerate(self.families) if name == which], dtype=torch.long)
            if len(rows) == 0:
                raise UserError(f"no pair of family {which!r}: this set has {', '.join(self.family_names)}")
            return rows
        if which is None or isinstance(which, bool):
            raise UserError(f"select: {which!r}; give a family, indices or a boolean mask")
        try:
            index = torch.as_tensor(list(which)) if isinstance(which, Sequence) else which
            rows = torch.arange(len(self))[index].reshape(-1)
        except (IndexError, TypeError, ValueError) as error:
            raise UserError(f"select: {which!r} does not index {len(self)} pairs ({error})") from error
        if len(rows) == 0:
            raise UserError(f"select: {which!r} selects none of the {len(self)} pairs")
        return rows

    @property
    def family_names(self) -> tuple[str, ...]:
        """The distinct families, in order of first appearance."""
        return tuple(dict.fromkeys(self.families))

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of all tensors, the families and the tokenizer.

        The tokenizer is identified by its vocabulary (by its name where that is unknown), so the folder from which it
        was loaded does not matter.
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


TENSORS = ("clean", "corrupted", "attention_mask", "answers", "read_positions", "targets")


def _shifted(positions: Tensor, by: int) -> Tensor:
    """Column indices moved by so many columns; -1 stays -1."""
    return torch.where(positions >= 0, positions + by, positions)


def _following(clean: Tensor, mask: Tensor, answers: Tensor, reads: Tensor) -> Tensor:
    """Default targets, [N, P]: see `ProbeSet.from_token_ids`."""
    if reads.shape[1:] == (1,):
        return answers[:, :1].clone()
    width = clean.shape[1]
    following = (reads + 1).clamp(0, width - 1)
    inside = (reads >= 0) & (reads + 1 < width) & mask.gather(1, following).bool()
    targets = torch.where(inside, clean.gather(1, following), answers[:, :1])
    return torch.where(reads >= 0, targets, -1)
