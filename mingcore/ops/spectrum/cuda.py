"""Framing and overlap-add on the CUDA kernels, one launch each, and the spectrum head, two."""

import functools
import struct

import torch
from torch import Tensor

from .._core import cuda as cuda_common
from .._core import launch
from .._core.cuda import COPY_BYTES, TYPES
from .._core.support import Limit, Support
from . import FRAME_EMBED, OVERLAP_ADD, SPECTRUM_HEAD
from .fft import radices, roots_of_unity, unsupported_window

THREADS, COLUMNS = 256, 128  # of overlap_add.cu; columns where a block has eight hops
FEW_HOPS = 16  # that one block takes: what is carried is then read and written by it alone
HOPS = 8  # of a block, where there are more
SHARED_BYTES = 96 << 10  # of the inverse transform: what any GPU from sm_80 on has
SUMS_BYTES = 32 << 10  # at most, of them for a block's samples
BINS, FEW_THREADS, INVERSE_THREADS = 8, 128, 512
FEW_FRAMES = 256  # of frame_embed, up to which its blocks share w's rows by 16 (not measured)
EMBED_TILE = (128, 64, 49152)  # frames, channels, bytes of shared memory
MAX_HOP = 1 << 22  # a tile's samples are counted in 32 bits
_EMBED = struct.Struct("<3Q2q4i")  # FrameEmbedParams of frame_embed.cu
_OVERLAP = struct.Struct("<11Q2q11i13i")  # OverlapParams of overlap_rows.cuh
_SPECTRUM = struct.Struct("<4Qq4i")  # SpectrumParams of spectrum_head.cu


def skinny_gemm_bytes(tiles: int) -> int:
    """Dynamic shared memory of a skinny GEMM of 8 * tiles frames: the ring and partial sums."""
    stages = 7 if tiles == 1 else 4
    return stages * (2 + tiles) * FEW_THREADS * COPY_BYTES + 4 * 16 * 8 * tiles * 4


def _unsupported_embed(samples, weight, **_) -> str | None:
    if weight.dtype != samples.dtype:
        return f"weight is {weight.dtype}, samples {samples.dtype}; it takes one type"
    return launch.unavailable_reason("frame_embed", samples.device)


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


@FRAME_EMBED.implementation(
    "cuda",
    Support(
        floats=("samples", "weight"),
        layouts=("rows",),
        limits=(Limit("hop is {}", lambda hop, **_: hop, MAX_HOP),),
        rule=_unsupported_embed,
    ),
    sources=(launch.source("frame_embed"), cuda_common.__file__),
    flags=launch.FLAGS,
)
def frame_embed(samples, weight, hop, layout, n, out):
    if out.numel() == 0:
        return
    B, L = samples.shape
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


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _params(frames, strides, window, hop, state, rows, results, blocks, roots=None, passes=()):
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
    held = (frames, window, numerator, lengths, valid, ended, *results, roots)
    pointers = [0 if t is None else t.data_ptr() for t in held]
    sizes = (T, F, hop, results[0].shape[1], last, in_place, hops, columns, stripes, chunks, group)
    ends = (*passes, *[0] * (13 - len(passes)))
    return _OVERLAP.pack(*pointers, *strides, *sizes, *ends), held


def _vectors(frames, window, hop, state, results) -> bool:
    """Whether 4 columns can move at once."""
    F, carried = window.shape[0], window.shape[0] - hop
    sizes = (F, hop, carried // 2, results[0].shape[1], *frames.stride()[:2])
    tensors = (frames, window, state[0], *results[:2])
    return not any(n % 4 for n in sizes) and all(
        t.data_ptr() % (4 * t.element_size()) == 0 for t in tensors if t is not None
    )


_WRITTEN = ("out", "next_numerator", "next_lengths", "emitted")


@OVERLAP_ADD.implementation(
    "cuda",
    Support(
        floats=("frames",),
        float32=("window", "numerator"),
        dense_last=("frames",),
        contiguous=_WRITTEN,
        rule=lambda frames, **_: launch.unavailable_reason("overlap_add", frames.device),
    ),
    sources=(launch.source("overlap_add"), cuda_common.__file__),
    flags=launch.FLAGS,
)
def overlap_add(frames, window, hop, numerator, lengths, valid, ended, last, outputs, **written):
    state, rows, results = (numerator, lengths), (valid, ended, last), tuple(written[name] for name in _WRITTEN)
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


def _unsupported_head(hidden, weight, bias, window, **_) -> str | None:
    H, F = hidden.shape[2], window.shape[0]
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.dtype != hidden.dtype:
            return f"{name} is {t.dtype}, hidden {hidden.dtype}; it takes one type"
    if H == 0 or H * hidden.element_size() % COPY_BYTES:
        width = COPY_BYTES // hidden.element_size()
        return f"H is {H}; in {hidden.dtype} it takes multiples of {width}"
    if not weight.is_contiguous() or weight.data_ptr() % COPY_BYTES:
        return f"weight is not contiguous from an address that is a multiple of {COPY_BYTES}"
    if 8 * F > SHARED_BYTES - SUMS_BYTES - COPY_BYTES:
        largest = (SHARED_BYTES - SUMS_BYTES - COPY_BYTES) // 8
        return f"the window has {F} points; it takes up to {largest}"
    return unsupported_window(F) or launch.unavailable_reason("spectrum_head", hidden.device)


@functools.cache  # its address is in captured graphs: kept for good
def _roots(size: int, device: torch.device) -> Tensor:
    """[F, 2] float32: cosines and sines of 2 pi k / F."""
    return roots_of_unity(torch.arange(size), size).T.contiguous().float().to(device)


def inverse_blocks(T: int, F: int, hop: int) -> tuple[int, int, int]:
    """(hops of a block, blocks of a row, frames transformed at once)."""
    parts = -(-F // hop)
    hops = max(T + parts - 1, 1)
    room = max(SUMS_BYTES // (4 * hop), 1)
    block_hops = min(hops if hops <= FEW_HOPS else HOPS, room)
    left = SHARED_BYTES - COPY_BYTES - 8 * -(-block_hops * hop // 2)
    group = min(max(T, 1), block_hops + parts - 1, left // (8 * F))
    return block_hops, -(-hops // block_hops), group


@SPECTRUM_HEAD.implementation(
    "cuda",
    Support(
        floats=("hidden", "weight", "bias"),
        float32=("window", "numerator"),
        contiguous=_WRITTEN,
        layouts=("rows",),
        rule=_unsupported_head,
    ),
    sources=(launch.source("spectrum_head"), cuda_common.__file__),
    flags=launch.FLAGS,
)
def spectrum_head(
    hidden, weight, bias, window, hop, numerator, lengths, valid, ended, last, outputs, layout, n, **written
):
    state, rows, results = (numerator, lengths), (valid, ended, last), tuple(written[name] for name in _WRITTEN)
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
        _roots(F, hidden.device),
        sorted(radices(F // 2)),  # small ones first: the first pass is the one whose writes lie apart
    )
    kernel = launch.kernel("spectrum_head", "spectrum_inverse", device, SHARED_BYTES)
    launch.launch(kernel, (B * chunks, 1, 1), (INVERSE_THREADS, 1, 1), params)
    del held  # allocated until the launch is on its stream
