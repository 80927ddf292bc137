"""The `cpu` backend's norms, rotary embedding and routing."""

import torch
from torch import Tensor

from ... import _cpu
from .._core.cpu import array, array_or_none, rows, unfit
from .._core.registry import register


def _matrix(x: Tensor) -> Tensor:
    """x, or where it is not contiguous x as [M, K] with a dense last dimension."""
    return x if x.is_contiguous() and x.dim() <= 5 else rows(x)


def _like(x: Tensor) -> Tensor:
    """Room for a result of x's shape, contiguous; `torch.empty` of a torch.Size takes twice as
    long, which is a tenth of a small norm."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rms_norm_why_not(x, weight, eps):
    return unfit(("x", "weight"), (x, weight))


@register("rms_norm", "cpu", _rms_norm_why_not)
def rms_norm(x, weight, eps):
    out = _like(x)
    # copies made here must live, by name, until the kernel has read them
    x, weight = _matrix(x), weight.contiguous()
    threads = torch.get_num_threads()
    _cpu.rms_norm(array(x), None, array(weight), eps, array(_matrix(out)), None, threads)
    return out


def _add_rms_norm_why_not(x, residual, weight, eps):
    return unfit(("x", "residual", "weight"), (x, residual, weight))


@register("add_rms_norm", "cpu", _add_rms_norm_why_not)
def add_rms_norm(x, residual, weight, eps):
    out, total = _like(x), _like(x)
    x, residual, weight = _matrix(x), _matrix(residual), weight.contiguous()
    _cpu.rms_norm(
        array(x),
        array(residual),
        array(weight),
        eps,
        array(_matrix(out)),
        array(_matrix(total)),
        torch.get_num_threads(),
    )
    return out, total


def _layer_norm_why_not(x, weight, bias, eps):
    return unfit(("x", "weight", "bias"), (x, weight, bias))


@register("layer_norm", "cpu", _layer_norm_why_not)
def layer_norm(x, weight, bias, eps):
    out = _like(x)
    x, weight = _matrix(x), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    threads = torch.get_num_threads()
    into = array(_matrix(out))
    _cpu.layer_norm(array(x), array(weight), array_or_none(bias), eps, into, threads)
    return out
