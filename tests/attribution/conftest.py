import pytest
import torch
from torch.nn import functional


@pytest.fixture(autouse=True)
def eager_softmax_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention casts its softmax to float32 whatever the model's dtype; float64 checks need it wide."""
    softmax = functional.softmax

    def wide(x, dim=None, dtype=None, **kwargs):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    monkeypatch.setattr(functional, "softmax", wide)
