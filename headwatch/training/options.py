"""A recipe and the command line, parsed into TRL's config classes and headwatch's own settings; nothing is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

from headwatch.errors import UserError
from headwatch.monitor.nested_options import option_names
from headwatch.monitor.settings import WatchSettings
from headwatch.probes.system_prompts import SYSTEM_PROMPTS
from headwatch.stats import EvidenceSettings
from headwatch.training.data import DataArguments

CONFIGS: dict[str, type[Any]] = {"sft": SFTConfig, "grpo": GRPOConfig}
PREFIX = "headwatch"

_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml, deep nesting takes minutes to refuse

# Options of earlier versions, which were flat, and their places in the `headwatch:` block.
OLD_NAMES = {
    **{"probes": "probes", "probe_every": "every", "probe_pairs": "n_pairs", "probe_seed": "seed"},
    **{"probe_metric": "scoring.metric", "probe_edges": "scoring.edges", "path_steps": "scoring.steps"},
    **{"path_alphas": "scoring.alphas", "probe_batch_size": "scoring.batch_size"},
    **{"probe_memory_gb": "scoring.memory_budget_gb", "circuit_top_n": "circuit.top_n", "circuit_tau": "circuit.tau"},
    **{"opener_questions": "openers.questions", "opener_source": "openers.source", "opener_tokens": "openers.tokens"},
    **{"opener_metric": "openers.metric", "record_folder": "folder", "strict_probes": "strict"},
    **{"probes_report_to": "report_to", "probes_wandb": "wandb", "alert_thresholds": "alerts"},
    **{f"evidence_{each.name}": f"evidence.{each.name}" for each in dataclasses.fields(EvidenceSettings)},
    **{"evidence_material": "evidence.min_change", "evidence_at_work": "evidence.require_nonzero_share"},
}
# Endings of the names of secrets, which recipe.yaml leaves out: others may read it, and it may be uploaded.
SECRETS = ("token", "key", "password", "secret")
NO_SECRETS = ("eos_token", "pad_token")  # the tokenizer's


@dataclass
class LaunchArguments:
    """Options of the launcher, in addition to TRL's own classes."""

    method: str = field(default="sft", metadata={"help": "sft or grpo", "choices": list(CONFIGS)})
    dry_run: bool = field(default=False, metadata={"help": "print the plan (steps, tokens, memory, probes) and exit"})
    smoke: bool = field(
        default=False, metadata={"help": "run the whole recipe for a few steps with a small random model and few rows"}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "chatml, or the path of a .jinja file; default: the tokenizer's own"}
    )
    stop_tokens: list[str] | None = field(
        default=None, metadata={"help": "tokens that end a completion; the first becomes the tokenizer's eos"}
    )
    context_length: int | None = field(
        default=None, metadata={"help": "raise the model's max_position_embeddings; nothing else is changed"}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format", "tag_count"],
        metadata={"help": "GRPO's rewards, by name (accuracy, strict_accuracy, format, tag_count) or dotted path"},
    )
    wandb_project: str | None = field(
        default=None, metadata={"help": "W&B project; the variable WANDB_PROJECT takes precedence"}
    )
    keep_optimizers: int | None = field(
        default=None,
        metadata={"help": "number of last checkpoints that keep their optimizer, which resuming needs; default: all"},
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "file of `accelerate launch --config_file` that the recipe is for; --dry-run reads it"},
    )


@dataclass
class Recipe:
    """Everything that decides a run.

    Attributes:
        path: the recipe file.
        launch: options of the launcher.
        training: SFTConfig or GRPOConfig.
        model: TRL's model options.
        data: which rows to train on.
        watch: the callback's settings.
        values: every option of TRL's classes and of the launcher, as it was resolved.
    """

    path: Path
    launch: LaunchArguments
    training: Any
    model: ModelConfig
    data: DataArguments
    watch: WatchSettings
    values: dict[str, Any]


