"""A head switched off or scaled by hooks, in the weights and by a naive deletion gives the same logits."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny_models import COMMON, has_sdpa, largest_error, random_pairs, tiny_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headwatch import Anatomy, UserError, mean_ablated_heads, scaled_heads, score_heads, write_scaled_heads
from headwatch.analysis.interventions import mean_outputs
from headwatch.analysis.scaled_checkpoint import save_scaled_checkpoint

FACTORS = {(0, 1): 0.0, (1, 3): 0.0, (1, 0): 1.3}
# Grouped queries, biases of o_proj, a fused projection, transposed weights, a norm after o_proj, parallel layers.
FAMILIES = ["qwen2", "llama-biases", "phi3", "gpt2", "neox", "gemma2-biases", "olmo2", "granite"]


def naive_logits(model: nn.Module, ids: Tensor, factors: dict[tuple[int, int], float]) -> Tensor:
    """Logits with (1 - factor) z_h W_O,h^T subtracted from the output of o_proj."""
    anatomy, handles = Anatomy.of(model), []
    for (index, head), factor in factors.items():
        columns = slice(head * anatomy.head_dim, (head + 1) * anatomy.head_dim)

        def delete(out: Any, args: Any, output: Tensor, columns: slice = columns, factor: float = factor) -> Tensor:
            weight = out.weight.T if isinstance(out, Conv1D) else out.weight  # [M, H D]
            return output - (1 - factor) * args[0][..., columns] @ weight[:, columns].T

        handles.append(anatomy.layers[index].out.register_forward_hook(delete))
    logits: Tensor = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_hooks_weights_and_deletion_agree(architecture: str) -> None:
    model = tiny_model(architecture, attention="sdpa" if has_sdpa(architecture) else "eager")
    ids = random_pairs(3, side="none").clean
    untouched = model(input_ids=ids).logits
    expected = naive_logits(model, ids, FACTORS)
    assert largest_error(expected, untouched) > 1e-3
    with scaled_heads(model, FACTORS):
        by_hook = model(input_ids=ids).logits
    assert largest_error(by_hook, expected) < 1e-12
    assert torch.equal(model(input_ids=ids).logits, untouched)  # hooks are gone
    write_scaled_heads(model, FACTORS)
    assert largest_error(model(input_ids=ids).logits, expected) < 1e-12


@torch.no_grad()
def test_one_factor_for_several_heads_and_every_spelling() -> None:
    model, ids = tiny_model("qwen2"), random_pairs(2, side="none").clean
    with scaled_heads(model, {"L0.H1": 0.5, "a2.h4": 0.5}):
        expected = model(input_ids=ids).logits
    with scaled_heads(model, [(0, 1), "2.4"], 0.5):
        assert torch.equal(model(input_ids=ids).logits, expected)


@torch.no_grad()
def test_lora_is_scaled_by_hooks_and_merged_before_the_weights_are_written() -> None:
    config = LoraConfig(r=3, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    model, ids = get_peft_model(tiny_model("qwen2"), config), random_pairs(2, side="none").clean
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    with scaled_heads(model, FACTORS):
        by_hook = model(input_ids=ids).logits
    with pytest.raises(UserError, match=r"^model: it has adapters; merge them first .*merge_and_unload"):
        write_scaled_heads(model, FACTORS)
    merged = model.merge_and_unload()
    assert largest_error(by_hook, naive_logits(merged, ids, FACTORS)) < 1e-12
    write_scaled_heads(merged, FACTORS)
    assert largest_error(by_hook, merged(input_ids=ids).logits) < 1e-12


class Packed(nn.Module):
    """A layer as quantisation libraries make them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter((linear.weight * 100).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x) / 100).T


