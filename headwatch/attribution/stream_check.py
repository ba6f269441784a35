"""Stream check: do the outputs of a model's sources add up to its residual stream, up to rounding?

The scores assume that the residual stream is the sum of its sources, x_L = x_0 + sum_l (a_l + m_l). The check compares
both sides, as differences between the corrupted and the clean run. In 16 bits they differ by rounding, which grows with
the size of the stream and not of the differences, so a fixed tolerance would either refuse pretrained models or accept
changed ones. The rounding is therefore estimated in the same pass:

    A value v of a dtype with unit roundoff u = eps / 2 is stored with an error of at most u |v|; the standard deviation
    is taken to be that bound. Per layer, two additions (attention's and the MLP's) round the stream, each by about u
    times the layer's input; the outputs a_l and m_l, which are added to it, are rounded as well, each by u times its
    own size (in its own dtype: under autocast a 16-bit output enters a float32 stream). Errors of different operations
    and of the two runs are taken as independent, so variances add:

        variance = sum over runs of  sum_l 2 (u x_l)^2 + (u a_l)^2 + (u m_l)^2  + 2 (u x_L)^2   for every entry.

An entry may be off by four standard deviations; pretrained models stay below 2 in bfloat16 and float16. What exceeds
this is compared with the largest source: a source that is missing, scaled or counted twice exceeds it by far.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.endpoints import EndpointDifferences, RunsOf, first_output
from headwatch.attribution.operations import PLAIN, Operations
from headwatch.attribution.run_layout import RunLayout
from headwatch.errors import NonFiniteError, UnsupportedModelError
from headwatch.model.anatomy import Anatomy
from headwatch.model.linear_map import compute_type
from headwatch.model.parts import Layer
from headwatch.model.precision import at_least_float32
from headwatch.model.whole_weights import readable

# Largest accepted error beyond rounding, over the largest entry of a source, by dtype of the weights. Norms of float64
# models compute in float32; quantised layers (int8) may also round their input (LLM.int8).
_LIMIT = defaultdict(lambda: 0.02, {torch.float64: 1e-4, torch.int8: 0.2})
_STANDARD_DEVIATIONS = 4.0
_COARSE = 1e-4  # rounding above this part of the stream's difference: 16-bit arithmetic


class RoundingRecorder:
    """Accumulates the variance of the residual stream's rounding error: see the top of this file.

    A layer's input and the output of its attention are kept until its MLP has run, and all three are added at once. If
    the model adds to one of them in place in the meantime, its variance is estimated from the sum, slightly too large.

    Args:
        anatomy: the model.
        operations: the plain operations, or the fused ones.
    """

    def __init__(self, anatomy: Anatomy, operations: Operations = PLAIN) -> None:
        self._anatomy, self._operations = anatomy, operations
        self._variances: dict[int, Tensor] = {}  # by number of runs in a forward pass, each [runs, B, T - C, M]

    def hooks(self, layout: RunLayout, runs: RunsOf) -> list[RemovableHandle]:
        """Register hooks for one forward pass; `runs` maps each endpoint to the index of its run."""
        kept: list[Tensor] = []
        scales: list[float] = []

        def keep(states: Tensor, times: float, add: bool) -> None:
            scales.append((torch.finfo(states.dtype).eps / 2) ** 2 * times)
            kept.append(layout.by_run(states.detach())[: len(runs)])  # the endpoints' runs come first
            if not add:
                return
            if len(runs) not in self._variances:
                dtype = torch.promote_types(kept[0].dtype, torch.float32)
                self._variances[len(runs)] = torch.zeros_like(kept[0], dtype=dtype)
            self._operations.add_squares(kept, scales, self._variances[len(runs)])
            kept.clear()
            scales.clear()

        def of_stream(add: bool) -> Any:
            return lambda module, args: keep(args[0], 2.0, add)

        def of_output(multiplier: float, add: bool) -> Any:
            return lambda module, args, output: keep(first_output(output, args), multiplier**2, add)

        handles = [self._anatomy.final_norm.register_forward_pre_hook(of_stream(add=True))]
        for decoder_layer, layer in zip(self._anatomy.decoder_layers, self._anatomy.layers, strict=True):
            attention_adds = layer.out if layer.attn_post_norm is None else layer.attn_post_norm.module
            handles.append(decoder_layer.register_forward_pre_hook(of_stream(add=layer.whole)))
            if layer.whole:  # what it adds is the difference of its output and its input
                continue
            handles.append(attention_adds.register_forward_hook(of_output(layer.multiplier, add=False)))
            of_mlp = of_output(layer.multiplier, add=True)
            handles += [module.register_forward_hook(of_mlp) for module in layer.mlp_adds]
        return handles

    def deviation(self) -> Tensor:
        """Standard deviation of the rounding error of every entry of the stream's difference, [B, T - C, M]."""
        return torch.stack([own.sum(0) for own in self._variances.values()]).sum(0).sqrt()


