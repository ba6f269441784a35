"""The precision in which scores are computed."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; scores are accumulated in float32 or float64, whatever the model's dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
