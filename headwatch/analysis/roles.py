"""Roles of heads: what each head attends to, and what it writes, on the clean prompts of a probe set.

Attention, mean over the positions i >= 1 of all prompts, or of given texts; p_ij is that of position i to position j:
  entropy          - sum_j p_ij log p_ij / log(i + 1): 0 one position, 1 all alike
  previous_token   p_i,i-1
  first_token      p_i,0
  distance         sum_j p_ij (i - j), in tokens: small for local heads
  receiver_kurtosis  excess kurtosis over positions j of the mean attention that later positions pay to j: large where a
                   few tokens receive most
  sentence_kurtosis  on texts: the same over sentences, of the attention that later sentences pay to each (texts.py)
  induction        on a random sequence repeated once: attention to the token after the earlier occurrence (Olsson et
                   al. 2022)
Writing:
  write            what the head adds at the first read position, times the gradient of (logit of the clean answer -
                   logit of the corrupted answer) at the final residual vector: its direct effect, to first order
  weight_change    norm of the change of the head's q, k, v and o weights since a base model, over the base's norm
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.analysis.attention import HeadPattern, attention_of, eager_attention
from headwatch.analysis.edge_ablation import by_head_output, source_hooks
from headwatch.analysis.texts import MIN_SENTENCES, Text, received_by_sentence
from headwatch.errors import UserError
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call, callers_autocast
from headwatch.model.head_names import head_name
from headwatch.model.hooks import hooked
from headwatch.model.linear_map import linear_map
from headwatch.model.parts import KINDS
from headwatch.model.precision import at_least_float32
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet

ATTENTION = (
    *("entropy", "previous_token", "first_token", "distance", "receiver_kurtosis", "sentence_kurtosis", "induction"),
)
COLUMNS = (*ATTENTION, "write", "weight_change")
REPEATED = 24  # tokens of the random sequence that is repeated


@dataclass(frozen=True)
class HeadRoles:
    """The measures of every head.

    Attributes:
        values: name -> [L, H]; see the top of headwatch/analysis/roles.py. NaN where a measure is undefined (no base
            model, no answers, prompts of one token).
        prompts: number of prompts, or of texts.
        on_texts: whether attention was measured on texts.
    """

    values: dict[str, Tensor]
    prompts: int
    on_texts: bool = False

    def to_json(self, patterns: Sequence[HeadPattern] = ()) -> dict[str, Any]:
        """Plain values, for a run folder; patterns: of some heads."""
        return {
            "prompts": self.prompts,
            "on_texts": self.on_texts,
            "heads": self.rows(),
            "patterns": [each.to_json() for each in patterns],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per head: its name and its measures; None where undefined."""
        layers, heads = next(iter(self.values.values())).shape
        return [
            {
                "head": head_name(layer, head),
                **{name: _number(values[layer, head]) for name, values in self.values.items()},
            }
            for layer in range(layers)
            for head in range(heads)
        ]


