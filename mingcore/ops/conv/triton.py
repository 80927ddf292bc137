"""Causal convolutions on the Triton kernels."""

from torch import Tensor

from mingcore_kernels.conv import causal_conv as kernels

from .._core.support import Limit, Support
from .._core.triton import KERNELS
from . import CAUSAL_CONV1D, CAUSAL_CONV_TRANSPOSE1D

MAX_BATCH = 65535  # a grid's second dimension

_SOURCES = (KERNELS / "conv" / "causal_conv.py",)
_SUPPORT = Support(
    floats=("x", "weight", "bias", "residual"),
    float32=("before_alpha", "before_gain", "after_alpha", "after_gain"),
    contiguous=("next_context", "next_lengths", "emitted"),
    disjoint=("out",),
    layouts=("rows",),
    limits=(Limit("the batch is {}", lambda x, **_: x.shape[0], MAX_BATCH),),
)


@CAUSAL_CONV1D.implementation("triton", _SUPPORT, sources=_SOURCES)
def causal_conv1d(**args):
    _launch(**args, flush=0, transposed=False)


@CAUSAL_CONV_TRANSPOSE1D.implementation("triton", _SUPPORT, sources=_SOURCES)
def causal_conv_transpose1d(**args):
    _launch(**args, left_pad=0, replicate=False, transposed=True)


def _launch(x, residual, out, outputs, layout, n, **rest):
    dense = {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in rest.items()}
    kernels.causal_conv(x=x, residual=residual, out=out, **dense)
