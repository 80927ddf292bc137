"""attention_decode: new tokens against a cache that holds their keys, split over the keys.

q [B, T, Hq, D] at positions [B, T], caches [B, S, Hkv, D] -> out [B, T, Hq, D]. Cost: the visible
keys and values once, 2 n Hkv D elements a row of the batch for n of them: 12 MB for a minute of the
semantic module's (20 heads of 64, bfloat16), 2.5 MB for a minute of the LLM's. The T Hq / Hkv
queries that share a KV head are the rows of one product, so each key is read once for all of them.

A few heads are too few programs to ask for that many bytes at once, so the keys are split
(flash-decoding): a program takes one share of one head and leaves the sum of its values, its
largest logit and its sum of exponentials in float32, and a second launch weighs the shares in their
order. How many shares there are follows on the host from S, window, T and Hkv alone (`shares_of`);
how long they are follows on the device from the row's own positions. So the host waits for nothing,
the shares of a short context in a long cache are equally long, and a row's bits depend neither on
the batch nor on the other rows. One share needs no second launch.

Positions: with `newest` the row's largest, slot j holds position newest - (newest - j) mod S. The
visible span of a tile of queries is walked by position and wraps around the ring; logits of keys
that a query does not see are -inf, and a query that sees none (position < 0) gets zeros. The
softmax is online, in float32 and base 2. The window is a number, so one kernel serves all. Partial
sums cost (D + 2) floats a share and query: at 64 shares of 64 keys 6 % of the LLM's bytes. Caches
in int8 have a scale per slot and head: a key's goes on its logit, a value's on its weight; what is
stored is widened to the type of q as it is.
Not measured on a GPU.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import on_device
from .kv_write import looks_of, newest_position

WIDEST = 256  # D
MOST_SHARES = 64
PROGRAMS = 512  # of one row of the batch, if its keys are many: about four for every SM
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Config:
    """One program: up to block_r queries of a KV head, block_s keys at a time."""

    block_r: int
    block_s: int
    warps: int
    stages: int


# (bytes of an element, D up to) -> (block_s, warps, stages) for 16, 32 and 64 queries a program.
# Reasoned, not measured: one or two blocks of keys and values on their way, some programs an SM; a
# third stage at (2, 64), 16 spills for sm_90 and sm_100. float32 has no matrix unit, so its sums
# need warps: with half as many, or 64 queries of 256, up to 7 KB a thread went to the stack.
_TABLE = {
    (2, 64): ((64, 4, 2), (64, 4, 3), (64, 4, 3)),
    (2, 128): ((64, 4, 3), (64, 4, 3), (64, 8, 2)),
    (2, 256): ((32, 4, 3), (32, 4, 2), (32, 8, 2)),
    (4, 64): ((32, 4, 2), (32, 8, 2), (16, 8, 2)),
    (4, 128): ((16, 8, 2), (16, 8, 1), (16, 16, 1)),
    (4, 256): ((16, 8, 1), (16, 8, 1)),
}
_HEIGHTS = (16, 32, 64)


def choose(rows: int, D: int, element_bytes: int) -> Config:
    """The tile for `rows` queries of a KV head, heads of D elements.

    >>> choose(5, 64, 2)
    Config(block_r=16, block_s=64, warps=4, stages=2)
    """
    width = next(width for bytes_, width in _TABLE if bytes_ == element_bytes and width >= D)
    tiles = dict(zip(_HEIGHTS, _TABLE[element_bytes, width]))
    height = next((height for height in tiles if rows <= height), max(tiles))
    return Config(height, *tiles[height])


def shares_of(S: int, window: int, T: int, tiles: int, block_s: int) -> int:
    """Into how many shares the keys of a head are cut.

    tiles: programs of one row of the batch before cutting, KV heads times tiles of queries; the
    batch does not count, so that its size changes no bits.

    >>> shares_of(4096, 0, 1, 4, 64), shares_of(4096, 0, 5, 20, 64), shares_of(37, 32, 5, 2, 64)
    (64, 25, 1)
    """
    keys = min(S, window + T - 1) if window else S
    return max(1, min(triton.cdiv(keys, block_s), PROGRAMS // tiles, MOST_SHARES))


@triton.jit(do_not_specialize=["T", "S", "shares", "window"])
def _attention_decode_kernel(
    q,
    k_cache,
    v_cache,
    positions,
    out,
    partial,
    T,
    S,
    scale,
    shares,
    window,
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_k_b,
    stride_k_s,
    stride_k_h,
    stride_v_b,
    stride_v_s,
    stride_v_h,
    stride_p_b,
    stride_p_t,
    k_scale,
    v_scale,
    stride_ks_b,
    stride_ks_s,
    stride_ks_h,
    stride_vs_b,
    stride_vs_s,
    stride_vs_h,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WINDOWED: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,
    LOOKS: tl.constexpr,
    LOOK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_share, i_tile = tl.program_id(0), tl.program_id(1)
    i_h, i_b = i_tile % HEADS, tl.program_id(2).to(tl.int64)
    o_r = i_tile // HEADS * BLOCK_R + tl.arange(0, BLOCK_R)  # query t, then head of the group
    o_t, o_q = (o_r // GROUP).to(tl.int64), (i_h * GROUP + o_r % GROUP).to(tl.int64)
    o_s, o_d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    m_r, m_d = o_r < T * GROUP, o_d < D

    positions += i_b * stride_p_b
    newest = newest_position(positions, T, stride_p_t, LOOKS, LOOK)
    b_position = tl.load(positions + o_t * stride_p_t, mask=m_r, other=-1)  # [BLOCK_R]
    # the visible span of this tile, first to last, and each query's last key within it
    FAR: tl.constexpr = 9223372036854775807
    first = tl.maximum(newest - S + 1, 0)
    last = tl.max(b_position, 0)
    if WINDOWED:
        oldest = tl.min(tl.where(b_position >= 0, b_position, FAR), 0)
        first = tl.maximum(first, oldest - window + 1)
    keys = tl.maximum(last - first + 1, 0).to(tl.int32)
    b_last = tl.maximum(b_position - first, -1).to(tl.int32)
    slot = (first.to(tl.uint64) % tl.cast(S, tl.uint64)).to(tl.int32)

    length = tl.cdiv(tl.cdiv(keys, shares), BLOCK_S) * BLOCK_S
    start = i_share * length
    end = tl.minimum(start + length, keys)

    m_rd = m_r[:, None] & m_d[None, :]
    p_q = q + i_b * stride_q_b + o_t[:, None] * stride_q_t + o_q[:, None] * stride_q_h
    b_q = tl.load(p_q + o_d[None, :], mask=m_rd, other=0.0)
    k_cache += i_b * stride_k_b + i_h.to(tl.int64) * stride_k_h
    v_cache += i_b * stride_v_b + i_h.to(tl.int64) * stride_v_h
    if SCALED:
        k_scale += i_b * stride_ks_b + i_h.to(tl.int64) * stride_ks_h
        v_scale += i_b * stride_vs_b + i_h.to(tl.int64) * stride_vs_h
    b_max = tl.full([BLOCK_R], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_R], tl.float32)
    b_out = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for s in range(start, end, BLOCK_S):
        o_key = s + o_s
        o_slot = slot + o_key
        o_slot = tl.where(o_slot >= S, o_slot - S, o_slot).to(tl.int64)
        m_s = o_key < end
        m_sd = m_s[:, None] & m_d[None, :]
        b_k = tl.load(k_cache + o_slot[:, None] * stride_k_s + o_d[None, :], mask=m_sd, other=0.0)
        b_dots = tl.dot(b_q, tl.trans(b_k.to(b_q.dtype)), input_precision="ieee") * scale
        if SCALED:
            b_dots *= tl.load(k_scale + o_slot * stride_ks_s, mask=m_s, other=0.0)[None, :]
        m_seen = m_s[None, :] & (o_key[None, :] <= b_last[:, None])
        if WINDOWED:
            m_seen = m_seen & (o_key[None, :] > b_last[:, None] - window)
        b_dots = tl.where(m_seen, b_dots, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_dots, 1))
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)  # nothing seen so far
        b_p = tl.exp2(b_dots - b_base[:, None])
        b_keep = tl.exp2(b_max - b_base)
        b_v = tl.load(v_cache + o_slot[:, None] * stride_v_s + o_d[None, :], mask=m_sd, other=0.0)
        b_total = b_total * b_keep + tl.sum(b_p, 1)
        b_out = b_out * b_keep[:, None]
        if SCALED:
            b_p *= tl.load(v_scale + o_slot * stride_vs_s, mask=m_s, other=0.0)[None, :]
        b_out = tl.dot(b_p.to(b_q.dtype), b_v.to(b_q.dtype), b_out, input_precision="ieee")
        b_max = b_new

    o_row = (i_b * T + o_t) * (HEADS * GROUP) + o_q  # [BLOCK_R] of out's rows
    if SPLIT:
        p_partial = partial + (o_row * shares + i_share) * (D + 2)
        tl.store(p_partial[:, None] + o_d[None, :], b_out, mask=m_rd)
        tl.store(p_partial + D, b_max, mask=m_r)
        tl.store(p_partial + D + 1, b_total, mask=m_r)
    else:
        b_out = b_out / tl.where(b_total > 0.0, b_total, 1.0)[:, None]
        p_out = out + o_row[:, None] * D + o_d[None, :]
        tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_rd)


@triton.jit(do_not_specialize=["shares"])
def _combine_kernel(partial, out, shares, D: tl.constexpr, BLOCK_SHARES: tl.constexpr, BLOCK_D: tl.constexpr):
    """out[row] = the shares' sums, each times 2^(its largest logit - the largest of all)."""
    i_row = tl.program_id(0).to(tl.int64)
    o_i, o_d = tl.arange(0, BLOCK_SHARES), tl.arange(0, BLOCK_D)
    p_partial = partial + (i_row * shares + o_i) * (D + 2)
    m_i = o_i < shares
    b_max = tl.load(p_partial + D, mask=m_i, other=float("-inf"))
    b_total = tl.load(p_partial + D + 1, mask=m_i, other=0.0)
    all_max = tl.max(b_max, 0)
    all_max = tl.where(all_max == float("-inf"), 0.0, all_max)
    b_weight = tl.exp2(b_max - all_max)  # [BLOCK_SHARES], 0 of a share without keys
    total = tl.sum(b_weight * b_total, 0)
    m_id = m_i[:, None] & (o_d < D)[None, :]
    b_part = tl.load(p_partial[:, None] + o_d[None, :], mask=m_id, other=0.0)
    b_out = tl.sum(b_part * b_weight[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out + i_row * D + o_d, b_out.to(out.dtype.element_ty), mask=o_d < D)


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    window: int,
    scale: float,
    out: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    shares: int | None = None,
) -> None:
    """Write into contiguous out [B, T, Hq, D]; q, caches [B, S, Hkv, D] of one type with dense last
    dimensions, positions [B, T] int64. window 0: none. k_scale, v_scale [B, S, Hkv, 1] float32: the
    caches are int8. shares: None for `shares_of`."""
    if out.numel() == 0:
        return
    (B, T, Hq, D), (S, Hkv) = q.shape, k_cache.shape[1:3]
    rows = T * (Hq // Hkv)
    config = choose(rows, D, q.element_size())
    tiles = Hkv * triton.cdiv(rows, config.block_r)
    if shares is None:
        shares = shares_of(S, window, T, tiles, config.block_s)
    block_d = max(32, triton.next_power_of_2(D))  # 16: spills, sm_90
    scaled = k_scale is not None
    scales = (k_scale, v_scale) if scaled else (q, q)
    steps = [t.stride()[:3] for t in scales] if scaled else [(0, 0, 0)] * 2
    partial = out
    if shares > 1:
        partial = q.new_empty(B * T * Hq, shares, D + 2, dtype=torch.float32)
    with on_device(q):
        _attention_decode_kernel[(shares, tiles, B)](
            q,
            k_cache,
            v_cache,
            positions,
            out,
            partial,
            T,
            S,
            scale * _LOG2_E,
            shares,
            window,
            *q.stride()[:3],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            *positions.stride(),
            *scales,
            *steps[0],
            *steps[1],
            HEADS=Hkv,
            GROUP=Hq // Hkv,
            D=D,
            WINDOWED=window > 0,
            SCALED=scaled,
            SPLIT=shares > 1,
            **looks_of(T),
            BLOCK_R=config.block_r,
            BLOCK_S=config.block_s,
            BLOCK_D=block_d,
            enable_fp_fusion=True,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        if shares > 1:
            _combine_kernel[(B * T * Hq,)](
                partial,
                out,
                shares,
                D=D,
                BLOCK_SHARES=triton.next_power_of_2(shares),
                BLOCK_D=block_d,
                enable_fp_fusion=True,
                num_warps=4 if block_d * shares >= 1024 else 1,
            )
