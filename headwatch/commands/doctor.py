"""`headwatch doctor MODEL`: is a model supported, and if not, which layout entry would it need?"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from headwatch.commands.loading import load_pretrained, model_name
from headwatch.commands.options import add_command
from headwatch.errors import UserError

SMALL = 5_000_000  # parameters of a checkpoint that is checked as it is


def add(commands: Any) -> None:
    """Declare the command."""
    doctor = add_command(
        commands,
        "doctor",
        run,
        "check whether headwatch scores a model exactly, and look for a layout entry if its type is unknown",
        "headwatch doctor Qwen/Qwen3-0.6B",
    )
    doctor.add_argument("model", metavar="MODEL", help="model folder (config.json is enough), or a name on the Hub")
    doctor.add_argument("--trust-remote-code", action="store_true", help="run the code in the model's folder")
    doctor.add_argument("--json", action="store_true", help="print the result as JSON")


def _whole_model(name: str) -> str:
    """The model; of an adapter its base, which has the layers."""
    if not (Path(name) / "adapter_config.json").is_file():
        return name
    from headwatch.model.loading import adapter_base

    base = adapter_base(name)
    if base is None:
        raise UserError(f"model {name!r} is an adapter that names no base model: give the base model")
    print(f"{name} is an adapter: its base model, {base}, is checked", file=sys.stderr)
    return base


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns 0 if the model fits, else 2."""
    name = _whole_model(model_name(arguments.model))
    from transformers import AutoConfig

    from headwatch.attribution.doctor import diagnose, entry

    config = load_pretrained(AutoConfig, name, None, trust_remote_code=arguments.trust_remote_code)
    model, checked = _model(name, config, arguments.trust_remote_code)
    found = diagnose(model)
    best = found.best
    if arguments.json:
        print(
            json.dumps(
                {
                    **{"model": arguments.model, "model_type": found.model_type, "supported": found.supported},
                    **{"checked": checked, "fits": best.fits, "refused": found.refused},
                    **{"best": best.as_dict(), "trials": [each.as_dict() for each in found.trials]},
                }
            )
        )
        return 0 if best.fits else 2
    line = f'LAYOUTS["{found.model_type}"] = {entry(best.layout)}'
    print(f"{arguments.model}: model_type {found.model_type!r}, {type(model).__name__}")
    print(f"  checked: {checked}, 2 pairs, float64, naive reference against the fast pass")
    if best.error is not None:
        print(f"  largest error of an edge score: {best.error:.1e} of the largest")
        print(f"  stream check: {best.stream:.1e}; row sums: {best.row_sums:.1e}")
    if found.supported:
        print(f"  layout: {line}")
        print("supported, and exact" if best.fits else f"supported, but not exact: {best.problem}")
    elif best.fits:
        print(f"not in headwatch's list, but this entry fits; {found.refused or 'no entry was known'}:")
        print("from headwatch.model.layouts import LAYOUTS, Layout")
        print(line)
    else:
        print(f"not supported{f': {found.refused}' if found.refused else ''}")
        print(f"  tried {len(found.trials)} layout entries; the closest, {entry(best.layout)}:")
        print(f"  {best.problem}")
    return 0 if best.fits else 2


def _model(name: str, config: Any, trusted: bool) -> tuple[Any, str]:
    """The model to check, and what it is in words: the checkpoint if it is small, else a small model of its class."""
    import torch
    from transformers import AutoModelForCausalLM

    from headwatch.errors import UserError
    from headwatch.model.reduced import random_model, reduced

    size = _size(config, trusted)
    try:
        if size is not None and size <= SMALL:
            try:
                loaded = AutoModelForCausalLM.from_pretrained(
                    name, dtype=torch.float64, attn_implementation="eager", trust_remote_code=trusted
                )
                return loaded.eval(), f"the checkpoint itself ({size:,} parameters)"
            except OSError:  # a folder without weights
                return random_model(config, trust_remote_code=trusted), f"a random model ({size:,} parameters)"
        small = reduced(config)
        model = random_model(small, trust_remote_code=trusted)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {name!r}: no small model of its configuration could be built ({type(error).__name__}: {reason})"
        ) from error
    text = small.get_text_config()
    return model, f"a random model of its class, {text.num_hidden_layers} layers x {text.num_attention_heads} heads"


def _size(config: Any, trusted: bool) -> int | None:
    """Number of parameters, from the meta device; None if it cannot be found out."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    except Exception:
        return None
    return sum(parameter.numel() for parameter in model.parameters())
