"""The `cuda` backend's frames, overlap-add (one launch each) and spectrum head (two)."""

import functools
import math
import struct

import torch
from torch import Tensor

from .._core import cuda as cuda_common
from .._core import launch
from .._core.cuda import COPY_BYTES, TYPES, unfit
from .._core.registry import register

THREADS, COLUMNS = 256, 128  # of overlap_add.cu; columns where a block has eight hops
FEW_HOPS = 16  # that one block takes: what is carried is then read and written by it alone
HOPS = 8  # of a block, where there are more
SHARED_BYTES = 96 << 10  # of the inverse transform: what any GPU from sm_80 on has
SUMS_BYTES = 32 << 10  # at most, of them for a block's samples
BINS, FEW_THREADS, INVERSE_THREADS = 8, 128, 512
FEW_FRAMES = 256  # of frame_embed, up to which its blocks share w's rows by 16 (not measured)
EMBED_TILE = (128, 64, 49152)  # frames, channels, bytes of shared memory
MOST_HOP = 1 << 22  # a tile's samples are counted in 32 bits
_EMBED = struct.Struct("<3Q2q4i")  # FrameEmbedParams of frame_embed.cu
_OVERLAP = struct.Struct("<11Q2q11i13i")  # OverlapParams of overlap_rows.cuh
_SPECTRUM = struct.Struct("<4Qq4i")  # SpectrumParams of spectrum_head.cu


def skinny_gemm_bytes(tiles: int) -> int:
    """Dynamic shared memory of skinny_gemm.cuh for 8 * tiles frames: the ring and partial sums."""
    stages = 7 if tiles == 1 else 4
    return stages * (2 + tiles) * FEW_THREADS * COPY_BYTES + 4 * 16 * 8 * tiles * 4


def _embed_why_not(samples, weight, hop, layout, n):
    if layout != "rows":
        return f"weight is in layout {layout!r}; it takes rows"
    if samples.dtype not in TYPES:
        return f"samples is {samples.dtype}; it takes float32, bfloat16 and float16"
    if weight.dtype != samples.dtype:
        return f"weight is {weight.dtype}, samples {samples.dtype}; it takes one type"
    if hop > MOST_HOP:
        return f"hop is {hop}; it takes up to {MOST_HOP}"
    reason = launch.why_not("frame_embed", samples.device)
    return reason or unfit(("samples", "weight"), (samples, weight))


def embed_kind(x: Tensor, weight: Tensor, T: int) -> tuple[str, int, int, int]:
    """The kernel for rows of T frames: its name's end, frames and channels of a block, bytes."""
    B, hop = x.shape[0], weight.shape[1]
    starts = [hop * x.element_size(), x.data_ptr(), weight.data_ptr()]
    if B > 1:
        starts.append(x.stride(0) * x.element_size())
    if any(start % COPY_BYTES for start in starts):
        return "any", *EMBED_TILE
    if T <= 8 or (B * T <= FEW_FRAMES and x.dtype == torch.float32):
        return "1", 8, 16, skinny_gemm_bytes(1)
    if B * T <= FEW_FRAMES:
        return "8", 64, 16, skinny_gemm_bytes(8)
    return "many", *EMBED_TILE


