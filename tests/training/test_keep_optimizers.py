"""`KeepOptimizers`: the optimizer state of old checkpoints is deleted in every form, their weights never."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from headwatch.training.checkpoints import STATE, KeepOptimizers

FORMS = {
    "one process": ("optimizer.pt", "model.safetensors"),
    "FSDP, full state": ("optimizer.bin", "model.safetensors"),
    "FSDP, sharded state": ("optimizer_0/__0_0.distcp", "pytorch_model_fsdp_0/__0_0.distcp"),
    "DeepSpeed": ("global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt", "model.safetensors"),
    "DeepSpeed, LoRA": ("global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt", "adapter_model.safetensors"),
}


def write(checkpoint: Path, *files: str) -> None:
    for name in (*files, STATE):
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def save(output: Path) -> None:
    KeepOptimizers(1).on_save(
        SimpleNamespace(output_dir=str(output)), SimpleNamespace(is_world_process_zero=True), None
    )


@pytest.mark.parametrize("form", FORMS)
def test_only_the_last_checkpoint_keeps_its_optimizer(form: str, tmp_path: Path) -> None:
    optimizer, weights = FORMS[form]
    for step in (2, 4):
        write(tmp_path / f"checkpoint-{step}", optimizer, weights)
    save(tmp_path)
    assert [(tmp_path / f"checkpoint-{step}" / optimizer).exists() for step in (2, 4)] == [False, True]
    assert not (tmp_path / "checkpoint-2" / optimizer.split("/")[0]).exists()
    assert all((tmp_path / f"checkpoint-{step}" / weights).exists() for step in (2, 4))


def test_a_deepspeed_folder_with_the_only_weights_stays(tmp_path: Path) -> None:
    for step in (2, 4):
        write(tmp_path / f"checkpoint-{step}", "global_step2/zero_pp_rank_0_mp_rank_00_model_states.pt")
    save(tmp_path)
    assert (tmp_path / "checkpoint-2" / "global_step2").exists()
