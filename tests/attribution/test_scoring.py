"""score_heads and score_edges: completeness, exact patching, adapters, input checks, observers."""

import copy

import pytest
import torch
from helpers.tiny_models import largest_error, random_pairs, tiny_model
from peft import LoraConfig, get_peft_model

from headwatch import Anatomy, ProbeSet, UnsupportedModelError, UserError, score_edges, score_heads
from headwatch.attribution import ScoringSettings
from headwatch.attribution.metrics import Reads
from headwatch.attribution.naive import naive_edges
from headwatch.attribution.scoring import score_pairs


def test_completeness_improves_with_steps() -> None:
    model, probes = tiny_model("qwen2"), random_pairs()
    errors = [score_heads(model, probes, steps=m).checks.completeness for m in (4, 16, 64)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5e-3
    scores = score_heads(model, probes, steps=400)
    gap = scores.readings.metric_corrupted - scores.readings.metric_clean
    assert largest_error(scores.input, gap) < 1e-3


def test_readings_are_the_models_logits() -> None:
    model, probes = tiny_model("llama"), random_pairs(side="none")
    scores = score_heads(model, probes)
    with torch.no_grad():
        logits = model(probes.clean).logits[:, -1]
    expected = logits.gather(-1, probes.answers)
    assert torch.allclose(scores.readings.metric_clean, expected[:, 0] - expected[:, 1])
    assert scores.readings.correct.tolist() == (logits.argmax(-1) == probes.answers[:, 0]).tolist()
    assert score_heads(model, probes, "kl").readings.metric_clean.abs().max() < 1e-12


@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_patching_one_head_agrees_to_first_order(size: float) -> None:
    """For a small corruption, plain attribution patching equals exact activation patching to first order."""
    model = tiny_model("qwen2")
    probes = random_pairs(n=1, side="none")
    where = (probes.clean != probes.corrupted)[0]
    embedding = model.get_input_embeddings().weight.data
    direction = torch.randn(embedding.shape[1], dtype=embedding.dtype, generator=torch.Generator().manual_seed(1))
    for one, other in zip(probes.clean[0, where], probes.corrupted[0, where], strict=True):
        embedding[other] = embedding[one] + size * direction
    scores = score_heads(model, probes, alphas="clean").per_pair[0]
    exact = _patch_each_head(model, probes)
    assert largest_error(scores, exact) < 20 * size  # second order
    certain = exact.abs() > 20 * size * exact.abs().max()
    assert certain.any()
    assert torch.equal(scores.sign()[certain], exact.sign()[certain])


def _patch_each_head(model, probes: ProbeSet) -> torch.Tensor:
    """Change of the logit difference with one head's output from the corrupted run, [L, H]."""
    anatomy = Anatomy.of(model)

    def value(ids: torch.Tensor) -> torch.Tensor:
        first = model(ids).logits[0, -1, probes.answers[0]]
        return first[0] - first[1]

    corrupted: list[torch.Tensor] = []
    handles = [
        layer.out.register_forward_pre_hook(lambda module, args: corrupted.append(args[0])) for layer in anatomy.layers
    ]
    changes = torch.zeros(anatomy.n_layers, anatomy.n_heads, dtype=torch.float64)
    with torch.no_grad():
        value(probes.corrupted)
        for handle in handles:
            handle.remove()
        clean = value(probes.clean)
        for index, layer in enumerate(anatomy.layers):
            for head in range(anatomy.n_heads):
                columns = slice(head * anatomy.head_dim, (head + 1) * anatomy.head_dim)

                def patch(module, args, index=index, columns=columns):
                    z = args[0].clone()
                    z[..., columns] = corrupted[index][..., columns]
                    return (z,)

                handle = layer.out.register_forward_pre_hook(patch)
                changes[index, head] = value(probes.clean) - clean
                handle.remove()
    return changes


def test_adapters_are_part_of_the_model() -> None:
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", lora_dropout=0.2)
    model = get_peft_model(tiny_model("qwen2"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    model.train()
    probes = random_pairs()
    edges = score_edges(model, probes, steps=2)
    assert largest_error(edges.per_pair, naive_edges(model, probes, steps=2)) < 1e-9
    with model.disable_adapter():
        base = score_edges(model, probes, steps=2)
    assert largest_error(base.per_pair, score_edges(tiny_model("qwen2"), probes, steps=2).per_pair) < 1e-9
    assert largest_error(edges.per_pair, base.per_pair) > 0.01
    merged = copy.deepcopy(model).merge_and_unload()
    assert largest_error(score_edges(merged, probes, steps=2).per_pair, edges.per_pair) < 1e-9


def test_invalid_input_is_refused_in_one_line() -> None:
    model, probes = tiny_model("llama"), random_pairs()
    no_answers = ProbeSet.from_token_ids(probes.clean, probes.corrupted, attention_mask=probes.attention_mask)
    for call, words in [
        (lambda: score_heads(torch.nn.Linear(2, 2), probes), ["model_type", "headwatch doctor"]),
        (lambda: score_heads(model, probes, "logit-diff"), ["metric='logit-diff'", "logit_diff"]),
        (lambda: score_heads(model, probes, steps=0), ["steps=0"]),
        (lambda: score_heads(model, probes, alphas="centre"), ["alphas='centre'", "midpoint"]),
        (lambda: score_heads(model, probes, "kl", alphas="clean"), ["identically zero"]),
        (lambda: score_heads(model, no_answers), ["logit_diff", "answer", "kl"]),
        (lambda: score_heads(model, probes, batch_size=0), ["batch_size=0"]),
        (lambda: score_heads(model, probes, memory_budget_gb=0), ["memory_budget_gb=0"]),
        (lambda: ScoringSettings(metric=["kl"]), ["metric=['kl']", "logit_diff"]),
        (lambda: ScoringSettings(edges="no"), ["edges='no'"]),
        (lambda: ScoringSettings(batch_size=2.0), ["batch_size=2.0"]),
        (lambda: ScoringSettings(memory_budget_gb="2"), ["memory_budget_gb='2'"]),
    ]:
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words), message
    with pytest.raises(UnsupportedModelError):
        Anatomy.of(torch.nn.Linear(2, 2))


def test_an_observer_receives_every_clean_run_once() -> None:
    model, probes = tiny_model("llama"), random_pairs(side="none")
    observed: dict[int, torch.Tensor] = {}
    calls = []

    def observe(pairs: torch.Tensor, logits: torch.Tensor, reads: Reads) -> None:
        calls.extend(pairs.tolist())
        observed.update(zip(pairs.tolist(), logits[:, 0], strict=True))

    score_pairs(model, probes, ScoringSettings(edges=False, batch_size=2), observe=observe)
    assert sorted(calls) == list(range(len(probes)))
    with torch.no_grad():
        logits = model(probes.clean).logits[:, -1]
    assert largest_error(torch.stack([observed[pair] for pair in range(len(probes))]), logits) < 1e-12


def test_a_path_of_only_the_clean_run_is_refused_under_kl() -> None:
    with pytest.raises(UserError, match="steps=1"):
        score_heads(tiny_model("llama"), random_pairs(1), "kl", 1, "right")
