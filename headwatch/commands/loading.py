"""Checks of a command's values, and loading of models; each mistake is one line."""

import difflib
import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headwatch.commands.options import FAMILIES
from headwatch.errors import UserError


def require(package: str, user: str) -> None:
    """Raise UserError where an optional package is not installed."""
    if find_spec(package) is None:
        raise UserError(f"{user} needs {package}, which is not installed: pip install 'headwatch[train,wandb]'")


def probes_argument(names: Sequence[str]) -> str | list[str]:
    """The `probes` argument for ProbeSet.resolve: one family or file, or a list of families."""
    if len(names) == 1 and Path(names[0]).is_file():
        return names[0]
    for name in names:
        if name not in FAMILIES:
            close = difflib.get_close_matches(name, FAMILIES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the families are {', '.join(FAMILIES)}"
            kind = "a family nor an existing file" if len(names) == 1 else "a family (a file must be given alone)"
            raise UserError(f"--probes {name}: {'neither' if len(names) == 1 else 'not'} {kind}; {hint}")
    return names[0] if len(names) == 1 else list(names)


def model_name(name: str, gguf_file: str | None = None, takes_gguf: bool = False) -> str:
    """The name for `from_pretrained`, after a look at the folder that it names, if it names one.

    Args:
        name: as typed.
        gguf_file: the option --gguf-file.
        takes_gguf: whether the command has that option.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.suffix == ".gguf" and folder.is_file():
            fix = f"give its folder, and --gguf-file {folder.name}" if takes_gguf else converted(folder)
            raise UserError(f"model {name!r} is a file: {fix}")
        if folder.is_file() or name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no name on the Hub
            raise UserError(f"model {name!r} is not a folder: give a model folder or a name on the Hub")
        return name
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise UserError(f"--gguf-file {gguf_file}: there is no such file in {name}")
    elif not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        found = sorted(path.name for path in folder.glob("*.gguf"))
        fix = "give the folder of a saved model"
        if found:
            fix = (
                f"it holds {found[0]}: {f'add --gguf-file {found[0]}' if takes_gguf else converted(folder / found[0])}"
            )
        raise UserError(f"model {name!r} has no config.json; {fix}")
    return str(folder)


def converted(gguf: Path) -> str:
    """How a GGUF file becomes a folder that every command takes."""
    options = f"({str(gguf.parent)!r}, gguf_file={gguf.name!r})"
    return (
        "convert it in Python: for each of transformers.AutoModelForCausalLM and AutoTokenizer, "
        f"run .from_pretrained{options}.save_pretrained('converted'), and give that folder"
    )


def dtype_and_device(dtype: str, device: str | None) -> tuple[Any, str]:
    """The torch dtype (or `auto`) and a device that can be used."""
    import torch

    found = "auto" if dtype == "auto" else getattr(torch, dtype, None)
    if found != "auto" and not isinstance(found, torch.dtype):
        raise UserError(f"--dtype {dtype} is not a torch dtype; use auto, float32, bfloat16 or float16")
    if device is None:
        return found, "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device} cannot be used: {first_line(error)}") from error
    return found, device


def load_pretrained(auto_class: Any, name: str, gguf_file: str | None, **options: Any) -> Any:
    """`auto_class.from_pretrained`, with a failure as UserError."""
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        return auto_class.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model {name!r} could not be loaded: {first_line(error)}") from error


def move_to(model: Any, device: str) -> Any:
    """`model.to(device)`, with a failure as UserError."""
    try:
        return model.to(device)
    except RuntimeError as error:
        raise UserError(f"--device {device} cannot be used: {first_line(error)}") from error


def use_local_files_without_network() -> None:
    """Where the Hub's name cannot be resolved, use local files at once: its client tries for minutes, with warnings.

    To be called before huggingface_hub is imported. With a proxy or the variable HF_HUB_OFFLINE nothing is done.
    """
    proxies = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    if "HF_HUB_OFFLINE" in os.environ or any(os.environ.get(name) for name in proxies):
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def first_line(error: BaseException) -> str:
    """First line of the message, or the name of the error's class."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
