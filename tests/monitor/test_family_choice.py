"""Families chosen by a look at the model, where the user named none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch import HeadWatchCallback, RunFolder
from headwatch.attribution.metrics import Reads
from headwatch.monitor import family_choice
from headwatch.monitor.family_choice import FamilyChoice, Look, choose_families, look_at, ranked
from headwatch.monitor.settings import WatchSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def far_from_clean(logits: Tensor, clean_logits: Tensor, reads: Reads) -> Tensor:
    """A metric on which every family has signal: 0 for the clean prompt."""
    return (logits - clean_logits).abs().mean(dim=(-1, -2))


def test_without_signal_all_families_are_looked_at_and_the_line_says_what_to_try(loaded: tuple[Any, Any]) -> None:
    choice = choose_families(*loaded, "logit_diff", 64, 4.0)
    assert {look.family for look in choice.looks} == {"recall", *family_choice.ARITHMETIC}
    assert not any(look.has_signal for look in choice.looks)
    assert len(choice.families) == 2
    assert "no built-in family has signal" in choice.line
    assert "probes='openers'" in choice.line
    assert choose_families(*loaded, "logit_diff", 64, 4.0) == choice


def test_the_first_arithmetic_family_with_signal_is_taken(loaded: tuple[Any, Any]) -> None:
    choice = choose_families(*loaded, far_from_clean, 64, 4.0)
    assert choice.families == ("addition", "recall")
    assert [look.family for look in choice.looks] == ["recall", "addition"]  # the others were not needed
    assert "addition and recall chosen, which have signal" in choice.line
    assert "recall chosen, which has signal" in FamilyChoice(("recall",), choice.looks).line


def test_the_look_is_the_probe_on_fewer_pairs_and_changes_nothing(loaded: tuple[Any, Any]) -> None:
    tokenizer, model = loaded
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    look = look_at("recall", tokenizer, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    import headwatch as hw

    probes = hw.ProbeSet.generate("recall", tokenizer, family_choice.LOOK_PAIRS)
    readings = hw.score_heads(model, probes, steps=1).readings
    assert look is not None
    assert look.gap == pytest.approx(float((readings.metric_corrupted - readings.metric_clean).mean()), rel=1e-4)
    assert look.accuracy == float(readings.correct.float().mean())


def test_control_without_arithmetic() -> None:
    only = [Look("recall", -5.0, -9.0, 0.9, True), *(Look(f, 0.0, 1.0, 0.0, False) for f in family_choice.ARITHMETIC)]
    assert ranked(only) == ("recall",)
    assert ranked([]) == ("addition", "recall")


def test_the_choice_is_in_the_manifest_and_kept_on_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WatchSettings(probes="auto") == WatchSettings()
    watch = {"every": 2, "n_pairs": 16, "strict": True}
    sft_trainer(
        folder, tmp_path, [HeadWatchCallback(**watch)], max_steps=2, save_strategy="steps", save_steps=2
    ).train()
    run = RunFolder.open(tmp_path)
    looks = run.manifest["probes"]["chosen_by_look"]["families"]
    assert len(looks) == 6
    assert set(run.families) <= {look["family"] for look in looks}
    monkeypatch.setattr(family_choice, "look_at", lambda *_: pytest.fail("the record has the families"))
    trainer = sft_trainer(folder, tmp_path, [HeadWatchCallback(**watch)], max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    again = RunFolder.open(tmp_path)
    assert again.steps == [0, 2, 4]
    assert again.families == run.families
