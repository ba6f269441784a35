"""Temporary hooks and attributes are undone when their block ends, however it ends."""

import pytest
from torch import nn

from headwatch.model.hooks import hooked, overridden


class Owner:
    shared = "class"


@pytest.mark.parametrize("fails", [False, True])
def test_attributes_are_restored_or_deleted(fails: bool) -> None:
    owner = Owner()
    owner.own = "before"  # type: ignore[attr-defined]
    try:
        with overridden(owner, shared="first", own="inside", new=1):
            with overridden(owner, shared="second"):
                assert owner.shared == "second"
            assert owner.shared == "first"
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert vars(owner) == {"own": "before"}
    assert owner.shared == "class"


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_removed(fails: bool) -> None:
    module, calls = nn.Linear(2, 2), []
    try:
        with hooked(*(module.register_forward_pre_hook(lambda *_: calls.append(1)) for _ in range(2))):
            assert len(module._forward_pre_hooks) == 2
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert not module._forward_pre_hooks
