"""Load a saved model: a folder, a name on the Hub, or an adapter with its base."""

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from headwatch.errors import UserError
from headwatch.model.weight_files import completed

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Loader:
    """How models are loaded.

    Attributes:
        dtype: a torch dtype, or "auto": the checkpoint's own.
        device: where they are put.
    """

    dtype: Any = "auto"
    device: str = "cpu"

    def model(self, name: str | Path, base: str | Path | None = None) -> Any:
        """The model of a folder or of a name on the Hub, in eval mode.

        Args:
            name: the model; the folder of an adapter gives a PeftModel on its base.
            base: base of an adapter, and configuration of a folder that has none; None is the adapter's own.

        Raises:
            UserError: it cannot be loaded.
        """
        folder = Path(name)
        try:
            if (folder / ADAPTER).is_file():
                return self._adapter(folder, base or adapter_base(folder))
            with completed(folder, base) as complete:
                source = name if complete == folder else complete
                model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=self.dtype)
        except UserError:
            raise
        except Exception as error:  # transformers, safetensors and huggingface_hub each raise their own
            raise UserError(f"model {str(name)!r} could not be loaded: {_first_line(error)}") from error
        moved: Any = model
        return moved.to(self.device).eval()

    def _adapter(self, folder: Path, base: str | Path | None) -> Any:
        if base is None:
            raise UserError(f"model {str(folder)!r} is an adapter that names no base model: give --base")
        try:
            from peft import PeftModel
        except ImportError as error:
            raise UserError(f"model {str(folder)!r} is an adapter, which needs peft: pip install peft") from error
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=self.dtype)
        return PeftModel.from_pretrained(model, str(folder)).to(self.device).eval()


def load_tokenizer(*names: str | Path) -> Any:
    """The tokenizer of the first of these models that has one.

    Raises:
        UserError: none has.
    """
    reason = ""
    for name in names:
        try:
            return AutoTokenizer.from_pretrained(name)
        except Exception as error:
            reason = reason or _first_line(error)
    raise UserError(f"no tokenizer in {' or '.join(map(str, names))}: {reason}; give --tokenizer")


def adapter_base(folder: str | Path) -> str | None:
    """The base model that an adapter's folder names; None for anything else."""
    try:
        config = json.loads((Path(folder) / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("base_model_name_or_path") or None


def release_memory() -> None:
    """Free the memory of a model that was deleted."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def read_shape(name: str, base: str | None = None, download: bool = True) -> tuple[int, int]:
    """(layers, heads) from the configuration of a model, without its weights.

    Args:
        name: a model or an adapter.
        base: base of an adapter; None is its own.
        download: False reads local files only.

    Raises:
        UserError: there is no configuration.
    """
    source = (base or adapter_base(name) or name) if (Path(name) / ADAPTER).is_file() else name
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=not download).get_text_config()
    except Exception as error:
        raise UserError(f"model {str(source)!r} could not be loaded: {_first_line(error)}") from error
    return int(config.num_hidden_layers), int(config.num_attention_heads)
