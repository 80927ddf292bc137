"""RMSNorm and LayerNorm."""

from torch import Tensor

from .._core import checks
from .._core.op import Op, like

_BACKENDS = ("reference", "cpu", "triton")
RMS_NORM = Op(
    __name__,
    "rms_norm",
    "Tensor x, Tensor weight, float eps -> Tensor",
    results="out",
    fake=lambda x, **_: like(x),
    backends=_BACKENDS,
)
ADD_RMS_NORM = Op(
    __name__,
    "add_rms_norm",
    "Tensor x, Tensor residual, Tensor weight, float eps -> (Tensor, Tensor)",
    results="out total",
    fake=lambda x, **_: (like(x), like(x)),
    backends=_BACKENDS,
)
LAYER_NORM = Op(
    __name__,
    "layer_norm",
    "Tensor x, Tensor weight, Tensor? bias, float eps -> Tensor",
    results="out",
    fake=lambda x, **_: like(x),
    backends=_BACKENDS,
)


@RMS_NORM.public_function
def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight: x [..., H], weight [H] -> [..., H] in x.dtype.

    In float32, times the weight, then cast (Zhang and Sennrich 2019; docs/model.md section 2).
    Raises InputError.
    """
    _check("rms_norm", x, weight)
    return RMS_NORM.call(backend, x=x, weight=weight, eps=eps)


@ADD_RMS_NORM.public_function
def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual, rounded to x.dtype: all [..., H], weight [H]."""
    _check("add_rms_norm", x, weight)
    if residual.shape != x.shape:
        checks.shape("add_rms_norm", "residual", residual, "[..., H]", x.shape)
    if residual.dtype != x.dtype:
        checks.dtype("add_rms_norm", "residual", residual, x.dtype)
    return ADD_RMS_NORM.call(backend, x=x, residual=residual, weight=weight, eps=eps)


@LAYER_NORM.public_function
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, backend: str | None = None) -> Tensor:
    """(x - mean) * rsqrt(var + eps) * weight + bias, in float32: x [..., H], the others [H]."""
    _check("layer_norm", x, weight)
    if bias is not None and bias.shape != weight.shape:
        checks.shape("layer_norm", "bias", bias, "[H]", weight.shape)
    return LAYER_NORM.call(backend, x=x, weight=weight, bias=bias, eps=eps)


def _check(op: str, x: Tensor, weight: Tensor) -> None:
    if not x.dim() or weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        checks.shape(op, "weight", weight, "[H]", x.shape[-1:])
    if x.dtype not in checks.FLOATS:
        checks.floating(op, "x", x)
    if weight.device != x.device:
        checks.device(op, x, "weight", weight)
