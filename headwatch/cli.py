"""The command line: `headwatch demo`, `train RECIPE`, `score MODEL`, `report FOLDER ...`, `workspace TARGET`.

This module parses and prints. Options are checked before torch, transformers or TRL are imported.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from headwatch.errors import UserError
from headwatch.version import __version__

# Repeated from headwatch.attribution and headwatch.probes, which import torch; a test compares them.
METRICS = ("logit_diff", "kl", "nll")
ALPHAS = ("midpoint", "right", "left", "clean")
FAMILIES = ("addition", "carry", "sums", "word_problem", "linear_equation", "recall")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 after a user's mistake (one line on standard error), 130 after an interrupt.
    """
    parser = _parser()
    try:
        arguments, rest = parser.parse_known_args(argv)
        if rest and not hasattr(arguments, "options"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.options = rest  # options of a recipe, parsed by the launcher
        return arguments.run(arguments)
    except UserError as error:
        print(f"headwatch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("headwatch: interrupted", file=sys.stderr)
        return 130


# --- the parser -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="headwatch",
        description="Watch which attention heads your post-training creates, keeps and throws away.",
    )
    parser.add_argument("--version", action="version", version=f"headwatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(
        commands,
        "demo",
        _demo,
        "train a small model by SFT and by GRPO on this machine, with the callback, and write the report",
        "headwatch demo --out my-demo --seed 1",
    )
    demo.add_argument("--out", default="headwatch-demo", help="folder for models, run folders and the report")
    demo.add_argument(
        "--seed", type=_seed, default=0, help="the same seed gives the same result on the same machine (0)"
    )
    demo.add_argument("--quick", action="store_true", help="a test of a few seconds; too short to show anything")
    demo.add_argument("--json", action="store_true", help="print the report's path as JSON")

    train = _command(
        commands,
        "train",
        _train,
        "train by SFT or GRPO from a recipe, with the callback; --option value overrides an option of the recipe",
        "headwatch train recipes/smollm2-135m/sft_gsm8k.yaml --learning_rate 5e-5 --max_steps 20",
        allow_abbrev=False,
    )
    train.add_argument("recipe", metavar="RECIPE.yaml", help="recipe file; it may set any option of TRL's configs")
    train.add_argument("--dry-run", "--dry_run", action="store_true", help="print the plan and exit")
    train.add_argument(
        "--smoke", action="store_true", help="train a few steps with a small random model and generated rows"
    )
    train.set_defaults(options=[])

    score = _command(
        commands,
        "score",
        _score,
        "score the attention heads of a model on probe pairs",
        "headwatch score Qwen/Qwen2.5-Math-1.5B --probes addition recall --top 20",
    )
    score.add_argument("model", metavar="MODEL", help="model folder, or a name on the Hugging Face Hub")
    score.add_argument(
        "--probes",
        nargs="+",
        default=["addition"],
        metavar="PROBES",
        help=f"probe families ({', '.join(FAMILIES)}), or one file of pairs (.jsonl, .safetensors) (addition)",
    )
    score.add_argument("--pairs", type=_at_least_one, default=64, help="number of pairs per family (64)")
    score.add_argument("--seed", type=int, default=0, help="seed of the generated pairs (0)")
    score.add_argument(
        "--metric", type=_one_of(METRICS), default="logit_diff", help=f"{', '.join(METRICS)} (logit_diff)"
    )
    score.add_argument(
        "--steps", type=_at_least_one, default=5, help="number of points on the integrated-gradients path (5)"
    )
    score.add_argument(
        "--alphas", type=_one_of(ALPHAS), default="midpoint", help=f"position of these points: {', '.join(ALPHAS)}"
    )
    score.add_argument("--top", type=_at_least_one, default=15, help="number of heads to print per family (15)")
    score.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, or auto: the checkpoint's (auto)")
    score.add_argument("--device", default=None, help="cpu, cuda, ... (cuda if available, else cpu)")
    score.add_argument("--gguf-file", default=None, metavar="FILE", help="name of a GGUF file in the model folder")
    score.add_argument("--json", action="store_true", help="print the scores of all heads as JSON")

    report = _command(
        commands,
        "report",
        _report,
        "write one self-contained HTML page for one or several runs, and SVG figures for a paper",
        "headwatch report outputs/sft outputs/grpo --out report.html --figures figures",
    )
    report.add_argument(
        "runs",
        nargs="+",
        metavar="FOLDER",
        help="a trainer's output_dir, the headwatch/ folder in it, or a folder that holds several of them",
    )
    report.add_argument("--out", default=None, help="file to write (report.html in the first FOLDER's run folder)")
    report.add_argument("--figures", default=None, metavar="DIR", help="also write the figures as SVG files to DIR")
    report.add_argument("--json", action="store_true", help="print the paths as JSON")

    workspace = _command(
        commands,
        "workspace",
        _workspace,
        "save a W&B view with everything that headwatch logs: heads, cohorts, reward, noise, cost",
        "headwatch workspace my-team/grpo --families carry addition --dry-run",
    )
    workspace.add_argument("target", metavar="ENTITY/PROJECT", help="W&B project in which the view is saved")
    workspace.add_argument(
        "--families", nargs="+", default=[], help="draw one cohort chart per family (one chart for all)"
    )
    workspace.add_argument("--name", default="headwatch", help="name of the view (headwatch)")
    workspace.add_argument("--dry-run", action="store_true", help="build, check and print the view; send nothing")
    workspace.add_argument("--json", action="store_true", help="print the plan and the URL as JSON")
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, example: str, **options: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"example: {example}", **options
    )
    parser.set_defaults(run=run)
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 0 to {2**32 - 1}")
    return int(text)


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown; use one of {', '.join(names)}")
        return text

    return read


