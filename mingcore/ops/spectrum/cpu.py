"""Framing, overlap-add and the spectrum head on the CPU kernels: one native call each."""

import functools

import torch
from torch import Tensor

from ... import _cpu
from .._core.cpu import array, array_or_none, dense_last, pack_panels
from .._core.packing import format_of
from .._core.support import Support
from ..conv.cpu import counters, dense
from . import FRAME_EMBED, OVERLAP_ADD, SPECTRUM_HEAD
from .fft import LARGEST_RADIX, radices, roots_of_unity, unsupported_window

_STATE = ("next_numerator", "next_lengths", "emitted")

# Copies that an adapter makes must live, by name, until the kernel has read them.


@FRAME_EMBED.implementation("cpu", Support(floats=("samples", "weight")))
def frame_embed(samples, weight, hop, layout, n, out):
    """A convolution of one channel with kernel = stride = hop, whose outputs are channel-last."""
    if layout == "rows":
        weight = pack_panels(weight, format_of(weight.dtype))
    counts, nothing = torch.empty(2, len(samples), dtype=torch.int64), samples.new_empty(len(samples), 1, hop - 1)
    samples = dense_last(samples)
    _cpu.causal_conv(
        array(samples.unsqueeze(1)),
        array(weight.unsqueeze(0)),
        None,
        None,
        None,
        array(nothing),
        counters(None, None, None, True, *counts),
        array(out.transpose(1, 2)),
        (1, hop, hop, 1, 1, 0, 0, False),
        "none",
        None,
        None,
        "none",
        None,
        None,
        True,
        torch.get_num_threads(),
    )


@OVERLAP_ADD.implementation("cpu", Support(float32=("frames", "window", "numerator"), contiguous=("out", *_STATE)))
def overlap_add(
    frames, window, hop, numerator, lengths, valid, ended, last, outputs, out, next_numerator, next_lengths, emitted
):
    frames, window, numerator = dense_last(frames), dense(window), dense(numerator)
    lengths, valid, ended = dense(lengths), dense(valid), dense(ended)
    _cpu.overlap_add(
        array(frames),
        array(window),
        hop,
        array_or_none(numerator),
        array(next_numerator),
        counters(lengths, valid, ended, last, next_lengths, emitted),
        array(out),
        torch.get_num_threads(),
    )


def _sizes(hidden, window, **_) -> str | None:
    if hidden.shape[-1] == 0:
        return "hidden has H = 0; it takes H >= 1"
    return unsupported_window(window.shape[0])


@SPECTRUM_HEAD.implementation(
    "cpu",
    Support(
        floats=("hidden", "weight", "bias"), float32=("window", "numerator"), contiguous=("out", *_STATE), rule=_sizes
    ),
)
def spectrum_head(
    hidden,
    weight,
    bias,
    window,
    hop,
    numerator,
    lengths,
    valid,
    ended,
    last,
    outputs,
    layout,
    n,
    out,
    next_numerator,
    next_lengths,
    emitted,
):
    hidden, bias, window = hidden.contiguous(), dense(bias), dense(window)
    if layout == "rows" and weight.stride(-1) != 1:
        weight = weight.contiguous()
    numerator, lengths, valid, ended = dense(numerator), dense(lengths), dense(valid), dense(ended)
    passes, twiddles, roots = _tables(window.shape[0])
    _cpu.spectrum_head(
        array(hidden),
        array(weight),
        array_or_none(bias),
        layout,
        array(window),
        hop,
        array_or_none(numerator),
        array(next_numerator),
        counters(lengths, valid, ended, last, next_lengths, emitted),
        array(out),
        passes,
        twiddles,
        roots,
        torch.get_num_threads(),
    )


@functools.cache
def _tables(size: int):
    """Radices, twiddles (csrc/cpu/spectrum/fft.h) and the roots of unity k / size, k < size / 2, of a window."""
    half = size // 2
    passes, pieces, points = radices(half), [], half
    small = torch.zeros(LARGEST_RADIX + 1, LARGEST_RADIX, 2, dtype=torch.float64)
    for r in range(2, LARGEST_RADIX + 1):
        small[r, :r] = roots_of_unity(torch.arange(r), r).T
    for r in passes:
        m = points // r
        pieces += [roots_of_unity(torch.arange(m) * j % points, points) for j in range(1, r)]
        points = m
    twiddles = torch.cat([small.flatten(), *(p.flatten() for p in pieces)]).float()
    roots = roots_of_unity(torch.arange(half), size).float()
    _KEPT.append((twiddles, roots))  # their addresses are handed out
    return passes, array(twiddles), array(roots)


_KEPT: list[tuple[Tensor, Tensor]] = []
