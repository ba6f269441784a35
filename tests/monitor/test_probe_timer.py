"""max_overhead: probes are put off until a probe is a small enough share of the training since the last one."""

from pathlib import Path

import pytest
from helpers.tiny_trainers import save_tiny_model, sft_trainer

from headwatch import HeadWatchCallback, RunFolder, UserError
from headwatch.monitor.probe_timer import ProbeTimer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_probe_is_due_once_the_training_since_the_last_one_is_long_enough() -> None:
    clock = Clock()
    timer = ProbeTimer(0.1, clock)
    assert timer.is_due()
    timer.start_probe()
    clock.now += 3
    assert (timer.seconds(), timer.overhead()) == (3, None)  # the base probe: no training yet
    timer.end_probe()
    clock.now += 29
    assert not timer.is_due()
    assert "took 3.0 s and the 29 steps since 29.0 s" in timer.describe(29)
    assert "about 1 more steps" in timer.describe(29)
    clock.now += 1
    assert timer.is_due()
    timer.start_probe()
    clock.now += 6
    assert timer.overhead() == pytest.approx(0.2)
    timer.end_probe()
    clock.now += 59
    assert not timer.is_due()
    clock.now += 1
    assert timer.is_due()


def test_without_a_limit_every_probe_is_due() -> None:
    timer = ProbeTimer()
    timer.start_probe()
    timer.end_probe()
    assert timer.is_due()


def test_probes_of_a_training_are_put_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = save_tiny_model(tmp_path / "model")
    watch = HeadWatchCallback(["addition"], every=1, max_overhead=1e-9, n_pairs=4, strict=True)
    sft_trainer(model, tmp_path / "run", [watch], max_steps=4).train()
    run = RunFolder.open(tmp_path / "run")
    assert run.steps == [0, 4]
    assert run.scalars()[-1]["overhead"] > 0
    assert "overhead" not in run.scalars()[0]
    assert caplog.text.count("max_overhead=1e-09") == 1
    assert run.manifest["settings"]["max_overhead"] == 1e-9


@pytest.mark.parametrize("share", [0, -0.1, 2, True, "0.02"])
def test_a_share_that_is_none(share: object) -> None:
    with pytest.raises(UserError, match="max_overhead="):
        HeadWatchCallback(max_overhead=share)  # type: ignore[arg-type]
