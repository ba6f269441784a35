"""Validation of a probe set's tensors. Every message names the argument, the rows (from 0) and the reason."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headwatch.errors import UserError


def as_integers(name: str, value: Any) -> Tensor:
    """The value as an int64 tensor on the CPU; UserError for ragged rows or other dtypes."""
    try:
        tensor = torch.as_tensor(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{name}: give an integer tensor with rows of equal length ({error})") from error
    if tensor.is_floating_point() or tensor.is_complex():
        raise UserError(f"{name}: dtype {tensor.dtype}; give an integer tensor")
    return tensor.detach().to("cpu", torch.long)


def check_tokens(clean: Tensor, corrupted: Tensor, attention_mask: Tensor) -> None:
    """Check that both sides [N, T] differ in every row and the mask [N, T] has one run of real positions per row."""
    if clean.shape != corrupted.shape:
        raise UserError(
            f"clean {_shape(clean)} and corrupted {_shape(corrupted)} differ in shape: a pair needs equal token lengths"
        )
    if clean.ndim != 2 or clean.numel() == 0:
        raise UserError(f"clean and corrupted: shape {_shape(clean)}; give [pairs, tokens] with at least one of each")
    if attention_mask.shape != clean.shape:
        raise UserError(f"attention_mask {_shape(attention_mask)} does not fit the tokens {_shape(clean)}")
    for name, tokens in (("clean", clean), ("corrupted", corrupted)):
        _refuse(tokens.lt(0).any(1), f"{name}: negative token id")
    _refuse(((attention_mask != 0) & (attention_mask != 1)).any(1), "attention_mask: values other than 0 and 1")
    _refuse(attention_mask.sum(1) == 0, "attention_mask: no real position")
    rises = torch.nn.functional.pad(attention_mask, (1, 0)).diff(dim=1).eq(1).sum(1)
    _refuse(rises > 1, "attention_mask: the real positions are not one contiguous run; pad on the left or the right")
    same = ((clean == corrupted) | (attention_mask == 0)).all(1)
    _refuse(same, "clean and corrupted are identical, so there is nothing to attribute")


def check_reads(
    clean: Tensor,
    attention_mask: Tensor,
    answers: Tensor,
    reads: Tensor,
    targets: Tensor,
    families: Sequence[str],
    texts: Sequence[tuple[str, str]],
) -> None:
    """Check answers, read positions and targets against valid tokens; shapes as in `ProbeSet`."""
    n, width = clean.shape
    check_answer_shape(answers, n)
    _refuse((answers < -1).any(1), "answers: token ids below -1 (-1 means no answer)")
    _refuse((answers == -1).sum(1) == 1, "answers: one side has an answer and the other has none")
    check_read_shape(reads, n)
    _refuse((reads < -1).any(1) | (reads >= width).any(1), f"read_positions: outside the columns 0 to {width - 1}")
    used = reads >= 0
    _refuse(
        ~used[:, 0] | (used.long().diff(dim=1) > 0).any(1),
        "read_positions: -1 belongs at the end, after at least one position",
    )
    real = attention_mask.gather(1, reads.clamp(min=0)).bool()
    _refuse((used & ~real).any(1), "read_positions: a padded position")
    if targets.shape != reads.shape:
        raise UserError(f"targets {_shape(targets)} does not fit read_positions {_shape(reads)}")
    _refuse((targets < -1).any(1), "targets: token ids below -1 (-1 means no target)")
    for name, value in (("families", families), ("texts", texts)):
        if len(value) != n:
            raise UserError(f"{name}: {len(value)} given for {n} pairs")


def check_read_shape(reads: Tensor, n: int) -> None:
    """Check that read positions are [n, P] with P >= 1."""
    if reads.ndim != 2 or reads.shape[0] != n or reads.shape[1] == 0:
        raise UserError(
            f"read_positions: shape {_shape(reads)}; give [{n}, P] column indices, -1 at the end where unused"
        )


def check_answer_shape(answers: Tensor, n: int) -> None:
    """Check that answers are [n, 2]."""
    if answers.shape != (n, 2):
        raise UserError(f"answers: shape {_shape(answers)}; give [{n}, 2] = (clean, corrupted) answer token ids")


def warn_of_equal_answers(answers: Tensor) -> None:
    """Warn where both answers are the same token. Such pairs are valid under "kl" and "nll"."""
    equal = (answers[:, 0] == answers[:, 1]) & (answers[:, 0] >= 0)
    if equal.any():
        warnings.warn(
            f"answers: clean and corrupted answer are the same token ({_rows(equal)}), so logit_diff is zero there",
            stacklevel=3,
        )


def _refuse(bad: Tensor, what: str) -> None:
    """UserError with the rows where `bad` [N] is true."""
    if bad.any():
        raise UserError(f"{what} ({_rows(bad)})")


def _rows(bad: Tensor) -> str:
    rows = bad.nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, rows[:5]))
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{f' and {len(rows) - 5} more' if len(rows) > 5 else ''}"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
