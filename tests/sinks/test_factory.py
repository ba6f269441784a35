"""Which sinks a training gets."""

from types import SimpleNamespace
from typing import Any

import pytest

from headwatch.errors import UserError
from headwatch.sinks import check_report_to, make_sinks


def names(report_to: Any = "auto", wandb: str = "auto", trainer: Any = ()) -> list[str]:
    args = SimpleNamespace(report_to=trainer, run_name="r", project="p", output_dir="nowhere")
    chosen = make_sinks(check_report_to(report_to, wandb), wandb, args, config={})
    return [type(sink).__name__.removesuffix("Sink").lower() for sink in chosen]


def test_auto_follows_the_trainer_and_any_live_wandb_run() -> None:
    assert names() == ["wandb"]
    assert names(trainer=["tensorboard", "mlflow", "wandb"]) == ["wandb", "tensorboard"]
    assert names(trainer="trackio") == ["wandb", "trackio"]
    assert names(wandb="off", trainer=["tensorboard"]) == ["tensorboard"]
    assert names(trainer=None) == ["wandb"]


def test_names_are_taken_literally() -> None:
    assert names("none", trainer=["tensorboard"]) == []
    assert names("tensorboard", trainer=["trackio"]) == ["tensorboard"]
    assert names(["trackio", "wandb"]) == ["wandb", "trackio"]
    assert names(("wandb",), wandb="start") == ["wandb"]


@pytest.mark.parametrize(
    ("report_to", "wandb", "words"),
    [
        ("mlflow", "auto", "report_to='mlflow'"),
        (["wandb", "x"], "auto", "report_to="),
        ("tensorboard", "start", "contradicts wandb='start'"),
        ("wandb", "off", "contradicts wandb='off'"),
        ("auto", "yes", "wandb='yes'"),
    ],
)
def test_what_makes_no_sense_is_refused(report_to: Any, wandb: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_report_to(report_to, wandb)


def test_a_service_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwatch.sinks.factory.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'headwatch\[trackio\]'"):
        check_report_to("trackio", "auto")