@torch.no_grad()
def test_quantised_weights_are_refused_and_hooks_work() -> None:
    model, ids = tiny_model("qwen2"), random_pairs(2, side="none").clean
    model.model.layers[1].self_attn.o_proj = Packed(model.model.layers[1].self_attn.o_proj)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"o_proj of layer 1 \(Packed\) is quantised.*use scaled_heads"):
        write_scaled_heads(model, FACTORS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with scaled_heads(model, FACTORS):
        by_hook = model(input_ids=ids).logits
        assert largest_error(by_hook, naive_logits(model, ids, {})) < 1e-12
    assert largest_error(by_hook, naive_logits(model, ids, {})) > 1e-3


def test_a_mistake_is_one_line_and_changes_nothing() -> None:
    model = tiny_model("qwen2")
    for heads, factor, message in (
        (["L99H0"], 0.0, "the model has no head L99H0; its heads are L0.H0 to L2.H5"),
        ([(0, 1)], float("nan"), "must be a finite number"),
        ({(0, 1): "half"}, 0.0, "must be a finite number"),
    ):
        for change in (write_scaled_heads, lambda *args: scaled_heads(*args).__enter__()):
            with pytest.raises(UserError, match=message):
                change(model, heads, factor)


@torch.no_grad()
def test_scores_of_a_scaled_model_are_those_of_its_weights() -> None:
    model, probes = tiny_model("qwen2"), random_pairs(3)
    with scaled_heads(model, FACTORS):
        by_hook = score_heads(model, probes, steps=2)
    write_scaled_heads(model, FACTORS)
    assert largest_error(by_hook.per_pair, score_heads(model, probes, steps=2).per_pair) < 1e-10
    assert by_hook.per_pair[:, 0, 1].abs().max() == 0


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
@torch.no_grad()
def test_mean_ablation_takes_the_mean_over_all_real_tokens(architecture: str) -> None:
    model, probes = tiny_model(architecture), random_pairs(5)
    anatomy, states = Anatomy.of(model), []
    for row in range(len(probes)):  # one prompt at a time, without padding
        ids, found = probes.clean[row, probes.attention_mask[row].bool()], {}
        handles = [
            layer.out.register_forward_pre_hook(lambda m, args, i=i, f=found: f.__setitem__(i, args[0][0]))
            for i, layer in enumerate(anatomy.layers)
        ]
        model(input_ids=ids[None])
        for handle in handles:
            handle.remove()
        states.append(torch.stack([found[i] for i in range(anatomy.n_layers)]))
    expected = torch.cat(states, 1).mean(1).unflatten(-1, (anatomy.n_heads, anatomy.head_dim))
    assert largest_error(mean_outputs(model, probes, batch_size=2), expected) < 1e-12

    ids, seen = probes.clean[:1], []
    with mean_ablated_heads(model, ["L1.H2"], probes):
        handle = anatomy.layers[1].out.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        model(input_ids=ids)
        handle.remove()
    columns = slice(2 * anatomy.head_dim, 3 * anatomy.head_dim)
    assert torch.allclose(seen[0][0, :, columns], expected[1, 2].expand(ids.shape[1], -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_saved_sharded_checkpoint(tied: bool, tmp_path: Path) -> None:
    config = transformers.Qwen2Config(**COMMON, tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    model.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    out = save_scaled_checkpoint(tmp_path / "base", tmp_path / "off", FACTORS, max_shard_size="10KB")
    ids = random_pairs(2, side="none").clean
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.float64
    assert largest_error(loaded(input_ids=ids).logits, naive_logits(model, ids, FACTORS)) < 1e-6  # norms in float32
    record = json.loads((out / "headwatch_scaled_heads.json").read_text())
    assert record == {"source": "base", "heads": {"L0.H1": 0.0, "L1.H3": 0.0, "L1.H0": 1.3}}
    names = set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"])
    assert ("lm_head.weight" in names) != tied
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        save_scaled_checkpoint(tmp_path / "base", out, FACTORS)


@torch.no_grad()
def test_a_saved_adapter_is_merged(tmp_path: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(**COMMON)).double().eval()
    base.save_pretrained(tmp_path / "base")
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(reloaded, LoraConfig(r=2, target_modules=["o_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    out = save_scaled_checkpoint(tmp_path / "adapter", tmp_path / "off", ["L1.H1"])
    ids = random_pairs(2, side="none").clean
    with scaled_heads(model, ["L1.H1"]):
        expected = model(input_ids=ids).logits
    found = transformers.AutoModelForCausalLM.from_pretrained(out)(input_ids=ids).logits
    assert largest_error(found, expected) < 1e-5
