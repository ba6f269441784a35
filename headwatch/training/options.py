"""A recipe and the command line, as TRL's config classes and headwatch's own: parsed, checked, nothing loaded yet."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

from headwatch.errors import UserError
from headwatch.monitor.alerts import DEFAULTS, AlertSettings
from headwatch.probes.openers import READ, SOURCES, Openers
from headwatch.probes.questions import DEFAULT_QUESTIONS
from headwatch.probes.system_prompts import SYSTEM_PROMPTS
from headwatch.stats import EvidenceSettings
from headwatch.training.data import DataArguments

CONFIGS: dict[str, type[Any]] = {"sft": SFTConfig, "grpo": GRPOConfig}
RULE = EvidenceSettings()
THRESHOLDS = tuple(vars(DEFAULTS))
# HeadWatchCallback's keywords whose options have another name here: its messages are told in a recipe's words.
OPTIONS = {
    **{"every": "probe_every", "n_pairs": "probe_pairs", "seed": "probe_seed", "metric": "probe_metric"},
    **{"edges": "probe_edges", "steps": "path_steps", "alphas": "path_alphas", "top_n": "circuit_top_n"},
    **{"tau": "circuit_tau", "batch_size": "probe_batch_size", "memory_budget_gb": "probe_memory_gb"},
    **{"folder": "record_folder", "strict": "strict_probes", "report_to": "probes_report_to", "wandb": "probes_wandb"},
    **{"probes": "probes", **{name: f"evidence_{name}" for name in vars(RULE)}},
}


@dataclass
class LaunchArguments:
    """What to run, beyond what TRL's own classes say."""

    method: str = field(default="sft", metadata={"help": "sft or grpo", "choices": list(CONFIGS)})
    dry_run: bool = field(default=False, metadata={"help": "print the plan (steps, tokens, memory, probes) and exit"})
    smoke: bool = field(
        default=False, metadata={"help": "run the whole recipe for a few steps on a small stand-in model and few rows"}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "chatml, or the path of a .jinja file; left out, the tokenizer's own"}
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
    wandb_project: str | None = field(default=None, metadata={"help": "W&B project (WANDB_PROJECT wins)"})
    keep_optimizers: int | None = field(
        default=None,
        metadata={"help": "so many of the last checkpoints keep their optimizer, which resuming needs; left out, all"},
    )


