"""moe_mlp: out[t] = sum_k weights[t, k] mlp_{ids[t, k]}(x[t]) + mlp_shared(x[t]) over x [T, H].

mlp(x) = down (silu(gate x) * up x); gate_up [E, 2I, H], down [E, H, I] and the shared pair stay as
they are, in 32, 16 or 8 bits. Cost: 3 H I weights for every expert that is hit and 3 H Is for the
shared one, once each; 6 H I FLOPs per slot. One token of the released model (6 of 64 experts,
H 2048, I 1408, Is 2816, bfloat16) reads 138 MB: 32 us at 4.3 TB/s; 4096 tokens are 567 GFLOP.

By the number of tokens:
- T = 1: two launches that stream matrix rows through registers, a few rows a program so that every
  SM has some; the second one also sums over experts, in the order of k, and adds the shared one.
- T <= 16: `grouped_gemm` in its FEW form, without sorting: gate_up and down with the shared expert
  among their programs, then one sum over k. Every expert that is hit is read once.
- above: sort_by_expert, then the same two products on sorted rows, x gathered while it is loaded,
  results scattered by slot, then the sum over k.
The routing weights multiply in the sum, in float32 and in the order of k: the slots of a token are
added by one program, so there are no atomics and the bits do not depend on the order of anything.
int8_dyn quantises rows of x, and of what enters the second product, in launches of its own.
No size depends on data, nothing is read back: safe to capture in a graph. Not measured on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gemm import configs
from ..gemm.grouped_gemm import launch
from ..lib.launch import on_device
from ..lib.quantise import quantised_rows
from ..lib.target import processors_of
from ..routing.routing import sort_by_expert

MAX_UNSORTED = 16  # tokens: one tile of rows, in which programs look for those of their expert
SUM_BLOCK = 1024


@triton.jit
def _float(b_w):
    """A block of weights as float32; int8 by way of the float 1.5 * 2^23 + value, which is cheaper
    than the conversion unit."""
    if b_w.dtype == tl.int8:
        return (b_w.to(tl.int32) + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
    return b_w.to(tl.float32)


@triton.jit
def _row_gate_up_kernel(
    x,
    w,
    scale,
    w_shared,
    scale_shared,
    ids,
    hidden,
    hidden_shared,
    H,
    I,
    I_shared,
    programs_shared,
    stride_w_e,
    stride_w_n,
    stride_w_shared,
    HAS_SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One token: hidden [K, I] and hidden_shared [Is] float32; the shared expert comes first."""
    pid = tl.program_id(0)
    is_shared = False
    if HAS_SHARED:
        is_shared = pid < programs_shared
    i_s = tl.maximum(pid - programs_shared, 0) // tl.cdiv(I, BLOCK_N)
    i_n = tl.maximum(pid - programs_shared, 0) % tl.cdiv(I, BLOCK_N)
    i_e = tl.load(ids + i_s).to(tl.int64)
    N, p_out, p_scale = I, hidden + i_s.to(tl.int64) * I, scale
    p_w = w + i_e * stride_w_e
    if SCALED:
        p_scale = scale + i_e * (2 * I)
    if HAS_SHARED:
        i_n, N = tl.where(is_shared, pid, i_n), tl.where(is_shared, I_shared, N)
        p_out, p_w = tl.where(is_shared, hidden_shared, p_out), tl.where(is_shared, w_shared, p_w)
        stride_w_n = tl.where(is_shared, stride_w_shared, stride_w_n)
        if SCALED:
            p_scale = tl.where(is_shared, scale_shared, p_scale)

    o_n, o_h = i_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    o_w = tl.minimum(o_n, N - 1).to(tl.int64)
    p_gate = p_w + o_w[:, None] * stride_w_n + o_h[None, :]
    p_up = p_w + (o_w + N)[:, None] * stride_w_n + o_h[None, :]
    b_gate = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    b_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for h in range(0, H, BLOCK_K):
        if EVEN_K:
            b_x = tl.load(x + h + o_h).to(tl.float32)[None, :]
            b_g, b_u = tl.load(p_gate + h), tl.load(p_up + h)
        else:
            m_h = o_h < H - h
            b_x = tl.load(x + h + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
            b_g = tl.load(p_gate + h, mask=m_h[None, :], other=0.0)
            b_u = tl.load(p_up + h, mask=m_h[None, :], other=0.0)
        b_gate += _float(b_g) * b_x
        b_up += _float(b_u) * b_x
    b_g, b_u = tl.sum(b_gate, 1), tl.sum(b_up, 1)  # [BLOCK_N]
    if SCALED:
        b_g *= tl.load(p_scale + o_w)
        b_u *= tl.load(p_scale + o_w + N)
    tl.store(p_out + o_n, b_g / (1.0 + tl.exp(-b_g)) * b_u, mask=o_n < N)


@triton.jit
def _row_dot(p_w, p_h, I, o_w, stride_w_n, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Products of rows o_w of a matrix with a vector, spread over [BLOCK_N, BLOCK_K] lanes.

    Copies run ahead through shared memory: registers for as many bytes in flight would leave too
    few programs on an SM.
    """
    o_i = tl.arange(0, BLOCK_K)
    b_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for i in tl.range(0, I, BLOCK_K, num_stages=3):
        m_i = o_i < I - i
        b_h = tl.load(p_h + i + o_i, mask=m_i, other=0.0)[None, :]
        p_rows = p_w + o_w[:, None] * stride_w_n + (i + o_i)[None, :]
        b_acc += _float(tl.load(p_rows, mask=m_i[None, :], other=0.0)) * b_h
    return b_acc


@triton.jit
def _row_down_kernel(
    w,
    scale,
    w_shared,
    scale_shared,
    weights,
    ids,
    hidden,
    hidden_shared,
    out,
    H,
    I,
    I_shared,
    TOP_K,
    stride_w_e,
    stride_w_n,
    stride_w_shared,
    HAS_SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One token: out [H] = the weighted sum over its experts, in order, and the shared one."""
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_w = tl.minimum(o_n, H - 1).to(tl.int64)
    b_sum = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for k in range(TOP_K):
        i_e = tl.load(ids + k).to(tl.int64)
        b_weight = tl.zeros([BLOCK_N], tl.float32) + tl.load(weights + k)
        if SCALED:
            b_weight *= tl.load(scale + i_e * H + o_w)
        p_h = hidden + tl.cast(k, tl.int64) * I
        b_dot = _row_dot(w + i_e * stride_w_e, p_h, I, o_w, stride_w_n, BLOCK_N, BLOCK_K)
        b_sum += b_dot * b_weight[:, None]
    if HAS_SHARED:
        b_dot = _row_dot(w_shared, hidden_shared, I_shared, o_w, stride_w_shared, BLOCK_N, BLOCK_K)
        if SCALED:
            b_dot *= tl.load(scale_shared + o_w)[:, None]
        b_sum += b_dot
    tl.store(out + o_n, tl.sum(b_sum, 1).to(out.dtype.element_ty), mask=o_n < H)


@triton.jit(do_not_specialize=["TOP_K", "shared_first"])
def _sum_slots_kernel(
    by_slot,
    weights,
    ids,
    out,
    H,
    TOP_K,
    stride_s,
    stride_o,
    shared_first,
    HAS_SHARED: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
):
    """out[t] = sum_k weights[t, k] by_slot[t * K + k] + by_slot[shared_first + t], in float32.

    FIRST: of slots that repeat an expert within their token only the first one was written.
    """
    i_t = tl.program_id(0).to(tl.int64)
    o_h, o_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_TOP)
    m_h = o_h < H
    b_ids = tl.load(ids + i_t * TOP_K + o_k, mask=o_k < TOP_K, other=-1)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for k in range(TOP_K):
        source = i_t * TOP_K + k
        if FIRST:
            i_e = tl.load(ids + source)
            source = i_t * TOP_K + tl.min(tl.where(b_ids == i_e, o_k, BLOCK_TOP), 0)
        b_slot = tl.load(by_slot + source * stride_s + o_h, mask=m_h, other=0.0).to(tl.float32)
        b_sum += tl.load(weights + i_t * TOP_K + k) * b_slot
    if HAS_SHARED:
        p_shared = by_slot + (shared_first + i_t) * stride_s + o_h
        b_sum += tl.load(p_shared, mask=m_h, other=0.0).to(tl.float32)
    tl.store(out + i_t * stride_o + o_h, b_sum.to(out.dtype.element_ty), mask=m_h)


def moe_mlp(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    ids: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    shared_gate_up_scale: Tensor | None,
    shared_down_scale: Tensor | None,
    dynamic: bool,
    out: Tensor,
) -> None:
    """Write into out [T, H]. ids [T, K] int32, weights [T, K] float32 and the scales contiguous;
    x and the matrices with dense last dimensions. dynamic: int8 activations (int8_dyn)."""
    if out.numel() == 0:
        return
    shared = None
    if shared_gate_up is not None:
        shared = (shared_gate_up, shared_down, shared_gate_up_scale, shared_down_scale)
    routed = (gate_up, down, gate_up_scale, down_scale)
    with on_device(x):
        if x.shape[0] == 1 and not dynamic:
            _one_token(x, *routed, weights, ids, shared, out)
        else:
            _tokens(x, *routed, weights, ids, shared, dynamic, out)


Shared = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _one_token(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    weights: Tensor,
    ids: Tensor,
    shared: Shared | None,
    out: Tensor,
) -> None:
    K, H, I = ids.shape[1], x.shape[1], down.shape[2]
    w_s, down_s, scale_s, down_scale_s = shared or (gate_up[0], down[0], gate_up_scale, down_scale)
    I_s = down_s.shape[1] if shared else 0
    hidden = x.new_empty(K * I + I_s, dtype=torch.float32)
    options = {"HAS_SHARED": shared is not None, "SCALED": gate_up_scale is not None}
    processors = processors_of(x.device.index)

    config = configs.choose_row("gate_up", K * I + I_s, H, processors)
    programs_s = triton.cdiv(I_s, config.block_n)
    _row_gate_up_kernel[(programs_s + K * triton.cdiv(I, config.block_n),)](
        x,
        gate_up,
        gate_up_scale,
        w_s,
        scale_s,
        ids,
        hidden,
        hidden[K * I :],
        H,
        I,
        I_s,
        programs_s,
        gate_up.stride(0),
        gate_up.stride(1),
        w_s.stride(0),
        **options,
        EVEN_K=H % config.block_k == 0,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        enable_fp_fusion=True,
        num_warps=config.warps,
    )
    config = configs.choose_row("down", H, max(I, I_s), processors)
    _row_down_kernel[(triton.cdiv(H, config.block_n),)](
        down,
        down_scale,
        down_s,
        down_scale_s,
        weights,
        ids,
        hidden,
        hidden[K * I :],
        out,
        H,
        I,
        I_s,
        K,
        down.stride(0),
        down.stride(1),
        down_s.stride(0),
        **options,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        enable_fp_fusion=True,
        num_warps=config.warps,
    )


def _tokens(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    weights: Tensor,
    ids: Tensor,
    shared: Shared | None,
    dynamic: bool,
    out: Tensor,
) -> None:
    (T, K), H, (E, _, I) = ids.shape, x.shape[1], down.shape
    S, rows, offsets = T * K, None, None
    if T > MAX_UNSORTED:
        rows, offsets = ids.new_empty(S), ids.new_empty(E + 1)
        sort_by_expert(ids, rows, offsets)
    where = {"slots": S, "top_k": K, "ids": ids, "rows": rows, "offsets": offsets}
    w_s, down_s, scale_s, down_scale_s = shared or (None, None, None, None)

    hidden, hidden_s = x.new_empty(S, I), x.new_empty(T, down_s.shape[1]) if shared else None
    x_scale = None
    if dynamic:
        x, x_scale = quantised_rows(x)
    pair = (x, w_s, hidden_s, scale_s, x_scale) if shared else None
    launch("gate_up", x, gate_up, hidden, scale=gate_up_scale, x_scale=x_scale, shared=pair, **where)

    # what few tokens leave is small: keep it in float32
    by_slot = out.new_empty(S + (T if shared else 0), H, dtype=torch.float32 if T <= MAX_UNSORTED else out.dtype)
    hidden_scale = hidden_s_scale = None
    if dynamic:
        hidden, hidden_scale = quantised_rows(hidden)
        if shared:
            hidden_s, hidden_s_scale = quantised_rows(hidden_s)
    pair = (hidden_s, down_s, by_slot[S:], down_scale_s, hidden_s_scale) if shared else None
    scales = {"scale": down_scale, "x_scale": hidden_scale}
    launch("down", hidden, down, by_slot, **scales, shared=pair, **where)
    block = min(triton.next_power_of_2(H), SUM_BLOCK)
    _sum_slots_kernel[(T, triton.cdiv(H, block))](
        by_slot,
        weights,
        ids,
        out,
        H,
        K,
        by_slot.stride(0),
        out.stride(0),
        S,
        HAS_SHARED=shared is not None,
        FIRST=T <= MAX_UNSORTED,
        BLOCK=block,
        BLOCK_TOP=triton.next_power_of_2(K),
        enable_fp_fusion=True,
        num_warps=4,
    )
