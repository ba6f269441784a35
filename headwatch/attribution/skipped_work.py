"""Skip work that no score depends on: logits and outputs of the last MLP at positions that are not read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import hooked, overridden


class OutputMatrix:
    """The model's output matrix (lm_head), restricted to the logits that are read.

    It is the model's largest weight, and a probe reads few of its rows: with short suffixes, all of them would take a
    fifth of the pass. The module's own hooks still run, so a sharded weight is gathered when it is used. Anything but a
    plain nn.Linear (an adapter, a quantised layer, a replaced forward) is left unchanged.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        head = anatomy.model.get_output_embeddings()  # type: ignore[operator]
        self._head: Any = head if type(head) is nn.Linear and "forward" not in vars(head) else None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Compute all logits inside the block, in one product.

        The last column of each row is not contiguous; torch would read the weight once per row.
        """
        with self._instead(lambda x: F.linear(x.reshape(-1, x.shape[-1]), *self._weights).unflatten(0, x.shape[:-1])):
            yield

    @contextmanager
    def answers(self, answers: Tensor) -> Iterator[bool]:
        """Compute only the logits [..., 2] of each pair's clean and corrupted answer inside the block.

        Args:
            answers: token ids, [B, 2].

        Yields:
            True; False if the matrix is left unchanged and computes all logits.
        """

        def forward(x: Tensor) -> Tensor:
            weight, bias = self._weights
            x = x.unflatten(0, (-1, len(answers)))  # [rows per pair, B, columns, M]
            logits = x @ weight[answers].mT
            return (logits if bias is None else logits + bias[answers][:, None]).flatten(0, 1)

        with self._instead(forward):
            yield self._head is not None

    @contextmanager
    def nothing(self) -> Iterator[None]:
        """Compute no logits inside the block, for runs that only fill a cache."""
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
        with overridden(self._head, forward=forward):
            yield


@contextmanager
def last_mlp_where_read(anatomy: Anatomy, columns: Tensor) -> Iterator[None]:
    """Run the last layer's MLP on these columns only, where logits are read; it adds 0 elsewhere.

    Nothing reads its other outputs, so no logit, gradient or score depends on them; this saves three quarters of a
    layer. Expert blocks whose router logits the model collects are left unchanged: their shape must match all columns.
    """
    layer, handles = anatomy.layers[-1], []
    length = 0

    def narrow(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal length
        length = args[0].shape[1]
        return (args[0][:, columns], *args[1:])

    def widen(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if states.dim() < args[0].dim():  # a flat list of tokens
            states = states.view_as(args[0])
        whole = states.new_zeros(states.shape[0], length, states.shape[2]).index_copy(1, columns, states)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    if not getattr(anatomy.model.config, "output_router_logits", False) and not layer.whole:
        # After all other hooks on the input of the MLP, and before all others on its output.
        handles.append(layer.mlp_reads.register_forward_pre_hook(narrow))
        handles += [module.register_forward_hook(widen, prepend=True) for module in layer.mlp_adds]
    with hooked(*handles):
        yield
