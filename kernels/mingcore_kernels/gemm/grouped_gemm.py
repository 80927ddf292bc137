"""grouped_gemm: out rows of group e = x rows of group e times w[e]^T; also what moe_mlp is made of.

x [M, K], w [E, N, K], offsets [E + 1] on the device -> out [M, N]. Cost: 2 M N K FLOPs; the weights
of the groups that have rows once (while a group fits one tile of rows), x and out N / block_n and
1 times. The host knows only M, so the grid is the most tiles there can be, min(E, M) + M / block_m;
every program finds its group by a running sum over E tile counts, and the surplus leaves at once.

Weights are the wide operand: out^T = w x^T with block_n weight rows as the rows of the matrix unit.
So 16 rows of x cost no padding to 64 or 128, and 8-bit weights are widened in registers on their
way to the unit instead of being written back to shared memory.

One kernel serves three ops. For moe_mlp it also
- gathers: row r of a group is slot rows[r], and reads x[slot // TOP_K] when GATHER;
- makes gate and up together and writes silu(gate) * up (SWIGLU; w holds 2N rows, gate first);
- takes a shared group, every row of which is hit, as the first programs of the same launch;
- with FEW tokens needs no sorting: a program is given one expert, looks all ids up itself and takes
  every token that chose it (T <= BLOCK_M), so a weight is read once whatever number of tokens share
  it; a slot that repeats an expert within its token stays unwritten, the first one stands for it.
Scales of quantised weights are per weight row and multiply the finished sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import on_device
from ..lib.target import capability_of
from . import configs


@triton.jit
def _sorted_tile(rows, offsets, i_m, E, HAS_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):
    """Tile i_m of all groups cut into BLOCK_M rows: its group, its slots and which of them are."""
    o_e = tl.arange(0, BLOCK_E)
    b_start = tl.load(offsets + o_e, mask=o_e < E, other=0)
    b_end = tl.load(offsets + o_e + 1, mask=o_e < E, other=0)
    b_tiles = (b_end - b_start + BLOCK_M - 1) // BLOCK_M
    b_last = tl.cumsum(b_tiles, 0)
    i_e = tl.sum((b_last <= i_m).to(tl.int32), 0)  # BLOCK_E where there are fewer tiles
    b_first = b_start + (i_m - b_last + b_tiles) * BLOCK_M
    first = tl.sum(tl.where(o_e == i_e, b_first, 0), 0)
    end = tl.sum(tl.where(o_e == i_e, b_end, 0), 0)
    o_row = first + tl.arange(0, BLOCK_M)
    m_row = o_row < end
    if HAS_ROWS:
        o_row = tl.load(rows + o_row, mask=m_row, other=0)
    return i_e, o_row, m_row


@triton.jit
def _few_tile(
    ids, i_unit, T, TOP_K: tl.constexpr, BY_EXPERT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_TOP: tl.constexpr
):
    """All tokens of unit i_unit: an expert, or the expert of a slot, of which the first one counts.

    Row t is token t's first slot of that expert.
    """
    NONE: tl.constexpr = 2147483647
    o_t, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_TOP)
    o_slot = o_t[:, None] * TOP_K + o_k[None, :]
    m_slot = (o_t < T)[:, None] & (o_k < TOP_K)[None, :]
    b_ids = tl.load(ids + o_slot, mask=m_slot, other=-1)  # [BLOCK_M, BLOCK_TOP]
    if BY_EXPERT:
        i_e = i_unit
    else:
        i_e = tl.load(ids + i_unit)
    o_row = tl.min(tl.where(b_ids == i_e, o_slot, NONE), 1)  # [BLOCK_M]
    if not BY_EXPERT:
        o_row = tl.where(tl.min(o_row, 0) == i_unit, o_row, NONE)
    m_row = o_row != NONE
    return i_e, tl.where(m_row, o_row, 0), m_row


@triton.jit(do_not_specialize=["T", "E", "tiles_m", "tiles_shared"])  # one binary for any T
def _grouped_gemm_kernel(
    x,
    w,
    scale,
    x_scale,
    out,
    x_shared,
    w_shared,
    scale_shared,
    x_scale_shared,
    out_shared,
    ids,
    rows,
    offsets,
    T,
    E,
    N,
    K,
    N_shared,
    K_shared,
    tiles_m,
    tiles_shared,
    stride_x,
    stride_w_e,
    stride_w_n,
    stride_out,
    stride_x_shared,
    stride_w_shared,
    stride_out_shared,
    SWIGLU: tl.constexpr,
    GATHER: tl.constexpr,
    FEW: tl.constexpr,
    BY_EXPERT: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN_K: tl.constexpr,
    TOP_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
):
    pid = tl.program_id(0)
    is_shared = False
    if HAS_SHARED:
        programs_shared = tiles_shared * tl.cdiv(N_shared, BLOCK_N)
        is_shared = pid < programs_shared
        pid = tl.where(is_shared, pid, pid - programs_shared)
        tiles_m = tl.where(is_shared, tiles_shared, tiles_m)
        N, K = tl.where(is_shared, N_shared, N), tl.where(is_shared, K_shared, K)
    # GROUP_M tiles of rows side by side, then the next weight rows: they meet in L2
    tiles_n = tl.cdiv(N, BLOCK_N)
    first_m = pid // (GROUP_M * tiles_n) * GROUP_M
    width = tl.minimum(tiles_m - first_m, GROUP_M)
    i_m = first_m + pid % (GROUP_M * tiles_n) % width
    i_n = pid % (GROUP_M * tiles_n) // width

    if FEW:
        i_e, o_slot, m_row = _few_tile(ids, i_m, T, TOP_K, BY_EXPERT, BLOCK_M, BLOCK_TOP)
    else:
        i_e, o_slot, m_row = _sorted_tile(rows, offsets, i_m, E, HAS_ROWS, BLOCK_M, BLOCK_E)
    if GATHER:
        o_in = o_slot // TOP_K
    else:
        o_in = o_slot
    if HAS_SHARED:
        o_t = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
        m_row = tl.where(is_shared, o_t < T, m_row)
        o_in, o_slot = tl.where(is_shared, o_t, o_in), tl.where(is_shared, o_t, o_slot)
        i_e = tl.where(is_shared, 0, i_e)
        x, w = tl.where(is_shared, x_shared, x), tl.where(is_shared, w_shared, w)
        out = tl.where(is_shared, out_shared, out)
        stride_x = tl.where(is_shared, stride_x_shared, stride_x)
        stride_w_n = tl.where(is_shared, stride_w_shared, stride_w_n)
        stride_out = tl.where(is_shared, stride_out_shared, stride_out)
        if SCALED:
            scale = tl.where(is_shared, scale_shared, scale)
        if X_SCALED:
            x_scale = tl.where(is_shared, x_scale_shared, x_scale)
    if tl.max(m_row.to(tl.int32), 0) == 0:
        return

    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    o_w = tl.minimum(o_n, N - 1).to(tl.int64)  # rows past the end repeat the last, unwritten
    up = tl.cast(N, tl.int64) * stride_w_n
    p_w = w + i_e.to(tl.int64) * stride_w_e + o_w[:, None] * stride_w_n + o_k[None, :]
    p_x = x + o_in.to(tl.int64)[None, :] * stride_x + o_k[:, None]
    wide = tl.int32 if X_SCALED else tl.float32
    b_acc = tl.zeros([BLOCK_N, BLOCK_M], wide)
    b_up = tl.zeros([BLOCK_N, BLOCK_M], wide)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            b_x = tl.load(p_x, mask=m_row[None, :], other=0.0)  # [BLOCK_K, BLOCK_M]
            b_w = tl.load(p_w)  # [BLOCK_N, BLOCK_K]
        else:
            b_x = tl.load(p_x, mask=m_row[None, :] & (o_k < K - k)[:, None], other=0.0)
            b_w = tl.load(p_w, mask=(o_k < K - k)[None, :], other=0.0)
        b_w = b_w.to(b_x.dtype)
        b_acc = tl.dot(b_w, b_x, b_acc, input_precision="ieee", out_dtype=wide)
        if SWIGLU:
            if EVEN_K:
                b_v = tl.load(p_w + up)
            else:
                b_v = tl.load(p_w + up, mask=(o_k < K - k)[None, :], other=0.0)
            b_up = tl.dot(b_v.to(b_x.dtype), b_x, b_up, input_precision="ieee", out_dtype=wide)
        p_w += BLOCK_K
        p_x += BLOCK_K

    b_out = b_acc.to(tl.float32)
    b_up = b_up.to(tl.float32)
    if SCALED:
        weight_rows = 2 * N if SWIGLU else N
        p_scale = scale + i_e.to(tl.int64) * weight_rows + o_w
        b_out *= tl.load(p_scale)[:, None]
        if SWIGLU:
            b_up *= tl.load(p_scale + N)[:, None]
    if X_SCALED:
        b_scale = tl.load(x_scale + o_in, mask=m_row, other=0.0)[None, :]
        b_out *= b_scale
        b_up *= b_scale
    if SWIGLU:
        b_out = b_out / (1.0 + tl.exp(-b_out)) * b_up
    p_out = out + o_slot.to(tl.int64)[None, :] * stride_out + o_n[:, None]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=(o_n < N)[:, None] & m_row[None, :])


def kind_of(x_dtype: torch.dtype, w_dtype: torch.dtype) -> str:
    """Which row of the table of tiles holds for these operands; see `configs.KINDS`."""
    if x_dtype == torch.int8:
        return "dyn"
    if x_dtype == torch.float32:
        return "32"
    return "16" if w_dtype == x_dtype else "w8"


def launch(
    product: str,
    x: Tensor,
    w: Tensor,
    out: Tensor,
    *,
    slots: int,
    top_k: int = 1,
    scale: Tensor | None = None,
    x_scale: Tensor | None = None,
    ids: Tensor | None = None,
    rows: Tensor | None = None,
    offsets: Tensor | None = None,
    shared: tuple[Tensor | None, ...] | None = None,
    config: configs.Config | None = None,
) -> None:
    """One grouped product. product: "gate_up" reads x by token and writes silu(gate) * up, "down"
    reads and writes by slot, "grouped_gemm" likewise without slots.

    x, w [E, N or 2N, K] and out with dense last dimensions; slots: how many there are; either ids
    (few tokens) or offsets, with rows or none. shared: (x, w, out, scale or None, x_scale or None).
    config: None for the table's.
    """
    swiglu, few = product == "gate_up", offsets is None
    E, N, K = w.shape
    N = N // 2 if swiglu else N
    T = slots // top_k
    groups = max(min(E, slots), 1)
    depths = (K, shared[1].shape[1]) if shared else (K,)
    kind = kind_of(x.dtype, w.dtype)
    if config is None:
        height = 16 if few else slots / groups
        capability = capability_of(x.device.index)
        config = configs.choose(product, kind, rows=height, depths=depths, capability=capability)
    tiles_m = groups if few else groups + slots // config.block_m
    programs = tiles_m * triton.cdiv(N, config.block_n)
    x_s, w_s, out_s, scale_s, x_scale_s = shared or (x, w[0], out, scale, x_scale)
    N_s, tiles_s = (w_s.shape[0] // 2 if swiglu else w_s.shape[0]), 0
    if shared:
        tiles_s = triton.cdiv(T, config.block_m)
        programs += tiles_s * triton.cdiv(N_s, config.block_n)
    ids = offsets if ids is None else ids
    offsets = ids if offsets is None else offsets
    with on_device(x):
        _grouped_gemm_kernel[(programs,)](
            x,
            w,
            scale,
            x_scale,
            out,
            x_s,
            w_s,
            scale_s,
            x_scale_s,
            out_s,
            ids,
            ids if rows is None else rows,
            offsets,
            T,
            E,
            N,
            K,
            N_s,
            w_s.shape[1],
            tiles_m,
            tiles_s,
            x.stride(0),
            w.stride(0),
            w.stride(1),
            out.stride(0),
            x_s.stride(0),
            w_s.stride(0),
            out_s.stride(0),
            SWIGLU=swiglu,
            GATHER=swiglu,
            FEW=few,
            BY_EXPERT=slots >= E,
            HAS_ROWS=rows is not None,
            HAS_SHARED=shared is not None,
            SCALED=scale is not None,
            X_SCALED=x_scale is not None,
            EVEN_K=all(depth % config.block_k == 0 for depth in depths),
            TOP_K=top_k,
            GROUP_M=configs.GROUP_M,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            BLOCK_E=triton.next_power_of_2(E),
            BLOCK_TOP=triton.next_power_of_2(top_k),
            enable_fp_fusion=True,
            num_warps=config.warps,
            num_stages=config.stages,
        )


def grouped_gemm(x: Tensor, w: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Write into out [M, N]; x [M, K] and w [E, N, K] with dense last dimensions."""
    if out.numel():
        launch("grouped_gemm", x, w, out, slots=x.shape[0], offsets=offsets)
