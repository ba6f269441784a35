import numpy as np
import pytest
from helpers.plain_run import write_plain_run

from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, sentences


@pytest.mark.parametrize("limit", [3.0, 40.5])
def test_summary_says_what_the_statistics_carry(grpo: RunFolder, limit: float):
    history, circuit = HeadHistory.from_run(grpo), HeadHistory.from_run(grpo, rule="circuit")
    told = sentences.summary(history, circuit, [0.5] * (len(history.steps) - 1) + [0.75], chance=(1.0, limit))
    assert (told["family"], told["status"]) == ("addition", "ok")
    moved = figure_data.changes(history)
    first, second, third, resolved, fourth, fifth = told["sentences"]
    assert first.startswith(f"{moved['strengthened'][-1]} heads strengthened and {moved['weakened'][-1]} weakened")
    newly = np.isin(history.state, (4, 6))
    left = (np.diff(newly.astype(int), axis=0) < 0).any(axis=0)
    late = newly[-1] & ~newly[:-1].any(axis=0)
    assert f"{(newly[-1] & ~left & ~late).sum()} emerged and stayed" in second
    assert f"{(newly[-1] & left).sum()} emerged, went and came back" in second
    assert f"{(newly.any(axis=0) & ~newly[-1]).sum()} emerged and went again" in second
    changed = (history.member[-1] ^ history.member[0]).sum()
    band = history.null_band[-1]
    assert (
        f"changed by {changed}; two samples of one probe’s pairs differ by {band.low:.0f} to {band.high:.0f}" in third
    )
    assert ("within" if changed <= band.high else "more than") in third
    n = f"{(history.active[-1] & history.detectable[-1]).sum()} of the {history.active[-1].sum()} active heads"
    assert resolved.startswith(f"On these {history.n_pairs} pairs the loss of {n} would be told")
    paper = circuit.newly_active()[-1] + circuit.counts()["dropped"][-1]
    assert f"membership count changed by {paper}" in fourth
    assert 3 < paper < 40
    assert ("within" if limit > 40 else "more than") + " its own null band" in fourth
    assert f"halves of one probe’s pairs differ by 1 to {limit:g};" in fourth
    assert "not tested" in fourth
    assert fifth.startswith("Probe accuracy 50 % → 75 %, metric gap ")


def test_a_count_at_the_edge_of_its_band_is_inside(grpo: RunFolder):
    history, circuit = HeadHistory.from_run(grpo), HeadHistory.from_run(grpo, rule="circuit")
    paper = circuit.newly_active()[-1] + circuit.counts()["dropped"][-1]
    for limit, said in ((paper, "within"), (paper - 1, "more than")):
        told = " ".join(sentences.summary(history, circuit, chance=(0.0, float(limit)))["sentences"])
        assert f"gone), {said} its own null band: two halves" in told


def test_nothing_is_said_of_a_null_band_that_is_not_there(grpo: RunFolder):
    told = sentences.summary(HeadHistory.from_run(grpo), HeadHistory.from_run(grpo, rule="circuit"))
    paper = next(sentence for sentence in told["sentences"] if "paper’s" in sentence)
    assert "differ" not in paper
    assert not any("paper’s" in sentence for sentence in sentences.summary(HeadHistory.from_run(grpo))["sentences"])


@pytest.mark.parametrize(
    ("steps", "gap", "status", "said"),
    [
        ([], 6.0, "no probe", None),
        ([0], 6.0, "base only", "no later probe"),
        ([0, 10], 0.0, "insufficient signal", "at every probe so far"),
        ([0, 10, 20], 6.0, "ok", "None of 16 heads changed"),
    ],
)
def test_statuses_are_said_plainly(tmp_path, steps: list[int], gap: float, status: str, said: str | None):
    told = sentences.summary(HeadHistory.from_run(write_plain_run(tmp_path, steps, gap=gap)))
    assert told["status"] == status
    assert told["sentences"] == [] if said is None else said in told["sentences"][0]
