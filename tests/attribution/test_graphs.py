"""Graphs of batches: a recorded batch repeats exactly what the usual way computes, and is dropped when it would not.

On a CPU the graph is one of helpers/cpu_graph.py, which repeats operations at fixed addresses as a CUDA graph does.
"""

import gc
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from accelerate.hooks import attach_align_device_hook
from helpers.cpu_graph import CpuCapture
from helpers.tiny_models import VOCABULARY, random_openers, random_pairs, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn

from headwatch import ProbeSet
from headwatch.attribution.graphs import BatchGraphs, CudaCapture
from headwatch.attribution.scores import EdgeScores, heads_of
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.model.graph_state import graph_state, no_graphs_because, own_python


def equal(found: Any, expected: Any) -> bool:
    """Whether all scores and readings are equal to the bit."""
    one, other = heads_of(found), heads_of(expected)
    same = torch.equal(one.per_pair, other.per_pair) and torch.equal(one.input, other.input)
    same &= torch.equal(one.readings.metric_corrupted, other.readings.metric_corrupted)
    if isinstance(found, EdgeScores) and isinstance(expected, EdgeScores):
        same &= torch.equal(found.per_pair, expected.per_pair)
    return same


def train(model: nn.Module) -> None:
    """Change the weights in place, as an optimizer does."""
    with torch.no_grad():
        for index, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.mul_(1 + 0.01 * (index % 3))


def openers(n: int, prefix: int = 14, suffix: int = 3) -> ProbeSet:
    """Pairs of one shape, so that all batches have one."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(VOCABULARY, (n, prefix + suffix), generator=generator)
    corrupted = clean.clone()
    corrupted[:, prefix:] = (clean[:, prefix:] + 1 + torch.arange(n)[:, None] % 5) % VOCABULARY
    answers = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:2] for _ in range(n)])
    return ProbeSet.from_token_ids(clean, corrupted, answers=answers)


def no_prefix(n: int) -> ProbeSet:
    return openers(n, prefix=0, suffix=8)


PAIRS = {"openers": openers, "no prefix": no_prefix, "padded": random_openers, "padded on both sides": random_pairs}


@pytest.mark.parametrize(("edges", "metric"), [(False, "logit_diff"), (True, "kl")])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_repeated_batch_equals_the_usual_way(kind: str, edges: bool, metric: str) -> None:
    """Over three probes with training between them: every batch but the first of a pass, from its third time on."""
    model, probes, capture = tiny_model("qwen2", torch.float32), PAIRS[kind](8), CpuCapture()
    settings, graphs = ScoringSettings(metric=metric, edges=edges, batch_size=2), BatchGraphs(capture)
    for _ in range(3):
        assert equal(score_pairs(model, probes, settings, graphs=graphs), score_pairs(model, probes, settings))
        train(model)
    assert graphs.failure is None
    assert len(graphs) == len(capture.graphs) >= 1
    assert graphs.repetitions >= (3 if kind.startswith("padded") else 5)  # padded: every batch has a shape of its own


@pytest.mark.parametrize("architecture", ["llama-biases", "gemma3", "gpt2", "phi3"])
def test_other_architectures(architecture: str) -> None:
    model, probes, graphs = tiny_model(architecture, torch.float32), openers(8), BatchGraphs(CpuCapture())
    settings = ScoringSettings(batch_size=2)
    for _ in range(2):
        assert equal(score_pairs(model, probes, settings, graphs=graphs), score_pairs(model, probes, settings))
        train(model)
    assert graphs.failure is None
    assert graphs.repetitions


def reachable(*roots: object) -> set[int]:
    """Storages of all tensors that these objects keep alive, through closures, attributes and containers."""
    found, seen, todo = set(), set(), list(roots)
    while todo:
        own = todo.pop()
        if id(own) in seen or isinstance(own, type | ModuleType):
            continue
        seen.add(id(own))
        if isinstance(own, torch.Tensor):
            found.add(own.untyped_storage()._cdata)
        else:
            todo += gc.get_referents(own) if not isinstance(own, FunctionType) else [own.__closure__]
    return found


@pytest.mark.parametrize("autocast", [False, True])
def test_what_a_graph_reads_lives_as_long_as_the_graph(autocast: bool) -> None:
    """The weights, its batch, and constants; whatever else it read would be freed, or stale, when it is repeated: casts
    of weights that autocast keeps, say.
    """
    model, probes, capture = tiny_model("llama", torch.float32), openers(8), CpuCapture()
    graphs = BatchGraphs(capture)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        score_pairs(model, probes, ScoringSettings(batch_size=2), graphs=graphs)
    assert graphs.failure is None
    (graph,), (kept,) = capture.graphs, graphs._graphs.values()
    alive = reachable(kept.run, kept.batch)
    read = [tensor for tensor in graph.outside() if tensor.dim() and tensor.numel()]  # others: numbers of Python
    assert len(read) > 20
    assert [tuple(t.shape) for t in read if t.untyped_storage()._cdata not in alive] == []


def test_an_observer_may_keep_what_it_sees() -> None:
    model, probes, graphs = tiny_model("llama", torch.float32), openers(10), BatchGraphs(CpuCapture())
    seen: list[list[torch.Tensor]] = [[], []]
    for own, kept in zip((graphs, None), seen, strict=True):
        settings = ScoringSettings(batch_size=2, edges=False)

        def keep(rows: Any, logits: torch.Tensor, reads: Any, to: list[torch.Tensor] = kept) -> None:
            to.append(logits)

        score_pairs(model, probes, settings, graphs=own, observe=keep)
    assert graphs.repetitions == 2
    assert torch.equal(torch.cat(seen[0]), torch.cat(seen[1]))


def test_adapters() -> None:
    """LoRA: another active adapter is another state."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama", torch.float32), LoraConfig(r=2, init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=2, init_lora_weights=False))
    probes, settings, graphs = openers(8), ScoringSettings(batch_size=2), BatchGraphs(CpuCapture())
    for adapter in ("default", "other", "default"):
        model.set_adapter(adapter)
        found = score_pairs(model, probes, settings, graphs=graphs)
        assert equal(found, score_pairs(model, probes, settings))
    assert graphs.failure is None
    assert len(graphs) == 1
    model.set_adapter("other")
    with model.disable_adapter():
        assert equal(score_pairs(model, probes, settings, graphs=graphs), score_pairs(model, probes, settings))


