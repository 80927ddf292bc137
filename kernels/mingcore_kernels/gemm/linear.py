"""linear: out = act(x W^T + bias) + residual, a skinny GEMM: x of few rows, in one read of W.

x [M, K], W [N, K] in 32, 16 or 8 bits -> out [M, N], or [M, N / 2] of SwiGLU. Cost: N K weights,
2 M N K FLOPs; a token's packed QKV of the released model (2048 to 3072, bfloat16) is 12.6 MB, 3 us
at 4.3 TB/s. The product is `flow_product.row_products`:

- M <= 16: rows of W are streamed past all rows of x, which a program holds as one tile: eight rows
  of W make a program, and each of its warps takes its own share of K, whose sums are added in
  order. 1024 rows of W are 128 programs, so every SM reads. One tile for every M up to 16, and no
  size that depends on M: a row's bits are the same alone and in a batch.
- above: ordinary tiles, W as the wide operand, so that 8-bit weights are widened in registers.

K is not cut over programs. That would pay where N / 8 programs leave SMs without work, which are
matrices of less than 1024 rows; one of 64 x 2048 is 32 KB a program, about 0.5 us at what one SM
takes out of memory, less than a second launch or an exchange costs (about 1.8 us, see flow_configs;
both reasoned, not measured).

SwiGLU: a block's rows of W are gate, up, gate, up ...: both sums meet in one thread's registers.
8-bit weights: one scale per row, times the finished sums. int8_dyn: x comes as int8 with a scale
per row; the integers, up to 127, are exact in 16 bits and the products are summed in float32.
float32 x: products in float32, whatever W's type.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.activations import activate
from ..lib.launch import TYPES, on_device
from ..lib.skinny_gemm import row_products
from ..lib.target import capability_of, shared_bytes

ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh", "swiglu")


@dataclass(frozen=True)
class Config:
    """One program: block_m rows of x against block_n rows of W, split: see `row_products`."""

    block_m: int
    block_n: int
    block_k: int
    split: int
    warps: int
    stages: int


# kind -> rows up to -> tile; "16": two 16-bit operands, "w8": 8-bit weights, "32": float32
# products. Reasoned, not measured.
_TABLE = {
    "16": {
        16: Config(16, 8, 64, 8, 8, 4),
        32: Config(32, 32, 64, 1, 4, 4),
        64: Config(64, 64, 64, 1, 4, 4),
        128: Config(128, 64, 64, 1, 8, 3),
    },
    "w8": {
        16: Config(16, 8, 64, 8, 8, 4),
        32: Config(32, 32, 64, 1, 4, 4),
        64: Config(64, 64, 64, 1, 4, 3),
        128: Config(128, 64, 64, 1, 8, 3),
    },
    "32": {16: Config(16, 16, 32, 1, 4, 3), 32: Config(32, 32, 32, 1, 4, 3), 64: Config(64, 32, 32, 1, 8, 2)},
}
_BYTES = {"16": (2, 2), "w8": (1, 2), "32": (4, 4)}  # of a weight, of an activation


def kind_of(x: torch.dtype, w: torch.dtype) -> str:
    """Which rows of the table hold for these operands."""
    if x == torch.float32:
        return "32"
    return "w8" if w.itemsize == 1 else "16"


def staged_bytes(config: Config, kind: str) -> int:
    """Shared memory of a tile's copies in flight."""
    weight, activation = _BYTES[kind]
    row = config.split * config.block_k
    return config.stages * row * (config.block_n * weight + config.block_m * activation)


def choose(kind: str, rows: int, depth: int, capability: int) -> Config:
    """The tile for `rows` rows of x, `depth` columns, on a GPU such as 90.

    >>> choose("16", 1, 2048, 90)
    Config(block_m=16, block_n=8, block_k=64, split=8, warps=8, stages=4)
    """
    tiles = _TABLE[kind]
    config = tiles[next((height for height in tiles if rows <= height), max(tiles))]
    while config.split * config.block_k > 32 * config.split and depth % (config.split * config.block_k):
        config = replace(config, block_k=config.block_k // 2)
    while config.stages > 1 and staged_bytes(config, kind) + 1024 > shared_bytes(capability):
        config = replace(config, stages=config.stages - 1)
    return config


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    x,
    x_scale,
    w,
    scale,
    bias,
    residual,
    out,
    M,
    N,
    K,
    stride_x,
    stride_r,
    OPERAND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    i_m, i_n = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m  # a weight's tiles together
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < M
    if ACTIVATION == "swiglu":
        o_n = tl.minimum(o_n, N - 1)
        o_w = (o_n // 2 + o_n % 2 * (N // 2)).to(tl.int64)  # gate, up, gate, up ...
    else:
        o_w = tl.minimum(o_n, N - 1).to(tl.int64)  # rows past the end repeat the last, unwritten
    b_y = row_products(
        x, o_m, m_m, x, w, o_w, 0, K, K, stride_x, OPERAND, False, EVEN_K, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if SCALED:
        b_y *= tl.load(scale + o_w)[:, None]
    if X_SCALED:
        b_y *= tl.load(x_scale + o_m, mask=m_m, other=0.0)[None, :]
    if HAS_BIAS:
        b_y += tl.load(bias + o_w).to(tl.float32)[:, None]
    if ACTIVATION == "swiglu":
        b_pair = tl.permute(tl.reshape(b_y, [BLOCK_N // 2, 2, BLOCK_M]), (0, 2, 1))
        b_gate, b_up = tl.split(b_pair)  # [BLOCK_N / 2, BLOCK_M] each
        b_y = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
        o_out = i_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        N = N // 2
    else:
        b_y = activate(b_y, ACTIVATION, 0.0, 0.0)
        o_out = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_out = (o_out < N)[:, None] & m_m[None, :]
    o_row = o_m.to(tl.int64)[None, :]
    if HAS_RESIDUAL:
        p_residual = residual + o_row * stride_r + o_out[:, None]
        b_y += tl.load(p_residual, mask=m_out, other=0.0).to(tl.float32)
    p_out = out + o_row * N + o_out[:, None]
    tl.store(p_out, b_y.to(out.dtype.element_ty), mask=m_out)


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out: Tensor,
    *,
    scale: Tensor | None = None,
    x_scale: Tensor | None = None,
    config: Config | None = None,
) -> None:
    """Write into contiguous out [M, N or N / 2].

    x [M, K] and residual like out, both with dense rows; w [N, K] and bias [N] contiguous; scale
    [N] float32 of an 8-bit w. x_scale [M] float32 of an int8 x. activation: one of ACTIVATIONS.
    config: None for the table's.
    """
    if out.numel() == 0:
        return
    (M, K), N = x.shape, w.shape[0]
    operand = x.dtype if x.dtype != torch.int8 else torch.float16
    if config is None:
        config = choose(kind_of(operand, w.dtype), M, K, capability_of(x.device.index))
    programs = triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n)
    with on_device(x):
        _linear_kernel[(programs,)](
            x,
            x_scale,
            w,
            scale,
            bias,
            residual,
            out,
            M,
            N,
            K,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            OPERAND=TYPES[operand],
            ACTIVATION=activation,
            SCALED=scale is not None,
            X_SCALED=x_scale is not None,
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            EVEN_K=K % (config.split * config.block_k) == 0,
            SPLIT=config.split,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            enable_fp_fusion=True,
            num_warps=config.warps,
            num_stages=config.stages,
        )
