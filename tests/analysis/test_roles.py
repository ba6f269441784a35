"""Measures of heads: by hand on small patterns, on hand-written weights, and against direct computations."""

import copy
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers.induction_model import INDUCTION, PREVIOUS, induction_model, induction_probes
from helpers.tiny_models import has_sdpa, largest_error, random_pairs, tiny_model
from scipy.stats import kurtosis

from headwatch import Anatomy, UserError
from headwatch.analysis.attention_drawing import attention_svg
from headwatch.analysis.roles import COLUMNS, head_roles, induction_score, pattern_measures, received, weight_change
from headwatch.analysis.texts import Text, received_by_sentence
from headwatch.commands import roles as command
from headwatch.model.linear_map import linear_map

FAMILIES = ["qwen2", "gpt2", "neox", "gemma2-biases", "olmo2"]


def test_measures_of_a_pattern_by_hand() -> None:
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)[None, None]
    found = {name: float(value) for name, value in pattern_measures(pattern).items()}
    assert found["entropy"] == pytest.approx((1.0 + 0.0) / 2)  # log 2 / log 2, and one position
    assert found["previous_token"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["first_token"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["distance"] == pytest.approx((0.5 * 1 + 1.0 * 1) / 2)
    assert received(pattern)[0, 0].tolist() == pytest.approx([(0.5 + 0.0) / 2, 1.0])


def test_receiver_kurtosis_is_scipys() -> None:
    pattern = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril()
    pattern /= pattern.sum(-1, keepdim=True)
    columns = [float(pattern[0, 0, j + 1 :, j].mean()) for j in range(8)]
    assert float(pattern_measures(pattern)["receiver_kurtosis"]) == pytest.approx(kurtosis(columns))


def test_sentences_receive_the_mean_over_pairs_of_tokens() -> None:
    sentences = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
    pattern = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tril()
    pattern /= pattern.sum(-1, keepdim=True)
    for layer in range(2):
        expected = []
        for t in range(4):
            pairs = [(i, j) for i in range(9) for j in range(1, 9) if t == sentences[j] < sentences[i]]
            expected.append(float(np.mean([pattern[layer, 0, i, j] for i, j in pairs])))
        assert received_by_sentence(pattern, sentences)[layer, 0].tolist() == pytest.approx(expected)
        found = pattern_measures(pattern, sentences)["sentence_kurtosis"][layer, 0]
        assert float(found) == pytest.approx(kurtosis(expected))
    few = pattern_measures(pattern, sentences.clamp(max=3))
    assert few["sentence_kurtosis"].isnan().all()


def test_attention_on_texts() -> None:
    model, probes = induction_model(), induction_probes(8)
    texts = [Text(probes.clean[row], torch.arange(probes.clean.shape[1])) for row in range(8)]
    on_prompts, on_texts = head_roles(model, probes), head_roles(model, probes, texts=texts[:5])
    assert (on_prompts.on_texts, on_texts.on_texts, on_texts.prompts) == (False, True, 5)
    few = head_roles(model, probes.select(slice(0, 5)))
    for name in ("entropy", "previous_token", "receiver_kurtosis"):
        assert torch.equal(on_texts.values[name], few.values[name])
    assert torch.equal(on_texts.values["write"], on_prompts.values["write"])
    assert on_prompts.values["sentence_kurtosis"].isnan().all()
    assert on_texts.values["sentence_kurtosis"].isfinite().all()


def test_the_hand_written_heads_have_their_roles() -> None:
    model, probes = induction_model(), induction_probes(8)
    found = head_roles(model, probes, repeats=2)
    assert found.values["previous_token"][PREVIOUS] > 0.95
    assert found.values["previous_token"][1].max() < 0.5
    assert found.values["induction"][INDUCTION] > 0.9
    assert found.values["induction"].flatten().topk(2).values[1] < 0.3
    assert found.values["write"].flatten().argmax() == 4 * INDUCTION[0] + INDUCTION[1]
    assert found.values["entropy"][PREVIOUS] < 0.1 < found.values["entropy"][0, 1]
    assert found.values["weight_change"].isnan().all()
    assert found.rows()[0]["weight_change"] is None
    assert found.prompts == 8


@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_the_write_is_the_effect_of_adding_a_little_of_it(architecture: str) -> None:
    model = tiny_model(architecture, attention="sdpa" if has_sdpa(architecture) else "eager")
    anatomy, probes = Anatomy.of(model), random_pairs(1, side="none")
    states: dict[str, torch.Tensor] = {}
    layer = anatomy.layers[-1]
    handles = [
        layer.out.register_forward_hook(lambda m, args, output: states.update(z=args[0], out=output)),
        anatomy.final_norm.register_forward_pre_hook(lambda m, args: states.update(x=args[0])),
    ]
    ids, read = probes.clean, int(probes.read_positions[0, 0])
    model(input_ids=ids)
    for handle in handles:
        handle.remove()
    # Add a little of what each head adds to the final residual vector, and see how the logits move.
    weight, _ = linear_map(layer.out, anatomy.n_heads * anatomy.head_dim)
    expected = []
    for head in range(anatomy.n_heads):
        columns = slice(head * anatomy.head_dim, (head + 1) * anatomy.head_dim)
        own = states["z"][..., columns] @ weight[:, columns].T
        if (norm := layer.attn_post_norm) is not None:
            own = norm.weight * own / (states["out"].square().mean(-1, keepdim=True) + norm.eps).sqrt()
        own = own * layer.multiplier
        values = []
        for size in (1e-5, -1e-5):
            add = lambda m, args, s=size, o=own: (states["x"] + s * o, *args[1:])  # noqa: E731
            handle = anatomy.final_norm.register_forward_pre_hook(add)
            logits = model(input_ids=ids).logits[0, read]
            handle.remove()
            values.append(logits[probes.answers[0, 0]] - logits[probes.answers[0, 1]])
        expected.append(float((values[0] - values[1]) / 2e-5))
    found = head_roles(model, probes, repeats=1).values["write"][-1]
    assert largest_error(found, torch.tensor(expected)) < 1e-5


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "neox"])
@torch.no_grad()
def test_weight_change_of_a_head(architecture: str) -> None:
    base = tiny_model(architecture)
    model = copy.deepcopy(base)
    assert weight_change(model, base).abs().max() == 0
    anatomy = Anatomy.of(model)
    out = anatomy.layers[1].out.weight
    rows = out if architecture == "gpt2" else out.T  # [H D, M]
    rows[2 * anatomy.head_dim : 3 * anatomy.head_dim] *= 1.5
    changed = weight_change(model, base)
    assert changed[1, 2] > 0.1
    changed[1, 2] = 0
    assert changed.abs().max() == 0
    with pytest.raises(UserError, match="give the model that it was trained from"):
        weight_change(model, tiny_model("llama-wide-heads"))


