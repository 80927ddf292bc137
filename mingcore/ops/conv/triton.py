"""The `triton` backend's causal convolutions, and frame_embed, which is one."""

import torch

from mingcore_kernels.conv import causal_conv as kernels
from mingcore_kernels.spectrum import frame_embed as frame_kernels

from .._core.registry import register
from .._core.triton import KERNELS, unfit

_SOURCES = (KERNELS / "conv" / "causal_conv.py", __file__)
_NAMES = ("x", "weight", "bias", "residual", "alpha", "gain", "alpha", "gain")
_MOST_ROWS = 65535  # of a grid's second dimension


def _why_not(x, weight, bias, residual, *rest):
    if rest[-2] != "rows":
        return f"the weight is in layout {rest[-2]!r}; it takes 'rows'"
    if x.shape[0] > _MOST_ROWS:
        return f"there are {x.shape[0]} rows; it takes up to {_MOST_ROWS}"
    for t in (*rest[-7:-5], *rest[-4:-2]):
        if t is not None and t.dtype != torch.float32:
            return f"alpha or gain is {t.dtype}; it takes float32"
    given = x, weight, bias, residual, *rest[-7:-5], *rest[-4:-2]
    return unfit(_NAMES, given, dense=False)


def _in_place_why_not(x, out, context, lengths, emitted, *rest):
    if not (context.is_contiguous() and lengths.is_contiguous() and emitted.is_contiguous()):
        return "the state is not contiguous"
    if torch._debug_has_internal_overlap(out) == 1:
        return f"out overlaps itself (strides {tuple(out.stride())})"
    return _why_not(x, *rest)


@register("causal_conv1d", "triton", _why_not, sources=_SOURCES)
def causal_conv1d(
    x,
    weight,
    bias,
    residual,
    context,
    lengths,
    valid,
    ended,
    last,
    outputs,
    kernel,
    stride,
    dilation,
    groups,
    left_pad,
    replicate,
    *rest,
):
    *acts, _, n = rest
    results = _fresh(x, n, outputs, (kernel - 1) * dilation)
    sizes = (kernel, stride, dilation, groups, left_pad, 0)
    _run(x, weight, bias, residual, (context, lengths), (valid, ended, last), results, sizes, acts, replicate=replicate)
    return results


@register("causal_conv1d_", "triton", _in_place_why_not, sources=_SOURCES)
def causal_conv1d_(
    x,
    out,
    context,
    lengths,
    emitted,
    weight,
    bias,
    residual,
    valid,
    ended,
    last,
    kernel,
    stride,
    dilation,
    groups,
    left_pad,
    replicate,
    *rest,
):
    results = out, context, lengths, emitted
    sizes = (kernel, stride, dilation, groups, left_pad, 0)
    _run(
        x,
        weight,
        bias,
        residual,
        (context, lengths),
        (valid, ended, last),
        results,
        sizes,
        rest[:-2],
        replicate=replicate,
        in_place=True,
    )


@register("causal_conv_transpose1d", "triton", _why_not, sources=_SOURCES)
def causal_conv_transpose1d(
    x,
    weight,
    bias,
    residual,
    context,
    lengths,
    valid,
    ended,
    last,
    outputs,
    kernel,
    stride,
    dilation,
    groups,
    flush,
    *rest,
):
    *acts, _, n = rest
    results = _fresh(x, n, outputs, (kernel - 1) * dilation // stride)
    sizes = (kernel, stride, dilation, groups, 0, flush)
    _run(x, weight, bias, residual, (context, lengths), (valid, ended, last), results, sizes, acts, transposed=True)
    return results


@register("causal_conv_transpose1d_", "triton", _in_place_why_not, sources=_SOURCES)
def causal_conv_transpose1d_(
    x,
    out,
    context,
    lengths,
    emitted,
    weight,
    bias,
    residual,
    valid,
    ended,
    last,
    kernel,
    stride,
    dilation,
    groups,
    flush,
    *rest,
):
    results = out, context, lengths, emitted
    sizes = (kernel, stride, dilation, groups, 0, flush)
    _run(
        x,
        weight,
        bias,
        residual,
        (context, lengths),
        (valid, ended, last),
        results,
        sizes,
        rest[:-2],
        transposed=True,
        in_place=True,
    )


def _fresh(x, n, outputs, width):
    B, C, _ = x.shape
    lengths, emitted = (x.new_empty(B, dtype=torch.int64) for _ in range(2))
    return x.new_empty(B, n, outputs), x.new_empty(B, C, width), lengths, emitted


def _dense(t):
    return None if t is None else t.contiguous()


def _run(x, weight, bias, residual, carried, rows, results, sizes, acts, **kind) -> None:
    before, before_alpha, before_gain, after, after_alpha, after_gain = acts
    snakes = before, _dense(before_alpha), _dense(before_gain), after, _dense(after_alpha)
    carried = tuple(_dense(t) for t in carried)
    rows = (_dense(rows[0]), _dense(rows[1]), rows[2])
    kernels.causal_conv(
        x,
        weight.contiguous(),
        _dense(bias),
        residual,
        carried,
        rows,
        results,
        sizes,
        (*snakes, _dense(after_gain)),
        **kind,
    )


def _frame_embed_why_not(samples, weight, hop, layout, n):
    if layout != "rows":
        return f"the weight is in layout {layout!r}; it takes 'rows'"
    if samples.shape[0] > _MOST_ROWS:
        return f"there are {samples.shape[0]} rows; it takes up to {_MOST_ROWS}"
    return unfit(("samples", "weight"), (samples, weight))


@register("frame_embed", "triton", _frame_embed_why_not, sources=(KERNELS / "spectrum" / "frame_embed.py", __file__))
def frame_embed(samples, weight, hop, layout, n):
    out = samples.new_empty(samples.shape[0], -(-samples.shape[1] // hop), n)
    frame_kernels.frame_embed(samples, weight.contiguous(), hop, out)
    return out
