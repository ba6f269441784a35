"""Work that no score depends on and that the pass leaves out: unread logits, and the last MLP where nothing is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import hooked


class OutputMatrix:
    """The model's output matrix (lm_head), asked only for the logits that somebody reads.

    Its weight is the largest of the model, and a probe reads few of its rows: at short suffixes all of them would cost
    a fifth of the pass. The module's own hooks still run, so a sharded weight is whole where it is used. Anything but
    a plain nn.Linear (an adapter, a quantised layer, a forward of somebody else's) is left alone.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        head = anatomy.model.get_output_embeddings()  # type: ignore[operator]
        self._head: Any = head if type(head) is nn.Linear and "forward" not in vars(head) else None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, all logits are there. One product for all rows: the last column of each row is no contiguous block,
        for which torch would otherwise read the weight once a row.
        """
        with self._instead(lambda x: F.linear(x.reshape(-1, x.shape[-1]), *self._weights).unflatten(0, x.shape[:-1])):
            yield

    @contextmanager
    def answers(self, answers: Tensor) -> Iterator[bool]:
        """Inside, logits are [..., 2]: of each pair's clean and corrupted answer. answers: [B, 2].

        Yields whether it is so; where the matrix has to be left alone, all logits are there.
        """

        def forward(x: Tensor) -> Tensor:
            weight, bias = self._weights
            x = x.unflatten(0, (-1, len(answers)))  # [rows a pair, B, columns, M]
            logits = x @ weight[answers].mT
            return (logits if bias is None else logits + bias[answers][:, None]).flatten(0, 1)

        with self._instead(forward):
            yield self._head is not None

    @contextmanager
    def nothing(self) -> Iterator[None]:
        """Inside, there are no logits at all: for runs that only fill a cache."""
        with self._instead(lambda x: x[..., :0]):
            yield

    @property
    def _weights(self) -> tuple[Tensor, Tensor | None]:
        return self._head.weight, self._head.bias

    @contextmanager
    def _instead(self, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
        if self._head is None:
            yield
            return
        self._head.forward = forward
        try:
            yield
        finally:
            del self._head.forward


@contextmanager
def last_mlp_where_read(anatomy: Anatomy, columns: Tensor) -> Iterator[None]:
    """Inside, the last layer's MLP runs on these columns alone, where logits are read, and adds 0 to the others.

    Nothing reads what it would add there, so no logit, gradient or score depends on it: three quarters of a layer less.
    Left alone are experts whose routers' logits the model collects, to compare them with the padding of all columns.
    """
    layer, handles = anatomy.layers[-1], []
    length = 0

    def narrow(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal length
        length = args[0].shape[1]
        return (args[0][:, columns], *args[1:])

    def widen(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        whole = states.new_zeros(states.shape[0], length, states.shape[2]).index_copy(1, columns, states)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    if not getattr(anatomy.model.config, "output_router_logits", False):
        # After every other hook that looks at what the MLP reads, and before those that look at what it adds.
        handles.append(layer.mlp_reads.register_forward_pre_hook(narrow))
        handles.append(layer.mlp_adds.register_forward_hook(widen, prepend=True))
    with hooked(*handles):
        yield
