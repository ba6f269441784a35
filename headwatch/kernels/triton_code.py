"""The Triton kernels. Only this file imports triton; launch.py loads it when a kernel is first launched.

Every kernel computes in float32 and writes the dtype of its output. Where a model rounds an intermediate result to 16
bits in its forward pass, the kernel rounds at the same place, so both forward passes agree up to the order of sums.
"""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x, w, y, rows, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """y = w * (x / rms(x)), ROWS rows per program: [N, M], [M] -> [N, M]."""
    row, m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (m < width)
    value = tl.load(x + row * width + m, mask=inside, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    rounded = (value * r[:, None]).to(y.dtype.element_ty).to(tl.float32)
    weight = tl.load(w + m, mask=m < width, other=0.0).to(tl.float32)
    tl.store(y + row * width + m, (weight * rounded).to(y.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward(  # type: ignore[no-untyped-def]
    g, x, w, dx, rows, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """dx = r (w g) - x r^3 mean(w g x), the gradient of the activations alone: [N, M] -> [N, M]."""
    row, m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (m < width)
    value = tl.load(x + row * width + m, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(g + row * width + m, mask=inside, other=0.0).to(tl.float32)
    grad = grad * tl.load(w + m, mask=m < width, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    along = tl.sum(grad * value, 1) / width
    out = r[:, None] * grad - value * (r * r * r * along)[:, None]
    tl.store(dx + row * width + m, out.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def inverse_rms(  # type: ignore[no-untyped-def]
    x, r, rows, batch, length, width, eps, sn, sb, st, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """r = 1 / rms(x) of every run and token: [n, B, T, M] with strides -> [n, B T], ROWS of n B T rows per program."""
    row, m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)[None, :]
    start = row // length // batch * sn + row // length % batch * sb + row % length * st
    inside = (row < rows)[:, None] & (m < width)
    value = tl.load(x + start[:, None] + m, mask=inside, other=0.0).to(tl.float32)
    tl.store(r + row, 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps), mask=row < rows)


@triton.jit
def swiglu(gate, up, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = silu(gate) * up, entry by entry."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    a = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    activated = (a * tl.sigmoid(a)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at, (activated * b).to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(g, gate, up, d_gate, d_up, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Gradients of silu(gate) * up at both factors, entry by entry."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    grad = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(a)
    tl.store(d_up + at, (grad * a * s).to(d_up.dtype.element_ty), mask=inside)
    tl.store(d_gate + at, (grad * b * s * (1.0 + a * (1.0 - s))).to(d_gate.dtype.element_ty), mask=inside)


@triton.jit
def rotary(  # type: ignore[no-untyped-def]
    q, k, cos, sin, q_out, k_out, tokens, length, heads, kv_heads, half,
    qb, qh, qt, kb, kh, kt, cb, ct, qob, qoh, qot, kob, koh, kot,
    BACKWARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotary embedding of queries [B, H, T, D] and keys [B, K, T, D]: x cos + (x rotated by half its width) sin.

    BACKWARD: the transposed map. ROWS heads of tokens per program, first those of the queries.
    """
    blocks = (tokens * heads + ROWS - 1) // ROWS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    token, h = row // heads, row % heads
    x = q + token // length * qb + token % length * qt + h * qh
    out = q_out + token // length * qob + token % length * qot + h * qoh
    if tl.program_id(0) >= blocks:
        row -= blocks * ROWS
        token, h = row // kv_heads, row % kv_heads
        x = k + token // length * kb + token % length * kt + h * kh
        out = k_out + token // length * kob + token % length * kot + h * koh
    d = tl.arange(0, BLOCK)[None, :]
    inside = (token < tokens) & (d < half)
    angle = token // length * cb + token % length * ct + d
    low = tl.load(x + d, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x + half + d, mask=inside, other=0.0).to(tl.float32)
    cos_low = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cos + angle + half, mask=inside, other=0.0).to(tl.float32)
    sin_low = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sin + angle + half, mask=inside, other=0.0).to(tl.float32)
    kind = q_out.dtype.element_ty
    if BACKWARD:
        first = low * cos_low + high * sin_high
        second = high * cos_high - low * sin_low
    else:
        first = (low * cos_low).to(kind).to(tl.float32) - (high * sin_low).to(kind).to(tl.float32)
        second = (high * cos_high).to(kind).to(tl.float32) + (low * sin_high).to(kind).to(tl.float32)
    tl.store(out + d, first.to(kind), mask=inside)
    tl.store(out + half + d, second.to(kind), mask=inside)


@triton.jit
def after_prefix(  # type: ignore[no-untyped-def]
    pk, pv, k, v, k_out, v_out, rows, pairs, heads, group_prefix, group, prefix, length, width,
    pb, ph, pt, kb, kh, kt, vb, vh, vt,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The prefix's keys and values, then those of the runs, repeated for all H heads; ROWS heads of tokens per program.

    [B, H / group_prefix, C, D], [n B, H / group, T, D] -> [n B, H, C + T, D].
    """
    row, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    total = prefix + length
    t, head, run = row % total, row // total % heads, row // total // heads
    inside = (row < rows) & (d < width)
    before, own = inside & (t < prefix), inside & (t >= prefix)
    shared = (run % pairs) * pb + (head // group_prefix) * ph + t * pt + d
    key = tl.load(pk + shared, mask=before, other=0.0) + tl.load(
        k + run * kb + (head // group) * kh + (t - prefix) * kt + d, mask=own, other=0.0
    )
    value = tl.load(pv + shared, mask=before, other=0.0) + tl.load(
        v + run * vb + (head // group) * vh + (t - prefix) * vt + d, mask=own, other=0.0
    )
    tl.store(k_out + row * width + d, key, mask=inside)
    tl.store(v_out + row * width + d, value, mask=inside)


@triton.jit
def after_prefix_backward(  # type: ignore[no-untyped-def]
    gk, gv, dk, dv, rows, kv_heads, group, prefix, length, width,
    kb, kh, kt, vb, vh, vt,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of a group's copies after the prefix: [n B, K g, C + T, D] -> [n B, T, K, D], contiguous."""
    row, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    head, t, run = row % kv_heads, row // kv_heads % length + prefix, row // kv_heads // length
    inside = (row < rows) & (d < width)
    key, value = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for copy in range(group):
        h = head * group + copy
        key += tl.load(gk + run * kb + h * kh + t * kt + d, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(gv + run * vb + h * vh + t * vt + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(dk + row * width + d, key.to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + row * width + d, value.to(dv.dtype.element_ty), mask=inside)


@triton.jit
def difference(corrupted, clean, out, scale, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = (corrupted - clean) * scale in float32, entry by entry."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(corrupted + at, mask=inside, other=0.0).to(tl.float32)
    value -= tl.load(clean + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value * scale, mask=inside)


@triton.jit
def add_squares(a, b, c, of_a, of_b, of_c, out, size, STATES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out += of_a a^2 + of_b b^2 + of_c c^2 in float32, entry by entry; the first STATES of the three."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(out + at, mask=inside, other=0.0)
    value = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
    total += of_a * value * value
    if STATES > 1:
        value = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
        total += of_b * value * value
    if STATES > 2:
        value = tl.load(c + at, mask=inside, other=0.0).to(tl.float32)
        total += of_c * value * value
    tl.store(out + at, total, mask=inside)


@triton.jit
def head_scores(  # type: ignore[no-untyped-def]
    g, dz, out, runs, length, width, gn, gb, gt, zb, zt, ob, oh, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr
):
    """out[b, h] += sum over t, d of dz[b, t, h, d] * (sum over runs of g[n, b, t, h, d]), one (b, h) per program."""
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((BLOCK_T, BLOCK), tl.float32)
    for start in range(0, length, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)[:, None]
        inside = (t < length) & (d < width)
        summed = tl.zeros((BLOCK_T, BLOCK), tl.float32)
        for n in range(runs):
            at = g + n * gn + b * gb + t * gt + h * width + d
            summed += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += summed * tl.load(dz + b * zb + t * zt + h * width + d, mask=inside, other=0.0)
    at = out + b * ob + h * oh
    tl.store(at, tl.load(at) + tl.sum(total))


@triton.jit
def head_space(  # type: ignore[no-untyped-def]
    gq, gk, gv, yq, yk, yv, bq, bk, bv, r, sums, along,
    runs, batch, length, heads, group_k, d_model, width,
    gqn, gqb, gqt, gkn, gkb, gkt, gvn, gvb, gvt, yqn, yqb, yqt, ykn, ykb, ykt, yvn, yvb, yvt,
    BIAS_Q: tl.constexpr, BIAS_K: tl.constexpr, BIAS_V: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A_h = sum over runs of r g_h, and c_h = r g_h . (y_h - b_h) / M times r, of q, k and v.

    ROWS heads of tokens per program. sums: [3, H, B T, D]; along: [n, B T, 3 H].
    """
    row, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)[None, :]
    tokens = batch * length
    token, h = row // heads, row % heads
    b, t, real = (token // length)[:, None], (token % length)[:, None], row < tokens * heads
    inside = real[:, None] & (d < width)
    own, shared = h[:, None] * width + d, (h // group_k)[:, None] * width + d
    biases, biases_k = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    biases_v = tl.zeros((ROWS, BLOCK), tl.float32)
    if BIAS_Q:
        biases = tl.load(bq + own, mask=inside, other=0.0).to(tl.float32)
    if BIAS_K:
        biases_k = tl.load(bk + shared, mask=inside, other=0.0).to(tl.float32)
    if BIAS_V:
        biases_v = tl.load(bv + shared, mask=inside, other=0.0).to(tl.float32)
    sum_q = tl.zeros((ROWS, BLOCK), tl.float32)
    sum_k, sum_v = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for n in range(runs):
        scale = tl.load(r + n * tokens + token, mask=real, other=0.0)
        part = scale * scale / d_model
        out = along + (n * tokens + token) * 3 * heads + h
        g = tl.load(gq + n * gqn + b * gqb + t * gqt + own, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(yq + n * yqn + b * yqb + t * yqt + own, mask=inside, other=0.0).to(tl.float32)
        sum_q += g * scale[:, None]
        tl.store(out, tl.sum(g * (y - biases), 1) * part, mask=real)
        g = tl.load(gk + n * gkn + b * gkb + t * gkt + own, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(yk + n * ykn + b * ykb + t * ykt + shared, mask=inside, other=0.0).to(tl.float32)
        sum_k += g * scale[:, None]
        tl.store(out + heads, tl.sum(g * (y - biases_k), 1) * part, mask=real)
        g = tl.load(gv + n * gvn + b * gvb + t * gvt + own, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(yv + n * yvn + b * yvb + t * yvt + shared, mask=inside, other=0.0).to(tl.float32)
        sum_v += g * scale[:, None]
        tl.store(out + 2 * heads, tl.sum(g * (y - biases_v), 1) * part, mask=real)
    place = (h * tokens + token)[:, None] * width + d
    tl.store(sums + place, sum_q, mask=inside)
    tl.store(sums + heads * tokens * width + place, sum_k, mask=inside)
    tl.store(sums + 2 * heads * tokens * width + place, sum_v, mask=inside)


@triton.jit
def expand(  # type: ignore[no-untyped-def]
    a, wq, wk, wv, weight, along, x, rows,
    first, tokens, all_tokens, runs, length, heads, group_q, group_k, d_model, width,
    a_head, a_token, q_head, q_row, q_column, k_head, k_row, k_column, xn, xb, xt,
    WEIGHT: tl.constexpr, RANK_ONE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """rows[h, t] = weight * (W_h^T a[h, t]) - sum over runs of along[n, t, h] x[n, t]: to residual space.

    One head, BLOCK_T tokens and BLOCK_M entries of M per program; heads 0 to H - 1 use wq, the next H wk, the last wv.
    `first` is the first of these tokens among all B T; a and rows begin there, along and x at the batch's first token.
    """
    target = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    kind, head = target // heads, target % heads
    matrix = wq + (head // group_q) * q_head
    row, column = q_row, q_column
    if kind == 1:
        matrix = wk + (head // group_k) * k_head
        row, column = k_row, k_column
    if kind == 2:
        matrix = wv + (head // group_k) * k_head
        row, column = k_row, k_column
    total = tl.zeros((BLOCK_T, BLOCK_M), tl.float32)
    for start in range(0, width, BLOCK):
        d = start + tl.arange(0, BLOCK)
        at = a + target * a_head + t[:, None].to(tl.int64) * a_token + d[None, :]
        left = tl.load(at, mask=(t < tokens)[:, None] & (d < width)[None, :], other=0.0).to(tl.float32)
        at = matrix + d[:, None] * row + m[None, :] * column
        right = tl.load(at, mask=(d < width)[:, None] & (m < d_model)[None, :], other=0.0).to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    if WEIGHT:
        total *= tl.load(weight + m, mask=m < d_model, other=0.0)[None, :]
    inside = (t < tokens)[:, None] & (m < d_model)[None, :]
    if RANK_ONE:
        token = first + t.to(tl.int64)
        for n in range(runs):
            c = tl.load(along + (n * all_tokens + token) * 3 * heads + target, mask=t < tokens, other=0.0)
            at = x + n * xn + (token // length)[:, None] * xb + (token % length)[:, None] * xt + m[None, :]
            total -= c[:, None] * tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(rows + (target * tokens + t[:, None]) * d_model + m[None, :], total, mask=inside)
