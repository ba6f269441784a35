"""The guard under real FSDP2, two processes on gloo: training goes on as without it, also after a pass that fails."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import has_sdpa, largest_error, random_openers, random_pairs, tiny_model
from torch import Tensor, nn

from headwatch import score_edges
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.errors import UnsupportedModelError
from headwatch.model import whole_weights as gathering
from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import overridden
from headwatch.model.layer_gathering import OtherProcessError
from headwatch.model.read_only import PassScope, left_trace, read_only_pass
from headwatch.model.whole_weights import gathered_bytes, readable, sharding, trainable_bytes, whole_weights

# Biases; norms after o_proj; norms over the width of q and k; fused q, k, v, in parallel with the MLP; experts.
ARCHITECTURES = ["qwen2", "gemma2-biases", "olmo2", "neox", "mixtral"]
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])

Probe = Callable[[nn.Module, int], None]


def attribution(model: nn.Module, step: int) -> None:
    with read_only_pass(model):
        embeddings = torch.zeros(2, 6, 32, requires_grad=True)
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits[:, -1, 3].sum(), embeddings)
        assert gradient.abs().sum() > 0


def forward_only(model: nn.Module, step: int) -> None:
    with read_only_pass(model), torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    assert all(type(p).__name__ == "DTensor" for p in model.parameters())  # gathered parameters were given back


def failing(model: nn.Module, step: int) -> None:
    """Fails before the first forward, in the middle of a forward, between forward and backward, and in a backward."""

    def fail(*_: object) -> None:
        raise ValueError("mine")

    def body(scope: PassScope) -> None:
        if step == 0:
            fail()
        if step == 1:
            scope.on_exit(model.model.layers[1].mlp.register_forward_pre_hook(fail).remove)
        embeddings = torch.zeros(2, 6, 32, requires_grad=True)
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
        if step == 2:
            fail()
        embeddings.register_hook(fail)
        torch.autograd.grad(logits.sum(), embeddings)

    with pytest.raises(ValueError, match="mine") as caught, read_only_pass(model) as scope:
        body(scope)
    assert not left_trace(caught.value), caught.value.__notes__


def unequal(model: nn.Module, step: int) -> None:
    """Inside one block the ranks run different numbers of passes, and the last one of rank 1 fails."""
    held = trainable_bytes(model)
    with pytest.raises(ValueError, match="mine") if rank() else nullcontext(), whole_weights(model):
        assert (sharding(model), trainable_bytes(model)) == ("FSDP2", held)
        for _ in range(1 + rank()):
            attribution(model, step)
            assert not any(hasattr(p, "device_mesh") for p in model.parameters())  # still whole
        if rank():
            failing(model, step % 4)
            raise ValueError("mine")


def caught_inside(model: nn.Module, step: int) -> None:
    """A pass fails, and the block that it is in goes on and ends well."""
    with whole_weights(model):
        failing(model, step)


def no_memory(model: nn.Module, step: int) -> None:
    """The whole weights do not fit on rank 1: both refuse, and nothing was gathered. One byte more, and they fit."""
    needed = gathered_bytes(model)
    if step:  # before the first forward the root, too, is sharded
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        assert needed == whole
    little = needed - 1 if rank() else needed
    with overridden(gathering, free_memory=lambda device: little):
        with pytest.raises(UnsupportedModelError, match="GiB more than are free"), read_only_pass(model):
            raise AssertionError
        assert sharding(model) == "FSDP2"
        assert all(type(p).__name__ == "DTensor" for p in model.parameters())
        little = needed
        attribution(model, step)


@contextmanager
def by_layer(model: nn.Module) -> Iterator[None]:
    """The whole weights do not fit on rank 1, but one layer at a time does."""
    needed = gathered_bytes(model)
    little = {"free_memory": lambda device: needed - rank(), "LAYERS_AT_ONCE": 1}
    with overridden(gathering, **little), whole_weights(model, None, Anatomy.of(model).decoder_layers) as whole:
        assert not whole
        yield


def one_layer_at_a_time(model: nn.Module, step: int) -> None:
    """Layers are gathered for their own forward and backward and where they are read; no more than two at once."""
    layers, most = model.model.layers, []

    def count(*_: object) -> None:
        most.append(sum(type(layer.mlp.up_proj.weight).__name__ != "DTensor" for layer in layers))

    with by_layer(model), read_only_pass(model) as scope:
        for layer in layers:
            scope.on_exit(layer.mlp.register_forward_pre_hook(count).remove)
        embeddings = torch.zeros(2, 6, 32, requires_grad=True)
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
        assert most == [1, 1]
        count()
        assert most.pop() == 0
        with readable(layers[1].self_attn.o_proj):
            assert layers[1].self_attn.o_proj.weight.shape == layers[1].self_attn.o_proj.weight.cpu().shape
            count()
        assert most.pop() == 1
        embeddings.register_hook(count)
        (gradient,) = torch.autograd.grad(logits[:, -1, 3].sum(), embeddings)
        assert most.pop() <= 1
        assert gradient.abs().sum() > 0


def fails_by_layer(model: nn.Module, step: int) -> None:
    """A pass fails on rank 1 alone: before, between and after its collectives; rank 0 is not left waiting."""

    def body() -> None:
        if rank() and step == 0:
            raise ValueError("mine")
        embeddings = torch.zeros(2, 6, 32, requires_grad=True)
        with read_only_pass(model):
            logits = model(inputs_embeds=embeddings, use_cache=False).logits
            if rank() and step == 1:
                raise ValueError("mine")
            torch.autograd.grad(logits.sum(), embeddings)
        if rank() and step > 1:
            raise ValueError("mine")

    with pytest.raises(ValueError if rank() else OtherProcessError), by_layer(model):
        body()


def differs_by_layer(model: nn.Module, step: int) -> None:
    """The ranks run different numbers of passes: both raise, where otherwise each would wait for the other."""

    def body() -> None:
        for _ in range(1 + rank()):
            attribution(model, step)

    with pytest.raises(OtherProcessError, match="different passes"), by_layer(model):
        body()


def rank() -> int:
    return torch.distributed.get_rank()


PROBES: dict[str, Probe | None] = {
    "none": None,
    "attribution": attribution,
    "forward_only": forward_only,
    "failing": failing,
    "unequal": unequal,
    "caught_inside": caught_inside,
    "no_memory": no_memory,
    "one_layer_at_a_time": one_layer_at_a_time,
    "fails_by_layer": fails_by_layer,
    "differs_by_layer": differs_by_layer,
}


def train(probe: Probe | None) -> list[Tensor]:
    from torch.distributed.fsdp import fully_shard
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=48, num_key_value_heads=2, attention_dropout=0.3, **sizes)).train()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(4):
        if probe is not None:
            probe(model, step)  # at step 0 before the first forward, as at on_train_begin
        model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        layer = model.model.layers[0]
        assert probe is None or (is_restored(model) and is_restored(layer))
    return [p.full_tensor().detach() for p in model.parameters()]


def error_by_layer(architecture: str) -> float:
    """Largest difference of the edge scores of a sharded model, layer by layer, from those of the whole one."""
    from torch.distributed.fsdp import fully_shard

    attention = "sdpa" if has_sdpa(architecture) else "eager"
    model, settings = tiny_model(architecture, attention=attention), ScoringSettings("kl", 2)
    probes = [random_pairs(3), random_openers(3)]  # without and with a shared prefix
    expected = [score_edges(model, own, metric="kl", steps=2).per_pair for own in probes]
    for layer in Anatomy.of(model).decoder_layers:
        fully_shard(layer)
    fully_shard(model)
    with by_layer(model):
        found = [score_pairs(model, own, settings).per_pair for own in probes]
    return max(largest_error(own, other) for own, other in zip(found, expected, strict=True))


def is_restored(module: nn.Module) -> bool:
    """The private names of headwatch/model/whole_weights.py: this torch has them, with their values of before."""
    (group,) = module._get_fsdp_state()._fsdp_param_groups
    is_root = not isinstance(getattr(module, "self_attn", None), nn.Module)
    hooks = len(module._forward_pre_hooks) + len(module._forward_hooks)  # FSDP2's own
    own = group.reshard_after_backward and group.unshard_in_backward and hooks == 2
    return (group.post_forward_mesh_info is None) == is_root and own


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    results = {name: train(probe) for name, probe in PROBES.items()}
    errors = {architecture: error_by_layer(architecture) for architecture in ARCHITECTURES}
    if rank == 0:
        torch.save(results, Path(folder) / "weights.pt")
        torch.save(errors, Path(folder) / "errors.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(folder)), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, list[Tensor]]:
    return torch.load(folder / "weights.pt")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_layer_by_layer_are_those_of_the_whole_model(architecture: str, folder: Path) -> None:
    assert torch.load(folder / "errors.pt")[architecture] < 1e-12  # in float64


@pytest.mark.parametrize("probe", [name for name, probe in PROBES.items() if probe is not None])
def test_sharded_training_continues_as_without_the_pass(probe: str, weights: dict[str, list[Tensor]]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights["none"], weights[probe], strict=True))
