"""Models that are divided among devices or processes are refused in one line."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_models import tiny_model
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from transformers import AutoModelForCausalLM

from headwatch import Anatomy, HeadWatchCallback, UnsupportedModelError
from headwatch.model.placement import check_parallelism


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_tensor_parallel_layers(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = tiny_model("qwen2")
    parallelize_module(model, init_device_mesh("cpu", (1,)), {"model.layers.*.self_attn.q_proj": ColwiseParallel()})
    with pytest.raises(UnsupportedModelError, match="tensor or expert parallelism"):
        Anatomy.of(model)


def test_fsdp1(one_process: None) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = tiny_model("qwen2")
    layers = model.model.layers
    layers[0] = FullyShardedDataParallel(layers[0], device_id=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match=r"FSDP1.*use FSDP2"):
        Anatomy.of(model)


def test_layers_on_several_devices_turn_probing_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    Anatomy.of(model)
    trainer = sft_trainer(folder, tmp_path / "run", [HeadWatchCallback(["addition"], n_pairs=4)], max_steps=2)
    trainer.model.hf_device_map = {"model.layers.0": 0, "": "cpu"}  # as from_pretrained sets it on a machine with a GPU
    trainer.train()
    assert trainer.state.global_step == 2
    assert [record.message.count("device_map: 0, cpu") for record in caplog.records].count(1) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("tp", "tensor"), ("pp", "pipeline"), ("ep", "expert"), ("cp", "context"), ("sp", "sequence")],
)
def test_parallel_trainings(name: str, kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{kind} parallelism \({name}_size=2\)"):
        check_parallelism(SimpleNamespace(**{f"{name}_size": 2}))


def test_data_parallel_trainings_are_supported() -> None:
    from accelerate.parallelism_config import ParallelismConfig

    check_parallelism(None)
    check_parallelism(ParallelismConfig(dp_replicate_size=2, dp_shard_size=2))
    with pytest.raises(UnsupportedModelError, match="context parallelism"):
        check_parallelism(ParallelismConfig(dp_shard_size=2, cp_size=2))