class Options:
    """A recipe's options before they become config objects: `values` and `watch` can still be changed.

    Attributes:
        values: the value of every option of TRL's classes and of the launcher, by name.
        watch: the `headwatch:` block as nested plain values; what is left out has its default.
        given: the names set by the recipe or on the command line.
        typed: those of the command line alone, the block's as "headwatch.every".
    """

    def __init__(
        self, path: Path, method: str, values: dict[str, Any], watch: dict[str, Any], given: set[str], typed: set[str]
    ) -> None:
        self.path, self.method, self.values, self.watch = path, method, values, watch
        self.given, self.typed = given, typed

    def settings(self) -> WatchSettings:
        """The callback's settings; openers have the data's system prompt unless they are given their own.

        Raises:
            UserError: an option of the `headwatch:` block is unknown or not valid.
        """
        openers = self.watch.get("openers")
        if openers is None or isinstance(openers, dict):
            openers = {"system_prompt": str(self.values["system_prompt"]), **(openers or {})}
            prompt = openers["system_prompt"]
            openers["system_prompt"] = SYSTEM_PROMPTS.get(prompt, prompt) if isinstance(prompt, str) else prompt
        return WatchSettings.from_options({**self.watch, "openers": openers}, PREFIX)

    def recorded(self) -> dict[str, Any]:
        """The given options with their resolved values, without secrets; `headwatch train` runs them again."""
        left_out = {"smoke", "dry_run", "resume_from_checkpoint"}
        names = {name for name in self.given | {"method"} if not name.startswith(f"{PREFIX}.")} - left_out
        found = {name: self.values[name] for name in sorted(names)}
        return without_secrets({**found, PREFIX: self.watch} if self.watch else found)

    def build(self) -> Recipe:
        """The config objects.

        Raises:
            UserError: a value is refused by its class.
        """
        parts = []
        for kind in _classes(self.method):
            names = {f.name for f in dataclasses.fields(kind) if f.init}
            try:
                parts.append(kind(**{name: value for name, value in self.values.items() if name in names}))
            except (ValueError, TypeError, ImportError) as error:
                raise UserError(f"{self.path}: {' '.join(str(error).split())}") from error
        training, model, data, launch = parts
        return Recipe(self.path, launch, training, model, data, self.settings(), self.values)


def parse(arguments: Sequence[str]) -> Options:
    """Read `RECIPE.yaml [--option value ...]`; the command line wins over the recipe, and the recipe over defaults.

    Raises:
        UserError: no recipe, not YAML, an unknown option (with the nearest one), or a value of the wrong type.
    """
    arguments = list(arguments)
    if "--config" in arguments:  # as in TRL's own scripts
        position = arguments.index("--config")
        recipe = arguments.pop(position + 1) if position + 1 < len(arguments) else ""
        arguments.pop(position)
    elif arguments and not arguments[0].startswith("-"):
        recipe = arguments.pop(0)
    else:
        raise UserError("name a recipe first: headwatch train RECIPE.yaml [--option value ...]")
    path = Path(recipe)
    written = read_recipe(path)
    watch = written.pop(PREFIX, None) or {}
    if not isinstance(watch, dict):
        raise UserError(f"{path}: {PREFIX}: write options as `name: value` below it")
    arguments, overrides = watch_overrides(arguments)
    for name, value in overrides.items():
        _set(watch, name.split("."), value)
    method = _method(path, written, arguments)
    parser = _Parser(_classes(method), allow_abbrev=False, add_help=False)
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    for name, value in written.items():
        if name not in actions:
            raise UserError(f"{path}: {_unknown(str(name), actions, method)}")
        actions[name].default = _plain(name, value, actions[name], path)
        actions[name].required = False
    flags = {flag.lstrip("-").replace("-", "_"): a.dest for a in parser._actions for flag in a.option_strings}
    typed = set()
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].split("=")[0].replace("-", "_")
            if name not in flags:
                raise UserError(f"--{_unknown(name, actions, method)}")
            typed.add(flags[name])
    namespace, rest = parser.parse_known_args(arguments)
    if rest:
        raise UserError(f"{rest[0]!r}: which option is this for? Options are written --name value")
    if namespace.output_dir is None:
        namespace.output_dir = str(Path("outputs") / path.stem)
    typed |= {f"{PREFIX}.{name}" for name in overrides}
    return Options(path, method, vars(namespace), watch, set(written) | typed, typed)


