"""Chat templates with a switch for thinking (Qwen3): the prompt, and probe pairs in both variants."""

import copy
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.generate import from_pairs
from headwatch.probes.pair_set import ProbeSet
from headwatch.probes.tokenization import AlignedPair, MisalignedError, PairTokenizer, shorten, tokenizer_name

SWITCH = "enable_thinking"
BOX = "\\boxed{"


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


def with_thinking(tokenizer: Any, think: bool) -> Any:
    """A copy of the tokenizer whose chat template has the switch set."""
    require_switch(tokenizer)
    switched = copy.deepcopy(tokenizer)
    setting = f"{{%- set {SWITCH} = {str(think).lower()} -%}}"
    template = tokenizer.chat_template
    if isinstance(template, dict):
        switched.chat_template = {name: setting + each for name, each in template.items()}
    else:
        switched.chat_template = setting + template
    return switched


def in_chat(probes: ProbeSet, tokenizer: Any) -> tuple[ProbeSet, ProbeSet]:
    """The pairs of a set inside the chat template, with thinking off and on; row i of both is the same question.

    The prompt up to the box (or the last equals sign) is the user's message, and the answer begins with the rest. With
    thinking on, the answer begins inside <think>; with thinking off, after the empty block that the template writes.
    A pair that this tokenizer cannot align in one of the two variants is left out of both.

    Args:
        probes: pairs that have texts.
        tokenizer: the tokenizer that made them.

    Raises:
        UserError: the template has no switch, pairs have no text, or none can be aligned.
    """
    require_switch(tokenizer)
    pair_tokenizer = PairTokenizer(tokenizer)
    kept: tuple[list[AlignedPair], list[AlignedPair]] = ([], [])
    families: list[str] = []
    rejected: list[str] = []
    for i in range(len(probes)):
        if not all(probes.texts[i]):
            raise UserError("--think: it needs pairs that have text; openers and pairs given as token ids have none")
        answer = (int(probes.answers[i, 0]), int(probes.answers[i, 1]))
        try:
            both = [_aligned(pair_tokenizer, probes.texts[i], answer, think) for think in (False, True)]
        except MisalignedError as error:
            rejected.append(f"{probes.families[i]}: {error}: {shorten(probes.texts[i][0], 80)}")
            continue
        for pairs, pair in zip(kept, both, strict=True):
            pairs.append(pair)
        families.append(probes.families[i])
    if not families:
        raise UserError(f"--think: none of the {len(probes)} pairs can be aligned in the chat template; {rejected[0]}")
    off, on = (from_pairs(pairs, families, pair_tokenizer, rejected) for pairs in kept)
    return off, on


def _aligned(tokenizer: PairTokenizer, texts: tuple[str, str], answer: tuple[int, int], think: bool) -> AlignedPair:
    """One pair in the template; MisalignedError where lengths differ or the answer's token merges with the prompt."""
    wrapped = tuple(_in_template(tokenizer.tokenizer, text, think) for text in texts)
    clean, corrupted = (tokenizer.encode_prompt(text) for text in wrapped)
    if len(clean) != len(corrupted):
        raise MisalignedError("the prompts differ in token length", f"clean {len(clean)}, corrupted {len(corrupted)}")
    for text, ids, token in zip(wrapped, (clean, corrupted), answer, strict=True):
        written = tokenizer.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        if tokenizer.encode_prompt(text + written) != [*ids, token]:
            raise MisalignedError("prompt and answer merge when they are tokenised together", f"answer {written!r}")
    return AlignedPair(clean, corrupted, answer, (wrapped[0], wrapped[1]))


def _in_template(tokenizer: Any, text: str, think: bool) -> str:
    place = text.rfind(BOX) if BOX in text else text.rfind("=") + 1 or len(text)
    chat = chat_text(tokenizer, text[:place].rstrip(" "), think=think)
    opened = chat.rstrip().endswith("<think>")
    return f"{chat}{'<think>' + chr(10) if think and not opened else ''}{text[place:]}"
