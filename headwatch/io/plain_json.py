"""Values as JSON can hold them."""

import math
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether a value is one number: Python's, or a numpy or torch array of one entry."""
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (int, float)) or (hasattr(value, "item") and np.prod(getattr(value, "shape", ())) == 1)


def to_number(value: Any) -> int | float | None:
    """The number that `is_number` found; None where it is not finite."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """The value as JSON can hold it; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if is_number(value):
        return to_number(value)
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
