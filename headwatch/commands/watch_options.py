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
) -> None:
    """Declare the options that define the probe pairs, with these families and pairs per family as defaults.

    Without families the default is None: a look at the model chooses them.
    """
    default = "those with signal on the model" if families is None else " ".join(families)
    parser.add_argument(
        "--probes",
        nargs="+",
        default=None if families is None else list(families),
        metavar="PROBES",
        help=f"probe families ({', '.join(known)}), or one file of pairs (.jsonl, .safetensors) ({default})",
    )
    parser.add_argument("--pairs", type=at_least_one, default=pairs, help=f"number of pairs per family ({pairs})")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the generated pairs (0)")


def add_path_options(parser: argparse.ArgumentParser) -> None:
    """Declare the metric and the points of the path."""
    parser.add_argument(
        "--metric", type=one_of(METRICS), default="logit_diff", help=f"{', '.join(METRICS)} (logit_diff)"
    )
    parser.add_argument(
        "--steps", type=at_least_one, default=5, help="number of points on the integrated-gradients path (5)"
    )
    parser.add_argument(
        "--alphas", type=one_of(ALPHAS), default="midpoint", help=f"position of these points: {', '.join(ALPHAS)}"
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
        help="keep the result in this recorded run, so that its report shows it",
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
