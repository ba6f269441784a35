"""The memory budget of a run: corrected by one measured batch, agreed once, the same after a resume."""

from collections.abc import Callable

import pytest
import torch
from helpers.tiny_models import random_pairs, tiny_model

from headwatch import ProbeSet
from headwatch.attribution import calibration
from headwatch.attribution.batch_size import GIB, default_budget_gb
from headwatch.attribution.calibration import Budget, corrected, measured_budget, planned_batches
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.monitor import run_budget
from headwatch.monitor.run_budget import RunBudget


def test_a_budget_is_corrected_by_what_a_batch_takes() -> None:
    assert corrected(16, lambda budget: (10, 12.5)) == Budget(12.8, 16, 10, 12.5)  # it takes a quarter more
    assert corrected(16, lambda budget: (10, 8)) == Budget(20, 16, 10, 8)
    assert corrected(16, lambda budget: (10, 2)).gb == 32  # at most twice
    for measured in (None, 0.5):  # unknown, or too little to say anything
        assert corrected(16, lambda budget, own=measured: (0.1, own)).gb == 16


def test_a_budget_that_does_not_fit_is_halved() -> None:
    tried: list[float] = []

    def measure(most: float) -> Callable[[float], tuple[float, float]]:
        def run(budget: float) -> tuple[float, float]:
            tried.append(budget)
            if budget > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return budget, 0.9 * budget

        return run

    assert corrected(16, measure(5)).gb == 4  # not raised again
    assert tried == [16, 8, 4]
    with pytest.raises(torch.OutOfMemoryError):
        corrected(16, measure(1))


def test_the_planned_batches_are_those_of_the_pass() -> None:
    model, probes = tiny_model("llama", torch.float32), random_pairs(7)
    settings = ScoringSettings(batch_size=3)
    found: list[list[int]] = []
    score_pairs(model, probes, settings, observe=lambda rows, clean, reads: found.append(rows.tolist()))
    planned = list(planned_batches(model, probes, settings))
    assert [list(each.pairs) for each in planned] == found
    assert all(each.estimated_gb > 0 for each in planned)


def test_the_largest_batch_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: the resident memory of the pass, of every batch that counts."""
    monkeypatch.setattr(calibration, "LEAST_MEASURED_GB", 0.0)
    model, probes = tiny_model("llama", torch.float32), random_pairs(2000)
    settings, metrics = ScoringSettings(memory_budget_gb=1.0), dict.fromkeys(probes.family_names, "logit_diff")
    largest = max(each.estimated_gb for each in planned_batches(model, probes, settings))
    budget = measured_budget(model, probes, metrics, settings)
    assert (budget.before_gb, budget.estimated_gb) == (1.0, largest)
    assert budget.measured_gb is not None
    # 0: the process holds enough memory that earlier tests have freed, and nothing can be said.
    expected = min(largest / budget.measured_gb, 2.0) if budget.measured_gb else 1.0
    assert budget.gb == pytest.approx(expected)


def settings_of(budget: RunBudget, settings: ScoringSettings, model: torch.nn.Module, probes: ProbeSet) -> float | None:
    metrics = dict.fromkeys(probes.family_names, "logit_diff")
    return budget.settings(settings, model, probes, metrics).memory_budget_gb


def test_a_run_keeps_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, with the free memory of a GPU of 40 GiB."""
    model, probes = tiny_model("llama", torch.float32), random_pairs(3)
    assert settings_of(RunBudget(), ScoringSettings(), model, probes) is None  # a CPU: each pass has its default
    monkeypatch.setattr(run_budget, "free_bytes", lambda device: 40 * GIB)
    before, budget = default_budget_gb(model, 40 * GIB), RunBudget()
    assert settings_of(budget, ScoringSettings(), model, probes) == before  # a small batch corrects nothing
    entry = budget.to_record()
    assert entry is not None
    assert (entry["gb"], entry["before_gb"]) == (before, before)
    assert entry["estimated_gb"] > 0
    assert budget.to_record() is None  # once
    for own in (ScoringSettings(batch_size=3), ScoringSettings(memory_budget_gb=1.0)):
        assert settings_of(RunBudget(), own, model, probes) == own.memory_budget_gb

    resumed = RunBudget(entry | {"gb": 17.0})
    monkeypatch.setattr(run_budget, "free_bytes", lambda device: 38 * GIB)
    assert settings_of(resumed, ScoringSettings(), model, probes) == 17.0
    monkeypatch.setattr(run_budget, "free_bytes", lambda device: 20 * GIB)  # another device
    assert settings_of(RunBudget(entry), ScoringSettings(), model, probes) == default_budget_gb(model, 20 * GIB)


def test_a_batch_that_cannot_be_measured_leaves_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe itself reports what is wrong."""
    model, probes = tiny_model("llama", torch.float32), random_pairs(3)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    monkeypatch.setattr(run_budget, "free_bytes", lambda device: 40 * GIB)
    assert settings_of(RunBudget(), ScoringSettings(), model, probes) == default_budget_gb(model, 40 * GIB)
