"""kv_write_: cache[b, positions[b, t] mod S] = new[b, t], of keys and values at once.

One launch, no value is read by the host: a program takes some tokens of a row, finds the row's
newest position itself (T numbers out of L2) and skips tokens at a negative position and those that
a newer one of the same call would overwrite, position <= newest - S. So no two programs write one
slot, and nothing depends on the order in which they run. Cost: what is new, once in and once out.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import on_device

BLOCK = 2048  # elements of one program
LOOK = 1024  # positions that are looked at in one go


@triton.jit
def newest_position(positions, T, stride_p_t, LOOKS: tl.constexpr, LOOK: tl.constexpr):
    """The largest of a row's T positions, -1 where all are negative.

    Unrolled: where a loop of the caller is bounded by what a loop has found, Triton 3.9 does not
    see how its addresses are aligned, and loads element by element.
    """
    o_t = tl.arange(0, LOOK)
    b_most = tl.full([LOOK], -1, tl.int64)
    for i in tl.static_range(LOOKS):
        p_t = positions + (i * LOOK + o_t).to(tl.int64) * stride_p_t
        b_most = tl.maximum(b_most, tl.load(p_t, mask=i * LOOK + o_t < T, other=-1))
    return tl.max(b_most, 0)


def looks_of(T: int) -> dict[str, int]:
    """The constants of `newest_position` for T positions."""
    return {"LOOKS": triton.cdiv(T, LOOK), "LOOK": min(triton.next_power_of_2(T), LOOK)}


@triton.jit(do_not_specialize=["T", "S"])
def _kv_write_kernel(
    k_cache,
    v_cache,
    k,
    v,
    positions,
    T,
    S,
    E,
    stride_kc_b,
    stride_kc_s,
    stride_kc_h,
    stride_vc_b,
    stride_vc_s,
    stride_vc_h,
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_p_b,
    stride_p_t,
    D: tl.constexpr,
    LOOKS: tl.constexpr,
    LOOK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    i_b = tl.program_id(2).to(tl.int64)
    o_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    positions += i_b * stride_p_b
    newest = newest_position(positions, T, stride_p_t, LOOKS, LOOK)
    o_row = o_t.to(tl.int64)[:, None]
    b_position = tl.load(positions + o_row * stride_p_t, mask=o_row < T, other=-1)  # [BLOCK_T, 1]
    m_te = (b_position >= 0) & (b_position > newest - S) & (o_e < E)[None, :]
    slot = b_position % S
    o_h, o_d = (o_e // D).to(tl.int64)[None, :], (o_e % D)[None, :]

    p_k = k + i_b * stride_k_b + o_row * stride_k_t + o_h * stride_k_h + o_d
    p_v = v + i_b * stride_v_b + o_row * stride_v_t + o_h * stride_v_h + o_d
    b_k = tl.load(p_k, mask=m_te)
    b_v = tl.load(p_v, mask=m_te)
    p_kc = k_cache + i_b * stride_kc_b + slot * stride_kc_s + o_h * stride_kc_h + o_d
    p_vc = v_cache + i_b * stride_vc_b + slot * stride_vc_s + o_h * stride_vc_h + o_d
    tl.store(p_kc, b_k, mask=m_te)
    tl.store(p_vc, b_v, mask=m_te)


def kv_write(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """Write k, v [B, T, Hkv, D] at positions [B, T] int64 into caches [B, S, Hkv, D], in place; all
    four with dense last dimensions."""
    B, T, heads, D = k.shape
    if k.numel() == 0 or k_cache.shape[1] == 0:
        return
    E = heads * D
    block_e = min(triton.next_power_of_2(E), BLOCK)
    block_t = min(triton.next_power_of_2(T), BLOCK // block_e)
    with on_device(k):
        _kv_write_kernel[(triton.cdiv(T, block_t), triton.cdiv(E, block_e), B)](
            k_cache,
            v_cache,
            k,
            v,
            positions,
            T,
            k_cache.shape[1],
            E,
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *positions.stride(),
            D=D,
            **looks_of(T),
            BLOCK_T=block_t,
            BLOCK_E=block_e,
            enable_fp_fusion=True,
            num_warps=4 if block_t * block_e >= 512 else 1,
        )
