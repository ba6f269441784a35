"""Options that several commands share: probe pairs, scoring, model loading."""

import argparse
from collections.abc import Sequence
from typing import Any

from headwatch.commands.loading import probes_argument
from headwatch.commands.options import (
    ALPHAS,
    FAMILIES,
    KERNELS,
    METRICS,
    SERVICES,
    at_least_one,
    edges_or_share,
    one_of,
    seed_number,
)


def add_pair_options(
    parser: argparse.ArgumentParser,
    families: Sequence[str] | None = ("addition",),
    pairs: int = 64,
    known: Sequence[str] = FAMILIES,
    of_run: bool = False,
) -> None:
    """Declare the options that define the probe pairs, with these families and pairs per family as defaults.

    Without families the default is None: a look at the model chooses them.

    Args:
        parser: of the command.
        families: the default; None for the look.
        pairs: the default.
        known: names in the help.
        of_run: the command has --run, whose pairs are the default: None stands for "not given" (`RunDefaults`).
    """
    default = "those with signal on the model" if families is None else " ".join(families)
    run = "the run's; " if of_run else ""
    parser.add_argument(
        "--probes",
        nargs="+",
        default=None if families is None or of_run else list(families),
        metavar="PROBES",
        help=f"probe families ({', '.join(known)}), or one file of pairs (.jsonl, .safetensors) ({run}{default})",
    )
    number = None if of_run else pairs
    parser.add_argument("--pairs", type=at_least_one, default=number, help=f"number of pairs per family ({run}{pairs})")
    seed = None if of_run else 0
    parser.add_argument("--seed", type=seed_number, default=seed, help=f"seed of the generated pairs ({run}0)")


def add_path_options(parser: argparse.ArgumentParser, of_run: bool = False) -> None:
    """Declare the metric and the points of the path; with `of_run`, None stands for "not given" (`RunDefaults`)."""
    run = "the run's; " if of_run else ""
    metric, steps, alphas = (None, None, None) if of_run else ("logit_diff", 5, "midpoint")
    parser.add_argument(
        "--metric", type=one_of(METRICS), default=metric, help=f"{', '.join(METRICS)} ({run}logit_diff)"
    )
    parser.add_argument(
        "--steps", type=at_least_one, default=steps, help=f"number of points on the integrated-gradients path ({run}5)"
    )
    parser.add_argument(
        "--alphas",
        type=one_of(ALPHAS),
        default=alphas,
        help=f"position of these points: {', '.join(ALPHAS)} ({run}midpoint)",
    )
    parser.add_argument(
        "--kernels", type=one_of(KERNELS), default="auto", help=f"fused Triton kernels: {', '.join(KERNELS)} (auto)"
    )


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `watch_settings`."""
    add_pair_options(parser, None, known=(*FAMILIES, "openers"))
    add_path_options(parser)
    add_batch_option(parser)
    parser.add_argument("--heads-only", action="store_true", help="score no edges: faster, without the circuit rule")
    parser.add_argument(
        "--top-n",
        type=edges_or_share,
        default=0.027,
        help="edges of the circuit rule: a number, or a share below 1 (0.027)",
    )
    parser.add_argument(
        "--questions",
        nargs="+",
        default=None,
        metavar="NAME",
        help="questions of the openers: data sets on the Hub, or .jsonl files (AIME'24 and AMC)",
    )


def add_batch_option(parser: argparse.ArgumentParser) -> None:
    """Declare the batch size."""
    parser.add_argument("--batch-size", type=at_least_one, default=None, help="pairs per batch (by memory)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare dtype and device."""
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, or auto: the checkpoint's (auto)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (cuda if available, else cpu)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declare the run folder that keeps the result, and W&B."""
    parser.add_argument(
        "--run",
        dest="run_folder",
        default=None,
        metavar="FOLDER",
        help="use the pairs, metric and seed of this recorded run, and keep the result in it for its report",
    )
    parser.add_argument(
        "--report-to",
        type=one_of(("none", "wandb")),
        default="none",
        help="wandb: log the result to W&B, with --run to the run of the training (none)",
    )


def add_services_option(parser: argparse.ArgumentParser) -> None:
    """Declare the services that show the probes."""
    names = ", ".join(SERVICES)
    parser.add_argument("--report-to", nargs="+", type=one_of(SERVICES), default=["none"], help=f"{names} (none)")


def report_to(names: list[str]) -> dict[str, Any]:
    """The settings report_to and wandb; a W&B run is started, because no trainer did."""
    return {
        "report_to": names[0] if len(names) == 1 else names,
        "wandb": "start" if "wandb" in names else "off",
    }


def watch_settings(arguments: argparse.Namespace, **changes: Any) -> Any:
    """The WatchSettings of the options."""
    from headwatch.attribution.settings import ScoringSettings
    from headwatch.circuits.circuit import CircuitSettings
    from headwatch.monitor.settings import WatchSettings
    from headwatch.probes import Openers

    names = arguments.probes
    probes = None
    if names is not None:
        probes = probes_argument([name for name in names if name != "openers"] or ["addition"])
        if "openers" in names:
            probes = list(names) if len(names) > 1 else "openers"
    scoring = ScoringSettings(
        metric=arguments.metric,
        steps=arguments.steps,
        alphas=arguments.alphas,
        edges=not arguments.heads_only,
        batch_size=arguments.batch_size,
        kernels=arguments.kernels,
    )
    openers = Openers(questions=tuple(arguments.questions)) if arguments.questions else Openers()
    return WatchSettings(
        probes=probes,
        n_pairs=arguments.pairs,
        seed=arguments.seed,
        scoring=scoring,
        circuit=CircuitSettings(top_n=arguments.top_n),
        openers=openers,
        **changes,
    )
