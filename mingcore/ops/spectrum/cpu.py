"""The `cpu` backend's framing, overlap-add and spectrum head: one native call each."""

import functools
import math

import torch
from torch import Tensor

from ... import _cpu
from .._core.cpu import array, array_or_none, pack_panels, unfit
from .._core.registry import register
from ..conv.cpu import dense, stream_rows

RADICES = (8, 5, 4, 3, 2, 7)
LARGEST = 8


def _frame_embed_why_not(samples, weight, hop, layout, n):
    return unfit(("samples", "weight"), (samples, weight))


@register("frame_embed", "cpu", _frame_embed_why_not)
def frame_embed(samples, weight, hop, layout, n):
    """A convolution of one channel with kernel = stride = hop, whose outputs are channel-last."""
    if layout == "rows":
        weight = pack_panels(weight, {4: "fp32"}.get(weight.element_size(), _half(weight)))
    B, L = samples.shape
    T = -(-L // hop)
    out = samples.new_empty(B, T, n)
    counts, nothing = torch.empty(2, B, dtype=torch.int64), samples.new_empty(B, 1, hop - 1)
    samples = samples if L == 1 or samples.stride(1) == 1 else samples.contiguous()
    _cpu.causal_conv(
        array(samples.unsqueeze(1)),
        array(weight.unsqueeze(0)),
        None,
        None,
        None,
        array(nothing),
        stream_rows(None, None, None, True, counts[0], counts[1]),
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
    return out


def _half(weight: Tensor) -> str:
    return "bf16" if weight.dtype == torch.bfloat16 else "fp16"


_OVERLAP_NAMES = ("frames", "window", "numerator")


def _overlap_why_not(frames, window, hop, numerator, *_):
    operands = (frames, window, numerator)
    for name, t in zip(_OVERLAP_NAMES, operands):
        if t is not None and t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes float32"
    return unfit(_OVERLAP_NAMES, operands)


def _overlap_in_place_why_not(frames, out, numerator, lengths, emitted, window, hop, *_):
    reason = _state_reason(out, numerator, lengths, emitted)
    return reason or _overlap_why_not(frames, window, hop, numerator)


def _state_reason(out, numerator, lengths, emitted) -> str | None:
    if not (numerator.is_contiguous() and lengths.is_contiguous() and emitted.is_contiguous()):
        return "the state is not contiguous"
    if not out.is_contiguous():
        return f"out has strides {tuple(out.stride())}; it takes a contiguous one"
    return None


@register("overlap_add", "cpu", _overlap_why_not)
def overlap_add(frames, window, hop, numerator, lengths, valid, ended, last, outputs):
    results = _fresh(frames.shape[0], outputs, window.shape[0] - hop)
    _overlap(frames, window, hop, numerator, lengths, (valid, ended, last), results)
    return results


@register("overlap_add_", "cpu", _overlap_in_place_why_not)
def overlap_add_(frames, out, numerator, lengths, emitted, window, hop, valid, ended, last):
    results = out, numerator, lengths, emitted
    _overlap(frames, window, hop, numerator, lengths, (valid, ended, last), results)


def _fresh(B, outputs, carried):
    counts = torch.empty(B, dtype=torch.int64), torch.empty(B, dtype=torch.int64)
    return torch.empty(B, outputs), torch.empty(B, carried), *counts


def _overlap(frames, window, hop, numerator, lengths, rows, results):
    out, numerator_out, lengths_out, emitted = results
    if frames.stride(-1) != 1 and frames.shape[-1] > 1:
        frames = frames.contiguous()
    window, numerator, lengths = dense(window), dense(numerator), dense(lengths)
    valid, ended = dense(rows[0]), dense(rows[1])
    _cpu.overlap_add(
        array(frames),
        array(window),
        hop,
        array_or_none(numerator),
        array(numerator_out),
        stream_rows(lengths, valid, ended, rows[2], lengths_out, emitted),
        array(out),
        torch.get_num_threads(),
    )


def _head_why_not(hidden, weight, bias, window, hop, numerator, *_):
    size = window.shape[0]
    if size % 2 or _radices(size // 2) is None:
        return f"the window has {size} points; it takes twice a product of 2, 3, 5 and 7"
    if hidden.shape[-1] == 0:
        return "hidden has H = 0; it takes H >= 1"
    for name, t in (("window", window), ("numerator", numerator)):
        if t is not None and t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes float32"
    return unfit(("hidden", "weight", "bias"), (hidden, weight, bias))


def _head_in_place_why_not(hidden, out, numerator, lengths, emitted, weight, bias, window, hop, *_):
    reason = _state_reason(out, numerator, lengths, emitted)
    return reason or _head_why_not(hidden, weight, bias, window, hop, numerator)


@register("spectrum_head", "cpu", _head_why_not)
def spectrum_head(hidden, weight, bias, window, hop, numerator, lengths, valid, ended, last, outputs, layout, n):
    results = _fresh(hidden.shape[0], outputs, window.shape[0] - hop)
    _head(hidden, weight, bias, window, hop, numerator, lengths, (valid, ended, last), results, layout)
    return results


@register("spectrum_head_", "cpu", _head_in_place_why_not)
def spectrum_head_(hidden, out, numerator, lengths, emitted, weight, bias, window, hop, valid, ended, last, layout, n):
    results = out, numerator, lengths, emitted
    _head(hidden, weight, bias, window, hop, numerator, lengths, (valid, ended, last), results, layout)


def _head(hidden, weight, bias, window, hop, numerator, lengths, rows, results, layout):
    out, numerator_out, lengths_out, emitted = results
    hidden, bias, window = hidden.contiguous(), dense(bias), dense(window)
    if layout == "rows" and weight.stride(-1) != 1:
        weight = weight.contiguous()
    numerator, lengths = dense(numerator), dense(lengths)
    valid, ended = dense(rows[0]), dense(rows[1])
    radices, table, turns = _tables(window.shape[0])
    _cpu.spectrum_head(
        array(hidden),
        array(weight),
        array_or_none(bias),
        layout,
        array(window),
        hop,
        array_or_none(numerator),
        array(numerator_out),
        stream_rows(lengths, valid, ended, rows[2], lengths_out, emitted),
        array(out),
        radices,
        table,
        turns,
        torch.get_num_threads(),
    )


def _radices(points: int) -> tuple[int, ...] | None:
    """The passes of a transform of so many points; None with a prime factor beyond 7."""
    found = []
    for r in RADICES:
        while points % r == 0 and points > 1:
            found.append(r)
            points //= r
    return tuple(found) if points == 1 else None


@functools.cache
def _tables(size: int):
    """Radices, twiddles (spectrum/fft.h) and the turns 2 pi k / size, k < size / 2, of a window."""
    half = size // 2
    radices, pieces, points = _radices(half), [], half
    roots = torch.zeros(LARGEST + 1, LARGEST, 2, dtype=torch.float64)
    for r in range(2, LARGEST + 1):
        roots[r, :r] = _turns(torch.arange(r), r).T
    for r in radices:
        m = points // r
        pieces += [_turns(torch.arange(m) * j % points, points) for j in range(1, r)]
        points = m
    flat = torch.cat([roots.flatten(), *(p.flatten() for p in pieces)]).float()
    turns = _turns(torch.arange(half), size).float()
    _KEPT.append((flat, turns))  # their addresses are handed out
    return radices, array(flat), array(turns)


_KEPT: list[tuple[Tensor, Tensor]] = []


def _turns(k: Tensor, n: int) -> Tensor:
    """[2, len(k)]: cosines and sines of 2 pi k / n."""
    angle = k.double() * (2 * math.pi / n)
    return torch.stack((angle.cos(), angle.sin()))
