"""RMSNorm and LayerNorm on the CPU kernels."""

import torch
from torch import Tensor

from ... import _cpu
from .._core.cpu import array, array_or_none, rows
from .._core.support import Support
from . import ADD_RMS_NORM, LAYER_NORM, RMS_NORM

# Copies that an adapter makes must live, by name, until the kernel has read them.


def _matrix(x: Tensor) -> Tensor:
    """x, or where it is not contiguous x as [M, K] with a dense last dimension."""
    return x if x.is_contiguous() and x.dim() <= 5 else rows(x)


def _matrices(x: Tensor, *results: Tensor) -> tuple[Tensor, ...]:
    """`_matrix` of x and of contiguous results of its shape."""
    matrix = _matrix(x)
    return (x, *results) if matrix is x else (matrix, *map(rows, results))


@RMS_NORM.implementation("cpu", Support(floats=("x", "weight")))
def rms_norm(x, weight, eps, out):
    (x, out), weight = _matrices(x, out), weight.contiguous()
    _cpu.rms_norm(array(x), None, array(weight), eps, array(out), None, torch.get_num_threads())


@ADD_RMS_NORM.implementation("cpu", Support(floats=("x", "residual", "weight")))
def add_rms_norm(x, residual, weight, eps, out, total):
    (x, out, total), residual, weight = _matrices(x, out, total), _matrix(residual), weight.contiguous()
    results = array(out), array(total)
    _cpu.rms_norm(array(x), array(residual), array(weight), eps, *results, torch.get_num_threads())


@LAYER_NORM.implementation("cpu", Support(floats=("x", "weight", "bias")))
def layer_norm(x, weight, bias, eps, out):
    (x, out), weight = _matrices(x, out), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    _cpu.layer_norm(array(x), array(weight), array_or_none(bias), eps, array(out), torch.get_num_threads())
