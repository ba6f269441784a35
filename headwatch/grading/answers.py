r"""Extract the final answer of a completion as one whole expression.

`final_answer` finds the text of the answer: the last <answer> block, else the last \boxed{...}, else LaTeX after "the
answer is". `expression` removes what surrounds the value (dollar signs, a box, "The answer is", `x =`, a unit, a full
stop) and returns the rest if it is one expression, else "". It never searches for a value inside a text: a text that
only contains, lists or ends in the right value has no value.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

MAX_LENGTH = 1000  # characters of an answer; no answer of a benchmark is longer

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_STATED = re.compile(
    r"\banswer(?:\s+is|\s+equals|\s*[:=])\s*(?:\$\$?([^$\n]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\])", re.IGNORECASE
)
_LATEX = re.compile(r"\$\$?([^$\n]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"([-+−]?)(?:\\?\$)?(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?\.?")

# "So the final answer is", "Therefore, x equals", "Answer:", "Total:".
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence)\b,?\s*)?(?:(?:the|our|my|a)\s+)?(?:(?:final|correct|exact|total|required)\s+)?"
    r"(?:answer|result|solution|total|value|sum)(?:\s+of\s+\\?\w{1,12})?\s*(?:is|are|equals|=|:)\s*:?\s*",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?:[a-zA-Z]|\\[a-zA-Z]{2,8})(?:_\{?\w{1,4}\}?)?\s*=\s*")
_VALUE = (
    r"[-+−]?(?:\\?\$\s?|£|€)?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"
    r"(?:\s?(?:\\[dt]?frac(?:\{\d+\}|\d)(?:\{\d+\}|\d)|(?<=\d)/\d+))?"
)
_UNIT = re.compile(rf"(?P<value>{_VALUE})(?P<unit>\s*(?:\\%|%|°|\^\\circ|\^\{{\\circ\}})|.*)", re.DOTALL)
_UNIT_TEXT = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{\s*([^{}\d]*?)\s*\}")
_POWER = re.compile(r"(?:\^\{?[23]\}?|[²³])")
_SYMBOLS = {"%", "\\%", "°", "^\\circ", "^{\\circ}"}
_ATTACHED = {"cm", "mm", "km", "kg", "mg", "ml", "mL", "hr", "hrs", "min", "mph", "ft", "lb", "lbs", "oz", "sec"}
_SINGLE = {"m", "g", "s", "h", "L", "l", "N", "J", "W", "V"}
# Words that change or negate a value, or join it to another one.
_NOT_UNITS = {
    *(
        "or",
        "and",
        "not",
        "no",
        "nor",
        "but",
        "if",
        "to",
        "than",
        "from",
        "is",
        "was",
        "are",
        "isn",
        "wrong",
        "incorrect",
    ),
    *(
        "false",
        "maybe",
        "perhaps",
        "about",
        "approximately",
        "roughly",
        "plus",
        "minus",
        "times",
        "divided",
        "multiplied",
    ),
    *("over", "by", "squared", "cubed", "factorial", "modulo", "mod", "hundred", "thousand", "million", "billion"),
    *("trillion", "dozen", "half", "third", "quarter", "more", "less", "off", "also", "either", "neither", "instead"),
    *("except", "without"),
}
_IN_SENTENCES = {"is", "to", "from", "and", "by", "more"}  # "The total cost of the pens is \\boxed{72}"
_NO_PART = re.compile(r"\\(?:text|mathrm|boxed|fbox|approx|sim|neq?|lor|land|quad|qquad)\b|\|")
_WORD = re.compile(r"(?<!\\)\b[A-Za-z]{2,}\b")
_FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "ln",
    "exp",
    "pi",
    "sqrt",
    "frac",
    "infty",
    "inf",
    "max",
    "min",
}
_COMMAND = re.compile(r"\\[a-zA-Z]+")


def final_answer(text: str) -> str:
    r"""The text of the completion's answer; "" if there is none.

    That is the last <answer>...</answer> block, even if empty; without one the last \boxed{...}; without either the
    last LaTeX after "the answer is" (or ":" or "=").
    """
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    if start >= 0 and end >= 0:
        return text[start + len("<answer>") : end].strip()
    boxes = list(_BOX.finditer(text))
    if boxes:
        content = _braced(text, boxes[-1].end() - 1)
        return "" if content is None else content.strip()
    stated = list(_STATED.finditer(text))
    return next((part for part in stated[-1].groups() if part), "").strip() if stated else ""


def final_latex(text: str) -> str:
    r"""The last \boxed{...} of a completion, else its last `$...$` or \(...\), else ""."""
    boxes = list(_BOX.finditer(text))
    if boxes:
        content = _braced(text, boxes[-1].end() - 1)
        return "" if content is None else content.strip()
    found = list(_LATEX.finditer(text))
    return next((part for part in found[-1].groups() if part), "").strip() if found else ""


def expression(answer: str) -> str:
    r"""The answer without the text around its value; "" if the rest is not one expression.

    >>> expression(r"The answer is $\boxed{x = 1{,}234 \text{ cm}}$.")
    '1,234'
    >>> expression("72 or 73"), expression("1 2 72")
    ('', '')
    """
    text = answer.strip()
    if not text or len(text) > MAX_LENGTH:
        return ""
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\,", " ").replace("\\ ", " ").replace("~", " ")
    text = text.replace("\\left", "").replace("\\right", "").replace("\u00a0", " ")
    for _ in range(12):  # remove one layer per iteration
        before, text = text, _unwrapped(text)
        if text == before:
            break
    return text if _is_one_expression(text) else ""


def number(text: str) -> Decimal | None:
    """The value of a text that is a single decimal number, else None. Commas may group thousands."""
    text = text.strip()
    if not text.isascii() and not text.startswith("−"):
        return None  # \d and Decimal accept the digits of every script
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        return None
    sign, whole, part = match.groups()
    if not whole and not part:
        return None
    try:
        return Decimal(f"{'-' if sign in ('-', '−') else ''}{(whole or '0').replace(',', '')}.{part or '0'}")
    except InvalidOperation:
        return None


def separators(text: str) -> int:
    r"""Number of list separators, relations, unions and `\pm` in an expression, without commas that group thousands.

    An answer with another number of them than the right answer is of another kind.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return len(re.findall(r"[,;=<>&]|\\\\|\\(?:leq?|geq?|lt|gt|in|pm|mp|begin|cup|cap)\b", text))


