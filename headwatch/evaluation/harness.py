"""Tasks of lm-evaluation-harness (GPQA, TriviaQA, retention suites), on a model that is loaded."""

from importlib.util import find_spec
from typing import Any

from headwatch.errors import UserError

PREFIX = "lm_eval:"


def check_harness(task: str) -> None:
    """Raise UserError where lm-evaluation-harness is not installed, or no task is named."""
    if not task:
        raise UserError(f"--suite {PREFIX}: name a task, such as {PREFIX}gpqa_diamond_zeroshot")
    if find_spec("lm_eval") is None:
        raise UserError(
            f"--suite {PREFIX}{task} needs lm-evaluation-harness, which is not installed: pip install 'lm_eval[hf]'"
        )


def run_task(task: str, model: Any, tokenizer: Any, batch_size: int, limit: int | None, seed: int) -> dict[str, Any]:
    """The numbers of one task, by metric; hooks on the model stay in force.

    Args:
        task: a task or group of lm-evaluation-harness.
        model: the model.
        tokenizer: its tokenizer.
        batch_size: of the harness.
        limit: the first so many documents; None takes all.
        seed: of the harness.

    Raises:
        UserError: the harness is not installed, or does not run the task.
    """
    check_harness(task)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = simple_evaluate(
            model=wrapped,
            tasks=[task],
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except Exception as error:  # unknown task, gated data set, no network: each raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--suite {PREFIX}{task}: lm-evaluation-harness failed: {reason}") from error
    return dict((found or {}).get("results", {}))
