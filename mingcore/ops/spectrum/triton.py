"""The `triton` backend's overlap-add and spectrum head."""

import torch

from mingcore_kernels.spectrum import overlap_add as overlap_kernels
from mingcore_kernels.spectrum import spectrum_head as head_kernels

from .._core.registry import register
from .._core.triton import KERNELS, unfit

LARGEST_WINDOW = 4096  # its transform's basis is 64 MB


def _stream_reason(x, window, numerator, lengths, in_place=()) -> str | None:
    """Why a stream's window and state cannot go to the kernels, or None."""
    if numerator is not None and numerator.dtype != torch.float32:
        return f"numerator is {numerator.dtype}; it takes float32"
    for t in in_place:
        if not t.is_contiguous():
            return f"out or the state has strides {tuple(t.stride())}; in place it takes dense ones"
    return unfit(("the input", "window", "numerator"), (x, window, numerator))


def _overlap_why_not(frames, window, hop, numerator, lengths, *_):
    return _stream_reason(frames, window, numerator, lengths)


def _overlap_in_place_why_not(frames, out, numerator, lengths, emitted, window, hop, *_):
    written = (out, numerator, lengths, emitted)
    return _stream_reason(frames, window, numerator, lengths, written)


def _fresh(x, outputs, carried):
    """Room for what an op returns."""
    B = x.shape[0]
    counts = (x.new_empty(B, dtype=torch.int64) for _ in range(2))
    sums = (x.new_empty(B, n, dtype=torch.float32) for n in (outputs, carried))
    return (*sums, *counts)


def _dense(*tensors):
    return tuple(None if t is None else t.contiguous() for t in tensors)


_OVERLAP_SOURCES = (KERNELS / "spectrum" / "overlap_add.py", __file__)


@register("overlap_add", "triton", _overlap_why_not, sources=_OVERLAP_SOURCES)
def overlap_add(frames, window, hop, numerator, lengths, valid, ended, last, outputs):
    results = _fresh(frames, outputs, window.shape[0] - hop)
    state = _dense(numerator, lengths)
    overlap_kernels.overlap_add(frames, window, hop, state, *_dense(valid, ended), last, results)
    return results


@register("overlap_add_", "triton", _overlap_in_place_why_not, sources=_OVERLAP_SOURCES)
def overlap_add_(frames, out, numerator, lengths, emitted, window, hop, valid, ended, last):
    state, results = (numerator, lengths), (out, numerator, lengths, emitted)
    overlap_kernels.overlap_add(frames, window, hop, state, *_dense(valid, ended), last, results)


def _head_why_not(hidden, weight, bias, window, hop, numerator, lengths, valid, ended, last, outputs, layout, n):
    reason = _head_reason(hidden, weight, bias, window, layout)
    return reason or _stream_reason(hidden, window, numerator, lengths)


def _head_in_place_why_not(
    hidden, out, numerator, lengths, emitted, weight, bias, window, hop, valid, ended, last, layout, n
):
    reason = _head_reason(hidden, weight, bias, window, layout)
    written = (out, numerator, lengths, emitted)
    return reason or _stream_reason(hidden, window, numerator, lengths, written)


def _head_reason(hidden, weight, bias, window, layout) -> str | None:
    if layout != "rows":
        return f"weight is in layout {layout!r}; it takes 'rows'"
    if not weight.is_contiguous():
        return f"weight has strides {tuple(weight.stride())}; it takes a contiguous one"
    if hidden.shape[-1] == 0:
        return "hidden has H = 0; it takes H >= 1"
    size = window.shape[0]
    if size > LARGEST_WINDOW:
        return f"the window has {size} points; it takes up to {LARGEST_WINDOW}"
    return unfit(("hidden", "weight", "bias"), (hidden, weight, bias))


_HEAD_SOURCES = (KERNELS / "spectrum" / "spectrum_head.py", __file__)


@register("spectrum_head", "triton", _head_why_not, sources=_HEAD_SOURCES)
def spectrum_head(hidden, weight, bias, window, hop, numerator, lengths, valid, ended, last, outputs, layout, n):
    results = _fresh(hidden, outputs, window.shape[0] - hop)
    _head(hidden, weight, bias, window, hop, _dense(numerator, lengths), valid, ended, last, results)
    return results


@register("spectrum_head_", "triton", _head_in_place_why_not, sources=_HEAD_SOURCES)
def spectrum_head_(hidden, out, numerator, lengths, emitted, weight, bias, window, hop, valid, ended, last, layout, n):
    results = (out, numerator, lengths, emitted)
    _head(hidden, weight, bias, window, hop, (numerator, lengths), valid, ended, last, results)


def _head(hidden, weight, bias, window, hop, state, valid, ended, last, results):
    basis = head_kernels.inverse_basis(window.shape[0], hidden.device)
    head_kernels.spectrum_head(
        hidden.contiguous(), weight, bias, window, hop, basis, state, *_dense(valid, ended), last, results
    )
