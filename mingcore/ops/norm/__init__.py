"""Linear layers, norms, rotary embedding and SwiGLU: the public functions."""

from torch import Tensor

from .._core import checks
from .._core.dispatch import call


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight: x [..., H], weight [H] -> [..., H] in x.dtype.

    In float32, times the weight, then cast (Zhang and Sennrich 2019; docs/model.md section 2).
    """
    _norm("rms_norm", x, weight)
    return call("rms_norm", backend, x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual, rounded to x.dtype: all [..., H], weight [H]."""
    _norm("add_rms_norm", x, weight)
    if residual.shape != x.shape:
        checks.shape("add_rms_norm", "residual", residual, "[..., H]", x.shape)
    if residual.dtype != x.dtype:
        checks.dtype("add_rms_norm", "residual", residual, x.dtype)
    return call("add_rms_norm", backend, x, residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, backend: str | None = None) -> Tensor:
    """(x - mean) * rsqrt(var + eps) * weight + bias, in float32: x [..., H], the others [H]."""
    _norm("layer_norm", x, weight)
    if bias is not None and bias.shape != weight.shape:
        checks.shape("layer_norm", "bias", bias, "[H]", weight.shape)
    return call("layer_norm", backend, x, weight, bias, eps)


def _norm(op: str, x: Tensor, weight: Tensor) -> None:
    shape = x.shape
    if not shape or weight.shape != shape[-1:]:
        checks.shape(op, "weight", weight, "[H]", shape[-1:])
    if x.dtype not in checks.FLOATS:
        checks.floating(op, "x", x)
    if weight.device != x.device:
        checks.device(op, x, "weight", weight)