@register(
    "frame_embed",
    "cuda",
    _embed_why_not,
    sources=(launch.source("frame_embed"), __file__, cuda_common.__file__),
    flags=launch.FLAGS,
)
def frame_embed(samples, weight, hop, layout, n):
    B, L = samples.shape
    T = -(-L // hop)
    out = samples.new_empty(B, T, n)
    if out.numel() == 0:
        return out
    x = samples if L == 1 or samples.stride(1) == 1 else samples.contiguous()
    if L % hop == 0 and x.is_contiguous():  # the frames of all rows follow each other
        x = x.view(1, B * L)
    weight = weight.contiguous()
    T = -(-x.shape[1] // hop)
    kind, frames, channels, shared_bytes = embed_kind(x, weight, T)
    name = f"frame_embed_{TYPES[x.dtype]}_{kind}"
    kernel = launch.kernel("frame_embed", name, x.device.index, shared_bytes)
    blocks = x.shape[0] * -(-T // frames) * -(-n // channels)
    pointers = (t.data_ptr() for t in (x, weight, out))
    params = _EMBED.pack(*pointers, x.stride(0), x.shape[1], T, n, hop, 0)
    launch.launch(kernel, (blocks, 1, 1), (FEW_THREADS, 1, 1), params)
    return out


def _state_reason(op, x, window, numerator, lengths, written=()) -> str | None:
    """Why a stream's window and state cannot go to the kernels, or None."""
    for name, t in (("window", window), ("numerator", numerator)):
        if t is not None and t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes float32"
    if x.dtype not in TYPES:
        return f"the input is {x.dtype}; it takes float32, bfloat16 and float16"
    for t in written:
        if not t.is_contiguous():
            return f"out or the state has strides {tuple(t.stride())}; in place it takes dense ones"
    names = ("the input", "window", "numerator")
    return launch.why_not(op, x.device) or unfit(names, (x, window, numerator))


def _overlap_why_not(frames, window, hop, numerator, lengths, *_):
    if frames.shape[2] > 1 and frames.stride(2) != 1:
        return f"frames has strides {tuple(frames.stride())}; it takes a dense last dimension"
    return _state_reason("overlap_add", frames, window, numerator, lengths)


def _overlap_in_place_why_not(frames, out, numerator, lengths, emitted, window, hop, *_):
    written = (out, numerator, lengths, emitted)
    reason = _overlap_why_not(frames, window, hop, numerator, lengths)
    return reason or _state_reason("overlap_add", frames, window, numerator, lengths, written)


def _fresh(x, outputs, carried):
    """Room for what an op returns."""
    B = x.shape[0]
    counts = (x.new_empty(B, dtype=torch.int64) for _ in range(2))
    sums = (x.new_empty(B, n, dtype=torch.float32) for n in (outputs, carried))
    return (*sums, *counts)


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _params(frames, strides, window, hop, state, rows, results, blocks, turns=None, radices=()):
    """OverlapParams. blocks: (hops, columns, stripes, chunks, group). The state is kept apart
    where programs of one row would read what others write. Returns the bytes and what they hold.
    """
    (numerator, lengths), (valid, ended, last) = state, rows
    T, F = frames.shape[-2], window.shape[0]
    hops, columns, stripes, chunks, group = blocks
    in_place = lengths is results[2]
    if in_place and chunks > 1:
        numerator = numerator.clone()
    window, valid, ended = _dense(window), _dense(valid), _dense(ended)
    numerator, lengths = _dense(numerator), _dense(lengths)
    held = (frames, window, numerator, lengths, valid, ended, *results, turns)
    pointers = [0 if t is None else t.data_ptr() for t in held]
    sizes = (T, F, hop, results[0].shape[1], last, in_place, hops, columns, stripes, chunks, group)
    ends = (*radices, *[0] * (13 - len(radices)))
    return _OVERLAP.pack(*pointers, *strides, *sizes, *ends), held


def _vectors(frames, window, hop, state, results) -> bool:
    """Whether 4 columns can move at once."""
    F, carried = window.shape[0], window.shape[0] - hop
    sizes = (F, hop, carried // 2, results[0].shape[1], *frames.stride()[:2])
    tensors = (frames, window, state[0], *results[:2])
    return not any(n % 4 for n in sizes) and all(
        t.data_ptr() % (4 * t.element_size()) == 0 for t in tensors if t is not None
    )


def _overlap(frames, window, hop, state, rows, results):
    B, T, F = frames.shape
    if B == 0:
        return
    window = window.contiguous()
    hops = max(T + -(-F // hop) - 1, 1)
    block_hops = min(FEW_HOPS, 1 << (hops - 1).bit_length()) if hops <= FEW_HOPS else HOPS
    width = 4 if _vectors(frames, window, hop, state, results) else 1
    columns = THREADS // block_hops * width
    stripes, chunks = -(-hop // columns), -(-hops // block_hops)
    blocks = (block_hops, columns, stripes, chunks, 0)
    params, held = _params(frames, frames.stride()[:2], window, hop, state, rows, results, blocks)
    name = f"overlap_add_{TYPES[frames.dtype]}_{width}"
    kernel = launch.kernel("overlap_add", name, frames.device.index, COPY_BYTES)
    launch.launch(kernel, (B * stripes * chunks, 1, 1), (THREADS, 1, 1), params)
    del held  # allocated until the launch is on its stream


_OVERLAP_SOURCES = (launch.source("overlap_add"), __file__, cuda_common.__file__)


@register("overlap_add", "cuda", _overlap_why_not, sources=_OVERLAP_SOURCES, flags=launch.FLAGS)
def overlap_add(frames, window, hop, numerator, lengths, valid, ended, last, outputs):
    results = _fresh(frames, outputs, window.shape[0] - hop)
    _overlap(frames, window, hop, (numerator, lengths), (valid, ended, last), results)
    return results


@register("overlap_add_", "cuda", _overlap_in_place_why_not, sources=_OVERLAP_SOURCES, flags=launch.FLAGS)
def overlap_add_(frames, out, numerator, lengths, emitted, window, hop, valid, ended, last):
    results = out, numerator, lengths, emitted
    _overlap(frames, window, hop, (numerator, lengths), (valid, ended, last), results)


def _head_why_not(hidden, weight, bias, window, hop, numerator, lengths, valid, ended, last, outputs, layout, n):
    reason = _head_reason(hidden, weight, bias, window, layout)
    return reason or _state_reason("spectrum_head", hidden, window, numerator, lengths)


def _head_in_place_why_not(
    hidden, out, numerator, lengths, emitted, weight, bias, window, hop, valid, ended, last, layout, n
):
    reason = _head_reason(hidden, weight, bias, window, layout)
    written = (out, numerator, lengths, emitted)
    return reason or _state_reason("spectrum_head", hidden, window, numerator, lengths, written)


def _head_reason(hidden, weight, bias, window, layout) -> str | None:
    H, F = hidden.shape[2], window.shape[0]
    if layout != "rows":
        return f"weight is in layout {layout!r}; it takes rows"
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.dtype != hidden.dtype:
            return f"{name} is {t.dtype}, hidden {hidden.dtype}; it takes one type"
    if H == 0 or H * hidden.element_size() % COPY_BYTES:
        width = COPY_BYTES // hidden.element_size()
        return f"H is {H}; in {hidden.dtype} it takes multiples of {width}"
    if not weight.is_contiguous() or weight.data_ptr() % COPY_BYTES:
        return f"weight is not contiguous from an address that is a multiple of {COPY_BYTES}"
    if radices(F // 2) is None:
        return f"the window has {F} points; it takes twice a product of 2, 3, 5 and 7"
    if 8 * F > SHARED_BYTES - SUMS_BYTES - COPY_BYTES:
        largest = (SHARED_BYTES - SUMS_BYTES - COPY_BYTES) // 8
        return f"the window has {F} points; it takes up to {largest}"
    return unfit(("hidden", "weight", "bias"), (hidden, weight, bias))


def radices(points: int) -> tuple[int, ...] | None:
    """The passes of a transform, small ones first: the first pass is the one whose writes lie
    apart. None where a prime factor is more than 7.
    """
    found = []
    for r in (8, 7, 5, 4, 3, 2):
        while points % r == 0:
            found.append(r)
            points //= r
    return tuple(sorted(found)) if points == 1 else None


@functools.cache  # its address is in captured graphs: kept for good
def _turns(size: int, device: torch.device) -> Tensor:
    """[F, 2] float32: cosines and sines of 2 pi k / F."""
    angle = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    return torch.stack((angle.cos(), angle.sin()), 1).float().to(device)


def inverse_blocks(T: int, F: int, hop: int) -> tuple[int, int, int]:
    """(hops of a block, blocks of a row, frames transformed at once)."""
    parts = -(-F // hop)
    hops = max(T + parts - 1, 1)
    room = max(SUMS_BYTES // (4 * hop), 1)
    block_hops = min(hops if hops <= FEW_HOPS else HOPS, room)
    left = SHARED_BYTES - COPY_BYTES - 8 * -(-block_hops * hop // 2)
    group = min(max(T, 1), block_hops + parts - 1, left // (8 * F))
    return block_hops, -(-hops // block_hops), group


def _head(hidden, weight, bias, window, hop, state, rows, results):
    (B, T, H), F = hidden.shape, window.shape[0]
    if B == 0:
        return
    device = hidden.device.index
    spectra = hidden.new_empty(B, T, F, dtype=torch.float32)
    if T:
        x = cuda_common.rows_of_copies(hidden.reshape(B * T, H))
        bias = _dense(bias)
        tiles = 1 if B * T <= 8 or x.dtype == torch.float32 else 8
        name = f"spectrum_{TYPES[x.dtype]}_{tiles}"
        kernel = launch.kernel("spectrum_head", name, device, skinny_gemm_bytes(tiles))
        blocks = (F // 2 // BINS + 1) * -(-B * T // (8 * tiles))
        pointers = [0 if t is None else t.data_ptr() for t in (x, weight, bias, spectra)]
        params = _SPECTRUM.pack(*pointers, x.stride(0), B * T, F, H, 0)
        launch.launch(kernel, (blocks, 1, 1), (FEW_THREADS, 1, 1), params)
    hops, chunks, group = inverse_blocks(T, F, hop)
    params, held = _params(
        spectra,
        spectra.stride()[:2],
        window,
        hop,
        state,
        rows,
        results,
        (hops, hop, 1, chunks, group),
        _turns(F, hidden.device),
        radices(F // 2),
    )
    kernel = launch.kernel("spectrum_head", "spectrum_inverse", device, SHARED_BYTES)
    launch.launch(kernel, (B * chunks, 1, 1), (INVERSE_THREADS, 1, 1), params)
    del held  # allocated until the launch is on its stream


_HEAD_SOURCES = (launch.source("spectrum_head"), __file__, cuda_common.__file__)


@register("spectrum_head", "cuda", _head_why_not, sources=_HEAD_SOURCES, flags=launch.FLAGS)
def spectrum_head(hidden, weight, bias, window, hop, numerator, lengths, valid, ended, last, outputs, layout, n):
    results = _fresh(hidden, outputs, window.shape[0] - hop)
    state, rows = (numerator, lengths), (valid, ended, last)
    _head(hidden, weight, bias, window, hop, state, rows, results)
    return results


@register("spectrum_head_", "cuda", _head_in_place_why_not, sources=_HEAD_SOURCES, flags=launch.FLAGS)
def spectrum_head_(hidden, out, numerator, lengths, emitted, weight, bias, window, hop, valid, ended, last, layout, n):
    state, rows = (numerator, lengths), (valid, ended, last)
    _head(hidden, weight, bias, window, hop, state, rows, (out, numerator, lengths, emitted))
