"""`headwatch score MODEL`: score the heads of a model on probe pairs."""

import argparse
import json
import sys
from typing import Any, cast

from headwatch.commands.loading import dtype_and_device, load_pretrained, model_name, move_to, probes_argument
from headwatch.commands.options import add_command, at_least_one
from headwatch.commands.watch_options import add_model_options, add_pair_options, add_path_options


def add(commands: Any) -> None:
    """Declare the command."""
    score = add_command(
        commands,
        "score",
        run,
        "score the attention heads of a model on probe pairs",
        "headwatch score Qwen/Qwen2.5-Math-1.5B --probes addition recall --top 20",
    )
    score.add_argument("model", metavar="MODEL", help="model folder, or a name on the Hugging Face Hub")
    add_pair_options(score)
    add_path_options(score)
    score.add_argument("--top", type=at_least_one, default=15, help="number of heads to print per family (15)")
    add_model_options(score)
    score.add_argument("--gguf-file", default=None, metavar="FILE", help="name of a GGUF file in the model folder")
    score.add_argument("--json", action="store_true", help="print the scores of all heads as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    wanted = probes_argument(arguments.probes)
    name = model_name(arguments.model, arguments.gguf_file, takes_gguf=True)
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from headwatch.attribution import HeadScores
    from headwatch.attribution.path import path_points
    from headwatch.attribution.scoring import score_pairs
    from headwatch.attribution.settings import ScoringSettings
    from headwatch.attribution.summary import summary
    from headwatch.model.anatomy import Anatomy
    from headwatch.monitor.console import ProbeProgress
    from headwatch.probes import ProbeSet

    path_points(arguments.alphas, arguments.steps, arguments.metric)  # refuses combinations that are always zero
    tokenizer = load_pretrained(AutoTokenizer, name, arguments.gguf_file)
    probes = ProbeSet.resolve(wanted, tokenizer, n_pairs=arguments.pairs, seed=arguments.seed)
    model = move_to(load_pretrained(AutoModelForCausalLM, name, arguments.gguf_file, dtype=dtype), device)
    settings = ScoringSettings(
        arguments.metric, arguments.steps, arguments.alphas, edges=False, kernels=arguments.kernels
    )
    progress = ProbeProgress(None, "headwatch score", len(probes), shown=sys.stderr.isatty())
    try:
        scores = cast(HeadScores, score_pairs(model, probes, settings, observe=progress))
    finally:
        progress.close()
    families = summary(scores, layers=Anatomy.of(model).layers_with_heads)
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
