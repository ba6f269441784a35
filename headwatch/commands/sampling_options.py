"""Options that evaluate and ablate share: benchmarks, sampling, and the plan that --dry-run prints."""

import argparse
from typing import Any

from headwatch.commands.options import at_least_one, number, one_of, seed_number
from headwatch.errors import UserError

HARNESS = "lm_eval:"
SUITES = ("gsm8k", "math500", "aime24", "aime25", "amc")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--suite",
        nargs="+",
        required=True,
        metavar="SUITE",
        help=f"{', '.join(SUITES)}, a .jsonl file with a problem and an answer per line, or lm_eval:TASK",
    )
    parser.add_argument("--n-problems", type=at_least_one, default=None, help="draw so many problems (all)")
    parser.add_argument("--samples", type=at_least_one, default=4, help="answers per problem (4)")
    parser.add_argument("--temperature", type=number(0.0), default=0.6, help="0 is greedy (0.6)")
    parser.add_argument(
        "--top-p", type=number(0.0, 1.0, includes_low=False), default=0.95, help="nucleus sampling (0.95)"
    )
    parser.add_argument("--top-k", type=at_least_one, default=None, help="number of most likely tokens (no limit)")
    parser.add_argument("--max-tokens", type=at_least_one, default=32768, help="longest answer (32768)")
    parser.add_argument("--batch-size", type=at_least_one, default=16, help="answers per batch (16)")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of problems and answers (0)")
    parser.add_argument(
        "--system-prompt", default="none", help="open-r1 (the paper's training prompt), none, or a text"
    )
    parser.add_argument(
        "--instruction", default=None, help="added to each problem (step by step, \\boxed{}); '' for none"
    )
    parser.add_argument(
        "--think", type=one_of(("on", "off")), default=None, help="on or off, where the chat template has the switch"
    )
    parser.add_argument("--tokenizer", default=None, help="name of the tokenizer (the model's)")
    parser.add_argument("--base", default=None, help="base model of an adapter (its own)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, or auto: the checkpoint's (auto)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (cuda if available, else cpu)")
    parser.add_argument(
        "--engine", type=one_of(("transformers", "vllm")), default="transformers", help="transformers or vllm"
    )
    parser.add_argument(
        "--report-to", type=one_of(("none", "wandb")), default="none", help="wandb: log the results to W&B (none)"
    )
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="print the plan and exit")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def split_suites(names: list[str]) -> tuple[list[str], list[str]]:
    """(own benchmarks, tasks of lm-evaluation-harness); each name is checked."""
    from headwatch.evaluation.benchmarks import check_suite, suite_name

    own = [name for name in names if not name.startswith(HARNESS)]
    for name in own:
        check_suite(name)
    stored = [suite_name(name) for name in own]
    for name in stored:
        if stored.count(name) > 1:
            raise UserError(f"--suite: {name} is named twice")
    return own, [name.removeprefix(HARNESS) for name in names if name.startswith(HARNESS)]


def check_engine(arguments: argparse.Namespace, tasks: list[str]) -> None:
    """Refuse an engine or a harness that is not installed, before anything is loaded."""
    from headwatch.evaluation.harness import check_harness
    from headwatch.evaluation.vllm_engine import require_vllm

    for task in tasks:
        check_harness(task)
    if arguments.engine == "vllm":
        require_vllm()


def sampling_settings(arguments: argparse.Namespace) -> Any:
    """The SamplingSettings of the options."""
    from headwatch.evaluation.sampling import INSTRUCTION, SamplingSettings

    return SamplingSettings(
        samples=arguments.samples,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        system_prompt=arguments.system_prompt,
        instruction=INSTRUCTION if arguments.instruction is None else arguments.instruction,
        think=None if arguments.think is None else arguments.think == "on",
    )


def plan(arguments: argparse.Namespace, arms: int = 1) -> list[dict[str, Any]]:
    """What would be sampled: problems, samples and tokens of each benchmark."""
    from headwatch.evaluation.benchmarks import count_problems

    own, tasks = split_suites(arguments.suite)
    settings = sampling_settings(arguments)
    found: list[dict[str, Any]] = []
    for name in own:
        problems = count_problems(name, arguments.n_problems)
        answers = problems * settings.samples * arms
        found.append(
            {
                "suite": name,
                "problems": problems,
                "samples": settings.samples,
                "arms": arms,
                "answers": answers,
                "most_tokens": answers * settings.max_tokens,
            }
        )
    return found + [{"suite": f"{HARNESS}{task}", "arms": arms} for task in tasks]


def plan_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The plan as text."""
    lines = []
    for row in rows:
        if "problems" not in row:
            lines.append(f"{row['suite']}: by lm-evaluation-harness, {row['arms']} arm(s)")
            continue
        lines.append(
            f"{row['suite']}: {row['problems']:,} problems x {row['samples']} samples x {row['arms']} arm(s) = "
            f"{row['answers']:,} answers, at most {row['most_tokens']:,} tokens"
        )
    return lines
