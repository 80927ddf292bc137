"""Products of a few rows with the rows of a weight, in one program: the body of several kernels."""

import triton
import triton.language as tl


@triton.jit
def prefetch_rows(w, o_w, start, end, K):
    """Ask for columns start to end of rows o_w to be brought to L2."""
    LINE: tl.constexpr = 128 * 8 // w.dtype.element_ty.primitive_bitwidth
    o_line = tl.arange(0, 8) * LINE
    for k in range(start, end, 8 * LINE):
        p_line = w + o_w[:, None] * K + tl.minimum(k + o_line, end - 1)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [p_line.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def row_products(
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
    OPERAND: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    EVEN_K: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """[BLOCK_N, BLOCK_M] float32: rows o_w of w times rows o_m of x, columns start to end.

    NORM_FIRST: rows of x are multiplied by b_inverse before they are rounded to OPERAND.
    """
    if SPLIT == 1:
        o_k = start + tl.arange(0, BLOCK_K)
        p_w = w + o_w[:, None] * K + o_k[None, :]
        p_x = x + o_m.to(tl.int64)[None, :] * stride_x + o_k[:, None]
        b_acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in range(start, end, BLOCK_K):
            if EVEN_K:
                b_x = tl.load(p_x, mask=m_m[None, :], other=0.0)
                b_w = tl.load(p_w, eviction_policy="evict_first")
            else:
                m_k = o_k < K - (k - start)
                b_x = tl.load(p_x, mask=m_m[None, :] & m_k[:, None], other=0.0)
                b_w = tl.load(p_w, mask=m_k[None, :], other=0.0, eviction_policy="evict_first")
            if NORM_FIRST:
                b_x = b_x * b_inverse[None, :]
            b_acc = tl.dot(b_w.to(OPERAND), b_x.to(OPERAND), b_acc, input_precision="ieee")
            p_w += BLOCK_K
            p_x += BLOCK_K
        return b_acc
    o_k = start + tl.arange(0, SPLIT)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    p_w = w + o_w[None, None, :] * K + o_k[:, :, None]  # [SPLIT, BLOCK_K, BLOCK_N]
    p_x = x + o_m.to(tl.int64)[None, :, None] * stride_x + o_k[:, None, :]
    b_acc = tl.zeros([SPLIT, BLOCK_M, BLOCK_N], tl.float32)
    for k in range(start, end, SPLIT * BLOCK_K):
        if EVEN_K:
            b_x = tl.load(p_x, mask=m_m[None, :, None], other=0.0)
            b_w = tl.load(p_w, eviction_policy="evict_first")
        else:
            m_k = o_k < K - (k - start)
            b_x = tl.load(p_x, mask=m_m[None, :, None] & m_k[:, None, :], other=0.0)
            b_w = tl.load(p_w, mask=m_k[:, :, None], other=0.0, eviction_policy="evict_first")
        if NORM_FIRST:
            b_x = b_x * b_inverse[None, :, None]
        b_acc = tl.dot(b_x.to(OPERAND), b_w.to(OPERAND), b_acc, input_precision="ieee")
        p_w += SPLIT * BLOCK_K
        p_x += SPLIT * BLOCK_K
    return tl.trans(tl.sum(b_acc, 0))
