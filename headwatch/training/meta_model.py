"""The model of a recipe on the meta device: its shapes, before any weight is loaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from headwatch.errors import UserError
from headwatch.model.anatomy import Anatomy


def load_meta_model(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model that TRL would train, on the meta device: with shapes, without values.

    Raises:
        UserError: the model has no configuration, or is not supported.
    """
    option = f"--model_name_or_path {name}"
    try:
        config: Any = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        named = getattr(transformers, (config.architectures or [""])[0], None)  # as TRL chooses the class
        with torch.device("meta"):
            if named is not None:
                model = named(config)
            else:
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{option}: its configuration could not be read: {one_line(error)}") from error
    try:
        Anatomy.of(model)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    return model


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of an error on one line of at most `most` characters; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + " ..."
