"""Attention patterns of every head, by one forward pass of the unmodified model with eager attention."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.errors import UnsupportedModelError
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call, callers_autocast
from headwatch.model.head_names import Head, head_name
from headwatch.model.hooks import hooked, overridden
from headwatch.model.precision import at_least_float32
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Let the model compute attention patterns inside the block; other kernels never hold them."""
    with ExitStack() as stack:
        seen: set[int] = set()
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            if config is not None and id(config) not in seen and hasattr(config, "_attn_implementation"):
                seen.add(id(config))
                internal = "_attn_implementation_internal"
                name = internal if internal in vars(config) else "_attn_implementation"
                stack.enter_context(overridden(config, **{name: "eager"}))
        yield


def attention_of(anatomy: Anatomy, call: Call, ids: Tensor) -> tuple[Tensor, Tensor]:
    """One prompt without padding, inside `eager_attention` and a read-only pass.

    Args:
        anatomy: the model.
        call: its forward pass.
        ids: token ids, [T].

    Returns:
        Patterns [L, H, T, T] (row: the position that attends), and the logits [T, V].

    Raises:
        UnsupportedModelError: the model returns no patterns.
    """
    patterns: dict[int, Tensor] = {}

    def at_attention(index: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found = [x for x in output if isinstance(x, Tensor) and x.dim() == 4] if isinstance(output, tuple) else []
            if found:
                patterns[index] = at_least_float32(found[0][0].detach())

        return hook

    handles = [layer.attention.register_forward_hook(at_attention(i)) for i, layer in enumerate(anatomy.layers)]
    with hooked(*handles):
        logits = call(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0]
    if len(patterns) < anatomy.n_layers:
        raise UnsupportedModelError(
            f"model: {type(anatomy.model).__name__} returns no attention patterns with eager attention, so the roles "
            "of its heads cannot be read"
        )
    own = torch.stack([patterns[index] for index in range(anatomy.n_layers)])
    return own[..., : len(ids)], at_least_float32(logits)


@dataclass(frozen=True)
class HeadPattern:
    """The attention of one head on one prompt.

    Attributes:
        family: probe family of the prompt.
        head: (layer, head).
        tokens: text of every token, [T].
        pattern: [T, T]; row: the position that attends.
    """

    family: str
    head: Head
    tokens: list[str]
    pattern: Tensor

    def to_json(self) -> dict[str, Any]:
        """Plain values; the rows hold hundredths, up to the diagonal."""
        percent = (100.0 * self.pattern).round().int().tolist()
        rows = [row[: place + 1] for place, row in enumerate(percent)]
        return {"family": self.family, "head": head_name(*self.head), "tokens": self.tokens, "rows": rows}


def patterns_of(model: nn.Module, probes: ProbeSet, tokenizer: Any, heads: Sequence[Head]) -> list[HeadPattern]:
    """The attention of heads on the clean prompt of the first pair of each family; the model is left unchanged."""
    anatomy, device, found = Anatomy.of(model), next(model.parameters()).device, []
    for family in probes.family_names if heads else ():
        row = probes.families.index(family)
        ids = probes.clean[row, probes.attention_mask[row].bool()].to(device)
        with (
            read_only_pass(model),
            eager_attention(model),
            torch.no_grad(),
            callers_autocast(anatomy.model, device) as call,
        ):
            pattern, _ = attention_of(anatomy, call, ids)
        tokens = [tokenizer.decode([token]) for token in ids.tolist()]
        found += [HeadPattern(family, head, tokens, pattern[head].cpu()) for head in heads]
    return found
