"""ProbeSet: frozen pairs of clean and corrupted prompts, and where the metric is read."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

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
        generate: ClassVar[Callable[..., "ProbeSet"]]
        load: ClassVar[Callable[..., "ProbeSet"]]
        resolve: ClassVar[Callable[..., "ProbeSet"]]

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


TENSORS = ("clean", "corrupted", "attention_mask", "answers", "read_positions", "targets")


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
