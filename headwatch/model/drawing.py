"""Draw tokens from logits with given random numbers, so that a seed fixes a sample on every machine."""

import random

from torch import Tensor

MOST_LIKELY = 1024  # tokens that a draw chooses from


def draw_tokens(logits: Tensor, numbers: Tensor, temperature: float, top_p: float, top_k: int | None = None) -> Tensor:
    """Sample one token per row among the top-k tokens that top-p keeps, [B].

    On the CPU in float64, so that equal logits give equal tokens on every machine.

    Args:
        logits: [B, V].
        numbers: [B] in [0, 1), one per draw.
        temperature: 0 takes the most likely token.
        top_p: the smallest set of tokens with this probability; 1 keeps all.
        top_k: the number of tokens kept; None and more than 1,024 keep the 1,024 most likely ones.
    """
    if temperature == 0:
        return logits.argmax(-1).cpu()
    values, tokens = logits.float().topk(min(top_k or MOST_LIKELY, MOST_LIKELY, logits.shape[-1]), -1)
    weights = (values.cpu().double() / temperature).softmax(-1)
    before = weights.cumsum(-1) - weights
    reach = (weights * (before < top_p)).cumsum(-1)
    place = (reach <= numbers[:, None] * reach[:, -1:]).sum(-1).clamp(max=weights.shape[1] - 1)
    return tokens.cpu().gather(1, place[:, None])[:, 0]


def uniforms(seed: str, n: int) -> list[float]:
    """n numbers in [0, 1), the same for the same seed in every process."""
    rng = random.Random(seed)
    return [rng.random() for _ in range(n)]