@dataclass
class WatchArguments:
    """HeadWatchCallback's options, named so that they cannot be taken for the trainer's."""

    probes: list[str] = field(
        default_factory=lambda: ["addition", "recall"], metadata={"help": "probe families, or one file of pairs"}
    )
    probe_every: int = field(default=100, metadata={"help": "optimizer steps between probes"})
    probe_pairs: int = field(default=64, metadata={"help": "pairs a family"})
    probe_seed: int = field(default=0, metadata={"help": "of the generated pairs"})
    probe_metric: str = field(default="logit_diff", metadata={"help": "logit_diff, kl or nll; openers have their own"})
    opener_questions: list[str] = field(
        default_factory=lambda: list(DEFAULT_QUESTIONS),
        metadata={"help": "for the family openers: data sets on the Hub, or .jsonl files with a problem a line"},
    )
    opener_source: str = field(
        default="sampled",
        metadata={"help": "sampled (by the model, before the first step) or fixed (texts)", "choices": list(SOURCES)},
    )
    opener_tokens: int = field(default=16, metadata={"help": "of an opener, at most"})
    opener_metric: str = field(
        default="kl",
        metadata={"help": "kl at the last position, or nll of the next 16 clean tokens", "choices": list(READ)},
    )
    probe_edges: bool = field(default=True, metadata={"help": "score edges too, which the paper's circuits need"})
    path_steps: int = field(default=5, metadata={"help": "points of the integrated-gradients path"})
    path_alphas: str = field(default="midpoint", metadata={"help": "midpoint, right (the paper), left or clean"})
    circuit_top_n: float = field(default=0.027, metadata={"help": "edges of a circuit: a share, or a number above 1"})
    circuit_tau: float | None = field(default=None, metadata={"help": "threshold of the simplified circuit"})
    probe_batch_size: int | None = field(default=None, metadata={"help": "pairs a batch; left out, by memory"})
    probe_memory_gb: float | None = field(
        default=None, metadata={"help": "memory of a probe; left out, what gradients take anyway"}
    )
    record_folder: str | None = field(default=None, metadata={"help": "where the record goes ({output_dir}/headwatch)"})
    strict_probes: bool = field(default=False, metadata={"help": "end the training when a probe fails"})
    probes_report_to: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "where probes are shown: auto (a live W&B run, and what the trainer reports to), none, or names"
        },
    )
    probes_wandb: str = field(
        default="auto", metadata={"help": "auto (the W&B run that is live), start (or one of our own) or off"}
    )
    evidence_q: float = field(default=RULE.q, metadata={"help": "false-discovery level over the heads of a family"})
    evidence_min_change: float = field(
        default=RULE.min_change,
        metadata={"help": "the smallest change that counts, as a part of the base's total share"},
    )
    evidence_carry: float = field(
        default=RULE.carry, metadata={"help": "active heads: the fewest that carry this part of the total share"}
    )
    evidence_keep: float = field(
        default=RULE.keep, metadata={"help": "an active head stays so inside the fewest that carry this part"}
    )
    evidence_test: str = field(default=RULE.test, metadata={"help": "of a paired change: sign-flip, t or welch"})
    evidence_confirm: str = field(
        default=RULE.confirm, metadata={"help": "how events answer for many probes: either, level, next or none"}
    )
    evidence_require_nonzero_share: bool = field(
        default=RULE.require_nonzero_share,
        metadata={"help": "events only of heads whose share is known to be other than 0"},
    )
    evidence_weights: str = field(
        default=RULE.weights, metadata={"help": "how q is divided among heads: size or equal"}
    )
    evidence_min_pairs: int = field(default=RULE.min_pairs, metadata={"help": "fewer pairs of a family say nothing"})
    evidence_min_gap_t: float = field(
        default=RULE.min_gap_t, metadata={"help": "a probe whose metric gap has a smaller |t| says nothing"}
    )
    alert_thresholds: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": f"those that differ from the defaults, as {{name: number}}; {', '.join(THRESHOLDS)}"},
    )

    def openers(self, system_prompt: str = "open-r1") -> Openers:
        """What the family openers is made of; system_prompt is the data's, by name or as text."""
        return Openers(
            questions=tuple(self.opener_questions),
            source=self.opener_source,
            tokens=self.opener_tokens,
            metric=self.opener_metric,
            system_prompt=SYSTEM_PROMPTS.get(system_prompt, system_prompt),
        )

    def callback_options(self, system_prompt: str = "open-r1") -> dict[str, Any]:
        """The same, as HeadWatchCallback's keywords; system_prompt is the data's."""
        top_n = int(self.circuit_top_n) if self.circuit_top_n > 1 else self.circuit_top_n
        return {
            "probes": self.probes if len(self.probes) > 1 else self.probes[0],
            "every": self.probe_every,
            "n_pairs": self.probe_pairs,
            "seed": self.probe_seed,
            "metric": self.probe_metric,
            "openers": self.openers(system_prompt),
            "edges": self.probe_edges,
            "steps": self.path_steps,
            "alphas": self.path_alphas,
            "top_n": top_n,
            "tau": self.circuit_tau,
            "batch_size": self.probe_batch_size,
            "memory_budget_gb": self.probe_memory_gb,
            "folder": self.record_folder,
            "strict": self.strict_probes,
            "report_to": self.probes_report_to if len(self.probes_report_to) > 1 else self.probes_report_to[0],
            "wandb": self.probes_wandb,
            "evidence": EvidenceSettings(**{name: getattr(self, f"evidence_{name}") for name in vars(RULE)}),
            "alerts": self.alerts(),
        }

    def alerts(self) -> AlertSettings:
        """The thresholds of the alerts. UserError for a name that is none, or a value that is no number."""
        given: Any = self.alert_thresholds or {}
        if isinstance(given, str):  # as it is typed
            with suppress(yaml.YAMLError):  # told below
                given = yaml.safe_load(given)
        if not isinstance(given, dict):
            raise UserError(f"--alert_thresholds {given}: write {{name: number, ...}}, for example '{{min_drop: 0.1}}'")
        for name, value in given.items():
            if name not in THRESHOLDS:
                near = difflib.get_close_matches(str(name), THRESHOLDS, n=1, cutoff=0.0)[0]
                raise UserError(f"--alert_thresholds {name}: no such threshold; the nearest is {near}")
            if isinstance(value, bool) or not isinstance(value, type(getattr(DEFAULTS, name)) | int):
                raise UserError(
                    f"--alert_thresholds {name}: {value!r} is not a number such as {getattr(DEFAULTS, name)}"
                )
        return AlertSettings(**given)


@dataclass
class Recipe:
    """Everything that decides a run. `values` holds every option as it was resolved, for the record."""

    path: Path
    launch: LaunchArguments
    training: Any  # SFTConfig or GRPOConfig
    model: ModelConfig
    data: DataArguments
    watch: WatchArguments
    values: dict[str, Any]