def read_recipe(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The options of a recipe file and, underneath, of the one that it `extends` (a path relative to it).

    Raises:
        UserError: the file cannot be read, is not YAML, or extends itself.
    """
    try:
        resolved = path.resolve()
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"recipe {str(path)!r} cannot be read ({error}): give the path of a .yaml file") from error
    if resolved in seen:
        raise UserError(f"{path}: extends itself, by way of {', '.join(str(p.name) for p in seen)}")
    try:
        written = yaml.load(text, Loader=_YAML)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(written, dict):
        raise UserError(f"{path}: a recipe is a list of lines `option: value`")
    base = written.pop("extends", None)
    if base is None:
        return written
    if not isinstance(base, str) or "\0" in base:
        raise UserError(f"{path}: extends: {base!r} must be the path of a recipe")
    return _merged(read_recipe(path.parent / base, (*seen, resolved)), written)


def watch_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split `--headwatch.name value ...` off the command line.

    Returns:
        The other arguments, and the block's options by dotted name; several values make a list.

    Raises:
        UserError: an option without a value, or written --headwatch_name.
    """
    rest: list[str] = []
    found: dict[str, Any] = {}
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        if argument.startswith((f"--{PREFIX}_", f"--{PREFIX}-")):
            name = argument[2:].partition("=")[0]
            raise UserError(f"--{name}: options of the block are written --{PREFIX}.{name[len(PREFIX) + 1 :]}")
        if not argument.startswith(f"--{PREFIX}."):
            rest.append(argument)
            continue
        name, is_assigned, value = argument.removeprefix(f"--{PREFIX}.").partition("=")
        name = name.replace("-", "_")
        values = [value] if is_assigned else []
        while not is_assigned and index < len(arguments) and not arguments[index].startswith("--"):
            values.append(arguments[index])
            index += 1
        if not values:
            raise UserError(f"--{PREFIX}.{name}: a value is missing")
        read = [_scalar(text) for text in values]
        found[name] = read[0] if len(read) == 1 else read
    return rest, found


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def _set(block: dict[str, Any], names: Sequence[str], value: Any) -> None:
    for name in names[:-1]:
        inner = block.get(name)
        block[name] = block = dict(inner) if isinstance(inner, dict) else {}
    block[names[-1]] = value


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, the `headwatch:` block option by option."""
    block, other = base.get(PREFIX), over.get(PREFIX)
    merged = {**base, **over}
    if isinstance(block, dict) and isinstance(other, dict):
        merged[PREFIX] = _deep(block, other)
    return merged


def _deep(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: _deep(base[name], over[name]) for name in base.keys() & over.keys() if _are_dicts(base[name], over[name])
    }
    return {**base, **over, **both}


def _are_dicts(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def without_secrets(options: Any) -> Any:
    """The options, and those nested in them, without secrets that have a value."""
    if not isinstance(options, dict):
        return options
    return {
        name: without_secrets(value)
        for name, value in options.items()
        if value is None or name in NO_SECRETS or not str(name).lower().endswith(SECRETS)
    }


def _classes(method: str) -> tuple[Any, ...]:
    return (CONFIGS[method], ModelConfig, DataArguments, LaunchArguments)


def _method(path: Path, written: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """The method decides which options there are, so it is read before them."""
    method = written.get("method")
    for index, argument in enumerate(arguments):
        if argument == "--method" and index + 1 < len(arguments):
            method = arguments[index + 1]
        elif argument.startswith("--method="):
            method = argument.partition("=")[2]
    if not isinstance(method, str) or method not in CONFIGS:
        raise UserError(f"{path}: method {method!r}: write `method: sft` or `method: grpo`")
    return str(method)


def _unknown(name: str, actions: Mapping[str, Any], method: str) -> str:
    if name in OLD_NAMES:
        return f"{name} is now {PREFIX}.{OLD_NAMES[name]} (in the block `{PREFIX}:`, or --{PREFIX}.{OLD_NAMES[name]})"
    other = "grpo" if method == "sft" else "sft"
    if name in {f.name for f in dataclasses.fields(CONFIGS[other])}:
        return f"{name}: an option of {other}, and this recipe's method is {method}"
    near = difflib.get_close_matches(name, (*actions, *option_names(WatchSettings, PREFIX)), n=1, cutoff=0.5)
    return f"{name}: no such option; " + (f"the nearest is {near[0]}" if near else "see the TRL config's fields")


def _plain(name: str, value: Any, action: argparse.Action, path: Path) -> Any:
    """A YAML value as argparse's default: a scalar as text, which the option's own type parses."""
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, list):
        if action.nargs != "+":
            raise UserError(f"{path}: {name}: give one value, not the list {value}")
        return [action.type(str(item)) if callable(action.type) else item for item in value]
    if isinstance(value, bool) and getattr(action.type, "__name__", "") != "string_to_bool":
        return "yes" if value else "no"  # YAML reads a bare `no` as false; save_strategy: no means the word
    text = str(value)
    return [text] if action.nargs == "+" and name != "lora_target_modules" else text


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        """Without argparse's usage, which lists four hundred options."""
        raise UserError(" ".join(message.split()))