def head_roles(
    model: nn.Module,
    probes: ProbeSet,
    base: nn.Module | None = None,
    *,
    texts: Sequence[Text] = (),
    seed: int = 0,
    repeats: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> HeadRoles:
    """Measure the role of every head.

    Args:
        model: a Hugging Face causal language model; it is left unchanged.
        probes: pairs, whose clean prompts are run.
        base: the model before training, for `weight_change`.
        texts: completions on which attention is measured instead; `write` stays on the prompts.
        seed: seed of the random sequences.
        repeats: number of random sequences.
        progress: called with (prompts done, prompts in all).

    Raises:
        UserError: `base` has another shape.
        UnsupportedModelError: the model is not supported, or returns no attention patterns.

    >>> head_roles(model, probes).rows()[0]     # doctest: +SKIP
    """
    anatomy = Anatomy.of(model)
    change = (
        torch.full((anatomy.n_layers, anatomy.n_heads), float("nan")) if base is None else weight_change(model, base)
    )
    device = next(model.parameters()).device
    total = len(probes) + len(texts) + repeats
    attention: list[dict[str, Tensor]] = []
    written, induction = [], []
    with read_only_pass(model), eager_attention(model), callers_autocast(anatomy.model, device) as call:
        for row in range(len(probes)):
            ids = probes.clean[row, probes.attention_mask[row].bool()].to(device)
            if not texts:
                with torch.no_grad():
                    pattern, _ = attention_of(anatomy, call, ids)
                attention.append(pattern_measures(pattern))
            if probes.answers[row].min() >= 0:
                start = int(probes.attention_mask[row].argmax())
                read = int(probes.read_positions[row, 0]) - start
                written.append(_writes(anatomy, call, ids, read, probes.answers[row].to(device)))
            if progress is not None:
                progress(row + 1, total)
        for number, text in enumerate(texts):
            with torch.no_grad():
                pattern, _ = attention_of(anatomy, call, text.ids.to(device))
            attention.append(pattern_measures(pattern, text.sentences))
            if progress is not None:
                progress(len(probes) + number + 1, total)
        for number, ids in enumerate(_repeated(anatomy, probes, repeats, seed)):
            with torch.no_grad():
                pattern, _ = attention_of(anatomy, call, ids.to(device))
            induction.append(induction_score(pattern))
            if progress is not None:
                progress(len(probes) + len(texts) + number + 1, total)
    nan = torch.full_like(change, float("nan"))
    values = {name: _mean([own[name] for own in attention], nan) for name in ATTENTION if name != "induction"}
    values |= {"induction": _mean(induction, nan), "write": _mean(written, nan), "weight_change": change}
    return HeadRoles({name: values[name] for name in COLUMNS}, len(texts) or len(probes), bool(texts))


def pattern_measures(pattern: Tensor, sentences: Tensor | None = None) -> dict[str, Tensor]:
    """The measures of one prompt's attention patterns [L, H, T, T], each [L, H]; NaN for a prompt of one token.

    sentences: of a text, the sentence of each token; None, or fewer than MIN_SENTENCES: sentence_kurtosis is NaN.
    """
    length = pattern.shape[-1]
    positions = torch.arange(length, device=pattern.device, dtype=pattern.dtype)
    own = pattern[..., 1:, :]
    logs = torch.where(own > 0, own, torch.ones_like(own)).log()
    entropy = -(own * logs).sum(-1) / (positions[1:] + 1).log()
    distance = (own * (positions[1:, None] - positions)).sum(-1)
    by_sentence = torch.full(pattern.shape[:2], float("nan"))
    if sentences is not None and int(sentences.max()) + 1 >= MIN_SENTENCES:
        by_sentence = _kurtosis(received_by_sentence(pattern, sentences))
    return {
        "entropy": entropy.mean(-1).cpu(),
        "previous_token": own.diagonal(dim1=-2, dim2=-1).mean(-1).cpu(),
        "first_token": own[..., 0].mean(-1).cpu(),
        "distance": distance.mean(-1).cpu(),
        "receiver_kurtosis": _kurtosis(received(pattern)).cpu(),
        "sentence_kurtosis": by_sentence.cpu(),
    }


def received(pattern: Tensor) -> Tensor:
    """Mean attention that later positions pay to each position but the last, [L, H, T - 1]."""
    length = pattern.shape[-1]
    later = torch.arange(length - 1, 0, -1, device=pattern.device, dtype=pattern.dtype)
    return pattern.tril(-1).sum(-2)[..., :-1] / later


def induction_score(pattern: Tensor) -> Tensor:
    """Attention from the second copy of a sequence to the token after the first occurrence, [L, H]; T is even."""
    half = pattern.shape[-1] // 2
    at = torch.arange(half, 2 * half, device=pattern.device)
    return pattern[..., at, at - half + 1].mean(-1).cpu()


def weight_change(model: nn.Module, base: nn.Module) -> Tensor:
    """Norm of the change of each head's q, k, v and o weights over the norm of the base's, [L, H].

    A key or value head of a group counts for each query head that reads it.

    Raises:
        UserError: the two models have different shapes.
    """
    now, then = Anatomy.of(model), Anatomy.of(base)
    if _shape(now) != _shape(then):
        raise UserError(
            f"base: it has {_shape(then)} layers, heads, key/value heads, head width and model width, and the model "
            f"{_shape(now)}: give the model that it was trained from"
        )
    found = []
    for index in range(now.n_layers):
        changed, whole = (torch.zeros(now.n_heads, dtype=torch.float64) for _ in range(2))
        for new, old in zip(_head_weights(now, index), _head_weights(then, index), strict=True):
            changed += (new.cpu() - old.cpu()).double().square().flatten(1).sum(-1)
            whole += old.double().square().flatten(1).sum(-1).cpu()
        found.append((changed / whole).sqrt())
    return torch.stack(found).float()


def _head_weights(anatomy: Anatomy, index: int) -> list[Tensor]:
    """Weights of q, k, v by query head [H, D, M], and of o [H, D, M]."""
    layer, found = anatomy.layers[index], []
    for projection in layer.projections:
        matrix, _ = linear_map(projection.module, anatomy.d_model)
        for kind in (kind for kind in KINDS if kind in projection.kinds):
            by_head = matrix[projection.rows(kind)].unflatten(0, (-1, anatomy.head_dim))
            found.append(by_head.repeat_interleave(anatomy.n_heads // len(by_head), 0))
    out, _ = linear_map(layer.out, anatomy.n_heads * anatomy.head_dim)
    return [*found, out.T.unflatten(0, (anatomy.n_heads, anatomy.head_dim))]


def _writes(anatomy: Anatomy, call: Call, ids: Tensor, read: int, answers: Tensor) -> Tensor:
    """What every head adds at the read position along the gradient of the answers' logit difference, [L, H]."""
    z: dict[int, Tensor] = {}
    leaf: list[Tensor] = []

    def keep(key: Any, states: Tensor) -> None:
        if isinstance(key, tuple) and key[0] == "z":
            z[key[1]] = at_least_float32(states[0, read])

    def enter(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaf.append(args[0].detach().requires_grad_())
        return (leaf[0], *args[1:])

    with hooked(*source_hooks(anatomy, keep), anatomy.final_norm.register_forward_pre_hook(enter)), torch.enable_grad():
        logits = call(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0, read]
        (gradient,) = torch.autograd.grad(logits[answers[0]] - logits[answers[1]], leaf[0])
    direction = at_least_float32(gradient[0, read])
    found = [by_head_output(layer, z[i], anatomy.n_heads) @ direction for i, layer in enumerate(anatomy.layers)]
    return torch.stack(found).cpu()


def _repeated(anatomy: Anatomy, probes: ProbeSet, repeats: int, seed: int) -> list[Tensor]:
    """Random sequences of the probes' tokens, each repeated once; REPEATED tokens, fewer for a short context."""
    context = getattr(getattr(anatomy.model, "config", None), "max_position_embeddings", None) or 2 * REPEATED
    length = min(REPEATED, context // 2)
    tokens = probes.clean[probes.attention_mask.bool()].unique()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(repeats):
        order = torch.randperm(len(tokens), generator=generator)[:length]  # no token twice, where there are enough
        rows.append(tokens[order].repeat(2))
    return rows


def _kurtosis(values: Tensor) -> Tensor:
    """Excess kurtosis over the last axis; NaN where all values are equal."""
    centred = values - values.mean(-1, keepdim=True)
    variance = centred.square().mean(-1)
    return centred.pow(4).mean(-1) / variance.square() - 3.0


def _mean(found: list[Tensor], nothing: Tensor) -> Tensor:
    """Mean over prompts, without those where it is undefined."""
    return torch.stack([own.float() for own in found]).nanmean(0) if found else nothing


def _shape(anatomy: Anatomy) -> tuple[int, ...]:
    return anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads, anatomy.head_dim, anatomy.d_model


def _number(value: Tensor) -> float | None:
    return float(value) if torch.isfinite(value) else None
