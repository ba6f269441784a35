"""The errors in docs/reference/models.md: python tests/attribution/errors.py (some minutes on one core)."""

import torch
from helpers.tiny_models import (
    ARCHITECTURES,
    has_sdpa,
    largest_error,
    random_openers,
    random_pairs,
    softmax_in_float64,
    tiny_model,
)
from torch.nn import functional

from headwatch import score_edges
from headwatch.attribution.naive import naive_edges


def against_the_reference(architecture: str) -> float:
    """Float64 against the naive reference: the worst of eager and sdpa, of prefix reuse on and off, and of pairs with a
    short and with a long shared prefix, behind which the points lie beside one another.
    """
    errors = []
    for attention in ("eager", "sdpa") if has_sdpa(architecture) else ("eager",):
        model = tiny_model(architecture, attention=attention)
        for probes in (random_pairs(4), random_openers(4)):
            expected = naive_edges(model, probes, steps=2)
            for reuse in (True, False):
                found = score_edges(model, probes, steps=2, reuse_prefix=reuse).per_pair
                errors.append(largest_error(found, expected))
    return max(errors)


def of_float32(architecture: str) -> float:
    """Float32, pairs of different lengths padded into one batch, against float64."""
    attention = "sdpa" if has_sdpa(architecture) else "eager"
    wide, narrow = (
        score_edges(tiny_model(architecture, dtype, attention), random_pairs()).per_pair
        for dtype in (torch.float64, torch.float32)
    )
    return largest_error(narrow, wide)


def of_half_precision(architecture: str, dtype: torch.dtype) -> tuple[float, float]:
    """Autocast, and a model held in that type, against float32."""
    probes, model = random_pairs(8), tiny_model(architecture, torch.float32)
    plain = score_edges(model, probes).per_pair
    with torch.autocast("cpu", dtype):
        autocast = score_edges(model, probes).per_pair
    held = score_edges(tiny_model(architecture, dtype), probes).per_pair
    return largest_error(autocast, plain), largest_error(held, plain)


if __name__ == "__main__":
    functional.softmax = softmax_in_float64(functional.softmax)
    for name in ARCHITECTURES:
        print(f"{name:20} float64 {against_the_reference(name):.0e}  float32 {of_float32(name):.0e}", flush=True)
    for name in ("qwen2", "gemma3", "gpt2", "olmo2", "neox"):
        for half in (torch.bfloat16, torch.float16):
            autocast, held = of_half_precision(name, half)
            print(f"{name:20} {half}: autocast {autocast:.3f}, all of the model {held:.3f}", flush=True)
