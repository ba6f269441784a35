"""Gradients at every query head's copy of the residual vector, kept in head space until all points are summed.

With xhat = x / rms(x), r = 1 / rms(x), w the norm's weight, y_h = W_h (w * xhat) + b_h a projection's output for head h
and g_h = dL/dy_h, the gradient at the head's own copy of the residual vector x, before the norm, is

    dL/dx = r (w * W_h^T g_h) - r xhat (g_h . (y_h - b_h)) / M

(the second term is the Jacobian of rms). Summed over the points k of the path, the first term needs only
A_h = sum_k r_k g_{h,k}, [T, D]; the second only xhat_k and the numbers c_{h,k} = r_k g_{h,k} . (y_{h,k} - b_h) / M. So

    edge(s, h) = sum_t  delta_s . (w * W_h^T A_h)  -  sum_{t,k} (delta_s . xhat_k) c_{h,k}

Other architectures change a factor or add a term of rank one (a vector per token and point, times a number per head):

- LayerNorm: xhat = (x - mean) r, the norm's bias b' adds W_h b' to b_h, and the rows of w * W_h lose their mean over M.
- No norm before attention (OLMo 2): r = w = 1, and no term along xhat.
- A norm over the full width of the projection's output y (OLMo 2): with yhat = r' y, r' = 1 / rms(y), w' its weight,
  and g_h taken after that norm, the gradient at y is r' (w' g)_h - yhat r' (yhat_h . (w' g)_h) / width. The first part
  stays within the head; the second is one vector for all heads, W^T yhat in residual space, times a number per head.
"""

from dataclasses import dataclass

from torch import Tensor

from headwatch.model.parts import Norm
from headwatch.model.precision import at_least_float32


@dataclass(frozen=True)
class HeadGradients:
    """dL/dx at the copies of H query heads, in factors:

        dL/dx_h = scale * matrices[h]^T g_h  -  along_input[h] * xhat  -  along_width[h] * width_vector

    Attributes:
        scale: [..., 1]; None: 1.
        matrices: [H, D, M].
        along_input: [..., H]; None: 0.
        along_width: [..., H]; None: 0.
        width_vector: [..., M]; None with `along_width`.
    """

    scale: Tensor | None
    matrices: Tensor
    along_input: Tensor | None
    along_width: Tensor | None = None
    width_vector: Tensor | None = None


def head_gradients(
    grads: Tensor,
    y: Tensor,
    matrix: Tensor,
    bias: Tensor,
    n_heads: int,
    norm: Norm | None,
    r: Tensor | None,
    r_over_width: Tensor | None,
    width_norm: Norm | None,
) -> HeadGradients:
    """The factors of the gradients for one projection to queries, keys or values: see the top of this file.

    Args:
        grads: g_h, the gradient at each query head's copy of the projection's output, after `width_norm`, [..., H D].
        y: the projection's output, [..., H D] or [..., K D].
        matrix: W, [H D or K D, M].
        bias: b, including W b' of the norm's bias, [H D or K D].
        n_heads: H.
        norm: the norm before attention, of M entries, if any.
        r: that norm's 1 / rms of x, [..., 1]; None without a norm.
        r_over_width: r / M.
        width_norm: the norm over the full width of y, if any.
    """
    width = grads.shape[-1] // n_heads
    weighted = matrix if norm is None else norm.centre(matrix * norm.weight)
    linear = y if norm is None else y - bias  # W (w * xhat)
    if width_norm is None:
        along_input = None if r_over_width is None else _dot_per_head(grads, linear, n_heads) * r_over_width
        return HeadGradients(r, _per_query_head(weighted, n_heads, width), along_input)
    y, linear = at_least_float32(y), at_least_float32(linear)
    r_y, weight = width_norm.inverse_scale(y), width_norm.weight
    scale = r_y if r is None else r * r_y
    yhat = y * r_y
    along_width = scale * _dot_per_head(grads, yhat * weight, n_heads) / y.shape[-1]
    along_input = None
    if norm is not None:
        own = _dot_per_head(grads, linear * weight, n_heads) * scale
        along_input = (own - along_width * (yhat * linear).sum(-1, keepdim=True)) / matrix.shape[-1]
    matrices = _per_query_head(weighted * weight[:, None], n_heads, width)
    return HeadGradients(scale, matrices, along_input, along_width, yhat @ weighted)


def _per_query_head(matrix: Tensor, n_heads: int, width: int) -> Tensor:
    """[H D or K D, M] -> [H, D, M], key/value heads repeated for their query heads."""
    per_head = matrix.unflatten(0, (-1, width))
    return per_head.repeat_interleave(n_heads // len(per_head), 0)


def _dot_per_head(grads: Tensor, states: Tensor, n_heads: int) -> Tensor:
    """Dot products of [..., H D] with [..., H D or K D], head by head: [..., H]."""
    if grads.shape[-1] == states.shape[-1]:
        return (grads * states).unflatten(-1, (n_heads, -1)).sum(-1)
    width = grads.shape[-1] // n_heads
    states = states.unflatten(-1, (-1, 1, width))
    groups = grads.unflatten(-1, (states.shape[-3], -1, width))  # the query heads of each key/value head
    return (groups * states).sum(-1).flatten(-2)
