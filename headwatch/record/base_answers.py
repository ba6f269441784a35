"""The base model's answers in the run folder, so that a resumed run measures the KL from the same base."""

from pathlib import Path

from safetensors.torch import load_file, save

from headwatch.attribution.base_kl import BaseAnswers
from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.record.layout import BASE_ANSWERS


def save_base_answers(answers: BaseAnswers, folder: Path) -> None:
    """Write the answers into a run folder."""
    arrays = {"log_probs": answers.log_probs.contiguous()}
    if answers.tokens is not None:
        arrays["tokens"] = answers.tokens.contiguous()
    write_atomic(folder / BASE_ANSWERS, save(arrays))


def load_base_answers(folder: Path) -> BaseAnswers | None:
    """Read the answers of a run folder; None where it has none.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / BASE_ANSWERS
    if not path.is_file():
        return None
    try:
        arrays = load_file(path)
        return BaseAnswers(arrays["log_probs"], arrays.get("tokens"))
    except Exception as error:  # safetensors raises its own type
        raise UserError(f"{path} cannot be read ({error}): move it away to continue without the KL") from error