@torch.no_grad()
def test_a_shared_key_counts_for_every_head_of_its_group() -> None:
    base = tiny_model("qwen2")
    model = copy.deepcopy(base)
    keys = model.model.layers[0].self_attn.k_proj.weight
    keys[: Anatomy.of(model).head_dim] += 1.0
    assert (weight_change(model, base)[0] > 0).tolist() == [True] * 3 + [False] * 3


def test_the_model_keeps_its_attention_kernel() -> None:
    model = tiny_model("qwen2").train()
    head_roles(model, random_pairs(2), repeats=1)
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_induction_score_by_hand() -> None:
    pattern = torch.zeros(1, 2, 6, 6)
    pattern[0, 0, [3, 4, 5], [1, 2, 3]] = 1.0  # each attends to the token after its first occurrence
    pattern[0, 1, [3, 4, 5], [0, 1, 2]] = 1.0
    assert induction_score(pattern).tolist() == [[1.0, 0.0]]


def test_the_picture_of_a_pattern() -> None:
    pattern = torch.eye(3)
    pattern[2] = torch.tensor([0.25, 0.75, 0.0])
    root = ElementTree.fromstring(attention_svg(pattern, ["<a>", " b", "\n"], "L0.H0 & more"))
    space = "{http://www.w3.org/2000/svg}"
    cells = [cell.find(f"{space}title") for cell in root.iter(f"{space}rect")]
    texts = [cell.text for cell in cells if cell is not None]
    assert texts == ["<a> to <a>: 1.00", "·b to ·b: 1.00", "⏎ to <a>: 0.25", "⏎ to ·b: 0.75"]


def test_the_command_knows_the_columns() -> None:
    assert command.COLUMNS == COLUMNS
