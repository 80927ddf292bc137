"""spectrum_head: hidden states to samples in two launches.

1 spectrum: x W^T + b; min(exp m, 100) (cos p + i sin p) where the sums are. W's rows k (m) and
  F / 2 + 1 + k (p) lie side by side in a tile, so both of a bin meet in one thread. Out: float32
  [M, F], the real parts of bins 0 to F / 2, then the imaginary ones of 1 to F / 2 - 1.
2 inverse: sample i of hop t is the sum over parts j of window[n] (spectrum of frame t - j) basis[:,
  n], n = j hop + i: a convolution over frames, as one product of depth F ceil(F / hop) whose tiles
  are sums already overlapped; overlap_add's ending makes them samples and state.

Cost at the real size (H 896, F 1280, hop 320), per patch of 5 frames: W 2.3 MB in 16 bits, basis
6.6 MB, 1.15 and 1.64 M multiply-adds a frame: 2.1 us at 4.3 TB/s, most of it while launch 1 still
runs (from sm_90 on launch 2 starts early and asks for its basis). Few tiles are cut along the depth
into `splits` programs; the last to come adds the sums in order. As 5 x 256 the transform would read
a tenth and multiply a fifth, but its frames would have to meet in memory before they overlap: a
third launch; the CUDA kernel has shared memory for that.

The basis multiplies in three TF32 products (hi hi, hi lo, lo hi), and every 64 deep the sums leave
the tensor cores, whose additions cut. Errors against float64, of the samples' root mean square
(largest, rms), from a model of these roundings: bfloat16 basis 7.7e-3, 1.6e-3; float16 1.9e-3,
2.0e-4; one TF32 product 2.3e-3, 2.9e-4; three without leaving 2.3e-5, 4.0e-6; as it is 1.8e-6,
2.4e-7; float32 matrix product 2.2e-6, 3.1e-7; PyTorch's transform 8.8e-7, 1.6e-7. Speed: not
measured.
"""

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import TYPES, on_device, wait_for_previous
from ..lib.skinny_gemm import prefetch_rows, row_products
from ..lib.target import device_of
from .overlap_add import carried_sums, finish_hops, frames_before, own_frames

LOUDEST = tl.constexpr(100.0)


@triton.jit
def sine_and_cosine(x):
    """Of x in radians. What the reduction loses, 2e-11 |x|, is less than x is rounded by."""
    n = tl.floor(tl.fma(x, 0.636619772, 0.5))
    r = tl.fma(n, -1.5703125, x)
    r = tl.fma(n, -4.837512969970703e-4, r)
    r = tl.fma(n, -7.549790126404332e-8, r)
    s = r * r
    p = tl.fma(s, -1.950694199e-4, 8.332099748e-3)
    p = tl.fma(p, s, -1.666665365e-1)
    sine = tl.fma(r * s, p, r)
    q = tl.fma(s, 2.442921104e-5, -1.388728891e-3)
    q = tl.fma(q, s, 4.166664531e-2)
    cosine = tl.fma(s * s, q, tl.fma(s, -0.5, 1.0))
    quadrant = n.to(tl.int32) & 3
    a = tl.where(quadrant % 2 == 1, cosine, sine)
    b = tl.where(quadrant % 2 == 1, sine, cosine)
    return tl.where(quadrant >= 2, -a, a), tl.where((quadrant + 1) % 4 >= 2, -b, b)