@torch.no_grad()
def check_stream(anatomy: Anatomy, differences: EndpointDifferences, rounding: Tensor) -> float:
    """Refuse a model whose sources do not add up to its residual stream.

    Args:
        anatomy: the model.
        differences: both endpoints.
        rounding: standard deviation of rounding (`RoundingRecorder.deviation`).

    Returns:
        The largest error over the largest entry of the stream's difference (`Checks.stream`); in 16 bits, what exceeds
        rounding.

    Raises:
        NonFiniteError: NaN or infinity in the residual stream.
        UnsupportedModelError: an error far beyond rounding.
    """
    error, beyond_rounding = _stream_error(anatomy, differences, rounding)
    if math.isnan(beyond_rounding):
        raise NonFiniteError(
            "model: NaN or infinite values in the residual stream of a probe prompt, so no score is defined; the "
            "weights have diverged, or the dtype overflows"
        )
    quantised = any(not p.is_floating_point() for p in anatomy.first_with_heads.out.parameters())
    if beyond_rounding > _LIMIT[torch.int8 if quantised else next(anatomy.model.parameters()).dtype]:
        raise UnsupportedModelError(
            "model: the outputs of its attention heads and MLPs do not add up to its residual stream (off by "
            f"{beyond_rounding:.0%} of the largest of them), so their scores would be meaningless; its type is "
            "supported, but its layers have been changed, or another module writes to the stream"
        )
    return error


def _stream_error(anatomy: Anatomy, differences: EndpointDifferences, rounding: Tensor) -> tuple[float, float]:
    """Error of the sum of the sources' differences as the difference of the final residual vector.

    Returns:
        The largest error over the largest entry of that difference, beyond rounding if rounding is coarse; and the
        largest error beyond rounding, over the largest entry of any source, NaN if a value is not finite.
    """
    total, sources = differences.input, _sources(anatomy, differences)
    for stacked in sources:
        total = total + stacked.sum(0, dtype=total.dtype)
    errors = (total - differences.stream).abs()
    excesses = (errors - _STANDARD_DEVIATIONS * rounding).max()
    largest_source = _largest(differences.input, *sources)
    found = [_largest(differences.stream), errors.max(), excesses, rounding.max(), largest_source]
    of_stream, error, excess, coarse, of_sources = torch.stack(found).tolist()
    if not math.isfinite(error) or not math.isfinite(of_stream):
        return error, math.nan
    if coarse > _COARSE * of_stream:
        error = max(0.0, excess)
    return (error / of_stream if of_stream else error), excess / max(of_stream, of_sources, 1e-30)


def _sources(anatomy: Anatomy, differences: EndpointDifferences) -> list[Tensor]:
    """What every attention block and every MLP adds to the stream, as differences, stacked by dtype: [n, B, T - C, M].

    One sum and one maximum of a stack take the place of two per source, and one cast of all z that of one per layer.
    """
    by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    z: dict[torch.dtype, list[Tensor]] = {}  # of all layers, in the dtype of an o_proj
    for index, layer in enumerate(anatomy.layers):
        mlp = differences.mlp[index]
        by_dtype[mlp.dtype].append(mlp)
        if layer.whole:
            continue
        with readable(layer.out):
            dtype, _ = compute_type(layer.out)
            if dtype not in z:
                needs_cast = any(own.dtype != dtype for own in differences.z)
                z[dtype] = list(torch.stack(differences.z).to(dtype)) if needs_cast else differences.z
            out = _attention_output(layer, z[dtype][index], differences.r[index])
        by_dtype[out.dtype].append(out)
    return [torch.stack(states) for states in by_dtype.values()]


def _attention_output(layer: Layer, z: Tensor, r: Tensor | None) -> Tensor:
    """The difference of what a layer's attention adds to the stream, [B, T - C, M].

    Args:
        layer: the layer.
        z: the difference of o_proj's input, in the dtype of o_proj, [B, T - C, H * D]; see `EndpointDifferences`.
        r: the difference of a following norm's 1 / rms, [B, T - C, 1]; None without such a norm.
    """
    bias = getattr(layer.out, "bias", None)  # not part of any head
    out = layer.out.forward(z)
    if bias is not None:
        out = at_least_float32(out)
        out = out - bias if r is None else out + (r - 1) * at_least_float32(bias)
    if layer.attn_post_norm is not None or layer.multiplier != 1.0:
        out = at_least_float32(out)
    return layer.scaled(out)


def _largest(*states: Tensor) -> Tensor:
    """The largest absolute value of all states, in float32 or float64; NaN if there is one."""
    extremes = [value for own in states for value in torch.aminmax(own)]  # on CPUs a norm takes 20 times as long
    return at_least_float32(torch.stack(extremes).abs().max())