# --- the commands -----------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    _require("trl", "the demo")
    from headwatch.demo.run import run_demo

    result = run_demo(Path(arguments.out), seed=arguments.seed, quick=arguments.quick)
    print(json.dumps({"report": str(result)}) if arguments.json else f"\nOpen the report: {result}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    if not Path(arguments.recipe).is_file():
        raise UserError(f"recipe {arguments.recipe!r} is not a file: give the path of a .yaml file")
    _require("trl", "training from a recipe")
    from headwatch.training.launch import main as launch

    flags = ["--dry_run"] * arguments.dry_run + ["--smoke"] * arguments.smoke
    return launch([arguments.recipe, *arguments.options, *flags])


def _score(arguments: argparse.Namespace) -> int:
    probes_argument = _probes(arguments.probes)
    model_name = _model_name(arguments.model, arguments.gguf_file)
    dtype, device = _dtype_and_device(arguments.dtype, arguments.device)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from headwatch.attribution import score_heads
    from headwatch.attribution.path import path_points
    from headwatch.attribution.summary import summary
    from headwatch.probes import ProbeSet

    path_points(arguments.alphas, arguments.steps, arguments.metric)  # refuses combinations that are always zero
    tokenizer = _load(AutoTokenizer, model_name, arguments.gguf_file)
    probes = ProbeSet.resolve(probes_argument, tokenizer, n_pairs=arguments.pairs, seed=arguments.seed)
    model = _move(_load(AutoModelForCausalLM, model_name, arguments.gguf_file, dtype=dtype), device)
    scores = score_heads(model, probes, arguments.metric, arguments.steps, arguments.alphas)
    families = summary(scores)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "fingerprint": probes.fingerprint, "families": families}))
        return 0
    for family, found in families.items():
        print(
            f"{family}: {found['pairs']} pairs, accuracy {found['accuracy']:.0%}, {scores.metric} "
            f"{found['metric_clean']:.3g} clean, {found['metric_corrupted']:.3g} corrupted, signal: {found['signal']}"
        )
        print(f"  {'head':>9} {'score':>10} {'share':>8}")
        for row in found["heads"][: arguments.top]:
            share = "" if row["share"] is None else f"{row['share']:8.3f}"
            print(f"  {row['head']:>9} {row['score']:10.4f} {share:>8} {'active' if row['active'] else ''}".rstrip())
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from headwatch.record.find_runs import find_runs
    from headwatch.report.html import write_report

    found = [find_runs(folder) for folder in arguments.runs]
    runs = [run for runs_of_folder in found for run in runs_of_folder]
    first = arguments.runs[0] if len(found[0]) > 1 else None  # one page for several runs: next to them
    written: dict[str, Any] = {"report": str(write_report(runs, arguments.out or first))}
    if arguments.figures is not None:
        from headwatch.report.svg import write_figures

        written["figures"] = [str(figure) for figure in write_figures(runs, arguments.figures)]
    print(json.dumps(written) if arguments.json else "\n".join([written["report"], *written.get("figures", [])]))
    return 0


def _workspace(arguments: argparse.Namespace) -> int:
    from headwatch.sinks import wandb_workspace as workspace

    entity, project = workspace.parse_target(arguments.target)
    families = tuple(arguments.families)
    view = workspace.build(entity, project, families, arguments.name)
    url = None if arguments.dry_run else workspace.save(view)
    if arguments.json:
        print(json.dumps({"target": arguments.target, "url": url, "sections": workspace.plan_json(families)}))
        return 0
    for section in workspace.plan(families):
        print(section.name)
        for panel in section.panels:
            print(f"  {panel.title:<46} {panel.kind:<12} {panel.pattern}")
    print(
        f"\nNothing was sent. Without --dry-run, the view is saved to {arguments.target}."
        if url is None
        else f"\n{url}"
    )
    return 0


# --- checks and loading -----------------------------------------------------------------------------------------------


def _require(package: str, user: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"{user} needs {package}, which is not installed: pip install 'headwatch[train,wandb]'")


def _probes(names: Sequence[str]) -> str | list[str]:
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


def _model_name(name: str, gguf_file: str | None) -> str:
    """The name for `from_pretrained`, after a look at the folder that it names, if it names one."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.suffix == ".gguf" and folder.is_file():
            raise UserError(f"model {name!r} is a file: give its folder, and --gguf-file {folder.name}")
        if folder.is_file() or name.startswith(("/", ".", "~")):
            raise UserError(f"model {name!r} is not a folder: give a model folder or a name on the Hub")
        return name
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise UserError(f"--gguf-file {gguf_file}: there is no such file in {name}")
    elif not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        found = sorted(path.name for path in folder.glob("*.gguf"))
        fix = f"it holds {found[0]}: add --gguf-file {found[0]}" if found else "give the folder of a saved model"
        raise UserError(f"model {name!r} has no config.json; {fix}")
    return str(folder)


def _dtype_and_device(dtype: str, device: str | None) -> tuple[Any, str]:
    import torch

    found = "auto" if dtype == "auto" else getattr(torch, dtype, None)
    if found != "auto" and not isinstance(found, torch.dtype):
        raise UserError(f"--dtype {dtype} is not a torch dtype; use auto, float32, bfloat16 or float16")
    if device is None:
        return found, "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device} cannot be used: {_first_line(error)}") from error
    return found, device


def _load(auto_class: Any, name: str, gguf_file: str | None, **options: Any) -> Any:
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        return auto_class.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model {name!r} could not be loaded: {_first_line(error)}") from error


def _move(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except RuntimeError as error:
        raise UserError(f"--device {device} cannot be used: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
