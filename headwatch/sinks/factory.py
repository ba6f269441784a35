"""Create the sinks of a training: those that the trainer reports to, or those that are named."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from headwatch.errors import UserError
from headwatch.sinks.base import Sink
from headwatch.sinks.tensorboard import TensorBoardSink, trainers_folder
from headwatch.sinks.trackio import TrackioSink
from headwatch.sinks.wandb import WandbSink

NAMES = ("wandb", "trackio", "tensorboard")


def check_report_to(report_to: str | Sequence[str], wandb: str) -> tuple[str, ...] | None:
    """The names that were asked for; None for "auto".

    Raises:
        UserError: an unknown name or mode, a service that is not installed, or a contradiction between the two options.
    """
    if wandb not in ("auto", "start", "off"):
        raise UserError(f"wandb={wandb!r}: use 'auto' (the run that exists), 'start' (or a new one) or 'off'")
    if report_to == "auto":
        return None
    names = () if report_to == "none" else (report_to,) if isinstance(report_to, str) else tuple(report_to)
    for name in names:
        if name not in NAMES:
            raise UserError(f"report_to={report_to!r}: use 'auto', 'none', or names out of {', '.join(NAMES)}")
        if find_spec(name) is None:
            raise UserError(f"report_to={report_to!r}, but {name} is not installed: pip install 'headwatch[{name}]'")
    if (wandb == "start" and "wandb" not in names) or (wandb == "off" and "wandb" in names):
        raise UserError(f"report_to={report_to!r} contradicts wandb={wandb!r}: leave one of them out")
    return names


def make_sinks(
    names: tuple[str, ...] | None,
    wandb: str,
    args: Any,
    *,
    config: Mapping[str, object],
    wandb_run: Mapping[str, str | None] | None = None,
) -> list[Sink]:
    """The sinks of one training.

    Args:
        names: what `check_report_to` returned. None ("auto") is W&B as `wandb` says, and trackio and TensorBoard where
            the trainer reports to them.
        wandb: "auto", "start" or "off".
        args: the trainer's arguments.
        config: shown beside the run, where a sink makes one.
        wandb_run: the W&B run that a resumed training began with: id, project and entity.
    """
    if names is None:
        asked = getattr(args, "report_to", None) or ()
        asked = (asked,) if isinstance(asked, str) else asked
        names = ("wandb", *(name for name in asked if name in NAMES and name != "wandb"))
    name = getattr(args, "run_name", None)
    before = wandb_run or {}
    sinks: list[Sink] = []
    if "wandb" in names and wandb != "off":
        project, run_id, entity = (before.get(key) for key in ("project", "id", "entity"))
        sinks.append(WandbSink(wandb, name=name, config=config, project=project, run_id=run_id, entity=entity))
    if "trackio" in names:
        sinks.append(TrackioSink(getattr(args, "project", None) or "headwatch", name, config))
    if "tensorboard" in names:
        sinks.append(TensorBoardSink(trainers_folder(args.output_dir)))
    return sinks
