"""Chat templates with a switch for thinking (Qwen3): the prompt, and probe pairs in both variants."""

from typing import Any

from headwatch.errors import UserError
from headwatch.probes.tokenization import shorten, tokenizer_name

SWITCH = "enable_thinking"


def can_switch(tokenizer: Any) -> bool:
    """Whether the chat template reads `enable_thinking`."""
    template = getattr(tokenizer, "chat_template", None) or ""
    templates = template.values() if isinstance(template, dict) else [template]
    return any(SWITCH in str(each) for each in templates)


def require_switch(tokenizer: Any) -> None:
    """Raise UserError where the chat template has no switch for thinking."""
    if not can_switch(tokenizer):
        raise UserError(
            f"--think: the chat template of {tokenizer_name(tokenizer)!r} has no {SWITCH}; leave --think out, or use a "
            "model whose template has it (Qwen3)"
        )


def chat_text(tokenizer: Any, question: str, system: str = "", think: bool | None = None) -> str:
    """A question in the chat template, up to the start of the answer.

    Args:
        tokenizer: with a chat template.
        question: the user's message.
        system: the system prompt; "" for none.
        think: passed as enable_thinking; None leaves it out.

    Raises:
        UserError: the template cannot be applied, or has no switch and `think` is given.
    """
    if think is not None:
        require_switch(tokenizer)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    options = {} if think is None else {SWITCH: think}
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
    except Exception as error:  # jinja's own, or a ValueError where there is no template
        reason = shorten(str(error), 160) or type(error).__name__
        raise UserError(
            f"tokenizer {tokenizer_name(tokenizer)!r} cannot apply its chat template ({reason}): give a tokenizer with "
            "a chat template, and no system prompt where the template accepts none"
        ) from error
