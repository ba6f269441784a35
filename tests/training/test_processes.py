"""Recipes for several processes: what --dry-run plans for, and the sharding that a smoke run reports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig

from headwatch import RunFolder, UserError
from headwatch.training.processes import Processes, planned

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
