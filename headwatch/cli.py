"""The command line: `headwatch demo`, `train RECIPE`, `score MODEL`, `report RUN_FOLDER ...`, `workspace TARGET`."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 with one line on standard error for a user's mistake."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not hasattr(arguments, "options"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.options = rest  # a recipe's, which `train` parses by itself
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"headwatch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("headwatch: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    demo.add_argument("--seed", type=int, default=0, help="the same seed gives the same result")
    demo.add_argument("--quick", action="store_true", help="a much shorter training: it runs, but shows little")
    demo.add_argument("--json", action="store_true", help="print the paths as JSON")

    train = _command(
        commands,
        "train",
        _train,
        "run SFT or GRPO as a recipe says, with the callback; --option value changes any option of the recipe",
        "headwatch train recipes/smollm2-135m/sft_gsm8k.yaml --learning_rate 5e-5 --max_steps 20",
        allow_abbrev=False,
    )
    train.add_argument("recipe", metavar="RECIPE.yaml", help="the file; any option of TRL's configs can stand in it")
    train.add_argument("--dry-run", "--dry_run", action="store_true", help="print the plan and exit")
    train.add_argument(
        "--smoke", action="store_true", help="a few steps on a small stand-in model and rows, all else as in the recipe"
    )
    train.set_defaults(options=[])

    score = _command(
        commands,
        "score",
        _score,
        "score the attention heads of a model on probe pairs",
        "headwatch score Qwen/Qwen2.5-Math-1.5B --probes addition recall --top 20",
    )
    score.add_argument("model", help="a model folder, or a name on the Hugging Face Hub")
    score.add_argument(
        "--probes", nargs="+", default=["addition"], help="probe families, or one file of pairs (.jsonl, .safetensors)"
    )
    score.add_argument("--pairs", type=int, default=64, help="pairs a family (64)")
    score.add_argument("--seed", type=int, default=0, help="of the generated pairs (0)")
    score.add_argument("--metric", default="logit_diff", help="logit_diff, kl or nll (logit_diff)")
    score.add_argument("--steps", type=int, default=5, help="points of the integrated-gradients path (5)")
    score.add_argument("--alphas", default="midpoint", help="midpoint, right, left or clean (midpoint)")
    score.add_argument("--top", type=int, default=15, help="how many heads to print a family (15)")
    score.add_argument("--dtype", default="auto", help="float32, bfloat16, ... ; auto is the checkpoint's (auto)")
    score.add_argument("--device", default=None, help="cpu, cuda, ... (a GPU where there is one)")
    score.add_argument("--gguf-file", default=None, help="a GGUF file inside the model folder")
    score.add_argument("--json", action="store_true", help="print all heads as JSON")

    report = _command(
        commands,
        "report",
        _report,
        "write one self-contained HTML page of one or several runs, and SVG figures for a paper",
        "headwatch report outputs/sft outputs/grpo --out report.html --figures figures",
    )
    report.add_argument("runs", nargs="+", metavar="RUN_FOLDER", help="{output_dir}/headwatch, or the output_dir")
    report.add_argument("--out", default=None, help="the file to write (report.html in the first run folder)")
    report.add_argument("--figures", default=None, metavar="DIR", help="also write the figures as SVG files, here")
    report.add_argument("--json", action="store_true", help="print the path as JSON")

    workspace = _command(
        commands,
        "workspace",
        _workspace,
        "save a W&B view with everything that headwatch logs: heads, cohorts, reward, noise, cost",
        "headwatch workspace my-team/grpo --families carry addition --dry-run",
    )
    workspace.add_argument("target", metavar="ENTITY/PROJECT", help="the W&B project that gets the view")
    workspace.add_argument("--families", nargs="+", default=[], help="a cohort chart for each of these (one for all)")
    workspace.add_argument("--name", default="headwatch", help="the view's name (headwatch)")
    workspace.add_argument("--dry-run", action="store_true", help="build and check the view, print it, send nothing")
    workspace.add_argument("--json", action="store_true", help="print the plan, and the address, as JSON")
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, example: str, **options: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"example: {example}", **options
    )
    parser.set_defaults(run=run)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    _needs("trl", "the demo trains by TRL", "pip install 'headwatch[train,wandb]'")
    from headwatch.demo.run import run_demo

    result = run_demo(Path(arguments.out), seed=arguments.seed, quick=arguments.quick)
    print(json.dumps({"report": str(result)}) if arguments.json else f"\nOpen the report: {result}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    _needs("trl", "recipes train by TRL", "pip install 'headwatch[train,wandb]'")
    from headwatch.training.launch import main as launch

    flags = ["--dry_run"] * arguments.dry_run + ["--smoke"] * arguments.smoke
    return launch([arguments.recipe, *arguments.options, *flags])


def _report(arguments: argparse.Namespace) -> int:
    from headwatch.report.html import write_report

    path = write_report(arguments.runs, arguments.out)
    written: dict[str, Any] = {"report": str(path)}
    if arguments.figures is not None:
        from headwatch.report.svg import write_figures

        written["figures"] = [str(figure) for figure in write_figures(arguments.runs, arguments.figures)]
    print(json.dumps(written) if arguments.json else "\n".join([str(path), *written.get("figures", [])]))
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
    print(f"\nNothing was sent; without --dry-run this is saved to {arguments.target}." if url is None else f"\n{url}")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    # Imported here: `headwatch report` and `--help` need no torch, which takes seconds to load.
    from headwatch.attribution import score_heads
    from headwatch.probes import ProbeSet
    from headwatch.stats import INSUFFICIENT, EvidenceSettings, carrying_set, shares, signal

    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} must be at least 1")
    model, tokenizer = _load(arguments)
    named: Any = arguments.probes if len(arguments.probes) > 1 else arguments.probes[0]
    probes = ProbeSet.resolve(named, tokenizer, n_pairs=arguments.pairs, seed=arguments.seed)
    scores = score_heads(model, probes, arguments.metric, arguments.steps, arguments.alphas)
    settings = EvidenceSettings()
    families: dict[str, Any] = {}
    for family in probes.family_names:
        mine = scores.select(family)
        raw, ends = mine.per_pair.numpy(), mine.readings
        clean, corrupted = ends.metric_clean.numpy(), ends.metric_corrupted.numpy()
        said = signal(raw, clean, corrupted, settings)
        share = None if said == INSUFFICIENT else shares(raw, clean, corrupted).value
        active = None if share is None else carrying_set(share, settings.carry)
        families[family] = {
            "pairs": len(mine.families),
            "accuracy": float(mine.readings.correct.float().mean()),
            "metric_clean": float(mine.readings.metric_clean.mean()),
            "metric_corrupted": float(mine.readings.metric_corrupted.mean()),
            "signal": said,
            "heads": [
                {
                    "head": f"a{layer}.h{head}",
                    "score": float(value),
                    "share": None if share is None else float(share[layer, head]),
                    "active": None if active is None else bool(active[layer, head]),
                }
                for layer, row in enumerate(mine.mean().tolist())
                for head, value in enumerate(row)
            ],
        }
        families[family]["heads"].sort(key=lambda entry: -abs(entry["score"]))
    if arguments.json:
        print(json.dumps({"model": arguments.model, "fingerprint": probes.fingerprint, "families": families}))
        return 0
    for family, found in families.items():
        print(
            f"{family}: {found['pairs']} pairs, {found['accuracy']:.0%} answered right, {scores.metric} "
            f"{found['metric_clean']:.3g} clean, {found['metric_corrupted']:.3g} corrupted, {found['signal']}"
        )
        print(f"  {'head':>9} {'score':>10} {'share':>8}")
        for entry in found["heads"][: arguments.top]:
            share_text = "" if entry["share"] is None else f"{entry['share']:8.3f}"
            print(f"  {entry['head']:>9} {entry['score']:10.4f} {share_text:>8} {'active' if entry['active'] else ''}")
    return 0


def _load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype: Any = arguments.dtype
    if dtype != "auto":
        dtype = getattr(torch, dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"--dtype {arguments.dtype} is no torch dtype; use auto, float32, bfloat16 or float16")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    where = {"gguf_file": arguments.gguf_file} if arguments.gguf_file else {}
    if arguments.model.startswith(("/", ".", "~")) and not Path(arguments.model).is_dir():
        raise UserError(f"model {arguments.model!r} is no folder: give a model folder or a name on the Hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model, **where)
        model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, **where)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model {arguments.model!r} could not be loaded: {reason}") from error
    try:
        return model.to(device), tokenizer
    except RuntimeError as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def _needs(package: str, why: str, fix: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"{why}, and {package} is not installed: {fix}")


if __name__ == "__main__":
    sys.exit(main())
