"""Values as JSON can hold them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any, digits: int | None = None, *, whole_as_int: bool = False) -> Any:
    """The value in types that JSON has, without NaN and infinities.

    Args:
        value: numpy and torch values become numbers and (nested) lists, sequences and sets lists, the keys of mappings
            text, numbers that are not finite None, and what JSON has no type for its text.
        digits: decimals that floats are rounded to; None keeps them all.
        whole_as_int: write a whole float as an integer (2, not 2.0), which is shorter.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry, digits, whole_as_int=whole_as_int) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry, digits, whole_as_int=whole_as_int) for entry in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = float(value) if digits is None else round(value, digits)
        return int(value) if whole_as_int and value.is_integer() else value
    return str(value)


def is_number(value: Any) -> bool:
    """Whether a value is one number: Python's, or a numpy or torch array of one entry."""
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (int, float)) or (hasattr(value, "item") and np.prod(getattr(value, "shape", ())) == 1)


def to_number(value: Any) -> int | float | None:
    """The Python number of a value for which `is_number` is true; None where it is not finite."""
    number: int | float | None = plain(value.item() if hasattr(value, "item") else value)
    return number
