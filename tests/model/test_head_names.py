"""Names of heads: every spelling, and what is refused."""

import re

import pytest

from headwatch import UserError
from headwatch.model.head_names import head_name, parse_head, parse_heads


@pytest.mark.parametrize("head", ["L17.H3", "l17h3", "a17.h3", "17.3", " L17.H3 ", (17, 3), [17, 3]])
def test_every_spelling_is_the_same_head(head: object) -> None:
    assert parse_head(head, (18, 4)) == (17, 3)  # type: ignore[arg-type]
    assert head_name(17, 3) == "L17.H3"


@pytest.mark.parametrize("head", ["L99H0", "L5.H4", (5, 4), (-1, 0)])
def test_a_head_outside_the_model_is_refused_with_its_range(head: object) -> None:
    with pytest.raises(
        UserError, match=re.escape("its heads are L0.H0 to L5.H3 (6 layers, 4 heads per layer")
    ) as error:
        parse_head(head, (6, 4), "--heads")  # type: ignore[arg-type]
    assert str(error.value).startswith("--heads: the model has no head ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head", ["", "m3", "L1", "a1.h2.q", "173", (1, 2, 3), (1.5, 2), 7, None])
def test_what_is_no_head_is_refused(head: object) -> None:
    with pytest.raises(UserError, match="is not a head; write layer and head"):
        parse_head(head)  # type: ignore[arg-type]


def test_several_heads_in_one_text_or_a_list() -> None:
    assert parse_heads("L1.H2, a0.h3 1.2") == [(1, 2), (0, 3)]
    assert parse_heads([(1, 2), "L0.H3"]) == [(1, 2), (0, 3)]
