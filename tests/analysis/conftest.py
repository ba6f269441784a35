import pytest
from helpers.tiny_models import softmax_in_float64
from torch.nn import functional


@pytest.fixture(autouse=True)
def eager_softmax_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention casts its softmax to float32, whatever the model's dtype; float64 checks need float64."""
    monkeypatch.setattr(functional, "softmax", softmax_in_float64(functional.softmax))
