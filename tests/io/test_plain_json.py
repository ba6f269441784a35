"""Values cleaned for JSON."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwatch.io.plain_json import is_number, plain, to_number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.25), 0.25),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor([0.5], dtype=torch.bfloat16), [0.5]),
        (np.array([[1.0, np.nan], [np.inf, 2.5]]), [[1.0, None], [None, 2.5]]),
        (np.array(-np.inf), None),
        ({1: (1, 2), "a": frozenset({3})}, {"1": [1, 2], "a": [3]}),
        (OrderedDict(x=float("nan")), {"x": None}),
        (Path("a"), "a"),
        (None, None),
    ],
    ids=str,
)
def test_values_become_types_that_json_has(value: Any, expected: Any) -> None:
    found = plain(value)
    assert json.dumps(found, allow_nan=False) == json.dumps(expected)


def test_floats_are_rounded_and_whole_ones_written_as_integers() -> None:
    values = {"x": np.array([1.23456, 2.0, np.nan, -0.00001]), "n": [1, True], "f": 3.99999}
    assert json.dumps(plain(values, 4)) == '{"x": [1.2346, 2.0, null, -0.0], "n": [1, true], "f": 4.0}'
    assert json.dumps(plain(values, 4, whole_as_int=True)) == '{"x": [1.2346, 2, null, 0], "n": [1, true], "f": 4}'


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.array(1), np.array([1.0]), torch.tensor([[1]])], ids=repr)
def test_one_number_in_any_type(value: Any) -> None:
    assert is_number(value)
    assert to_number(value) == 1


@pytest.mark.parametrize("value", [True, np.True_, "1", None, np.ones(2), [1]], ids=repr)
def test_not_one_number(value: Any) -> None:
    assert not is_number(value)
