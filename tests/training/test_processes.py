"""Recipes for several processes: what --dry-run plans for, and the sharding that a smoke run reports."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from transformers import Qwen2Config

from headwatch import RunFolder, UserError
from headwatch.training import plan
from headwatch.training.meta_model import load_meta_model
from headwatch.training.options import parse
from headwatch.training.plan import Memory
from headwatch.training.processes import Processes, planned
from headwatch.training.smoke import without_gpu

ROOT = Path(__file__).parents[2]
HELPER = ROOT / "tests" / "helpers" / "recipe_on_ranks.py"
FILES = sorted(ROOT.glob("recipes/accelerate_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerates_files_are_what_the_recipes_plan_for(path: Path) -> None:
    config = ClusterConfig.from_yaml_file(path)
    assert str(config.distributed_type.value) == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
    assert planned(str(path)) == Processes(config.num_processes, "FSDP2", half=True)
    assert planned(str(path)).parts == config.num_processes


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/qwen2.5-math-7b/*.yaml")), ids=lambda path: path.stem)
def test_recipes_name_a_file_of_accelerate(recipe: Path) -> None:
    named = yaml.safe_load(recipe.read_text())["accelerate_config"]
    assert f"--config_file {named} " in recipe.read_text()
    assert planned(str(ROOT / named)).number == int(recipe.stem.rpartition("_")[2].removesuffix("gpu"))


def test_the_launcher_in_force_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(None) == Processes(1, "")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert planned(str(FILES[0])) == Processes(4, "DDP")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert planned(None).parts == 4


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("num_processes: many\n")
    with pytest.raises(UserError, match="--accelerate_config"):
        planned(str(path))


def memory_of(config: Qwen2Config, folder: Path, name: str) -> tuple[Memory, int]:
    """The estimate of a recipe for a model of this shape, whose rows have 1,000 tokens; and its parameters."""
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    model = load_meta_model(str(folder))
    parameters = sum(p.numel() for p in model.parameters())
    options = parse([str(ROOT / "recipes" / f"{name}.yaml"), "--report_to", "none", "--dry_run"])
    options.values["accelerate_config"] = str(ROOT / options.values["accelerate_config"])
    without_gpu(options)
    return plan._memory(options.build(), model.config, parameters, parameters, [1000]), parameters


def qwen7b(**changes: Any) -> Qwen2Config:
    """The shape of Qwen2.5-Math-7B."""
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    return Qwen2Config(**{**sizes, **heads, "tie_word_embeddings": False, **changes})


@pytest.mark.parametrize(
    ("name", "devices", "tokens", "total"),
    [("sft_openr1_2gpu", 2, 8192, 70.9), ("sft_openr1_8gpu", 8, 16384, 33.5)],
)
def test_the_memory_of_a_7b_model_by_hand(name: str, devices: int, tokens: int, total: float, tmp_path: Path) -> None:
    """Bytes per device: float32 weights, gradients and two moments in shards; whole weights in bf16 during a probe."""
    memory, parameters = memory_of(qwen7b(), tmp_path, f"qwen2.5-math-7b/{name}")
    attention = 2 * 3584 * 3584 + 3584 + 2 * (3584 * 512 + 512)
    layer, output = attention + 3 * 3584 * 18944 + 2 * 3584, 152064 * 3584
    assert parameters == 28 * layer + 2 * output + 3584 == 7_615_616_512
    gib = 2.0**30
    shard = parameters / devices / gib  # 3.55 on two devices
    assert memory.weights == pytest.approx(4 * shard)
    assert memory.optimizer == pytest.approx(8 * shard)
    assert memory.gradients_and_optimizer == pytest.approx(12 * shard)
    assert memory.gathered == pytest.approx(2 * parameters / gib)  # 14.2
    # Inputs of 28 layers and the 16 M + 5 F floats of one that is recomputed, for one row.
    assert memory.activations == pytest.approx(tokens * (28 * 3584 + 16 * 3584 + 5 * 18944) * 4 / gib)
    # The output matrix, two layers, and the output matrix's gradient twice, in bf16.
    assert memory.working == pytest.approx((output + 2 * layer + 2 * output) * 2 / gib, rel=1e-4)
    assert memory.probe == pytest.approx(max(2.0, 4 * shard))  # as much as this device's gradients
    assert memory.reference == 0.0
    step = 16 * shard + memory.activations + memory.working  # 68.4 on two devices
    probe = 12 * shard + memory.gathered + memory.probe  # 70.9
    assert memory.total == pytest.approx(max(step, probe))
    assert memory.total == pytest.approx(total, abs=0.05)
    assert memory.total < 74.5  # 80 GB


def test_the_memory_of_tied_embeddings(tmp_path: Path) -> None:
    """They are one matrix: counted once among the weights, and whole in the step as the output matrix."""
    name = "qwen2.5-math-7b/sft_openr1_2gpu"
    untied, parameters = memory_of(qwen7b(), tmp_path / "untied", name)
    tied, fewer = memory_of(qwen7b(tie_word_embeddings=True), tmp_path / "tied", name)
    output = 152064 * 3584
    assert parameters - fewer == output
    assert untied.gathered - tied.gathered == pytest.approx(2 * output / 2**30)
    assert untied.weights - tied.weights == pytest.approx(4 * output / 2 / 2**30)
    assert tied.working == pytest.approx(untied.working, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft_openr1_2gpu", "grpo_openr1_8gpu"])
def test_a_smoke_run_says_which_sharding_it_ran_under(name: str, tmp_path: Path) -> None:
    """By `accelerate launch` with the recipe's own file, on two CPU processes: bf16 forward passes, as on GPUs."""
    recipe = ROOT / "recipes" / "qwen2.5-math-7b" / f"{name}.yaml"
    config = ROOT / yaml.safe_load(recipe.read_text())["accelerate_config"]
    launch = ["--config_file", str(config), "--num_processes", "2", "--main_process_port", "0"]
    options = ["--smoke", "--output_dir", str(tmp_path / "out"), "--report_to", "none", "--headwatch.strict", "true"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, str(HELPER), str(recipe), *options],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes: 2, sharding: FSDP2\n" in done.stdout
    assert RunFolder.open(tmp_path / "out" / "headwatch").steps == [0, 2, 4]
