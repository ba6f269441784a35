"""The KL from the base model: what was kept of it, a lower bound where it was lumped, and the same under LoRA."""

import itertools
from pathlib import Path

import pytest
import torch
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from torch import Tensor

from headwatch import HeadWatchCallback, ProbeSet, RunFolder, UserError
from headwatch.attribution import base_kl as module
from headwatch.attribution.base_kl import AnswerObserver, BaseAnswers, lumped
from headwatch.attribution.metrics import Reads
from headwatch.record.base_answers import load_base_answers, save_base_answers


def reads(n: int, positions: int, real: int | None = None) -> Reads:
    present = (torch.arange(positions) < (real or positions)).expand(n, positions)
    return Reads(torch.zeros(n, 2, dtype=torch.long), torch.zeros(n, positions, dtype=torch.long), present)


def observed(base: Tensor, now: Tensor, real: int | None = None) -> tuple[Tensor, BaseAnswers]:
    """The KL [N] of logits [N, P, V], in two batches whose pairs come in any order."""
    n, positions = base.shape[:2]
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    first = AnswerObserver(None, n, positions)
    for part in rows.split(3):
        first(part, base[part], reads(len(part), positions, real))
    assert torch.equal(first.kl, torch.zeros(n))
    answers = first.answers()
    assert answers is not None
    second = AnswerObserver(answers, n, positions)
    for part in rows.flip(0).split(2):
        second(part, now[part], reads(len(part), positions, real))
    return second.kl, answers


def full_kl(base: Tensor, now: Tensor) -> Tensor:
    p, q = now.double().log_softmax(-1), base.double().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)  # KL(p || q)


def test_a_small_vocabulary_is_kept_whole() -> None:
    torch.manual_seed(0)
    base, now = torch.randn(7, 2, 50), torch.randn(7, 2, 50)
    kl, answers = observed(base, now)
    assert answers.tokens is None
    torch.testing.assert_close(kl.double(), full_kl(base, now).mean(1), atol=1e-5, rtol=1e-5)
    kl, _ = observed(base, now, real=1)  # only the first read position exists
    torch.testing.assert_close(kl.double(), full_kl(base, now)[:, 0], atol=1e-5, rtol=1e-5)
    kl, _ = observed(base, base)
    assert torch.equal(kl, torch.zeros(7))


def test_a_large_vocabulary_is_lumped_to_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(module, "WHOLE_VOCABULARY", 100)
    base = 4 * torch.randn(6, 1, 300)
    now = base + torch.randn(6, 1, 300)
    truth, kls = full_kl(base, now)[:, 0], []
    for k in (1, 10, 100, 299):
        monkeypatch.setattr(module, "TOP_K", k)
        kl, answers = observed(base, now)
        assert answers.log_probs.shape == (6, 1, k + 1)
        assert (kl.double() <= truth + 1e-6).all()
        kls.append(kl.double())
        torch.testing.assert_close(answers.log_probs.double().exp().sum(-1), torch.ones(6, 1).double())
    assert all((later >= earlier - 1e-6).all() for earlier, later in itertools.pairwise(kls))
    torch.testing.assert_close(kls[-1], truth, atol=1e-5, rtol=1e-5)
    assert (kls[2] / truth > 0.9).all()


def test_mass_that_moves_to_an_unlikely_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE_VOCABULARY", 10)
    monkeypatch.setattr(module, "TOP_K", 5)
    base = torch.zeros(1, 1, 1000)
    base[..., :5] = 20.0
    now = base.clone()
    now[..., 700] = 40.0  # not among the five
    kl, _ = observed(base, now)
    assert kl.item() == pytest.approx(-lumped(base[0, 0], torch.arange(5))[-1].item(), rel=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_they_come_back_from_the_run_folder(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not whole:
        monkeypatch.setattr(module, "WHOLE_VOCABULARY", 10)
        monkeypatch.setattr(module, "TOP_K", 4)
    _, answers = observed(torch.randn(5, 2, 30), torch.randn(5, 2, 30))
    assert load_base_answers(tmp_path) is None
    save_base_answers(answers, tmp_path)
    read = load_base_answers(tmp_path)
    assert read is not None
    assert torch.equal(read.log_probs, answers.log_probs)
    assert (read.tokens is None) == whole
    assert whole or torch.equal(read.tokens, answers.tokens)
    (tmp_path / "base_answers.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="base_answers"):
        load_base_answers(tmp_path)


def answers_of(model: torch.nn.Module, probes: ProbeSet) -> Tensor:
    """Logits at each pair's read position, one plain call a pair."""
    model.eval()
    rows = []
    with torch.no_grad():
        for i in range(len(probes)):
            at = int(probes.read_positions[i, 0])
            start = int(probes.attention_mask[i].argmax())
            rows.append(model(probes.clean[i : i + 1, start : at + 1]).logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_records_the_kl_from_its_base(lora: bool, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    watch = HeadWatchCallback(["addition", "recall"], every=2, n_pairs=8, strict=True)
    before = sft_trainer(model, tmp_path / "x").model
    trainer = sft_trainer(model, tmp_path, [watch], lora=lora, learning_rate=3e-2)
    trainer.train()
    run = RunFolder.open(tmp_path)
    probes = ProbeSet.load(run.path / "probes.safetensors")
    assert not run.read_scores(0).kl_from_base.any()
    now = answers_of(trainer.model, probes)
    if lora:  # the base is what the adapter hides
        with trainer.model.disable_adapter():
            base = answers_of(trainer.model, probes)
        assert torch.allclose(base, answers_of(before, probes))
    else:
        base = answers_of(before, probes)
    truth = full_kl(base, now)
    assert truth.mean() > 1e-3
    found = torch.from_numpy(run.read_scores(5).kl_from_base).double()
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=1e-3)
    last = run.scalars()[-1]
    pairs = torch.from_numpy(run.pairs_of("recall"))
    assert last["recall/kl_from_base"] == pytest.approx(truth[pairs].mean().item(), rel=1e-3)