class Options:
    """A recipe's options before they become config objects: `values` can still be changed, by name.

    Attributes:
        values: every option's value. given: the names set by the recipe or on the command line.
        typed: those of the command line alone.
    """

    def __init__(self, path: Path, method: str, values: dict[str, Any], given: set[str], typed: set[str]) -> None:
        self.path, self.method, self.values, self.given, self.typed = path, method, values, given, typed

    def build(self) -> Recipe:
        """The config objects. UserError, in one line, for what they refuse."""
        parts = []
        for kind in _classes(self.method):
            names = {f.name for f in dataclasses.fields(kind) if f.init}
            try:
                parts.append(kind(**{name: value for name, value in self.values.items() if name in names}))
            except (ValueError, TypeError, ImportError) as error:
                raise UserError(f"{self.path}: {' '.join(str(error).split())}") from error
        training, model, data, launch, watch = parts
        return Recipe(self.path, launch, training, model, data, watch, self.values)


def parse(arguments: Sequence[str]) -> Options:
    """Read `RECIPE.yaml [--option value ...]`; the command line wins over the recipe, and the recipe over defaults.

    Raises:
        UserError: no recipe, not YAML, an unknown option (with the nearest one), or a value of the wrong kind.
    """
    arguments = list(arguments)
    if "--config" in arguments:  # as TRL's own scripts are called
        position = arguments.index("--config")
        recipe = arguments.pop(position + 1) if position + 1 < len(arguments) else ""
        arguments.pop(position)
    elif arguments and not arguments[0].startswith("-"):
        recipe = arguments.pop(0)
    else:
        raise UserError("name a recipe first: headwatch train RECIPE.yaml [--option value ...]")
    path = Path(recipe)
    written = read_recipe(path)
    method = _method(path, written, arguments)
    parser = _Parser(_classes(method), allow_abbrev=False, add_help=False)
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    for name, value in written.items():
        if name not in actions:
            raise UserError(f"{path}: {_unknown(name, actions, method)}")
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
    return Options(path, method, vars(namespace), set(written) | typed, typed)


def read_recipe(path: Path) -> dict[str, Any]:
    """The options of a recipe file and, underneath, of the one that it `extends` (a path beside it)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {str(path)!r} cannot be read ({error}): give the path of a .yaml file") from error
    try:
        written = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(written, dict):
        raise UserError(f"{path}: a recipe is a list of lines `option: value`")
    base = written.pop("extends", None)
    return {**(read_recipe(path.parent / base) if base else {}), **written}


def in_options(message: str) -> str:
    """A message about HeadWatchCallback's keywords (`every=0 must be ...`), about the options that they are here."""

    def named(found: re.Match[str]) -> str:
        return f"--{OPTIONS[found[1]]}=" if found[1] in OPTIONS else found[0]

    return re.sub(r"(?<![\w-])([a-z_]+)=", named, message)


def _classes(method: str) -> tuple[Any, ...]:
    return (CONFIGS[method], ModelConfig, DataArguments, LaunchArguments, WatchArguments)


def _method(path: Path, written: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """The method decides which options there are, so it is read before them."""
    method = written.get("method")
    for index, argument in enumerate(arguments):
        if argument == "--method" and index + 1 < len(arguments):
            method = arguments[index + 1]
        elif argument.startswith("--method="):
            method = argument.partition("=")[2]
    if method not in CONFIGS:
        raise UserError(f"{path}: method {method!r}: write `method: sft` or `method: grpo`")
    return str(method)


def _unknown(name: str, actions: Mapping[str, Any], method: str) -> str:
    other = "grpo" if method == "sft" else "sft"
    if name in {f.name for f in dataclasses.fields(CONFIGS[other])}:
        return f"{name}: an option of {other}, and this recipe's method is {method}"
    near = difflib.get_close_matches(name, actions, n=1, cutoff=0.5)
    return f"{name}: no such option; " + (f"the nearest is {near[0]}" if near else "see the TRL config's fields")


def _plain(name: str, value: Any, action: argparse.Action, path: Path) -> Any:
    """A YAML value as argparse's default: scalars as text, so that the option's own type reads them."""
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, list):
        if action.nargs != "+":
            raise UserError(f"{path}: {name}: one value is wanted, not the list {value}")
        return [action.type(str(item)) if callable(action.type) else item for item in value]
    if isinstance(value, bool) and getattr(action.type, "__name__", "") != "string_to_bool":
        return "yes" if value else "no"  # YAML reads a bare `no` as false; save_strategy: no means the word
    text = str(value)
    return [text] if action.nargs == "+" and name != "lora_target_modules" else text


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        """argparse would print the usage of four hundred options."""
        raise UserError(" ".join(message.split()))