@triton.jit(do_not_specialize=["M", "tiles"])
def _spectrum_kernel(
    x,
    w,
    bias,
    spectra,
    counters,
    M,
    F,
    K,
    tiles,
    stride_x,
    OPERAND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    if counters is not None:  # of the next launch, each left at zero by somebody
        for i in range(tl.program_id(0), tiles, tl.num_programs(0)):
            tl.store(counters + i, 0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    i_m, i_n = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m
    half = F // 2
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)  # twice the bin, and one more for its phase
    o_w = (tl.minimum(o_n // 2, half) + o_n % 2 * (half + 1)).to(tl.int64)
    b_none = tl.zeros([BLOCK_M], tl.float32)
    b_sums = row_products(
        x, o_m, m_m, b_none, w, o_w, 0, K, K, stride_x, OPERAND, False, EVEN_K, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if HAS_BIAS:
        b_sums += tl.load(bias + o_w).to(tl.float32)[:, None]
    b_pairs = tl.reshape(tl.trans(b_sums), [BLOCK_M, BLOCK_N // 2, 2])
    b_size, b_phase = tl.split(b_pairs)
    b_size = tl.exp(b_size)
    b_size = tl.where(b_size > LOUDEST, LOUDEST, b_size)  # NaN stays
    b_sine, b_cosine = sine_and_cosine(b_phase)
    o_bin = i_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    p_out = spectra + o_m.to(tl.int64)[:, None] * F + o_bin[None, :]
    m_real = o_bin <= half
    m_imaginary = (o_bin > 0) & (o_bin < half)
    tl.store(p_out, b_size * b_cosine, mask=m_m[:, None] & m_real[None, :])
    tl.store(p_out + half, b_size * b_sine, mask=m_m[:, None] & m_imaginary[None, :])


@triton.jit(do_not_specialize=["T", "outputs", "last", "stripes", "chunks"])
def _inverse_kernel(
    spectra,
    basis,
    window,
    numerator,
    lengths,
    valid,
    ended,
    out,
    numerator_out,
    lengths_out,
    emitted,
    scratch,
    counters,
    T,
    F,
    hop,
    outputs,
    last,
    stripes,
    chunks,
    HAS_STATE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_ENDED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    OVERLAP: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_tile, i_split = tl.program_id(0), tl.program_id(1)
    i_stripe, i_chunk = i_tile % stripes, i_tile // stripes % chunks
    i_b = (i_tile // (stripes * chunks)).to(tl.int64)
    o_t = i_chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    o_i = i_stripe * BLOCK_I + tl.arange(0, BLOCK_I)
    fresh = own_frames(valid, i_b, T, HAS_VALID)

    of_part = tl.cdiv(F, BLOCK_K)  # steps of one part of a frame
    steps = tl.where(T > 0, of_part * PARTS, 0)
    start, end = steps * i_split // SPLITS, steps * (i_split + 1) // SPLITS
    if OVERLAP:
        for step in range(start, end):
            o_k = step % of_part * BLOCK_K + tl.arange(0, BLOCK_K)
            o_n = tl.minimum(step // of_part * hop + i_stripe * BLOCK_I, F - BLOCK_I)
            prefetch_rows(basis + o_n, tl.minimum(o_k, F - 1), 0, BLOCK_I, F)
    wait_for_previous(OVERLAP)

    b_sum = tl.zeros([BLOCK_T, BLOCK_I], tl.float32)
    for step in range(start, end):
        i_part = step // of_part
        o_k = step % of_part * BLOCK_K + tl.arange(0, BLOCK_K)
        o_n = i_part * hop + o_i
        o_f = o_t - i_part
        m_k, m_n, m_f = o_k < F, (o_i < hop) & (o_n < F), (o_f >= 0) & (o_f < fresh)
        p_x = spectra + (i_b * T + o_f)[:, None] * F + o_k[None, :]
        b_x = tl.load(p_x, mask=m_f[:, None] & m_k[None, :], other=0.0)
        p_basis = basis + o_k[:, None] * F + o_n[None, :]
        b_basis = tl.load(p_basis, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_w = tl.load(window + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_sum += tl.dot(b_x, b_basis, input_precision=PRECISION) * b_w[None, :]

    if SPLITS > 1:
        o_tile = tl.arange(0, BLOCK_T)[:, None] * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
        p_tile = scratch + i_tile.to(tl.int64) * (SPLITS * BLOCK_T * BLOCK_I) + o_tile
        tl.store(p_tile + i_split * (BLOCK_T * BLOCK_I), b_sum)
        tl.debug_barrier()  # every thread's sums are written before one of them counts
        if tl.atomic_add(counters + i_tile, 1, sem="acq_rel") < SPLITS - 1:
            return
        b_sum = tl.zeros([BLOCK_T, BLOCK_I], tl.float32)
        for i in range(SPLITS):
            b_sum += tl.load(p_tile + i * (BLOCK_T * BLOCK_I), cache_modifier=".cg")

    first = (i_stripe == 0) & (i_chunk == 0)
    before, writes = frames_before(lengths, i_b, first, stripes * chunks, HAS_STATE, IN_PLACE)
    b_sum += carried_sums(numerator, i_b, before, o_t, o_i, F, hop, HAS_STATE)
    finish_hops(
        b_sum,
        i_b,
        before,
        writes,
        fresh,
        o_t,
        o_i,
        window,
        ended,
        out,
        numerator_out,
        lengths_out,
        emitted,
        F,
        hop,
        outputs,
        last,
        HAS_ENDED,
        IN_PLACE,
        PARTS,
    )


@dataclass(frozen=True)
class Product:
    """A program of the spectrum: block_m frames, block_n / 2 bins; `split` as flow_product's."""

    block_m: int
    block_n: int
    block_k: int
    split: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Inverse:
    """A program of the inverse: block_t hops, block_i columns, one of `splits` of the depth."""

    block_t: int
    block_i: int
    splits: int
    warps: int
    stages: int


BLOCK_K = 64  # deep, between two departures from the tensor cores
SPLITS = (16, 8, 4, 2)
LEAST_STEPS = 4  # of a program


def product(operand_bytes: int, frames: int) -> Product:
    """The spectrum's tile: weights are the narrow operand for few frames, the wide one for many."""
    if operand_bytes == 4:
        return Product(16, 32, 32, 1, 4, 3) if frames <= 16 else Product(64, 32, 32, 1, 4, 2)
    if frames <= 32:
        return Product(16 if frames <= 16 else 32, 8, 32, 4, 4, 6)
    return Product(64, 32, 64, 1, 4, 4) if frames <= 256 else Product(64, 64, 64, 1, 4, 4)


def inverse(rows: int, hops: int, hop: int, F: int, processors: int, capability: int = 90) -> Inverse:
    """The inverse's tile for `rows` streams of `hops` hops; enough programs for the processors."""
    block_t = 16 if hops <= 24 else 32 if hops <= 64 else 64
    block_i = min(32 if block_t < 64 else 64, max(16, triton.next_power_of_2(hop)))
    tiles = rows * triton.cdiv(hops, block_t) * triton.cdiv(hop, block_i)
    steps = triton.cdiv(F, BLOCK_K) * triton.cdiv(F, hop)
    fit = [n for n in SPLITS if tiles * n <= 1.25 * processors and steps >= LEAST_STEPS * n]
    warps = 8 if block_t == 64 and capability < 100 else 4  # the others of these spill
    return Inverse(block_t, block_i, fit[0] if fit else 1, warps, 3)


@functools.cache  # its address is in captured graphs: kept for good
def inverse_basis(size: int, device: torch.device) -> Tensor:
    """[F, F] float32: what each number of a spectrum (as launch 1 leaves it) gives to a sample."""
    k, n = torch.arange(size // 2 + 1).unsqueeze(1), torch.arange(size)
    angle = (k * n % size).double() * (2 * math.pi / size)
    scale = torch.full_like(angle, 2.0 / size)
    scale[0], scale[-1] = 1.0 / size, 1.0 / size
    rows = torch.cat((angle.cos() * scale, -(angle.sin() * scale)[1:-1]))
    return rows.float().to(device)


def spectrum_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Tensor,
    hop: int,
    basis: Tensor,
    numerator: Tensor | None,
    lengths: Tensor | None,
    valid: Tensor | None,
    ended: Tensor | None,
    last: bool,
    out: Tensor,
    next_numerator: Tensor,
    next_lengths: Tensor,
    emitted: Tensor,
) -> None:
    """Write samples [B, L] into `out`, and the next state.

    hidden [B, T, H], weight [F + 2, H], bias [F + 2] and basis [F, F] dense, of any float type up
    to float32; the rest as `overlap_add` takes it.
    """
    (B, T, H), F, M = hidden.shape, window.shape[0], hidden.shape[0] * hidden.shape[1]
    if B == 0:
        return
    x = hidden.view(M, H)
    capability, processors = device_of(x.device.index)
    on_gpu = x.is_cuda or x.is_meta
    overlap = capability >= 90 and on_gpu and T > 0 and not torch.version.hip
    parts = triton.cdiv(F, hop)
    hops = max(T + parts - 1, 1)
    tile = inverse(B, hops, hop, F, processors, capability)
    splits = tile.splits if T else 1
    chunks, stripes = triton.cdiv(hops, tile.block_t), triton.cdiv(hop, tile.block_i)
    tiles = B * chunks * stripes
    spectra = x.new_empty(M, F, dtype=torch.float32)
    counters = x.new_empty(tiles, dtype=torch.int32) if splits > 1 else None
    in_place = lengths is next_lengths
    if in_place and chunks > 1:
        numerator = numerator.clone()  # other programs write what the first ones read
    with on_device(x):
        if T:
            operand = x.dtype if x.dtype == weight.dtype else torch.float32
            c = product(operand.itemsize, M)
            programs = triton.cdiv(M, c.block_m) * triton.cdiv(F + 2, c.block_n)
            _spectrum_kernel[(programs,)](
                x,
                weight,
                bias,
                spectra,
                counters,
                M,
                F,
                H,
                tiles,
                x.stride(0),
                OPERAND=TYPES[operand],
                HAS_BIAS=bias is not None,
                EVEN_K=H % (c.split * c.block_k) == 0,
                OVERLAP=overlap,
                SPLIT=c.split,
                BLOCK_M=c.block_m,
                BLOCK_N=c.block_n,
                BLOCK_K=c.block_k,
                enable_fp_fusion=True,
                num_warps=c.warps,
                num_stages=c.stages,
            )
        scratch = x.new_empty(tiles * splits * tile.block_t * tile.block_i, dtype=torch.float32)
        _inverse_kernel[(tiles, splits)](
            spectra,
            basis,
            window,
            numerator,
            lengths,
            valid,
            ended,
            out,
            next_numerator,
            next_lengths,
            emitted,
            scratch,
            counters,
            T,
            F,
            hop,
            out.shape[1],
            int(last),
            stripes,
            chunks,
            HAS_STATE=lengths is not None,
            HAS_VALID=valid is not None,
            HAS_ENDED=ended is not None,
            IN_PLACE=in_place,
            OVERLAP=overlap,
            PRECISION="ieee" if torch.version.hip else "tf32x3",
            PARTS=parts,
            SPLITS=splits,
            BLOCK_T=tile.block_t,
            BLOCK_I=tile.block_i,
            BLOCK_K=BLOCK_K,
            enable_fp_fusion=True,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **({"launch_pdl": True} if overlap else {}),
        )
