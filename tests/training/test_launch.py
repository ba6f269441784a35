"""The launcher: recipes and command lines, messages for mistakes, plans compared with trainers, short runs."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("trl")
pytest.importorskip("math_verify")

from helpers.recipes import nested
from transformers import AutoModelForCausalLM, BertConfig, MambaConfig
from trl import ModelConfig

from headwatch import HeadWatchCallback, RunFolder
from headwatch.attribution.settings import ScoringSettings
from headwatch.circuits.circuit import CircuitSettings
from headwatch.cli import main as command_line
from headwatch.demo.tiny_model import build_tokenizer
from headwatch.errors import UserError
from headwatch.monitor.alerts import AlertSettings
from headwatch.monitor.settings import WatchSettings, recorded
from headwatch.probes import Openers
from headwatch.stats import EvidenceSettings
from headwatch.training.data import DataArguments
from headwatch.training.launch import load_rows, main, make_plan, prepare, run
from headwatch.training.options import CONFIGS, OLD_NAMES, PREFIX, parse, read_recipe
from headwatch.training.smoke import write_stand_ins
from headwatch.training.trainer import load_tokenizer, make_trainer

SFT = {
    "method": "sft",
    "max_length": 1024,
    "n_problems": 12,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "headwatch.every": 2,
}
GRPO = {
    "method": "grpo",
    "num_generations": 4,
    "max_completion_length": 8,
    "max_prompt_tokens": 2048,
    "beta": 0.04,
    "per_device_train_batch_size": 8,
    "n_problems": 12,
    "max_steps": 2,
    "headwatch.every": 1,
    "save_strategy": "no",
}
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "logging_steps": 1,
    "learning_rate": "1e-3",
    "headwatch.probes": ["addition"],
    "headwatch.n_pairs": 4,
    "headwatch.scoring.steps": 1,
    "headwatch.strict": True,
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-ins")
    write_stand_ins(folder)
    return folder


@pytest.fixture
def recipe(stand_ins, tmp_path):
    """A function that writes a recipe for the stand-in model and rows, and returns its path."""

    def write(base, **options):
        where = {
            "model_name_or_path": str(stand_ins / "model"),
            "dataset_name": str(stand_ins / "gsm8k.jsonl"),
            "output_dir": str(tmp_path / "out"),
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(nested({**COMMON, **where, **base, **options}), sort_keys=False))
        return str(path)

    return write


# --- parsing ----------------------------------------------------------------------------------------------------------


def test_command_line_over_recipe_over_default(recipe):
    path = recipe(SFT, learning_rate="4e-5", weight_decay=0.1)
    made = parse(
        [path, "--learning_rate", "3e-6", "--headwatch.every=7", "--headwatch.probes", "carry", "recall"]
    ).build()
    assert (made.training.learning_rate, made.training.weight_decay, made.training.adam_beta1) == (3e-6, 0.1, 0.9)
    assert made.watch.every == 7
    assert made.watch.probes == ["carry", "recall"]
    assert parse(["--config", path]).values["learning_rate"] == 4e-5  # as text in the file, a number here


def test_bare_no_in_yaml_is_text(recipe, tmp_path):
    path = Path(recipe(SFT))
    path.write_text(path.read_text().replace("save_strategy: steps", "save_strategy: no"))
    assert parse([str(path)]).build().training.save_strategy == "no"


def test_extends(tmp_path):
    (tmp_path / "a.yaml").write_text("method: sft\nseed: 1\nmax_steps: 5\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nseed: 2\n")
    assert read_recipe(tmp_path / "b.yaml") == {"method": "sft", "seed": 2, "max_steps": 5}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--learnign_rate", "1"], ["learnign_rate", "nearest is learning_rate"]),
        (["--headwatch.evry=3"], ["headwatch.evry", "nearest is headwatch.every"]),
        (["--headwatch.evidence.p=3"], ["headwatch.evidence.p", "nearest is headwatch.evidence."]),
        (["--headwatch_every", "3"], ["--headwatch_every", "written --headwatch.every"]),
        (["--headwatch.every"], ["--headwatch.every", "value is missing"]),
        (["--headwatch.every", "often"], ["headwatch.every='often'", "whole number"]),
        (["--headwatch.q", "0.05"], ["headwatch.q: no such option", "nearest is headwatch.evidence.q"]),
        (["--headwatch", "50"], ["--headwatch:", "nearest is headwatch."]),
        (["--headwatch.evidence", "50"], ["headwatch.evidence=50: write options"]),
        (["--headwatch.every", "2", "3"], ["headwatch.every=[2, 3] must be a whole number, such as 100"]),
        (["--headwatch.report_to", "5"], ["headwatch.report_to=5 must be text or a list of names"]),
        (["--headwatch.folder", "2024"], ["headwatch.folder=2024 must be text"]),
        (["--headwatch.scoring.batch_size", "x"], ["headwatch.scoring.batch_size='x' must be a whole number"]),
        (["--headwatch.openers.questions", "5"], ["headwatch.openers.questions=5 must be text or a list of names"]),
        (["--headwatch.probes", "recall", "additon"], ["headwatch.probes=", "'additon' is not a family"]),
        (["--headwatch.strict", "2"], ["headwatch.strict=2", "true or false"]),
        (["--num_generations", "4"], ["num_generations", "option of grpo"]),
        (["--max_steps", "many"], ["max_steps", "many"]),
        (["--learn", "1"], ["learn", "no such option"]),  # no abbreviations
        (["stray"], ["stray", "which option"]),
        (["--headwatch.every", "0"], ["headwatch.every=0", "at least 1"]),
        (["--headwatch.probes", "additon"], ["additon"]),
        (["--headwatch.scoring.alphas", "sideways"], ["headwatch.scoring.alphas='sideways'"]),
        (["--method", "ppo"], ["ppo", "method: sft"]),
        (["--stop_tokens", "<|eot|>"], ["stop_tokens", "<|eot|>"]),
        (["--chat_template", "nowhere.jinja"], ["nowhere.jinja", "chatml"]),
        (["--model_name_or_path", "./nowhere"], ["./nowhere", "no such folder"]),
        (["--dataset_name", "./nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["--max_length", "10"], ["no row is left"]),
        (["--resume_from_checkpoint", "true"], ["resume_from_checkpoint", "no checkpoint"]),
        (["--logging_strategy", "sometimes"], ["sometimes"]),
        (["--headwatch.evidence.q", "2"], ["headwatch.evidence.q=2", "between 0 and 1"]),
        (["--headwatch.evidence.carry", "0.95"], ["headwatch.evidence.carry=0.95", "keep=0.9"]),
        (["--headwatch.evidence.confirm", "twice"], ["headwatch.evidence.confirm='twice'", "'either'"]),
        (["--headwatch.wandb", "maybe"], ["headwatch.wandb='maybe'", "'start'"]),
        (["--headwatch.report_to", "nowhere"], ["headwatch.report_to='nowhere'", "tensorboard"]),
        (
            ["--headwatch.alerts", "{min_dropp: 0.1}"],
            ["headwatch.alerts.min_dropp", "nearest is headwatch.alerts.min_drop"],
        ),
        (["--headwatch.alerts", "{min_drop: x}"], ["headwatch.alerts.min_drop='x'", "a number"]),
        (["--headwatch.alerts", "{min"], ["headwatch.alerts='{min'", "name: value"]),
        (["--keep_optimizers", "0"], ["--keep_optimizers 0", "at least 1"]),
        (["--per_device_train_batch_size", "0"], ["--per_device_train_batch_size 0", "at least 1"]),
        (["--output_dir", "/proc/nowhere/x"], ["--output_dir /proc/nowhere/x", "cannot be made"]),
        (["--dataset_name", "nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["--model_name_or_path", "nobody/no-such-model"], ["--model_name_or_path nobody/no-such-model", "tokenizer"]),
    ],
)
def test_mistakes_are_one_line(recipe, capsys, typed, said):
    assert command_line(["train", recipe(SFT), *typed]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("headwatch: ")
    assert all(word in lines[-1] for word in said), lines[-1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: sft\nlearnign_rate: 1\n", "nearest is learning_rate"),
        ("method: sft\nmax_steps: [1, 2]\n", "max_steps: give one value"),
        ("method: sft\nmax_steps: 1.5\n", "1.5"),
        ("method: sft\n  bad: [\n", "line"),
        ("just text", "a list of lines"),
        ("seed: 1\n", "method: sft"),
        ("method: grpo\nrewards: [acuracy]\n", "did you mean accuracy"),
        ("extends: nowhere.yaml\n", "nowhere.yaml"),
        (
            "method: grpo\nrewards: [accuracy]\nreward_weights: [1, 2]\n",
            "--reward_weights 1.0 2.0: 2 for 1 of --rewards",
        ),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert main([str(path), "--use_cpu", "true", "--bf16", "false"]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BertConfig(architectures=["BertModel"]), "BertModel"),  # a class that TRL would take and cannot train
        (MambaConfig(architectures=["MambaForCausalLM"]), "MambaForCausalLM"),
    ],
)
@pytest.mark.parametrize("option", ["--dry-run", "--headwatch.strict=true"])
def test_unsupported_model_is_refused_before_weights_are_loaded(recipe, tmp_path, capsys, config, said, option):
    config.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    assert command_line(["train", recipe(SFT, model_name_or_path=str(tmp_path / "model")), option]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"headwatch: --model_name_or_path {tmp_path / 'model'}: model: {said}")
    assert "`headwatch doctor " in told


def test_invalid_chat_templates(recipe, tmp_path, capsys):
    for text, said in (("{% for", "not a chat template"), ("Hello", "leaves out the message text")):
        (tmp_path / "a.jinja").write_text(text)
        assert main([recipe(SFT), "--chat_template", str(tmp_path / "a.jinja")]) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]


# --- the callback's options -------------------------------------------------------------------------------------------


def test_callback_recipe_and_manifest_have_the_same_options(recipe):
    keywords = set(inspect.signature(HeadWatchCallback).parameters) - {"tokenizer"}
    assert {field.name for field in dataclasses.fields(WatchSettings)} == keywords
    assert set(WatchSettings().to_options()) == keywords
    assert PREFIX not in {
        f.name for c in (*CONFIGS.values(), ModelConfig, DataArguments) for f in dataclasses.fields(c)
    }


@pytest.mark.parametrize("name", list(OLD_NAMES))
@pytest.mark.parametrize("where", ["recipe", "command line"])
def test_old_flat_names_are_refused_with_the_new_one(name, where, recipe, capsys):
    path, typed = (recipe(SFT, **{name: 1}), []) if where == "recipe" else (recipe(SFT), [f"--{name}", "1"])
    assert command_line(["train", path, *typed]) == 2
    assert f"{name} is now headwatch.{OLD_NAMES[name]} (" in capsys.readouterr().err


def test_every_new_name_of_an_old_one_exists():
    for name in OLD_NAMES.values():
        found = WatchSettings()
        for part in name.split("."):
            found = getattr(found, part)


def test_recipe_options_reach_the_callback(recipe):
    evidence = {"q": 0.05, "min_change": 0.01, "carry": 0.7, "keep": 0.8, "weights": "equal", "test": "t"}
    evidence |= {"require_nonzero_share": False, "confirm": "next", "min_pairs": 4, "min_gap_t": 2.0}
    options = {f"headwatch.evidence.{name}": value for name, value in evidence.items()}
    options |= {"headwatch.alerts": {"min_drop": 0.2, "window": 4}, "headwatch.report_to": "none"}
    path = recipe(SFT, **options)
    made = parse([path, "--headwatch.wandb", "off"]).build().watch
    assert made.evidence == EvidenceSettings(0.7, 0.8, 0.05, 0.01, 4, 2.0, "t", "next", "equal", False)
    assert made.alerts == AlertSettings(min_drop=0.2, window=4)
    assert (made.report_to, made.wandb) == ("none", "off")
    typed = parse([path, "--headwatch.alerts.min_drop", "0.3", "--headwatch.report_to", "trackio", "tensorboard"])
    assert typed.build().watch.alerts == AlertSettings(min_drop=0.3, window=4)
    assert typed.build().watch.report_to == ["trackio", "tensorboard"]
    assert parse([recipe(SFT)]).build().watch.evidence == EvidenceSettings()
    assert HeadWatchCallback.from_settings(made).settings == made


def test_settings_survive_a_recipe():
    """`to_options` gives plain YAML, and `from_options` makes equal settings of it."""
    options = {"probes": ["sums", "openers"], "scoring": {"metric": "nll", "batch_size": 3}, "circuit": {"tau": -0.1}}
    options |= {"evidence": {"q": 0.05}, "openers": {"questions": ("a.jsonl", "b/c.jsonl")}, "folder": "runs/1"}
    settings = WatchSettings.from_options(options)
    assert WatchSettings.from_options(yaml.safe_load(yaml.safe_dump(settings.to_options()))) == settings


def test_recorded_settings_hold_no_path():
    settings = WatchSettings(probes=__file__, folder="/home/me/runs", openers=Openers(questions="/home/me/q.jsonl"))
    options = recorded(settings, "logit_diff", has_openers=True)
    assert "folder" not in options
    assert (options["probes"], options["openers"]["questions"]) == (Path(__file__).name, ["q.jsonl"])


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        (["--headwatch.evidence.q=1e-3"], {"evidence": EvidenceSettings(q=0.001)}),  # text in YAML
        (["--headwatch.evidence.confirm", "none"], {"evidence": EvidenceSettings(confirm="none")}),
        (["--headwatch.wandb", "off"], {"wandb": "off"}),  # false in YAML
        (["--headwatch.strict", "no"], {"strict": False}),
        (
            ["--headwatch.circuit.top_n", "20", "--headwatch.circuit.tau", "-0.5"],
            {"circuit": CircuitSettings(20, -0.5)},
        ),
        (["--headwatch.scoring.memory_budget_gb", "1e1"], {"scoring": ScoringSettings(steps=1, memory_budget_gb=10.0)}),
        (["--headwatch.n-pairs", "9", "--max_steps", "3"], {"n_pairs": 9}),
        (["--headwatch.probes", "recall", "--headwatch.probes", "carry"], {"probes": "carry"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_line_options_reach_the_callback(recipe, typed, settings):
    watch = parse([recipe(SFT), *typed]).build().watch
    assert {name: getattr(watch, name) for name in settings} == settings


def test_extends_merges_the_block_option_by_option(tmp_path):
    (tmp_path / "a.yaml").write_text("method: sft\nheadwatch:\n  every: 5\n  evidence: {q: 0.05, carry: 0.7}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nheadwatch:\n  n_pairs: 8\n  evidence: {q: 0.1}\n")
    block = read_recipe(tmp_path / "b.yaml")["headwatch"]
    assert block == {"every": 5, "n_pairs": 8, "evidence": {"q": 0.1, "carry": 0.7}}


def test_recipe_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        read_recipe(tmp_path / "a.yaml")


def test_written_recipe_can_be_run_again_and_holds_no_secret(recipe, tmp_path):
    path = recipe(SFT, model_init_kwargs={"token": "hf_secret", "low_cpu_mem_usage": True}, eos_token="<|im_end|>")
    options = parse([path, "--hub_token", "hf_secret", "--headwatch.every", "3"])
    written = yaml.safe_dump(options.recorded())
    assert "hf_secret" not in written
    (tmp_path / "again.yaml").write_text(written)
    again = parse([str(tmp_path / "again.yaml")])
    assert again.settings() == options.settings()
    assert again.values["eos_token"] == "<|im_end|>"  # a token of the tokenizer, not a secret
    assert again.values["model_init_kwargs"] == {"low_cpu_mem_usage": True}
    assert again.values["max_steps"] == options.values["max_steps"]


def test_other_commands_refuse_unknown_options(capsys):
    assert command_line(["demo", "--quikc"]) == 2
    assert "--quikc" in capsys.readouterr().err


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "options"),
    [
        (SFT, {"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 4, "n_problems": 13}),
        (GRPO, {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "n_problems": 13}),
    ],
    ids=["sft", "grpo"],
)
def test_planned_steps_equal_the_trainers(recipe, base, options):
    made = parse([recipe(base, **options)]).build()
    tokenizer = load_tokenizer(made)
    plan = make_plan(made, tokenizer)
    rows = load_rows(made.data)
    prepared = prepare(
        rows, made.data, tokenizer, made.launch.method, max_length=getattr(made.training, "max_length", 0)
    )
    trainer = make_trainer(made, tokenizer, prepared)
    batches = trainer.get_train_dataloader()
    assert plan.steps == trainer.set_initial_training_values(made.training, batches)[-1]
    assert plan.parameters == sum(p.numel() for p in trainer.model.parameters())


def test_dry_run_prints_the_plan_only(recipe, capsys, tmp_path):
    path = recipe(GRPO, use_peft=True, lora_target_modules="all-linear", wandb_project="my-project", report_to="wandb")
    assert command_line(["train", path, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 prompts x 4 completions (8 x 1 x 1 = 8)" in said
    assert "1 x accuracy + 1 x format + 1 x tag_count" in said
    assert "3 (step 0, every 1, the last), 4 pairs of addition" in said
    assert "W&B project my-project; probes: auto, W&B run: auto" in said
    assert "carry 0.8, keep 0.9, q 0.01, min_change 0.005" in said
    assert "min_drop 0.05" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "3 kept (every 2 steps, and the last) of {one:.1f} GB, the last 3 with {two:.1f} GB of optimizer"),
        ({"keep_optimizers": 2}, "the last 2 with"),
        ({"save_total_limit": 2, "keep_optimizers": 3}, "2 kept (every 2 steps, and the last) of"),
        ({"save_steps": 0.5}, "2 kept (every 3 steps, and the last)"),
        ({"save_only_model": True}, "not resumable"),
        ({"save_strategy": "no"}, "none (no); the final model"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_planned_disk_space(recipe, options, said):
    made = parse([recipe(SFT, max_steps=5, **options)]).build()
    plan = make_plan(made, load_tokenizer(made))
    plan = dataclasses.replace(plan, trainable=10**9)
    assert said.format(one=4, two=8) in plan.checkpoints()
    if not options:
        assert plan.checkpoints().endswith("about 40 GB with the final model")  # 4 x 4 + 3 x 8


def test_planned_lora_parameters(recipe):
    made = parse([recipe(SFT, use_peft=True, lora_r=4, lora_target_modules="all-linear")]).build()
    tokenizer = load_tokenizer(made)
    plan = make_plan(made, tokenizer)
    prepared = prepare(load_rows(made.data), made.data, tokenizer, "sft", max_length=1024)
    trainer = make_trainer(made, tokenizer, prepared)
    assert plan.trainable == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_sft_and_its_recipe_launched_again(recipe, tmp_path, capsys):
    run([recipe(SFT)])
    assert "processes: 1, sharding: one process\n" in capsys.readouterr().out
    record = RunFolder.open(tmp_path / "out" / "headwatch")
    assert record.steps == [0, 2, 4]
    assert record.manifest["status"] == "finished"
    again = parse([str(tmp_path / "out" / "recipe.yaml")]).build()
    assert again.training.learning_rate == 1e-3
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_grpo_rewards_and_stop_tokens(recipe, tmp_path):
    path = recipe(GRPO, stop_tokens=["<|im_end|>", "<|endoftext|>"], rewards=["accuracy", "format", "tag_count"])
    trainer = run([path])
    logs = RunFolder.open(tmp_path / "out" / "headwatch").training()
    for name in ("accuracy", "format", "tag_count"):
        assert any(f"rewards/{name}/mean" in row for row in logs)
    ids = trainer.processing_class.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert trainer.eos_token_ids == trainer.generation_config.eos_token_id == ids


def test_context_length_changes_only_the_limit(recipe):
    trainer = run([recipe(SFT, max_steps=1, context_length=16384, save_strategy="no")])
    saved = json.loads(Path(trainer.args.output_dir, "config.json").read_text())
    assert saved["max_position_embeddings"] == 16384
    assert saved["rope_parameters"]["rope_theta"] == 10000.0


def test_checkpoint_without_optimizer_is_refused(recipe, tmp_path):
    path = recipe(SFT, save_only_model=True)
    run([path])
    with pytest.raises(UserError, match="--save_only_model false"):
        run([path, "--resume_from_checkpoint", "last"])


@pytest.mark.slow
def test_two_processes_by_torchrun(recipe, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "headwatch.training", recipe(SFT, ddp_backend="gloo")],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert RunFolder.open(tmp_path / "out" / "headwatch").steps == [0, 2, 4]
    assert done.stdout.count("recipe: ") == done.stdout.count("processes: 2, sharding: DDP\n") == 1
