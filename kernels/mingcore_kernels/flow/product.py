"""The flow sampler's products: out = f(x W^T) over a few rows, with what stands before and after.

x [M, K], W [N, K] in 32, 16 or 8 bits. Before: the RMS norm, after: bias, GELU (tanh), or the
residual. 2 M N K FLOPs; W once per tile of rows, x once per BLOCK_N rows of W.

The norm needs no launch and no second pass over the rows. Whoever writes the residual stream y
[M, N] (float32) also writes z = y * (the next norm's weights), in the operands' type, and for each
of its tiles the sum of squares per row. The consumer multiplies z, and the finished sums by
1 / sqrt(mean + eps): the rounding is relative, so it may come before the scaling. fp16 has no
exponents to spare; there z is float32 and is scaled first. Partial sums are added in one order.

With few rows every warp takes its own share of K (a batched dot over SPLIT shares, W as the n8
operand): chains of dependent products are SPLIT times shorter, and 8 rows of W make a program, so
1024 rows fill 128 SMs. Where that still leaves too few programs K is cut into PARTS of different
programs: each writes its sums, the last to come (a counter per tile, left at zero) adds all of them
in the order of K. Many rows go as ordinary tiles with W as the wide operand.

OVERLAP (sm_90 and later): the launch may start while the one before it runs. Until that is
complete a program only asks for its weights to be brought to L2, which no result depends on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import TYPES, wait_for_previous
from ..lib.skinny_gemm import prefetch_rows, row_products
from . import configs as flow_configs

EPS = tl.constexpr(1e-6)


@triton.jit
def inverse_rms(sums, o_m, m_m, M, K, parts, BLOCK_PARTS: tl.constexpr):
    """1 / sqrt(mean square + eps) [BLOCK_M] from partial sums [parts, M] over K columns."""
    o_p = tl.arange(0, BLOCK_PARTS)
    m_pm = (o_p < parts)[:, None] & m_m[None, :]
    b_sums = tl.load(sums + o_p[:, None] * M + o_m[None, :], mask=m_pm, other=0.0)
    return 1.0 / tl.sqrt(tl.sum(b_sums, 0) / K + EPS)


@triton.jit
def store_stream(b_y, y, z, norm, sums, o_m, m_m, o_n, m_n, i_n, M, N):
    """The residual stream's tile b_y [BLOCK_N, BLOCK_M]: y, z = y * norm, and sums of squares."""
    m_nm = m_n[:, None] & m_m[None, :]
    o_out = o_m.to(tl.int64)[None, :] * N + o_n[:, None]
    tl.store(y + o_out, b_y, mask=m_nm)
    b_norm = tl.load(norm + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(z + o_out, (b_y * b_norm[:, None]).to(z.dtype.element_ty), mask=m_nm)
    b_sums = tl.sum(tl.where(m_n[:, None], b_y * b_y, 0.0), 0)
    tl.store(sums + i_n * M + o_m, b_sums, mask=m_m)


@triton.jit(do_not_specialize=["M", "parts_in", "rows", "T"])
def _flow_product_kernel(
    x,
    w,
    scale,
    bias,
    sums,
    out,
    y,
    norm,
    z,
    next_sums,
    scratch,
    counters,
    M,
    N,
    K,
    parts_in,
    rows,
    T,
    stride_x,
    OPERAND: tl.constexpr,
    NORMED: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALED: tl.constexpr,
    EVEN_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    SPLIT: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    i_tile, i_part = tl.program_id(0), tl.program_id(1)
    tiles_m = tl.cdiv(M, BLOCK_M)
    i_m, i_n = i_tile % tiles_m, i_tile // tiles_m  # tiles that share weights side by side
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m, m_n = o_m < M, o_n < N
    o_w = tl.minimum(o_n, N - 1).to(tl.int64)  # rows past the end repeat the last, unwritten
    if PARTS > 1:
        start = tl.multiple_of(i_part * (K // PARTS), BLOCK_K)
        end = start + K // PARTS
    else:
        start = 0
        end = K
    if OVERLAP:
        prefetch_rows(w, o_w, start, end, K)
    wait_for_previous(OVERLAP)

    b_inverse = tl.zeros([BLOCK_M], tl.float32)
    if NORMED:
        b_inverse = inverse_rms(sums, o_m, m_m, M, K, parts_in, BLOCK_PARTS)
    b_out = row_products(
        x,
        o_m,
        m_m,
        b_inverse,
        w,
        o_w,
        start,
        end,
        K,
        stride_x,
        OPERAND,
        NORM_FIRST,
        EVEN_K,
        SPLIT,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if PARTS > 1:
        o_tile = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        p_tile = scratch + i_tile.to(tl.int64) * (PARTS * BLOCK_N * BLOCK_M) + o_tile
        tl.store(p_tile + i_part * (BLOCK_N * BLOCK_M), b_out)
        tl.debug_barrier()  # every thread's sums are written before one of them counts
        if tl.atomic_add(counters + i_tile, 1, sem="acq_rel") < PARTS - 1:
            return
        b_out = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for i in tl.static_range(PARTS):
            b_out += tl.load(p_tile + i * (BLOCK_N * BLOCK_M), cache_modifier=".cg")
        tl.store(counters + i_tile, 0)

    if SCALED:
        b_out *= tl.load(scale + o_w)[:, None]
    if NORMED and not NORM_FIRST:
        b_out *= b_inverse[None, :]
    b_out += tl.load(bias + o_w).to(tl.float32)[:, None]
    if RESIDUAL:
        # the last `rows` of every T rows of y; out is another buffer: two warps may hold one tile
        o_y = (o_m // rows * T + T - rows + o_m % rows).to(tl.int64)
        p_y = y + o_y[None, :] * N + o_n[:, None]
        b_out += tl.load(p_y, mask=m_n[:, None] & m_m[None, :], other=0.0)
        store_stream(b_out, out, z, norm, next_sums, o_m, m_m, o_n, m_n, i_n, M, N)
    else:
        if GELU:
            b_u = 1.5957691216057308 * b_out * (1.0 + 0.044715 * b_out * b_out)
            b_out = b_out / (1.0 + tl.exp(-b_u))
        p_out = out + o_m.to(tl.int64)[None, :] * N + o_n[:, None]
        tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_n[:, None] & m_m[None, :])


def block_of_parts(sums: Tensor) -> int:
    """Room for the partial sums [parts, M], in few sizes: each is a binary of its own."""
    parts = sums.shape[0]
    return 8 if parts <= 8 else max(128, triton.next_power_of_2(parts))


def launch(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    config: flow_configs.Config,
    operand: torch.dtype,
    overlap: bool,
    scale: Tensor | None = None,
    sums: Tensor | None = None,
    gelu: bool = False,
    stream: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    rows: int = 1,
    T: int = 1,
    scratch: tuple[Tensor, Tensor] | None = None,
) -> None:
    """out [M, N] = f(x W^T + bias), products in `operand` type with float32 sums.

    x [M, K] with dense rows, w [N, K], bias [N] of any float type, scale [N] float32 of an 8-bit w.
    sums [parts, M]: x is z of a norm. stream (y, norm, z, next_sums): out = y + ... is the residual
    stream, of the last `rows` of every T rows of y, which shares no memory with out. scratch: room
    for partial sums (float32) and zeroed counters (int32), where config.parts > 1.
    """
    (M, K), N = x.shape, w.shape[0]
    y, norm, z, next_sums = stream or (out, bias, out, out)
    partial, counters = scratch or (out, out)
    tiles = triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n)
    _flow_product_kernel[(tiles, config.parts)](
        x,
        w,
        scale,
        bias,
        sums,
        out,
        y,
        norm,
        z,
        next_sums,
        partial,
        counters,
        M,
        N,
        K,
        0 if sums is None else sums.shape[0],
        rows,
        T,
        x.stride(0),
        OPERAND=TYPES[operand],
        NORMED=sums is not None,
        NORM_FIRST=sums is not None and x.dtype == torch.float32,
        GELU=gelu,
        RESIDUAL=stream is not None,
        SCALED=scale is not None,
        EVEN_K=K % (config.parts * config.split * config.block_k) == 0,
        OVERLAP=overlap,
        SPLIT=config.split,
        PARTS=config.parts,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_PARTS=1 if sums is None else block_of_parts(sums),
        enable_fp_fusion=True,
        num_warps=config.warps,
        num_stages=config.stages,
        **({"launch_pdl": True} if overlap else {}),
    )
