"""The manifest of a run: what is watched, on which model and pairs, in which training."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headwatch.model.anatomy import Anatomy
from headwatch.version import __version__, versions

TRAINING = ("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "seed")


def manifest_of(
    args: Any, model: Any, anatomy: Anatomy, settings: Mapping[str, Any], probes: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a run that begins.

    Args:
        args: the trainer's arguments.
        model: the model.
        anatomy: its parts.
        settings: of the callback, as they are recorded.
        probes: description of the pairs (`describe_probes`).
    """
    return {
        "headwatch_version": __version__,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "model": {
            "name": _model_name(model),
            "type": getattr(getattr(model, "config", None), "model_type", ""),
            "n_layers": anatomy.n_layers,
            "n_heads": anatomy.n_heads,
            "layers_with_heads": anatomy.layers_with_heads if anatomy.has_whole_layers else None,
            "n_kv_heads": anatomy.n_kv_heads,
            "head_dim": anatomy.head_dim,
            "d_model": anatomy.d_model,
        },
        "probes": dict(probes),
        "trainer": getattr(args, "recorded_by", None)  # a command, without a trainer
        or re.sub(r"(Config|TrainingArguments)$", "Trainer", type(args).__name__),
        "name": getattr(args, "run_name", None) or Path(args.output_dir).name,
        "training": {key: getattr(args, key, None) for key in TRAINING},
        "wandb": None,
        "status": "running",
    }


def _model_name(model: Any) -> str:
    """The name on the Hub, or the last part of a local path."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name
