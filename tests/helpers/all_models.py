"""A small random model of every model type in `LAYOUTS`, from its own default configuration with reduced sizes."""

from typing import Any

from torch import nn
from transformers import AutoConfig

from headwatch.model.layouts import LAYOUTS
from headwatch.model.reduced import random_model, reduced

MULTIPLIER = {"residual_multiplier": 0.4}
# What a type's default configuration lacks: layers of every kind, a multiplier that matters, experts.
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granite": MULTIPLIER,
    "granite_swa": MULTIPLIER,
    "granitemoe": MULTIPLIER,
    "granitemoe_swa": MULTIPLIER,
    "granitemoehybrid": {
        **MULTIPLIER,
        **{"num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "num_local_experts": 4},
        **{"num_experts_per_tok": 2},
    },
    "granitemoeshared": {**MULTIPLIER, "shared_intermediate_size": 16},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {
        **{"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        **{"pad_token_id": 0},
    },
}


def small_config(model_type: str) -> Any:
    """The reduced configuration of a type."""
    return reduced(AutoConfig.for_model(model_type, **SETTINGS.get(model_type, {})))


def small_model(model_type: str) -> nn.Module:
    """A random float64 model of a type."""
    return random_model(small_config(model_type))


TYPES = sorted(LAYOUTS)