def test_weights_elsewhere_are_another_state() -> None:
    model, probes, graphs = tiny_model("llama", torch.float32), openers(8), BatchGraphs(CpuCapture())
    settings = ScoringSettings(batch_size=2)
    score_pairs(model, probes, settings, graphs=graphs)
    state = graph_state(model)
    train(model)
    assert graph_state(model) == state
    model.lm_head.weight.data = model.lm_head.weight.data * 2  # a new address
    assert graph_state(model) != state
    assert equal(score_pairs(model, probes, settings, graphs=graphs), score_pairs(model, probes, settings))


@pytest.mark.parametrize("change", ["train", "freeze", "attention", "scale"])
def test_what_belongs_to_the_state_of_a_model(change: str) -> None:
    model: Any = tiny_model("llama", torch.float32)
    state = graph_state(model)
    if change == "train":
        model.train()
    elif change == "freeze":
        model.requires_grad_(False)
    elif change == "attention":
        model.config._attn_implementation = "eager"
    else:
        model.model.layers[0].self_attn.scaling *= 2
    assert (graph_state(model) == state) == (change in ("train", "freeze"))  # a pass sets both itself


def test_a_model_that_changes_at_every_probe_has_no_graphs() -> None:
    model, probes, graphs = tiny_model("llama", torch.float32), openers(6), BatchGraphs(CpuCapture())
    for count in range(6):
        model.config.count = count
        score_pairs(model, probes, ScoringSettings(batch_size=2), graphs=graphs)
    assert graphs.failure == "the model's modules or addresses changed 4 times"
    assert not len(graphs)


def test_a_failure_costs_the_graphs_and_nothing_else() -> None:
    """A recording that fails, and one that waits for the device."""

    def fails(work: Callable[[], Any]) -> Any:
        raise RuntimeError("CUDA error: operation not permitted\n when stream is capturing")

    def waits(work: Callable[[], Any]) -> Any:
        def and_read() -> Any:
            scores = work()
            float(scores.heads.sum())
            return scores

        return CpuCapture()(and_read)

    model, probes, settings = tiny_model("llama", torch.float32), openers(8), ScoringSettings(batch_size=2)
    for capture, said in ((fails, "RuntimeError: CUDA error: operation not permitted when"), (waits, "waits for")):
        graphs = BatchGraphs(capture)
        assert equal(score_pairs(model, probes, settings, graphs=graphs), score_pairs(model, probes, settings))
        assert said in (graphs.failure or "")
        assert not len(graphs)


@pytest.mark.parametrize("wrong", ["off", "nan"])
def test_a_graph_that_computes_something_else_is_not_used(wrong: str) -> None:
    def other(work: Callable[[], Any]) -> Any:
        scores = work()
        return lambda: scores.heads.mul_(1.001 if wrong == "off" else float("nan")), scores

    model, probes, settings = tiny_model("llama", torch.float32), openers(8), ScoringSettings(batch_size=2)
    graphs = BatchGraphs(other)
    assert equal(score_pairs(model, probes, settings, graphs=graphs), score_pairs(model, probes, settings))
    assert (graphs.failure or "").startswith("its scores differ by")


def test_a_batch_of_another_shape_has_its_own_graph() -> None:
    """Two metrics and two shapes; neither takes the graph of the other."""
    model, capture = tiny_model("llama", torch.float32), CpuCapture()
    graphs = BatchGraphs(capture)
    for probes in (openers(8), openers(8, prefix=13, suffix=4)):
        for metric in ("logit_diff", "kl"):
            settings = ScoringSettings(metric=metric, batch_size=2)
            for _ in range(2):
                assert equal(score_pairs(model, probes, settings, graphs=graphs), score_pairs(model, probes, settings))
    assert graphs.failure is None
    assert len(graphs) == len(capture.graphs) == 4


def test_models_without_graphs() -> None:
    model = tiny_model("llama", torch.float32)
    assert no_graphs_because(model) == "the model is on cpu"
    assert no_graphs_because(tiny_model("llama", torch.float32).to("meta")) == "the model is on meta"
    assert own_python(model) is None
    model.enable_input_require_grads()  # the hook of transformers under activation checkpointing
    assert own_python(model) is None
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: None)
    assert own_python(model) == "model.layers.1.mlp has a hook of its own"
    handle.remove()
    attach_align_device_hook(model, offload=True, execution_device="cpu")
    assert own_python(model) == "accelerate moves the weights of model.embed_tokens"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_cuda_graphs(kernels: str) -> None:
    model, probes = tiny_model("qwen2", torch.float32).cuda(), openers(8)
    assert no_graphs_because(model) is None
    graphs = BatchGraphs(CudaCapture(torch.device("cuda")))
    settings = ScoringSettings(batch_size=2, kernels=kernels)
    for _ in range(3):
        found, usual = (score_pairs(model, probes, settings, graphs=own) for own in (graphs, None))
        assert torch.allclose(heads_of(found).per_pair, heads_of(usual).per_pair, rtol=1e-4, atol=1e-6)
        train(model)
    assert graphs.failure is None
    assert graphs.repetitions >= 5
