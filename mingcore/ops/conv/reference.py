"""Causal convolutions with a stream's state, row by row, without reading anything to the host.

N: inputs that a row has had, W: width of its context, D = (k - 1) dilation + 1: the reach of a
kernel. Every row's inputs are shifted so that its first output reads them from index 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import stream_progress, wide
from . import CAUSAL_CONV1D, CAUSAL_CONV_TRANSPOSE1D
from .packing import context_width, unpack_conv

ACTIVATIONS = {
    "silu": F.silu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "tanh": torch.tanh,
}


def activate(x: Tensor, name: str, alpha: Tensor | None, gain: Tensor | None) -> Tensor:
    """x [B, C, L]; alpha and gain [C] for "snake": x + gain sin(alpha x)^2 (Ziyin et al. 2020)."""
    if name == "none":
        return x
    if name == "snake":
        alpha, gain = (p.to(x.dtype).unsqueeze(-1) for p in (alpha, gain))
        return x + gain * torch.sin(alpha * x).square()
    return ACTIVATIONS[name](x)


@CAUSAL_CONV1D.implementation("reference")
@by_row(x=0, residual=0, context=0, lengths=0, valid=0, ended=0)
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
    layout,
    n,
    before,
    before_alpha,
    before_gain,
    after,
    after_alpha,
    after_gain,
):
    """x [B, C_in, L] -> y [B, C_out, outputs], context, lengths, emitted."""
    B, C, L = x.shape
    span = (kernel - 1) * dilation
    seen, new, done = stream_progress(x, lengths, valid, ended, last, L)
    padded = _joined(x, context, seen, span, replicate)

    def count(inputs: Tensor, final: Tensor | bool) -> Tensor:
        """Outputs of a stream after so many inputs; once it is over, until all are covered."""
        complete = torch.div(inputs + left_pad - span - 1, stride, rounding_mode="floor") + 1
        reach = inputs + left_pad - max(span + 1 - stride, 0)
        covered = -torch.div(-reach, stride, rounding_mode="floor")
        return torch.where(final & (inputs > 0), covered, complete).clamp(min=0)

    earlier = count(seen, torch.zeros_like(done))
    emitted = count(seen + new, done) - earlier
    start = span + earlier * stride - left_pad - seen
    steps = torch.arange((outputs - 1) * stride + span + 1 if outputs else 0, device=x.device)
    index, end = start.unsqueeze(1) + steps, (span + new).unsqueeze(1)
    window = _gathered(padded, index.minimum((end - 1).clamp(min=0)))
    if not replicate:
        window = torch.where((index < end).unsqueeze(1), window, 0)
    if outputs:
        window = activate(wide(window), before, before_alpha, before_gain)
        w = unpack_conv(weight, layout, C, n, kernel, stride, dilation, groups, False)
        y = F.conv1d(window, w.to(window.dtype), None, stride, 0, dilation, groups)
        y = _finished(y, bias, residual, emitted, after, after_alpha, after_gain)
    else:
        y = x.new_empty(B, n, 0)
    return y.to(x.dtype), *_carried(padded, span, seen, new, done), emitted


@CAUSAL_CONV_TRANSPOSE1D.implementation("reference")
@by_row(x=0, residual=0, context=0, lengths=0, valid=0, ended=0)
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
    layout,
    n,
    before,
    before_alpha,
    before_gain,
    after,
    after_alpha,
    after_gain,
):
    """x [B, C_in, L] -> y [B, C_out, outputs], context, lengths, emitted."""
    B, C, L = x.shape
    width = context_width(kernel, stride, dilation, True)
    seen, new, done = stream_progress(x, lengths, valid, ended, last, L)
    padded = _joined(x, context, seen, width, False)
    emitted = new * stride + torch.where(done & (seen + new > 0), flush, 0)
    if outputs:
        own = torch.arange(width + L, device=x.device) < (width + new).unsqueeze(1)
        window = torch.where(own.unsqueeze(1), padded[:, :, : width + L], 0)
        if width + L == 0:  # only the flush of a row without a context: nothing
            window = padded
        window = activate(wide(window), before, before_alpha, before_gain)
        w = unpack_conv(weight, layout, C, n, kernel, stride, dilation, groups, True)
        y = F.conv_transpose1d(window, w.to(window.dtype), None, stride, groups=groups, dilation=dilation)
        y = F.pad(y, (0, max(stride - (kernel - 1) * dilation - 1, 0)))
        y = y[:, :, width * stride : width * stride + outputs]
        y = _finished(y, bias, residual, emitted, after, after_alpha, after_gain)
    else:
        y = x.new_empty(B, n, 0)
    return y.to(x.dtype), *_carried(padded, width, seen, new, done), emitted


def _joined(x, context, seen, width: int, replicate: bool) -> Tensor:
    """[B, C, width + L + 1]: what came before, the chunk, and one zero."""
    B, C, L = x.shape
    first = x[:, :, :1] if replicate and L else x.new_zeros(B, C, 1)
    earlier = first.expand(B, C, width)
    if context is not None:
        earlier = torch.where((seen == 0).view(-1, 1, 1), earlier, context)
    return F.pad(torch.cat((earlier, x), dim=2), (0, 1))


def _gathered(padded: Tensor, index: Tensor) -> Tensor:
    """padded [B, C, S], index [B, U] -> [B, C, U]."""
    return padded.gather(2, index.unsqueeze(1).expand(-1, padded.shape[1], -1))


def _finished(y, bias, residual, emitted, after, alpha, gain) -> Tensor:
    if bias is not None:
        y = y + bias.to(y.dtype).unsqueeze(-1)
    y = activate(y, after, alpha, gain)
    if residual is not None:
        y = y + residual.to(y.dtype)
    own = torch.arange(y.shape[2], device=y.device) < emitted.unsqueeze(1)
    return torch.where(own.unsqueeze(1), y, 0)


def _carried(padded, width: int, seen, new, done) -> tuple[Tensor, Tensor]:
    """The next context and lengths; a row that ended begins anew."""
    index = new.unsqueeze(1) + torch.arange(width, device=padded.device)
    context = torch.where(done.view(-1, 1, 1), 0, _gathered(padded, index))
    return context, torch.where(done, 0, seen + new)
