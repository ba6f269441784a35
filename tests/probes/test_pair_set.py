"""ProbeSet: defaults, validation, fingerprint, select and concat."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from headwatch.errors import UserError
from headwatch.probes import ProbeSet, Provenance

CLEAN = [[5, 6, 7, 8], [5, 6, 7, 0], [0, 6, 7, 8]]
CORRUPTED = [[5, 1, 7, 8], [5, 6, 2, 9], [9, 6, 7, 3]]
MASK = [[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]]
ANSWERS = [[11, 12], [13, 14], [15, 16]]


def small(**changes) -> ProbeSet:
    return ProbeSet.from_token_ids(
        **{"clean": CLEAN, "corrupted": CORRUPTED, "attention_mask": MASK, "answers": ANSWERS, **changes}
    )


def test_defaults():
    probes = ProbeSet.from_token_ids(torch.tensor(CLEAN), np.array(CORRUPTED))
    assert probes.attention_mask.tolist() == [[1] * 4] * 3
    assert probes.read_positions.tolist() == [[3]] * 3
    assert probes.answers.tolist() == [[-1, -1]] * 3
    assert probes.targets.tolist() == [[-1]] * 3
    assert probes.families == ("custom",) * 3
    assert len(probes) == 3


def test_metric_is_read_at_each_rows_last_real_position():
    probes = small()
    assert probes.read_positions.tolist() == [[3], [2], [3]]
    assert probes.targets.tolist() == [[11], [13], [15]]


def test_targets_of_several_read_positions_are_the_clean_continuation():
    probes = small(read_positions=[[1, 2, 3], [1, 2, -1], [2, -1, -1]])
    assert probes.targets.tolist() == [[7, 8, 11], [7, 13, -1], [8, -1, -1]]


def test_boolean_masks_and_small_integers_become_int64():
    probes = small(attention_mask=torch.tensor(MASK).bool(), clean=torch.tensor(CLEAN, dtype=torch.int32))
    assert probes.attention_mask.dtype == probes.clean.dtype == torch.long
    assert probes.fingerprint == small().fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupted": [[1, 2, 3]] * 3}, r"clean \[3, 4\] and corrupted \[3, 3\] differ in shape"),
        ({"clean": [[1, 2], [1]]}, "clean: .*rows of equal length"),
        ({"clean": torch.ones(3, 4)}, "clean: dtype torch.float32; give an integer tensor"),
        ({"clean": [1, 2], "corrupted": [1, 3]}, r"shape \[2\]; give \[pairs, tokens\]"),
        ({"clean": torch.zeros(0, 4).long(), "corrupted": torch.zeros(0, 4).long()}, r"shape \[0, 4\]"),
        ({"clean": [[-1, 6, 7, 8], *CLEAN[1:]]}, r"clean: negative token id \(row 0\)"),
        ({"attention_mask": [[1, 1, 1]] * 3}, r"attention_mask \[3, 3\] does not fit the tokens \[3, 4\]"),
        ({"attention_mask": [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]]}, r"one contiguous run.*\(rows 1, 2\)"),
        ({"attention_mask": [[1, 1, 1, 2], *MASK[1:]]}, r"values other than 0 and 1 \(row 0\)"),
        ({"attention_mask": [[0, 0, 0, 0], *MASK[1:]]}, r"no real position \(row 0\)"),
        ({"corrupted": [CORRUPTED[0], CORRUPTED[1], CLEAN[2]]}, r"identical.*\(row 2\)"),
        ({"corrupted": [[5, 6, 7, 8], [5, 6, 7, 9], [9, 6, 7, 3]]}, r"identical.*\(rows 0, 1\)"),  # 9 is padding
        ({"answers": [1, 2, 3]}, r"answers: shape \[3\]; give \[3, 2\]"),
        ({"answers": [[1, 2], [-1, 3], [1, 2]]}, r"one side has an answer.*\(row 1\)"),
        ({"answers": [[1, -2], [1, 3], [1, 2]]}, r"below -1.*\(row 0\)"),
        ({"read_positions": [[4], [0], [1]]}, r"outside the columns 0 to 3 \(row 0\)"),
        ({"read_positions": [[3], [3], [3]]}, r"a padded position \(row 1\)"),
        ({"read_positions": [[-1, 3], [1, 2], [1, 2]]}, r"-1 belongs at the end.*\(row 0\)"),
        ({"read_positions": [[3]]}, r"read_positions: shape \[1, 1\]; give \[3, P\]"),
        ({"targets": [[1, 2]] * 3}, r"targets \[3, 2\] does not fit read_positions \[3, 1\]"),
        ({"families": ["a", "b"]}, "families: 2 given for 3 pairs"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_invalid_tensors_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


def test_equal_answers_warn():
    with pytest.warns(UserWarning, match=r"same token \(row 1\)"):
        small(answers=[[1, 2], [3, 3], [4, 5]])


@pytest.mark.parametrize("name", ["clean", "corrupted", "attention_mask", "answers", "read_positions", "targets"])
def test_fingerprint_changes_with_any_tensor(name):
    probes = small()
    value = getattr(probes, name).clone()
    value[1, 0] = {"attention_mask": 0, "read_positions": 1}.get(name, 40)
    assert dataclasses.replace(probes, **{name: value}).fingerprint != probes.fingerprint
    assert dataclasses.replace(probes, **{name: getattr(probes, name).clone()}).fingerprint == probes.fingerprint


def test_fingerprint_depends_on_families_and_vocabulary():
    probes = small(provenance=Provenance(tokenizer_name="a"))
    assert re.fullmatch("[0-9a-f]{16}", probes.fingerprint)
    assert small(provenance=Provenance(tokenizer_name="b")).fingerprint != probes.fingerprint
    assert small(provenance=Provenance(tokenizer_name="a"), families="mine").fingerprint != probes.fingerprint
    known = small(provenance=Provenance(tokenizer_name="a", vocabulary="1234"))
    assert known.fingerprint == small(provenance=Provenance(tokenizer_name="b", vocabulary="1234")).fingerprint
    assert known.fingerprint != small(provenance=Provenance(tokenizer_name="a", vocabulary="5678")).fingerprint


def test_select_removes_shared_padding_and_shifts_read_positions():
    probes = small()
    one = probes.select([1])
    assert one.clean.tolist() == [[5, 6, 7]]
    assert one.read_positions.tolist() == [[2]]
    last = probes.select(2)
    assert last.clean.tolist() == [[6, 7, 8]]
    assert last.read_positions.tolist() == [[2]]
    assert probes.select(slice(1, None)).answers.tolist() == ANSWERS[1:]
    assert probes.select(torch.tensor([True, False, True])).answers.tolist() == [ANSWERS[0], ANSWERS[2]]
    assert probes.select([2, 0]).answers.tolist() == [ANSWERS[2], ANSWERS[0]]


@pytest.mark.parametrize("which", ["addition", [7], [], [1.5], None])
def test_select_refuses_what_does_not_exist(which):
    with pytest.raises(UserError, match=r"addition|select|7"):
        small().select(which)


def test_select_undoes_concat():
    first, second = small(families="one"), small(read_positions=[[1, 2], [1, 2], [2, 3]], families="two").select([0, 2])
    wide = ProbeSet.from_token_ids([[1, 2, 3, 4, 5, 6]], [[1, 2, 3, 4, 5, 7]], families="three")
    joined = ProbeSet.concat([first, second, wide])
    assert joined.family_names == ("one", "two", "three")
    assert joined.clean.shape == (6, 6)
    assert joined.read_positions.shape == (6, 2)
    for part in (first, second, wide):
        assert joined.select(part.families[0]).fingerprint == part.fingerprint


def test_concat_refuses_sets_of_different_tokenizers():
    with pytest.raises(UserError, match="'a', 'b'"):
        ProbeSet.concat([small(provenance=Provenance(tokenizer_name=name)) for name in "ab"])
    with pytest.raises(UserError, match="no probe sets"):
        ProbeSet.concat([])


def test_repr_is_short_and_complete():
    text = repr(small(families=["a", "b", "a"]))
    assert "3 pairs x 4 tokens" in text
    assert "a 2, b 1" in text
    assert len(text) < 200
