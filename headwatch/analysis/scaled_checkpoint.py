"""Save a checkpoint with heads scaled in its weights, for programs that take no hooks (vLLM, evaluation suites)."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from headwatch.analysis.interventions import Heads, factors_of, write_scaled_heads
from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.model.anatomy import Anatomy
from headwatch.model.head_names import head_name

RECORD = "headwatch_scaled_heads.json"


def save_scaled_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    heads: Heads,
    factor: float = 0.0,
    *,
    dtype: Any = "auto",
    max_shard_size: str = "5GB",
) -> Path:
    """Load a checkpoint, merge its adapters, scale heads in its weights and save it with its tokenizer.

    Args:
        source: a model folder (sharded or not, an adapter's folder too), or a name on the Hub.
        out: the folder to write; it must be empty or absent.
        heads, factor: see `scaled_heads`; an empty mapping saves the merged checkpoint unchanged.
        dtype: of the weights; "auto" is the checkpoint's.
        max_shard_size: of each weight file.

    Returns:
        The folder. Its file headwatch_scaled_heads.json lists the heads and factors.

    Raises:
        UserError: quantised weights, a head that the model does not have, or a folder that is not empty.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"out={str(out)!r} is not empty: give a new folder")
    model = load_merged(source, dtype)
    anatomy = Anatomy.of(model)
    heads = heads if isinstance(heads, Mapping) else list(heads)
    factors = factors_of(heads, factor, (anatomy.n_layers, anatomy.n_heads))
    write_scaled_heads(model, factors)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    with suppress(OSError, ValueError, KeyError):  # a checkpoint without a tokenizer
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    record = {"source": Path(source).name, "heads": {head_name(*head): value for head, value in factors.items()}}
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return folder


def load_merged(source: str | os.PathLike[str], dtype: Any = "auto") -> Any:
    """The model of a checkpoint, with its adapters merged into the weights.

    Raises:
        UserError: the weights are quantised.
    """
    if (Path(source) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(source, dtype=dtype).merge_and_unload()
    if getattr(AutoConfig.from_pretrained(source), "quantization_config", None):
        raise UserError(
            f"model {str(source)!r} is quantised, so heads cannot be scaled in its weights; give the checkpoint before "
            "quantisation"
        )
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