def _unwrapped(text: str) -> str:
    """The text without one layer around its value."""
    text = text.strip().strip("\u200b\u202e\ufeff").strip()
    text = re.sub(r"(?<=[^.])[.,;!]+$", "", text).strip() if not re.fullmatch(r"\d+\.", text) else text[:-1]
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"')):
        inner = text[len(left) : -len(right)]
        if (
            text.startswith(left)
            and text.endswith(right)
            and len(text) > len(left + right)
            and left not in inner.replace("\\$", "")
        ):
            return inner
    for command in (r"\\(?:boxed|fbox|text|mathrm|textrm|mbox|mathbf|textbf)\s*", ""):
        opened = re.match(command + r"\{", text)
        if opened and _braced(text, opened.end() - 1) == text[opened.end() : -1]:
            return text[opened.end() : -1]
    if len(_BOX.findall(text)) == 1:  # text before a box: "x = \boxed{72}", "The total is \boxed{72}"
        box = _BOX.search(text)
        assert box is not None
        content = _braced(text, box.end() - 1)
        if content is not None:
            rest = text[: box.start()] + text[box.end() + len(content) + 1 :]
            if re.fullmatch(r"[^\d\\]*", rest.replace("$", "")) and not _denies(rest):
                return content
            return ""
    lead = _LEAD.match(text)
    if lead:
        return text[lead.end() :]
    named = _NAMED.match(text)
    if named and "=" not in text[named.end() :] and text[named.end() :].strip():
        return text[named.end() :]
    if text.startswith("=") and text.count("=") == 1:
        return text[1:]
    return _without_unit(text)


def _without_unit(text: str) -> str:
    r"""A number without its unit: "72 clips", "$5", "30\%", "72 \text{ cm}^2"; any other text unchanged."""
    found = _UNIT.fullmatch(text)
    if not found or not re.search(r"\d", found["value"]) or not found["unit"].strip():
        money = re.fullmatch(r"([-+−]?)(?:\\?\$\s?|£|€)(.*)", text, re.DOTALL)
        return money[1] + money[2] if money and re.match(r"[\d.]", money[2]) else text
    value, unit = found["value"].strip(), found["unit"]
    spaced = unit[:1].isspace() or unit.lstrip().startswith("\\")
    written = _UNIT_TEXT.sub(r" \1 ", unit)
    bare = _POWER.sub("", written).strip().rstrip(".")
    if bare in _SYMBOLS:
        return value
    words = re.split(r"[\s/.]+", bare)
    known = all(re.fullmatch(r"[A-Za-z]{2,}'?s?", word) or word in _SINGLE for word in words)
    if not known or not 1 <= len(words) <= 4 or any(word.lower() in _NOT_UNITS for word in words):
        return text
    return value if spaced or bare in _ATTACHED else text


def _denies(text: str) -> bool:
    return any(word.lower() in _NOT_UNITS - _IN_SENTENCES for word in re.findall(r"[A-Za-z]+", text))


def _is_one_expression(text: str) -> bool:
    """Whether a text can be one expression: balanced, on one line, without prose, without two values in a row."""
    if not text or "\n" in text or "$" in text or ("<" in text and ">" in text):
        return False
    if not _balanced(text) or re.search(r"\d\s+\d", text) or _NO_PART.search(text):
        return False
    plain = _COMMAND.sub(" ", text)
    words = [word for word in _WORD.findall(plain) if word.lower() not in _FUNCTIONS]
    single_word = re.fullmatch(r"\(?[A-Za-z]+\)?", text) is not None  # an option, a name, "even"
    return not words or single_word


def _balanced(text: str) -> bool:
    pairs, open_ = {")": "([", "]": "[(", "}": "{"}, []
    for character in text:
        if character in "([{":
            open_.append(character)
        elif character in pairs and (not open_ or open_.pop() not in pairs[character]):
            return False
    return not open_


def _braced(text: str, start: int) -> str | None:
    """The text between the brace at `start` and its closing brace; None if it is not closed."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + 1 : index]
    return None
