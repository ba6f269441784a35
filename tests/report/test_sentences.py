import numpy as np
import pytest
from helpers.plain_run import write_plain_run

from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, sentences


@pytest.fixture(scope="module")
def history(grpo: RunFolder) -> HeadHistory:
    return HeadHistory.from_run(grpo)


@pytest.fixture(scope="module")
def circuit(grpo: RunFolder) -> HeadHistory:
    return HeadHistory.from_run(grpo, rule="circuit")


def test_headlines(history: HeadHistory, circuit: HeadHistory):
    headline = sentences.headline(history)
    assert headline.startswith(f"{history.newly_active()[-1]} heads emerged")
    assert "addition" in headline
    assert f"{history.counts()['pruned'][-1]} more heads emerged and were pruned." in headline
    assert "Membership is not tested" in sentences.headline(circuit)


@pytest.mark.parametrize(
    ("steps", "gap", "expected"),
    [
        ([], 6.0, "No probe has been taken yet"),
        ([0], 6.0, "No training step has been probed yet"),
        ([0, 10, 20], 6.0, "No head has emerged and no base head was dropped on addition by step 20"),
        ([0, 10], 0.0, "Insufficient signal"),
    ],
)
def test_headlines_without_events(tmp_path, steps: list[int], gap: float, expected: str):
    assert expected in sentences.headline(HeadHistory.from_run(write_plain_run(tmp_path, steps, gap=gap)))


@pytest.mark.parametrize("limit", [3.0, 40.5])
def test_summary(history: HeadHistory, circuit: HeadHistory, limit: float):
    accuracy = [0.5] * (len(history.steps) - 1) + [0.75]
    found = sentences.summary(history, circuit, accuracy, null_band=(1.0, limit))
    assert (found["family"], found["status"]) == ("addition", "ok")
    strongest, shares, lives, membership, power, paper, task = found["sentences"]
    layer, head = np.unravel_index(np.abs(history.share[-1]).argmax(), history.share[-1].shape)
    assert strongest.startswith(f"Largest shares of the metric gap: L{layer}.H{head} ")
    moved = figure_data.changes(history)
    assert shares.startswith(f"{moved['strengthened'][-1]} heads strengthened and {moved['weakened'][-1]} weakened")
    newly = np.isin(history.state, (4, 6))
    interrupted = (np.diff(newly.astype(int), axis=0) < 0).any(axis=0)
    new = newly[-1] & ~newly[:-1].any(axis=0)
    assert lives.startswith(f"{newly.any(axis=0).sum()} heads emerged (")
    assert f"{(newly[-1] & ~interrupted & ~new).sum()} stayed active" in lives
    assert f"{(newly[-1] & interrupted).sum()} pruned and re-emerged" in lives
    assert f"{(newly.any(axis=0) & ~newly[-1]).sum()} pruned)" in lives
    changed, band = (history.member[-1] ^ history.member[0]).sum(), history.null_band[-1]
    assert f"changed for {changed} heads, {'within' if changed <= band.high else 'above'} its null band" in membership
    assert f"({band.low:.0f} to {band.high:.0f} between two samples of one probe’s pairs)" in membership
    n = f"{(history.active[-1] & history.detectable[-1]).sum()} of the {history.active[-1].sum()} active heads"
    assert power == f"Detection power: the loss of {n} would be detected ({history.n_pairs} pairs)."
    n_changed = circuit.newly_active()[-1] + circuit.counts()["dropped"][-1]
    assert 3 < n_changed < 40
    assert f"circuit membership changed for {n_changed} heads" in paper
    assert f"{'within' if limit > 40 else 'above'} its null band (1 to {limit:g} between two halves of one" in paper
    assert "not tested" in paper
    assert task.startswith("Probe accuracy 50 % → 75 %, metric gap ")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_line_of_a_family_names_its_heads(history: HeadHistory, most: int, monkeypatch: pytest.MonkeyPatch):
    """The largest |share| first, and how many more there are."""
    monkeypatch.setattr(sentences, "MAX_NAMES", most)
    line = sentences.summary(history)["line"]
    for word, states in (("emerged", (4, 6)), ("pruned", (5,)), ("dropped", (3,))):
        heads = np.argwhere(np.isin(history.state[-1], states))
        names = [f"L{layer}.H{h}" for layer, h in sorted(heads, key=lambda at: -abs(history.share[-1][tuple(at)]))]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        assert f"{word} ({', '.join(names[:most])}{more})" in line


def test_a_family_with_a_changed_share_says_so_and_comes_first(tmp_path):
    """No event: the strongest head of the base gets stronger."""
    same = HeadHistory.from_run(write_plain_run(tmp_path / "same", [0, 10]))
    run = write_plain_run(tmp_path / "changed", [0, 10])
    scores = run.read_scores(10)
    layer, head = np.unravel_index(np.abs(scores.head_scores.mean(0)).argmax(), scores.head_scores.shape[1:])
    scores.head_scores[:, layer, head] *= 1.3
    run.write_scores(10, scores)
    changed = HeadHistory.from_run(run)
    assert changed.events == []
    assert f"though the share of 1 head (L{layer}.H{head}) changed" in sentences.headline(changed)
    before, now = (sentences.summary(history) for history in (same, changed))
    assert before["line"] == "no event, 8 active heads"
    assert now["line"].startswith("no event, ")
    assert now["line"].endswith(", 1 changed share")
    assert now["weight"] > before["weight"] + 500


@pytest.mark.parametrize(("below", "expected"), [(0, "within"), (1, "above")])
def test_edge_of_the_null_band_is_inside(history: HeadHistory, circuit: HeadHistory, below: int, expected: str):
    high = circuit.newly_active()[-1] + circuit.counts()["dropped"][-1] - below
    text = " ".join(sentences.summary(history, circuit, null_band=(0.0, float(high)))["sentences"])
    assert f"dropped), {expected} its null band (0 to {high} between two halves" in text


def test_without_null_band_or_circuit(history: HeadHistory, circuit: HeadHistory):
    paper = next(text for text in sentences.summary(history, circuit)["sentences"] if "paper’s" in text)
    assert "null band" not in paper
    assert not any("paper’s" in text for text in sentences.summary(history)["sentences"])


@pytest.mark.parametrize(
    ("steps", "gap", "status", "expected"),
    [
        ([], 6.0, "no probe", None),
        ([0], 6.0, "base only", "no later probe"),
        ([0, 10], 0.0, "insufficient signal", "at every probe so far"),
        ([0, 10, 20], 6.0, "ok", "None of 16 heads changed"),
    ],
)
def test_status(tmp_path, steps: list[int], gap: float, status: str, expected: str | None):
    found = sentences.summary(HeadHistory.from_run(write_plain_run(tmp_path, steps, gap=gap)))
    assert found["status"] == status
    assert found["sentences"] == [] if expected is None else any(expected in text for text in found["sentences"][:2])


def test_coupling(grpo: RunFolder, sft: RunFolder, history: HeadHistory):
    (text,) = sentences.coupling(history, grpo.training())
    found = history.coupling(grpo.training(), "reward")
    assert text.startswith(f"Newly active heads and reward: rank correlation {found.rho:+.2f} over 10 probes;")
    assert f"inflate, {found.rho_changes:+.2f}. Lagged test of the changes: " in text
    assert sentences.coupling(history, sft.training()) == []  # no reward
    unchanged = [{"step": step, "reward": 1.0} for step in history.steps]
    assert "no correlation over 10 probes: one of the two never changes." in sentences.coupling(history, unchanged)[0]
