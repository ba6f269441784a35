"""The pass over one batch of pairs: the prefix once, both ends, then the points between them, forward and backward."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.batching import Batch
from headwatch.attribution.buffers import Buffers
from headwatch.attribution.edges import EdgeCollector
from headwatch.attribution.endpoints import Endpoints, EndRecorder, interpolated
from headwatch.attribution.metrics import Metric, Reads, clean_reference, logit_diff
from headwatch.attribution.model_runs import Cache, prefix_cache, query_head_copies, run
from headwatch.attribution.path import ENDS, End, Path
from headwatch.attribution.run_layout import Arrangement, MaskRecorder, Masks, lie_beside
from headwatch.attribution.skipped_work import OutputMatrix
from headwatch.model.anatomy import Anatomy, Layer, Norm, compute_type
from headwatch.model.forward import Call, wide
from headwatch.model.hooks import hooked


@dataclass(frozen=True)
class BatchScores:
    """What one batch gives, means over the points of the path.

    Attributes:
        heads: head scores, [B, L, H].
        input: the same sum for the token embeddings, [B].
        edges: edge scores, [B, S, R], or None.
        ends: what both ends left behind.
        reference: the clean logits as the metric sees them, [B, P, V].
    """

    heads: Tensor
    input: Tensor
    edges: Tensor | None
    ends: Endpoints
    reference: Tensor


class BatchPass:
    """One batch of pairs, from the prefix to the scores.

    Args:
        anatomy: the model.
        call: its forward pass.
        batch: the pairs.
        metric: what is read.
        path: the points whose gradients are wanted.
        points_at_once: how many of them share a forward and a backward pass.
        buffers: where the arrays of edges come from; None scores heads alone.
        measure_rounding: see `EndRecorder`.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        call: Call,
        batch: Batch,
        metric: Metric,
        path: Path,
        points_at_once: int,
        buffers: Buffers | None,
        measure_rounding: bool = False,
    ) -> None:
        self.anatomy, self.call, self.batch = anatomy, call, batch
        self.metric, self.path, self.points_at_once = metric, path, points_at_once
        self.output = OutputMatrix(anatomy)
        self.recorder = EndRecorder(anatomy, measure_rounding)
        self.ends: Endpoints | None = None
        self.masks: Masks | None = None
        self.edges = None if buffers is None else EdgeCollector(anatomy, batch.size, buffers)

    def run(self) -> BatchScores:
        """Everything, in the order in which no run is done twice."""
        with self.output.nothing():
            cache = prefix_cache(self.call, self.anatomy, self.batch)
        self._ends_alone(cache)
        first = next(iter(self.recorder.embeddings.values()))
        device, dtype, shape = first.device, wide(first[:0]).dtype, first.shape
        self.heads = torch.zeros(len(first), self.anatomy.n_layers, self.anatomy.n_heads, dtype=dtype, device=device)
        self.input = torch.zeros(len(first), dtype=dtype, device=device)
        self.at_post_norm = {
            index: torch.zeros(shape, dtype=dtype, device=device)
            for index, layer in enumerate(self.anatomy.layers)
            if layer.attn_post_norm is not None
        }
        for start in range(0, len(self.path.points), self.points_at_once):
            self._points(cache, self.path.points[start : start + self.points_at_once])
        assert self.ends is not None
        for index, summed in self.at_post_norm.items():
            layer, z = self.anatomy.layers[index], self.ends.z[index]
            assert layer.attn_post_norm is not None
            self.heads[:, index] = _post_norm_heads(layer, layer.attn_post_norm, summed, z, self.anatomy.n_heads)
        m = self.path.steps
        return BatchScores(
            heads=self.heads / m,
            input=self.input / m,
            edges=None if self.edges is None else self.edges.close().div_(m),
            ends=self.ends,
            reference=clean_reference(self.ends.clean_logits),
        )

    @torch.no_grad()
    def _ends_alone(self, cache: Cache | None) -> None:
        """The ends that are no point of the path, in one run without gradients."""
        ends = [end for end in ENDS if end != self.path.end]
        runs = {end: place for place, end in enumerate(ends)}
        arrangement = Arrangement(self.batch.size, len(ends))
        ids = arrangement.join(torch.stack([self._ids(end) for end in ends]))
        masks = MaskRecorder(self.anatomy, self.batch.size)
        with hooked(*self.recorder.hooks(arrangement, runs), *masks.hooks()), self.output.whole():
            logits = run(self.call, self.anatomy, self.batch, ids, cache, arrangement)
        self.recorder.take_logits(runs, logits)
        self.masks = masks.masks()
        if self.path.end is None:
            self._take_ends()

    def _take_ends(self) -> None:
        self.ends = self.recorder.ends()
        if self.edges is not None:
            self.edges.take(self.ends)

    def _points(self, cache: Cache | None, alphas: list[float]) -> None:
        """Some points of the path: one forward and one backward pass."""
        shared = self.path.end if self.ends is None else None  # this run holds that end: it is its first point
        runs: dict[End, int] = {} if shared is None else {shared: 0}
        end = self.path.end or "clean"
        self.arrangement = self._arrange(len(alphas))
        leaf: list[Tensor] = []

        def enter(module: Any, args: Any, output: Tensor) -> Tensor:
            embeddings = {**self.recorder.embeddings, end: self.arrangement.by_run(output.detach())[0]}
            points = interpolated(embeddings["clean"], embeddings["corrupted"], alphas)
            leaf.append(self.arrangement.join(points).detach().requires_grad_())
            return leaf[0]

        handles = self.recorder.hooks(self.arrangement, runs) if runs else []
        handles.append(self.anatomy.embedding.register_forward_hook(enter))
        handles += self._head_hooks()
        ids = self.arrangement.repeat(self._ids(end))
        reads, narrow = self.batch.reads, False
        with hooked(*handles):
            if self.metric is logit_diff and shared is None:
                with self.output.answers(reads.answers) as narrow:
                    logits = self._forward(ids, cache)
            else:
                with self.output.whole():
                    logits = self._forward(ids, cache)
            if shared is not None:
                self.recorder.take_logits(runs, logits)
                self._take_ends()
            assert self.ends is not None
            reference = clean_reference(self.ends.clean_logits)
            if narrow:
                places = torch.tensor([0, 1], device=ids.device).expand_as(reads.answers)
                reads, reference = Reads(places, reads.targets, reads.present), reference[..., :2]
            values = self.metric(
                wide(logits.flatten(0, 1)), reference.repeat(len(alphas), 1, 1), reads.repeat(len(alphas))
            )
            (gradient,) = torch.autograd.grad(values.sum(), leaf[0])
        if self.edges is not None:
            self.edges.finish()
        self.input += (wide(self.arrangement.by_run(gradient)) * self.ends.embedding).sum((0, 2, 3))

    def _arrange(self, runs: int) -> Arrangement:
        prefix, length = self.batch.cut, self.batch.clean.shape[1] - self.batch.cut
        return Arrangement(self.batch.size, runs, self.masks if lie_beside(prefix, length, runs) else None)

    def _ids(self, end: End) -> Tensor:
        return (self.batch.clean if end == "clean" else self.batch.corrupted)[:, self.batch.cut :]

    def _forward(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """Every point's logits at the read positions, with every target's hooks on."""
        where = self.call, self.anatomy, self.batch, ids, cache, self.arrangement
        if self.edges is None:
            return run(*where)
        with query_head_copies(self.anatomy), hooked(*self.edges.start(self.arrangement)):
            # The hooks may go once the graph is there: what they asked autograd for stays asked.
            return run(*where, heads_per_kv=self.anatomy.heads_per_kv)

    def _head_hooks(self) -> list[RemovableHandle]:
        handles = []
        for index, layer in enumerate(self.anatomy.layers):
            if layer.attn_post_norm is None:
                handles.append(layer.out.register_forward_pre_hook(self._at_z(index)))
            else:
                handles.append(layer.attn_post_norm.module.register_forward_hook(self._at_post_norm(index)))
        return handles

    def _at_z(self, index: int) -> Any:
        """Add sum over (T, D) of dz * dL/dz to one layer's head scores [B, H], for every point of the path."""

        def on_gradient(grad: Tensor) -> None:
            assert self.ends is not None
            with torch.no_grad():
                scores = self.heads[:, index]
                summed = wide(self.arrangement.by_run(grad).sum(0, dtype=scores.dtype))
                scores.add_((summed * self.ends.z[index]).unflatten(-1, (scores.shape[1], -1)).sum((1, 3)))

        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            args[0].register_hook(on_gradient)

        return hook

    def _at_post_norm(self, index: int) -> Any:
        """Add the gradient at one post-norm's output to [B, T, M], for every point of the path."""
        summed = self.at_post_norm[index]

        def on_gradient(grad: Tensor) -> None:
            with torch.no_grad():
                summed.add_(self.arrangement.by_run(grad).sum(0, dtype=summed.dtype))

        def hook(module: Any, args: Any, output: Tensor) -> None:
            output.register_hook(on_gradient)

        return hook


def _post_norm_heads(layer: Layer, norm: Norm, gradient: Tensor, difference: Tensor, n_heads: int) -> Tensor:
    """Head scores [B, H] of a layer with a norm behind o_proj: delta (r z_h) . W_O,h^T (w * dL/d(norm's output)).

    The run's own r belongs to the head's output, and what the norm does to its gradient does not. Autograd is asked
    for the product with W_O^T, whatever kind of module o_proj is.
    """
    dtype, _ = compute_type(layer.out)
    z = torch.zeros_like(difference, dtype=dtype, requires_grad=True)
    out = layer.out.forward(z)
    (back,) = torch.autograd.grad(out, z, (gradient * norm.weight).to(out.dtype))
    return (wide(back) * difference).unflatten(-1, (n_heads, -1)).sum((1, 3))
