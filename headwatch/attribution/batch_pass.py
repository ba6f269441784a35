"""The pass over one batch of pairs: the prefix, both endpoints, and the points between them forward and backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.batching import Batch
from headwatch.attribution.edge_blocks import EdgeBlocks
from headwatch.attribution.edges import EdgeCollector
from headwatch.attribution.endpoints import EndpointDifferences, EndpointRecorder, RunsOf, interpolated, rows_of
from headwatch.attribution.metrics import Metric, Reads, logit_diff
from headwatch.attribution.model_runs import Cache, prefix_cache, query_head_copies, run
from headwatch.attribution.operations import PLAIN, Operations
from headwatch.attribution.path import ENDPOINTS, Endpoint, Path
from headwatch.attribution.run_layout import MaskRecorder, Masks, RunLayout, should_pack
from headwatch.attribution.skipped_work import OutputMatrix
from headwatch.attribution.stream_check import RoundingRecorder
from headwatch.attribution.tensor_pool import TensorPool
from headwatch.attribution.user_hooks import HookCheck
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call
from headwatch.model.hooks import hooked
from headwatch.model.linear_map import compute_type
from headwatch.model.parts import Layer, Norm
from headwatch.model.precision import at_least_float32
from headwatch.model.whole_weights import readable


@dataclass(frozen=True)
class BatchScores:
    """Scores of one batch, means over the points of the path.

    Attributes:
        heads: head scores, [B, L, H].
        input: score of the token embeddings, [B].
        edges: edge scores, [B, S, R], or None.
        clean_logits, corrupted_logits: logits at the read positions, [B, P, V].
        stream: what the stream check needs (stream_check.py), in a pass's first batch: both endpoints, and the standard
            deviation of the stream's rounding, [B, T - C, M].
    """

    heads: Tensor
    input: Tensor
    edges: Tensor | None
    clean_logits: Tensor
    corrupted_logits: Tensor
    stream: tuple[EndpointDifferences, Tensor] | None = None


class BatchPass:
    """One batch of pairs, from the prefix to the scores.

    Args:
        anatomy: the model.
        call: its forward pass.
        batch: the pairs.
        metric: what is differentiated.
        path: the points at which gradients are taken.
        points_at_once: points per forward and backward pass.
        pool: allocates the tensors of edges.
        blocks: the targets of edges by block; None scores heads only.
        first: whether this is a pass's first batch: also measure the stream's rounding (stream_check.py), and check for
            hooks that change values (user_hooks.py).
        at_peak: called between each forward and backward pass, where most memory is in use.
        operations: the plain operations, or the fused ones.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        call: Call,
        batch: Batch,
        metric: Metric,
        path: Path,
        points_at_once: int,
        pool: TensorPool,
        blocks: EdgeBlocks | None,
        first: bool = False,
        at_peak: Callable[[], None] | None = None,
        operations: Operations = PLAIN,
    ) -> None:
        self.anatomy, self.call, self.batch = anatomy, call, batch
        self.metric, self.path, self.points_at_once = metric, path, points_at_once
        self.output = OutputMatrix(anatomy)
        self.operations = operations
        self.recorder = EndpointRecorder(anatomy, operations, mlp=first or blocks is not None)
        self.rounding = RoundingRecorder(anatomy, operations) if first else None
        self.user_hooks = HookCheck(anatomy) if first else None
        self.at_peak = at_peak
        self.differences: EndpointDifferences | None = None
        self.masks: Masks | None = None
        self.edges = None if blocks is None else EdgeCollector(anatomy, batch.size, blocks, pool, operations)

    def run(self) -> BatchScores:
        """Run the prefix, the endpoints and the points, no run twice."""
        with self.operations.model_parts(self.anatomy.model):
            return self._run()

    def _run(self) -> BatchScores:
        with self.output.nothing():
            cache = prefix_cache(self.call, self.anatomy, self.batch)
        self._run_endpoints(cache)
        self._allocate()
        for start in range(0, len(self.path.points), self.points_at_once):
            self._run_points(cache, self.path.points[start : start + self.points_at_once])
        assert self.differences is not None
        for index, summed in self.at_post_norm.items():
            layer, z = self.anatomy.layers[index], self.differences.z[index]
            assert layer.attn_post_norm is not None
            self.heads[:, index] = _post_norm_heads(layer, layer.attn_post_norm, summed, z, self.anatomy.n_heads)
        m = self.path.steps
        return BatchScores(
            heads=self.heads / m,
            input=self.input / m,
            edges=None if self.edges is None else self.edges.close().div_(m),
            clean_logits=self.differences.clean_logits,
            corrupted_logits=self.differences.corrupted_logits,
            stream=None if self.rounding is None else (self.differences, self.rounding.deviation()),
        )

    def _allocate(self) -> None:
        """Zeros for the sums over points."""
        weights = next(self.anatomy.model.parameters())
        dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
        pairs, length = self.batch.size, self.batch.clean.shape[1] - self.batch.cut

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(pairs, *shape, dtype=dtype, device=self.batch.clean.device)

        self.heads, self.input = zeros(self.anatomy.n_layers, self.anatomy.n_heads), zeros()
        self.at_post_norm = {
            index: zeros(length, self.anatomy.d_model)
            for index, layer in enumerate(self.anatomy.layers)
            if layer.attn_post_norm is not None
        }

    @torch.no_grad()
    def _run_endpoints(self, cache: Cache | None) -> None:
        """Run the endpoints that are not among the first points, in one forward pass without gradients."""
        self.shared = self.path.endpoints[: self.points_at_once]  # both are needed before the first backward pass
        endpoints = [endpoint for endpoint in ENDPOINTS if endpoint not in self.shared]
        if not endpoints:
            return
        runs = {endpoint: place for place, endpoint in enumerate(endpoints)}
        layout = RunLayout(self.batch.size, len(endpoints))
        ids = layout.join(torch.stack([self._ids(endpoint) for endpoint in endpoints]))
        masks = MaskRecorder(self.anatomy, self.batch.size)
        checks = [] if self.user_hooks is None else self.user_hooks.hooks()
        with hooked(*checks, *self._endpoint_hooks(layout, runs), *masks.hooks()), self.output.whole():
            logits = run(self.call, self.anatomy, self.batch, ids, cache, layout, self.operations)
        self.recorder.record_logits(runs, logits)
        self.masks = masks.masks()
        if not self.shared:
            self._set_differences()

    def _endpoint_hooks(self, layout: RunLayout, runs: RunsOf) -> list[RemovableHandle]:
        handles = self.recorder.hooks(layout, runs)
        return handles if self.rounding is None else handles + self.rounding.hooks(layout, runs)

    def _set_differences(self) -> None:
        self.differences = self.recorder.differences()
        if self.edges is not None:
            self.edges.set_sources(self.differences)

    def _run_points(self, cache: Cache | None, alphas: list[float]) -> None:
        """Run some points of the path: one forward and one backward pass."""
        shared = self.shared if self.differences is None else ()  # the first points are these endpoints' runs
        runs: RunsOf = {endpoint: place for place, endpoint in enumerate(shared)}
        self.layout = self._layout_of(len(alphas))
        leaf: list[Tensor] = []

        def enter(module: Any, args: Any, output: Tensor) -> Tensor:
            embeddings = {**self.recorder.embeddings, **rows_of(output, self.layout, runs)}
            points = interpolated(embeddings["clean"], embeddings["corrupted"], alphas)
            leaf.append(self.layout.join(points).detach().requires_grad_())
            return leaf[0]

        handles = self._endpoint_hooks(self.layout, runs) if runs else []
        handles.append(self.anatomy.embedding.register_forward_hook(enter))
        handles += self._head_hooks()
        others: list[Endpoint] = ["clean"] * (len(alphas) - len(shared))  # their embeddings are replaced
        ids = self.layout.join(torch.stack([self._ids(endpoint) for endpoint in [*shared, *others]]))
        reads, answers_only = self.batch.reads, False
        with hooked(*handles):
            if self.metric is logit_diff and not shared:
                with self.output.answers(reads.answers) as answers_only:
                    logits = self._forward(ids, cache)
            else:
                with self.output.whole():
                    logits = self._forward(ids, cache)
            if shared:
                self.recorder.record_logits(runs, logits)
                self._set_differences()
            assert self.differences is not None
            clean = self.differences.clean_logits
            if answers_only:
                places = torch.arange(2, device=ids.device).expand_as(reads.answers)
                reads, clean = Reads(places, reads.targets, reads.present), clean[..., :2]
            repeats = len(alphas)
            values = self.metric(
                at_least_float32(logits.flatten(0, 1)), clean.repeat(repeats, 1, 1), reads.repeat(repeats)
            )
            if self.at_peak is not None:
                self.at_peak()
            (gradient,) = torch.autograd.grad(values.sum(), leaf[0])
        if self.edges is not None:
            self.edges.finish()
        at_input = at_least_float32(self.layout.by_run(gradient)) * self.differences.embedding
        self.input += at_input.sum((0, 2, 3))

    def _layout_of(self, runs: int) -> RunLayout:
        prefix, length = self.batch.cut, self.batch.clean.shape[1] - self.batch.cut
        return RunLayout(self.batch.size, runs, self.masks if should_pack(prefix, length, runs) else None)

    def _ids(self, endpoint: Endpoint) -> Tensor:
        return (self.batch.clean if endpoint == "clean" else self.batch.corrupted)[:, self.batch.cut :]

    def _forward(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """Logits of every point at the read positions, with the hooks of all targets."""
        inputs = self.call, self.anatomy, self.batch, ids, cache, self.layout, self.operations
        if self.edges is None:
            return run(*inputs)
        with query_head_copies(self.anatomy), hooked(*self.edges.hooks(self.layout)):
            # Module hooks end with the forward pass; the tensor hooks that they registered remain.
            return run(*inputs)

    def _head_hooks(self) -> list[RemovableHandle]:
        handles = []
        for index, layer in enumerate(self.anatomy.layers):
            if layer.whole:
                continue
            if layer.attn_post_norm is None:
                handles.append(layer.out.register_forward_pre_hook(self._at_z(index)))
            else:
                handles.append(layer.attn_post_norm.module.register_forward_hook(self._at_post_norm(index)))
        return handles

    def _at_z(self, index: int) -> Any:
        """Add the sum over (T, D) of dz * dL/dz to one layer's head scores [B, H], for every point of the path."""

        def on_gradient(grad: Tensor) -> None:
            assert self.differences is not None
            with torch.no_grad():
                gradients, difference = self.layout.by_run(grad), self.differences.z[index]
                self.operations.add_head_scores(gradients, difference, self.heads[:, index])

        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            args[0].register_hook(on_gradient)

        return hook

    def _at_post_norm(self, index: int) -> Any:
        """Add the gradient at one post-norm's output [B, T, M], for every point of the path."""
        summed = self.at_post_norm[index]

        def on_gradient(grad: Tensor) -> None:
            with torch.no_grad():
                summed.add_(self.layout.by_run(grad).sum(0, dtype=summed.dtype))

        def hook(module: Any, args: Any, output: Tensor) -> None:
            output.register_hook(on_gradient)

        return hook


def _post_norm_heads(layer: Layer, norm: Norm, gradient: Tensor, difference: Tensor, n_heads: int) -> Tensor:
    """Head scores of a layer with a norm after o_proj: delta (r z_h) . W_O,h^T (w * dL/d(norm's output)).

    Each run's r is part of the head's output; the gradient does not pass through the norm. Autograd computes the
    product with W_O^T, so o_proj may be any kind of module.

    Args:
        layer: the layer.
        norm: its norm after o_proj.
        gradient: dL/d(norm's output), summed over points, [B, T, M].
        difference: delta (r z), [B, T, H D].
        n_heads: H.

    Returns:
        [B, H].
    """
    with readable(layer.out):
        dtype, _ = compute_type(layer.out)
        z = torch.zeros_like(difference, dtype=dtype, requires_grad=True)
        out = layer.out.forward(z)
        (back,) = torch.autograd.grad(out, z, (gradient * norm.weight).to(out.dtype))
    return (at_least_float32(back) * difference).unflatten(-1, (n_heads, -1)).sum((1, 3))
