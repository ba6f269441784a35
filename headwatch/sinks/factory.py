"""Create the sinks of a training: those that the trainer reports to, or those that are named."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from headwatch.errors import UserError
from headwatch.sinks.base import Sink
from headwatch.sinks.tensorboard import TensorBoardSink, trainer_log_folder
from headwatch.sinks.trackio import TrackioSink
from headwatch.sinks.wandb import WandbSink

NAMES = ("wandb", "trackio", "tensorboard")


def check_report_to(report_to: str | Sequence[str], wandb: str) -> tuple[str, ...] | None:
    """The sinks named by `report_to`; None for "auto".

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
        names: the result of `check_report_to`. None ("auto") is W&B, subject to `wandb`, and whichever of trackio and
            TensorBoard the trainer reports to.
        wandb: "auto", "start" or "off".
        args: the trainer's arguments.
        config: configuration of a run that a sink starts.
        wandb_run: id, project and entity of the W&B run that a resumed training continues.
    """
    if names is None:
        reported = getattr(args, "report_to", None) or ()
        reported = (reported,) if isinstance(reported, str) else reported
        names = ("wandb", *(name for name in reported if name in NAMES and name != "wandb"))
    name = getattr(args, "run_name", None)
    sinks: list[Sink] = []
    if "wandb" in names and wandb != "off":
        project, run_id, entity = ((wandb_run or {}).get(key) for key in ("project", "id", "entity"))
        sinks.append(WandbSink(wandb, name=name, config=config, project=project, run_id=run_id, entity=entity))
    if "trackio" in names:
        sinks.append(TrackioSink(getattr(args, "project", None) or "headwatch", name, config))
    if "tensorboard" in names:
        sinks.append(TensorBoardSink(trainer_log_folder(args.output_dir)))
    return sinks
