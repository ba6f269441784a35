"""patch_heads: exact activation patching of heads, the quantity that head scores estimate.

A head's output is z_h W_O,h. In one run, z_h is taken from the other run of the same pair, at every position:
  noising    the clean run with the head's corrupted output:  metric(patched) - metric(clean)
  denoising  the corrupted run with the head's clean output:  metric(corrupted) - metric(patched)
Both are (metric if this head were corrupted) - (metric as it is), in the context of the clean and of the corrupted
prompt. Tokens before the first difference run once; layers before the patched head are taken from the unpatched run.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.attribution.batch_size import GIB, default_budget_gb
from headwatch.attribution.batching import Batch, batches, spans
from headwatch.attribution.metrics import Metric, Reads, logit_diff, resolve_metric
from headwatch.attribution.model_runs import Cache, prefix_cache, run
from headwatch.attribution.path import ENDPOINTS, Endpoint
from headwatch.attribution.run_layout import MaskRecorder, Masks, RunLayout, should_pack
from headwatch.attribution.scores import Readings
from headwatch.attribution.scoring import require_answers
from headwatch.attribution.skipped_work import OutputMatrix
from headwatch.errors import UserError
from headwatch.model.anatomy import Anatomy
from headwatch.model.display import STRONGEST, data_frame
from headwatch.model.forward import Call, callers_autocast
from headwatch.model.head_names import Head, head_name, parse_heads
from headwatch.model.hooks import hooked, overridden
from headwatch.model.precision import at_least_float32
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet

DIRECTIONS = ("noising", "denoising")
RECEIVER: dict[str, Endpoint] = {"noising": "clean", "denoising": "corrupted"}


@dataclass(frozen=True, repr=False)
class HeadPatches:
    """Exact effects of K heads on N pairs: (metric if the head were corrupted) - (metric as it is).

    Attributes:
        heads: (layer, head) of each column.
        noising: in the clean run, [N, K]; None if not asked for. float32, or float64 for a float64 model.
        denoising: in the corrupted run, [N, K]; None if not asked for.
        readings: the metric of both unpatched runs of each pair.
        families: family of each pair.
        metric: its name.
        seconds: duration.
    """

    heads: tuple[Head, ...]
    noising: Tensor | None
    denoising: Tensor | None
    readings: Readings
    families: tuple[str, ...]
    metric: str
    seconds: float = 0.0

    @property
    def per_pair(self) -> Tensor:
        """The effects, [N, K]: the mean of both directions, or the one that was asked for."""
        found = [values for values in (self.noising, self.denoising) if values is not None]
        return torch.stack(found).mean(0)

    def __repr__(self) -> str:
        families = ", ".join(dict.fromkeys(self.families))
        effects = self.per_pair.mean(0).tolist()
        order = sorted(range(len(self.heads)), key=lambda k: -abs(effects[k]))[:STRONGEST]
        found = ", ".join(f"{head_name(*self.heads[k])} {effects[k]:+.3g}" for k in order)
        shape = f"{len(self.heads)} heads on {len(self.families)} pairs of {families}"
        return f"HeadPatches({shape}, {self.metric}; strongest: {found})"

    def to_pandas(self) -> Any:
        """A DataFrame of one row per head: head, layer, index, and the mean of each direction that was asked for.

        Raises:
            UserError: pandas is not installed.
        """
        directions = {name: getattr(self, name) for name in DIRECTIONS}
        return data_frame(
            {
                "head": [head_name(*head) for head in self.heads],
                "layer": [layer for layer, _ in self.heads],
                "index": [index for _, index in self.heads],
                **{name: each.mean(0).tolist() for name, each in directions.items() if each is not None},
            }
        )


def patch_heads(
    model: nn.Module,
    probes: ProbeSet,
    heads: Iterable[str | Iterable[int]] | None = None,
    metric: str | Metric = "logit_diff",
    direction: str = "both",
    *,
    batch_size: int | None = None,
    memory_budget_gb: float | None = None,
    optimizer: object | None = None,
    progress: Callable[[int], object] | None = None,
) -> HeadPatches:
    """Patch heads one at a time on every pair, exactly.

    Args:
        model: a Hugging Face causal language model, plain or wrapped by PEFT; it is left unchanged.
        probes: the pairs.
        heads: the heads, as "L17.H3" or (17, 3); None patches all of them.
        metric: "logit_diff", "kl", "nll", or a callable.
        direction: "noising", "denoising" or "both".
        batch_size: pairs per batch; None derives it from the memory budget.
        memory_budget_gb: estimated size of one batch's activations, in GiB; see `score_heads`.
        optimizer: the trainer's optimizer; required only under ZeRO-3.
        progress: called with the number of effects (a head on a pair, in one direction) since the last call.

    Returns:
        Effects of K heads on N pairs, [N, K] per direction.

    Raises:
        UserError: invalid input.
        UnsupportedModelError: the model is not supported.

    >>> patch_heads(model, probes, ["L5.H1"]).noising.mean(0)       # doctest: +SKIP
    """
    if direction not in (*DIRECTIONS, "both"):
        raise UserError(f"direction={direction!r} is unknown; use noising, denoising or both")
    anatomy = Anatomy.of(model)
    shape = (anatomy.n_layers, anatomy.n_heads)
    every = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    chosen = every if heads is None else parse_heads(heads, shape)
    name, function = resolve_metric(metric)
    require_answers(name, probes)
    directions = DIRECTIONS if direction == "both" else (direction,)
    began, like = time.perf_counter(), next(model.parameters())
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    readings = Readings(*(torch.zeros(len(probes), dtype=kind) for kind in (dtype, dtype, torch.bool)))
    found = {name: torch.zeros(len(probes), len(chosen), dtype=dtype) for name in directions}
    sizes, reuse = _Sizes.of(anatomy, probes, memory_budget_gb, batch_size), not anatomy.has_whole_layers
    with read_only_pass(model, optimizer), torch.no_grad(), callers_autocast(anatomy.model, like.device) as call:
        for batch in batches(probes, sizes.pairs, like.device, reuse, pad=dtype != torch.float64):
            patching = _Batch(anatomy, call, batch, function, sizes.runs, progress)
            patching.run_endpoints()
            patching.read(readings)
            for name_ in directions:
                found[name_][batch.pairs] = patching.patch(name_, chosen).cpu().to(dtype)
    return HeadPatches(
        heads=tuple(chosen),
        noising=found.get("noising"),
        denoising=found.get("denoising"),
        readings=readings,
        families=probes.families,
        metric=name,
        seconds=time.perf_counter() - began,
    )


class _Batch:
    """One batch of pairs: both endpoints, then one run per head."""

    def __init__(
        self,
        anatomy: Anatomy,
        call: Call,
        batch: Batch,
        metric: Metric,
        runs: int,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.progress = progress
        self.anatomy, self.call, self.batch, self.metric, self.runs = anatomy, call, batch, metric, runs
        self.output = OutputMatrix(anatomy)
        self.cache: Cache | None = None
        self.masks: Masks | None = None
        self.z: list[dict[Endpoint, Tensor]] = [{} for _ in anatomy.layers]  # before o_proj, [B, T - C, H D]
        self.x: list[dict[Endpoint, Tensor]] = [{} for _ in anatomy.layers]  # layers' inputs, [B, T - C, M]
        self.is_tuple = [False] * anatomy.n_layers  # whether a decoder layer returns a tuple
        self.logits: dict[Endpoint, Tensor] = {}

    def run_endpoints(self) -> None:
        """Run the prefix and both endpoints, and keep what patching needs of them."""
        with self.output.nothing():
            self.cache = prefix_cache(self.call, self.anatomy, self.batch)
        layout = RunLayout(self.batch.size, len(ENDPOINTS))
        ids = layout.join(torch.stack([self._ids(endpoint) for endpoint in ENDPOINTS]))
        masks = MaskRecorder(self.anatomy, self.batch.size)

        def keep(store: list[dict[Endpoint, Tensor]], index: int) -> Any:
            def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
                states = args[0] if args else kwargs["hidden_states"]
                store[index].update(zip(ENDPOINTS, layout.by_run(states), strict=True))

            return hook

        def note_kind(index: int) -> Any:
            return lambda module, args, output: self.is_tuple.__setitem__(index, isinstance(output, tuple))

        handles = masks.hooks()
        for index, layer in enumerate(self.anatomy.layers):
            decoder_layer = self.anatomy.decoder_layers[index]
            handles.append(layer.out.register_forward_pre_hook(keep(self.z, index), with_kwargs=True))
            handles.append(decoder_layer.register_forward_pre_hook(keep(self.x, index), with_kwargs=True))
            handles.append(decoder_layer.register_forward_hook(note_kind(index)))
        with hooked(*handles), self.output.whole():
            logits = run(self.call, self.anatomy, self.batch, ids, self.cache, layout)
        self.logits = {name: at_least_float32(own) for name, own in zip(ENDPOINTS, logits, strict=True)}
        self.masks = masks.masks()

    def read(self, readings: Readings) -> None:
        """Store the metric of both unpatched runs."""
        rows, clean = self.batch.pairs, self.logits["clean"]
        for values, endpoint in ((readings.metric_clean, "clean"), (readings.metric_corrupted, "corrupted")):
            values[rows] = self._value(self.logits[endpoint], 1).cpu().to(values.dtype)[0]  # type: ignore[index]
        readings.correct[rows] = self.batch.reads.correct(clean).cpu()

    def patch(self, direction: str, heads: list[Head]) -> Tensor:
        """Effects of these heads, [B, K]."""
        receiver = RECEIVER[direction]
        base = self._value(self.logits[receiver], 1)[0]
        effects = base.new_zeros(self.batch.size, len(heads))
        order = sorted(range(len(heads)), key=lambda column: heads[column])
        for first in range(0, len(order), self.runs):
            columns = order[first : first + self.runs]
            patched = self._patched(receiver, [heads[column] for column in columns])
            effects[:, columns] = (patched - base).T if direction == "noising" else (base - patched).T
            if self.progress is not None:
                self.progress(patched.numel())
        return effects

    def _patched(self, receiver: Endpoint, heads: list[Head]) -> Tensor:
        """The metric of the receiver's run with each of n heads from the other run, [n, B]."""
        donor = ENDPOINTS[1 - ENDPOINTS.index(receiver)]
        prefix, length = self.batch.cut, self.batch.clean.shape[1] - self.batch.cut
        masks = self.masks if should_pack(prefix, length, len(heads)) else None
        layout = RunLayout(self.batch.size, len(heads), masks)
        width = self.anatomy.head_dim

        def replace(index: int) -> Any:
            def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                z = args[0].clone()
                by_run = layout.by_run(z)  # a view
                for number, (layer, head) in enumerate(heads):
                    if layer == index:
                        columns = slice(head * width, (head + 1) * width)
                        by_run[number, ..., columns] = self.z[index][donor][..., columns]
                return (z, *args[1:])

            return hook

        layers = sorted({layer for layer, _ in heads})
        ids = layout.repeat(self._ids(receiver))
        reads = self.batch.reads
        with (
            hooked(*(self.anatomy.layers[i].out.register_forward_pre_hook(replace(i)) for i in layers)),
            self._from_layer(layers[0], receiver, layout),
        ):
            if self.metric is logit_diff:
                with self.output.answers(reads.answers) as answers_only:
                    logits = run(self.call, self.anatomy, self.batch, ids, self.cache, layout)
                return self._value(at_least_float32(logits), len(heads), answers_only)
            with self.output.whole():
                logits = run(self.call, self.anatomy, self.batch, ids, self.cache, layout)
        return self._value(at_least_float32(logits), len(heads))

    @contextmanager
    def _from_layer(self, first: int, receiver: Endpoint, layout: RunLayout) -> Iterator[None]:
        """Skip the layers before the first patched one, whose outputs are those of the unpatched run."""
        if first == 0:
            yield
            return

        def skipped(is_tuple: bool) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                return (hidden_states,) if is_tuple else hidden_states

            return forward

        def enter(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
            states = layout.repeat(self.x[first][receiver])
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        layers = self.anatomy.decoder_layers
        with (
            ExitStack() as stack,
            hooked(layers[first].register_forward_pre_hook(enter, with_kwargs=True)),
        ):
            for index in range(first):
                stack.enter_context(overridden(layers[index], forward=skipped(self.is_tuple[index])))
            yield

    def _value(self, logits: Tensor, runs: int, answers_only: bool = False) -> Tensor:
        """The metric of n runs, [n, B]; logits: [n, B, P, V] or [B, P, V], of both answers alone if `answers_only`."""
        reads, clean = self.batch.reads, self.logits["clean"]
        if answers_only:
            places = torch.tensor([0, 1], device=logits.device).expand_as(reads.answers)
            reads, clean = Reads(places, reads.targets, reads.present), clean[..., :2]
        flat = logits.flatten(0, 1) if logits.dim() == 4 else logits
        return self.metric(flat, clean.repeat(runs, 1, 1), reads.repeat(runs)).unflatten(0, (runs, -1))

    def _ids(self, endpoint: Endpoint) -> Tensor:
        return (self.batch.clean if endpoint == "clean" else self.batch.corrupted)[:, self.batch.cut :]


@dataclass(frozen=True)
class _Sizes:
    """Pairs per batch, and heads per forward pass."""

    pairs: int
    runs: int

    @classmethod
    def of(cls, anatomy: Anatomy, probes: ProbeSet, budget: float | None, batch_size: int | None) -> "_Sizes":
        """Sizes within the memory budget, and within as many tokens per forward pass as still make it faster.

        Estimate per token after the prefix, in floats: 8 M + 3 (width of the MLP) in passing, and L (M + H D) for each
        endpoint, kept; per run: the logits at its read positions, twice; per token of the prefix: its keys and values.
        """
        like = next(anatomy.model.parameters())
        config: Any = anatomy.model.config
        config = config.get_text_config()
        hidden = getattr(config, "intermediate_size", None) or 4 * anatomy.d_model
        every = spans(probes)
        tokens, prefix = max(s.suffix for s in every), max(s.length - s.suffix for s in every)
        width = anatomy.n_heads * anatomy.head_dim
        kept = 2 * tokens * anatomy.n_layers * (anatomy.d_model + width)
        logits = 2 * probes.read_positions.shape[1] * config.vocab_size
        cached = prefix * anatomy.n_layers * 2 * anatomy.n_kv_heads * anatomy.head_dim
        passing = tokens * (8 * anatomy.d_model + 3 * hidden) + logits + cached
        free = (budget or default_budget_gb(anatomy.model)) * GIB / like.element_size()
        at_once = TOKENS_AT_ONCE_CPU if like.device.type == "cpu" else TOKENS_AT_ONCE
        runs = max(2, at_once // tokens)  # of one pair each
        fitting = max(1, int(free // (kept + 2 * passing)))
        pairs = batch_size or max(1, min(len(probes), fitting, runs))
        more = int((free / pairs - kept) // passing)
        return cls(pairs, max(1, min(more, runs // pairs)))


# Tokens after the prefix per forward pass, beyond which a longer one is not faster (dev/log.md).
TOKENS_AT_ONCE_CPU = 1024
TOKENS_AT_ONCE = 16384  # other devices: not measured
