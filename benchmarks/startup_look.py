"""The look at the start of training (headwatch/monitor/family_choice.py), and all pairs of every family next to it.

    python benchmarks/startup_look.py MODEL [MODEL ...] [--pairs 64] [--dtype float32]

Prints a row of docs/evidence/startup.md per family, and the seconds of the look (families in their order, until one of
arithmetic has signal) and CPU seconds of this process. Seed 0, logit difference, forward only, on a CPU.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch.monitor.family_choice import ARITHMETIC, CONTROL, LOOK_PAIRS, choose_families, look_at
from headwatch.stats import EvidenceSettings

LEAST = EvidenceSettings().min_gap_t


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--pairs", type=int, default=64, help="pairs per family of the comparison (64)")
    parser.add_argument("--dtype", default="float32", help="of the weights (float32)")
    arguments = parser.parse_args()
    for name in arguments.models:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, arguments.dtype))
        tokenizer = AutoTokenizer.from_pretrained(name)
        compare(Path(name).name, model.eval(), tokenizer, arguments.pairs)


def compare(name: str, model: torch.nn.Module, tokenizer: object, pairs: int) -> None:
    """Print the choice, its time and one row per family."""
    wall, cpu = time.perf_counter(), time.process_time()
    choice = choose_families(tokenizer, model, "logit_diff", 64, LEAST)
    print(
        f"# {name}: {choice.families}, {len(choice.looks)} families looked at, "
        f"{time.perf_counter() - wall:.1f} s ({time.process_time() - cpu:.1f} CPU s)",
        flush=True,
    )
    taken = {look.family for look in choice.looks}
    for family in (CONTROL, *ARITHMETIC):
        few = look_at(family, tokenizer, model)
        many = look_at(family, tokenizer, model, look_pairs=pairs)
        assert few is not None
        assert many is not None
        cells = (
            name,
            family if family in taken else f"{family} (not looked at)",
            f"{few.t:.1f}",
            f"{few.accuracy:.0%}",
            f"{many.t:.1f}",
            f"{many.accuracy:.0%}",
            "yes" if family in choice.families else "no",
            "yes" if few.has_signal == (abs(many.t) >= LEAST) else "no",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"# all with {LOOK_PAIRS} and {pairs} pairs: {time.process_time() - cpu:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
