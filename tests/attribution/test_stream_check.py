"""The stream check's sum of the sources against one that adds them one by one in float64."""

import pytest
import torch
from helpers.tiny_models import random_pairs, tiny_model
from torch import Tensor

from headwatch import Anatomy, score_edges, score_heads
from headwatch.attribution.endpoints import EndpointDifferences, EndpointRecorder
from headwatch.attribution.stream_check import check_stream
from headwatch.errors import NonFiniteError
from headwatch.model.parts import Layer

CASES = pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("llama", "float64"),
        ("llama-wide-heads", "float32"),
        ("gpt2", "bfloat16"),  # biases
        ("gemma3", "bfloat16"),  # norms after o_proj
        ("gemma2-biases", "float32"),  # both
        ("granite", "float16"),  # a multiplier
        ("llama", "bfloat16"),
        ("llama", "mixed"),
    ],
)


def model_of(architecture: str, kind: str) -> Anatomy:
    """kind: a dtype, or bfloat16 with the last o_proj in float32."""
    model = tiny_model(architecture, torch.bfloat16 if kind == "mixed" else getattr(torch, kind), "eager")
    anatomy = Anatomy.of(model)
    if kind == "mixed":
        anatomy.layers[-1].out.float()
    return anatomy


def output(layer: Layer, z: Tensor, r: Tensor | None) -> Tensor:
    """The difference of what attention adds, in float64: bias + r W z, times the weight of a norm and a multiplier."""
    weight = next(p for p in layer.out.parameters())
    out = layer.out(z.to(weight.dtype)).double()
    bias = getattr(layer.out, "bias", None)
    if bias is not None:
        out = out - bias.double() + (0 if r is None else r.double() * bias.double())
    if layer.attn_post_norm is not None:
        out = out * layer.attn_post_norm.weight.double()
    return out * layer.multiplier


@torch.no_grad()
def random_differences(anatomy: Anatomy) -> EndpointDifferences:
    """Random sources, and the stream that is their sum."""
    generator = torch.Generator().manual_seed(0)
    like = next(anatomy.model.parameters()).dtype

    def states(width: int) -> Tensor:
        values = torch.randn(2, 3, width, dtype=torch.float64, generator=generator)
        return values if like == torch.float64 else values.float()

    source, width = states(anatomy.d_model), anatomy.n_heads * anatomy.head_dim
    z = [states(width) for _ in anatomy.layers]
    r = [None if layer.attn_post_norm is None else states(1) for layer in anatomy.layers]
    mlp = [states(anatomy.d_model) for _ in anatomy.layers]
    outputs = [output(*each) for each in zip(anatomy.layers, z, r, strict=True)]
    stream = (source.double() + sum(outputs) + sum(own.double() for own in mlp)).to(source.dtype)
    return EndpointDifferences(source, source, z, r, mlp, stream, source, source)


@CASES
def test_the_sum_of_the_sources_is_the_stream(architecture: str, kind: str) -> None:
    anatomy = model_of(architecture, kind)
    differences = random_differences(anatomy)
    rounding = torch.zeros_like(differences.stream)
    limit = 1e-14 if kind == "float64" else 2e-6
    assert check_stream(anatomy, differences, rounding) < limit
    largest = float(differences.stream.abs().max())
    sign = 1 - 2 * int(differences.stream[1, 2, 3] > 0)  # towards 0: the largest entry stays
    differences.stream[1, 2, 3] += sign * 3e-5 * largest
    assert check_stream(anatomy, differences, rounding) == pytest.approx(3e-5, abs=2 * limit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "mixed"])
def test_a_value_that_is_not_finite_is_found_in_every_source(kind: str, value: float) -> None:
    anatomy = model_of("llama", kind)
    for name in ("input", "stream", "z", "mlp"):
        for layer in range(anatomy.n_layers):
            differences = random_differences(anatomy)
            states = getattr(differences, name)
            (states[layer] if isinstance(states, list) else states)[1, 2, 3] = value
            with pytest.raises(NonFiniteError, match="NaN or infinite"):
                check_stream(anatomy, differences, torch.zeros_like(differences.stream))


def test_heads_alone_record_mlps_in_the_first_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later batches are not checked, and nothing else reads them."""
    found: list[EndpointDifferences] = []
    of = EndpointRecorder.differences
    monkeypatch.setattr(EndpointRecorder, "differences", lambda self: found.append(of(self)) or found[-1])
    model, pairs = tiny_model("llama"), random_pairs(4, side="none")
    score_heads(model, pairs, steps=1, batch_size=2)
    n_layers, (first, *later) = Anatomy.of(model).n_layers, [len(each.mlp) for each in found]
    assert later
    assert (first, set(later)) == (n_layers, {0})
    found.clear()
    score_edges(model, pairs, steps=1, batch_size=2)
    assert {len(each.mlp) for each in found} == {n_layers}
