"""RMSNorm and LayerNorm on the Triton kernels."""

from mingcore_kernels.norm import norms

from .._core.support import Limit, Support
from .._core.triton import KERNELS
from .._core.triton import matrix as _matrix
from . import ADD_RMS_NORM, LAYER_NORM, RMS_NORM

_SOURCES = (KERNELS / "norm" / "norms.py",)


def _support(*tensors: str) -> Support:
    longest = Limit("rows have {} elements", lambda x, **_: x.shape[-1], norms.LONGEST)
    return Support(floats=tensors, dense_last=tensors, limits=(longest,))


@RMS_NORM.implementation("triton", _support("x", "weight"), sources=_SOURCES)
def rms_norm(x, weight, eps, out):
    norms.rms_norm(_matrix(x), weight, eps, out)


@ADD_RMS_NORM.implementation("triton", _support("x", "residual", "weight"), sources=_SOURCES)
def add_rms_norm(x, residual, weight, eps, out, total):
    norms.add_rms_norm(_matrix(x), _matrix(residual), weight, eps, out, total)


@LAYER_NORM.implementation("triton", _support("x", "weight", "bias"), sources=_SOURCES)
def layer_norm(x, weight, bias, eps, out):
    norms.layer_norm(_matrix(x), weight, bias, eps, out)
