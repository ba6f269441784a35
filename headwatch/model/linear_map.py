"""The matrix of a module that is one linear map, whatever it is made of."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headwatch.model.hooks import has_own_forward
from headwatch.model.precision import at_least_float32


@torch.no_grad()
def linear_map(module: nn.Module, d_in: int) -> tuple[Tensor, Tensor]:
    """The effective weight and bias of a module that is one linear map, in float32 or float64.

    The weight of anything but a plain nn.Linear or Conv1D (LoRA, a quantised layer) is the image of the identity under
    the module's forward, so base weight and adapters are combined as in the forward pass.

    Args:
        module: the linear map.
        d_in: its input width.

    Returns:
        Weight [out, in] and bias [out].
    """
    if type(module) in (nn.Linear, Conv1D) and not has_own_forward(module):
        own: Any = module
        weight = at_least_float32(own.weight.detach() if type(module) is nn.Linear else own.weight.detach().T)
        return weight, weight.new_zeros(len(weight)) if own.bias is None else at_least_float32(own.bias.detach())
    dtype, device = compute_type(module)
    basis = torch.eye(d_in, dtype=dtype, device=device)
    bias = module.forward(torch.zeros_like(basis[:1]))[0]  # .forward does not run the hooks of the pass
    return at_least_float32(module.forward(basis) - bias).T.contiguous(), at_least_float32(bias)


def compute_type(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of a module's inputs; float32 if all its parameters are packed integers (4 bit)."""
    parameters = list(module.parameters())
    for parameter in parameters:
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return torch.float32, parameters[0].device if parameters else torch.device("cpu")
